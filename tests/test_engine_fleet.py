"""A fleet that scales, starts cold and fails: numbered laws under every case, known autoscalers by their documents."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_cases import POLICIES, Case, affine_table, cases, constant_table, hashed, poisson
from gambrel.core.errors import DeploymentError, WorkloadError
from gambrel.core.slo import SLO
from gambrel.core.workload import Workload
from gambrel.engine import Limits, autoscaling, replay
from gambrel.engine import state as at
from gambrel.engine.autoscaling import Autoscale, Kpa, Look
from gambrel.engine.dispatch import Dispatch
from gambrel.engine.fleet import Failures, FleetRun, cold_start_s, least_fixed, serve_fleet
from test_engine_fleet_turns import chained

RULES = ("round_robin", "least_outstanding", "power_of_two", "session_sticky")


@dataclass(frozen=True)
class Fleet:
    case: Case
    settings: dict[str, Any]

    def serve(self) -> FleetRun:
        return serve_fleet(self.case.table, self.case.limits, self.case.workload, **self.settings)


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """Small fleets that fail and scale at the pace of their requests, on arrivals and on turns that wait."""
    case = draw(st.one_of(cases(POLICIES), chained()))
    span = case.workload.span_s + 0.5
    asked: dict[str, Any] = {
        "routing": draw(st.sampled_from(RULES)),
        "start_up_s": draw(st.sampled_from([0.0, 0.01, 0.4, 3.0])) * span,
        "horizon_s": span,
        "sample_s": 0.2 * span,
    }
    struck = st.tuples(st.floats(0, 1), st.integers(0, 4)).map(lambda x: (x[0] * span, x[1]))
    asked["failures"] = Failures(
        draw(st.sampled_from([None, 2.0, 0.7])), tuple(draw(st.lists(struck, max_size=4))), draw(st.integers(0, 3))
    )
    if draw(st.booleans()):
        low, high = draw(st.sampled_from([(0, 1), (0, 3), (1, 4), (2, 5)]))
        metric = draw(st.sampled_from(["concurrency", "kv"]))
        asked["autoscale"] = Autoscale(
            draw(st.sampled_from([1.0, 5.0])) if metric == "concurrency" else draw(st.sampled_from([0.1, 0.8])),
            metric, draw(st.sampled_from(["hpa", "kpa"])), low, high, draw(st.sampled_from([None, high])),
            *(draw(st.sampled_from([0.1, 0.4])) * span for _ in range(4)),
        )  # fmt: skip
    else:
        asked["replicas"] = draw(st.integers(1, 4))
    return Fleet(case, asked)


@given(fleets())
@settings(max_examples=150)
def test_laws(fleet: Fleet) -> None:
    case, day = fleet.case, fleet.serve()
    run, workload = day.run, case.workload
    # 1. Conservation: every request ends, once, with all its tokens.
    assert np.isfinite(run.last_token_s).all()
    assert len(run) == len(workload)
    # 2. Causality, from when it was sent first; 3. no time runs backwards for a turn that waits for another.
    assert (run.arrival_s <= run.scheduled_s).all()
    assert (run.scheduled_s <= run.first_token_s).all()
    assert (run.first_token_s <= run.last_token_s).all()
    if workload.after is None:
        assert np.array_equal(run.arrival_s, workload.arrival_s)
    else:
        waits = workload.after >= 0
        assert workload.think_s is not None
        ended = (run.last_token_s + workload.think_s)[workload.after[waits]]
        assert np.array_equal(run.arrival_s[waits], ended)
    # 4. A life is asked for, ready after the start-up, and over; lives of one number do not overlap.
    takes = fleet.settings["start_up_s"]
    lives = defaultdict(list)
    for life in day.lives:
        lives[life.replica].append(life)
        if life.is_ready:
            assert life.ready_s == life.asked_s + (takes if life.asked_s > 0 or life.ready_s > 0 else 0.0)
            assert life.ready_s <= life.end_s or life.end == "open"
        assert life.asked_s <= life.end_s
    for ones in lives.values():
        assert all(a.end_s <= b.asked_s for a, b in pairwise(ones))
    # 5. Whoever is served is served by a replica that is there, from first to last.
    for i, r in enumerate(run.replica):
        ready = [x for x in lives[int(r)] if x.is_ready and x.ready_s <= run.scheduled_s[i]]
        assert ready
        assert run.last_token_s[i] <= ready[-1].end_s
    # 6. No more replicas than allowed, and what is paid for is the sum of the lives.
    scale = fleet.settings.get("autoscale")
    most = int(fleet.settings["replicas"]) if scale is None else scale.max_replicas
    assert (day.timeline.ready + day.timeline.starting <= most).all()
    assert day.gpu_hours == pytest.approx(sum(x.end_s - x.asked_s for x in day.lives) / 3600)
    # 7. Nothing is lost without a failure, and nobody is held while a replica is there to the end.
    assert day.retries.any() <= (day.num_failures > 0)
    if scale is None and day.num_failures == 0:
        assert not day.held.any()
    # 8. The same again, bit for bit.
    again = fleet.serve()
    assert run.last_token_s.tobytes() == again.run.last_token_s.tobytes()
    assert day.lives == again.lives or str(day.lives) == str(again.lives)  # NaN is not itself


@given(st.one_of(cases(POLICIES), chained()), st.integers(1, 4), st.sampled_from(RULES))
@settings(max_examples=100)
def test_a_fleet_that_never_changes_is_the_plain_replay(case: Case, replicas: int, routing: str) -> None:
    if routing == "power_of_two":
        replicas = 1  # it draws from another stream
    plain = replay(case.table, case.limits, case.workload, replicas=replicas, routing=routing)
    day = serve_fleet(case.table, case.limits, case.workload, replicas=replicas, routing=routing)
    assert day.run.last_token_s.tobytes() == plain.requests.last.tobytes()
    assert day.run.first_token_s.tobytes() == plain.requests.first.tobytes()
    assert np.array_equal(day.run.replica, plain.replica)
    assert day.replica_hours == pytest.approx(replicas * max(day.horizon_s, 0.0) / 3600)


def served(fleet: Fleet) -> list[Dispatch]:
    """The arrays behind a day, after it."""
    made: list[Dispatch] = []
    of = Dispatch.of

    def keep(*args: Any, **named: Any) -> Dispatch:
        made.append(of(*args, **named))
        return made[-1]

    with patch.object(Dispatch, "of", keep):
        fleet.serve()
    return made


@given(fleets())
@settings(max_examples=60)
def test_blocks_and_requests_are_conserved(fleet: Fleet) -> None:
    """Law 9: at the end of the day all blocks are free, nobody waits, and what was handed out has ended or was lost."""
    for day in served(fleet):
        assert (day.replicas.ints[:, at.FREE_BLOCKS] == day.limits.num_kv_blocks).all()
        assert day.num_finished == len(day.asked) == day.counts.sum()
        assert day.num_held == 0
        assert (day.counts == day.replicas.ints[:, at.FINISHED]).all()


def test_a_lost_replica_has_forgotten_everything() -> None:
    """Conversations with a prefix cache: they go on elsewhere, find less, and every block comes back."""
    sessions, turns = 40, 6
    n = sessions * turns
    prompt, output = 60 * (1 + np.arange(n) // sessions), np.full(n, 20)
    after = np.where(np.arange(n) < sessions, -1, np.arange(n) - sessions)
    workload = Workload(
        np.repeat(np.arange(turns, dtype=np.float64), sessions), prompt, output, session=np.arange(n) % sessions,
        after=after, think_s=np.full(n, 1.0),
    )  # fmt: skip
    rows = [[1000 * (i % sessions) + k for k in range(-(-int(prompt[i] + 20) // 16))] for i in range(n)]
    workload = hashed(workload, rows, 16)
    case = Case(affine_table(1024, 64), Limits(64, 1024, 2000, prefix_caching=True), workload)
    calm = Fleet(case, {"replicas": 3, "routing": "session_sticky", "start_up_s": 0.5})
    rough = Fleet(case, calm.settings | {"failures": Failures(at=((2.1, 0), (3.3, 1), (4.0, 2)))})
    one, other = calm.serve().run, rough.serve().run
    assert np.isfinite(other.last_token_s).all()
    assert 0.3 < other.hit_ratio < one.hit_ratio
    for day in served(rough):
        assert (day.replicas.ints[:, at.FREE_BLOCKS] == 2000).all()


def steady(rate: float, n: int, service: int, seed: int = 0) -> Workload:
    """Poisson arrivals of one prompt token and ``service`` output tokens."""
    arrival = np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, n))
    return Workload(arrival, np.ones(n, np.int64), np.full(n, service))


def test_a_failure_by_hand() -> None:
    """Steps of 1 s. Replica 0 fails at 2.5 s, at the end of its third step; its request starts anew on replica 1."""
    workload = Workload(np.array([0.0, 0.1]), np.ones(2, np.int64), np.array([5, 5]))
    limits = Limits(4, 8, 100)
    day = serve_fleet(
        constant_table(1.0, 8, 4), limits, workload, replicas=2, failures=Failures(at=((2.5, 0),)), start_up_s=100.0
    )
    assert day.retries.tolist() == [1, 0]
    assert day.run.replica.tolist() == [1, 1]
    assert day.run.last_token_s[1] == pytest.approx(5.1)
    assert day.run.scheduled_s[0] == pytest.approx(3.1)  # the step of replica 1 that was running ends
    assert day.run.last_token_s[0] == pytest.approx(8.1)
    assert [(x.replica, x.end) for x in day.lives] == [(0, "failed"), (1, "open"), (0, "open")]
    assert day.lives[0].end_s == pytest.approx(3.0)


def test_a_cold_start_by_hand() -> None:
    """Asleep, asked at 0, seen at the first look, ready 5 s later: both requests wait for it, in order."""
    workload = Workload(np.array([0.5, 0.75]), np.ones(2, np.int64), np.array([2, 1]))
    scale = Autoscale(1.0, rule="kpa", min_replicas=0, max_replicas=2, period_s=2.0)
    day = serve_fleet(constant_table(1.0, 8, 4), Limits(1, 8, 100), workload, autoscale=scale, start_up_s=5.0)
    assert day.held.all()
    assert day.run.scheduled_s == pytest.approx([7.0, 9.0] if day.timeline.ready.max() == 1 else [7.0, 7.0])
    assert day.lives[0].asked_s == 2.0
    assert day.lives[0].ready_s == 7.0


def test_all_replicas_lost_hold_the_line() -> None:
    workload = steady(10.0, 100, 1)
    day = serve_fleet(
        constant_table(0.01, 8, 4), Limits(4, 8, 100), workload, replicas=1, failures=Failures(at=((3.0, 0),)),
        start_up_s=2.0,
    )  # fmt: skip
    gone = (workload.arrival_s > 3.0) & (workload.arrival_s < 5.0)
    assert gone.sum() > 5
    assert np.array_equal(np.flatnonzero(day.held), np.flatnonzero(gone))
    assert (day.run.scheduled_s[gone] >= 5.0).all()
    assert day.during_start[gone].all()


@pytest.mark.parametrize(("rule", "metric"), [("hpa", "concurrency"), ("kpa", "concurrency"), ("hpa", "kv")])
def test_a_steady_load_has_the_replicas_that_little_says(rule: str, metric: str) -> None:
    """Rate times residence is what is in flight, and a target shares it out: 20/s x 2 s / 8 is 5 replicas."""
    table, limits = constant_table(0.02, 128, 64), Limits(64, 128, 1000)
    workload = steady(20.0, 40_000, 100)
    target = 8.0 if metric == "concurrency" else 8.0 * 3.9 / 1000  # 100 tokens take 3.9 blocks on average
    scale = Autoscale(target, metric, rule, 1, 20, window_s=60.0)
    day = serve_fleet(table, limits, workload, autoscale=scale, routing="least_outstanding", start_up_s=30.0)
    late = day.timeline.time_s > 600.0
    assert day.timeline.in_flight[late].mean() == pytest.approx(40.0, rel=0.05)
    assert 4.5 <= day.timeline.ready[late].mean() <= 7.5
    assert day.run.e2e_s.mean() == pytest.approx(2.0, rel=0.05)


def test_failures_come_as_often_as_they_are_said_to() -> None:
    """A renewal process: up for the mean time between failures, gone for a start-up."""
    workload = steady(1.0, 20_000, 1)
    day = serve_fleet(
        constant_table(0.01, 8, 4), Limits(4, 8, 100), workload, replicas=4, routing="round_robin", start_up_s=50.0,
        failures=Failures(mtbf_s=150.0, seed=3), sample_s=20.0,
    )  # fmt: skip
    assert day.num_failures == pytest.approx(4 * day.horizon_s / 200.0, rel=0.1)
    assert day.timeline.ready.mean() == pytest.approx(4 * 0.75, rel=0.05)


def test_autoscaling_follows_a_day_and_costs_less() -> None:
    table, limits = affine_table(1024, 64), Limits(64, 1024, 4000)
    hour = np.arange(24)
    rates = 12.0 * (1.05 - np.cos(2 * np.pi * hour / 24))
    rng = np.random.default_rng(0)
    arrival = np.concatenate(
        [np.sort(rng.random(rng.poisson(r * 300))) * 300 + 300 * h for h, r in zip(hour, rates, strict=True)]
    )
    n = len(arrival)
    workload = Workload(arrival, rng.integers(1, 400, n), rng.integers(1, 200, n))
    slo = SLO.parse(["ttft.p95<=0.5s", "tpot.p95<=20ms"])

    def fixed(replicas: int) -> FleetRun:
        return serve_fleet(table, limits, workload, replicas=replicas, routing="least_outstanding")

    found = least_fixed(slo, 32, fixed)
    assert found is not None
    number, day = found
    assert all(v.met for v in slo.check(day.run))
    assert number == 1 or not all(v.met for v in slo.check(fixed(number - 1).run))
    scaled = serve_fleet(
        table, limits, workload, autoscale=Autoscale(8.0, max_replicas=16), routing="least_outstanding", start_up_s=60.0
    )
    assert (
        np.corrcoef(scaled.timeline.ready, np.interp(scaled.timeline.time_s - 150, hour * 300 + 150, rates))[0, 1] > 0.7
    )
    assert scaled.timeline.ready.max() > 2 * scaled.timeline.ready[1:].min()
    assert least_fixed(SLO.parse(["ttft.p95<=1us"]), 2, fixed) is None


def looks(scale: Autoscale, seen: list[tuple[float, int, int, float]]) -> list[int]:
    rule = scale.start()
    return [rule.wanted(Look(t, ready, starting, total, total > 0)) for t, ready, starting, total in seen]


def test_hpa_as_its_document_says() -> None:
    """Twice the target doubles; within 10 % nothing; at most doubled or 4 more; fewer after five minutes."""
    scale = Autoscale(10.0, max_replicas=100)
    assert looks(scale, [(0, 2, 0, 40.0)]) == [4]
    assert looks(scale, [(0, 10, 0, 109.0)]) == [10]
    assert looks(scale, [(0, 10, 0, 111.0)]) == [12]
    assert looks(scale, [(0, 10, 0, 900.0), (0, 2, 0, 900.0)]) == [20, 6]
    assert looks(scale, [(0, 2, 2, 40.0)]) == [4]  # those that start count as idle: four are what it takes
    assert looks(scale, [(0, 4, 4, 30.0)]) == [8]  # and as on target when it wants fewer: 30 + 40 over 80
    falling = looks(scale, [(15.0 * k, 8, 0, 80.0 if k == 0 else 20.0) for k in range(24)])
    assert falling[:21] == [8] * 21  # 300 s later the first look is forgotten
    assert falling[21:] == [2, 2, 2]
    bounded = Autoscale(10.0, min_replicas=3, max_replicas=5)
    assert looks(bounded, [(0, 4, 0, 1.0), (400, 4, 0, 1.0), (900, 4, 0, 99.0)]) == [4, 3, 5]


def test_keda_at_zero() -> None:
    """Asleep after the cool-down, awake at the next poll."""
    scale = Autoscale(10.0, min_replicas=0, max_replicas=4)
    assert looks(scale, [(0, 1, 0, 5.0), (15, 1, 0, 0.0), (299, 1, 0, 0.0), (300, 1, 0, 0.0)]) == [1, 1, 1, 0]
    assert looks(scale, [(0, 0, 0, 0.0), (15, 0, 0, 7.0), (30, 0, 0, 7.0)]) == [0, 0, 1]


def test_kpa_as_its_configuration_says() -> None:
    scale = Autoscale(10.0, rule="kpa", min_replicas=0, max_replicas=100)
    assert looks(scale, [(0, 0, 0, 1.0)]) == [1]
    assert looks(scale, [(2.0 * k, 2, 0, 25.0) for k in range(3)]) == [3, 3, 3]
    calm = [(2.0 * k, 2, 0, 20.0) for k in range(30)]
    burst = [(60.0 + 2 * k, 2, 0, 80.0) for k in range(3)]
    after = [(66.0 + 2 * k, 8, 0, 10.0) for k in range(40)]
    wanted = looks(scale, calm + burst + after)
    assert wanted[:30] == [2] * 30
    assert wanted[32] == 8  # the mean over 6 s is four times the target: panic
    assert min(wanted[33:61]) >= 8  # and nothing is taken away for a minute
    assert wanted[-1] == 4  # then at most half at once
    assert looks(scale, [(0, 2, 0, 5.0), (60, 2, 0, 0.0), (89, 2, 0, 0.0), (90, 2, 0, 0.0)])[1:] == [1, 1, 0]


class Asked:
    """Knative's rule, asked from outside at every look."""

    def __init__(self, scale: Autoscale) -> None:
        self.rule = Kpa(scale)

    def wanted(self, look: Look) -> int:
        return self.rule.wanted(look)


