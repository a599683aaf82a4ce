"""One candidate on trial: simulated on a log, held against the objectives, priced.

A :class:`Bench` is a shape's step table and scheduler limits, compiled once and used for every replica count and load.
:func:`judge` simulates, :func:`fewest_replicas` asks it for the smallest fleet that holds, :func:`rank` orders what
holds. The search (:mod:`gambrel.plan.search`) decides who comes to trial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.plan import Candidate, FrontPoint, Pricing
from gambrel.core.step import Step
from gambrel.engine import max_request_tokens, replay, run_of, simulate
from gambrel.engine.prefixes import Prefixes
from gambrel.engine.simulation import prepared
from gambrel.engine.workers import needed
from gambrel.plan.safety import PREDICTION, Safety
from gambrel.plan.screen import shared_blocks
from gambrel.plan.slower import slower
from gambrel.report.humanise import gib, outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run
    from gambrel.core.slo import SLO, Verdict
    from gambrel.core.step import CostModel, MemoryBudget, StepTable
    from gambrel.core.workload import Workload
    from gambrel.engine import Limits, Replay

__all__ = [
    "METRICS",
    "NARROWLY",
    "Bench",
    "Outcome",
    "Trial",
    "fewest_replicas",
    "front_point",
    "in_full",
    "judge",
    "loss",
    "narrowest",
    "price_run",
    "rank",
    "sustained",
    "too_small",
]

TENTH = 0.1  # share of a missing margin that half as many replicas again must bring
IDLE = 0.05  # busy share below which a missed objective is not a matter of load
BEHIND = 0.05  # of the log's span, or of its clients: a queue that long, or so many who leave it, are a backlog
NARROWLY = 0.1  # margin by which more replicas may miss what fewer hold
METRICS = ("ttft", "tpot", "itl", "e2e", "queue")


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate; ``stressed`` says how well it bears more load, higher is better."""

    candidate: Candidate
    stressed: float = -math.inf


@dataclass(frozen=True)
class Trial(Outcome):
    """An outcome with the run behind it, which saw ``share`` of the log: less than 1 where that was enough to fail."""

    run: Run = field(kw_only=True)
    share: float = 1.0


def loss(deployment: Deployment) -> int:
    """How far formats are from the checkpoint's: bits taken off a weight and off a KV element, added.

    Every step down can cost answer quality, so between equal prices the lesser step wins.
    """
    own = deployment.model.weight_format().element_bits
    weights = max(0.0, own - deployment.weight_format.element_bits)
    return int(weights + 16 - 8 * deployment.kv_format.element_bytes)


def rank(trial: Outcome) -> tuple[float, int, float, float, str]:
    """Cheapest first; then the least loss of precision; then the widest margin under stress, and today.

    The name decides last, so that ties never depend on order.
    """
    candidate = trial.candidate
    margin = min((v.margin for v in candidate.verdicts), default=0.0)
    d = candidate.deployment
    return round(candidate.usd_per_hour, 6), loss(d), -round(trial.stressed, 6), -round(margin, 6), d.label


