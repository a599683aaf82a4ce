"""Every headline figure of a plan as a tree down to price lists, specification sheets, fitted constants and the log.

Whoever doubts a figure gets the arithmetic, not an assurance. The trees repeat what :mod:`gambrel.cost` and
:mod:`gambrel.plan.search` compute as plain operations on named inputs (:mod:`gambrel.core.trace`); a test recomputes
each from its leaves and holds it against the figure that the plan prints. Where a cost model is no roofline (fitted to
measurements of your own, or a table), a step stays a leaf with that model's own basis.
"""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.step import Step
from gambrel.core.trace import SIMULATION, Traced
from gambrel.core.units import SECONDS_PER_HOUR
from gambrel.cost import Roofline, floor_seconds, wall_batch
from gambrel.cost.memory import held_bytes
from gambrel.cost.shards import rank_attention, rank_head, rank_kernels
from gambrel.plan.trace_leaves import leaf, logged, made, setting, shapes, sheet, simulated
from gambrel.plan.trace_step import Parts
from gambrel.report.humanise import asked, figure

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.plan import Plan
    from gambrel.core.slo import Objective
    from gambrel.core.step import CostModel, MemoryBudget
    from gambrel.core.workload import Workload
    from gambrel.cost.shards import Kernel

__all__ = ["plan_trace"]

SAME = 1e-9
"""Relative difference up to which two ways to add floats agree."""


def plan_trace(plan: Plan, workload: Workload, cost_model: CostModel) -> tuple[Traced, ...]:
    """One tree a headline figure: cost, tokens, each objective, replicas, KV blocks, floor, wall and the mean step.

    ``cost_model`` is the chosen deployment's.
    """
    deployment = plan.chosen.deployment
    context = mean_context(workload)
    step = mean_step(plan, cost_model, context)
    roots = [
        *([fleet_cost(deployment)] if deployment.usd_per_hour is not None else []),
        *token_prices(plan, workload),
        *objectives(plan, workload, step),
        replicas(plan),
        kv_blocks(deployment, plan.chosen.memory, cost_model),
        floor(cost_model),
        wall(deployment, cost_model, context),
        step,
    ]
    return tuple(roots)


# Money


def fleet_cost(d: Deployment) -> Traced:
    """Dollars per hour: price times accelerators."""
    price = d.accelerator.price_for(d.tp)
    usd = d.usd_per_hour or 0.0
    each = usd / d.num_gpus
    source = "given by you"
    if price is not None:
        parts = (price.basis, price.source, f"confidence {price.confidence}" if price.confidence else "")
        source = "price list: " + "; ".join(p for p in parts if p)
    return made(
        "cost of the fleet",
        "$/h",
        "product",
        leaf("price of one accelerator-hour", each, "$/h", source),
        leaf("accelerators", d.num_gpus, "1", "search", f"{d.replicas} replicas of {d.gpus_per_replica}"),
    )


def token_prices(plan: Plan, workload: Workload) -> list[Traced]:
    """Dollars per million tokens, at the time the traffic really takes."""
    pricing, run = plan.chosen.pricing, plan.run
    if pricing is None:
        return []
    dollars = made(
        "dollars for the log",
        "$",
        "quotient",
        made(
            "fleet dollars times seconds",
            "$ s/h",
            "product",
            fleet_cost(plan.chosen.deployment),
            simulated("makespan", run.makespan_s, "s", "first arrival to last token"),
        ),
        leaf("seconds in an hour", SECONDS_PER_HOUR, "s/h", "definition"),
    )
    whose = "all replicas, times the accelerators of one" if run.pools else "all replicas"
    share = made(
        "prefill's share of the busy time",
        "1",
        "quotient",
        simulated("seconds that prompt tokens add to steps", run.gpu_prefill_s, "s", "beyond what decoders alone take"),
        simulated("busy seconds", run.gpu_busy_s, "s", whose),
    )
    million = leaf("a million", 1e6, "1", "definition")
    found = []
    answered = np.isfinite(run.last_token_s)
    of = "tokens in the log" if answered.all() else "tokens of its requests that were answered"
    for name, part, column in (
        ("price of a million input tokens", share, workload.prompt_tokens),
        ("price of a million output tokens", made("decode's share", "1", "complement", share), workload.output_tokens),
    ):
        tokens = logged(workload, of, float(column[answered].sum()), "tokens")
        found.append(made(name, "$/Mtok", "quotient", made("dollars", "$", "product", dollars, part, million), tokens))
    return found


