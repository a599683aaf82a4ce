"""What users feel and what the replicas did: percentiles against load, distributions of a run, its course over time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gambrel.core.step import CAUSES
from gambrel.report import humanise as say
from gambrel.report.marks import PLAIN_LABEL, colour_scale, labelled_x, labelled_y, linear, log, time_axis
from gambrel.report.style import BLUE, CAUSE_COLOURS, CAUSE_TITLES, GREEN, ORANGE, PERCENTILE_COLOURS, PINK, chart, rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gambrel.core.plan import LoadPoint
    from gambrel.core.run import Run, Series
    from gambrel.core.slo import SLO
    from gambrel.core.step import Floats
    from gambrel.report.style import Spec

__all__ = ["batch_over_time", "kv_over_time", "latency_cdf", "latency_vs_load", "time_bound_by"]

NAMES: Final = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E", "queue": "queue time"}
LONG: Final = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Gap between tokens",
    "e2e": "Whole answer",
    "queue": "Time in queue",
}
_SHOWN: Final = ("p50", "p95", "p99")


def unit_of(values: Sequence[float]) -> tuple[float, str]:
    """Milliseconds for short figures; seconds where most are long, or any is so long that ms would need a million."""
    finite = np.array([v for v in values if math.isfinite(v) and v > 0])
    short = len(finite) and float(np.median(finite)) < 0.4 and float(finite.max()) < 10.0
    return (1e-3, "ms") if short else (1.0, "s")


def log_domain(values: Sequence[float] | Floats, *, room: float = 0.0) -> tuple[float, float]:
    """Limits that hold the finite positive values, at least a factor of four, ``room`` of the height free on top."""
    finite = [v for v in values if math.isfinite(v) and v > 0] or [1.0]
    low, high = min(finite) / 1.25, max(finite) * 1.25
    if high / low < 4:
        middle = math.sqrt(low * high)
        low, high = middle / 2, middle * 2
    return low, high * (high / low) ** room


def latency_vs_load(
    loads: Sequence[LoadPoint], slo: SLO, metric: str = "ttft", breaks_at: Mapping[str, float] | None = None
) -> Spec:
    """p50, p95 and p99 of one metric against the multiple of today's load, with its limits and where they break.

    ``metric`` is ``ttft``, ``tpot``, ``itl``, ``e2e`` or ``queue``; ``breaks_at`` maps an objective's name to the
    load multiple at which it first fails (infinite where it holds throughout).
    """
    points = sorted((p for p in loads if metric in p.latency), key=lambda p: p.load)
    limits = [o for o in slo.objectives if o.metric == metric]
    shown = sorted(
        {*_SHOWN, *(o.statistic for o in limits if o.statistic in PERCENTILE_COLOURS)},
        key=list(PERCENTILE_COLOURS).index,
    )
    values = [p.latency[metric].percentile(s) for p in points for s in shown]
    scale, unit = unit_of(values)
    low, high = log_domain([*values, *(o.limit for o in limits)], room=0.16)
    domain = (0.0, 1.04 * max((p.load for p in points), default=1.0))
    x = linear("load", "load (multiples of the log's rate)", domain, axis={"labelExpr": f"{PLAIN_LABEL} + 'x'"})
    y = log("value", f"{LONG[metric]} ({unit})", (low / scale, high / scale))
    data: list[dict[str, Any]] = [
        {
            "load": p.load,
            "value": p.latency[metric].percentile(s) / scale,
            "statistic": s,
            "rate": say.rate(p.rate_rps),
            "text": say.seconds(p.latency[metric].percentile(s)),
        }
        for p in points
        for s in shown
    ]
    lines = {
        "data": {"values": [d for d in data if math.isfinite(d["value"]) and d["value"] > 0]},
        "mark": {"type": "line", "strokeWidth": 2.2, "point": {"size": 42, "filled": True}, "clip": True},
        "encoding": {
            "x": x,
            "y": y,
            "color": {
                "field": "statistic",
                "type": "nominal",
                "title": None,
                "scale": colour_scale(shown, [PERCENTILE_COLOURS[s] for s in shown]),
                "legend": {"symbolType": "stroke"},
            },
            "tooltip": [
                {"field": "load", "type": "quantitative", "title": "load", "format": "~g"},
                {"field": "rate", "type": "nominal", "title": "rate"},
                {"field": "statistic", "type": "nominal", "title": "statistic"},
                {"field": "text", "type": "nominal", "title": NAMES[metric]},
            ],
        },
    }
    rules = [
        layer
        for o in limits
        for layer in labelled_y(o.limit / scale, f"limit {o.statistic} {say.limit(o.limit)}", "value")
    ]
    breaks = {o.name: (breaks_at or {}).get(o.name, math.inf) for o in limits}
    marks = [(v, f"breaks at {v:.2f}x") for v in sorted(set(breaks.values())) if math.isfinite(v)]
    layers = [lines, *rules, *labelled_x(marks, "load", domain, logarithmic=False)]
    return chart(f"{metric}-vs-load", f"{LONG[metric]} against load", _load_sentence(points, metric, breaks), layers)


def _load_sentence(points: Sequence[LoadPoint], metric: str, breaks: Mapping[str, float]) -> str:
    if not points:
        return "No load was simulated."
    now = min(points, key=lambda p: abs(math.log(max(p.load, 1e-9))))
    last = points[-1]
    first, end = (p.latency[metric] for p in (now, last))
    rate = "" if math.isnan(now.rate_rps) else f" ({say.rate(now.rate_rps)})"
    text = (
        f"At {say.multiple(now.load)} the log's load{rate} {NAMES[metric]} is "
        f"{say.seconds(first.p50)} at the "
        f"median and {say.seconds(first.p95)} at p95; at {say.multiple(last.load)} p95 is {say.seconds(end.p95)}"
    )
    for name, load in breaks.items():
        text += f"; {name} breaks at {load:.2f}x" if math.isfinite(load) else f"; {name} holds at every load simulated"
    return text + "."


def latency_cdf(run: Run, slo: SLO | None = None) -> Spec:
    """Share of requests answered within a time: TTFT, TPOT and E2E of a run on one logarithmic axis, limits dashed."""
    curves = {
        m: v[np.isfinite(v) & (v > 0)] for m, v in (("tpot", run.tpot_s), ("ttft", run.ttft_s), ("e2e", run.e2e_s))
    }
    curves = {m: np.sort(v) for m, v in curves.items() if len(v)}
    share = np.unique(np.concatenate([np.linspace(0, 0.95, 96), np.linspace(0.95, 1.0, 51)]))
    colours = {"tpot": GREEN, "ttft": BLUE, "e2e": PINK}
    limits = [] if slo is None else [o for o in slo.objectives if o.metric in curves]
    low, high = log_domain(
        [
            *(float(v[0]) for v in curves.values()),
            *(float(v[-1]) for v in curves.values()),
            *(o.limit for o in limits),
        ]
    )
    data = []
    for metric, values in curves.items():
        at = np.quantile(values, share)
        data += [
            {"s": float(v), "share": 100 * float(q), "metric": NAMES[metric], "text": say.seconds(float(v))}
            for v, q in zip(at, share, strict=True)
        ]
    names = [NAMES[m] for m in curves]
    lines = {
        "data": {"values": data},
        "mark": {"type": "line", "strokeWidth": 2.4, "clip": True},
        "encoding": {
            "x": log("s", "seconds", (low, high)),
            "y": linear("share", "% of requests within", (0, 112), axis={"values": [0, 25, 50, 75, 100]}),
            "color": {
                "field": "metric",
                "type": "nominal",
                "title": None,
                "scale": colour_scale(names, [colours[m] for m in curves]),
                "legend": {"symbolType": "stroke"},
            },
            "tooltip": [
                {"field": "metric", "type": "nominal", "title": "metric"},
                {"field": "text", "type": "nominal", "title": "within"},
                {"field": "share", "type": "quantitative", "title": "% of requests", "format": ".1f"},
            ],
        },
    }
    marks = [(o.limit, f"{o.metric.upper()} {o.statistic} limit") for o in limits]
    parts = [
        f"{NAMES[m]} {say.seconds(float(np.quantile(v, 0.5)))} at the median and "
        f"{say.seconds(float(np.quantile(v, 0.95)))} at p95"
        for m, v in curves.items()
    ]
    sentence = f"Of {say.count(len(run))} requests: {'; '.join(parts)}."
    return chart("latency-cdf", "How long users wait", sentence, [lines, *labelled_x(sorted(marks), "s", (low, high))])


def time_bound_by(run: Run) -> Spec:
    """Share of the replicas' busy time by what bound each step, as one bar."""
    shares = run.time_bound_by()
    shown = [(c, shares[c]) for c in CAUSES if shares[c] > 0.0005]
    starts = np.cumsum([0.0, *(s for _, s in shown)])
    titles = [CAUSE_TITLES[c] for c, _ in shown]
    data = rows(
        {
            "from": (100 * starts[:-1]).tolist(),
            "to": (100 * starts[1:]).tolist(),
            "mid": (50 * (starts[:-1] + starts[1:])).tolist(),
            "cause": titles,
            "share": [say.percent(s) for _, s in shown],
            "label": [say.percent(s) if s >= 0.12 else "" for _, s in shown],
        }
    )
    x = linear("from", "% of busy time", (0, 100))
    bar = {
        "data": data,
        "mark": {"type": "bar", "height": 40},
        "encoding": {
            "x": x,
            "x2": {"field": "to"},
            "color": {
                "field": "cause",
                "type": "nominal",
                "title": None,
                "scale": colour_scale(titles, [CAUSE_COLOURS[c] for c, _ in shown]),
                "legend": {"symbolType": "square"},
            },
            "tooltip": [{"field": f, "type": "nominal"} for f in ("cause", "share")],
        },
    }
    words = {
        "data": data,
        "mark": {"type": "text", "style": "on-colour", "fontSize": 13},
        "encoding": {"x": {"field": "mid", "type": "quantitative"}, "text": {"field": "label"}},
    }
    if shown:
        top = max(shown, key=lambda p: p[1])
        parts = ", ".join(f"{CAUSE_TITLES[c]} {say.percent(s)}" for c, s in sorted(shown, key=lambda p: -p[1])[1:])
        sentence = (
            f"{CAUSE_TITLES[top[0]].capitalize().replace('Kv', 'KV')} binds {say.percent(top[1])} of the "
            f"{say.seconds(run.busy_s)} "
            f"that replicas were busy{'; ' + parts if parts else ''}."
        )
    else:
        sentence = "No busy time was recorded."
    return chart("time-bound-by", "What the time goes to", sentence, [bar, words], height=56)


