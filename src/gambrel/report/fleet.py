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


def replicas_over_time(timeline: Mapping[str, Sequence[float]]) -> Spec | None:
    """Replicas that are ready, starting and leaving; None for fewer than two samples.

    ``timeline``: ``time_s``, ``ready``, ``starting`` and ``leaving``, as ``gambrel fleet --json`` has them.
    """
    ready = np.asarray(timeline["ready"], np.float64)
    sentence = (
        f"{say.number(float(ready.mean()))} replicas are ready on average, {say.count(float(ready.max(initial=0)))} at "
        f"most; in {say.percent(float((np.asarray(timeline['starting']) > 0).mean()))} of the samples one is starting."
    )
    lines = {"ready": BLUE, "starting": ORANGE, "leaving": PINK}
    return _course(timeline, lines, "replicas", "replicas-over-time", "Replicas over time", sentence)


def load_over_time(timeline: Mapping[str, Sequence[float]]) -> Spec | None:
    """Requests in flight, and those held because no replica was up; None for fewer than two samples."""
    flight = np.asarray(timeline["in_flight"], np.float64)
    held = float(np.max(timeline["held"], initial=0))
    waits = "none finds the fleet asleep" if held < 1 else f"at most {say.count(held)} wait for a first replica"
    sentence = f"{say.number(float(flight.mean()))} requests are in flight on average; {waits}, in all samples."
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
    fleet, timeline = document["fleet"], document["timeline"]
    specs = [s for s in (replicas_over_time(timeline), load_over_time(timeline)) if s is not None]
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
