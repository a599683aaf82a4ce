"""The oracle: the same scheduler written the plain way, visiting every running sequence in every step.

It follows vLLM's V1 scheduler statement by statement in behaviour: running sequences in order of admission, each
allocating the blocks it lacks and preempting from the tail when there are none, then the waiting line. O(batch) per
step, easy to check by eye; :mod:`gambrel.engine.kernel` must agree with it bit for bit. Policies under which decoders
do not advance alike start from here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from gambrel.core.step import pairs_within, step_parts
from gambrel.engine.compiled import compiled
from gambrel.engine.naive_cache import found_blocks, free_all, make_findable, pull, put, take_block
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
    NEXT,
    NUM_BUCKETS,
    PART_S,
    PREFILL_S,
    RETRACT_STEPS,
    SHARE_DECAY,
    SHARE_FIRST,
    SHARE_LEAST,
    STEPS,
    USED_MAX,
    USED_S,
)

__all__ = ["replay"]

_pairs = njit(pairs_within)
_parts = njit(step_parts)


@compiled(step_parts, pairs_within, found_blocks, free_all, make_findable, pull, put, take_block, allocates=True)
def replay(
    linear: Any, linear_compute: Any, linear_weights: Any, collective: Any, overhead: Any,
    head: Any, head_compute: Any, head_weights: Any, lines: Any, window: int,
    max_num_seqs: int, max_num_batched_tokens: int, num_kv_blocks: int, block_size: int,
    chunked_prefill: bool, reserve_full_prompt: bool, watermark_blocks: int, prefix_caching: bool,
    promise_output: bool, static_batch: bool, prefill_first: bool,
    arrival: Any, prompt: Any, output: Any, follow: Any, scheduled: Any, first: Any, last: Any, preemptions: Any,
    paused: Any, hits: Any, units: Any, unit_offsets: Any, unit_sizes: Any,
    ints: Any, floats: Any, histogram: Any, bits: Any, bits_int: Any,
    draft_tokens: int, draft_s: float, accepted: Any,
) -> None:  # fmt: skip
    """Run the whole waiting line of the first replica; results land in the same places as the fast kernel's.

    Speculative decoding: a decoder computes ``draft_tokens`` guesses beside its token, never beyond its answer; the
    next of ``accepted`` int64[m], over and over, says how many of them hold. Guessing takes ``draft_s`` seconds a step.
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
    num_running = 0
    num_preempted = 0
    promised = 0
    num_drawn = 0
    share = SHARE_FIRST

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
    rows = max_num_seqs if prefix_caching else 0
    most = (np.max(prompt + output) + block_size - 1) // block_size
    blocks = np.zeros((rows, most), np.int64)  # of each request in the replica
    left = np.zeros(rows, np.int64)  # own blocks of a preempted request that are still cached
    row_of = np.full(n, -1, np.int64)
    shared = np.zeros(n, np.int64)  # blocks hashed for all, the first of a request
    spare = np.arange(rows)
    num_spare = rows
    waiting = ints[0, NEXT]
    free = num_kv_blocks
    clock = floats[0, CLOCK]

    while True:
        if num_running == 0 and num_preempted == 0:
            if waiting < 0:
                break
            if arrival[waiting] > clock:
                clock = arrival[waiting]
                share = SHARE_FIRST
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
                        if num_preempted > 0:
                            i = stack[num_preempted - 1]
                        elif waiting >= 0 and arrival[waiting] <= clock:
                            i = waiting
                        else:
                            break
                        tokens = prompt[i] + generated[i]
                        found = 0
                        evictable = 0
                        hit = 0
                        common = 0
                        if prefix_caching:
                            common = found_blocks(i, prompt[i] // block_size, starts, block_of, units, unit_offsets)
                            found = common
                            if num_preempted > 0:
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
                        room += evictable
                        if num_running > 0:
                            room += watermark_blocks
                        if room > free:
                            break
                        whole = (prompt[i] + output[i] - 1 + block_size - 1) // block_size
                        if promise_output:
                            if promised + whole > num_kv_blocks:
                                break
                            promised += whole
                        if prefill_first:
                            new = output[i] - generated[i]
                            to_come = 0
                            for k in range(num_running):
                                if decoding[running[k]]:
                                    to_come += output[running[k]] - generated[running[k]]
                            kept = (free - evictable) * block_size - batch_new - share * to_come
                            if num_running > 0 and tokens - hit + new + block_size >= kept:
                                break
                            batch_new += new
                        if num_preempted > 0:
                            num_preempted -= 1
                        else:
                            scheduled[i] = clock
                            hits[i] = hit
                            waiting = follow[i]
                            if prefix_caching:
                                num_spare -= 1
                                row_of[i] = spare[num_spare]
                        free -= need + evictable
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
            elif turn == 0 or (prefill_first and num_scheduled == 0):
                k = 0
                while k < num_running and budget > 0:
                    i = running[k]
                    k += 1
                    if prefill_first and decoding[i] != (turn == 2):
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
                        if prefix_caching:
                            row = row_of[victim]
                            free += free_all(
                                row, held[victim], shared[victim], computed[victim] // block_size, False, blocks[row],
                                newer, older, owner, place, left, refs,
                            )  # fmt: skip
                        else:
                            free += held[victim]
                        held[victim] = 0
                        computed[victim] = 0
                        decoding[victim] = False
                        if preemptions[victim] == 0 and generated[victim] == 0:
                            token_s[victim] = clock  # its first token is late by what follows
                        preemptions[victim] += 1
                        stack[num_preempted] = victim
                        num_preempted += 1
                        any_preempted = True
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
                    decoding[i] = True
                    generated[i] += emitted
                    histogram[0, 0] += emitted - 1  # guesses that hold come together with the token
                    if generated[i] == output[i]:
                        last[i] = clock
                        ints[0, FINISHED] += 1
                        promised -= (computed[i] + block_size - 1) // block_size
                        if prefix_caching:
                            row = row_of[i]
                            full = computed[i] // block_size
                            shared[i] = make_findable(
                                i, shared[i], full, full, blocks[row], starts, block_of, key_of, units, unit_offsets
                            )
                            free += free_all(
                                row, held[i], shared[i], full, True, blocks[row],
                                newer, older, owner, place, left, refs,
                            )  # fmt: skip
                            spare[num_spare] = row
                            num_spare += 1
                        else:
                            free += held[i]
                        held[i] = 0
                        continue
            running[kept] = i
            kept += 1
        num_running = kept
    floats[0, CLOCK] = clock
    ints[0, FREE_BLOCKS] = free
    ints[0, NEXT] = waiting
