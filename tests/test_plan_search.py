from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gambrel.core.deployment import Deployment
from gambrel.core.errors import DoesNotFit, InfeasiblePlan
from gambrel.core.slo import SLO
from gambrel.core.workload import Workload
from gambrel.faces import api
from gambrel.plan import Space, plan
from gambrel.plan.explain import SHORT_PROMPT, Loads, alone_workload, met_objectives
from gambrel.plan.hunter import Hunter
from gambrel.plan.launch import vllm_command
from gambrel.plan.question import Question
from gambrel.plan.screen import Demand, least_busy_s, screen_latency
from gambrel.plan.search import search
from gambrel.plan.trial import Bench, judge, price_run, sustained
from gambrel.report import keeping_up, objective_table
from gambrel.traffic import closed_loop

if TYPE_CHECKING:
    from gambrel.core.accelerator import Accelerator

MODEL = api.model("meta-llama/Llama-3.1-8B-Instruct")
GPUS = ("l4", "l40s", "a100-sxm-80", "h100-sxm")


def chat(n: int = 400, rate: float = 4.0, seed: int = 0, prompt: float = 600, output: float = 120) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        arrival_s=np.cumsum(rng.exponential(1 / rate, n)),
        prompt_tokens=np.maximum(1, rng.lognormal(np.log(prompt), 0.7, n)).astype(np.int64),
        output_tokens=np.maximum(1, rng.lognormal(np.log(output), 0.6, n)).astype(np.int64),
        name="chat",
    )


def devices(*names: str) -> tuple[Accelerator, ...]:
    return tuple(api.accelerator(n) for n in names)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    rate=st.floats(0.5, 60),
    gpu=st.sampled_from(GPUS),
    tokens=st.sampled_from([512, 2048, 8192]),
    seqs=st.sampled_from([4, 64, 256]),
    weights=st.sampled_from(["bf16", "fp8", "int4"]),
    replicas=st.integers(1, 3),
)
def test_bounds_are_never_above_what_simulation_reaches(
    seed: int, rate: float, gpu: str, tokens: int, seqs: int, weights: str, replicas: int
) -> None:
    workload = chat(120, rate, seed)
    deployment = Deployment(
        MODEL,
        api.accelerator(gpu),
        weights=weights,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        replicas=replicas,
    )
    bench = Bench.of(api.cost_model(deployment))
    run = bench.run(deployment, workload)
    demand = Demand.of(workload)
    slo = SLO.parse(
        [f"{m}.{s}<=1s" for m in ("ttft", "tpot", "itl", "e2e") for s in ("mean", "p50", "p95", "p99", "max")]
    )
    for bound in screen_latency(bench.table, demand, slo):
        reached = bound.objective.reached(run)
        # ITL percentiles are read off logarithmic buckets 2.2 % wide.
        slack = 1.03 if bound.objective.metric == "itl" else 1.0 + 1e-9
        assert bound.reached <= reached * slack, bound.objective.name
    for limit in np.geomspace(0.003, 10.0, 12):
        joint = SLO.parse([f"{m}.p50<={limit}s" for m in ("ttft", "tpot", "itl", "e2e")] + ["goodput>=50%"])
        assert screen_latency(bench.table, demand, joint)[-1].reached >= joint.goodput(run)
    assert least_busy_s(bench.table, demand, deployment, bench.memory) <= run.busy_s * (1 + 1e-9)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), rate=st.floats(0.5, 200), gpu=st.sampled_from(GPUS), more=st.integers(1, 50))
def test_with_a_replica_for_each_request_more_change_nothing(seed: int, rate: float, gpu: str, more: int) -> None:
    workload = chat(150, rate, seed)
    deployment = Deployment(MODEL, api.accelerator(gpu))
    bench = Bench.of(api.cost_model(deployment))
    hunter = Hunter(Question(MODEL, workload, SLO.parse(["ttft.p95<=1s"]), Space(devices(gpu)), api.pricer()))
    enough = hunter.one_each(deployment, bench)
    few, many = (bench.run(deployment.with_(replicas=n), workload) for n in (enough, enough + more))
    assert np.array_equal(few.first_token_s, many.first_token_s)
    assert np.array_equal(few.last_token_s, many.last_token_s)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), gpu=st.sampled_from(GPUS), statistic=st.sampled_from(["p90", "p95", "p99"]))
