"""The roofline: a deployment and a step in, seconds by cause, memory, curves and waiting times out."""

from __future__ import annotations

from gambrel.cost.memory import memory_budget, require_fit
from gambrel.cost.roofline import Roofline

__all__ = ["Roofline", "memory_budget", "require_fit"]
