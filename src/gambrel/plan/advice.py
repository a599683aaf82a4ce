"""Advice for a deployment that runs already: where it stands, what binds, and the one change worth making.

The plan asks what to rent; this asks what to do with what is rented. The log (or what a ``/metrics`` dump says about
the traffic) is simulated on the deployment as it is and on every deployment one change away; the advice is the
cheapest change that makes the objectives hold, or the fleet that holds for less, or the free change that carries most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import DeploymentError
from gambrel.plan.explain import Loads, carries
from gambrel.plan.settings import fixes, neighbours
from gambrel.plan.trial import Bench, fewest_replicas, judge, too_small
from gambrel.plan.worth import CAUSES
from gambrel.report.humanise import count, figure, per_hour, percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.deployment import Deployment
    from gambrel.core.plan import Candidate, Fix
    from gambrel.core.run import Run
    from gambrel.core.slo import SLO
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload

__all__ = ["Advice", "advise"]

ROOMY = 1.02
"""Load multiple above which a deployment counts as holding with something to spare."""


@dataclass(frozen=True)
class Advice:
    """The operating point and the change.

    ``binds`` names what the engine's time goes to; ``carries`` is the load multiple at which the first objective
    breaks; ``fixes`` are single changes that carry more; ``fewer`` is a smaller fleet that still holds, or None;
    ``logged_e2e_p50_s`` is what the log itself says, NaN where it says nothing: far from the simulation, something else
    limits the service.
    """

    candidate: Candidate
    run: Run
    binds: str
    carries: float
    fixes: tuple[Fix, ...]
    fewer: Candidate | None
    change: str
    logged_e2e_p50_s: float


def advise(deployment: Deployment, workload: Workload, slo: SLO, pricer: Callable[[Deployment], CostModel]) -> Advice:
    """Simulate the deployment and its neighbours on the log.

    Raises:
        DeploymentError: the log's longest request does not fit the deployment.
    """
    cost_model = pricer(deployment)
    memory = cost_model.memory()
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    if memory.kv_tokens < longest:
        raise DeploymentError(f"{deployment.label}: {too_small(memory, longest)}")
    bench = Bench.of(cost_model)
    trial = judge(deployment, bench, workload, slo)
    loads = Loads(workload)
    now = carries(deployment, bench, loads, slo)
    around = neighbours(deployment, pricer, loads, slo, {"first": now})
    better = fixes(around, now)
    fewer = None
    if now > ROOMY and deployment.replicas > 1:
        most = deployment.replicas - 1
        small = fewest_replicas(partial(judge, bench=bench, workload=workload, slo=slo), deployment, 1, most).candidate
        fewer = small if small.feasible else None
    service = workload.service_s
    logged = math.nan if service is None else float(np.nanmedian(service))
    return Advice(
        candidate=trial.candidate,
        run=trial.run,
        binds=binding(deployment, bench, trial.run),
        carries=now,
        fixes=better,
        fewer=fewer,
        change=the_change(deployment, trial.candidate, now, better, fewer),
        logged_e2e_p50_s=logged,
    )


def binding(deployment: Deployment, bench: Bench, run: Run) -> str:
    """What limits the engine: a full batch, a full cache, idleness, or the cause that most of its time goes to."""
    shares = run.time_bound_by()
    cause = max(shares, key=lambda name: shares[name])
    at = f"batch {run.batch_mean:.0f} on average, {run.batch_max} at most"
    if run.num_preemptions:
        return f"the KV cache is full: {count(run.num_preemptions)} preemptions ({at})"
    if run.batch_max >= deployment.max_num_seqs:
        return f"max_num_seqs {deployment.max_num_seqs} is reached and requests wait ({at})"
    room = f"KV cache {percent(run.kv_usage_max)} full at most, of {count(bench.memory.kv_tokens)} tokens"
    return f"{CAUSES[cause]} binds {percent(shares[cause])} of the busy time ({at}; {room})"


def the_change(
    deployment: Deployment, now: Candidate, load: float, better: tuple[Fix, ...], fewer: Candidate | None
) -> str:
    """The one change, in words."""
    if not now.feasible or load < 1.0:
        holding = [fix for fix in better if fix.meets_slo]
        if holding:
            best = holding[0]
            return f"{best.change} ({per_hour(best.usd_per_hour)}): {best.effect}"
        if better:
            return f"no single change makes it hold; {better[0].change} comes nearest: {better[0].effect}. Plan anew"
        return f"no single change helps: {now.lost_because}. Plan anew"
    if fewer is not None:
        d = fewer.deployment
        saved = now.usd_per_hour - fewer.usd_per_hour
        money = f", {per_hour(saved)} less" if math.isfinite(saved) else ""
        worst = min(fewer.verdicts, key=lambda v: v.margin)
        return (
            f"{d.replicas} instead of {deployment.replicas} replicas hold{money}: "
            f"{worst.objective.name} then reaches {figure(worst.objective, worst.reached)}"
        )
    free = [fix for fix in better if fix.usd_per_hour <= now.usd_per_hour * (1 + 1e-9)]
    if free:
        return f"{free[0].change}, at no cost: {free[0].effect}"
    return "leave it as it is: it holds, no smaller fleet does, and no free change carries more"
