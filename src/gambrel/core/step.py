"""One forward pass of an engine, what it costs, and the table form that the event loop evaluates.

A :class:`Step` is a handful of sums over the batch; that is enough to price it. A :class:`CostModel` turns a
step into a :class:`StepCost`, and compiles itself into a :class:`StepTable`: per-token-count tables for all
matrix multiplications and collectives, and straight lines for attention. :func:`step_parts` evaluates a table
in O(1); it is plain arithmetic on floats and arrays, so the engine compiles the very same source with numba,
and the simulator cannot tell an analytic, a calibrated and a measured cost apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gambrel.core.deployment import Deployment

__all__ = [
    "CAUSES",
    "NUM_LINES",
    "CostModel",
    "Floats",
    "MemoryBudget",
    "RankTable",
    "Step",
    "StepCost",
    "StepTable",
    "WorkerCost",
    "causal_pairs",
    "decode_parts",
    "decode_terms",
    "pairs_within",
    "step_parts",
]

Floats = npt.NDArray[np.float64]

CAUSES = ("compute", "weights", "kv", "collective", "overhead")
"""What can bind a step, in the order of every table and array of shares."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass does, as sums over its sequences.

    Attributes:
        tokens: new tokens computed (decoded ones and prompt tokens).
        sampled: positions whose logits are computed (decoders, and prompts whose last chunk this is).
        decodes: sequences that decode one token.
        decode_kv: cached tokens that the decoders attend to, themselves included.
        decode_kv_windowed: the same with each sequence capped at the model's window.
        prefill_tokens: prompt tokens among ``tokens``.
        prefill_chunks: sequences they belong to.
        prefill_pairs: exact causal (query, key) pairs of those prompt tokens.
        prefill_pairs_windowed: the same with every query's keys capped at the window.
    """

    tokens: int
    sampled: int
    decodes: int
    decode_kv: int
    decode_kv_windowed: int = 0
    prefill_tokens: int = 0
    prefill_chunks: int = 0
    prefill_pairs: int = 0
    prefill_pairs_windowed: int = 0

    @classmethod
    def decode(cls, batch: int, context: int, window: int | None = None) -> Step:
        """``batch`` sequences that each attend to ``context`` tokens (itself included) and emit one."""
        capped = context if window is None else min(context, window)
        return cls(batch, batch, batch, batch * context, batch * capped)

    @classmethod
    def prefill(cls, prompt: int, batch: int = 1, cached: int = 0, window: int | None = None) -> Step:
        """``batch`` prompts of ``prompt`` new tokens each, on ``cached`` tokens already in the cache, in one pass."""
        return cls(
            tokens=batch * prompt,
            sampled=batch,
            decodes=0,
            decode_kv=0,
            prefill_tokens=batch * prompt,
            prefill_chunks=batch,
            prefill_pairs=batch * causal_pairs(cached, prompt),
            prefill_pairs_windowed=batch * causal_pairs(cached, prompt, window),
        )


def causal_pairs(cached: int, new: int, window: int | None = None) -> int:
    """Exact (query, key) pairs of ``new`` tokens after ``cached`` ones: sum of min(position, window).

    Without a window: ``new * cached + new (new + 1) / 2``.
    """
    return int(pairs_within(cached, new, window or 0))


def pairs_within(cached: Any, new: Any, window: Any) -> Any:
    """:func:`causal_pairs` for numbers alone (window 0 means none), numba-ready."""
    if window <= 0 or cached + new <= window:
        return new * cached + new * (new + 1) // 2
    below = max(0, window - cached)  # queries that still see fewer keys than the window
    return below * cached + below * (below + 1) // 2 + (new - below) * window


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of one step by cause, and the total under the cost model's named form.

    ``compute_s`` holds matmul and attention FLOPs, ``weights_s`` reading weights, ``kv_s`` reading and writing KV
    cache and state. They overlap within a kernel, so they do not add up to ``seconds``:
    form ``max`` is ``max(compute, weights + kv) + collective + overhead`` (the textbook lower bound);
    form ``serial`` is ``linear + attention + collective + overhead`` with ``linear`` the sum over matmul
    kernels of max(compute, weights) and ``attention`` likewise, decode and prefill apart (attention cannot overlap
    with matmuls). Always ``max <= serial <= sum of the parts``.
    """

    compute_s: float
    weights_s: float
    kv_s: float
    collective_s: float
    overhead_s: float
    seconds: float

    @property
    def bound_by(self) -> str:
        """The largest cause."""
        parts = (self.compute_s, self.weights_s, self.kv_s, self.collective_s, self.overhead_s)
        return CAUSES[parts.index(max(parts))]


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Bytes on the fullest accelerator of a replica, part by part, and the KV blocks that are left.

    ``usable_bytes`` = utilisation x memory; what is not weights, activations or reserve is KV cache.
    ``kv_bytes_per_block`` is for this rank; ``state_bytes_per_sequence`` likewise (hybrid models). All of the cache is
    counted in blocks; a sequence takes ``state_blocks`` of them for its state. ``state_only``: no layer grows with
    context, and the blocks are that state spread over the model's tokens.
    """

    memory_bytes: float
    usable_bytes: float
    weight_bytes: float
    activation_bytes: float
    reserve_bytes: float
    kv_bytes_per_block: float
    state_bytes_per_sequence: float
    block_size: int
    num_kv_blocks: int
    state_only: bool = False

    @property
    def kv_cache_bytes(self) -> float:
        """Bytes left for the KV cache; negative when the model does not fit."""
        return self.usable_bytes - self.weight_bytes - self.activation_bytes - self.reserve_bytes

    @property
    def kv_tokens(self) -> int:
        """Tokens that one sequence can hold: the blocks but for those of its own state; not to be shared out."""
        return max(0, self.num_kv_blocks - self.state_blocks) * self.block_size

    @property
    def state_blocks(self) -> int:
        """Blocks that hold one sequence's state, whole ones as an engine's pool hands them out; 0 if ``state_only``."""
        if self.state_only or self.kv_bytes_per_block <= 0.0:
            return 0
        return math.ceil(self.state_bytes_per_sequence / self.kv_bytes_per_block)

    @property
    def max_sequences(self) -> int | None:
        """How many sequences' states fit where nothing else is held; None where tokens count."""
        return math.floor(self.kv_cache_bytes / self.state_bytes_per_sequence) if self.state_only else None

    def sequences(self, tokens: int) -> int:
        """How many sequences of so many tokens each the cache holds at once, by the rule of the engine's pool."""
        each = max(1, self.state_blocks + math.ceil(tokens / self.block_size))
        held = self.num_kv_blocks // each
        return held if self.max_sequences is None else min(held, self.max_sequences)

    def sequence_bytes(self, tokens: Any) -> Any:
        """Bytes of the cache that a sequence of ``tokens`` (number or array) takes: whole blocks, its state's as well.

        A ``state_only`` sequence takes its state, and its blocks where they are more than the model's longest context.
        """
        blocks = np.ceil(np.asarray(tokens, dtype=np.float64) / self.block_size) + self.state_blocks
        least = self.state_bytes_per_sequence if self.state_only else 0.0
        return np.maximum(blocks * self.kv_bytes_per_block, least)

    @property
    def fits(self) -> bool:
        """Whether weights, activations and reserve leave room for at least one block."""
        return self.num_kv_blocks > 0


