"""A closed loop: users who wait for their answers, against its definition, queueing theory and the open replay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_cases import POLICIES, Case, affine_table, cases, constant_table
from gambrel.core.errors import WorkloadError
from gambrel.core.step import Step
from gambrel.core.workload import Workload
from gambrel.engine import ROUTINGS, Limits, Replay, replay, run_of
from gambrel.engine import state as at
from gambrel.engine.fleet import serve_fleet

THINK = {"none": 0.0, "instant": 1e-9, "short": 5e-3, "long": 2.0}


@st.composite
def closed(draw: st.DrawFn) -> Case:
    """A case whose requests are sent by a few users, with any pauses and starts."""
    case = draw(cases(POLICIES, state=True))
    n = len(case.workload)
    users = draw(st.integers(1, n + 2))
    scale = THINK[draw(st.sampled_from(sorted(THINK)))]
    think = None if scale == 0 else np.array(draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))) * scale
    starts = case.workload.arrival_s if draw(st.booleans()) else np.zeros(n)
    return replace(case, workload=replace(case.workload, arrival_s=starts, closed_loop=users, think_s=think))


def assert_users_wait(played: Replay, workload: Workload, rows: np.ndarray, users: int) -> None:
    """The k-th request after the users' first is sent when the k-th pause ends, in the order of the rows."""
    requests = played.requests
    pause = np.zeros(len(workload)) if workload.think_s is None else workload.think_s
    asks = np.sort(np.concatenate([workload.arrival_s[rows][:users], (requests.last + pause)[rows]]))
    assert np.array_equal(requests.arrival[rows], asks[: len(rows)])


@given(closed(), st.integers(1, 4), st.sampled_from(sorted(ROUTINGS)))
@settings(max_examples=250)
def test_arrivals_are_the_ends_of_answers_and_the_rest_is_an_open_replay(
    case: Case, replicas: int, routing: str
) -> None:
    """Together these two define the sample path: the arrivals obey the users, the oracle serves those arrivals."""
    workload = case.workload
    played = replay(case.table, case.limits, workload, replicas=replicas, routing=routing)
    assert played.ints[at.FINISHED] == len(workload)
    assert played.ints[at.FREE_BLOCKS] == replicas * case.limits.num_kv_blocks
    if routing in ("round_robin", "session_sticky"):
        for r in range(replicas):
            rows = np.flatnonzero(played.replica == r)
            assert_users_wait(played, workload, rows, int((rows < workload.closed_loop).sum()))
    else:
        assert_users_wait(played, workload, np.arange(len(workload)), workload.closed_loop)
    naive = replay(case.table, case.limits, workload, replicas=replicas, routing=routing, oracle=True)
    for column in ("arrival", "scheduled", "first", "last", "preemptions"):
        assert getattr(played.requests, column).tobytes() == getattr(naive.requests, column).tobytes(), column
    assert np.array_equal(played.histogram, naive.histogram)
    assert played.floats[at.BUSY_S] == pytest.approx(naive.floats[at.BUSY_S], rel=1e-12)


@given(closed(), st.integers(2, 4))
@settings(max_examples=100)
def test_the_least_busy_replica_gets_the_next_request(case: Case, replicas: int) -> None:
    played = replay(case.table, case.limits, case.workload, replicas=replicas, routing="least_outstanding")
    arrival, last = played.requests.arrival, played.requests.last
    for i, now in enumerate(arrival):
        unfinished = np.bincount(played.replica[:i][last[:i] > now], minlength=replicas)
        turn = (np.arange(replicas) + (played.replica[i - 1] + 1 if i else 0)) % replicas
        assert played.replica[i] == turn[np.argmin(unfinished[turn])]


@given(cases(), st.integers(1, 12))
@settings(max_examples=200)
def test_users_without_pauses_are_a_limit_on_sequences(case: Case, users: int) -> None:
    """N users who never think finish as a replica of N sequences does with everybody waiting from the start."""
    users = min(users, case.limits.max_num_seqs)
    together = replace(case.workload, arrival_s=np.zeros(len(case.workload)))
    loop = replay(case.table, case.limits, replace(together, closed_loop=users)).requests
    line = replay(case.table, replace(case.limits, max_num_seqs=users), together).requests
    for column in ("first", "last", "preemptions"):
        assert getattr(loop, column).tobytes() == getattr(line, column).tobytes(), column


