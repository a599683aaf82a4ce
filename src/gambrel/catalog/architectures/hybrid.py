"""Decoders whose layers do not all attend: gated DeltaNet, Kimi delta attention, Mamba and short convolutions.

Linear and SSM layers hold a state of fixed size per sequence instead of a cache that grows; which layers they are
is spelled in half a dozen ways, all read here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gambrel.catalog.architectures.assemble import (
    NO_MIXER,
    assemble,
    dense_or_experts,
    expert_spec,
    mtp_modules,
    num_layers,
)
from gambrel.catalog.architectures.blocks import (
    Block,
    attention,
    delta_net,
    experts,
    fixed_state,
    kimi_delta,
    lightning,
    linear,
    mamba1,
    mamba2,
    mlp,
    norm,
    short_conv,
    vector,
)
from gambrel.catalog.architectures.decoder import Traits, feed_forward, gqa_shape
from gambrel.catalog.architectures.latent import latent_block
from gambrel.core.errors import CatalogError
from gambrel.core.model import Layer, Shard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gambrel.catalog.config_fields import ConfigFields
    from gambrel.core.model import Model, MoE, Tensor

__all__ = [
    "falcon_h1",
    "jamba",
    "kimi_linear",
    "lfm2",
    "mamba_only",
    "mamba_with_attention",
    "minimax_lightning",
    "nemotron_h",
    "qwen_next",
    "recurrent_gemma",
]

_MAMBA_WORDS: Final = {"mamba", "mamba2", "linear_attention", "hybrid", "recurrent", "conv", "linear"}
_BLOCK_WORDS: Final = {
    "M": "mamba", "-": "mlp", "*": "attention", "E": "moe",
    "mamba": "mamba", "mamba2": "mamba", "linear_attention": "mamba",
    "mlp": "mlp", "attention": "attention", "full_attention": "attention", "moe": "moe",
}  # fmt: skip


def _state_bits(c: ConfigFields) -> int:
    """Storage of recurrent states: what the config names, else that of the weights."""
    dtype = c.text_value("mamba_ssm_dtype") or c.text_value("mamba_ssm_cache_dtype")
    return 32 if dtype in {"float32", "torch.float32"} else 16


def _norms(hidden: int, count: int = 2) -> tuple[Tensor, ...]:
    return tuple(norm(f"norm {i}", hidden) for i in range(count))


def _mixer_types(c: ConfigFields, layers: int) -> list[bool]:
    """Which layers attend, from ``layer_types``, a period, or a list of indices."""
    kinds = c.words("layer_types", layers) or c.words("layers_block_type", layers)
    if kinds is not None:
        return [k not in _MAMBA_WORDS for k in kinds]
    listed = c.find("attn_layer_indices")
    if listed is None:
        listed = c.find("full_attn_idxs")
    if isinstance(listed, list):
        return [i in listed for i in range(layers)]
    period = c.optional("full_attention_interval", minimum=1)
    if period:
        return [(i + 1) % period == 0 for i in range(layers)]
    period = c.optional("attn_layer_period", minimum=1)
    if period:
        offset = c.optional("attn_layer_offset") or 0
        return [i % period == offset for i in range(layers)]
    raise c.refuse("config lacks layer_types (or full_attention_interval, attn_layer_period, attn_layer_indices)")


def _build(
    keys: Sequence[tuple[str, bool]],
    mixers: dict[str, Block],
    feeds: dict[bool, tuple[tuple[Tensor, ...], MoE | None]],
    norms: tuple[Tensor, ...],
) -> list[Layer]:
    """Layers of (mixer name, has experts) pairs; equal pairs share one Layer."""
    built: dict[tuple[str, bool], Layer] = {}
    for name, sparse in dict.fromkeys(keys):
        tensors, mixer = mixers[name]
        feed, moe = feeds[sparse]
        label = f"{name} + {'experts' if sparse else 'MLP'}"
        built[name, sparse] = Layer((*norms, *tensors, *feed), mixer, moe, 2, label)
    return [built[key] for key in keys]


def qwen_next(c: ConfigFields) -> Model:
    """Qwen3-Next and Qwen3.5 (gated DeltaNet with every fourth layer gated attention), and OLMo-Hybrid."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    olmo = c.model_type == "olmo_hybrid"
    bias = c.flag("attention_bias")
    gated = not olmo and c.flag("attn_output_gate", default=True)
    mixers = {
        "full attention": attention(
            hidden, heads, kv_heads, head_dim, qkv_bias=bias, out_bias=bias,
            gate="element" if gated else "", qk_norm="full" if olmo else "head",
        ),
        "gated DeltaNet": delta_net(
            hidden,
            key_heads=c.integer("linear_num_key_heads"), value_heads=c.integer("linear_num_value_heads"),
            key_dim=c.integer("linear_key_head_dim"), value_dim=c.integer("linear_value_head_dim"),
            conv=c.integer("linear_conv_kernel_dim"), state_bits=_state_bits(c),
        ),
    }  # fmt: skip
    sparse = dense_or_experts(c, layers) if c.find("num_experts") else [False] * layers
    traits = Traits(mlp_bias=False, moe=any(sparse), shared_gate=True)
    feeds = {s: feed_forward(c, traits, hidden, sparse=s) for s in set(sparse)}
    attends = _mixer_types(c, layers)
    keys = [("full attention" if a else "gated DeltaNet", s) for a, s in zip(attends, sparse, strict=True)]
    all_layers = _build(keys, mixers, feeds, _norms(hidden))
    attending = next((x for x, a in zip(reversed(all_layers), reversed(attends), strict=True) if a), all_layers[-1])
    default = 1 if c.model_type == "qwen3_next" else 0  # published checkpoints carry one, the config does not say so
    return assemble(
        c, all_layers, hidden=hidden, vocab=vocab, heads=heads, tied=c.flag("tie_word_embeddings"),
        mtp=mtp_modules(c, attending, default=default),
    )  # fmt: skip


