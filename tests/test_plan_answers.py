from __future__ import annotations

import itertools
import json
import math
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gambrel.core.deployment import Deployment
from gambrel.core.errors import DeploymentError
from gambrel.core.plan import FrontPoint, Plan
from gambrel.core.slo import SLO
from gambrel.core.workload import Workload
from gambrel.faces import api
from gambrel.faces.plan_answers import answers_document
from gambrel.faces.tables import plan_tables
from gambrel.plan import Space, plan
from gambrel.plan.chance import DRAWS, SLACK_TOLERANCE, chances, redrawn
from gambrel.plan.compare import no_worse, pareto_front
from gambrel.plan.explain import Loads, met_objectives
from gambrel.plan.growth import outlook
from gambrel.plan.trial import Bench
from gambrel.traffic import closed_loop, scale_load
from test_plan_file import run
from test_plan_search import MODEL, chat, devices

if TYPE_CHECKING:
    from pathlib import Path

SLOS = SLO.parse(["ttft.p95<=1s", "tpot.p95<=50ms"])
NAMES = ("l4", "l40s", "h100-sxm")


@pytest.fixture(scope="module")
def answer() -> Plan:
    return plan(MODEL, chat(600, 20.0), SLOS, Space(devices(*NAMES), tp=(1, 2)), api.pricer())


def bench_of(answer: Plan) -> Bench:
    return Bench.of(api.cost_model(answer.chosen.deployment))


# The traffic drawn again


def long_log(seed: int, minutes: float = 40.0, rate: float = 1.0) -> Workload:
    rng = np.random.default_rng(seed)
    n = int(minutes * 60 * rate)
    return replace(chat(n, rate, seed), session=rng.integers(0, 50, n))


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), draw=st.integers(0, 1000))
def test_a_redrawn_log_is_made_of_the_logs_own_requests(seed: int, draw: int) -> None:
    log = long_log(seed % 5)
    again = redrawn(log, np.random.default_rng(draw))
    assert bool(np.all(np.diff(again.arrival_s) >= 0))
    assert again.arrival_s[0] == 0.0
    assert again.span_s <= log.span_s * (1 + 1e-9) + 1e-6
    assert 0.5 * len(log) < len(again) < 1.5 * len(log)
    pairs = set(zip(log.prompt_tokens.tolist(), log.output_tokens.tolist(), strict=True))
    assert set(zip(again.prompt_tokens.tolist(), again.output_tokens.tolist(), strict=True)) <= pairs


def test_gaps_within_a_block_stay_what_they_were() -> None:
    log = long_log(1)
    again = redrawn(log, np.random.default_rng(3))
    old = np.round(np.diff(log.arrival_s), 6)
    kept = np.isin(np.round(np.diff(again.arrival_s), 6), old)
    assert kept.mean() > 0.98  # all but where blocks meet


