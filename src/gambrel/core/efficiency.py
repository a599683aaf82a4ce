"""How much of its specification sheet an accelerator reaches: the constants between physics and practice.

Every field is a fitted or assumed constant with a stated basis; :mod:`gambrel.catalog` reads them from data files
that carry the rows they were fitted to. :func:`ideal` is the textbook roofline: every efficiency 1, no overheads.
Fractions stay within (0, 1] and times at or above 0, so no constant can push a step below its physical floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from gambrel.core.errors import DeploymentError

__all__ = ["UNDIVIDED_FROM", "UNPACKED", "Efficiency", "Matmul", "ideal", "run_as"]

UNDIVIDED_FROM: Final = 512
"""Sequences times query heads from which vLLM's paged attention does not divide a context over thread blocks: the rule
of its ``PagedAttention`` (V1 or V2), which its early ROCm and xFormers backends call."""

UNPACKED: Final = "unpacked"
"""The name of the constants of matmuls in 16 bits whose weights are stored in fewer and unpacked by the kernel."""

_SIXTEEN_BIT = frozenset({"bf16", "fp16", UNPACKED})
_BLOCK_SCALED = {"fp8": "fp8_block"}
"""Weight formats with a scale per block of the matrix: their kernels multiply it in as they go, and have constants of
their own under this name."""


def run_as(math_format: str, weights: str) -> str:
    """The name of a matmul's constants: its math format, or :data:`UNPACKED` where that is wider than its weights.

    Args:
        math_format: that the matmul runs in.
        weights: the format they are stored in; empty for a checkpoint's own 16 bits.
    """
    return UNPACKED if weights and math_format in _SIXTEEN_BIT else math_format


def _check(constants: Any, fractions: tuple[str, ...]) -> None:
    """Raise DeploymentError for a fraction outside (0, 1], or a time or size below 0 or not finite."""
    for field in fields(constants):
        value = getattr(constants, field.name)
        if not isinstance(value, int | float) or field.name == "expert_shape":
            continue
        if field.name in fractions and not 0.0 < value <= 1.0:
            raise DeploymentError(
                f"{type(constants).__name__}.{field.name} is a fraction of a peak: above 0 and at most 1, got {value!r}"
            )
        if not (math.isfinite(value) and value >= 0.0):
            raise DeploymentError(f"{type(constants).__name__}.{field.name} must be finite and not negative: {value!r}")


@dataclass(frozen=True, slots=True)
class Matmul:
    """A matrix multiplication's two roofs for one weight format's math, and how they meet.

    Compute: ``mfu_max * T / (T + mfu_half_tokens)`` of the dense peak at ``T`` tokens, so the compute time is the
    straight line ``2 n k (T + mfu_half_tokens) / (mfu_max F)``. Memory: ``bw_max * b / (b + bw_half_bytes)`` of the
    peak bandwidth for a tensor of ``b`` bytes, so small tensor-parallel shards lose bandwidth. The two meet as
    ``(compute^p + memory^p)^(1/p)`` with ``p = 1 / rounding``: 0 is the sharp ``max`` of the textbook, 1 the plain sum.
    ``expert_passes``: of grouped experts, how often a hidden vector in 16 bits moves through memory for every expert of
    every token, to be sorted, activated between the two matmuls, and summed. Ranks that share experts do not share it.
    """

    mfu_max: float = 1.0
    mfu_half_tokens: float = 0.0
    bw_max: float = 1.0
    bw_half_bytes: float = 0.0
    rounding: float = 0.0
    expert_passes: float = 0.0

    def __post_init__(self) -> None:
        _check(self, fractions=("mfu_max", "bw_max"))
        if self.rounding > 1.0:
            raise DeploymentError(f"Matmul.rounding must lie within 0 to 1, got {self.rounding!r}")


def _scaled_so(table: dict[str, Matmul], math_format: str, weights: str) -> Matmul | None:
    """The constants of weights with a scale per block, where they are multiplied in the format they are stored in."""
    return table.get(_BLOCK_SCALED[weights]) if weights in _BLOCK_SCALED and weights == math_format else None


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Constants of one accelerator family under one engine generation.

    Attributes:
        matmul: by math format (``bf16``, ``fp8``, ``int8``, ``fp4``), of 8 bits scaled by block apart, and of weights
            that kernels unpack to 16 bits (:data:`UNPACKED`); ``bf16`` is always present and stands in for what is
            missing.
        grouped: the same for grouped expert matmuls; empty means as ``matmul``.
        expert_shape: how evenly routing spreads tokens over experts: 1 / squared coefficient of variation of their
            popularity, infinite where all are alike (:meth:`gambrel.core.model.MoE.distinct`).
        kv_bw_max: fraction of peak bandwidth that decode attention reaches on large calls.
        unshared: what each further query head of a group adds to the reading of its KV head, as a share of one reading:
            0 where a kernel serves the group together, about 1 where every head reads for itself.
        undivided: what reading takes longer, as a share, where a rank's sequences times query heads exceed
            :data:`UNDIVIDED_FROM`: vLLM's older paged attention then gives each of them to one thread block, whatever
            its length (up to 8,192 tokens), instead of dividing it.
        kv_floor_s: seconds of a decode attention call that reads nothing, per layer.
        kv_sqrt: seconds per square root of a byte read, per layer call; bends the middle of the curve.
        prefill_mfu_max: fraction of the 16-bit dense peak that prefill attention reaches on long prompts.
        prefill_half_keys: mean attended keys at which it reaches half of that.
        prefill_floor_s: seconds of a prefill attention call, per layer.
        decode_attention_mfu: fraction of the peak for the FLOPs of decode attention (binds for MLA).
        layer_s: norms, rotary, activations and launch gaps, seconds per layer.
        layer_passes, layer_passes_tp: how often those small operations move one hidden vector per token through
            memory, per layer: on every rank, and divided over ranks. What exceeds ``layer_s`` is charged.
        step_s: host seconds per step (scheduling, launch, sampling) that the device waits for.
        seq_s: host seconds per sequence in a step.
        stream_s: host seconds per sequence and step beside them where each token is sent on its own: a batch that is
            read at its end has none, packets of ``n`` tokens an ``n``-th.
        soft_fp8: tensor FLOPs' worth of one element of an 8-bit float cache, for each query head that reads it, where
            the accelerator has no such format and kernels unpack it in software.
        logit_passes: how often a row of logits in 32 bits moves through memory until its token is drawn.
        allreduce_alpha_s: seconds of an all-reduce of nothing over the scale-up link.
        allreduce_bw: fraction of the link's one-way bandwidth that a large all-reduce reaches.
        pcie_alpha_s, pcie_bw: the same where ranks only meet over PCIe.
        pcie_sharing: over PCIe ``p`` ranks reach ``(2/p)^pcie_sharing`` of what two do: they share the host.
        reserve_bytes: device memory taken by context and communicators.
        request_s: seconds of a request outside the steps: its way in, tokenising, the first token's way out.
        basis: one phrase for people: what the constants stand on.
        spread: one-sigma relative error of a predicted step (log scale), for intervals.
        expert_spread: the least spread of a model with experts, whose routing and grouped matmuls are less certain.
        ttft_spread: the same of a predicted time to first token, which queues and clients make less certain.
    """

    matmul: tuple[tuple[str, Matmul], ...] = (("bf16", Matmul()),)
    grouped: tuple[tuple[str, Matmul], ...] = ()
    expert_shape: float = math.inf
    kv_bw_max: float = 1.0
    unshared: float = 0.0
    undivided: float = 0.0
    kv_floor_s: float = 0.0
    kv_sqrt: float = 0.0
    prefill_mfu_max: float = 1.0
    prefill_half_keys: float = 0.0
    prefill_floor_s: float = 0.0
    decode_attention_mfu: float = 1.0
    layer_s: float = 0.0
    layer_passes: float = 0.0
    layer_passes_tp: float = 0.0
    step_s: float = 0.0
    seq_s: float = 0.0
    stream_s: float = 0.0
    soft_fp8: float = 0.0
    logit_passes: float = 0.0
    allreduce_alpha_s: float = 0.0
    allreduce_bw: float = 1.0
    pcie_alpha_s: float = 0.0
    pcie_bw: float = 1.0
    pcie_sharing: float = 0.0
    reserve_bytes: float = 0.0
    request_s: float = 0.0
    basis: str = "spec sheet"
    spread: float = 0.0
    expert_spread: float = 0.0
    ttft_spread: float = 0.0

    def __post_init__(self) -> None:
        _check(self, fractions=("kv_bw_max", "prefill_mfu_max", "decode_attention_mfu", "allreduce_bw", "pcie_bw"))
        if not self.expert_shape > 0.0:
            raise DeploymentError(f"Efficiency.expert_shape must be above 0, got {self.expert_shape!r}")
        if "bf16" not in dict(self.matmul):
            raise DeploymentError("Efficiency.matmul needs a 'bf16' entry: it stands in for formats that have none")

    def matmul_for(self, math_format: str, weights: str = "") -> Matmul:
        """The constants for a math format, or :data:`UNPACKED`: of weights scaled by block where they are such."""
        table = dict(self.matmul)
        return _scaled_so(table, math_format, weights) or table.get(math_format) or table["bf16"]

    def grouped_for(self, math_format: str, weights: str = "") -> Matmul:
        """The constants of grouped expert matmuls."""
        table = dict(self.grouped)
        return (
            _scaled_so(table, math_format, weights)
            or table.get(math_format)
            or table.get("bf16")
            or self.matmul_for(math_format, weights)
        )  # fmt: skip

    def with_(self, **changes: Any) -> Efficiency:
        """The same constants with some changed."""
        return replace(self, **changes)

    def scaled(
        self,
        *,
        bandwidth: float = 1.0,
        compute: float = 1.0,
        kv: float = 1.0,
        experts: float = 1.0,
        expert_compute: float = 1.0,
        quantised: float = 1.0,
        four_bit: float = 1.0,
        by_block: float = 1.0,
        quantising: float = 1.0,
        wire: float = 1.0,
        bus: float = 1.0,
        passes: float = 1.0,
    ) -> Efficiency:
        """The same kernels under other software: every rate times a factor, and never above its peak.

        Args:
            bandwidth: on the bandwidth that matmuls reach.
            compute: on the FLOP/s of matmuls and of prefill attention.
            kv: on the bandwidth of decode attention.
            experts: on both rates of grouped expert matmuls, beside ``bandwidth`` and ``compute``.
            expert_compute: on the FLOP/s of grouped expert matmuls alone, beside the others.
            quantised: on both rates of matmuls in 8- and 4-bit math, beside the others: kernel tables time other
                scalings (per block, per tensor) than engines run.
            four_bit: on both rates of matmuls in 4-bit math, beside ``quantised``: no kernel table has them.
            by_block: on both rates of grouped expert matmuls with a scale per block, beside the others: engines have
                kernels of their own for them.
            quantising: on the bytes' worth of time that a matmul in 8- and 4-bit math takes whatever its size: kernel
                tables quantise its input in a call of its own, which engines join to what is before it.
            wire: on the bandwidth of collectives over the scale-up link; their latency is divided by it.
            bus: the same where ranks only meet over PCIe: other kernels, or the host's own copies.
            passes: on what small operations move through memory: engines fuse them more or less.
        """

        def times(name: str, matmul: Matmul, rate: float, flops: float = 1.0) -> Matmul:
            rate *= 1.0 if name in _SIXTEEN_BIT else quantised * (four_bit if name == "fp4" else 1.0)
            return replace(
                matmul,
                mfu_max=min(1.0, matmul.mfu_max * compute * rate * flops),
                bw_max=min(1.0, matmul.bw_max * bandwidth * rate),
                bw_half_bytes=matmul.bw_half_bytes * (1.0 if name in _SIXTEEN_BIT else quantising),
            )

        def grouped(name: str, matmul: Matmul) -> Matmul:
            blocks = by_block if name in _BLOCK_SCALED.values() else 1.0
            return times(name, matmul, experts * blocks, expert_compute)

        return replace(
            self,
            matmul=tuple((name, times(name, m, 1.0)) for name, m in self.matmul),
            grouped=tuple((name, grouped(name, m)) for name, m in self.grouped or self.matmul),
            kv_bw_max=min(1.0, self.kv_bw_max * kv),
            kv_sqrt=self.kv_sqrt / kv,
            prefill_mfu_max=min(1.0, self.prefill_mfu_max * compute),
            allreduce_alpha_s=self.allreduce_alpha_s / wire,
            allreduce_bw=min(1.0, self.allreduce_bw * wire),
            pcie_alpha_s=self.pcie_alpha_s / bus,
            pcie_bw=min(1.0, self.pcie_bw * bus),
            layer_passes=self.layer_passes * passes,
            layer_passes_tp=self.layer_passes_tp * passes,
        )


def ideal() -> Efficiency:
    """The textbook roofline: peak everywhere, no overhead, collectives without latency."""
    return Efficiency(basis="spec sheet: peak rates, no overheads")
