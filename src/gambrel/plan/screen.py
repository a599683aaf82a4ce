"""Rule candidates out before simulating them, with bounds that can only be optimistic.

A bound here must never discard what simulation would accept: every figure is a lower bound on what any schedule of
the same engine can reach. Latency: a request alone in the engine. Replicas: the least busy time that the whole
workload can take at the best batch the memory and ``max_num_seqs`` allow, over the time that there is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.slo import Verdict
from gambrel.core.step import Step
from gambrel.engine.prefixes import Prefixes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gambrel.core.deployment import Deployment
    from gambrel.core.slo import SLO
    from gambrel.core.step import Floats, MemoryBudget, StepTable
    from gambrel.core.workload import Ints, Workload

__all__ = ["Demand", "alone", "least_busy_s", "least_replicas", "screen_latency", "shared_blocks"]

GRID = (*np.linspace(0.0, 1.0, 24), 0.9, 0.95, 0.99, 0.995, 0.999)
"""Quantiles of the prompts whose requests are rated alone; those that objectives name are among them, to lose nothing.
"""
ROUNDING = 1e-9
"""Relative: times near a limit are not told apart by what a sum of floats rounds away."""


@dataclass(frozen=True)
class Demand:
    """A workload boiled down to what bounds need; computed once for all candidates.

    ``kv_token_steps`` is the number of cached tokens read by decoders in all: sum of P G + G (G + 1) / 2, less the
    first token of each request, which prefill emits. ``prompts_cached``: the log says which prompts share blocks, so a
    prefix cache may know any of them; prompts then bound nothing, and their tokens and pairs count as none.
    ``held_token_steps`` is what of ``kv_token_steps`` a decoder must hold for itself: all but what another request
    names as well, which a prefix cache holds once for both.
    """

    num_requests: int
    span_s: float
    prompt_tokens: int
    output_tokens: int
    decode_tokens: int
    kv_token_steps: float
    held_token_steps: float
    prefill_pairs: float
    longest: int
    prompts: Floats
    outputs: Floats
    grid: Floats
    prompts_cached: bool = False

    @classmethod
    def of(cls, workload: Workload) -> Demand:
        """Sum up a workload."""
        p = workload.prompt_tokens.astype(np.float64)
        g = workload.output_tokens.astype(np.float64)
        lengths = np.unique(np.quantile(p, GRID, method="lower"))
        cached = workload.prefix_blocks is not None
        return cls(
            num_requests=len(workload),
            span_s=workload.span_s,
            prompt_tokens=0 if cached else int(p.sum()),
            output_tokens=int(g.sum()),
            decode_tokens=int((g - 1).sum()),
            kv_token_steps=float(((g - 1) * p + (g - 1) * g / 2).sum()),
            held_token_steps=own_token_steps(p - shared_tokens(workload), g),
            prefill_pairs=0.0 if cached else float((p * (p + 1) / 2).sum()),
            longest=int((workload.prompt_tokens + workload.output_tokens).max()),
            prompts=p,
            outputs=g,
            grid=lengths,
            prompts_cached=cached,
        )


def own_token_steps(own: Floats, outputs: Floats) -> float:
    """Sum over all decode steps of the tokens a request holds for itself: ``own`` of its prompt, and one more a step.

    Negative where others know the beginning of the answer too; what is below nothing counts as nothing.
    """
    steps = outputs - 1
    beyond = np.maximum(0.0, steps + np.minimum(0.0, own))  # steps in which it holds anything
    return float((np.maximum(0.0, own) * steps + beyond * (beyond + 1) / 2).sum())


def shared_tokens(workload: Workload) -> Floats:
    """Of each request, the tokens from its first on whose blocks another request of the log begins with as well.

    By whole hashes of the log, the last one too where the prompt fills only part of it: no engine's blocks share more.
    """
    if workload.prefix_blocks is None or workload.prefix_offsets is None:
        return np.zeros(len(workload))
    size = workload.prefix_block_tokens
    listed = np.maximum(1, np.diff(workload.prefix_offsets) * size)
    whole = replace(workload, prompt_tokens=listed, output_tokens=np.ones_like(listed))
    return shared_blocks(Prefixes.of(whole, size)).astype(np.float64) * size


def shared_blocks(prefixes: Prefixes) -> Ints:
    """Of each request, how many of its blocks another one begins with as well."""
    before = np.concatenate(([0], np.cumsum(prefixes.sizes[prefixes.units], dtype=np.int64)))
    return before[prefixes.offsets[1:]] - before[prefixes.offsets[:-1]]


def alone(table: StepTable, prompt: int) -> tuple[float, float]:
    """(TTFT, TPOT at the first decode) in seconds of one request that has the engine to itself."""
    return next(alone_each(table, [prompt]))


def alone_each(table: StepTable, prompts: Iterable[int]) -> Iterator[tuple[float, float]]:
    """:func:`alone` of several prompts, which have their whole chunks in common.

    A prompt goes in chunks of the table's token count, as chunked prefill does.
    """
    window, most = table.window or None, table.max_tokens
    before = [0.0]  # seconds of so many whole chunks
    for prompt in prompts:
        whole = (prompt - 1) // most
        for n in range(len(before) - 1, whole):
            before.append(
                before[n] + table.cost(_unsampled(Step.prefill(most, cached=n * most, window=window))).seconds
            )
        last = Step.prefill(prompt - whole * most, cached=whole * most, window=window)
        yield before[whole] + table.cost(last).seconds, table.cost(Step.decode(1, prompt + 1, window)).seconds


def _unsampled(step: Step) -> Step:
    return Step(
        step.tokens,
        0,
        0,
        0,
        0,
        step.prefill_tokens,
        step.prefill_chunks,
        step.prefill_pairs,
        step.prefill_pairs_windowed,
    )


def screen_latency(table: StepTable, demand: Demand, slo: SLO) -> tuple[Verdict, ...]:
    """The best each objective can reach with any number of replicas; empty for metrics that have no such bound.

    Each request's TTFT, TPOT and E2E are bounded by those of a shorter prompt from a grid, alone in the engine; a
    percentile of lower bounds is a lower bound of the percentile, and who is over a limit alone is over it in company.
    """
    ttft_grid, tpot_grid = (np.array(x) for x in zip(*alone_each(table, map(int, demand.grid)), strict=True))
    at = np.searchsorted(demand.grid, demand.prompts, side="right") - 1
    several = demand.outputs > 1
    tpot = tpot_grid[at]
    ttft = ttft_grid[at] * (not demand.prompts_cached) + table.request_s
    e2e = ttft + tpot * (demand.outputs - 1)
    bounds = {"ttft": ttft, "tpot": tpot[several], "itl": tpot_grid[:1], "e2e": e2e}
    least = {"ttft": ttft, "tpot": tpot * several, "itl": tpot * several, "e2e": e2e}  # a request's own
    found: list[Verdict] = []
    bad = np.zeros(demand.num_requests, np.bool_)
    for o in slo.limits:
        if o.metric in bounds and not o.kind:
            bad |= least[o.metric] * (1.0 - ROUNDING) > o.limit
            if len(bounds[o.metric]) > 0:
                found.append(Verdict(o, low_statistic(bounds[o.metric], o.statistic)))
    return *found, *(Verdict(o, float((~bad).mean())) for o in slo.floors if not o.kind)


def low_statistic(values: Floats, statistic: str) -> float:
    """A mean, maximum or percentile; the lower order statistic, so that no interpolation rule is above it."""
    if statistic == "mean":
        return float(values.mean())
    if statistic == "max":
        return float(values.max())
    return float(np.percentile(values, float(statistic[1:]), method="lower"))


def least_busy_s(table: StepTable, demand: Demand, deployment: Deployment, memory: MemoryBudget) -> float:
    """Seconds one replica is busy at the very least with the whole workload.

    Two bounds hold at once. Work: every token passes the matmuls at the best seconds per token of any step size, every
    attention pair and KV byte is paid. Steps: a step advances at most ``max_num_seqs`` decoders, and no more than have
    blocks for their state and for what they share with nobody; no step is shorter than an empty one.
    """
    tokens = np.arange(1, table.max_tokens + 1)
    fixed = table.collective[1:] + table.overhead[1:]
    linear = table.linear_compute[1:] if table.lines[15] > 0.5 else table.linear[1:]
    per_token = float(((linear + fixed) / tokens).min())
    lines = table.lines
    kv_s = (lines[1] + (lines[7] if not table.window else 0.0)) * demand.kv_token_steps
    pairs = lines[4] * demand.prefill_pairs
    work = per_token * (demand.prompt_tokens + demand.decode_tokens) + (kv_s if lines[15] <= 0.5 else 0.0) + pairs
    blocks = demand.decode_tokens * memory.state_blocks + demand.held_token_steps / memory.block_size
    steps = max(demand.decode_tokens / deployment.max_num_seqs, blocks / max(1, memory.num_kv_blocks))
    empty = table.cost(Step.decode(1, 1, table.window or None)).seconds
    return float(max(work, steps * empty))


def least_replicas(busy_s: float, demand: Demand, slack_s: float) -> int:
    """Replicas below which the work cannot be done by ``slack_s`` after the last arrival."""
    return max(1, math.ceil(busy_s / (demand.span_s + slack_s) - 1e-9))
