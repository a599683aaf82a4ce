"""What a careful reader would doubt about a log before planning on it, each as one sentence.

Nothing is changed here: the sentences travel with the workload, and what can be mended has a function that says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints, Workload

__all__ = ["doubts", "quantum_s", "spread_quantised"]

_BATCHED_SHARE = 0.2  # share of gaps that are exactly 0 from which a clock is called quantised
_SHORT_REQUESTS = 1000  # below, fewer than 10 requests lie beyond p99
_SHORT_SPAN_S = 600.0
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
                "CV and bursts shorter than that are artefacts (spread the batches: spread_quantised, --spread)"
            )
    for label, lengths in (
        ("output tokens", workload.output_tokens),
        ("prompt tokens", workload.prompt_tokens),
        ("prompt + output tokens", workload.prompt_tokens + workload.output_tokens),
    ):
        for cap, count in caps(lengths):
            found.append(f"truncation: {count:,} of {n:,} requests have exactly {cap:,} {label}, as if cut at a limit")
    if n < _SHORT_REQUESTS:
        found.append(f"short log: {n:,} requests, so p99 rests on {max(1, n // 100)} of them")
    if workload.has_arrivals and workload.span_s < _SHORT_SPAN_S:
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


def caps(lengths: Ints) -> list[tuple[int, int]]:
    """(length, requests) of piles in the upper tenth of the lengths: the traces of a ``max_tokens`` or a context limit.

    A pile is at least 10 requests (5 at the very maximum) and 20 times the mean count of the lengths within 10 %.
    """
    floor = float(np.percentile(lengths, 90.0))
    tail = lengths[lengths >= floor]
    values, counts = np.unique(tail, return_counts=True)
    least = np.where(values == values[-1], 5, 10)
    found = []
    cumulative = np.concatenate([[0], np.cumsum(counts)])
    for i in np.flatnonzero(counts >= least):
        value, count = int(values[i]), int(counts[i])
        low, high = max(floor, 0.9 * value), min(1.1 * value, float(values[-1]))
        near = cumulative[np.searchsorted(values, high, "right")] - cumulative[np.searchsorted(values, low)] - count
        width = max(high - low, 1.0)
        if width >= 10 and count >= _PILE * near / width:
            found.append((value, count))
    return found[-3:]
