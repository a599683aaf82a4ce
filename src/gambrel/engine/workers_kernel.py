"""The event loop over workers: pools of prefill and decode workers, pipeline stages, ranks in lockstep.

A *worker* is what one router entry stands for: ``ranks`` schedulers that step together (data-parallel attention; one
otherwise), each with its own waiting line and KV blocks, over ``stages`` pipeline stages with as many micro-batches in
flight. The plain replica is a worker of one rank and one stage; the scheduling rule of a rank is that of
:mod:`gambrel.engine.naive_kernel`, and with one rank and one stage its bytes are the same.

- *Stages.* A micro-batch takes each stage's time in turn and waits where the one before it still is. A rank schedules
  again as soon as fewer than ``stages`` micro-batches are in flight; who decodes in one of them is left out, a prompt
  goes on with its next chunk (vLLM's ``step_with_batch_queue`` and ``_update_after_schedule``, V1). A sequence in
  flight is not preempted: the scheduler waits for it.
- *Lockstep.* A step ends for all ranks when the slowest has ended, then comes what they share: the experts over the
  tokens of all, the exchange over the widest rank's tokens for each. Ranks without work run along with one token
  (vLLM's dummy batch, SGLang's idle batch).
- *Pools.* A prompt's blocks stay with the prefill worker until the decode worker has them, and the decode worker takes
  its own before the transfer begins. ``pull`` is vLLM's NIXL connector: the request reaches the decode worker when its
  prompt is done, is given blocks while fewer than ``max_num_seqs`` run there, and computes the prompt's last token
  again for its first. Else it is SGLang: the decode worker gives blocks first (``DecodePreallocQueue``), the prefill
  worker computes only then and sends chunk by chunk, and the first token comes along. One transfer at a time leaves a
  prefill worker and reaches a decode worker: links are first come, first served.

Arrays, one row each: ``limits`` by pool, ``workers``, ``ranks``, ``slots``; their places are named in
:mod:`gambrel.engine.workers_state`. How a rank forms a micro-batch is in :mod:`gambrel.engine.workers_batch_kernel`.
This module imports numba; import it only where a simulation starts.
"""

from __future__ import annotations

from typing import Any

from gambrel.core.step import decode_parts, decode_terms, step_parts
from gambrel.engine.compiled import compiled, inlined
from gambrel.engine.heap_kernel import pop, push
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
    NEVER,
    NUM_BUCKETS,
    NUM_PARTS,
    PART_S,
    PREFILL_S,
    SHARE_FIRST,
    STEPS,
    USED_MAX,
    USED_S,
)
from gambrel.engine.workers_batch_kernel import PARTS, arrive, choose, in_all, let_go, line_up, reserve, schedule
from gambrel.engine.workers_cache import give_back
from gambrel.engine.workers_state import (
    ASKED,
    AT,
    BLOCK_SIZE,
    CACHING,
    COMING,
    COMPUTED,
    DECODE,
    DECODERS,
    DECODES,
    DECODING,
    DONE,
    ENDED,
    EVERY,
    FIRST_STAGE,
    FIRST_WORKER,
    FLYING,
    FREE,
    GENERATED,
    HEAD,
    HELD,
    HIT,
    IN_FLIGHT,
    KV,
    KV_WINDOWED,
    LOST,
    NEXT_SAMPLE,
    NOW,
    NUM_BLOCKS,
    NUM_EVENTS,
    NUM_SAMPLED,
    NUM_SEQS,
    NUM_WORKERS,
    NUMBER,
    OLDEST,
    ORDER,
    OUTPUT,
    PAIRS,
    PAIRS_WINDOWED,
    POOL,
    PRE_CHUNKS,
    PRE_TOKENS,
    PREEMPTED,
    PREFILL,
    PROMISE,
    PROMISED,
    PROMPT,
    PULL,
    RANKS,
    READY,
    READY_TAIL,
    RELEASED,
    REQUEST,
    RESTING,
    ROLE,
    RUNNING,
    SAMPLED,
    STAGES,
    STATE,
    TAIL,
    TO_COME,
    TOUCHED,
    WAITING,
)

