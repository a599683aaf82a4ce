"""A cost model whose every step takes so many times as long: the edge of an interval, or what a confidence asks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gambrel.core.step import WorkerCost

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.step import CostModel, Floats, MemoryBudget, RankTable, Step, StepCost, StepTable

__all__ = ["Slower", "SlowerWorkers", "slower"]


@dataclass(frozen=True)
class Slower:
    """The inner cost model with every step ``factor`` times as long."""

    inner: CostModel
    factor: float

    @property
    def deployment(self) -> Deployment:
        """What is priced."""
        return self.inner.deployment

    @property
    def basis(self) -> str:
        """The inner basis and the factor."""
        return f"{self.inner.basis}, x {self.factor:.3g}"

    @property
    def spread(self) -> float:
        """The inner model's."""
        return self.inner.spread

    def step_cost(self, step: Step) -> StepCost:
        """The inner cost, scaled."""
        c, f = self.inner.step_cost(step), self.factor
        return replace(
            c,
            compute_s=c.compute_s * f,
            weights_s=c.weights_s * f,
            kv_s=c.kv_s * f,
            collective_s=c.collective_s * f,
            overhead_s=c.overhead_s * f,
            seconds=c.seconds * f,
        )

    def compile(self, max_tokens: int, max_seqs: int) -> StepTable:
        """The inner table, scaled."""
        return self.inner.compile(max_tokens, max_seqs).scaled(self.factor)

    def memory(self) -> MemoryBudget:
        """The inner memory: uncertainty of time, not of bytes."""
        return self.inner.memory()


@dataclass(frozen=True)
class SlowerWorkers(Slower):
    """The same of a cost model that prices ranks in lockstep and prefill workers; the link is as fast as before."""

    inner: WorkerCost

    def compile_ranks(self, max_tokens: int, max_seqs: int) -> RankTable:
        """The inner table of ranks, scaled."""
        found, f = self.inner.compile_ranks(max_tokens, max_seqs), self.factor
        return replace(
            found,
            own=found.own.scaled(f),
            experts=found.experts * f,
            experts_compute=found.experts_compute * f,
            experts_weights=found.experts_weights * f,
            exchange=found.exchange * f,
        )

    def prefill(self) -> CostModel:
        """The inner model of the prefill workers, as much slower."""
        return slower(self.inner.prefill(), self.factor)

    def transfer_s(self, tokens: Floats) -> Floats:
        """The inner model's."""
        return self.inner.transfer_s(tokens)


def slower(cost_model: CostModel, factor: float) -> Slower:
    """The cost model with every step ``factor`` times as long, for whatever it can price."""
    return SlowerWorkers(cost_model, factor) if isinstance(cost_model, WorkerCost) else Slower(cost_model, factor)
