"""Reading a Hugging Face ``config.json``: one place that knows how many ways a field can be spelled or left out.

A config may nest its text part, spell a count five ways, and omit every field that equals the default of its
class. This reader answers "how many layers?" whatever the spelling, remembers what it had to assume, and names
the missing field when nothing suffices. Builders never touch the raw mapping.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gambrel.core.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ConfigFields"]

ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "model_dim", "embed_dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"),
    "num_key_value_heads": (
        "num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "num_query_groups", "multi_query_group_num",
        "num_attention_groups",
    ),
    "head_dim": ("head_dim", "attention_head_dim", "kv_channels", "attention_head_size"),
    "intermediate_size": (
        "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff", "intermediate_dim", "block_ff_dim",
    ),
    "vocab_size": ("vocab_size", "padded_vocab_size", "n_vocab"),
    "max_position_embeddings": (
        "max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "n_ctx", "max_sequence_length",
        "model_max_length",
    ),
    "num_experts": (
        "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts", "n_experts",
    ),
    "num_experts_per_tok": (
        "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_topk", "moe_top_k",
        "num_selected_experts", "moe_k",
    ),
    "moe_intermediate_size": (
        "moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size", "expert_intermediate_size",
    ),
    "num_shared_experts": ("num_shared_experts", "n_shared_experts", "num_shared_expert", "moe_num_shared_experts"),
    "shared_expert_intermediate_size": (
        "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "shared_intermediate_size",
        "share_expert_dim",
    ),
    "first_k_dense_replace": ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers"),
    "num_mtp": (
        "num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules", "mtp_num_layers", "num_mtp_layers",
    ),
    "tie_word_embeddings": ("tie_word_embeddings", "tie_embedding_weights", "tie_embeddings"),
    "sliding_window": ("sliding_window", "sliding_window_size", "window_size"),
}  # fmt: skip

WRAPPERS: Final[dict[str, str]] = {
    "gemma3": "gemma3_text", "gemma3n": "gemma3n_text", "gemma4": "gemma4_text", "gemma4_unified": "gemma4_text",
    "gemma4_unified_text": "gemma4_text", "llama4": "llama4_text", "mllama": "mllama_text_model",
    "mistral3": "mistral", "pixtral": "mistral", "llava": "llama", "llava_next": "llama", "internvl_chat": "qwen2",
    "qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2", "qwen2_5_vl": "qwen2", "qwen2_5_vl_text": "qwen2",
    "qwen2_5_omni_text": "qwen2", "qwen2_audio": "qwen2",
    "qwen3_vl": "qwen3", "qwen3_vl_text": "qwen3", "qwen3_vl_moe": "qwen3_moe", "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_omni_moe_text": "qwen3_moe", "qwen3_omni_moe_thinker": "qwen3_moe",
    "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text",
    "glm4v": "glm4", "glm4v_text": "glm4", "glm4v_moe": "glm4_moe", "glm4v_moe_text": "glm4_moe",
    "kimi_k25": "kimi_k2", "kimi_k3": "kimi_linear", "kimi_vl": "deepseek_v3", "deepseek_vl_v2": "deepseek_v2",
    "minimax_m3_vl": "minimax_m3_vl_text", "minimax_text_01": "minimax", "minimax_m1": "minimax",
    "step3p5": "step3p5", "step3p7": "step3p5", "step3p7_text": "step3p5",
    "falcon3": "llama", "refinedweb": "falcon", "refinedwebmodel": "falcon", "RefinedWeb": "falcon",
    "RefinedWebModel": "falcon", "deci": "nemotron-nas", "nemotron_nas": "nemotron-nas",
    "phi-msft": "phi", "phi4mm": "phi3", "phi4_multimodal": "phi3", "gpt-sw3": "gpt2", "lfm2_vl": "lfm2",
    "hunyuan": "hunyuan_v1_moe", "hunyuan_moe": "hunyuan_v1_moe", "iquestcoder": "llama",
    "aya_vision": "cohere2", "ernie4_5_moe_vl": "ernie4_5_moe", "exaone4_5_text": "exaone4",
}  # fmt: skip
"""Wrapper and alias types -> the type of the text decoder inside."""

_NESTS: Final = ("text_config", "language_config", "llm_config", "language_model_config", "thinker_config", "decoder")
_MISSING: Final = object()
_PRIMARY: Final = {
    "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size", "num_experts",
    "num_experts_per_tok", "moe_intermediate_size", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
    "v_head_dim",
}  # fmt: skip
"""Fields that published files always state, so that their absence is a mistake and not a class default ..."""
_OMITTING: Final = {
    "gemma3_text", "gemma3n_text", "gemma4_text", "gpt_oss", "glm4_moe", "llama4_text", "qwen3_next",
    "qwen3_5_text", "qwen3_5_moe_text",
}  # fmt: skip
"""... except in these families, whose files omit whatever equals the class default, and in nested text parts."""
_SHOWN: Final = 200
_LARGEST: Final = 1 << 40


def _short(value: Any) -> str:
    """``value`` for an error message: one line, not too long."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