# What was simulated


def objectives(plan: Plan, workload: Workload, step: Traced) -> list[Traced]:
    """Each objective's figure: what was simulated to get it, and how far off it may be."""
    d = plan.chosen.deployment
    found = []
    for v in plan.chosen.verdicts:
        o = v.objective
        low, high = plan.intervals.get(o.name, (math.nan, math.nan))
        unit = "1" if o.is_floor else "s"
        between = f"; 80 % interval {figure(o, low)} to {figure(o, high)}" if math.isfinite(low) else ""
        prompt = float(np.percentile(workload.prompt_tokens, 95))
        output = float(np.percentile(workload.output_tokens, 95))
        inputs = (
            logged(workload, "requests", len(workload), "1"),
            logged(workload, "prompt tokens, p95", prompt, "tokens"),
            logged(workload, "output tokens, p95", output, "tokens"),
            logged(workload, "rate", plan.rate_rps, "requests/s"),
            leaf("replicas", d.replicas, "1", "search"),
            setting(d, "max_num_seqs"),
            setting(d, "max_num_batched_tokens"),
            leaf("KV blocks", plan.chosen.memory.num_kv_blocks, "blocks", "see the tree of KV blocks"),
            leaf(step.name, step.value, "s", "see its own tree", "one of the run's steps; every step is priced so"),
            leaf("objective", o.limit, unit, "asked"),
        )
        replayed = f"replayed step by step on {d.label}: {simulate_command(d)}"
        note = f"{what(o)} over all requests of the log, {replayed}{between}"
        found.append(Traced(o.name, v.reached, unit, SIMULATION, inputs, note=note))
    return found


def what(o: Objective) -> str:
    """What an objective's figure is, in words."""
    if o.is_floor:
        return "the share that meets every limit on times"
    statistic = {"mean": "the mean", "max": "the maximum"}.get(o.statistic, f"percentile {o.statistic[1:]}")
    return f"{statistic} of {o.metric}"


def simulate_command(d: Deployment) -> str:
    """The command that replays a log on a deployment; ``LOG`` stands for the log or profile."""
    return shlex.join(
        f"gambrel simulate --model {d.model.name} --gpu {d.accelerator.name} --tp {d.tp} --replicas {d.replicas} "
        f"--weights {d.weights} --kv {d.kv} --max-num-seqs {d.max_num_seqs} --max-num-batched-tokens "
        f"{d.max_num_batched_tokens} --gpu-memory-utilization {d.gpu_memory_utilization:g} --workload LOG".split(" ")
    )


def replicas(plan: Plan) -> Traced:
    """The fewest that hold."""
    d = plan.chosen.deployment
    less = [d.with_(replicas=d.replicas - 1)] if d.replicas > 1 else []
    fewer = [c for c in plan.alternatives if c.deployment in less]
    below = f"; with one less: {fewer[0].lost_because}" if fewer else ""
    note = f"the fewest of this shape whose simulation meets every objective, by galloping and bisection{below}"
    inputs = tuple(
        leaf(v.objective.name, v.reached, "1" if v.objective.is_floor else "s", "see its own tree", asked(v.objective))
        for v in plan.chosen.verdicts
    )
    return Traced("replicas", float(d.replicas), "1", SIMULATION, inputs, note=note)


# Memory


def kv_blocks(d: Deployment, m: MemoryBudget, cost_model: CostModel) -> Traced:
    """Blocks of KV cache: what is left of the memory over what a block takes."""
    memory = leaf("memory of an accelerator", m.memory_bytes, "bytes", sheet(d))
    usable = made("usable memory", "bytes", "product", memory, setting(d, "gpu_memory_utilization"))
    reserve_source = cost_model.basis
    if isinstance(cost_model, Roofline):
        reserve_source = "catalog constant reserve_bytes: contexts and communicators"
    free = made(
        "memory for the KV cache",
        "bytes",
        "difference",
        usable,
        leaf("weights on the fullest accelerator", m.weight_bytes, "bytes", shapes(d), f"in {d.weights}, tp {d.tp}"),
        leaf("activations and logits", m.activation_bytes, "bytes", shapes(d), "at the batch limits"),
        leaf("reserve", m.reserve_bytes, "bytes", reserve_source),
    )
    return made("KV blocks", "blocks", "whole part of the quotient", free, block_bytes(d, m))


