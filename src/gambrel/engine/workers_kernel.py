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

Arrays, one row each: ``limits`` by pool, ``workers``, ``ranks``, ``reqs``; their places are named here. This module
imports numba; import it only where a simulation starts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from gambrel.core.step import pairs_within, step_parts
from gambrel.engine.compiled import compiled
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
    LEAST,
    NEVER,
    NUM_BUCKETS,
    NUM_PARTS,
    PART_S,
    POWER,
    PREFILL_S,
    RETRACT_STEPS,
    SHARE_DECAY,
    SHARE_FIRST,
    SHARE_LEAST,
    STEPS,
    USED_MAX,
    USED_S,
)
from gambrel.engine.workers_cache import find, give_back, grow, hold

__all__ = ["serve"]

# Pools: prompts alone, answers alone, or both together.
BOTH, PREFILL, DECODE = range(3)

# Places in a row of limits, one row a pool.
(
    ROLE,
    NUM_SEQS,  # of a rank
    NUM_TOKENS,  # of a rank's step
    NUM_BLOCKS,  # of a rank
    BLOCK_SIZE,
    CHUNKED,
    WHOLE_PROMPT,
    WATERMARK,
    PROMISE,
    STATIC,
    PROMPTS_FIRST,
    BATCH_SEQS,  # sequences in one micro-batch
    RANKS,  # of a worker
    STAGES,
    FIRST_STAGE,  # its row in the tables
    WINDOW,
    FIRST_WORKER,
    NUM_WORKERS,
    BY_SCORE,  # ranks are chosen by what waits and runs there, else in turn
    PULL,  # decode workers fetch finished prompts, else prefill workers send to reserved blocks
    ALONG,  # the first token comes with them, else the decode worker computes the prompt's last one again
    KEPT_TOKENS,  # free for each running answer where the decode worker reserves first
    SPARE_SEQS,  # prompts on their way beyond NUM_SEQS
    STATE,  # blocks of a request's recurrent state
    CACHING,
    NUM_LIMITS,
) = range(26)

# Places in a row of workers.
(
    POOL,
    FLYING,  # micro-batches in flight
    OLDEST,  # place of the first of them
    TURN,  # rank that is next in turn
    GIVEN,  # requests so far
    DONE,  # of these, gone
    TOUCHED,  # something happened: try to schedule
    NUM_WORKER,
) = range(8)

# Places in a row of ranks; lines are chained by ``follow``.
(
    RUNNING,
    PREEMPTED,
    LATEST,  # of these
    FREE,  # blocks
    PROMISED,
    HEAD,
    TAIL,
    WAITING,  # in that line
    READY,  # first of those whose prompt has arrived
    READY_TAIL,
    COMING,  # requests that hold blocks and do not run yet
    LOST,  # somebody was preempted in this attempt
    NUM_RANK,
) = range(13)

# Places in a row of reqs.
(
    COMPUTED,  # tokens in the cache, scheduled ones included
    GENERATED,
    HELD,  # blocks where it runs
    DECODING,
    IN_FLIGHT,
    AT,  # rank where it waits or runs
    SENDER,  # prefill rank that holds its blocks
    GONE,  # leaves the running ones
    HIT,  # tokens found in the prefix cache that have not been sent on yet
    NUM_REQ,
) = range(10)

# Places in a row of sums, one row a rank.
DECODES, SAMPLED, KV, KV_WINDOWED, PRE_TOKENS, PRE_CHUNKS, PAIRS, PAIRS_WINDOWED, NUM_SUMS = range(9)

_pairs = njit(pairs_within)
_parts = njit(step_parts)


@compiled()
def line_up(i: int, rank: Any, head: int, tail: int, follow: Any) -> None:
    """Put a request at the end of the line whose ends lie at the given places of a rank."""
    follow[i] = -1
    if rank[head] < 0:
        rank[head] = i
    else:
        follow[rank[tail]] = i
    rank[tail] = i


