"""What to measure next, and what it is worth: the one measurement whose result could change the decision most.

A plan rests on step times that are known to within a spread. Renting one replica for an hour and measuring it removes
most of that. What this is worth is the value of information: for each of several equally likely step times the
decision is made again, knowing it, and held against the plan in hand, mended where it must be. The mean difference in
dollars per hour is the expected saving; the share of step times at which the choice differs is how often the decision
would flip. Not only the chosen accelerator may be the one to measure: a rival that turns out faster than predicted
may win.

What it cannot see: a rival is taken at its own prediction while the other is measured, requests that miss their
objectives until the fleet is mended cost nothing here, and the measurement is taken as exact.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.plan import Measurement
from gambrel.plan.launch import vllm_command
from gambrel.plan.safety import Safety
from gambrel.plan.trial import Bench, fewest_replicas, judge
from gambrel.report.humanise import per_hour, percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.deployment import Deployment
    from gambrel.core.plan import Candidate, Plan
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload

__all__ = ["CAUSES", "in_flight_at_break", "measure_command", "with_measurement", "worth_measuring"]

DRAWS = 8
"""Equally likely step times at which the decision is made again."""
DRAWS_WITH_PREFIXES = 4
RIVALS = 2
MOST = 3
"""Times today's replicas, beyond which a shape counts as not holding."""
CAUSES = {"compute": "compute", "weights": "reading weights", "kv": "reading the KV cache",
          "collective": "talk between accelerators", "overhead": "the host"}  # fmt: skip
RECORDS = "measured.jsonl.gz"


@dataclass(frozen=True)
class Subject:
    """A shape whose step time could be measured, and the choices that the draws would lead to."""

    deployment: Deployment
    spread: float
    choices: tuple[tuple[float, str, float, float], ...]
    flips: float

    @property
    def saves(self) -> float:
        """Expected dollars per hour."""
        return sum(now - then for _, _, now, then in self.choices) / len(self.choices)


def worth_measuring(
    plan: Plan, workload: Workload, pricer: Callable[[Deployment], CostModel], spare: int = 0
) -> Measurement:
    """The measurement worth most among the chosen shape and the nearest rivals on other accelerators.

    ``spare`` replicas must be dispensable as the plan was asked; a confidence asked of the plan falls away once the
    step time is known.
    """
    draws = DRAWS if workload.prefix_blocks is None else DRAWS_WITH_PREFIXES
    rivals = rivals_of(plan)
    outside = min((r.usd_per_hour for r in rivals), default=math.inf)
    subjects = [weighed(plan, plan.chosen, workload, pricer(plan.chosen.deployment), spare, draws, outside, rivals)]
    subjects += [
        weighed(plan, r, workload, pricer(r.deployment), spare, draws, outside, rivals) for r in rivals[:RIVALS]
    ]
    best = max(subjects, key=lambda s: (round(s.saves, 6), s is subjects[0], s.flips))
    d = best.deployment
    flips, saves = best.flips, best.saves
    started = "" if best is subjects[0] else f", started with: {vllm_command(d, pricer(d).memory())}"
    levels = concurrencies(plan) if d == plan.chosen.deployment else (1, *concurrencies(plan)[1:])
    return Measurement(
        what=f"{d.model.name} on one replica of {d.label.partition(' x ')[2]}{started}",
        because=because(plan, best, subjects),
        command=measure_command(d, workload, levels),
        flips=flips,
        saves_usd_per_hour=saves,
        choices=best.choices,
    )


def with_measurement(plan: Plan, workload: Workload, pricer: Callable[[Deployment], CostModel], spare: int = 0) -> Plan:
    """The plan with its measurement, also as the one sentence ``measure_next``."""
    found = worth_measuring(plan, workload, pricer, spare)
    return replace(plan, measurement=found, measure_next=f"{found.command}: {found.because}")


def rivals_of(plan: Plan) -> list[Candidate]:
    """The cheapest that holds on each other accelerator, the cheapest first."""
    found: dict[str, Candidate] = {}
    mine = plan.chosen.deployment.accelerator.name
    for c in plan.alternatives:
        name = c.deployment.accelerator.name
        if name != mine and c.feasible and math.isfinite(c.usd_per_hour):
            found[name] = min(found.get(name, c), c, key=lambda x: (x.usd_per_hour, x.deployment.label))
    return sorted(found.values(), key=lambda c: (c.usd_per_hour, c.deployment.label))


