"""The roofline of the blackboard: a model as three figures and a machine as two.

What lectures, papers and vendors' blogs compute by hand, as small named formulas. :class:`Blackboard` evaluates the
very :func:`~gambrel.core.step.step_parts` that prices real steps, with one line each for weights, KV and FLOPs.
Sources and published values: docs/theory.md; tests/facts/roofline.json.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gambrel.core.step import NUM_LINES, StepTable, step_parts
from gambrel.core.units import SECONDS_PER_HOUR

__all__ = [
    "Blackboard",
    "crossover_context",
    "crossover_kv_bytes",
    "drain_s",
    "kv_slots",
    "max_context",
    "mbu",
    "mfu",
    "prefill_per_decode_server",
    "prefill_s",
    "ridge_batch",
    "speculative_tokens",
    "train_wait_s",
    "usd_per_mtok",
]


def ridge_batch(
    peak_flops: float, bandwidth: float, weight_bytes: float = 2.0, total_over_active: float = 1.0
) -> float:
    """B*: the batch where compute and weight reading take the same time, without KV.

    ``(F / BW) (b / 2) (N_total / N_active)``: with 2 bytes per weight and 2 FLOPs per weight, just FLOPs per byte.
    """
    return peak_flops / bandwidth * weight_bytes / 2.0 * total_over_active


def crossover_context(flops_per_token: float, kv_bytes_per_token: float, peak_flops: float, bandwidth: float) -> float:
    """L*: the context beyond which reading KV outlasts compute at every batch: ``2 N_active BW / (F kappa)``."""
    if kv_bytes_per_token <= 0.0:
        return math.inf
    return flops_per_token * bandwidth / (peak_flops * kv_bytes_per_token)


def crossover_kv_bytes(active_params: float, context: float, ridge: float) -> float:
    """Bytes of KV per token at which ``context`` is the crossover, FLOPs being 2 N and ``ridge`` in weights per pass.

    The lecture counts one multiply-add per weight and byte: ``N_active / (ridge context)``.
    """
    return active_params / (ridge * context)


def drain_s(memory_bytes: float, bandwidth: float) -> float:
    """Seconds to read all of memory once: the natural longest step of a full accelerator."""
    return memory_bytes / bandwidth


def mbu(bytes_read: float, seconds: float, peak_bandwidth: float) -> float:
    """Memory bandwidth utilisation: achieved over peak bytes/s (weights and KV read in a step)."""
    return bytes_read / seconds / peak_bandwidth


def mfu(flops: float, seconds: float, peak_flops: float) -> float:
    """Model FLOPs utilisation: achieved over peak FLOP/s."""
    return flops / seconds / peak_flops


def prefill_s(flops: float, peak_flops: float, reached: float = 1.0) -> float:
    """Seconds of a prefill at a given MFU."""
    return flops / (peak_flops * reached)


def speculative_tokens(acceptance: float, draft_tokens: int) -> float:
    """Expected tokens per verification step: ``(1 - alpha^(gamma + 1)) / (1 - alpha)`` (Leviathan et al. 2023)."""
    if acceptance >= 1.0:
        return draft_tokens + 1.0
    return (1.0 - acceptance ** (draft_tokens + 1)) / (1.0 - acceptance)


def prefill_per_decode_server(prefill_time_s: float, step_time_s: float, batch: float, output_tokens: float) -> float:
    """Prefill servers that keep one decode server of ``batch`` sequences busy: ``t_prefill B / (t_step G)``."""
    return prefill_time_s * batch / (step_time_s * output_tokens)


def train_wait_s(step_time_s: float) -> tuple[float, float]:
    """(mean, worst) seconds from arrival to a first token when a step departs every ``step_time_s``.

    The mean newcomer waits half a step and rides one; the worst just misses a departure.
    """
    return 1.5 * step_time_s, 2.0 * step_time_s


def kv_slots(kv_cache_bytes: float, kv_bytes_per_token: float) -> int:
    """Tokens that fit into the KV cache."""
    return math.floor(kv_cache_bytes / kv_bytes_per_token)


def max_context(kv_cache_bytes: float, kv_bytes_per_token: float, batch: int) -> int:
    """Tokens per sequence when ``batch`` equal sequences share the KV cache."""
    return math.floor(kv_cache_bytes / (kv_bytes_per_token * batch))


def usd_per_mtok(usd_per_hour: Any, tokens_per_s: Any) -> Any:
    """Dollars per million tokens at full load; divide by utilisation for a real one."""
    return 1e6 * usd_per_hour / (SECONDS_PER_HOUR * tokens_per_s)


@dataclass(frozen=True, slots=True)
class Blackboard:
    """A model by what one token needs and a machine by what it delivers, all accelerators together.

    Attributes:
        weight_bytes: read once a step.
        flops_per_token: matmul FLOPs of one decoded token.
        kv_bytes_per_token: read per token of context.
        peak_flops: FLOP/s.
        bandwidth: bytes/s.
    """

    weight_bytes: float
    flops_per_token: float
    kv_bytes_per_token: float
    peak_flops: float
    bandwidth: float

    def parts(self, batch: Any, context: Any, form: str = "max") -> Any:
        """(compute, weights, kv, collective, overhead, total) seconds of decode steps; numbers or arrays."""
        batch = np.asarray(batch, dtype=np.float64)
        lines = np.zeros(NUM_LINES)
        lines[1] = self.kv_bytes_per_token / self.bandwidth
        lines[15] = 1.0 if form == "max" else 0.0
        nothing = np.zeros(1)
        compute = batch * (self.flops_per_token / self.peak_flops)
        weights = np.full(batch.shape, self.floor_s)
        rows = np.arange(batch.size).reshape(batch.shape)
        compute, weights = compute.ravel(), weights.ravel()
        table = StepTable(
            np.maximum(compute, weights), compute, weights, np.zeros(batch.size), np.zeros(batch.size),
            nothing, nothing, nothing, lines, 0,
        )  # fmt: skip
        return step_parts(*table.arrays(), rows, np.zeros_like(rows), batch, batch * context, 0, 0, 0, 0, 0)

    @property
    def floor_s(self) -> float:
        """Seconds to read all weights once: no step is shorter."""
        return self.weight_bytes / self.bandwidth

    @property
    def crossover_context(self) -> float:
        """L*; see :func:`crossover_context`."""
        return crossover_context(self.flops_per_token, self.kv_bytes_per_token, self.peak_flops, self.bandwidth)

    def ridge_batch(self, context: float) -> float:
        """B* with KV: ``(W/BW) / (2N/F - c kappa/BW)``; infinite from the crossover context on."""
        per_sequence = self.flops_per_token / self.peak_flops - context * self.kv_bytes_per_token / self.bandwidth
        return self.floor_s / per_sequence if per_sequence > 0.0 else math.inf

    def balance_batch(self, context: float) -> float:
        """The batch whose KV takes as long to read as the weights."""
        read = context * self.kv_bytes_per_token
        return self.weight_bytes / read if read > 0.0 else math.inf

    def amortisation(self, context: float) -> float:
        """Cost per token at batch 1 over its limit at infinite batch: how much batching can save at most."""
        limit = max(self.flops_per_token / self.peak_flops, context * self.kv_bytes_per_token / self.bandwidth)
        return float(self.parts(1, context)[5]) / limit
