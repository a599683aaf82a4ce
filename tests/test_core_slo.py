"""Objectives: what can be written, the laws of goodput, and what a floor of it means to a search."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gambrel.core.deployment import Deployment
from gambrel.core.errors import InfeasiblePlan, SLOError
from gambrel.core.run import Run
from gambrel.core.slo import SLO, Objective, Verdict
from gambrel.faces import api
from gambrel.faces.cli import app
from gambrel.plan import Space, plan
from gambrel.plan.check import check_plan
from gambrel.plan.file import Asked, plan_file, read_plan_file
from gambrel.plan.relax import asking
from gambrel.plan.schedule import over_limit
from gambrel.plan.summary import markdown_summary
from gambrel.plan.trial import Bench, judge
from gambrel.report import humanise as say
from gambrel.report.answers import interval_table
from gambrel.traffic import mixed
from report_factory import histogram
from test_plan_search import MODEL, chat, devices

TIMED = ("ttft", "tpot", "itl", "e2e", "queue")
AXES: dict[str, Any] = {
    "tp": (1,),
    "weights": ("bf16",),
    "kv": ("bf16",),
    "max_num_seqs": (256,),
    "max_num_batched_tokens": (1024,),
}
SECONDS = st.floats(0.001, 10.0)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Requests with random times; some were never answered."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    arrival = np.sort(rng.uniform(0, 50, n))
    scheduled = arrival + rng.exponential(0.5, n)
    first = scheduled + rng.exponential(0.5, n)
    output = rng.integers(1, 30, n)
    last = np.where(output > 1, first + rng.exponential(0.05, n) * (output - 1), first)
    lost = rng.random(n) < draw(st.sampled_from([0.0, 0.2]))
    first, last = np.where(lost, np.nan, first), np.where(lost, np.nan, last)
    zeros = np.zeros(n, np.int64)
    return Run(
        arrival_s=arrival, scheduled_s=scheduled, first_token_s=first, last_token_s=last,
        prompt_tokens=zeros + 10, output_tokens=output, preemptions=zeros, replica=zeros, kind=zeros + np.arange(n) % 2,
        kinds=("chat", "code"), itl=histogram(rng.exponential(0.05, 50)), busy_s=1.0, bound_by_s=np.ones(5),
        part_s=np.ones(5), prefill_s=0.5, num_steps=10, batch_mean=1.0, batch_max=2, kv_usage_mean=0.1,
        kv_usage_max=0.2,
    )  # fmt: skip


LIMITS = st.lists(
    st.builds(Objective, st.sampled_from(TIMED), st.sampled_from(["mean", "p50", "p95", "max"]), SECONDS),
    min_size=1, max_size=4,
)  # fmt: skip


@given(runs(), LIMITS, st.data())
def test_goodput_is_a_share_that_grows_with_every_limit(run: Run, limits: list[Objective], data: st.DataObject) -> None:
    goodput = SLO(tuple(limits)).goodput(run)
    assert 0.0 <= goodput <= 1.0
    place = data.draw(st.integers(0, len(limits) - 1))
    wider = [*limits]
    wider[place] = replace(limits[place], limit=limits[place].limit * data.draw(st.floats(1.0, 10.0)))
    assert SLO(tuple(wider)).goodput(run) >= goodput
    assert SLO((*limits, Objective("e2e", "p50", data.draw(SECONDS)))).goodput(run) <= goodput


@given(runs(), LIMITS)
def test_all_are_good_only_where_each_meets_everything(run: Run, limits: list[Objective]) -> None:
    """The joint share is at most that of the strictest limit, and misses at most all that any of them misses."""
    slo = SLO(tuple(limits))
    answered = float(np.isfinite(run.last_token_s).mean())
    alone = [SLO((o,)).goodput(run) for o in limits]
    assert slo.goodput(run) <= min(alone)
    assert 1.0 - slo.goodput(run) <= sum(1.0 - share for share in alone) + 1e-12
    assert SLO(tuple(replace(o, limit=1e9) for o in limits)).goodput(run) == answered
    meets = not any(o.exceeded(run).any() for o in limits)
    assert (slo.goodput(run) == 1.0) == (meets and answered == 1.0)


@given(runs(), LIMITS, st.floats(0.01, 1.0))
def test_a_floor_is_met_exactly_where_the_share_of_good_requests_reaches_it(
    run: Run, limits: list[Objective], floor: float
) -> None:
    slo = SLO((*limits, Objective("goodput", "", floor)))
    verdict = slo.check(run)[-1]
    assert verdict.reached == slo.goodput(run) == SLO(tuple(limits)).goodput(run)
    assert verdict.met == (verdict.reached >= floor) == (verdict.margin >= 0) == (verdict.used <= 1)
    hours = over_limit(run, slo, verdict.objective)
    assert int(hours.sum()) == round((1.0 - verdict.reached) * len(run))


@given(runs(), LIMITS)
def test_a_floor_of_a_kind_counts_its_requests_alone(run: Run, limits: list[Objective]) -> None:
    slo = SLO((*limits, Objective("goodput", "", 0.5, "chat"), Objective("goodput", "", 0.5)))
    if len(run) == 1:
        return
    of_chat, of_all = (v.reached for v in slo.check(run)[-2:])
    of_code = SLO((*limits, Objective("goodput", "", 0.5, "code"))).check(run)[-1].reached
    chats = -(-len(run) // 2)
    assert of_all * len(run) == pytest.approx(of_chat * chats + of_code * (len(run) - chats))


@given(st.one_of(
    st.builds(Objective, st.sampled_from(TIMED), st.just("p95"), SECONDS),
    st.builds(Objective, st.just("goodput"), st.just(""), st.floats(0.01, 1.0)),
), st.floats(0.0, 1.0))  # fmt: skip
def test_an_objective_as_loose_as_what_is_used_is_just_met(objective: Objective, reached: float) -> None:
    verdict = Verdict(objective, reached)
    assert objective.looser(verdict.used).limit == pytest.approx(reached, abs=1e-12)
    assert objective.looser(1.0) == objective
    assert SLO.parse([str(objective), "ttft<=1s"]).objectives[0] == objective


@given(st.floats(0.01, 1.0), st.floats(0.001, 1.0))
def test_what_is_asked_instead_of_a_floor_was_reached(floor: float, reached: float) -> None:
    instead = asking(Objective("goodput", "", floor), reached)
    share = float(instead.removeprefix("goodput>=").removesuffix("%")) / 100
    assert min(floor, reached) - 0.001 - 1e-9 <= share <= min(floor, reached) + 1e-9


@given(st.floats(0.0, 1.0))
def test_a_share_is_never_said_to_be_more_than_it_is(value: float) -> None:
    said = float(say.share(value).removesuffix(" %")) / 100
    assert value - 1e-4 <= said <= value + 1e-9


@pytest.mark.parametrize(
    ("text", "floor", "kind"),
    [
        ("goodput>=0.95", 0.95, ""), ("goodput >= 95%", 0.95, ""), ("goodput>99.5 %", 0.995, ""),
        ("goodput>=1", 1.0, ""), ("Goodput=>100%", 1.0, ""), ("code:goodput>=0.9", 0.9, "code"),
    ],
)  # fmt: skip
def test_a_floor_is_written_as_a_share_or_in_per_cent(text: str, floor: float, kind: str) -> None:
    found = Objective.parse(text)
    assert (found.metric, found.kind) == ("goodput", kind)
    assert found.limit == pytest.approx(floor)
    assert found.name == (f"{kind}:goodput" if kind else "goodput")


@pytest.mark.parametrize(
    ("texts", "wrong"),
    [
        (["goodput>=95"], "above 0 and at most 1"), (["goodput>=0"], "above 0 and at most 1"),
        (["goodput>=101%"], "above 0 and at most 1"), (["goodput<=0.9"], "limited from below"),
        (["goodput.p95>=0.9"], "has no p95"), (["goodput>=0.9s"], "not 's'"),
        (["goodput>=0.9"], "good by the other limits; add one"), (["ttft>=1s"], "limited from above"),
        (["code:goodput>=0.9", "chat:ttft<=1s"], "code:goodput: requests are good by the other limits"),
        (["speed<=1s"], "known: ttft, tpot, itl, e2e, queue, goodput"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_floor_says_so_in_one_line(texts: list[str], wrong: str) -> None:
    with pytest.raises(SLOError, match=wrong) as caught:
        SLO.parse(texts)
    assert "\n" not in str(caught.value)


# A search


LOG = chat(300, 6.0)
JOINT = ("ttft.p50<=300ms", "tpot.p50<=35ms", "goodput>=95%")


def test_the_cheapest_that_holds_a_floor_is_the_cheapest_of_all() -> None:
    space = Space(devices("l40s"), **AXES)
    chosen = plan(MODEL, LOG, SLO.parse(JOINT), space, api.pricer()).chosen
    assert chosen.goodput >= 0.95
    assert all(v.met for v in chosen.verdicts)
    d = chosen.deployment
    bench, slo = Bench.of(api.cost_model(d)), SLO.parse(JOINT)
    fewer = [judge(d.with_(replicas=n), bench, LOG, slo) for n in range(1, d.replicas)]
    assert d.replicas > 1
    assert not any(t.candidate.feasible for t in fewer)
    without = plan(MODEL, LOG, SLO.parse(JOINT[:2]), space, api.pricer()).chosen
    assert without.usd_per_hour < chosen.usd_per_hour


def test_a_floor_is_said_everywhere_in_its_own_unit() -> None:
    answer = plan(MODEL, LOG, SLO.parse(JOINT), Space(devices("l40s"), **AXES), api.pricer())
    low, high = answer.intervals["goodput"]
    assert 0.0 <= low <= answer.chosen.goodput <= high <= 1.0
    assert answer.breaks_at["goodput"] >= 1.0
    assert "goodput" in {c.objective for c in answer.chances}
    table = interval_table(answer)
    assert table is not None
    assert table.rows[-1][:2] == ("goodput", say.share(answer.chosen.goodput))
    file = plan_file(answer, Asked(MODEL.name, "", list(JOINT)), LOG)
    assert read_plan_file(file.text().encode(), "plan") == file
    assert [p.objective for p in file.predicted] == ["ttft.p50", "tpot.p50"]
    (floor,) = file.floors
    assert (floor.objective, floor.floor) == ("goodput", 0.95)
    assert "| goodput | at least 95 % |" in markdown_summary(file, answer.chosen.deployment)
    check = check_plan(file, answer.chosen.deployment, LOG, api.pricer())
    assert check.holds
    assert check.was["goodput"] == pytest.approx(answer.chosen.goodput, rel=1e-5)
    worse = check_plan(file, answer.chosen.deployment, chat(300, 20.0), api.pricer())
    assert any(text.startswith("goodput reaches ") and text.endswith(", floor 95 %") for text in worse.broken)


def test_a_floor_that_cannot_be_reached_is_refused_with_one_that_can() -> None:
    space = Space(devices("l40s"), max_gpus=1, **AXES)
    with pytest.raises(InfeasiblePlan, match="goodput reaches") as caught:
        plan(MODEL, LOG, SLO.parse(JOINT), space, api.pricer())
    changes = [r.change for r in caught.value.relaxations]
    assert any(change.startswith("--slo 'goodput>=") for change in changes)
    alone = SLO.parse(["ttft.p50<=1min", "tpot.p50<=1ms", "goodput>=50%"])
    with pytest.raises(InfeasiblePlan) as caught:
        plan(MODEL, LOG, alone, Space(devices("l40s"), **AXES), api.pricer())
    assert any(
        "goodput>=50 % is above the ceiling of every candidate, 0 %" in r.because for r in caught.value.relaxations
    )


@pytest.mark.parametrize(
    "asked",
    [
        ("ttft.p95<=250ms", "tpot.p50<=24ms", "goodput>=95%"),
        ("ttft.p50<=20ms", "tpot.p95<=60ms", "goodput>=90%"),
        ("ttft.p50<=1s", "tpot.p50<=60ms", "e2e.p50<=2s", "goodput>=99%"),
    ],
)
def test_what_is_suggested_instead_holds_as_it_is_written(asked: tuple[str, ...]) -> None:
    """A looser limit on times also decides who is good, so the one that is named must be one that was tried."""
    with pytest.raises(InfeasiblePlan) as caught:
        plan(MODEL, LOG, SLO.parse(asked), Space(devices("l40s"), max_gpus=2, **AXES), api.pricer())
    suggested = [r for r in caught.value.relaxations if r.change.startswith("--slo")]
    assert suggested
    for r in suggested:
        told = SLO.parse(re.findall(r"'([^']+)'", r.change)).objectives
        objectives = {o.name: o for o in (*SLO.parse(asked).objectives, *told)}
        assert r.deployment is not None
        trial = judge(r.deployment, Bench.of(api.cost_model(r.deployment)), LOG, SLO(tuple(objectives.values())))
        assert trial.candidate.feasible, (r.change, trial.candidate.lost_because)


def test_the_command_line_holds_a_run_against_a_floor() -> None:
    words = ["simulate", "-m", MODEL.name, "-g", "l40s", "-w", "chat:rate=4,n=200", "--slo", "ttft.p50<=1s", "--json"]
    loose = CliRunner().invoke(app, [*words, "--slo", "goodput>=1%"])
    strict = CliRunner().invoke(app, [*words, "--slo", "tpot.max<=1us", "--slo", "goodput>=1%"])
    assert (loose.exit_code, strict.exit_code) == (0, 1)
    found = json.loads(loose.stdout)
    assert found["slo"]["goodput"]["reached"] == found["goodput"]
    assert found["slo"]["goodput"]["floor"] == 0.01
    assert json.loads(strict.stdout)["slo"]["goodput"] == {"floor": 0.01, "reached": 0.0, "met": False,
                                                          "margin": pytest.approx(1 - 1 / 0.99)}  # fmt: skip


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), rate=st.floats(2, 40), limit=st.floats(0.02, 3.0), floor=st.floats(0.05, 1.0))
def test_a_beginning_never_fails_a_floor_that_the_whole_log_would_pass(
    seed: int, rate: float, limit: float, floor: float
) -> None:
    from gambrel.plan.beginnings import Beginnings

    both = mixed({"chat": chat(150, rate, seed), "code": chat(100, rate / 2, seed + 1, 3000, 20)})
    limits = [f"ttft.p50<={limit}s", f"itl.p50<={limit / 10}s", f"code:e2e.p50<={8 * limit}s"]
    deployment = Deployment(MODEL, api.accelerator("l40s"), max_num_batched_tokens=2048)
    bench = Bench.of(api.cost_model(deployment))
    for name in ("goodput", "code:goodput"):
        slo = SLO.parse([*limits, f"{name}>={floor}"])
        early = Beginnings.of(both, slo).judge(deployment, bench)
        assert early.candidate.feasible == judge(deployment, bench, both, slo).candidate.feasible


def test_what_nobody_waited_for_meets_no_objective() -> None:
    """Dropped before the end: no latency counts them, and an objective that nothing is left to judge by is missed."""
    d = Deployment(MODEL, api.accelerator("h100-sxm"))
    bench = Bench.of(api.cost_model(d))
    log = chat(60, 2.0)
    hasty = bench.run(d, replace(log, deadline_s=np.full(60, 1e-3)))
    assert hasty.num_unfinished == 60
    for text in ("ttft.p95<=100ms", "tpot.p95<=1s", "itl.p99<=1s", "e2e.mean<=60s", "queue.p95<=1s"):
        verdict = Verdict(Objective.parse(text), Objective.parse(text).reached(hasty))
        assert verdict.reached == np.inf
        assert not verdict.met
    assert np.isnan(hasty.distribution("ttft").p95)
    some = bench.run(d, replace(log, deadline_s=np.where(np.arange(60) < 30, 0.1, 1e3)))
    assert 0 < some.num_unfinished <= 30
    assert some.distribution("ttft").count == 60 - some.num_unfinished
    assert Objective.parse("ttft.p95<=1s").reached(some) == np.inf
    assert Objective.parse("ttft.p50<=1s").reached(some) < 1.0 or some.num_unfinished == 30


def test_answers_of_one_token_have_no_time_per_token_to_miss() -> None:
    d = Deployment(MODEL, api.accelerator("h100-sxm"))
    run = Bench.of(api.cost_model(d)).run(d, replace(chat(20), output_tokens=np.ones(20, np.int64)))
    assert Objective.parse("tpot.p95<=1ms").reached(run) == 0.0
    unseen = replace(run, origin="logged", first_token_s=np.full(20, np.nan))
    assert Objective.parse("ttft.p95<=1ms").reached(unseen) == np.inf
