"""From a list of layers to a Model: what every architecture shares once its layers are known.

Per-layer questions that configs answer in many ways (which layers are windowed, which have experts) are answered
here once, as lists with one entry a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gambrel.catalog.architectures.blocks import Experts, linear, norm, vector
from gambrel.catalog.quantization import checkpoint
from gambrel.catalog.vision import vision_params
from gambrel.core.formats import Role
from gambrel.core.model import Layer, Mixer, Model, Shard, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gambrel.catalog.config_fields import ConfigFields

__all__ = [
    "NO_MIXER",
    "LayerKind",
    "assemble",
    "dense_or_experts",
    "embedding",
    "expert_spec",
    "group",
    "head_tensor",
    "layer_kinds",
    "mtp_modules",
    "num_layers",
]

_SLIDING: Final = {"sliding_attention", "sliding", "local", "local_attention", "swa", "sliding_window"}
_CHUNKED: Final = {"chunked_attention", "chunked"}
# Types whose makers publish 8 bits with a scale per 128 x 128 block (quantization_config, weight_block_size) beside 16:
# config.json of Qwen/Qwen3-235B-A22B-FP8 and Qwen/Qwen3-32B-FP8.
_ALSO_BY_BLOCK: Final = ("qwen3",)
_MAX_LAYERS: Final = 4096
_MAX_MTP: Final = 64


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


class LayerKind(NamedTuple):
    """How one layer attends: whether its kind is local, and the window that binds (None: it attends to all)."""

    sliding: bool
    window: int | None
    name: str


_PATTERNS: Final[dict[str, Callable[[int], bool]]] = {
    "all": lambda _: True,
    "none": lambda _: False,
    "alternate": lambda i: i % 2 == 0,  # local first: Gemma 2, gpt-oss
    "alternate_global": lambda i: i % 2 == 1,  # global first: GPT-Neo
    "mimo": lambda i: i != 0 and (i + 1) % 6 != 0,  # the first and every sixth layer are global
}


def _local_layers(c: ConfigFields, layers: int, pattern: str) -> Sequence[bool]:
    """Which layers are local: listed layer by layer, or by a family's built-in rule."""
    listed = {"mimo": "hybrid_layer_pattern", "chunk": "no_rope_layers"}.get(pattern)
    entries = c.per_layer(listed, layers) if listed else None
    if entries:
        return [bool(x) for x in entries]
    if pattern in _PATTERNS:
        return [_PATTERNS[pattern](i) for i in range(layers)]
    if pattern == "qwen":  # layers from max_window_layers on
        start = c.optional("max_window_layers") or 0
        return [i >= start for i in range(layers)]
    if pattern == "chunk":  # Llama 4: layers without rotary embedding attend to all
        period: Any = c.optional("no_rope_layer_interval", minimum=1) or 4
    else:
        period = c.find("sliding_window_pattern") or c.find("global_attn_every_n_layers") or int(pattern)
    if isinstance(period, str) and period and set(period.upper()) <= {"L", "G"}:  # EXAONE 4 spells LLLG
        return [period.upper()[i % len(period)] == "L" for i in range(layers)]
    every = c.whole("sliding_window_pattern", period)
    return [(i + 1) % every != 0 for i in range(layers)]


def layer_kinds(c: ConfigFields, layers: int, pattern: str = "all") -> list[LayerKind]:
    """How each layer attends.

    ``layer_types`` decides where it is given, then ``use_sliding_window``, then the family's ``pattern``.
    A window that the maximum context cannot exceed never binds and counts as none.
    """
    limit = c.optional("max_position_embeddings")
    size = c.optional("sliding_window") or None
    chunk = c.optional("attention_chunk_size") or None
    full = LayerKind(sliding=False, window=None, name="full")

    def local(value: int | None, name: str) -> LayerKind:
        if not value or (limit and value >= limit):
            return LayerKind(sliding=True, window=None, name="full")
        return LayerKind(sliding=True, window=value, name=name)

    kinds = c.words("layer_types", layers)
    if c.find("use_sliding_window") is not None and not c.flag("use_sliding_window"):
        size = None
        if kinds is None:
            return [full] * layers
    if kinds is not None:
        sliding, chunked = local(size, "windowed"), local(chunk, "chunked")
        return [sliding if k in _SLIDING else chunked if k in _CHUNKED else full for k in kinds]
    if pattern == "chunk":
        kind = local(chunk, "chunked")
    else:
        kind = local(size, "windowed")
        if size is None and pattern in {"all", "none", "qwen"}:
            return [full] * layers
    return [kind if is_local else full for is_local in _local_layers(c, layers, pattern)]