def test_the_bound_of_a_first_token_is_nearly_what_requests_alone_reach(seed: int, gpu: str, statistic: str) -> None:
    workload = chat(2000, 1.0, seed)
    deployment = Deployment(MODEL, api.accelerator(gpu), weights="fp8", replicas=len(workload))
    bench = Bench.of(api.cost_model(deployment))
    slo = SLO.parse([f"ttft.{statistic}<=1s"])
    (bound,) = screen_latency(bench.table, Demand.of(workload), slo)
    reached = bound.objective.reached(bench.run(deployment, workload))
    assert 0.98 * reached <= bound.reached <= reached * (1.0 + 1e-9)


def exhaustive(workload: Workload, slo: SLO, space: Space, most: int) -> float:
    best = float("inf")
    for shape in space.shapes(MODEL):
        for seqs, tokens in itertools.product(space.max_num_seqs, space.max_num_batched_tokens):
            deployment = shape.with_(max_num_seqs=seqs, max_num_batched_tokens=tokens)
            cost_model = api.cost_model(deployment)
            if cost_model.memory().kv_tokens < Demand.of(workload).longest:
                continue
            bench = Bench.of(cost_model)
            for replicas in range(1, most + 1):
                fleet = deployment.with_(replicas=replicas)
                if judge(fleet, bench, workload, slo).candidate.feasible:
                    assert fleet.usd_per_hour is not None
                    best = min(best, fleet.usd_per_hour)
                    break
    return best


@pytest.mark.parametrize(
    ("rate", "limits", "gpus"),
    [
        (3.0, ["ttft.p95<=1s"], ("l4", "l40s", "h100-sxm")),
        (25.0, ["tpot.p95<=40ms"], ("l4", "l40s", "h100-sxm")),
        (60.0, ["ttft.p95<=400ms"], ("l4", "l40s", "h100-sxm")),
        (40.0, ["ttft.p99<=2s", "tpot.p95<=60ms"], ("a10g", "rtx-6000-ada")),
        (15.0, ["e2e.p95<=6s"], ("a100-sxm-80", "l4")),
        (80.0, ["itl.p99<=80ms", "ttft.p50<=300ms"], ("l40s", "h200-sxm")),
    ],
)
def test_the_choice_costs_what_exhaustive_search_finds(rate: float, limits: list[str], gpus: tuple[str, ...]) -> None:
    workload, slo = chat(300, rate), SLO.parse(limits)
    space = Space(
        devices(*gpus),
        tp=(1, 2),
        max_num_seqs=(64, 256),
        max_num_batched_tokens=(512, 2048),
    )
    found = search(MODEL, workload, slo, space, api.pricer()).feasible[0]
    assert found.candidate.usd_per_hour <= 1.02 * exhaustive(workload, slo, space, 16)


@pytest.fixture(scope="module")
def answer() -> object:
    return plan(
        MODEL, chat(600, 20.0), SLO.parse(["ttft.p95<=1s", "tpot.p95<=50ms"]), Space(devices(*GPUS)), api.pricer()
    )


def test_a_chosen_plan_meets_its_objectives_in_its_own_run(answer: object) -> None:
    from gambrel.core.plan import Plan

    assert isinstance(answer, Plan)
    assert answer.chosen.feasible
    assert all(v.met for v in answer.slo.check(answer.run))
    assert sustained(answer.run)
    for other in answer.alternatives:
        assert other.lost_because
        if other.feasible:
            assert other.usd_per_hour >= answer.chosen.usd_per_hour


def test_the_biggest_gpu_is_always_there_with_its_idle_share_and_the_money_lost(answer: object) -> None:
    from gambrel.core.plan import Plan

    assert isinstance(answer, Plan)
    assert answer.biggest_gpu is not None
    assert answer.biggest_gpu.deployment.accelerator.name == "h100-sxm"
    if answer.biggest_gpu.feasible:
        assert 0 <= answer.biggest_gpu.idle_share < 1
        assert answer.biggest_gpu_extra_usd_per_hour >= 0


