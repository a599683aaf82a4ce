"""From a list of layers to a Model: what every architecture shares once its layers are known.

Per-layer questions that configs answer in many ways (which layers are windowed, which have experts) are answered
here once, as lists with one entry a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gambrel.catalog.architectures.blocks import Experts, linear, norm, vector
from gambrel.catalog.quantization import checkpoint_format
from gambrel.core.formats import Role
from gambrel.core.model import Layer, Mixer, Model, Shard, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gambrel.catalog.config_fields import ConfigFields

__all__ = ["assemble", "dense_or_experts", "embedding", "expert_spec", "group", "head_tensor", "windows"]

_SLIDING: Final = {"sliding_attention", "sliding", "local", "local_attention", "swa", "sliding_window"}
_CHUNKED: Final = {"chunked_attention", "chunked"}
_MAX_LAYERS: Final = 4096


def group(layers: Iterable[Layer]) -> tuple[tuple[int, Layer], ...]:
    """Equal layers counted, in order of first appearance."""
    counts: dict[Layer, int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    return tuple((n, layer) for layer, n in counts.items())


def num_layers(c: ConfigFields) -> int:
    """Decoder layers, bounded so that a typo cannot exhaust memory."""
    layers = c.integer("num_hidden_layers")
    if layers > _MAX_LAYERS:
        raise c.refuse(f"num_hidden_layers is {layers}; more than {_MAX_LAYERS} is not a transformer")
    return layers


def _pattern(c: ConfigFields, layers: int, pattern: str) -> Sequence[bool]:
    """Which layers are windowed under a family's built-in rule."""
    if pattern == "all":
        return [True] * layers
    if pattern == "none":
        return [False] * layers
    if pattern == "alternate":  # local first: Gemma 2, gpt-oss
        return [i % 2 == 0 for i in range(layers)]
    period = int(pattern)
    stated = c.find("sliding_window_pattern")
    if isinstance(stated, int) and not isinstance(stated, bool) and stated >= 1:
        period = stated
    elif isinstance(stated, str) and stated and set(stated.upper()) <= {"L", "G"}:  # EXAONE 4 spells LLLG
        return [stated.upper()[i % len(stated)] == "L" for i in range(layers)]
    return [(i + 1) % period != 0 for i in range(layers)]


def windows(c: ConfigFields, layers: int, pattern: str = "all") -> list[int | None]:
    """The attention window of each layer; None where a layer attends to everything.

    ``layer_types`` decides where it is given, then ``use_sliding_window``, then the family's ``pattern``.
    A window that the maximum context cannot exceed never binds and counts as none.
    """
    limit = c.optional("max_position_embeddings")
    size = c.optional("sliding_window")
    chunk = c.optional("attention_chunk_size")

    def effective(value: int | None) -> int | None:
        return None if not value or (limit and value >= limit) else value

    kinds = c.per_layer("layer_types", layers) or c.per_layer("attention_types", layers)
    if c.find("use_sliding_window") is not None and not c.flag("use_sliding_window"):
        return [effective(chunk) if kinds and kinds[i] in _CHUNKED else None for i in range(layers)]
    if kinds is not None:
        sliding = {True: effective(size), False: None}
        if any(k in _SLIDING for k in kinds if isinstance(k, str)) and size is None:
            raise c.refuse("layer_types names sliding_attention but sliding_window is missing")
        return [effective(chunk) if k in _CHUNKED else sliding[isinstance(k, str) and k in _SLIDING] for k in kinds]
    span = effective(size)
    if span is None:
        return [None] * layers
    if pattern == "qwen":  # layers from max_window_layers on are windowed
        start = c.optional("max_window_layers") or 0
        return [span if i >= start else None for i in range(layers)]
    return [span if local else None for local in _pattern(c, layers, pattern)]


