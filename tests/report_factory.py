"""Realistic core objects, made by hand: the textbook roofline of Llama-3.1-8B, a day's chat, a plan that holds.

The report room may not ask its siblings for anything, and neither do its tests: figures here are the roofline of
THEORY 2.6 written out, or drawn from named distributions with a seed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.accelerator import Accelerator, Price
from gambrel.core.curve import Curve
from gambrel.core.deployment import Deployment
from gambrel.core.formats import Role
from gambrel.core.model import Layer, Mixer, Model, Shard, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

LLAMA_READ = 2 * 7_504_924_672.0  # bytes read a step: all but the input embedding, bf16
LLAMA_FLOPS = 2 * 7_504_658_432.0  # matmul FLOPs per token, head included
LLAMA_KV = 131_072.0  # bytes per token of context


def llama() -> Model:
    d, f, kv = 4096, 14336, 1024
    linear = [("q", d, d), ("k", kv, d), ("v", kv, d), ("o", d, d), ("gate", f, d), ("up", f, d), ("down", d, f)]
    layer = Layer(
        tensors=(
            *(Tensor(n, r, c, Role.LINEAR, Shard.COLUMN) for n, r, c in linear),
            Tensor("norms", 1, d, Role.VECTOR, copies=2),
        ),
        mixer=Mixer("gqa", 32, 8, 128, 2048, None, 4 * d, 4 * d),
    )
    outside = (
        Tensor("embed", 128256, d, Role.EMBEDDING),
        Tensor("norm", 1, d, Role.VECTOR),
        Tensor("lm_head", 128256, d, Role.HEAD, Shard.COLUMN),
    )
    return Model("Llama-3.1-8B-Instruct", d, 128256, 32, ((32, layer),), outside, tied=False, max_context=131072)


def accelerator(name: str = "h100-sxm", usd: float | None = 2.99) -> Accelerator:
    price = None if usd is None else Price(usd, "a cloud", as_of="2026-11-01", source="a price page")
    known = {
        "h100-sxm": ("NVIDIA H100 SXM 80GB", "hopper", 989e12, 85.0e9, 3.35e12, 450e9),
        "h200-sxm": ("NVIDIA H200 SXM 141GB", "hopper", 989e12, 150.7e9, 4.8e12, 450e9),
        "b200": ("NVIDIA B200 180GB", "blackwell", 2250e12, 192.0e9, 8.0e12, 900e9),
        "a100-sxm-80gb": ("NVIDIA A100 SXM 80GB", "ampere", 312e12, 85.0e9, 2.039e12, 300e9),
        "l40s": ("NVIDIA L40S 48GB", "ada", 362e12, 48.3e9, 0.864e12, 0.0),
        "l4": ("NVIDIA L4 24GB", "ada", 121e12, 24.1e9, 0.3e12, 0.0),
    }
    title, family, flops, memory, bandwidth, link = known[name]
    return Accelerator(name, title, "nvidia", family, {"bf16": flops}, memory, bandwidth, "nvlink", link, price=price)


def curve(
    *,
    contexts: Sequence[int] = (1024,),
    batches: Sequence[int] | None = None,
    gpu: str = "h100-sxm",
    usd: float | None = 2.99,
    form: str = "max",
    overhead_s: float = 0.0,
    named_context: int | None = None,
) -> Curve:
    """The roofline of THEORY 2.6 in its named forms, with the exact ridge, balance, wall and crossover."""
    a = accelerator(gpu, usd)
    d = Deployment(llama(), a)
    if batches is None:
        batches = sorted({round(2 ** (i / 8)) for i in range(8 * 12 + 1)})
    b, c = (x.ravel() for x in np.meshgrid(np.array(batches), np.array(contexts), indexing="ij"))
    flops, bw = a.peak_flops["bf16"], a.memory_bandwidth
    compute = b * LLAMA_FLOPS / flops
    weights = np.full(len(b), LLAMA_READ / bw)
    kv = b * c * LLAMA_KV / bw
    step = np.maximum(compute, weights + kv) if form == "max" else np.maximum(compute, weights) + kv
    overhead = np.full(len(b), overhead_s)
    step = step + overhead
    room = 0.9 * a.memory_bytes - 2 * 8_030_261_248.0 - 2.5e9
    memory = 0.9 * a.memory_bytes - room + b * c * LLAMA_KV
    at = int(named_context or contexts[0])
    per_seq = LLAMA_FLOPS / flops - at * LLAMA_KV / bw
    usd_per_s = None if usd is None else usd / 3600
    one, unit = (
        max(LLAMA_FLOPS / flops, (LLAMA_READ + at * LLAMA_KV) / bw),
        max(LLAMA_FLOPS / flops, at * LLAMA_KV / bw),
    )
    return Curve(
        deployment=d,
        basis="spec sheet: peak rates, no overheads",
        form=form,
        batch=b.astype(np.int64),
        context=c.astype(np.int64),
        step_s=step,
        compute_s=compute,
        weights_s=weights,
        kv_s=kv,
        collective_s=np.zeros(len(b)),
        overhead_s=overhead,
        bound_by=np.argmax([compute, weights, kv, 0 * kv, overhead], axis=0).astype(np.int8),
        memory_bytes=memory,
        fits=memory <= 0.9 * a.memory_bytes,
        tokens_per_s=b / step,
        usd_per_mtok=None if usd_per_s is None else 1e6 * usd_per_s * step / b,
        floor_s=LLAMA_READ / bw,
        named_context=at,
        ridge_batch=LLAMA_READ / bw / per_seq if per_seq > 0 else math.inf,
        balance_batch=LLAMA_READ / (at * LLAMA_KV),
        wall_batch=int(room // (at * LLAMA_KV)),
        crossover_context=LLAMA_FLOPS * bw / (flops * LLAMA_KV),
        amortisation=one / float((step / b).min()),
        amortisation_limit=one / unit,
    )
