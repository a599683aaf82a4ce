"""The plan as a command line: what to type to get the deployment that was simulated.

Flag names are the engines' own: ``vllm serve --help`` (0.19 and later), SGLang's server arguments
(docs.sglang.io, advanced features, 2026) and ``trtllm-serve`` with its PyTorch back end (TensorRT-LLM 1.x). The three
count memory differently, so the same KV cache is a different fraction in each: vLLM's is of the whole memory, all
included; SGLang's is of the whole memory, weights and cache only; TensorRT-LLM's is of what is left after the weights.

Engines take the longest request from the model's configuration where nobody says, and vLLM does not start when its
cache cannot hold one such request. So a line for a cache smaller than that says what the cache holds, and why.
"""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Any

from gambrel.core.errors import DeploymentError

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.step import MemoryBudget

__all__ = [
    "capped",
    "longest_request",
    "sglang_command",
    "trtllm_command",
    "trtllm_options",
    "vllm_args",
    "vllm_command",
]

TRTLLM_BLOCK = 32
"""``tokens_per_block`` that TensorRT-LLM's PyTorch back end defaults to."""


def vllm_args(deployment: Deployment, memory: MemoryBudget) -> list[str]:
    """The words after ``vllm serve``, model first."""
    d = deployment
    args = [
        d.model.name,
        f"--tensor-parallel-size {d.tp}",
        f"--max-num-seqs {d.max_num_seqs}",
        f"--max-num-batched-tokens {d.max_num_batched_tokens}",
        f"--gpu-memory-utilization {d.gpu_memory_utilization:g}",
        f"--block-size {d.block_size}",
    ]
    if d.pp > 1:
        args.append(f"--pipeline-parallel-size {d.pp}")
    if d.ep > 1:
        args.append("--enable-expert-parallel")
    longest = longest_request(d, memory)
    if longest is not None:
        args.append(f"--max-model-len {longest}")
    if quantises(d) and d.weights == "fp8":
        args.append("--quantization fp8")  # vLLM quantises 16-bit checkpoints to fp8 while loading
    if d.weights == "fp16":
        args.append("--dtype float16")
    if d.kv in {"fp8", "int8"}:
        args.append(f"--kv-cache-dtype {d.kv}")
    args.append("--enable-chunked-prefill" if d.chunked_prefill else "--no-enable-chunked-prefill")
    if not d.prefix_caching:
        args.append("--no-enable-prefix-caching")
    if not d.cuda_graphs:
        args.append("--enforce-eager")
    return [word for arg in args for word in arg.split(" ")]


def vllm_command(deployment: Deployment, memory: MemoryBudget) -> str:
    """One ``vllm serve`` line for one replica; run it once per replica behind a load balancer."""
    return shlex.join(["vllm", "serve", *vllm_args(deployment, memory)]) + note(deployment, memory)


def sglang_command(deployment: Deployment, memory: MemoryBudget) -> str:
    """One ``sglang.launch_server`` line for one replica.

    ``--mem-fraction-static`` is weights plus cache over the memory, so that the cache is the one that was simulated.
    ``--chunked-prefill-size`` bounds prompt tokens alone, where vLLM's budget counts one token of every decoder too.
    """
    d = deployment
    share = (memory.weight_bytes + memory.kv_cache_bytes) / memory.memory_bytes
    args = [
        "python3 -m sglang.launch_server",
        f"--model-path {shlex.quote(d.model.name)}",
        f"--tp-size {d.tp}",
        f"--max-running-requests {d.max_num_seqs}",
        f"--chunked-prefill-size {d.max_num_batched_tokens if d.chunked_prefill else -1}",
        f"--mem-fraction-static {math.floor(share * 1000) / 1000:g}",
        "--enable-metrics",
    ]
    if d.pp > 1:
        args.append(f"--pp-size {d.pp}")
    if d.ep > 1:
        args.append(f"--ep-size {d.ep}")
    if d.attention_dp > 1:
        args.append(f"--dp-size {d.attention_dp} --enable-dp-attention")
    longest = longest_request(d, memory)
    if longest is not None:
        args.append(f"--context-length {longest}")
    if quantises(d) and d.weights == "fp8":
        args.append("--quantization fp8")
    if d.weights == "fp16":
        args.append("--dtype float16")
    if d.kv == "fp8":
        args.append("--kv-cache-dtype fp8_e4m3")
    if not d.prefix_caching:
        args.append("--disable-radix-cache")
    if not d.cuda_graphs:
        args.append("--disable-cuda-graph")
    return " ".join(args) + note(d, memory)


