"""A workload described in figures: lengths, rate, bursts, overlap, reuse.

Every figure is computed from all rows, exactly; sums over windows and instants run in O(n) memory that is reused,
so that five million rows fit a laptop. The definitions are in the fields' docstring, for there are several of each
in use: peak-to-mean of complete windows, concurrency by time (not by arrival), length-biased KV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.core.run import Distribution
from gambrel.traffic.doubts import doubts

if TYPE_CHECKING:
    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints, Workload

__all__ = ["Concurrency", "PrefixReuse", "ServiceModel", "WorkloadFigures", "describe"]

WINDOWS_S = (1.0, 10.0, 60.0)
_MIN_WINDOW_ARRIVALS = 5  # fewer make no coefficient of variation
_SERIES_BINS = 400
_CHUNK = 1_000_000


@dataclass(frozen=True, slots=True)
class ServiceModel:
    """Seconds a request would take alone: prompt at a prefill rate, then output tokens one by one.

    The default, 8,000 prompt tokens a second and 30 ms a token, is a mid-size model on one current accelerator; it
    turns lengths into *demand*: what would be in flight if nothing ever queued.
    """

    prefill_tokens_per_s: float = 8000.0
    tpot_s: float = 0.030

    def seconds(self, workload: Workload) -> Floats:
        """float64[n] seconds per request."""
        return workload.prompt_tokens / self.prefill_tokens_per_s + workload.output_tokens * self.tpot_s

    @property
    def basis(self) -> str:
        """One phrase for people."""
        return f"prompt/{self.prefill_tokens_per_s:g} + output x {self.tpot_s:g} s, no queueing"


@dataclass(frozen=True)
class Concurrency:
    """Requests in flight from the first arrival to the last completion, weighted by time.

    ``time_s`` and ``in_flight`` (float64[k]) are the mean of each of k equal bins, for plots; ``basis`` says where
    the service times come from.
    """

    mean: float
    p50: float
    p90: float
    p99: float
    max: int
    time_s: Floats
    in_flight: Floats
    basis: str


@dataclass(frozen=True, slots=True)
class PrefixReuse:
    """Prompt blocks that an infinite prefix cache would have held: ``hit_ratio`` of ``num_blocks``."""

    hit_ratio: float
    num_blocks: int
    distinct_blocks: int
    block_tokens: int


@dataclass(frozen=True)
class WorkloadFigures:
    """What a log holds.

    Attributes:
        num_requests, span_s: rows, and seconds from first to last arrival.
        rate_rps: (n - 1) / span.
        cv: coefficient of variation of the gaps between arrivals (1 for Poisson).
        cv_1min: p50 and p90 of the same over one-minute windows with five arrivals or more.
        prompt_tokens, output_tokens: distributions of lengths.
        correlation: Spearman rank correlation of prompt and output length.
        peak_to_mean: the fullest window over the mean of complete windows, by window length.
        dispersion: variance over mean of the counts of complete windows (1 for Poisson), by window length.
        concurrency: demand concurrency.
        kv_tokens_held: mean KV tokens of a request in flight, (E[PG] + E[G(G+1)]/2) / E[G]: length-biased,
            because long answers are in flight longer.
        length_counts: int64[i, j] requests with 2**i <= prompt < 2**(i+1) and 2**j <= output < 2**(j+1).
        rate_time_s, rate_series_rps: arrivals per second in equal bins, for plots.
        prefix_reuse: where the log has block hashes.
        cached_share: prompt tokens that the log says came from a cache, over all.
        num_sessions: distinct conversations or clients, where the log names them.
        warnings: what to know before believing any of this.

    NaN where a figure does not exist (no complete window, one row).
    """

    name: str
    source: str
    num_requests: int
    span_s: float
    rate_rps: float
    cv: float
    cv_1min: tuple[float, float]
    prompt_tokens: Distribution
    output_tokens: Distribution
    correlation: float
    peak_to_mean: dict[str, float]
    dispersion: dict[str, float]
    concurrency: Concurrency
    kv_tokens_held: float
    length_counts: Ints
    rate_time_s: Floats
    rate_series_rps: Floats
    prefix_reuse: PrefixReuse | None
    cached_share: float | None
    num_sessions: int | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values under their contract names; NaN and infinity become None."""

        def lengths(d: Distribution) -> dict[str, Any]:
            return {k: _plain(getattr(d, k)) for k in ("mean", "p50", "p90", "p95", "p99", "max")}

        reuse = self.prefix_reuse
        return {
            "name": self.name,
            "source": self.source,
            "num_requests": self.num_requests,
            "span_s": _plain(self.span_s),
            "rate_rps": _plain(self.rate_rps),
            "cv": _plain(self.cv),
            "cv_1min": {"p50": _plain(self.cv_1min[0]), "p90": _plain(self.cv_1min[1])},
            "prompt_tokens": lengths(self.prompt_tokens),
            "output_tokens": lengths(self.output_tokens),
            "correlation": _plain(self.correlation),
            "peak_to_mean": {k: _plain(v) for k, v in self.peak_to_mean.items()},
            "dispersion": {k: _plain(v) for k, v in self.dispersion.items()},
            "concurrency": {
                **{k: _plain(getattr(self.concurrency, k)) for k in ("mean", "p50", "p90", "p99", "max")},
                "basis": self.concurrency.basis,
            },
            "kv_tokens_held": _plain(self.kv_tokens_held),
            "prefix_reuse": None
            if reuse is None
            else {
                "hit_ratio": reuse.hit_ratio,
                "num_blocks": reuse.num_blocks,
                "distinct_blocks": reuse.distinct_blocks,
                "block_tokens": reuse.block_tokens,
            },
            "cached_share": self.cached_share,
            "num_sessions": self.num_sessions,
            "warnings": list(self.warnings),
        }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def describe(workload: Workload, service: ServiceModel | None = None) -> WorkloadFigures:
    """The figures of ``workload``; concurrency by logged service times, else by ``service`` (stated in its basis)."""
    arrival, prompt, output = workload.arrival_s, workload.prompt_tokens, workload.output_tokens
    rate_time, rate_series = _rate_series(workload)
    peaks, dispersion = {}, {}
    for window in WINDOWS_S:
        key = f"{window:g}s"
        peaks[key], dispersion[key] = _windows(arrival, window)
    return WorkloadFigures(
        name=workload.name,
        source=workload.source,
        num_requests=len(workload),
        span_s=workload.span_s,
        rate_rps=workload.rate_rps,
        cv=_cv(arrival),
        cv_1min=_cv_of_windows(arrival, 60.0),
        prompt_tokens=Distribution.of(prompt.astype(np.float64)),
        output_tokens=Distribution.of(output.astype(np.float64)),
        correlation=_spearman(prompt, output),
        peak_to_mean=peaks,
        dispersion=dispersion,
        concurrency=_concurrency(workload, service or ServiceModel()),
        kv_tokens_held=_kv_tokens_held(prompt, output),
        length_counts=_length_counts(prompt, output),
        rate_time_s=rate_time,
        rate_series_rps=rate_series,
        prefix_reuse=_prefix_reuse(workload),
        cached_share=None
        if workload.cached_tokens is None
        else float(workload.cached_tokens.sum()) / float(prompt.sum()),
        num_sessions=None if workload.session is None else len(np.unique(workload.session)),
        warnings=tuple(dict.fromkeys((*workload.warnings, *doubts(workload)))),
    )


