from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from gambrel.core.slo import SLO
from gambrel.faces import api, cli
from gambrel.plan import Space, plan
from gambrel.plan.other_traffic import clients_redrawn, sensitivities
from gambrel.plan.slower import Slower
from gambrel.plan.trial import Bench
from gambrel.plan.worth import worth_measuring
from gambrel.report.answers import measurement_table, sensitivity_table
from gambrel.traffic import closed_loop
from test_plan_search import MODEL, chat, devices

if TYPE_CHECKING:
    from gambrel.core.plan import Plan
    from gambrel.core.workload import Workload

SLOS = SLO.parse(["ttft.p95<=1s", "tpot.p95<=50ms"])


@pytest.fixture(scope="module")
def log() -> Workload:
    return chat(500, 15.0)


@pytest.fixture(scope="module")
def answer(log: Workload) -> Plan:
    return plan(MODEL, log, SLOS, Space(devices("l4", "l40s", "h100-sxm"), tp=(1,)), api.pricer())


# What to measure


def test_no_choice_is_dearer_than_the_plan_in_hand(answer: Plan) -> None:
    m = answer.measurement
    assert m is not None
    assert all(then <= now + 1e-9 for _, _, now, then in m.choices)
    assert m.saves_usd_per_hour == pytest.approx(float(np.mean([now - then for _, _, now, then in m.choices])))
    assert 0.0 <= m.flips <= 1.0
    factors = [factor for factor, *_ in m.choices]
    assert factors == sorted(factors)
    assert float(np.prod(factors)) == pytest.approx(1.0)


def test_what_is_known_exactly_is_not_worth_measuring(answer: Plan, log: Workload) -> None:
    made = api.pricer()

    class Known(Slower):
        spread = 0.0  # a constant instead of the property

    found = worth_measuring(answer, log, lambda d: Known(made(d), 1.0))
    assert found.flips == 0.0
    assert found.saves_usd_per_hour == 0.0


def test_stages_are_weighed_at_their_own_step_times(log: Workload) -> None:
    made = api.pricer()

    class Doubted(Slower):
        spread = 0.3  # a constant instead of the property

    space = Space(devices("l40s"), tp=(1,), pp=(2,), max_num_seqs=(256,), max_num_batched_tokens=(2048,))
    found = worth_measuring(plan(MODEL, log, SLOS, space, made), log, lambda d: Doubted(made(d), 1.0))
    dollars = [then for *_, then in found.choices]
    assert dollars == sorted(dollars)
    assert dollars[-1] > dollars[0]


def test_the_command_is_one_that_gambrel_takes(answer: Plan) -> None:
    assert answer.measurement is not None
    program, verb, *words = shlex.split(answer.measurement.command)
    assert (program, verb) == ("gambrel", "measure")
    group = typer.main.get_command(cli.app)
    context = group.commands["measure"].make_context("measure", words)  # type: ignore[attr-defined]  # it is a group
    assert context.params["model"] == MODEL.name
    levels = [int(x) for x in str(context.params["concurrency"]).split(",")]
    assert levels[0] == 1
    assert max(levels) >= answer.run.batch_mean - 0.5
    assert answer.measure_next.startswith(answer.measurement.command)


def test_the_table_has_a_row_a_step_time(answer: Plan) -> None:
    table = measurement_table(answer)
    assert table is not None
    assert answer.measurement is not None
    assert len(table.rows) == len(answer.measurement.choices)
    assert "Why this" in table.sentence


# Other traffic


def clients(n: int = 800, heavy: float = 0.3, seed: int = 0) -> Workload:
    """A log of 40 clients, one of whom sends ``heavy`` of everything."""
    rng = np.random.default_rng(seed)
    session = np.where(rng.random(n) < heavy, 0, rng.integers(1, 40, n))
    return replace(chat(n, 10.0, seed), session=session)


@settings(max_examples=25)
@given(seed=st.integers(0, 500))
def test_clients_come_with_all_their_requests(seed: int) -> None:
    log = clients()
    again = clients_redrawn(log, np.random.default_rng(seed))
    assert log.session is not None
    assert again.session is not None
    assert bool(np.all(np.diff(again.arrival_s) >= 0))
    assert again.arrival_s[0] >= 0
    assert again.arrival_s[-1] <= log.span_s + 1e-9
    whole = {tuple(sorted(log.prompt_tokens[log.session == s].tolist())) for s in np.unique(log.session)}
    for s in np.unique(again.session):
        assert tuple(sorted(again.prompt_tokens[again.session == s].tolist())) in whole


def test_a_heavy_client_makes_the_draws_differ_more_than_many_light_ones() -> None:
    def spread(heavy: float) -> float:
        log = clients(heavy=heavy)
        return float(np.std([len(clients_redrawn(log, np.random.default_rng(i))) for i in range(40)]))

    assert spread(0.6) > 2 * spread(0.0)


def test_a_log_without_clients_stays_as_it_is() -> None:
    log = chat(300, 5.0)
    assert clients_redrawn(log, np.random.default_rng(0)) is log


def test_longer_requests_are_harder_and_named(answer: Plan) -> None:
    d = answer.chosen.deployment
    found = sensitivities(d, Bench.of(api.cost_model(d)), clients(), SLOS)
    by_name = {s.change: s for s in found}
    assert set(by_name) == {
        "other clients (40 drawn again)", "prompts 25 % longer", "prompts 50 % longer", "answers 25 % longer"
    }  # fmt: skip
    margins = [min(v.margin for v in by_name[n].worst) for n in ("prompts 25 % longer", "prompts 50 % longer")]
    assert margins[1] < margins[0] < min(v.margin for v in answer.chosen.verdicts)
    table = sensitivity_table(replace(answer, sensitivities=found))
    assert table is not None
    assert len(table.rows) == 4


def test_what_does_not_keep_up_says_so_and_not_the_limit_it_meets(answer: Plan) -> None:
    """Users who no longer fit the cache together miss no limit: the reason is that they do not fit."""
    d = api.deployment(MODEL, "l4")
    bench = Bench.of(api.cost_model(d))
    seats = bench.memory.kv_tokens // 6000
    found = sensitivities(d, bench, closed_loop(seats, 5000, 1000, rounds=1), SLO.parse(["ttft.p95<=60min"]))
    longer = next(s for s in found if s.change == "prompts 50 % longer")
    assert all(v.met for v in longer.worst)
    assert longer.chance == 0.0
    assert longer.behind.startswith("serves ")
    table = sensitivity_table(replace(answer, sensitivities=found))
    assert table is not None
    assert next(row for row in table.rows if row[0] == longer.change)[2].startswith(longer.behind)
