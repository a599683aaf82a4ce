"""The roofline: a deployment and a step in, seconds by cause, memory, curves and waiting times out."""

from __future__ import annotations

from gambrel.cost.blackboard import Blackboard
from gambrel.cost.curves import curve, floor_seconds, wall_batch
from gambrel.cost.memory import held_bytes, memory_budget, require_fit
from gambrel.cost.roofline import FORMS, Roofline

__all__ = [
    "FORMS",
    "Blackboard",
    "Roofline",
    "curve",
    "floor_seconds",
    "held_bytes",
    "memory_budget",
    "require_fit",
    "wall_batch",
]