def _sampled(series: Series, keep: int = 400) -> tuple[Floats, dict[str, Floats], dict[str, Floats]]:
    """(times, means, maxima) of at most ``keep`` equal groups of samples."""
    n = len(series.time_s)
    starts = np.unique(np.linspace(0, n, min(n, keep), endpoint=False).astype(np.intp))
    sizes = np.diff([*starts, n])
    columns = {"running": series.running, "waiting": series.waiting, "kv": series.kv_usage}
    means = {k: np.add.reduceat(v, starts) / sizes for k, v in columns.items()}
    maxima = {k: np.maximum.reduceat(v, starts) for k, v in columns.items()}
    return series.time_s[starts], means, maxima


def batch_over_time(run: Run) -> Spec | None:
    """Sequences running and waiting over the run, all replicas; None where the run has no series."""
    if run.series is None or len(run.series.time_s) < 2:
        return None
    time_s, means, maxima = _sampled(run.series)
    x, t = time_axis(time_s)
    titles = ["running", "waiting"]
    values: list[Any] = [
        {"t": float(a), "n": float(b), "state": s, "when": say.seconds(float(w)), "what": say.number(float(b))}
        for s in titles
        for a, b, w in zip(t, means[s], time_s, strict=True)
    ]
    top = max(float(means["running"].max()), float(means["waiting"].max()), 1.0)
    line = {
        "data": {"values": values},
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.5},
        "encoding": {
            "x": x,
            "y": linear("n", "sequences, all replicas", (0, 1.12 * top)),
            "color": {
                "field": "state",
                "type": "nominal",
                "title": None,
                "scale": colour_scale(titles, [BLUE, ORANGE]),
                "legend": {"symbolType": "stroke"},
            },
            "tooltip": [
                {"field": "when", "type": "nominal", "title": "time"},
                {"field": "state", "type": "nominal"},
                {"field": "what", "type": "nominal", "title": "sequences"},
            ],
        },
    }
    waiting = float(maxima["waiting"].max())
    queue = "nobody ever waits" if waiting < 0.5 else f"at most {say.count(waiting)} wait"
    sentence = (
        f"A step holds {say.number(run.batch_mean)} sequences on average and {say.count(run.batch_max)} at most on one "
        f"replica; {queue}, in all samples of {say.count(run.replicas)} "
        f"{'replica' if run.replicas == 1 else 'replicas'}."
    )
    return chart("batch-over-time", "Batch over time", sentence, [line], height=220)


