"""Find the cheapest deployment that holds, by simulation, and keep the reason why every other one lost.

Three rounds. *Shapes*: every accelerator x parallelism x formats is ruled out by memory, by the latency of a request
alone, or by the cost of the fewest replicas that could do the work; the rest get their replica count by bisection on
simulations. *Limits*: what is cheapest so far is challenged by every shape under every ``max_num_seqs`` and
``max_num_batched_tokens`` whose bound is below it, with as many replicas as the same money buys; simulations of the
log's beginnings send most of them home (:mod:`gambrel.plan.beginnings`). *Finalists*: among equals, dollars decide
nothing, so the best shapes try their batch limits under more load, and the widest margin wins.

A round is a list of tasks that do not look at each other, and the next one starts when all are done: who computes them,
threads here or machines elsewhere, and in which order, changes nothing in the answer. A journal that remembers
finished tasks can resume a search.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from gambrel.plan.hunter import challenge, explore, refine
from gambrel.plan.question import Question, Search

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gambrel.core.deployment import Deployment
    from gambrel.core.model import Model
    from gambrel.core.slo import SLO
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload
    from gambrel.plan.space import Space

__all__ = ["WORKERS", "Journal", "Pool", "Threads", "search"]

FINALISTS = 4
WORKERS = 2


class Pool(Protocol):
    """Whoever computes the tasks of a round."""

    def each(self, work: Callable[[Any], Search], tasks: Sequence[Any]) -> Iterator[Search]:
        """The result of every task, in the order of the tasks."""


class Threads:
    """The kernels release the interpreter's lock, so threads are as good as processes on one small machine."""

    def __init__(self, number: int = WORKERS) -> None:
        self._number = number

    def each(self, work: Callable[[Any], Search], tasks: Sequence[Any]) -> Iterator[Search]:
        """The result of every task, in order; what has not begun is dropped when the caller is interrupted."""
        pool = ThreadPoolExecutor(self._number)
        try:
            yield from pool.map(work, tasks)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class Journal(Protocol):
    """The memory of a search: what its tasks found, by key."""

    def found(self, key: str, question: Question) -> Search | None:
        """What the task of that key found before, or None."""

    def keep(self, key: str, found: Search) -> None:
        """A task is done."""


@dataclass(frozen=True)
class Rounds:
    """Who computes, who remembers, and who is told."""

    question: Question
    pool: Pool
    journal: Journal | None
    progress: Callable[[str], None]

    def run(self, name: str, work: Callable[[Question, Any], Search], tasks: dict[str, Any]) -> Iterator[Search]:
        """What the tasks of a round found, in their order; only those that the journal does not know are computed."""
        known = {key: self.recall(f"{name} {key}") for key in tasks}
        fresh = iter(self.pool.each(partial(work, self.question), [tasks[k] for k in tasks if known[k] is None]))
        for key, found in known.items():
            if found is not None:
                yield found
                continue
            made = next(fresh)
            if self.journal is not None:
                self.journal.keep(f"{name} {key}", made)
            self.progress(f"{name}: {key}")
            yield made

    def recall(self, key: str) -> Search | None:
        """What the journal knows of a task."""
        return None if self.journal is None else self.journal.found(key, self.question)


def numbered(tasks: Sequence[Any]) -> dict[str, Any]:
    """Tasks by their place."""
    return {str(number): task for number, task in enumerate(tasks)}


def search(
    model: Model,
    workload: Workload,
    slo: SLO,
    space: Space,
    pricer: Callable[[Deployment], CostModel],
    progress: Callable[[str], None] = lambda _: None,
    pool: Pool | None = None,
    journal: Journal | None = None,
) -> Search:
    """Run the three rounds over ``space``; ``pricer`` makes the cost model of a deployment.

    Raises:
        DeploymentError: the space holds no shape that the model can take.
    """
    question = Question(model, workload, slo, space, pricer)
    rounds = Rounds(question, pool or Threads(), journal, progress)
    groups = question.groups()
    total = Search()
    for found in rounds.run("shapes", explore, groups):
        total.add(found)
    # The cheapest accelerator first, shape by shape: what it comes down to dismisses most of the others unsimulated.
    leader = next((t.candidate.deployment.accelerator.id for t in total.feasible), "")
    best = total.best
    for found in rounds.run("limits of the leader", challenge, numbered([([d], best) for d in groups.get(leader, ())])):
        total.add(found)
    best = total.best
    others = {name: (shapes, best) for name, shapes in groups.items() if name != leader}
    for found in rounds.run("limits", challenge, others):
        total.add(found)
    finalists = total.feasible[:FINALISTS]
    for before, found in zip(finalists, rounds.run("finalists", refine, numbered(finalists)), strict=True):
        total.trials[total.trials.index(before)] = found.trials[0]
        total.tried += found.tried
        total.num_simulated += found.num_simulated
        total.num_considered += found.num_considered
    return total