@given(st.integers(0, 2), st.sampled_from(["concurrency", "kv"]), st.floats(0.0, 30.0), st.integers(0, 99))
@settings(max_examples=20)
def test_it_does_not_matter_who_asks_the_rule(low: int, metric: str, start_up_s: float, seed: int) -> None:
    """Looks taken in the loop, which only stops where the fleet changes, are those taken one by one."""
    table, limits, workload = affine_table(256, 8), Limits(8, 256, 200), poisson(300, 1.5, 40, 20, seed)
    target = 0.05 if metric == "kv" else 1.0
    scale = Autoscale(target, metric, "kpa", min_replicas=low, max_replicas=4, window_s=20.0)
    inside = serve_fleet(table, limits, workload, autoscale=scale, start_up_s=start_up_s)
    with patch.dict(autoscaling.RULES, {"kpa": Asked}):
        outside = serve_fleet(table, limits, workload, autoscale=scale, start_up_s=start_up_s)
    assert inside.run.last_token_s.tobytes() == outside.run.last_token_s.tobytes()
    assert [repr(x) for x in inside.lives] == [repr(x) for x in outside.lives]
    for name in ("time_s", "ready", "starting", "leaving", "in_flight", "held", "kv_usage"):
        assert getattr(inside.timeline, name).tobytes() == getattr(outside.timeline, name).tobytes(), name


