"""The plan as a command line: what to type to get the deployment that was simulated.

Flag names are vLLM's own (``vllm serve --help``, 0.19 and later).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gambrel.core.formats import weight_format

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment

__all__ = ["vllm_command"]


def vllm_command(deployment: Deployment) -> str:
    """One ``vllm serve`` line for one replica; run it once per replica behind a load balancer."""
    d = deployment
    flags = [
        f"vllm serve {d.model.name}",
        f"--tensor-parallel-size {d.tp}",
        f"--max-num-seqs {d.max_num_seqs}",
        f"--max-num-batched-tokens {d.max_num_batched_tokens}",
        f"--gpu-memory-utilization {d.gpu_memory_utilization:g}",
        f"--block-size {d.block_size}",
    ]
    if d.pp > 1:
        flags.append(f"--pipeline-parallel-size {d.pp}")
    if d.ep > 1:
        flags.append("--enable-expert-parallel")
    if d.max_model_len is not None:
        flags.append(f"--max-model-len {d.max_model_len}")
    if weight_format(d.weights).element_bits < 16 and d.weights != d.model.checkpoint_format:
        # vLLM quantises 16-bit checkpoints to fp8 while loading; other formats need a checkpoint in that format.
        flags.append("--quantization fp8" if d.weights == "fp8" else f"# with a {d.weights} checkpoint of the model")
    if d.weights == "fp16":
        flags.append("--dtype float16")
    if d.kv in {"fp8", "int8"}:
        flags.append(f"--kv-cache-dtype {d.kv}")
    flags.append("--enable-chunked-prefill" if d.chunked_prefill else "--no-enable-chunked-prefill")
    comments = [f for f in flags if f.startswith("#")]
    return " ".join([f for f in flags if not f.startswith("#")] + comments)