@compiled()
def choose(
    i: int, pool: int, limits: Any, rule: int, fixed: Any, draws: Any, last_choice: Any, workers: Any, ranks: Any,
    first_rank: Any,
) -> int:  # fmt: skip
    """The rank of a pool that request ``i`` goes to; its worker counts it.

    Workers as in :mod:`gambrel.engine.routing_kernel`; ranks by vLLM's score, 4 for each that waits and 1 for each that
    runs (``DPLBAsyncMPClient``, which knows them as of 100 ms ago), or in turn (SGLang's default).
    """
    limit = limits[pool]
    first = limit[FIRST_WORKER]
    number = limit[NUM_WORKERS]
    w = first
    if rule == LEAST:
        fewest = -1
        for k in range(last_choice[pool] + 1, last_choice[pool] + 1 + number):
            r = first + k % number
            out = workers[r, GIVEN] - workers[r, DONE]
            if fewest < 0 or out < fewest:
                fewest = out
                w = r
    elif rule == POWER:
        w = first + draws[pool, i, 0]
        other = first + draws[pool, i, 1]
        if workers[other, GIVEN] - workers[other, DONE] < workers[w, GIVEN] - workers[w, DONE]:
            w = other
    else:
        w = first + fixed[i] % number
    workers[w, GIVEN] += 1
    last_choice[pool] = w - first
    g = first_rank[w]
    if limit[RANKS] > 1:
        if limit[BY_SCORE]:
            least = -1
            for r in range(first_rank[w], first_rank[w] + limit[RANKS]):
                score = 4 * (ranks[r, WAITING] + ranks[r, PREEMPTED] + ranks[r, COMING]) + ranks[r, RUNNING]
                if least < 0 or score < least:
                    least = score
                    g = r
        else:
            g = first_rank[w] + workers[w, TURN]
            workers[w, TURN] = (workers[w, TURN] + 1) % limit[RANKS]
    return int(g)


