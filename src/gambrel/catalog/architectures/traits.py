"""What distinguishes each plain decoder family from Llama: one row each, checked against the reference classes.

Every row was verified by building the reference implementation (transformers 5.23.0) without weights and comparing
its parameter count with ours, to the integer.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gambrel.catalog.architectures.decoder import Traits

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TRAITS"]

_LLAMA = Traits()
_NO_BIAS = Traits(qkv_bias=False, out_bias=False, mlp_bias=False)
_QWEN2 = Traits(qkv_bias=True, out_bias=False, mlp_bias=False, window="qwen")
_QWEN3 = Traits(qk_norm="head", mlp_bias=False, window="qwen")
_GEMMA = Traits(tied=True, mlp_bias=False)
_OLMO2 = Traits(qk_norm="full", mlp_bias=False)
_COHERE = Traits(mlp_bias=False, norms=1, qk_norm="heads", qk_norm_if="use_qk_norm", tied=True, parallel=True)
_GLM = Traits(out_bias=False, mlp_bias=False)
_ERNIE = Traits(qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", tied=True)
_GPT = Traits(
    qkv_bias=True, out_bias=True, mlp_bias=True, gated=False, norm_bias=True, tied=True, window="none", positions=0,
    default_width=4,
)  # fmt: skip
_GPTJ = replace(
    _GPT, qkv_bias=False, out_bias=False, norms=1, tied=False, positions=None, head_bias=True, parallel=True
)
_DEEP = Traits(mlp_bias=False, qk_norm="head", moe=True, correction_bias=True)

TRAITS: Final[Mapping[str, Traits]] = MappingProxyType(
    {
        # Llama and what is shaped like it
        "llama": _LLAMA,
        "code_llama": _LLAMA,
        "granite": _LLAMA,
        "granitemoe": Traits(mlp_bias=False, moe=True, expert_width="intermediate_size"),
        "granitemoeshared": Traits(
            mlp_bias=False, moe=True, expert_width="intermediate_size", shared_width="shared_intermediate_size"
        ),
        "granite_swa": replace(_LLAMA, sinks="all"),
        "granitemoe_swa": Traits(mlp_bias=False, sinks="all", moe=True, expert_width="intermediate_size"),
        "hyperclovax": replace(_LLAMA, norms=4),
        "smollm3": replace(_LLAMA, window="qwen"),
        "internlm3": replace(_LLAMA, qkv_bias="qkv_bias", out_bias="bias", mlp_bias="bias"),
        "seed_oss": replace(_LLAMA, out_bias="attention_out_bias"),
        "arcee": replace(_LLAMA, gated=False),
        "helium": replace(_LLAMA, out_bias=False),
        "cwm": replace(_NO_BIAS, window="4"),
        "apertus": replace(_LLAMA, mlp_bias=False, gated=False, qk_norm="head", layer_vectors=2),
        "nanochat": Traits(mlp_bias=False, gated=False, norms=0, final_norm=False),
        "nemotron": Traits(gated=False, norm_bias=True),
        # Mistral
        "mistral": _NO_BIAS,
        "ministral": _NO_BIAS,
        "ministral3": _NO_BIAS,
        "mixtral": replace(_NO_BIAS, moe=True, expert_width="intermediate_size"),
        # Qwen and its kin
        "qwen2": _QWEN2,
        "qwen2_moe": replace(_QWEN2, qkv_bias="qkv_bias", moe=True, shared_gate=True),
        "qwen3": _QWEN3,
        "qwen3_moe": replace(_QWEN3, moe=True),
        "mimo": replace(_QWEN2, qkv_bias="attention_bias"),
        "mimo_v2_flash": Traits(
            out_bias=False, mlp_bias=False, window="mimo", own_value_dim=True, sliding_kv=2, sinks="sliding", moe=True,
            correction_bias=True,
        ),
        # Google
        "gemma": _GEMMA,
        "gemma2": replace(_GEMMA, norms=4, window="alternate"),
        "gemma3_text": replace(_GEMMA, norms=4, qk_norm="head", window="6"),
        "vaultgemma": replace(_GEMMA, window="alternate"),
        # OpenAI
        "gpt_oss": Traits(
            sinks="all", window="alternate", moe=True, expert_width="intermediate_size", expert_bias=True,
            router_bias=True,
        ),
        "gpt2": _GPT,
        # Microsoft
        "phi3": _NO_BIAS,
        "phi": Traits(
            qkv_bias=True, out_bias=True, mlp_bias=True, gated=False, norms=1, norm_bias=True, head_bias=True,
            parallel=True, qk_norm="head", qk_norm_if="qk_layernorm", qk_norm_bias=True, window="none",
            default_width=4,
        ),
        "phimoe": Traits(
            mlp_bias=False, norm_bias=True, head_bias="lm_head_bias", moe=True, expert_width="intermediate_size"
        ),
        # Ai2
        "olmo": Traits(mlp_bias=False, norms=0, final_norm=False, window="none"),
        "olmo2": replace(_OLMO2, window="none"),
        "olmo3": replace(_OLMO2, window="4"),
        "olmoe": replace(_OLMO2, window="none", moe=True, expert_width="intermediate_size"),
        "flex_olmo": replace(_OLMO2, window="none", moe=True, expert_width="intermediate_size"),
        # Cohere
        "cohere": replace(_COHERE, window="none"),
        "cohere2": replace(_COHERE, qk_norm="", window="4"),
        "cohere2_moe": replace(_COHERE, qk_norm="", window="4", moe=True, expert_width="intermediate_size"),
        # Z.ai
        "glm": _GLM,
        "glm4": replace(_GLM, norms=4),
        "glm4_moe": replace(
            _GLM, qk_norm="head", qk_norm_if="use_qk_norm", moe=True, correction_bias=True, mtp_head=True
        ),
        # MiniMax
        "minimax_m2": Traits(
            qkv_bias=False, out_bias=False, mlp_bias=False, qk_norm="full", qk_norm_if="use_qk_norm", moe=True,
            expert_width="intermediate_size", correction_bias=True, window="none",
        ),
        # Meta
        "llama4_text": Traits(
            mlp_bias=False, window="chunk", moe=True, expert_width="intermediate_size",
            dense_width="intermediate_size_mlp", shared_default=1,
        ),
        # others with experts
        "ernie4_5": _ERNIE,
        "ernie4_5_moe": replace(_ERNIE, moe=True, correction_bias=True),
        "dots1": _DEEP,
        "exaone_moe": replace(_DEEP, qkv_bias=False, out_bias=False, window="4"),
        "hy_v3": replace(_DEEP, window="none"),
        "solar_open": replace(_DEEP, qk_norm=""),
        "laguna": replace(_DEEP, gate="head"),
        "afmoe": replace(_DEEP, norms=4, gate="element", window="4"),
        "step3p5": replace(
            _DEEP, gate="head", window="4", sliding_heads=Fraction(3, 2), shared_width="share_expert_dim",
            shared_default=1,
        ),
        "hunyuan_v1_dense": Traits(mlp_bias=False, qk_norm="head", tied=True, window="none"),
        "hunyuan_v1_moe": Traits(
            mlp_bias=False, qk_norm="head", moe=True, window="none", expert_width="intermediate_size", shared_default=1
        ),
        "exaone4": Traits(qkv_bias=False, out_bias=False, mlp_bias=False, qk_norm="head", window="4"),
        # the classics
        "gpt_bigcode": _GPT,
        "gpt_neo": replace(_GPT, qkv_bias=False, window="alternate_global"),
        "gpt_neox": replace(
            _GPT, qkv_bias="attention_bias", out_bias="attention_bias", tied=False, positions=None,
            parallel="use_parallel_residual",
        ),
        "gptj": _GPTJ,
        "codegen": _GPTJ,
        "bloom": replace(_GPT, positions=None, embedding_norm=True),
        "biogpt": replace(_GPT, positions=2),
        "xglm": replace(_GPT, positions=None),
        "mpt": replace(
            _GPT, qkv_bias="!no_bias", out_bias="!no_bias", mlp_bias="!no_bias", norm_bias="!no_bias", positions=None
        ),
        "persimmon": replace(_GPT, tied=False, positions=None, qk_norm="head", qk_norm_bias=True),
        "starcoder2": Traits(
            qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", gated=False, norm_bias=True, tied=True
        ),
        "stablelm": Traits(
            qkv_bias="use_qkv_bias", out_bias=False, mlp_bias=False, norms=-2, norm_bias=True,
            parallel="use_parallel_residual", qk_norm="heads", qk_norm_if="qk_layernorm", window="none",
        ),
    }
)  # fmt: skip
