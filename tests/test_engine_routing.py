"""Replicas behind a router: every request served once, by the replica the rule names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_cases import POLICIES, Case, affine_table, cases, constant_table, hashed, poisson
from gambrel.core.errors import DeploymentError, WorkloadError
from gambrel.core.workload import Workload
from gambrel.engine import ROUTINGS, Limits, replay
from gambrel.engine import state as at
from gambrel.engine.routing import looking


@given(cases(POLICIES), st.integers(1, 5), st.sampled_from(sorted(ROUTINGS)))
@settings(max_examples=100)
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


@given(cases(POLICIES), st.integers(2, 5))
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
    last = {replay(table, limits, workload, routing=routing).requests.last.tobytes() for routing in ROUTINGS}
    assert len(last) == 1


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
    for routing in ("round_robin", "least_outstanding"):
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
    with pytest.raises(
        DeploymentError, match="unknown routing 'random'; known: round_robin, least_outstanding, power_of_two"
    ):
        replay(constant_table(1.0, 8, 1), Limits(1, 8, 4), poisson(3, 1.0, 2, 2), routing="random")


def test_a_session_stays_where_it_began_and_new_ones_are_dealt_in_turn() -> None:
    workload = poisson(400, 50.0, 100, 30)
    played = replay(affine_table(1024, 64), Limits(64, 1024, 2000), workload, replicas=3, routing="session_sticky")
    assert workload.session is not None
    for session in range(20):
        assert set(played.replica[workload.session == session]) == {session % 3}
    nameless = replace(workload, session=None)
    with pytest.raises(WorkloadError, match="routing session_sticky needs a session column"):
        replay(affine_table(1024, 64), Limits(64, 1024, 2000), nameless, replicas=3, routing="session_sticky")


@given(cases(POLICIES), st.integers(2, 5))
@settings(max_examples=100)
def test_power_of_two_takes_the_better_of_its_draws(case: Case, replicas: int) -> None:
    played = replay(case.table, case.limits, case.workload, replicas=replicas, routing="power_of_two")
    draws = looking(played.requests, replicas, at.POWER)[1]
    assert (draws[:, 0] != draws[:, 1]).all()
    last = played.requests.last
    for i, now in enumerate(case.workload.arrival_s):
        unfinished = np.bincount(played.replica[:i][last[:i] > now], minlength=replicas)
        one, two = draws[i]
        assert played.replica[i] == (two if unfinished[two] < unfinished[one] else one)


def test_two_choices_are_a_supermarket() -> None:
    """Mitzenmacher's supermarket model (IEEE TPDS 12(10), 2001): mean time in system sum of rho^(2^i - 2), 2.61 at 0.9.

    Two hundred servers of one sequence each, Poisson arrivals, answers of geometrically many short steps (nearly
    exponential service); a single random choice would give 1 / (1 - rho) = 10.
    """
    rho, servers, n, steps = 0.9, 200, 400_000, 20
    rng = np.random.default_rng(3)
    output = rng.geometric(1 / steps, n)
    arrival = np.cumsum(rng.exponential(steps / (rho * servers), n))
    workload = Workload(arrival, np.ones(n, np.int64), output)
    played = replay(
        constant_table(1.0, 8, 1), Limits(1, 8, 1000), workload, replicas=servers, routing="power_of_two"
    ).requests
    steady = slice(n // 4, n * 3 // 4)
    expected = sum(rho ** (2**i - 2) for i in range(1, 12))
    assert expected == pytest.approx(2.614, abs=1e-3)
    assert (played.last - played.arrival)[steady].mean() / steps == pytest.approx(expected, rel=0.05)


def test_a_router_that_knows_prefixes_finds_more_of_them() -> None:
    """Conversations of six turns on four replicas: sticky and prefix aware keep a conversation where its cache is."""
    rng = np.random.default_rng(1)
    sessions, turns = 300, 6
    start = rng.uniform(0, 200.0, sessions)
    session = np.repeat(np.arange(sessions), turns)
    arrival = (start[:, None] + np.cumsum(rng.exponential(8.0, (sessions, turns)), axis=1)).ravel()
    prompt = np.tile(np.arange(1, turns + 1) * 160, sessions)
    rows = [[s * 1000 + k for k in range(p // 16)] for s, p in zip(session, prompt, strict=True)]
    order = np.argsort(arrival)
    workload = Workload(arrival[order], prompt[order], np.full(len(order), 40), session=session[order])
    workload = hashed(workload, [rows[i] for i in order], 16)
    limits = Limits(64, 2048, 20_000, prefix_caching=True)
    ratio = {}
    for routing in ROUTINGS:
        played = replay(affine_table(2048, 64), limits, workload, replicas=4, routing=routing)
        ratio[routing] = played.requests.cached.sum() / played.requests.prompt.sum()
    best = 1 - 1 / (turns + 1) * 2 - 16 * (turns - 1) / 3360  # all but each turn's own ten blocks
    assert ratio["session_sticky"] == pytest.approx(ratio["prefix_aware"], rel=0.02)
    assert best < ratio["prefix_aware"] < 1 - 2 / (turns + 1) + 1e-9
    assert max(ratio["round_robin"], ratio["least_outstanding"], ratio["power_of_two"]) < 0.7 * ratio["prefix_aware"]


def test_prefix_aware_gives_way_to_load() -> None:
    """Everybody asks for the same prompt: one replica gets them until it has 64 more than the idle one."""
    n = 400
    workload = hashed(
        Workload(np.linspace(0.0, n * 1e-6, n), np.full(n, 160), np.full(n, 50)), [list(range(10))] * n, 16
    )
    limits = Limits(256, 2048, 20_000, prefix_caching=True)
    played = replay(affine_table(2048, 256), limits, workload, replicas=2, routing="prefix_aware")
    share = np.bincount(played.replica, minlength=2)
    assert abs(int(share[0]) - int(share[1])) <= 66
    assert share.min() > 100