def _cv(arrival: Floats) -> float:
    gaps = np.diff(arrival)
    mean = float(gaps.mean()) if len(gaps) else 0.0
    return float(gaps.std()) / mean if mean > 0 else math.nan


def _cv_of_windows(arrival: Floats, window: float) -> tuple[float, float]:
    """p50 and p90 over windows of the coefficient of variation of the gaps inside each."""
    which = np.floor((arrival - arrival[0]) / window)
    inside = which[1:] == which[:-1]
    gaps = np.diff(arrival)[inside]
    if len(gaps) == 0:
        return math.nan, math.nan
    own = which[1:][inside]
    starts = np.flatnonzero(np.concatenate([[True], own[1:] != own[:-1]]))
    sizes = np.diff(np.append(starts, len(gaps)))
    mean = np.add.reduceat(gaps, starts) / sizes
    square = np.add.reduceat(gaps * gaps, starts) / sizes
    good = (sizes >= _MIN_WINDOW_ARRIVALS - 1) & (mean > 0)
    if not good.any():
        return math.nan, math.nan
    cv = np.sqrt(np.maximum(square[good] - mean[good] ** 2, 0.0)) / mean[good]
    p50, p90 = (float(x) for x in np.percentile(cv, (50.0, 90.0)))
    return p50, p90


def _windows(arrival: Floats, window: float) -> tuple[float, float]:
    """(peak over mean, variance over mean) of the counts over complete windows; empty ones count, unstored."""
    num = math.floor((arrival[-1] - arrival[0]) / window)
    if num < 1:
        return math.nan, math.nan
    which = np.floor((arrival - arrival[0]) / window)
    which = which[which < num]
    counts = np.diff(np.flatnonzero(np.concatenate([[True], which[1:] != which[:-1], [True]]))).astype(np.float64)
    mean = len(which) / num
    variance = max(float((counts * counts).sum()) / num - mean * mean, 0.0)
    return float(counts.max()) / mean, variance / mean


def _spearman(x: Ints, y: Ints) -> float:
    """Pearson correlation of mid-ranks."""
    a, b = _ranks(x), _ranks(y)
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else math.nan


def _ranks(values: Ints) -> Floats:
    """Mid-ranks less their mean: from counts where the values are small, as token counts are, else from a sort."""
    if int(values.max()) < max(1_000_000, 4 * len(values)):
        counts = np.bincount(values)
        middle = np.cumsum(counts) - 0.5 * counts
        return np.asarray((middle - 0.5 * len(values))[values], np.float64)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - 0.5 * counts - 0.5 * len(values))[inverse])


