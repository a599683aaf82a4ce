"""The shape of decode: latency, cost and context curves of one replica, with the points where their slope breaks.

Latency against batch is flat (every step reads all weights), then a slope (compute, or the KV cache of every
sequence). Cost per token is its mirror on log-log axes: slope -1, then flat. The bold line is what a step takes; its
colour says which cause binds; thin lines are the causes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from gambrel.core.errors import ReportError
from gambrel.core.step import CAUSES
from gambrel.report import humanise as say
from gambrel.report.marks import colour_scale, labelled_x, labelled_y, log, log2, thin
from gambrel.report.style import CAUSE_COLOURS, CAUSE_TITLES, VIOLET, chart, rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from gambrel.core.curve import Curve
    from gambrel.core.step import Floats
    from gambrel.report.style import Spec

__all__ = ["cost_vs_batch", "latency_vs_batch", "step_vs_context"]

_MEMORY: Final = "weights + KV"
_ENDLESS: Final = 1 << 20  # a wall this far is the mark of a model whose memory never fills
_SHOWN_SHARE: Final = 0.02  # collectives and overhead are drawn where they reach this share of a step


_SMALL: Final = frozenset({CAUSE_TITLES["collective"], CAUSE_TITLES["overhead"]})


def _parts(curve: Curve, at: npt.NDArray[np.intp]) -> dict[str, Floats]:
    """Seconds by line title, small collectives and overhead left out."""
    found = {
        CAUSE_TITLES["compute"]: curve.compute_s[at],
        CAUSE_TITLES["weights"]: curve.weights_s[at],
        CAUSE_TITLES["kv"]: curve.kv_s[at],
        _MEMORY: curve.weights_s[at] + curve.kv_s[at],
    }
    for cause, values in (("collective", curve.collective_s[at]), ("overhead", curve.overhead_s[at])):
        if np.any(values > _SHOWN_SHARE * curve.step_s[at]):
            found[CAUSE_TITLES[cause]] = values
    return found


def _colour_of(title: str) -> str:
    return next((CAUSE_COLOURS[c] for c, t in CAUSE_TITLES.items() if t == title), VIOLET)


def _part_layer(x: Spec, y: Spec, xs: Floats, parts: dict[str, Floats]) -> Spec:
    """The thin lines, with the legend."""
    titles = list(parts)
    dashes = [[5, 3] if t == _MEMORY else [1, 0] for t in titles]
    legend = {"symbolType": "stroke"}
    return {
        "data": rows(
            {
                x["field"]: [float(v) for _ in titles for v in xs],
                y["field"]: [float(v) for t in titles for v in parts[t]],
                "line": [t for t in titles for _ in xs],
            }
        ),
        "mark": {"type": "line", "strokeWidth": 1.6, "clip": True},
        "encoding": {
            "x": x,
            "y": y,
            "color": {
                "field": "line",
                "type": "nominal",
                "title": None,
                "scale": colour_scale(titles, [_colour_of(t) for t in titles]),
                "legend": legend,
            },
            "strokeDash": {
                "field": "line",
                "type": "nominal",
                "title": None,
                "scale": {"domain": titles, "range": dashes},
                "legend": legend,
            },
        },
    }


def _regimes(causes: Sequence[str]) -> list[tuple[str, int, int]]:
    """Runs of equal cause as (cause, first, last) row numbers."""
    runs: list[tuple[str, int, int]] = []
    for i, cause in enumerate(causes):
        if runs and runs[-1][0] == cause:
            runs[-1] = (cause, runs[-1][1], i)
        else:
            runs.append((cause, i, i))
    return runs


def _bold_layers(
    x: Spec, y: Spec, xs: Floats, ys: Floats, causes: Sequence[str], tips: dict[str, list[str]]
) -> list[Spec]:
    """The line that counts, coloured by what binds; neighbours share their joint so that it never breaks."""
    layers: list[Spec] = []
    runs = _regimes(causes)
    for cause, first, last in runs:
        stop = min(last + 1, len(xs) - 1)
        span = slice(first, stop + 1)
        layers.append(
            {
                "data": rows({x["field"]: xs[span].tolist(), y["field"]: ys[span].tolist()}),
                "mark": {
                    "type": "line",
                    "strokeWidth": 4,
                    "strokeCap": "round",
                    "strokeJoin": "round",
                    "color": CAUSE_COLOURS[cause],
                    "clip": True,
                    "point": {"filled": True, "size": 50, "color": CAUSE_COLOURS[cause]} if len(xs) == 1 else False,
                },
                "encoding": {"x": x, "y": y},
            }
        )
    layers.append(
        {
            "data": rows({x["field"]: xs.tolist(), y["field"]: ys.tolist(), **tips}),
            "mark": {"type": "point", "size": 160, "opacity": 0, "filled": True, "clip": True},
            "encoding": {
                "x": x,
                "y": y,
                "tooltip": [{"field": f, "type": "nominal", "title": f} for f in tips],
            },
        }
    )
    return layers


def _bold_name(x: str, y: str, at_x: float, at_y: float, text: str, *, above: bool = True) -> Spec:
    return {
        "data": rows({x: [at_x], y: [at_y], "label": [text]}),
        "mark": {"type": "text", "style": "note", "align": "left", "dx": 6, "dy": -12 if above else 14, "clip": False},
        "encoding": {
            "x": {"field": x, "type": "quantitative"},
            "y": {"field": y, "type": "quantitative"},
            "text": {"field": "label"},
        },
    }


def _full_layers(x: str, wall: float, low: float, high: float) -> list[Spec]:
    """Shading where memory is full."""
    if not wall < high:
        return []
    wall = max(wall, low)
    data = {"values": [{x: wall, "end": high, "label": "memory full"}]}
    at = {"field": x, "type": "quantitative"}
    return [
        {"data": data, "mark": {"type": "rect", "style": "shade"}, "encoding": {"x": at, "x2": {"field": "end"}}},
    ]


def _points(curve: Curve, context: int) -> list[tuple[float, str]]:
    """Ridge, balance and wall as (batch, label), ascending; only where they were computed."""
    if context != curve.named_context:
        return []
    found = [
        (curve.ridge_batch, f"ridge {say.count(curve.ridge_batch)}"),
        (curve.balance_batch, f"balance {say.count(curve.balance_batch)}"),
        (float(curve.wall_batch) if curve.wall_batch < _ENDLESS else math.inf, f"wall {say.count(curve.wall_batch)}"),
    ]
    return sorted(p for p in found if math.isfinite(p[0]))


def _wall(curve: Curve, context: int, at: npt.NDArray[np.intp]) -> float:
    """The largest batch whose memory fits; infinite where every batch in the curve does."""
    if context == curve.named_context:
        return float(curve.wall_batch) if curve.wall_batch < _ENDLESS else math.inf
    fitting = curve.batch[at][curve.fits[at]]
    return math.inf if len(fitting) == len(at) else float(fitting.max(initial=0))


def _rows(curve: Curve, context: int) -> npt.NDArray[np.intp]:
    """Rows of one context worth drawing: up to four times the wall (twice the ridge where that lies beyond).

    Raises:
        ReportError: the curve has no such context; the message lists those it has.
    """
    at = curve.at_context(context)
    if len(at) == 0:
        known = ", ".join(say.count(c) for c in np.unique(curve.context)[:8])
        raise ReportError(f"the curve holds no context of {say.count(context)} tokens; it holds {known}")
    end = 4 * _wall(curve, context, at)
    if math.isfinite(curve.ridge_batch) and curve.ridge_batch <= 4 * end:
        end = max(end, 2 * curve.ridge_batch)
    near = at[curve.batch[at] <= max(end, 8)]
    drawn = near if len(near) >= 2 else at
    kept: npt.NDArray[np.intp] = drawn[thin(len(drawn))]
    return kept


def _where(curve: Curve) -> str:
    d = curve.deployment
    parallel = f" (TP {d.tp})" if d.tp > 1 else ""
    return f"{d.model.name.rpartition('/')[2]} in {d.weights} on {d.accelerator.title}{parallel}"


_VERB: Final = {
    "compute": "compute binds",
    "weights": "the weight read binds",
    "kv": "KV reads bind",
    "collective": "collectives bind",
    "overhead": "overhead binds",
}


def _binding(curve: Curve, at: npt.NDArray[np.intp]) -> list[str]:
    """The cause that sets each step's length.

    Under form ``max`` the memory parts act together: compute binds only where it exceeds weights + KV, which the
    largest single cause (``Curve.bound_by``) cannot tell.
    """
    if curve.form != "max":
        return [CAUSES[i] for i in curve.bound_by[at]]
    columns = (curve.compute_s, curve.weights_s, curve.kv_s, curve.collective_s, curve.overhead_s)
    parts = np.array([c[at] for c in columns], dtype=np.float64)
    parts[0][parts[0] < parts[1] + parts[2]] = 0.0
    return [CAUSES[i] for i in np.argmax(parts, axis=0)]


def _latency_sentence(curve: Curve, context: int, at: npt.NDArray[np.intp]) -> str:
    inside = at[curve.fits[at]]
    head = f"{_where(curve)} with {say.count(context)} tokens of context"
    if len(inside) == 0:
        batch, step = say.count(curve.batch[at][0]), say.seconds(float(curve.step_s[at][0]))
        return f"{head}: not one sequence fits; a step at batch {batch} would take {step}."
    runs = _regimes(_binding(curve, inside))
    cause, first, last = runs[0]
    rise = [say.seconds(float(curve.step_s[inside][i])) for i in (first, last)]
    reach = "at every batch that fits" if len(runs) == 1 else f"up to batch {say.count(curve.batch[inside][last])}"
    body = f"{_VERB[cause]} {reach} ({rise[0]} a step rising to {rise[1]})"
    for i, (later, start, _) in enumerate(runs[1:]):
        since = "beyond that" if i == 0 else f"from {say.count(curve.batch[inside][start])} on"
        body += f", {since} {_VERB[later]}"
    wall = _wall(curve, context, at)
    full = f"; memory is full at {say.count(wall)} sequences" if math.isfinite(wall) else ""
    return f"{head}: {body}{full}."


def _lowest(curve: Curve, parts: dict[str, Floats]) -> float:
    """The foot of a latency plot in ms: well below the floor, and below overhead and collectives where drawn."""
    small = [float(v[v > 0].min()) for t, v in parts.items() if t in _SMALL and np.any(v > 0)]
    return max(min(1e3 * curve.floor_s / 12, *(v / 1.6 for v in small), math.inf), 1e3 * curve.floor_s / 100)


def latency_vs_batch(curve: Curve, context: int | None = None) -> Spec:
    """Milliseconds of a decode step against batch at one context (default: the curve's named one).

    Thin: compute, weight read, KV read, their memory sum; bold: the step, coloured by what binds. The floor (all
    weights read once) is a rule with its number; ridge, balance and wall are marked; beyond the wall is shaded.
    """
    context = curve.named_context if context is None else context
    at = _rows(curve, context)
    xs, ys = curve.batch[at].astype(np.float64), 1e3 * curve.step_s[at]
    parts = {title: 1e3 * values for title, values in _parts(curve, at).items()}
    domain = (float(xs[0]), float(max(xs[-1], xs[0] * 2)))
    low, high = _lowest(curve, parts), float(ys.max())
    headroom = (high / low) ** 0.22
    x = log2("batch", "batch (sequences decoding together)", domain)
    y = log("ms", "ms per step", (low, high * headroom))
    tips = {
        "batch size": [say.count(b) for b in xs],
        "step": [say.seconds(v / 1e3) for v in ys],
        **{title: [say.seconds(v / 1e3) for v in values] for title, values in parts.items()},
        "memory used": [say.num_bytes(v) for v in curve.memory_bytes[at]],
    }
    causes = _binding(curve, at)
    floor_text = f"floor {say.seconds(curve.floor_s)}: the weights read once"
    layers = [
        *_full_layers("batch", _wall(curve, context, at), *domain),
        *_bold_layers(x, y, xs, ys, causes, tips),
        _part_layer(x, y, xs, parts),
        *labelled_y(1e3 * curve.floor_s, floor_text, "ms", below=True, style="rule-ink"),
        *labelled_x(_points(curve, context), "batch", domain),
        _bold_name("batch", "ms", float(xs[0]), float(ys[0]), "step (colour: what binds)"),
    ]
    heading = "Latency of a decode step against batch"
    return chart("latency-vs-batch", heading, _latency_sentence(curve, context, at), layers)


def _money(curve: Curve, at: npt.NDArray[np.intp]) -> tuple[Floats, Floats, str, str]:
    """(cost per million tokens, that per step second and sequence, axis title, prefix); chip-seconds if no price."""
    if curve.usd_per_mtok is not None:
        cost = curve.usd_per_mtok[at]
        return cost, cost * curve.batch[at] / curve.step_s[at], "$ per million output tokens", "$"
    per_second = np.full(len(at), 1e6 * curve.deployment.gpus_per_replica)
    cost = per_second * curve.step_s[at] / curve.batch[at]
    return cost, per_second, "chip-seconds per million output tokens (no price known)", ""


def _asymptote(curve: Curve, at: npt.NDArray[np.intp], cost: Floats) -> float:
    """Cost per million tokens in the limit of large batch; NaN where batch 1 is not in the curve."""
    one = np.flatnonzero(curve.batch[at] == 1)
    known = len(one) and math.isfinite(curve.amortisation_limit) and curve.amortisation_limit > 0
    return float(cost[one[0]]) / curve.amortisation_limit if known else math.nan


def cost_vs_batch(curve: Curve, context: int | None = None) -> Spec:
    """Dollars per million output tokens against batch, both logarithmic, at full load.

    Thin: the weight read shared by the batch (a hyperbola, slope -1), the KV read and the compute of one token
    (flat floors); bold: the cost. The limit of large batch is a rule with its number. Without a price the unit is
    chip-seconds per million tokens, and the axis says so.
    """
    context = curve.named_context if context is None else context
    at = _rows(curve, context)
    cost, scale, axis_title, prefix = _money(curve, at)
    xs = curve.batch[at].astype(np.float64)
    parts = {title: scale * seconds / xs for title, seconds in _parts(curve, at).items()}
    limit = _asymptote(curve, at, cost) if context == curve.named_context else math.nan
    written = say.dollars if prefix else say.number
    lowest = min(
        float(v.min()) for t, v in parts.items() if t in {CAUSE_TITLES["compute"], CAUSE_TITLES["kv"]} and v.min() > 0
    )
    low = min(float(cost.min()) / 4, max(lowest / 1.5, float(cost.min()) / 40))
    high = float(cost.max())
    domain = (float(xs[0]), float(max(xs[-1], xs[0] * 2)))
    x = log2("batch", "batch (sequences decoding together)", domain)
    y = log("cost", axis_title, (low, high * (high / low) ** 0.16), prefix=prefix)
    tips = {
        "batch size": [say.count(b) for b in xs],
        "cost per Mtok": [written(float(v)) for v in cost],
        **{title: [written(float(v)) for v in values] for title, values in parts.items()},
    }
    causes = _binding(curve, at)
    floor = (
        labelled_y(limit, f"limit {written(limit)}", "cost", below=True, style="rule-ink")
        if math.isfinite(limit)
        else []
    )
    layers = [
        *_full_layers("batch", _wall(curve, context, at), *domain),
        *_bold_layers(x, y, xs, cost, causes, tips),
        _part_layer(x, y, xs, parts),
        *floor,
        *labelled_x(_points(curve, context), "batch", domain),
    ]
    heading = "Cost per token against batch"
    return chart("cost-vs-batch", heading, _cost_sentence(curve, context, at, cost, limit), layers)


def _cost_sentence(curve: Curve, context: int, at: npt.NDArray[np.intp], cost: Floats, limit: float) -> str:
    unit = say.per_mtok if curve.usd_per_mtok is not None else lambda v: f"{say.number(v)} chip-seconds/Mtok"
    fitting = np.flatnonzero(curve.fits[at])
    if len(fitting) == 0:
        return f"{_where(curve)} has no room for one sequence of {say.count(context)} tokens, so no cost is reached."
    best = int(fitting[np.argmin(cost[fitting])])
    first, last = float(cost[fitting[0]]), float(cost[best])
    sentence = (
        f"At {say.count(context)} tokens of context and full load a token costs {unit(first)} at batch "
        f"{say.count(curve.batch[at][fitting[0]])} and {unit(last)} at batch {say.count(curve.batch[at][best])}, "
        f"the cheapest drawn that fits: {say.multiple(first / last)} less"
    )
    if math.isfinite(limit):
        sentence += f"; no batch, however large, gets below {unit(limit)}"
    return sentence + "."


def _crossing(xs: Floats, rising: Floats, flat: Floats) -> float:
    """Where ``rising`` overtakes ``flat``, interpolated on logarithmic axes; infinite if it never does."""
    above = np.flatnonzero(rising >= flat)
    if len(above) == 0 or above[0] == 0:
        return math.inf
    i = int(above[0])
    with np.errstate(divide="ignore"):
        gap = np.log(rising[i - 1 : i + 1] / flat[i - 1 : i + 1])
    if not np.all(np.isfinite(gap)):
        return float(xs[i])
    share = -gap[0] / (gap[1] - gap[0])
    return float(np.exp(np.log(xs[i - 1]) + share * np.log(xs[i] / xs[i - 1])))


def _best_batch(curve: Curve) -> int:
    """The batch with most contexts, half of them fitting where that can be; among equals the one nearest the knee."""
    batches, inverse = np.unique(curve.batch, return_inverse=True)
    counts, fitting = np.bincount(inverse), np.bincount(inverse, weights=curve.fits)
    full = counts == counts.max()
    roomy = full & (fitting >= counts / 2)
    among = batches[roomy if roomy.any() else full].astype(np.float64)
    knee = curve.knee[1] if math.isfinite(curve.knee[1]) and curve.knee[1] >= 1 else 32.0
    return int(among[np.argmin(np.abs(np.log(among / knee)))])


def _wall_context(curve: Curve, batch: int, at: npt.NDArray[np.intp]) -> float:
    """The longest context whose memory fits at ``batch``: the tokens at the wall, shared by the batch.

    Held between the rows of the curve on either side, for models whose cache does not grow in proportion.
    """
    contexts, fits = curve.context[at].astype(np.float64), curve.fits[at]
    if fits.all():
        return math.inf
    low, high = float(contexts[fits].max(initial=0.0)), float(contexts[~fits].min())
    return min(max(curve.wall_batch * curve.named_context / batch, low), high)


def step_vs_context(curve: Curve, batch: int | None = None) -> Spec:
    """Milliseconds of a decode step against context at one batch (default: the one nearest the knee).

    Marked: where KV reads overtake the weight read (the knee), the crossover context beyond which no batch makes
    decode compute-bound, and shading from where memory is full.

    Raises:
        ReportError: the curve has fewer than two contexts at that batch.
    """
    batch = _best_batch(curve) if batch is None else batch
    at = np.flatnonzero((curve.batch == batch) & (curve.context > 0))
    at = at[np.argsort(curve.context[at], kind="stable")]
    if len(at) < 2:
        raise ReportError(f"step against context needs two contexts or more at batch {batch}, the curve has {len(at)}")
    at = at[thin(len(at))]
    xs, ys = curve.context[at].astype(np.float64), 1e3 * curve.step_s[at]
    parts = {title: 1e3 * values for title, values in _parts(curve, at).items()}
    domain = (float(max(xs[0], 1.0)), float(xs[-1]))
    low, high = _lowest(curve, parts), float(ys.max())
    x = log2("context", "context (tokens per sequence)", domain, tokens=True)
    y = log("ms", "ms per step", (low, high * (high / low) ** 0.22))
    tips = {
        "context (tokens)": [say.count(c) for c in xs],
        "step": [say.seconds(v / 1e3) for v in ys],
        **{title: [say.seconds(v / 1e3) for v in values] for title, values in parts.items()},
        "memory used": [say.num_bytes(v) for v in curve.memory_bytes[at]],
    }
    wall = _wall_context(curve, batch, at)
    knee = _crossing(xs, parts[CAUSE_TITLES["kv"]], parts[CAUSE_TITLES["weights"]])
    marks = sorted(
        (v, f"{name} {say.count(v)}")
        for name, v in (("crossover", curve.crossover_context), ("knee", knee))
        if math.isfinite(v)
    )
    causes = _binding(curve, at)
    layers = [
        *_full_layers("context", wall, *domain),
        *_bold_layers(x, y, xs, ys, causes, tips),
        _part_layer(x, y, xs, parts),
        *labelled_x(marks, "context", domain),
    ]
    return chart(
        "step-vs-context",
        f"Step time against context at batch {say.count(batch)}",
        _context_sentence(curve, batch, xs, ys, knee, wall),
        layers,
    )


def _context_sentence(curve: Curve, batch: int, xs: Floats, ys: Floats, knee: float, wall: float) -> str:
    head = (
        f"At batch {say.count(batch)} a step grows from {say.seconds(ys[0] / 1e3)} at {say.count(xs[0])} tokens "
        f"to {say.seconds(ys[-1] / 1e3)} at {say.count(xs[-1])}"
    )
    parts = [head]
    if math.isfinite(knee):
        parts.append(f"KV reads outweigh the weights from {say.count(knee)} tokens on")
    if math.isfinite(curve.crossover_context):
        parts.append(f"beyond {say.count(curve.crossover_context)} tokens no batch makes decode compute-bound")
    if math.isfinite(wall):
        parts.append(f"memory is full beyond {say.count(wall)} tokens")
    return "; ".join(parts) + "."