def kv_over_time(run: Run) -> Spec | None:
    """KV cache in use over the run, per cent of all blocks; None where the run has no series."""
    if run.series is None or len(run.series.time_s) < 2:
        return None
    time_s, means, _ = _sampled(run.series)
    x, t = time_axis(time_s)
    used = 100 * means["kv"]
    area = {
        "data": rows(
            {
                "t": t.tolist(),
                "used": used.tolist(),
                "when": [say.seconds(v) for v in time_s],
                "what": [say.percent(v / 100) for v in used],
            }
        ),
        "mark": {
            "type": "area",
            "interpolate": "step-after",
            "color": GREEN,
            "opacity": 0.5,
            "line": {"color": GREEN, "strokeWidth": 1.3},
        },
        "encoding": {
            "x": x,
            "y": linear("used", "% of KV blocks in use", (0, 112), axis={"values": [0, 25, 50, 75, 100]}),
            "tooltip": [
                {"field": "when", "type": "nominal", "title": "time"},
                {"field": "what", "type": "nominal", "title": "KV in use"},
            ],
        },
    }
    evicted = run.num_preemptions
    sentence = (
        f"The KV cache is {say.percent(run.kv_usage_mean)} full on average and "
        f"{say.percent(run.kv_usage_max)} at its fullest; "
        + ("no request was ever evicted." if evicted == 0 else f"{say.count(evicted)} evictions had to be recomputed.")
    )
    full = labelled_y(100.0, "full", "used", right=True, style="rule-ink")
    return chart("kv-over-time", "KV cache over time", sentence, [area, *full], height=220)