def _kv_tokens_held(prompt: Ints, output: Ints) -> float:
    p, g = prompt.astype(np.float64), output.astype(np.float64)
    return (float(p @ g) + 0.5 * float(g @ (g + 1.0))) / float(g.sum())


def _length_counts(prompt: Ints, output: Ints) -> Ints:
    """Joint histogram in octaves; ``frexp`` is exact at powers of two, ``log2`` is not."""
    i = np.frexp(prompt.astype(np.float64))[1] - 1
    j = np.frexp(output.astype(np.float64))[1] - 1
    width = int(j.max()) + 1
    flat = np.bincount(i.astype(np.int64) * width + j, minlength=(int(i.max()) + 1) * width)
    return flat.reshape(-1, width).astype(np.int64)


def _rate_series(workload: Workload) -> tuple[Floats, Floats]:
    """Arrivals per second in equal bins over the span: (middles, rates)."""
    span = workload.span_s
    if span <= 0:
        return np.zeros(0), np.zeros(0)
    bins = max(1, min(_SERIES_BINS, len(workload) // 4))
    edges = np.linspace(workload.arrival_s[0], workload.arrival_s[-1], bins + 1)
    counts = np.diff(np.searchsorted(workload.arrival_s, edges[1:-1]), prepend=0, append=len(workload))
    return 0.5 * (edges[1:] + edges[:-1]), counts / (span / bins)


def _concurrency(workload: Workload, service: ServiceModel) -> Concurrency:
    """Exact: the level after every arrival and departure, weighted by how long it lasts; users, if closed."""
    arrival = workload.arrival_s
    if workload.closed_loop:
        users = workload.closed_loop
        level = float(users)
        return Concurrency(level, level, level, level, users, np.zeros(0), np.zeros(0), "closed loop: users")
    basis = "logged service times" if workload.service_s is not None else service.basis
    ends = arrival + (service.seconds(workload) if workload.service_s is None else workload.service_s)
    ends.sort()
    weights = np.zeros(1)
    weights = _weigh(arrival, ends, +1, weights)
    weights = _weigh(ends, arrival, -1, weights)
    total = float(weights.sum())
    top = int(np.flatnonzero(weights)[-1]) if total > 0 else len(workload)
    levels = np.arange(len(weights))
    cumulative = np.cumsum(weights)
    p50, p90, p99 = (float(np.searchsorted(cumulative, q * total)) for q in (0.5, 0.9, 0.99))
    edges = np.linspace(arrival[0], ends[-1], _SERIES_BINS + 1)
    held = _integral(arrival, edges) - _integral(ends, edges)
    width = edges[1] - edges[0]
    return Concurrency(
        mean=float(levels @ weights) / total if total > 0 else math.nan,
        p50=p50,
        p90=p90,
        p99=p99,
        max=top,
        time_s=0.5 * (edges[1:] + edges[:-1]),
        in_flight=np.maximum(np.diff(held) / width, 0.0) if width > 0 else np.zeros(_SERIES_BINS),
        basis=basis,
    )


def _weigh(events: Floats, others: Floats, sign: int, weights: Floats) -> Floats:
    """Add the seconds spent at each level that begins at ``events``, until the next event of either kind.

    Departures come before arrivals of the same instant. Both arrays are sorted.
    """
    n = len(events)
    for start in range(0, n, _CHUNK):
        now = events[start : start + _CHUNK]
        number = np.arange(start + 1, start + 1 + len(now))
        past = np.searchsorted(others, now, "right" if sign > 0 else "left")
        level = number - past if sign > 0 else past - number
        until = np.append(events[start + 1 : start + 1 + len(now)], np.full(int(start + len(now) >= n), np.inf))
        other = np.where(past < len(others), others[np.minimum(past, len(others) - 1)], np.inf)
        lasts = np.minimum(until, other) - now
        lasts[~np.isfinite(lasts)] = 0.0
        found: Floats = np.bincount(np.maximum(level, 0), weights=lasts, minlength=len(weights)).astype(np.float64)
        found[: len(weights)] += weights
        weights = found
    return weights


def _integral(events: Floats, at: Floats) -> Floats:
    """Integral over time of the number of ``events`` (sorted) so far, up to each instant of ``at``."""
    num = np.searchsorted(events, at, "right")
    sums = np.concatenate([[0.0], np.cumsum(events)])
    return np.asarray(num * at - sums[num], np.float64)


def _prefix_reuse(workload: Workload) -> PrefixReuse | None:
    if workload.prefix_blocks is None or len(workload.prefix_blocks) == 0:
        return None
    num = len(workload.prefix_blocks)
    distinct = len(np.unique(workload.prefix_blocks))
    return PrefixReuse(1.0 - distinct / num, num, distinct, workload.prefix_block_tokens)