@compiled()
def landing(prompt: int, output: int, limit: Any) -> int:
    """Blocks that a decode rank gives to a prompt: with room to go on from a first token that comes along."""
    tokens = prompt
    if limit[ALONG] and output > 1:
        tokens += 1
    return int((tokens + limit[BLOCK_SIZE] - 1) // limit[BLOCK_SIZE])


@compiled()
def in_all(prompt: int, output: int, limit: Any) -> int:
    """Blocks that a request will ever need at a rank, its recurrent state included."""
    tokens = prompt if limit[ROLE] == PREFILL else prompt + output - 1
    return int((tokens + limit[BLOCK_SIZE] - 1) // limit[BLOCK_SIZE] + limit[STATE])


@compiled(find, grow, give_back, hold, in_all, landing, line_up, pairs_within)
def schedule(
    g: int, place: int, now: float, limit: Any, rank: Any, running: Any, share: Any,
    fly_request: Any, fly_chunk: Any, fly_emits: Any, fly_number: Any, total: Any,
    reqs: Any, prompt: Any, output: Any, follow: Any, scheduled: Any, first: Any, preemptions: Any, paused: Any,
    token_s: Any, transfer_s: Any, transferred: Any, link_until: Any, worker_of: Any, arrived: Any, reserved: Any,
    ended: Any, hits: Any, memory: Any, spare: Any,
) -> int:  # fmt: skip
    """Form one micro-batch of a rank at ``now``; how many sequences it has.

    Left to the caller, the number of each in its first entry: prompts that ``arrived`` from their prefill worker in no
    time, those that were given blocks and are on their way (``reserved``), answers that ``ended`` with the token that
    came along. ``memory`` is that of :mod:`gambrel.engine.workers_cache`, ``spare`` its unused rows after their
    number.
    """
    role = limit[ROLE]
    state = limit[STATE]
    caching = limit[CACHING] > 0
    bs = limit[BLOCK_SIZE]
    window = limit[WINDOW]
    budget = limit[NUM_TOKENS]
    free = rank[FREE]
    prompts_first = limit[PROMPTS_FIRST] > 0
    batch_seqs = limit[BATCH_SEQS]
    num_running = rank[RUNNING]
    num = 0
    batch_new = 0
    lost = False
    for k in range(NUM_SUMS):
        total[k] = 0
    arrived[0] = 0
    reserved[0] = 0
    ended[0] = 0
    for turn in range(3):  # the running, the waiting; or prompts of both, and decoders if there was nothing to do
        if turn == 1:
            if lost or (limit[STATIC] and num_running > 0):
                continue
            for k in range(num):
                i = fly_request[k]
                if not reqs[i, DECODING] and fly_emits[k]:
                    batch_new += output[i] - reqs[i, GENERATED]
            while budget > 0 and num_running < limit[NUM_SEQS] and num < batch_seqs:
                again = rank[READY] < 0 and rank[PREEMPTED] > 0
                if again:
                    i = rank[LATEST]
                elif rank[READY] >= 0:  # its prompt is here, in blocks of its own
                    i = rank[READY]
                    rank[READY] = follow[i]
                    rank[COMING] -= 1
                    reqs[i, DECODING] = 1
                    reqs[i, HELD] = landing(prompt[i], output[i], limit)
                    if not limit[ALONG]:
                        reqs[i, COMPUTED] = prompt[i] - 1
                    else:
                        reqs[i, COMPUTED] = prompt[i]
                        reqs[i, GENERATED] = 1
                        if preemptions[i] > 0:
                            paused[i, 0] = now - token_s[i]
                        first[i] = now
                        token_s[i] = now
                        if output[i] == 1:
                            free += reqs[i, HELD] + state
                            if limit[PROMISE]:
                                rank[PROMISED] -= in_all(prompt[i], output[i], limit)
                            ended[0] += 1
                            ended[ended[0]] = i
                            continue
                    running[num_running] = i
                    num_running += 1
                    fly_request[num] = i
                    fly_chunk[num] = 1
                    fly_emits[num] = 1
                    num += 1
                    budget -= 1
                    continue
                elif rank[HEAD] >= 0:
                    i = rank[HEAD]
                else:
                    break
                if role == DECODE and not again:
                    if limit[PULL] == 0:
                        break
                    need = landing(prompt[i], output[i], limit)
                    room = need + state
                    if num_running > 0:
                        room += limit[WATERMARK]
                    if room > free:
                        break
                    if limit[PROMISE]:
                        whole = in_all(prompt[i], output[i], limit)
                        if rank[PROMISED] + whole > limit[NUM_BLOCKS]:
                            break
                        rank[PROMISED] += whole
                    rank[HEAD] = follow[i]
                    rank[WAITING] -= 1
                    free -= need + state
                    rank[COMING] += 1
                    sender = worker_of[reqs[i, SENDER]]
                    begins = max(now, link_until[sender], link_until[worker_of[g]])
                    ends = begins + transfer_s[i]
                    transferred[i] = ends
                    link_until[sender] = ends
                    link_until[worker_of[g]] = ends
                    if ends <= now:
                        line_up(i, rank, READY, READY_TAIL, follow)
                        arrived[0] += 1
                        arrived[arrived[0]] = i
                    else:
                        reserved[0] += 1
                        reserved[reserved[0]] = i
                    continue
                tokens = prompt[i] + reqs[i, GENERATED]
                common = 0
                found = 0
                evictable = 0
                if caching:
                    common, found, evictable = find(i, g, again, prompt[i] // bs, memory)
                hit = min(found, (tokens - 1) // bs) * bs
                if tokens - hit > budget and not limit[CHUNKED]:
                    break
                chunk = min(tokens - hit, budget)
                need = (hit + chunk + bs - 1) // bs - found
                room = (tokens + bs - 1) // bs - found if limit[WHOLE_PROMPT] else need
                room += evictable + state
                if num_running > 0:
                    room += limit[WATERMARK]
                if room > free:
                    break
                if limit[PROMISE]:
                    whole = in_all(prompt[i], output[i], limit)
                    if rank[PROMISED] + whole > limit[NUM_BLOCKS]:
                        break
                    rank[PROMISED] += whole
                if prompts_first and role != PREFILL:
                    new = output[i] - reqs[i, GENERATED]
                    to_come = 0
                    for k in range(num_running):
                        if reqs[running[k], DECODING]:
                            to_come += output[running[k]] - reqs[running[k], GENERATED]
                    kept = (free - evictable) * bs - batch_new - share[0] * to_come
                    if num_running > 0 and tokens - hit + new + bs >= kept:
                        break
                    batch_new += new
                if again:
                    rank[LATEST] = follow[i]
                    rank[PREEMPTED] -= 1
                else:
                    if np.isnan(scheduled[i]):
                        scheduled[i] = now
                        hits[i] = hit
                    rank[HEAD] = follow[i]
                    rank[WAITING] -= 1
                    if caching:
                        spare[0] -= 1
                        memory[12][i] = spare[1 + spare[0]]
                free -= need + evictable + state
                if caching:
                    hold(i, g, common, found, need, (hit + chunk) // bs, prompt[i] // bs, state, memory)
                reqs[i, COMPUTED] = hit
                reqs[i, HIT] = hit
                reqs[i, HELD] = found + need
                running[num_running] = i
                num_running += 1
                fly_request[num] = i
                fly_chunk[num] = chunk
                fly_emits[num] = hit + chunk == tokens
                num += 1
                budget -= chunk
        elif turn == 0 or (prompts_first and num == 0):
            k = 0
            while k < num_running and budget > 0 and num < batch_seqs:
                i = running[k]
                k += 1
                if prompts_first and (reqs[i, DECODING] != 0) != (turn == 2):
                    continue
                before = reqs[i, COMPUTED]
                if reqs[i, DECODING]:
                    if reqs[i, IN_FLIGHT]:
                        continue
                    chunk = 1
                    emits = 1
                else:
                    left = prompt[i] + reqs[i, GENERATED] - before
                    if left == 0:  # the last of its prompt is in flight
                        continue
                    chunk = min(left, budget)
                    emits = chunk == left
                need = 0
                if before + chunk > reqs[i, HELD] * bs:
                    need = (before + chunk + bs - 1) // bs - reqs[i, HELD]
                fits = True
                while need > free:
                    j = num_running - 1
                    while j >= k and reqs[running[j], IN_FLIGHT]:
                        j -= 1
                    if j < k and num_running > k:  # those behind it are in flight: wait for them
                        fits = False
                        break
                    victim = running[j]
                    if reqs[victim, IN_FLIGHT]:
                        fits = False
                        break
                    for m in range(j, num_running - 1):
                        running[m] = running[m + 1]
                    num_running -= 1
                    if caching:
                        full = reqs[victim, COMPUTED] // bs
                        free += give_back(victim, g, reqs[victim, HELD], full, False, state, memory)
                    else:
                        free += reqs[victim, HELD] + state
                    reqs[victim, HELD] = 0
                    reqs[victim, COMPUTED] = 0
                    reqs[victim, DECODING] = 0
                    if reqs[victim, GENERATED] == 0 and preemptions[victim] == 0:
                        token_s[victim] = now  # its first token is late by what follows
                    preemptions[victim] += 1
                    follow[victim] = rank[LATEST]
                    rank[LATEST] = victim
                    rank[PREEMPTED] += 1
                    lost = True
                    if victim == i:
                        fits = False
                        break
                if not fits:
                    break
                free -= need
                if caching:
                    full = -1 if reqs[i, DECODING] else (before + chunk) // bs
                    grow(i, g, reqs[i, HELD], need, full, prompt[i] // bs, memory)
                reqs[i, HELD] += need
                fly_request[num] = i
                fly_chunk[num] = chunk
                fly_emits[num] = emits
                num += 1
                budget -= chunk
            if turn == 2:
                done = 0
                asked = 0
                number = 0
                for k in range(num_running):
                    if reqs[running[k], DECODING]:
                        number += 1
                        done += reqs[running[k], GENERATED]
                        asked += output[running[k]]
                if lost:
                    share[0] = min((done + RETRACT_STEPS * number) / (asked + 1), 1.0)
                else:
                    share[0] = max(share[0] - SHARE_DECAY, SHARE_LEAST)
    for k in range(num):
        i = fly_request[k]
        chunk = fly_chunk[k]
        before = reqs[i, COMPUTED]
        if reqs[i, DECODING]:
            keys = before + chunk
            total[DECODES] += 1
            total[KV] += keys
            total[KV_WINDOWED] += min(keys, window) if window > 0 else keys
        else:
            total[PRE_TOKENS] += chunk
            total[PRE_CHUNKS] += 1
            total[PAIRS] += _pairs(before, chunk, 0)
            total[PAIRS_WINDOWED] += _pairs(before, chunk, window)
        total[SAMPLED] += fly_emits[k]
        reqs[i, COMPUTED] = before + chunk
        reqs[i, IN_FLIGHT] += 1
    rank[FREE] = free
    rank[RUNNING] = num_running
    rank[LOST] = lost
    fly_number[place] = num
    return num


@compiled(choose, line_up)
def arrive(
    i: int, limits: Any, rule: int, fixed: Any, draws: Any, last_choice: Any, workers: Any, ranks: Any,
    first_rank: Any, worker_of: Any, reqs: Any, follow: Any,
) -> None:  # fmt: skip
    """Route a request that has just come: to a worker, or to one of each pool where the answer's blocks come first."""
    g = choose(i, 0, limits, rule, fixed, draws, last_choice, workers, ranks, first_rank)
    reqs[i, SENDER] = g
    if len(limits) > 1 and not limits[1, PULL]:
        g = choose(i, 1, limits, rule, fixed, draws, last_choice, workers, ranks, first_rank)
    reqs[i, AT] = g
    line_up(i, ranks[g], HEAD, TAIL, follow)
    ranks[g, WAITING] += 1
    workers[worker_of[g], TOUCHED] = 1


@compiled(in_all, landing, line_up)
def reserve(
    g: int, limits: Any, workers: Any, ranks: Any, worker_of: Any, prompt: Any, output: Any, reqs: Any, follow: Any
) -> None:
    """Give blocks to prompts that wait at a decode rank, as far as they are free, and let them be computed."""
    limit = limits[1]
    rank = ranks[g]
    bs = limit[BLOCK_SIZE]
    kept = limit[KEPT_TOKENS] // bs
    while rank[HEAD] >= 0:
        i = rank[HEAD]
        present = rank[RUNNING] + rank[PREEMPTED] + rank[COMING]
        need = landing(prompt[i], output[i], limit)
        free = rank[FREE] - kept * present
        need += limit[STATE]
        if present >= limit[NUM_SEQS] + limit[SPARE_SEQS] or need > rank[FREE] or (need + kept > free and present > 0):
            break
        if limit[PROMISE]:
            whole = in_all(prompt[i], output[i], limit)
            if rank[PROMISED] + whole > limit[NUM_BLOCKS]:
                break
            rank[PROMISED] += whole
        rank[HEAD] = follow[i]
        rank[WAITING] -= 1
        rank[FREE] -= need
        rank[COMING] += 1
        sender = reqs[i, SENDER]
        line_up(i, ranks[sender], HEAD, TAIL, follow)
        ranks[sender, WAITING] += 1
        workers[worker_of[sender], TOUCHED] = 1


@compiled(give_back, in_all)
def let_go(
    i: int, limits: Any, workers: Any, ranks: Any, worker_of: Any, prompt: Any, output: Any, reqs: Any, memory: Any,
    spare: Any,
) -> None:  # fmt: skip
    """The prompt has come over: the blocks that its sender held are free."""
    limit = limits[0]
    g = reqs[i, SENDER]
    bs = limit[BLOCK_SIZE]
    held = (prompt[i] + bs - 1) // bs
    if limit[CACHING]:
        ranks[g, FREE] += give_back(i, g, held, prompt[i] // bs, True, limit[STATE], memory)
        spare[1 + spare[0]] = memory[12][i]
        spare[0] += 1
    else:
        ranks[g, FREE] += held + limit[STATE]
    if limit[PROMISE]:
        ranks[g, PROMISED] -= in_all(prompt[i], output[i], limit)
    workers[worker_of[g], TOUCHED] = 1
    workers[worker_of[g], DONE] += 1


@compiled(step_parts)
def price(
    limit: Any, first_rank: int, sums: Any,
    linear: Any, linear_compute: Any, linear_weights: Any, collective: Any, overhead: Any,
    head: Any, head_compute: Any, head_weights: Any, lines: Any,
    experts: Any, experts_compute: Any, experts_weights: Any, exchange: Any,
    answers_only: bool, stage_s: Any, row: Any,
) -> float:  # fmt: skip
    """Seconds of a micro-batch on each stage, into ``stage_s``, and of each cause, into ``row``; their mean by stage.

    ``sums`` int64[ranks, NUM_SUMS]. The slowest rank's own part, then what they share. ``answers_only`` leaves the
    prompts away.
    """
    ranks = limit[RANKS]
    stages = limit[STAGES]
    tokens_of_all = 0
    widest = 1
    for r in range(first_rank, first_rank + ranks):
        tokens = sums[r, DECODES]
        if not answers_only:
            tokens += sums[r, PRE_TOKENS]
        tokens_of_all += max(tokens, 1)
        widest = max(widest, tokens)
    for c in range(NUM_PARTS):
        row[c] = 0.0
    seconds = 0.0
    for k in range(stages):
        s = limit[FIRST_STAGE] + k
        slowest = -1.0
        own = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        for r in range(first_rank, first_rank + ranks):
            decodes = sums[r, DECODES]
            if answers_only:
                if decodes == 0:
                    continue
                parts = _parts(
                    linear[s], linear_compute[s], linear_weights[s], collective[s], overhead[s],
                    head[s], head_compute[s], head_weights[s], lines[s],
                    decodes, decodes, decodes, sums[r, KV], sums[r, KV_WINDOWED], 0, 0, 0, 0,
                )  # fmt: skip
            else:
                if decodes + sums[r, PRE_TOKENS] == 0:
                    continue
                parts = _parts(
                    linear[s], linear_compute[s], linear_weights[s], collective[s], overhead[s],
                    head[s], head_compute[s], head_weights[s], lines[s],
                    decodes + sums[r, PRE_TOKENS], sums[r, SAMPLED], decodes, sums[r, KV], sums[r, KV_WINDOWED],
                    sums[r, PRE_TOKENS], sums[r, PRE_CHUNKS], sums[r, PAIRS], sums[r, PAIRS_WINDOWED],
                )  # fmt: skip
            if parts[5] > slowest:
                slowest = parts[5]
                own = parts
        took = max(slowest, 0.0)
        row[0] += own[0]
        row[1] += own[1]
        row[2] += own[2]
        row[3] += own[3]
        row[4] += own[4]
        if ranks > 1:
            wire = exchange[s, widest * ranks]
            took += experts[s, tokens_of_all] + wire
            row[0] += experts_compute[s, tokens_of_all]
            row[1] += experts_weights[s, tokens_of_all]
            row[3] += wire
        stage_s[k] = took
        seconds += took
    for c in range(NUM_PARTS):
        row[c] /= stages
    return float(seconds / stages)


@compiled(
    choose, arrive, reserve, let_go, find, give_back, grow, hold, in_all, landing, price, line_up, pop, push,
    schedule, step_parts, pairs_within, allocates=True,
)  # fmt: skip
def serve(
    linear: Any, linear_compute: Any, linear_weights: Any, collective: Any, overhead: Any,
    head: Any, head_compute: Any, head_weights: Any, lines: Any,
    experts: Any, experts_compute: Any, experts_weights: Any, exchange: Any,
    limits: Any, users: int, think: Any, line: Any, after: Any, cursor: Any, opens: Any, then: Any,
    rule: int, fixed: Any, draws: Any,
    arrival: Any, prompt: Any, output: Any, follow: Any, scheduled: Any, first: Any, last: Any, preemptions: Any,
    paused: Any, hits: Any, units: Any, unit_offsets: Any,
    prefilled: Any, transferred: Any, transfer_s: Any, replica: Any,
    ints: Any, floats: Any, histogram: Any, samples: Any, every: float, stop: Any, room: Any,
) -> int:  # fmt: skip
    """Serve every request by the pools of ``limits`` int64[p, NUM_LIMITS]: one of both kinds, or prefill then decode.

    Tables float64[stages of all pools, ...]: a rank's own part by its tokens and rows, ``lines`` float64[stages, 18];
    what ranks share by the tokens of all (``experts``...) and by the padded ones (``exchange``), of width 1 without
    lockstep. The rows ``opens`` arrive by themselves; row ``then`` int64[n], if any, when one has ended and its pause
    ``think`` is over. ``users`` above 0 make the arrivals instead: whose request ended asks the next row of its
    ``line`` int64[n], the first ``cursor`` int64[lines], then ``after`` int64[n], n for none. ``fixed`` int64[n] names
    the worker where ``rule`` looks at nothing; ``draws`` int64[pools, n, 2] two of them.
    Filled: the columns of requests, ``prefilled`` and ``transferred`` float64[n] between two pools, ``replica``
    int64[n] the last worker; by pool ``ints``, ``floats``, ``histogram`` in the places of :mod:`gambrel.engine.state`
    (USED_S and USED_MAX in blocks of a worker); ``samples`` float64[4, k] every so many seconds. ``room`` is where it
    works, of :func:`gambrel.engine.workers_room.make_room`. Returns the number of samples, at once when ``stop``
    bool[1] is set.
    """
    n = len(prompt)
    pools = len(limits)
    (
        workers, ranks, first_rank, worker_of, share, idle_since, running, fly_request, fly_chunk, fly_emits,
        fly_number, fly_until, stage_until, link_until, sums, reqs, token_s, arrived, reserved, ended, bits, bits_int,
        times, rows, last_choice, stage_s, row, other, starts, block_of, key_of, refs, owner, where, newer, older,
        lists, left, row_of, shared, spare,
    ) = room  # fmt: skip
    memory = (
        units, unit_offsets, starts, block_of, key_of, refs, owner, where, newer, older, lists, left, row_of, shared
    )  # fmt: skip
    num_workers = len(workers)
    num_ranks = len(ranks)
    deep = len(stage_s)
    wide = running.shape[1]
    most = lists.shape[1]
    blocks_of_all = 0
    for p in range(pools):
        blocks_of_all += limits[p, NUM_WORKERS] * limits[p, RANKS] * limits[p, NUM_BLOCKS]
    last_gap = -1.0
    bucket = 0
    num_events = 0
    released = 0
    finished = 0
    num_samples = 0
    now = arrival[0]
    next_sample = now
    for u in range(min(users, n)):
        num_events = push(times, rows, num_events, arrival[u], -1 - line[u])

    while finished < n and not stop[0]:
        # What happens next: an arrival, a micro-batch that ends, a prompt that has come over, a user who asks.
        upcoming = NEVER
        if released < len(opens):
            upcoming = arrival[opens[released]]
        if num_events > 0:
            upcoming = min(upcoming, times[0])
        for w in range(num_workers):
            if workers[w, FLYING] > 0:
                upcoming = min(upcoming, fly_until[w, workers[w, OLDEST]])
        if upcoming == NEVER:
            break
        now = upcoming

        for w in range(num_workers):
            p = workers[w, POOL]
            bs = limits[p, BLOCK_SIZE]
            alone = limits[p, ROLE] == PREFILL
            while workers[w, FLYING] > 0 and fly_until[w, workers[w, OLDEST]] <= now:
                place = workers[w, OLDEST]
                workers[w, OLDEST] = (place + 1) % deep
                workers[w, FLYING] -= 1
                workers[w, TOUCHED] = 1
                for g in range(first_rank[w], first_rank[w] + limits[p, RANKS]):
                    anybody = False
                    flown = fly_request[g, place]
                    chunks = fly_chunk[g, place]
                    emitted = fly_emits[g, place]
                    counts = histogram[p]
                    for k in range(fly_number[g, place]):
                        i = flown[k]
                        reqs[i, IN_FLIGHT] -= 1
                        if alone and not limits[1, PULL]:
                            to = worker_of[reqs[i, AT]]
                            part = (reqs[i, HIT] + chunks[k]) / prompt[i]
                            reqs[i, HIT] = 0
                            ends = max(now, link_until[w], link_until[to]) + transfer_s[i] * part
                            link_until[w] = ends
                            link_until[to] = ends
                            transferred[i] = ends
                        if not emitted[k]:
                            continue
                        if alone:
                            prefilled[i] = now
                            reqs[i, GONE] = 1
                            anybody = True
                            if limits[1, PULL]:
                                d = choose(i, 1, limits, rule, fixed, draws, last_choice, workers, ranks, first_rank)
                                reqs[i, AT] = d
                                line_up(i, ranks[d], HEAD, TAIL, follow)
                                ranks[d, WAITING] += 1
                                workers[worker_of[d], TOUCHED] = 1
                            else:
                                num_events = push(times, rows, num_events, transferred[i], i)
                            continue
                        if reqs[i, GENERATED] == 0:
                            first[i] = now
                            if preemptions[i] > 0:
                                paused[i, 0] = now - token_s[i]
                        else:
                            gap = now - token_s[i]
                            if not reqs[i, DECODING]:
                                paused[i, 1] += gap
                            floats[p, GAP_TOTAL] += gap
                            if gap != last_gap:
                                last_gap = gap
                                bits[0] = gap
                                bucket = min(max((bits_int[0] >> BUCKET_SHIFT) - BUCKET_BASE, 0), NUM_BUCKETS - 1)
                            counts[bucket] += 1
                        token_s[i] = now
                        reqs[i, DECODING] = 1
                        reqs[i, GENERATED] += 1
                        if reqs[i, GENERATED] == output[i]:
                            reqs[i, GONE] = 1
                            anybody = True
                            last[i] = now
                            if limits[p, CACHING]:
                                full = reqs[i, COMPUTED] // bs
                                ranks[g, FREE] += give_back(i, g, reqs[i, HELD], full, True, limits[p, STATE], memory)
                                spare[1 + spare[0]] = row_of[i]
                                spare[0] += 1
                            else:
                                ranks[g, FREE] += reqs[i, HELD] + limits[p, STATE]
                            if limits[p, PROMISE]:
                                ranks[g, PROMISED] -= in_all(prompt[i], output[i], limits[p])
                            replica[i] = w - limits[p, FIRST_WORKER]
                            workers[w, DONE] += 1
                            ints[p, FINISHED] += 1
                            finished += 1
                            if users > 0 or then[i] >= 0:
                                wakes = now + (think[i] if len(think) > 0 else 0.0)
                                asks = -1 - line[i] if users > 0 else n + then[i]
                                num_events = push(times, rows, num_events, wakes, asks)
                    if anybody:
                        kept = 0
                        for k in range(ranks[g, RUNNING]):
                            i = running[g, k]
                            if reqs[i, GONE]:
                                reqs[i, GONE] = 0
                            else:
                                running[g, kept] = i
                                kept += 1
                        ranks[g, RUNNING] = kept

        while num_events > 0 and times[0] <= now:
            i = rows[0]
            asked = times[0]
            num_events = pop(times, rows, num_events)
            if 0 <= i < n:
                let_go(i, limits, workers, ranks, worker_of, prompt, output, reqs, memory, spare)
                line_up(i, ranks[reqs[i, AT]], READY, READY_TAIL, follow)
                workers[worker_of[reqs[i, AT]], TOUCHED] = 1
                continue
            if i >= n:
                i -= n
            else:
                i = cursor[-1 - i]
                if i < n:
                    cursor[line[i]] = after[i]
            if i < n:
                arrival[i] = asked
                arrive(i, limits, rule, fixed, draws, last_choice, workers, ranks, first_rank, worker_of, reqs, follow)
        while released < len(opens) and arrival[opens[released]] <= now:
            i = opens[released]
            arrive(i, limits, rule, fixed, draws, last_choice, workers, ranks, first_rank, worker_of, reqs, follow)
            released += 1

        busy = True
        while busy:  # what one worker does can wake another
            busy = False
            for w in range(num_workers):
                if not workers[w, TOUCHED]:
                    continue
                workers[w, TOUCHED] = 0
                p = workers[w, POOL]
                stages = limits[p, STAGES]
                begin = first_rank[w]
                end = begin + limits[p, RANKS]
                while workers[w, FLYING] < stages:
                    place = (workers[w, OLDEST] + workers[w, FLYING]) % deep
                    batch = 0
                    lost = False
                    for g in range(begin, end):
                        if limits[p, ROLE] == DECODE and not limits[p, PULL]:
                            reserve(g, limits, workers, ranks, worker_of, prompt, output, reqs, follow)
                        if limits[p, CACHING] and spare[0] < limits[p, NUM_SEQS]:  # as many again
                            number = len(lists)
                            grown = np.zeros((number + max(number, wide), most), np.int64)
                            lefts = np.zeros(len(grown), np.int64)
                            spares = np.zeros(1 + len(grown), np.int64)
                            for k in range(number):
                                lefts[k] = left[k]
                                spares[k] = spare[k]
                                for b in range(most):
                                    grown[k, b] = lists[k, b]
                            for k in range(number, len(grown)):
                                spares[1 + spares[0]] = k
                                spares[0] += 1
                            lists = grown
                            left = lefts
                            spare = spares
                            memory = (
                                units, unit_offsets, starts, block_of, key_of, refs, owner, where, newer, older,
                                lists, left, row_of, shared,
                            )  # fmt: skip
                        if 0.0 <= idle_since[g] < now:
                            share[g, 0] = SHARE_FIRST
                        batch += schedule(
                            g, place, now, limits[p], ranks[g], running[g], share[g],
                            fly_request[g, place], fly_chunk[g, place], fly_emits[g, place], fly_number[g], sums[g],
                            reqs, prompt, output, follow, scheduled, first, preemptions, paused, token_s,
                            transfer_s, transferred, link_until, worker_of, arrived, reserved, ended,
                            hits, memory, spare,
                        )  # fmt: skip
                        lost = lost or ranks[g, LOST] > 0
                        idle_since[g] = now if ranks[g, RUNNING] == 0 and ranks[g, PREEMPTED] == 0 else -1.0
                        for k in range(1, arrived[0] + 1):
                            let_go(arrived[k], limits, workers, ranks, worker_of, prompt, output, reqs, memory, spare)
                        for k in range(1, ended[0] + 1):
                            i = ended[k]
                            last[i] = now
                            replica[i] = w - limits[p, FIRST_WORKER]
                            workers[w, DONE] += 1
                            workers[w, TOUCHED] = 1
                            ints[p, FINISHED] += 1
                            finished += 1
                            if users > 0 or then[i] >= 0:
                                wakes = now + (think[i] if len(think) > 0 else 0.0)
                                asks = -1 - line[i] if users > 0 else n + then[i]
                                num_events = push(times, rows, num_events, wakes, asks)
                        for k in range(1, reserved[0] + 1):
                            num_events = push(times, rows, num_events, transferred[reserved[k]], reserved[k])
                    if batch == 0:
                        if lost:
                            continue
                        break
                    seconds = price(
                        limits[p], begin, sums,
                        linear, linear_compute, linear_weights, collective, overhead,
                        head, head_compute, head_weights, lines,
                        experts, experts_compute, experts_weights, exchange, False, stage_s, row,
                    )  # fmt: skip
                    ends = now
                    for k in range(stages):
                        ends = max(ends, stage_until[w, k]) + stage_s[k]
                        stage_until[w, k] = ends
                    fly_until[w, place] = ends
                    workers[w, FLYING] += 1
                    used = 0
                    prompts = 0
                    answers = 0
                    for g in range(begin, end):
                        used += limits[p, NUM_BLOCKS] - ranks[g, FREE]
                        prompts += sums[g, PRE_TOKENS]
                        answers += sums[g, DECODES]
                    if prompts > 0:
                        marginal = seconds
                        if answers > 0:
                            marginal -= price(
                                limits[p], begin, sums,
                                linear, linear_compute, linear_weights, collective, overhead,
                                head, head_compute, head_weights, lines,
                                experts, experts_compute, experts_weights, exchange, True, stage_s, other,
                            )  # fmt: skip
                        floats[p, PREFILL_S] += max(marginal, 0.0)
                    ints[p, STEPS] += 1
                    floats[p, BUSY_S] += seconds
                    floats[p, BATCH_S] += seconds * batch
                    floats[p, USED_S] += seconds * used
                    ints[p, BATCH_MAX] = max(ints[p, BATCH_MAX], batch)
                    ints[p, USED_MAX] = max(ints[p, USED_MAX], used)
                    cause = 0
                    for c in range(NUM_PARTS):
                        floats[p, PART_S + c] += row[c]
                        if row[c] > row[cause]:
                            cause = c
                    floats[p, BOUND_S + cause] += seconds
            for w in range(num_workers):
                if workers[w, TOUCHED]:
                    busy = True

        if now >= next_sample:
            samples[0, num_samples] = now
            for g in range(num_ranks):
                blocks = limits[workers[worker_of[g], POOL], NUM_BLOCKS]
                samples[1, num_samples] += ranks[g, RUNNING]
                samples[2, num_samples] += ranks[g, WAITING] + ranks[g, PREEMPTED] + ranks[g, COMING]
                samples[3, num_samples] += (blocks - ranks[g, FREE]) / blocks_of_all
            num_samples += 1
            if num_samples == samples.shape[1]:  # every second one goes
                num_samples //= 2
                for c in range(4):
                    for k in range(num_samples):
                        samples[c, k] = samples[c, 2 * k]
                    for k in range(num_samples, samples.shape[1]):
                        samples[c, k] = 0.0
                every *= 2
            next_sample = now + every

    for p in range(pools):
        floats[p, CLOCK] = now
        for g in range(num_ranks):
            if workers[worker_of[g], POOL] == p:
                ints[p, FREE_BLOCKS] += ranks[g, FREE]
    return num_samples
