"""What happened: one row a request, whoever made it (simulated, measured, logged, imported).

Percentiles, SLO checks, plots and residuals are written once, against this table.
Definitions, as vLLM's own benchmark has them: TTFT is first token minus arrival (queueing included); E2E is last
token minus arrival; TPOT is (last - first) / (output tokens - 1), undefined for one-token answers; ITL is the
gap between two tokens of one request, pooled over all requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gambrel.core.step import CAUSES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints

__all__ = ["PERCENTILES", "Distribution", "Histogram", "PoolUse", "Run", "Series"]

PERCENTILES = (50.0, 90.0, 95.0, 99.0)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and percentiles of a quantity in SI units; NaN where nothing was observed."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    count: int

    @classmethod
    def of(cls, values: Floats) -> Distribution:
        """Summarise; linear interpolation between order statistics, as numpy does by default."""
        values = values[np.isfinite(values)]
        if len(values) == 0:
            nan = float("nan")
            return cls(nan, nan, nan, nan, nan, nan, 0)
        p50, p90, p95, p99 = (float(x) for x in np.percentile(values, PERCENTILES))
        return cls(float(values.mean()), p50, p90, p95, p99, float(values.max()), len(values))

    def percentile(self, name: str) -> float:
        """The statistic called ``mean``, ``p50``, ``p90``, ``p95``, ``p99`` or ``max``."""
        return float(getattr(self, name))


@dataclass(frozen=True, slots=True)
class Histogram:
    """Weighted counts in logarithmic buckets, 32 equal parts to an octave: exact to a bucket's width, at most 3.1 %.

    ``edges`` float64[k + 1] ascending, ``counts`` int64[k]; ``total`` is the exact weighted sum of the values.
    """

    edges: Floats
    counts: Ints
    total: float

    @classmethod
    def of(cls, values: Floats, weights: Ints | None = None) -> Histogram:
        """Sort finite values of at least 0 into buckets; 0 and what is below a nanosecond goes to the lowest.

        ``values`` float64[n]; ``weights`` int64[n], 1 each by default.
        """
        keep = np.isfinite(values)
        kept = values[keep]
        weight = np.ones(len(kept), np.int64) if weights is None else weights[keep]
        if len(kept) == 0:
            return cls(np.array([1e-9, 2e-9]), np.zeros(1, np.int64), 0.0)
        bucket = np.floor(32.0 * np.log2(np.maximum(kept, 1e-9))).astype(np.int64)
        low, high = int(bucket.min()), int(bucket.max())
        counts = np.bincount(bucket - low, weight, high - low + 1).astype(np.int64)
        return cls(2.0 ** (np.arange(low, high + 2) / 32.0), counts, float((kept * weight).sum()))

    def distribution(self) -> Distribution:
        """Mean exact, percentiles interpolated within their bucket."""
        n = int(self.counts.sum())
        if n == 0:
            return Distribution.of(np.empty(0))
        cumulative = np.cumsum(self.counts)
        found = []
        for p in (*PERCENTILES, 100.0):
            rank = p / 100.0 * n
            i = int(np.searchsorted(cumulative, rank, side="left"))
            i = min(i, len(self.counts) - 1)
            before = float(cumulative[i - 1]) if i else 0.0
            share = (rank - before) / float(self.counts[i]) if self.counts[i] else 1.0
            low, high = float(self.edges[i]), float(self.edges[i + 1])
            found.append(low + (high - low) * min(max(share, 0.0), 1.0))
        return Distribution(self.total / n, found[0], found[1], found[2], found[3], found[4], n)


@dataclass(frozen=True, slots=True)
class Series:
    """Batch size and KV usage over time: samples of (time, running, waiting, KV share used), one replica or summed."""

    time_s: Floats
    running: Floats
    waiting: Floats
    kv_usage: Floats


@dataclass(frozen=True, slots=True)
class PoolUse:
    """What one pool of workers did, ``prefill`` or ``decode``: the figures of :class:`Run`, of these replicas alone.

    ``gpus`` accelerators make one of its replicas.
    """

    name: str
    replicas: int
    busy_s: float
    num_steps: int
    batch_mean: float
    batch_max: int
    kv_usage_mean: float
    kv_usage_max: float
    gpus: int = 1
    prefill_s: float = 0.0


@dataclass(frozen=True)
class Run:
    """Per-request times and what the replicas did meanwhile, which nobody outside the engine sees: then it is left out.

    Attributes (arrays have one row a request, in the workload's order, which is that of arrival unless a closed loop
    made the arrivals; seconds on the workload's clock):
        arrival_s, scheduled_s, first_token_s, last_token_s: NaN where a request failed or never got there.
        prompt_tokens, output_tokens: int64.
        preemptions: int64 or int32 times a request was evicted and recomputed.
        paused_s: float32[n, 2] seconds lost to that before the first token (from the first eviction to that token) and
            after it (gaps between tokens in which it was evicted and recomputed), or None where nobody counted.
        cached_tokens: int64 or int32 prompt tokens found in a prefix cache when first scheduled, or None where nobody
            counted.
        replica: int64 or int32 which replica served it.
        itl: pooled gaps between tokens.
        busy_s: seconds of engine steps, summed over replicas.
        bound_by_s: float64[5] busy seconds by binding cause, in the order of ``CAUSES``.
        part_s: float64[5] seconds of each cause summed over steps (they overlap, so they exceed ``busy_s``).
        prefill_s: busy seconds that prompt tokens add, for pricing input: each step's time beyond what its decoders
            alone would take.
        num_steps: engine iterations.
        batch_mean, batch_max: sequences per step, weighted by step time, and the largest.
        worked_until_s: when the last engine step ended, or None where nobody knows.
        kv_usage_mean, kv_usage_max: share of KV blocks in use, likewise.
        kind: int64 the kind of traffic of each request, a place in ``kinds``, or None where there is one kind.
        origin: ``simulated``, ``measured``, ``logged`` or ``imported``.
        prefilled_s, transferred_s: where prompts have workers of their own, when the prompt was computed and when the
            decode worker had all of it; else None.
        pools: what each of the two pools did; empty where there is one.
    """

    arrival_s: Floats
    scheduled_s: Floats
    first_token_s: Floats
    last_token_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    preemptions: Ints | npt.NDArray[np.int32]
    replica: Ints | npt.NDArray[np.int32]
    itl: Histogram
    busy_s: float = 0.0
    bound_by_s: Floats = field(default_factory=lambda: np.zeros(len(CAUSES)))
    part_s: Floats = field(default_factory=lambda: np.zeros(len(CAUSES)))
    prefill_s: float = 0.0
    num_steps: int = 0
    batch_mean: float = float("nan")
    batch_max: int = 0
    kv_usage_mean: float = float("nan")
    kv_usage_max: float = float("nan")
    cached_tokens: Ints | npt.NDArray[np.int32] | None = None
    paused_s: npt.NDArray[np.float32] | None = None
    worked_until_s: float | None = None
    replicas: int = 1
    series: Series | None = None
    origin: str = "simulated"
    basis: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)
    prefilled_s: Floats | None = None
    transferred_s: Floats | None = None
    pools: tuple[PoolUse, ...] = ()
    kind: Ints | None = None
    kinds: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.arrival_s)

    def of_kind(self, name: str) -> npt.NDArray[np.bool_]:
        """Which requests are of a kind of traffic: bool[n]; KeyError where the run does not know it."""
        if self.kind is None or name not in self.kinds:
            raise KeyError(name)
        return np.asarray(self.kind == self.kinds.index(name))

    @cached_property
    def ttft_s(self) -> Floats:
        """Time to first token per request, queueing included."""
        return self.first_token_s - self.arrival_s

    @cached_property
    def e2e_s(self) -> Floats:
        """Arrival to last token per request."""
        return self.last_token_s - self.arrival_s

    @cached_property
    def queue_s(self) -> Floats:
        """Arrival to first scheduled per request."""
        return self.scheduled_s - self.arrival_s

    @cached_property
    def tpot_s(self) -> Floats:
        """Time per output token after the first; NaN for one-token answers."""
        gaps = (self.output_tokens - 1).astype(np.float64)
        gaps[gaps < 1] = np.nan
        return (self.last_token_s - self.first_token_s) / gaps

    def phases_s(self) -> dict[str, Floats]:
        """The time of each request by phase: queue, prefill, decode and preempted, float64[n] each, NaN if unfinished.

        They add up to its E2E. Queue is arrival to first scheduled, prefill from there to the first token (coming over
        to a decode worker included), decode to the last; what an eviction cost, waiting and computing again until the
        next token, is taken out of both and is ``preempted``.
        """
        done = np.where(np.isfinite(self.last_token_s), 0.0, np.nan)
        paused = np.zeros((len(self), 2)) if self.paused_s is None else self.paused_s.astype(np.float64)
        return {
            "queue": self.queue_s + done,
            "prefill": self.first_token_s - self.scheduled_s - paused[:, 0] + done,
            "decode": self.last_token_s - self.first_token_s - paused[:, 1],
            "preempted": paused.sum(axis=1) + done,
        }

    def time_in(self) -> dict[str, float]:
        """Share of all requests' E2E by phase: where the time of the average request went; NaN where none ended."""
        sums = {name: float(np.nansum(seconds)) for name, seconds in self.phases_s().items()}
        total = sum(sums.values())
        return {name: seconds / total if total > 0 else float("nan") for name, seconds in sums.items()}

    @cached_property
    def _distributions(self) -> dict[str, Distribution]:
        return {}

    def distribution(self, metric: str) -> Distribution:
        """The distribution of ``ttft``, ``tpot``, ``itl``, ``e2e`` or ``queue`` in seconds; KeyError for others.

        Requests that a simulated client dropped have no latency (gaps are pooled, so theirs stay). Made when first
        asked for: sorting every metric of every run would be a third of a search.
        """
        known = self._distributions
        if metric not in known:
            if metric == "itl":
                known[metric] = self.itl.distribution()
            else:
                columns = {"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s", "queue": "queue_s"}
                values = getattr(self, columns[metric])
                if self.origin == "simulated" and self.num_unfinished:
                    values = values[np.isfinite(self.last_token_s)]
                known[metric] = Distribution.of(values)
        return known[metric]

    @property
    def makespan_s(self) -> float:
        """First arrival to last token, or to the end of the work for requests that were dropped."""
        last_s = float(np.nanmax(self.last_token_s, initial=0.0))
        if self.worked_until_s is not None and self.num_unfinished:
            last_s = max(last_s, self.worked_until_s)
        return last_s - float(np.nanmin(self.arrival_s))

    @property
    def output_tokens_per_s(self) -> float:
        """Generated tokens over the makespan, all replicas."""
        done = np.isfinite(self.last_token_s)
        return float(self.output_tokens[done].sum()) / self.makespan_s

    @property
    def num_preemptions(self) -> int:
        """Evictions in all."""
        return int(self.preemptions.sum())

    @property
    def num_unfinished(self) -> int:
        """Requests without a last token: failed, or dropped by a client that gave up."""
        return int(np.count_nonzero(~np.isfinite(self.last_token_s)))

    @property
    def hit_ratio(self) -> float:
        """Share of prompt tokens found in a prefix cache, vLLM's prefix cache hits over queries; NaN if uncounted."""
        if self.cached_tokens is None:
            return float("nan")
        return float(self.cached_tokens.sum()) / float(self.prompt_tokens.sum())

    @property
    def gpu_busy_s(self) -> float:
        """Busy seconds of accelerators where there are pools, else of replicas, which are all alike."""
        return sum(p.busy_s * p.gpus for p in self.pools) if self.pools else self.busy_s

    @property
    def gpu_prefill_s(self) -> float:
        """What prompt tokens add to them."""
        return sum(p.prefill_s * p.gpus for p in self.pools) if self.pools else self.prefill_s

    @property
    def utilisation(self) -> float:
        """Share of the makespan that replicas spent in steps; of pools, that their accelerators did."""
        count = sum(p.replicas * p.gpus for p in self.pools) if self.pools else self.replicas
        return self.gpu_busy_s / (self.makespan_s * count) if self.makespan_s > 0 else 0.0

    @property
    def idle_share(self) -> float:
        """Share of the makespan in which a replica had nothing to do."""
        return 1.0 - self.utilisation

    def time_bound_by(self) -> dict[str, float]:
        """Share of busy time by binding cause."""
        total = float(self.bound_by_s.sum()) or 1.0
        return {cause: float(s) / total for cause, s in zip(CAUSES, self.bound_by_s, strict=True)}
