"""Users who wait for their answers: the loop in which a completion makes the next arrival.

With open arrivals a replica can run ahead to the next arrival. Here the next arrival may be made by any step of any
replica, so the replica whose next step begins first always goes first, as far as the next to begin or the next known
arrival, and stops where a request ends. An arrival made by that end lies after every step already begun, so nothing
is ever served out of order.

Users are alike: those who think are a heap of times at which one of them asks, and whoever asks next sends the next row
of the line. This module imports numba; import it only where a simulation starts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gambrel.core.step import pairs_within, step_parts
from gambrel.engine.compiled import compiled
from gambrel.engine.kernel import advance, advance_inline, sample
from gambrel.engine.routing_kernel import choose, hand_over, outstanding
from gambrel.engine.state import (
    CLOCK,
    DECODES,
    FINISHED,
    FREE_SLOTS,
    NEVER,
    NEXT,
    PARTIAL,
    PREEMPTED,
    REQUEST,
    SEEN,
    SPARE,
)

__all__ = ["serve_alone", "serve_closed"]

FRONT = 16  # times of the next to ask that a replica by itself is told beforehand


@compiled()
def push(heap: Any, size: int, value: float) -> int:
    """Add ``value`` to the binary heap ``heap[:size]``, least first; the new size."""
    i = size
    while i > 0:
        up = (i - 1) >> 1
        if heap[up] <= value:
            break
        heap[i] = heap[up]
        i = up
    heap[i] = value
    return size + 1


@compiled()
def pop(heap: Any, size: int) -> int:
    """Take the least value, ``heap[0]``, off the heap; the new size."""
    size -= 1
    value = heap[size]
    i = 0
    while True:
        j = 2 * i + 1
        if j >= size:
            break
        if j + 1 < size and heap[j + 1] < heap[j]:
            j += 1
        if heap[j] >= value:
            break
        heap[i] = heap[j]
        i = j
    heap[i] = value
    return size


@compiled(advance, push, pop)
def serve_alone(
    users: int, line: Any, think: Any, wakes: Any,
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
    """As :func:`serve_closed` on a single replica, which need not stop where somebody asks, only where an answer ends.

    The next ``FRONT`` rows of the line have their times beforehand, in order; an answer that ends may send its user in
    between, for nobody who asks after that end has been looked at. All later times are in the heap.
    """
    n = len(line)
    num_wakes = 0
    for k in range(n):
        follow[line[k]] = line[k + 1] if k + 1 < n else -1
        if k < users:
            num_wakes = push(wakes, num_wakes, arrival[line[k]])
        arrival[line[k]] = NEVER
    ints[0, NEXT] = line[0]
    ints[0, SEEN] = line[0]
    begin = 0  # rows line[begin:end] are told when to ask, and have not yet
    end = 0
    while ints[0, FINISHED] < n:
        if begin == end:
            while num_wakes > 0 and end < min(begin + FRONT, n):
                arrival[line[end]] = wakes[0]
                num_wakes = pop(wakes, num_wakes)
                end += 1
        until = wakes[0] if num_wakes > 0 and end < n else NEVER
        before = ints[0, FINISHED]
        advance_inline(
            0, until, True,
            linear, linear_compute, linear_weights, collective, overhead,
            head, head_compute, head_weights, lines, window,
            max_num_seqs, max_num_batched_tokens, num_kv_blocks, block_size,
            chunked_prefill, reserve_full_prompt, watermark_blocks, prefix_caching,
            promise_output, static_batch, step_order,
            arrival, prompt, output, follow, scheduled, first, last, preemptions,
            paused, hits, units, unit_offsets, unit_sizes,
            ints, floats, slots, token_s, ring, crossings, offsets, histogram, bits, bits_int, samples, cache,
        )  # fmt: skip
        while begin < end and arrival[line[begin]] <= floats[0, CLOCK]:
            begin += 1
        for ended in range(ints[0, FINISHED] - before):
            asks = floats[0, CLOCK]
            if len(think) > 0:  # the slots freed last are those of the requests that ended last
                asks += think[slots[0, REQUEST, slots[0, SPARE, ints[0, FREE_SLOTS] - 1 - ended]]]
            if begin == end or arrival[line[end - 1]] <= asks:
                num_wakes = push(wakes, num_wakes, asks)
                continue
            if end < min(begin + FRONT, n):
                end += 1
            else:
                num_wakes = push(wakes, num_wakes, arrival[line[end - 1]])
            k = end - 1
            while k > begin and arrival[line[k - 1]] > asks:
                arrival[line[k]] = arrival[line[k - 1]]
                k -= 1
            arrival[line[k]] = asks


@compiled(step_parts, pairs_within, sample, advance, push, pop, outstanding, choose, hand_over)
def serve_closed(
    users: int, line: Any, think: Any, wakes: Any,
    rule: int, draws: Any, sent: Any, memory: Any, assigned: Any, counts: Any, ends: Any,
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
    """Serve the rows of ``line`` in order, ``users`` of them at most in the system; makes their ``arrival``.

    ``arrival`` holds the users' starts in the first ``users`` rows of the line. ``think`` float64[n]: seconds between
    the end of a row and its user's next, or float64[0] for none. ``wakes`` float64[users]: room for the heap.
    ``assigned`` int64[n] is filled with the replica of each row, chosen as in :mod:`gambrel.engine.routing_kernel`.
    ``counts`` int64[replicas] requests given to each so far, ``ends`` int64[replicas] the last of them, -1 for none.
    """
    n = len(line)
    replicas = len(counts)
    num_wakes = 0
    for k in range(min(users, n)):
        num_wakes = push(wakes, num_wakes, arrival[line[k]])
    released = 0
    choice = -1
    while True:
        # Whose step begins first, and when the next of the others does.
        earliest = -1
        begins = NEVER
        second = NEVER
        for r in range(replicas):
            if counts[r] == ints[r, FINISHED]:
                continue
            start = floats[r, CLOCK]
            if ints[r, DECODES] == 0 and ints[r, PARTIAL] < 0 and ints[r, PREEMPTED] == 0:
                start = max(start, arrival[ints[r, NEXT]])
            if start < begins:
                second = begins
                begins = start
                earliest = r
            elif start < second:
                second = start
        asks = wakes[0] if num_wakes > 0 and released < n else NEVER
        if earliest < 0 and asks == NEVER:
            break
        if begins < asks:
            r = earliest
            before = ints[r, FINISHED]
            advance(
                r, min(asks, max(second, np.nextafter(begins, NEVER))), True,
                linear, linear_compute, linear_weights, collective, overhead,
                head, head_compute, head_weights, lines, window,
                max_num_seqs, max_num_batched_tokens, num_kv_blocks, block_size,
                chunked_prefill, reserve_full_prompt, watermark_blocks, prefix_caching,
                promise_output, static_batch, step_order,
                arrival, prompt, output, follow, scheduled, first, last, preemptions,
                paused, hits, units, unit_offsets, unit_sizes,
                ints, floats, slots, token_s, ring, crossings, offsets, histogram, bits, bits_int, samples, cache,
            )  # fmt: skip
            for k in range(ints[r, FINISHED] - before):
                asks = floats[r, CLOCK]
                if len(think) > 0:  # the slots freed last are those of the requests that ended last
                    asks += think[slots[r, REQUEST, slots[r, SPARE, ints[r, FREE_SLOTS] - 1 - k]]]
                num_wakes = push(wakes, num_wakes, asks)
            continue
        num_wakes = pop(wakes, num_wakes)
        i = line[released]
        released += 1
        arrival[i] = asks
        choice = choose(
            rule, i, asks, choice + 1, block_size, draws, sent, memory, counts,
            prompt, units, unit_offsets, unit_sizes, ints, floats,
        )  # fmt: skip
        assigned[i] = choice
        hand_over(i, choice, counts, ends, follow, ints)