def weighed(
    plan: Plan,
    subject: Candidate,
    workload: Workload,
    cost_model: CostModel,
    spare: int,
    draws: int,
    outside: float,
    rivals: list[Candidate],
) -> Subject:
    """What would be chosen at each step time of ``subject``, and what the plan in hand would cost there."""
    d, mine = subject.deployment, subject is plan.chosen
    inner = Bench.of(cost_model, Safety(0.5, spare))
    rival = rivals[0].deployment.label if rivals else ""
    choices, flips = [], 0
    for i in range(draws):
        factor = math.exp(NormalDist().inv_cdf((i + 0.5) / draws) * cost_model.spread)
        bench = inner.slower(factor)
        trial = fewest_replicas(
            partial(judge, bench=bench, workload=workload, slo=plan.slo),
            d,
            1 + spare,
            MOST * d.replicas,
        )
        holds, there = trial.candidate.feasible, trial.candidate.deployment
        usd = trial.candidate.usd_per_hour if holds else math.inf
        if mine:
            stays = holds and there.replicas <= d.replicas
            now = plan.chosen.usd_per_hour if stays else usd if holds else outside
            best, label = (usd, there.label) if usd <= outside else (outside, rival)
        else:
            now = plan.chosen.usd_per_hour
            best, label = (usd, there.label) if usd < now else (now, plan.chosen.deployment.label)
        if not math.isfinite(best):  # nothing known holds there
            now, best, label = plan.chosen.usd_per_hour, plan.chosen.usd_per_hour, "nothing searched"
        flips += label != plan.chosen.deployment.label
        choices.append((factor, label, now, best))
    return Subject(d, cost_model.spread, tuple(choices), flips / draws)


def because(plan: Plan, best: Subject, subjects: list[Subject]) -> str:
    """Why this one: how well its steps are known, how often that decides, and what the others would be worth."""
    d, shares = best.deployment, plan.run.time_bound_by()
    cause = max(shares, key=lambda k: shares[k])
    known = f"its step time is known to {percent(best.spread)} (one sigma)"
    if d == plan.chosen.deployment:
        known += f", and {CAUSES[cause]} binds {percent(shares[cause])} of the busy time"
    others = sorted({label for _, label, _, _ in best.choices} - {plan.chosen.deployment.label})
    flips = f"knowing it would change the choice in {percent(best.flips)} of cases"
    flips += f" (to {', '.join(others[:3])})" if others else ""
    saves = f"expected saving {per_hour(best.saves)}" if best.saves > 0.005 else "no money is at stake"
    if best.saves <= 0.005 and best.flips > 0:
        saves += ", but objectives are missed until the fleet is mended"
    rest = [s for s in subjects if s is not best]
    least = ""
    if rest and best.saves > 0:
        second = max(rest, key=lambda s: s.saves)
        least = f"; the next best, {second.deployment.accelerator.name}, would save {per_hour(second.saves)}"
    return f"{known}; {flips}; {saves}{least}"


def concurrencies(plan: Plan) -> tuple[int, ...]:
    """Requests in flight on one replica: alone, as the log runs, and at the knee where the first objective breaks."""
    running = max(1, round(plan.run.batch_mean))
    knee = in_flight_at_break(plan)
    return tuple(sorted({1, running, max(running, round(knee)) if knee else 2 * running}))


def in_flight_at_break(plan: Plan) -> float | None:
    """Requests in flight per replica where the first objective breaks; None when nothing breaks in the sweep.

    Little's law: rate times mean E2E, at the nearest load of the sweep.
    """
    load = min(plan.breaks_at.values(), default=math.inf)
    if not math.isfinite(load) or not plan.loads:
        return None
    nearest = min(plan.loads, key=lambda p: abs(p.load - load))
    found = nearest.rate_rps * nearest.latency["e2e"].mean / plan.chosen.deployment.replicas
    return found if math.isfinite(found) else None


def measure_command(deployment: Deployment, workload: Workload, concurrency: tuple[int, ...]) -> str:
    """A ``gambrel measure`` line for one replica: mean and long prompts, the mean answer, given concurrency."""
    prompts = sorted({max(1, round(float(x))) for x in (workload.prompt_tokens.mean(), p95(workload))})
    return shlex.join(
        [
            *("gambrel", "measure", "--url", "http://127.0.0.1:8000", "--model", deployment.model.name),
            *("--prompt", ",".join(str(p) for p in prompts)),
            *("--output", str(max(1, round(float(workload.output_tokens.mean()))))),
            *("--concurrency", ",".join(str(c) for c in concurrency), "--out", RECORDS),
        ]
    )


def p95(workload: Workload) -> float:
    """The 95th percentile of prompt lengths."""
    return float(np.percentile(workload.prompt_tokens, 95))
