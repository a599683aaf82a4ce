"""A fleet too large to hold: replicas that do not touch, served one after the other, remembered as histograms.

A router that looks at nothing makes replicas independent, so each is replayed alone, on arrivals made for it when its
turn comes, and then forgotten but for counts: 100 million requests never exist at once. Threads share the work (the
kernels release the interpreter's lock), and counts do not depend on their number or order.

Percentiles come from logarithmic buckets, 32 to an octave as in the kernels, and are interpolated within one: off by a
bucket's width at most, 3.1 %. Means, shares of requests that meet the objectives, and all sums are exact.
"""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.core.run import Distribution, Histogram
from gambrel.core.slo import Verdict
from gambrel.core.step import CAUSES
from gambrel.engine.simulation import check_fits, replay, run_of
from gambrel.engine.state import BUCKET_BASE, BUCKET_SHIFT, NUM_BUCKETS, bucket_edges

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.run import Run
    from gambrel.core.slo import SLO
    from gambrel.core.step import Floats, StepTable
    from gambrel.core.workload import Ints, Workload
    from gambrel.engine.state import Limits

__all__ = ["METRICS", "Tally", "serve_shards"]

METRICS = ("ttft", "tpot", "itl", "e2e", "queue")
_SUMS = ("busy_s", "prefill_s", "batch_s", "used_s", "prompt_tokens", "output_tokens", "cached_tokens", "preemptions",
         "num_steps", "good")  # fmt: skip


@dataclass(frozen=True)
class Tally:
    """What some replicas did, summed; ``shards`` of ``asked`` were served.

    Attributes:
        counts: int64[NUM_BUCKETS] by metric; ``totals``: exact sums of the values, seconds.
        sums: of what the runs hold, by name; ``good``: requests that met every objective.
        bound_by_s: float64[5] busy seconds by binding cause.
        window_s: seconds of a window, from second 0 on.
        arrivals: int64[w] requests that arrived in each; ``in_flight`` float64[w]: mean of those in the system.
        ttft: int64[w, NUM_BUCKETS] TTFT of the requests that arrived in it.
        batch_max, kv_usage_max: the highest of any replica. ``last_s``: when the last request ended.
    """

    asked: int
    shards: int
    window_s: float
    counts: dict[str, Ints]
    totals: dict[str, float]
    sums: dict[str, float]
    bound_by_s: Floats
    arrivals: Ints
    in_flight: Floats
    ttft: Ints
    batch_max: int
    kv_usage_max: float
    last_s: float
    basis: str = ""
    _known: dict[str, Distribution] = field(default_factory=dict, repr=False)

    @property
    def num_requests(self) -> int:
        """Requests served."""
        return int(self.counts["e2e"].sum())

    @property
    def complete(self) -> bool:
        """Whether all replicas that were asked for have been served."""
        return self.shards == self.asked

    def distribution(self, metric: str) -> Distribution:
        """The distribution of ``ttft``, ``tpot``, ``itl``, ``e2e`` or ``queue`` in seconds; KeyError for others."""
        if metric not in self._known:
            self._known[metric] = _distribution(self.counts[metric], self.totals[metric])
        return self._known[metric]

    def check(self, slo: SLO) -> tuple[Verdict, ...]:
        """Every objective against the pooled distributions and the good requests; 0 where a statistic is undefined."""
        reached = [
            self.goodput if o.is_floor else self.distribution(o.metric).percentile(o.statistic) for o in slo.objectives
        ]
        return tuple(Verdict(o, 0.0 if np.isnan(v) else v) for o, v in zip(slo.objectives, reached, strict=True))

    @property
    def goodput(self) -> float:
        """Share of requests that met every objective, each on its own; 1 without objectives."""
        return self.sums["good"] / self.num_requests

    @property
    def utilisation(self) -> float:
        """Share of the time to the last request's end that replicas spent in steps."""
        return self.sums["busy_s"] / (self.last_s * self.shards)

    def ttft_by_window(self, statistic: str = "p95") -> Floats:
        """The statistic of TTFT of each window's arrivals, float64[w] seconds; NaN where nobody came."""
        return np.array([_distribution(row, float("nan")).percentile(statistic) for row in self.ttft])

    def time_bound_by(self) -> dict[str, float]:
        """Share of busy time by binding cause."""
        total = float(self.bound_by_s.sum()) or 1.0
        return {cause: float(s) / total for cause, s in zip(CAUSES, self.bound_by_s, strict=True)}


