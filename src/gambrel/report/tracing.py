"""A trace in words: each figure with its unit, the operation that made it, or where it was read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gambrel.core.trace import SIMULATION, walk
from gambrel.report import humanise as say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gambrel.core.trace import Traced

__all__ = ["figure", "origin", "trace_text"]

_WORDS: Final[Mapping[str, Callable[[float], str]]] = {
    "s": say.seconds,
    "bytes": say.num_bytes,
    "bytes/s": lambda x: f"{say.num_bytes(x)}/s",
    "$/h": say.per_hour,
    "$/Mtok": say.per_mtok,
    "$": say.dollars,
    "FLOP": lambda x: f"{say.number(x / 1e9)} GFLOP",
    "FLOP/s": lambda x: f"{say.number(x / 1e12)} TFLOP/s",
}
_SIGNS: Final = {"sum": " + ", "difference": " - ", "product": " x ", "quotient": " / "}
_FEW: Final = 4


def figure(node: Traced) -> str:
    """The value as people read it."""
    words = _WORDS.get(node.unit)
    if words:
        return words(node.value)
    whole = node.value == round(node.value) and abs(node.value) < 1e15
    return f"{say.count(node.value) if whole else say.number(node.value, 4)} {node.unit.removeprefix('1')}".strip()


def origin(node: Traced) -> str:
    """The formula over the inputs below, or the source; and the note."""
    made = node.source
    if node.operation == SIMULATION:
        made = "simulated"
    elif node.inputs:
        names = [part.name for part in node.inputs]
        sign = _SIGNS.get(node.operation, "")
        few = sign and len(names) <= _FEW
        made = sign.join(names) if few else f"{node.operation} of {_listed(names)}"
    return "; ".join(part for part in (made, node.note) if part)


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= _FEW else f"the {len(names)} lines below"


def trace_text(roots: Iterable[Traced]) -> str:
    """The trees as indented lines, one a figure."""
    blocks = []
    for root in roots:
        lines = [f"{'  ' * depth}{node.name} = {figure(node)}   [{origin(node)}]" for depth, node in walk(root)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"
