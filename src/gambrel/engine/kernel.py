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

from numba import njit

from gambrel.core.step import pairs_within, step_parts
from gambrel.engine.compiled import compiled
from gambrel.engine.state import (
    AFTER,
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
    DECODES,
    FINISH,
    FINISHED,
    FREE_BLOCKS,
    FREE_SLOTS,
    FRESH,
    GAP_TOTAL,
    GENERATED,
    LAST_FINISHED,
    NEVER,
    NEXT,
    NUM_BUCKETS,
    NUM_SAMPLES,
    NUM_SAMPLES_MAX,
    NUM_SEEN,
    NUM_STARTED,
    OFFSET,
    PART_S,
    PARTIAL,
    PARTIAL_DONE,
    PARTIAL_TARGET,
    PREEMPTED,
    PREFILL_S,
    REQUEST,
    RING_AFTER,
    RING_BEFORE,
    SAMPLE_EVERY,
    SAMPLE_ORIGIN,
    SEEN,
    SPARE,
    STACK,
    STEPS,
    TAIL,
    USED_MAX,
    USED_S,
)

__all__ = ["advance", "sample"]

_pairs = njit(pairs_within)
_parts = njit(step_parts)


@compiled()
def sample(
    arrival: Any, follow: Any, ints: Any, floats: Any, samples: Any,
    until: float, running: int, preempted: int, used: int,
) -> Any:  # fmt: skip
    """Record the state that holds until ``until`` at every grid time before it; the next grid time.

    When the table is full every second sample goes and the grid doubles, so any run fits.
    """
    count = ints[NUM_SAMPLES]
    every = floats[SAMPLE_EVERY]
    origin = floats[SAMPLE_ORIGIN]
    time = origin + count * every
    while time < until:
        seen = ints[SEEN]
        while seen >= 0 and arrival[seen] <= time:
            ints[NUM_SEEN] += 1
            seen = follow[seen]
        ints[SEEN] = seen
        samples[0, count] = time
        samples[1, count] = running
        samples[2, count] = max(ints[NUM_SEEN] - ints[NUM_STARTED], 0) + preempted
        samples[3, count] = used
        count += 1
        if count == NUM_SAMPLES_MAX:
            count = NUM_SAMPLES_MAX // 2
            for row in range(4):
                for i in range(count):
                    samples[row, i] = samples[row, 2 * i]
            every *= 2.0
            floats[SAMPLE_EVERY] = every
        time = origin + count * every
    ints[NUM_SAMPLES] = count
    return time


