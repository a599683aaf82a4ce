"""What stands around a decision: what a demo would have hidden, where the fleet breaks, what cheaper would help.

Every figure here is simulated on the same log with the same cost model as the decision itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.core.plan import Cell, LoadPoint
from gambrel.plan.trial import METRICS, Bench
from gambrel.traffic import scale_load

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run
    from gambrel.core.slo import SLO
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload

__all__ = [
    "MOST_CARRIED",
    "TOLERANCE",
    "Loads",
    "alone_workload",
    "carried",
    "carries",
    "cells",
    "intervals",
    "load_sweep",
    "offered_rps",
]

SHORT_PROMPT = 32
"""Tokens of the prompt that people try a model with."""

HIDES = (
    "prompt length, other users and memory: it proves only that the model answers",
    "queueing, batching and KV growth: nobody else is there",
    "prefill stalls and most of the KV cache: prompts cost nothing here",
    "tomorrow's growth: it is the log as it was",
)
"""What each of the four cells does not show, in their order."""

LOADS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
TOLERANCE = 0.02  # of a load multiple
MOST_CARRIED = 8.0  # load multiple beyond which nobody asks
KEPT = 24  # scaled logs held in memory
INTERVAL_SIGMAS = 1.2816  # 80 % of a normal distribution lies within


def alone_workload(workload: Workload, prompt_tokens: int | None = None, most: int = 500) -> Workload:
    """The log's requests one at a time, never overlapping: one user who waits for each answer.

    Takes ``most`` requests evenly over the log, whose users or sessions they are no longer; ``prompt_tokens`` replaces
    every prompt length.
    """
    rows = np.unique(np.linspace(0, len(workload) - 1, min(most, len(workload))).astype(np.intp))
    picked = workload.take(rows)
    gap_s = 1e5  # longer than any single answer
    prompts = picked.prompt_tokens if prompt_tokens is None else np.full(len(rows), prompt_tokens, np.int64)
    return replace(
        picked,
        arrival_s=np.arange(len(rows), dtype=np.float64) * gap_s,
        prompt_tokens=prompts,
        closed_loop=0,
        staggered=False,
        think_s=None,
        after=None,
    )


def cells(deployment: Deployment, bench: Bench, workload: Workload, run: Run) -> tuple[Cell, ...]:
    """The four cells {1 user, N users} x {short prompt, the log's prompts} on the same deployment."""
    one = deployment.with_(replicas=1)
    short = replace(workload, prompt_tokens=np.full(len(workload), SHORT_PROMPT, np.int64), prefix_blocks=None)
    users = max(1, round(float(np.nansum(run.e2e_s)) / max(run.makespan_s, 1e-9)))
    real = float(workload.prompt_tokens.mean())
    runs = (
        (1, float(SHORT_PROMPT), "short prompt", bench.run(one, alone_workload(workload, SHORT_PROMPT))),
        (1, real, "real prompts", bench.run(one, alone_workload(workload))),
        (users, float(SHORT_PROMPT), "short prompt", bench.run(deployment, short)),
        (users, real, "real prompts", run),
    )
    return tuple(
        Cell(
            users=n,
            prompt_tokens=prompt,
            label=f"{n} user{'s' if n > 1 else ''}, {label}",
            ttft_p95_s=r.distribution("ttft").p95,
            tpot_p95_s=r.distribution("tpot").p95,
            e2e_p95_s=r.distribution("e2e").p95,
            tokens_per_s=one_by_one(r) if n == 1 else r.output_tokens_per_s,
            kv_usage_max=r.kv_usage_max,
            hides=hides,
        )
        for (n, prompt, label, r), hides in zip(runs, HIDES, strict=True)
    )


def one_by_one(run: Run) -> float:
    """Tokens per second of requests that never overlap, pauses between them left out."""
    done = np.isfinite(run.last_token_s)
    return float(run.output_tokens[done].sum() / run.e2e_s[done].sum()) if done.any() else 0.0


class Loads:
    """The log at multiples of its load, with its burst structure; each multiple is made once and kept a while."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self._made: dict[float, Workload | None] = {1.0: workload}

    def at(self, load: float) -> Workload | None:
        """The log at ``load`` times its rate; None where so small a part of a short log is no request at all."""
        if load not in self._made:
            if len(self._made) > KEPT:
                self._made = {1.0: self.workload}
            try:
                self._made[load] = scale_load(self.workload, load, seed=0)
            except WorkloadError:
                if load >= 1.0:
                    raise
                self._made[load] = None
        return self._made[load]


def load_sweep(
    deployment: Deployment, bench: Bench, loads: Loads, slo: SLO
) -> tuple[tuple[LoadPoint, ...], dict[str, float]]:
    """Percentiles against load, and the multiple at which each objective first breaks.

    The sweep stops one point after everything is broken; break points are bisected to ``TOLERANCE`` of a multiple.
    An objective that holds at the largest load gets infinity.
    """
    points: list[LoadPoint] = []
    holds: dict[str, list[tuple[float, bool]]] = {name: [] for name in (*(o.name for o in slo.objectives), "backlog")}
    for load in LOADS:
        log = loads.at(load)
        if log is None:
            continue
        run = bench.run(deployment, log)
        points.append(point(run, load, slo))
        for name, met in held(deployment, bench, log, run, slo).items():
            holds[name].append((load, met))
        if load >= 1.0 and all(not history[-1][1] for history in holds.values()):
            break
    breaks = {}
    for name, history in holds.items():
        broken = next((i for i, (_, met) in enumerate(history) if not met), None)
        if broken is None:
            breaks[name] = float("inf")
            continue
        low, high = (history[broken - 1][0] if broken else 0.0), history[broken][0]

        def holds_at(x: float, objective: str = name) -> bool:
            log = loads.at(x)
            return log is None or met_objectives(deployment, bench, log, slo)[objective]

        breaks[name] = bisect(low, high, holds_at)
    between = {load for load in breaks.values() if 0 < load < np.inf} - {p.load for p in points}
    logs = ((load, loads.at(load)) for load in sorted(between))
    points += [point(bench.run(deployment, log), load, slo) for load, log in logs if log is not None]
    return tuple(sorted(points, key=lambda p: p.load)), breaks


def point(run: Run, load: float, slo: SLO) -> LoadPoint:
    """One point of the sweep."""
    return LoadPoint(
        load=load,
        rate_rps=offered_rps(run),
        latency={m: run.distribution(m) for m in METRICS},
        goodput=slo.goodput(run),
        tokens_per_s=run.output_tokens_per_s,
        kv_usage_max=run.kv_usage_max,
    )


def offered_rps(run: Run) -> float:
    """Requests per second over the time in which they arrive; in a closed loop the engine made those times.

    NaN where all arrive at once: how long they take is the fleet's doing.
    """
    span = float(run.arrival_s[-1] - run.arrival_s[0])
    return (len(run) - 1) / span if span > 0 else float("nan")


def met_objectives(deployment: Deployment, bench: Bench, workload: Workload, slo: SLO) -> dict[str, bool]:
    """By objective name, and ``backlog`` for keeping up."""
    return held(deployment, bench, workload, bench.run(deployment, workload), slo)


def held(deployment: Deployment, bench: Bench, workload: Workload, run: Run, slo: SLO) -> dict[str, bool]:
    """The same of a run that is there already."""
    return {v.objective.name: v.met for v in slo.check(run)} | {
        "backlog": not bench.keeps_up(deployment, workload, run)
    }


def bisect(low: float, high: float, holds_at: Callable[[float], bool]) -> float:
    """The largest load known to hold, within ``TOLERANCE``, given that ``high`` does not."""
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        if middle > 0 and holds_at(middle):
            low = middle
        else:
            high = middle
    return low


def carries(
    deployment: Deployment,
    bench: Bench,
    loads: Loads,
    slo: SLO,
    most: float = MOST_CARRIED,
    guess: float = 1.0,
    coarse: float = 0.0,
) -> float:
    """The load multiple at which the first objective breaks, or ``most`` when none breaks by then.

    To ``TOLERANCE`` of a multiple, or to ``coarse`` of itself where that is more. ``guess`` is where to look first.
    """

    def holds_at(load: float) -> bool:
        log = loads.at(load)
        return log is None or all(met_objectives(deployment, bench, log, slo).values())

    widen = 2.0 if guess == 1.0 else 1.2
    low, high = 0.0, min(guess, most)
    while holds_at(high):
        if high >= most:
            return most
        low, high = high, min(most, widen * high)
    while low == 0.0 and high > 2 * TOLERANCE:  # broken at the guess: find a load that holds
        below = high / widen
        if holds_at(below):
            low = below
        else:
            high = below
    while high - low > max(TOLERANCE, coarse * low):
        middle = (low + high) / 2
        if holds_at(middle):
            low = middle
        else:
            high = middle
    return low


def carried(load: float) -> str:
    """What :func:`carries` found, in words."""
    if load >= MOST_CARRIED:
        return f"{MOST_CARRIED:g}x this load or more: no objective breaks by then"
    return f"{load:.2f}x this load before the first objective breaks"


def intervals(
    deployment: Deployment, cost_model: CostModel, workload: Workload, slo: SLO
) -> dict[str, tuple[float, float]]:
    """80 % interval of each metric's p50, p95 and p99 and of goodput, from the cost model's spread at both edges.

    All step times err together here, which is the pessimistic reading of a spread.
    """
    edges = [
        Bench.of(cost_model).slower(float(np.exp(sign * INTERVAL_SIGMAS * cost_model.spread))).run(deployment, workload)
        for sign in (-1.0, 1.0)
    ]
    return {
        f"{metric}.{statistic}": (
            edges[0].distribution(metric).percentile(statistic),
            edges[1].distribution(metric).percentile(statistic),
        )
        for metric in METRICS
        for statistic in ("p50", "p95", "p99")
    } | {
        v.objective.name: (v.reached, best.reached)
        for v, best in zip(slo.check(edges[1]), slo.check(edges[0]), strict=True)
        if v.objective.is_floor
    }
