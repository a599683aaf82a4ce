"""Several models on accelerators that are scarce together: a plan for each, the sum the least that can be had.

Each model's traffic is searched on its own, once for every accelerator it could get, and the cheapest choices are put
together under the numbers that exist of each. Models share no replica: one that serves two is another deployment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gambrel.core.errors import InfeasiblePlan
from gambrel.plan.search import search

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gambrel.core.deployment import Deployment
    from gambrel.core.model import Model
    from gambrel.core.plan import Candidate
    from gambrel.core.slo import SLO
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload
    from gambrel.plan.search import Pool
    from gambrel.plan.space import Space

__all__ = ["Service", "Together", "plan_together"]


@dataclass(frozen=True)
class Service:
    """One model with its traffic and its objectives."""

    model: Model
    workload: Workload
    slo: SLO


@dataclass(frozen=True)
class Together:
    """A candidate for each service, in their order, and what all of it costs; ``used`` accelerators by id."""

    chosen: tuple[Candidate, ...]
    usd_per_hour: float
    used: Mapping[str, int]


def plan_together(
    services: Sequence[Service],
    space: Space,
    pricer: Callable[[Deployment], CostModel],
    pool: Pool | None = None,
) -> Together:
    """The cheapest fleets, one a service, that hold and together need no more than ``space`` says can be had.

    Every service's best on each accelerator stands for it; ``available`` is shared, ``max_gpus`` counts all together.

    Raises:
        InfeasiblePlan: a service holds nowhere, or all together need more than there is.
    """
    offers = []
    for service in services:
        best: dict[str, Candidate] = {}
        for accelerator in space.accelerators:  # each on its own: its best, whatever is cheaper elsewhere
            alone = replace(space, accelerators=(accelerator,))
            found = search(service.model, service.workload, service.slo, alone, pricer, pool=pool).feasible
            if found:
                best[accelerator.id] = found[0].candidate
        if not best:
            raise InfeasiblePlan(f"{service.model.name}: no accelerator of the search holds its objectives alone")
        offers.append(sorted(best.values(), key=lambda c: (c.usd_per_hour, c.deployment.label)))
    chosen = cheapest(offers, space)
    if chosen is None:
        asked = ", ".join(f"{s.model.name} {o[0].deployment.label}" for s, o in zip(services, offers, strict=True))
        raise InfeasiblePlan(f"what can be had is too little for all: the cheapest alone are {asked}")
    return Together(chosen, math.fsum(c.usd_per_hour for c in chosen), used(chosen))


def cheapest(offers: Sequence[Sequence[Candidate]], space: Space) -> tuple[Candidate, ...] | None:
    """One candidate of each list, least in all, within what can be had; by branch and bound, lists cheapest first."""
    least = [0.0]  # the least that the services from the end on cost, whatever is left of anything
    for choices in reversed(offers):
        least.append(least[-1] + choices[0].usd_per_hour)
    best: tuple[float, tuple[Candidate, ...] | None] = (math.inf, None)

    def extend(taken: tuple[Candidate, ...], usd: float) -> None:
        nonlocal best
        if len(taken) == len(offers):
            best = (usd, taken)
            return
        for candidate in offers[len(taken)]:
            total = usd + candidate.usd_per_hour
            if total + least[len(offers) - len(taken) - 1] >= best[0]:
                break  # the rest of the list is dearer still
            if fits((*taken, candidate), space):
                extend((*taken, candidate), total)

    extend((), 0.0)
    return best[1]


def used(chosen: Sequence[Candidate]) -> dict[str, int]:
    """Accelerators in all, by id."""
    found: dict[str, int] = {}
    for candidate in chosen:
        d = candidate.deployment
        found[d.accelerator.id] = found.get(d.accelerator.id, 0) + d.num_gpus
    return found


def fits(chosen: Sequence[Candidate], space: Space) -> bool:
    """Whether so many can be had, by id, by name over all offers of a card, and in all."""
    by_id = used(chosen)
    by_name: dict[str, int] = {}
    for accelerator in space.accelerators:
        by_name[accelerator.name] = by_name.get(accelerator.name, 0) + by_id.get(accelerator.id, 0)
    counts = by_name | by_id
    return sum(by_id.values()) <= space.max_gpus and all(counts.get(k, 0) <= n for k, n in space.available.items())
