"""A deployment's settings: what cannot be is refused in a line that names it, and names have one spelling inside."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cost_factory import A100, H100, llama_8b
from gambrel.catalog.efficiency import efficiency
from gambrel.core.deployment import Deployment
from gambrel.core.errors import DeploymentError
from gambrel.core.formats import KV_FORMATS, WEIGHT_FORMATS
from gambrel.core.step import Step
from gambrel.cost import Roofline

BAD: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("tp", "replicas", "max_num_seqs", "block_size"), (0, -1, 1.5, "2", None)),
    **dict.fromkeys(("prefill_tp", "max_model_len"), (0, 1.5, "2")),
    **dict.fromkeys(("draft_tokens", "prefill_replicas"), (-1, 1.5, "2", None)),
    "acceptance": (-0.1, 1.0, math.nan, "0.5"),
    "draft_cost": (-1.0, math.nan, math.inf, "1"),
    "gpu_memory_utilization": (0.0, 1.1, math.nan, "0.9"),
    "kv_link_bytes_per_s": (0.0, -1.0, math.nan, math.inf),
    "expert_load": (0.9, math.nan),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_a_setting_that_cannot_be_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(DeploymentError, match=f"^{name} must be .*, got {value!r}"):
        Deployment(llama_8b(), H100, **{name: value})


@pytest.mark.parametrize("name", [*WEIGHT_FORMATS, *KV_FORMATS])
def test_formats_have_one_spelling_inside(name: str) -> None:
    if name in WEIGHT_FORMATS:
        same = {Deployment(llama_8b(), H100, weights=w).weights for w in (name, name.upper())}
        assert same == {Deployment(llama_8b(), H100, weights=name).weight_format.name}
    if name in KV_FORMATS:
        assert {Deployment(llama_8b(), H100, kv=k).kv for k in (name, name.upper())} == {KV_FORMATS[name].name}


def test_a_spelling_changes_no_price() -> None:
    step = Step.decode(64, 8192)
    prices = [Roofline(Deployment(llama_8b(), A100, kv=kv), efficiency(A100)).step_cost(step) for kv in ("fp8", "FP8")]
    assert prices[0] == prices[1]
