"""Hold a plan to its word: simulate it again on another log, and say what drifted and what breaks.

A plan is a prediction about traffic. Run against each new log (in CI, or every night) the check answers three
questions: do the objectives still hold, by how much; how far is the traffic from what the plan was made for; and if it
no longer holds, how many replicas of the same kind would. It also shows the old log's figures beside the new ones, so
that a change of gambrel's own constants is not mistaken for a change of traffic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gambrel.plan.explain import Loads, carries
from gambrel.plan.file import Figures, by_name
from gambrel.plan.safety import Safety
from gambrel.plan.trial import Bench, fewest_replicas, judge, too_small
from gambrel.report.humanise import number, outcome, signed_percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.deployment import Deployment
    from gambrel.core.plan import Candidate, Pricing
    from gambrel.core.slo import Verdict
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload
    from gambrel.plan.file import PlanFile

__all__ = ["Drift", "PlanCheck", "check_plan", "drifts"]

MOST_REPLICAS = 64
"""How many times the plan's replicas are tried when it no longer holds."""
NOTABLE = 0.1
"""Relative drift that is worth a word."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One figure of the traffic, then and now."""

    name: str
    was: float
    now: float

    @property
    def change(self) -> float:
        """Relative change; infinite from nothing."""
        return self.now / self.was - 1.0 if self.was else math.inf

    @property
    def notable(self) -> bool:
        """Whether it moved by a tenth or more."""
        return abs(self.change) >= NOTABLE

    def __str__(self) -> str:
        return f"{self.name} {number(self.was)} to {number(self.now)} ({signed_percent(self.change)})"


@dataclass(frozen=True)
class PlanCheck:
    """A plan against a log.

    ``was`` is what the plan predicted for its own log by objective name; ``broken`` says in words what no longer
    holds, empty when everything does; ``carries`` is the multiple of the new log's load at which the first objective
    breaks (below 1 when one is broken already, NaN when the log does not fit); ``needs`` is the fewest replicas that
    hold, when the plan's do not.
    """

    deployment: Deployment
    workload: str
    num_requests: int
    verdicts: tuple[Verdict, ...]
    safety: tuple[Verdict, ...]
    was: dict[str, float]
    drift: tuple[Drift, ...]
    broken: tuple[str, ...]
    carries: float
    pricing: Pricing | None
    needs: Candidate | None

    @property
    def holds(self) -> bool:
        """Whether the plan still holds."""
        return not self.broken


def check_plan(
    file: PlanFile, deployment: Deployment, workload: Workload, pricer: Callable[[Deployment], CostModel]
) -> PlanCheck:
    """Simulate the file's deployment on ``workload`` with its objectives, confidence and spare replicas."""
    slo = file.slo
    safety = Safety(file.asked.confidence, file.asked.spare)
    was = {p.objective: p.reached_s for p in file.predicted if p.reached_s is not None}
    was |= {p.objective: p.reached for p in file.floors if p.reached is not None}
    drift = drifts(file.workload, Figures.of(workload))
    cost_model = pricer(deployment)
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    memory = cost_model.memory()
    if memory.kv_tokens < longest:
        reason = too_small(memory, longest)
        return PlanCheck(
            deployment, workload.name, len(workload), (), (), was, drift, (reason,), math.nan, None, None
        )  # fmt: skip
    bench = Bench.of(cost_model, safety)
    candidate = judge(deployment, bench, workload, slo).candidate
    broken = tuple(words(v) for v in candidate.verdicts if not v.met)
    broken += tuple(f"{words(v)} {safety.words}" for v in candidate.safety if not v.met)
    broken = broken or tuple(filter(None, [candidate.lost_because]))
    needs = None
    if broken:
        most = MOST_REPLICAS * deployment.replicas
        held = partial(judge, bench=bench, workload=workload, slo=slo)
        trial = fewest_replicas(held, deployment, min(deployment.replicas + 1, most), most)
        needs = trial.candidate if trial.candidate.feasible else None
    return PlanCheck(
        deployment=deployment,
        workload=workload.name,
        num_requests=len(workload),
        verdicts=candidate.verdicts,
        safety=candidate.safety,
        was=was,
        drift=drift,
        broken=broken,
        carries=carries(deployment, bench, Loads(workload), slo),
        pricing=candidate.pricing,
        needs=needs,
    )


def words(verdict: Verdict) -> str:
    """``ttft.p95 reaches 1.25 s, limit 1.00 s (25 % over)``."""
    if verdict.objective.is_floor:
        return outcome(verdict)
    over = f"{100 * -verdict.margin:.0f} % over" if math.isfinite(verdict.margin) else "without bound"
    return f"{outcome(verdict)} ({over})"


def drifts(was: Figures, now: Figures) -> tuple[Drift, ...]:
    """The figures that load a deployment, then and now: rate or users, bursts, lengths."""
    found = []
    for name, old, new in (
        ("users", float(was.users) or None, float(now.users) or None),
        ("rate (requests/s)", was.rate_rps, now.rate_rps),
        ("busiest minute over mean", was.peak_to_mean_60s, now.peak_to_mean_60s),
    ):
        if old is not None and new is not None:
            found.append(Drift(name, old, new))
    for column in ("prompt_tokens", "output_tokens"):
        for statistic in ("mean", "p99"):
            old, new = by_name(getattr(was, column), statistic), by_name(getattr(now, column), statistic)
            if math.isfinite(old):
                found.append(Drift(f"{column} {statistic}", old, new))
    return tuple(found)