def dense_or_experts(c: ConfigFields, layers: int) -> list[bool]:
    """Whether each layer has experts, by whichever of the seven spellings the config uses."""
    kinds = c.per_layer("mlp_layer_types", layers)
    if kinds is not None:
        return [k in {"sparse", "moe"} for k in kinds]
    freq = c.per_layer("moe_layer_freq", layers)
    if freq is not None:
        return [bool(f) for f in freq]
    listed = c.find("moe_layers_enum")
    if isinstance(listed, str) and listed:
        chosen = {int(x) for x in listed.split(",") if x.strip().isdigit()}
        return [i in chosen for i in range(layers)]
    chosen_layers = c.find("moe_layers")
    if isinstance(chosen_layers, list) and chosen_layers:
        return [i in chosen_layers for i in range(layers)]
    step = 1
    first = c.optional("first_k_dense_replace") or 0
    for field in ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq", "moe_layer_interval"):
        value = c.find(field)
        if isinstance(value, int) and not isinstance(value, bool):
            if value <= 0:
                return [False] * layers
            step = value
            break
    dense = c.find("mlp_only_layers")
    skip = set(dense) if isinstance(dense, list) and all(isinstance(x, int) for x in dense) else set()
    aligned = c.find("decoder_sparse_step") is not None or c.find("interleave_moe_layer_step") is not None
    offset = 1 if aligned else 0
    return [i >= first and i not in skip and (i + offset) % step == 0 for i in range(layers)]


def expert_spec(
    c: ConfigFields, *, width: int | None = None, shared_like_routed: bool = False, **traits: Any
) -> Experts:
    """The experts of a config: number, top-k, widths; ``traits`` are passed on."""
    num = c.integer("num_experts")
    top_k = c.integer("num_experts_per_tok")
    if top_k > num:
        raise c.refuse(f"num_experts_per_tok is {top_k}, more than the {num} experts")
    if width is None:
        width = c.integer("moe_intermediate_size", c.find("intermediate_size") or 0, minimum=1)
        if not width:
            raise c.refuse("config lacks moe_intermediate_size (and intermediate_size)")
    shared = c.optional("shared_expert_intermediate_size") or 0
    count = c.optional("num_shared_experts")
    if not shared and count:
        shared = count * width
    elif shared and count and shared_like_routed:
        shared *= count
    return Experts(num, top_k, width, shared=shared, **traits)


def embedding(c: ConfigFields, hidden: int, vocab: int) -> Tensor:
    """The token embedding, divided over ranks by vocabulary."""
    return Tensor("embed_tokens", vocab, hidden, Role.EMBEDDING, Shard.COLUMN)


def head_tensor(hidden: int, vocab: int) -> Tensor:
    """The matmul to logits."""
    return linear("lm_head", vocab, hidden, role=Role.HEAD)


def assemble(
    c: ConfigFields,
    layers: Sequence[Layer],
    *,
    hidden: int,
    vocab: int,
    tied: bool,
    heads: int,
    outside: Sequence[Tensor] = (),
    final_norm: int = 1,
    head_bias: bool = False,
    mtp: Sequence[Layer] = (),
    mtp_params: int = 0,
    base_tensors: Sequence[Tensor] | None = None,
) -> Model:
    """The Model of ``layers`` with embedding, final norm and head around them.

    ``outside`` holds further tensors (position tables, embedding norms); ``final_norm`` how many vectors of the
    hidden size the final norm has (0, 1, or 2 for a biased LayerNorm).
    """
    tensors: list[Tensor] = [embedding(c, hidden, vocab)] if base_tensors is None else list(base_tensors)
    tensors += outside
    if final_norm:
        tensors.append(norm("final_norm", hidden, bias=final_norm == 2))
    if not tied and base_tensors is None:
        tensors.append(head_tensor(hidden, vocab))
    if head_bias:
        tensors.append(vector("lm_head.bias", vocab, Shard.COLUMN))
    extras: list[tuple[str, int]] = []
    if mtp_params:
        extras.append(("mtp", mtp_params))
    return Model(
        name=c.name,
        hidden_size=hidden,
        vocab_size=vocab,
        num_heads=heads,
        layers=group(layers),
        tensors=tuple(tensors),
        tied=tied,
        max_context=c.optional("max_position_embeddings") or None,
        model_type=c.model_type,
        checkpoint_format=checkpoint_format(c),
        base_bits=_base_bits(c),
        extras=tuple(extras),
        assumptions=tuple(c.assumptions),
        mtp_layers=group(mtp),
    )


def _base_bits(c: ConfigFields) -> int:
    """Bits of unquantised weights: 32 only where the file says float32."""
    dtype = c.find("dtype") or c.find("torch_dtype")
    return 32 if dtype in {"float32", "torch.float32"} else 16


NO_MIXER: Final = Mixer(kind="none")