def test_an_objective_holds_below_its_breaking_load_and_not_above(answer: object) -> None:
    from gambrel.core.plan import Plan

    assert isinstance(answer, Plan)
    loads, deployment = Loads(chat(600, 20.0)), answer.chosen.deployment
    bench = Bench.of(api.cost_model(deployment))
    for name, load in answer.breaks_at.items():
        if np.isfinite(load) and load > 0:
            log = loads.at(load)
            assert log is not None
            assert met_objectives(deployment, bench, log, answer.slo)[name]
    assert min(answer.breaks_at.values()) >= 1.0  # it holds today


def test_the_four_cells_show_what_a_demo_hides(answer: object) -> None:
    from gambrel.core.plan import Plan

    assert isinstance(answer, Plan)
    alone_short, alone_real, _, real = answer.cells
    assert alone_short.ttft_p95_s < alone_real.ttft_p95_s <= real.ttft_p95_s * (1 + 1e-9)
    assert alone_short.users == 1
    assert real.users >= 1
    assert all(c.hides for c in answer.cells)


def test_the_plan_is_deterministic(answer: object) -> None:
    from gambrel.core.plan import Plan

    assert isinstance(answer, Plan)
    again = plan(MODEL, chat(600, 20.0), answer.slo, Space(devices(*GPUS)), api.pricer())
    same = replace(again, wall_s=0.0, run=answer.run)
    first = replace(answer, wall_s=0.0)
    assert repr(same) == repr(first)


def test_every_dollar_is_charged_once() -> None:
    deployment = Deployment(MODEL, api.accelerator("h100-sxm"))
    bench = Bench.of(api.cost_model(deployment))
    run = bench.run(deployment, chat(200))
    price = price_run(run, 3.6)
    dollars = 3.6 / 3600 * run.makespan_s
    split = price.usd_per_mtok_input * run.prompt_tokens.sum() + price.usd_per_mtok_output * run.output_tokens.sum()
    assert split / 1e6 == pytest.approx(dollars)
    assert price.usd_per_mtok * run.output_tokens.sum() / 1e6 == pytest.approx(dollars)


def test_dollars_are_charged_to_what_was_delivered() -> None:
    deployment = Deployment(MODEL, api.accelerator("h100-sxm"))
    bench = Bench.of(api.cost_model(deployment))
    run = bench.run(deployment, replace(chat(200), deadline_s=np.full(200, 1.0)))
    assert 0 < run.num_unfinished < 200
    price = price_run(run, 3.6)
    assert price.usd_per_mtok == pytest.approx(1e6 * 1e-3 / run.output_tokens_per_s)
    none = price_run(bench.run(deployment, replace(chat(20), deadline_s=np.full(20, 1e-3))), 3.6)
    assert none.usd_per_mtok == none.usd_per_mtok_input == np.inf


@pytest.mark.parametrize("span_s", [0.0, 2.0])
def test_a_burst_that_its_objective_lets_wait_is_no_backlog(span_s: float) -> None:
    """Before a full batch is answered no rate can be seen to exceed what a replica carries."""
    log = replace(chat(1000), arrival_s=np.linspace(0.0, span_s, 1000))
    slo = SLO.parse(["ttft.p95<=60s"])
    found = plan(MODEL, log, slo, Space(devices("h100-sxm"), tp=(1,), weights=("bf16",), kv=("bf16",)), api.pricer())
    assert found.chosen.deployment.replicas == 1
    assert found.run.distribution("queue").p95 > 1.0
    assert np.isnan(found.rate_rps) if span_s == 0 else found.rate_rps == pytest.approx(999 / span_s)


