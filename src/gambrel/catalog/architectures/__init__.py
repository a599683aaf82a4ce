"""From a config to a Model: one builder per architecture family, found by ``model_type`` in a plain dict.

A type that is not in the dict is recognised by its class name, or computed from its fields when they suffice, with
the assumptions recorded in the Model; otherwise it is refused with the reason.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from gambrel.catalog.architectures import hybrid, special
from gambrel.catalog.architectures.assemble import assemble, layer_kinds, num_layers
from gambrel.catalog.architectures.blocks import attention
from gambrel.catalog.architectures.decoder import Traits, decoder, gqa_shape
from gambrel.catalog.architectures.latent import deepseek, longcat
from gambrel.catalog.architectures.traits import TRAITS
from gambrel.core.model import Layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.catalog.config_fields import ConfigFields
    from gambrel.core.model import Model

__all__ = ["BUILDERS", "build"]

_RECURRENT: Final = (
    "mamba_d_state", "ssm_state_size", "state_size", "linear_attn_config", "conv_L_cache", "lru_width",
    "time_step_rank", "attention_hidden_size", "mlstm_round_up_to_multiple_of", "linear_head_dim",
)  # fmt: skip
_SUFFIXES: Final = ("forcausallm", "forconditionalgeneration", "lmheadmodel", "lm")


def build(c: ConfigFields) -> Model:
    """The Model of a config.

    Raises:
        CatalogError: a needed field is missing or impossible, or the architecture cannot be computed.
    """
    if c.find("is_encoder_decoder") is True:
        raise c.refuse("an encoder-decoder model; gambrel computes decoder-only models")
    builder = BUILDERS.get(c.model_type) or _by_class(c)
    if _attention_only(c):
        return _attention_sketch(c)
    return builder(c) if builder is not None else _from_fields(c)


def _by_class(c: ConfigFields) -> Callable[[ConfigFields], Model] | None:
    """The builder whose name is in the class name, as in ``LlamaForCausalLM``."""
    name = c.architecture.lower()
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    if not name:
        return None
    for kind, builder in BUILDERS.items():
        if name in {kind.replace("_", "").replace("-", ""), kind.removesuffix("_text").replace("_", "")}:
            c.assume(f"model_type {c.model_type!r} is read as {kind}, by its class {c.architecture}")
            return builder
    return None


def _attention_only(c: ConfigFields) -> bool:
    """Whether the config describes attention and nothing else: no vocabulary and no feed-forward width."""
    if c.nested or c.find("vocab_size") is not None or c.find("num_experts"):
        return False
    widths = ("intermediate_size", "moe_intermediate_size")
    return not any(c.stated(w) for w in widths) and c.find("num_attention_heads") is not None


def _attention_sketch(c: ConfigFields) -> Model:
    """The attention of a config that says nothing else: its KV figures are complete, its parameters are not."""
    hidden, layers = c.integer("hidden_size"), num_layers(c)
    heads, kv_heads, head_dim = gqa_shape(c, hidden)
    c.assume("vocab_size and intermediate_size are missing: only the KV figures hold; parameters count attention alone")
    all_layers = []
    for kind in layer_kinds(c, layers):
        tensors, mixer = attention(hidden, heads, kv_heads, head_dim, window=kind.window)
        all_layers.append(Layer(tensors, mixer, None, 1, f"{kind.name} attention"))
    return assemble(c, all_layers, hidden=hidden, vocab=0, tied=True, heads=heads, final_norm=0)


def _from_fields(c: ConfigFields) -> Model:
    """A decoder of unknown type, from its fields alone."""
    kind = repr(c.model_type) if c.model_type else "no model_type"
    if c.find("kv_lora_rank") and c.find("qk_nope_head_dim"):
        c.assume(f"unknown architecture ({kind}): read as DeepSeek-like, because it has kv_lora_rank")
        return deepseek(c)
    if c.find("linear_num_value_heads"):
        c.assume(f"unknown architecture ({kind}): read as Qwen3-Next-like, because it has linear_num_value_heads")
        return hybrid.qwen_next(c)
    found = next((f for f in _RECURRENT if c.find(f) is not None), None)
    if found:
        raise c.refuse(f"unknown architecture ({kind}) with recurrent layers ({found}); its shapes cannot be inferred")
    c.assume(
        f"unknown architecture ({kind}): read as a Llama-like decoder (two RMS norms, gated MLP, biases and "
        "query/key norms only where a field says so)"
    )
    traits = Traits(
        qkv_bias="qkv_bias" if c.find("qkv_bias") is not None else "attention_bias",
        mlp_bias="mlp_bias" if c.find("mlp_bias") is not None else "use_bias",
        window="qwen" if c.find("max_window_layers") is not None else "all",
    )
    for field in ("use_qk_norm", "qk_norm", "qk_layernorm"):
        if c.flag(field):
            traits = replace(traits, qk_norm="head")
    return decoder(c, traits)


BUILDERS: Final[dict[str, Callable[[ConfigFields], Model]]] = {
    **{name: partial(decoder, t=traits) for name, traits in TRAITS.items()},
    "bamba": hybrid.mamba_with_attention,
    "deepseek_v2": deepseek,
    "deepseek_v3": deepseek,
    "deepseek_v32": deepseek,
    "deepseek_v4": special.deepseek_v4,
    "falcon": special.falcon,
    "falcon_h1": hybrid.falcon_h1,
    "falcon_mamba": hybrid.mamba_only,
    "gemma3n_text": special.gemma3n,
    "gemma4_text": special.gemma4,
    "glm4_moe_lite": deepseek,
    "glm_moe_dsa": deepseek,
    "granitemoehybrid": hybrid.mamba_with_attention,
    "jamba": hybrid.jamba,
    "kimi_k2": deepseek,
    "kimi_linear": hybrid.kimi_linear,
    "lfm2": hybrid.lfm2,
    "lfm2_moe": hybrid.lfm2,
    "longcat_flash": longcat,
    "mamba": hybrid.mamba_only,
    "mamba2": hybrid.mamba_only,
    "minicpm3": deepseek,
    "minimax": hybrid.minimax_lightning,
    "minimax_m3": special.minimax_m3,
    "minimax_m3_vl_text": special.minimax_m3,
    "nemotron-nas": special.nemotron_nas,
    "nemotron_h": hybrid.nemotron_h,
    "olmo_hybrid": hybrid.qwen_next,
    "opt": special.opt,
    "qwen3_5_moe_text": hybrid.qwen_next,
    "qwen3_5_text": hybrid.qwen_next,
    "qwen3_next": hybrid.qwen_next,
    "recurrent_gemma": hybrid.recurrent_gemma,
    "youtu": deepseek,
}
