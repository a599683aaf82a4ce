"""Where the memory of the fullest accelerator goes, part by part, and how many KV blocks are left.

Errors in capacity come from what is not weights: activations at ``max_num_batched_tokens``, logits, contexts and
communicators. An engine measures them with one profiling pass at start-up; here each is a named formula.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.core.errors import DoesNotFit
from gambrel.core.formats import Role
from gambrel.core.model import Shard
from gambrel.core.step import MemoryBudget
from gambrel.core.units import GIB
from gambrel.cost.shards import Attention, check_parallel, fullest_rank_bytes, rank_attention

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.efficiency import Efficiency
    from gambrel.core.model import Layer

__all__ = ["ACTIVATION_BYTES", "LOGIT_BYTES", "activation_bytes", "held_bytes", "memory_budget", "require_fit"]

ACTIVATION_BYTES = 2  # activations are 16-bit
LOGIT_BYTES = 4  # logits are sampled in fp32, and the sampler works on a copy
_LOGIT_COPIES = 2
_RESIDUALS = 2  # hidden-sized buffers alive together: residual, and a block's input or output (norms work in place)
_ENDLESS = 1 << 17  # tokens over which a state is spread where no model states a longest context
SHORT_WINDOW = 2048
"""Windowed layers of at most this many tokens are held as a fixed state of each sequence, longer ones by the token.

An engine's hybrid cache frees what slid out of the window. A sequence longer than a short window holds exactly the
window; charging a long window in full to every short sequence would be worse than charging all of its tokens.
"""


def _layer_activation_bytes(layer: Layer, deployment: Deployment) -> float:
    """Bytes per token alive inside one layer's widest part on one rank: FFN in and out, or expert buffers.

    Under data-parallel attention a rank has its share of the tokens but for the experts, which it has of all.
    """
    hidden, groups = deployment.model.hidden_size, deployment.attention_dp
    widths: dict[int, int] = {}
    for tensor in layer.tensors:
        if tensor.role is Role.LINEAR and tensor.shard is not Shard.ROW:  # what those put out is hidden-sized
            cut = tensor.on_rank(deployment.tp // groups, layer.mixer.kv_heads)
            widths[cut.rows] = widths.get(cut.rows, 0) + cut.rows
    dense = max(widths.values(), default=0)
    widest = max(widths, default=0)
    routed = 0.0
    if layer.moe is not None:
        inner = max((t.rows for t in layer.tensors if t.role is Role.EXPERT), default=0)
        routed = layer.moe.top_k * (3 * inner / deployment.tp + hidden / deployment.ep)
    return ACTIVATION_BYTES * (max((dense + widest) / groups, routed) + _RESIDUALS * hidden / groups)


def activation_bytes(deployment: Deployment) -> float:
    """Peak bytes beside weights and KV cache: a layer at ``max_num_batched_tokens``, and the logits it ends in."""
    model = deployment.model
    layer = max((_layer_activation_bytes(layer, deployment) for _, layer in model.layers), default=0.0)
    rows = min(deployment.max_num_seqs, deployment.max_num_batched_tokens)
    logits = rows / deployment.attention_dp * model.vocab_size * LOGIT_BYTES * _LOGIT_COPIES
    return deployment.max_num_batched_tokens * layer + logits


def _fixed(part: Attention) -> bool:
    return part.window is not None and part.window <= SHORT_WINDOW


def _stage_share(deployment: Deployment) -> float:
    """The fullest pipeline stage's share of the layers."""
    return -(-deployment.model.num_layers // deployment.pp) / deployment.model.num_layers


def held_bytes(deployment: Deployment, context: Any) -> Any:
    """KV and state bytes on one rank for a sequence of ``context`` tokens (number or array), before block rounding.

    Every layer at its own window: what there is to move or to read. What the pool of the simulated engine sets aside
    for it is :meth:`gambrel.core.step.MemoryBudget.sequence_bytes`, more where windows do not give blocks back. Divided
    by pipeline stages, though a full pipeline holds as many sequences more.
    """
    held: Any = 0.0
    for part in rank_attention(deployment):
        tokens = context if part.window is None else np.minimum(context, part.window)
        held += part.layers * (part.held_bytes_per_token * tokens + part.state_bytes)
    return held * _stage_share(deployment)


def memory_budget(deployment: Deployment, efficiency: Efficiency) -> MemoryBudget:
    """The fullest accelerator's bytes, part by part; ``fits`` is an answer, not an error.

    KV blocks hold the layers that grow with context; layers with a short window and recurrent states are
    ``state_bytes_per_sequence``. A model without growing layers gets blocks of that state spread over its tokens.
    """
    check_parallel(deployment)
    share = _stage_share(deployment)
    parts = rank_attention(deployment)
    growing = sum(p.layers * p.held_bytes_per_token for p in parts if not _fixed(p)) * share
    fixed = sum(p.layers * (p.state_bytes + (p.held_bytes_per_token * p.window if _fixed(p) and p.window else 0.0))
                for p in parts) * share  # fmt: skip
    usable = deployment.gpu_memory_utilization * deployment.accelerator.memory_bytes
    weights = fullest_rank_bytes(deployment)
    activations = activation_bytes(deployment)
    left = usable - weights - activations - efficiency.reserve_bytes
    block = growing * deployment.block_size
    state_only = block <= 0.0 < fixed
    if block <= 0.0:
        length = deployment.max_model_len or deployment.model.max_context or _ENDLESS
        block = fixed / -(-length // deployment.block_size)
    return MemoryBudget(
        memory_bytes=deployment.accelerator.memory_bytes,
        usable_bytes=usable,
        weight_bytes=weights,
        activation_bytes=activations,
        reserve_bytes=efficiency.reserve_bytes,
        kv_bytes_per_block=block,
        state_bytes_per_sequence=fixed,
        block_size=deployment.block_size,
        num_kv_blocks=max(0, math.floor(left / block)) if block > 0.0 else 0,
        state_only=state_only,
    )


def require_fit(budget: MemoryBudget, deployment: Deployment) -> None:
    """Raise DoesNotFit, with the bytes needed and available, when not one KV block is left."""
    if budget.fits:
        return
    needed = budget.weight_bytes + budget.activation_bytes + budget.reserve_bytes + budget.kv_bytes_per_block
    raise DoesNotFit(
        f"{deployment.model.name} in {deployment.weights} does not fit {deployment.accelerator.name} at"
        f" tp={deployment.tp} pp={deployment.pp}: each accelerator needs {needed / GIB:.1f} GiB"
        f" (weights {budget.weight_bytes / GIB:.1f}, activations {budget.activation_bytes / GIB:.1f},"
        f" reserve {budget.reserve_bytes / GIB:.1f}, one KV block) and has {budget.usable_bytes / GIB:.1f} GiB usable"
        f" of {budget.memory_bytes / GIB:.1f}; use more accelerators, a smaller weight format or fewer"
        " max_num_batched_tokens",
        needed_bytes=needed,
        available_bytes=budget.usable_bytes,
    )
