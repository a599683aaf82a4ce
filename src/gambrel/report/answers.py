"""The plan's further answers as tables: how sure, what settings do, what more money buys, prices, months, hours.

Each answer is made here once; the page and the terminal show the same rows. Fields are those of
:class:`gambrel.core.plan.Plan`; an answer that the plan does not hold is None.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeVar

from gambrel.report import humanise as say
from gambrel.report.choice import KEEPING_UP
from gambrel.report.document import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gambrel.core.plan import Outlook, Plan, Schedule

__all__ = [
    "answer_tables",
    "chance_text",
    "confidence_table",
    "front_table",
    "growth_table",
    "interval_table",
    "measurement_table",
    "mode_table",
    "price_table",
    "schedule_table",
    "sensitivity_table",
    "setting_table",
    "sure_table",
    "thinned",
]

FRONT_SHOWN: Final = 8
PRICES_SHOWN: Final = 6
MODES_SHOWN: Final = 6
NAMES: Final = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E", "queue": "queue"}
Row = TypeVar("Row")


def thinned(rows: Sequence[Row], most: int) -> list[Row]:
    """At most ``most`` rows, evenly spaced, first and last among them, none twice."""
    if len(rows) <= most:
        return list(rows)
    step = (len(rows) - 1) / (most - 1)
    return [rows[round(i * step)] for i in range(most)]


def answer_tables(plan: Plan) -> tuple[Table, ...]:
    """Every answer that the plan holds, in reading order."""
    outlook = None if plan.outlook is None else growth_table(plan.outlook)
    found = (
        sure_table(plan),
        confidence_table(plan),
        sensitivity_table(plan),
        setting_table(plan),
        front_table(plan),
        price_table(plan),
        mode_table(plan),
        outlook,
        None if plan.schedule is None else schedule_table(plan.schedule),
        measurement_table(plan),
    )
    return tuple(table for table in found if table is not None)


def chance_text(chance: float) -> str:
    """A share of draws: what all of them or none of them did is not certain."""
    return "over 97 %" if chance >= 1.0 else "under 3 %" if chance <= 0.0 else say.percent(chance)


def sure_table(plan: Plan) -> Table | None:
    """The chance that each objective holds, and by how much all steps could be slower before it breaks."""
    if not plan.chances:
        return None
    lines, status = [], []
    for c in plan.chances:
        name = {"all": "every objective", "backlog": KEEPING_UP}.get(c.objective, c.objective)
        slower = "beyond what was tried" if math.isinf(c.slack) else f"{say.percent(c.slack - 1)} slower"
        lines.append((name, chance_text(c.chance), slower))
        status.append("chosen" if c.objective == "all" else "")
    columns = ("objective", "chance that it holds", "breaks if every step is")
    return Table("How sure", f"{plan.chance_basis}.", columns, tuple(lines), (False, True, True), tuple(status))


def confidence_table(plan: Plan) -> Table | None:
    """What more certainty costs with the chosen shape."""
    if not plan.surer:
        return None
    lines = []
    for s in plan.surer:
        name = say.percent(s.confidence)
        if s.replicas is None:
            lines.append((name, say.UNKNOWN, say.UNKNOWN, "another shape is needed: ask with --confidence"))
        else:
            more = s.replicas - plan.chosen.deployment.replicas
            need = "nothing more is needed" if more <= 0 else f"{more} more replica{'s'[: more > 1]}"
            lines.append((name, f"{s.replicas}", say.per_hour(s.usd_per_hour), need))
    sentence = "Replicas of the chosen shape that also hold with every step at that quantile."
    columns = ("confidence", "replicas", "cost", "against the plan")
    return Table("What more certainty costs", sentence, columns, tuple(lines), (True, True, True, False))


def sensitivity_table(plan: Plan) -> Table | None:
    """The chosen deployment on other hours, other clients and longer requests."""
    if not plan.sensitivities:
        return None
    lines, status = [], []
    for s in plan.sensitivities:
        holds = s.chance >= 1.0
        one = "holds" if holds else "misses"
        found = one if s.draws == 1 else f"{chance_text(s.chance)} of {s.draws} draws hold"
        worst = min(s.worst, key=lambda v: v.margin, default=None)
        reached = "a request no longer fits the KV cache"
        if worst is not None:
            o = worst.objective
            reached = f"{o.name} {say.figure(o, worst.reached)} of {say.allowed(o)}"
            if s.behind and worst.met:
                reached = f"{s.behind}; {reached}"
        lines.append((s.change, found, reached))
        status.append("met" if holds else "missed")
    sentence = "The chosen deployment as it is, steps as predicted, on traffic that differs in one respect."
    columns = ("traffic", "verdict", "nearest limit, at worst")
    heading = "If the traffic were another"
    return Table(heading, sentence, columns, tuple(lines), (False, False, False), tuple(status))


def measurement_table(plan: Plan) -> Table | None:
    """What would be chosen if the step time were known: what the measurement is worth."""
    m = plan.measurement
    if m is None:
        return None
    lines = tuple(
        (
            f"{say.signed_percent(factor - 1)} step time",
            label,
            say.per_hour(now),
            say.per_hour(then),
            "0" if now - then < 0.005 else say.per_hour(now - then),
        )
        for factor, label, now, then in m.choices
    )
    sentence = f"{m.what}. Why this: {m.because}."
    columns = ("if measured", "the choice would be", "plan in hand", "that choice", "saved")
    return Table("Measure next", sentence, columns, lines, (False, False, True, True, True))


def setting_table(plan: Plan) -> Table | None:
    """Each engine setting with its reason, then what one step either way does."""
    if not plan.settings:
        return None
    lines, status = [], []
    for s in plan.settings:
        lines.append((s.name, f"{s.value:g}", s.reason))
        status.append("chosen")
        for step in s.steps:
            lines.append(("", f"{step.value:g}", step.effect))
            status.append("" if all(v.met for v in step.verdicts) and step.carries >= 1 else "missed")
    sentence = "The chosen value with its reason; below it, what was simulated one step either way."
    columns = ("setting", "value", "why, or what the step does")
    heading = "The settings, and one step either way"
    return Table(heading, sentence, columns, tuple(lines), (False, True, False), tuple(status))


def front_table(plan: Plan) -> Table | None:
    """What more money buys: no row is worse than another in everything."""
    if len(plan.front) < 2:
        return None
    lines = tuple(
        (
            p.deployment.label,
            f"{p.deployment.max_num_seqs}, {say.tokens(p.deployment.max_num_batched_tokens)}",
            say.per_hour(p.usd_per_hour),
            say.seconds(p.ttft_s),
            say.seconds(p.tpot_s),
            say.signed_percent(p.headroom),
        )
        for p in thinned(plan.front, FRONT_SHOWN)
    )
    sentence = (
        f"The Pareto front of {say.count(len(plan.front))} simulated deployments that hold: each is beaten by no other "
        "in dollars, TTFT, TPOT and margin at once."
    )
    columns = ("deployment", "seqs, tokens", "cost", "TTFT p95", "TPOT p95", "margin")
    return Table("What more money buys", sentence, columns, lines, (False, True, True, True, True, True))


def price_table(plan: Plan) -> Table | None:
    """At what price each accelerator wins."""
    if not plan.break_even:
        return None
    own, *others = plan.break_even
    d, limit, now = own.deployment, say.per_hour(own.break_even), say.per_hour(own.usd_per_gpu_hour)
    words = f"stays the cheapest up to {limit} each; then {own.rival} wins"
    lines = [(d.accelerator.name, now, limit, say.signed_percent(own.break_even / own.usd_per_gpu_hour - 1), words)]
    for b in others[:PRICES_SHOWN]:
        limit, now = say.per_hour(b.break_even), say.per_hour(b.usd_per_gpu_hour)
        words = f"wins below {limit} each, as {b.deployment.label}"
        change = say.signed_percent(b.break_even / b.usd_per_gpu_hour - 1)
        lines.append((b.deployment.accelerator.name, now, limit, change, words))
    sentence = "Per accelerator-hour, fleets as they are. Below its price an accelerator is certain to win."
    columns = ("accelerator", "now", "break-even", "change", "meaning")
    status = ("chosen", *("" for _ in lines[1:]))
    return Table("Break-even prices", sentence, columns, tuple(lines), (False, True, True, True, False), status)


def mode_table(plan: Plan) -> Table | None:
    """Fast and slow modes: what speed costs along the curve."""
    if len(plan.price_modes) < 2:
        return None
    modes = thinned(plan.price_modes, MODES_SHOWN)
    lines = tuple(
        (
            f"{m.batch}",
            f"{m.tokens_per_s:.1f}",
            say.dollars(m.usd_per_mtok),
            say.multiple(m.speed),
            say.multiple(m.price),
            "" if m.meets_slo else "misses the TPOT limit",
        )
        for m in modes
    )
    fast = modes[0]
    sentence = (
        f"Full batches in steady decode on one replica: an answer {say.multiple(fast.speed)} as fast costs at least "
        f"{say.multiple(fast.price)} as much a token."
    )
    columns = ("batch", "tokens/s each", "$/Mtok decode", "speed", "price", "limits")
    status = tuple("" if m.meets_slo else "missed" for m in modes)
    return Table("Fast and slow modes", sentence, columns, lines, (True, True, True, True, True, False), status)


def growth_table(o: Outlook) -> Table:
    """Month by month: replicas of the chosen shape, and what to do in the end."""
    lasts = "does not break in the loads tried" if math.isinf(o.lasts) else f"lasts {o.lasts:.1f} months"
    lines = []
    for m in o.months:
        fleet = "no number holds" if m.replicas is None else f"{m.replicas}"
        usd = say.UNKNOWN if m.replicas is None else say.per_hour(m.usd_per_hour)
        lines.append((f"{m.month}", f"{m.load:.2f}x", fleet, usd))
    growth = f"At {say.signed_percent(o.growth)} a month the plan as it is {lasts}. In the end, {o.then_because}."
    columns = ("month", "load", "replicas", "cost")
    return Table("Growth", growth, columns, tuple(lines), (True, True, True, True))


def schedule_table(s: Schedule) -> Table:
    """Replicas by hour of the day, neighbours of equal replicas together, and what that saves."""
    columns = ("hours", "requests/s", "busiest", "replicas", "cost")
    heading, numeric = "Replicas by hour of the day", (False, True, True, True, True)
    if not s.hours:
        return Table(heading, f"None: {s.basis}.", columns, (), numeric)
    runs: list[list[int]] = []
    for i, hour in enumerate(s.hours):
        if runs and s.hours[runs[-1][-1]].replicas == hour.replicas:
            runs[-1].append(i)
        else:
            runs.append([i])
    lines = []
    for run in runs:
        hours = [s.hours[i] for i in run]
        rate = sum(h.rate_rps for h in hours) / len(hours)
        busiest = max(h.busiest_rps for h in hours)
        name = f"{hours[0].hour}:00 to {hours[-1].hour + 1}:00"
        lines.append(
            (name, say.number(rate), say.number(busiest), f"{hours[0].replicas}", say.per_hour(hours[0].usd_per_hour))
        )
    saved = 1.0 - s.usd_per_day / s.flat_usd_per_day
    missed = [v for v in s.verdicts if not v.met]
    holds = "every objective holds over the whole log" if not missed else f"{missed[0].objective.name} is missed"
    worth = f"saves {say.percent(saved)}" if saved > 0 else "saves nothing"
    sentence = (
        f"{say.dollars(s.usd_per_day)} a day instead of {say.dollars(s.flat_usd_per_day)} flat: {worth}, and {holds}. "
        f"Starts of {say.seconds(s.start_s)} are paid for. {s.basis[:1].upper()}{s.basis[1:]}."
    )
    return Table(heading, sentence, columns, tuple(lines), numeric)


def interval_table(plan: Plan) -> Table | None:
    """Every predicted percentile, and goodput where it is asked for, with its 80 % interval."""
    if not plan.intervals or not plan.chosen.latency:
        return None
    lines = []
    for name, (low, high) in plan.intervals.items():
        metric, _, statistic = name.partition(".")
        d = plan.chosen.latency.get(metric)
        if d is not None and math.isfinite(low) and math.isfinite(high):
            lines.append((f"{NAMES.get(metric, metric)} {statistic}", say.seconds(d.percentile(statistic)),
                          say.seconds(low), say.seconds(high)))  # fmt: skip
    for v in plan.chosen.verdicts:
        if v.objective.is_floor and v.objective.name in plan.intervals:
            low, high = plan.intervals[v.objective.name]
            lines.append((v.objective.name, say.share(v.reached), say.share(low), say.share(high)))
    if not lines:
        return None
    sentence = "80 % intervals: the log replayed with every step at both edges of what is known about step times."
    return Table("How far off it may be", sentence, ("figure", "predicted", "low", "high"), tuple(lines),
                 (False, True, True, True))  # fmt: skip