@pytest.mark.parametrize("users", [1, 8, 64])
@pytest.mark.parametrize("think", [0.0, 1.5])
def test_littles_law(users: int, think: float) -> None:
    """N = X (R + Z): throughput times residence and pause is the number of users (the response time law)."""
    n = 400 * users
    rng = np.random.default_rng(3)
    workload = Workload(
        np.zeros(n), rng.integers(1, 400, n), rng.integers(1, 120, n), closed_loop=users,
        think_s=rng.exponential(think, n) if think else None,
    )  # fmt: skip
    limits = Limits(256, 2048, 20_000)
    run = run_of(replay(affine_table(2048, 256), limits, workload), limits)
    steady = slice(users, n - users)
    span = run.arrival_s[-1]  # until here every user is in the system or thinks
    present = np.minimum(run.last_token_s, span) - run.arrival_s
    pauses = 0.0
    if workload.think_s is not None:
        pauses = np.clip(np.minimum(run.last_token_s + workload.think_s, span) - run.last_token_s, 0, None).sum()
    assert (present.sum() + pauses) / span == pytest.approx(users, rel=1e-9)  # exact on the sample path
    throughput = (n - users) / span
    cycle = run.e2e_s[steady].mean() + (0.0 if workload.think_s is None else workload.think_s[steady].mean())
    assert throughput * cycle == pytest.approx(users, rel=0.05)


def test_a_machine_repairman() -> None:
    """Two users, one sequence at a time, exponential pauses at rate a, services of D seconds: M/D/1//2.

    Every service begins while the other user thinks, who still does at its end with probability exp(-a D); then both
    think and the replica idles 1 / (2 a) on average. So X = 1 / (D + exp(-a D) / (2 a)).
    """
    service, rate, n = 0.02, 30.0, 200_000
    rng = np.random.default_rng(5)
    ones = np.ones(n, np.int64)
    workload = Workload(np.zeros(n), ones * 100, ones, closed_loop=2, think_s=rng.exponential(1 / rate, n))
    played = replay(constant_table(service, 128, 1), Limits(1, 128, 1000), workload)
    alone = np.exp(-rate * service)
    throughput = n / float(played.requests.last.max())
    assert throughput == pytest.approx(1.0 / (service + alone / (2 * rate)), rel=0.01)


def test_users_start_when_they_are_told() -> None:
    starts = np.array([0.0, 0.5, 1.0, 1.0, 1.0, 1.0])
    ones = np.ones(6, np.int64)
    workload = Workload(starts, ones, ones, closed_loop=3)
    played = replay(constant_table(0.2, 8, 4), Limits(4, 8, 10), workload)
    assert played.requests.arrival[:4] == pytest.approx([0.0, 0.2, 0.4, 0.5])
    assert workload.arrival_s is starts
    assert starts[3] == 1.0


def test_users_beyond_the_replicas_capacity_wait_in_line() -> None:
    ones = np.ones(12, np.int64)
    workload = Workload(np.zeros(12), ones, ones, closed_loop=4)
    limits = Limits(1, 8, 10)
    run = run_of(replay(constant_table(1.0, 8, 1), limits, workload), limits)
    assert run.e2e_s[4:8] == pytest.approx([4.0] * 4)
    assert run.output_tokens_per_s == pytest.approx(1.0)


def test_fewer_users_than_replicas_leave_replicas_idle() -> None:
    ones = np.ones(10, np.int64)
    played = replay(
        constant_table(1.0, 8, 4), Limits(4, 8, 10), Workload(np.zeros(10), ones, ones, closed_loop=2), replicas=3
    )
    assert set(played.replica) == {0, 1}


def test_pauses_must_be_times() -> None:
    one = np.ones(2, np.int64)
    with pytest.raises(WorkloadError, match="think_s must be finite and at least 0"):
        Workload(np.zeros(2), one, one, closed_loop=1, think_s=np.array([1.0, -1.0]))
    with pytest.raises(WorkloadError, match="think_s has 1 rows"):
        Workload(np.zeros(2), one, one, closed_loop=1, think_s=np.array([1.0]))


@given(closed())
@settings(max_examples=50)
def test_staggered_users_start_spread_over_the_time_one_request_takes_alone(case: Case) -> None:
    users = case.workload.closed_loop
    alone = replace(case.workload.take(slice(0, 1)), closed_loop=0, think_s=None)
    alone_s = replay(case.table, case.limits, alone).requests.last[0] - alone.arrival_s[0]
    users = min(users, len(case.workload))
    starts = np.full(len(case.workload), alone_s * (users - 1) / users)
    starts[:users] = alone_s * np.arange(users) / users
    told = replay(case.table, case.limits, replace(case.workload, arrival_s=starts)).requests
    asked = replay(case.table, case.limits, replace(case.workload, staggered=True)).requests
    assert told.arrival.tobytes() == asked.arrival.tobytes()
    assert told.last.tobytes() == asked.last.tobytes()


