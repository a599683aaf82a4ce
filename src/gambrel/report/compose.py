"""Which charts answer which question, in which order: a curve or a plan to a whole :class:`Report`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from gambrel.core.units import HOURS_PER_MONTH
from gambrel.report import humanise as say
from gambrel.report.answers import (
    chance_text,
    confidence_table,
    front_table,
    growth_table,
    interval_table,
    measurement_table,
    mode_table,
    price_table,
    schedule_table,
    sensitivity_table,
    setting_table,
    sure_table,
)
from gambrel.report.choice import (
    KEEPING_UP,
    against_table,
    cell_latency,
    cell_table,
    cost_of_candidates,
    fix_table,
    objective_table,
    plan_table,
    unused,
)
from gambrel.report.curves import cost_vs_batch, latency_vs_batch, step_vs_context
from gambrel.report.demand import (
    arrivals_over_time,
    bursts,
    in_flight,
    in_flight_over_time,
    joint_lengths,
    output_lengths,
    prompt_lengths,
)
from gambrel.report.document import Fact, Report, Section, Tree
from gambrel.report.memory import HeldTokens, memory_vs_concurrency
from gambrel.report.pareto import cost_vs_latency
from gambrel.report.service import batch_over_time, kv_over_time, latency_cdf, latency_vs_load, time_bound_by
from gambrel.report.style import caption

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gambrel.core.curve import Curve
    from gambrel.core.plan import Plan
    from gambrel.core.trace import Traced
    from gambrel.report.demand import TrafficView
    from gambrel.report.document import Table
    from gambrel.report.style import Spec

__all__ = ["curve_report", "plan_report"]

_KNEE: Final = {
    "ridge": "compute overtakes memory there",
    "balance": "KV reads overtake the weights there",
    "wall": "memory is full there",
}
_UNITS: Final = "GB is 1e9 bytes; peaks are dense; TTFT counts queueing; TPOT is (last - first) / (tokens - 1)."


def _kept(items: Iterable[Spec | Table | Tree | None]) -> tuple[Spec | Table | Tree, ...]:
    return tuple(item for item in items if item is not None)


def _curve_charts(curve: Curve) -> tuple[Spec | Table | Tree, ...]:
    many = len(np.unique(curve.context[curve.context > 0])) > 1
    return _kept([latency_vs_batch(curve), cost_vs_batch(curve), step_vs_context(curve) if many else None])


def curve_report(curve: Curve) -> Report:
    """The report of a latency and cost curve alone."""
    d = curve.deployment
    latency, cost = latency_vs_batch(curve), cost_vs_batch(curve)
    return Report(
        title=f"{d.model.name.rpartition('/')[2]} on {d.accelerator.title}",
        subtitle=f"{d.model.name}: {d.weights} weights, {d.kv} KV cache, TP {d.tp}; steady decode of one replica",
        headline=(caption(latency), caption(cost)),
        facts=_curve_facts(curve),
        sections=(Section("Where the slope breaks", _slope_sentence(curve), _curve_charts(curve)),),
        provenance=_curve_basis(curve),
    )


def _slope_sentence(curve: Curve) -> str:
    name, batch = curve.knee
    if not math.isfinite(batch):
        return "Nothing binds before the largest batch drawn."
    meaning = _KNEE[name].removesuffix(" there")
    return (
        f"The knee is the {name}: from batch {say.count(batch)} on {meaning}, at "
        f"{say.count(curve.named_context)} tokens of context."
    )


def _curve_facts(curve: Curve) -> tuple[Fact, ...]:
    name, knee = curve.knee
    facts = [
        Fact("floor of a step", say.seconds(curve.floor_s), "the weights read once, at peak"),
        Fact("knee", f"batch {say.count(knee)}" if math.isfinite(knee) else "none", _KNEE[name]),
        Fact(
            "wall",
            f"batch {say.count(curve.wall_batch)}",
            f"memory full at {say.count(curve.named_context)} tokens each",
        ),
        Fact(
            "crossover context", f"{say.count(curve.crossover_context)} tokens", "beyond it no batch is compute-bound"
        ),
        Fact("amortisation", say.multiple(curve.amortisation), "cheaper per token at the best batch than at batch 1"),
    ]
    fitting = curve.fits & (curve.context == curve.named_context)
    if curve.usd_per_mtok is not None and fitting.any():
        cheapest = say.dollars(float(curve.usd_per_mtok[fitting].min()))
        facts.append(Fact("cost per Mtok", cheapest, "output tokens, largest batch drawn, full load"))
    return tuple(facts)


def _price_basis(curve: Curve) -> str:
    price = curve.deployment.accelerator.price
    if price is None:
        return "No price is known for this accelerator: cost is in chip-seconds."
    source = f" ({price.source})" if price.source else ""
    return f"Price: {say.per_hour(price.usd_per_hour)} per accelerator, {price.basis}{source}."


def _curve_basis(curve: Curve) -> tuple[str, ...]:
    return (
        f"Step times: {curve.basis}; form {curve.form}.",
        _price_basis(curve),
        "GB is 1e9 bytes. Peaks are dense. Cost against batch assumes full load; divide by the real utilisation.",
    )


def plan_report(
    plan: Plan, curve: Curve | None = None, traffic: TrafficView | None = None, trace: tuple[Traced, ...] = ()
) -> Report:
    """The report of a plan: the answer, why it is the answer, the log behind it, and where it breaks.

    ``curve`` is of the chosen deployment; ``traffic`` the log it was planned for; ``trace`` the headline figures down
    to their inputs. Each may be missing.
    """
    d = plan.chosen.deployment
    many = "" if d.replicas == 1 else f"{d.replicas} replicas of "
    gpus = f"{d.num_gpus} x {d.accelerator.title}"
    held = HeldTokens.of(
        plan.run.prompt_tokens, plan.run.output_tokens, math.nan if traffic is None else traffic.held_tokens
    )
    sections = [
        Section(
            "The decision",
            _decision_sentence(plan),
            _kept(
                [objective_table(plan), cost_of_candidates(plan), *_demo(plan), plan_table(plan), against_table(plan)]
            ),
        ),
        *_answers(plan),
        _load_section(plan),
    ]
    if traffic is not None:
        sections.append(_traffic_section(traffic))
    sections += [
        Section(
            "Memory and time on the chosen fleet",
            _fleet_sentence(plan),
            _kept(
                [
                    memory_vs_concurrency(plan.chosen.memory, held, d.max_num_seqs),
                    latency_cdf(plan.run, plan.slo),
                    batch_over_time(plan.run),
                    kv_over_time(plan.run),
                    time_bound_by(plan.run),
                ]
            ),
        ),
    ]
    if curve is not None:
        sections.append(Section("Where the slope breaks", _slope_sentence(curve), _curve_charts(curve)))
    sections.append(
        Section(
            "Next",
            f"Measure next: {plan.measure_next}." if plan.measure_next and plan.measurement is None else "",
            _kept([fix_table(plan.cheaper_fixes), measurement_table(plan)]),
            code=plan.launch if plan.measurement is None else f"{plan.launch}\n{plan.measurement.command}",
        )
    )
    if trace:
        sections.append(_trace_section(trace))
    return Report(
        title=f"{d.model.name.rpartition('/')[2]}: {gpus}",
        subtitle=(
            f"{d.model.name}, planned for {plan.workload}: {say.count(plan.num_requests)} requests "
            f"{_arriving(plan)}; "
            f"{many}TP {d.tp}, {d.weights} weights, {d.kv} KV cache"
        ),
        headline=_plan_headline(plan),
        facts=_plan_facts(plan),
        sections=tuple(sections),
        provenance=_plan_basis(plan, curve),
    )


def _arriving(plan: Plan) -> str:
    return "all at once" if math.isnan(plan.rate_rps) else f"at {say.rate(plan.rate_rps)}"


def _first_break(plan: Plan) -> tuple[str, float]:
    name, load = min(plan.breaks_at.items(), key=lambda item: item[1], default=("", math.inf))
    return KEEPING_UP if name == "backlog" else name, load


def _plan_headline(plan: Plan) -> tuple[str, ...]:
    c = plan.chosen
    considered = say.count(plan.num_considered)
    first = f"{c.deployment.label} is the cheapest of {considered} deployments considered that holds every limit"
    lines = [f"{first}: {say.per_hour(c.usd_per_hour)}."]
    name, load = _first_break(plan)
    if math.isfinite(load):
        lines.append(f"It breaks at {load:.2f}x the log's load, first on {name}.")
    elif plan.loads:
        lines.append(
            f"It holds at every load simulated, up to {say.multiple(max(p.load for p in plan.loads))} the log's."
        )
    big = plan.biggest_gpu
    if big is c:
        lines.append("The biggest GPU of the search is the right one here.")
    elif big is not None and big.feasible:
        lines.append(
            f"The biggest GPU, {big.deployment.label}, would hold too: it costs "
            f"{say.per_hour(plan.biggest_gpu_extra_usd_per_hour)} more{unused(big, 'leaves')}."
        )
    elif big is not None:
        lines.append(f"The biggest GPU, {big.deployment.label}, does not hold: {big.lost_because}.")
    demo = plan.demo_plan
    if demo is not None and demo.deployment.label != c.deployment.label:
        lines.append(
            f"A demo with one user and a short prompt would have bought {demo.deployment.label}; under the "
            f"real log: {plan.demo_plan_hits}."
        )
    lines += [f"Know: {sentence}" for sentence in plan.caveats]
    return tuple(lines)


def _plan_facts(plan: Plan) -> tuple[Fact, ...]:
    c = plan.chosen
    facts = [
        Fact(
            "cost",
            say.per_hour(c.usd_per_hour),
            f"{say.dollars(HOURS_PER_MONTH * c.usd_per_hour)} a month"
            if math.isfinite(c.usd_per_hour)
            else "no price known",
        )
    ]
    if c.pricing is not None:
        p = c.pricing
        facts.append(
            Fact(
                "$ per Mtok",
                f"{say.dollars(p.usd_per_mtok_input)} + {say.dollars(p.usd_per_mtok_output)}",
                "input + output, by time share",
            )
        )
        facts.append(Fact("busy", say.percent(p.utilisation), "of the time, at the log's load"))
    for v in c.verdicts:
        low, high = plan.intervals.get(v.objective.name, (math.nan, math.nan))
        o = v.objective
        sure = "" if math.isnan(low) else f"; {say.figure(o, low)} to {say.figure(o, high)}"
        facts.append(
            Fact(
                o.name,
                say.figure(o, v.reached),
                f"limit {say.allowed(o)}{sure}",
                "met" if v.met else "missed",
            )
        )
    name, load = _first_break(plan)
    facts.append(
        Fact(
            "breaks at",
            f"{load:.2f}x load" if math.isfinite(load) else "no load tried",
            name if math.isfinite(load) else "",
        )
    )
    return tuple(facts)


def _decision_sentence(plan: Plan) -> str:
    return (
        f"{say.count(plan.num_considered)} deployments were considered and the log simulated "
        f"{say.count(plan.num_simulated)} times in {say.seconds(plan.wall_s)}; what is chosen held every limit there."
    )


def _demo(plan: Plan) -> list[Spec | Table | None]:
    return [cell_latency(plan.cells), cell_table(plan.cells) if plan.cells else None]


def _trace_section(trace: tuple[Traced, ...]) -> Section:
    text = (
        "Open a figure to see what it is made of, down to price list, specification sheet, fitted constant or log. "
        "Every operation is plain arithmetic on the lines below it; what is simulated says what was simulated."
    )
    return Section("Where every figure comes from", "", (Tree("Trace", text, trace),))


def _answers(plan: Plan) -> list[Section]:
    """How sure, the settings, what money buys: only what the plan holds."""
    growth = None if plan.outlook is None else growth_table(plan.outlook)
    first = {o.metric: o for o in reversed(plan.slo.limits)}
    fronts = [cost_vs_latency(plan, first[m]) for m in dict.fromkeys(o.metric for o in plan.slo.limits)]
    sure = _kept([sure_table(plan), confidence_table(plan), sensitivity_table(plan), interval_table(plan)])
    money = _kept([*fronts, front_table(plan), price_table(plan), mode_table(plan)])
    found = [
        Section("How sure it is", _sure_sentence(plan), sure),
        Section("The engine's settings", "", _kept([setting_table(plan)])),
        Section("What more money buys, and what less", "", money),
        Section("When traffic grows month by month", "", _kept([growth])),
        Section("Day and night", "", _kept([None if plan.schedule is None else schedule_table(plan.schedule)])),
    ]
    return [section for section in found if section.items]


def _sure_sentence(plan: Plan) -> str:
    every = next((c for c in plan.chances if c.objective == "all"), None)
    if every is None:
        return ""
    return f"The chance that every objective holds on another stretch of the same traffic: {chance_text(every.chance)}."


def _load_section(plan: Plan) -> Section:
    metrics = list(dict.fromkeys([*(o.metric for o in plan.slo.limits), "ttft", "tpot"]))
    charts = [
        latency_vs_load(plan.loads, plan.slo, m, plan.breaks_at)
        for m in metrics
        if any(m in p.latency for p in plan.loads)
    ]
    name, load = _first_break(plan)
    sentence = (
        f"The first to give way is {name}, at {load:.2f}x the log's load; the burst structure of the log is "
        "kept at every load."
        if math.isfinite(load)
        else "Nothing gives way at any load simulated; the burst structure of the log is kept at every load."
    )
    return Section("When load grows", sentence, tuple(charts))


def _traffic_section(view: TrafficView) -> Section:
    warned = f" Before you believe it: {'; '.join(view.warnings)}." if view.warnings else ""
    whole = view.prompt_tokens.sum() + view.output_tokens.sum()
    sentence = (
        f"{view.source or view.name}: {say.count(len(view.prompt_tokens))} requests over {say.seconds(view.span_s)}, "
        f"{say.percent(float(view.prompt_tokens.sum() / whole))} of all tokens are prompt.{warned}"
    )
    return Section(
        "What the log asks for",
        sentence,
        _kept(
            [
                prompt_lengths(view),
                output_lengths(view),
                joint_lengths(view),
                in_flight_over_time(view),
                in_flight(view),
                arrivals_over_time(view),
                bursts(view),
            ]
        ),
    )


def _fleet_sentence(plan: Plan) -> str:
    run = plan.run
    return (
        f"Replayed on the log: {say.rate(run.output_tokens_per_s, 'output tokens')}, "
        f"{say.number(run.batch_mean)} sequences a "
        f"step on average, {say.percent(run.utilisation)} busy, {say.count(run.num_preemptions)} preemptions."
    )


def _plan_basis(plan: Plan, curve: Curve | None) -> tuple[str, ...]:
    price = plan.chosen.deployment.accelerator.price
    lines = [f"Step times: {plan.basis}. Runs: {plan.run.origin}{'; ' + plan.run.basis if plan.run.basis else ''}."]
    if price is not None:
        source = f" ({price.source})" if price.source else ""
        lines.append(f"Price: {say.per_hour(price.usd_per_hour)} per accelerator, {price.basis}{source}.")
    else:
        lines.append("No price is known for the chosen accelerator.")
    d = plan.chosen.deployment
    lines.append(
        f"Engine: {d.engine} {d.engine_version}, max_num_seqs {say.count(d.max_num_seqs)}, max_num_batched_tokens "
        f"{say.count(d.max_num_batched_tokens)}, gpu_memory_utilization {d.gpu_memory_utilization:g}, "
        f"block_size {d.block_size}."
    )
    if curve is not None:
        lines.append(f"Curves: {curve.basis}; form {curve.form}; cost against batch assumes full load.")
    return (*lines, _UNITS)