def kimi_linear(c: ConfigFields) -> Model:
    """Kimi-Linear and Kimi K3: Kimi delta attention with interleaved MLA, routed experts (in K3 of latent width)."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads = c.integer("num_attention_heads")
    section = c.section("linear_attn_config")

    def kda(field: str, own: str) -> int:
        value = section.get(field, c.find(own))
        if value is None:
            raise c.refuse(f"config lacks linear_attn_config.{field} (or {own})")
        return c.whole(f"linear_attn_config.{field}", value)

    listed = section.get("full_attn_layers")
    one_based = set(listed) if isinstance(listed, list) and all(isinstance(x, int) for x in listed) else None
    attends = _mixer_types(c, layers) if one_based is None else [i + 1 in one_based for i in range(layers)]
    latent = c.optional("routed_expert_hidden_size", minimum=1)
    k3 = latent is not None
    mixers = {
        "MLA": latent_block(c, hidden, heads, gate=c.flag("mla_use_output_gate")),
        "Kimi delta attention": kimi_delta(
            hidden, heads=kda("num_heads", "linear_num_heads"), head_dim=kda("head_dim", "linear_head_dim"),
            conv=kda("short_conv_kernel_size", "linear_conv_kernel_dim"),
            full_rank_gate=bool(section.get("use_full_rank_gate", False)), state_bits=32,
        ),
    }  # fmt: skip
    sparse = dense_or_experts(c, layers)
    feeds: dict[bool, tuple[tuple[Tensor, ...], MoE | None]] = {}
    if True in sparse:
        feeds[True] = experts(hidden, expert_spec(c, correction_bias=True, latent=latent, latent_norm=k3))
    if False in sparse:
        feeds[False] = (mlp(hidden, c.integer("intermediate_size")), None)
    norms = _norms(hidden)
    outside: tuple[Tensor, ...] = ()
    if k3:  # attention residuals: a norm and a scoring vector before attention and before the feed-forward block
        norms = (*norms, vector("attention residual norms and projections", 4 * hidden))
        outside = (vector("output residual norm and projection", 2 * hidden),)
    keys = [("MLA" if a else "Kimi delta attention", s) for a, s in zip(attends, sparse, strict=True)]
    all_layers = _build(keys, mixers, feeds, norms)
    return assemble(
        c, all_layers, hidden=hidden, vocab=vocab, heads=heads, tied=c.flag("tie_word_embeddings"), outside=outside,
        mtp=mtp_modules(c, all_layers[-1]),
    )  # fmt: skip


def _mamba2(c: ConfigFields, hidden: int, *, gated_norm: bool = True) -> Block:
    """The Mamba-2 block of a config, by either family of field names."""
    head_dim = c.find("mamba_d_head") or c.find("mamba_head_dim") or c.find("mamba_headdim")
    heads = c.find("mamba_n_heads") or c.find("mamba_num_heads") or c.find("n_mamba_heads")
    inner = c.optional("mamba_d_ssm") or (c.optional("mamba_expand") or c.optional("expand") or 2) * hidden
    if heads is None or head_dim is None:
        raise c.refuse("config lacks mamba_num_heads or mamba_head_dim")
    if head_dim == "auto":
        head_dim = inner // c.whole("mamba_n_heads", heads)
    groups = c.find("mamba_n_groups") or c.find("n_groups") or c.find("mamba_ngroups")
    state = c.find("mamba_d_state") or c.find("ssm_state_size")
    conv = c.find("mamba_d_conv") or c.find("conv_kernel")
    for field, value in (("n_groups", groups), ("ssm_state_size", state), ("conv_kernel", conv)):
        if value is None:
            raise c.refuse(f"config lacks {field} (or its mamba_ spelling)")
    bias_field = "mamba_proj_bias" if c.find("mamba_proj_bias") is not None else "use_bias"
    conv_field = "mamba_conv_bias" if c.find("mamba_conv_bias") is not None else "use_conv_bias"
    return mamba2(
        hidden,
        heads=c.whole("mamba heads", heads),
        head_dim=c.whole("mamba head width", head_dim),
        groups=c.whole("mamba groups", groups),
        state=c.whole("mamba state", state),
        conv=c.whole("mamba convolution", conv),
        bias=c.flag(bias_field),
        conv_bias=c.flag(conv_field, default=True),
        gated_norm=gated_norm,
        state_bits=_state_bits(c),
    )


def _block_names(c: ConfigFields, pattern: object, where: str) -> list[str]:
    """Names of blocks from a pattern string or a list of words."""
    items = list(pattern) if isinstance(pattern, str | list) else []
    names = []
    for item in items:
        name = _BLOCK_WORDS.get(item) if isinstance(item, str) else None
        if name is None:
            raise c.refuse(f"{where} holds {item!r}; known are M - * E or mamba, mlp, attention, moe")
        names.append(name)
    return names


def nemotron_h(c: ConfigFields) -> Model:
    """Nemotron-H and Nemotron-3: one block a layer (Mamba-2, attention, ungated MLP or experts), one norm each."""
    hidden, vocab = c.integer("hidden_size"), c.integer("vocab_size")
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    pattern = c.find("hybrid_override_pattern") or c.find("layers_block_type") or c.find("layer_types")
    if not pattern:
        raise c.refuse("config lacks hybrid_override_pattern (or layers_block_type)")
    names = _block_names(c, pattern, "hybrid_override_pattern")
    if not names:
        raise c.refuse("hybrid_override_pattern names no blocks")
    bias, mlp_bias = c.flag("attention_bias"), c.flag("mlp_bias")
    one = _norms(hidden, 1)

    def routed() -> Layer:
        spec = expert_spec(c, gated=False, correction_bias=True, latent=c.optional("moe_latent_size", minimum=1))
        feed, moe = experts(hidden, spec)
        return Layer((*one, *feed), NO_MIXER, moe, 1, "experts")

    def mamba() -> Layer:
        tensors, mixer = _mamba2(c, hidden)
        return Layer((*one, *tensors), mixer, None, 1, "Mamba-2")

    def attend() -> Layer:
        tensors, mixer = attention(hidden, heads, kv_heads, head_dim, qkv_bias=bias, out_bias=bias)
        return Layer((*one, *tensors), mixer, None, 1, "full attention")

    def dense() -> Layer:
        feed = mlp(hidden, c.integer("intermediate_size"), gated=False, bias=mlp_bias)
        return Layer((*one, *feed), NO_MIXER, None, 1, "MLP")

    makers: dict[str, Callable[[], Layer]] = {"moe": routed, "mamba": mamba, "attention": attend, "mlp": dense}
    built = {name: makers[name]() for name in dict.fromkeys(names)}
    mtp: list[Layer] = []
    modules = len(mtp_modules(c, built[names[0]]))
    if modules:
        blocks = _block_names(
            c, c.find("mtp_layers_block_type") or c.find("mtp_hybrid_override_pattern") or "*E", "mtp"
        )
        mtp = [built.get(b) or makers[b]() for b in blocks] * modules
    model_layers = [built[n] for n in names]
    return assemble(
        c, model_layers, hidden=hidden, vocab=vocab, heads=heads, tied=c.flag("tie_word_embeddings"),
        mtp=mtp, mtp_count=modules,
    )  # fmt: skip


def mamba_with_attention(c: ConfigFields) -> Model:
    """Granite-4-H and Bamba: Mamba-2 with a few attention layers, an MLP or experts after each."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    bias = c.flag("attention_bias")
    mixers = {
        "full attention": attention(hidden, heads, kv_heads, head_dim, qkv_bias=bias, out_bias=bias),
        "Mamba-2": _mamba2(c, hidden),
    }
    count = c.optional("num_experts") or 0
    if count and c.model_type == "granitemoehybrid":
        traits = Traits(moe=True, expert_width="intermediate_size", shared_width="shared_intermediate_size")
        feeds = {True: feed_forward(c, traits, hidden, sparse=True)}
    else:
        width = c.optional("shared_intermediate_size", minimum=1) if c.model_type == "granitemoehybrid" else None
        feeds = {False: (mlp(hidden, width or c.integer("intermediate_size"), bias=c.flag("mlp_bias")), None)}
    sparse = next(iter(feeds))
    keys = [("full attention" if a else "Mamba-2", sparse) for a in _attention_layers(c, layers)]
    all_layers = _build(keys, mixers, feeds, _norms(hidden))
    return assemble(c, all_layers, hidden=hidden, vocab=vocab, heads=heads, tied=c.flag("tie_word_embeddings"))


