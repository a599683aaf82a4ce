"""Decoders with multi-head latent attention: DeepSeek V2, V3, R1, V3.2, Kimi K2, GLM-5."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gambrel.catalog.architectures.assemble import assemble, dense_or_experts, expert_spec, num_layers
from gambrel.catalog.architectures.blocks import Block, experts, latent_attention, linear, mlp, norm
from gambrel.core.model import Layer, Mixer, MoE, Shard, Tensor

if TYPE_CHECKING:
    from gambrel.catalog.config_fields import ConfigFields
    from gambrel.core.model import Model

__all__ = ["deepseek", "latent_block"]


def latent_block(c: ConfigFields, hidden: int, heads: int, *, gate: bool = False, top_k: int | None = None) -> Block:
    """The MLA of a config."""
    return latent_attention(
        hidden,
        heads,
        kv_rank=c.integer("kv_lora_rank"),
        nope=c.integer("qk_nope_head_dim"),
        rope=c.integer("qk_rope_head_dim"),
        value=c.integer("v_head_dim"),
        q_rank=c.optional("q_lora_rank", minimum=1) if c.find("q_lora_rank") else None,
        qkv_bias=c.flag("attention_bias"),
        gate=gate,
        top_k=top_k,
    )


def deepseek(c: ConfigFields) -> Model:
    """DeepSeek V2 to V3.2 and its kin: MLA, leading dense layers, routed and shared experts."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads = c.integer("num_attention_heads")
    correction = c.model_type not in {"deepseek_v2"}
    tensors, mixer = latent_block(c, hidden, heads)
    norms = (norm("input_layernorm", hidden), norm("post_attention_layernorm", hidden))
    routed = (c.optional("num_experts") or 0) > 0
    sparse = dense_or_experts(c, layers) if routed else [False] * layers

    def layer(is_sparse: bool) -> Layer:
        feed: tuple[Tensor, ...]
        moe: MoE | None = None
        if is_sparse:
            feed, moe = experts(hidden, expert_spec(c, correction_bias=correction))
        else:
            feed = mlp(hidden, c.integer("intermediate_size"))
        return Layer((*norms, *tensors, *feed), mixer, moe, 2, "MLA + " + ("experts" if is_sparse else "MLP"))

    built = {s: layer(s) for s in set(sparse)}
    all_layers = [built[s] for s in sparse]
    modules = c.optional("num_mtp") or 0
    mtp = [all_layers[-1]] * modules
    extra = all_layers[-1].params + 2 * hidden * hidden + 3 * hidden + 2 * vocab * hidden
    return assemble(
        c, all_layers, hidden=hidden, vocab=vocab, heads=heads, tied=c.flag("tie_word_embeddings"),
        mtp=mtp, mtp_params=modules * extra,
    )  # fmt: skip