@compiled(step_parts, pairs_within, sample)
def advance(
    until: float,
    linear: Any, linear_compute: Any, linear_weights: Any, collective: Any, overhead: Any,
    head: Any, head_compute: Any, head_weights: Any, lines: Any, window: int,
    max_num_seqs: int, max_num_batched_tokens: int, num_kv_blocks: int, block_size: int,
    chunked_prefill: bool, reserve_full_prompt: bool, watermark_blocks: int,
    arrival: Any, prompt: Any, output: Any, follow: Any, scheduled: Any, first: Any, last: Any, preemptions: Any,
    ints: Any, floats: Any, slots: Any, token_s: Any, ring: Any, crossings: Any, offsets: Any,
    histogram: Any, bits: Any, bits_int: Any, samples: Any,
) -> None:  # fmt: skip
    """Run every step that starts before ``until``, with the requests now in the replica's waiting line."""
    request, generated = slots[REQUEST], slots[GENERATED]
    before, after = slots[BEFORE], slots[AFTER]
    ring_before, ring_after = slots[RING_BEFORE], slots[RING_AFTER]
    offset, bucket, finish = slots[OFFSET], slots[BUCKET], slots[FINISH]
    spare, stack, fresh = slots[SPARE], slots[STACK], slots[FRESH]
    mask = len(ring) - 1
    windowed = window > 0

    step, decodes, context = ints[STEPS], ints[DECODES], ints[CONTEXT]
    context_windowed, below = ints[CONTEXT_WINDOWED], ints[BELOW_WINDOW]
    tail, partial, done, target = ints[TAIL], ints[PARTIAL], ints[PARTIAL_DONE], ints[PARTIAL_TARGET]
    waiting, preempted = ints[NEXT], ints[PREEMPTED]
    free, free_slots = ints[FREE_BLOCKS], ints[FREE_SLOTS]
    batch_max, used_max = ints[BATCH_MAX], ints[USED_MAX]
    finished, last_finished = ints[FINISHED], ints[LAST_FINISHED]
    clock, busy_s, prefill_s = floats[CLOCK], floats[BUSY_S], floats[PREFILL_S]
    batch_s, used_s, gap_total = floats[BATCH_S], floats[USED_S], floats[GAP_TOTAL]
    bound0, bound1, bound2 = floats[BOUND_S], floats[BOUND_S + 1], floats[BOUND_S + 2]
    bound3, bound4 = floats[BOUND_S + 3], floats[BOUND_S + 4]
    part0, part1, part2 = floats[PART_S], floats[PART_S + 1], floats[PART_S + 2]
    part3, part4 = floats[PART_S + 3], floats[PART_S + 4]
    sample_at = floats[SAMPLE_EVERY]  # infinite: no series is wanted
    if sample_at < NEVER:
        sample_at = floats[SAMPLE_ORIGIN] + ints[NUM_SAMPLES] * floats[SAMPLE_EVERY]
    phase = (block_size - step % block_size) % block_size  # -step modulo block_size

    while True:
        if decodes == 0 and partial < 0 and preempted == 0:
            if waiting < 0:
                break
            if arrival[waiting] > clock:
                clock = arrival[waiting]
                if sample_at < clock:
                    sample_at = sample(arrival, follow, ints, floats, samples, clock, 0, 0, 0)
        if clock >= until:
            break

        # Running sequences first. Decoders that begin a block need one; the last admitted give way until all fit.
        admit = True
        need = offsets[phase]
        while need > free:
            victim = tail
            tail = before[victim]
            admit = False
            if victim == partial:
                free += (done + block_size - 1) // block_size
                partial = -1
            else:
                cached = step + offset[victim]
                free += (cached + block_size - 1) // block_size
                offsets[bucket[victim]] -= 1
                if bucket[victim] == phase:
                    need -= 1
                i = ring_before[victim]
                j = ring_after[victim]
                if i >= 0:
                    ring_after[i] = j
                else:
                    ring[finish[victim] & mask] = j
                if j >= 0:
                    ring_before[j] = i
                decodes -= 1
                context -= cached
                if windowed:
                    if cached < window:
                        below -= 1
                        context_windowed -= cached + 1
                        if cached + finish[victim] - step + 1 >= window:
                            crossings[(step + window - cached - 1) & mask] -= 1
                    else:
                        context_windowed -= window
                token_s[victim] = clock
                generated[victim] = output[request[victim]] - (finish[victim] - step + 1)
            preemptions[request[victim]] += 1
            stack[preempted] = victim
            preempted += 1
        free -= need

        budget = max_num_batched_tokens - decodes
        running = decodes
        completed = 0
        pre_tokens = 0
        pre_chunks = 0
        pairs = 0
        pairs_windowed = 0
        if partial >= 0:
            running += 1
            if budget > 0:
                chunk = min(target - done, budget)
                blocks = (done + chunk + block_size - 1) // block_size - (done + block_size - 1) // block_size
                if blocks > free:
                    # It is the last of the running, so it gives way itself.
                    free += (done + block_size - 1) // block_size
                    tail = before[partial]
                    admit = False
                    preemptions[request[partial]] += 1
                    stack[preempted] = partial
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
                    if done == target:
                        fresh[0] = partial
                        completed = 1
                        partial = -1

        # Then the waiting line, unless somebody was preempted: preempted requests first, then in order of arrival.
        if admit and partial < 0:
            while budget > 0 and running < max_num_seqs:
                if preempted > 0:
                    slot = stack[preempted - 1]
                    tokens = prompt[request[slot]] + generated[slot]
                elif waiting >= 0 and arrival[waiting] <= clock:
                    slot = -1
                    tokens = prompt[waiting]
                else:
                    break
                if tokens > budget and not chunked_prefill:
                    break
                chunk = min(tokens, budget)
                blocks = (chunk + block_size - 1) // block_size
                room = blocks
                if chunk < tokens and reserve_full_prompt:
                    room = (tokens + block_size - 1) // block_size
                if running > 0:
                    room += watermark_blocks
                if room > free:
                    break
                if slot >= 0:
                    preempted -= 1
                else:
                    free_slots -= 1
                    slot = spare[free_slots]
                    request[slot] = waiting
                    generated[slot] = 0
                    scheduled[waiting] = clock
                    waiting = follow[waiting]
                    ints[NUM_STARTED] += 1
                free -= blocks
                before[slot] = tail
                after[slot] = -1
                if tail >= 0:
                    after[tail] = slot
                tail = slot
                running += 1
                budget -= chunk
                pre_tokens += chunk
                pre_chunks += 1
                pairs += _pairs(0, chunk, 0)
                if windowed:
                    pairs_windowed += _pairs(0, chunk, window)
                if chunk < tokens:
                    partial = slot
                    done = chunk
                    target = tokens
                    break
                fresh[completed] = slot
                completed += 1
        elif tail >= 0:
            after[tail] = -1

        if decodes + pre_chunks == 0:
            # Everything that ran was preempted for itself; the blocks are free again, so the next pass admits.
            continue

        # What the step costs.
        kv = context + decodes
        kv_windowed = context_windowed
        if not windowed:
            kv_windowed = kv
            pairs_windowed = pairs
        compute, weights, memory, wire, host, seconds = _parts(
            linear, linear_compute, linear_weights, collective, overhead, head, head_compute, head_weights, lines,
            decodes + pre_tokens, decodes + completed, decodes, kv, kv_windowed,
            pre_tokens, pre_chunks, pairs, pairs_windowed,
        )  # fmt: skip
        if pre_tokens > 0:
            marginal = seconds
            if decodes > 0:
                marginal -= _parts(
                    linear, linear_compute, linear_weights, collective, overhead,
                    head, head_compute, head_weights, lines,
                    decodes, decodes, decodes, kv, kv_windowed, 0, 0, 0, 0,
                )[5]  # fmt: skip
            prefill_s += max(marginal, 0.0)
        start = clock
        clock = start + seconds
        used = num_kv_blocks - free
        batch = decodes + pre_chunks
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
        if decodes > 0:
            gap = clock - start
            gap_total += gap * decodes
            bits[0] = gap
            histogram[min(max((bits_int[0] >> BUCKET_SHIFT) - BUCKET_BASE, 0), NUM_BUCKETS - 1)] += decodes
        if sample_at < clock:
            sample_at = sample(arrival, follow, ints, floats, samples, clock, running, preempted, used)

        # One token more for every decoder; the finishers of this step leave.
        context += decodes
        place = step & mask
        slot = ring[place]
        if windowed:
            # The next step reads one key more for each decoder below the window, except those that reach it now.
            below -= crossings[place]
            crossings[place] = 0
            context_windowed += below
        last_finished = finished
        if slot >= 0:
            ring[place] = -1
            while slot >= 0:
                last[request[slot]] = clock
                finished += 1
                cached = step + 1 + offset[slot]
                free += (cached + block_size - 1) // block_size
                context -= cached
                decodes -= 1
                offsets[bucket[slot]] -= 1
                if windowed:
                    if cached < window:
                        below -= 1
                        context_windowed -= cached + 1
                    else:
                        context_windowed -= window
                i = before[slot]
                j = after[slot]
                if i >= 0:
                    after[i] = j
                if j >= 0:
                    before[j] = i
                else:
                    tail = i
                spare[free_slots] = slot
                free_slots += 1
                slot = ring_after[slot]
        step += 1
        phase = block_size - 1 if phase == 0 else phase - 1

        # Prompts completed in this step have their next token and decode from now on.
        for k in range(completed):
            slot = fresh[k]
            i = request[slot]
            cached = prompt[i] + generated[slot]
            if generated[slot] == 0:
                first[i] = clock
            else:
                gap = clock - token_s[slot]
                gap_total += gap
                bits[0] = gap
                histogram[min(max((bits_int[0] >> BUCKET_SHIFT) - BUCKET_BASE, 0), NUM_BUCKETS - 1)] += 1
            generated[slot] += 1
            remaining = output[i] - generated[slot]
            if remaining == 0:
                last[i] = clock
                finished += 1
                free += (cached + block_size - 1) // block_size
                i = before[slot]
                j = after[slot]
                if i >= 0:
                    after[i] = j
                if j >= 0:
                    before[j] = i
                else:
                    tail = i
                spare[free_slots] = slot
                free_slots += 1
                continue
            offset[slot] = cached - step
            place = (cached + phase) % block_size
            bucket[slot] = place
            offsets[place] += 1
            finish[slot] = step + remaining - 1
            place = finish[slot] & mask
            j = ring[place]
            ring[place] = slot
            ring_after[slot] = j
            ring_before[slot] = -1
            if j >= 0:
                ring_before[j] = slot
            decodes += 1
            context += cached
            if windowed:
                if cached < window:
                    below += 1
                    context_windowed += cached + 1
                    if cached + remaining >= window:
                        crossings[(step + window - cached - 1) & mask] += 1
                else:
                    context_windowed += window
        last_finished = finished - last_finished

    ints[STEPS], ints[DECODES], ints[CONTEXT] = step, decodes, context
    ints[CONTEXT_WINDOWED], ints[BELOW_WINDOW] = context_windowed, below
    ints[TAIL], ints[PARTIAL], ints[PARTIAL_DONE], ints[PARTIAL_TARGET] = tail, partial, done, target
    ints[NEXT], ints[PREEMPTED] = waiting, preempted
    ints[FREE_BLOCKS], ints[FREE_SLOTS] = free, free_slots
    ints[BATCH_MAX], ints[USED_MAX] = batch_max, used_max
    ints[FINISHED], ints[LAST_FINISHED] = finished, last_finished
    floats[CLOCK], floats[BUSY_S], floats[PREFILL_S] = clock, busy_s, prefill_s
    floats[BATCH_S], floats[USED_S], floats[GAP_TOTAL] = batch_s, used_s, gap_total
    floats[BOUND_S], floats[BOUND_S + 1], floats[BOUND_S + 2] = bound0, bound1, bound2
    floats[BOUND_S + 3], floats[BOUND_S + 4] = bound3, bound4
    floats[PART_S], floats[PART_S + 1], floats[PART_S + 2] = part0, part1, part2
    floats[PART_S + 3], floats[PART_S + 4] = part3, part4
