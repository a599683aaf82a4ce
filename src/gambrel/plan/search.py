"""Find the cheapest deployment that holds, by simulation, and keep the reason why every other one lost.

Three passes. *Shapes*: every accelerator x parallelism x formats is ruled out by memory, by the latency of a request
alone, or by the cost of the fewest replicas that could do the work; the rest get their replica count by bisection on
simulations of the whole log. *Limits*: the best shapes try every ``max_num_seqs`` and ``max_num_batched_tokens``.
*Verdict*: dollars per hour decide, then the smallest margin to an objective. Deterministic: candidates are ordered
before they are judged, and threads only change who computes, never what.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import DeploymentError
from gambrel.core.formats import weight_format
from gambrel.core.plan import Candidate, FrontPoint, Pricing
from gambrel.core.units import GIB
from gambrel.engine import limits_of, replay, run_of
from gambrel.plan.safety import PREDICTION, Safety
from gambrel.plan.screen import Demand, alone, least_busy_s, least_replicas, screen_latency
from gambrel.report.humanise import seconds
from gambrel.traffic import scale_load

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.deployment import Deployment
    from gambrel.core.model import Model
    from gambrel.core.run import Run
    from gambrel.core.slo import SLO, Verdict
    from gambrel.core.step import CostModel, MemoryBudget, StepTable
    from gambrel.core.workload import Workload
    from gambrel.engine import Limits
    from gambrel.plan.space import Space

__all__ = [
    "METRICS",
    "WORKERS",
    "Bench",
    "Search",
    "Trial",
    "fewest_replicas",
    "in_full",
    "judge",
    "price_run",
    "search",
    "sustained",
]

TENTH = 0.1  # share of a missing margin that half as many replicas again must bring
IDLE = 0.05  # busy share below which a missed objective is not a matter of load
METRICS = ("ttft", "tpot", "itl", "e2e", "queue")
FINALISTS = 4
LADDER = (1.25, 1.5, 2.0)  # load multiples at which settings of one price are told apart
WORKERS = 2


@dataclass(frozen=True)
class Trial:
    """A simulated candidate with its run; ``stressed`` says how well it bears more load, higher is better."""

    candidate: Candidate
    run: Run
    stressed: float = -math.inf


@dataclass
class Search:
    """What the search found: the best trial of every shape that was simulated, and the rest with their reasons.

    ``tried`` is every deployment that was simulated and holds, whether or not it was the best of its shape.
    """

    trials: list[Trial] = field(default_factory=list)
    ruled_out: list[Candidate] = field(default_factory=list)
    tried: list[FrontPoint] = field(default_factory=list)
    num_simulated: int = 0
    num_considered: int = 0

    @property
    def feasible(self) -> list[Trial]:
        """Trials that meet every objective, best first."""
        return sorted((t for t in self.trials if t.candidate.feasible), key=rank)


def loss(deployment: Deployment) -> int:
    """How far formats are from the checkpoint's: bits taken off a weight and off a KV element, added.

    Every step down can cost answer quality, so between equal prices the lesser step wins.
    """
    own = weight_format(deployment.model.checkpoint_format).element_bits
    weights = max(0.0, own - deployment.weight_format.element_bits)
    return int(weights + 16 - 8 * deployment.kv_format.element_bytes)


def rank(trial: Trial) -> tuple[float, int, float, float, str]:
    """Cheapest first; then the least loss of precision; then the widest margin under stress, and today.

    The name decides last, so that ties never depend on order.
    """
    candidate = trial.candidate
    margin = min((v.margin for v in candidate.verdicts), default=0.0)
    d = candidate.deployment
    return round(candidate.usd_per_hour, 6), loss(d), -round(trial.stressed, 6), -round(margin, 6), d.label


def sustained(run: Run) -> bool:
    """Whether the fleet keeps up with a log: the queue of the last tenth of requests is not a backlog.

    A backlog grows with the log's length; the test allows a twentieth of the span (and one second for short logs).
    """
    last = run.queue_s[-max(1, len(run) // 10) :]
    span = float(run.arrival_s[-1] - run.arrival_s[0])
    return bool(np.mean(last) <= 0.05 * span + 1.0)


def price_run(run: Run, usd_per_hour: float) -> Pricing:
    """Dollars per token at the utilisation the traffic really gives: idle time is paid too.

    The fleet is charged from the first arrival to the last token. Prefill's share of the busy time is charged to
    prompt tokens, the rest to output tokens; ``usd_per_mtok`` charges everything to output tokens.
    """
    dollars = usd_per_hour * run.makespan_s / 3600.0
    share = run.prefill_s / run.busy_s if run.busy_s > 0 else 0.0
    prompt, output = float(run.prompt_tokens.sum()), float(run.output_tokens.sum())
    return Pricing(
        usd_per_hour=usd_per_hour,
        usd_per_mtok=1e6 * dollars / output,
        usd_per_mtok_input=1e6 * dollars * share / prompt,
        usd_per_mtok_output=1e6 * dollars * (1.0 - share) / output,
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
        d, memory = cost_model.deployment, cost_model.memory()
        table = cost_model.compile(d.max_num_batched_tokens, d.max_num_seqs * (1 + d.draft_tokens))
        return cls(cost_model, memory, table, limits_of(d, memory.num_kv_blocks), safety)

    @cached_property
    def harder(self) -> Bench:
        """The same with every step as slow as the asked confidence demands, and nothing more asked."""
        factor = self.safety.factor(self.cost_model.spread)
        return replace(self, table=self.table.scaled(factor), safety=PREDICTION)

    def seats(self, longest: int) -> int:
        """Requests of ``longest`` tokens that one replica serves at once."""
        return min(self.limits.max_num_seqs, self.memory.kv_tokens // longest)

    def keeps_up(self, deployment: Deployment, workload: Workload, run: Run) -> str:
        """Why the fleet does not keep up, or an empty string.

        A log must not leave a growing queue; the users of a closed loop must all be served at once, none waiting
        for the memory of another.
        """
        if not workload.closed_loop:
            return "" if sustained(run) else "falls behind: the queue grows to the end of the log"
        longest = int((workload.prompt_tokens + workload.output_tokens).max())
        seats = self.seats(longest) * deployment.replicas
        return "" if seats >= workload.closed_loop else f"serves {seats} of {workload.closed_loop} users at once"

    def run(self, deployment: Deployment, workload: Workload, *, series: bool = False) -> Run:
        """Replay a workload whose requests are known to fit."""
        played = replay(
            self.table,
            self.limits,
            workload,
            replicas=deployment.replicas,
            routing=deployment.routing,
            series=series,
        )
        return run_of(played, self.limits, deployment.replicas, basis=self.cost_model.basis)


def judge(deployment: Deployment, bench: Bench, workload: Workload, slo: SLO) -> Trial:
    """Simulate one candidate on the whole workload and hold it against the objectives.

    Where the bench asks for safety, it is simulated a second time with the spare replicas down and slower steps.
    """
    run = bench.run(deployment, workload)
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
    return Trial(candidate, run)


def in_full(trial: Trial, slo: SLO) -> Trial:
    """The trial with every percentile and its goodput, which the search itself has no need of."""
    latency = {m: trial.run.distribution(m) for m in METRICS}
    return replace(trial, candidate=replace(trial.candidate, latency=latency, goodput=slo.goodput(trial.run)))


def front_point(trial: Trial) -> FrontPoint:
    """The trial as people weigh it: dollars, TTFT, TPOT and headroom."""
    c, run = trial.candidate, trial.run
    headroom = min((v.margin for v in c.verdicts), default=math.nan)
    ttft, tpot = run.distribution("ttft").p95, run.distribution("tpot").p95
    return FrontPoint(c.deployment, c.usd_per_hour, ttft, 0.0 if math.isnan(tpot) else tpot, headroom)


def miss(verdicts: tuple[Verdict, ...]) -> str:
    """The objective missed by most, in words; an empty string when all hold."""
    worst = min((v for v in verdicts if not v.met), key=lambda v: v.margin, default=None)
    if worst is None:
        return ""
    o = worst.objective
    return f"{o.name} reaches {seconds(worst.reached_s)}, limit {seconds(o.limit_s)}"


def narrowest(trial: Trial) -> float:
    """The smallest margin to an objective; negative when one is missed."""
    return min((v.margin for v in trial.candidate.verdicts), default=0.0)


def fewest_replicas(try_out: Callable[[Deployment], Trial], deployment: Deployment, least: int, most: int) -> Trial:
    """The fewest replicas in ``least..most`` that hold, by galloping up and bisecting; else the last that missed.

    Galloping ends early where it leads nowhere: a fleet that keeps up, and that half as many replicas again brought
    nearer to its limits by less than a tenth of what is missing, is not held back by load.
    """
    count, failed = min(least, most), min(least, most) - 1
    trial = try_out(deployment.with_(replicas=count))
    while not trial.candidate.feasible:
        if count >= most or trial.run.utilisation < IDLE:
            return trial
        failed, count = count, min(most, max(count + 1, math.ceil(count * 1.5)))
        before, trial = narrowest(trial), try_out(deployment.with_(replicas=count))
        gained = narrowest(trial) - before
        if trial.candidate.keeps_up and count >= 1.5 * failed and gained < TENTH * -narrowest(trial):
            return trial
    while trial.candidate.deployment.replicas - failed > 1:
        middle = (trial.candidate.deployment.replicas + failed) // 2
        other = try_out(deployment.with_(replicas=middle))
        if other.candidate.feasible:
            trial = other
        else:
            failed = middle
    return trial


@dataclass
class Hunter:
    """The search over the shapes of one accelerator, and what it found."""

    workload: Workload
    demand: Demand
    slo: SLO
    space: Space
    pricer: Callable[[Deployment], CostModel]
    ladder: tuple[Workload, ...]
    found: Search = field(default_factory=Search)

    def try_out(self, bench: Bench, deployment: Deployment) -> Trial:
        """Simulate and count."""
        self.found.num_simulated += 1
        trial = judge(deployment, bench, self.workload, self.slo)
        if trial.candidate.feasible:
            self.found.tried.append(front_point(trial))
        return trial

    def rule_out(
        self, deployment: Deployment, memory: MemoryBudget, stage: str, reason: str, bounds: tuple[Verdict, ...] = ()
    ) -> None:
        """A candidate that goes no further; ``bounds`` are the best its objectives can reach."""
        self.found.ruled_out.append(Candidate(deployment, stage, memory, bounds, lost_because=reason))

    def bound(self, deployment: Deployment) -> tuple[Bench, int] | None:
        """The compiled tables and the fewest replicas worth simulating; None when the shape is ruled out."""
        cost_model = self.pricer(deployment)
        memory = cost_model.memory()
        if memory.kv_tokens < self.demand.longest:
            self.rule_out(deployment, memory, "fits", too_small(memory, self.demand.longest))
            return None
        if deployment.accelerator.price is None:
            reason = f"no price is known for {deployment.accelerator.name}; give one to rank it"
            self.rule_out(deployment, memory, "screen", reason)
            return None
        bench = Bench.of(cost_model, self.space.safety)
        table = bench.table
        bounds = screen_latency(table, self.demand, self.slo)
        worst = min(bounds, key=lambda v: v.margin, default=None)
        if worst is not None and not worst.met:
            o = worst.objective
            reason = (
                f"{o.name} is at least {seconds(worst.reached_s)} even for requests alone, limit {seconds(o.limit_s)}"
            )
            self.rule_out(deployment, memory, "screen", reason, bounds)
            return None
        spare = self.space.spare
        if self.workload.closed_loop:
            return bench, -(-self.workload.closed_loop // bench.seats(self.demand.longest)) + spare
        ttft, tpot = alone(table, int(self.demand.grid[-1]))
        slack = 0.2 * self.demand.span_s + 1.0 + ttft + tpot * float(self.demand.outputs.max())
        busy = least_busy_s(table, self.demand, deployment, memory)
        return bench, least_replicas(busy, self.demand, slack) + spare

    def explore(self, shapes: list[Deployment]) -> Search:
        """All shapes, the cheapest lower bound first; those that cannot beat the best found are not simulated."""
        queue = []
        for deployment in shapes:
            bound = self.bound(deployment)
            price = deployment.usd_per_hour
            if bound is not None and price is not None:
                usd = round(price * bound[1], 6)
                queue.append((usd, loss(deployment), deployment.label, deployment, *bound, price))
        queue.sort(key=lambda item: item[:3])
        best, best_loss = math.inf, 0
        for least_usd, lost, _, deployment, bench, least, price in queue:
            if least_usd > best or (least_usd == best and lost >= best_loss):
                reason = f"needs {least} replicas or more, ${least_usd:.2f}/h; ${best:.2f}/h is enough on this GPU"
                self.rule_out(deployment, bench.memory, "screen", reason)
                continue
            allowed = self.space.most_gpus(deployment.accelerator)
            most = allowed // deployment.gpus_per_replica
            if least > most:
                need = least * deployment.gpus_per_replica
                reason = f"needs {need} GPUs or more, {allowed} are allowed"
                self.rule_out(deployment, bench.memory, "screen", reason)
                continue
            if math.isfinite(best):
                most = min(most, max(least, math.floor(best / price + 1e-9)))
            trial = fewest_replicas(partial(self.try_out, bench), deployment, least, max(1, most))
            self.found.trials.append(trial)
            usd = round(trial.candidate.usd_per_hour, 6)
            if trial.candidate.feasible and (usd, lost) < (best, best_loss):
                best, best_loss = usd, lost
        self.found.num_considered += len(shapes)
        return self.found

    def refine(self, trial: Trial) -> Trial:
        """The same shape under other batch limits: fewer replicas first, then what it carries.

        One limit at a time, in turn, until neither moves: the two hardly interact (a token budget shapes prefill,
        a sequence limit decoding), and a full grid costs three times as much.
        """
        best = self.stress(Bench.of(self.pricer(trial.candidate.deployment), self.space.safety), trial)
        tried = {limits(best.candidate.deployment)}
        moved = True
        while moved:
            moved = False
            for axis in ("max_num_batched_tokens", "max_num_seqs"):
                for value in getattr(self.space, axis):
                    deployment = best.candidate.deployment.with_(**{axis: value})
                    if limits(deployment) in tried or deployment.max_num_batched_tokens < deployment.max_num_seqs:
                        continue
                    tried.add(limits(deployment))
                    other = self.try_limits(deployment, best)
                    if other is not None and rank(other) < rank(best):
                        best, moved = other, True
        return best

    def try_limits(self, deployment: Deployment, rival: Trial) -> Trial | None:
        """The fewest replicas up to the deployment's that hold, under stress; None when it cannot beat ``rival``."""
        cost_model = self.pricer(deployment)
        self.found.num_considered += 1
        if cost_model.memory().kv_tokens < self.demand.longest:
            return None
        bench = Bench.of(cost_model, self.space.safety)
        best = None
        for replicas in range(deployment.replicas, 0, -1):
            trial = self.try_out(bench, deployment.with_(replicas=replicas))
            if not trial.candidate.feasible:
                break
            best = trial
        if best is None or rank(replace(best, stressed=math.inf)) >= rank(rival):
            return None
        cheaper = best.candidate.deployment.replicas < rival.candidate.deployment.replicas
        return self.stress(bench, best) if cheaper else self.outlast(bench, best, rival.stressed)

    def stress(self, bench: Bench, trial: Trial, start: int = 0) -> Trial:
        """The trial with the rungs of the stress ladder it climbs, and by how much it clears the last or misses it.

        ``start`` rungs are taken as climbed.
        """
        climbed, margin = float(start), 0.0
        for workload in self.ladder[start:]:
            margin = self.bears(bench, trial, workload)
            if margin < 0:
                return replace(trial, stressed=climbed + 1.0 / (1.0 - margin))
            climbed += 1.0
        return replace(trial, stressed=climbed + margin)

    def outlast(self, bench: Bench, trial: Trial, rival: float) -> Trial | None:
        """The trial under stress, or None when it does not outlast a rival that is stressed ``rival``.

        The rung that decides, where the rival fell or the top one, is tried first: most fall there, and need no other.
        """
        rung = min(int(rival), len(self.ladder) - 1)
        found = self.stress(bench, trial, rung)
        if found.stressed <= rival:
            return None
        if rung and self.bears(bench, trial, self.ladder[rung - 1]) < 0:
            return None
        return found

    def bears(self, bench: Bench, trial: Trial, workload: Workload) -> float:
        """The margin to the nearest objective under another load; negative when one is missed or a queue grows."""
        self.found.num_simulated += 1
        run = bench.run(trial.candidate.deployment, workload)
        margin = min(v.margin for v in self.slo.check(run))
        behind = bench.keeps_up(trial.candidate.deployment, workload, run)
        return -max(abs(margin), 1e-9) if behind else margin


