"""One task of a search at work: which deployments of a shape come to trial, and why the others do not.

A shape is ruled out by the cheapest argument that does: memory, the latency of a request alone, the cost of the fewest
replicas that could do the work. What is left is simulated, on beginnings of the log first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import DeploymentError, WorkloadError
from gambrel.core.plan import Candidate
from gambrel.engine.workers import needed
from gambrel.plan.beginnings import foreseen
from gambrel.plan.question import Search, price_of
from gambrel.plan.screen import alone, least_busy_s, least_replicas, screen_latency
from gambrel.plan.trial import (
    NARROWLY,
    Bench,
    Outcome,
    Trial,
    fewest_replicas,
    front_point,
    in_full,
    judge,
    loss,
    narrowest,
    rank,
    too_small,
)
from gambrel.report.humanise import figure, per_hour

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gambrel.core.deployment import Deployment
    from gambrel.core.slo import Verdict
    from gambrel.core.step import MemoryBudget
    from gambrel.core.workload import Workload
    from gambrel.plan.question import Best, Question
    from gambrel.plan.space import Space

__all__ = ["Challenger", "Hunter", "challenge", "explore", "refine"]

PLENTY = 256  # replicas beyond which it is worth knowing how many could matter at all
KEPT, HALVING = 16, 4  # challengers of an accelerator that a beginning of the log leaves: a quarter, at least so many


@dataclass(frozen=True)
class Challenger:
    """A shape under other batch limits, and the replicas worth a simulation."""

    deployment: Deployment
    bench: Bench
    least: int

    @property
    def least_usd(self) -> float:
        """Dollars per hour of the fewest replicas worth a simulation, rounded as prices are compared."""
        return round(self.deployment.with_(replicas=self.least).usd_per_hour or 0.0, 6)

    @property
    def order(self) -> tuple[float, int, str, int, int]:
        """The cheapest bound first; names and limits decide last, so that ties never depend on order."""
        return self.least_usd, loss(self.deployment), self.deployment.label, *limits(self.deployment)


@dataclass
class Hunter:
    """One task at work: what it may use, and what it found."""

    question: Question
    found: Search = field(default_factory=Search)

    @property
    def space(self) -> Space:
        """The axes."""
        return self.question.space

    def count(self, trial: Trial) -> Trial:
        """Note a simulation, and remember what holds."""
        self.found.num_simulated += 1
        if trial.candidate.feasible:
            self.found.tried.append(front_point(trial))
        return trial

    def try_out(self, bench: Bench, deployment: Deployment) -> Trial:
        """Simulate, as far as it takes to know the verdict."""
        return self.count(self.question.beginnings.judge(deployment, bench))

    def to_the_end(self, bench: Bench, deployment: Deployment) -> Trial:
        """Simulate the whole log."""
        return self.count(judge(deployment, bench, self.question.workload, self.question.slo))

    def rule_out(
        self, deployment: Deployment, memory: MemoryBudget, stage: str, reason: str, bounds: tuple[Verdict, ...] = ()
    ) -> None:
        """A candidate that goes no further; ``bounds`` are the best its objectives can reach."""
        self.found.ruled_out.append(Candidate(deployment, stage, memory, bounds, lost_because=reason))

    # -- the first round: shapes --------------------------------------------------------------------

    def bound(self, deployment: Deployment) -> tuple[Bench, int] | None:
        """The compiled tables and the fewest replicas worth simulating; None when the shape is ruled out."""
        cost_model = self.question.pricer(deployment)
        memory = cost_model.memory()
        demand = self.question.demand
        if memory.kv_tokens < demand.longest:
            self.rule_out(deployment, memory, "fits", too_small(memory, demand.longest))
            return None
        if deployment.accelerator.price is None:
            reason = f"no price is known for {deployment.accelerator.name}; give one to rank it"
            self.rule_out(deployment, memory, "screen", reason)
            return None
        bench = Bench.of(cost_model, self.space.safety)
        refused = self.refused(deployment, bench)
        if refused:
            self.rule_out(deployment, memory, "fits", refused)
            return None
        bounds = self.fastest(deployment, bench)
        worst = min(bounds, key=lambda v: v.margin, default=None)
        if worst is not None and not worst.met:
            o = worst.objective
            best = f"{'most' if o.is_floor else 'least'} {figure(o, worst.reached)}"
            bound = f"{'floor' if o.is_floor else 'limit'} {figure(o, o.limit)}"
            reason = f"{o.name} is at {best} even for requests alone, {bound}"
            self.rule_out(deployment, memory, "screen", reason, bounds)
            return None
        return bench, self.least(deployment, bench, memory)

    def refused(self, deployment: Deployment, bench: Bench) -> str:
        """Why the engine does not take the combination, found by asking it to serve the longest request alone.

        Equal replicas of one stage with their own limits have no combination to refuse.
        """
        if plain(deployment):
            return ""
        log = self.question.workload
        longest = int((log.prompt_tokens + log.output_tokens).argmax())
        try:
            bench.run(deployment.with_(replicas=1), replace(log.take(slice(longest, longest + 1)), closed_loop=0))
        except (DeploymentError, WorkloadError) as error:
            return str(error)
        return ""

    def fastest(self, deployment: Deployment, bench: Bench) -> tuple[Verdict, ...]:
        """The best that the objectives can reach; nothing is claimed where stages or ranks overlap, or guesses help."""
        if not plain(deployment) or self.question.workload.deadline_s is not None:
            return ()
        return screen_latency(bench.table, self.question.demand, self.question.slo)

    def least(self, deployment: Deployment, bench: Bench, memory: MemoryBudget) -> int:
        """The fewest replicas that could do the work; one where no bound holds."""
        if not plain(deployment):
            return 1 + self.space.spare
        demand, spare, users = self.question.demand, self.space.spare, self.question.workload.closed_loop
        if users:
            return -(-users // max(1, bench.seats(self.question.workload))) + spare
        if not foreseen(self.question.workload) or demand.span_s < bench.turn_s(self.question.workload):
            return 1 + spare
        ttft, tpot = alone(bench.table, int(demand.grid[-1]))
        slack = 0.2 * demand.span_s + 1.0 + ttft + tpot * float(demand.outputs.max())
        return least_replicas(least_busy_s(bench.table, demand, deployment, memory), demand, slack) + spare

    def explore(self, shapes: Sequence[Deployment]) -> Search:
        """All shapes, the cheapest lower bound first; those that cannot beat the best found are not simulated."""
        queue = []
        for deployment in shapes:
            bound = self.bound(deployment)
            if bound is not None:
                queue.append(Challenger(deployment, *bound))
        best: Best = (math.inf, 0)
        for c in sorted(queue, key=lambda c: c.order):
            deployment, memory = c.deployment, c.bench.memory
            if (c.least_usd, loss(deployment)) >= best:
                enough = f"{per_hour(best[0])} is enough on this GPU"
                reason = f"needs {c.least} replicas or more, {per_hour(c.least_usd)}; {enough}"
                self.rule_out(deployment, memory, "screen", reason)
                continue
            allowed = self.space.most_gpus(deployment.accelerator)
            need = deployment.with_(replicas=c.least).num_gpus
            if need > allowed:
                self.rule_out(deployment, memory, "screen", f"needs {need} GPUs or more, {allowed} are allowed")
                continue
            most = max(1, self.affordable(c, best))
            if most > PLENTY:
                most = min(most, max(PLENTY, self.one_each(deployment, c.bench)))
            trial = fewest_replicas(partial(self.try_out, c.bench), deployment, c.least, most)
            if not trial.candidate.feasible and math.isfinite(best[0]):
                why = trial.candidate.lost_because.split(" ", 1)[0]
                usd = trial.candidate.usd_per_hour
                reason = f"misses {why} with {trial.candidate.deployment.replicas} replicas, {per_hour(usd)}"
                self.rule_out(deployment, memory, "screen", f"{reason}; {per_hour(best[0])} is enough on this GPU")
                continue
            if trial.share < 1.0:
                trial = self.to_the_end(c.bench, trial.candidate.deployment)
            outcome = in_full(trial, self.question.slo)
            self.found.trials.append(outcome)
            if trial.candidate.feasible:
                best = min(best, price_of(outcome))
        self.found.num_considered += len(shapes)
        return self.found

    def affordable(self, challenger: Challenger, best: Best) -> int:
        """The most replicas that can be had and cost less than the best, or the same with less loss of precision.

        A prefill pool costs its part whatever the number of replicas; every replica costs the same on top.
        """
        one, two = (challenger.deployment.with_(replicas=n) for n in (1, 2))
        each = (two.usd_per_hour or 0.0) - (one.usd_per_hour or 0.0)
        most = min(self.space.most_replicas(one), len(self.question.workload) + self.space.spare)
        if math.isfinite(best[0]) and each > 0.0:
            most = min(most, 1 + math.floor((best[0] - (one.usd_per_hour or 0.0)) / each + 1e-9))
            fleet = one.with_(replicas=max(1, most))
            if (round(fleet.usd_per_hour or 0.0, 6), loss(fleet)) >= best:
                most -= 1
        return most

    def one_each(self, deployment: Deployment, bench: Bench) -> int:
        """Replicas with which every request has one to itself, so that more change nothing; the log's where unknown.

        Requests are dealt in turn: one meets another only if more of them arrive while it is served than there are
        replicas.
        """
        log, spare = self.question.workload, self.space.spare
        in_turn = plain(deployment) and deployment.routing == "round_robin" and log.prefix_blocks is None
        if not in_turn or not foreseen(log):
            return len(log) + spare
        table = bench.harder.table
        longest = int((log.prompt_tokens + log.output_tokens).max())
        first_s, _ = alone(table, int(log.prompt_tokens.max()))
        _, next_s = alone(table, longest)
        until = log.arrival_s + (first_s + next_s * int(log.output_tokens.max()))
        within = np.searchsorted(log.arrival_s, until, side="right") - np.arange(len(log))
        return int(within.max()) + spare

    # -- the second round: batch limits -------------------------------------------------------------

    def challenge(self, task: tuple[Sequence[Deployment], Best]) -> Search:
        """Whether any shape under other batch limits is cheaper than ``best``; the best such one, if there is."""
        shapes, best = task
        entries = sorted((c for shape in shapes for c in self.challengers(shape, best)), key=lambda c: c.order)
        raced = math.isfinite(best[0])
        if raced:
            entries = self.race(entries, best)
        winner = None
        for c in entries:
            most = self.affordable(c, best)
            if c.least > most:
                continue
            first = most if math.isfinite(best[0]) else c.least
            trial = (self.to_the_end if raced else self.try_out)(c.bench, c.deployment.with_(replicas=first))
            if not trial.candidate.feasible:
                if narrowest(trial) < -NARROWLY if math.isfinite(best[0]) else first >= most:
                    continue
                low = c.least if math.isfinite(best[0]) else first + 1
                trial = fewest_replicas(partial(self.try_out, c.bench), c.deployment, low, most)
            elif first > c.least:
                fewer = fewest_replicas(partial(self.try_out, c.bench), c.deployment, c.least, first)
                trial = fewer if fewer.candidate.feasible else trial
            if trial.candidate.feasible and price_of(trial) < best:
                winner, best = trial, price_of(trial)
        if winner is not None:
            self.found.trials.append(in_full(winner, self.question.slo))
        return self.found

    def challengers(self, shape: Deployment, best: Best) -> Iterator[Challenger]:
        """The shape under every batch limit that its bounds leave below ``best``.

        First all at once, as loosely as any of them: the largest limits' speed and the smallest ones' memory.
        """
        pairs = self.space.limits()
        if shape.usd_per_hour is None or len(pairs) < 2:
            return
        question, demand = self.question, self.question.demand
        low, high = (limited(shape, (side(s for s, _ in pairs), side(t for _, t in pairs))) for side in (min, max))
        self.found.num_considered += len(pairs) - 1
        small = question.pricer(low)
        if small.memory().kv_tokens < demand.longest:
            return
        loose = Bench.of(small, self.space.safety)
        if self.refused(low, loose):
            return
        seqs, tokens = limits(high)
        table = question.pricer(high).compile(tokens, seqs * (1 + high.draft_tokens))
        wide = replace(loose.limits, max_num_seqs=seqs, max_num_batched_tokens=tokens)
        loose = replace(loose, table=table, limits=wide)
        if any(not v.met for v in self.fastest(high, loose)):
            return
        least = self.least(high, loose, loose.memory)
        if least > self.affordable(Challenger(shape, loose, least), best):
            return
        for pair in pairs:
            deployment = limited(shape, pair)
            if pair == limits(shape):
                continue
            cost_model = question.pricer(deployment)
            if cost_model.memory().kv_tokens < demand.longest:
                continue
            bench = Bench.of(cost_model, self.space.safety)
            least = self.least(deployment, bench, bench.memory)
            found = Challenger(deployment, bench, least)
            if least <= self.affordable(found, best):
                yield found

    def race(self, entries: list[Challenger], best: Best) -> list[Challenger]:
        """Those whom the log's beginnings leave, each with all the replicas that less money than ``best`` buys.

        Successive halving: a proven miss ends it; of the others the widest margins go on where they are many.
        """
        for rung in self.question.beginnings.rungs:
            left = []
            for c in entries:
                fleet = c.deployment.with_(replicas=self.affordable(c, best))
                self.found.num_simulated += 1
                trial, proven = self.question.beginnings.begin(fleet, c.bench, rung)
                if not proven:
                    left.append((-narrowest(trial), c.order, c))
            left.sort(key=lambda item: item[:2])
            kept = {id(c) for _, _, c in left[: max(KEPT, len(left) // HALVING)]}
            entries = [c for c in entries if id(c) in kept]
        return entries

    # -- the third round: finalists -----------------------------------------------------------------

    def refine(self, before: Outcome) -> Search:
        """The same shape under other batch limits: fewer replicas first, then what it carries.

        One limit at a time, in turn, until neither moves: the two hardly interact (a token budget shapes prefill,
        a sequence limit decoding), and a full grid costs three times as much.
        """
        deployment = before.candidate.deployment
        best = self.stress(Bench.of(self.question.pricer(deployment), self.space.safety), before)
        tried = {limits(deployment)}
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
        self.found.trials.append(best)
        return self.found

    def try_limits(self, deployment: Deployment, rival: Outcome) -> Outcome | None:
        """The fewest replicas up to the deployment's that hold, under stress; None when it cannot beat ``rival``."""
        cost_model = self.question.pricer(deployment)
        self.found.num_considered += 1
        if cost_model.memory().kv_tokens < self.question.demand.longest:
            return None
        bench = Bench.of(cost_model, self.space.safety)
        held: Trial | None = None
        for replicas in range(deployment.replicas, 0, -1):
            trial = self.try_out(bench, deployment.with_(replicas=replicas))
            if not trial.candidate.feasible:
                break
            held = trial
        if held is None or rank(replace(held, stressed=math.inf)) >= rank(rival):
            return None
        best = in_full(held, self.question.slo)
        cheaper = best.candidate.deployment.replicas < rival.candidate.deployment.replicas
        return self.stress(bench, best) if cheaper else self.outlast(bench, best, rival.stressed)

    def stress(self, bench: Bench, outcome: Outcome, start: int = 0) -> Outcome:
        """The outcome with the rungs of the stress ladder it climbs, and by how much it clears the last or misses it.

        ``start`` rungs are taken as climbed.
        """
        climbed, margin = float(start), 0.0
        for workload in self.question.ladder[start:]:
            margin = self.bears(bench, outcome, workload)
            if margin < 0:
                return replace(outcome, stressed=climbed + 1.0 / (1.0 - margin))
            climbed += 1.0
        return replace(outcome, stressed=climbed + margin)

    def outlast(self, bench: Bench, outcome: Outcome, rival: float) -> Outcome | None:
        """The outcome under stress, or None when it does not outlast a rival that is stressed ``rival``.

        The rung that decides, where the rival fell or the top one, is tried first: most fall there, and need no other.
        """
        ladder = self.question.ladder
        rung = min(int(rival), len(ladder) - 1)
        found = self.stress(bench, outcome, rung)
        if found.stressed <= rival:
            return None
        if rung and self.bears(bench, outcome, ladder[rung - 1]) < 0:
            return None
        return found

    def bears(self, bench: Bench, outcome: Outcome, workload: Workload) -> float:
        """The margin to the nearest objective under another load; negative when one is missed or a queue grows."""
        self.found.num_simulated += 1
        run = bench.run(outcome.candidate.deployment, workload)
        margin = min(v.margin for v in self.question.slo.check(run))
        behind = bench.keeps_up(outcome.candidate.deployment, workload, run)
        return -max(abs(margin), 1e-9) if behind else margin


def plain(deployment: Deployment) -> bool:
    """Whether it is equal replicas of one stage, one token a step: what the analytic bounds are about."""
    return not needed(deployment) and deployment.draft_tokens == 0 and deployment.policy == "vllm"


def limits(deployment: Deployment) -> tuple[int, int]:
    """The two batch limits."""
    return deployment.max_num_seqs, deployment.max_num_batched_tokens


def limited(deployment: Deployment, pair: tuple[int, int]) -> Deployment:
    """The deployment under the given batch limits."""
    return deployment.with_(max_num_seqs=pair[0], max_num_batched_tokens=pair[1])


def explore(question: Question, shapes: Sequence[Deployment]) -> Search:
    """A task of the first round."""
    return Hunter(question).explore(shapes)


def challenge(question: Question, task: tuple[Sequence[Deployment], Best]) -> Search:
    """A task of the second round."""
    return Hunter(question).challenge(task)


def refine(question: Question, before: Outcome) -> Search:
    """A task of the third round."""
    return Hunter(question).refine(before)