NUM_LINES = 20
"""Attention coefficients of a :class:`StepTable`."""


@dataclass(frozen=True, slots=True)
class StepTable:
    """A cost model compiled for the event loop: seconds by lookup and straight lines.

    Per token count ``T`` in ``0..max_tokens`` (float64, seconds): ``linear`` (all layer matmuls under the form),
    ``linear_compute``, ``linear_weights``, ``collective``, ``overhead``. Per sampled rows ``R`` in ``0..max_seqs``:
    ``head`` with ``head_compute`` and ``head_weights``. ``lines`` (float64[NUM_LINES]) are the attention coefficients:

    ====== ==========================================================================================
    index  meaning (seconds per ...)
    ====== ==========================================================================================
    0, 6   decode attention floor of full (0) and windowed (6) layers, per step with any decoder
    1, 7   per KV token read or written (bytes over achieved bandwidth)
    2, 8   per square root of KV tokens read by decoders (small calls do not reach full bandwidth)
    3, 9   per decode (query, key) pair of compute
    4, 10  per prefill pair of compute
    5, 11  per prefill token of compute (attention ramp-up: half-saturation keys x seconds per pair)
    12     prefill attention floor, per step with any prefill chunk
    13     per sequence in the step, memory (recurrent state read and written)
    14     per sequence in the step (sampling, scheduling, detokenising on the host)
    15     1.0 for form ``max``, 0.0 for form ``serial``
    16     per sequence in the step, collective (its row of logits gathered over ranks)
    17     per decoding sequence, compute (MLA absorption, state update)
    18     decoders beyond which their reading (1, 7) takes longer: a count
    19     how much longer, as a share
    ====== ==========================================================================================

    ``window`` is the model's attention window in tokens, 0 without one. ``request_s`` is what a
    request takes outside the steps: client, server, the first token's way back.
    """

    linear: Floats
    linear_compute: Floats
    linear_weights: Floats
    collective: Floats
    overhead: Floats
    head: Floats
    head_compute: Floats
    head_weights: Floats
    lines: Floats
    window: int
    request_s: float = 0.0

    @property
    def max_tokens(self) -> int:
        """The largest token count of a step."""
        return len(self.linear) - 1

    @property
    def max_seqs(self) -> int:
        """The largest number of sampled rows."""
        return len(self.head) - 1

    def arrays(self) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats, Floats, Floats, Floats]:
        """The arrays in the order of :func:`step_parts`."""
        return (
            self.linear, self.linear_compute, self.linear_weights, self.collective, self.overhead,
            self.head, self.head_compute, self.head_weights, self.lines,
        )  # fmt: skip

    def scaled(self, factor: float) -> StepTable:
        """The same table with every step ``factor`` times as long."""
        lines = self.lines * factor
        lines[[15, 18, 19]] = self.lines[[15, 18, 19]]  # the form, a count and a share are no times
        linear, compute, weights, collective, overhead, head, head_compute, head_weights, _ = (
            a * factor for a in self.arrays()
        )
        return StepTable(
            linear, compute, weights, collective, overhead, head, head_compute, head_weights, lines, self.window,
            self.request_s,
        )  # fmt: skip

    def stages(self, shares: Sequence[float]) -> tuple[StepTable, ...]:
        """One table a pipeline stage, each with its share of the layers; the head is the last one's.

        Layers count alike, and what belongs to none of them (host, sends) is spread with them, so the stages add up
        to the table.
        """
        if len(shares) == 1:
            return (self,)
        found = []
        for k, share in enumerate(shares):
            last = k == len(shares) - 1
            linear, compute, weights, wire, overhead, head, head_compute, head_weights, _ = self.arrays()
            lines = self.lines * share
            lines[[15, 18, 19]] = self.lines[[15, 18, 19]]  # no times
            lines[16] = self.lines[16] * last  # logits
            table = StepTable(
                linear * share, compute * share, weights * share, wire * share, overhead * share,
                head * last, head_compute * last, head_weights * last, lines, self.window,
                self.request_s,
            )  # fmt: skip
            found.append(table)
        return tuple(found)

    def cost(self, step: Step) -> StepCost:
        """The cost of one step; IndexError beyond the table's token or row count."""
        return self.at(step, tokens=step.tokens, sampled=step.sampled)

    def at(self, step: Step, *, tokens: int, sampled: int) -> StepCost:
        """The cost of one step whose tokens and sampled rows are priced at the given rows of the table."""
        parts = step_parts(
            *self.arrays(), tokens, sampled, step.decodes, step.decode_kv, step.decode_kv_windowed,
            step.prefill_tokens, step.prefill_chunks, step.prefill_pairs, step.prefill_pairs_windowed,
        )  # fmt: skip
        compute, weights, kv, collective, overhead, seconds = (float(p) for p in parts)
        return StepCost(compute, weights, kv, collective, overhead, seconds)


