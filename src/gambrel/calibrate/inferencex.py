"""InferenceX's runs as its scripts start the engines: what a table of its results leaves out.

Options that make a first token wait decide its time at low load: batches that wait for company, a scheduler that looks
at its queue every so many steps, ranks of data-parallel attention that wait for each other, tokens that leave in
packets.

Source: repository SemiAnalysisAI/InferenceX (``benchmarks/*_b200*.sh`` at dce7e6f86 of 2025-10-10, 79abd6cb4 of
2025-11-10 and 6a5dad463 of 2026-03-24), read 2026-11-29.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gambrel.calibrate.table import Row

__all__ = ["arrangement", "cache", "limits", "published", "stream_interval", "waiting_steps"]

_MIXTURE: Final = re.compile(r"deepseek|qwen3\.5|qwen3-|gpt-oss|kimi|glm|minimax|llama-4|mixtral")
_SHORT: Final = (1024, 1024)
_TO_READ: Final = (8192, 1024)
_UNSTATED: Final = "2025-11-02"  # the day whose rows of DeepSeek in TensorRT-LLM state no arrangement; scripts chose it
_WHOLE: Final = 8  # devices from which dense prompts no longer wait for company
_COMPANY: Final = 20.0  # batch_wait_timeout_iters; 0.9 of 16,384 tokens, which would end it, never come together
_BALANCE: Final = 30.0  # half of attention_dp_config's timeout_iters of 60, with enable_balance
_MOST_USERS: Final = 1e5
_ROOMIER: Final = "2026-01-29"  # from when a step of TensorRT-LLM takes at least 8,192 tokens
_BUSY: Final = 16  # users from which --scheduler-recv-interval is 30 instead of 10


def published(row: Row) -> bool:
    """Whether a row is one of InferenceX's results: those of SGLang that aiconfigurator calls internal repeat them."""
    return "InferenceX-db" in row.notes or ("aic-internal" in row.notes and row.engine == "SGLang")


def stream_interval(row: Row) -> int:
    """Tokens that the engine sent to the client at a time: the first arrives with the last of them.

    Mixtures: TensorRT-LLM ``stream_interval: 10``; SGLang ``--stream-interval 30``, of DeepSeek in 4 bits 10.
    """
    if not published(row) or not _mixture(row):
        return 1
    if _small_deepseek(row):
        return 10
    return {"SGLang": 30, "TensorRT-LLM": 10}.get(row.engine, 1)


def waiting_steps(row: Row, attention_dp: int) -> float:
    """Mean number of steps that a prompt waits, beside those of the queue, for what the options ask for."""
    if not published(row):
        return 0.0
    if row.engine == "TensorRT-LLM":
        if attention_dp > 1:
            return _BALANCE
        alone = _mixture(row) or _lengths(row) != _SHORT or (row.tp or 1) >= _WHOLE
        return 0.0 if alone else _COMPANY
    if _small_deepseek(row):
        return (30 if row.load >= _BUSY else 10) / 2  # between two looks at the queue
    return 0.0


def cache(row: Row) -> str:
    """The number format of the cache that the scripts name, or ``""``: 8 bits for every model published in fewer.

    But vLLM on Hopper, whose script names it too: its rows take as long as attention over 16 bits does.
    """
    slow = row.engine == "vLLM" and row.gpu.startswith("H")
    return "fp8" if published(row) and row.weights in {"fp8", "fp4"} and not slow else ""


def limits(row: Row, engine: str) -> tuple[int, int, float] | None:
    """(sequences, prompt tokens of a step, share of memory) that the scripts set; None where they are not known.

    TensorRT-LLM's share is of what weights and activations leave, as its option says.
    """
    if not published(row) or not 1.0 <= row.load <= _MOST_USERS:
        return None
    users, prompt = round(row.load), round(row.prompt_tokens)
    if engine == "vllm":
        return 512, 8192, 0.9
    if engine == "sglang":
        sequences, tokens, share = (256, 16384, 0.85) if _small_deepseek(row) else (128, 32768, 0.82)
        return max(sequences, users), tokens, share  # rows of more users than that show no queue
    if engine == "tensorrt-llm" and not _mixture(row):
        return 2048, 16384, 0.9
    if engine == "tensorrt-llm":
        tokens = -(-(users + prompt + 64) // 64) * 64
        return 2048, max(tokens, 8192) if row.date >= _ROOMIER else tokens, 0.8
    return None


def arrangement(row: Row) -> tuple[int, int] | None:
    """(expert-parallel, data-parallel attention) ranks that a script chose where its row says 1 and 1 to both."""
    tp = row.tp or 1
    unstated = published(row) and row.date == _UNSTATED and row.engine == "TensorRT-LLM" and "DeepSeek" in row.model
    if not unstated or tp not in {4, 8}:
        return None
    lengths = _lengths(row)
    if row.weights == "fp8":
        return tp, tp if row.load > (32 if lengths == _SHORT else 64) else 1
    if lengths == _TO_READ:
        return (tp, tp) if row.load > 32 else (1, 1)
    least = 32 if tp == 4 else 8 if lengths == _SHORT else 16
    return tp if row.load > least else 1, tp if row.load >= 256 else 1


def _mixture(row: Row) -> bool:
    return _MIXTURE.search(row.model.lower()) is not None


def _small_deepseek(row: Row) -> bool:
    """Whether a row is of the script of its own that DeepSeek in 4 bits has under SGLang."""
    return row.engine == "SGLang" and row.weights == "fp4" and "DeepSeek" in row.model


def _lengths(row: Row) -> tuple[int, int]:
    return round(row.prompt_tokens), round(row.output_tokens)