def limits(deployment: Deployment) -> tuple[int, int]:
    """The two batch limits."""
    return deployment.max_num_seqs, deployment.max_num_batched_tokens


def too_small(memory: MemoryBudget, longest: int) -> str:
    """Why a replica cannot hold the model or the longest request, in GiB and tokens."""
    needed = memory.weight_bytes + memory.activation_bytes + memory.reserve_bytes
    if needed >= memory.usable_bytes:
        return (
            f"does not fit: needs {needed / GIB:.1f} GiB beside any KV cache, has {memory.usable_bytes / GIB:.1f} GiB"
        )
    return f"KV cache holds {memory.kv_tokens:,} tokens, the longest request needs {longest:,}"


def search(
    model: Model,
    workload: Workload,
    slo: SLO,
    space: Space,
    pricer: Callable[[Deployment], CostModel],
    progress: Callable[[str], None] = lambda _: None,
) -> Search:
    """Run the three passes over ``space``; ``pricer`` makes the cost model of a deployment.

    Raises:
        DeploymentError: the space holds no shape that the model can take.
    """
    demand = Demand.of(workload)
    ladder = tuple(scale_load(workload, load, seed=0) for load in LADDER)
    groups: dict[str, list[Deployment]] = {}
    for deployment in space.shapes(model):
        groups.setdefault(deployment.accelerator.name, []).append(deployment)
    if not groups:
        raise DeploymentError(
            f"nothing to search: no accelerator and tensor-parallel degree of {list(space.tp)} suits {model.name} "
            f"({model.num_heads} attention heads)"
        )

    def explore(shapes: list[Deployment]) -> Search:
        found = Hunter(workload, demand, slo, space, pricer, ladder).explore(shapes)
        progress(shapes[0].accelerator.name)
        return found

    def refine(trial: Trial) -> tuple[Trial, Search]:
        hunter = Hunter(workload, demand, slo, space, pricer, ladder)
        return hunter.refine(trial), hunter.found

    total = Search()
    with ThreadPoolExecutor(WORKERS) as pool:
        for found in pool.map(explore, groups.values()):
            total.trials += found.trials
            total.ruled_out += found.ruled_out
            total.tried += found.tried
            total.num_simulated += found.num_simulated
            total.num_considered += found.num_considered
        finalists = total.feasible[:FINALISTS]
        for before, (after, found) in zip(finalists, pool.map(refine, finalists), strict=True):
            progress(f"batch limits of {before.candidate.deployment.label}")
            total.trials[total.trials.index(before)] = after
            total.tried += found.tried
            total.num_simulated += found.num_simulated
            total.num_considered += found.num_considered
    return total
