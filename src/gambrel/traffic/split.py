"""One replica's share of a traffic too large to hold: each replica's requests on their own, from a seed of their own.

A router that looks at nothing splits arrivals beforehand, so what each replica gets can be drawn alone:

- ``random``: each request goes to any replica with equal chance. The parts of a Poisson process are independent Poisson
  processes, so drawing them apart *is* drawing the whole. Any stream of many independent clients comes near it.
- ``round_robin``: each R-th request of a Poisson process. A replica's gaps are sums of R exponential ones (Erlang, CV
  1 / sqrt(R)), its first arrival the sum of as many as its number; drawn so, each replica has exactly its law. Replicas
  are drawn apart, which they are not (their turns interlock): figures pooled over replicas have the right
  expectation, those of the whole fleet at one moment (its total in flight) do not have the right spread.

With turns above 1 each arrival begins a conversation, which stays with its replica: sticky sessions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.core.workload import Workload
from gambrel.traffic.sessions import converse

if TYPE_CHECKING:
    from gambrel.core.step import Floats
    from gambrel.traffic.rates import RateSeries
    from gambrel.traffic.synthetic import Lengths

__all__ = ["SPLITS", "Split"]

SPLITS = ("random", "round_robin")


@dataclass(frozen=True)
class Split:
    """The requests of replica k of ``replicas``, by calling it: always the same for the same seed.

    ``rates``: of the whole fleet, of requests, or of conversations where ``turns`` is above 1 (then ``think_s``,
    ``system_tokens`` and ``granule`` are as in :func:`gambrel.traffic.conversations`).
    """

    rates: RateSeries
    lengths: Lengths
    replicas: int
    seed: int = 0
    rule: str = "random"
    turns: float = 1.0
    think_s: float = 0.0
    system_tokens: int = 0
    granule: int = 16

    def __post_init__(self) -> None:
        if self.rule not in SPLITS:
            raise WorkloadError(f"unknown split {self.rule!r}; known: {', '.join(SPLITS)}")
        if self.replicas < 1:
            raise WorkloadError(f"a split needs at least 1 replica, got {self.replicas}")

    def __call__(self, replica: int) -> Workload | None:
        """The requests of one replica; None where it has none."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(replica,)))
        times = self._arrivals(rng, replica)
        if len(times) == 0:
            return None
        name = f"replica {replica} of {self.replicas}"
        if self.turns > 1.0:
            return converse(
                rng, times, self.lengths, self.turns, self.think_s, system_tokens=self.system_tokens,
                granule=self.granule, name=name,
            )  # fmt: skip
        prompt, output = self.lengths.draw(rng, len(times))
        return Workload(times, prompt, output, name=name, source=f"{self.rates.name}, {self.rule} split")

    def _arrivals(self, rng: np.random.Generator, replica: int) -> Floats:
        part = self.rates.scaled(1.0 / self.replicas)
        if self.rule == "random":
            return part.arrivals(rng)
        total, r = part.num_requests, self.replicas
        first = rng.gamma(replica + 1.0) / r
        more = math.ceil(total + 4.0 * math.sqrt(total / r) + 8)
        return part.at(np.concatenate([[first], first + np.cumsum(rng.gamma(r, 1.0 / r, more))]))
