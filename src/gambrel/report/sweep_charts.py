"""Charts of a measured sweep: what batching gives, and what it costs each user.

Throughput against concurrency shows what the batch shares; time per output token shows the price, flat while a step
is one read of the weights and linear once every sequence adds its own work. Where the client was what was slow, the
point says so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from gambrel.report import humanise as say
from gambrel.report.marks import colour_scale, haloed, labelled_x, linear, log, log2
from gambrel.report.measured import FEWEST, by_prompt, drawn, find_break, num_loads, sure
from gambrel.report.service import LONG, NAMES, log_domain, unit_of
from gambrel.report.style import BLUE, GREEN, GREY, ORANGE, PERCENTILE_COLOURS, PINK, VIOLET, chart

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gambrel.core.run import Distribution
    from gambrel.report.measured import Break, MeasuredLevel, MeasuredSweep
    from gambrel.report.style import Spec

__all__ = ["measured_latency", "measured_step", "measured_throughput", "prompt_title"]

_LENGTH_COLOURS: Final = (BLUE, ORANGE, GREEN, PINK, VIOLET)
_DASHES: Final = {"p50": [1, 0], "p95": [5, 3]}
_BOUND: Final = "client-bound"


def prompt_title(tokens: int) -> str:
    """``1,024-token prompts``."""
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
            # a line with points would have a legend of points, whose stroke is transparent
            "legend": {"symbolType": "stroke", "encode": {"symbols": {"update": {"stroke": {"value": GREY}}}}},
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
    levels = drawn(sweep)
    if num_loads(levels) < 2:
        return None
    x, words = _axis(levels)
    groups = by_prompt(levels)
    top = 1.12 * max(v.output_tokens_per_s for v in levels)
    y = linear("rate", "output tokens/s", (0.0, top))
    data = [
        {
            "load": v.requested,
            "rate": v.output_tokens_per_s,
            "prompt": prompt_title(p),
            "text": say.rate(v.output_tokens_per_s, "tokens"),
            **_tips(v),
        }
        for p, group in groups.items()
        for v in group
    ]
    titles = [prompt_title(p) for p in groups]
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
    words = {"values": [{"load": loads[40], "rate": each * loads[40], "label": "if never slowed"}]}
    at = {f: {"field": e["field"], "type": "quantitative"} for f, e in (("x", x), ("y", y))}
    return [
        {"data": line, "mark": mark, "encoding": {"x": x, "y": y}},
        *haloed(words, {"align": "right", "dx": -8, "dy": -4}, {**at, "text": {"field": "label"}}),
    ]


def _throughput_words(group: Sequence[MeasuredLevel], words: Callable[[float], str], which: str) -> str:
    first, last = group[0], max(sure(group), key=lambda v: v.output_tokens_per_s)
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
    return f"with {prompt_title(prompt)} " if len(groups) > 1 else ""


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "."


def _colours(count: int) -> list[str]:
    return [_LENGTH_COLOURS[i % len(_LENGTH_COLOURS)] for i in range(count)]


def measured_latency(sweep: MeasuredSweep, metric: Literal["ttft", "tpot", "e2e"] = "ttft") -> Spec | None:
    """Percentiles of one metric against the load: p50, p95, p99, or p50 and p95 of each prompt length.

    None where fewer than two loads have the metric (TPOT needs answers of two tokens).
    """
    levels = [v for v in drawn(sweep) if 0 < _latency(v, metric).p50 < math.inf]
    if num_loads(levels) < 2:
        return None
    x, words = _axis(levels)
    groups = by_prompt(levels)
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
            "prompt": prompt_title(p),
            "statistic": s,
            "text": say.seconds(_latency(v, metric).percentile(s)),
            **_tips(v),
        }
        for p, group in groups.items()
        for s in shown
        for v in group
    ]
    if many:
        titles = [prompt_title(p) for p in groups]
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
    levels = [v for v in drawn(sweep) if v.mode == "closed" and 0 < v.tpot.p50 < math.inf]
    if num_loads(levels) < 2:
        return None
    groups = by_prompt(levels)
    scale, unit = unit_of([v.tpot.p50 for v in levels])
    domain = (0.0, 1.04 * max(v.requested for v in levels))
    x = linear("load", "requests in flight (concurrency)", domain)
    y = linear("value", f"median time per output token ({unit})", (0.0, 1.25 * max(v.tpot.p50 for v in levels) / scale))
    titles, colours = [prompt_title(p) for p in groups], _colours(len(groups))
    data = [
        {
            "load": v.requested,
            "value": v.tpot.p50 / scale,
            "prompt": prompt_title(p),
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
        kept_up = [v for v in group if not v.trust.client_bound]
        found = find_break([v.requested for v in kept_up], [v.tpot.p50 for v in kept_up])
        parts.append(_step_words(group, found, len(kept_up), _of(p, groups)))
        if found is not None:
            broken += 1
            ends = sorted({kept_up[0].requested, found.knee, kept_up[-1].requested})
            line = [{"load": n, "value": found.at(n) / scale} for n in ends]
            mark = {"type": "line", "strokeWidth": 1.8, "strokeDash": [6, 3], "color": colour, "clip": True}
            layers.insert(0, {"data": {"values": line}, "mark": mark, "encoding": {"x": x, "y": y}})
            if len(groups) == 1 and found.knee > kept_up[0].requested:
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
            if num_sure < FEWEST
            else "the levels between lie too far from any broken line"
        )
        return f"{text}, and no break is claimed, because {few}"
    each = f"{say.seconds(found.slope_s)} more for each further request"
    if found.knee <= first.requested:
        return f"{text}, about {each} from the first on"
    return f"{text}, about {say.seconds(found.floor_s)} flat up to {say.count(found.knee)} and then {each}"
