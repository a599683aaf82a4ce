"""The few shapes that every chart shares: axes that read in words, labelled rules that do not collide.

Positions are chosen for the narrowest page (a plot 240 px wide), so labels that clear each other there clear each
other everywhere.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gambrel.core.step import Floats
    from gambrel.report.style import Spec

__all__ = [
    "colour_scale",
    "labelled_x",
    "labelled_y",
    "linear",
    "log",
    "log2",
    "log_ticks",
    "lowest_free_rows",
    "thin",
    "time_axis",
]

_NARROW_PX: Final = 240.0
_CHARACTER_PX: Final = 6.4
_LINE_PX: Final = 15
PLAIN_LABEL: Final = "format(datum.value, ',.12~r')"
TOKENS_LABEL: Final = (
    "datum.value >= 1048576 ? format(datum.value / 1048576, ',~r') + 'M' : "
    "datum.value >= 1024 ? format(datum.value / 1024, ',~r') + 'k' : format(datum.value, ',~r')"
)


def thin(size: int, keep: int = 240) -> np.ndarray[Any, np.dtype[np.intp]]:
    """At most ``keep`` indices of ``size`` rows, evenly spaced, first and last among them."""
    return np.unique(np.linspace(0, size - 1, min(size, keep)).round().astype(np.intp))


def log2(field: str, title: str, domain: tuple[float, float], *, tokens: bool = False, **more: Any) -> Spec:
    """An axis in powers of two: 1, 2, 4, ...; with ``tokens`` 1,024 reads 1k."""
    low, high = math.floor(math.log2(domain[0])), math.ceil(math.log2(domain[1]))
    step = max(1, -(-(high - low) // 14))
    values = [2.0**p for p in range(low, high + 1, step) if domain[0] <= 2.0**p <= domain[1]]
    axis = {
        "values": values,
        "labelExpr": TOKENS_LABEL if tokens else PLAIN_LABEL,
        "labelOverlap": "greedy",
    }
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "base": 2, "domain": list(domain), "nice": False},
        "axis": axis,
        **more,
    }


def log_ticks(low: float, high: float, *, steps: Sequence[int] = (1, 2, 5)) -> list[float]:
    """1, 2, 5, 10, ... within [low, high]; decades only when there are more than three of them."""
    if high / low > 2e3:
        steps = (1,)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**d for d in decades for m in steps]
    return [float(f"{t:.0e}") for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]


def log(field: str, title: str, domain: tuple[float, float], *, prefix: str = "", **more: Any) -> Spec:
    """A decimal logarithmic axis with 1-2-5 ticks, no exponents, ``prefix`` before each number."""
    money = f"'{prefix}' + (datum.value > 0.09 && datum.value < 0.9 ? format(datum.value, '.2f') : {PLAIN_LABEL})"
    axis = {
        "values": log_ticks(*domain),
        "labelExpr": money if prefix else PLAIN_LABEL,
        "labelOverlap": "greedy",
    }
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "domain": list(domain), "nice": False},
        "axis": axis,
        **more,
    }


def linear(field: str, title: str, domain: tuple[float, float] | None = None, *, prefix: str = "", **more: Any) -> Spec:
    """A straight axis from zero (or over ``domain``) with about six ticks."""
    scale: Spec = {"zero": True} if domain is None else {"domain": list(domain), "nice": False}
    label = f"'{prefix}' + {PLAIN_LABEL}" if prefix else PLAIN_LABEL
    axis = {"labelExpr": label, "tickCount": 6, "labelOverlap": "greedy", **more.pop("axis", {})}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis, **more}


def time_axis(time_s: Floats) -> tuple[Spec, Floats]:
    """A time axis in the unit that suits the span, and the times in it (field ``t``)."""
    span = float(time_s[-1] - time_s[0]) if len(time_s) > 1 else 1.0
    size, unit = next(
        ((s, u) for s, u, limit in ((1.0, "s", 300.0), (60.0, "min", 14_400.0)) if span <= limit), (3600.0, "h")
    )
    t = time_s / size
    domain = (float(t[0]), float(max(t[-1], t[0] + 1e-9)))
    return linear("t", f"time ({unit})", domain), t


def colour_scale(titles: Sequence[str], colours: Sequence[str]) -> Spec:
    """A nominal scale in the given order."""
    return {"domain": list(titles), "range": list(colours)}


def _share(value: float, domain: tuple[float, float], *, logarithmic: bool) -> float:
    """Where ``value`` lies on an axis, 0 at its start and 1 at its end."""
    f = math.log if logarithmic else float
    return (f(value) - f(domain[0])) / (f(domain[1]) - f(domain[0]))


def _align(share: float, text: str) -> str:
    half = len(text) * _CHARACTER_PX / 2 / _NARROW_PX
    return "left" if share < half else "right" if share > 1 - half else "center"


def lowest_free_rows(shares: Sequence[float], texts: Sequence[str]) -> list[int]:
    """For labels centred at ``shares`` of a narrow plot, the first row each fits in without touching another."""
    taken: list[list[tuple[float, float]]] = []
    found = []
    for share, text in zip(shares, texts, strict=True):
        width = len(text) * _CHARACTER_PX / _NARROW_PX
        start = {"left": share, "right": share - width, "center": share - width / 2}[_align(share, text)]
        span = (start - 0.02, start + width + 0.02)
        row = next(
            (i for i, used in enumerate(taken) if all(span[1] <= a or b <= span[0] for a, b in used)), len(taken)
        )
        if row == len(taken):
            taken.append([])
        taken[row].append(span)
        found.append(row)
    return found


def haloed(data: Spec, mark: Spec, encoding: Spec) -> list[Spec]:
    """Text with a rim in the page's colour, so that it reads on top of lines and areas."""
    rim = {**mark, "type": "text", "style": "halo"}
    return [{"data": data, "mark": m, "encoding": encoding} for m in (rim, {"style": "note", **mark, "type": "text"})]


