"""Whose scheduler it is: the rules of known engines, as limits on what a step may hold.

Each is named after the engine whose behaviour it follows; ``docs/engine.md`` says from which source and where it
differs. All have a fast form, for their decoders advance alike; only priorities need the plain scheduler.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.engine.state import Limits

    Policy = Callable[[Limits, str], Limits]

__all__ = ["POLICIES", "policy_of"]


def vllm(limits: Limits, version: str) -> Limits:
    """VLLM V1: running first, then waiting, in one budget; preempts the last admitted.

    It reserves the whole prompt's blocks at admission from 0.19 on (``scheduler_reserve_full_isl``, pull request
    37307), only the first chunk's before.
    """
    return replace(limits, reserve_full_prompt=_numbers(version) >= (0, 19))


def vllm_priority(limits: Limits, version: str) -> Limits:
    """VLLM V1 with ``--scheduling-policy priority``: lowest value first, ties by arrival; preempts the highest."""
    return replace(vllm(limits, version), by_priority=True)


def vllm_v0(limits: Limits, version: str) -> Limits:
    """VLLM before V1 (0.8), chunked prefill off: prompts have steps to themselves and go first.

    A prompt is admitted if its blocks are free and a hundredth of all stay so; decoders that find none preempt the last
    admitted (``vllm/core/block_manager.py`` at commit 006a839, ``watermark=0.01``).
    """
    del version
    return replace(limits, prefill_first=True, reserve_full_prompt=True, watermark_blocks=limits.num_kv_blocks // 100)


def sglang(limits: Limits, version: str) -> Limits:
    """SGLang 0.4.9 and later, defaults: prompts have steps to themselves and go first; a share of answers is kept free.

    ``max_num_batched_tokens`` is its ``chunked_prefill_size``, ``max_num_seqs`` its ``max_running_requests``.
    """
    del version
    return replace(limits, prefill_first=True, keep_share=True)


def tensorrt_llm(limits: Limits, version: str) -> Limits:
    """TensorRT-LLM in-flight batching with GUARANTEED_NO_EVICT, its default: admits only what fits to its end."""
    del version
    return replace(limits, promise_output=True)


def tensorrt_llm_max_utilization(limits: Limits, version: str) -> Limits:
    """TensorRT-LLM in-flight batching with MAX_UTILIZATION: admits what fits now, pauses the last when it must."""
    del version
    return limits


def llama_cpp(limits: Limits, version: str) -> Limits:
    """llama.cpp server with ``--parallel`` slots that share the context evenly (not ``--kv-unified``)."""
    del version
    blocks = limits.num_kv_blocks // limits.max_num_seqs
    return replace(limits, num_kv_blocks=blocks * limits.max_num_seqs, request_blocks=blocks, prefix_caching=False)


def static(limits: Limits, version: str) -> Limits:
    """A train: who is there goes along, nobody boards before all have left it (TensorRT-LLM's STATIC_BATCH)."""
    del version
    return replace(limits, static_batch=True, promise_output=True)


def policy_of(engine: str, version: str) -> str:
    """The scheduler an engine is simulated with where nobody names one: the one its constants were fitted under.

    Rows of other engines are predicted by vLLM's, the nearest to what they are known to do.
    """
    if engine == "vllm" and _numbers(version) < (0, 8):
        return "vllm_v0"
    return "sglang" if engine == "sglang" else "vllm"


def _numbers(text: str) -> tuple[int, ...]:
    """Leading whole numbers of a dotted version; a name without any counts as newest."""
    numbers: list[int] = []
    for part in text.lstrip("vV").split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers) or (2**31,)


POLICIES: dict[str, Policy] = {
    "vllm": vllm,
    "vllm_priority": vllm_priority,
    "vllm_v0": vllm_v0,
    "sglang": sglang,
    "tensorrt_llm": tensorrt_llm,
    "tensorrt_llm_max_utilization": tensorrt_llm_max_utilization,
    "llama_cpp": llama_cpp,
    "static": static,
}
