"""What a careful reader would doubt about a log before planning on it, each as one sentence.

Nothing is changed here: the sentences travel with the workload, and what can be mended has a function that says so.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints, Workload

__all__ = ["doubts", "quantum_s", "spread_quantised"]

_BATCHED_SHARE = 0.2  # share of gaps that are exactly 0 from which a clock is called quantised
_SHORT_REQUESTS = 1000  # below, fewer than 10 requests lie beyond p99
_SHORT_SPAN_S = 600.0
_FEW = 100  # requests below which, and tokens below which, no limit is looked for
_PILE = 20.0  # requests at one length over the mean of the lengths near it, from which it is called a cap


def doubts(workload: Workload) -> tuple[str, ...]:
    """Quantised times, lengths cut at a cap, a log too short for its percentiles."""
    found = []
    n = len(workload)
    if workload.has_arrivals:
        quantum = quantum_s(workload.arrival_s)
        if quantum is not None:
            distinct = 1 + int(np.count_nonzero(np.diff(workload.arrival_s)))
            found.append(
                f"quantised timestamps: {distinct:,} distinct times for {n:,} requests, quantum {quantum:.3g} s; "
                "CV and bursts shorter than that are artefacts (spread_quantised spreads each batch over its quantum)"
            )
    prompts, outputs = tally(workload.prompt_tokens), tally(workload.output_tokens)
    limits = {"output tokens": (ceiling(*outputs), *round_piles(*outputs)), "prompt tokens": (ceiling(*prompts),)}
    if not any(filter(None, chain(*limits.values()))):
        both = tally(workload.prompt_tokens + workload.output_tokens)
        limits["prompt + output tokens"] = (ceiling(*both),)
    for what, piles in limits.items():
        for low, high, count in filter(None, dict.fromkeys(piles)):
            where = f"exactly {high:,}" if low == high else f"{low:,} to {high:,}"
            found.append(f"truncation: {count:,} of {n:,} requests have {where} {what}, as if cut at a limit")
    if n < _SHORT_REQUESTS:
        found.append(f"short log: {n:,} requests, so p99 rests on {max(1, n // 100)} of them")
    if workload.has_arrivals and n > 1 and workload.span_s == 0.0 and not workload.closed_loop:
        found.append(
            f"all {n:,} requests have one time: they arrive at once wherever the log is replayed, "
            "and rate and bursts cannot be known"
        )
    elif workload.has_arrivals and workload.span_s < _SHORT_SPAN_S:
        found.append(f"short log: {workload.span_s:.3g} s say nothing about the busiest hour of a day")
    return tuple(found)


def quantum_s(arrival_s: Floats) -> float | None:
    """Seconds between the ticks of the clock that stamped the arrivals; None where it ticks finely enough.

    A clock is quantised when a fifth of the gaps or more are exactly 0. Its tick is the median positive gap where
    nearly all positive gaps are alike (a collector that wakes up regularly), else the smallest ones (a coarse clock).
    """
    gaps = np.diff(arrival_s)
    positive = gaps[gaps > 0]
    if len(gaps) < 20 or len(positive) == 0 or 1.0 - len(positive) / len(gaps) < _BATCHED_SHARE:
        return None
    low, middle = (float(x) for x in np.percentile(positive, (1.0, 50.0)))
    return middle if low >= 0.5 * middle else low


def spread_quantised(workload: Workload, seed: int = 0) -> Workload:
    """Arrivals of each tick spread uniformly over the tick, at most to the next one; the same without a quantum.

    Requests keep their order, and counts per tick stay as they are: only what the clock could not tell is made up.
    """
    quantum = quantum_s(workload.arrival_s)
    if quantum is None:
        return workload
    arrival = workload.arrival_s
    starts = np.flatnonzero(np.concatenate([[True], np.diff(arrival) > 0]))
    ticks = arrival[starts]
    room = np.minimum(quantum, np.append(np.diff(ticks), quantum))
    sizes = np.diff(np.append(starts, len(arrival)))
    batch = np.repeat(np.arange(len(starts)), sizes)
    share = np.random.default_rng(seed).random(len(arrival))
    spread = np.sort(batch + share)  # sorts within batches only
    times = ticks[batch] + (spread - batch) * room[batch]
    note = f"arrivals were spread uniformly over the clock's quantum of {quantum:.3g} s (seed {seed})"
    kept = tuple(w for w in workload.warnings if not w.startswith("quantised timestamps"))
    return replace(workload, arrival_s=np.maximum.accumulate(times), warnings=(*kept, note))


def tally(lengths: Ints) -> tuple[Ints, Ints]:
    """(distinct lengths ascending, requests of each)."""
    if int(lengths.max()) >= max(1_000_000, 4 * len(lengths)):
        values, counts = np.unique(lengths, return_counts=True)
        return values, counts.astype(np.int64)
    counts = np.bincount(lengths)
    values = np.flatnonzero(counts)
    return values.astype(np.int64), counts[values].astype(np.int64)


def ceiling(values: Ints, counts: Ints) -> tuple[int, int, int] | None:
    """(from, to, requests) of a pile that a limit makes, in the upper fifth of the lengths; None without one.

    Three marks: 0.05 % of all and five requests or more at the very maximum, 20 times the mean count of the tenth
    below it; 1 % of all within 3 % of the maximum, where a tail would have thinned out; 1 % of all in a 3 % bin with
    less than a quarter of that in the bins on either side. Lengths that are all the same are a choice, not a limit.
    """
    top, n = int(values[-1]), int(counts.sum())
    if len(values) == 1 or n < _FEW:
        return None
    at_top, below = int(counts[-1]), int(counts[(values >= 0.9 * top) & (values < top)].sum())
    if at_top >= max(5, 5e-4 * n) and at_top >= _PILE * below / max(0.1 * top, 1.0):
        return top, top, at_top
    if top < _FEW:
        return None
    close = values > 0.97 * top
    if int(counts[close].sum()) >= max(10, 0.01 * n):
        return int(values[close][0]), top, int(counts[close].sum())
    bins = np.floor(np.log(values) / np.log(1.03)).astype(np.int64)
    binned = np.bincount(bins, weights=counts, minlength=3)
    sides = np.pad(binned, (3, 2))
    before = (sides[:-5] + sides[1:-4] + sides[2:-3]) / 3.0
    after = 0.5 * (sides[4:-1] + sides[5:])
    pile = (binned >= max(10, 0.01 * n)) & (binned > 4.0 * np.maximum(before, after))
    pile[: bins[_rank(counts, 0.8)]] = False
    if not pile.any():
        return None
    inside = bins == int(np.flatnonzero(pile)[-1])
    return int(values[inside][0]), int(values[inside][-1]), int(counts[inside].sum())


def round_piles(values: Ints, counts: Ints) -> list[tuple[int, int, int]]:
    """(length, length, requests) of piles at round lengths in the upper tenth: one client's ``max_tokens`` each.

    Round is a multiple of 256 or 500; a pile is 10 requests and 20 times the mean count of the lengths within 10 %.
    """
    first = _rank(counts, 0.9)
    values, counts = values[first:], counts[first:]
    sums = np.concatenate([[0], np.cumsum(counts)])
    found = []
    for i in np.flatnonzero((counts >= 10) & ((values % 256 == 0) | (values % 500 == 0))):
        value, count = int(values[i]), int(counts[i])
        low, high = max(float(values[0]), 0.9 * value), min(1.1 * value, float(values[-1]))
        near = int(sums[np.searchsorted(values, high, "right")] - sums[np.searchsorted(values, low)]) - count
        if len(values) > 1 and count >= _PILE * near / max(high - low, 1.0):
            found.append((value, value, count))
    return found[-3:]


def _rank(counts: Ints, share: float) -> int:
    """Index of the length below which ``share`` of the requests lie."""
    return int(np.searchsorted(np.cumsum(counts), share * float(counts.sum())))
