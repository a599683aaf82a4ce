"""The roofline: a deployment and a step in, seconds by cause, memory, curves and waiting times out."""

from __future__ import annotations

from gambrel.cost.blackboard import Blackboard
from gambrel.cost.curves import curve, floor_seconds, wall_batch
from gambrel.cost.memory import held_bytes, memory_budget, require_fit
from gambrel.cost.roofline import FORMS, Roofline
from gambrel.cost.steady import Demand, SteadyState, busy_seconds, closed_loop, steady_state

__all__ = [
    "FORMS",
    "Blackboard",
    "Demand",
    "Roofline",
    "SteadyState",
    "busy_seconds",
    "closed_loop",
    "curve",
    "floor_seconds",
    "held_bytes",
    "memory_budget",
    "require_fit",
    "steady_state",
    "wall_batch",
]
