from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gambrel.core.deployment import Deployment
from gambrel.core.plan import Hour, Schedule
from gambrel.core.slo import SLO
from gambrel.core.workload import Workload
from gambrel.engine.autoscaling import Look
from gambrel.faces import api
from gambrel.faces.plan_answers import schedule_document
from gambrel.plan.schedule import LOOK_S, Timetable, hour_slices, schedule
from gambrel.plan.trial import Bench, fewest_replicas, judge
from gambrel.report.answers import schedule_table
from test_plan_search import MODEL, chat

if TYPE_CHECKING:
    from gambrel.core.plan import Plan

HOUR = 3600.0
SLOS = SLO.parse(["ttft.p95<=1s", "tpot.p95<=60ms"])
DEPLOYMENT = Deployment(MODEL, api.accelerator("l4"), weights="fp8", kv="fp8", max_num_seqs=8)


def day(days: int = 1, busy: float = 0.9, quiet: float = 0.05) -> Workload:
    """Busy from hour 8 to 18, quiet otherwise."""
    rng = np.random.default_rng(3)
    at = []
    for hour in range(24 * days):
        n = rng.poisson(HOUR * (busy if 8 <= hour % 24 < 18 else quiet))
        at.append(hour * HOUR + np.sort(rng.random(n)) * HOUR)
    times = np.concatenate([[0.0], *at, [24 * days * HOUR - 1.0]])
    n = len(times)
    prompts, outputs = rng.integers(100, 1200, n), rng.integers(50, 300, n)
    return Workload(times, prompts, outputs)


def planned(log: Workload) -> Plan:
    """As much of a plan as a timetable reads: the flat fleet that holds the whole log."""
    bench = Bench.of(api.cost_model(DEPLOYMENT))
    trial = fewest_replicas(lambda d: judge(d, bench, log, SLOS), DEPLOYMENT, 1, 20)
    assert trial.candidate.feasible
    assert trial.candidate.deployment.replicas > 1
    found: Any = SimpleNamespace(chosen=trial.candidate, slo=SLOS)
    return found  # type: ignore[no-any-return]  # a stand-in with the two fields that are read


@pytest.fixture(scope="module")
def log() -> Workload:
    return day()


@pytest.fixture(scope="module")
def found(log: Workload) -> Schedule:
    return schedule(planned(log), log, api.cost_model(DEPLOYMENT))


@given(st.lists(st.integers(1, 9), min_size=24, max_size=24), st.floats(0, 100 * HOUR), st.floats(0, HOUR))
def test_the_clock_asks_for_this_hour_or_the_one_about_to_begin(hourly: list[int], now: float, lead: float) -> None:
    table = Timetable(target=1.0, max_replicas=9, hourly=tuple(hourly), lead_s=lead)
    wanted = table.start().wanted(Look(now, 1, 0, 0.0, busy=False))
    this, following = int(now // HOUR) % 24, (int(now // HOUR) + 1) % 24
    assert wanted >= hourly[this]
    assert wanted in {hourly[this], max(hourly[this], hourly[following])}


def test_every_request_lies_in_one_hour_of_the_day(log: Workload) -> None:
    slices = hour_slices(log)
    assert sum(len(s) for hours in slices for s in hours) == len(log)
    assert all(s.span_s < HOUR for hours in slices for s in hours)


def test_the_night_takes_less_and_the_whole_log_still_holds(found: Schedule, log: Workload) -> None:
    by_hour = [h.replicas for h in found.hours]
    flat = planned(log).chosen.deployment.replicas
    assert max(by_hour) <= flat
    assert min(by_hour) < flat
    assert by_hour[2] < by_hour[12]
    assert all(v.met for v in found.verdicts)
    assert found.usd_per_day < found.flat_usd_per_day


def test_a_schedule_is_dearer_than_its_hours_by_its_starts(found: Schedule) -> None:
    hours = sum(h.usd_per_hour for h in found.hours)
    starts = sum(max(0, b.replicas - a.replicas) for a, b in zip(found.hours, found.hours[1:], strict=False))
    each = found.hours[0].usd_per_hour / found.hours[0].replicas
    early = each * starts * (found.start_s + 2 * LOOK_S) / HOUR
    assert hours - 0.05 * hours <= found.usd_per_day <= hours + early + 0.1 * hours


def test_a_longer_start_is_asked_for_earlier_and_costs_more(found: Schedule, log: Workload) -> None:
    slow = schedule(planned(log), log, api.cost_model(DEPLOYMENT), start_s=1800.0)
    assert slow.usd_per_day > found.usd_per_day
    assert all(v.met for v in slow.verdicts)


@pytest.mark.parametrize("log", [chat(300, 10.0), replace(day(), has_arrivals=False)])
def test_a_log_without_a_day_of_arrivals_has_no_timetable(log: Workload) -> None:
    found = schedule(planned(day()), log, api.cost_model(DEPLOYMENT))
    assert found.hours == ()
    assert math.isnan(found.usd_per_day)
    assert "a day" in found.basis
    assert schedule_table(found).rows == ()
    assert "a day" in schedule_table(found).sentence


def test_neighbouring_hours_share_a_row_and_the_document_has_all(found: Schedule) -> None:
    table = schedule_table(found)
    assert len(table.rows) < 24
    assert table.rows[0][0].startswith("0:00 to ")
    assert table.rows[-1][0].endswith("to 24:00")
    document = json.loads(json.dumps(schedule_document(found)))
    assert [h["hour"] for h in document["hours"]] == list(range(24))


def test_a_timetable_that_costs_more_says_so() -> None:
    hours = tuple(Hour(h, 1.0, 1.0, 2, 2, 2.0) for h in range(24))
    table = schedule_table(Schedule(hours, 50.0, 48.0, 300.0, (), "one day"))
    assert "saves nothing" in table.sentence
