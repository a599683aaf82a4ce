"""The plain decoder: attention and a feed-forward block in each layer, described by one row of traits per family.

Llama, Qwen, Mistral, Gemma, Phi, OLMo, gpt-oss, their mixtures of experts and the classics from GPT-2 on differ
only in biases, norms, window patterns and widths. :mod:`.traits` states those differences; this builds them all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from gambrel.catalog.architectures.assemble import (
    assemble,
    dense_or_experts,
    expert_spec,
    layer_kinds,
    mtp_modules,
    num_layers,
)
from gambrel.catalog.architectures.blocks import attention, experts, mlp, norm, vector
from gambrel.core.formats import Role
from gambrel.core.model import Layer, Tensor

if TYPE_CHECKING:
    from gambrel.catalog.architectures.assemble import LayerKind
    from gambrel.catalog.architectures.blocks import Block
    from gambrel.catalog.config_fields import ConfigFields
    from gambrel.core.model import Model, MoE

__all__ = ["Traits", "attention_block", "decoder", "feed_forward", "ffn_width", "flag", "gqa_shape"]

Flag = bool | str
"""A constant, or the config field that decides (``!field`` for its negation; a class default fills it in)."""


@dataclass(frozen=True, slots=True)
class Traits:
    """How one family departs from Llama.

    ``norms`` counts norms of the hidden size per layer (negative: one fewer under a parallel residual);
    ``norm_bias`` makes them LayerNorms with biases; ``window`` is the built-in window pattern (``all``,
    ``alternate``, ``qwen``, ``chunk``, ``none``, or a period); ``gate`` is an attention output gate (``element``,
    ``head``); ``sinks`` is ``all`` or ``sliding``; ``sliding_heads`` and ``sliding_kv`` scale the head counts of
    windowed layers; ``positions`` is how many rows a learned position table has beyond the maximum context (None:
    no table); ``mtp_head`` says that each MTP module carries its own copy of embedding and head.
    """

    qkv_bias: Flag = "attention_bias"
    out_bias: Flag = "attention_bias"
    mlp_bias: Flag = "mlp_bias"
    gated: Flag = True
    qk_norm: str = ""
    qk_norm_if: Flag = True
    qk_norm_bias: bool = False
    gate: str = ""
    sinks: str = ""
    norms: int = 2
    norm_bias: Flag = False
    final_norm: bool = True
    head_bias: Flag = False
    parallel: Flag = False
    tied: bool = False
    window: str = "all"
    own_value_dim: bool = False
    sliding_heads: Fraction = Fraction(1)
    sliding_kv: int = 1
    moe: bool = False
    expert_width: str = "moe_intermediate_size"
    dense_width: str = "intermediate_size"
    default_width: int = 0
    expert_bias: bool = False
    router_bias: bool = False
    correction_bias: Flag = False
    shared_gate: bool = False
    shared_width: str = ""
    shared_default: int = 0
    positions: int | None = None
    embedding_norm: bool = False
    layer_vectors: int = 0
    mtp_head: bool = False
    mtp_default: int = 0


def flag(c: ConfigFields, value: Flag) -> bool:
    """What a trait says for this config."""
    if isinstance(value, bool):
        return value
    return not c.flag(value[1:]) if value.startswith("!") else c.flag(value)


def gqa_shape(c: ConfigFields, hidden: int) -> tuple[int, int, int]:
    """(query heads, KV heads, head width): h is ``head_dim`` when present, else d / a."""
    heads = c.integer("num_attention_heads")
    kv_heads = c.optional("num_key_value_heads", minimum=1) or heads
    head_dim = c.optional("head_dim", minimum=1)
    if head_dim is None:
        if hidden % heads:
            raise c.refuse(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}; head_dim is needed")
        head_dim = hidden // heads
    if heads % kv_heads:
        raise c.refuse(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    return heads, kv_heads, head_dim


def _sliding_shape(c: ConfigFields, t: Traits, heads: int, kv_heads: int, head_dim: int) -> tuple[int, int, int]:
    """The shape of windowed layers where it differs: explicit fields first, then the family's ratio."""
    other = c.section("attention_other_setting")
    own_heads = other.get("num_attention_heads") or c.find("num_sliding_attention_heads")
    own_heads = own_heads or c.find("swa_num_attention_heads")
    own_kv = other.get("num_attention_groups") or c.find("swa_num_key_value_heads")
    own_dim = other.get("head_dim") or c.find("swa_head_dim")
    if own_heads is None and t.sliding_heads != 1:
        own_heads = int(heads * t.sliding_heads)
        c.assume(f"windowed layers have {own_heads} query heads (of the published checkpoint; not in the config)")
    if own_kv is None and t.sliding_kv != 1:
        own_kv = kv_heads * t.sliding_kv
        c.assume(f"windowed layers have {own_kv} KV heads (of the published checkpoint; not in the config)")
    return (
        heads if own_heads is None else c.whole("query heads of windowed layers", own_heads),
        kv_heads if own_kv is None else c.whole("KV heads of windowed layers", own_kv),
        head_dim if own_dim is None else c.whole("head width of windowed layers", own_dim),
    )


