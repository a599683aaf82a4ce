"""The settings everyone asks about, each with its reason and with what one step either way does.

``max_num_seqs``, ``max_num_batched_tokens`` and ``gpu_memory_utilization`` are simulated at half, at double (a
twentieth for the last) under today's log, and up to the load where the first objective breaks. The same simulations
say what would help before an upgrade.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.plan import Fix, PriceMode, Setting, SettingStep
from gambrel.core.step import Step
from gambrel.core.units import SECONDS_PER_HOUR
from gambrel.plan.explain import MOST_CARRIED, TOLERANCE, carries
from gambrel.plan.trial import Bench
from gambrel.report.humanise import figure, percent, seconds, tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run
    from gambrel.core.slo import SLO, Verdict
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload
    from gambrel.plan.explain import Loads

__all__ = ["Neighbour", "fixes", "neighbours", "price_modes", "settings"]

STEP = 0.05
MOST_UTILISATION, LEAST_UTILISATION = 0.95, 0.5
NOTICED = 0.02
"""Relative change of an objective below which a step is called without effect."""


@dataclass(frozen=True)
class Neighbour:
    """A deployment one change away: how it meets the objectives today, and the load it carries.

    ``axis`` is the setting's name, or empty for a change that is none of the three.
    """

    change: str
    axis: str
    deployment: Deployment
    verdicts: tuple[Verdict, ...]
    carries: float
    refused: str = ""


def changes(d: Deployment) -> list[tuple[str, str, Deployment]]:
    """Changes that cost nothing or one replica: name, setting, deployment."""
    found: list[tuple[str, str, Deployment]] = []
    if "fp8" in d.accelerator.peak_flops:
        if d.kv != "fp8":
            found.append(("KV cache in fp8", "", d.with_(kv="fp8")))
        if d.weight_format.element_bits >= 16:
            found.append(("weights in fp8", "", d.with_(weights="fp8")))
    seqs, budget = d.max_num_seqs, d.max_num_batched_tokens
    found += [
        (f"max_num_seqs {n}", "max_num_seqs", d.with_(max_num_seqs=n))
        for n in (seqs // 2, 2 * seqs)
        if 1 <= n <= budget
    ]
    found += [
        (f"max_num_batched_tokens {n}", "max_num_batched_tokens", d.with_(max_num_batched_tokens=n))
        for n in (budget // 2, 2 * budget)
        if n >= seqs
    ]
    share = d.gpu_memory_utilization
    found += [
        (f"gpu_memory_utilization {u:g}", "gpu_memory_utilization", d.with_(gpu_memory_utilization=u))
        for u in (round(share - STEP, 4), round(share + STEP, 4))
        if LEAST_UTILISATION <= u <= max(MOST_UTILISATION, share)
    ]
    if d.replicas > 1 and d.routing != "least_outstanding":
        found.append(("route to the least busy replica", "", d.with_(routing="least_outstanding")))
    found.append(("one replica more", "", d.with_(replicas=d.replicas + 1)))
    return found


def neighbours(
    deployment: Deployment,
    pricer: Callable[[Deployment], CostModel],
    loads: Loads,
    slo: SLO,
    breaks: Mapping[str, float],
) -> tuple[Neighbour, ...]:
    """Every change simulated today and at the load it carries, looked for up to :func:`farthest`."""
    now = min(breaks.values(), default=math.inf)
    workload = loads.workload
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    found = []
    for name, axis, changed in changes(deployment):
        cost_model = pricer(changed)
        memory = cost_model.memory()
        if memory.kv_tokens < longest:
            refused = f"the longest request ({longest:,} tokens) no longer fits the KV cache ({memory.kv_tokens:,})"
            found.append(Neighbour(name, axis, changed, (), 0.0, refused))
            continue
        bench = Bench.of(cost_model)
        verdicts = slo.check(bench.run(changed, workload))
        load = carries(changed, bench, loads, slo, most=farthest(now), guess=now) if math.isfinite(now) else math.inf
        found.append(Neighbour(name, axis, changed, verdicts, load))
    return tuple(found)


def farthest(now: float) -> float:
    """The load multiple up to which changes are compared with settings that carry ``now``: twice that.

    At most where the search for ``now`` itself ends, or a change would seem to gain what was only not looked for.
    """
    return min(2.0 * now, MOST_CARRIED)


def fixes(around: Sequence[Neighbour], now: float) -> tuple[Fix, ...]:
    """Changes that carry more than the chosen settings do, the cheapest and best first.

    Judged by the load multiple at which the first objective breaks, ``now`` being the chosen settings'.
    """
    found = []
    for n in around:
        if n.refused or not math.isfinite(now) or n.carries <= now + 2 * TOLERANCE:
            continue
        more = "more than " if n.carries >= farthest(now) else ""
        effect = f"holds to {more}{n.carries:.2f}x of today's load instead of {now:.2f}x"
        usd = n.deployment.usd_per_hour or float("nan")
        found.append((n.carries, Fix(n.change, effect, usd, n.carries >= 1.0)))
    found.sort(key=lambda item: (item[1].usd_per_hour, -item[0], item[1].change))
    return tuple(fix for _, fix in found)


def settings(
    deployment: Deployment, bench: Bench, run: Run, slo: SLO, around: Sequence[Neighbour], now: float
) -> tuple[Setting, ...]:
    """The three settings of the chosen deployment, each with its reason and its two neighbours."""
    today = slo.check(run)
    found = []
    for name, reason in (
        ("max_num_seqs", why_seqs(deployment, bench, run)),
        ("max_num_batched_tokens", why_budget(deployment, bench, run)),
        ("gpu_memory_utilization", why_memory(bench, run)),
    ):
        steps = tuple(
            SettingStep(float(getattr(n.deployment, name)), n.verdicts, n.carries, effect(n, today, now))
            for n in around
            if n.axis == name
        )
        found.append(Setting(name, float(getattr(deployment, name)), reason, steps))
    return tuple(found)


def effect(neighbour: Neighbour, today: Sequence[Verdict], now: float) -> str:
    """What the step does today and to the load, in words."""
    if neighbour.refused:
        return neighbour.refused
    parts = []
    for then, v in zip(neighbour.verdicts, today, strict=True):
        moved = then.used / v.used - 1.0 if v.used > 0 else 0.0
        if abs(moved) > NOTICED or then.met != v.met:
            missed = "" if then.met else ", MISSED"
            before, after = figure(v.objective, v.reached), figure(v.objective, then.reached)
            parts.append(f"{v.objective.name} {before} to {after}{missed}")
    if math.isfinite(now) and abs(neighbour.carries - now) > 2 * TOLERANCE:
        more = "over " if neighbour.carries >= farthest(now) else ""
        parts.append(f"carries {more}{neighbour.carries:.2f}x instead of {now:.2f}x")
    return "; ".join(parts) or "no effect on this log"


def why_seqs(deployment: Deployment, bench: Bench, run: Run) -> str:
    """Whether the limit ever binds, and what else would."""
    held = float((run.prompt_tokens + run.output_tokens / 2).mean())
    room = bench.memory.sequences(math.ceil(held))
    limit = deployment.max_num_seqs
    if run.batch_max >= limit:
        return (
            f"binds: {limit} run at once at the busiest, the rest waits so that no step gets longer; "
            f"the KV cache would hold about {room:,} requests of the log's mean length"
        )
    return (
        f"does not bind: at most {run.batch_max} run at once (mean {run.batch_mean:.0f}); it is the guard for a burst, "
        f"and the KV cache holds about {room:,} requests of the log's mean length"
    )


def why_budget(deployment: Deployment, bench: Bench, run: Run) -> str:
    """How long a step full of prompt tokens is: the stall that running answers see."""
    budget = deployment.max_num_batched_tokens
    longest = int(run.prompt_tokens.max())
    filled = min(budget, longest)
    stall = bench.table.cost(Step.prefill(filled, window=bench.table.window or None)).seconds
    alone = bench.table.cost(Step.decode(1, max(1, int(run.prompt_tokens.mean())), bench.table.window or None)).seconds
    steps = math.ceil(float(np.mean(run.prompt_tokens)) / budget)
    return (
        f"a step with {filled:,} prompt tokens takes {seconds(stall)}, the longest gap running answers see (an idle "
        f"engine's is {seconds(alone)}); "
        f"the mean prompt takes {steps} step{'s'[: steps > 1]}: less favours TPOT, more TTFT"
    )


def why_memory(bench: Bench, run: Run) -> str:
    """How much of the cache the log uses, and what a step more would hold."""
    m = bench.memory
    step = int(STEP * m.memory_bytes / m.kv_bytes_per_block * m.block_size)
    return (
        f"leaves {tokens(m.kv_tokens)} tokens of KV cache, of which the log uses {percent(run.kv_usage_max)} at the "
        f"busiest; {STEP:g} more is {tokens(step)} tokens more, taken from what the engine keeps for peaks"
    )


def price_modes(deployment: Deployment, cost_model: CostModel, workload: Workload, slo: SLO) -> tuple[PriceMode, ...]:
    """Fast and slow modes along the curve: full batches in steady decode at the log's mean context, one replica.

    Doubling batches up to what ``max_num_seqs`` and the cache hold. Empty without a price.
    """
    one = deployment.with_(replicas=1)
    usd = one.usd_per_hour
    if usd is None:
        return ()
    bench = Bench.of(cost_model)
    context = max(1, int(np.ceil(float((workload.prompt_tokens + workload.output_tokens / 2).mean()))))
    most = min(deployment.max_num_seqs, max(1, bench.memory.sequences(context)))
    batches = sorted({min(2**i, most) for i in range(math.ceil(math.log2(most)) + 1)} | {most})
    limits = [o.limit for o in slo.objectives if o.metric in {"tpot", "itl"}]
    rows = []
    for batch in batches:
        step = bench.table.cost(Step.decode(batch, context, bench.table.window or None)).seconds
        rows.append((batch, 1.0 / step, 1e6 * usd / SECONDS_PER_HOUR * step / batch, all(step <= x for x in limits)))
    slowest = min(r[1] for r in rows)
    cheapest = min(r[2] for r in rows)
    return tuple(
        PriceMode(b, speed, price, speed / slowest, price / cheapest if cheapest > 0 else 1.0, ok)
        for b, speed, price, ok in rows
    )
