"""Replicas by hour of the day: what the night needs, what switching costs, and what is saved against a flat fleet.

Each hour of the log is simulated by itself, at the fewest replicas that hold on every day that has it: percentiles do
not follow the mean rate, so the replicas are not taken in proportion. Then the whole log is served by a fleet that
follows the timetable, replicas asked for early enough to be ready in time and paid for from that moment; what is missed
there is mended by a replica more in the hour that misses most, never above the plan's own. The saving is that of the
simulated fleet, start-ups included.

Hours are counted from the log's first arrival, because a log keeps no clock. A log below a day has no timetable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.plan import Hour, Schedule
from gambrel.engine.autoscaling import Autoscale
from gambrel.engine.fleet import serve_fleet
from gambrel.plan.safety import PREDICTION, Safety
from gambrel.plan.trial import Bench, fewest_replicas, judge
from gambrel.report.humanise import seconds
from gambrel.traffic import slice_time

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.plan import Plan
    from gambrel.core.run import Run
    from gambrel.core.slo import SLO, Objective
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Ints, Workload
    from gambrel.engine.autoscaling import Look, Rule
    from gambrel.engine.fleet import FleetRun

__all__ = ["START_S", "Timetable", "schedule"]

HOUR_S, DAY_HOURS = 3600.0, 24
LEAST_HOURS = 23.0
"""Hours of log below which there is no day to plan."""
START_S = 300.0
"""Seconds from asking for a replica to its first request, unless told otherwise: a node that is there, weights that are
near. A machine to be provisioned and weights from afar take longer."""
LOOK_S = 60.0
"""Seconds between looks at the timetable."""
MENDED = 24
"""Replica-hours that are added at most when the whole day misses what its hours met."""
MOST = 2
"""Times the plan's replicas that an hour may take."""


@dataclass(frozen=True, slots=True)
class Timetable(Autoscale):
    """An autoscaler that looks at the clock: ``hourly`` replicas by hour, asked for ``lead_s`` before the hour."""

    hourly: tuple[int, ...] = ()
    lead_s: float = 0.0

    def start(self) -> Rule:
        """A rule that remembers nothing."""
        return Clock(self)


@dataclass(frozen=True)
class Clock:
    """The timetable as a rule."""

    table: Timetable

    def wanted(self, look: Look) -> int:
        """What this hour needs, or the one that begins before a new replica could be ready."""
        hourly = self.table.hourly
        now = int(look.time_s // HOUR_S) % DAY_HOURS
        soon = int((look.time_s + self.table.lead_s) // HOUR_S) % DAY_HOURS
        return max(hourly[now], hourly[soon])


def schedule(
    plan: Plan,
    workload: Workload,
    cost_model: CostModel,
    safety: Safety = PREDICTION,
    start_s: float = START_S,
) -> Schedule:
    """The timetable of the chosen deployment over the log's days; without hours where the log is too short."""
    d = plan.chosen.deployment
    flat_day = plan.chosen.usd_per_hour * DAY_HOURS
    span_h = workload.span_s / HOUR_S
    if workload.closed_loop or not workload.has_arrivals or span_h < LEAST_HOURS:
        why = f"the log spans {seconds(workload.span_s)}: a timetable needs a day of arrivals or more"
        return Schedule((), math.nan, flat_day, start_s, (), why)
    bench = Bench.of(cost_model, safety)
    slices = hour_slices(workload)
    needed = [most_needed(slices[h], d, bench, plan.slo, safety.spare) for h in range(DAY_HOURS)]
    # No hour gets more than the plan: a busy hour may miss by itself what the whole log meets with these replicas.
    replicas, fleet = mended([min(n, d.replicas) for n in needed], d, bench, workload, plan.slo, start_s)
    days = span_h / DAY_HOURS
    each = plan.chosen.usd_per_hour / d.replicas
    hours = tuple(
        Hour(
            hour=h,
            rate_rps=float(np.mean([len(s) for s in slices[h]] or [0])) / HOUR_S,
            busiest_rps=max((len(s) for s in slices[h]), default=0) / HOUR_S,
            needed=needed[h],
            replicas=replicas[h],
            usd_per_hour=each * replicas[h],
        )
        for h in range(DAY_HOURS)
    )
    basis = (
        f"{span_h:.0f} hours of log, hours counted from its first arrival; every hour simulated at its replicas, then "
        f"the whole log under the timetable, a replica asked for {seconds(start_s + LOOK_S)} before its hour"
    )
    return Schedule(hours, each * fleet.replica_hours / days, flat_day, start_s, plan.slo.check(fleet.run), basis)


def hour_slices(workload: Workload) -> list[list[Workload]]:
    """The log's whole hours by hour of the day; hours without a request are left out."""
    at = workload.arrival_s - workload.arrival_s[0]
    log = replace(workload, arrival_s=at)
    found: list[list[Workload]] = [[] for _ in range(DAY_HOURS)]
    edges = np.arange(0.0, at[-1] + HOUR_S, HOUR_S)
    counts = np.diff(np.searchsorted(at, edges))
    for i, count in enumerate(counts):
        if count:
            found[i % DAY_HOURS].append(slice_time(log, float(edges[i]), float(edges[i + 1])))
    return found


def most_needed(logs: list[Workload], d: Deployment, bench: Bench, slo: SLO, spare: int) -> int:
    """The fewest replicas that hold this hour on every day that has it."""
    least = 1 + spare
    for log in logs:
        trial = fewest_replicas(partial(judge, bench=bench, workload=log, slo=slo), d, least, MOST * d.replicas)
        least = max(least, trial.candidate.deployment.replicas if trial.candidate.feasible else d.replicas)
    return least


def mended(
    needed: list[int], d: Deployment, bench: Bench, workload: Workload, slo: SLO, start_s: float
) -> tuple[list[int], FleetRun]:
    """The timetable under which the whole log holds, and the fleet that followed it."""
    replicas = list(needed)
    log = replace(workload, arrival_s=workload.arrival_s - workload.arrival_s[0])
    fleet = followed(replicas, d, bench, log, start_s)
    for _ in range(MENDED):
        missed = [v for v in slo.check(fleet.run) if not v.met]
        short = [h for h in range(DAY_HOURS) if replicas[h] < d.replicas]
        if not missed or not short:
            break
        over = over_limit(fleet.run, slo, min(missed, key=lambda v: v.margin).objective)
        replicas[max(short, key=lambda h: int(over[h]))] += 1
        fleet = followed(replicas, d, bench, log, start_s)
    return replicas, fleet


def followed(replicas: list[int], d: Deployment, bench: Bench, log: Workload, start_s: float) -> FleetRun:
    """The log served by a fleet that follows the timetable."""
    table = Timetable(
        target=1.0,
        min_replicas=min(replicas),
        max_replicas=max(replicas),
        initial=replicas[0],
        period_s=LOOK_S,
        hourly=tuple(replicas),
        lead_s=start_s + LOOK_S,
    )
    return serve_fleet(
        bench.table, bench.limits, log, routing=d.routing, autoscale=table, start_up_s=start_s,
        gpus_per_replica=d.gpus_per_replica, basis=bench.cost_model.basis,
    )  # fmt: skip


def over_limit(run: Run, slo: SLO, objective: Objective) -> Ints:
    """int64[24]: requests of each hour of the day over the limit of an objective; of goodput, over any."""
    over = ~slo.good(run) & objective.rows(run) if objective.is_floor else objective.exceeded(run)
    hours = (run.arrival_s[over] // HOUR_S).astype(np.int64) % DAY_HOURS
    return np.bincount(hours, minlength=DAY_HOURS).astype(np.int64)
