"""Sessions whose turns wait for the turn before: against their definition, the plain replay, and queueing theory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_cases import POLICIES, Case, affine_table, cases, constant_table, hashed
from gambrel.core.errors import DeploymentError, WorkloadError
from gambrel.core.workload import Workload
from gambrel.engine import ROUTINGS, Limits, replay, run_of
from gambrel.engine import state as at

COLUMNS = ("arrival", "scheduled", "first", "last", "preemptions", "cached")


@st.composite
def chained(draw: st.DrawFn) -> Case:
    """A case some of whose requests wait for an earlier one, each for another, with any pauses."""
    case = draw(cases(POLICIES))
    n = len(case.workload)
    after = np.full(n, -1, np.int64)
    free = list(range(n))
    for i in range(1, n):
        earlier = [j for j in free if j < i]
        if len(earlier) > 0 and draw(st.booleans()):
            before: int = draw(st.sampled_from(earlier))
            after[i] = before
            free.remove(before)
    scale = draw(st.sampled_from([0.0, 1e-9, 5e-3, 2.0]))
    think = np.array(draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))) * scale
    session = np.arange(n)
    for k in np.flatnonzero(after >= 0):
        session[k] = session[after[k]]
    return replace(case, workload=replace(case.workload, after=after, think_s=think, session=session))


@given(chained(), st.integers(1, 4), st.sampled_from(sorted(ROUTINGS)))
@settings(max_examples=150)
def test_turns_wait_and_the_rest_is_an_open_replay(case: Case, replicas: int, routing: str) -> None:
    """Laws 1 to 5: conservation, the definition of the arrivals, causality, the oracle's bytes, determinism."""
    workload = case.workload
    played = replay(case.table, case.limits, workload, replicas=replicas, routing=routing)
    requests = played.requests
    assert played.ints[at.FINISHED] == len(workload)
    assert played.ints[at.FREE_BLOCKS] == replicas * case.limits.num_kv_blocks
    after = workload.after
    assert after is not None
    assert workload.think_s is not None
    waits = after >= 0
    assert np.array_equal(requests.arrival[~waits], workload.arrival_s[~waits])
    assert np.array_equal(requests.arrival[waits], (requests.last + workload.think_s)[after[waits]])
    assert (requests.arrival <= requests.scheduled).all()
    assert (requests.scheduled <= requests.first).all()
    assert (requests.first <= requests.last).all()
    naive = replay(case.table, case.limits, workload, replicas=replicas, routing=routing, oracle=True)
    again = replay(case.table, case.limits, workload, replicas=replicas, routing=routing)
    for column in COLUMNS:
        assert getattr(requests, column).tobytes() == getattr(again.requests, column).tobytes(), column
        assert getattr(requests, column).tobytes() == getattr(naive.requests, column).tobytes(), column
    assert np.array_equal(played.histogram, naive.histogram)


@given(cases(POLICIES), st.integers(1, 4), st.sampled_from(sorted(ROUTINGS)))
@settings(max_examples=100)
def test_sessions_of_one_turn_are_the_plain_replay(case: Case, replicas: int, routing: str) -> None:
    """Law 6, bit for bit: also the replicas chosen, and the series."""
    alone = replace(case.workload, after=np.full(len(case.workload), -1))
    plain = replay(case.table, case.limits, case.workload, replicas=replicas, routing=routing, series=True)
    turns = replay(case.table, case.limits, alone, replicas=replicas, routing=routing, series=True)
    for column in COLUMNS:
        assert getattr(plain.requests, column).tobytes() == getattr(turns.requests, column).tobytes(), column
    assert np.array_equal(plain.replica, turns.replica)
    assert plain.series is not None
    assert turns.series is not None
    assert np.array_equal(plain.series.running, turns.series.running)


@given(chained(), st.integers(2, 4))
@settings(max_examples=50)
def test_sticky_sessions_stay(case: Case, replicas: int) -> None:
    """Law 7."""
    session = case.workload.session
    assert session is not None
    served = replay(case.table, case.limits, case.workload, replicas=replicas, routing="session_sticky").replica
    for one in np.unique(session):
        assert len(np.unique(served[session == one])) == 1


def test_one_conversation_by_hand() -> None:
    """Steps of 1 s, three turns of 2, 3 and 1 tokens, pauses of 10 and 0.5 s."""
    workload = Workload(
        np.zeros(3), np.ones(3, np.int64), np.array([2, 3, 1]), after=np.array([-1, 0, 1]),
        think_s=np.array([10.0, 0.5, 7.0]),
    )  # fmt: skip
    limits = Limits(1, 8, 10)
    run = run_of(replay(constant_table(1.0, 8, 1), limits, workload), limits)
    assert run.arrival_s == pytest.approx([0.0, 12.0, 15.5])
    assert run.last_token_s == pytest.approx([2.0, 15.0, 16.5])