def test_a_longer_log_at_the_same_rate_falls_behind_and_the_rule_is_named() -> None:
    deployment = Deployment(MODEL, api.accelerator("h100-sxm"))
    bench, slo = Bench.of(api.cost_model(deployment)), SLO.parse(["tpot.p95<=10s"])
    log = chat(12_000, 200.0)
    assert bench.turn_s(log) < log.span_s
    assert "falls behind" in judge(deployment, bench, log, slo).candidate.lost_because
    space = Space(devices("h100-sxm"), tp=(1,), weights=("bf16",), kv=("bf16",), max_num_seqs=(256,))
    found = plan(MODEL, chat(1500, 30.0), slo, space, api.pricer())
    assert found.breaks_at["backlog"] < found.breaks_at["tpot.p95"]
    assert "falls behind" in keeping_up(found)
    assert objective_table(found).rows[-1][0] == "no growing queue"


@pytest.mark.parametrize(("prefill_tp", "tp"), [(8, 2), (2, 8)])
def test_pools_are_weighed_by_their_accelerators(prefill_tp: int, tp: int) -> None:
    deployment = api.deployment(MODEL, "h100-sxm", tp=tp, prefill_replicas=1, prefill_tp=prefill_tp)
    run = Bench.of(api.cost_model(deployment)).run(deployment, chat(200))
    prefill, decode = run.pools
    assert (prefill.gpus, decode.gpus) == (prefill_tp, tp)
    assert prefill.prefill_s + decode.prefill_s == pytest.approx(run.prefill_s)
    assert prefill.prefill_s == pytest.approx(prefill.busy_s)
    busy = prefill.busy_s * prefill_tp + decode.busy_s * tp
    price = price_run(run, 3.6)
    dollars = 3.6 / 3600 * run.makespan_s
    charged = price.usd_per_mtok_input * run.prompt_tokens.sum() / 1e6
    assert charged == pytest.approx(dollars * prefill.busy_s * prefill_tp / busy)
    assert price.utilisation == pytest.approx(busy / (run.makespan_s * deployment.num_gpus))


def test_an_overloaded_fleet_is_a_backlog_even_without_a_ttft_objective() -> None:
    deployment = Deployment(MODEL, api.accelerator("l4"), max_num_seqs=8)
    bench = Bench.of(api.cost_model(deployment))
    trial = judge(deployment, bench, chat(2000, 50.0), SLO.parse(["tpot.p95<=10s"]))
    assert not trial.candidate.keeps_up
    assert not trial.candidate.feasible
    assert "falls behind" in trial.candidate.lost_because


def test_one_client_that_gives_up_is_no_backlog() -> None:
    deployment = Deployment(MODEL, api.accelerator("h100-sxm"))
    bench, slo = Bench.of(api.cost_model(deployment)), SLO.parse(["goodput>=95%", "ttft.p95<=1s"])
    for n in (40, 400):
        hasty = np.full(n, np.inf)
        hasty[-2] = 1e-4
        log = replace(chat(n), deadline_s=hasty)
        trial = judge(deployment, bench, log, slo)
        assert np.isnan(trial.run.queue_s[-2])
        assert trial.candidate.feasible, trial.candidate.lost_because
    found = plan(MODEL, log, slo, Space(devices("h100-sxm"), tp=(1,)), api.pricer())
    assert found.chosen.keeps_up
    assert all(np.isfinite(c.tokens_per_s) for c in found.cells)


def test_an_overloaded_fleet_falls_behind_even_where_the_queue_is_left() -> None:
    deployment = Deployment(MODEL, api.accelerator("l4"), max_num_seqs=8)
    log = replace(chat(2000, 5.0), deadline_s=np.full(2000, 15.0))
    trial = judge(deployment, Bench.of(api.cost_model(deployment)), log, SLO.parse(["tpot.p95<=10s"]))
    assert float(np.nanmax(trial.run.queue_s)) <= 15.0 < 0.05 * log.span_s  # nobody waits long: they leave
    assert not trial.candidate.keeps_up
    assert "clients leave" in trial.candidate.lost_because


def test_users_of_a_closed_loop_are_all_served_at_once() -> None:
    five = closed_loop(5, 100_000, 200)
    found = plan(MODEL, five, SLO.parse(["tpot.p95<=100ms"]), Space(devices("l40s", "h100-sxm")), api.pricer())
    d = found.chosen.deployment
    assert found.chosen.memory.kv_tokens // 100_200 * d.replicas >= 5
    assert found.run.distribution("ttft").p95 < 120


