"""The words of a plan's trace: leaves with their source, and figures made from others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gambrel.core.trace import Traced, recompute

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.workload import Workload

__all__ = ["leaf", "logged", "made", "setting", "shapes", "sheet", "simulated"]


def leaf(name: str, value: float, unit: str, source: str, note: str = "") -> Traced:
    """A given figure and where it was read."""
    return Traced(name, float(value), unit, source=source, note=note)


def made(name: str, unit: str, operation: str, *inputs: Traced, note: str = "") -> Traced:
    """A figure by an operation on others; its value is what the operation gives."""
    node = Traced(name, 0.0, unit, operation, inputs, note=note)
    return Traced(name, recompute(node), unit, operation, inputs, note=note)


def sheet(d: Deployment) -> str:
    """Where the accelerator's figures come from."""
    a = d.accelerator
    confidence = f", confidence {a.confidence}" if a.confidence else ""
    return f"specification of {a.title}: {a.source or 'given by you'}{confidence}"


def shapes(d: Deployment) -> str:
    """Where the model's tensor shapes come from."""
    return f"tensor shapes of {d.model.name}: {d.model.source or 'given by you'}"


def setting(d: Deployment, name: str) -> Traced:
    """An engine setting that the search chose."""
    return leaf(name, float(getattr(d, name)), "1", f"chosen setting of {d.engine} {d.engine_version}")


def simulated(name: str, value: float, unit: str, note: str) -> Traced:
    """A figure of the simulated run."""
    return leaf(name, value, unit, "simulation of the log on the chosen deployment", note)


def logged(workload: Workload, name: str, value: float, unit: str, note: str = "") -> Traced:
    """A figure of the log."""
    return leaf(name, value, unit, f"log {workload.source or workload.name}, {len(workload):,} requests", note)
