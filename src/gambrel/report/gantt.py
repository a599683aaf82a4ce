"""Requests' lives as lines of text: who waited, computed, answered or was evicted when, one line each.

For a terminal, a document or an issue, where nobody opens a trace viewer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gambrel.core.timeline import PHASES
from gambrel.report import humanise as say

if TYPE_CHECKING:
    from gambrel.core.timeline import Timeline

__all__ = ["lives"]

MARKS = dict(zip(PHASES, ".#=~", strict=True))


def lives(timeline: Timeline, width: int = 64, most: int = 24) -> str:
    """The first ``most`` requests of a window on one scale of ``width`` characters; a phase shorter than one is unseen.

    The last lines are the scale and what the marks mean.
    """
    p = timeline.phases
    ends = p.end_s[p.end_s < float("inf")]
    begin, end = timeline.begin_s, min(timeline.end_s, float(ends.max(initial=timeline.begin_s)))
    per_s = width / max(end - begin, 1e-9)
    lines: dict[int, list[str]] = {}
    for request, phase, start, stop in zip(
        p.request.tolist(), p.phase.tolist(), p.start_s.tolist(), p.end_s.tolist(), strict=True
    ):
        if request not in lines and len(lines) == most:
            continue
        line = lines.setdefault(request, [" "] * width)
        first = round((max(start, begin) - begin) * per_s)
        last = round((min(stop, end) - begin) * per_s)
        line[first:last] = MARKS[PHASES[phase]] * (last - first)
    label = max((len(str(r + 1)) for r in lines), default=1)
    drawn = [f"{r + 1:>{label}} |{''.join(line)}|" for r, line in sorted(lines.items())]
    left, right = say.seconds(begin), say.seconds(end)
    scale = f"{'':>{label}}  {left}{right:>{width - len(left)}}"
    return "\n".join([*drawn, scale, ", ".join(f"{mark} {name}" for name, mark in MARKS.items())])
