"""What a search is asked and what its tasks find: the two things that travel to whoever runs them, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from gambrel.core.errors import DeploymentError
from gambrel.plan.beginnings import Beginnings
from gambrel.plan.screen import Demand
from gambrel.plan.space import shape_of
from gambrel.plan.trial import Outcome, loss, rank
from gambrel.traffic import scale_load

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.deployment import Deployment
    from gambrel.core.model import Model
    from gambrel.core.plan import Candidate, FrontPoint
    from gambrel.core.slo import SLO
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload
    from gambrel.plan.space import Space

__all__ = ["Best", "Question", "Search", "price_of"]

LADDER = (1.25, 1.5, 2.0)  # load multiples at which settings of one price are told apart

Best = tuple[float, int]
"""Dollars per hour and loss of precision of the cheapest that holds; infinite dollars where nothing does."""


@dataclass
class Search:
    """What the search found: the best outcome of every shape that was simulated, and the rest with their reasons.

    ``tried`` is every deployment that was simulated and holds, whether or not it was the best of its shape.
    """

    trials: list[Outcome] = field(default_factory=list)
    ruled_out: list[Candidate] = field(default_factory=list)
    tried: list[FrontPoint] = field(default_factory=list)
    num_simulated: int = 0
    num_considered: int = 0

    @property
    def feasible(self) -> list[Outcome]:
        """Outcomes that meet every objective, best first."""
        return sorted((t for t in self.trials if t.candidate.feasible), key=rank)

    @property
    def best(self) -> Best:
        """The cheapest that holds."""
        found = self.feasible
        return price_of(found[0]) if found else (math.inf, 0)

    def add(self, found: Search) -> None:
        """Take in what a task found; a shape's outcome gives way to a better one of the same shape."""
        for outcome in found.trials:
            shape = shape_of(outcome.candidate.deployment)
            known = next((t for t in self.trials if shape_of(t.candidate.deployment) == shape), None)
            if known is not None and rank(known) <= rank(outcome) and known.candidate.feasible:
                continue
            self.trials = [t for t in self.trials if t is not known] + [outcome]
            self.ruled_out = [c for c in self.ruled_out if shape_of(c.deployment) != shape]
        self.ruled_out += found.ruled_out
        self.tried += found.tried
        self.num_simulated += found.num_simulated
        self.num_considered += found.num_considered


@dataclass(frozen=True)
class Question:
    """What is asked, whole: a worker needs nothing else; ``pricer`` makes the cost model of a deployment."""

    model: Model
    workload: Workload
    slo: SLO
    space: Space
    pricer: Callable[[Deployment], CostModel]

    @cached_property
    def demand(self) -> Demand:
        """The log summed up for the bounds."""
        return Demand.of(self.workload)

    @cached_property
    def beginnings(self) -> Beginnings:
        """The log's beginnings."""
        return Beginnings.of(self.workload, self.slo)

    @cached_property
    def ladder(self) -> tuple[Workload, ...]:
        """The log under more load."""
        return tuple(scale_load(self.workload, load, seed=0) for load in LADDER)

    def groups(self) -> dict[str, list[Deployment]]:
        """The shapes by accelerator and offer.

        Raises:
            DeploymentError: the space holds no shape that the model can take.
        """
        found: dict[str, list[Deployment]] = {}
        for deployment in self.space.shapes(self.model):
            found.setdefault(deployment.accelerator.id, []).append(deployment)
        if not found:
            raise DeploymentError(
                f"nothing to search: no accelerator and tensor-parallel degree of {list(self.space.tp)} suits "
                f"{self.model.name} ({self.model.num_heads} attention heads)"
            )
        return found


def price_of(outcome: Outcome) -> Best:
    """Dollars per hour, rounded as they are compared, and loss of precision."""
    return round(outcome.candidate.usd_per_hour, 6), loss(outcome.candidate.deployment)
