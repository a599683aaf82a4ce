"""Where a figure comes from: a tree from the figure to its inputs, that anyone can recompute with a pocket calculator.

A node is a value with its unit and either a *source* (a leaf: a price list, a specification sheet, a fitted constant,
the log, a search) or an *operation* on its inputs. Operations are plain arithmetic, written once in ``OPERATIONS``, so
that :func:`recompute` checks the very formulas of the rooms below against the tree without sharing any code with them.
A figure that only a simulation gives has the operation ``simulation``: its inputs say what was simulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["OPERATIONS", "SIMULATION", "Traced", "recompute", "walk"]

SIMULATION: Final = "simulation"
"""The operation of what no arithmetic on the inputs gives."""


@dataclass(frozen=True, slots=True)
class Traced:
    """A figure: SI value, unit, and either ``source`` (leaf) or ``operation`` on ``inputs``; ``note`` says what it is.

    ``unit`` is a word: ``s``, ``bytes``, ``bytes/s``, ``FLOP/s``, ``tokens``, ``$/h``, ``1`` for a plain number.
    """

    name: str
    value: float
    unit: str
    operation: str = ""
    inputs: tuple[Traced, ...] = ()
    source: str = ""
    note: str = ""


def _rounded_maximum(values: Sequence[float]) -> float:
    compute, memory, rounding = values
    high, low = max(compute, memory), min(compute, memory)
    if rounding == 0.0 or high == 0.0:
        return high
    return float(high * (1.0 + (low / high) ** (1.0 / rounding)) ** rounding)


def _quotient(values: Sequence[float]) -> float:
    return values[0] / math.prod(values[1:])


OPERATIONS: Final[Mapping[str, Callable[[Sequence[float]], float]]] = {
    "sum": sum,
    "product": math.prod,
    "quotient": _quotient,
    "difference": lambda v: v[0] - sum(v[1:]),
    "whole part of the quotient": lambda v: float(math.floor(_quotient(v))),
    "quotient rounded up": lambda v: float(math.ceil(_quotient(v))),
    "largest": max,
    "least": min,
    "square root": lambda v: math.sqrt(v[0]),
    "power": lambda v: float(v[0] ** v[1]),
    "complement": lambda v: 1.0 - v[0],
    "rounded maximum": _rounded_maximum,
}
"""What a tree may do with its inputs; ``quotient`` divides the first by all others, ``rounded maximum`` takes compute
seconds, memory seconds and the rounding, and is ``(c^p + m^p)^(1/p)`` with ``p = 1/rounding``."""


def recompute(node: Traced) -> float:
    """The node's value from its leaves alone; a simulated figure is taken as it is.

    Raises:
        KeyError: an operation that is not in ``OPERATIONS``.
    """
    if not node.inputs or node.operation == SIMULATION:
        return node.value
    return OPERATIONS[node.operation]([recompute(part) for part in node.inputs])


def walk(node: Traced, depth: int = 0) -> Iterator[tuple[int, Traced]]:
    """Every node with its depth, the root first, in reading order."""
    yield depth, node
    for part in node.inputs:
        yield from walk(part, depth + 1)