def test_staggered_users_of_one_length_do_not_prefill_together() -> None:
    """Eight users in step wait for eight prompts each time; spread, for their own."""
    n, users = 400, 8
    loop = Workload(np.zeros(n), np.full(n, 1000), np.full(n, 100), closed_loop=users)
    table, limits = affine_table(8192, users), Limits(users, 8192, 10_000)
    together, spread = (replay(table, limits, replace(loop, staggered=s)).requests for s in (False, True))
    alone = np.min(spread.first - spread.arrival)
    assert np.median(together.first - together.arrival) > 6 * alone
    assert np.median(spread.first - spread.arrival) < 2 * alone


def test_staggered_users_ask_again_when_the_answer_has_reached_them() -> None:
    """Little's law holds for what users see: a request's time outside the steps is part of their cycle."""
    n, users, late = 400, 4, 0.02
    loop = Workload(np.zeros(n), np.full(n, 100), np.full(n, 20), closed_loop=users, staggered=True)
    limits = Limits(users, 512, 10_000)
    table = replace(affine_table(512, users), request_s=late)
    run = run_of(replay(table, limits, loop), limits)
    cycles = run.arrival_s[users:] - np.sort(run.last_token_s)[: n - users]
    assert np.allclose(np.sort(cycles), 0.0, atol=1e-9)
    rate = (n - 1) / (run.arrival_s[-1] - run.arrival_s[0])
    assert rate * run.distribution("e2e").mean == pytest.approx(users, rel=0.02)


@pytest.mark.parametrize("staggered", [False, True])
def test_a_request_with_time_outside_the_steps_misses_the_one_that_begins(*, staggered: bool) -> None:
    """An engine goes on when an answer ends; only with nothing outside is the user's next request there in time."""
    n, users, late = 400, 4, 1e-6
    loop = Workload(np.zeros(n), np.full(n, 100), np.full(n, 20), closed_loop=users, staggered=staggered)
    limits, table = Limits(users, 512, 10_000), affine_table(512, users)
    in_time = replay(table, limits, loop).requests
    missed = replay(replace(table, request_s=late), limits, loop).requests
    decode = table.cost(Step.decode(users - 1, 110)).seconds
    waits = [np.median((r.scheduled - r.arrival)[2 * users :]) for r in (in_time, missed)]
    if staggered:  # one user's answer ends while the others decode
        assert waits[0] == pytest.approx(0.0, abs=1e-9)
        assert waits[1] == pytest.approx(decode, rel=0.2)
    else:  # all end together: nothing is left to step
        assert waits == pytest.approx([0.0, 0.0], abs=1e-5)


@pytest.mark.parametrize("remembers", [False, True])
def test_users_are_paced_by_what_a_request_takes_outside_the_steps(*, remembers: bool) -> None:
    """Little's law without a staggered start, too, whether or not replicas remember prompts that nothing repeats."""
    n, users, late = 400, 4, 0.05
    loop = Workload(np.zeros(n), np.full(n, 100), np.arange(n) % 17 + 10, closed_loop=users)
    limits = Limits(users, 512, 10_000, prefix_caching=remembers)
    run = run_of(replay(replace(affine_table(512, users), request_s=late), limits, loop), limits)
    rate = (n - 1) / (run.arrival_s[-1] - run.arrival_s[0])
    assert rate * run.distribution("e2e").mean == pytest.approx(users, rel=0.02)


@pytest.mark.parametrize("remembers", [False, True])
def test_a_turn_is_sent_when_the_answer_before_it_has_reached_the_user(*, remembers: bool) -> None:
    late, think = 0.05, 0.5
    turns = Workload(
        np.zeros(3), np.full(3, 100), np.full(3, 20), after=np.array([-1, 0, 1]), think_s=np.full(3, think)
    )  # fmt: skip
    table, limits = replace(affine_table(512, 4), request_s=late), Limits(4, 512, 10_000, prefix_caching=remembers)
    one = run_of(replay(table, limits, turns), limits)
    day = serve_fleet(table, limits, turns).run
    assert one.arrival_s[1:] == pytest.approx(one.last_token_s[:-1] + think, abs=1e-9)
    assert day.arrival_s == pytest.approx(one.arrival_s, abs=1e-9)
    assert day.last_token_s == pytest.approx(one.last_token_s, abs=1e-9)