def trtllm_options(deployment: Deployment, memory: MemoryBudget) -> dict[str, Any]:
    """What ``trtllm-serve`` takes from its YAML file of extra options: cache, chunking, attention parallelism.

    ``free_gpu_memory_fraction`` is of the memory left after weights and activations.
    """
    free = memory.memory_bytes - memory.weight_bytes - memory.activation_bytes - memory.reserve_bytes
    cache: dict[str, Any] = {
        "enable_block_reuse": deployment.prefix_caching,
        "free_gpu_memory_fraction": math.floor(memory.kv_cache_bytes / free * 1000) / 1000,
        "tokens_per_block": TRTLLM_BLOCK,
    }
    if deployment.kv == "fp8":
        cache["dtype"] = "fp8"
    options: dict[str, Any] = {"kv_cache_config": cache, "enable_chunked_prefill": deployment.chunked_prefill}
    if deployment.attention_dp > 1:
        options["enable_attention_dp"] = True
    return options


def trtllm_command(deployment: Deployment, memory: MemoryBudget, options_file: str) -> str:
    """One ``trtllm-serve`` line for one replica; ``options_file`` holds :func:`trtllm_options` as YAML.

    Raises:
        DeploymentError: the accelerator is not NVIDIA's.
    """
    d = deployment
    if d.accelerator.vendor != "NVIDIA":
        raise DeploymentError(
            f"TensorRT-LLM runs on NVIDIA accelerators only, and the plan is for {d.accelerator.name} "
            f"({d.accelerator.vendor}); export it --as vllm or sglang"
        )
    args = [
        f"trtllm-serve {shlex.quote(d.model.name)}",
        f"--tp_size {d.tp}",
        f"--max_batch_size {d.max_num_seqs}",
        f"--max_num_tokens {d.max_num_batched_tokens}",
        f"--extra_llm_api_options {shlex.quote(options_file)}",
    ]
    if d.pp > 1:
        args.append(f"--pp_size {d.pp}")
    if d.ep > 1:
        args.append(f"--ep_size {d.ep}")
    longest = longest_request(d, memory, TRTLLM_BLOCK)
    if longest is not None:
        args.append(f"--max_seq_len {longest}")
    return " ".join(args) + comment(checkpoint(d) if quantises(d) else "", capped(d, memory, TRTLLM_BLOCK))


def longest_request(deployment: Deployment, memory: MemoryBudget, block_size: int | None = None) -> int | None:
    """Tokens of a request at most, where an engine must be told: as the deployment says, or what the cache holds.

    None where the model's own context fits. One request lies in the cache of one attention group, in whole blocks.
    """
    asked = deployment.max_model_len
    room = held(deployment, memory, block_size)
    return room if room < (asked or deployment.model.max_context or 0) else asked


def held(deployment: Deployment, memory: MemoryBudget, block_size: int | None = None) -> int:
    """Tokens of one request that the cache of one replica holds, rounded down to whole blocks."""
    block = block_size or deployment.block_size
    return memory.kv_tokens // deployment.attention_dp // block * block


def capped(deployment: Deployment, memory: MemoryBudget, block_size: int | None = None) -> str:
    """Why the longest request is capped; empty where the cache caps nothing."""
    longest = longest_request(deployment, memory, block_size)
    if longest == deployment.max_model_len:
        return ""
    named = "max_model_len asked for" if deployment.max_model_len else "context of the model"
    wanted = deployment.max_model_len or deployment.model.max_context
    return f"requests are capped at the {longest:,} tokens that the KV cache holds; the {named} is {wanted:,}"


def quantises(deployment: Deployment) -> bool:
    """Whether the weights are to be in fewer bits than the checkpoint has."""
    return deployment.weight_format.element_bits < 16 and deployment.weights != deployment.model.checkpoint_format


def checkpoint(deployment: Deployment) -> str:
    """What the line needs that no flag gives."""
    return f"with a {deployment.weights} checkpoint of the model"


def note(deployment: Deployment, memory: MemoryBudget) -> str:
    """What to know of a line: the checkpoint in another format that it needs, and why requests are capped."""
    needs = quantises(deployment) and deployment.weights != "fp8"
    return comment(checkpoint(deployment) if needs else "", capped(deployment, memory))


def comment(*texts: str) -> str:
    """Texts as the end of a command line; empty for none."""
    said = "; ".join(text for text in texts if text)
    return f" # {said}" if said else ""
