"""What plain logs call things, by meaning: the first name that a log has is taken, ignoring case and punctuation.

Sources: the response usage of OpenAI-compatible servers, LiteLLM's spend table, Langfuse and Helicone exports,
OpenTelemetry's generative-AI attributes, and the traces that have readers of their own.
"""

from __future__ import annotations

__all__ = ["SYNONYMS", "as_column", "fold", "meaning_of"]

SYNONYMS: dict[str, tuple[str, ...]] = {
    "arrival_s": (
        "arrival_s",
        "arrived_at",
        "arrival_time",
        "arrival",
        "timestamp_s",
        "timestamp",
        "request_created_at",
        "created_at",
        "start_time",
        "request_time",
        "request_start_time",
        "time",
        "created",
        "ts",
        "datetime",
        "date",
    ),
    "arrival_ms": ("arrival_ms", "arrival_time_ms", "timestamp_ms", "start_time_ms"),
    "arrival_us": ("arrival_us", "arrival_time_us", "timestamp_us", "start_time_us"),
    "arrival_ns": (
        "arrival_ns",
        "arrival_time_ns",
        "timestamp_ns",
        "start_time_ns",
        "StartTimeOffset",
        "request_start_ns",
        "start_time_unix_nano",
    ),
    "prompt_tokens": (
        "prompt_tokens",
        "input_tokens",
        "context_tokens",
        "request_tokens",
        "num_prefill_tokens",
        "num_prompt_tokens",
        "num_input_tokens",
        "prompt_length",
        "input_length",
        "prompt_len",
        "input_len",
        "input_toks",
        "prefill_tokens",
        "tokens_in",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.prompt_tokens",
    ),
    "output_tokens": (
        "output_tokens",
        "completion_tokens",
        "generated_tokens",
        "response_tokens",
        "generation_tokens",
        "num_decode_tokens",
        "num_output_tokens",
        "num_generated_tokens",
        "output_length",
        "completion_length",
        "response_length",
        "output_len",
        "output_toks",
        "decode_tokens",
        "tokens_out",
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.completion_tokens",
    ),
    "session": (
        "session",
        "session_id",
        "conversation_id",
        "gen_ai.conversation.id",
        "chat_id",
        "client_id",
        "user_id",
        "user",
        "end_user",
    ),
    "cached_tokens": (
        "cached_tokens",
        "num_cached_tokens",
        "prompt_tokens_cached",
        "prompt_cache_read_tokens",
        "gen_ai.usage.cache_read.input_tokens",
    ),
    "priority": ("priority", "request_priority"),
    "deadline_s": ("deadline_s", "timeout_s", "request_timeout_s", "client_timeout_s"),
    "deadline_ms": ("deadline_ms", "timeout_ms", "request_timeout_ms"),
    "service_s": ("service_s", "latency_s", "e2e_s", "e2e_latency_s", "elapsed_time", "request_latency", "duration_s"),
    "service_ms": (
        "service_ms",
        "latency_ms",
        "e2e_ms",
        "delay_ms",
        "request_duration_ms",
        "duration_ms",
        "elapsed_ms",
    ),
    "service_us": ("service_us", "latency_us", "duration_us"),
    "service_ns": ("service_ns", "latency_ns", "duration_ns"),
}


def meaning_of(name: str) -> str | None:
    """The meaning that plain logs give a field of this name; a meaning means itself."""
    if name in SYNONYMS:
        return name
    return next((meaning for meaning, names in SYNONYMS.items() if fold(name) in map(fold, names)), None)


def as_column(meaning: str, name: str) -> str:
    """How to say that field ``name`` is ``meaning``, on the command line and in Python."""
    return f"--column {meaning}={name}, in Python columns={{{meaning!r}: {name!r}}}"


def fold(name: str) -> str:
    """A field name without case and punctuation, so that ``Request tokens`` and ``request_tokens`` are one."""
    return "".join(c for c in name.lower() if c.isalnum())
