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
from gambrel.core.plan import Candidate, Cell, Fix, LoadPoint, Plan, Pricing
from gambrel.core.run import Histogram, Run, Series
from gambrel.core.slo import SLO, Verdict
from gambrel.core.step import MemoryBudget
from gambrel.report import TrafficView

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


def lengths(n: int = 4000, seed: int = 7) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], ...]:
    """(prompt, output) tokens of a chat-like log: log-normal prompts, a second mode of long documents."""
    rng = np.random.default_rng(seed)
    prompt = np.where(rng.random(n) < 0.12, rng.lognormal(8.6, 0.35, n), rng.lognormal(6.6, 0.9, n))
    output = rng.lognormal(5.1, 0.8, n)
    return np.clip(prompt, 1, 15_000).astype(np.int64), np.clip(output, 1, 2_000).astype(np.int64)


def traffic_view(n: int = 4000, seed: int = 7) -> TrafficView:
    """An hour of that chat with a diurnal swell."""
    rng = np.random.default_rng(seed)
    prompt, output = lengths(n, seed)
    t = np.linspace(0, 3600, 400, endpoint=False)
    swell = 1 + 0.35 * np.sin(2 * np.pi * t / 3600)
    running = rng.poisson(14 * swell).astype(np.float64)
    return TrafficView(
        name="chat",
        source="chat.csv (synthetic)",
        prompt_tokens=prompt,
        output_tokens=output,
        rate_rps=n / 3600,
        span_s=3600.0,
        cv=1.42,
        correlation=0.08,
        peak_to_mean={"1s": 7.2, "10s": 2.9, "60s": 1.7},
        arrivals_time_s=t,
        arrivals_rps=rng.poisson(9 * n / 3600 * swell) / 9.0,
        in_flight_time_s=t,
        in_flight=running,
        in_flight_stats={
            "mean": float(running.mean()),
            "p50": float(np.percentile(running, 50)),
            "p99": float(np.percentile(running, 99)),
            "max": float(running.max()) + 6,
        },
        in_flight_basis="demand: prompt/8000 + output x 0.03 s, no queueing",
        held_tokens=float((prompt * output + output * (output + 1) / 2).mean() / output.mean()),
        warnings=("timestamps are whole seconds",),
    )


