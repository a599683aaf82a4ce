"""The answer in one call: the cheapest deployment that holds, with the evidence around it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gambrel.core.plan import Candidate, Cell, Chance, Fix, LoadPoint, Plan, Sensitivity, Setting, Surer
from gambrel.plan.caveats import caveats, context_caveats
from gambrel.plan.chance import chances, surer
from gambrel.plan.compare import biggest_because, break_even_prices, pareto_front
from gambrel.plan.explain import (
    MOST_CARRIED,
    SHORT_PROMPT,
    Loads,
    alone_workload,
    carries,
    cells,
    intervals,
    load_sweep,
    offered_rps,
)
from gambrel.plan.launch import vllm_command
from gambrel.plan.other_traffic import sensitivities
from gambrel.plan.relax import refusal
from gambrel.plan.search import WORKERS, search
from gambrel.plan.settings import fixes, neighbours, price_modes, settings
from gambrel.plan.trial import Bench, Outcome, in_full, judge, loss, rank
from gambrel.plan.worth import with_measurement
from gambrel.report.humanise import per_hour

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gambrel.core.deployment import Deployment
    from gambrel.core.model import Model
    from gambrel.core.run import Run
    from gambrel.core.slo import SLO
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload
    from gambrel.plan.question import Search
    from gambrel.plan.search import Journal, Pool
    from gambrel.plan.space import Space

COARSE = 0.05
"""Relative tolerance of what a loser could carry: its idle share is shown in whole per cent."""

__all__ = ["plan"]


def plan(
    model: Model,
    workload: Workload,
    slo: SLO,
    space: Space,
    pricer: Callable[[Deployment], CostModel],
    progress: Callable[[str], None] = lambda _: None,
    pool: Pool | None = None,
    journal: Journal | None = None,
) -> Plan:
    """The cheapest deployment in ``space`` whose simulation of ``workload`` meets ``slo``.

    ``pricer`` makes the cost model of a deployment; ``progress`` hears a word per finished part. ``pool`` computes the
    search's tasks, threads here by default; ``journal`` remembers them.

    Raises:
        DoesNotFit: the model fits no shape; the message has needed and available bytes of the nearest.
        InfeasiblePlan: no shape meets the objectives; the message says which, the best reached and by whom.
    """
    started = time.perf_counter()
    found = search(model, workload, slo, space, pricer, progress, pool, journal)
    ranked = found.feasible
    if not ranked:
        raise refusal(model, workload, slo, space, pricer, found)
    best = ranked[0]
    deployment = best.candidate.deployment
    cost_model = pricer(deployment)
    run = Bench.of(cost_model).run(deployment, workload, series=True)
    around = Surroundings(found, best, run, deployment, cost_model, workload, slo, space, pricer, Loads(workload))
    with ThreadPoolExecutor(WORKERS) as threads:  # the parts are independent; each is deterministic
        parts = [threads.submit(part) for part in (around.load, around.others, around.sureness, around.tests)]
        for part, word in zip(parts, ("load and settings", "the others", "chances", "tests"), strict=True):
            part.result()
            progress(word)
    best = around.best
    biggest = biggest_gpu(best, around.losers, space)
    extra = (
        biggest.usd_per_hour - best.candidate.usd_per_hour if biggest is not None and biggest.feasible else float("nan")
    )
    made = Plan(
        workload=workload.name,
        num_requests=len(workload),
        rate_rps=offered_rps(run),
        slo=slo,
        chosen=best.candidate,
        run=run,
        alternatives=around.losers,
        biggest_gpu=biggest,
        biggest_gpu_extra_usd_per_hour=extra,
        biggest_gpu_because=biggest_because(best.candidate, biggest, around.losers),
        demo_plan=around.demo,
        demo_plan_hits=around.demo_hits,
        cells=around.cells,
        loads=around.points,
        breaks_at=around.breaks,
        cheaper_fixes=around.fixes,
        intervals=around.intervals,
        measure_next="",
        launch=vllm_command(deployment, best.candidate.memory),
        basis=cost_model.basis,
        chances=around.chances,
        chance_basis=around.chance_basis,
        surer=around.surer,
        front=pareto_front(found.tried),
        break_even=break_even_prices(best.candidate, around.losers),
        settings=around.settings,
        caveats=(
            *caveats(deployment),
            *context_caveats(model, workload, deployment.max_model_len),
            *(w for w in workload.warnings if w.startswith("max_model_len")),
        ),
        price_modes=price_modes(deployment, cost_model, workload, slo),
        sensitivities=around.sensitivities,
        wall_s=0.0,
        num_considered=found.num_considered,
        num_simulated=found.num_simulated,
    )
    measured = with_measurement(made, workload, pricer, space.spare)
    return replace(measured, wall_s=time.perf_counter() - started)


@dataclass
class Surroundings:
    """What stands around the decision, in parts that do not wait for each other; every part fills its own fields."""

    found: Search
    best: Outcome
    run: Run
    deployment: Deployment
    cost_model: CostModel
    workload: Workload
    slo: SLO
    space: Space
    pricer: Callable[[Deployment], CostModel]
    loads: Loads
    points: tuple[LoadPoint, ...] = ()
    breaks: Mapping[str, float] = field(default_factory=dict)
    fixes: tuple[Fix, ...] = ()
    settings: tuple[Setting, ...] = ()
    losers: tuple[Candidate, ...] = ()
    chances: tuple[Chance, ...] = ()
    chance_basis: str = ""
    surer: tuple[Surer, ...] = ()
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sensitivities: tuple[Sensitivity, ...] = ()
    cells: tuple[Cell, ...] = ()
    demo: Candidate | None = None
    demo_hits: str = ""

    def load(self) -> None:
        """Where the chosen deployment breaks, and what its settings do."""
        bench = Bench.of(self.cost_model)
        self.points, self.breaks = load_sweep(self.deployment, bench, self.loads, self.slo)
        now = min(self.breaks.values())
        near = neighbours(self.deployment, self.pricer, self.loads, self.slo, self.breaks)
        self.fixes = fixes(near, now)
        self.settings = settings(self.deployment, bench, self.run, self.slo, near, now)
        self.best = with_idle_share(self.best, now)

    def others(self) -> None:
        """What the others could carry."""
        self.losers = losers(self.found, self.best, self.slo, self.pricer, self.loads)

    def sureness(self) -> None:
        """How sure the choice is, and what more certainty costs."""
        self.chances, self.chance_basis = chances(self.deployment, self.cost_model, self.workload, self.slo)
        self.surer = surer(self.deployment, self.cost_model, self.workload, self.slo, self.space.spare)
        self.intervals = intervals(self.deployment, self.cost_model, self.workload, self.slo)

    def tests(self) -> None:
        """What a demo shows and hides, and what other traffic would."""
        bench = Bench.of(self.cost_model)
        self.demo, self.demo_hits = demo_plan(self.found, self.slo, self.workload, self.pricer)
        self.cells = cells(self.deployment, bench, self.workload, self.run)
        self.sensitivities = sensitivities(self.deployment, bench, self.workload, self.slo)


def with_idle_share(trial: Outcome, load: float) -> Outcome:
    """The trial with the share of its capacity that the log leaves unused, given the load multiple it carries."""
    idle = 1.0 - 1.0 / min(load, MOST_CARRIED) if load > 1.0 else 0.0
    return replace(trial, candidate=replace(trial.candidate, idle_share=idle))


def losers(
    found: Search, best: Outcome, slo: SLO, pricer: Callable[[Deployment], CostModel], loads: Loads
) -> tuple[Candidate, ...]:
    """Everyone else with the reason: those that hold by cost, those that miss by how near, those ruled out last.

    The best of each accelerator is also asked how much load it would carry: the rest of its capacity is idle.
    """
    rows = []
    seen = {best.candidate.deployment.accelerator.id}
    for trial in sorted(found.trials, key=rank):
        candidate = trial.candidate
        deployment = candidate.deployment
        if deployment == best.candidate.deployment:
            continue
        if candidate.feasible:
            more = candidate.usd_per_hour - best.candidate.usd_per_hour
            reason = f"holds, but costs {per_hour(more)} more" if more > 0.005 else tied(deployment, best)
            candidate = replace(candidate, lost_because=reason)
            if deployment.accelerator.id not in seen:
                seen.add(deployment.accelerator.id)
                load = carries(deployment, Bench.of(pricer(deployment)), loads, slo, coarse=COARSE)
                candidate = with_idle_share(replace(trial, candidate=candidate), load).candidate
        rows.append(candidate)
    rows.sort(key=lambda c: (not c.feasible, c.usd_per_hour, c.deployment.label))
    gone = sorted(found.ruled_out, key=lambda c: (c.stage == "fits", -c.memory.kv_cache_bytes, c.deployment.label))
    return (*rows, *gone)


def tied(deployment: Deployment, best: Outcome) -> str:
    """Why a deployment of the same cost lost, in the order of :func:`gambrel.plan.trial.rank`."""
    if loss(deployment) > loss(best.candidate.deployment):
        return "same cost, with fewer bits than needed"
    return "same cost, bears less load"


def biggest_gpu(best: Outcome, others: tuple[Candidate, ...], space: Space) -> Candidate | None:
    """The best row of the biggest accelerator: the one with the most memory bandwidth among those with a price."""
    priced = [a for a in space.accelerators if a.price is not None]
    if not priced:
        return None
    name = max(priced, key=lambda a: (a.memory_bandwidth, a.memory_bytes, a.name)).name
    if best.candidate.deployment.accelerator.name == name:
        return best.candidate
    return next((c for c in others if c.deployment.accelerator.name == name), None)


def demo_plan(
    found: Search, slo: SLO, workload: Workload, pricer: Callable[[Deployment], CostModel]
) -> tuple[Candidate | None, str]:
    """What a test with one user and a short prompt would have bought, and what it meets first under the real log.

    The cheapest single replica among the searched shapes that passes the objectives on that test.
    """
    alone = alone_workload(workload, SHORT_PROMPT, most=100)
    shapes = {c.deployment.with_(replicas=1).label: c.deployment.with_(replicas=1) for c in found.ruled_out}
    shapes |= {
        t.candidate.deployment.with_(replicas=1).label: t.candidate.deployment.with_(replicas=1) for t in found.trials
    }
    priced = [d for d in shapes.values() if d.usd_per_hour is not None]
    for deployment in sorted(priced, key=lambda d: (d.usd_per_hour or 0.0, d.label)):
        cost_model = pricer(deployment)
        if cost_model.memory().kv_tokens < int((alone.prompt_tokens + alone.output_tokens).max()):
            continue
        bench = Bench.of(cost_model)
        if not judge(deployment, bench, alone, slo).candidate.feasible:
            continue
        longest = int((workload.prompt_tokens + workload.output_tokens).max())
        tokens = cost_model.memory().kv_tokens
        if tokens < longest:
            reason = f"KV cache holds {tokens:,} tokens, the longest request of the log needs {longest:,}"
            return Candidate(deployment, "fits", cost_model.memory(), lost_because=reason), reason
        real = in_full(judge(deployment, bench, workload, slo), slo).candidate
        return real, real.lost_because or "it holds under the real log too"
    return None, "no single replica passes even the demo"
