"""The bill of a model: where its parameters, bytes, cache and FLOPs sit, kind of layer by kind of layer.

The rows add up to the totals of the Model; nothing here is a second formula. ``model_figures`` is the machine-readable
answer of ``gambrel model``, every figure in SI units with the convention in its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gambrel.core.formats import KV_FORMATS, WEIGHT_FORMATS, Role

if TYPE_CHECKING:
    from gambrel.core.model import Layer, Mixer, Model, Tensor

__all__ = ["BillRow", "bill", "model_figures"]

_FAR = 1 << 62  # a context beyond every window


@dataclass(frozen=True, slots=True)
class BillRow:
    """One line of the bill: ``count`` layers (or tensors) of one kind; every figure is for all of them together.

    Attributes:
        kind: what the row is, e.g. ``32 x full attention + MLP: attention``.
        count: how many layers it stands for.
        params: parameters stored.
        active_params: parameters that one token uses.
        bytes_bf16: bytes at 16 bits (32 where a tensor is kept in fp32).
        kv_bytes_per_token: cache one more token adds at short context, in bf16.
        state_bytes: fixed state per sequence.
        flops_per_token: matmul FLOPs of one token.
        flops_per_pair: attention FLOPs of one (query, key) pair in decode.
        formula: how the figures come about, with the shapes filled in.
    """

    kind: str
    count: int
    params: int
    active_params: int
    bytes_bf16: int
    kv_bytes_per_token: int
    state_bytes: int
    flops_per_token: int
    flops_per_pair: int
    formula: str


def _shape(tensor: Tensor) -> str:
    """A tensor as ``name rows x cols``, with how many copies."""
    copies = f"{tensor.copies} x " if tensor.copies > 1 else ""
    size = f"{tensor.rows}" if tensor.cols == 1 else f"{tensor.rows} x {tensor.cols}"
    return f"{tensor.name} {copies}{size}"


def _part(tensor: Tensor) -> str:
    """Which part of a layer a tensor belongs to."""
    if tensor.role is Role.ROUTER or (tensor.name.startswith("router") and tensor.role is Role.VECTOR):
        return "router"
    if tensor.routed or tensor.name.startswith("experts."):
        return "routed experts"
    if tensor.name.startswith("shared_expert"):
        return "shared experts"
    if tensor.name.startswith(("mlp.", "linear_mlp")):
        return "MLP"
    if tensor.name.startswith(("norm ", "expert norm", "input_layernorm", "post_attention_layernorm")):
        return "norms"
    return "mixer"


def _mixer_formula(mixer: Mixer) -> str:
    """What is cached and what a pair costs, in words and numbers."""
    parts = []
    if mixer.kv_elements:
        if mixer.kind == "mla":
            parts.append(f"caches a latent of {mixer.kv_elements} per token (not per head, replicated over ranks)")
        elif mixer.kind == "index":
            parts.append(f"selector caches {mixer.kv_elements} per token")
        else:
            parts.append(f"caches {mixer.kv_elements} per token ({mixer.kv_heads} KV heads)")
    if mixer.shared_kv_elements:
        parts.append(f"reads {mixer.shared_kv_elements} per token of an earlier layer's cache")
    if mixer.window is not None:
        parts.append(f"holds at most {mixer.window} tokens")
    if mixer.top_k is not None:
        parts.append(f"reads at most {mixer.top_k} tokens")
    if mixer.state_elements:
        parts.append(
            f"state of {mixer.state_elements - mixer.conv_elements} + {mixer.conv_elements} (convolution) numbers"
        )
    return ", ".join(parts)


def _bytes(tensors: list[Tensor], base_bits: int) -> int:
    return round(sum(t.count * (t.keep_bits or base_bits) / 8 for t in tensors))


def _layer_rows(n: int, layer: Layer, base_bits: int) -> list[BillRow]:
    parts: dict[str, list[Tensor]] = {}
    for tensor in layer.tensors:
        parts.setdefault(_part(tensor), []).append(tensor)
    bf16 = KV_FORMATS["bf16"]
    if layer.mixer.kind != "none":
        parts.setdefault("mixer", [])
    rows = []
    for part, tensors in parts.items():
        params = sum(t.count for t in tensors)
        flops = sum(t.flops_per_token for t in tensors)
        formula = " + ".join(_shape(t) for t in tensors)
        active = params
        if part == "routed experts" and layer.moe is not None:
            routed = sum(t.count for t in tensors if t.routed)
            matmuls = sum(t.flops_per_token for t in tensors if t.routed)
            k, experts = layer.moe.top_k, layer.moe.num_experts
            active = params - routed + routed * k // experts
            flops = flops - matmuls + matmuls * k // experts
            formula += f"; {k} of {experts} per token"
        mixers = layer.mixers if part == "mixer" else ()
        cached = "; ".join(filter(None, (_mixer_formula(m) for m in mixers)))
        name = {"mixer": layer.label.split(" + ")[0]}.get(part, part)
        rows.append(
            BillRow(
                kind=f"{layer.label}: {name}" if name != layer.label else layer.label,
                count=n,
                params=n * params,
                active_params=n * active,
                bytes_bf16=n * _bytes(tensors, base_bits),
                kv_bytes_per_token=n * sum(m.bytes_per_token(bf16) for m in mixers),
                state_bytes=n * sum(m.state_bytes for m in mixers),
                flops_per_token=n * flops,
                flops_per_pair=n * sum(m.decode_flops_per_pair for m in mixers),
                formula=f"{formula}; {cached}" if cached and formula else formula or cached,
            )
        )
    return rows


def bill(model: Model) -> list[BillRow]:
    """Every kind of layer part by part, then what is outside the layers; the columns sum to the Model's totals.

    The last row is the head; when it is the embedding itself it has FLOPs and no parameters of its own.
    """
    rows = [row for n, layer in model.layers for row in _layer_rows(n, layer, model.base_bits)]
    rows += [
        BillRow(
            kind=tensor.name, count=1, params=tensor.count, active_params=tensor.count,
            bytes_bf16=_bytes([tensor], model.base_bits), kv_bytes_per_token=0, state_bytes=0,
            flops_per_token=tensor.flops_per_token, flops_per_pair=0, formula=_shape(tensor),
        )
        for tensor in model.tensors
    ]  # fmt: skip
    if model.tied:
        rows.append(
            BillRow(
                kind="lm_head (is the embedding)", count=1, params=0, active_params=0, bytes_bf16=0,
                kv_bytes_per_token=0, state_bytes=0, flops_per_token=model.head.flops_per_token, flops_per_pair=0,
                formula=f"tied: {model.vocab_size} x {model.hidden_size} counted once, multiplied once",
            )
        )  # fmt: skip
    return rows


def model_figures(model: Model) -> dict[str, Any]:
    """The figures of ``gambrel model --json``.

    ``active_params`` counts the input embedding, ``active_params_without_embedding`` does not (both are published).
    ``kv_bytes_per_token`` is bf16 and marginal at short context, ``kv_bytes_per_token_long`` beyond every window;
    selector keys of sparse attention are apart in ``index_bytes_per_token``. ``decode_flops_per_token`` is matmuls
    at context 0 with the head; ``attention_flops_per_token_per_context`` is what each token of context adds to it in
    decode (absorbed form for MLA), ``..._prefill`` the same when a prompt is processed.
    """
    bf16 = KV_FORMATS["bf16"]
    weights = {name: model.weight_bytes(fmt) for name, fmt in WEIGHT_FORMATS.items()}
    if model.checkpoint is not None and model.checkpoint.name not in weights:
        weights[model.checkpoint.name] = model.weight_bytes(model.checkpoint)
    index = model.index_bytes_per_token(bf16)
    moe = next((layer.moe for _, layer in model.layers if layer.moe is not None), None)
    return {
        "name": model.name,
        "model_type": model.model_type,
        "source": model.source,
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "max_context": model.max_context,
        "total_params": model.total_params,
        "active_params": model.active_params,
        "active_params_without_embedding": model.active_params_without_embedding,
        "routed_params": model.routed_params,
        "embedding_params": model.embedding_params,
        "tied_embeddings": model.tied,
        "num_experts": moe.num_experts if moe else 0,
        "experts_per_token": moe.top_k if moe else 0,
        "extra_params": dict(model.extras),
        "checkpoint_format": model.checkpoint_format,
        "checkpoint_bytes": model.checkpoint_bytes,
        "weight_bytes": weights,
        "kv_bytes_per_token": model.kv_bytes_per_token(bf16) - index,
        "kv_bytes_per_token_long": model.kv_bytes_per_token(bf16, _FAR) - index,
        "index_bytes_per_token": index,
        "windows": list(model.windows),
        "attention_spans": list(model.spans),
        "state_elements_per_sequence": model.state_elements_per_sequence,
        "state_bytes_per_sequence": model.state_bytes_per_sequence,
        "decode_flops_per_token": model.decode_flops_per_token,
        "state_flops_per_token": model.state_flops_per_token,
        "attention_flops_per_token_per_context": model.attention_flops_per_pair(decode=True),
        "attention_flops_per_token_per_context_long": model.attention_flops_per_pair(decode=True, context=_FAR),
        "attention_flops_per_token_per_context_prefill": model.attention_flops_per_pair(),
        "assumptions": list(model.assumptions),
    }
