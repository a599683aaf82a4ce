"""What sets accelerators apart from the one their family's kernels were timed on: power, half rates; and unpacking."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gambrel.catalog.accelerators import accelerator
from gambrel.catalog.efficiency import constants, engine_entry, kernel_efficiency
from gambrel.catalog.models import model
from gambrel.core.deployment import Deployment
from gambrel.core.efficiency import UNPACKED, run_as
from gambrel.core.step import Step
from gambrel.cost import Roofline
from gambrel.cost.shards import rank_kernels

if TYPE_CHECKING:
    from gambrel.core.accelerator import Accelerator

LLAMA = model("llama-3.1-8b")


def seconds(name: str, weights: str, tokens: int) -> float:
    """One step of as many tokens of one prompt, on kernels alone."""
    device = accelerator(name)
    priced = Roofline(Deployment(LLAMA, device, weights=weights), kernel_efficiency(device))
    pairs = tokens * (tokens + 1) // 2
    step = Step(tokens, 1, 0, 0, prefill_tokens=tokens, prefill_chunks=1, prefill_pairs=pairs)
    return priced.step_cost(step).seconds


@pytest.mark.parametrize("name", ["a100-sxm-80", "a100-pcie-80", "rtx-a6000", "h100-sxm", "l40s", "v100s-pcie-32"])
def test_weights_that_are_unpacked_gain_in_decoding_and_lose_in_long_prompts(name: str) -> None:
    sixteen = "bf16" if "bf16" in accelerator(name).peak_flops else "fp16"
    assert seconds(name, "int4", 1) < 0.5 * seconds(name, sixteen, 1)
    assert seconds(name, "int4", 8192) >= seconds(name, sixteen, 8192)
    constants = kernel_efficiency(accelerator(name))
    assert constants.matmul_for(run_as("bf16", "int4")).mfu_half_tokens == 0.0
    assert constants.matmul_for(run_as("bf16", "int4")).mfu_max <= constants.matmul_for("bf16").mfu_max


@pytest.mark.parametrize("name", ["rtx-3090", "rtx-4090"])
def test_half_the_rate_leaves_time_to_unpack(name: str) -> None:
    table = dict(kernel_efficiency(accelerator(name)).matmul)
    assert table[UNPACKED].mfu_max == table["bf16"].mfu_max


def test_unpacking_is_no_format_of_the_tensor_cores() -> None:
    """8-bit weights are unpacked where there is no 8-bit float arithmetic, and multiplied as they are elsewhere."""
    ampere = Roofline(
        Deployment(LLAMA, accelerator("a100-sxm-80"), weights="fp8-tensor"),
        kernel_efficiency(accelerator("a100-sxm-80")),
    )
    hopper = Roofline(
        Deployment(LLAMA, accelerator("h100-sxm"), weights="fp8-tensor"), kernel_efficiency(accelerator("h100-sxm"))
    )
    for priced, unpacked in ((ampere, True), (hopper, False)):
        table = dict(priced.efficiency.matmul)
        kernel = next(k for k in rank_kernels(priced.deployment) if k.weights)
        assert (priced.matmul(kernel) == table[UNPACKED]) is unpacked


def test_fewer_watts_a_flop_hold_a_lower_clock() -> None:
    """The published rates of these boards are of clocks that they do not hold: per watt none reaches more."""
    reached = {}
    for name in ("h100-sxm", "h100-nvl", "h100-pcie"):
        device = accelerator(name)
        reached[name] = dict(kernel_efficiency(device).matmul)["fp8"].mfu_max * device.peak_flops["fp8"]
        assert device.tdp_w is not None
        reached[name] /= device.tdp_w
    assert reached["h100-nvl"] == pytest.approx(reached["h100-sxm"], rel=0.01)
    assert reached["h100-pcie"] == pytest.approx(reached["h100-sxm"], rel=0.01)


@pytest.mark.parametrize(
    ("name", "measured"), [("a100-sxm-40", "a100-sxm-80"), ("h200-sxm", "h100-sxm"), ("gh200-96", "h100-sxm")]
)
def test_another_memory_behind_the_same_chip_changes_only_the_time_in_memory(name: str, measured: str) -> None:
    """What a byte costs on the chip is the same for both; the measured one's bandwidth is the file's."""
    rule = constants()["same_chip"]
    one, other = accelerator(name), accelerator(measured)
    assert constants()["families"][one.family]["accelerators"][0] == measured
    memory = 1.0 / rule["most_share"]["value"]

    def on_chip(of: Accelerator, share: float) -> float:
        return float((1.0 / share - memory) / of.memory_bandwidth)

    ours, theirs = kernel_efficiency(one), kernel_efficiency(other)
    for here, there in (
        (ours.kv_bw_max, theirs.kv_bw_max), (ours.matmul_for("bf16").bw_max, theirs.matmul_for("bf16").bw_max)
    ):  # fmt: skip
        assert on_chip(one, here) == pytest.approx(on_chip(other, there), rel=1e-9)
        assert (here > there) is (one.memory_bandwidth < other.memory_bandwidth)


def quoted(page: str, sentence: str) -> list[float]:
    """The figures of a sentence of the docs, whose lines break anywhere."""
    text = " ".join((Path(__file__).parents[1] / "docs" / page).read_text(encoding="utf-8").split())
    found = re.search(sentence.replace("#", r"(\d+\.\d+)"), text)
    assert found, f"{page} no longer says it"
    return [float(figure) for figure in found.groups()]


def test_the_docs_quote_the_fitted_collectives() -> None:
    said = quoted("calibrate.md", r"vLLM before V1 reaches #, TensorRT-LLM before 0\.13 # and from there to 1\.0 # of")
    entries = (("vllm", "0.6.0"), ("tensorrt-llm", "0.12.0"), ("tensorrt-llm", "0.20.0"))
    fitted = [engine_entry(*entry, "NVIDIA")[0]["wire"]["value"] for entry in entries]
    assert said == [round(value, 2) for value in fitted]


def test_the_docs_quote_the_bandwidth_behind_the_same_chip() -> None:
    said = quoted(
        "cost.md", "# of its peak on an A100 of 40 GB where the 80 GB has #, .*?, # on an H200 where the H100 has #"
    )
    boards = ("a100-sxm-40", "a100-sxm-80", "h200-sxm", "h100-sxm")
    assert said == [round(kernel_efficiency(accelerator(name)).matmul_for("bf16").bw_max, 2) for name in boards]


def test_the_docs_quote_what_unpacking_costs_a_long_prompt() -> None:
    said = quoted("cost.md", r"a long prompt's matmuls take # times \(H100\) or # times \(A100\) as long")
    matmul = [dict(kernel_efficiency(accelerator(name)).matmul) for name in ("h100-sxm", "a100-sxm-80")]
    assert said == [round(table["bf16"].mfu_max / table[UNPACKED].mfu_max, 2) for table in matmul]
