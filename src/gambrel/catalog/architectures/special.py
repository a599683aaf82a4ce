"""Decoders that fit no table row.

Falcon's three generations, OPT, Gemma 3n and 4, Nemotron NAS, and the sparse attention of MiniMax M3 and DeepSeek V4.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gambrel.catalog.architectures.assemble import (
    NO_MIXER,
    assemble,
    dense_or_experts,
    expert_spec,
    layer_kinds,
    mtp_modules,
    num_layers,
)
from gambrel.catalog.architectures.blocks import attention, experts, linear, mlp, norm, vector
from gambrel.catalog.architectures.decoder import gqa_shape
from gambrel.catalog.architectures.latent import index_keys
from gambrel.core.formats import Role
from gambrel.core.model import Layer, Mixer, Shard, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.catalog.architectures.blocks import Block
    from gambrel.catalog.config_fields import ConfigFields
    from gambrel.core.model import Model, MoE

__all__ = ["deepseek_v4", "falcon", "gemma3n", "gemma4", "minimax_m3", "nemotron_nas", "opt"]


def falcon(c: ConfigFields) -> Model:
    """Falcon-7B (MQA, one norm), 40B and 180B (GQA, two norms), and the sequential first generation."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads = c.integer("num_attention_heads")
    stated_kv = c.optional("num_key_value_heads", minimum=1)
    new = c.flag("new_decoder_architecture", default=False)
    if not c.stated("new_decoder_architecture") and stated_kv and 1 < stated_kv < heads:
        new = True
        c.assume("new_decoder_architecture: true, because there are several KV heads (the config does not say)")
    if new:
        kv_heads = stated_kv or heads
    elif c.flag("multi_query", default=True):
        kv_heads = 1
    else:
        kv_heads = heads
    if hidden % heads or heads % kv_heads:
        raise c.refuse(f"hidden_size {hidden}, {heads} heads and {kv_heads} KV heads do not divide")
    bias = c.flag("bias")
    parallel = new or c.flag("parallel_attn", default=True)
    two = (c.optional("num_ln_in_parallel_attn") != 1) if new else not parallel
    tensors, mixer = attention(hidden, heads, kv_heads, hidden // heads, qkv_bias=bias, out_bias=bias)
    width = c.optional("intermediate_size", minimum=1) or 4 * hidden
    norms = tuple(norm(f"norm {i}", hidden, bias=True) for i in range(2 if two else 1))
    feed = mlp(hidden, width, gated=False, bias=bias)
    layer = Layer((*norms, *tensors, *feed), mixer, None, 1 if parallel else 2, "full attention + MLP")
    return assemble(
        c, [layer] * layers, hidden=hidden, vocab=vocab, heads=heads, final_norm=2,
        tied=c.flag("tie_word_embeddings", default=True),
    )  # fmt: skip


def opt(c: ConfigFields) -> Model:
    """OPT: learned positions with two extra rows; the 350M model embeds in a smaller width and norms after blocks."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    bias = c.flag("enable_bias", default=True)
    affine = c.flag("layer_norm_elementwise_affine", default=True)
    tensors, mixer = attention(hidden, heads, kv_heads, head_dim, qkv_bias=bias, out_bias=bias)
    norms = (norm("norm 0", hidden, bias=True), norm("norm 1", hidden, bias=True)) if affine else ()
    width = c.optional("intermediate_size", minimum=1) or 4 * hidden
    layer = Layer(
        (*norms, *tensors, *mlp(hidden, width, gated=False, bias=bias)), mixer, None, 2, "full attention + MLP"
    )
    embed = c.optional("word_embed_proj_dim", minimum=1) or hidden
    outside = [Tensor("position table", c.integer("max_position_embeddings", 2048) + 2, hidden, Role.EMBEDDING)]
    if embed != hidden:
        outside += [linear("project_in", hidden, embed), linear("project_out", embed, hidden)]
    before = c.flag("do_layer_norm_before", default=True) and not c.flag("_remove_final_layer_norm")
    return assemble(
        c, [layer] * layers, hidden=hidden, vocab=vocab, heads=heads, outside=outside,
        final_norm=2 if before and affine else 0, tied=c.flag("tie_word_embeddings", default=True), embedding_dim=embed,
    )  # fmt: skip


def _per_layer_inputs(c: ConfigFields, hidden: int, layers: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Gemma 3n and 4: (tensors outside the layers, tensors in each) of the per-layer embeddings."""
    width = c.optional("hidden_size_per_layer_input") or 0
    if not c.stated("hidden_size_per_layer_input") and c.model_type == "gemma4_text":
        c.assume(
            "no per-layer embeddings: hidden_size_per_layer_input is absent (0 in the published 26B and 31B files)"
        )
        width = 0
    if not width:
        return (), ()
    vocab = c.optional("vocab_size_per_layer_input", minimum=1) or c.integer("vocab_size")
    outside = (
        Tensor("embed_tokens_per_layer", vocab, layers * width, Role.EMBEDDING, Shard.REPLICATED),
        linear("per_layer_model_projection", layers * width, hidden, Shard.REPLICATED),
        vector("per_layer_projection_norm", width),
    )
    inside = (
        linear("per_layer_input_gate", width, hidden, Shard.REPLICATED),
        linear("per_layer_projection", hidden, width, Shard.REPLICATED),
        norm("post_per_layer_input_norm", hidden),
    )
    return outside, inside


def _reuses(c: ConfigFields, layers: int) -> list[bool]:
    """Which layers read the cache of an earlier one: the last ``num_kv_shared_layers``."""
    shared = c.optional("num_kv_shared_layers") or 0
    return [shared > 0 and i >= layers - shared for i in range(layers)]


def gemma3n(c: ConfigFields) -> Model:
    """Gemma 3n: per-layer embeddings, alternating updates over four streams, LAuReL, caches shared by late layers."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    streams, rank = c.integer("altup_num_inputs", 4), c.integer("laurel_rank", 64)
    outside, inputs = _per_layer_inputs(c, hidden, layers)
    outside = (
        *outside,
        linear("altup_projections", (streams - 1) * hidden, hidden, Shard.REPLICATED),
        linear("altup_unembed_projections", (streams - 1) * hidden, hidden, Shard.REPLICATED),
    )
    extra = (
        vector("altup.correct_output_scale", hidden),
        linear("altup.correction_coefs", streams, streams, Shard.REPLICATED),
        linear("altup.prediction_coefs", streams * streams, streams, Shard.REPLICATED),
        linear("altup.modality_router", streams, hidden, Shard.REPLICATED),
        norm("altup.router_norm", hidden),
        linear("laurel.linear_left", rank, hidden, Shard.REPLICATED),
        linear("laurel.linear_right", hidden, rank, Shard.REPLICATED),
        norm("laurel.post_laurel_norm", hidden),
    )
    norms = tuple(norm(f"norm {i}", hidden) for i in range(4))
    widths = c.per_layer("intermediate_size", layers)
    all_layers = []
    for i, (kind, reuse) in enumerate(zip(layer_kinds(c, layers, "5"), _reuses(c, layers), strict=True)):
        tensors, mixer = attention(
            hidden, heads, kv_heads, head_dim, qk_norm="head", window=kind.window, reads_earlier=reuse
        )
        width = c.integer("intermediate_size") if widths is None else c.whole("intermediate_size", widths[i])
        label = f"{kind.name} attention{' (shared cache)' if reuse else ''} + MLP"
        all_layers.append(Layer((*norms, *tensors, *mlp(hidden, width), *extra, *inputs), mixer, None, 2, label))
    return assemble(
        c, all_layers, hidden=hidden, vocab=vocab, heads=heads, outside=outside,
        tied=c.flag("tie_word_embeddings", default=True),
    )  # fmt: skip


def gemma4(c: ConfigFields) -> Model:
    """Gemma 4: wider heads in global layers, keys that serve as values, experts beside the MLP, shared caches."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    equal = c.flag("attention_k_eq_v")
    wide = c.optional("global_head_dim", minimum=1) or 512
    wide_kv = (c.optional("num_global_key_value_heads", minimum=1) if equal else None) or kv_heads
    bias = c.flag("attention_bias")
    outside, inputs = _per_layer_inputs(c, hidden, layers)
    norms = tuple(norm(f"norm {i}", hidden) for i in range(4))
    scalar = vector("layer_scalar", 1)
    routed: tuple[Tensor, ...] = ()
    moe: MoE | None = None
    if c.flag("enable_moe_block"):
        spec = expert_spec(c)
        feed, moe = experts(hidden, spec)
        routed = (
            *feed,
            vector("router.scale", hidden),
            vector("router.per_expert_scale", spec.num),
            *(norm(f"expert norm {i}", hidden) for i in range(3)),
        )
    width, double = c.integer("intermediate_size"), c.flag("use_double_wide_mlp")
    built: dict[tuple[Any, bool], Layer] = {}
    keys = list(zip(layer_kinds(c, layers, "6"), _reuses(c, layers), strict=True))
    for kind, reuse in dict.fromkeys(keys):
        tensors, mixer = attention(
            hidden, heads, kv_heads if kind.sliding else wide_kv, head_dim if kind.sliding else wide,
            qkv_bias=bias, out_bias=bias, qk_norm="head", window=kind.window,
            key_is_value=equal and not kind.sliding, reads_earlier=reuse,
        )  # fmt: skip
        feed = mlp(hidden, 2 * width if double and reuse else width)
        label = f"{kind.name} attention{' (shared cache)' if reuse else ''} + MLP{' and experts' if moe else ''}"
        built[kind, reuse] = Layer((*norms, *tensors, *feed, *routed, *inputs, scalar), mixer, moe, 2, label)
    return assemble(
        c, [built[key] for key in keys], hidden=hidden, vocab=vocab, heads=heads, outside=outside,
        tied=c.flag("tie_word_embeddings", default=True),
    )  # fmt: skip


def _nas_layer(c: ConfigFields, hidden: int, heads: int, block: Mapping[str, Any]) -> Layer:
    """One layer of a searched network: attention and FFN each full, linear or absent."""
    attend, ffn = block.get("attention") or {}, block.get("ffn") or {}
    if not hasattr(attend, "get") or not hasattr(ffn, "get"):
        raise c.refuse("block_configs entries must hold an attention and an ffn object")
    tensors: list[Tensor] = []
    mixer, names = NO_MIXER, []
    if not attend.get("no_op"):
        tensors.append(norm("input_layernorm", hidden))
        if attend.get("replace_with_linear"):
            tensors.append(linear("linear_attn", hidden, hidden, Shard.REPLICATED))
            names.append("linear layer")
        else:
            groups = c.whole("n_heads_in_group", attend.get("n_heads_in_group"))
            if heads % groups or hidden % heads:
                raise c.refuse(f"n_heads_in_group {groups} does not divide {heads} heads")
            window = attend.get("window_length")
            block_tensors, mixer = attention(
                hidden, heads, heads // groups, c.optional("head_dim", minimum=1) or hidden // heads,
                window=None if window is None else c.whole("window_length", window),
            )  # fmt: skip
            tensors += block_tensors
            names.append("attention")
    if not ffn.get("no_op"):
        tensors.append(norm("post_attention_layernorm", hidden))
        if ffn.get("replace_with_linear"):
            tensors.append(linear("linear_mlp", hidden, hidden, Shard.REPLICATED))
            names.append("linear layer")
        else:
            multiple = ffn.get("ffn_mult")
            if isinstance(multiple, bool) or not isinstance(multiple, int | float) or not 0 < multiple < 1024:
                raise c.refuse(f"ffn_mult must be a positive number, got {multiple!r}")
            width = int(2 * multiple * hidden / 3)
            width = -(-width // 256) * 256
            tensors += mlp(hidden, width)
            names.append(f"MLP {width}")
    return Layer(tuple(tensors), mixer, None, len(names), " + ".join(names) or "nothing")


def nemotron_nas(c: ConfigFields) -> Model:
    """Nemotron NAS (Super-49B, Ultra-253B): every layer as its ``block_configs`` entry says."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads = c.integer("num_attention_heads")
    blocks = c.per_layer("block_configs", layers)
    if blocks is None:
        raise c.refuse("config lacks block_configs")
    if not all(hasattr(b, "get") for b in blocks):
        raise c.refuse("block_configs entries must be objects")
    return assemble(
        c, [_nas_layer(c, hidden, heads, b) for b in blocks], hidden=hidden, vocab=vocab, heads=heads,
        tied=c.flag("tie_word_embeddings"),
    )  # fmt: skip


def _block_sparse(c: ConfigFields, hidden: int, dense: Block) -> tuple[tuple[Tensor, ...], Mixer, tuple[Mixer, ...]]:
    """``dense`` attention with MiniMax M3's selector: whole blocks of keys are read, one index key kept per token."""
    section = c.section("sparse_attention_config")

    def setting(own: str, field: str) -> int:
        value = section.get(field, c.find(own))
        if value is None:
            raise c.refuse(f"config lacks sparse_attention_config.{field} (or {own})")
        return c.whole(field, value)

    heads, dim = setting("index_n_heads", "sparse_num_index_heads"), setting("index_head_dim", "sparse_index_dim")
    block, blocks = setting("index_block_size", "sparse_block_size"), setting("index_topk_blocks", "sparse_topk_blocks")
    tensors, mixer = dense
    tensors = (
        *tensors,
        linear("index_q_proj", heads * dim, hidden, Shard.KV_HEADS),
        linear("index_k_proj", dim, hidden, Shard.REPLICATED),
        vector("index norms", 2 * dim),
    )
    return tensors, replace(mixer, top_k=block * blocks), (index_keys(heads, dim, fp8=False),)


def _indexed_layers(c: ConfigFields, layers: int) -> list[bool]:
    """Which layers of MiniMax M3 select."""
    section = c.section("sparse_attention_config")
    if section.get("use_sparse_attention") is False:
        return [False] * layers
    kinds = c.per_layer("layer_types", layers)
    if kinds is not None:
        return [k == "minimax_m3_sparse" for k in kinds]
    freq = section.get("sparse_attention_freq")
    if isinstance(freq, list) and len(freq) >= layers:
        return [bool(f) for f in freq[:layers]]
    return [False] * layers


def minimax_m3(c: ConfigFields) -> Model:
    """MiniMax M3: leading dense layers, then block-sparse attention whose selector keeps one key per token."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    dense = attention(hidden, heads, kv_heads, head_dim, qk_norm="head")
    norms = (norm("norm 0", hidden), norm("norm 1", hidden))
    keys = list(zip(dense_or_experts(c, layers), _indexed_layers(c, layers), strict=True))
    built: dict[tuple[bool, bool], Layer] = {}
    for is_sparse, is_indexed in dict.fromkeys(keys):
        tensors, mixer, side = _block_sparse(c, hidden, dense) if is_indexed else (*dense, ())
        moe: MoE | None = None
        if is_sparse:
            spec = expert_spec(c, width=c.integer("intermediate_size"), correction_bias=True)
            shared = c.optional("shared_intermediate_size")
            if shared is not None:
                count = c.optional("num_shared_experts")
                spec = replace(spec, shared=shared * (1 if count is None else count))
            feed, moe = experts(hidden, spec)
        else:
            feed = mlp(hidden, c.optional("dense_intermediate_size", minimum=1) or c.integer("intermediate_size"))
        label = f"{'block-sparse' if is_indexed else 'full'} attention + {'experts' if is_sparse else 'MLP'}"
        built[is_sparse, is_indexed] = Layer((*norms, *tensors, *feed), mixer, moe, 2, label, side)
    all_layers = [built[key] for key in keys]
    return assemble(
        c, all_layers, hidden=hidden, vocab=vocab, heads=heads, tied=c.flag("tie_word_embeddings"),
        mtp=mtp_modules(c, all_layers[-1]),
    )  # fmt: skip


def _v4_block(c: ConfigFields, hidden: int, ratio: int) -> tuple[tuple[Tensor, ...], Mixer, tuple[Mixer, ...]]:
    """DeepSeek V4 attention: a local window beside a history compressed ``ratio`` to one (0: window only)."""
    heads, dim, rank = c.integer("num_attention_heads"), c.integer("head_dim"), c.integer("q_lora_rank")
    groups, out_rank = c.integer("o_groups"), c.integer("o_lora_rank")
    window = c.integer("sliding_window")
    if heads * dim % groups:
        raise c.refuse(f"o_groups {groups} does not divide the attention width {heads * dim}")
    tensors = [
        vector("sinks", heads, Shard.COLUMN),
        linear("q_a_proj", rank, hidden, Shard.REPLICATED),
        vector("q_a_norm", rank),
        linear("q_b_proj", heads * dim, rank),
        linear("kv_proj", dim, hidden, Shard.REPLICATED),
        vector("kv_norm", dim),
        linear("o_a_proj", groups * out_rank, heads * dim // groups),
        linear("o_b_proj", hidden, groups * out_rank, Shard.ROW),
    ]
    pair = 4 * heads * dim

    def cache(elements: int, flops: int, **caps: int) -> Mixer:
        # keys are values: one vector of the head width per entry, shared by all heads and replicated over ranks
        return Mixer(kind="mqa", num_heads=heads, kv_heads=1, head_dim=dim, kv_elements=elements,
                     prefill_flops_per_pair=flops, decode_flops_per_pair=flops, **caps)  # fmt: skip

    local = cache(dim, pair, window=window)
    if not ratio:
        return tuple(tensors), local, ()
    fine = ratio <= 4  # the lightly compressed layers overlap two series and select with an indexer
    wide = 2 * dim if fine else dim
    tensors += [
        vector("compressor.position_bias", ratio * wide),
        linear("compressor.kv_proj", wide, hidden, Shard.REPLICATED),
        linear("compressor.gate_proj", wide, hidden, Shard.REPLICATED),
        vector("compressor.kv_norm", dim),
    ]
    if dim % ratio or pair % ratio:
        raise c.refuse(f"compress ratio {ratio} does not divide head_dim {dim}")
    if not fine:
        return tuple(tensors), cache(dim // ratio, pair // ratio), (local,)
    index_heads, index_dim = c.integer("index_n_heads"), c.integer("index_head_dim")
    tensors += [
        vector("indexer.position_bias", ratio * 2 * index_dim),
        linear("indexer.kv_proj", 2 * index_dim, hidden, Shard.REPLICATED),
        linear("indexer.gate_proj", 2 * index_dim, hidden, Shard.REPLICATED),
        vector("indexer.kv_norm", index_dim),
        linear("indexer.q_b_proj", index_heads * index_dim, rank, Shard.REPLICATED),
        linear("indexer.weights_proj", index_heads, hidden, Shard.REPLICATED),
    ]
    history = cache(dim // ratio, pair // ratio, top_k=c.integer("index_topk") * ratio)
    return tuple(tensors), history, (local, index_keys(index_heads, index_dim, per_entry=ratio))


def deepseek_v4(c: ConfigFields) -> Model:
    """DeepSeek V4: compressed attention, experts in every layer, four residual streams mixed by hyper-connections."""
    hidden, vocab, layers = c.integer("hidden_size"), c.integer("vocab_size"), num_layers(c)
    ratios = c.per_layer("compress_ratios", layers)
    rates = c.section("compress_rates")
    fine = c.whole("compress rate", rates.get("compressed_sparse_attention", 4))
    coarse = c.whole("compress rate", rates.get("heavily_compressed_attention", 128))
    if ratios is None:
        words = {"compressed_sparse_attention": fine, "heavily_compressed_attention": coarse}
        kinds = c.words("layer_types", layers)
        if kinds is not None:
            ratios = [words.get(k, 0) for k in kinds]
        else:
            ratios = [coarse if i < 2 or i % 2 == 0 else fine for i in range(layers)]
            c.assume("compress_ratios: two heavily compressed layers, then alternating (the published pattern)")
    streams = c.integer("hc_mult", 4)
    mix = (2 + streams) * streams
    hyper = vector("hyper-connections", 2 * (mix * streams * hidden + mix + 3), keep_bits=32)
    hashed = c.optional("num_hash_layers")
    hashed = 3 if hashed is None else hashed
    mlp_kinds = c.per_layer("mlp_layer_types", layers)
    by_hash = [k == "hash_moe" for k in mlp_kinds] if mlp_kinds else [i < hashed for i in range(layers)]
    norms = (norm("input_layernorm", hidden), norm("post_attention_layernorm", hidden))
    keys = [(c.whole("compress_ratios", r, minimum=0), h) for r, h in zip(ratios, by_hash, strict=True)]
    built: dict[tuple[int, bool], Layer] = {}

    def layer(ratio: int, *, hash_routed: bool) -> Layer:
        tensors, mixer, side = _v4_block(c, hidden, ratio)
        feed, moe = experts(hidden, expert_spec(c, correction_bias=not hash_routed))
        name = {0: "windowed", fine: "compressed sparse", coarse: "heavily compressed"}.get(ratio, f"1/{ratio}")
        label = f"{name} attention + experts{' by hash' if hash_routed else ''}"
        return Layer((*norms, *tensors, *feed, hyper), mixer, moe, 2, label, side)

    for ratio, hash_routed in dict.fromkeys(keys):
        built[ratio, hash_routed] = layer(ratio, hash_routed=hash_routed)
    outside = (vector("hyper-connection head", streams * streams * hidden + streams + 1, keep_bits=32),)
    return assemble(
        c, [built[k] for k in keys], hidden=hidden, vocab=vocab, heads=c.integer("num_attention_heads"),
        outside=outside, tied=c.flag("tie_word_embeddings"), mtp=mtp_modules(c, layer(0, hash_routed=False)),
    )  # fmt: skip
