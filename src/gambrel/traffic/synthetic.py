"""Workloads made from figures, for whoever has no log yet.

Lengths follow stated quantiles; arrivals are a renewal process of stated rate and burstiness; prompt and output
length are joined by a Gaussian copula, so that their rank correlation is what was asked for. The same seed gives
the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.core.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints

__all__ = ["ARRIVALS", "MAX_REQUESTS", "Lengths", "Quantiles", "from_users", "gaps", "synthesise"]

ARRIVALS = ("poisson", "gamma", "weibull", "constant")
EXTREME = 1e-4
"""Probability given to each end: the stated minimum and maximum are met about once in ten thousand requests."""
_MAX_TOKENS = 2**31 - 1
MAX_REQUESTS = 100_000_000


@dataclass(frozen=True)
class Quantiles:
    """Token lengths by probability, ascending: ``((0.0, 2), (0.5, 1020), (0.9, 2735), (1.0, 14050))``.

    Between the points the logarithm of the length is linear in the normal score of the probability, so that two
    points describe exactly a log-normal and many follow any curve without overshoot. Beyond the outermost points
    the nearest line goes on as far as the probabilities :data:`EXTREME` and 1 - :data:`EXTREME`, and lengths stay
    there; probabilities 0 and 1 stand for those two. One point means a constant.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise WorkloadError("quantiles: no points; one (probability, tokens) is the least")
        for probability, tokens in self.points:
            if not 0.0 <= probability <= 1.0:
                raise WorkloadError(f"quantiles: probability must lie in 0 to 1, got {probability!r}")
            if not 1.0 <= tokens <= _MAX_TOKENS:
                raise WorkloadError(f"quantiles: tokens must be at least 1 and below 2**31, got {tokens!r}")
        for (p, a), (q, b) in zip(self.points, self.points[1:], strict=False):
            if q <= p or b < a:
                raise WorkloadError(
                    f"quantiles: must rise; {a:g} tokens at {p:g} are followed by {b:g} tokens at {q:g}"
                )

    @classmethod
    def of(cls, points: Mapping[float, float] | float) -> Quantiles:
        """From ``{0.5: 1020, 0.9: 2735}`` in any order, or a constant length."""
        if isinstance(points, (int, float)):
            return cls(((0.5, float(points)),))
        return cls(tuple(sorted((float(p), float(t)) for p, t in points.items())))

    def lengths(self, scores: Floats) -> Ints:
        """int64[n] lengths at normal scores float64[n]."""
        if len(self.points) == 1:
            return np.full(len(scores), round(self.points[0][1]), np.int64)
        knots, logs = self._knots()
        found = np.rint(np.exp(np.minimum(np.interp(scores, knots, logs), math.log(_MAX_TOKENS))))
        return np.asarray(np.maximum(found, 1.0), np.int64)

    def _knots(self) -> tuple[list[float], list[float]]:
        """Normal scores and logarithms of tokens, both ends included."""
        inverse = NormalDist().inv_cdf
        knots: list[float] = []
        logs: list[float] = []
        for probability, tokens in self.points:
            score = inverse(min(max(probability, EXTREME), 1.0 - EXTREME))
            if knots and score <= knots[-1]:  # probabilities beyond the extremes: the outer one counts
                if probability > 0.5:
                    logs[-1] = math.log(tokens)
                continue
            knots.append(score)
            logs.append(math.log(tokens))
        if len(knots) > 1:
            low, high = inverse(EXTREME), inverse(1.0 - EXTREME)
            first = (logs[1] - logs[0]) / (knots[1] - knots[0])
            last = (logs[-1] - logs[-2]) / (knots[-1] - knots[-2])
            logs = [logs[0] + first * (low - knots[0]), *logs, logs[-1] + last * (high - knots[-1])]
            knots = [low - 1e-9, *knots, high + 1e-9]
        return knots, logs

    def at(self, probability: float) -> float:
        """The length at a probability."""
        score = NormalDist().inv_cdf(min(max(probability, EXTREME), 1.0 - EXTREME))
        return float(self.lengths(np.array([score]))[0])

    @property
    def mean(self) -> float:
        """Mean length, by the midpoints of 100,000 equal slices of probability."""
        slices = (np.arange(100_000) + 0.5) / 100_000
        return float(self.lengths(_scores(slices)).mean())


