"""One continuous-batching replica as an event loop whose every iteration is O(1), however large the batch.

Decoders are never touched one by one. They advance alike, one token a step, so sums describe them:

- *Finishers* wait in a calendar ring under the step they finish in (doubly linked lists through the slots).
- *KV blocks*: a decoder needs a new block in the step in which its context is a multiple of ``block_size``; counters
  by (context - step) modulo ``block_size`` say how many do.
- *KV tokens read*: a running sum of contexts grows by the number of decoders each step; for windowed attention a
  second sum grows by the number of decoders still below the window, which a ring of crossings keeps.
- *The preemption victim* is the tail of a linked list in order of admission.
- *The partly prefilled prompt* is at most one under first come, first served, and the last admitted: a few scalars.

Everything a step costs is a function of integer sums, so this loop and the scheduler that visits every sequence
(:mod:`gambrel.engine.naive_kernel`) hand the cost formula the same numbers and agree bit for bit.

State lives in the arrays of :class:`gambrel.engine.state.Replica`, so a replica can be advanced to a time and resumed
later: routing needs that. This module imports numba; import it only where a simulation starts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from gambrel.core.step import decode_parts, decode_terms, pairs_within, step_parts
from gambrel.engine.cache_kernel import cover, join, match, release, take
from gambrel.engine.compiled import compiled, inlined
from gambrel.engine.state import (
    AFTER,
    ASKED,
    BATCH_MAX,
    BATCH_S,
    BEFORE,
    BELOW_WINDOW,
    BOUND_S,
    BUCKET,
    BUCKET_BASE,
    BUCKET_SHIFT,
    BUSY_S,
    CLOCK,
    CONTEXT,
    CONTEXT_WINDOWED,
    DECODED,
    DECODES,
    ENDED,
    FINISH,
    FINISHED,
    FREE_BLOCKS,
    FREE_SLOTS,
    FRESH,
    GAP_TOTAL,
    GENERATED,
    JOINED,
    KEEPS_SHARE,
    LAST_FINISHED,
    NEVER,
    NEXT,
    NUM_ADMITTED,
    NUM_BUCKETS,
    NUM_JOINED,
    NUM_SAMPLES,
    NUM_SAMPLES_MAX,
    NUM_SEEN,
    NUM_STARTED,
    OFFSET,
    ORDER,
    PART_S,
    PARTIAL,
    PARTIAL_DONE,
    PARTIAL_TARGET,
    PREEMPTED,
    PREFILL_S,
    PROMISED,
    REMAINING,
    REQUEST,
    RETRACT_STEPS,
    RING_AFTER,
    RING_BEFORE,
    SAMPLE_EVERY,
    SAMPLE_ORIGIN,
    SEEN,
    SHARE,
    SHARE_DECAY,
    SHARE_FIRST,
    SHARE_LEAST,
    SPARE,
    STACK,
    STATE_BLOCKS,
    STEPS,
    TAIL,
    TICKS,
    USED_MAX,
    USED_S,
)

__all__ = ["advance", "advance_inline", "sample"]

_pairs = njit(pairs_within)
_parts = njit(step_parts)
_terms = njit(decode_terms)
_decode = njit(decode_parts)


@compiled()
def _ceil(tokens: int, size: int) -> Any:
    """Blocks of ``size`` that hold ``tokens``; unsigned, which spares the division a look at the signs."""
    return np.int64((np.uint64(tokens) + np.uint64(size) - np.uint64(1)) // np.uint64(size))


@compiled()
def sample(
    replica: int, arrival: Any, follow: Any, ints: Any, floats: Any, samples: Any,
    until: float, running: int, preempted: int, used: int,
) -> Any:  # fmt: skip
    """Record the state that holds until ``until`` at every grid time before it; the next grid time.

    When the table is full every second sample goes and the grid doubles, so any run fits.
    """
    count = ints[replica, NUM_SAMPLES]
    every = floats[replica, SAMPLE_EVERY]
    origin = floats[replica, SAMPLE_ORIGIN]
    time = origin + count * every
    while time < until:
        seen = ints[replica, SEEN]
        while seen >= 0 and arrival[seen] <= time:
            ints[replica, NUM_SEEN] += 1
            seen = follow[seen]
        ints[replica, SEEN] = seen
        samples[replica, 0, count] = time
        samples[replica, 1, count] = running
        samples[replica, 2, count] = max(ints[replica, NUM_SEEN] - ints[replica, NUM_STARTED], 0) + preempted
        samples[replica, 3, count] = used
        count += 1
        if count == NUM_SAMPLES_MAX:
            count = NUM_SAMPLES_MAX // 2
            for row in range(4):
                for i in range(count):
                    samples[replica, row, i] = samples[replica, row, 2 * i]
            every *= 2.0
            floats[replica, SAMPLE_EVERY] = every
        time = origin + count * every
    ints[replica, NUM_SAMPLES] = count
    return time


@compiled()
def count(replica: int, gap: float, number: int, histogram: Any, bits: Any, bits_int: Any) -> None:
    """Count ``number`` gaps between tokens of ``gap`` seconds."""
    bits[replica, 0] = gap
    histogram[replica, min(max((bits_int[replica, 0] >> BUCKET_SHIFT) - BUCKET_BASE, 0), NUM_BUCKETS - 1)] += number


@compiled(_ceil, release, take)
def evict(
    replica: int, prompts_first: bool, step: int, phase: int, clock: float, decoded: float, done: int, window: int,
    block_size: int, prefix_caching: bool, free: int, need: int, tail: int, partial: int, preempted: int,
    decodes: int, context: int, context_windowed: int, below: int, remaining_all: int, asked: int, num_joined: int,
    output: Any, preemptions: Any, units: Any, unit_offsets: Any, unit_sizes: Any,
    ints: Any, slots: Any, token_s: Any, ring: Any, crossings: Any, offsets: Any, cache: Any,
) -> Any:  # fmt: skip
    """The last admitted give way until ``need`` blocks are free; what that leaves of the loop's own variables.

    Apart from the loop, which is faster without what it seldom does.
    """
    mask = ring.shape[1] - 1
    windowed = window > 0
    while need > free:
        if prefix_caching and free > 0:  # those before had theirs already, of what was free then
            take(replica, free, ints, cache)
            need -= free
            free = 0
        victim = tail
        tail = slots[replica, BEFORE, victim]
        cached = done
        if victim == partial:
            partial = -1
        else:
            cached = step + slots[replica, OFFSET, victim]
            offsets[replica, slots[replica, BUCKET, victim]] -= 1
            if slots[replica, BUCKET, victim] == phase:
                need -= 1
            i = slots[replica, RING_BEFORE, victim]
            j = slots[replica, RING_AFTER, victim]
            if i >= 0:
                slots[replica, RING_AFTER, i] = j
            else:
                ring[replica, slots[replica, FINISH, victim] & mask] = j
            if j >= 0:
                slots[replica, RING_BEFORE, j] = i
            decodes -= 1
            context -= cached
            if windowed:
                if cached < window:
                    below -= 1
                    context_windowed -= cached + 1
                    if cached + slots[replica, FINISH, victim] - step + 1 >= window:
                        crossings[replica, (step + window - cached - 1) & mask] -= 1
                else:
                    context_windowed -= window
            left = slots[replica, FINISH, victim] - step + 1
            remaining_all -= left
            asked -= output[slots[replica, REQUEST, victim]]
            if prompts_first:
                joined = -1
                for k in range(num_joined):
                    if slots[replica, JOINED, k] == victim:
                        joined = k
                if joined >= 0:  # its last token came with the end of its prompt
                    num_joined -= 1
                    slots[replica, JOINED, joined] = slots[replica, JOINED, num_joined]
                else:
                    token_s[replica, victim] = decoded
            else:
                token_s[replica, victim] = clock
            slots[replica, GENERATED, victim] = output[slots[replica, REQUEST, victim]] - left
        if prefix_caching:
            free += release(
                replica, victim, cached, block_size, False, ints, slots, cache, units, unit_offsets, unit_sizes
            )
        else:
            free += _ceil(cached, block_size) + ints[replica, STATE_BLOCKS]
        i = slots[replica, REQUEST, victim]
        if preemptions[i] == 0 and slots[replica, GENERATED, victim] == 0:
            token_s[replica, victim] = clock  # its first token is late by what follows
        preemptions[i] += 1
        slots[replica, STACK, preempted] = victim
        preempted += 1
    return (
        free, need, tail, partial, preempted, decodes, context, context_windowed, below,
        remaining_all, asked, num_joined,
    )  # fmt: skip


@compiled(
    step_parts, decode_terms, decode_parts, pairs_within, _ceil, count, sample, evict, take, match, join, cover, release
)  # fmt: skip
def advance(
    replica: int, until: float, pause: bool,
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
    """Run every step that starts before ``until``, with the requests now in the replica's waiting line.

    ``pause`` stops after a step in which a request ended: whoever waited for its answer may act on it.
    """
    mask = ring.shape[1] - 1
    prompts_first = step_order is not None  # known when compiled: the order of a step costs nothing
    keep_share = prompts_first and step_order == KEEPS_SHARE
    windowed = window > 0
    state = ints[replica, STATE_BLOCKS]

    step, decodes, context = ints[replica, TICKS], ints[replica, DECODES], ints[replica, CONTEXT]
    steps, promised, num_joined = ints[replica, STEPS], ints[replica, PROMISED], ints[replica, NUM_JOINED]
    remaining_all, asked, share, decoded = (
        ints[replica, REMAINING],
        ints[replica, ASKED],
        floats[replica, SHARE],
        floats[replica, DECODED],
    )
    context_windowed, below = ints[replica, CONTEXT_WINDOWED], ints[replica, BELOW_WINDOW]
    tail, partial, done, target = (
        ints[replica, TAIL],
        ints[replica, PARTIAL],
        ints[replica, PARTIAL_DONE],
        ints[replica, PARTIAL_TARGET],
    )
    waiting, preempted = ints[replica, NEXT], ints[replica, PREEMPTED]
    free, free_slots = ints[replica, FREE_BLOCKS], ints[replica, FREE_SLOTS]
    batch_max, used_max = ints[replica, BATCH_MAX], ints[replica, USED_MAX]
    finished, last_finished = ints[replica, FINISHED], ints[replica, LAST_FINISHED]
    clock, busy_s, prefill_s = floats[replica, CLOCK], floats[replica, BUSY_S], floats[replica, PREFILL_S]
    batch_s, used_s, gap_total = floats[replica, BATCH_S], floats[replica, USED_S], floats[replica, GAP_TOTAL]
    bound0, bound1, bound2 = floats[replica, BOUND_S], floats[replica, BOUND_S + 1], floats[replica, BOUND_S + 2]
    bound3, bound4 = floats[replica, BOUND_S + 3], floats[replica, BOUND_S + 4]
    part0, part1, part2 = floats[replica, PART_S], floats[replica, PART_S + 1], floats[replica, PART_S + 2]
    part3, part4 = floats[replica, PART_S + 3], floats[replica, PART_S + 4]
    sample_at = floats[replica, SAMPLE_EVERY]  # infinite: no series is wanted
    if sample_at < NEVER:
        sample_at = floats[replica, SAMPLE_ORIGIN] + ints[replica, NUM_SAMPLES] * floats[replica, SAMPLE_EVERY]
    phase = (block_size - step % block_size) % block_size  # -step modulo block_size
    blocked = False  # nobody boards until somebody leaves

    while True:
        if decodes == 0 and partial < 0 and preempted == 0:
            blocked = False
            if waiting < 0:
                break
            if arrival[waiting] > clock:
                clock = arrival[waiting]
                share = SHARE_FIRST
                if sample_at < clock:
                    sample_at = sample(replica, arrival, follow, ints, floats, samples, clock, 0, 0, 0)
        if clock >= until:
            break

        arrives = NEVER
        if not blocked:
            if preempted > 0:
                arrives = clock
            elif waiting >= 0:
                arrives = arrival[waiting]
        if partial < 0 and arrives > clock and decodes > 0 and num_joined == 0 and offsets[replica, phase] <= free:
            # Decoders only, until one ends, somebody can board or blocks run out: what the batch alone decides is
            # priced once.
            horizon = min(arrives, until, sample_at)
            admit = True
            running = decodes
            completed = 0
            pre_tokens = 0
            pre_chunks = 0
            advancing = decodes
            terms = _terms(
                linear, linear_compute, linear_weights, collective, overhead,
                head, head_compute, head_weights, lines, decodes,
            )  # fmt: skip
            batch_max = max(batch_max, decodes)
            used = num_kv_blocks - free
            first_step = step
            short = False
            while True:
                need = offsets[replica, phase]
                if need > free:
                    short = True
                    break
                if prefix_caching and need > 0:
                    take(replica, need, ints, cache)
                free -= need
                used = num_kv_blocks - free
                if prompts_first:
                    share = max(share - SHARE_DECAY, SHARE_LEAST)
                kv = context + decodes
                kv_windowed = context_windowed if windowed else kv
                compute, weights, memory, wire, host, seconds = _decode(*terms, kv, kv_windowed)
                start = decoded if prompts_first else clock
                clock = clock + seconds
                decoded = clock
                steps += 1
                busy_s += seconds
                batch_s += seconds * decodes
                used_s += seconds * used
                part0 += compute
                part1 += weights
                part2 += memory
                part3 += wire
                part4 += host
                largest = max(compute, weights, memory, wire, host)
                if compute == largest:
                    bound0 += seconds
                elif weights == largest:
                    bound1 += seconds
                elif memory == largest:
                    bound2 += seconds
                elif wire == largest:
                    bound3 += seconds
                else:
                    bound4 += seconds
                gap = clock - start
                gap_total += gap * decodes
                count(replica, gap, decodes, histogram, bits, bits_int)
                place = step & mask
                if clock >= horizon or ring[replica, place] >= 0:
                    break
                context += decodes
                if windowed:
                    below -= crossings[replica, place]
                    crossings[replica, place] = 0
                    context_windowed += below
                step += 1
                phase = block_size - 1 if phase == 0 else phase - 1
            remaining_all -= decodes * (step - first_step)
            used_max = max(used_max, used)
            if short:
                continue
        else:
            # Running sequences first: decoders that begin a block need one; the last admitted give way until all fit.
            # Then prompts. Or the other way round, and decoders only where no prompt can be computed.
            admit = True
            blocked = False
            advancing = decodes
            budget = max_num_batched_tokens
            running = 0
            completed = 0
            pre_tokens = 0
            pre_chunks = 0
            pairs = 0
            pairs_windowed = 0
            for part in range(2):
                if (part == 1) == prompts_first:
                    if pre_tokens > 0:
                        advancing = 0
                        continue
                    need = offsets[replica, phase]
                    if need > free:
                        admit = False
                        (
                            free, need, tail, partial, preempted, decodes, context, context_windowed, below,
                            remaining_all, asked, num_joined,
                        ) = evict(
                            replica, prompts_first, step, phase, clock, decoded, done, window, block_size,
                            prefix_caching, free, need, tail, partial, preempted, decodes, context, context_windowed,
                            below, remaining_all, asked, num_joined,
                            output, preemptions, units, unit_offsets, unit_sizes,
                            ints, slots, token_s, ring, crossings, offsets, cache,
                        )  # fmt: skip
                        running = decodes if partial < 0 else decodes + 1
                    if not admit and tail >= 0:
                        slots[replica, AFTER, tail] = -1
                    free -= need
                    if prefix_caching and need > 0:
                        take(replica, need, ints, cache)
                    advancing = decodes
                    budget -= decodes
                    if prompts_first:
                        if admit:
                            share = max(share - SHARE_DECAY, SHARE_LEAST)
                        else:
                            share = min((asked - remaining_all + RETRACT_STEPS * decodes) / (asked + 1), 1.0)
                else:
                    running = decodes
                    if partial >= 0:
                        running += 1
                        if budget > 0:
                            chunk = min(target - done, budget)
                            blocks = _ceil(done + chunk, block_size)
                            blocks -= _ceil(done, block_size)
                            if blocks > free:
                                # It is the last of the running, so it gives way itself.
                                if prefix_caching:
                                    free += release(
                                        replica, partial, done, block_size, False,
                                        ints, slots, cache, units, unit_offsets, unit_sizes,
                                    )  # fmt: skip
                                else:
                                    free += _ceil(done, block_size) + state
                                tail = slots[replica, BEFORE, partial]
                                admit = False
                                i = slots[replica, REQUEST, partial]
                                if preemptions[i] == 0 and slots[replica, GENERATED, partial] == 0:
                                    token_s[replica, partial] = clock
                                preemptions[i] += 1
                                slots[replica, STACK, preempted] = partial
                                preempted += 1
                                partial = -1
                                running -= 1
                            else:
                                free -= blocks
                                budget -= chunk
                                pre_tokens = chunk
                                pre_chunks = 1
                                pairs = _pairs(done, chunk, 0)
                                if windowed:
                                    pairs_windowed = _pairs(done, chunk, window)
                                done += chunk
                                if prefix_caching:
                                    take(replica, blocks, ints, cache)
                                    cover(
                                        replica, partial, done // block_size,
                                        prompt[slots[replica, REQUEST, partial]] // block_size,
                                        slots, cache, units, unit_offsets, unit_sizes,
                                    )  # fmt: skip
                                if done == target:
                                    slots[replica, FRESH, 0] = partial
                                    completed = 1
                                    partial = -1

                    # Then the waiting line, unless somebody was preempted: preempted requests first, then by arrival.
                    if admit and partial < 0 and not (static_batch and running > 0):
                        batch_new = 0  # tokens that prompts completed in this step will generate
                        if prompts_first and completed > 0:
                            i = slots[replica, REQUEST, slots[replica, FRESH, 0]]
                            batch_new = output[i] - slots[replica, GENERATED, slots[replica, FRESH, 0]]
                        while budget > 0 and running < max_num_seqs:
                            if preempted > 0:
                                slot = slots[replica, STACK, preempted - 1]
                                i = slots[replica, REQUEST, slot]
                                tokens = prompt[i] + slots[replica, GENERATED, slot]
                            elif waiting >= 0 and arrival[waiting] <= clock:
                                slot = -1
                                i = waiting
                                tokens = prompt[i]
                            else:
                                break
                            found = 0  # blocks in the cache
                            evictable = 0  # of these, free now
                            hit = 0  # tokens that need no computing; the last block is computed again if all is there
                            known = prefix_caching and (slot >= 0 or unit_offsets[i + 1] > unit_offsets[i])
                            if known:
                                found, evictable = match(
                                    replica, i, slot, prompt[i] // block_size, cache, units, unit_offsets, unit_sizes
                                )
                                hit = min(found, (tokens - 1) // block_size) * block_size
                            if tokens - hit > budget and not chunked_prefill:
                                blocked = True
                                break
                            chunk = min(tokens - hit, budget)
                            blocks = _ceil(hit + chunk, block_size) - found + state
                            room = blocks
                            if hit + chunk < tokens and reserve_full_prompt:
                                room = _ceil(tokens, block_size) - found + state
                            room += evictable
                            if running > 0:
                                room += watermark_blocks
                            if room > free:
                                blocked = True
                                break
                            if promise_output:
                                whole = (prompt[i] + output[i] + block_size - 2) // block_size + state
                                if promised + whole > num_kv_blocks:
                                    blocked = True
                                    break
                                promised += whole
                            if keep_share:
                                new = output[i]
                                if slot >= 0:
                                    new -= slots[replica, GENERATED, slot]
                                kept = (free - evictable) * block_size - batch_new - share * remaining_all
                                if running > 0 and tokens - hit + new + block_size >= kept:
                                    break
                                batch_new += new
                            if slot >= 0:
                                preempted -= 1
                            else:
                                free_slots -= 1
                                slot = slots[replica, SPARE, free_slots]
                                slots[replica, REQUEST, slot] = waiting
                                slots[replica, GENERATED, slot] = 0
                                scheduled[waiting] = clock
                                hits[waiting] = hit
                                waiting = follow[waiting]
                                ints[replica, NUM_STARTED] += 1
                            free -= blocks + evictable
                            if prefix_caching:
                                if found > 0:
                                    join(
                                        replica, slot, prompt[i] // block_size,
                                        ints, slots, cache, units, unit_offsets, unit_sizes,
                                    )  # fmt: skip
                                take(replica, blocks, ints, cache)
                                slots[replica, ORDER, slot] = ints[replica, NUM_ADMITTED]
                                ints[replica, NUM_ADMITTED] += 1
                            if known:
                                cover(
                                    replica, slot, (hit + chunk) // block_size, prompt[i] // block_size,
                                    slots, cache, units, unit_offsets, unit_sizes,
                                )  # fmt: skip
                            slots[replica, BEFORE, slot] = tail
                            slots[replica, AFTER, slot] = -1
                            if tail >= 0:
                                slots[replica, AFTER, tail] = slot
                            tail = slot
                            running += 1
                            budget -= chunk
                            pre_tokens += chunk
                            pre_chunks += 1
                            pairs += _pairs(hit, chunk, 0)
                            if windowed:
                                pairs_windowed += _pairs(hit, chunk, window)
                            if hit + chunk < tokens:
                                partial = slot
                                done = hit + chunk
                                target = tokens
                                break
                            slots[replica, FRESH, completed] = slot
                            completed += 1
                        # Refused with the whole budget left, it is refused again until somebody leaves.
                        blocked = blocked and pre_chunks == 0 and not prompts_first and not prefix_caching
                        if running >= max_num_seqs or (static_batch and running > 0):
                            blocked = True
                    else:
                        blocked = admit and static_batch
                        if tail >= 0:
                            slots[replica, AFTER, tail] = -1

            if advancing + pre_chunks == 0:
                # Everything that ran was preempted for itself; the blocks are free again, so the next pass admits.
                continue

            # What the step costs.
            kv = 0
            kv_windowed = 0
            if advancing > 0:
                kv = context + decodes
                kv_windowed = context_windowed
            if not windowed:
                kv_windowed = kv
                pairs_windowed = pairs
            compute, weights, memory, wire, host, seconds = _parts(
                linear, linear_compute, linear_weights, collective, overhead, head, head_compute, head_weights, lines,
                advancing + pre_tokens, advancing + completed, advancing, kv, kv_windowed,
                pre_tokens, pre_chunks, pairs, pairs_windowed,
            )  # fmt: skip
            if pre_tokens > 0:
                marginal = seconds
                if advancing > 0:
                    terms = _terms(
                        linear, linear_compute, linear_weights, collective, overhead,
                        head, head_compute, head_weights, lines, advancing,
                    )  # fmt: skip
                    marginal -= _decode(*terms, kv, kv_windowed)[5]
                prefill_s += max(marginal, 0.0)
            start = clock
            clock = start + seconds
            used = num_kv_blocks - free
            batch = advancing + pre_chunks
            steps += 1
            busy_s += seconds
            batch_s += seconds * batch
            used_s += seconds * used
            batch_max = max(batch_max, batch)
            used_max = max(used_max, used)
            part0 += compute
            part1 += weights
            part2 += memory
            part3 += wire
            part4 += host
            largest = max(compute, weights, memory, wire, host)
            if compute == largest:
                bound0 += seconds
            elif weights == largest:
                bound1 += seconds
            elif memory == largest:
                bound2 += seconds
            elif wire == largest:
                bound3 += seconds
            else:
                bound4 += seconds
            if advancing > 0:
                if prompts_first:  # prompts may have had steps of their own in between
                    start = decoded
                    decoded = clock
                    for k in range(num_joined):
                        gap = clock - token_s[replica, slots[replica, JOINED, k]]
                        gap_total += gap
                        count(replica, gap, 1, histogram, bits, bits_int)
                    advancing -= num_joined
                    num_joined = 0
                gap = clock - start
                gap_total += gap * advancing
                count(replica, gap, advancing, histogram, bits, bits_int)
                advancing = decodes
        if sample_at < clock:
            sample_at = sample(replica, arrival, follow, ints, floats, samples, clock, running, preempted, used)

        # One token more for every decoder; the finishers of this step leave.
        last_finished = finished
        if advancing > 0 or not prompts_first:
            context += decodes
            remaining_all -= decodes
            place = step & mask
            slot = ring[replica, place]
            if windowed:
                # The next step reads one key more for each decoder below the window, except those that reach it now.
                below -= crossings[replica, place]
                crossings[replica, place] = 0
                context_windowed += below
            if slot >= 0:
                blocked = static_batch
                ring[replica, place] = -1
                ended = 0
                while slot >= 0:
                    last[slots[replica, REQUEST, slot]] = clock
                    finished += 1
                    cached = step + 1 + slots[replica, OFFSET, slot]
                    asked -= output[slots[replica, REQUEST, slot]]
                    if promise_output:
                        promised -= _ceil(cached, block_size) + state
                    if prefix_caching:  # blocks are freed in order of admission, for that is the order of the queue
                        i = ended
                        while (
                            i > 0 and slots[replica, ORDER, slots[replica, ENDED, i - 1]] > slots[replica, ORDER, slot]
                        ):
                            slots[replica, ENDED, i] = slots[replica, ENDED, i - 1]
                            i -= 1
                        slots[replica, ENDED, i] = slot
                        ended += 1
                    else:
                        free += _ceil(cached, block_size) + state
                    context -= cached
                    decodes -= 1
                    offsets[replica, slots[replica, BUCKET, slot]] -= 1
                    if windowed:
                        if cached < window:
                            below -= 1
                            context_windowed -= cached + 1
                        else:
                            context_windowed -= window
                    i = slots[replica, BEFORE, slot]
                    j = slots[replica, AFTER, slot]
                    if i >= 0:
                        slots[replica, AFTER, i] = j
                    if j >= 0:
                        slots[replica, BEFORE, j] = i
                    else:
                        tail = i
                    slots[replica, SPARE, free_slots] = slot
                    free_slots += 1
                    slot = slots[replica, RING_AFTER, slot]
                for k in range(ended):
                    slot = slots[replica, ENDED, k]
                    free += release(
                        replica, slot, step + 1 + slots[replica, OFFSET, slot], block_size, True,
                        ints, slots, cache, units, unit_offsets, unit_sizes,
                    )  # fmt: skip
            step += 1
            phase = block_size - 1 if phase == 0 else phase - 1

        # Prompts completed in this step have their next token and decode from now on.
        for k in range(completed):
            slot = slots[replica, FRESH, k]
            i = slots[replica, REQUEST, slot]
            cached = prompt[i] + slots[replica, GENERATED, slot]
            if slots[replica, GENERATED, slot] == 0:
                first[i] = clock
                if preemptions[i] > 0:
                    paused[i, 0] = clock - token_s[replica, slot]
            else:
                gap = clock - token_s[replica, slot]
                paused[i, 1] += gap
                gap_total += gap
                count(replica, gap, 1, histogram, bits, bits_int)
            slots[replica, GENERATED, slot] += 1
            remaining = output[i] - slots[replica, GENERATED, slot]
            if remaining == 0:
                last[i] = clock
                finished += 1
                blocked = static_batch
                if promise_output:
                    promised -= _ceil(cached, block_size) + state
                if prefix_caching:
                    free += release(
                        replica, slot, cached, block_size, True, ints, slots, cache, units, unit_offsets, unit_sizes
                    )
                else:
                    free += _ceil(cached, block_size) + state
                i = slots[replica, BEFORE, slot]
                j = slots[replica, AFTER, slot]
                if i >= 0:
                    slots[replica, AFTER, i] = j
                if j >= 0:
                    slots[replica, BEFORE, j] = i
                else:
                    tail = i
                slots[replica, SPARE, free_slots] = slot
                free_slots += 1
                continue
            if prompts_first:
                token_s[replica, slot] = clock
                slots[replica, JOINED, num_joined] = slot
                num_joined += 1
            remaining_all += remaining
            asked += output[i]
            slots[replica, OFFSET, slot] = cached - step
            place = np.int64(np.uint64(cached + phase) % np.uint64(block_size))
            slots[replica, BUCKET, slot] = place
            offsets[replica, place] += 1
            slots[replica, FINISH, slot] = step + remaining - 1
            place = slots[replica, FINISH, slot] & mask
            j = ring[replica, place]
            ring[replica, place] = slot
            slots[replica, RING_AFTER, slot] = j
            slots[replica, RING_BEFORE, slot] = -1
            if j >= 0:
                slots[replica, RING_BEFORE, j] = slot
            decodes += 1
            context += cached
            if windowed:
                if cached < window:
                    below += 1
                    context_windowed += cached + 1
                    if cached + remaining >= window:
                        crossings[replica, (step + window - cached - 1) & mask] += 1
                else:
                    context_windowed += window
        last_finished = finished - last_finished
        if pause and last_finished > 0:
            break

    ints[replica, TICKS], ints[replica, DECODES], ints[replica, CONTEXT] = step, decodes, context
    ints[replica, STEPS], ints[replica, PROMISED], ints[replica, NUM_JOINED] = steps, promised, num_joined
    ints[replica, REMAINING], ints[replica, ASKED] = remaining_all, asked
    floats[replica, SHARE], floats[replica, DECODED] = share, decoded
    ints[replica, CONTEXT_WINDOWED], ints[replica, BELOW_WINDOW] = context_windowed, below
    ints[replica, TAIL], ints[replica, PARTIAL], ints[replica, PARTIAL_DONE], ints[replica, PARTIAL_TARGET] = (
        tail,
        partial,
        done,
        target,
    )
    ints[replica, NEXT], ints[replica, PREEMPTED] = waiting, preempted
    ints[replica, FREE_BLOCKS], ints[replica, FREE_SLOTS] = free, free_slots
    ints[replica, BATCH_MAX], ints[replica, USED_MAX] = batch_max, used_max
    ints[replica, FINISHED], ints[replica, LAST_FINISHED] = finished, last_finished
    floats[replica, CLOCK], floats[replica, BUSY_S], floats[replica, PREFILL_S] = clock, busy_s, prefill_s
    floats[replica, BATCH_S], floats[replica, USED_S], floats[replica, GAP_TOTAL] = batch_s, used_s, gap_total
    floats[replica, BOUND_S], floats[replica, BOUND_S + 1], floats[replica, BOUND_S + 2] = bound0, bound1, bound2
    floats[replica, BOUND_S + 3], floats[replica, BOUND_S + 4] = bound3, bound4
    floats[replica, PART_S], floats[replica, PART_S + 1], floats[replica, PART_S + 2] = part0, part1, part2
    floats[replica, PART_S + 3], floats[replica, PART_S + 4] = part3, part4


advance_inline = inlined(advance)