__all__ = ["serve"]

_parts = inlined(step_parts)
_terms = inlined(decode_terms)
_decode = inlined(decode_parts)


@inlined
def answers_cost(s: int, sums: Any, r: int, tables: Any) -> Any:
    """:func:`gambrel.core.step.step_parts` of the decoders of rank ``r`` on stage ``s``."""
    (
        linear, linear_compute, linear_weights, collective, overhead, head, head_compute, head_weights, lines,
        _, _, _, _,
    ) = tables  # fmt: skip
    terms = _terms(
        linear[s], linear_compute[s], linear_weights[s], collective[s], overhead[s],
        head[s], head_compute[s], head_weights[s], lines[s], sums[r, DECODES],
    )  # fmt: skip
    return _decode(*terms, sums[r, KV], sums[r, KV_WINDOWED])


@inlined
def batch_cost(s: int, sums: Any, r: int, tables: Any) -> Any:
    """:func:`gambrel.core.step.step_parts` of all that rank ``r`` has on stage ``s``."""
    (
        linear, linear_compute, linear_weights, collective, overhead, head, head_compute, head_weights, lines,
        _, _, _, _,
    ) = tables  # fmt: skip
    return _parts(
        linear[s], linear_compute[s], linear_weights[s], collective[s], overhead[s],
        head[s], head_compute[s], head_weights[s], lines[s],
        sums[r, DECODES] + sums[r, PRE_TOKENS], sums[r, SAMPLED], sums[r, DECODES], sums[r, KV], sums[r, KV_WINDOWED],
        sums[r, PRE_TOKENS], sums[r, PRE_CHUNKS], sums[r, PAIRS], sums[r, PAIRS_WINDOWED],
    )  # fmt: skip


@inlined
def price(limit: Any, first_rank: int, sums: Any, alike: Any, tables: Any, stage_s: Any, row: Any) -> Any:
    """Seconds of a micro-batch on each stage, into ``stage_s``, and of each cause, into ``row``.

    Returned: their mean by stage, and what of it the decoders would take alone if prompts were not there too. ``sums``
    int64[ranks, NUM_SUMS]. The slowest rank's own part, then what they share. A stage that is ``alike`` the one before
    it takes as long.
    """
    (_, _, _, _, _, _, _, _, _, experts, experts_compute, experts_weights, exchange) = tables
    ranks = limit[RANKS]
    stages = limit[STAGES]
    tokens_of_all = 0
    widest = 1
    answers_of_all = 0
    widest_answers = 1
    answers = 0
    prompts = 0
    for r in range(first_rank, first_rank + ranks):
        tokens = sums[r, DECODES] + sums[r, PRE_TOKENS]
        tokens_of_all += max(tokens, 1)
        widest = max(widest, tokens)
        answers_of_all += max(sums[r, DECODES], 1)
        widest_answers = max(widest_answers, sums[r, DECODES])
        answers += sums[r, DECODES]
        prompts += sums[r, PRE_TOKENS]
    mixed = answers > 0 and prompts > 0
    for c in range(NUM_PARTS):
        row[c] = 0.0
    seconds = 0.0
    answers_s = 0.0
    slowest = 0.0
    slowest_answers = 0.0
    own = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    for k in range(stages):
        s = limit[FIRST_STAGE] + k
        if k == 0 or not alike[s]:
            slowest = -1.0
            slowest_answers = 0.0
            for r in range(first_rank, first_rank + ranks):
                if sums[r, DECODES] > 0 and (mixed or sums[r, PRE_TOKENS] == 0):
                    parts = answers_cost(s, sums, r, tables)
                    slowest_answers = max(slowest_answers, parts[5])
                    if sums[r, PRE_TOKENS] == 0 and parts[5] > slowest:
                        slowest = parts[5]
                        own = parts
                if sums[r, PRE_TOKENS] > 0:
                    parts = batch_cost(s, sums, r, tables)
                    if parts[5] > slowest:
                        slowest = parts[5]
                        own = parts
        took = slowest
        took_answers = slowest_answers
        row[0] += own[0]
        row[1] += own[1]
        row[2] += own[2]
        row[3] += own[3]
        row[4] += own[4]
        if ranks > 1:
            wire = exchange[s, widest * ranks]
            took += experts[s, tokens_of_all] + wire
            took_answers += experts[s, answers_of_all] + exchange[s, widest_answers * ranks]
            row[0] += experts_compute[s, tokens_of_all]
            row[1] += experts_weights[s, tokens_of_all]
            row[3] += wire
        stage_s[k] = took
        seconds += took
        answers_s += took_answers
    for c in range(NUM_PARTS):
        row[c] /= stages
    return seconds / stages, answers_s / stages, mixed, prompts