def test_a_refusal_names_the_objective_the_best_reached_and_by_whom() -> None:
    with pytest.raises(
        InfeasiblePlan, match=r"tpot\.p95 reaches [0-9.]+ ms at the very best on 1 x \S+ tp\d"
    ) as caught:
        plan(MODEL, chat(200), SLO.parse(["tpot.p95<=0.1ms"]), Space(devices(*GPUS)), api.pricer())
    assert "\n" not in str(caught.value)


def test_a_model_that_fits_nowhere_is_refused_with_both_figures() -> None:
    big = api.model("meta-llama/Meta-Llama-3.1-405B")
    with pytest.raises(DoesNotFit, match="bytes needed") as caught:
        plan(big, chat(50), SLO.parse(["ttft.p95<=9s"]), Space(devices("l4"), tp=(1, 2)), api.pricer())
    assert caught.value.needed_bytes > caught.value.available_bytes > 0


def turns(n: int) -> Workload:
    """Conversations of three turns with ten seconds between them."""
    after = np.where(np.arange(n) % 3 == 0, -1, np.arange(n) - 1)
    return replace(chat(n), after=after, think_s=np.full(n, 10.0), session=np.arange(n) // 3)


@pytest.mark.parametrize("log", [chat(900), closed_loop(40, 600, 120, think_s=2.0), turns(900)])
def test_one_user_never_overlaps(log: Workload) -> None:
    alone = alone_workload(log, SHORT_PROMPT)
    deployment = Deployment(MODEL, api.accelerator("l4"))
    run = Bench.of(api.cost_model(deployment)).run(deployment, alone)
    assert run.batch_max == 1
    assert float(run.queue_s.max()) == 0.0
    assert np.array_equal(run.arrival_s, alone.arrival_s)


def test_a_demo_may_buy_the_chosen_shape() -> None:
    found = plan(MODEL, chat(300, 2.0), SLO.parse(["ttft.p95<=1s"]), Space(devices("a100-sxm-80")), api.pricer())
    one = found.chosen.deployment.with_(replicas=1)
    alone = alone_workload(chat(300, 2.0), SHORT_PROMPT, most=100)
    assert judge(one, Bench.of(api.cost_model(one)), alone, found.slo).candidate.feasible
    assert found.demo_plan is not None
    assert found.demo_plan.usd_per_hour <= (one.usd_per_hour or 0.0)
    assert found.chosen.deployment not in [c.deployment for c in found.alternatives]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_log_of_hardly_any_request_is_planned(n: int) -> None:
    log = Workload(np.arange(n, dtype=np.float64), np.full(n, 100), np.full(n, 10))
    found = plan(MODEL, log, SLO.parse(["ttft.p95<=1s"]), Space(devices("h100-sxm"), tp=(1,)), api.pricer())
    assert found.chosen.feasible
    assert 1.0 in [p.load for p in found.loads]


def test_what_costs_nothing_is_planned() -> None:
    own = api.accelerator("h100-sxm", price=0.0)
    found = plan(MODEL, chat(200), SLO.parse(["ttft.p95<=1s"]), Space((own,), tp=(1,)), api.pricer())
    assert found.chosen.usd_per_hour == 0.0
    assert {m.price for m in found.price_modes} == {1.0}


def test_the_launch_line_names_every_choice() -> None:
    deployment = Deployment(
        MODEL, api.accelerator("h100-sxm"), tp=2, weights="fp8", kv="fp8", max_num_seqs=128, max_num_batched_tokens=4096
    )
    line = vllm_command(deployment, api.cost_model(deployment).memory())
    for flag in (
        "vllm serve meta-llama/Llama-3.1-8B-Instruct",
        "--tensor-parallel-size 2",
        "--max-num-seqs 128",
        "--max-num-batched-tokens 4096",
        "--quantization fp8",
        "--kv-cache-dtype fp8",
        "--enable-chunked-prefill",
    ):
        assert flag in line