def step_parts(
    linear: Any, linear_compute: Any, linear_weights: Any, collective: Any, overhead: Any,
    head: Any, head_compute: Any, head_weights: Any, lines: Any,
    tokens: Any, sampled: Any, decodes: Any, kv: Any, kv_win: Any,
    pre_tokens: Any, pre_chunks: Any, pairs: Any, pairs_win: Any,
) -> Any:  # fmt: skip
    """(compute, weights, kv, collective, overhead, total) seconds of one step.

    Scalars, or arrays of one shape (the sums over many steps at once); numba compiles the scalar case.
    A prefill chunk reads its mean number of attended keys once and writes its own: exact for one chunk, a mean
    over the chunks where several share a step.
    """
    busy = (decodes > 0) * 1.0
    longer = 1.0 + lines[19] * (decodes > lines[18])
    kv_decode = (
        busy * (lines[0] + lines[6])
        + lines[1] * longer * kv + lines[2] * np.sqrt(kv)
        + lines[7] * longer * kv_win + lines[8] * np.sqrt(kv_win)
        + lines[13] * decodes
    )  # fmt: skip
    reads = pre_chunks / np.maximum(pre_tokens, 1)
    kv_prefill = (
        lines[1] * (pairs * reads + pre_tokens) + lines[7] * (pairs_win * reads + pre_tokens) + lines[13] * pre_chunks
    )
    flops_decode = lines[3] * kv + lines[9] * kv_win + lines[17] * decodes
    flops_prefill = (
        lines[4] * pairs + lines[10] * pairs_win + (lines[5] + lines[11]) * pre_tokens
        + lines[12] * (pre_chunks > 0)
    )  # fmt: skip
    compute = linear_compute[tokens] + head_compute[sampled] + flops_decode + flops_prefill
    weights = linear_weights[tokens] + head_weights[sampled]
    memory = kv_decode + kv_prefill
    wire = collective[tokens] + lines[16] * (decodes + pre_chunks)
    host = overhead[tokens] + lines[14] * (decodes + pre_chunks)
    if lines[15] > 0.5:
        total = np.maximum(compute, weights + memory) + wire + host
    else:
        attention = np.maximum(kv_decode, flops_decode) + np.maximum(kv_prefill, flops_prefill)
        total = linear[tokens] + head[sampled] + attention + wire + host
    return compute, weights, memory, wire, host, total


