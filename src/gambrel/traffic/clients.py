"""Traffic as the sum of its clients, as ServeGen describes it (Xiang et al., arXiv 2505.09999).

A service's traffic is a few heavy clients and many light ones. Each has a steady character: a share of the requests, a
burstiness (gamma or Weibull gaps), lengths of its own. A large pool of bursty clients looks almost Poisson, a small one
does not; and when a heavy client changes, so does the whole. So the sum is made client by client, not from averages.

A :class:`ClientPool` is drawn from figures, or taken from a log that says which client sent what.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.core.workload import Workload
from gambrel.traffic.synthetic import Lengths, Quantiles

if TYPE_CHECKING:
    from gambrel.core.step import Floats
    from gambrel.traffic.rates import RateSeries

__all__ = ["Client", "ClientPool"]

# What one day of m-large shows of its 88 clients (ServeGen data at alibaba/ServeGen commit f891d11, clients with 50
# requests and more; gaps within ten-minute windows of 20 requests and more): the logarithm of their rates has standard
# deviation 2.2 (25 clients send 90 %, the first 31 %), their CV has median 1.46 with 0.43 of its logarithm, and 0.42 of
# the logarithm of prompt lengths lies within a client where 1.28 lies in all, which leaves 0.89 of the variance between
# clients. DeepSeek-R1's hour has 23 clients, 1.7, 1.03, 0.51 and 0.94.
CLIENTS, RATE_SPREAD, CV_MEDIAN, CV_SPREAD, LENGTH_SHARE = 88, 2.2, 1.46, 0.43, 0.89
_CV_LIMITS = 0.3, 6.0
_LEAST = 50  # requests of a client from which a burstiness and quantiles are taken
_WINDOW_S, _WINDOW_LEAST = 600.0, 20  # windows in which burstiness is taken, as ServeGen's are
_PROBABILITIES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Client:
    """Who sends: a ``share`` of all requests, gaps of a ``family`` (``gamma``, ``weibull``) and ``cv``, and lengths."""

    share: float
    cv: float
    lengths: Lengths
    family: str = "gamma"


@dataclass(frozen=True)
class ClientPool:
    """All clients of a service, heaviest first; shares add up to 1."""

    clients: tuple[Client, ...]
    source: str = ""

    def __post_init__(self) -> None:
        total = math.fsum(c.share for c in self.clients)
        if not self.clients or not math.isclose(total, 1.0, rel_tol=1e-6) or min(c.share for c in self.clients) < 0:
            raise WorkloadError(f"{self.source or 'clients'}: shares must add up to 1, got {total:.6g}")

    def __len__(self) -> int:
        return len(self.clients)

    def heavy(self, share: float = 0.9) -> int:
        """How many of the heaviest clients send this share of the requests."""
        return int(np.searchsorted(np.cumsum([c.share for c in self.clients]), share - 1e-12)) + 1

    @classmethod
    def draw(
        cls, lengths: Lengths, num_clients: int = CLIENTS, seed: int = 0, *, rate_spread: float = RATE_SPREAD,
        cv: float = CV_MEDIAN, cv_spread: float = CV_SPREAD, length_share: float = LENGTH_SHARE, family: str = "gamma",
    ) -> ClientPool:  # fmt: skip
        """A pool from figures; defaults are those of a measured service (see the head of the module).

        Rates are log-normal quantiles, the same for every seed: ``rate_spread`` is the standard deviation of their
        logarithm, 0 makes all alike. CVs are log-normal around the median ``cv``. Each client's lengths lie around its
        own place in ``lengths``, which accounts for ``length_share`` of the variance of their normal scores; with few
        heavy clients the sum is not the curve of ``lengths`` but one of the many it could be.

        Raises:
            WorkloadError: a figure out of its range.
        """
        if num_clients < 1 or not 0 <= length_share <= 1 or min(rate_spread, cv_spread, cv) < 0:
            raise WorkloadError(
                "clients: at least 1, spreads and cv at least 0 and length_share within 0 to 1; got "
                f"{num_clients!r}, {rate_spread!r}, {cv_spread!r}, {cv!r}, {length_share!r}"
            )
        rng = np.random.default_rng(seed)
        normal = NormalDist()
        scores = np.array([normal.inv_cdf((k + 0.5) / num_clients) for k in reversed(range(num_clients))])
        rates = np.exp(rate_spread * scores)
        cvs = np.clip(cv * np.exp(cv_spread * rng.standard_normal(num_clients)), *_CV_LIMITS) if cv > 0 else scores * 0
        first, second = lengths.scores(rng, num_clients)
        between, within = math.sqrt(length_share), math.sqrt(1.0 - length_share)
        return cls(
            tuple(
                Client(
                    float(rate),
                    float(c),
                    Lengths(
                        _around(lengths.prompt, between * float(a), within),
                        _around(lengths.output, between * float(b), within),
                        lengths.correlation,
                        lengths.source,
                    ),
                    family,
                )
                for rate, c, a, b in zip(rates / rates.sum(), cvs, first, second, strict=True)
            ),
            f"{num_clients} clients, {lengths.source}, seed {seed}",
        )

    @classmethod
    def of(cls, workload: Workload, *, family: str = "gamma") -> ClientPool:
        """The clients of a log, by its session column: their shares, lengths and burstiness.

        Burstiness is the median CV over ten-minute windows. Clients with fewer than 50 requests share the lengths of
        all such clients together, at a CV of 1.

        Raises:
            WorkloadError: a log that does not say who sent what, or without arrival times.
        """
        if workload.session is None or not workload.has_arrivals:
            raise WorkloadError(f"{workload.source or workload.name}: clients need a session column and arrival times")
        _, client, counts = np.unique(workload.session, return_inverse=True, return_counts=True)
        light = np.flatnonzero(counts[client] < _LEAST)
        of_light = _lengths_of(workload.take(light)) if len(light) else None
        found = []
        for k in np.argsort(-counts, kind="stable"):
            share = float(counts[k] / len(workload))
            if counts[k] < _LEAST and of_light is not None:
                found.append(Client(share, 1.0, of_light, family))
            else:
                part = workload.take(np.flatnonzero(client == k))
                found.append(Client(share, _cv_of(part.arrival_s), _lengths_of(part), family))
        return cls(tuple(found), f"clients of {workload.source or workload.name}")

    def workload(self, rates: RateSeries, seed: int = 0, *, name: str = "clients") -> Workload:
        """The sum of all clients, each a renewal process at its share of ``rates``; ``session`` is the client.

        Raises:
            WorkloadError: no request by chance, or too many.
        """
        streams = np.random.SeedSequence(seed).spawn(len(self.clients))
        times, prompts, outputs = [], [], []
        for client, stream in zip(self.clients, streams, strict=True):
            rng = np.random.default_rng(stream)
            arrival = rates.scaled(client.share).arrivals(rng, arrival=client.family, cv=client.cv)
            prompt, output = client.lengths.draw(rng, len(arrival))
            times.append(arrival)
            prompts.append(prompt)
            outputs.append(output)
        arrival = np.concatenate(times)
        if len(arrival) == 0:
            raise WorkloadError(
                f"{name}: no request arrives in {rates.end_s:g} s at {rates.mean_rps:g}/s (seed {seed})"
            )
        order = np.argsort(arrival, kind="stable")
        who = np.repeat(np.arange(len(times)), [len(t) for t in times])
        return Workload(
            arrival[order],
            np.concatenate(prompts)[order],
            np.concatenate(outputs)[order],
            session=who[order],
            name=name,
            source=f"{self.source}; {rates.source or rates.name}, seed {seed}",
        )


def _around(lengths: Quantiles, centre: float, spread: float) -> Quantiles:
    """The curve of ``lengths`` at normal scores of this mean and standard deviation."""
    normal = NormalDist()
    scores = np.array([centre + spread * normal.inv_cdf(min(max(p, 1e-4), 1.0 - 1e-4)) for p in _PROBABILITIES])
    return Quantiles(tuple(zip(_PROBABILITIES, (float(x) for x in lengths.lengths(scores)), strict=True)))


def _lengths_of(part: Workload) -> Lengths:
    """Quantiles of a client's rows."""
    prompt, output = (
        Quantiles(tuple(zip(_PROBABILITIES, (float(x) for x in np.quantile(column, _PROBABILITIES)), strict=True)))
        for column in (part.prompt_tokens, part.output_tokens)
    )
    return Lengths(prompt, output, 0.0, part.source or part.name)


def _cv_of(arrival: Floats) -> float:
    """Median CV of gaps over windows with enough of them; 1 where there is none."""
    found = []
    for part in np.split(arrival, np.searchsorted(arrival, np.arange(_WINDOW_S, arrival[-1], _WINDOW_S))):
        gaps = np.diff(part)
        if len(part) >= _WINDOW_LEAST and gaps.mean() > 0:
            found.append(float(gaps.std() / gaps.mean()))
    return min(max(float(np.median(found)), _CV_LIMITS[0]), _CV_LIMITS[1]) if found else 1.0