@dataclass(frozen=True)
class _Part:
    """One replica's contribution."""

    counts: dict[str, Ints]
    totals: dict[str, float]
    sums: dict[str, float]
    bound_by_s: Floats
    arrivals: Ints
    request_s: Floats
    ttft: Ints
    batch_max: int
    kv_usage_max: float
    last_s: float


def serve_shards(
    table: StepTable, limits: Limits, source: Callable[[int], Workload | None], shards: int, *,
    slo: SLO | None = None, horizon_s: float = 86_400.0, windows: int = 144, workers: int = 2,
    progress: Callable[[int], None] = lambda _: None, basis: str = "",
) -> Tally:  # fmt: skip
    """Serve replicas 0 to ``shards`` - 1, each the requests that ``source`` makes for it.

    ``horizon_s``: what the windows cover; later arrivals count in the last one. ``progress`` is called with the number
    of replicas done. Interrupted from the keyboard, it finishes those begun and returns what there is
    (:attr:`Tally.complete`); KeyboardInterrupt goes on where there is nothing yet.

    Raises:
        WorkloadError: a request cannot fit a replica, or no replica has any.
    """
    window_s = horizon_s / windows
    parts: dict[int, _Part] = {}
    empty: set[int] = set()
    total = _Sum(windows)

    def one(k: int) -> tuple[int, _Part | None]:
        workload = source(k)
        return k, None if workload is None else _serve(table, limits, workload, slo, window_s, windows)

    def gather(done: set[Future[tuple[int, _Part | None]]]) -> None:
        for future in done:
            k, part = future.result()
            if part is None:
                empty.add(k)
            else:
                parts[k] = total.add(part)
            progress(len(parts) + len(empty))

    with ThreadPoolExecutor(workers) as pool:
        waiting: set[Future[tuple[int, _Part | None]]] = set()
        begun = 0
        try:
            while begun < shards or waiting:
                while begun < shards and len(waiting) < 2 * workers:
                    waiting.add(pool.submit(one, begun))
                    begun += 1
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                gather(done)
        except KeyboardInterrupt:
            gather({future for future in waiting if not future.cancel()})
            if not parts:
                raise
    if not parts:
        raise WorkloadError(f"no request arrives at any of {shards:,} replicas; a higher rate or a longer time works")
    return total.tally(shards, [parts[k] for k in sorted(parts)], len(empty), window_s, basis)


class _Sum:
    """Integer counts as they come in: what is large and does not depend on the order."""

    def __init__(self, windows: int) -> None:
        self.counts = {name: np.zeros(NUM_BUCKETS, np.int64) for name in METRICS}
        self.arrivals = np.zeros(windows, np.int64)
        self.ttft = np.zeros((windows, NUM_BUCKETS), np.int64)

    def add(self, part: _Part) -> _Part:
        """Take the counts of a part; the rest of it."""
        for name, counts in part.counts.items():
            self.counts[name] += counts
        self.arrivals += part.arrivals
        self.ttft.ravel()[: len(part.ttft)] += part.ttft
        none = np.zeros(0, np.int64)
        return _Part({}, part.totals, part.sums, part.bound_by_s, none, part.request_s, none, part.batch_max,
                     part.kv_usage_max, part.last_s)  # fmt: skip

    def tally(self, asked: int, parts: list[_Part], empty: int, window_s: float, basis: str) -> Tally:
        """All of it; floating-point sums in the order of the replicas."""
        return Tally(
            asked,
            len(parts) + empty,
            window_s,
            self.counts,
            {name: float(sum(p.totals[name] for p in parts)) for name in METRICS},
            {name: float(sum(p.sums[name] for p in parts)) for name in _SUMS},
            np.sum([p.bound_by_s for p in parts], axis=0),
            self.arrivals,
            np.sum([p.request_s for p in parts], axis=0) / window_s,
            self.ttft,
            max((p.batch_max for p in parts), default=0),
            max((p.kv_usage_max for p in parts), default=0.0),
            max((p.last_s for p in parts), default=0.0),
            basis,
        )