@dataclass(frozen=True, slots=True)
class RankTable:
    """A step of ranks that hold sequences of their own and share the experts: data-parallel attention.

    ``own`` is what a rank does for its own tokens and rows. By the tokens of all ranks, float64 seconds: ``experts``
    (total, of the busiest rank) with ``experts_compute`` and ``experts_weights``, and ``exchange``, which is read at
    the number of ranks times the tokens of the widest. A step lasts as long as the slowest rank's own part, then the
    shared one; with equal ranks that is the plain table's step, but for host seconds per sequence, which each rank
    spends on its own.
    """

    own: StepTable
    experts: Floats
    experts_compute: Floats
    experts_weights: Floats
    exchange: Floats

    def stages(self, shares: Sequence[float]) -> tuple[RankTable, ...]:
        """One table a pipeline stage; see :meth:`StepTable.stages`."""
        return tuple(
            RankTable(own, self.experts * f, self.experts_compute * f, self.experts_weights * f, self.exchange * f)
            for own, f in zip(self.own.stages(shares), shares, strict=True)
        )


def decode_terms(
    linear: Any, linear_compute: Any, linear_weights: Any, collective: Any, overhead: Any,
    head: Any, head_compute: Any, head_weights: Any, lines: Any, decodes: Any,
) -> Any:  # fmt: skip
    """What ``decodes`` decoders and no prompt cost whatever their contexts, in the order of :func:`decode_parts`.

    A loop in which the same sequences decode on and on works these out once.
    """
    longer = 1.0 + lines[19] * (decodes > lines[18])
    return (
        linear[decodes] + head[decodes],
        linear_compute[decodes] + head_compute[decodes],
        linear_weights[decodes] + head_weights[decodes],
        collective[decodes] + lines[16] * decodes,
        overhead[decodes] + lines[14] * decodes,
        lines[0] + lines[6],
        lines[13] * decodes,
        lines[17] * decodes,
        lines[1] * longer, lines[2], lines[3], lines[7] * longer, lines[8], lines[9], lines[15] > 0.5,
    )  # fmt: skip


def decode_parts(
    matmul: Any, compute_0: Any, weights: Any, wire: Any, host: Any, floor: Any, state: Any, update: Any,
    line1: Any, line2: Any, line3: Any, line7: Any, line8: Any, line9: Any, overlapped: Any, kv: Any, kv_win: Any,
) -> Any:  # fmt: skip
    """:func:`step_parts` of decoders alone, from their :func:`decode_terms`: the same terms in the same order.

    So the same bits, which a test holds it to: what is left out adds zero.
    """
    memory = floor + line1 * kv + line2 * np.sqrt(kv) + line7 * kv_win + line8 * np.sqrt(kv_win) + state
    flops = line3 * kv + line9 * kv_win + update
    compute = compute_0 + flops
    layers = max(compute, weights + memory) if overlapped else matmul + max(memory, flops)
    return compute, weights, memory, wire, host, layers + wire + host


class CostModel(Protocol):
    """Anything that can price steps of a deployment: analytic, calibrated, or measured."""

    @property
    def deployment(self) -> Deployment:
        """What is priced."""

    @property
    def basis(self) -> str:
        """Where the constants come from, e.g. ``spec sheet`` or ``fitted: kernels hopper 2026-11``."""

    @property
    def spread(self) -> float:
        """One-sigma relative error of a predicted step (log scale); 0 when exact by construction."""

    def step_cost(self, step: Step) -> StepCost:
        """Seconds of one step by cause, for people."""

    def compile(self, max_tokens: int, max_seqs: int) -> StepTable:
        """The same cost as tables, for the loop."""

    def memory(self) -> MemoryBudget:
        """The memory of one accelerator of a replica."""


@runtime_checkable
class WorkerCost(CostModel, Protocol):
    """A cost model that can also price ranks in lockstep, and prompts on workers of their own."""

    def compile_ranks(self, max_tokens: int, max_seqs: int) -> RankTable:
        """The cost of steps of up to ``max_tokens`` tokens and ``max_seqs`` sampled rows on each rank."""

    def prefill(self) -> CostModel:
        """The same for the prefill workers of a disaggregated deployment."""

    def transfer_s(self, tokens: Floats) -> Floats:
        """Seconds to bring the cache of prompts of that many tokens from a prefill to a decode worker, link idle."""
