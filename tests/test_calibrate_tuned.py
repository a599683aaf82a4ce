"""MLPerf submissions: what their systems' names say, and how a rate that keeps its limits is found."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gambrel.calibrate import tuned
from gambrel.calibrate.names import Models, device
from gambrel.calibrate.predict import Predictor
from gambrel.calibrate.published import default_price
from gambrel.calibrate.setting import deployments
from gambrel.calibrate.table import Figure, Row
from gambrel.calibrate.tuned import (
    Lengths,
    Limit,
    as_submitted,
    drawn,
    highest_rate,
    limit_of,
    midway,
    task_of,
    while_full,
)
from gambrel.catalog.accelerators import accelerator
from gambrel.core.step import NUM_LINES, StepTable
from gambrel.engine import Limits, replay, run_of

if TYPE_CHECKING:
    from gambrel.core.run import Run
    from gambrel.core.workload import Workload

ROW = Row(
    id="m1", source="MLPerf-inference-v5.1", date="2025-09", model="meta-llama/Llama-2-70b-chat-hf",
    gpu="H100-SXM-80GB", num_gpus=8, tp=None, pp=None, ep=None, engine="submitter", engine_version="", weights="fp8",
    kv="", prompt_tokens=294.0, output_tokens=294.0, mode="offline", load=math.inf, max_num_seqs=None,
    measured={"output_tok_s": Figure(30_000.0)}, quality="A", notes="A / B (8x H100-SXM-80GB) / NVIDIA H100-SXM-80GB; "
    "scenario Offline; total over all accelerators",
)  # fmt: skip


def noted(notes: str, **changes: object) -> Row:
    return replace(ROW, notes=notes, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("system", "gpus", "name"),
    [("Cisco / HGX (16xH100-SXM-80GB TensorRT) / NVIDIA H100-SXM-80GB", 16, "h100-sxm"),
     ("Dell / XE9680 (2x8x MI300X-192GB LLMBoost) / AMD Instinct MI300X 192GB HBM3", 16, "mi300x"),
     ("MangoBoost / fp8-Mi300x-4-node / AMD Instinct MI300X 192GB HBM3", 32, "mi300x"),
     ("Cisco / C245 (2x H100NVL-PCIe-94GB) / NVIDIA H100-NVL-94GB", 8, "h100-nvl"),
     ("Broadcom / SYS (8x H100-SXM-80GB TensorRT) / Virtualized NVIDIA H100-SXM-80GB", 8, "h100-sxm"),
     ("Dell / PowerEdge R760xa (4x H100-PCIe-80GB) / NVIDIA H100-PCIe-80GB", 8, "h100-pcie"),
     ("Google; NVIDIA GB200", 8, "gb200"), ("Oracle / BM.GPU.B200.8 / NVIDIA B200-SXM-180GB", 8, "b200-sxm")],
)  # fmt: skip
def test_a_system_is_as_many_accelerators_as_its_name_says(system: str, gpus: int, name: str) -> None:
    column = "MI300X-192GB" if name == "mi300x" else ROW.gpu
    found = as_submitted(noted(f"{system}; scenario Offline; output tokens", gpu=column), accelerator)
    assert (found.num_gpus, device(found.gpu, accelerator).name) == (gpus, name)
    other = replace(ROW, source="bench", notes=f"{system}; scenario Offline")
    assert as_submitted(other, accelerator) is other


def test_offline_keeps_no_limit_and_interactive_a_tighter_one() -> None:
    task = task_of(ROW)
    assert task is not None
    assert limit_of(noted("x; scenario Offline (interactive)"), task) is None
    assert limit_of(noted("x; scenario Server", mode="rate"), task) == Limit(2.0, 0.2)
    assert limit_of(noted("x; scenario Server (interactive)", mode="rate"), task) == Limit(0.45, 0.04)
    assert task_of(replace(ROW, source="bench")) is None


@given(
    prompt=st.floats(10.0, 20_000.0), output=st.floats(10.0, 2_000.0), room=st.floats(1.5, 10.0),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_drawn_lengths_have_their_means_and_keep_to_the_longest(
    prompt: float, output: float, room: float, seed: int
) -> None:
    longest = (room * prompt, room * output)
    w = drawn(seed, Lengths(prompt, output, longest), 5000, 7.0)
    assert w.prompt_tokens.mean() == pytest.approx(prompt, rel=0.015)
    assert w.output_tokens.mean() == pytest.approx(output, rel=0.015)
    assert w.prompt_tokens.max() <= math.ceil(longest[0])
    assert w.output_tokens.max() <= math.ceil(longest[1])
    assert 5000 / w.arrival_s[-1] == pytest.approx(7.0, rel=0.1)


def test_lengths_that_the_longest_leaves_no_room_for_are_all_the_longest() -> None:
    w = drawn(0, Lengths(778.0, 128.0, (math.inf, 128.0)), 50)
    assert set(w.output_tokens) == {128}


@pytest.mark.parametrize("sequences", [16, 64])
def test_a_full_system_is_found_midway(sequences: int) -> None:
    """Steps of 10 ms and 0.1 ms a token: a slot's 40 tokens take 40 steps, one with a prompt of 100 and 39 of decoding.

    Three turns of the slots find it, where a replay from an empty system still has all its prompts at its start.
    """
    tokens, rows = np.arange(8193.0), np.zeros(65)
    zero = np.zeros(8193)
    table = StepTable(0.01 + 1e-4 * tokens, zero, zero, zero, zero, rows, rows, rows, np.zeros(NUM_LINES), 0)
    limits = Limits(max_num_seqs=sequences, max_num_batched_tokens=8192, num_kv_blocks=100_000)
    everyone = midway(drawn(0, Lengths(100.0, 40.0), 3 * sequences), sequences)
    rate, tpot = while_full(run_of(replay(table, limits, everyone), limits), sequences)
    step = 0.01 + 1e-4 * sequences * (100 + 39) / 40
    assert rate == pytest.approx(sequences / step, rel=0.08)
    assert tpot == pytest.approx(step, rel=0.08)
    many = midway(drawn(0, Lengths(100.0, 40.0), 40 * sequences), sequences)
    assert while_full(run_of(replay(table, limits, many), limits), sequences)[0] == pytest.approx(
        sequences / step, rel=0.03
    )


def test_the_highest_rate_is_found_where_the_limit_breaks() -> None:
    """A server of 20 ms a step, whatever is in it, takes one prompt a step: M/D/1 at a second percentile of its own."""
    zero, rows = np.zeros(513), np.zeros(65)
    step = np.full(513, 0.02)
    table = StepTable(step, zero, step, zero, zero, rows, rows, rows, np.zeros(NUM_LINES), 0)
    limits = Limits(max_num_seqs=64, max_num_batched_tokens=512, num_kv_blocks=100_000)

    def serve(w: Workload) -> Run:
        return run_of(replay(table, limits, w), limits)

    lengths = Lengths(500.0, 2.0)
    everything = serve(drawn(0, lengths, 2000))
    capacity = 2000 / everything.makespan_s
    loose, tight = (highest_rate(serve, Limit(ttft), capacity, 4.0, lengths) for ttft in (1.0, 0.1))
    assert 0.0 < tight < loose < capacity
    assert Limit(0.1).kept(serve(drawn(1, lengths, 1000, tight)))
    assert not Limit(0.1).kept(serve(drawn(1, lengths, 1000, tight + capacity / 32)))


@pytest.mark.parametrize(
    ("model", "gpu", "weights", "staged"),
    [("meta-llama/Llama-2-70b-chat-hf", "H100-SXM-80GB", "fp8", {(1, 2)}),
     ("meta-llama/Llama-3.1-405B-Instruct", "B200-SXM-180GB", "fp4", {(2, 2), (1, 4)}),
     ("meta-llama/Llama-3.1-405B-Instruct", "H100-SXM-80GB", "fp8", set()),
     ("meta-llama/Llama-2-70b-chat-hf", "L40S-48GB", "fp8", set()),
     ("EleutherAI/gpt-j-6b", "H100-SXM-80GB", "fp8", set())],
)  # fmt: skip
def test_stages_are_tried_where_published_configurations_have_them(
    model: str, gpu: str, weights: str, staged: set[tuple[int, int]]
) -> None:
    row = replace(ROW, model=model, gpu=gpu, weights=weights, notes=f"A / B (8x {gpu}) / {gpu}; scenario Offline")
    options = deployments(row, Models(), accelerator)
    assert {(d.tp, d.pp) for d in options if d.pp > 1} == staged
    assert all(d.tp * d.pp * d.replicas == 8 for d in options)


def test_a_tighter_limit_never_gives_more_tokens() -> None:
    predict = Predictor(default_price(), Models(), accelerator)
    offline = predict(ROW).figures["output_tok_s"]
    server = predict(noted(ROW.notes.replace("Offline", "Server"), mode="rate", load=math.nan)).figures["output_tok_s"]
    tight = predict(noted(ROW.notes.replace("Offline", "Interactive"), mode="rate", load=math.nan))
    assert offline >= server > tight.figures["output_tok_s"] > 0.0
    assert tight.deployment.max_num_seqs < predict(ROW).deployment.max_num_seqs


def test_beams_cost_decoding_and_no_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-J answers with four beams: fewer tokens that count than with one, more than a quarter."""
    row = replace(ROW, model="EleutherAI/gpt-j-6b", prompt_tokens=math.nan, output_tokens=math.nan)
    beams = Predictor(default_price(), Models(), accelerator)(row)
    assert beams.deployment.draft_tokens == 1
    task = task_of(row)
    assert task is not None
    monkeypatch.setitem(tuned._TASKS, "gpt-j-6b", replace(task, beams=1, together=1))
    one = Predictor(default_price(), Models(), accelerator)(row).figures["output_tok_s"]
    assert one / 4 < beams.figures["output_tok_s"] < one
