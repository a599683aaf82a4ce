"""The processor under our feet as an accelerator: rates that were measured, within what any processor does."""

from __future__ import annotations

import gambrel as gb
from gambrel.core.step import Step
from gambrel.measure.this_machine import NAME, this_machine


def test_it_is_an_accelerator_like_any_other() -> None:
    found = gb.accelerator(NAME)
    assert found is this_machine()  # measured once
    assert 1e8 < found.memory_bandwidth < 1e13
    assert 1e8 < found.peak_flops["bf16"] < 1e15
    assert found.memory_bytes > 1e8
    assert found.price is None
    d = gb.deployment("HuggingFaceTB/SmolLM2-135M-Instruct", found, engine="openvino")
    priced = gb.cost_model(d)
    floor = d.model.weight_bytes(d.weight_format) / found.memory_bandwidth
    assert priced.step_cost(Step.decode(1, 64)).seconds > 0.5 * floor  # the embedding is not read whole
    assert "OpenVINO" in priced.basis
    assert "none of its own" in gb.cost_model(gb.deployment(d.model, found, engine="an engine of one's own")).basis
