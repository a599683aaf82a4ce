"""The plan as the traffic grows: how long it lasts, what it takes month by month, and whether to switch in the end.

Growth is more users of the same kind (:func:`gambrel.traffic.scale_load` superposes shifted copies of the log), so
bursts stay what they are and lengths do not change.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from gambrel.core.errors import DeploymentError
from gambrel.core.plan import Month, Outlook
from gambrel.plan.explain import TOLERANCE
from gambrel.plan.search import search
from gambrel.plan.trial import Bench, fewest_replicas, judge
from gambrel.report.humanise import per_hour, signed_percent
from gambrel.traffic import scale_load

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.deployment import Deployment
    from gambrel.core.plan import Plan
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload
    from gambrel.plan.space import Space

__all__ = ["outlook"]

MOST_MONTHS = 120
MOST_LOAD = 64.0


def outlook(
    plan: Plan,
    workload: Workload,
    space: Space,
    pricer: Callable[[Deployment], CostModel],
    growth: float,
    months: int,
) -> Outlook:
    """What ``months`` of ``growth`` a month (0.15 is 15 %) ask of the plan, and the cheapest choice for the last one.

    Raises:
        DeploymentError: growth not above 0, months outside 1 to 120, or a load beyond 64 times today's.
    """
    if not (math.isfinite(growth) and growth > 0):
        raise DeploymentError(f"growth must be above 0, e.g. 0.15 for 15 % a month, got {growth!r}")
    if not 1 <= months <= MOST_MONTHS:
        raise DeploymentError(f"months must be from 1 to {MOST_MONTHS}, got {months!r}")
    last = (1.0 + growth) ** months
    if last > MOST_LOAD:
        raise DeploymentError(
            f"{months} months at {signed_percent(growth)} are {last:.0f} times today's load; at most {MOST_LOAD:g}"
        )
    chosen = plan.chosen.deployment
    bench = Bench.of(pricer(chosen), space.safety)
    first = min(plan.breaks_at.values(), default=math.inf)
    if space.safety.asked:
        first = bears(plan, bench, workload, min(first, MOST_LOAD))
    lasts = math.log(first) / math.log1p(growth) if first > 1.0 else 0.0
    most = space.most_replicas(chosen)
    rows, replicas = [], chosen.replicas
    for month in range(1, months + 1):
        load = (1.0 + growth) ** month
        log = scale_load(workload, load, seed=0)
        guess = max(replicas, 1)
        held = partial(judge, bench=bench, workload=log, slo=plan.slo)
        trial = fewest_replicas(held, chosen, min(guess, most), most)
        if not trial.candidate.feasible:
            rows.append(Month(month, load, None, math.inf))
            continue
        replicas = trial.candidate.deployment.replicas
        rows.append(Month(month, load, replicas, trial.candidate.usd_per_hour))
    found = search(chosen.model, scale_load(workload, last, seed=0), plan.slo, space, pricer).feasible
    if not found:
        return Outlook(growth, lasts, tuple(rows), None, "nothing in the search holds at the last month's load")
    then = found[0].candidate
    return Outlook(growth, lasts, tuple(rows), then, switch(chosen, rows[-1], then.deployment, then.usd_per_hour))


def bears(plan: Plan, bench: Bench, workload: Workload, most: float) -> float:
    """The load multiple from 1 to ``most`` that the chosen fleet bears with the spares and certainty asked."""
    low, high = 1.0, most
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        log = scale_load(workload, middle, seed=0)
        if judge(plan.chosen.deployment, bench, log, plan.slo).candidate.feasible:
            low = middle
        else:
            high = middle
    return low


def switch(now: Deployment, stay: Month, then: Deployment, usd_per_hour: float) -> str:
    """Whether to stay with the shape of today, in words."""
    same = (now.accelerator.name, now.tp, now.weights, now.kv) == (
        then.accelerator.name,
        then.tp,
        then.weights,
        then.kv,
    )
    if same:
        return f"stay: {then.label} is still the cheapest, {per_hour(usd_per_hour)}"
    if stay.replicas is None:
        return f"switch: no number of replicas of today's shape holds; {then.label} does for {per_hour(usd_per_hour)}"
    saved = stay.usd_per_hour - usd_per_hour
    if saved <= 0.005:
        return f"stay: {then.label} is no cheaper than {stay.replicas} replicas of today's shape"
    less = f"{per_hour(saved)} less than {stay.replicas} replicas of today's shape"
    return f"switch: {then.label} for {per_hour(usd_per_hour)}, {less}"