def labelled_x(
    marks: Sequence[tuple[float, str]],
    field: str,
    domain: tuple[float, float],
    *,
    logarithmic: bool = True,
    style: str = "rule-ink",
) -> list[Spec]:
    """Vertical rules with labels in rows at the top of the plot, inside it; marks off the axis are left out."""
    low, high = domain
    inside = [(x, text) for x, text in marks if math.isfinite(x) and low <= x <= high]
    shares = [_share(x, domain, logarithmic=logarithmic) for x, _ in inside]
    placed = lowest_free_rows(shares, [text for _, text in inside])
    layers: list[Spec] = []
    for (x, text), share, row in zip(inside, shares, placed, strict=True):
        align = _align(share, text)
        data = {"values": [{field: x, "label": text}]}
        at = {"field": field, "type": "quantitative"}
        layers.append(
            {
                "data": data,
                "mark": {"type": "rule", "style": style, "clip": True},
                "encoding": {"x": at, "y": {"value": _LINE_PX * (row + 1)}, "y2": {"value": "height"}},
            }
        )
        words = {"align": align, "baseline": "middle", "dx": {"left": -2, "right": 2, "center": 0}[align]}
        layers += haloed(data, words, {"x": at, "y": {"value": _LINE_PX * row + 7}, "text": {"field": "label"}})
    return layers


def labelled_y(
    value: float, text: str, field: str, *, below: bool = False, right: bool = False, style: str = "rule-limit"
) -> list[Spec]:
    """A horizontal rule across the plot with its text above (or below) it, at the left (or right) edge."""
    data = {"values": [{field: value, "label": text}]}
    at = {"field": field, "type": "quantitative"}
    words = {
        "align": "right" if right else "left",
        "baseline": "top" if below else "bottom",
        "dx": -4 if right else 4,
        "dy": 5 if below else -4,
    }
    edge = {"value": "width" if right else 0}
    return [
        {"data": data, "mark": {"type": "rule", "style": style, "clip": True}, "encoding": {"y": at}},
        *haloed(data, words, {"x": edge, "y": at, "text": {"field": "label"}}),
    ]