def test_threads_change_nothing() -> None:
    n = 24_000
    rng = np.random.default_rng(4)
    workload = Workload(
        np.sort(rng.random(n) * 50.0), rng.integers(1, 100, n), rng.integers(1, 30, n), session=np.arange(n) % (n // 4),
        after=np.concatenate([np.full(n // 4, -1), np.arange(n - n // 4)]), think_s=rng.exponential(1.0, n),
    )  # fmt: skip
    table, limits = affine_table(1024, 64), Limits(64, 1024, 2000)
    threaded = replay(table, limits, workload, replicas=4, routing="session_sticky")
    for r in range(4):
        rows = np.flatnonzero(threaded.replica == r)
        alone = replay(table, limits, workload.take(rows), routing="session_sticky")
        assert threaded.requests.last[rows].tobytes() == alone.requests.last.tobytes()


def test_a_jackson_network() -> None:
    """One server, and people who come back after a pause with probability 3/4: an open network of two nodes.

    First visits are Poisson, services nearly exponential (a geometric number of equal steps), pauses an infinite
    server. By Jackson's theorem the server is M/M/1 at the rate of all visits, although these are no Poisson process:
    its mean residence is S / (1 - rho).
    """
    sessions, step, mean_steps, rho = 60_000, 0.01, 50, 0.6
    rng = np.random.default_rng(2)
    turns = rng.geometric(0.25, sessions)
    n = int(turns.sum())
    service = step * mean_steps
    begin = np.cumsum(rng.exponential(turns.mean() * service / rho, sessions))
    session = np.repeat(np.arange(sessions), turns)
    turn = np.arange(n) - np.repeat(np.cumsum(turns) - turns, turns)
    guess = begin[session] + turn * 1e-3
    order = np.argsort(guess, kind="stable")
    place = np.argsort(order)
    workload = Workload(
        guess[order], np.ones(n, np.int64), rng.geometric(1.0 / mean_steps, n),
        after=np.where(turn > 0, np.roll(place, 1), -1)[order],
        think_s=rng.exponential(3.0 * service, n),
    )  # fmt: skip
    limits = Limits(1, 8, 2000)
    run = run_of(replay(constant_table(step, 8, 1), limits, workload), limits)
    assert run.e2e_s.mean() == pytest.approx(service / (1.0 - rho), rel=0.05)
    assert run.busy_s / run.makespan_s == pytest.approx(rho, rel=0.02)


@pytest.mark.parametrize("routing", ["session_sticky", "prefix_aware", "round_robin"])
def test_a_turn_finds_the_turn_before(routing: str) -> None:
    """Endless memory: where a session stays, each turn finds the full blocks of all that was said before."""
    sessions, turns, block = 30, 5, 16
    rng = np.random.default_rng(1)
    message, answer = rng.integers(20, 200, (sessions, turns)), rng.integers(20, 100, (sessions, turns))
    said = np.cumsum(message + answer, axis=1)
    prompt, output = (said - answer).T.ravel(), answer.T.ravel()
    n = sessions * turns
    workload = Workload(
        np.repeat(np.arange(turns, dtype=np.float64), sessions), prompt, output, session=np.arange(n) % sessions,
        after=np.arange(n) - sessions * (np.arange(n) >= sessions) - (np.arange(n) < sessions) * (np.arange(n) + 1),
        think_s=np.full(n, 0.1),
    )  # fmt: skip
    rows = [[1000 * (i % sessions) + k for k in range(-(-int(prompt[i] + output[i]) // block))] for i in range(n)]
    workload = hashed(workload, rows, block)
    limits = Limits(64, 1024, 40_000, prefix_caching=True)
    run = run_of(replay(affine_table(1024, 64), limits, workload, replicas=3, routing=routing), limits)
    cached = run.cached_tokens
    assert cached is not None
    later, before = np.arange(sessions, n), np.arange(n - sessions)
    ideal = (prompt + output - 1)[before] // block * block
    if routing == "session_sticky":
        assert np.array_equal(cached[later], ideal)
    share = cached[later].sum() / ideal.sum()  # the prefix-aware router forgets those of whom it knows a third at most
    assert share < 0.7 if routing == "round_robin" else share > 0.9


def test_turns_must_be_turns() -> None:
    one = np.ones(3, np.int64)
    with pytest.raises(WorkloadError, match="row 1 waits for row 2; an earlier row works"):
        Workload(np.zeros(3), one, one, after=np.array([1, -1, -1]))
    with pytest.raises(WorkloadError, match="several rows wait for row 1"):
        Workload(np.zeros(3), one, one, after=np.array([-1, 0, 0]))
    with pytest.raises(WorkloadError, match="after has 2 rows"):
        Workload(np.zeros(3), one, one, after=np.array([-1, 0]))
    with pytest.raises(WorkloadError, match="closed loop"):
        Workload(np.zeros(3), one, one, after=np.array([-1, 0, 1]), closed_loop=1)
    workload = Workload(np.zeros(3), one, one, after=np.array([-1, 0, 1]))
    with pytest.raises(DeploymentError, match="speculative decoding"):
        replay(constant_table(1.0, 8, 4), Limits(1, 8, 10, draft_tokens=1, acceptance=0.5), workload)


@given(chained(), st.data())
@settings(max_examples=50)
def test_taking_rows_keeps_who_waits_for_whom(case: Case, data: st.DataObject) -> None:
    after = case.workload.after
    assert after is not None
    kept = sorted(data.draw(st.sets(st.integers(0, len(after) - 1), min_size=1)))
    taken = case.workload.take(np.array(kept)).after
    assert taken is not None
    for i, row in enumerate(kept):
        assert taken[i] == (kept.index(after[row]) if after[row] in kept else -1)