class ConfigFields:
    """A config with its nesting flattened, its spellings unified and its class defaults filled in.

    ``nested`` tells whether the text part sat in its own mapping, where published files omit class defaults.
    """

    def __init__(self, raw: Mapping[str, Any], name: str, class_defaults: Mapping[str, Mapping[str, Any]]) -> None:
        if not hasattr(raw, "items"):
            raise CatalogError(f"{name}: config must be a JSON object, got {type(raw).__name__}")
        self.name = name
        self.raw = raw
        self.assumptions: list[str] = []
        text: Mapping[str, Any] = raw
        self.nested = False
        for _ in range(3):  # wrappers of wrappers exist (thinker_config.text_config)
            inner = next((text[k] for k in _NESTS if k in text and hasattr(text[k], "items")), None)
            if inner is None:
                break
            text, self.nested = inner, True
        self.text = text
        outer_type = raw.get("model_type")
        self.model_type = self._word(text.get("model_type") or outer_type)
        self.model_type = WRAPPERS.get(self.model_type, self.model_type)
        self.architecture = self._architecture(text) or self._architecture(raw)
        self.defaults: Mapping[str, Any] = class_defaults.get(self.model_type, {})

    def _word(self, value: Any) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            raise CatalogError(f"{self.name}: model_type must be a string, got {_short(value)}")
        return value

    @staticmethod
    def _architecture(config: Mapping[str, Any]) -> str:
        names = config.get("architectures")
        return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""

    # -- raw access -----------------------------------------------------------------------------------

    def find(self, field: str) -> Any:
        """The value under any spelling: text part, then wrapper, then class default; None when there is none.

        An explicit null means none, whatever the class default. Class defaults of primary shapes are used only
        where published files are known to omit them, and are recorded as assumptions.
        """
        spellings = ALIASES.get(field, (field,))
        nulled = False
        for place in (self.text, self.raw):
            for spelling in spellings:
                value = place.get(spelling)
                if value is not None:
                    return value
                nulled = nulled or spelling in place
        if nulled:  # an explicit null is an answer
            return None
        for spelling in spellings:
            value = self.defaults.get(spelling)
            if value is not None:
                if field in _PRIMARY:
                    if not (self.nested or self.model_type in _OMITTING):
                        return None
                    self.assume(f"{field} {value}: class default of {self.model_type}, absent from the config")
                return value
        return None

    def stated(self, field: str) -> bool:
        """Whether the file itself holds the field (possibly as null), not only the class default."""
        return any(s in place for place in (self.text, self.raw) for s in ALIASES.get(field, (field,)))

    def assume(self, sentence: str) -> None:
        """Record what had to be assumed; shown to the user with the model."""
        if sentence not in self.assumptions:
            self.assumptions.append(sentence)

    def refuse(self, sentence: str) -> CatalogError:
        """The error to raise: names the model and what is wrong."""
        line = f"{self.name}: {sentence}".replace("\n", " ")
        return CatalogError(line if len(line) <= 2 * _SHOWN else line[: 2 * _SHOWN - 3] + "...")

    # -- typed access ---------------------------------------------------------------------------------

    def integer(self, field: str, default: Any = _MISSING, *, minimum: int = 1) -> int:
        """A whole number of at least ``minimum``.

        Raises:
            CatalogError: it is absent and there is no default, or it is not such a number.
        """
        value = self.find(field)
        if value is None:
            if default is _MISSING:
                spelled = " or ".join(ALIASES.get(field, (field,))[:3])
                raise self.refuse(f"config lacks {spelled}" + self._about())
            return int(default)
        return self.whole(field, value, minimum=minimum)

    def _about(self) -> str:
        return f" (model_type {self.model_type!r})" if self.model_type else " (and has no model_type)"

    def whole(self, field: str, value: Any, *, minimum: int = 1) -> int:
        """``value`` as a whole number of at least ``minimum``, or one clear error; a list of equal ones is one."""
        if isinstance(value, list) and value and all(x == value[0] for x in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(f"{field} must be a whole number, got {_short(value)}")
        if value != value or value in {float("inf"), float("-inf")} or value != int(value):  # noqa: PLR0124 - NaN
            raise self.refuse(f"{field} must be a whole number, got {_short(value)}")
        if not minimum <= value <= _LARGEST:
            raise self.refuse(f"{field} must be a whole number of at least {minimum}, got {_short(value)}")
        return int(value)

    def optional(self, field: str, *, minimum: int = 0) -> int | None:
        """A whole number, or None when the field is absent or null."""
        value = self.find(field)
        return None if value is None else self.whole(field, value, minimum=minimum)

    def flag(self, field: str, *, default: bool = False) -> bool:
        """A boolean (0 and 1 pass)."""
        value = self.find(field)
        if value is None:
            return default
        if isinstance(value, bool) or (isinstance(value, int | float) and value in {0, 1}):
            return bool(value)
        raise self.refuse(f"{field} must be true or false, got {_short(value)}")

    def number(self, field: str, default: float) -> float:
        """A finite positive number."""
        value = self.find(field)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float(_LARGEST):
            raise self.refuse(f"{field} must be a positive number, got {_short(value)}")
        return float(value)

    def text_value(self, field: str) -> str:
        """A string, or an empty one when the field is absent or holds something else."""
        value = self.find(field)
        return value if isinstance(value, str) else ""

    def words(self, field: str, layers: int) -> list[str] | None:
        """A list of one word a layer, or None; entries that are not words are empty."""
        values = self.per_layer(field, layers)
        return None if values is None else [v if isinstance(v, str) else "" for v in values]

    def section(self, field: str) -> Mapping[str, Any]:
        """A nested mapping, empty when absent."""
        value = self.find(field)
        if value is None:
            return {}
        if not hasattr(value, "items"):
            raise self.refuse(f"{field} must be an object, got {_short(value)}")
        return value  # type: ignore[no-any-return]  # JSON is untyped

    def per_layer(self, field: str, layers: int) -> Sequence[Any] | None:
        """A list with one entry a layer, or None; a longer one is cut (it may describe MTP layers too)."""
        value = self.find(field)
        if value is None or isinstance(value, int | float | str):
            return None
        if not isinstance(value, list | tuple):
            raise self.refuse(f"{field} must be a list with one entry per layer, got {_short(value)}")
        if len(value) < layers:
            raise self.refuse(f"{field} has {len(value)} entries for {layers} layers")
        return value[:layers]
