from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gambrel.core.slo import SLO
from gambrel.core.step import Step
from gambrel.core.trace import OPERATIONS, SIMULATION, Traced, recompute, walk
from gambrel.cost import floor_seconds, wall_batch
from gambrel.faces import api
from gambrel.plan import Space, plan
from gambrel.plan.slower import Slower
from gambrel.plan.trace import floor, kv_blocks, mean_context, mean_step, plan_trace, wall
from gambrel.report import page_html, trace_text
from test_plan_file import run
from test_plan_search import MODEL, chat, devices

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.core.plan import Plan
    from gambrel.core.workload import Workload

CASES: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("meta-llama/Llama-3.1-8B-Instruct", "l40s", {}),
    ("meta-llama/Llama-3.3-70B-Instruct", "h100-sxm", {"tp": 4, "weights": "fp8"}),
    ("Qwen/Qwen3-30B-A3B", "h100-sxm", {"tp": 2, "ep": 2}),
    ("deepseek-ai/DeepSeek-V3", "h200-sxm", {"tp": 8}),
    ("openai/gpt-oss-20b", "h100-sxm", {}),
    ("meta-llama/Llama-3.1-8B-Instruct", "a100-sxm-80", {"kv": "fp8"}),
    ("Qwen/Qwen3-30B-A3B", "h100-sxm", {"tp": 4, "ep": 4, "attention_dp": 4}),
    ("google/gemma-3-27b-it", "l40s", {"tp": 2}),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", "h100-sxm", {"tp": 4}),
)
"""Dense, quantised and tensor-parallel, experts (alone, shared), latents, windows, an unpacked cache, states."""


@pytest.fixture(scope="module")
def log() -> Workload:
    return chat(300, 15.0)


@pytest.fixture(scope="module")
def answer(log: Workload) -> Plan:
    slo = SLO.parse(["ttft.p95<=1s", "tpot.p95<=50ms"])
    return plan(MODEL, log, slo, Space(devices("l4", "l40s"), tp=(1,)), api.pricer())


@pytest.fixture(scope="module")
def roots(answer: Plan, log: Workload) -> dict[str, Traced]:
    return {root.name: root for root in api.trace(answer, log)}


# Any tree


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=4), st.sampled_from(sorted(OPERATIONS)))
def test_a_tree_is_its_operation_on_its_leaves(values: list[float], operation: str) -> None:
    if operation == "rounded maximum":
        values = [values[0], values[-1], 0.25]
    if operation == "power":
        values = [min(values[0], 10.0), min(values[-1], 10.0)]
    leaves = tuple(Traced("leaf", v, "1", source="here") for v in values)
    node = Traced("node", -1.0, "1", operation, leaves)
    assert recompute(node) == OPERATIONS[operation](values)
    assert [depth for depth, _ in walk(node)] == [0, *(1 for _ in values)]


# Leaves to root, against the figures themselves


def test_the_cost_is_its_price_times_its_accelerators(answer: Plan, roots: dict[str, Traced]) -> None:
    tree = roots["cost of the fleet"]
    assert recompute(tree) == pytest.approx(answer.chosen.usd_per_hour, rel=1e-12)
    price = tree.inputs[0]
    listed = answer.chosen.deployment.accelerator.price_for(1)
    assert listed is not None
    assert listed.as_of in price.source
    assert listed.source in price.source


def test_token_prices_come_out_of_the_tree(answer: Plan, roots: dict[str, Traced]) -> None:
    pricing = answer.chosen.pricing
    assert pricing is not None
    assert recompute(roots["price of a million input tokens"]) == pytest.approx(pricing.usd_per_mtok_input, rel=1e-9)
    assert recompute(roots["price of a million output tokens"]) == pytest.approx(pricing.usd_per_mtok_output, rel=1e-9)


