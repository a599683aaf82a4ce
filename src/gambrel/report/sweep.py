"""A measured endpoint as a page: what batching gives, what it costs each user, and whether to believe it.

The report knows no load client: what was measured comes in as :class:`MeasuredSweep`, plain data of any client.
Throughput against concurrency shows what the batch shares; time per output token shows the price, flat while a step
is one read of the weights and linear once every sequence adds its own work. What the client distorted says so, in the
charts and in a table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from gambrel.core.plan import Cell
from gambrel.report import humanise as say
from gambrel.report.choice import cell_latency
from gambrel.report.document import Fact, Report, Section, Table
from gambrel.report.marks import colour_scale, haloed, labelled_x, linear, log, log2
from gambrel.report.service import LONG, NAMES, log_domain, unit_of
from gambrel.report.style import BLUE, GREEN, GREY, ORANGE, PERCENTILE_COLOURS, PINK, VIOLET, caption, chart

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gambrel.core.run import Distribution
    from gambrel.report.style import Spec

__all__ = [
    "Break",
    "MeasuredLevel",
    "MeasuredSweep",
    "Trust",
    "fidelity_table",
    "find_break",
    "measured_cells",
    "measured_latency",
    "measured_step",
    "measured_throughput",
    "sweep_report",
]

_LENGTH_COLOURS: Final = (BLUE, ORANGE, GREEN, PINK, VIOLET)
_DASHES: Final = {"p50": [1, 0], "p95": [5, 3]}
_BOUND: Final = "client-bound"
_FIT_LIMIT: Final = 0.1  # a broken line whose root-mean-square residual is above this share of the mean is not drawn
_FEWEST: Final = 4  # levels that a broken line of three unknowns needs at least


@dataclass(frozen=True, slots=True)
class Trust:
    """What the client did to its own figures: times in s, shares of 1, NaN where it was not seen."""

    client_bound: bool
    reasons: tuple[str, ...] = ()
    late_p99_s: float = math.nan
    loop_lag_p99_s: float = math.nan
    merged_reads_share: float = math.nan
    cpu_share: float = math.nan


@dataclass(frozen=True, slots=True)
class MeasuredLevel:
    """One load held for a while.

    ``requested`` and ``delivered`` are requests in flight of a ``closed`` loop and requests/s of an ``open`` one;
    ``other`` (a ramp, a replay) has no place on either axis. ``prompt_tokens`` is NaN where no request was answered.
    ``server_batch`` is the mean of what the server said was running, NaN where it said nothing.
    """

    label: str
    mode: Literal["closed", "open", "other"]
    requested: float
    delivered: float
    prompt_tokens: float
    output_tokens: float
    num_ok: int
    num_errors: int
    window_s: float
    output_tokens_per_s: float
    requests_per_s: float
    ttft: Distribution
    tpot: Distribution
    e2e: Distribution
    trust: Trust
    server_batch: float = math.nan
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MeasuredSweep:
    """Levels of one server in measuring order; ``definitions`` maps ``ttft`` and so on to its full name."""

    source: str
    model: str
    levels: tuple[MeasuredLevel, ...]
    definitions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    basis: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Break:
    """A flat stretch and a slope: ``floor_s`` up to ``knee`` requests in flight, then ``slope_s`` more for each."""

    floor_s: float
    knee: float
    slope_s: float

    def at(self, concurrency: float) -> float:
        """Seconds at a concurrency."""
        return self.floor_s + self.slope_s * max(0.0, concurrency - self.knee)


def find_break(concurrency: Sequence[float], step_s: Sequence[float]) -> Break | None:
    """The broken line nearest to measured steps in least squares, its knee at one of the levels.

    None where there are fewer than four levels, where the line would fall, or where it is off by more than a tenth
    (root mean square): then the figures show no such break.
    """
    x, y = np.asarray(concurrency, np.float64), np.asarray(step_s, np.float64)
    if len(x) < _FEWEST or len(np.unique(x)) < len(x):
        return None
    best: tuple[float, Break] | None = None
    for knee in np.sort(x)[:-1]:
        over = np.maximum(0.0, x - knee)
        (floor, slope), *_ = np.linalg.lstsq(np.column_stack([np.ones_like(x), over]), y, rcond=None)
        miss = float(np.sqrt(np.mean((floor + slope * over - y) ** 2)))
        if slope > 0 and floor > 0 and (best is None or miss < best[0] * (1 - 1e-9)):
            best = miss, Break(float(floor), float(knee), float(slope))
    return best[1] if best is not None and best[0] <= _FIT_LIMIT * float(y.mean()) else None


def _drawn(sweep: MeasuredSweep) -> list[MeasuredLevel]:
    """The levels that share an axis and were answered: the closed ones, else the open ones; by prompt, then load."""
    good = [v for v in sweep.levels if v.num_ok and math.isfinite(v.prompt_tokens) and v.requested > 0]
    found = [v for v in good if v.mode == "closed"] or [v for v in good if v.mode == "open"]
    return sorted(found, key=lambda v: (round(v.prompt_tokens), v.requested))


def _num_loads(levels: Sequence[MeasuredLevel]) -> int:
    return len({v.requested for v in levels})


def _by_prompt(levels: Sequence[MeasuredLevel]) -> dict[int, list[MeasuredLevel]]:
    found: dict[int, list[MeasuredLevel]] = {}
    for v in levels:
        found.setdefault(round(v.prompt_tokens), []).append(v)
    return found


def _prompt_title(tokens: int) -> str:
    return f"{say.count(tokens)}-token prompts"


def _axis(levels: Sequence[MeasuredLevel]) -> tuple[Spec, Callable[[float], str]]:
    """The load axis (field ``load``), and a load in words."""
    most = max(v.requested for v in levels)
    if levels[0].mode == "closed":
        return log2("load", "requests in flight (concurrency)", (min(v.requested for v in levels) / 1.1, most * 1.1)), (
            lambda n: f"{say.count(n)} request{'s' if n != 1 else ''} in flight"
        )
    return linear("load", "requests/s asked for", (0.0, most * 1.05)), say.rate


def _tips(level: MeasuredLevel) -> dict[str, str]:
    """What hovering tells of any point."""
    unit = "in flight" if level.mode == "closed" else "requests/s"
    return {
        "level": level.label,
        "delivered": f"{say.number(level.delivered)} of {say.number(level.requested)} {unit}",
        "answered": f"{level.num_ok} requests in {say.seconds(level.window_s)}",
        "server batch": say.number(level.server_batch),
        "client": _BOUND if level.trust.client_bound else "kept up",
    }


def _lines(
    data: list[dict[str, Any]], x: Spec, y: Spec, key: str, titles: Sequence[str], colours: Sequence[str]
) -> list[Spec]:
    """Lines with points in the colours of ``key``, dashed by ``statistic`` where that is another key.

    A word stands where it was the client that was slow.
    """
    encoding = {
        "x": x,
        "y": y,
        "color": {
            "field": key,
            "type": "nominal",
            "title": None,
            "scale": colour_scale(titles, colours),
            "legend": {"symbolType": "stroke"} if len(titles) > 1 else None,
        },
        "tooltip": [
            {"field": f, "type": "nominal", "title": f}
            for f in ("level", "statistic", "text", "delivered", "answered", "server batch", "client")
            if data and f in data[0]
        ],
    }
    dashed = [s for s in _DASHES if any(d.get("statistic") == s for d in data)] if key != "statistic" else []
    if len(dashed) > 1:
        encoding["strokeDash"] = {
            "field": "statistic",
            "type": "nominal",
            "title": None,
            "scale": {"domain": dashed, "range": [_DASHES[s] for s in dashed]},
            "legend": {"symbolType": "stroke", "symbolStrokeColor": GREY},
        }
    mark = {"type": "line", "strokeWidth": 2.2, "point": {"size": 46, "filled": True}, "clip": True}
    layers: list[Spec] = [{"data": {"values": data}, "mark": mark, "encoding": encoding}]
    words: dict[float, dict[str, Any]] = {}  # one word a load, above the highest of its points
    for d in sorted((d for d in data if d["client"] == _BOUND), key=lambda d: float(d[y["field"]])):
        words[d["load"]] = {**d, "label": _BOUND}
    if words:
        at = {f: {"field": e["field"], "type": "quantitative"} for f, e in (("x", x), ("y", y))}
        place = {"align": "right", "dx": 6, "dy": -13}
        layers += haloed({"values": list(words.values())}, place, {**at, "text": {"field": "label"}})
    return layers


def measured_throughput(sweep: MeasuredSweep) -> Spec | None:
    """Output tokens per second against the load, with what as many single users would make together.

    None where fewer than two loads were answered.
    """
    levels = _drawn(sweep)
    if _num_loads(levels) < 2:
        return None
    x, words = _axis(levels)
    groups = _by_prompt(levels)
    top = 1.12 * max(v.output_tokens_per_s for v in levels)
    y = linear("rate", "output tokens/s", (0.0, top))
    data = [
        {
            "load": v.requested,
            "rate": v.output_tokens_per_s,
            "prompt": _prompt_title(p),
            "text": say.rate(v.output_tokens_per_s, "tokens"),
            **_tips(v),
        }
        for p, group in groups.items()
        for v in group
    ]
    titles = [_prompt_title(p) for p in groups]
    layers = _lines(data, x, y, "prompt", titles, _colours(len(titles)))
    closed = levels[0].mode == "closed"
    if closed and len(groups) == 1:
        layers = [*_in_proportion(levels, x, y), *layers]
    heading = "Throughput against concurrency" if closed else "Throughput against the rate asked for"
    parts = [_throughput_words(group, words, _of(p, groups)) for p, group in groups.items()]
    return chart("measured-throughput", heading, _sentence(parts), layers)


def _in_proportion(levels: Sequence[MeasuredLevel], x: Spec, y: Spec) -> list[Spec]:
    """Where throughput would be if users never slowed each other, as far as the plot goes."""
    first = levels[0]
    each = first.output_tokens_per_s / first.requested
    end = min(levels[-1].requested, y["scale"]["domain"][1] / each) if each > 0 else first.requested
    loads = [float(n) for n in np.geomspace(first.requested, max(end, first.requested), 60)]
    line = {"values": [{"load": n, "rate": each * n} for n in loads]}
    mark = {"type": "line", "style": "rule-ink", "clip": True}
    words = {"values": [{"load": loads[40], "rate": each * loads[40], "label": "if users never slowed each other"}]}
    at = {f: {"field": e["field"], "type": "quantitative"} for f, e in (("x", x), ("y", y))}
    return [
        {"data": line, "mark": mark, "encoding": {"x": x, "y": y}},
        *haloed(words, {"align": "right", "dx": -8, "dy": -4}, {**at, "text": {"field": "label"}}),
    ]


def _sure(levels: Sequence[MeasuredLevel]) -> Sequence[MeasuredLevel]:
    """The levels that say what the server can do: those at which the client kept up, else all."""
    return [v for v in levels if not v.trust.client_bound] or levels


def _throughput_words(group: Sequence[MeasuredLevel], words: Callable[[float], str], which: str) -> str:
    first, last = group[0], max(_sure(group), key=lambda v: v.output_tokens_per_s)
    text = f"{which}the server makes {say.rate(first.output_tokens_per_s, 'tokens')} with {words(first.requested)}"
    if last is first:
        return f"{text}, and no more under any higher load" if len(group) > 1 else text
    gain = say.multiple(last.output_tokens_per_s / first.output_tokens_per_s) if first.output_tokens_per_s else ""
    times = say.multiple(last.requested / first.requested)
    return (
        f"{text} and at most {say.rate(last.output_tokens_per_s, 'tokens')} with {words(last.requested)}"
        + (f", {gain} the tokens for {times} the load" if gain else "")
    )  # fmt: skip


def _of(prompt: int, groups: Mapping[int, object]) -> str:
    return f"with {_prompt_title(prompt)} " if len(groups) > 1 else ""


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "."


def _colours(count: int) -> list[str]:
    return [_LENGTH_COLOURS[i % len(_LENGTH_COLOURS)] for i in range(count)]


def measured_latency(sweep: MeasuredSweep, metric: Literal["ttft", "tpot", "e2e"] = "ttft") -> Spec | None:
    """Percentiles of one metric against the load: p50, p95, p99, or p50 and p95 of each prompt length.

    None where fewer than two loads have the metric (TPOT needs answers of two tokens).
    """
    levels = [v for v in _drawn(sweep) if 0 < _latency(v, metric).p50 < math.inf]
    if _num_loads(levels) < 2:
        return None
    x, words = _axis(levels)
    groups = _by_prompt(levels)
    many = len(groups) > 1
    shown = ("p50", "p95") if many else ("p50", "p95", "p99")
    values = [_latency(v, metric).percentile(s) for v in levels for s in shown]
    scale, unit = unit_of(values)
    low, high = log_domain(values, room=0.08)
    y = log("value", f"{LONG[metric]} ({unit})", (low / scale, high / scale))
    data = [
        {
            "load": v.requested,
            "value": _latency(v, metric).percentile(s) / scale,
            "prompt": _prompt_title(p),
            "statistic": s,
            "text": say.seconds(_latency(v, metric).percentile(s)),
            **_tips(v),
        }
        for p, group in groups.items()
        for s in shown
        for v in group
    ]
    if many:
        titles = [_prompt_title(p) for p in groups]
        layers = _lines(data, x, y, "prompt", titles, _colours(len(titles)))
    else:
        layers = _lines(data, x, y, "statistic", shown, [PERCENTILE_COLOURS[s] for s in shown])
    against = "concurrency" if levels[0].mode == "closed" else "the rate asked for"
    parts = [_latency_words(group, metric, words, _of(p, groups)) for p, group in groups.items()]
    return chart(f"measured-{metric}", f"{LONG[metric]} against {against}", _sentence(parts), layers)


def _latency_words(
    group: Sequence[MeasuredLevel], metric: Literal["ttft", "tpot", "e2e"], words: Callable[[float], str], which: str
) -> str:
    first, last = _latency(group[0], metric), _latency(group[-1], metric)
    text = (
        f"{which}{NAMES[metric]} is {say.seconds(first.p50)} at the median and {say.seconds(first.p95)} at p95 "
        f"with {words(group[0].requested)}"
    )
    if len(group) == 1:
        return text
    return f"{text}, {say.seconds(last.p50)} and {say.seconds(last.p95)} with {words(group[-1].requested)}"


def _latency(level: MeasuredLevel, metric: Literal["ttft", "tpot", "e2e"]) -> Distribution:
    return {"ttft": level.ttft, "tpot": level.tpot, "e2e": level.e2e}[metric]


def measured_step(sweep: MeasuredSweep) -> Spec | None:
    """Median TPOT against concurrency on straight axes, each prompt length with the broken line nearest to it.

    None for open loads and where fewer than two loads have a TPOT. Client-bound levels are shown but not fitted.
    """
    levels = [v for v in _drawn(sweep) if v.mode == "closed" and 0 < v.tpot.p50 < math.inf]
    if _num_loads(levels) < 2:
        return None
    groups = _by_prompt(levels)
    scale, unit = unit_of([v.tpot.p50 for v in levels])
    domain = (0.0, 1.04 * max(v.requested for v in levels))
    x = linear("load", "requests in flight (concurrency)", domain)
    y = linear("value", f"median time per output token ({unit})", (0.0, 1.25 * max(v.tpot.p50 for v in levels) / scale))
    titles, colours = [_prompt_title(p) for p in groups], _colours(len(groups))
    data = [
        {
            "load": v.requested,
            "value": v.tpot.p50 / scale,
            "prompt": _prompt_title(p),
            "text": say.seconds(v.tpot.p50),
            **_tips(v),
        }
        for p, group in groups.items()
        for v in group
    ]
    layers = _lines(data, x, y, "prompt", titles, colours)
    layers[0]["mark"] = {
        "type": "line",
        "strokeWidth": 1.2,
        "strokeOpacity": 0.35,
        "point": {"filled": True, "size": 90, "opacity": 1},
        "clip": True,
    }
    if len(titles) > 1:
        layers[0]["encoding"]["color"]["legend"] = {"symbolType": "circle", "symbolOpacity": 1}
    parts, broken = [], 0
    for (p, group), colour in zip(groups.items(), colours, strict=True):
        sure = [v for v in group if not v.trust.client_bound]
        found = find_break([v.requested for v in sure], [v.tpot.p50 for v in sure])
        parts.append(_step_words(group, found, len(sure), _of(p, groups)))
        if found is not None:
            broken += 1
            ends = sorted({sure[0].requested, found.knee, sure[-1].requested})
            line = [{"load": n, "value": found.at(n) / scale} for n in ends]
            mark = {"type": "line", "strokeWidth": 1.8, "strokeDash": [6, 3], "color": colour, "clip": True}
            layers.insert(0, {"data": {"values": line}, "mark": mark, "encoding": {"x": x, "y": y}})
            if len(groups) == 1 and found.knee > sure[0].requested:
                marks = [(found.knee, f"flat up to {say.count(found.knee)}")]
                layers += labelled_x(marks, "load", domain, logarithmic=False)
    heading = "A step: flat, then linear" if broken == len(groups) else "Time per output token, on straight axes"
    return chart("measured-step", heading, _sentence(parts), layers)


def _step_words(group: Sequence[MeasuredLevel], found: Break | None, num_sure: int, which: str) -> str:
    first, last = group[0], group[-1]
    text = (
        f"{which}a token takes {say.seconds(first.tpot.p50)} at the median with {say.count(first.requested)} in flight"
        f" and {say.seconds(last.tpot.p50)} with {say.count(last.requested)}"
    )
    if found is None:
        few = (
            f"{num_sure} levels that the client kept up with are too few"
            if num_sure < _FEWEST
            else "the levels between lie too far from any broken line"
        )
        return f"{text}, and no break is claimed, because {few}"
    each = f"{say.seconds(found.slope_s)} more for each further request"
    if found.knee <= first.requested:
        return f"{text}, about {each} from the first on"
    return f"{text}, about {say.seconds(found.floor_s)} flat up to {say.count(found.knee)} and then {each}"


def measured_cells(sweep: MeasuredSweep) -> tuple[Cell, ...]:
    """{fewest users, most users} x {shortest, longest prompts} as measured, the demo first; those that exist."""
    levels = [v for v in _drawn(sweep) if v.mode == "closed"]
    if not levels:
        return ()
    users = sorted({v.requested for v in levels})
    prompts = sorted({round(v.prompt_tokens) for v in levels})
    found = {(v.requested, round(v.prompt_tokens)): v for v in levels}
    cells = []
    for n in dict.fromkeys((users[0], users[-1])):
        for p in dict.fromkeys((prompts[0], prompts[-1])):
            if (v := found.get((n, p))) is not None:
                people = "1 user" if n == 1 else f"one of {say.count(n)} users"
                cells.append(
                    Cell(
                        users=round(n),
                        prompt_tokens=float(p),
                        label=f"{people} with {_prompt_title(p)}",
                        ttft_p95_s=v.ttft.p95,
                        tpot_p95_s=v.tpot.p95,
                        e2e_p95_s=v.e2e.p95,
                        tokens_per_s=v.output_tokens_per_s,
                        kv_usage_max=math.nan,
                        hides="",
                    )
                )
    return tuple(cells)


def _cells_chart(cells: Sequence[Cell]) -> Spec | None:
    """The cells, where there are two or more with every figure."""
    whole = [c for c in cells if all(0 < s < math.inf for s in (c.ttft_p95_s, c.tpot_p95_s, c.e2e_p95_s))]
    spec = cell_latency(whole) if len(whole) > 1 else None
    return None if spec is None else {**spec, "name": "measured-cells"}


def _cells_table(cells: Sequence[Cell]) -> Table | None:
    if len(cells) < 2:
        return None
    demo, real = cells[0], cells[-1]
    sentence = (
        f"{demo.label}: {say.number(demo.tokens_per_s / demo.users)} tokens/s; "
        f"{real.label}: {say.number(real.tokens_per_s / real.users)} tokens/s, "
        f"{say.number(real.tokens_per_s)} tokens/s for all together."
    )
    columns = ("test", "TTFT p95", "TPOT p95", "E2E p95", "tokens/s each", "tokens/s in all")
    lines = tuple(
        (
            c.label,
            say.seconds(c.ttft_p95_s),
            say.seconds(c.tpot_p95_s),
            say.seconds(c.e2e_p95_s),
            say.number(c.tokens_per_s / c.users),
            say.number(c.tokens_per_s),
        )
        for c in cells
    )
    return Table("What a user gets", sentence, columns, lines, (False, *(True,) * 5))


def _level_table(sweep: MeasuredSweep) -> Table:
    percentiles = ("p50", "p95", "p99")
    columns = ("level", "tokens/s", "requests/s", *(f"TTFT {s}" for s in percentiles),
               *(f"TPOT {s}" for s in percentiles), "E2E p50", "server batch", "answered", "failed")  # fmt: skip
    lines = tuple(
        (
            v.label,
            say.number(v.output_tokens_per_s),
            say.number(v.requests_per_s),
            *(say.seconds(v.ttft.percentile(s)) for s in percentiles),
            *(say.seconds(v.tpot.percentile(s)) for s in percentiles),
            say.seconds(v.e2e.p50),
            say.number(v.server_batch),
            str(v.num_ok),
            str(v.num_errors),
        )
        for v in sweep.levels
    )
    total = sum(v.num_ok for v in sweep.levels)
    seconds = sum(v.window_s for v in sweep.levels)
    sentence = f"{say.count(total)} requests were measured in {say.seconds(seconds)} of windows."
    return Table("Every level", sentence, columns, lines, (False, *(True,) * (len(columns) - 1)))


def fidelity_table(sweep: MeasuredSweep) -> Table:
    """Asked against delivered, lateness and the client's own load for every level, with the verdict."""
    bound = [v for v in sweep.levels if v.trust.client_bound]
    columns = ("level", "asked", "delivered", "sent late p99", "loop lag p99", "merged reads", "client CPU", "verdict")
    lines = tuple(
        (
            v.label,
            say.number(v.requested),
            say.number(v.delivered),
            say.seconds(v.trust.late_p99_s),
            say.seconds(v.trust.loop_lag_p99_s),
            say.percent(v.trust.merged_reads_share),
            say.percent(v.trust.cpu_share),
            "client-bound: " + "; ".join(v.trust.reasons) if v.trust.client_bound else "kept up",
        )
        for v in sweep.levels
    )
    if bound:
        sentence = f"{len(bound)} of {len(sweep.levels)} levels measured the client and not the server."
    else:
        sentence = f"At all {len(sweep.levels)} levels the client kept up: what is shown is the server."
    status = tuple("missed" if v.trust.client_bound else "met" for v in sweep.levels)
    return Table("Was it the client?", sentence, columns, lines, (False, *(True,) * 6, False), status)


