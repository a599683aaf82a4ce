"""A fleet over time: how many replicas there were beside how much there was to do, and what it came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.report import humanise as say
from gambrel.report.document import Fact, Report, Section
from gambrel.report.marks import colour_scale, linear, time_axis
from gambrel.report.style import BLUE, GREEN, ORANGE, PINK, chart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gambrel.report.style import Spec

__all__ = ["fleet_report", "load_over_time", "replicas_over_time"]


def replicas_over_time(document: Mapping[str, Any]) -> Spec | None:
    """Replicas that are ready, starting and leaving; None for fewer than two samples.

    ``document``: what ``gambrel fleet --json`` says.
    """
    timeline, fleet = document["timeline"], document["fleet"]
    ready = float(np.mean(timeline["ready"])) if timeline["ready"] else 0.0
    sentence = f"{say.number(ready)} replicas are ready on average, {say.count(fleet['replicas_max'])} at most"
    sentence += f"; {say.count(fleet['starts'])} were started." if fleet["starts"] else "."
    lines = {"ready": BLUE, "starting": ORANGE, "leaving": PINK}
    return _course(timeline, lines, "replicas", "replicas-over-time", "Replicas over time", sentence)


def load_over_time(document: Mapping[str, Any]) -> Spec | None:
    """Requests in flight, and those held because no replica was up; None for fewer than two samples."""
    timeline, held = document["timeline"], document["held"]["num"]
    flight = float(np.mean(timeline["in_flight"])) if timeline["in_flight"] else 0.0
    waits = f"{say.count(held)} found no replica up" if held else "none found the fleet asleep"
    sentence = f"{say.number(flight)} requests are in flight on average; {waits}."
    lines = {"in flight": GREEN, "held": ORANGE}
    return _course(timeline, lines, "requests", "load-over-time", "Load over time", sentence)


def _course(
    timeline: Mapping[str, Sequence[float]], lines: Mapping[str, str], unit: str, name: str, title: str, sentence: str
) -> Spec | None:
    time_s = np.asarray(timeline["time_s"], np.float64)
    if len(time_s) < 2:
        return None
    x, t = time_axis(time_s)
    columns = {line: np.asarray(timeline[line.replace(" ", "_")], np.float64) for line in lines}
    values: list[Any] = [
        {"t": float(a), "n": float(b), "what": line, "when": say.seconds(float(w)), "said": say.number(float(b))}
        for line, column in columns.items()
        for a, b, w in zip(t, column, time_s, strict=True)
    ]
    top = max(1.0, *(float(column.max()) for column in columns.values()))
    mark = {
        "data": {"values": values},
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.5},
        "encoding": {
            "x": x,
            "y": linear("n", unit, (0, 1.12 * top)),
            "color": {
                "field": "what",
                "type": "nominal",
                "title": None,
                "scale": colour_scale(list(lines), list(lines.values())),
                "legend": {"symbolType": "stroke"},
            },
            "tooltip": [
                {"field": "when", "type": "nominal", "title": "time"},
                {"field": "what", "type": "nominal"},
                {"field": "said", "type": "nominal", "title": unit},
            ],
        },
    }
    return chart(name, title, sentence, [mark], height=220)


def fleet_report(document: Mapping[str, Any]) -> Report:
    """The page of a fleet's day, from what ``gambrel fleet --json`` says."""
    fleet = document["fleet"]
    specs = [s for s in (replicas_over_time(document), load_over_time(document)) if s is not None]
    cost = "no price known" if fleet["usd"] is None else say.dollars(fleet["usd"])
    facts = [
        Fact("replicas", f"{fleet['replicas_mean']:.2f}", f"on average, {fleet['replicas_max']} at most"),
        Fact("cost", cost, f"{fleet['gpu_hours']:,.1f} GPU-hours"),
        Fact("TTFT p95", say.seconds(document["ttft_s"]["p95"])),
        Fact("starts", say.count(fleet["starts"]), f"{fleet['failures']} failures"),
    ]
    if document["goodput"] is not None:
        facts.append(Fact("goodput", say.percent(document["goodput"]), "of requests met every objective"))
    fixed = document["fixed_fleet"]
    sentence = f"{document['num_requests']:,} requests in {say.seconds(document['span_s'])} on {cost}"
    if fixed is not None and fixed["usd"] is not None:
        sentence += (
            f"; the fixed fleet that meets the objectives has {fixed['replicas']} replicas, {say.dollars(fixed['usd'])}"
        )
    return Report(
        "A fleet over time",
        document["deployment"]["label"],
        (sentence + ".",),
        tuple(facts),
        (Section("How many replicas, and how much to do", "Replicas follow the load, later.", tuple(specs)),),
        ("simulated; see docs/fleet.md for what is not modelled",),
    )
