"""The oracle: the same scheduler written the plain way, visiting every running sequence in every step.

It follows vLLM's V1 scheduler statement by statement in behaviour: running sequences in order of admission, each
allocating the blocks it lacks and preempting from the tail when there are none, then the waiting line. O(batch) per
step, easy to check by eye; :mod:`gambrel.engine.kernel` must agree with it bit for bit. What touches single requests
between steps starts from here: guesses, priorities, clients that give up, and the record of a window of time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from gambrel.core.step import pairs_within, step_parts
from gambrel.engine.closed_kernel import pop, push
from gambrel.engine.compiled import compiled
from gambrel.engine.naive_cache import found_blocks, free_all, free_state, make_findable, pull, put, take_block
from gambrel.engine.state import (
    BATCH_MAX,
    BATCH_S,
    BOUND_S,
    BUCKET_BASE,
    BUCKET_SHIFT,
    BUSY_S,
    CLOCK,
    FINISHED,
    FREE_BLOCKS,
    GAP_TOTAL,
    KEEPS_SHARE,
    NEXT,
    NUM_BUCKETS,
    PART_S,
    PREFILL_S,
    RETRACT_STEPS,
    SHARE_DECAY,
    SHARE_FIRST,
    SHARE_LEAST,
    STATE_BLOCKS,
    STEPS,
    USED_MAX,
    USED_S,
)

__all__ = ["replay"]

# What happens to a request: rows of the second record are time, what, request.
ADMITTED, EVICTED, TOKEN, ENDED, ABANDONED = range(5)

_pairs = njit(pairs_within)
_parts = njit(step_parts)


@compiled(allocates=True)
def longer(table: Any, number: int) -> Any:
    """The table, with twice the rows if ``number`` of them are all it has."""
    if number < len(table):
        return table
    grown = np.zeros((2 * len(table) + 1, table.shape[1]))
    grown[:number] = table
    return grown


@compiled(longer, allocates=True)
def marked(marks: Any, number: int, time: float, what: int, request: int) -> Any:
    """The table with one more row: what happened to a request, and when."""
    marks = longer(marks, number)
    marks[number, 0] = time
    marks[number, 1] = what
    marks[number, 2] = request
    return marks


@compiled(push, pop, longer, marked, step_parts, pairs_within, found_blocks, free_all, free_state, make_findable,
          pull, put, take_block, allocates=True)  # fmt: skip
def replay(
    linear: Any, linear_compute: Any, linear_weights: Any, collective: Any, overhead: Any,
    head: Any, head_compute: Any, head_weights: Any, lines: Any, window: int,
    max_num_seqs: int, max_num_batched_tokens: int, num_kv_blocks: int, block_size: int,
    chunked_prefill: bool, reserve_full_prompt: bool, watermark_blocks: int, prefix_caching: bool,
    promise_output: bool, static_batch: bool, step_order: int,
    arrival: Any, prompt: Any, output: Any, follow: Any, scheduled: Any, first: Any, last: Any, preemptions: Any,
    paused: Any, hits: Any, units: Any, unit_offsets: Any, unit_sizes: Any,
    ints: Any, floats: Any, histogram: Any, bits: Any, bits_int: Any,
    draft_tokens: int, draft_s: float, accepted: Any,
    rank: Any, deadline: Any, since: Any, until: float, stop: Any,
) -> Any:  # fmt: skip
    """Run the whole waiting line of the first replica; results land in the same places as the fast kernel's.

    Speculative decoding: a decoder computes ``draft_tokens`` guesses beside its token, never beyond its answer; the
    next of ``accepted`` int64[m], over and over, says how many of them hold. Guessing takes ``draft_s`` seconds a step.
    ``rank`` int64[n], or empty for first come, first served: lower ranks are admitted first, the highest is preempted.
    ``deadline`` float64[n], or empty: from then on a request that has not ended is dropped before the next step.
    No step begins at or after ``until``, or once ``stop`` bool[1] is set.

    The steps that end after ``since`` (None: no record, and no code for one) are recorded: float64[m, 10] start,
    seconds, decoders, their tokens, prompt tokens, prompts, cause, running, preempted, KV blocks used; and all that
    happened to requests: float64[m, 3] time, what, request. Arrays that grow are never those of the plain case: numba
    would count references to them in every step.
    """
    n = len(arrival)
    computed = np.zeros(n, np.int64)  # tokens in the cache
    generated = np.zeros(n, np.int64)
    held = np.zeros(n, np.int64)  # KV blocks
    decoding = np.zeros(n, np.bool_)  # its prompt, or what was recomputed, is complete
    token_s = np.zeros(n)
    running = np.zeros(max_num_seqs, np.int64)
    chunk_of = np.zeros(max_num_seqs, np.int64)
    stack = np.zeros(max_num_seqs, np.int64)  # preempted, the last one waits at the front
    ordered = len(rank) > 0
    by_rank = np.zeros(len(rank), np.int64)
    for i in range(len(rank)):
        by_rank[rank[i]] = i
    heap = np.zeros(len(rank), np.int64)  # ranks of those who wait
    num_heap = 0
    timed = len(deadline) > 0
    steps = np.zeros((0, 10))
    marks = np.zeros((0, 3))
    num_steps = 0
    num_marks = 0
    num_running = 0
    num_preempted = 0
    promised = 0
    num_drawn = 0
    share = SHARE_FIRST

    state = ints[0, STATE_BLOCKS]
    # Blocks one by one, for prefix caching.
    some = num_kv_blocks if prefix_caching else 0
    starts = np.zeros(len(unit_sizes) + 1, np.int64)  # first block of each unit in the hash table
    starts[1:] = np.cumsum(unit_sizes)
    block_of = np.full(starts[-1], -1, np.int64)  # the hash table
    key_of = np.full(some, -1, np.int64)
    refs = np.zeros(some, np.int64)
    owner = np.full(some, -1, np.int64)  # row of the preempted request that may find it again
    place = np.zeros(some, np.int64)  # which of its own blocks
    newer = np.arange(1, some + 2) % (some + 1)  # the queue of free blocks
    older = (np.arange(some + 1) - 1) % (some + 1)
    rows = 0
    if prefix_caching:  # under priorities more may be started than run
        rows = n if ordered else max_num_seqs
    most = (np.max(prompt + output) + block_size - 1) // block_size + state
    blocks = np.empty((rows, most), np.int64)  # of each request in the replica
    left = np.zeros(rows, np.int64)  # own blocks of a preempted request that are still cached
    row_of = np.full(n, -1, np.int64)
    shared = np.zeros(n, np.int64)  # blocks hashed for all, the first of a request
    spare = np.arange(rows)
    num_spare = rows
    waiting = ints[0, NEXT]
    free = num_kv_blocks
    clock = floats[0, CLOCK]

    while True:
        if ordered:
            while waiting >= 0 and arrival[waiting] <= clock:
                num_heap = push(heap, num_heap, rank[waiting])
                waiting = follow[waiting]
        if timed:  # who runs and gave up is gone; who waits holds nothing, and goes when it is his turn
            still = 0
            for k in range(num_running):
                i = running[k]
                if deadline[i] > clock:
                    running[still] = i
                    still += 1
                    continue
                if prefix_caching:
                    row = row_of[i]
                    free += free_state(state, blocks[row], newer, older, refs) + free_all(
                        row, held[i], shared[i], computed[i] // block_size, True, blocks[row],
                        newer, older, owner, place, left, refs,
                    )  # fmt: skip
                    spare[num_spare] = row
                    num_spare += 1
                else:
                    free += held[i] + state
                held[i] = 0
                if promise_output:
                    promised -= (prompt[i] + output[i] - 1 + block_size - 1) // block_size + state
                if since is not None:
                    marks = marked(marks, num_marks, clock, ABANDONED, i)
                    num_marks += 1
            num_running = still
        if num_running == 0 and num_preempted == 0 and num_heap == 0:
            if waiting < 0:
                break
            if arrival[waiting] > clock:
                clock = arrival[waiting]
                share = SHARE_FIRST
                if ordered:
                    continue
        if clock >= until or stop[0]:
            break
        budget = max_num_batched_tokens
        any_preempted = False
        num_scheduled = 0
        chunk_of[:] = 0
        for turn in range(3):  # the running, the waiting; or prompts of both, and decoders if there was nothing to do
            if turn == 1:
                if not any_preempted and not (static_batch and num_running > 0):
                    batch_new = 0
                    for k in range(num_running):
                        if (
                            chunk_of[k] > 0
                            and computed[running[k]] + chunk_of[k] == prompt[running[k]] + generated[running[k]]
                        ):
                            batch_new += output[running[k]] - generated[running[k]]
                    while budget > 0 and num_running < max_num_seqs:
                        if ordered:
                            if num_heap == 0:
                                break
                            i = by_rank[heap[0]]
                        elif num_preempted > 0:
                            i = stack[num_preempted - 1]
                        elif waiting >= 0 and arrival[waiting] <= clock:
                            i = waiting
                        else:
                            break
                        resumed = preemptions[i] > 0
                        if timed and deadline[i] <= clock:
                            if ordered:
                                num_heap = pop(heap, num_heap)
                            elif not resumed:
                                waiting = follow[i]
                            if resumed:
                                num_preempted -= 1
                                if prefix_caching:
                                    row = row_of[i]
                                    for block in range(num_kv_blocks):
                                        if owner[block] == row:
                                            owner[block] = -1
                                    spare[num_spare] = row
                                    num_spare += 1
                            if since is not None:
                                marks = marked(marks, num_marks, clock, ABANDONED, i)
                                num_marks += 1
                            continue
                        tokens = prompt[i] + generated[i]
                        found = 0
                        evictable = 0
                        hit = 0
                        common = 0
                        if prefix_caching:
                            common = found_blocks(i, prompt[i] // block_size, starts, block_of, units, unit_offsets)
                            found = common
                            if resumed:
                                found += left[row_of[i]]
                                evictable += left[row_of[i]]
                            number = 0
                            for k in range(unit_offsets[i], unit_offsets[i + 1]):
                                for key in range(starts[units[k]], starts[units[k] + 1]):
                                    if number < common and refs[block_of[key]] == 0:
                                        evictable += 1
                                    number += 1
                            hit = min(found, (tokens - 1) // block_size) * block_size
                        if tokens - hit > budget and not chunked_prefill:
                            break
                        chunk = min(tokens - hit, budget)
                        need = (hit + chunk + block_size - 1) // block_size - found
                        room = (tokens + block_size - 1) // block_size - found if reserve_full_prompt else need
                        room += evictable + state
                        if num_running > 0:
                            room += watermark_blocks
                        if room > free:
                            break
                        whole = (prompt[i] + output[i] - 1 + block_size - 1) // block_size + state
                        if promise_output:
                            if promised + whole > num_kv_blocks:
                                break
                            promised += whole
                        if step_order == KEEPS_SHARE:
                            new = output[i] - generated[i]
                            to_come = 0
                            for k in range(num_running):
                                if decoding[running[k]]:
                                    to_come += output[running[k]] - generated[running[k]]
                            kept = (free - evictable) * block_size - batch_new - share * to_come
                            if num_running > 0 and tokens - hit + new + block_size >= kept:
                                break
                            batch_new += new
                        if ordered:
                            num_heap = pop(heap, num_heap)
                        if resumed:
                            num_preempted -= 1
                        else:
                            scheduled[i] = clock
                            hits[i] = hit
                            if not ordered:
                                waiting = follow[i]
                            if prefix_caching:
                                num_spare -= 1
                                row_of[i] = spare[num_spare]
                        if since is not None:
                            marks = marked(marks, num_marks, clock, ADMITTED, i)
                            num_marks += 1
                        free -= need + evictable + state
                        if prefix_caching:
                            row = row_of[i]
                            number = 0
                            for k in range(unit_offsets[i], unit_offsets[i + 1]):
                                for key in range(starts[units[k]], starts[units[k] + 1]):
                                    if number < common:
                                        block = block_of[key]
                                        if refs[block] == 0:
                                            pull(block, newer, older)
                                        refs[block] += 1
                                        blocks[row, number] = block
                                        number += 1
                            for k in range(common, found):  # its own, where they were
                                block = blocks[row, k]
                                pull(block, newer, older)
                                refs[block] = 1
                                owner[block] = -1
                            left[row] = 0
                            for k in range(found, found + need):
                                blocks[row, k] = take_block(newer, older, key_of, block_of, owner, place, left, refs)
                            for k in range(most - state, most):
                                blocks[row, k] = take_block(newer, older, key_of, block_of, owner, place, left, refs)
                            shared[i] = make_findable(
                                i, common, (hit + chunk) // block_size, prompt[i] // block_size, blocks[row],
                                starts, block_of, key_of, units, unit_offsets,
                            )  # fmt: skip
                        computed[i] = hit
                        held[i] = found + need
                        running[num_running] = i
                        chunk_of[num_running] = chunk
                        num_running += 1
                        num_scheduled += 1
                        budget -= chunk
            elif turn == 0 or (step_order > 0 and num_scheduled == 0):
                k = 0
                while k < num_running and budget > 0:
                    i = running[k]
                    k += 1
                    if step_order > 0 and decoding[i] != (turn == 2):
                        continue
                    chunk = prompt[i] + generated[i] - computed[i]
                    if decoding[i] and draft_tokens > 0:
                        chunk = min(1 + draft_tokens, output[i] - generated[i])
                    chunk = min(chunk, budget)
                    need = max((computed[i] + chunk + block_size - 1) // block_size - held[i], 0)
                    fits = True
                    while need > free:
                        num_running -= 1
                        victim = running[num_running]
                        if ordered:
                            worst = num_running
                            for j in range(num_running):
                                if rank[running[j]] > rank[running[worst]]:
                                    worst = j
                            victim = running[worst]
                            if worst < k - 1:  # it had its share of this step already
                                budget += chunk_of[worst]
                                num_scheduled -= 1
                                k -= 1
                            for j in range(worst, num_running):
                                running[j] = running[j + 1]
                                chunk_of[j] = chunk_of[j + 1]
                            chunk_of[num_running] = 0
                        if prefix_caching:
                            row = row_of[victim]
                            free += free_state(state, blocks[row], newer, older, refs) + free_all(
                                row, held[victim], shared[victim], computed[victim] // block_size, False, blocks[row],
                                newer, older, owner, place, left, refs,
                            )  # fmt: skip
                        else:
                            free += held[victim] + state
                        held[victim] = 0
                        computed[victim] = 0
                        decoding[victim] = False
                        if preemptions[victim] == 0 and generated[victim] == 0:
                            token_s[victim] = clock  # its first token is late by what follows
                        preemptions[victim] += 1
                        if ordered:
                            num_heap = push(heap, num_heap, rank[victim])
                        else:
                            stack[num_preempted] = victim
                        num_preempted += 1
                        any_preempted = True
                        if since is not None:
                            marks = marked(marks, num_marks, clock, EVICTED, victim)
                            num_marks += 1
                        if victim == i:
                            fits = False
                            break
                    if not fits:
                        break
                    free -= need
                    if prefix_caching:
                        row = row_of[i]
                        for j in range(held[i], held[i] + need):
                            blocks[row, j] = take_block(newer, older, key_of, block_of, owner, place, left, refs)
                        if not decoding[i]:
                            shared[i] = make_findable(
                                i, shared[i], (computed[i] + chunk) // block_size, prompt[i] // block_size, blocks[row],
                                starts, block_of, key_of, units, unit_offsets,
                            )  # fmt: skip
                    held[i] += need
                    chunk_of[k - 1] = chunk
                    budget -= chunk
                    num_scheduled += 1
                if turn == 2:
                    done = 0
                    asked = 0
                    number = 0
                    for k in range(num_running):
                        if decoding[running[k]]:
                            number += 1
                            done += generated[running[k]]
                            asked += output[running[k]]
                    if any_preempted:
                        share = min((done + RETRACT_STEPS * number) / (asked + 1), 1.0)
                    else:
                        share = max(share - SHARE_DECAY, SHARE_LEAST)
        if num_scheduled == 0:
            continue

        decodes = 0
        verified = 0
        sampled = 0
        kv = 0
        kv_windowed = 0
        pre_tokens = 0
        pre_chunks = 0
        pairs = 0
        pairs_windowed = 0
        for k in range(num_running):
            i = running[k]
            c = computed[i]
            chunk = chunk_of[k]
            if chunk == 0:
                continue
            if decoding[i]:
                keys = c + chunk
                decodes += 1
                verified += chunk
                kv += keys
                kv_windowed += min(keys, window) if window > 0 else keys
            else:
                pre_tokens += chunk
                pre_chunks += 1
                pairs += _pairs(c, chunk, 0)
                pairs_windowed += _pairs(c, chunk, window)
            if decoding[i]:
                sampled += chunk
            elif c + chunk == prompt[i] + generated[i]:
                sampled += 1
        parts = _parts(
            linear, linear_compute, linear_weights, collective, overhead, head, head_compute, head_weights, lines,
            verified + pre_tokens, sampled, decodes, kv, kv_windowed, pre_tokens, pre_chunks, pairs, pairs_windowed,
        )  # fmt: skip
        seconds = parts[5]
        if pre_tokens > 0:
            marginal = seconds
            if decodes > 0:
                marginal -= _parts(
                    linear, linear_compute, linear_weights, collective, overhead,
                    head, head_compute, head_weights, lines,
                    verified, verified, decodes, kv, kv_windowed, 0, 0, 0, 0,
                )[5]  # fmt: skip
            floats[0, PREFILL_S] += max(marginal, 0.0)
        if decodes > 0 and draft_tokens > 0:
            seconds += draft_s
            floats[0, PART_S + 4] += draft_s
        start = clock
        clock = clock + seconds
        used = num_kv_blocks - free
        ints[0, STEPS] += 1
        floats[0, BUSY_S] += seconds
        floats[0, BATCH_S] += seconds * num_scheduled
        floats[0, USED_S] += seconds * used
        ints[0, BATCH_MAX] = max(ints[0, BATCH_MAX], num_scheduled)
        ints[0, USED_MAX] = max(ints[0, USED_MAX], used)
        cause = 0
        for k in range(5):
            floats[0, PART_S + k] += parts[k]
            if parts[k] > parts[cause]:
                cause = k
        floats[0, BOUND_S + cause] += seconds
        if since is not None:  # noqa: SIM102 - as below
            if clock > since:
                steps = longer(steps, num_steps)
                steps[num_steps, 0] = start
                steps[num_steps, 1] = seconds
                steps[num_steps, 2] = decodes
                steps[num_steps, 3] = verified
                steps[num_steps, 4] = pre_tokens
                steps[num_steps, 5] = pre_chunks
                steps[num_steps, 6] = cause
                steps[num_steps, 7] = num_running
                steps[num_steps, 8] = num_preempted
                steps[num_steps, 9] = used
                num_steps += 1

        kept = 0
        for k in range(num_running):
            i = running[k]
            if chunk_of[k] > 0:
                emitted = 1
                if decoding[i] and draft_tokens > 0:
                    emitted = min(1 + accepted[num_drawn % len(accepted)], chunk_of[k])
                    num_drawn += 1
                    computed[i] += emitted
                else:
                    computed[i] += chunk_of[k]
                if decoding[i] or computed[i] == prompt[i] + generated[i]:
                    if generated[i] == 0:
                        first[i] = clock
                        if preemptions[i] > 0:
                            paused[i, 0] = clock - token_s[i]
                    else:
                        gap = clock - token_s[i]
                        if not decoding[i]:
                            paused[i, 1] += gap
                        floats[0, GAP_TOTAL] += gap
                        bits[0, 0] = gap
                        histogram[0, min(max((bits_int[0, 0] >> BUCKET_SHIFT) - BUCKET_BASE, 0), NUM_BUCKETS - 1)] += 1
                    token_s[i] = clock
                    if since is not None:  # noqa: SIM102 - what is not compiled must be a branch of its own
                        if not decoding[i]:
                            marks = marked(marks, num_marks, clock, TOKEN, i)
                            num_marks += 1
                    decoding[i] = True
                    generated[i] += emitted
                    histogram[0, 0] += emitted - 1  # guesses that hold come together with the token
                    if generated[i] == output[i]:
                        last[i] = clock
                        ints[0, FINISHED] += 1
                        if since is not None:
                            marks = marked(marks, num_marks, clock, ENDED, i)
                            num_marks += 1
                        promised -= (computed[i] + block_size - 1) // block_size + state
                        if prefix_caching:
                            row = row_of[i]
                            full = computed[i] // block_size
                            shared[i] = make_findable(
                                i, shared[i], full, full, blocks[row], starts, block_of, key_of, units, unit_offsets
                            )
                            free += free_state(state, blocks[row], newer, older, refs) + free_all(
                                row, held[i], shared[i], full, True, blocks[row],
                                newer, older, owner, place, left, refs,
                            )  # fmt: skip
                            spare[num_spare] = row
                            num_spare += 1
                        else:
                            free += held[i] + state
                        held[i] = 0
                        continue
            running[kept] = i
            kept += 1
        num_running = kept
    floats[0, CLOCK] = clock
    ints[0, FREE_BLOCKS] = free
    ints[0, NEXT] = waiting
    return steps[:num_steps], marks[:num_marks]