@inlined
def leave(
    s: int, w: int, now: float, limit: Any, counts: Any, workers: Any, slots: Any, seat: Any,
    spare: Any, last: Any, users: int, think: Any, line: Any, then: Any, times: Any, rows: Any, progress: Any,
) -> None:  # fmt: skip
    """An answer is complete: its slot is free, and whoever waited for it wakes when the pause is over."""
    i = slots[s, REQUEST]
    last[i] = now
    seat[i] = w - limit[FIRST_WORKER]
    spare[1 + spare[0]] = s
    spare[0] += 1
    workers[w, DONE] += 1
    workers[w, TOUCHED] = 1
    counts[FINISHED] += 1
    progress[ENDED] += 1
    if users > 0 or (len(then) > 0 and then[i] >= 0):
        wakes = now + (think[i] if len(think) > 0 else 0.0)
        asks = -1 - line[i] if users > 0 else len(then) + then[i]
        progress[NUM_EVENTS] = push(times, rows, progress[NUM_EVENTS], wakes, asks)


@inlined
def rest(s: int, rank: Any, resting: Any, slots: Any) -> None:
    """A decoder has landed and can go on, in order of admission; most often it is the last of those who can."""
    order = slots[s, ORDER]
    k = rank[RESTING]
    while k > 0 and slots[resting[k - 1], ORDER] > order:
        resting[k] = resting[k - 1]
        k -= 1
    resting[k] = s
    rank[RESTING] += 1


@inlined
def send(
    s: int, tokens: int, w: int, now: float, worker_of: Any, slots: Any, transfer_s: Any, transferred: Any,
    link_until: Any,
) -> None:  # fmt: skip
    """A chunk of a prompt goes over, and what was found of it before."""
    i = slots[s, REQUEST]
    to = worker_of[slots[s, AT]]
    part = (slots[s, HIT] + tokens) / slots[s, PROMPT]
    slots[s, HIT] = 0
    until = max(now, link_until[w], link_until[to]) + transfer_s[i] * part
    link_until[w] = until
    link_until[to] = until
    transferred[i] = until


@inlined
def land_prompts(
    number: int, w: int, now: float, limits: Any, rule: int, fixed: Any, draws: Any, last_choice: Any,
    workers: Any, ranks: Any, first_rank: Any, worker_of: Any, batch: Any, chunks: Any, ends: Any, slots: Any,
    follow: Any, prefilled: Any, transfer_s: Any, transferred: Any, link_until: Any,
    times: Any, rows: Any, progress: Any, rank: Any,
) -> None:  # fmt: skip
    """A micro-batch of a prefill rank has ended: finished prompts go on to a decode worker."""
    for k in range(number):
        s = batch[k]
        slots[s, IN_FLIGHT] -= 1
        if not limits[1, PULL]:
            send(s, chunks[k], w, now, worker_of, slots, transfer_s, transferred, link_until)
        if not ends[k]:
            continue
        i = slots[s, REQUEST]
        prefilled[i] = now
        rank[RUNNING] -= 1
        if limits[1, PULL]:
            d = choose(i, 1, limits, rule, fixed, draws, last_choice, workers, ranks, first_rank)
            slots[s, AT] = d
            line_up(i, ranks[d], HEAD, TAIL, follow)
            ranks[d, WAITING] += 1
            workers[worker_of[d], TOUCHED] = 1
        else:
            progress[NUM_EVENTS] = push(times, rows, progress[NUM_EVENTS], transferred[i], i)