@pytest.mark.parametrize(("model", "gpu", "settings"), CASES, ids=[c[0].rsplit("/")[-1] for c in CASES])
def test_memory_floor_wall_and_step_come_out_of_their_trees(
    answer: Plan, model: str, gpu: str, settings: dict[str, object]
) -> None:
    cost_model = api.cost_model(api.deployment(model, gpu, **settings))
    d, memory = cost_model.deployment, cost_model.memory()
    assert recompute(kv_blocks(d, memory, cost_model)) == memory.num_kv_blocks
    assert recompute(floor(cost_model)) == pytest.approx(floor_seconds(cost_model), rel=1e-9)
    assert recompute(wall(d, cost_model, 1500)) == wall_batch(cost_model, 1500)
    tree = mean_step(answer, cost_model, 1500)
    batch = max(1, round(answer.run.batch_mean))
    window = d.model.spans[-1] if d.model.spans else None
    exact = cost_model.step_cost(Step.decode(batch, 1500, window)).seconds
    assert recompute(tree) == pytest.approx(exact, rel=1e-9)
    for node in (floor(cost_model), tree):
        assert node.inputs, f"{node.name} is a leaf: its tree no longer adds up to what gambrel.cost says"


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 200), context=st.integers(1, 8000), case=st.sampled_from(("chosen", "rocm", "guesses")))
def test_every_decode_step_adds_up(answer: Plan, batch: int, context: int, case: str) -> None:
    """``rocm``: vLLM 0.4 on ROCm, which does not divide contexts from 17 sequences of 32 query heads on."""
    cost_model = api.cost_model({
        "chosen": answer.chosen.deployment,
        "rocm": api.deployment("meta-llama/Llama-3.1-8B-Instruct", "mi300x", engine_version="0.4"),
        "guesses": answer.chosen.deployment.with_(draft_tokens=2),
    }[case])  # fmt: skip
    tree = mean_step(replace(answer, run=replace(answer.run, batch_mean=float(batch))), cost_model, context)
    assert tree.inputs
    assert recompute(tree) == pytest.approx(cost_model.step_cost(Step.decode(batch, context)).seconds, rel=1e-9)


def test_every_leaf_says_where_it_was_read_and_every_branch_is_arithmetic(roots: dict[str, Traced]) -> None:
    for root in roots.values():
        for _, node in walk(root):
            assert math.isfinite(node.value)
            if node.inputs:
                assert node.operation in OPERATIONS or node.operation == SIMULATION
                assert recompute(node) == pytest.approx(node.value, rel=1e-9)
            else:
                assert node.source, node.name
                assert node.unit


def test_fitted_constants_bring_their_interval_and_rows(roots: dict[str, Traced]) -> None:
    step = next(root for name, root in roots.items() if name.startswith("a decode step"))
    sources = {node.name: node.source for _, node in walk(step)}
    for name in ("mfu_max", "bw_max", "kv_bw_max", "layer_s", "step_s"):
        assert "95 %" in sources[name]
        assert "rows" in sources[name]


def test_objectives_are_simulations_of_the_log(answer: Plan, roots: dict[str, Traced], log: Workload) -> None:
    for v in answer.chosen.verdicts:
        tree = roots[v.objective.name]
        assert tree.operation == SIMULATION
        assert tree.value == v.reached
        assert "80 % interval" in tree.note
        assert any(str(len(log)) in part.source for part in tree.inputs)


def test_another_cost_model_stays_a_leaf_with_its_own_basis(answer: Plan, log: Workload) -> None:
    slower = Slower(api.cost_model(answer.chosen.deployment), 1.5)
    found = {root.name: root for root in plan_trace(answer, log, slower)}
    step = mean_step(answer, slower, mean_context(log))
    assert not step.inputs
    assert step.source == slower.basis
    assert found[step.name].value == slower.step_cost(
        Step.decode(max(1, round(answer.run.batch_mean)), mean_context(log))
    ).seconds  # fmt: skip


# As files and on the page


def test_the_page_folds_the_trace(answer: Plan, log: Workload) -> None:
    page = page_html(api.report_of(answer, log, traced=True))
    assert "<details><summary><span>cost of the fleet</span>" in page
    assert "<details open" not in page
    assert "Where every figure comes from" not in page_html(api.report_of(answer, log))


def test_the_command_writes_text_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], roots: dict[str, Traced]
) -> None:
    ask = ["plan", "-m", MODEL.name, "-w", "chat:rate=4,n=200", "--gpu", "l40s", "--slo", "ttft.p95<=1s", "--trace"]
    for name in ("trace.txt", "deep/trace.json"):
        status, _, talk = run(monkeypatch, capsys, *ask, str(tmp_path / name))
        assert status == 0, talk
    document = json.loads((tmp_path / "deep/trace.json").read_text())
    assert {"cost of the fleet", "KV blocks"} <= {root["name"] for root in document["trace"]}
    text = (tmp_path / "trace.txt").read_text()
    assert text.startswith("cost of the fleet = $")
    assert trace_text([roots["KV blocks"]]).startswith("KV blocks = ")
