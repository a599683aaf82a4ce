"""What a replica remembers between two steps, as arrays that a compiled loop can resume from.

The kernels take arrays, not objects; this module names the places in them, once. Sizes: a replica holds
``max_num_seqs`` slots of a few words, one calendar ring as long as the longest answer, and nothing per request; the
per-request columns (:class:`Requests`) are shared by all replicas of a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints, Workload
    from gambrel.engine.prefixes import Prefixes

__all__ = ["NUM_SAMPLES_MAX", "Limits", "Replicas", "Requests"]

# Places in Replicas.ints (counts, tokens, slots and request numbers; -1 means none).
(
    STEPS,  # engine iterations so far
    DECODES,  # sequences that decode
    CONTEXT,  # tokens they have in the cache, summed
    CONTEXT_WINDOWED,  # keys they will attend to in the next step, each capped at the window, summed
    BELOW_WINDOW,  # decoders whose next step sees fewer keys than the window
    TAIL,  # slot admitted last
    PARTIAL,  # slot whose prompt is partly prefilled
    PARTIAL_DONE,  # its tokens in the cache
    PARTIAL_TARGET,  # its tokens to prefill in all
    NEXT,  # request that waits at the front
    PREEMPTED,  # preempted requests that wait before it
    FREE_BLOCKS,
    FREE_SLOTS,
    NUM_STARTED,  # requests taken from the waiting line for the first time
    FINISHED,
    LAST_FINISHED,  # of these, in the last step
    BATCH_MAX,
    USED_MAX,  # KV blocks
    NUM_SAMPLES,
    SEEN,  # first request that the series has not counted as arrived
    NUM_SEEN,  # how many it has
    BLANK,  # free blocks without a hash
    OLDEST,  # extent of free cached blocks to be handed out first
    NEWEST,  # and last
    SPARE_NODE,  # first of the unused anonymous extents
    ANONYMOUS,  # number of the first anonymous extent
    NUM_ADMITTED,  # admissions so far, resumed requests counted again
    TICKS,  # steps in which decoders advanced, or could have: what the calendar counts
    PROMISED,  # blocks promised to running requests to their end
    REMAINING,  # tokens that decoders have still to generate, summed
    ASKED,  # tokens they generate in all, summed
    NUM_JOINED,  # decoders that joined since decoders last advanced
    STATE_BLOCKS,  # blocks that the recurrent state of each admitted request takes
    NUM_INTS,
) = range(34)

# Places in Replicas.floats (seconds; BATCH_S and USED_S are sequence-seconds and block-seconds).
NUM_PARTS = 5
(
    CLOCK,
    BUSY_S,
    PREFILL_S,
    BATCH_S,
    USED_S,
    GAP_TOTAL,
    SAMPLE_EVERY,
    SAMPLE_ORIGIN,
    DECODED,  # when decoders last advanced
    SHARE,  # of the tokens still to generate, what is kept free for them
    BOUND_S,
) = range(11)
PART_S = BOUND_S + NUM_PARTS
NUM_FLOATS = PART_S + NUM_PARTS

# Rows of Replicas.slots.
(
    REQUEST,
    GENERATED,  # tokens generated before the present decode or prefill began
    BEFORE,  # slot admitted before this one
    AFTER,  # slot admitted after it
    RING_BEFORE,
    RING_AFTER,
    OFFSET,  # cached tokens minus step number, constant while decoding
    BUCKET,  # block counter the decoder is in
    FINISH,  # step in which it generates its last token
    SPARE,  # stack of unused slots
    STACK,  # preempted slots, the last one waits at the front
    FRESH,  # slots whose prompt completes in this step
    HELD,  # shared units of KV blocks the request references
    SHARED,  # blocks it holds in them
    FILLED,  # of these, in the last unit
    ORDER,  # number of its admission
    ENDED,  # slots that end in this step
    JOINED,  # slots that joined the decoders since they last advanced
    NUM_ROWS,
) = range(19)

# Rows of Replicas.cache: extents are shared units, then a preempted request's own by slot, then anonymous ones.
(
    REFS,  # requests that hold the unit
    COUNT,  # its leading blocks that are cached
    OLDER,  # neighbour in the queue of free extents
    NEWER,
    NUM_CACHE_ROWS,
) = range(5)

# Inter-token gaps: bucket = the leading bits of the float, 32 to an octave, from 2**-30 s (1 ns) to 2**30 s.
BUCKET_SHIFT = 47
BUCKET_BASE = (1023 - 30) << 5
NUM_BUCKETS = 60 << 5

# What SGLang keeps free for decoders: a share of what they have still to generate, which falls with every step and is
# estimated anew when it was too little. Defaults in its global_config.py at 0.4.9: SGLANG_INIT_NEW_TOKEN_RATIO,
# SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR, SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS, retract_decode_steps.
SHARE_FIRST = 0.7
SHARE_LEAST = SHARE_FIRST * 0.14
SHARE_DECAY = (SHARE_FIRST - SHARE_LEAST) / 600
RETRACT_STEPS = 20

LEAST, POWER, PREFIX = range(3)  # rules of routing that look at the replicas

KEEPS_SHARE = 2  # the order of a step (see Limits) under which a share of answers to come is kept free

NUM_SAMPLES_MAX = 4096
NEVER = float("inf")


def bucket_edges() -> Floats:
    """Edges in seconds of the gap buckets: float64[NUM_BUCKETS + 1]."""
    bits = (np.arange(NUM_BUCKETS + 1, dtype=np.int64) + BUCKET_BASE) << BUCKET_SHIFT
    return bits.view(np.float64)


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a step of one replica, in vLLM's words.

    ``num_kv_blocks`` blocks of ``block_size`` tokens; ``reserve_full_prompt``: a request is admitted only if its
    whole prompt fits the free blocks, not only the first chunk; ``watermark_blocks`` stay free at admission
    while anything runs; ``prefix_caching``: free blocks stay findable until they are handed out again;
    ``promise_output``: a request is admitted only if what all will ever need fits, so none is preempted;
    ``static_batch``: nobody is admitted while anybody runs; ``prefill_first``: a step holds prompts only, if any can be
    computed, else decoders only; ``keep_share``: there, room is kept for a share of what is still to be generated.
    ``request_blocks`` above 0: what one request may take, checked beforehand.
    ``state_blocks``: what a request takes beside its tokens as long as it is admitted, for its recurrent state.
    ``draft_tokens`` are guessed for a decoder in every step, in ``draft_s`` seconds for all; each holds with
    probability ``acceptance`` if those before it do. ``by_priority``: the workload's priorities decide who is admitted
    first and who is preempted, ties by arrival.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    num_kv_blocks: int
    block_size: int = 16
    chunked_prefill: bool = True
    reserve_full_prompt: bool = False
    watermark_blocks: int = 0
    prefix_caching: bool = False
    promise_output: bool = False
    static_batch: bool = False
    prefill_first: bool = False
    keep_share: bool = False
    request_blocks: int = 0
    draft_tokens: int = 0
    acceptance: float = 0.0
    draft_s: float = 0.0
    by_priority: bool = False
    state_blocks: int = 0

    def accepted(self, num: int = 1 << 16) -> Ints:
        """How many guesses hold, drawn ``num`` times with a fixed seed: int64[num] of 0 to ``draft_tokens``."""
        held = np.random.default_rng(0).geometric(1.0 - self.acceptance, num) - 1
        return np.minimum(held, self.draft_tokens).astype(np.int64)

    @property
    def step_order(self) -> int:
        """0 where steps mix prompts and decoders, 1 where prompts go first, KEEPS_SHARE where room is kept as well."""
        return (KEEPS_SHARE if self.keep_share else 1) if self.prefill_first else 0

    def arguments(self, *, specialised: bool = True) -> tuple[Any, ...]:
        """In the kernels' order; ``specialised`` ones are compiled for mixed steps where ``step_order`` is None."""
        return (
            self.max_num_seqs, self.max_num_batched_tokens, self.num_kv_blocks, self.block_size,
            self.chunked_prefill, self.reserve_full_prompt, self.watermark_blocks, self.prefix_caching,
            self.promise_output, self.static_batch, (self.step_order or None) if specialised else self.step_order,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Requests:
    """Columns with one row a request: what is asked (float64, int64), whose turn is next, and what happened.

    ``follow`` int32: the request after this one in its replica's waiting line, -1 at the end.
    ``scheduled``, ``first``, ``last`` float64 seconds, NaN until they happen; ``preemptions`` int32.
    ``paused`` float32[n, 2] seconds lost to preemption before the first token (from the first eviction to that token)
    and after it (gaps between tokens in which the request was evicted and recomputed).
    ``cached`` int32: tokens of the prompt found in the prefix cache at first admission; ``prefixes``: what they share.
    ``users`` above 0 make the arrivals of a closed loop, with pauses of ``think`` float64 seconds after each row, or
    none where it is empty. ``rank`` int64: place in the order of priority and arrival, and ``deadline`` float64 seconds
    on the clock at which the client gives up, or None. ``stop`` bool[1]: somebody watches, and may end the replay.
    """

    arrival: Floats
    prompt: Ints
    output: Ints
    follow: npt.NDArray[np.int32]
    scheduled: Floats
    first: Floats
    last: Floats
    preemptions: npt.NDArray[np.int32]
    paused: npt.NDArray[np.float32]
    cached: npt.NDArray[np.int32]
    prefixes: Prefixes
    users: int
    think: Floats
    session: Ints | None = None
    rank: Ints | None = None
    deadline: Floats | None = None
    stop: npt.NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, workload: Workload, prefixes: Prefixes, stop: npt.NDArray[np.bool_] | None = None) -> Requests:
        """Fresh columns for a workload, every line empty; arrivals that are to be made are infinite until then."""
        n = len(workload)
        arrival = np.ascontiguousarray(workload.arrival_s, dtype=np.float64)
        if workload.closed_loop:
            arrival = arrival.copy()
            arrival[workload.closed_loop :] = NEVER
        if workload.after is not None:
            arrival = arrival.copy()
        return cls(
            arrival,
            np.ascontiguousarray(workload.prompt_tokens, dtype=np.int64),
            np.ascontiguousarray(workload.output_tokens, dtype=np.int64),
            np.full(n, -1, np.int32),
            np.full(n, np.nan),
            np.full(n, np.nan),
            np.full(n, np.nan),
            np.zeros(n, np.int32),
            np.zeros((n, 2), np.float32),
            np.zeros(n, np.int32),
            prefixes,
            min(workload.closed_loop, n),
            np.empty(0) if workload.think_s is None else np.ascontiguousarray(workload.think_s, dtype=np.float64),
            workload.session,
            None if workload.priority is None else ranks(workload.priority),
            None if workload.deadline_s is None else workload.arrival_s + workload.deadline_s,
            stop,
        )

    def line_up(self, line: npt.NDArray[np.intp]) -> int:
        """Chain the given rows, in order, into one waiting line; the first of them, or -1 for none."""
        if len(line) == 0:
            return -1
        self.follow[line[:-1]] = line[1:]
        self.follow[line[-1]] = -1
        return int(line[0])

    def forget(self) -> None:
        """Forget what happened, as if nothing had been served."""
        for column in (self.scheduled, self.first, self.last):
            column.fill(np.nan)
        self.preemptions.fill(0)
        self.paused.fill(0)
        self.cached.fill(0)

    def arguments(self) -> tuple[Any, ...]:
        """In the order of the kernels."""
        return (
            self.arrival, self.prompt, self.output, self.follow,
            self.scheduled, self.first, self.last, self.preemptions, self.paused,
            self.cached, self.prefixes.units, self.prefixes.offsets, self.prefixes.sizes,
        )  # fmt: skip