@inlined
def bucket_of(gap: float, bits: Any, bits_int: Any) -> int:
    """Where the histogram counts a gap between tokens."""
    bits[0] = gap
    return int(min(max((bits_int[0] >> BUCKET_SHIFT) - BUCKET_BASE, 0), NUM_BUCKETS - 1))


@inlined
def land(
    number: int, w: int, g: int, now: float, limit: Any, counts: Any, sums_s: Any, histogram: Any,
    workers: Any, rank: Any, resting: Any, batch: Any, ends: Any, slots: Any, seat: Any, spare: Any, token_s: Any,
    first: Any, last: Any, preemptions: Any, paused: Any, users: int, think: Any, line: Any, then: Any,
    times: Any, rows: Any, progress: Any, bits: Any, bits_int: Any, memory: Any,
) -> None:  # fmt: skip
    """A micro-batch has ended: each decoder has a token, and each prompt that is complete.

    Most gaps between tokens are alike, so they are counted together, but added up one by one.
    """
    gap_total = sums_s[GAP_TOTAL]
    usual = -1.0
    bucket = 0
    alike = 0
    tokens = 0
    for k in range(number):
        s = batch[k]
        decoding = slots[s, DECODING] != 0
        if not decoding:
            slots[s, IN_FLIGHT] -= 1
            if not ends[k]:
                continue
            slots[s, DECODING] = 1
            rank[DECODERS] += 1
            rank[ASKED] += slots[s, OUTPUT]
            rank[TO_COME] += slots[s, OUTPUT] - slots[s, GENERATED]
        generated = slots[s, GENERATED] + 1
        slots[s, GENERATED] = generated
        tokens += 1
        if generated == 1:
            i = slots[s, REQUEST]
            first[i] = now
            if preemptions[i] > 0:
                paused[i, 0] = now - token_s[s]
        else:
            gap = now - token_s[s]
            if not decoding:
                paused[slots[s, REQUEST], 1] += gap
            gap_total += gap
            if gap != usual:
                histogram[bucket] += alike
                usual = gap
                alike = 0
                bucket = bucket_of(gap, bits, bits_int)
            alike += 1
        token_s[s] = now
        if generated < slots[s, OUTPUT]:
            rest(s, rank, resting, slots)
            continue
        if limit[CACHING]:
            full = slots[s, COMPUTED] // limit[BLOCK_SIZE]
            rank[FREE] += give_back(slots[s, REQUEST], s, g, slots[s, HELD], full, True, limit[STATE], memory)
        else:
            rank[FREE] += slots[s, HELD] + limit[STATE]
        if limit[PROMISE]:
            rank[PROMISED] -= in_all(slots[s, PROMPT], generated, limit)
        rank[RUNNING] -= 1
        rank[DECODERS] -= 1
        rank[ASKED] -= generated
        leave(
            s, w, now, limit, counts, workers, slots, seat, spare, last, users, think, line, then, times, rows, progress
        )  # fmt: skip
    rank[TO_COME] -= tokens
    histogram[bucket] += alike
    sums_s[GAP_TOTAL] = gap_total