def block_bytes(d: Deployment, m: MemoryBudget) -> Traced:
    """Bytes of a block on one rank, from the layers where that is their sum."""
    parts = [p for p in rank_attention(d) if p.held_bytes_per_token > 0]
    layers = tuple(
        made(
            f"{p.layers} layers",
            "bytes",
            "product",
            leaf("layers", p.layers, "1", shapes(d)),
            leaf("bytes of a token", p.held_bytes_per_token, "bytes", shapes(d), f"KV cache in {d.kv}, on one rank"),
        )
        for p in parts
    )
    if layers:
        token = made("bytes of a token in all layers", "bytes", "sum", *layers)
        node = made("bytes of a block", "bytes", "product", token, setting(d, "block_size"))
        if same(node.value, m.kv_bytes_per_block):
            return node
    note = "layers with a short window or a fixed state are held per sequence, not per block"
    return leaf("bytes of a block", m.kv_bytes_per_block, "bytes", shapes(d), note)


def wall(d: Deployment, cost_model: CostModel, context: int) -> Traced:
    """The batch at which memory is full, at the log's mean context."""
    m = cost_model.memory()
    rounded = -(-max(1, context) // d.block_size) * d.block_size
    held = leaf(
        "bytes of a sequence",
        float(held_bytes(d, rounded)),
        "bytes",
        shapes(d),
        f"{context:,} tokens, the log's mean context, its last block in full",
    )
    free = leaf("memory for the KV cache", m.kv_cache_bytes, "bytes", "see the tree of KV blocks")
    node = made("wall", "sequences", "whole part of the quotient", free, held)
    exact = wall_batch(cost_model, context)
    return node if same(node.value, exact) else leaf("wall", exact, "sequences", cost_model.basis)


# Time


def floor(cost_model: CostModel) -> Traced:
    """No decode step is shorter: the weights one token needs, at peak bandwidth."""
    d = cost_model.deployment
    exact = floor_seconds(cost_model)
    reads = [reads_once(k) for k in (*rank_kernels(d), rank_head(d))]
    embedding = d.model.hidden_size * d.model.base_bits / 8
    total = sum(reads) + embedding
    source = f"{shapes(d)}; in {d.weights}, tp {d.tp}"
    node = made(
        "floor of a decode step",
        "s",
        "quotient",
        leaf("weight bytes that one token reads", total, "bytes", source, "every matmul once, experts as routed"),
        leaf("peak bandwidth", d.accelerator.memory_bandwidth, "bytes/s", sheet(d)),
    )
    return node if same(node.value, exact) else leaf("floor of a decode step", exact, "s", f"{source}; {sheet(d)}")


def reads_once(k: Kernel) -> float:
    """Bytes of a kernel's weights that one token reads."""
    return k.repeats * k.num_bytes * (1.0 if k.moe is None else float(k.moe.distinct(1.0)) / k.ep)


def mean_context(workload: Workload) -> int:
    """Tokens a decoding sequence of the log attends to on average: its prompt and half its answer."""
    return max(1, round(float((workload.prompt_tokens + workload.output_tokens / 2).mean())))


def mean_step(plan: Plan, cost_model: CostModel, context: int) -> Traced:
    """The decode step at the run's mean batch and the log's mean context, down to constants and bytes."""
    batch = max(1, round(plan.run.batch_mean))
    d = cost_model.deployment
    window = d.model.spans[-1] if d.model.spans else None
    step = Step.decode(batch, context, window)
    exact = cost_model.step_cost(step).seconds
    name = f"a decode step of {batch} sequences at {context:,} tokens"
    if isinstance(cost_model, Roofline) and cost_model.form == "serial":
        parts = Parts(cost_model, step)
        tree = made(name, "s", "sum", *parts.all(), note="kernels one after the other, each at its higher roof")
        if same(tree.value, exact):
            return tree
    return leaf(name, exact, "s", cost_model.basis)


def same(a: float, b: float) -> bool:
    """Whether two sums of the same parts agree."""
    return math.isclose(a, b, rel_tol=SAME, abs_tol=1e-15)