def sustained(run: Run, turn_s: float = 0.0) -> bool:
    """Whether the fleet keeps up with a log: the queue of the last tenth of requests is not a backlog.

    A backlog grows with the log's length; the test allows a twentieth of the span (and one second for short logs).
    A log that is over within ``turn_s``, the time in which a full batch is answered, has no length for it to grow with:
    its queue is that of a burst, which objectives limit or nobody minds. Where clients give up it cannot grow: what
    those who left would have asked is then the work not done, and a twentieth of the last tenth (or one client) may
    leave before being served.
    """
    last = run.queue_s[-max(1, len(run) // 10) :]
    served = last[~np.isnan(last)]
    span = float(run.arrival_s[-1] - run.arrival_s[0])
    left = len(last) - len(served)
    waited = float(np.mean(served)) if len(served) else 0.0
    grows = span >= turn_s and waited > BEHIND * span + 1.0
    return left <= max(1.0, BEHIND * len(last)) and not grows


def price_run(run: Run, usd_per_hour: float) -> Pricing:
    """Dollars per token at the utilisation the traffic really gives: idle time is paid too.

    The fleet is charged from the first arrival to the last token, to the tokens of answers that came to their end;
    infinite where none did. Prefill's share of the accelerators' busy time is charged to prompt tokens, the rest to
    output tokens; ``usd_per_mtok`` charges everything to output tokens.
    """
    dollars = usd_per_hour * run.makespan_s / 3600.0
    share = run.gpu_prefill_s / run.gpu_busy_s if run.gpu_busy_s > 0 else 0.0
    done = np.isfinite(run.last_token_s)
    prompt, output = (float(n[done].sum()) for n in (run.prompt_tokens, run.output_tokens))
    per = 1e6 * dollars if done.any() else math.inf
    return Pricing(
        usd_per_hour=usd_per_hour,
        usd_per_mtok=per / max(output, 1.0),
        usd_per_mtok_input=per * share / max(prompt, 1.0) if share > 0 else 0.0,
        usd_per_mtok_output=per * (1.0 - share) / max(output, 1.0) if share < 1 else 0.0,
        utilisation=run.utilisation,
    )


@dataclass(frozen=True)
class Bench:
    """A deployment's step table and scheduler limits, compiled once and used for every replica count and load."""

    cost_model: CostModel
    memory: MemoryBudget
    table: StepTable
    limits: Limits
    safety: Safety = PREDICTION

    @classmethod
    def of(cls, cost_model: CostModel, safety: Safety = PREDICTION) -> Bench:
        """Compile the tables of the cost model's deployment; ``safety`` is what :func:`judge` asks beyond them."""
        return cls(cost_model, cost_model.memory(), *prepared(cost_model.deployment, cost_model), safety)

    @cached_property
    def harder(self) -> Bench:
        """The same with every step as slow as the asked confidence demands, and nothing more asked."""
        return replace(self.slower(self.safety.factor(self.cost_model.spread)), safety=PREDICTION)

    def slower(self, factor: float) -> Bench:
        """The same with every step ``factor`` times as long."""
        if factor == 1.0:
            return self
        return replace(
            self,
            cost_model=slower(self.cost_model, factor),
            table=self.table.scaled(factor),
            limits=replace(self.limits, draft_s=self.limits.draft_s * factor),
        )

    def seats(self, workload: Workload) -> int:
        """Requests of a log that one replica serves to their ends at once, whichever they are.

        What several prompts begin with is held once: all of that, and of every request the rest.
        """
        held = self.memory.sequences(max_request_tokens(workload))
        if self.limits.prefix_caching and workload.prefix_blocks is not None:
            size, memory = self.limits.block_size, self.memory
            found = Prefixes.of(workload, size)
            known = np.minimum(shared_blocks(found), workload.prompt_tokens // size)
            whole = -(-(workload.prompt_tokens + workload.output_tokens - 1) // size)
            own = int((whole - known).max()) + memory.state_blocks
            held = max(held, (memory.num_kv_blocks - int(found.sizes.sum())) // max(1, own))
        return min(self.limits.max_num_seqs, held)

    def turn_s(self, workload: Workload) -> float:
        """Seconds in which a replica answers a full batch of the workload's mean request: B t_prefill + G t(B).

        No shorter log has a rate that could exceed what a replica carries: an overloaded one only fills its batch in
        that time, and its queue grows as (overload - 1) x span from then on.
        """
        prompt, output = float(workload.prompt_tokens.mean()), float(workload.output_tokens.mean())
        held = max(1, round(prompt + output / 2.0))
        batch = max(1, min(self.limits.max_num_seqs, self.memory.sequences(held)))
        window, chunk = self.table.window or None, self.table.max_tokens
        prefill_s = prompt / chunk * self.table.cost(Step.prefill(chunk, window=window)).seconds
        return batch * prefill_s + output * self.table.cost(Step.decode(batch, held, window)).seconds

    def keeps_up(self, deployment: Deployment, workload: Workload, run: Run) -> str:
        """Why the fleet does not keep up, or an empty string.

        A log must not leave a growing queue; the users of a closed loop must all be served at once, none waiting
        for the memory of another.
        """
        if not workload.closed_loop:
            grows = "the queue grows" if workload.deadline_s is None else "the queue grows, or clients leave it,"
            return "" if sustained(run, self.turn_s(workload)) else f"falls behind: {grows} to the end of the log"
        seats = self.seats(workload) * deployment.replicas
        return "" if seats >= workload.closed_loop else f"serves {seats} of {workload.closed_loop} users at once"

    def run(self, deployment: Deployment, workload: Workload, *, series: bool = False) -> Run:
        """Replay a workload whose requests are known to fit."""
        if needed(deployment):
            return told_apart(simulate(deployment, self.cost_model, workload, series=series), workload)
        played = self.replay(deployment, workload, series=series)
        run = run_of(played, self.limits, deployment.replicas, basis=self.cost_model.basis)
        return told_apart(run, workload)

    def replay(self, deployment: Deployment, workload: Workload, *, series: bool = False) -> Replay:
        """The replay behind a run of equal replicas of one stage, in the engine's own times."""
        return replay(
            self.table,
            self.limits,
            workload,
            replicas=deployment.replicas,
            routing=deployment.routing,
            series=series,
        )


def told_apart(run: Run, workload: Workload) -> Run:
    """The run with the kinds of traffic of its workload, row by row."""
    return run if workload.kind is None else replace(run, kind=workload.kind, kinds=workload.kinds)


def judge(deployment: Deployment, bench: Bench, workload: Workload, slo: SLO, run: Run | None = None) -> Trial:
    """Simulate one candidate on the whole workload and hold it against the objectives.

    Where the bench asks for safety, it is simulated a second time with the spare replicas down and slower steps.
    ``run`` is its simulation where that is there already.
    """
    run = bench.run(deployment, workload) if run is None else run
    price = deployment.usd_per_hour
    verdicts = slo.check(run)
    behind = bench.keeps_up(deployment, workload, run)
    lost, safety = miss(verdicts) or behind, bench.safety
    hard: tuple[Verdict, ...] = ()
    if safety.asked and not lost:
        left = deployment.replicas - safety.spare
        if left < 1:
            behind = f"nothing is left {safety.words}"
        else:
            fewer = deployment.with_(replicas=left)
            worse = bench.harder.run(fewer, workload)
            hard = slo.check(worse)
            behind = bench.harder.keeps_up(fewer, workload, worse)
        reason = miss(hard) or behind
        lost = f"{safety.words}: {reason}" if reason else ""
    candidate = Candidate(
        deployment=deployment,
        stage="simulated",
        memory=bench.memory,
        verdicts=verdicts,
        safety=hard,
        pricing=None if price is None else price_run(run, price),
        keeps_up=not behind,
        lost_because=lost,
    )
    return Trial(candidate, run=run)


def in_full(trial: Trial, slo: SLO) -> Outcome:
    """What became of it, with every percentile and its goodput; the run itself, a megabyte or more, is let go."""
    latency = {m: trial.run.distribution(m) for m in METRICS}
    candidate = replace(trial.candidate, latency=latency, goodput=slo.goodput(trial.run))
    return Outcome(candidate, trial.stressed)


def front_point(trial: Trial) -> FrontPoint:
    """The trial as people weigh it: dollars, TTFT, TPOT and headroom."""
    c, run = trial.candidate, trial.run
    headroom = min((v.margin for v in c.verdicts), default=math.nan)
    ttft, tpot = run.distribution("ttft").p95, run.distribution("tpot").p95
    return FrontPoint(c.deployment, c.usd_per_hour, ttft, 0.0 if math.isnan(tpot) else tpot, headroom)


def miss(verdicts: tuple[Verdict, ...]) -> str:
    """The objective missed by most, in words; an empty string when all hold."""
    worst = min((v for v in verdicts if not v.met), key=lambda v: v.margin, default=None)
    return "" if worst is None else outcome(worst)


def narrowest(trial: Outcome) -> float:
    """The smallest margin to an objective; negative when one is missed."""
    return min((v.margin for v in trial.candidate.verdicts), default=0.0)


def one_fewer(try_out: Callable[[Deployment], Trial], most: Trial, failed: int) -> Trial | None:
    """The trial of one replica fewer than the most, which miss narrowly, if it holds; ``failed`` are known to miss.

    Where hardly any replica is busy, requests are alone on theirs either way, and it would miss as well.
    """
    count = most.candidate.deployment.replicas - 1
    if count <= failed or narrowest(most) < -NARROWLY or most.run.utilisation < IDLE:
        return None
    other = try_out(most.candidate.deployment.with_(replicas=count))
    return other if other.candidate.feasible else None


def fewest_replicas(try_out: Callable[[Deployment], Trial], deployment: Deployment, least: int, most: int) -> Trial:
    """The fewest replicas in ``least..most`` that hold, by galloping up and bisecting; else the last that missed.

    Where galloping seems to lead nowhere, ``most`` are tried at once, and if they miss too, that ends it: a fleet that
    is hardly busy, or one that keeps up and that half as many replicas again brought nearer to its limits by less than
    a tenth of what is missing. Dealing requests in turn makes one replica more now and then a little worse: where the
    most miss narrowly, one fewer is tried as well, and none between.
    """
    count, failed = min(least, most), min(least, most) - 1
    trial = try_out(deployment.with_(replicas=count))
    stuck = trial.run.utilisation < IDLE
    doubted = False
    while not trial.candidate.feasible:
        if count >= most:
            other = one_fewer(try_out, trial, failed)
            if other is None:
                return trial
            trial = other
            break
        if stuck and not doubted:
            doubted = True
            last = try_out(deployment.with_(replicas=most))
            if not last.candidate.feasible:
                other = one_fewer(try_out, last, count)
                if other is None:
                    return trial
                failed, trial = count, other
                break
        failed, count = count, min(most, max(count + 1, math.ceil(count * 1.5)))
        before, trial = trial, try_out(deployment.with_(replicas=count))
        gained = narrowest(trial) - narrowest(before)
        enough = trial.candidate.keeps_up and count >= 1.5 * failed and trial.share == before.share
        stuck = trial.run.utilisation < IDLE or (enough and gained < TENTH * -narrowest(trial))
    while trial.candidate.deployment.replicas - failed > 1:
        middle = (trial.candidate.deployment.replicas + failed) // 2
        other = try_out(deployment.with_(replicas=middle))
        if other.candidate.feasible:
            trial = other
        else:
            failed = middle
    return trial


def too_small(memory: MemoryBudget, longest: int) -> str:
    """Why a replica cannot hold the model or the longest request, in GiB and tokens."""
    needed = memory.weight_bytes + memory.activation_bytes + memory.reserve_bytes
    if needed >= memory.usable_bytes:
        return f"does not fit: needs {gib(needed)} beside any KV cache, has {gib(memory.usable_bytes)}"
    return f"KV cache holds {memory.kv_tokens:,} tokens, the longest request needs {longest:,}"