@inlined
def account(
    seconds: float, answers_s: float, mixed: bool, prompts: int, batch: int, used: int, row: Any, counts: Any,
    sums_s: Any,
) -> None:  # fmt: skip
    """What a micro-batch adds to the sums of its pool."""
    if prompts > 0:
        sums_s[PREFILL_S] += max(seconds - answers_s, 0.0) if mixed else max(seconds, 0.0)
    counts[STEPS] += 1
    sums_s[BUSY_S] += seconds
    sums_s[BATCH_S] += seconds * batch
    sums_s[USED_S] += seconds * used
    counts[BATCH_MAX] = max(counts[BATCH_MAX], batch)
    counts[USED_MAX] = max(counts[USED_MAX], used)
    cause = 0
    for c in range(NUM_PARTS):
        sums_s[PART_S + c] += row[c]
        if row[c] > row[cause]:
            cause = c
    sums_s[BOUND_S + cause] += seconds


@inlined
def observe(
    now: float, limits: Any, workers: Any, ranks: Any, worker_of: Any, samples: Any, progress: Any, clock: Any
) -> None:
    """One more sample of all workers together; when there is no room every second one goes."""
    number = progress[NUM_SAMPLED]
    blocks_of_all = 0
    for p in range(len(limits)):
        blocks_of_all += limits[p, NUM_WORKERS] * limits[p, RANKS] * limits[p, NUM_BLOCKS]
    samples[0, number] = now
    for g in range(len(ranks)):
        blocks = limits[workers[worker_of[g], POOL], NUM_BLOCKS]
        samples[1, number] += ranks[g, RUNNING]
        samples[2, number] += ranks[g, WAITING] + ranks[g, PREEMPTED] + ranks[g, COMING]
        samples[3, number] += (blocks - ranks[g, FREE]) / blocks_of_all
    number += 1
    if number == samples.shape[1]:
        number //= 2
        for c in range(4):
            for k in range(number):
                samples[c, k] = samples[c, 2 * k]
            for k in range(number, samples.shape[1]):
                samples[c, k] = 0.0
        clock[EVERY] *= 2
    clock[NEXT_SAMPLE] = now + clock[EVERY]
    progress[NUM_SAMPLED] = number


