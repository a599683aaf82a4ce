"""Replicas behind a router: every request served once, by the replica the rule names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_cases import Case, affine_table, cases, constant_table, poisson
from gambrel.core.errors import DeploymentError
from gambrel.core.workload import Workload
from gambrel.engine import ROUTINGS, Limits, replay
from gambrel.engine import state as at


@given(cases(), st.integers(1, 5), st.sampled_from(sorted(ROUTINGS)))
@settings(max_examples=150)
def test_requests_are_conserved_and_match_the_oracle(case: Case, replicas: int, routing: str) -> None:
    fast = replay(case.table, case.limits, case.workload, replicas=replicas, routing=routing, series=True)
    naive = replay(case.table, case.limits, case.workload, replicas=replicas, routing=routing, oracle=True)
    assert fast.ints[at.FINISHED] == len(case.workload)
    assert fast.ints[at.FREE_BLOCKS] == replicas * case.limits.num_kv_blocks
    for column in ("scheduled", "first", "last", "preemptions"):
        assert getattr(fast.requests, column).tobytes() == getattr(naive.requests, column).tobytes(), column
    assert np.array_equal(fast.histogram, naive.histogram)
    assert ((fast.replica >= 0) & (fast.replica < replicas)).all()
    assert fast.series is not None
    assert len(fast.series.time_s) <= at.NUM_SAMPLES_MAX
    assert ((fast.series.kv_usage >= 0) & (fast.series.kv_usage <= 1)).all()


@given(cases(), st.integers(2, 5))
@settings(max_examples=150)
def test_least_outstanding_is_what_it_says(case: Case, replicas: int) -> None:
    """Counted afterwards from the finish times: no replica had fewer unfinished requests than the one chosen."""
    played = replay(case.table, case.limits, case.workload, replicas=replicas, routing="least_outstanding")
    last = played.requests.last
    for i, now in enumerate(case.workload.arrival_s):
        unfinished = np.bincount(played.replica[:i][last[:i] > now], minlength=replicas)
        turn = (np.arange(replicas) + (played.replica[i - 1] + 1 if i else 0)) % replicas
        assert played.replica[i] == turn[np.argmin(unfinished[turn])]


def test_round_robin_deals_in_turn_and_replicas_do_not_touch() -> None:
    workload = poisson(300, 50.0, 100, 30)
    table, limits = affine_table(1024, 64), Limits(64, 1024, 2000)
    played = replay(table, limits, workload, replicas=3)
    assert np.array_equal(played.replica, np.arange(300) % 3)
    for r in range(3):
        alone = replay(table, limits, workload.take(slice(r, None, 3)))
        assert played.requests.last[r::3].tobytes() == alone.requests.last.tobytes()


def test_one_replica_needs_no_router() -> None:
    workload = poisson(500, 40.0, 200, 50)
    table, limits = affine_table(1024, 64), Limits(64, 1024, 600)
    one, two = (replay(table, limits, workload, routing=routing) for routing in sorted(ROUTINGS))
    assert one.requests.last.tobytes() == two.requests.last.tobytes()


def test_threads_change_nothing() -> None:
    workload = poisson(24_000, 400.0, 100, 20)
    table, limits = affine_table(1024, 64), Limits(64, 1024, 2000)
    threaded = replay(table, limits, workload, replicas=4)
    for r in range(4):
        alone = replay(table, limits, workload.take(slice(r, None, 4)))
        assert threaded.requests.last[r::4].tobytes() == alone.requests.last.tobytes()


@pytest.mark.parametrize("seed", range(4))
def test_looking_at_the_queues_helps_bursty_traffic(seed: int) -> None:
    """Heavy-tailed answers in bursts that make queues: least outstanding has the lower p95 TTFT."""
    rng = np.random.default_rng(seed)
    n = 4000
    gaps = rng.gamma(0.1, 1 / (0.1 * 60.0), n)  # coefficient of variation 3.2
    output = np.minimum(1 + rng.pareto(1.5, n) * 60, 2000).astype(np.int64)
    workload = Workload(np.cumsum(gaps), rng.integers(1, 600, n), output)
    table, limits = affine_table(2048, 16), Limits(16, 2048, 4000)
    p95 = {}
    for routing in ROUTINGS:
        requests = replay(table, limits, workload, replicas=4, routing=routing).requests
        p95[routing] = float(np.percentile(requests.first - requests.arrival, 95))
    assert p95["least_outstanding"] <= p95["round_robin"]


def test_a_finish_at_the_instant_of_an_arrival_counts_as_finished() -> None:
    ones = np.ones(3, np.int64)
    workload = Workload(np.array([0.0, 0.5, 1.0]), ones, ones)
    played = replay(constant_table(1.0, 8, 1), Limits(1, 8, 4), workload, replicas=2, routing="least_outstanding")
    assert played.replica.tolist() == [0, 1, 0]
    assert played.requests.scheduled.tolist() == [0.0, 0.5, 1.0]


def test_unknown_routing_is_refused() -> None:
    with pytest.raises(DeploymentError, match="unknown routing 'random'; known: round_robin, least_outstanding"):
        replay(constant_table(1.0, 8, 1), Limits(1, 8, 4), poisson(3, 1.0, 2, 2), routing="random")
