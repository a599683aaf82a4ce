"""Stop a simulation as soon as its verdict is known: a miss that the beginning of the log already proves.

Engines do not look ahead, so what a fleet does before the arrival of request ``m`` is the same whether the log ends
there or goes on. On the log's first ``m`` requests the times before that moment are exact, and whoever has no token by
then has waited at least so long. Where more requests are over a limit than the percentile over the *whole* log
allows, the candidate misses, whatever follows: nothing is guessed, and exhaustive simulation would say the same.
Only what fails is cut short; what holds is always simulated to the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.slo import Verdict
from gambrel.plan.screen import ROUNDING
from gambrel.plan.trial import Trial, judge

if TYPE_CHECKING:
    import numpy.typing as npt

    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run
    from gambrel.core.slo import SLO, Objective
    from gambrel.core.step import Floats
    from gambrel.core.workload import Workload
    from gambrel.plan.trial import Bench

__all__ = ["SHARES", "Beginnings", "Rung", "foreseen", "over_limit", "too_many"]

SHARES = (1 / 16, 1 / 4)
"""Beginnings of the log that are tried, the shortest first: what fails everywhere fails in the first."""
LEAST_REQUESTS = 16


@dataclass(frozen=True)
class Rung:
    """The beginning of a log: ``log`` holds its requests, times before ``until_s`` are those of the whole log."""

    share: float
    log: Workload
    until_s: float


@dataclass(frozen=True)
class Beginnings:
    """A log's beginnings, and how many requests over a limit each objective bears on the whole of it."""

    workload: Workload
    slo: SLO
    rungs: tuple[Rung, ...]

    @classmethod
    def of(cls, workload: Workload, slo: SLO) -> Beginnings:
        """Cut the beginnings once; there are none where the engine makes arrivals or clients give up."""
        n = len(workload)
        cuts = [(share, int(share * n)) for share in SHARES] if foreseen(workload) else []
        rungs = [
            Rung(share, workload.take(slice(0, m)), float(workload.arrival_s[m]))
            for share, m in cuts
            if m >= LEAST_REQUESTS
        ]
        return cls(workload, slo, tuple(rungs))

    def misses(self, run: Run, until_s: float) -> bool:
        """Whether the run of a beginning proves that the whole log misses an objective."""
        several = self.workload.output_tokens > 1
        bad = np.zeros(len(run), np.bool_)
        for objective in self.slo.limits:
            metric = "tpot" if objective.metric == "itl" else objective.metric
            values, rows = at_least(metric, run, until_s), objective.rows(run)
            bad |= (values > objective.limit) & rows
            if objective.metric == "itl":
                continue  # gaps are pooled: when each happened is not kept
            counted = self.of_kind(objective) & (several if metric == "tpot" else True)
            if proves_miss(objective, values[rows], int(np.count_nonzero(counted))):
                return True
        for floor in self.slo.floors:
            share = np.count_nonzero(bad & floor.rows(run)) / np.count_nonzero(self.of_kind(floor))
            if Verdict(floor, 1.0 - share).used > 1.0 + ROUNDING:
                return True
        return False

    def of_kind(self, objective: Objective) -> npt.NDArray[np.bool_]:
        """The log's requests that an objective is about: bool[n]."""
        kind = self.workload.kind
        if not objective.kind or kind is None:
            return np.ones(len(self.workload), np.bool_)
        return np.asarray(kind == self.workload.kinds.index(objective.kind))

    def begin(self, deployment: Deployment, bench: Bench, rung: Rung) -> tuple[Trial, bool]:
        """The trial on a beginning of the log, and whether it proves that the whole log misses.

        Asked for safety, the beginning is simulated as safety asks: that is the harder of the two conditions.
        """
        fleet, tried = deployment, bench
        if bench.safety.asked and deployment.replicas > bench.safety.spare:
            fleet, tried = deployment.with_(replicas=deployment.replicas - bench.safety.spare), bench.harder
        run = tried.run(fleet, rung.log)
        trial = judge(fleet, tried, rung.log, self.slo, run=run)
        as_asked = replace(trial, candidate=replace(trial.candidate, deployment=deployment), share=rung.share)
        return as_asked, self.misses(run, rung.until_s)

    def judge(self, deployment: Deployment, bench: Bench) -> Trial:
        """The verdict of :func:`gambrel.plan.trial.judge`, on a beginning of the log where that proves a miss."""
        for rung in self.rungs:
            trial, proven = self.begin(deployment, bench, rung)
            if proven:
                return trial
        return judge(deployment, bench, self.workload, self.slo)


def foreseen(workload: Workload) -> bool:
    """Whether the log alone says when requests arrive, and all are served to the end."""
    return not workload.closed_loop and workload.after is None and workload.deadline_s is None


def at_least(metric: str, run: Run, until_s: float) -> Floats:
    """What each request of a beginning reaches at the least on the whole log, in seconds; NaN where not defined."""

    def known(times: Floats) -> Floats:
        return np.where(times <= until_s, times, until_s)

    if metric == "tpot":
        gaps = (run.output_tokens - 1).astype(np.float64)
        gaps[gaps < 1] = np.nan
        return np.maximum(known(run.last_token_s) - known(run.first_token_s), 0.0) / gaps * (1.0 - ROUNDING)
    if metric == "queue":
        return known(run.scheduled_s) - run.arrival_s
    return (known(run.first_token_s if metric == "ttft" else run.last_token_s) - run.arrival_s) * (1.0 - ROUNDING)


def proves_miss(objective: Objective, values: Floats, total: int) -> bool:
    """Whether a statistic over ``total`` values, of which these are known at the least, is above the limit."""
    limit = objective.limit
    if objective.statistic == "mean":
        return float(np.nansum(values)) > limit * total * (1 + 1e-9)
    return over_limit(values, limit) >= too_many(objective.statistic, total)


def over_limit(values: Floats, limit_s: float) -> int:
    """How many are above the limit."""
    return int(np.count_nonzero(values > limit_s))


def too_many(statistic: str, total: int) -> int:
    """How many values above a limit put the statistic of ``total`` values above it.

    A percentile lies at or above the order statistic of rank ``floor((n - 1) p)``, counted from 0.
    """
    if statistic == "max":
        return 1
    return total - math.floor((total - 1) * float(statistic[1:]) / 100.0)
