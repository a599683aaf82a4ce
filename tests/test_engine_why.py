"""Where the time of a request went: phases add up to its E2E, and both schedulers say the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from engine_cases import POLICIES, Case, affine_table, cases, constant_table, poisson
from gambrel.core.workload import Workload
from gambrel.engine import Limits, replay, run_of


@given(cases(POLICIES))
@settings(max_examples=150)
def test_phases_add_up_to_e2e_and_the_oracle_agrees(case: Case) -> None:
    fast = replay(case.table, case.limits, case.workload)
    naive = replay(case.table, case.limits, case.workload, oracle=True)
    assert fast.requests.paused.tobytes() == naive.requests.paused.tobytes()
    run = run_of(fast, case.limits)
    phases = run.phases_s()
    assert list(phases) == ["queue", "prefill", "decode", "preempted"]
    np.testing.assert_allclose(sum(phases.values()), run.e2e_s, rtol=0, atol=1e-12 * (1 + run.last_token_s.max()))
    for name, seconds in phases.items():
        assert (seconds >= -1e-6 * (1 + run.e2e_s)).all(), name  # pauses are float32
    assert ((phases["preempted"] > 0) == (run.preemptions > 0)).all()


def test_a_preemption_by_hand() -> None:
    """Two answers in three blocks of 4, steps of 1 s: the second gives way when both need a block more.

    Prompts of 3 take one block each; at the second step each writes its 4th token, at the third its 5th: only one
    block is left. The second is evicted at 2 s, waits until the first ends at 6 s (output 6: tokens 3 to 8 fit two
    blocks), computes its 5 tokens again and has its third token at 7 s.
    """
    workload = Workload(np.zeros(2), np.array([3, 3]), np.array([6, 4]))
    limits = Limits(4, 64, 3, 4)
    run = run_of(replay(constant_table(1.0, 64, 4), limits, workload), limits)
    assert run.preemptions.tolist() == [0, 1]
    assert run.last_token_s.tolist() == [6.0, 8.0]
    phases = run.phases_s()
    assert phases["queue"].tolist() == [0.0, 0.0]
    assert phases["prefill"].tolist() == [1.0, 1.0]
    assert phases["preempted"].tolist() == [0.0, 5.0]  # from its second token at 2 s to its third at 7 s
    assert phases["decode"].tolist() == [5.0, 2.0]


def test_a_prompt_evicted_halfway_is_paused_before_its_first_token() -> None:
    """Without room for the whole prompt reserved, decoders push a partly computed prompt out."""
    limits = Limits(16, 64, 60, 4)
    workload = poisson(200, 30.0, 60, 30)
    run = run_of(replay(affine_table(64, 16), limits, workload), limits)
    assert run.paused_s is not None
    assert (run.paused_s[:, 0] > 0).any()
    assert (run.paused_s[:, 0] <= run.first_token_s - run.scheduled_s + 1e-4).all()


def test_nobody_is_preempted_where_there_is_room() -> None:
    limits = Limits(16, 64, 5000, 4)
    run = run_of(replay(affine_table(64, 16), limits, poisson(100, 10.0, 30, 10)), limits)
    assert run.phases_s()["preempted"].sum() == 0.0
    assert run.phases_s()["prefill"] + run.queue_s == pytest.approx(run.ttft_s)
