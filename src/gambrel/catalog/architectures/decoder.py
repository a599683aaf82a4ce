"""The plain decoder: attention and a feed-forward block in each layer, described by one row of traits per family.

Llama, Qwen, Mistral, Gemma, Phi, OLMo, gpt-oss and their mixtures of experts differ only in biases, norms, window
patterns and expert widths. The table at the foot states those differences; one function builds them all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gambrel.catalog.architectures.assemble import (
    assemble,
    dense_or_experts,
    expert_spec,
    num_layers,
    windows,
)
from gambrel.catalog.architectures.blocks import attention, experts, mlp, norm
from gambrel.core.model import Layer, MoE, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.catalog.config_fields import ConfigFields
    from gambrel.core.model import Model

__all__ = ["TRAITS", "Traits", "decoder", "feed_forward", "gqa_shape"]

Flag = bool | str
"""A constant, or the config field that decides (``!field`` for its negation; a class default fills it in)."""


@dataclass(frozen=True, slots=True)
class Traits:
    """How one family departs from Llama.

    ``norms`` counts norms of the hidden size per layer; ``norm_bias`` makes them LayerNorms with biases;
    ``window`` is the built-in window pattern (``all``, ``alternate``, ``qwen``, a period, ``none``);
    ``experts`` lists traits of the expert block; ``expert_width`` names the field of its width.
    """

    qkv_bias: Flag = "attention_bias"
    out_bias: Flag = "attention_bias"
    mlp_bias: Flag = "mlp_bias"
    gated: Flag = True
    qk_norm: str = ""
    qk_norm_if: Flag = True
    qk_norm_bias: bool = False
    gate: str = ""
    sinks: bool = False
    norms: int = 2
    norm_bias: Flag = False
    final_norm: int = 1
    head_bias: Flag = False
    parallel: Flag = False
    tied: bool = False
    window: str = "all"
    moe: bool = False
    expert_width: str = "moe_intermediate_size"
    dense_width: str = "intermediate_size"
    expert_bias: bool = False
    router_bias: bool = False
    correction_bias: Flag = False
    shared_gate: bool = False
    shared_per_expert: bool = False
    mtp_head: bool = False


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


def feed_forward(c: ConfigFields, t: Traits, hidden: int, *, sparse: bool) -> tuple[tuple[Tensor, ...], MoE | None]:
    """The dense or expert block of one layer."""
    if sparse:
        width = c.integer(t.expert_width) if t.expert_width != "moe_intermediate_size" else None
        spec = expert_spec(
            c,
            width=width,
            shared_like_routed=t.shared_per_expert,
            bias=t.expert_bias,
            router_bias=t.router_bias,
            correction_bias=flag(c, t.correction_bias),
            gated=flag(c, t.gated),
        )
        spec = replace(spec, shared_gate=t.shared_gate and spec.shared > 0)
        return experts(hidden, spec)
    width = c.optional(t.dense_width, minimum=1) or c.integer("intermediate_size")
    return mlp(hidden, width, gated=flag(c, t.gated), bias=flag(c, t.mlp_bias)), None


def decoder(c: ConfigFields, t: Traits) -> Model:
    """A plain decoder with traits ``t``."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    norm_bias = flag(c, t.norm_bias)
    spans = windows(c, layers, t.window)
    has_experts = t.moe or (c.optional("num_experts") or 0) > 1
    sparse = dense_or_experts(c, layers) if has_experts else [False] * layers
    parallel = flag(c, t.parallel)
    blocks = {s: feed_forward(c, t, hidden, sparse=s) for s in set(sparse)}
    built: dict[tuple[int | None, bool], Layer] = {}
    for key in dict.fromkeys(zip(spans, sparse, strict=True)):
        span, is_sparse = key
        tensors, mixer = attention(
            hidden, heads, kv_heads, head_dim,
            qkv_bias=flag(c, t.qkv_bias), out_bias=flag(c, t.out_bias),
            qk_norm=t.qk_norm if flag(c, t.qk_norm_if) else "", qk_norm_bias=t.qk_norm_bias,
            gate=t.gate, sinks=t.sinks, window=span,
        )  # fmt: skip
        feed, moe = blocks[is_sparse]
        norms = tuple(norm(f"norm {i}", hidden, bias=norm_bias) for i in range(t.norms))
        label = ("windowed " if span else "full ") + "attention + " + ("experts" if is_sparse else "MLP")
        built[key] = Layer((*norms, *tensors, *feed), mixer, moe, 1 if parallel else 2, label)
    all_layers = [built[key] for key in zip(spans, sparse, strict=True)]
    modules = c.optional("num_mtp") or 0
    mtp = [all_layers[-1]] * modules
    own_copies = 2 * vocab * hidden if t.mtp_head else 0
    return assemble(
        c, all_layers, hidden=hidden, vocab=vocab, heads=heads,
        tied=c.flag("tie_word_embeddings", default=t.tied),
        final_norm=0 if not t.norms else (2 if norm_bias else t.final_norm),
        head_bias=flag(c, t.head_bias),
        mtp=mtp, mtp_params=modules * (all_layers[-1].params + 2 * hidden * hidden + 3 * hidden + own_copies),
    )  # fmt: skip


_LLAMA = Traits()
_QWEN2 = Traits(qkv_bias=True, out_bias=False, mlp_bias=False, window="qwen")
_QWEN3 = Traits(qk_norm="head", mlp_bias=False, window="qwen")
_GEMMA = Traits(tied=True, mlp_bias=False)

TRAITS: Final[Mapping[str, Traits]] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": Traits(qkv_bias=False, out_bias=False, mlp_bias=False),
        "mixtral": Traits(qkv_bias=False, out_bias=False, moe=True, expert_width="intermediate_size"),
        "qwen2": _QWEN2,
        "qwen2_moe": replace(_QWEN2, moe=True, shared_gate=True),
        "qwen3": _QWEN3,
        "qwen3_moe": replace(_QWEN3, moe=True),
        "gemma": _GEMMA,
        "gemma2": replace(_GEMMA, norms=4, window="alternate"),
        "gemma3_text": replace(_GEMMA, norms=4, qk_norm="head", window="6"),
        "gpt_oss": Traits(
            sinks=True, window="alternate", moe=True, expert_width="intermediate_size", expert_bias=True,
            router_bias=True,
        ),
        "phi3": Traits(qkv_bias=False, out_bias=False, mlp_bias=False),
        "olmo2": Traits(qk_norm="full", mlp_bias=False),
        "granite": _LLAMA,
        "smollm3": _LLAMA,
        "glm4_moe": Traits(
            out_bias=False, mlp_bias=False, qk_norm="head", qk_norm_if="use_qk_norm", moe=True, correction_bias=True,
            mtp_head=True,
        ),
        "minimax_m2": Traits(
            qkv_bias=False, out_bias=False, qk_norm="full", moe=True, expert_width="intermediate_size",
            correction_bias=True,
        ),
    }
)  # fmt: skip
