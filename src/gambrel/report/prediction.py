"""Measured points with the model's curve through or past them: the picture of how far to believe a prediction.

Whoever measured and whoever predicted, this room sees loads and values. Points are what came back, lines are what was
said; several lines (shipped constants, fitted ones) differ by their dash, several prompt lengths by their colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal

from gambrel.report import humanise as say
from gambrel.report.marks import colour_scale, linear, log, log2
from gambrel.report.service import LONG, log_domain, unit_of
from gambrel.report.style import BLUE, GREEN, GREY, ORANGE, PINK, VIOLET, chart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gambrel.report.style import Spec

__all__ = ["Compared", "measured_and_predicted"]

_COLOURS: Final = (BLUE, ORANGE, GREEN, PINK, VIOLET)
_DASHES: Final = ([5, 3], [1, 0], [2, 2])
Metric = Literal["ttft", "tpot", "e2e", "output_tok_s"]


@dataclass(frozen=True, slots=True)
class Compared:
    """Levels that differ in their load alone.

    ``title`` names them, e.g. ``512-token prompts``. ``measured`` are (load, value, label of the level); ``predicted``
    are (load, value) by the name of the constants, in ascending load. Loads are users at once, or requests/s where
    ``closed`` is False; values are seconds, or tokens/s of the whole system.
    """

    title: str
    measured: Sequence[tuple[float, float, str]]
    predicted: Mapping[str, Sequence[tuple[float, float]]]
    closed: bool = True


def measured_and_predicted(metric: Metric, groups: Sequence[Compared]) -> Spec | None:
    """One metric of measured levels as points, and of predictions as lines, against the load; None without points.

    Groups with another kind of load than the first are left out: they have no place on the axis.
    """
    shown = [g for g in groups if g.measured and g.closed == groups[0].closed]
    if not shown:
        return None
    titles = [g.title for g in shown]
    kinds = list(dict.fromkeys(k for g in shown for k in g.predicted))
    values = [v for g in shown for _, v, _ in g.measured]
    values += [v for g in shown for line in g.predicted.values() for _, v in line]
    scale, unit = (1.0, "tokens/s") if metric == "output_tok_s" else unit_of(values)
    name = "Output tokens/s" if metric == "output_tok_s" else f"{LONG[metric]} ({unit})"
    low, high = log_domain(values, room=0.05)
    loads = [x for g in shown for x, _, _ in g.measured]
    x = _load_axis(loads, closed=shown[0].closed)
    y = log("value", name, (low / scale, high / scale))
    colour = {
        "field": "prompt",
        "type": "nominal",
        "title": None,
        "scale": colour_scale(titles, [_COLOURS[i % len(_COLOURS)] for i in range(len(titles))]),
        "legend": {"symbolType": "circle", "symbolOpacity": 1} if len(titles) > 1 else None,
    }
    dash = {
        "field": "constants",
        "type": "nominal",
        "title": None,
        "scale": {"domain": kinds, "range": [list(_DASHES[i % len(_DASHES)]) for i in range(len(kinds))]},
        "legend": {"symbolType": "stroke", "encode": {"symbols": {"update": {"stroke": {"value": GREY}}}}},
    }
    tips = ("level", "measured", "predicted")
    points = [
        {"load": at, "value": v / scale, "prompt": g.title, "level": label, "measured": _told(v, metric)}
        | {"predicted": _nearest(g.predicted, at, metric)}
        for g in shown
        for at, v, label in g.measured
    ]
    lines = [
        {"load": at, "value": v / scale, "prompt": g.title, "constants": kind}
        for g in shown
        for kind, line in g.predicted.items()
        for at, v in line
    ]
    layers: list[Spec] = [
        {
            "data": {"values": lines},
            "mark": {"type": "line", "strokeWidth": 2.2, "clip": True},
            "encoding": {"x": x, "y": y, "color": colour, "strokeDash": dash},
        },
        {
            "data": {"values": points},
            "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1, "clip": True},
            "encoding": {
                "x": x,
                "y": y,
                "color": colour,
                "tooltip": [{"field": f, "type": "nominal", "title": f} for f in tips],
            },
        },
    ]
    heading = "Throughput" if metric == "output_tok_s" else LONG[metric]
    against = "concurrency" if shown[0].closed else "the rate offered"
    return chart(
        f"predicted-{metric.replace('_', '-')}",
        f"{heading} against {against}: measured and predicted",
        _sentence(shown, kinds),
        layers,
    )


def _load_axis(loads: Sequence[float], *, closed: bool) -> Spec:
    low, high = min(loads), max(loads)
    if closed:
        return log2("load", "requests in flight (concurrency)", (low / 1.15, high * 1.15))
    return linear("load", "requests/s offered", (0.0, high * 1.05))


def _told(value: float, metric: Metric) -> str:
    return say.rate(value, "tokens") if metric == "output_tok_s" else say.seconds(value)


def _nearest(predicted: Mapping[str, Sequence[tuple[float, float]]], load: float, metric: Metric) -> str:
    """What each kind of constants says at a load, in words."""
    found: list[str] = []
    for kind, line in predicted.items():
        at = next((v for x, v in line if math.isclose(x, load)), None)
        if at is not None:
            found.append(f"{_told(at, metric)} ({kind})")
    return ", ".join(found)


def _sentence(groups: Sequence[Compared], kinds: Sequence[str]) -> str:
    """How far each kind of constants is off the points, at the median and at worst."""
    parts: list[str] = []
    for kind in kinds:
        off: list[tuple[float, str]] = []
        for g in groups:
            said: dict[float, Any] = dict(g.predicted.get(kind, ()))
            off += [(abs(said[x] / v - 1.0), label) for x, v, label in g.measured if x in said and v > 0]
        if off:
            worst = max(off)
            middle = median(e for e, _ in off)
            parts.append(
                f"with {kind} constants the line is off by {say.percent(middle)} at the median and by "
                f"{say.percent(worst[0])} at {worst[1]}"
            )
    text = "; ".join(parts) or "nothing is predicted at the measured loads"
    return f"Points are measured; {text}."
