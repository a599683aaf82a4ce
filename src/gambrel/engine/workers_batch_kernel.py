"""How a rank of a worker forms a micro-batch: who goes on, who gives way, who is admitted, and how prompts come over.

The parts of :mod:`gambrel.engine.workers_kernel`, which tells what workers, ranks and pools are, and into which they
are compiled. ``limit`` and ``rank`` are rows of its arrays, in the places of :mod:`gambrel.engine.workers_state`, and
``batch`` is the micro-batch that is being formed: its slots, and the tokens of each prompt's chunk and whether a token
comes out of it; a decoder has one and one.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from gambrel.core.step import pairs_within
from gambrel.engine.compiled import inlined
from gambrel.engine.state import KEEPS_SHARE, LEAST, POWER, RETRACT_STEPS, SHARE_DECAY, SHARE_LEAST
from gambrel.engine.workers_cache import find, give_back, grow, hold
from gambrel.engine.workers_state import (
    ADMITTED,
    ALONG,
    ASKED,
    AT,
    BATCH_SEQS,
    BLOCK_SIZE,
    BUDGET,
    BY_SCORE,
    CACHING,
    CHUNKED,
    COMING,
    COMPUTED,
    DECODE,
    DECODERS,
    DECODES,
    DECODING,
    DONE,
    FIRST_WORKER,
    FREE,
    GENERATED,
    GIVEN,
    HEAD,
    HELD,
    HIT,
    IN_FLIGHT,
    KEPT_TOKENS,
    KV,
    KV_WINDOWED,
    LATEST,
    LOST,
    NEW,
    NUM_BLOCKS,
    NUM_SEQS,
    NUM_SUMS,
    NUM_TOKENS,
    NUM_WORKERS,
    NUMBER,
    ORDER,
    OUTPUT,
    PAIRS,
    PAIRS_WINDOWED,
    PRE_CHUNKS,
    PRE_TOKENS,
    PREEMPTED,
    PREFILL,
    PROMISE,
    PROMISED,
    PROMPT,
    PROMPTS_FIRST,
    PULL,
    RANKS,
    READY,
    READY_TAIL,
    REQUEST,
    RESTING,
    ROLE,
    RUNNING,
    SAMPLED,
    SENDER,
    SPARE_SEQS,
    STATE,
    STATIC,
    TAIL,
    TO_COME,
    TOUCHED,
    TURN,
    WAITING,
    WATERMARK,
    WHOLE_PROMPT,
    WINDOW,
)

__all__ = ["PARTS", "arrive", "choose", "in_all", "let_go", "line_up", "reserve", "schedule"]

_pairs = njit(pairs_within)


@inlined
def line_up(i: int, rank: Any, head: int, tail: int, follow: Any) -> None:
    """Put a request at the end of the line whose ends lie at the given places of a rank."""
    follow[i] = -1
    if rank[head] < 0:
        rank[head] = i
    else:
        follow[rank[tail]] = i
    rank[tail] = i


@inlined
def landing(prompt: int, output: int, limit: Any) -> int:
    """Blocks that a decode rank gives to a prompt: with room to go on from a first token that comes along."""
    tokens = prompt
    if limit[ALONG] and output > 1:
        tokens += 1
    return int((tokens + limit[BLOCK_SIZE] - 1) // limit[BLOCK_SIZE])


@inlined
def in_all(prompt: int, output: int, limit: Any) -> int:
    """Blocks that a request will ever need at a rank, its recurrent state included."""
    tokens = prompt if limit[ROLE] == PREFILL else prompt + output - 1
    return int((tokens + limit[BLOCK_SIZE] - 1) // limit[BLOCK_SIZE] + limit[STATE])


@inlined
def promised(prompt: int, output: int, limit: Any, rank: Any) -> bool:
    """Whether all that a request will ever need is its own from now on, or need not be."""
    if limit[PROMISE]:
        whole = in_all(prompt, output, limit)
        if rank[PROMISED] + whole > limit[NUM_BLOCKS]:
            return False
        rank[PROMISED] += whole
    return True


@inlined
def choose_rank(w: int, limit: Any, workers: Any, ranks: Any, first_rank: Any) -> int:
    """The rank of a worker that the next request goes to.

    By vLLM's score, 4 for each that waits and 1 for each that runs (``DPLBAsyncMPClient``, which knows them as of
    100 ms ago), or in turn (SGLang's default).
    """
    g = first_rank[w]
    if limit[RANKS] == 1:
        return int(g)
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


@inlined
def choose(
    i: int, pool: int, limits: Any, rule: int, fixed: Any, draws: Any, last_choice: Any, workers: Any, ranks: Any,
    first_rank: Any,
) -> int:  # fmt: skip
    """The rank of a pool that request ``i`` goes to; its worker counts it. Rules: see :mod:`.routing_kernel`."""
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
        w = first + (fixed[i] if len(fixed) > 0 else i) % number
    workers[w, GIVEN] += 1
    last_choice[pool] = w - first
    return int(choose_rank(w, limit, workers, ranks, first_rank))


@inlined
def arrive(
    i: int, limits: Any, rule: int, fixed: Any, draws: Any, last_choice: Any, workers: Any, ranks: Any,
    first_rank: Any, worker_of: Any, seat: Any, follow: Any,
) -> None:  # fmt: skip
    """Route a request that has just come: to a worker, or to one of each pool where the answer's blocks come first."""
    g = choose(i, 0, limits, rule, fixed, draws, last_choice, workers, ranks, first_rank)
    if len(limits) > 1 and not limits[1, PULL]:
        seat[i] = g
        g = choose(i, 1, limits, rule, fixed, draws, last_choice, workers, ranks, first_rank)
    line_up(i, ranks[g], HEAD, TAIL, follow)
    ranks[g, WAITING] += 1
    workers[worker_of[g], TOUCHED] = 1


@inlined
def reserve(
    g: int, limits: Any, workers: Any, ranks: Any, worker_of: Any, prompt: Any, output: Any, seat: Any, follow: Any
) -> None:
    """Give blocks to prompts that wait at a decode rank, as far as they are free, and let them be computed."""
    limit = limits[1]
    rank = ranks[g]
    kept = limit[KEPT_TOKENS] // limit[BLOCK_SIZE]
    while rank[HEAD] >= 0:
        i = rank[HEAD]
        present = rank[RUNNING] + rank[PREEMPTED] + rank[COMING]
        free = rank[FREE] - kept * present
        need = landing(prompt[i], output[i], limit) + limit[STATE]
        if present >= limit[NUM_SEQS] + limit[SPARE_SEQS] or need > rank[FREE] or (need + kept > free and present > 0):
            break
        if not promised(prompt[i], output[i], limit, rank):
            break
        rank[HEAD] = follow[i]
        rank[WAITING] -= 1
        rank[FREE] -= need
        rank[COMING] += 1
        sender = seat[i]
        seat[i] = g
        line_up(i, ranks[sender], HEAD, TAIL, follow)
        ranks[sender, WAITING] += 1
        workers[worker_of[sender], TOUCHED] = 1


@inlined
def let_go(s: int, limits: Any, workers: Any, ranks: Any, worker_of: Any, slots: Any, memory: Any) -> None:
    """The prompt has come over: the blocks that its sender held are free."""
    limit = limits[0]
    g = slots[s, SENDER]
    tokens = slots[s, PROMPT]
    bs = limit[BLOCK_SIZE]
    held = (tokens + bs - 1) // bs
    if limit[CACHING]:
        ranks[g, FREE] += give_back(slots[s, REQUEST], s, g, held, tokens // bs, True, limit[STATE], memory)
    else:
        ranks[g, FREE] += held + limit[STATE]
    if limit[PROMISE]:
        ranks[g, PROMISED] -= in_all(tokens, slots[s, OUTPUT], limit)
    workers[worker_of[g], TOUCHED] = 1
    workers[worker_of[g], DONE] += 1


@inlined
def evict(
    s: int, g: int, now: float, limit: Any, rank: Any, slots: Any, token_s: Any, follow: Any, preemptions: Any,
    memory: Any,
) -> None:  # fmt: skip
    """A sequence that runs gives way: its blocks are free, and it waits before all others."""
    i = slots[s, REQUEST]
    if limit[CACHING]:
        full = slots[s, COMPUTED] // limit[BLOCK_SIZE]
        rank[FREE] += give_back(i, s, g, slots[s, HELD], full, False, limit[STATE], memory)
    else:
        rank[FREE] += slots[s, HELD] + limit[STATE]
    if slots[s, DECODING]:
        rank[DECODERS] -= 1
        rank[ASKED] -= slots[s, OUTPUT]
        rank[TO_COME] -= slots[s, OUTPUT] - slots[s, GENERATED]
    slots[s, HELD] = 0
    slots[s, COMPUTED] = 0
    slots[s, DECODING] = 0
    if slots[s, GENERATED] == 0 and preemptions[i] == 0:
        token_s[s] = now  # its first token is late by what follows
    preemptions[i] += 1
    follow[i] = rank[LATEST]
    rank[LATEST] = i
    rank[PREEMPTED] += 1
    rank[RUNNING] -= 1
    rank[LOST] = 1


@inlined
def is_last(s: int, flown: Any, flown_number: Any, oldest: int, flying: int, slots: Any) -> bool:
    """Whether nobody in flight was admitted after a sequence."""
    for m in range(oldest, oldest + flying):
        place = m % len(flown_number)
        for k in range(flown_number[place]):
            if slots[flown[place, k], ORDER] > slots[s, ORDER]:
                return False
    return True


@inlined
def shed(
    k: int, need: int, g: int, now: float, limit: Any, rank: Any, resting: Any,
    flown: Any, flown_number: Any, oldest: int, flying: int,
    slots: Any, token_s: Any, follow: Any, preemptions: Any, memory: Any,
) -> bool:  # fmt: skip
    """The last admitted of those who rest behind place ``k`` give way until ``need`` blocks are free, at last itself.

    Whether they are free for the one at ``k``; those in flight cannot give way, so it waits for them.
    """
    while need > rank[FREE]:
        j = rank[RESTING] - 1
        while j > k and slots[resting[j], IN_FLIGHT]:
            j -= 1
        s = resting[j]
        if j == k and (
            rank[RESTING] > k + 1
            or slots[s, IN_FLIGHT]
            or not is_last(s, flown, flown_number, oldest, flying, slots)
        ):  # fmt: skip
            return False
        for m in range(j, rank[RESTING] - 1):
            resting[m] = resting[m + 1]
        rank[RESTING] -= 1
        evict(s, g, now, limit, rank, slots, token_s, follow, preemptions, memory)
        if j == k:
            return False
    return True


@inlined
def join(s: int, chunk: int, emits: bool, limit: Any, rank: Any, batch: Any, chunks: Any, ends: Any, slots: Any,
         total: Any) -> None:  # fmt: skip
    """Put a chunk of a prompt into the micro-batch."""
    before = slots[s, COMPUTED]
    total[PRE_TOKENS] += chunk
    total[PRE_CHUNKS] += 1
    total[PAIRS] += _pairs(before, chunk, 0)
    total[PAIRS_WINDOWED] += _pairs(before, chunk, limit[WINDOW])
    total[SAMPLED] += emits
    slots[s, COMPUTED] = before + chunk
    slots[s, IN_FLIGHT] += 1
    batch[rank[NUMBER]] = s
    chunks[rank[NUMBER]] = chunk
    ends[rank[NUMBER]] = emits
    rank[NUMBER] += 1
    rank[BUDGET] -= chunk


@inlined
def go_on(
    g: int, turn: int, now: float, limit: Any, rank: Any, resting: Any, batch: Any, chunks: Any, ends: Any, total: Any,
    flown: Any, flown_number: Any, oldest: int, flying: int,
    slots: Any, token_s: Any, follow: Any, preemptions: Any, memory: Any,
) -> None:  # fmt: skip
    """Those who run go on, in order of admission: a decoder by a token, a prompt by what the budget has left.

    Under prompts first only prompts do in turn 0, and only decoders in turn 2.
    """
    bs = limit[BLOCK_SIZE]
    window = limit[WINDOW]
    most = limit[BATCH_SEQS]
    caching = limit[CACHING] > 0
    prompts_first = limit[PROMPTS_FIRST] > 0
    decodes = 0
    kv = 0
    kv_windowed = 0
    kept = 0
    k = 0
    while k < rank[RESTING] and rank[BUDGET] > 0 and rank[NUMBER] < most:
        s = resting[k]
        decoding = slots[s, DECODING] != 0
        if prompts_first and decoding != (turn == 2):
            resting[kept] = s
            kept += 1
            k += 1
            continue
        before = slots[s, COMPUTED]
        left = 1 if decoding else slots[s, PROMPT] + slots[s, GENERATED] - before
        chunk = min(left, rank[BUDGET])
        held = slots[s, HELD]
        need = 0
        if before + chunk > held * bs:
            need = (before + chunk + bs - 1) // bs - held
            if need > rank[FREE] and not shed(
                k, need, g, now, limit, rank, resting, flown, flown_number, oldest, flying,
                slots, token_s, follow, preemptions, memory,
            ):  # fmt: skip
                break
            rank[FREE] -= need
            slots[s, HELD] = held + need
        if caching and (need > 0 or not decoding):
            full = -1 if decoding else (before + chunk) // bs
            grow(slots[s, REQUEST], s, g, held, need, full, slots[s, PROMPT] // bs, memory)
        k += 1
        if not decoding:
            join(s, chunk, chunk == left, limit, rank, batch, chunks, ends, slots, total)
            if chunk < left:
                resting[kept] = s
                kept += 1
            continue
        keys = before + 1
        decodes += 1
        kv += keys
        kv_windowed += min(keys, window) if window > 0 else keys
        slots[s, COMPUTED] = keys
        batch[rank[NUMBER]] = s
        rank[NUMBER] += 1
        rank[BUDGET] -= 1
    for m in range(k, rank[RESTING]):
        resting[kept] = resting[m]
        kept += 1
    rank[RESTING] = kept
    total[DECODES] += decodes
    total[SAMPLED] += decodes
    total[KV] += kv
    total[KV_WINDOWED] += kv_windowed


@inlined
def estimate(rank: Any, share: Any) -> None:
    """What is kept free for decoders after a step of theirs, as a share of what they have still to generate."""
    if rank[LOST]:
        done = rank[ASKED] - rank[TO_COME]
        share[0] = min((done + RETRACT_STEPS * rank[DECODERS]) / (rank[ASKED] + 1), 1.0)
    else:
        share[0] = max(share[0] - SHARE_DECAY, SHARE_LEAST)


@inlined
def enlist(s: int, rank: Any, slots: Any) -> None:
    """A sequence runs from now on, the last in order of admission."""
    rank[ADMITTED] += 1
    slots[s, ORDER] = rank[ADMITTED]
    rank[RUNNING] += 1


@inlined
def receive(
    now: float, limit: Any, rank: Any, batch: Any, total: Any, slots: Any, seat: Any, token_s: Any,
    follow: Any, first: Any, preemptions: Any, paused: Any, over: Any,
) -> None:  # fmt: skip
    """The first whose prompt has come over runs, in blocks of its own, or is ``over`` with its first token."""
    i = rank[READY]
    s = seat[i]
    prompt = slots[s, PROMPT]
    output = slots[s, OUTPUT]
    rank[READY] = follow[i]
    rank[COMING] -= 1
    slots[s, DECODING] = 1
    slots[s, HELD] = landing(prompt, output, limit)
    keys = prompt
    if limit[ALONG]:
        keys = prompt + 1
        slots[s, GENERATED] = 1
        if preemptions[i] > 0:
            paused[i, 0] = now - token_s[s]
        first[i] = now
        token_s[s] = now
        if output == 1:
            rank[FREE] += slots[s, HELD] + limit[STATE]
            if limit[PROMISE]:
                rank[PROMISED] -= in_all(prompt, output, limit)
            over[0] += 1
            over[over[0]] = s
            return
    enlist(s, rank, slots)
    rank[DECODERS] += 1
    rank[ASKED] += output
    rank[TO_COME] += output - slots[s, GENERATED]
    total[DECODES] += 1
    total[SAMPLED] += 1
    total[KV] += keys
    total[KV_WINDOWED] += min(keys, limit[WINDOW]) if limit[WINDOW] > 0 else keys
    slots[s, COMPUTED] = keys
    batch[rank[NUMBER]] = s
    rank[NUMBER] += 1
    rank[BUDGET] -= 1


@inlined
def fetch(
    g: int, now: float, limit: Any, rank: Any, slots: Any, seat: Any, follow: Any, transfer_s: Any, transferred: Any,
    link_until: Any, worker_of: Any, come: Any, coming: Any,
) -> bool:  # fmt: skip
    """Give blocks to the first prompt that waits for them and send for it; False if there are not enough."""
    i = rank[HEAD]
    s = seat[i]
    need = landing(slots[s, PROMPT], slots[s, OUTPUT], limit) + limit[STATE]
    room = need
    if rank[RUNNING] > 0:
        room += limit[WATERMARK]
    if room > rank[FREE] or not promised(slots[s, PROMPT], slots[s, OUTPUT], limit, rank):
        return False
    rank[HEAD] = follow[i]
    rank[WAITING] -= 1
    rank[FREE] -= need
    rank[COMING] += 1
    sender = worker_of[slots[s, SENDER]]
    until = max(now, link_until[sender], link_until[worker_of[g]]) + transfer_s[i]
    transferred[i] = until
    link_until[sender] = until
    link_until[worker_of[g]] = until
    if until <= now:
        line_up(i, rank, READY, READY_TAIL, follow)
        come[0] += 1
        come[come[0]] = s
    else:
        coming[0] += 1
        coming[coming[0]] = i
    return True


@inlined
def settle(i: int, g: int, prompt: Any, output: Any, slots: Any, seat: Any, spare: Any) -> int:
    """A slot for a request that is admitted for the first time."""
    spare[0] -= 1
    s = spare[1 + spare[0]]
    for c in range(REQUEST):
        slots[s, c] = 0
    slots[s, REQUEST] = i
    slots[s, PROMPT] = prompt[i]
    slots[s, OUTPUT] = output[i]
    slots[s, AT] = seat[i]
    slots[s, SENDER] = g
    seat[i] = s
    return int(s)


@inlined
def board(
    i: int, again: bool, g: int, now: float, limit: Any, rank: Any, resting: Any, share: Any, batch: Any, chunks: Any,
    ends: Any, total: Any, slots: Any, seat: Any, spare: Any, prompt: Any, output: Any, follow: Any, scheduled: Any,
    hits: Any, memory: Any,
) -> bool:  # fmt: skip
    """Admit the first that waits and begin its prompt, ``again`` if it was preempted; False if it has to wait."""
    bs = limit[BLOCK_SIZE]
    caching = limit[CACHING] > 0
    s = 0
    generated = 0
    if again:
        s = int(seat[i])
        generated = int(slots[s, GENERATED])
    tokens = prompt[i] + generated
    common = 0
    found = 0
    evictable = 0
    if caching:
        common, found, evictable = find(i, s, g, again, prompt[i] // bs, memory)
    hit = min(found, (tokens - 1) // bs) * bs
    if tokens - hit > rank[BUDGET] and not limit[CHUNKED]:
        return False
    chunk = min(tokens - hit, rank[BUDGET])
    need = (hit + chunk + bs - 1) // bs - found
    room = (tokens + bs - 1) // bs - found if limit[WHOLE_PROMPT] else need
    room += evictable + limit[STATE]
    if rank[RUNNING] > 0:
        room += limit[WATERMARK]
    if room > rank[FREE] or not promised(prompt[i], output[i], limit, rank):
        return False
    if limit[PROMPTS_FIRST] == KEEPS_SHARE and limit[ROLE] != PREFILL:
        new = output[i] - generated
        kept = (rank[FREE] - evictable) * bs - rank[NEW] - share[0] * rank[TO_COME]
        if rank[RUNNING] > 0 and tokens - hit + new + bs >= kept:
            return False
        rank[NEW] += new
    if again:
        rank[LATEST] = follow[i]
        rank[PREEMPTED] -= 1
    else:
        s = settle(i, g, prompt, output, slots, seat, spare)
        scheduled[i] = now
        hits[i] = hit
        rank[HEAD] = follow[i]
        rank[WAITING] -= 1
    rank[FREE] -= need + evictable + limit[STATE]
    if caching:
        hold(i, s, g, common, found, need, (hit + chunk) // bs, prompt[i] // bs, limit[STATE], memory)
    slots[s, COMPUTED] = hit
    slots[s, HIT] = hit
    slots[s, HELD] = found + need
    enlist(s, rank, slots)
    if hit + chunk < tokens:
        resting[rank[RESTING]] = s
        rank[RESTING] += 1
    join(s, chunk, hit + chunk == tokens, limit, rank, batch, chunks, ends, slots, total)
    return True


@inlined
def schedule(
    g: int, now: float, limit: Any, rank: Any, resting: Any, share: Any, batch: Any, chunks: Any, ends: Any, total: Any,
    flown: Any, flown_number: Any, oldest: int, flying: int,
    slots: Any, seat: Any, spare: Any, token_s: Any,
    prompt: Any, output: Any, follow: Any, scheduled: Any, first: Any, preemptions: Any, paused: Any, hits: Any,
    transfer_s: Any, transferred: Any, link_until: Any, worker_of: Any, come: Any, coming: Any, over: Any, memory: Any,
) -> None:  # fmt: skip
    """Form one micro-batch of a rank at ``now``: its sequences, its sums into ``total``, their number in the rank.

    Left to the caller, the number of each in its first entry: slots of prompts that have ``come`` over in no time,
    requests that were given blocks and are ``coming``, slots of answers that are ``over`` with the token that came
    along. In flight are ``flying`` micro-batches of the ``flown``, from the ``oldest``. ``memory`` is that of
    :mod:`gambrel.engine.workers_cache`, ``spare`` the unused slots after their number.
    """
    for k in range(NUM_SUMS):
        total[k] = 0
    rank[LOST] = 0
    rank[NUMBER] = 0
    rank[BUDGET] = limit[NUM_TOKENS]
    come[0] = 0
    coming[0] = 0
    over[0] = 0
    for turn in range(3):  # the running, the waiting; or prompts of both, and decoders if there was nothing to do
        if turn == 1:
            if rank[LOST] or (limit[STATIC] and rank[RUNNING] > 0):
                continue
            rank[NEW] = 0
            if limit[PROMPTS_FIRST]:
                for k in range(rank[NUMBER]):
                    if ends[k]:
                        rank[NEW] += slots[batch[k], OUTPUT] - slots[batch[k], GENERATED]
            while rank[BUDGET] > 0 and rank[RUNNING] < limit[NUM_SEQS] and rank[NUMBER] < limit[BATCH_SEQS]:
                if rank[READY] >= 0:
                    receive(
                        now, limit, rank, batch, total, slots, seat, token_s, follow, first, preemptions,
                        paused, over,
                    )  # fmt: skip
                    continue
                again = rank[PREEMPTED] > 0
                i = rank[LATEST] if again else rank[HEAD]
                if not again and i < 0:
                    break
                if limit[ROLE] == DECODE and not again:
                    if not limit[PULL] or not fetch(
                        g, now, limit, rank, slots, seat, follow, transfer_s, transferred, link_until, worker_of,
                        come, coming,
                    ):  # fmt: skip
                        break
                elif not board(
                    i, again, g, now, limit, rank, resting, share, batch, chunks, ends, total, slots, seat, spare,
                    prompt, output, follow, scheduled, hits, memory,
                ):  # fmt: skip
                    break
        elif turn == 0 or (limit[PROMPTS_FIRST] and rank[NUMBER] == 0):
            go_on(
                g, turn, now, limit, rank, resting, batch, chunks, ends, total, flown, flown_number, oldest, flying,
                slots, token_s, follow, preemptions, memory,
            )  # fmt: skip
            if turn == 2:
                estimate(rank, share)


PARTS = (
    pairs_within, find, give_back, grow, hold, line_up, landing, in_all, promised, choose_rank, choose, arrive, reserve,
    let_go, evict, is_last, shed, join, go_on, estimate, enlist, receive, fetch, settle, board, schedule,
)  # fmt: skip
"""What a kernel that calls them is made of."""
