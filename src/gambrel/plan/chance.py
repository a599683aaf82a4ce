"""How sure the plan is: another stretch of the same traffic, on steps that are not exactly as long as predicted.

Two things are uncertain. *The model*: step times have a log-normal error, common to all steps (``CostModel.spread``).
*The traffic*: the log is one sample of what the service sees. The log's blocks of time are drawn again with
replacement (a block bootstrap keeps bursts and whatever else happens within a block); a log of two days or more keeps
its hours of the day, each drawn from that hour of another day. Every draw has a log and a step factor of its own,
the factors evenly over their distribution, so that few draws suffice. What the draws cannot know: traffic unlike
anything in the log.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.plan import Chance, Surer
from gambrel.plan.explain import met_objectives
from gambrel.plan.safety import Safety
from gambrel.plan.trial import Bench, fewest_replicas, judge

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.slo import SLO
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload

__all__ = ["CONFIDENCES", "chances", "redrawn", "surer"]

DRAWS = 40
DRAWS_WITH_PREFIXES = 12  # each draw's prefixes are matched anew
BLOCKS = 12
LEAST_SPAN_S, LEAST_REQUESTS = 600.0, 240  # a log below either is too short to draw blocks from
DAY_S, HOUR_S = 86_400.0, 3_600.0
MOST_HOURS = 100_000  # eleven years; blocks of longer spans are as few as those of a short log
CONFIDENCES = (0.8, 0.9, 0.95)
SLOWEST = 4.0  # step factor beyond which nobody asks
SLACK_TOLERANCE = 0.01
MOST_REPLICAS = 4  # times the chosen ones, tried for confidence


def redrawn(workload: Workload, rng: np.random.Generator) -> Workload:
    """Another log of the same span from the same service: blocks of time drawn with replacement.

    A closed loop, or a log too short to have blocks, is returned as it is.
    """
    if not can_redraw(workload):
        return workload
    at = workload.arrival_s - workload.arrival_s[0]
    span = float(at[-1])
    days = int(span // DAY_S)
    hourly = days >= 2 and span <= MOST_HOURS * HOUR_S
    block = HOUR_S if hourly else span / BLOCKS
    count = math.ceil(span / block)
    edges = np.searchsorted(at, np.arange(count + 1) * block)
    edges[-1] = len(at)  # the last arrival is the span itself
    if hourly:
        hours = int(DAY_S / HOUR_S)
        slots = np.arange(count)
        cycles = (count - 1 - slots % hours) // hours + 1  # days that have this hour
        picks = slots % hours + hours * rng.integers(0, cycles)
    else:
        picks = rng.integers(0, count, count)
    sizes = np.diff(edges)[picks]
    if not sizes.any():
        return workload
    rows = np.concatenate([np.arange(edges[b], edges[b + 1]) for b in picks[sizes > 0]])
    shift = np.repeat((np.arange(count) - picks) * block, sizes)
    # The last block of a log may be a short one; drawn in its place, a full one overhangs by less than a block.
    times = np.maximum.accumulate(at[rows] + shift)  # where blocks meet, rounding may undo an order
    timeless = replace(workload, arrival_s=np.zeros(len(workload)))  # rows repeat, so their times are not in order
    return replace(timeless.take(rows), arrival_s=times - times[0])


def can_redraw(workload: Workload) -> bool:
    """Whether the log is long enough to have blocks."""
    enough = len(workload) >= LEAST_REQUESTS and workload.span_s >= LEAST_SPAN_S
    return enough and not workload.closed_loop and workload.has_arrivals


def chances(
    deployment: Deployment, cost_model: CostModel, workload: Workload, slo: SLO, seed: int = 0
) -> tuple[tuple[Chance, ...], str]:
    """The chance of each objective, of keeping up, and of all at once; and what they rest on, in words."""
    bench = Bench.of(cost_model)
    draws = DRAWS if workload.prefix_blocks is None else DRAWS_WITH_PREFIXES
    rng = np.random.default_rng(seed)
    levels = (rng.permutation(draws) + 0.5) / draws
    normal = NormalDist()
    factors = [math.exp(normal.inv_cdf(float(u)) * cost_model.spread) for u in levels]
    seeds = rng.integers(0, 2**31, draws)

    def held(draw: int) -> dict[str, bool]:
        log = redrawn(workload, np.random.default_rng(seeds[draw]))
        return met_objectives(deployment, bench.slower(factors[draw]), log, slo)

    outcomes = [held(draw) for draw in range(draws)]
    found = []
    for name in outcomes[0]:
        chance = sum(o[name] for o in outcomes) / draws
        found.append(Chance(name, chance, slack(deployment, bench, workload, slo, name)))
    chance = sum(all(o.values()) for o in outcomes) / draws
    found.append(Chance("all", chance, min(c.slack for c in found)))
    traffic = "the log's blocks drawn again" if can_redraw(workload) else "the log as it was (too short to draw from)"
    return tuple(found), f"{draws} draws: steps known to {100 * cost_model.spread:.0f} % (one sigma), {traffic}"


def slack(deployment: Deployment, bench: Bench, workload: Workload, slo: SLO, name: str) -> float:
    """The largest factor on all steps at which the objective still holds on the log, to a hundredth."""

    def holds(factor: float) -> bool:
        return met_objectives(deployment, bench.slower(factor), workload, slo)[name]

    low, high = 0.0, 1.0
    while holds(high):
        if high >= SLOWEST:
            return math.inf
        low, high = high, min(SLOWEST, high * 1.5)
    while high - low > 2 * SLACK_TOLERANCE:
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def surer(
    deployment: Deployment, cost_model: CostModel, workload: Workload, slo: SLO, spare: int = 0
) -> tuple[Surer, ...]:
    """What each confidence of ``CONFIDENCES`` costs with the chosen shape; see :mod:`gambrel.plan.safety`."""
    found = []
    least = deployment.replicas
    for confidence in CONFIDENCES:
        bench = Bench.of(cost_model, Safety(confidence, spare))
        most = MOST_REPLICAS * deployment.replicas
        trial = fewest_replicas(partial(judge, bench=bench, workload=workload, slo=slo), deployment, least, most)
        if not trial.candidate.feasible:
            found.append(Surer(confidence, None, math.inf))
            continue
        least = trial.candidate.deployment.replicas
        found.append(Surer(confidence, least, trial.candidate.usd_per_hour))
    return tuple(found)