def test_hours_of_the_day_stay_hours_of_the_day() -> None:
    hour = 3600.0
    at = np.concatenate([np.linspace(h * hour, (h + 1) * hour - 1, 1 + 9 * (h % 24 == 12)) for h in range(72)])
    at = np.append(at, 72 * hour)
    log = Workload(at - at[0], np.ones(len(at), np.int64), np.ones(len(at), np.int64))
    if len(log) < 240:
        log = scale_load(log, 3.0)
    again = redrawn(log, np.random.default_rng(0))
    counts = np.bincount((again.arrival_s // hour).astype(int), minlength=72)[:72]
    noons = counts.reshape(3, 24)[:, 12]
    assert noons.min() > 3 * np.median(counts)


@pytest.mark.parametrize("years", [1, 100, 10**6])
def test_a_long_log_of_few_requests_needs_no_room_for_its_empty_hours(years: int) -> None:
    at = np.linspace(0.0, years * 365 * 86_400.0, 300)
    log = Workload(at, np.arange(1, 301), np.ones(300, np.int64))
    tracemalloc.start()
    again = redrawn(log, np.random.default_rng(0))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20e6
    assert 200 < len(again) < 400
    assert again.span_s <= log.span_s * (1 + 1e-9)


@pytest.mark.parametrize("log", [closed_loop(3, 100, 10), chat(100, 0.01), chat(400, 10.0)])
def test_a_log_too_short_for_blocks_stays_as_it_is(log: Workload) -> None:
    assert redrawn(log, np.random.default_rng(0)) is log


# Chances


def test_chances_are_shares_and_all_is_the_least(answer: Plan) -> None:
    by_name = {c.objective: c for c in answer.chances}
    assert set(by_name) == {"ttft.p95", "tpot.p95", "backlog", "all"}
    assert all(0.0 <= c.chance <= 1.0 for c in answer.chances)
    assert by_name["all"].chance <= min(c.chance for c in answer.chances)
    assert by_name["all"].chance > 0.4  # it holds at the middle of the distribution
    assert "one sigma" in answer.chance_basis


def test_steps_slower_than_the_slack_break_the_objective(answer: Plan) -> None:
    bench, log, deployment = bench_of(answer), chat(600, 20.0), answer.chosen.deployment
    for c in answer.chances:
        if c.objective == "all" or math.isinf(c.slack):
            continue
        assert c.slack >= 0.98
        assert met_objectives(deployment, bench.slower(c.slack), log, SLOS)[c.objective]
        assert not met_objectives(deployment, bench.slower(c.slack + 0.05), log, SLOS)[c.objective]


def test_the_chance_of_a_log_that_stays_is_that_of_the_slack(answer: Plan) -> None:
    from statistics import NormalDist

    cost_model = api.cost_model(answer.chosen.deployment)
    found, _ = chances(answer.chosen.deployment, cost_model, chat(600, 20.0), SLOS)
    for c in found:
        if 0 < c.slack < math.inf:
            # the slack is the lower end of where it lies, and a chance is so many draws of as many
            low, high = (
                NormalDist().cdf(math.log(s) / cost_model.spread) for s in (c.slack, c.slack + 2 * SLACK_TOLERANCE)
            )
            assert low - 1 / DRAWS <= c.chance <= high + 1 / DRAWS


def test_an_exact_model_of_a_fixed_log_is_certain(answer: Plan) -> None:
    class Exact:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        spread = 0.0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    exact: Any = Exact(api.cost_model(answer.chosen.deployment))
    found, _ = chances(answer.chosen.deployment, exact, chat(600, 20.0), SLOS)
    assert all(c.chance == 1.0 for c in found)


def test_more_certainty_never_costs_less(answer: Plan) -> None:
    prices = [answer.chosen.usd_per_hour, *(s.usd_per_hour for s in answer.surer)]
    assert prices == sorted(prices)


# Prices and preferences

POINTS = st.builds(
    FrontPoint,
    st.just(Deployment(MODEL, api.accelerator("l4"))),
    *(st.integers(0, 4).map(float) for _ in range(4)),
)


@given(st.lists(POINTS, max_size=25))
def test_the_front_is_what_nothing_beats(points: list[FrontPoint]) -> None:
    front = pareto_front(points)
    for a, b in itertools.permutations(front, 2):
        assert not no_worse(a, b)
    for point in points:
        assert any(no_worse(f, point) for f in front)


def test_the_chosen_price_is_on_the_front(answer: Plan) -> None:
    assert answer.front[0].usd_per_hour == pytest.approx(answer.chosen.usd_per_hour)
    usd = [p.usd_per_hour for p in answer.front]
    assert usd == sorted(usd)


def test_below_its_break_even_price_an_accelerator_wins(answer: Plan) -> None:
    own, *others = answer.break_even
    assert own.break_even >= own.usd_per_gpu_hour
    for row in others:
        name = row.deployment.accelerator.name
        assert row.break_even <= row.usd_per_gpu_hour
        cheaper = api.accelerator(name, price=0.97 * row.break_even)
        rest = [api.accelerator(n) for n in NAMES if n != name]
        again = plan(MODEL, chat(600, 20.0), SLOS, Space((cheaper, *rest), tp=(1, 2)), api.pricer())
        assert again.chosen.deployment.accelerator.name == name


def test_the_converse_is_said_when_the_big_card_is_right() -> None:
    big = api.accelerator("h100-sxm", price=0.5)
    space = Space((api.accelerator("l4"), api.accelerator("l40s"), big), tp=(1,))
    found = plan(MODEL, chat(600, 20.0), SLOS, space, api.pricer())
    assert found.chosen.deployment.accelerator.name == "h100-sxm"
    assert found.biggest_gpu_because.startswith("it is the right one")
    assert "more" in found.biggest_gpu_because
    tight = SLO.parse(["tpot.p95<=9ms"])
    alone = plan(MODEL, chat(300, 2.0), tight, space, api.pricer())
    assert "nothing smaller" in alone.biggest_gpu_because


# Settings


def test_every_setting_has_a_reason_and_its_neighbours(answer: Plan) -> None:
    assert [s.name for s in answer.settings] == ["max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization"]
    for s in answer.settings:
        assert s.value == getattr(answer.chosen.deployment, s.name)
        assert s.reason
        assert s.steps
        assert all(step.effect for step in s.steps)
        assert all(step.value != s.value for step in s.steps)


def test_a_steps_figures_are_those_of_its_own_simulation(answer: Plan) -> None:
    for s in answer.settings:
        for step in s.steps:
            if not step.verdicts:
                continue
            value = step.value if s.name == "gpu_memory_utilization" else int(step.value)
            other = answer.chosen.deployment.with_(**{s.name: value})
            redone = SLOS.check(Bench.of(api.cost_model(other)).run(other, chat(600, 20.0)))
            assert redone == step.verdicts


def test_fixes_carry_more_than_the_plan(answer: Plan) -> None:
    now = min(answer.breaks_at.values())
    for fix in answer.cheaper_fixes:
        assert f"instead of {now:.2f}x" in fix.effect


def test_speed_costs_money_along_the_curve(answer: Plan) -> None:
    modes = answer.price_modes
    assert min(m.price for m in modes) == 1.0
    assert min(m.speed for m in modes) == 1.0
    for slow, fast in itertools.pairwise(reversed(modes)):
        assert fast.batch < slow.batch
        assert fast.speed >= slow.speed
        assert fast.usd_per_mtok >= slow.usd_per_mtok
    d = answer.chosen.deployment.with_(replicas=1)
    assert d.usd_per_hour is not None
    for m in modes:
        assert m.usd_per_mtok == pytest.approx(1e6 * d.usd_per_hour / 3600 / (m.batch * m.tokens_per_s))


# Growth


def test_growth_says_when_the_plan_runs_out_and_what_it_takes(answer: Plan) -> None:
    log, space = chat(600, 20.0), Space(devices(*NAMES), tp=(1, 2))
    found = outlook(answer, log, space, api.pricer(), 0.2, 5)
    first = min(answer.breaks_at.values())
    assert 1.2**found.lasts == pytest.approx(first)
    fleets = [m.replicas for m in found.months if m.replicas is not None]
    assert fleets == sorted(fleets)
    assert fleets[-1] > answer.chosen.deployment.replicas or found.lasts >= 5
    for m in found.months:
        assert m.load == pytest.approx(1.2**m.month)
        if m.replicas is not None:
            grown = Loads(log).at(m.load)
            assert grown is not None
            bench = bench_of(answer)
            assert all(met_objectives(answer.chosen.deployment.with_(replicas=m.replicas), bench, grown, SLOS).values())
    assert found.then is not None
    assert found.then.usd_per_hour <= found.months[-1].usd_per_hour + 1e-9
    assert found.then_because.startswith(("stay", "switch"))


def test_growth_stays_within_what_can_be_had_beside_a_prefill_pool() -> None:
    axes = {"prefill_replicas": (1,), "prefill_tp": (2,), "kv_link_bytes_per_s": (25e9,)}
    few = {"max_num_seqs": (64,), "max_num_batched_tokens": (2048,)}
    space = Space(devices("l40s"), tp=(1,), pp=(1,), weights=("fp8",), max_gpus=5, axes=axes, **few)  # type: ignore[arg-type]  # a dict of mixed values
    log = chat(400, 16.0, prompt=150, output=300)
    found = plan(MODEL, log, SLO.parse(["ttft.p95<=1s", "tpot.p95<=40ms"]), space, api.pricer())
    months = outlook(found, log, space, api.pricer(), 0.25, 5).months
    held = [found.chosen.deployment.with_(replicas=m.replicas) for m in months if m.replicas is not None]
    assert {d.num_gpus for d in held} == {5}


@pytest.mark.parametrize(("growth", "months"), [(0.0, 6), (-0.1, 6), (math.nan, 6), (0.1, 0), (0.1, 500), (1.0, 12)])
def test_growth_that_cannot_be_is_refused(answer: Plan, growth: float, months: int) -> None:
    with pytest.raises(DeploymentError):
        outlook(answer, chat(600, 20.0), Space(devices("l4")), api.pricer(), growth, months)


# As documents and tables


def test_every_answer_is_a_table_and_a_document(answer: Plan) -> None:
    document = answers_document(answer)
    assert json.loads(json.dumps(document))
    titles = [getattr(block, "title", "") for block in plan_tables(answer)]
    for title in ("how sure", "the settings, and one step either way", "break-even prices"):
        assert title in titles


def test_the_command_looks_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del tmp_path
    ask = ["plan", "-m", "meta-llama/Llama-3.1-8B-Instruct", "-w", "chat:rate=6,n=300", "--gpu", "l40s", "--slo",
           "ttft.p95<=1s", "--growth", "0.3", "--months", "3", "--json"]  # fmt: skip
    status, out, _ = run(monkeypatch, capsys, *ask)
    assert status == 0
    document = json.loads(out)
    assert len(document["outlook"]["months"]) == 3
    assert document["chances"]["all"]["chance"] > 0.4
    assert document["settings"][0]["name"] == "max_num_seqs"
    assert document["price_modes"]
