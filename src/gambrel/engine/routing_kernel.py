"""Replicas behind a router that looks at them: one loop over arrivals, each replica advanced to the arrival's time.

A replica's step that began before the arrival may end after it; what finishes in that step is still outstanding.
Ties go to the next in turn, as in nginx's ``least_conn``; always to the first would pack bursts into one replica.
Each arrival visits every replica, so the cost is O(replicas) per request on top of the replicas' own steps.
"""

from __future__ import annotations

from typing import Any

from gambrel.core.step import pairs_within, step_parts
from gambrel.engine.compiled import compiled
from gambrel.engine.kernel import advance, sample
from gambrel.engine.state import CLOCK, FINISHED, LAST_FINISHED, NEVER, NEXT, SEEN

__all__ = ["serve_least_outstanding"]


@compiled(step_parts, pairs_within, sample, advance)
def serve_least_outstanding(
    assigned: Any, counts: Any, ends: Any,
    linear: Any, linear_compute: Any, linear_weights: Any, collective: Any, overhead: Any,
    head: Any, head_compute: Any, head_weights: Any, lines: Any, window: int,
    max_num_seqs: int, max_num_batched_tokens: int, num_kv_blocks: int, block_size: int,
    chunked_prefill: bool, reserve_full_prompt: bool, watermark_blocks: int, prefix_caching: bool,
    arrival: Any, prompt: Any, output: Any, follow: Any, scheduled: Any, first: Any, last: Any, preemptions: Any,
    hits: Any, units: Any, unit_offsets: Any, unit_sizes: Any,
    ints: Any, floats: Any, slots: Any, token_s: Any, ring: Any, crossings: Any, offsets: Any,
    histogram: Any, bits: Any, bits_int: Any, samples: Any, cache: Any,
) -> None:  # fmt: skip
    """Serve every request; ``assigned`` int64[n] says by which replica.

    ``counts`` int64[replicas] requests given to each so far, ``ends`` int64[replicas] the last of them, -1 for none.
    """
    n = len(arrival)
    replicas = len(counts)
    choice = -1
    for i in range(n + 1):
        now = arrival[i] if i < n else NEVER
        start = choice + 1
        fewest = n + 1
        for k in range(start, start + replicas):
            r = k if k < replicas else k - replicas
            if counts[r] > ints[r, FINISHED] and floats[r, CLOCK] < now:
                advance(
                    r, now, False,
                    linear, linear_compute, linear_weights, collective, overhead,
                    head, head_compute, head_weights, lines, window,
                    max_num_seqs, max_num_batched_tokens, num_kv_blocks, block_size,
                    chunked_prefill, reserve_full_prompt, watermark_blocks, prefix_caching,
                    arrival, prompt, output, follow, scheduled, first, last, preemptions,
                    hits, units, unit_offsets, unit_sizes,
                    ints, floats, slots, token_s, ring, crossings, offsets, histogram, bits, bits_int, samples, cache,
                )  # fmt: skip
            outstanding = counts[r] - ints[r, FINISHED]
            if floats[r, CLOCK] > now:
                outstanding += ints[r, LAST_FINISHED]
            if outstanding < fewest:
                fewest = outstanding
                choice = r
        if i < n:
            assigned[i] = choice
            counts[choice] += 1
            if ends[choice] >= 0:
                follow[ends[choice]] = i
            follow[i] = -1
            ends[choice] = i
            if ints[choice, NEXT] < 0:
                ints[choice, NEXT] = i
            if ints[choice, SEEN] < 0:
                ints[choice, SEEN] = i
