"""What one rank of a replica multiplies, reads and remembers: a deployment's model cut into kernels.

Tensor parallelism divides matrices, replicates surplus KV heads and the MLA latent; expert parallelism divides
experts; engines fuse neighbouring projections of one input (query with key and value, gate with up) into one matmul.
The cost and the memory of a step both start from these shapes, so they cannot disagree about them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gambrel.core.errors import DeploymentError
from gambrel.core.formats import Role
from gambrel.core.model import Shard

if TYPE_CHECKING:
    from gambrel.core.accelerator import Accelerator
    from gambrel.core.deployment import Deployment
    from gambrel.core.model import Layer, Mixer, Model, MoE, Tensor

__all__ = [
    "Attention",
    "Kernel",
    "check_parallel",
    "fullest_rank_bytes",
    "rank_attention",
    "rank_head",
    "rank_kernels",
    "require_tp",
    "tp_is_possible",
]

_SIXTEEN_BIT = "bf16"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One matmul (or one read of vectors, with no FLOPs) that a rank runs ``repeats`` times in a step.

    ``num_bytes`` and ``flops_per_token`` are of one copy: for experts, of one expert and one routed token.
    ``share`` of the step's tokens pass through it on this rank: less than 1 under data-parallel attention.
    ``math`` is the number format the tensor cores run in, ``weights`` the stored format or "" when unquantised.
    """

    repeats: int
    num_bytes: float
    flops_per_token: float
    math: str
    weights: str
    moe: MoE | None = None
    ep: int = 1
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Attention:
    """What ``layers`` equal mixers do on one rank, per layer: bytes a token, FLOPs a pair, bytes of state.

    ``readers``: query heads that read a KV head; 1 for a latent, whose kernels are made for sharing it. ``math``: the
    format pairs are multiplied in: 16 bits, or the 8 that a selector's keys are stored in.

    Under data-parallel attention a rank holds its share of the sequences, so every figure is that share of one
    sequence's: a mean over the sequences of the step.
    """

    layers: int
    read_bytes_per_token: float
    held_bytes_per_token: float
    decode_flops_per_pair: float
    prefill_flops_per_pair: float
    flops_per_token: float
    state_bytes: float
    window: int | None
    span: int | None
    readers: float
    math: str


def check_parallel(deployment: Deployment) -> None:
    """Raise DeploymentError when the parallel degrees cannot be laid out."""
    if deployment.tp % deployment.ep:
        raise DeploymentError(
            f"ep={deployment.ep} must divide tp={deployment.tp}: experts are divided over the tensor-parallel ranks"
        )
    if deployment.tp % deployment.attention_dp:
        raise DeploymentError(
            f"attention_dp={deployment.attention_dp} must divide tp={deployment.tp}: it splits those ranks into groups"
        )
    if deployment.pp > deployment.model.num_layers:
        raise DeploymentError(f"pp={deployment.pp} exceeds the model's {deployment.model.num_layers} layers")


def tp_is_possible(model: Model, accelerator: Accelerator, tp: int) -> bool:
    """Whether engines accept the degree: heads divide evenly, and the devices share a machine or scale-up domain."""
    return heads_divide(model, tp) and tp <= accelerator.max_tp


def heads_divide(model: Model, ranks: int) -> bool:
    """Whether every one of ``ranks`` gets equally many heads.

    Key-value heads are divided, or each is copied to equally many ranks (vLLM's ``QKVParallelLinear``); a latent
    (MLA) is on every rank, and a fixed state has none.
    """
    if ranks == 1:
        return True
    mixers = (mixer for _, layer in model.layers for mixer in (layer.mixer, *layer.side_mixers))
    held = {mixer.kv_heads for mixer in mixers if mixer.kind == "gqa"}
    return model.num_heads % ranks == 0 and all(heads % ranks == 0 or ranks % heads == 0 for heads in held)


