"""Priorities and clients that give up: equal priorities are first come, first served; laws; Cobham's formula."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_cases import Case, affine_table, cases, constant_table, hashed, poisson
from gambrel.core.errors import DeploymentError, WorkloadError
from gambrel.core.workload import Ints, Workload
from gambrel.engine import Limits, Replay, replay, run_of
from gambrel.engine import state as at
from gambrel.engine.prefixes import Prefixes
from gambrel.traffic import read_workload, scale_rate, write_workload
from test_engine_laws import assert_same

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.core.step import Floats

MARKS = ADMITTED, EVICTED, TOKEN, ENDED, ABANDONED = range(5)


def recorded(case: Case, limits: Limits, workload: Workload) -> tuple[at.Requests, at.Replicas, Floats, Floats]:
    """The plain scheduler on one replica, with its record of everything."""
    from gambrel.engine.routing import run_plain

    requests = at.Requests.of(workload, Prefixes.none(len(workload)))
    replica = at.Replicas.of(limits, requests, windowed=case.table.window > 0)
    replica.line_up(requests, np.arange(len(workload)))
    steps, marks = run_plain(case.table, limits, requests, replica, since_s=-1.0)
    return requests, replica, steps, marks


@given(cases(), st.booleans(), st.integers(-3, 3))
@settings(max_examples=150)
def test_equal_priorities_are_first_come_first_served(case: Case, prefix_caching: bool, priority: int) -> None:
    fifo = replace(case.limits, prefix_caching=prefix_caching)
    workload = replace(case.workload, priority=np.full(len(case.workload), priority))
    ranked = replay(case.table, replace(fifo, by_priority=True), workload)
    assert_same(ranked, replay(case.table, fifo, workload, oracle=True))


@given(cases())
@settings(max_examples=60)
def test_endless_patience_changes_nothing(case: Case) -> None:
    n = len(case.workload)
    plain = replay(case.table, case.limits, case.workload, oracle=True)
    for deadline in (1e9, np.inf):
        patient = replay(case.table, case.limits, replace(case.workload, deadline_s=np.full(n, deadline)))
        assert_same(patient, plain)


@given(cases(), st.data())
@settings(max_examples=150)
def test_laws(case: Case, data: st.DataObject) -> None:
    n = len(case.workload)
    draw = data.draw
    priority = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    patience = draw(st.sampled_from([np.inf, 0.05, 0.5]))
    deadline_s = np.array(draw(st.lists(st.floats(0.1, 1.0), min_size=n, max_size=n))) * patience
    rows = [[draw(st.integers(0, 1))] * draw(st.integers(0, 3)) for _ in range(n)]
    limits = replace(case.limits, by_priority=draw(st.booleans()), prefix_caching=draw(st.booleans()))
    workload = replace(case.workload, priority=priority, deadline_s=deadline_s)
    if limits.prefix_caching:
        workload = hashed(workload, [list(range(len(r))) for r in rows], max(1, int(workload.prompt_tokens.min())))
    played = replay(case.table, limits, workload)
    requests, replica, steps, marks = recorded(replace(case, workload=workload), limits, workload)
    ended = np.isfinite(requests.last)
    kind, row = marks[:, 1].astype(int), marks[:, 2].astype(int)

    # requests are conserved, those who gave up among them, and so is everything they held
    for one, two in ((requests.last, played.requests.last), (requests.scheduled, played.requests.scheduled)):
        if not limits.prefix_caching:
            assert one.tobytes() == two.tobytes()
    lost = np.bincount(row[kind == ABANDONED], minlength=n)
    assert (lost + ended == 1).all()
    assert replica.ints[0, at.FINISHED] == ended.sum()
    assert replica.ints[0, at.FREE_BLOCKS] == limits.num_kv_blocks
    # nobody ends at or after a deadline that a step boundary has seen, and nobody is dropped before it
    deadline = requests.arrival + deadline_s
    gone = marks[kind == ABANDONED]
    assert (gone[:, 0] >= deadline[gone[:, 2].astype(int)]).all()
    starts = steps[:, 0]
    for i in np.flatnonzero(ended):
        later = starts[np.searchsorted(starts, deadline[i]) :]
        assert len(later) == 0 or requests.last[i] <= later[0] + 1e-12
    # causality, a clock that never goes back, blocks within bounds
    assert (np.diff(marks[:, 0]) >= 0).all()
    assert (np.diff(starts) > 0).all()
    np.testing.assert_allclose(starts[1:] - (starts[:-1] + steps[:-1, 1]) >= -1e-12, True)
    assert (steps[:, 9] <= limits.num_kv_blocks).all()
    assert (requests.arrival <= requests.scheduled)[np.isfinite(requests.scheduled)].all()
    assert (requests.scheduled < requests.first)[np.isfinite(requests.first)].all()
    assert (requests.first <= requests.last)[ended].all()
    run = run_of(played, limits)
    parts = np.sum(list(run.phases_s().values()), axis=0)
    np.testing.assert_allclose(parts[np.isfinite(parts)], run.e2e_s[np.isfinite(run.e2e_s)], atol=1e-9)


@given(cases(), st.data())
@settings(max_examples=100)
def test_high_priority_never_waits_behind_low_at_admission(case: Case, data: st.DataObject) -> None:
    """Whoever is admitted had the lowest rank of all who waited then: new, or preempted before."""
    n = len(case.workload)
    priority = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    workload = replace(case.workload, priority=priority)
    limits = replace(case.limits, by_priority=True)
    requests, _, _, marks = recorded(case, limits, workload)
    rank = requests.rank
    assert rank is not None
    running: set[int] = set()
    out: set[int] = set()
    for time, what, who in marks.tolist():
        i = int(who)
        if what == ADMITTED:
            waits = [j for j in range(n) if j not in running and j not in out and requests.arrival[j] <= time]
            assert rank[i] == min(rank[j] for j in waits)
            running.add(i)
        elif what == EVICTED:
            assert rank[i] == max(rank[j] for j in running)
            running.remove(i)
        elif what == ENDED:
            running.remove(i)
            out.add(i)


@cache
def two_classes(load: float, share: float, num: int) -> tuple[Replay, Ints]:
    """One seat, one-token answers: a server with a fixed service of 1 s, and Poisson arrivals of two classes."""
    rng = np.random.default_rng(3)
    arrival = np.cumsum(rng.exponential(1.0 / load, num))
    priority = (rng.random(num) >= share).astype(np.int64)
    workload = Workload(arrival, np.ones(num, np.int64), np.ones(num, np.int64), priority=priority)
    return replay(constant_table(1.0, 64, 1), Limits(1, 64, 1000, by_priority=True), workload), priority


@pytest.mark.parametrize(("load", "share"), [(0.7, 0.3), (0.9, 0.5)])
def test_cobham(load: float, share: float) -> None:
    """Non-preemptive priorities in M/D/1 (Cobham 1954): W_1 = W0 / (1 - r1), W_2 = W0 / ((1 - r1) (1 - r)).

    W0 = r / 2 is what a newcomer finds of the service under way; r1 = share x load is the load of the first class.
    """
    played, priority = two_classes(load, share, 200_000)
    waits = played.requests.scheduled - played.requests.arrival
    remaining = load / 2
    assert waits[priority == 0].mean() == pytest.approx(remaining / (1 - share * load), rel=0.03)
    expected = remaining / ((1 - share * load) * (1 - load))
    assert waits[priority == 1].mean() == pytest.approx(expected, rel=0.10)


def test_mixed_priorities_by_hand() -> None:
    """The urgent one, last to come, is served first; who runs is not interrupted, for blocks are not short."""
    workload = Workload(np.zeros(3), np.ones(3, np.int64), np.full(3, 2), priority=np.array([5, 5, 0]))
    limits = Limits(1, 64, 10, by_priority=True)
    run = run_of(replay(constant_table(1.0, 64, 1), limits, workload), limits)
    assert run.last_token_s.tolist() == [4.0, 6.0, 2.0]
    first_come = run_of(replay(constant_table(1.0, 64, 1), replace(limits, by_priority=False), workload), limits)
    assert first_come.last_token_s.tolist() == [2.0, 4.0, 6.0]


def test_a_client_that_gives_up_by_hand() -> None:
    """Three answers of 4 s in one seat; the second waits 5 s at most: it is dropped at 5 s, with one token of four."""
    workload = Workload(np.zeros(3), np.ones(3, np.int64), np.full(3, 4), deadline_s=np.array([9.0, 5.0, 9.0]))
    limits = Limits(1, 64, 10)
    run = run_of(replay(constant_table(1.0, 64, 1), limits, workload), limits)
    assert run.last_token_s.tolist()[::2] == [4.0, 9.0]
    assert np.isnan(run.last_token_s[1])
    assert run.first_token_s.tolist() == [1.0, 5.0, 6.0]
    assert run.num_unfinished == 1


def test_giving_up_saves_the_others_under_overload() -> None:
    """At twice what the replica bears, waits grow for ever; with a patience of 10 s they are bounded by it."""
    table, limits = affine_table(2048, 8), Limits(8, 2048, 20_000)
    workload = poisson(2000, 60.0, 100, 60)
    for_ever = run_of(replay(table, limits, workload), limits)
    patient = run_of(replay(table, limits, replace(workload, deadline_s=np.full(2000, 10.0))), limits)
    assert for_ever.e2e_s.max() > 30.0
    assert np.nanmax(patient.e2e_s) < 10.5
    assert 0.1 < patient.num_unfinished / 2000 < 0.9


def test_refusals() -> None:
    workload = replace(poisson(10, 1.0, 5, 5), priority=np.zeros(10, np.int64))
    with pytest.raises(DeploymentError, match="priorities are kept in the plain scheduler"):
        replay(affine_table(64, 4), Limits(4, 64, 100, by_priority=True), workload, replicas=2,
               routing="least_outstanding")  # fmt: skip
    with pytest.raises(WorkloadError, match="deadline_s must be above 0, row 3 has -1"):
        replace(workload, deadline_s=np.array([1.0, 1.0, -1.0] + [1.0] * 7))
    with pytest.raises(WorkloadError, match="priority has 3 rows, arrival_s 10"):
        replace(workload, priority=np.zeros(3, np.int64))


def test_logs_name_priorities_and_deadlines(tmp_path: Path) -> None:
    """As plain columns, in CSV and JSON Lines, kept by scaling and by writing; wrong ones are refused by line."""
    path = tmp_path / "log.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens,priority,timeout_ms\n0,5,5,-1,1500\n1,5,5,2,2000\n")
    found = read_workload(path)
    assert found.priority is not None
    assert found.deadline_s is not None
    assert found.priority.tolist() == [-1, 2]
    assert found.deadline_s.tolist() == [1.5, 2.0]
    write_workload(found, tmp_path / "again.csv")
    again = read_workload(tmp_path / "again.csv")
    assert again.priority is not None
    assert again.priority.tolist() == [-1, 2]
    doubled = scale_rate(found, 2.0, seed=0)
    assert doubled.priority is not None
    assert doubled.deadline_s is not None
    assert set(zip(doubled.priority.tolist(), doubled.deadline_s.tolist(), strict=True)) <= {(-1, 1.5), (2, 2.0)}
    rows = tmp_path / "log.jsonl"
    rows.write_text('{"prompt_tokens": 5, "output_tokens": 5, "urgency": 3, "arrival_s": 0}\n')
    named = read_workload(rows, columns={"priority": "urgency"})
    assert named.priority is not None
    assert named.priority.tolist() == [3]
    path.write_text("arrival_s,prompt_tokens,output_tokens,priority\n0,5,5,high\n")
    words = read_workload(path)
    assert words.priority is None
    assert any("field 'priority' holds no number in its first row ('high'): not used" in w for w in words.warnings)
    for text, why in (("0,5,5,0.5,10", "a whole number, lower for more urgent"), ("0,5,5,1,0", "a duration above 0")):
        path.write_text(f"arrival_s,prompt_tokens,output_tokens,priority,timeout_ms\n{text}\n")
        with pytest.raises(WorkloadError, match=why):
            read_workload(path)