@dataclass(frozen=True)
class Lengths:
    """Prompt and output lengths with their Spearman rank correlation, -1 to 1; ``source``: where they come from."""

    prompt: Quantiles
    output: Quantiles
    correlation: float = 0.0
    source: str = "stated lengths"

    def __post_init__(self) -> None:
        if not -1.0 <= self.correlation <= 1.0:
            raise WorkloadError(f"{self.source}: correlation must lie in -1 to 1, got {self.correlation!r}")

    def scores(self, rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
        """Normal scores of ``n`` prompts and answers, float64[n] each, joined as asked for."""
        first = rng.standard_normal(n)
        second = rng.standard_normal(n)
        pearson = 2.0 * math.sin(math.pi * self.correlation / 6.0)  # of the scores, for the rank correlation asked for
        return first, pearson * first + math.sqrt(max(1.0 - pearson * pearson, 0.0)) * second

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Ints, Ints]:
        """``n`` prompt and output lengths, int64[n] each."""
        first, second = self.scores(rng, n)
        return self.prompt.lengths(first), self.output.lengths(second)


def _scores(probabilities: Floats) -> Floats:
    """Normal scores, interpolated in a table fine enough for means (error below 1e-4)."""
    grid = np.linspace(-5.0, 5.0, 4001)
    normal = NormalDist()
    return np.interp(probabilities, [normal.cdf(float(z)) for z in grid], grid)


def synthesise(
    num_requests: int,
    rate: float,
    prompt: Quantiles,
    output: Quantiles,
    seed: int = 0,
    *,
    arrival: str = "poisson",
    cv: float = 1.0,
    correlation: float = 0.0,
    name: str = "synthetic",
    source: str = "",
) -> Workload:
    """``num_requests`` requests at ``rate`` a second.

    Args:
        num_requests: at least 1.
        rate: mean arrivals per second, above 0.
        prompt: lengths in tokens.
        output: lengths in tokens.
        seed: the same seed gives the same bytes.
        arrival: ``poisson``, ``gamma`` or ``weibull`` (gaps with coefficient of variation ``cv``) or ``constant``.
        cv: burstiness for ``gamma`` and ``weibull``; anything but 1 with ``poisson`` means ``gamma``.
        correlation: Spearman rank correlation of prompt and output length, -1 to 1.
        name: what the workload is called.
        source: where the figures come from.

    Raises:
        WorkloadError: a figure out of its range.
    """
    if not 1 <= num_requests <= MAX_REQUESTS:
        raise WorkloadError(f"{name}: number of requests must be 1 to {MAX_REQUESTS:,}, got {num_requests!r}")
    lengths = Lengths(prompt, output, correlation, name)
    rng = np.random.default_rng(seed)
    between = gaps(rng, num_requests, rate, arrival, cv, name)
    prompts, outputs = lengths.draw(rng, num_requests)
    return Workload(
        arrival_s=np.cumsum(between) - between[0],
        prompt_tokens=prompts,
        output_tokens=outputs,
        name=name,
        source=source or f"synthetic: {rate:g}/s, {arrival}, cv {cv:g}, seed {seed}",
    )


