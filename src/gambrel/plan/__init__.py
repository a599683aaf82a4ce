"""Search for the cheapest deployment that meets the objectives, and say why the others lose."""

from __future__ import annotations

from gambrel.plan.planner import plan
from gambrel.plan.space import Space

__all__ = ["Space", "plan"]
