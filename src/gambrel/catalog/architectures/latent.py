"""Decoders with multi-head latent attention: DeepSeek V2 to V3.2, Kimi K2, GLM-4.7-Flash, GLM-5, MiniCPM3, LongCat.

From V3.2 on a small selector (the lightning indexer) scores every cached token with its own low-dimensional key and
the attention proper reads only the best ``index_topk`` of them: capacity as before, reads and FLOPs capped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gambrel.catalog.architectures.assemble import assemble, dense_or_experts, expert_spec, mtp_modules, num_layers
from gambrel.catalog.architectures.blocks import Block, experts, latent_attention, linear, mlp, norm, vector
from gambrel.core.model import Layer, Mixer, Shard

if TYPE_CHECKING:
    from gambrel.catalog.config_fields import ConfigFields
    from gambrel.core.model import Model, MoE, Tensor

__all__ = ["deepseek", "index_keys", "latent_block", "longcat"]


def latent_block(c: ConfigFields, hidden: int, heads: int, *, gate: bool = False, top_k: int | None = None) -> Block:
    """The MLA of a config."""
    return latent_attention(
        hidden,
        heads,
        kv_rank=c.integer("kv_lora_rank"),
        nope=c.integer("qk_nope_head_dim"),
        rope=c.integer("qk_rope_head_dim"),
        value=c.integer("v_head_dim"),
        q_rank=c.optional("q_lora_rank") or None,
        qkv_bias=c.flag("attention_bias"),
        gate=gate,
        top_k=top_k,
    )


def index_keys(heads: int, dim: int, *, per_entry: int = 1, fp8: bool = True) -> Mixer:
    """The selector's cache: one key of ``dim`` numbers per entry of ``per_entry`` tokens, all of it read every step.

    DeepSeek's is stored in fp8 with an fp32 scale per 128 numbers, whatever the KV format: 132 bytes for 128.
    """
    pair = 2 * heads * dim
    return Mixer(
        kind="index",
        num_heads=heads,
        kv_heads=1,
        head_dim=dim,
        kv_elements=-(-dim // per_entry),
        own_bytes=-(-(dim + 4 * -(-dim // 128)) // per_entry) if fp8 else None,
        prefill_flops_per_pair=-(-pair // per_entry),
        decode_flops_per_pair=-(-pair // per_entry),
    )


def _indexer(c: ConfigFields, hidden: int) -> Block:
    """DeepSeek sparse attention's lightning indexer."""
    heads, dim, rank = c.integer("index_n_heads"), c.integer("index_head_dim"), c.integer("q_lora_rank")
    tensors = (
        linear("indexer.wq_b", heads * dim, rank, Shard.REPLICATED),
        linear("indexer.wk", dim, hidden, Shard.REPLICATED),
        vector("indexer.k_norm", 2 * dim),
        linear("indexer.weights_proj", heads, hidden, Shard.REPLICATED),
    )
    return tensors, index_keys(heads, dim)


def _indexed(c: ConfigFields, layers: int) -> list[bool]:
    """Which layers run their own indexer; the others reuse the selection of an earlier layer."""
    kinds = c.per_layer("indexer_types", layers)
    if kinds is not None:
        return [k == "full" for k in kinds]
    pattern = c.find("index_topk_pattern")
    if isinstance(pattern, str) and len(pattern) >= layers:
        return [x.upper() == "F" for x in pattern[:layers]]
    freq = c.optional("index_topk_freq", minimum=1) or 1
    offset = c.optional("index_skip_topk_offset")
    offset = 2 if offset is None else offset
    return [max(i - offset + 1, 0) % freq == 0 for i in range(layers)]


def deepseek(c: ConfigFields) -> Model:
    """DeepSeek V2 to V3.2 and their kin: MLA, leading dense layers, routed and shared experts, perhaps an indexer."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads = c.integer("num_attention_heads")
    top_k = c.optional("index_topk", minimum=1)
    tensors, mixer = latent_block(c, hidden, heads, top_k=top_k)
    norms = (norm("input_layernorm", hidden), norm("post_attention_layernorm", hidden))
    sparse = dense_or_experts(c, layers) if c.find("num_experts") else [False] * layers
    indexed = _indexed(c, layers) if top_k else [False] * layers
    correction = c.model_type != "deepseek_v2"

    def layer(*, is_sparse: bool, own_index: bool) -> Layer:
        feed: tuple[Tensor, ...]
        moe: MoE | None = None
        if is_sparse:
            feed, moe = experts(hidden, expert_spec(c, correction_bias=correction))
        else:
            feed = mlp(hidden, c.integer("intermediate_size"))
        index, keys = _indexer(c, hidden) if own_index else ((), None)
        kind = "sparse MLA" if top_k else "MLA"
        label = f"{kind}{' with indexer' if own_index else ''} + {'experts' if is_sparse else 'MLP'}"
        return Layer((*norms, *tensors, *index, *feed), mixer, moe, 2, label, (keys,) if keys else ())

    keys = list(zip(sparse, indexed, strict=True))
    built = {key: layer(is_sparse=key[0], own_index=key[1]) for key in set(keys)}
    all_layers = [built[key] for key in keys]
    return assemble(
        c, all_layers, hidden=hidden, vocab=vocab, heads=heads, tied=c.flag("tie_word_embeddings"),
        mtp=mtp_modules(c, all_layers[-1]), mtp_copies=True,
    )  # fmt: skip


def longcat(c: ConfigFields) -> Model:
    """LongCat-Flash: two MLA and two dense MLPs in each layer, one shortcut expert block, zero-computation experts."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads = c.integer("num_attention_heads")
    tensors, mixer = latent_block(c, hidden, heads)
    dense = mlp(hidden, c.integer("intermediate_size"))
    zero = c.optional("zero_expert_num") or 0
    spec = expert_spec(c, width=c.integer("moe_intermediate_size"), correction_bias=True)
    feed, moe = experts(hidden, spec)
    if zero:
        c.assume(f"each token is charged all {spec.top_k} experts; some fall on the {zero} zero-computation experts")
        feed = (
            *feed,
            linear("router of zero experts", zero, hidden, Shard.REPLICATED),
            vector("router.zero_bias", zero, keep_bits=32),
        )
    norms = tuple(norm(f"norm {i}", hidden) for i in range(4))
    layer = Layer(
        (*norms, *tensors, *tensors, *dense, *dense, *feed), mixer, moe, 4, "2 MLA + 2 MLP + experts", (mixer,)
    )
    return assemble(
        c, [layer] * layers, hidden=hidden, vocab=vocab, heads=heads, tied=c.flag("tie_word_embeddings"),
    )  # fmt: skip
