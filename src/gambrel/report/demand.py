"""What the log asks for: how long prompts and answers are, how they go together, how many overlap, how bursty it is.

Figures that traffic computes arrive as they are in a :class:`TrafficView`; only binning for the eye happens here.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from gambrel.report import humanise as say
from gambrel.report.marks import haloed, labelled_x, labelled_y, linear, log2, time_axis
from gambrel.report.style import BLUE, GREEN, chart, rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from gambrel.core.run import Distribution
    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints, Workload
    from gambrel.report.style import Spec

__all__ = [
    "TrafficView",
    "arrivals_over_time",
    "bursts",
    "in_flight",
    "in_flight_over_time",
    "joint_lengths",
    "output_lengths",
    "prompt_lengths",
]


class _Overlap(Protocol):
    @property
    def mean(self) -> float: ...
    @property
    def p50(self) -> float: ...
    @property
    def p99(self) -> float: ...
    @property
    def max(self) -> int: ...
    @property
    def time_s(self) -> Floats: ...
    @property
    def in_flight(self) -> Floats: ...
    @property
    def basis(self) -> str: ...


class _Figures(Protocol):
    """The figures of a workload as traffic describes them."""

    @property
    def rate_rps(self) -> float: ...
    @property
    def span_s(self) -> float: ...
    @property
    def cv(self) -> float: ...
    @property
    def correlation(self) -> float: ...
    @property
    def peak_to_mean(self) -> Mapping[str, float]: ...
    @property
    def prompt_tokens(self) -> Distribution: ...
    @property
    def output_tokens(self) -> Distribution: ...
    @property
    def concurrency(self) -> Any: ...
    @property
    def kv_tokens_held(self) -> float: ...
    @property
    def rate_time_s(self) -> Floats: ...
    @property
    def rate_series_rps(self) -> Floats: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class TrafficView:
    """A log as the charts need it.

    ``prompt_tokens`` and ``output_tokens`` are int64[n]; ``in_flight`` (requests) and ``arrivals_rps`` are means of
    equal time bins that start at ``in_flight_time_s`` and ``arrivals_time_s``; ``in_flight_stats`` holds ``mean``,
    ``p50``, ``p99`` and ``max`` by time; ``peak_to_mean`` maps a window (``1s``) to its fullest over the mean;
    ``held_tokens`` is the mean KV tokens of a request in flight, weighted by how long it stays.
    """

    name: str
    source: str
    prompt_tokens: Ints
    output_tokens: Ints
    rate_rps: float
    span_s: float
    cv: float = math.nan
    correlation: float = math.nan
    peak_to_mean: Mapping[str, float] = field(default_factory=dict)
    arrivals_time_s: Floats | None = None
    arrivals_rps: Floats | None = None
    in_flight_time_s: Floats | None = None
    in_flight: Floats | None = None
    in_flight_stats: Mapping[str, float] = field(default_factory=dict)
    in_flight_basis: str = ""
    held_tokens: float = math.nan
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, workload: Workload, figures: _Figures) -> TrafficView:
        """A workload with the figures that traffic describes it in."""
        overlap: _Overlap = figures.concurrency
        return cls(
            name=workload.name,
            source=workload.source,
            prompt_tokens=workload.prompt_tokens,
            output_tokens=workload.output_tokens,
            rate_rps=figures.rate_rps,
            span_s=figures.span_s,
            cv=figures.cv,
            correlation=figures.correlation,
            peak_to_mean=dict(figures.peak_to_mean),
            arrivals_time_s=figures.rate_time_s,
            arrivals_rps=figures.rate_series_rps,
            in_flight_time_s=overlap.time_s,
            in_flight=overlap.in_flight,
            in_flight_stats={k: float(getattr(overlap, k)) for k in ("mean", "p50", "p99", "max")},
            in_flight_basis=overlap.basis,
            held_tokens=figures.kv_tokens_held,
            warnings=figures.warnings,
        )


_BINS_PER_OCTAVE: Final = 3


def _edges(values: Ints, per_octave: int = _BINS_PER_OCTAVE) -> npt.NDArray[np.int64]:
    """Whole-number bin edges, ``per_octave`` to a doubling where numbers are large enough, covering ``values``."""
    low, high = math.floor(math.log2(int(values.min()))), math.log2(int(values.max()) + 1)
    powers = np.arange(low * per_octave, math.ceil(high * per_octave) + 1) / per_octave
    edges: npt.NDArray[np.int64] = np.unique(np.round(2.0**powers).astype(np.int64))
    return edges


def _lengths(values: Ints, name: str, heading: str, noun: str, colour: str) -> Spec:
    edges = _edges(values)
    counts, _ = np.histogram(values, edges)
    share = 100 * counts / len(values)
    p50, p95, p99 = (float(v) for v in np.percentile(values, (50, 95, 99)))
    domain = (float(edges[0]), float(edges[-1]))
    x = log2("tokens", f"{noun} tokens", domain, tokens=True)
    top = float(share.max())
    bars = {
        "data": rows(
            {
                "tokens": edges[:-1].tolist(),
                "to": edges[1:].tolist(),
                "share": share.tolist(),
                "length": [
                    f"{say.count(a)} to {say.count(b - 1)} tokens" for a, b in itertools.pairwise(edges.tolist())
                ],
                "requests": [f"{say.count(c)} ({say.percent(c / len(values))})" for c in counts],
            }
        ),
        "mark": {"type": "rect", "color": colour, "opacity": 0.85},
        "encoding": {
            "x": x,
            "x2": {"field": "to"},
            "y": linear("share", "% of requests", (0, top * 1.45)),
            "y2": {"datum": 0},
            "tooltip": [{"field": f, "type": "nominal"} for f in ("length", "requests")],
        },
    }
    marks = [(p50, f"p50 {say.count(p50)}"), (p95, f"p95 {say.count(p95)}"), (p99, f"p99 {say.count(p99)}")]
    longest = int(values.max())
    sentence = (
        f"Half the {noun}s are up to {say.count(p50)} tokens, one in twenty is longer than {say.count(p95)} and one "
        f"in a hundred longer than {say.count(p99)}; the longest has {say.count(longest)}, "
        f"{say.multiple(longest / p50)} the median."
    )
    return chart(name, heading, sentence, [bars, *labelled_x(marks, "tokens", domain)], height=240)


def prompt_lengths(view: TrafficView) -> Spec:
    """Histogram of prompt tokens in logarithmic bins, with p50, p95 and p99."""
    return _lengths(view.prompt_tokens, "prompt-lengths", "How long prompts are", "prompt", BLUE)


def output_lengths(view: TrafficView) -> Spec:
    """Histogram of output tokens in logarithmic bins, with p50, p95 and p99."""
    return _lengths(view.output_tokens, "output-lengths", "How long answers are", "answer", GREEN)


def joint_lengths(view: TrafficView) -> Spec:
    """Heat map of prompt against output tokens, both logarithmic, two bins to a doubling."""
    xe, ye = _edges(view.prompt_tokens, 2), _edges(view.output_tokens, 2)
    counts, _, _ = np.histogram2d(view.prompt_tokens, view.output_tokens, bins=(xe, ye))
    i, j = np.nonzero(counts)
    n = counts[i, j]
    most = int(np.argmax(n))
    cells = {
        "data": rows(
            {
                "prompt": xe[i].tolist(),
                "prompt_to": xe[i + 1].tolist(),
                "output": ye[j].tolist(),
                "output_to": ye[j + 1].tolist(),
                "requests": n.tolist(),
                "prompts": [
                    f"{say.count(a)} to {say.count(b - 1)}"
                    for a, b in zip(xe[i].tolist(), xe[i + 1].tolist(), strict=True)
                ],
                "answers": [f"{say.count(a)} to {say.count(b - 1)}" for a, b in zip(ye[j], ye[j + 1], strict=True)],
                "number": [say.count(v) for v in n],
            }
        ),
        "mark": {"type": "rect", "color": BLUE},
        "encoding": {
            "x": log2("prompt", "prompt tokens", (float(xe[0]), float(xe[-1])), tokens=True),
            "x2": {"field": "prompt_to"},
            "y": log2("output", "answer tokens", (float(ye[0]), float(ye[-1])), tokens=True),
            "y2": {"field": "output_to"},
            "opacity": {
                "field": "requests",
                "type": "quantitative",
                "title": "requests in a cell",
                "scale": {"type": "log", "domain": [1, max(10.0, float(n.max()))], "range": [0.1, 1], "nice": False},
                "legend": {
                    "values": [10**p for p in range(1 + int(math.log10(max(10.0, float(n.max())))))],
                    "symbolType": "square",
                    "symbolFillColor": BLUE,
                    "symbolStrokeWidth": 0,
                    "format": ",",
                    "titleFontWeight": "normal",
                },
            },
            "tooltip": [{"field": f, "type": "nominal"} for f in ("prompts", "answers", "number")],
        },
    }
    r = view.correlation
    together = (
        ""
        if not math.isfinite(r)
        else f"; length of prompt and answer correlate at {r:+.2f}: "
        + (
            "nearly independent"
            if abs(r) < 0.2
            else "they rise together"
            if r > 0
            else "long prompts get short answers"
        )
    )
    sentence = (
        f"The fullest cell is prompts of {say.count(xe[i[most]])} to {say.count(xe[i[most] + 1] - 1)} tokens "
        "with answers "
        f"of {say.count(ye[j[most]])} to {say.count(ye[j[most] + 1] - 1)} tokens "
        f"({say.percent(float(n[most]) / len(view.prompt_tokens))} "
        f"of requests){together}."
    )
    return chart("joint-lengths", "Prompt and answer together", sentence, [cells], height=280)


def _area(
    name: str,
    heading: str,
    sentence: str,
    time_s: Floats,
    values: Floats,
    title: str,
    colour: str,
    rules: list[tuple[float, str]],
) -> Spec:
    x, t = time_axis(time_s)
    top = max(float(np.nanmax(values)), *(v for v, _ in rules), 1e-9)
    area = {
        "data": rows(
            {
                "t": t.tolist(),
                "value": values.tolist(),
                "when": [say.seconds(v) for v in time_s],
                "what": [say.number(v) for v in values],
            }
        ),
        "mark": {
            "type": "area",
            "interpolate": "step",
            "color": colour,
            "opacity": 0.55,
            "line": {"color": colour, "strokeWidth": 1.2},
        },
        "encoding": {
            "x": x,
            "y": linear("value", title, (0, top * 1.12)),
            "tooltip": [
                {"field": "when", "type": "nominal", "title": "time"},
                {"field": "what", "type": "nominal", "title": title},
            ],
        },
    }
    lines = [layer for v, text in rules for layer in labelled_y(v, text, "value", right=True, style="rule-ink")]
    return chart(name, heading, sentence, [area, *lines], height=220)


def _some(value: float) -> str:
    """How many: whole numbers whole."""
    return say.count(value) if value == round(value) else say.number(value)


def in_flight_over_time(view: TrafficView) -> Spec | None:
    """Requests in flight over the log; None where the view has no series."""
    if view.in_flight is None or view.in_flight_time_s is None:
        return None
    s = view.in_flight_stats
    rules = [(s[k], f"{k} {_some(s[k])}") for k in ("mean", "p99") if k in s]
    sentence = (
        f"On average {_some(s['mean'])} requests overlap, for 1 % of the time more than {_some(s['p99'])}, and at the "
        f"worst instant {say.count(s['max'])}: {say.multiple(s['max'] / s['mean'])} the mean ({view.in_flight_basis})."
    )
    return _area(
        "in-flight-over-time",
        "How many requests overlap",
        sentence,
        view.in_flight_time_s,
        view.in_flight,
        "requests in flight",
        BLUE,
        rules,
    )


def in_flight(view: TrafficView) -> Spec | None:
    """Share of time that at least so many requests are in flight; None where the view has no series."""
    if view.in_flight is None or len(view.in_flight) == 0:
        return None
    levels, counts = np.unique(view.in_flight, return_counts=True)
    if len(levels) > 120:
        counts, edges = np.histogram(view.in_flight, 120)
        levels = edges[1:]
    share = 100 * np.cumsum(counts[::-1])[::-1] / counts.sum()
    s = view.in_flight_stats
    domain = (0.0, max(float(levels[-1]) * 1.05, 1.0))
    line = {
        "data": rows({"n": [0.0, *levels.tolist()], "share": [100.0, *share.tolist()]}),
        "mark": {
            "type": "area",
            "orient": "vertical",
            "interpolate": "step-before",
            "color": BLUE,
            "opacity": 0.5,
            "line": {"color": BLUE, "strokeWidth": 1.4},
        },
        "encoding": {
            "x": linear("n", "requests in flight at once", domain),
            "y": linear("share", "% of the time at least so many", (0, 130), axis={"values": [0, 25, 50, 75, 100]}),
        },
    }
    marks = [(s[k], f"{k} {_some(s[k])}") for k in ("mean", "p99") if k in s]
    half, tenth = (float(v) for v in np.percentile(view.in_flight, (50, 90)))
    sentence = (
        f"Half of the time at least {_some(half)} requests are in flight, a tenth of the time at least "
        f"{_some(tenth)}; a batch limit below that queues them (means of {len(view.in_flight)} equal bins)."
    )
    return chart(
        "in-flight",
        "How often that many overlap",
        sentence,
        [line, *labelled_x(marks, "n", domain, logarithmic=False)],
        height=220,
    )


def arrivals_over_time(view: TrafficView) -> Spec | None:
    """Arrivals per second over the log; None where the view has no series."""
    if view.arrivals_rps is None or view.arrivals_time_s is None or len(view.arrivals_rps) < 2:
        return None
    bin_s = float(view.arrivals_time_s[1] - view.arrivals_time_s[0])
    peak = float(view.arrivals_rps.max())
    kind = (
        ""
        if not math.isfinite(view.cv)
        else (
            f"; gaps between arrivals vary by CV {view.cv:.2f} ("
            + (
                "as regular as a clock"
                if view.cv < 0.5
                else "like independent users"
                if view.cv < 1.25
                else "bursty: independent users have 1"
            )
            + ")"
        )
    )
    sentence = (
        f"Arrivals average {say.rate(view.rate_rps)} over {say.seconds(view.span_s)} and reach "
        f"{say.rate(peak)} in the busiest "
        f"{say.seconds(bin_s)}{kind}."
    )
    return _area(
        "arrivals-over-time",
        "When requests arrive",
        sentence,
        view.arrivals_time_s,
        view.arrivals_rps,
        "requests per second",
        GREEN,
        [(view.rate_rps, f"mean {say.number(view.rate_rps)}")],
    )


def bursts(view: TrafficView) -> Spec | None:
    """The fullest window of 1, 10 and 60 s as a rate, against the mean; None where no window is complete."""
    known = {k: v for k, v in view.peak_to_mean.items() if math.isfinite(v)}
    if not known or not math.isfinite(view.rate_rps):
        return None
    names = [f"busiest {k.removesuffix('s')} s" for k in known]
    rates = [v * view.rate_rps for v in known.values()]
    labels = [f"{say.rate(r)}, {say.multiple(v)} the mean" for r, v in zip(rates, known.values(), strict=True)]
    data = rows({"window": names, "rate": rates, "label": labels})
    y = {"field": "window", "type": "nominal", "title": None, "sort": None, "axis": None}
    bars = {
        "data": data,
        "mark": {"type": "bar", "color": GREEN, "height": 9, "yOffset": 9},
        "encoding": {"y": y, "x": linear("rate", "requests per second", (0, max(rates) * 1.03))},
    }
    mean = {
        "data": rows({"window": names, "rate": [view.rate_rps] * len(names)}),
        "mark": {"type": "tick", "style": "ink-line", "orient": "vertical", "size": 17, "thickness": 2, "yOffset": 9},
        "encoding": {"y": y, "x": {"field": "rate", "type": "quantitative"}},
    }
    words = haloed(
        data,
        {"align": "left", "baseline": "bottom", "dx": 1, "dy": 1},
        {"y": y, "x": {"value": 0}, "text": {"field": "window"}},
    )
    figures = haloed(
        data,
        {"align": "right", "baseline": "bottom", "dy": 1, "style": "quiet"},
        {"y": y, "x": {"value": "width"}, "text": {"field": "label"}},
    )
    first, value = next(iter(known.items()))
    sentence = (
        f"The busiest {first.removesuffix('s')} s holds {say.multiple(value)} the mean rate of "
        f"{say.rate(view.rate_rps)} (the tick): "
        "a fleet sized for the mean queues there."
    )
    return chart("bursts", "How bursty it is", sentence, [bars, mean, *words, *figures], height=44 * len(names))