def histogram(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Histogram:
    edges = np.geomspace(values.min() * 0.999, values.max() * 1.001, 200)
    return Histogram(edges, np.histogram(values, edges)[0].astype(np.int64), float(values.sum()))


def run(n: int = 4000, seed: int = 7, slowdown: float = 1.0) -> Run:
    """A simulated hour on two replicas."""
    rng = np.random.default_rng(seed)
    prompt, output = lengths(n, seed)
    arrival = np.sort(rng.random(n) * 3600)
    queue = rng.exponential(0.02 * slowdown**3, n)
    first = arrival + queue + prompt / 9000 + 0.012
    tpot = rng.lognormal(math.log(0.021 * slowdown), 0.18, n)
    last = first + (output - 1) * tpot
    t = np.linspace(0, 3700, 1500)
    running = rng.poisson(18 + 6 * np.sin(t / 600)).astype(np.float64)
    return Run(
        arrival_s=arrival,
        scheduled_s=arrival + queue,
        first_token_s=first,
        last_token_s=last,
        prompt_tokens=prompt,
        output_tokens=output,
        preemptions=(rng.random(n) < 0.001).astype(np.int64),
        replica=np.arange(n) % 2,
        itl=histogram(tpot),
        busy_s=5100.0,
        bound_by_s=np.array([640.0, 3620.0, 690.0, 0.0, 150.0]),
        part_s=np.array([1500.0, 3900.0, 900.0, 0.0, 300.0]),
        prefill_s=900.0,
        num_steps=210_000,
        batch_mean=9.4,
        batch_max=41,
        kv_usage_mean=0.21,
        kv_usage_max=0.63,
        replicas=2,
        series=Series(t, running, np.maximum(running - 26, 0), np.clip(running / 60, 0, 1)),
        basis="fitted: kernels ada 2026-11",
    )


def memory(gpu: str = "l40s") -> MemoryBudget:
    a = accelerator(gpu)
    usable, weights = 0.9 * a.memory_bytes, 2 * 8_030_261_248.0
    room = usable - weights - 1.1e9 - 1.6e9
    block = 16 * LLAMA_KV
    return MemoryBudget(
        a.memory_bytes, usable, weights, 1.1e9, 1.6e9, block, 0.0, 16, max(0, int(room // block))
    )  # fmt: skip


def candidate(
    gpu: str, usd: float, replicas: int, goal: SLO, reached: Sequence[float], *, lost: str = "", tp: int = 1,
    stage: str = "simulated", weights: str = "bf16", idle: float = 0.3,
) -> Candidate:  # fmt: skip
    d = Deployment(llama(), accelerator(gpu, usd), tp=tp, replicas=replicas, weights=weights)
    hourly = usd * replicas * tp
    return Candidate(
        d,
        stage,
        memory(gpu),
        tuple(Verdict(o, r) for o, r in zip(goal.objectives, reached, strict=False)),
        pricing=Pricing(hourly, 1.9 * hourly, 0.12 * hourly, 0.9 * hourly, 1 - idle) if stage == "simulated" else None,
        goodput=0.98,
        idle_share=idle if stage == "simulated" else math.nan,
        lost_because=lost,
    )


def slo() -> SLO:
    return SLO.parse(["ttft.p95<=1s", "tpot.p95<=50ms", "e2e.p99<=30s"])


def plan() -> Plan:
    """Two L40S hold a chat; an H200 would too, at three times the price."""
    goal = slo()
    base = run()
    chosen = candidate("l40s", 0.86, 2, goal, [0.71, 0.031, 22.0], idle=0.29)
    biggest = candidate("b200", 5.98, 1, goal, [0.09, 0.008, 6.1], lost="holds, but costs $4.26/h more", idle=0.83)
    others = (
        candidate("a100-sxm-80gb", 1.79, 1, goal, [0.52, 0.02, 14.0], lost="holds, but costs $0.07/h more"),
        candidate("h100-sxm", 2.99, 1, goal, [0.21, 0.012, 8.8], lost="holds, but costs $1.27/h more", idle=0.61),
        candidate("h200-sxm", 3.79, 1, goal, [0.2, 0.01, 8.0], lost="holds, but costs $2.07/h more", idle=0.66),
        biggest,
        candidate("l4", 0.8, 2, goal, [9.1, 0.11, 71.0], lost="tpot.p95 reaches 110 ms, 120 % over", idle=0.02),
        candidate("l40s", 0.86, 1, goal, [6.2, 0.061, 41.0], lost="ttft.p95 reaches 6.2 s, 520 % over", idle=0.01),
        candidate("l4", 0.8, 1, goal, [], lost="weights leave no KV block", stage="fits", tp=1),
    )
    loads = tuple(
        LoadPoint(
            x,
            x * len(base) / 3600,
            {m: run(slowdown=0.8 + 0.3 * x).distribution(m) for m in ("ttft", "tpot", "itl", "e2e", "queue")},
            0.98,
            900 * x,
            min(1.0, 0.4 * x),
        )
        for x in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
    )
    cells = (
        Cell(1, 32, "1 user, short prompt", 0.024, 0.018, 8.1, 54, 0.002, "everything but that the model answers"),
        Cell(1, 1650, "1 user, real prompts", 0.62, 0.019, 9.0, 51, 0.02, "queueing, batching and KV growth"),
        Cell(20, 32, "20 users, short prompt", 0.05, 0.026, 12.0, 700, 0.2, "prefill stalls and most of the KV cache"),
        Cell(
            20,
            1650,
            "20 users, real prompts",
            0.71,
            0.031,
            14.0,
            680,
            0.63,
            "tomorrow's growth: it is the log as it was",
        ),
    )
    return Plan(
        workload="chat.csv",
        num_requests=len(base),
        rate_rps=len(base) / 3600,
        slo=goal,
        chosen=chosen,
        run=base,
        alternatives=others,
        biggest_gpu=biggest,
        biggest_gpu_extra_usd_per_hour=4.26,
        demo_plan=others[-2],
        demo_plan_hits="ttft.p95 reaches 6.2 s, 520 % over",
        cells=cells,
        loads=loads,
        breaks_at={"ttft.p95": 1.72, "tpot.p95": 2.61, "e2e.p99": math.inf, "backlog": 2.9},
        cheaper_fixes=(
            Fix("KV cache in fp8", "holds to 1.95x of today's load instead of 1.72x", 1.72, meets_slo=True),
        ),
        intervals={"ttft.p95": (0.6, 0.84), "tpot.p95": (0.027, 0.036)},
        measure_next=(
            "decode steps of Llama-3.1-8B-Instruct on l40s at batch 9 and context 1800: weights "
            "bind 71 % of the busy time"
        ),
        launch=(
            "vllm serve meta-llama/Llama-3.1-8B-Instruct --tensor-parallel-size 1 --max-num-seqs 64 "
            "--max-num-batched-tokens 2048"
        ),
        basis="fitted: kernels ada 2026-11",
        wall_s=6.4,
        num_considered=412,
        num_simulated=38,
    )