def _serve(
    table: StepTable, limits: Limits, workload: Workload, slo: SLO | None, window_s: float, windows: int
) -> _Part:
    """One replica's day, counted."""
    check_fits(workload, limits)
    played = replay(table, limits, workload)
    run = run_of(played, limits)
    values = {"ttft": run.ttft_s, "tpot": run.tpot_s, "e2e": run.e2e_s, "queue": run.queue_s}
    buckets = {name: _buckets(column) for name, column in values.items()}
    finite = np.isfinite(values["tpot"])
    buckets["tpot"] = buckets["tpot"][finite]
    counts = {name: np.bincount(b, minlength=NUM_BUCKETS).astype(np.int64) for name, b in buckets.items()}
    counts["itl"] = played.histogram
    totals = {name: float(np.nansum(column)) for name, column in values.items()} | {"itl": run.itl.total}
    place = np.minimum((run.arrival_s / window_s).astype(np.int64), windows - 1)
    return _Part(
        counts,
        totals,
        _sums(run, slo),
        run.bound_by_s,
        np.bincount(place, minlength=windows).astype(np.int64),
        np.diff(_integral(run.arrival_s, window_s, windows) - _integral(run.last_token_s, window_s, windows)),
        np.bincount(place * NUM_BUCKETS + buckets["ttft"]).astype(np.int64),
        run.batch_max,
        run.kv_usage_max,
        float(run.last_token_s.max()),
    )


def _sums(run: Run, slo: SLO | None) -> dict[str, float]:
    return {
        "busy_s": run.busy_s,
        "prefill_s": run.prefill_s,
        "batch_s": run.batch_mean * run.busy_s,
        "used_s": run.kv_usage_mean * run.busy_s,
        "prompt_tokens": float(run.prompt_tokens.sum()),
        "output_tokens": float(run.output_tokens.sum()),
        "cached_tokens": 0.0 if run.cached_tokens is None else float(run.cached_tokens.sum()),
        "preemptions": float(run.num_preemptions),
        "num_steps": float(run.num_steps),
        "good": float(len(run)) if slo is None else round(slo.goodput(run) * len(run)),
    }


def _buckets(values: Floats) -> Ints:
    """The bucket of each value of at least 0: int64[n]; what is below a nanosecond is in the lowest."""
    return np.asarray(np.clip((values.view(np.int64) >> BUCKET_SHIFT) - BUCKET_BASE, 0, NUM_BUCKETS - 1), np.int64)


def _distribution(counts: Ints, total: float) -> Distribution:
    """From all buckets; only those in use are looked at."""
    used = np.flatnonzero(counts)
    if len(used) == 0:
        return Distribution.of(np.empty(0))
    low, high = int(used[0]), int(used[-1]) + 1
    return Histogram(bucket_edges()[low : high + 1], counts[low:high], total).distribution()


def _integral(times: Floats, window_s: float, windows: int) -> Floats:
    """Seconds that passed since each of the times, summed, at every window's edge: float64[windows + 1]."""
    place = np.minimum((times / window_s).astype(np.int64), windows)
    number = np.append(0.0, np.cumsum(np.bincount(place, minlength=windows + 1)))[: windows + 1]
    summed = np.append(0.0, np.cumsum(np.bincount(place, times, windows + 1)))[: windows + 1]
    return np.asarray(np.arange(windows + 1) * window_s * number - summed, np.float64)