def require_tp(deployment: Deployment) -> None:
    """Raise DeploymentError where engines would not accept the degree of either pool that somebody named.

    Beyond the search's :func:`tp_is_possible` two things are allowed to whoever asks for them: groups of ranks that
    attend for themselves, where the heads divide within a group, and a group of machines over a known network.
    Published rows are not asked: what was measured was possible.
    """
    pools = (deployment.decode_pool, *((deployment.prefill_pool,) if deployment.disaggregated else ()))
    for d in pools:
        if d.tp % d.attention_dp or _runs(d, d.tp):
            continue  # what does not divide, check_parallel says
        could = [t for t in range(d.attention_dp, d.accelerator.max_tp + 1, d.attention_dp) if _runs(d, t)]
        raise DeploymentError(
            f"tensor-parallel degree {d.tp} does not suit {d.model.name} ({d.model.num_heads} attention heads) on "
            f"{d.accelerator.name} (up to {d.accelerator.max_tp} in a machine); "
            f"possible: {', '.join(map(str, could)) or 'none'}"
        )


def _runs(deployment: Deployment, tp: int) -> bool:
    joined = tp <= deployment.accelerator.max_tp or deployment.accelerator.network_bandwidth > 0.0
    return joined and heads_divide(deployment.model, tp // deployment.attention_dp)


def _on_rank(tensor: Tensor, layer: Layer | None, deployment: Deployment) -> Tensor:
    """One rank's share; with expert parallelism experts are divided first, then cut over what ranks remain."""
    width = deployment.tp // deployment.attention_dp
    if layer is None:
        return tensor.on_rank(width)
    if tensor.routed:
        whole = replace(tensor, copies=-(-tensor.copies // deployment.ep))
        return whole.on_rank(deployment.tp // deployment.ep)
    return tensor.on_rank(width, layer.mixer.kv_heads)


def _bytes_per_copy(tensor: Tensor, deployment: Deployment) -> float:
    """Stored bytes of one copy of a tensor that is already cut to its rank."""
    fmt = deployment.weight_format
    if fmt.flat_bits is not None:
        return tensor.rows * tensor.cols * fmt.flat_bits / 8
    return replace(tensor, copies=1).stored_bytes(fmt, deployment.model.base_bits)


def _kernel(tensor: Tensor, deployment: Deployment, repeats: int, layer: Layer | None) -> Kernel:
    fmt = deployment.weight_format
    quantised = tensor.quantised_by(fmt)
    per_copy = _bytes_per_copy(tensor, deployment)
    flops = 0.0 if tensor.role in {Role.VECTOR, Role.EXPERT_VECTOR, Role.EMBEDDING} else 2.0 * tensor.rows * tensor.cols
    own = fmt.of_role(tensor.role)
    math_format, weights = (own.math, own.name) if quantised else (_SIXTEEN_BIT, "")
    if tensor.routed and layer is not None and layer.moe is not None:
        # copies beyond one per expert (none today) are read and multiplied together with it
        per_expert = tensor.copies * deployment.ep / layer.moe.num_experts
        return Kernel(
            repeats, per_copy * per_expert, flops * per_expert, math_format, weights, layer.moe, deployment.ep
        )
    share = 1.0 / deployment.attention_dp
    return Kernel(repeats, per_copy * tensor.copies, flops * tensor.copies, math_format, weights, share=share)


def _fused(layer: Layer, deployment: Deployment, repeats: int) -> list[Kernel]:
    """The layer's kernels: neighbouring column-parallel matmuls of one input are one kernel, vectors are one read."""
    kernels: list[Kernel] = []
    vectors: dict[bool, Kernel] = {}
    last: Tensor | None = None
    for tensor in layer.tensors:
        kernel = _kernel(_on_rank(tensor, layer, deployment), deployment, repeats, layer)
        if not kernel.flops_per_token:
            seen = vectors.get(tensor.routed)
            vectors[tensor.routed] = (
                kernel if seen is None else replace(seen, num_bytes=seen.num_bytes + kernel.num_bytes)
            )
            continue
        previous = kernels[-1] if kernels else None
        if (
            previous is not None
            and last is not None
            and tensor.role in {Role.LINEAR, Role.EXPERT}
            and (last.role, last.cols) == (tensor.role, tensor.cols)
            and Shard.ROW not in {last.shard, tensor.shard}
            and (previous.math, previous.weights) == (kernel.math, kernel.weights)
        ):
            kernels[-1] = replace(
                previous,
                num_bytes=previous.num_bytes + kernel.num_bytes,
                flops_per_token=previous.flops_per_token + kernel.flops_per_token,
            )
        else:
            kernels.append(kernel)
        last = tensor
    return kernels + list(vectors.values())


def rank_kernels(deployment: Deployment) -> tuple[Kernel, ...]:
    """Every matmul and weight read of one pass over all layers on one rank; the head apart, the embedding not at all.

    Equal kernels are merged. Pipeline stages run one after the other, so a pass is the same sum for any ``pp``.
    """
    merged: dict[Kernel, int] = {}
    kernels = [k for n, layer in deployment.model.layers for k in _fused(layer, deployment, n)]
    kernels += [
        _kernel(_on_rank(t, None, deployment), deployment, 1, None)
        for t in deployment.model.tensors
        if t.role not in {Role.HEAD, Role.EMBEDDING}
    ]
    for kernel in kernels:
        key = replace(kernel, repeats=1)
        merged[key] = merged.get(key, 0) + kernel.repeats
    return tuple(replace(k, repeats=n) for k, n in merged.items())


def rank_head(deployment: Deployment) -> Kernel:
    """The matmul that makes logits on one rank; the embedding table itself when tied."""
    return _kernel(_on_rank(deployment.model.head, None, deployment), deployment, 1, None)


def rank_attention(deployment: Deployment) -> tuple[Attention, ...]:
    """The attention and recurrent state of every layer on one rank."""
    groups, kv = deployment.attention_dp, deployment.kv_format
    tp = deployment.tp // groups

    def read_elsewhere(mixer: Mixer) -> float:
        parts = min(tp, mixer.kv_heads)
        return float(-(-mixer.shared_kv_elements // parts) * kv.element_bytes) / groups

    found = []
    for n, mixer in deployment.model.all_mixers():
        held = mixer.bytes_per_token_on_rank(kv, tp) / groups
        cut = 1 if mixer.kind == "index" else tp  # every rank runs the whole selector
        share = (-(-mixer.num_heads // cut) / mixer.num_heads if mixer.num_heads else 1.0 / cut) / groups
        found.append(
            Attention(
                layers=n,
                read_bytes_per_token=held + read_elsewhere(mixer),
                held_bytes_per_token=held,
                decode_flops_per_pair=mixer.decode_flops_per_pair * share,
                prefill_flops_per_pair=mixer.prefill_flops_per_pair * share,
                flops_per_token=mixer.decode_flops_per_token / deployment.tp,
                state_bytes=mixer.state_bytes / deployment.tp,
                window=mixer.window,
                span=mixer.span,
                readers=-(-mixer.num_heads // tp) / -(-mixer.kv_heads // tp) if mixer.kind == "gqa" else 1.0,
                math="fp8" if mixer.kind == "index" and mixer.own_bytes else _SIXTEEN_BIT,
            )
        )
    return tuple(found)


def fullest_rank_bytes(deployment: Deployment) -> float:
    """Weight bytes on the fullest accelerator: its share of the layers of a stage, and embedding or head.

    A stage holds at most ``ceil(layers / pp)`` layers of mean size; the first also the embedding, the last the head.
    """
    model = deployment.model
    layers = sum(
        n * _bytes_per_copy(cut, deployment) * cut.copies
        for n, layer in model.layers
        for tensor in layer.tensors
        for cut in (_on_rank(tensor, layer, deployment),)
    )
    outside = [
        (tensor, _bytes_per_copy(cut, deployment) * cut.copies)
        for tensor in model.tensors
        for cut in (_on_rank(tensor, None, deployment),)
    ]
    if deployment.pp == 1:
        return layers + sum(size for _, size in outside)
    stage = layers * -(-model.num_layers // deployment.pp) / model.num_layers
    first = sum(size for tensor, size in outside if tensor.role is Role.EMBEDDING)
    last = sum(size for tensor, size in outside if tensor.role is not Role.EMBEDDING) + (first if model.tied else 0.0)
    return stage + max(first, last)