@given(
    st.sampled_from(["hpa", "kpa"]),
    st.integers(0, 3),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5), st.floats(0, 500)), min_size=1, max_size=60),
)
@settings(max_examples=100)
def test_a_rule_stays_within_its_bounds(rule: str, low: int, more: int, seen: list[tuple[int, int, float]]) -> None:
    scale = Autoscale(7.0, rule=rule, min_replicas=low, max_replicas=low + more)
    wanted = looks(scale, [(15.0 * k, *x) for k, x in enumerate(seen)])
    for number, (ready, starting, _) in zip(wanted, seen, strict=True):
        assert 0 <= number <= max(low + more, ready + starting)


def test_weights_take_their_time() -> None:
    assert cold_start_s(16e9, 2e9, 45.0) == 53.0
    assert cold_start_s(16e9, 2e9, 45.0, 30.0) == 83.0
    assert math.isclose(cold_start_s(0.0, 1.0, 0.0), 0.0)
    for bad in ((1.0, 0.0, 1.0, 0.0), (1.0, 1.0, -1.0, 0.0), (1.0, 1.0, 1.0, math.inf)):
        with pytest.raises(DeploymentError):
            cold_start_s(*bad)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"routing": "prefix_aware"}, "remembers what it sent to replicas that stay"),
        ({"routing": "lottery"}, "unknown routing 'lottery'; known: round_robin"),
        ({"routing": "session_sticky", "sessions": False}, "needs a session column"),
        ({"start_up_s": -1.0}, "start-up must take at least 0 seconds, got -1.0"),
        (
            {"failures": Failures(mtbf_s=1e-4), "start_up_s": 0.0},
            "before any request could end, 20 are left; a longer mtbf",
        ),
    ],
)
def test_what_cannot_be(settings_: dict[str, Any], words: str) -> None:
    workload = poisson(20, 10.0, 50, 50)
    if not settings_.pop("sessions", True):
        workload = replace(workload, session=None)
    with pytest.raises((DeploymentError, WorkloadError), match=words):
        serve_fleet(affine_table(1024, 64), Limits(64, 1024, 1000), workload, **settings_)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"metric": "cpu"}, "unknown autoscaling metric 'cpu'; known: concurrency, kv"),
        ({"rule": "vpa"}, "unknown autoscaling rule 'vpa'; known: hpa, kpa"),
        ({"target": 0.0}, "target must be above 0"),
        ({"metric": "kv", "target": 20.0}, "is a share"),
        ({"min_replicas": 4, "max_replicas": 2}, "got 4 to 2"),
        ({"initial": 9}, "must lie in 1 to 8, got 9"),
        ({"period_s": 0.0}, "period_s must be above 0 seconds"),
    ],
)
def test_a_rule_that_cannot_be(figures: dict[str, Any], words: str) -> None:
    with pytest.raises(DeploymentError, match=words):
        Autoscale(**({"target": 1.0} | figures))


def test_failures_that_cannot_be() -> None:
    for bad in ({"mtbf_s": 0.0}, {"at": ((-1.0, 0),)}, {"at": ((1.0, -1),)}):
        with pytest.raises(DeploymentError):
            Failures(**bad)
