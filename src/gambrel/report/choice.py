"""Why this deployment and not another: candidates by cost and margin, the plan table, a demo against production."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Final

from gambrel.report import humanise as say
from gambrel.report.document import Table
from gambrel.report.marks import colour_scale, linear, log
from gambrel.report.style import BLUE, GREEN, ORANGE, PINK, chart, rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gambrel.core.plan import Candidate, Cell, Fix, Plan
    from gambrel.report.style import Spec

__all__ = [
    "KEEPING_UP",
    "against_table",
    "cell_latency",
    "cell_table",
    "cost_of_candidates",
    "fix_table",
    "keeping_up",
    "objective_table",
    "plan_table",
    "shown_candidates",
    "too_small",
    "unused",
]

_MOST_SHOWN: Final = 14
KEEPING_UP: Final = "no growing queue"


def shown_candidates(plan: Plan, most: int = _MOST_SHOWN) -> list[Candidate]:
    """The chosen one, the best row of every accelerator that holds the model, then the cheapest that hold.

    The biggest GPU is always a row; accelerators on which nothing fits are :func:`too_small` instead.
    """
    picked: list[Candidate] = [plan.chosen]
    seen = {plan.chosen.deployment.accelerator.name}
    if plan.biggest_gpu is not None and plan.biggest_gpu is not plan.chosen:
        picked.append(plan.biggest_gpu)
        seen.add(plan.biggest_gpu.deployment.accelerator.name)
    for c in plan.alternatives:
        if len(picked) >= most:
            break
        if c.deployment.accelerator.name not in seen and c.stage != "fits":
            seen.add(c.deployment.accelerator.name)
            picked.append(c)
    ids = {id(c) for c in picked}
    more = [c for c in plan.alternatives if c.feasible and id(c) not in ids]
    picked += more[: max(0, most - len(picked))]
    return [picked[0], *sorted(picked[1:], key=lambda c: (not c.feasible, c.stage != "simulated", c.usd_per_hour))]


def too_small(plan: Plan) -> list[Candidate]:
    """Shapes of accelerators on which no shape of the search fits, the nearest to fitting first."""
    others = {c.deployment.accelerator.name for c in (plan.chosen, *plan.alternatives) if c.stage != "fits"}
    return [c for c in plan.alternatives if c.deployment.accelerator.name not in others]


def against_table(plan: Plan) -> Table:
    """What the decision is held against: the biggest GPU, what a demo would have bought, what is too small."""
    lines = []
    big = plan.biggest_gpu
    if big is plan.chosen and big is not None:
        lines.append(("the biggest GPU", big.deployment.label, _cost(big), plan.biggest_gpu_because or "it is chosen"))
    elif big is not None:
        outcome = big.lost_because
        if big.feasible:
            outcome = f"holds too, for {say.per_hour(plan.biggest_gpu_extra_usd_per_hour)} more{unused(big, 'leaves')}"
        lines.append(("the biggest GPU", big.deployment.label, _cost(big), outcome))
    demo = plan.demo_plan
    label = "nothing" if demo is None else demo.deployment.label
    lines.append(("a demo buys", label, "" if demo is None else _cost(demo), plan.demo_plan_hits))
    small = too_small(plan)
    if small:
        names = ", ".join(dict.fromkeys(c.deployment.accelerator.name for c in small))
        nearest = small[0]
        lines.append(("too small", nearest.deployment.label, "", f"{nearest.lost_because}; likewise {names}"))
    sentence = (
        "The dearest choice, what one user with a short prompt would have bought and what it meets under the log, and "
        "what cannot hold the model at all."
    )
    columns = ("", "deployment", "cost", "what comes of it")
    return Table("Against the plan", sentence, columns, tuple(lines), (False, False, True, False))


def _cost(c: Candidate) -> str:
    return say.per_hour(c.usd_per_hour) if math.isfinite(c.usd_per_hour) else ""


def _standing(plan: Plan, c: Candidate) -> str:
    if c is plan.chosen:
        return "chosen"
    return "holds" if c.feasible else "misses" if c.stage == "simulated" else "ruled out"


def _worst_margin(c: Candidate) -> float:
    return min((v.margin for v in c.verdicts), default=math.nan) if c.stage == "simulated" else math.nan


def plan_table(plan: Plan) -> Table:
    """Chosen first, then the runners-up with the limit that beat each; the biggest GPU is always a row."""
    columns = (
        "deployment",
        "verdict",
        "$/h",
        "$/Mtok all-in",
        "unused",
        "worst margin",
        *(o.name for o in plan.slo.objectives),
        "why not",
    )
    lines, status = [], []
    for c in shown_candidates(plan):
        simulated = c.stage == "simulated"
        reached = {v.objective.name: v.reached for v in c.verdicts} if simulated else {}
        big = c is plan.biggest_gpu
        verdict = _standing(plan, c) + (", biggest GPU" if big else "")
        margin = _worst_margin(c)
        lines.append(
            (
                c.deployment.label,
                verdict,
                say.dollars(c.usd_per_hour) if math.isfinite(c.usd_per_hour) and simulated else say.UNKNOWN,
                say.UNKNOWN if c.pricing is None else say.dollars(c.pricing.usd_per_mtok),
                say.percent(c.idle_share),
                say.UNKNOWN if math.isnan(margin) else say.signed_percent(margin),
                *(say.figure(o, reached.get(o.name, math.nan)) for o in plan.slo.objectives),
                c.lost_because or "the cheapest that holds",
            )
        )
        status.append("chosen" if c is plan.chosen else "biggest" if big else "met" if c.feasible else "missed")
    text = (
        f"Of {say.count(plan.num_considered)} deployments considered, after {say.count(plan.num_simulated)} "
        "simulations of the log: the chosen one, the best of each accelerator and the cheapest that hold. All-in "
        "charges the whole fleet to the tokens of answers, prompts included."
    )
    numeric = (False, False, True, True, True, True, *(True for _ in plan.slo.objectives), False)
    return Table("Candidates", text, columns, tuple(lines), numeric, tuple(status))


def cost_of_candidates(plan: Plan) -> Spec | None:
    """Dollars per hour of each simulated candidate, coloured by whether it holds, its worst margin written out."""
    shown = [c for c in shown_candidates(plan) if c.stage == "simulated" and math.isfinite(c.usd_per_hour)]
    if not shown:
        return None
    shown.sort(key=lambda c: (c.usd_per_hour, c is not plan.chosen))
    names = _distinct([c.deployment.label for c in shown])
    standings = [_standing(plan, c) for c in shown]
    labels = [f"{say.dollars(c.usd_per_hour)}, {say.signed_percent(_worst_margin(c))}" for c in shown]
    top = max(c.usd_per_hour for c in shown)
    y = {
        "field": "deployment",
        "type": "nominal",
        "title": None,
        "sort": None,
        "scale": {"paddingInner": 0.1, "paddingOuter": 0.05},
        "axis": None,
    }
    data = rows(
        {
            "deployment": names,
            "usd": [c.usd_per_hour for c in shown],
            "standing": standings,
            "label": labels,
            "name": [f"{'biggest: ' if c is plan.biggest_gpu else ''}{n}" for n, c in zip(names, shown, strict=True)],
            "why": [c.lost_because or "the cheapest that holds" for c in shown],
        }
    )
    domain, colours = ("chosen", "holds", "misses"), (BLUE, GREEN, ORANGE)
    present = [d for d in domain if d in standings]
    bars = {
        "data": data,
        "mark": {"type": "bar", "height": 9, "yOffset": 8},
        "encoding": {
            "y": y,
            "x": linear("usd", "$ per hour, and the nearest margin", (0, 1.04 * top), prefix="$"),
            "color": {
                "field": "standing",
                "type": "nominal",
                "title": None,
                "scale": colour_scale(present, [colours[domain.index(p)] for p in present]),
                "legend": {"symbolType": "square"},
            },
            "tooltip": [{"field": f, "type": "nominal"} for f in ("name", "label", "standing", "why")],
        },
    }
    left = {
        "data": data,
        "mark": {
            "type": "text",
            "style": "note",
            "align": "left",
            "baseline": "bottom",
            "dy": 1,
            "limit": {"expr": "width - 88"},
        },
        "encoding": {"y": y, "x": {"value": 0}, "text": {"field": "name"}},
    }
    right = {
        "data": data,
        "mark": {"type": "text", "style": "quiet", "align": "right", "baseline": "bottom", "dy": 1},
        "encoding": {"y": y, "x": {"value": "width"}, "text": {"field": "label"}},
    }
    return chart(
        "candidates", "What holding the limits costs", _cost_sentence(plan), [bars, left, right], height=36 * len(shown)
    )


def unused(c: Candidate, verb: str) -> str:
    """A clause on the load that a candidate could carry within the limits but the log leaves unused; "" if unknown."""
    return f" and {verb} {say.percent(c.idle_share)} of what it can carry unused" if math.isfinite(c.idle_share) else ""


def _distinct(labels: Sequence[str]) -> list[str]:
    """Labels made different by a count where two deployments differ only in engine limits."""
    seen: dict[str, int] = {}
    found = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        found.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return found


def _cost_sentence(plan: Plan) -> str:
    c, big = plan.chosen, plan.biggest_gpu
    text = (
        f"{c.deployment.label} holds every limit at {say.per_hour(c.usd_per_hour)} with "
        f"{say.signed_percent(_worst_margin(c))} to the nearest"
    )
    runner = next(
        (a for a in plan.alternatives if a.feasible and a.deployment.accelerator.name != c.deployment.accelerator.name),
        None,
    )
    if runner is not None:
        text += (
            f"; the next accelerator that holds, {runner.deployment.label}, costs {say.per_hour(runner.usd_per_hour)}"
        )
    if big is c:
        text += "; here the biggest GPU of the search is the right one"
    elif big is not None and big.feasible:
        text += (
            f"; the biggest GPU would cost {say.per_hour(big.usd_per_hour - c.usd_per_hour)} more{unused(big, 'leave')}"
        )
    elif big is not None:
        text += f"; the biggest GPU, {big.deployment.label}, fails: {big.lost_because}"
    return text + "."


def _queue_first(plan: Plan) -> bool:
    """Whether the fleet stops keeping up before any objective is missed."""
    others = [load for name, load in plan.breaks_at.items() if name != "backlog"]
    return plan.breaks_at.get("backlog", math.inf) < min(others, default=math.inf)


def keeping_up(plan: Plan) -> str:
    """The rule that decides where no objective does; an empty string where one does."""
    if not _queue_first(plan):
        return ""
    load = f"{plan.breaks_at['backlog']:.2f}x"
    return f"what gives way first is no objective: beyond {load} this load the fleet falls behind"


def objective_table(plan: Plan) -> Table:
    """Each limit: what is reached, how sure that is, the margin, and the load at which it breaks."""
    lines, status = [], []
    most = max((p.load for p in plan.loads), default=math.nan)
    for v in plan.chosen.verdicts:
        o = v.objective
        low, high = plan.intervals.get(o.name, (math.nan, math.nan))
        breaks = plan.breaks_at.get(o.name, math.inf)
        lines.append(
            (
                o.name,
                say.allowed(o),
                say.figure(o, v.reached),
                say.UNKNOWN if math.isnan(low) else f"{say.figure(o, low)} to {say.figure(o, high)}",
                say.signed_percent(v.margin),
                f"{breaks:.2f}x" if math.isfinite(breaks) else f"beyond {say.multiple(most)}",
                "met" if v.met else "missed",
            )
        )
        status.append("met" if v.met else "missed")
    if _queue_first(plan):
        lines.append((KEEPING_UP, *(say.UNKNOWN,) * 4, f"{plan.breaks_at['backlog']:.2f}x", "met"))
        status.append("met")
    columns = ("objective", "limit", "reached", "80 % interval", "margin", "breaks at load", "verdict")
    nearest = min(plan.chosen.verdicts, key=lambda v: v.margin, default=None)
    sentence = (
        "No objective was given."
        if nearest is None
        else (
            f"The nearest limit is {nearest.objective.name}: {say.figure(nearest.objective, nearest.reached)} of "
            f"{say.allowed(nearest.objective)}, {say.percent(nearest.margin)} to spare."
        )
    ) + (f" {keeping_up(plan).capitalize()}." if _queue_first(plan) else "")
    return Table("Limits", sentence, columns, tuple(lines), (False, True, True, True, True, True, False), tuple(status))


def cell_table(cells: Sequence[Cell]) -> Table:
    """A demo against production on the chosen deployment: four tests and what each of them hides."""
    lines = tuple(
        (
            c.label,
            f"{say.count(c.prompt_tokens)} tokens",
            say.seconds(c.ttft_p95_s),
            say.seconds(c.tpot_p95_s),
            say.seconds(c.e2e_p95_s),
            say.count(c.tokens_per_s),
            say.percent(c.kv_usage_max),
            c.hides,
        )
        for c in cells
    )
    columns = ("test", "prompt", "TTFT p95", "TPOT p95", "E2E p95", "tokens/s", "KV max", "what it hides")
    return Table("Four tests of one deployment", _hidden_sentence(cells), columns, lines, (False, *(True,) * 6, False))


def _cell_sentence(cells: Sequence[Cell]) -> str:
    if len(cells) < 2:
        return "Only one test was simulated."
    demo, real = cells[0], cells[-1]
    return (
        f"{demo.label} sees a first token in {say.seconds(demo.ttft_p95_s)} and "
        f"{say.seconds(demo.tpot_p95_s)} a token at p95; "
        f"{real.label} sees {say.seconds(real.ttft_p95_s)} ({say.multiple(real.ttft_p95_s / demo.ttft_p95_s)}) and "
        f"{say.seconds(real.tpot_p95_s)} ({say.multiple(real.tpot_p95_s / demo.tpot_p95_s)})."
    )


def _hidden_sentence(cells: Sequence[Cell]) -> str:
    if len(cells) < 2:
        return "Only one test was simulated."
    demo, real = cells[0], cells[-1]
    return (
        f"The demo fills {say.percent(demo.kv_usage_max)} of the KV cache, production "
        f"{say.percent(real.kv_usage_max)}; "
        f"it makes {say.count(demo.tokens_per_s)} tokens/s, production {say.count(real.tokens_per_s)}."
    )


def cell_latency(cells: Sequence[Cell]) -> Spec | None:
    """TTFT, TPOT and E2E p95 of the four tests on one logarithmic axis."""
    if not cells:
        return None
    metrics = (("TPOT p95", "tpot_p95_s", GREEN), ("TTFT p95", "ttft_p95_s", BLUE), ("E2E p95", "e2e_p95_s", PINK))
    data = [
        {"test": c.label, "s": value, "metric": name, "text": say.seconds(value)}
        for c in cells
        for name, field, _ in metrics
        if math.isfinite(value := getattr(c, field)) and value > 0
    ]
    if not data:
        return None
    values = [float(d["s"]) for d in data]
    _spread(data, min(values) / 2, max(values) * 2)
    y = {"field": "test", "type": "nominal", "title": None, "sort": None, "axis": None}
    x = log("s", "seconds (p95)", (min(values) / 2, max(values) * 2))
    span = {
        "data": {"values": data},
        "mark": {"type": "rule", "strokeWidth": 1, "opacity": 0.35},
        "encoding": {
            "y": y,
            "x": {"aggregate": "min", "field": "s", "type": "quantitative"},
            "x2": {"aggregate": "max", "field": "s"},
        },
    }
    dots = {
        "data": {"values": data},
        "mark": {"type": "point", "filled": True, "size": 130, "opacity": 1},
        "encoding": {
            "y": y,
            "x": x,
            "color": {
                "field": "metric",
                "type": "nominal",
                "title": None,
                "scale": colour_scale([m[0] for m in metrics], [m[2] for m in metrics]),
                "legend": {},
            },
            "tooltip": [{"field": f, "type": "nominal"} for f in ("test", "metric", "text")],
        },
    }
    numbers = [
        {
            "data": {"values": [d for d in data if d["align"] == align]},
            "mark": {
                "type": "text",
                "style": "quiet",
                "dy": 16,
                "align": align,
                "dx": {"left": 3, "right": -3}.get(align, 0),
            },
            "encoding": {"y": y, "x": {"field": "s", "type": "quantitative"}, "text": {"field": "text"}},
        }
        for align in ("left", "center", "right")
    ]
    words = {
        "data": rows({"test": [c.label for c in cells]}),
        "mark": {"type": "text", "style": "note", "align": "left", "dy": -18},
        "encoding": {"y": y, "x": {"value": 0}, "text": {"field": "test"}},
    }
    return chart(
        "cells",
        "A demo against production",
        _cell_sentence(cells),
        [span, dots, *numbers, words],
        height=62 * len(cells),
    )


def _spread(data: list[dict[str, Any]], low: float, high: float) -> None:
    """Give each figure an ``align`` so that two near neighbours of one test lean away from each other."""
    for d in data:
        d["align"] = "center"
    for test in dict.fromkeys(d["test"] for d in data):
        row = sorted((d for d in data if d["test"] == test), key=lambda d: float(d["s"]))
        for a, b in itertools.pairwise(row):
            if math.log(b["s"] / a["s"]) < 0.2 * math.log(high / low):
                a["align"], b["align"] = "right" if a["align"] == "center" else a["align"], "left"


def fix_table(fixes: Sequence[Fix]) -> Table | None:
    """Changes to make before an upgrade, each with what simulation says it gains; None where there is none."""
    if not fixes:
        return None
    lines = tuple((f.change, say.per_hour(f.usd_per_hour), f.effect) for f in fixes)
    best = fixes[0]
    sentence = f"Cheapest first: {best.change} {best.effect}."
    return Table("Before an upgrade", sentence, ("change", "cost", "effect"), lines, (False, True, False))