def _doubts_table(sweep: MeasuredSweep) -> Table | None:
    """Every warning once, with the levels it is about."""
    about: dict[str, list[str]] = {note: [] for note in sweep.notes}
    for v in sweep.levels:
        for text in v.warnings:
            about.setdefault(text, []).append(v.label)
    if not about:
        return None
    lines = tuple((text, ", ".join(labels) or "all") for text, labels in about.items())
    sentence = "What keeps these figures from being surer; a longer --duration and --repeats 3 mend most of it."
    return Table("What to know before believing it", sentence, ("what", "levels"), lines, (False, False))


def sweep_report(sweep: MeasuredSweep) -> Report:
    """The page of a measured sweep; charts that the levels cannot carry are left out."""
    throughput, step = measured_throughput(sweep), measured_step(sweep)
    latencies = [measured_latency(sweep, m) for m in ("ttft", "tpot", "e2e")]
    cells = measured_cells(sweep)
    trust, doubts = fidelity_table(sweep), _doubts_table(sweep)
    cell_chart, cell_table = _cells_chart(cells), _cells_table(cells)
    sections = [
        Section("What does the batch give?", _given(throughput), _kept(throughput, step)),
        Section("What does it cost each user?", _given(latencies[0]), _kept(*latencies)),
        Section("What would a demo have shown?", _given(cell_chart), _kept(cell_chart, cell_table)),
        Section("Can it be believed?", trust.sentence, _kept(trust, doubts)),
        Section("All figures", "", (_level_table(sweep),)),
    ]
    return Report(
        title=f"{sweep.model.rpartition('/')[2] or 'An endpoint'}, measured",
        subtitle=f"{sweep.model} at {sweep.source}; {len(sweep.levels)} level{'s' if len(sweep.levels) != 1 else ''}",
        headline=(*(caption(c) for c in (throughput, step) if c is not None), trust.sentence),
        facts=_facts(sweep),
        sections=tuple(s for s in sections if s.items),
        provenance=(
            *sweep.basis,
            *(f"{NAMES.get(word, word)} is {name}" for word, name in sweep.definitions.items()),
            "Percentiles are of measured requests that ended well; throughput counts every token within the window.",
        ),
    )


def _given(spec: Spec | None) -> str:
    return "" if spec is None else caption(spec)


def _kept(*items: Spec | Table | None) -> tuple[Spec | Table, ...]:
    return tuple(item for item in items if item is not None)


def _facts(sweep: MeasuredSweep) -> tuple[Fact, ...]:
    levels = _drawn(sweep)
    failed = sum(v.num_errors for v in sweep.levels)
    bound = sum(v.trust.client_bound for v in sweep.levels)
    end = (
        Fact("failed", f"{failed} requests", status="missed" if failed else "met"),
        Fact("client-bound", f"{bound} of {len(sweep.levels)} levels", status="missed" if bound else "met"),
    )
    if not levels:
        return end
    best = max(_sure(levels), key=lambda v: v.output_tokens_per_s)
    calm = min(levels, key=lambda v: (v.requested, v.prompt_tokens))
    return (
        Fact("most throughput", say.rate(best.output_tokens_per_s, "tokens"), f"at {best.label}"),
        Fact("first token, median", say.seconds(calm.ttft.p50), f"at {calm.label}"),
        Fact("per token, median", say.seconds(calm.tpot.p50), f"at {calm.label}"),
        *end,
    )