def ranks(priority: Ints) -> Ints:
    """Place of every row in the order of priority, lowest first, then arrival: int64[n]."""
    order = np.argsort(priority, kind="stable")  # rows are in order of arrival already
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


@dataclass(frozen=True, slots=True)
class Replicas:
    """The arrays of some replicas, one row each: the places are named at the head of the module.

    ``token_s`` float64[r, slots] when a preempted request's last token came; ``ring`` int32[r, R] first slot to finish
    in a step, R a power of two above the longest answer; ``crossings`` int32[r, R] decoders that reach the window in
    a step (int32[r, 1] without a window); ``offsets`` int64[r, block_size]; ``histogram`` int64[r, NUM_BUCKETS];
    ``bits`` float64[r, 1] and its int64 view, to take a float apart; ``samples`` float64[r, 4, NUM_SAMPLES_MAX]: time,
    running, waiting, used blocks; ``cache`` int32[r, NUM_CACHE_ROWS, extents], one extent without prefix caching.
    """

    ints: Ints
    floats: Floats
    slots: Ints
    token_s: Floats
    ring: npt.NDArray[np.int32]
    crossings: npt.NDArray[np.int32]
    offsets: Ints
    histogram: Ints
    bits: Floats
    bits_int: Ints
    samples: Floats
    cache: npt.NDArray[np.int32]

    @classmethod
    def of(
        cls, limits: Limits, requests: Requests, number: int = 1, *, windowed: bool, sample_every_s: float = NEVER
    ) -> Replicas:
        """Idle replicas with nobody waiting; infinite ``sample_every_s`` for no series."""
        ring = 1 << int(requests.output.max() + 1).bit_length()
        samples = NUM_SAMPLES_MAX if sample_every_s < NEVER else 1
        ints = np.zeros((number, NUM_INTS), np.int64)
        ints[:, [TAIL, PARTIAL, NEXT, SEEN]] = -1
        ints[:, FREE_BLOCKS] = limits.num_kv_blocks
        ints[:, FREE_SLOTS] = limits.max_num_seqs
        ints[:, STATE_BLOCKS] = limits.state_blocks
        floats = np.zeros((number, NUM_FLOATS))
        floats[:, [CLOCK, SAMPLE_ORIGIN]] = requests.arrival[0]
        floats[:, SAMPLE_EVERY] = sample_every_s
        floats[:, SHARE] = SHARE_FIRST
        slots = np.zeros((number, NUM_ROWS, limits.max_num_seqs), np.int64)
        slots[:, SPARE] = np.arange(limits.max_num_seqs - 1, -1, -1)
        bits = np.zeros((number, 1))
        named = len(requests.prefixes.sizes) + limits.max_num_seqs
        cache = np.zeros((number, NUM_CACHE_ROWS, 2 * named + 2 if limits.prefix_caching else 1), np.int32)
        if limits.prefix_caching:  # anonymous extents have others between them, so one more than the others suffices
            cache[:, NEWER, named:] = np.arange(named + 1, 2 * named + 3)
            cache[:, NEWER, -1] = -1
            ints[:, BLANK] = limits.num_kv_blocks
            ints[:, [OLDEST, NEWEST]] = -1
            ints[:, [SPARE_NODE, ANONYMOUS]] = named
        return cls(
            ints,
            floats,
            slots,
            np.full((number, limits.max_num_seqs), np.nan),
            np.full((number, ring), -1, np.int32),
            np.zeros((number, ring if windowed else 1), np.int32),
            np.zeros((number, limits.block_size), np.int64),
            np.zeros((number, NUM_BUCKETS), np.int64),
            bits,
            bits.view(np.int64),
            np.zeros((number, 4, samples)),
            cache,
        )

    def line_up(self, requests: Requests, line: npt.NDArray[np.intp], replica: int = 0) -> Replicas:
        """Let the given requests, in order, wait at a replica; itself."""
        self.ints[replica, [NEXT, SEEN]] = requests.line_up(line)
        return self

    def arguments(self) -> tuple[Any, ...]:
        """In the order of the kernels."""
        return (
            self.ints, self.floats, self.slots, self.token_s, self.ring, self.crossings, self.offsets,
            self.histogram, self.bits, self.bits_int, self.samples, self.cache,
        )  # fmt: skip

    @staticmethod
    def total(served: Sequence[Replicas]) -> tuple[Ints, Floats, Ints]:
        """``ints``, ``floats`` and ``histogram`` summed over all replicas, the maxima and the clock as maxima."""
        ints = np.concatenate([r.ints for r in served])
        floats = np.concatenate([r.floats for r in served])
        counts, seconds = ints.sum(axis=0), floats.sum(axis=0)
        counts[[BATCH_MAX, USED_MAX]] = ints[:, [BATCH_MAX, USED_MAX]].max(axis=0)
        seconds[CLOCK] = floats[:, CLOCK].max()
        return counts, seconds, np.sum([r.histogram.sum(axis=0) for r in served], axis=0)