def gaps(rng: np.random.Generator, n: int, rate: float, arrival: str, cv: float, name: str) -> Floats:
    """``n`` gaps between arrivals in seconds, float64[n]: mean 1 / ``rate``, coefficient of variation ``cv``.

    Raises:
        WorkloadError: a figure out of its range, or an unknown process.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise WorkloadError(f"{name}: rate must be above 0 requests a second, got {rate!r}")
    if arrival not in ARRIVALS:
        raise WorkloadError(f"{name}: unknown arrival process {arrival!r}; known: {', '.join(ARRIVALS)}")
    if not (math.isfinite(cv) and 0 <= cv <= 100):
        raise WorkloadError(f"{name}: cv must lie in 0 to 100, got {cv!r}")
    if arrival == "constant" or cv == 0:
        return np.full(n, 1.0 / rate)
    if arrival == "poisson" and cv == 1.0:
        return rng.exponential(1.0 / rate, n)
    if arrival == "weibull":
        k = _weibull_shape(cv)
        return np.asarray(rng.weibull(k, n) / (rate * math.gamma(1.0 + 1.0 / k)), np.float64)
    shape = 1.0 / (cv * cv)
    return rng.gamma(shape, 1.0 / (rate * shape), n)


@cache
def _weibull_shape(cv: float) -> float:
    """The shape of a Weibull distribution with this coefficient of variation, by bisection; 1 is exponential."""
    low, high = math.log(0.05), math.log(200.0)
    for _ in range(80):
        middle = 0.5 * (low + high)
        k = math.exp(middle)
        squared = math.exp(math.lgamma(1.0 + 2.0 / k) - 2.0 * math.lgamma(1.0 + 1.0 / k)) - 1.0
        low, high = (middle, high) if squared > cv * cv else (low, middle)
    return math.exp(0.5 * (low + high))


def from_users(
    users: int,
    prompt: Quantiles | float,
    output: Quantiles | float,
    think_s: float,
    service_s: float,
    n: int | None = None,
    seed: int = 0,
) -> Workload:
    """The requests of ``users`` people who each wait for their answer, think, and ask again.

    Real users are a closed loop: whoever waits does not ask. Users who never think can be closed in the engine
    (:func:`gambrel.traffic.closed_loop`); for those who do, the loop is closed around it with open arrivals: each
    user asks every ``service_s`` plus a thinking time (exponential, mean ``think_s``), where ``service_s`` is the
    caller's estimate of a request's whole latency. Then no user has two requests in flight as long as the estimate
    holds, at most ``users`` requests overlap, and their rate is users / (think_s + service_s), the closed-loop law
    X = N / (R + Z). Simulate, put the simulated mean latency in place of ``service_s``, and repeat until both agree.
    First requests are staggered evenly over one cycle, so the worst case of everybody at once is not in here.

    Args:
        users: people, at least 1; each is a session of the workload.
        prompt: prompt tokens, constant or by quantile.
        output: output tokens, likewise.
        think_s: mean seconds between an answer and the next question; 0 keeps every user always waiting.
        service_s: seconds a request takes, estimated.
        n: requests in all; 20 cycles and at least 500 by default.
        seed: the same seed gives the same bytes.

    Raises:
        WorkloadError: a figure out of its range.
    """
    if not 1 <= users <= 1_000_000:
        raise WorkloadError(f"users must be 1 to 1,000,000, got {users!r}")
    if not (math.isfinite(think_s) and think_s >= 0):
        raise WorkloadError(f"think_s must be at least 0 seconds, got {think_s!r}")
    if not (math.isfinite(service_s) and service_s > 0):
        raise WorkloadError(f"service_s must be above 0 seconds, got {service_s!r}")
    if n is None:
        n = max(500, 20 * users)
    if not 1 <= n <= MAX_REQUESTS:
        raise WorkloadError(f"number of requests must be 1 to {MAX_REQUESTS:,}, got {n!r}")
    prompt = prompt if isinstance(prompt, Quantiles) else Quantiles.of(prompt)
    output = output if isinstance(output, Quantiles) else Quantiles.of(output)
    rng = np.random.default_rng(seed)
    cycle = think_s + service_s
    # Thinking varies, so the fastest user asks more often than the mean; draw rounds until n are surely covered.
    rounds = math.ceil(n / users) + 1
    while True:
        think = rng.exponential(think_s, (users, rounds)) if think_s > 0 else np.zeros((users, rounds))
        phase = cycle * np.arange(users)[:, None] / users
        times = phase + np.concatenate([np.zeros((users, 1)), np.cumsum(think + service_s, axis=1)], axis=1)[:, :-1]
        horizon = float((times[:, -1] + service_s).min())  # until here every user's requests are all drawn
        if int((times < horizon).sum()) >= n:
            break
        rounds *= 2
    order = np.argsort(times, axis=None, kind="stable")[:n]
    arrival = times.ravel()[order]
    return Workload(
        arrival_s=arrival - arrival[0],
        prompt_tokens=prompt.lengths(rng.standard_normal(n)),
        output_tokens=output.lengths(rng.standard_normal(n)),
        session=(order // rounds).astype(np.int64),
        name=f"{users} users",
        source=f"{users} users, thinking {think_s:g} s, answered in {service_s:g} s (estimate), seed {seed}",
    )