def ffn_width(c: ConfigFields, t: Traits, hidden: int) -> int:
    """The dense width: the family's field, then the common one, then the family's multiple of d."""
    width = c.optional(t.dense_width, minimum=1) or c.optional("intermediate_size", minimum=1)
    if width is None:
        return t.default_width * hidden if t.default_width else c.integer("intermediate_size")
    return width


def feed_forward(c: ConfigFields, t: Traits, hidden: int, *, sparse: bool) -> tuple[tuple[Tensor, ...], MoE | None]:
    """The dense or expert block of one layer."""
    if not sparse:
        return mlp(hidden, ffn_width(c, t, hidden), gated=flag(c, t.gated), bias=flag(c, t.mlp_bias)), None
    width = c.integer(t.expert_width) if t.expert_width != "moe_intermediate_size" else None
    spec = expert_spec(
        c,
        width=width,
        shared_width=t.shared_width,
        shared_default=t.shared_default,
        bias=t.expert_bias,
        router_bias=t.router_bias,
        correction_bias=flag(c, t.correction_bias),
        gated=flag(c, t.gated),
    )
    return experts(hidden, replace(spec, shared_gate=t.shared_gate and spec.shared > 0))


def attention_block(
    c: ConfigFields, t: Traits, hidden: int, shape: tuple[int, int, int], window: int | None, *, sliding: bool
) -> Block:
    """The attention of one layer."""
    heads, kv_heads, head_dim = shape
    value_dim = None
    if t.own_value_dim:
        value_dim = (c.optional("swa_v_head_dim", minimum=1) if sliding else None) or c.optional(
            "v_head_dim", minimum=1
        )
    return attention(
        hidden, heads, kv_heads, head_dim, value_dim=value_dim,
        qkv_bias=flag(c, t.qkv_bias), out_bias=flag(c, t.out_bias),
        qk_norm=t.qk_norm if flag(c, t.qk_norm_if) else "", qk_norm_bias=t.qk_norm_bias,
        gate=t.gate, sinks=t.sinks == "all" or (t.sinks == "sliding" and sliding), window=window,
    )  # fmt: skip


def decoder(c: ConfigFields, t: Traits) -> Model:
    """A plain decoder with traits ``t``."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    shape = gqa_shape(c, hidden)
    norm_bias, parallel = flag(c, t.norm_bias), flag(c, t.parallel)
    kinds = layer_kinds(c, layers, t.window)
    has_experts = t.moe or (c.optional("num_experts") or 0) > 1
    sparse = dense_or_experts(c, layers) if has_experts else [False] * layers
    blocks = {s: feed_forward(c, t, hidden, sparse=s) for s in set(sparse)}
    count = t.norms if t.norms >= 0 else -t.norms - parallel
    norms = tuple(norm(f"norm {i}", hidden, bias=norm_bias) for i in range(count))
    scalars = (vector("activation scalars", t.layer_vectors),) if t.layer_vectors else ()
    built: dict[tuple[LayerKind, bool], Layer] = {}
    for kind, is_sparse in dict.fromkeys(zip(kinds, sparse, strict=True)):
        own = _sliding_shape(c, t, *shape) if kind.sliding else shape
        tensors, mixer = attention_block(c, t, hidden, own, kind.window, sliding=kind.sliding)
        feed, moe = blocks[is_sparse]
        label = f"{kind.name} attention + {'experts' if is_sparse else 'MLP'}"
        built[kind, is_sparse] = Layer((*norms, *tensors, *feed, *scalars), mixer, moe, 1 if parallel else 2, label)
    all_layers = [built[key] for key in zip(kinds, sparse, strict=True)]
    outside = []
    if t.positions is not None:
        outside.append(Tensor("position table", c.integer("max_position_embeddings") + t.positions, hidden,
                              Role.EMBEDDING))  # fmt: skip
    if t.embedding_norm:
        outside.append(norm("embedding norm", hidden, bias=norm_bias))
    return assemble(
        c, all_layers, hidden=hidden, vocab=vocab, heads=shape[0], outside=outside,
        tied=c.flag("tie_word_embeddings", default=t.tied),
        final_norm=0 if not t.final_norm else (2 if norm_bias else 1),
        head_bias=flag(c, t.head_bias),
        mtp=mtp_modules(c, all_layers[-1], default=t.mtp_default), mtp_copies=t.mtp_head,
    )  # fmt: skip
