"""Replicas behind a router that looks at them: one loop over arrivals, each replica advanced to the arrival's time.

A replica's step that began before the arrival may end after it; what finishes in that step is still outstanding.
Each arrival visits every replica that its rule looks at, on top of the replicas' own steps: all of them, or two.

- *Least outstanding*: the fewest unfinished requests. Ties go to the next in turn, as in nginx's ``least_conn``; always
  to the first would pack bursts into one replica.
- *Power of two*: the better of two drawn at random, the first of equals (nginx's ``random two least_conn``).
- *Prefix aware*, after SGLang's router (``cache_aware``): the replica that was sent the longest part of this prompt
  before, if that is more than ``MATCHED`` of it; else the one that was sent the least to remember. But where the
  busiest has ``IMBALANCE`` requests more and ``RELATIVE`` times as many as the least busy, the least busy.
"""

from __future__ import annotations

from typing import Any

from gambrel.core.step import pairs_within, step_parts
from gambrel.engine.compiled import compiled
from gambrel.engine.kernel import advance, sample
from gambrel.engine.state import CLOCK, FINISHED, LAST_FINISHED, LEAST, NEVER, NEXT, POWER, PREFIX, SEEN

__all__ = ["choose", "hand_over", "outstanding", "serve_open"]

IMBALANCE = 64
RELATIVE = 1.5
MATCHED = 0.3


@compiled()
def outstanding(replica: int, now: float, counts: Any, ints: Any, floats: Any) -> int:
    """Requests given to a replica and unfinished at ``now``."""
    number = counts[replica] - ints[replica, FINISHED]
    if floats[replica, CLOCK] > now:
        number += ints[replica, LAST_FINISHED]
    return int(number)


@compiled(outstanding)
def choose(
    rule: int, i: int, now: float, turn: int, block_size: int, draws: Any, sent: Any, memory: Any, counts: Any,
    prompt: Any, units: Any, unit_offsets: Any, unit_sizes: Any, ints: Any, floats: Any,
) -> int:  # fmt: skip
    """The replica for request ``i`` that arrives at ``now``; equals in turn, beginning with replica ``turn``.

    ``draws`` int64[n, 2] replicas for power of two; for prefix aware, ``sent`` bool[replicas, units] and ``memory``
    int64[replicas]: which units and how many blocks were sent to each.
    """
    replicas = len(counts)
    if rule == POWER:
        one = draws[i, 0]
        two = draws[i, 1]
        if outstanding(two, now, counts, ints, floats) < outstanding(one, now, counts, ints, floats):
            return int(two)
        return int(one)
    least = 0
    fewest = -1
    most = -1
    best = 0
    longest = 0
    light = 0
    lightest = -1
    fewest_of_best = -1
    limit = prompt[i] // block_size
    for k in range(turn, turn + replicas):
        r = k % replicas
        number = outstanding(r, now, counts, ints, floats)
        if fewest < 0 or number < fewest:
            fewest = number
            least = r
        if rule == PREFIX:
            most = max(most, number)
            found = 0
            for u in range(unit_offsets[i], unit_offsets[i + 1]):
                unit = units[u]
                if not sent[r, unit] or found + unit_sizes[unit] > limit:
                    break
                found += unit_sizes[unit]
            if found > longest or (found == longest and found > 0 and number < fewest_of_best):
                longest = found
                best = r
                fewest_of_best = number
            if lightest < 0 or memory[r] < lightest:
                lightest = memory[r]
                light = r
    if rule == LEAST:
        return int(least)
    chosen = light
    if most - fewest > IMBALANCE and most > RELATIVE * fewest:
        chosen = least
    elif longest * block_size > MATCHED * prompt[i]:
        chosen = best
    new = limit
    found = 0
    for u in range(unit_offsets[i], unit_offsets[i + 1]):
        unit = units[u]
        if found + unit_sizes[unit] > limit:
            break
        found += unit_sizes[unit]
        if sent[chosen, unit]:
            new -= unit_sizes[unit]
        sent[chosen, unit] = True
    memory[chosen] += new
    return int(chosen)


@compiled()
def hand_over(row: int, replica: int, counts: Any, ends: Any, follow: Any, ints: Any) -> None:
    """Put a row at the end of a replica's waiting line, behind ``ends`` int64[replicas]."""
    counts[replica] += 1
    if ends[replica] >= 0:
        follow[ends[replica]] = row
    follow[row] = -1
    ends[replica] = row
    if ints[replica, NEXT] < 0:
        ints[replica, NEXT] = row
    if ints[replica, SEEN] < 0:
        ints[replica, SEEN] = row


@compiled(step_parts, pairs_within, sample, advance, outstanding, choose, hand_over)
def serve_open(
    stop: Any, rule: int, draws: Any, sent: Any, memory: Any, assigned: Any, counts: Any, ends: Any,
    linear: Any, linear_compute: Any, linear_weights: Any, collective: Any, overhead: Any,
    head: Any, head_compute: Any, head_weights: Any, lines: Any, window: int,
    max_num_seqs: int, max_num_batched_tokens: int, num_kv_blocks: int, block_size: int,
    chunked_prefill: bool, reserve_full_prompt: bool, watermark_blocks: int, prefix_caching: bool,
    promise_output: bool, static_batch: bool, step_order: Any,
    arrival: Any, prompt: Any, output: Any, follow: Any, scheduled: Any, first: Any, last: Any, preemptions: Any,
    paused: Any, hits: Any, units: Any, unit_offsets: Any, unit_sizes: Any,
    ints: Any, floats: Any, slots: Any, token_s: Any, ring: Any, crossings: Any, offsets: Any,
    histogram: Any, bits: Any, bits_int: Any, samples: Any, cache: Any,
) -> None:  # fmt: skip
    """Serve every request; ``assigned`` int64[n] says by which replica. The rule's arrays are those of :func:`choose`.

    No request is served that arrives once ``stop`` bool[1] is set.
    ``counts`` int64[replicas] requests given to each so far, ``ends`` int64[replicas] the last of them, -1 for none.
    """
    n = len(arrival)
    replicas = len(counts)
    choice = -1
    for i in range(n + 1):
        now = arrival[i] if i < n else NEVER
        if stop[0]:
            break
        for k in range(2 if rule == POWER and i < n else replicas):
            r = draws[i, k] if rule == POWER and i < n else k
            if counts[r] > ints[r, FINISHED] and floats[r, CLOCK] < now:
                advance(
                    r, now, False,
                    linear, linear_compute, linear_weights, collective, overhead,
                    head, head_compute, head_weights, lines, window,
                    max_num_seqs, max_num_batched_tokens, num_kv_blocks, block_size,
                    chunked_prefill, reserve_full_prompt, watermark_blocks, prefix_caching,
                    promise_output, static_batch, step_order,
                    arrival, prompt, output, follow, scheduled, first, last, preemptions,
                    paused, hits, units, unit_offsets, unit_sizes,
                    ints, floats, slots, token_s, ring, crossings, offsets, histogram, bits, bits_int, samples, cache,
                )  # fmt: skip
        if i < n:
            choice = choose(
                rule, i, now, choice + 1, block_size, draws, sent, memory, counts,
                prompt, units, unit_offsets, unit_sizes, ints, floats,
            )  # fmt: skip
            assigned[i] = choice
            hand_over(i, choice, counts, ends, follow, ints)