def dense_or_experts(c: ConfigFields, layers: int) -> list[bool]:
    """Whether each layer has experts, by whichever of the seven spellings the config uses."""
    kinds = c.words("mlp_layer_types", layers)
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
    c: ConfigFields, *, width: int | None = None, shared_width: str = "", shared_default: int = 0, **traits: Any
) -> Experts:
    """The experts of a config: number, top-k, widths; ``traits`` are passed on.

    ``shared_width`` names the field of the shared experts' total width; ``shared_default`` is how many shared
    experts of the routed width there are when the config says nothing.
    """
    num = c.integer("num_experts")
    top_k = c.integer("num_experts_per_tok")
    if top_k > num:
        raise c.refuse(f"num_experts_per_tok is {top_k}, more than the {num} experts")
    if width is None:
        width = c.optional("moe_intermediate_size", minimum=1) or c.optional("intermediate_size", minimum=1)
        if width is None:
            raise c.refuse("config lacks moe_intermediate_size (and intermediate_size)")
    shared = c.optional(shared_width or "shared_expert_intermediate_size")
    if shared is None:
        count = c.optional("num_shared_experts")
        shared = (shared_default if count is None else count) * width
    return Experts(num, top_k, width, shared=shared, **traits)


def mtp_modules(c: ConfigFields, layer: Layer, *, default: int = 0) -> list[Layer]:
    """The decoder layers of the multi-token-prediction modules, like the last layer of the model."""
    modules = c.optional("num_mtp")
    modules = default if modules is None else modules
    if modules > _MAX_MTP:
        raise c.refuse(f"{modules} multi-token-prediction modules; more than {_MAX_MTP} are not plausible")
    return [layer] * modules


def embedding(hidden: int, vocab: int) -> Tensor:
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
    mtp_copies: bool = False,
    mtp_count: int | None = None,
    embedding_dim: int | None = None,
) -> Model:
    """The Model of ``layers`` with embedding, final norm and head around them.

    ``outside`` holds further tensors (position tables, embedding norms); ``final_norm`` how many vectors of the
    hidden size the final norm has (0, 1, or 2 for a biased LayerNorm). An MTP module is a layer, a projection of
    2d to d and three norms; with ``mtp_copies`` also its own embedding and head. ``mtp_count`` is the number of modules
    where one has several layers.
    """
    tensors: list[Tensor] = [embedding(embedding_dim or hidden, vocab), *outside]
    if final_norm:
        tensors.append(norm("final_norm", hidden, bias=final_norm == 2))
    if not tied:
        tensors.append(head_tensor(embedding_dim or hidden, vocab))
    if head_bias:
        tensors.append(vector("lm_head.bias", vocab, Shard.COLUMN))
    own = 2 * hidden * hidden + 3 * hidden + (2 * vocab * hidden if mtp_copies else 0)
    extras = [("mtp", sum(x.params for x in mtp) + own * (len(mtp) if mtp_count is None else mtp_count))] if mtp else []
    tower = vision_params(c)
    if tower:
        extras.append(("vision", tower))
    stored = checkpoint(c)
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
        also_by_block=c.model_type.startswith(_ALSO_BY_BLOCK),
        checkpoint_format=stored.name if stored is not None else "bf16",
        base_bits=_base_bits(c),
        extras=tuple(extras),
        assumptions=tuple(c.assumptions),
        mtp_layers=group(mtp),
        checkpoint=stored,
    )


def _base_bits(c: ConfigFields) -> int:
    """Bits of unquantised weights: 32 only where the file says float32."""
    dtype = c.text_value("dtype") or c.text_value("torch_dtype")
    return 32 if dtype in {"float32", "torch.float32"} else 16


NO_MIXER: Final = Mixer(kind="none")
