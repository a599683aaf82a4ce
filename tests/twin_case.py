"""A twin of known step times for tests of servers and clients: a cost model made of one hand-written table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cost_factory import llama_on_h100
from engine_cases import affine_table, constant_table
from gambrel.core.step import MemoryBudget, Step, StepCost, StepTable

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment


@dataclass(frozen=True)
class TableCost:
    """Every step priced by one table; ``seconds`` None takes the affine one."""

    deployment: Deployment
    seconds: float | None = None
    num_kv_blocks: int = 20_000
    basis: str = "a table of the tests"
    spread: float = 0.0

    def step_cost(self, step: Step) -> StepCost:
        return self.compile(step.tokens, step.sampled).cost(step)

    def compile(self, max_tokens: int, max_seqs: int) -> StepTable:
        if self.seconds is None:
            return affine_table(max_tokens, max_seqs)
        return constant_table(self.seconds, max_tokens, max_seqs)

    def memory(self) -> MemoryBudget:
        return MemoryBudget(8e10, 7e10, 1.6e10, 1e9, 1e9, 2e6, 0.0, 16, self.num_kv_blocks)


def small_deployment(**settings: object) -> Deployment:
    """A dense 8B on one H100 whose limits suit short tests."""
    defaults: dict[str, object] = {"max_num_seqs": 1024, "max_num_batched_tokens": 4096}
    return llama_on_h100(**(defaults | settings))