def _attention_layers(c: ConfigFields, layers: int) -> list[bool]:
    """As :func:`_mixer_types`, but a family whose default is no attention at all."""
    try:
        return _mixer_types(c, layers)
    except CatalogError:
        c.assume("no layer attends: the config names no attention layers")
        return [False] * layers


def _step_rank(c: ConfigFields, field: str, hidden: int) -> int:
    """The rank of Mamba-1's step size: d / 16, rounded up, where the config says nothing or ``auto``."""
    value = c.find(field)
    return -(-hidden // 16) if value is None or value == "auto" else c.whole(field, value)


def jamba(c: ConfigFields) -> Model:
    """Jamba: Mamba-1 with one attention layer a period, experts every other layer."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    inner = (c.optional("mamba_expand", minimum=1) or 2) * hidden
    rank = _step_rank(c, "mamba_dt_rank", hidden)
    mixers = {
        "full attention": attention(hidden, heads, kv_heads, head_dim),
        "Mamba": mamba1(
            hidden, inner=inner, state=c.integer("mamba_d_state"), rank=rank, conv=c.integer("mamba_d_conv"),
            bias=c.flag("mamba_proj_bias"), conv_bias=c.flag("mamba_conv_bias", default=True), inner_norms=True,
            state_bits=_state_bits(c),
        ),
    }  # fmt: skip
    count = c.optional("num_experts") or 0
    period, offset = c.optional("expert_layer_period", minimum=1) or 2, c.optional("expert_layer_offset") or 0
    sparse = [count > 1 and i % period == offset for i in range(layers)]
    traits = Traits(mlp_bias=False, moe=True, expert_width="intermediate_size")
    feeds = {s: feed_forward(c, traits, hidden, sparse=s) for s in set(sparse)}
    keys = [("full attention" if a else "Mamba", s) for a, s in zip(_mixer_types(c, layers), sparse, strict=True)]
    all_layers = _build(keys, mixers, feeds, _norms(hidden))
    return assemble(c, all_layers, hidden=hidden, vocab=vocab, heads=heads, tied=c.flag("tie_word_embeddings"))


def falcon_h1(c: ConfigFields) -> Model:
    """Falcon-H1: attention and Mamba-2 side by side in every layer."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    bias = c.flag("attention_bias")
    tensors, mixer = attention(hidden, heads, kv_heads, head_dim, qkv_bias=bias, out_bias=bias)
    ssm, state = _mamba2(c, hidden, gated_norm=c.flag("mamba_rms_norm"))
    feed = mlp(hidden, c.integer("intermediate_size"), bias=c.flag("mlp_bias"))
    layer = Layer(
        (*_norms(hidden), *tensors, *ssm, *feed), mixer, None, 2, "full attention beside Mamba-2 + MLP", (state,)
    )
    return assemble(c, [layer] * layers, hidden=hidden, vocab=vocab, heads=heads, tied=c.flag("tie_word_embeddings"))


def mamba_only(c: ConfigFields) -> Model:
    """Mamba, Falcon-Mamba (Mamba-1) and Mamba-2: one block and one norm a layer, no attention at all."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    expand = c.optional("expand", minimum=1) or 2
    bias, conv_bias = c.flag("use_bias"), c.flag("use_conv_bias", default=True)
    state, conv = c.integer("state_size"), c.integer("conv_kernel")
    if c.model_type == "mamba2":
        head_dim = c.integer("head_dim")
        heads = c.optional("num_heads", minimum=1) or expand * hidden // head_dim
        block = mamba2(
            hidden, heads=heads, head_dim=head_dim, groups=c.integer("n_groups"), state=state, conv=conv, bias=bias,
            conv_bias=conv_bias, state_bits=_state_bits(c),
        )  # fmt: skip
    else:
        rank = _step_rank(c, "time_step_rank", hidden)
        inner = c.optional("intermediate_size", minimum=1) or expand * hidden
        block = mamba1(
            hidden, inner=inner, state=state, rank=rank, conv=conv, bias=bias, conv_bias=conv_bias,
            state_bits=_state_bits(c),
        )  # fmt: skip
    layer = Layer(
        (*_norms(hidden, 1), *block[0]), block[1], None, 1, "Mamba-2" if c.model_type == "mamba2" else "Mamba"
    )
    return assemble(
        c, [layer] * layers, hidden=hidden, vocab=vocab, heads=1,
        tied=c.flag("tie_word_embeddings", default=c.model_type != "mamba2"),
    )  # fmt: skip


def lfm2(c: ConfigFields) -> Model:
    """LFM2: gated short convolutions with a few attention layers; LFM2-MoE has experts after the leading layers."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    width = c.integer("intermediate_size")
    if c.model_type == "lfm2" and c.flag("block_auto_adjust_ff_dim", default=True):
        width = 2 * width // 3
        width = int(c.number("block_ffn_dim_multiplier", 1.0) * width)
        multiple = c.optional("block_multiple_of", minimum=1) or 256
        width = -(-width // multiple) * multiple
    mixers = {
        "full attention": attention(hidden, heads, kv_heads, head_dim, qk_norm="head"),
        "short convolution": short_conv(hidden, conv=c.integer("conv_L_cache"), bias=c.flag("conv_bias")),
    }
    sparse = dense_or_experts(c, layers) if c.find("num_experts") else [False] * layers
    feeds: dict[bool, tuple[tuple[Tensor, ...], MoE | None]] = {}
    if True in sparse:
        feeds[True] = experts(hidden, expert_spec(c, correction_bias=c.flag("use_expert_bias", default=True)))
    if False in sparse:
        feeds[False] = (mlp(hidden, width), None)
    keys = [
        ("full attention" if a else "short convolution", s)
        for a, s in zip(_mixer_types(c, layers), sparse, strict=True)
    ]
    all_layers = _build(keys, mixers, feeds, _norms(hidden))
    return assemble(
        c, all_layers, hidden=hidden, vocab=vocab, heads=heads, tied=c.flag("tie_word_embeddings", default=True)
    )


def minimax_lightning(c: ConfigFields) -> Model:
    """MiniMax-Text-01 and M1: lightning (linear) attention, every eighth layer full, experts everywhere."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    kinds = c.per_layer("attn_type_list", layers)
    attends = [bool(k) for k in kinds] if kinds is not None else _mixer_types(c, layers)
    mixers = {
        "full attention": attention(hidden, heads, kv_heads, head_dim),
        "lightning attention": lightning(hidden, heads=heads, head_dim=head_dim),
    }
    traits = Traits(mlp_bias=False, moe=True, expert_width="intermediate_size")
    feeds = {True: feed_forward(c, traits, hidden, sparse=True)}
    keys = [("full attention" if a else "lightning attention", True) for a in attends]
    all_layers = _build(keys, mixers, feeds, _norms(hidden))
    return assemble(c, all_layers, hidden=hidden, vocab=vocab, heads=heads, tied=c.flag("tie_word_embeddings"))


def recurrent_gemma(c: ConfigFields) -> Model:
    """RecurrentGemma: two gated linear recurrences, then one layer of windowed attention."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    width, conv = c.optional("lru_width", minimum=1) or hidden, c.integer("conv1d_width")
    window = c.integer("attention_window_size")
    bias = c.flag("attention_bias")
    recurrent = (
        linear("linear_y", width, hidden), vector("linear_y.bias", width, Shard.COLUMN),
        linear("linear_x", width, hidden), vector("linear_x.bias", width, Shard.COLUMN),
        linear("linear_out", hidden, width, Shard.ROW), vector("linear_out.bias", hidden),
        vector("conv_1d", width * conv + width, Shard.COLUMN),
        vector("recurrent_param", width, Shard.COLUMN),
        linear("gates", 2 * width, width // heads), vector("gates.bias", 2 * width, Shard.COLUMN),
    )  # fmt: skip
    mixers = {
        "windowed attention": attention(hidden, heads, kv_heads, head_dim, qkv_bias=bias, out_bias=True, window=window),
        "linear recurrence": (recurrent, fixed_state(width, (conv - 1) * width, 32, heads)),
    }
    feeds: dict[bool, tuple[tuple[Tensor, ...], MoE | None]] = {
        False: (mlp(hidden, c.integer("intermediate_size") // 2, bias=True), None)
    }
    kinds = c.find("block_types") or c.find("_block_types")
    if not isinstance(kinds, list) or not kinds:
        kinds = ["recurrent", "recurrent", "attention"]
    keys = [
        ("windowed attention" if kinds[i % len(kinds)] == "attention" else "linear recurrence", False)
        for i in range(layers)
    ]
    all_layers = _build(keys, mixers, feeds, _norms(hidden))
    return assemble(
        c, all_layers, hidden=hidden, vocab=vocab, heads=heads, tied=c.flag("tie_word_embeddings", default=True)
    )
