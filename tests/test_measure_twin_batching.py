"""The twin's step-by-step scheduler is the engine's rule: request by request the same as the oracle's replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings

from cost_factory import llama_on_h100
from engine_cases import POLICIES, Case, affine_table, cases, poisson
from gambrel.core.efficiency import ideal
from gambrel.cost import Roofline
from gambrel.engine import Limits, limits_of, replay
from gambrel.measure.batching import Batch, Sequence, unserved

if TYPE_CHECKING:
    from gambrel.core.step import StepTable
    from gambrel.core.workload import Workload


def play(table: StepTable, limits: Limits, workload: Workload) -> tuple[Batch, list[Sequence], list[float]]:
    """Drive the batch with a virtual clock."""
    batch = Batch(table, limits)
    rows = zip(
        workload.arrival_s.tolist(), workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), strict=True
    )
    sequences = [Sequence(a, p, o) for a, p, o in rows]
    batch.waiting.extend(sequences)
    clock, gaps = float(workload.arrival_s[0]), []
    last = dict.fromkeys(map(id, sequences), float("nan"))
    while batch.outstanding:
        if not batch.running and not batch.preempted:
            clock = max(clock, batch.waiting[0].arrival_s)
        clock = clock + batch.begin(clock)
        for s in batch.end(clock):
            gaps.append(clock - last[id(s)])
            last[id(s)] = clock
    return batch, sequences, gaps


@given(cases({name: rule for name, rule in POLICIES.items() if "prefill_first" not in rule}))
@settings(max_examples=150)
def test_it_is_the_oracle_step_by_step(case: Case) -> None:
    naive = replay(case.table, case.limits, case.workload, oracle=True).requests
    batch, sequences, _ = play(case.table, case.limits, case.workload)
    for column, name in (("scheduled", "scheduled_s"), ("first", "first_s"), ("last", "token_s")):
        mine = np.array([getattr(s, name) for s in sequences])
        np.testing.assert_allclose(mine, getattr(naive, column), rtol=1e-12, atol=0.0, err_msg=column)
    assert [s.preemptions for s in sequences] == naive.preemptions.tolist()
    assert batch.free == case.limits.num_kv_blocks


@pytest.mark.parametrize("blocks", [20_000, 700])
def test_a_long_replay_agrees_too(blocks: int) -> None:
    workload = poisson(300, 60.0, 300, 100)
    table, limits = affine_table(2048, 256), Limits(256, 2048, blocks)
    naive = replay(table, limits, workload, oracle=True)
    batch, sequences, gaps = play(table, limits, workload)
    np.testing.assert_allclose([s.token_s for s in sequences], naive.requests.last, rtol=1e-12)
    assert np.nansum(gaps) == pytest.approx(float((naive.requests.last - naive.requests.first).sum()), rel=1e-9)
    assert batch.steps > 0
    assert sum(s.preemptions for s in sequences) == int(naive.requests.preemptions.sum())


def test_those_whose_client_has_gone_give_their_blocks_back() -> None:
    batch = Batch(affine_table(64, 8), Limits(8, 64, 100))
    sequences = [Sequence(0.0, 20, 50) for _ in range(5)]
    batch.waiting.extend(sequences)
    clock = batch.begin(0.0)
    batch.end(clock)
    for s in sequences:
        s.cancelled = True
    batch.drop_cancelled()
    assert batch.outstanding == 0
    assert batch.free == 100
    assert batch.begin(clock) == 0.0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"policy": "sglang"}, "policy sglang, whose prompts have steps to themselves"),
        ({"policy": "vllm_priority"}, "policy vllm_priority"),
        ({"draft_tokens": 2, "acceptance": 0.5}, "speculative decoding"),
        ({"pp": 2}, "pipeline stages"),
    ],
    ids=str,
)
def test_what_it_does_not_know_is_named(changes: dict[str, object], why: str) -> None:
    deployment = llama_on_h100(**changes)
    limits = limits_of(deployment, Roofline(deployment, ideal()).memory())
    assert unserved(deployment, limits).startswith(why)


@pytest.mark.parametrize("policy", ["vllm", "tensorrt_llm", "tensorrt_llm_max_utilization", "llama_cpp", "static"])
def test_policies_that_bound_admission_are_served(policy: str) -> None:
    deployment = llama_on_h100(policy=policy)
    assert unserved(deployment, limits_of(deployment, Roofline(deployment, ideal()).memory())) == ""