@compiled(
    *PARTS, step_parts, decode_terms, decode_parts, answers_cost, batch_cost, price, leave, rest, send, land_prompts,
    bucket_of, land, account, observe, pop, push,
)  # fmt: skip
def serve(
    tables: Any, alike: Any, limits: Any, users: int, think: Any, line: Any, after: Any, cursor: Any,
    num_open: int, opens: Any, then: Any, rule: int, fixed: Any, draws: Any,
    arrival: Any, prompt: Any, output: Any, follow: Any, scheduled: Any, first: Any, last: Any, preemptions: Any,
    paused: Any, hits: Any, units: Any, unit_offsets: Any,
    prefilled: Any, transferred: Any, transfer_s: Any, seat: Any,
    ints: Any, floats: Any, histogram: Any, samples: Any, stop: Any, room: Any,
) -> bool:  # fmt: skip
    """Serve every request by the pools of ``limits`` int64[p, NUM_LIMITS]: one of both kinds, or prefill then decode.

    ``tables`` float64[stages of all pools, ...]: a rank's own part by its tokens and rows, ``lines`` float64[stages,
    NUM_LINES]; what ranks share by the tokens of all (``experts``...) and by the padded ones (``exchange``), of width 1
    without lockstep; stages ``alike`` bool[stages] the one before have the same own part. ``num_open`` rows arrive by
    themselves, the ``opens``, or the first ones if that is empty; row ``then`` int32[n], if any, when one has ended and
    its pause ``think`` is over. ``users`` above 0 make the arrivals instead: whose request ended asks the next row of
    its ``line`` int32[n], the first ``cursor`` int32[lines], then ``after`` int32[n], n for none. ``fixed`` int32[n]
    names the worker where ``rule`` looks at nothing, the row itself if empty; ``draws`` int64[pools, n, 2] two of them.
    Filled: the columns of requests, ``prefilled`` and ``transferred`` float64[n] between two pools, ``seat`` int32[n]:
    of a request under way its slot (before that a rank of the other pool, where both are chosen at once), in the end
    its last worker; by pool ``ints``, ``floats``, ``histogram`` in the places of :mod:`gambrel.engine.state` (USED_S
    and USED_MAX in blocks of a worker); ``samples`` float64[4, k] every so many seconds. ``room`` is where it works, of
    :class:`gambrel.engine.workers_room.Room`. Returns whether it is done, which it is at once when ``stop`` bool[1] is
    set; else slots may run out: give it more and call again.
    """
    n = len(prompt)
    pools = len(limits)
    (
        progress, clock, workers, ranks, first_rank, worker_of, share, idle_since, resting,
        fly_request, fly_chunk, fly_ends, fly_number, fly_until, lands, stage_until, link_until, sums,
        bits, bits_int, last_choice, stage_s, row,
        slots, spare, token_s, come, coming, over, times, rows,
        starts, block_of, key_of, refs, owner, where, newer, older, lists, left, shared,
    ) = room  # fmt: skip
    memory = (units, unit_offsets, starts, block_of, key_of, refs, owner, where, newer, older, lists, left, shared)
    num_workers = len(workers)
    num_ranks = len(ranks)
    deep = len(stage_s)
    most = limits[0, NUM_WORKERS] * limits[0, RANKS] * limits[0, NUM_SEQS]  # first admissions at one time
    now = clock[NOW]

    while progress[ENDED] < n and not stop[0]:
        if spare[0] < most and len(slots) < n:
            return False
        # What happens next: an arrival, a micro-batch that ends, a prompt that has come over, a user who asks.
        upcoming = NEVER
        released = progress[RELEASED]
        if released < num_open:
            upcoming = arrival[opens[released] if len(opens) > 0 else released]
        if progress[NUM_EVENTS] > 0:
            upcoming = min(upcoming, times[0])
        for w in range(num_workers):
            upcoming = min(upcoming, lands[w])
        if upcoming == NEVER:
            break
        now = upcoming
        clock[NOW] = now

        for w in range(num_workers):
            if lands[w] > now:
                continue
            p = workers[w, POOL]
            while workers[w, FLYING] > 0 and fly_until[w, workers[w, OLDEST]] <= now:
                place = workers[w, OLDEST]
                workers[w, OLDEST] = (place + 1) % deep
                workers[w, FLYING] -= 1
                workers[w, TOUCHED] = 1
                for g in range(first_rank[w], first_rank[w] + limits[p, RANKS]):
                    if limits[p, ROLE] == PREFILL:
                        land_prompts(
                            fly_number[g, place], w, now, limits, rule, fixed, draws, last_choice,
                            workers, ranks, first_rank, worker_of,
                            fly_request[g, place], fly_chunk[g, place], fly_ends[g, place], slots,
                            follow, prefilled, transfer_s, transferred, link_until, times, rows, progress,
                            ranks[g],
                        )  # fmt: skip
                    else:
                        land(
                            fly_number[g, place], w, g, now, limits[p], ints[p], floats[p], histogram[p],
                            workers, ranks[g], resting[g], fly_request[g, place], fly_ends[g, place],
                            slots, seat, spare, token_s,
                            first, last, preemptions, paused, users, think, line, then, times, rows, progress,
                            bits, bits_int, memory,
                        )  # fmt: skip
            lands[w] = fly_until[w, workers[w, OLDEST]] if workers[w, FLYING] > 0 else NEVER

        while progress[NUM_EVENTS] > 0 and times[0] <= now:
            i = rows[0]
            asked = times[0]
            progress[NUM_EVENTS] = pop(times, rows, progress[NUM_EVENTS])
            if 0 <= i < n:
                s = seat[i]
                let_go(s, limits, workers, ranks, worker_of, slots, memory)
                line_up(i, ranks[slots[s, AT]], READY, READY_TAIL, follow)
                workers[worker_of[slots[s, AT]], TOUCHED] = 1
                continue
            if i >= n:
                i -= n
            else:
                i = cursor[-1 - i]
                if i < n:
                    cursor[line[i]] = after[i]
            if i < n:
                arrival[i] = asked
                arrive(i, limits, rule, fixed, draws, last_choice, workers, ranks, first_rank, worker_of, seat, follow)
        while released < num_open:
            i = opens[released] if len(opens) > 0 else released
            if arrival[i] > now:
                break
            arrive(i, limits, rule, fixed, draws, last_choice, workers, ranks, first_rank, worker_of, seat, follow)
            released += 1
        progress[RELEASED] = released

        busy = True
        while busy:  # what one worker does can wake another
            busy = False
            for w in range(num_workers):
                if not workers[w, TOUCHED]:
                    continue
                workers[w, TOUCHED] = 0
                p = workers[w, POOL]
                limit = limits[p]
                begin = first_rank[w]
                end = begin + limit[RANKS]
                while workers[w, FLYING] < limit[STAGES]:
                    place = (workers[w, OLDEST] + workers[w, FLYING]) % deep
                    batch = 0
                    used = 0
                    lost = False
                    for g in range(begin, end):
                        if limit[ROLE] == DECODE and not limit[PULL]:
                            reserve(g, limits, workers, ranks, worker_of, prompt, output, seat, follow)
                        if 0.0 <= idle_since[g] < now:
                            share[g, 0] = SHARE_FIRST
                        schedule(
                            g, now, limit, ranks[g], resting[g], share[g],
                            fly_request[g, place], fly_chunk[g, place], fly_ends[g, place], sums[g],
                            fly_request[g], fly_number[g], workers[w, OLDEST], workers[w, FLYING],
                            slots, seat, spare, token_s,
                            prompt, output, follow, scheduled, first, preemptions, paused, hits,
                            transfer_s, transferred, link_until, worker_of, come, coming, over, memory,
                        )  # fmt: skip
                        fly_number[g, place] = ranks[g, NUMBER]
                        batch += ranks[g, NUMBER]
                        lost = lost or ranks[g, LOST] > 0
                        idle_since[g] = now if ranks[g, RUNNING] == 0 and ranks[g, PREEMPTED] == 0 else -1.0
                        for k in range(1, come[0] + 1):
                            let_go(come[k], limits, workers, ranks, worker_of, slots, memory)
                        for k in range(1, over[0] + 1):
                            leave(
                                over[k], w, now, limit, ints[p], workers, slots, seat, spare, last,
                                users, think, line, then, times, rows, progress,
                            )  # fmt: skip
                        for k in range(1, coming[0] + 1):
                            progress[NUM_EVENTS] = push(
                                times, rows, progress[NUM_EVENTS], transferred[coming[k]], coming[k]
                            )
                    if batch == 0:
                        if lost:
                            continue
                        break
                    seconds, answers_s, mixed, prompts = price(limit, begin, sums, alike, tables, stage_s, row)
                    until = now
                    for k in range(limit[STAGES]):
                        until = max(until, stage_until[w, k]) + stage_s[k]
                        stage_until[w, k] = until
                    fly_until[w, place] = until
                    if workers[w, FLYING] == 0:
                        lands[w] = until
                    workers[w, FLYING] += 1
                    for g in range(begin, end):
                        used += limit[NUM_BLOCKS] - ranks[g, FREE]
                    account(seconds, answers_s, mixed, prompts, batch, used, row, ints[p], floats[p])
            for w in range(num_workers):
                if workers[w, TOUCHED]:
                    busy = True

        if now >= clock[NEXT_SAMPLE]:
            observe(now, limits, workers, ranks, worker_of, samples, progress, clock)

    for p in range(pools):
        floats[p, CLOCK] = now
        for g in range(num_ranks):
            if workers[worker_of[g], POOL] == p:
                ints[p, FREE_BLOCKS] += ranks[g, FREE]
    return True
