"""Where memory goes: parts that add up, replication, windows and states, and one measured capacity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_factory import A100, H100, L40S, deepseek_like, dense, llama_8b, llama_70b, llama_on_h100, recurrent
from gambrel.catalog.accelerators import accelerator
from gambrel.catalog.efficiency import efficiency
from gambrel.core.deployment import Deployment
from gambrel.core.efficiency import ideal
from gambrel.core.errors import DoesNotFit
from gambrel.core.model import Model, MoE
from gambrel.core.units import GIB
from gambrel.cost import Roofline, held_bytes, memory_budget, require_fit
from gambrel.cost.memory import SHORT_WINDOW


def test_a_measured_capacity_is_met_within_two_percent() -> None:
    """vLLM 0.19, Llama-3.1-8B in bf16 on one RTX 4090, 2048 batched tokens: 2588 blocks of 16 (LLMServingSim)."""
    card = accelerator("rtx-4090")
    budget = memory_budget(Deployment(llama_8b(), card, max_num_batched_tokens=2048), efficiency(card))
    assert budget.num_kv_blocks == pytest.approx(2588, rel=0.02)
    assert budget.weight_bytes == 2 * 8_030_261_248


@given(
    tp=st.sampled_from((1, 2, 4, 8)),
    weights=st.sampled_from(("bf16", "fp8", "int4", "q4_k_m")),
    kv=st.sampled_from(("bf16", "fp8")),
    tokens=st.integers(1, 65536),
    card=st.sampled_from((H100, A100, L40S)),
)
def test_parts_add_up_and_fitting_is_an_answer(tp: int, weights: str, kv: str, tokens: int, card: object) -> None:
    d = Deployment(llama_70b(), card, tp=tp, weights=weights, kv=kv, max_num_batched_tokens=tokens)  # type: ignore[arg-type] # sampled_from widens
    budget = Roofline(d, efficiency(d.accelerator)).memory()
    used = budget.weight_bytes + budget.activation_bytes + budget.reserve_bytes
    assert budget.kv_cache_bytes == pytest.approx(budget.usable_bytes - used)
    assert used + budget.num_kv_blocks * budget.kv_bytes_per_block <= max(used, budget.usable_bytes)
    assert budget.fits == (budget.kv_cache_bytes >= budget.kv_bytes_per_block)
    if budget.fits:
        require_fit(budget, d)
    else:
        with pytest.raises(DoesNotFit) as no:
            require_fit(budget, d)
        assert no.value.needed_bytes > no.value.available_bytes == budget.usable_bytes
        assert "\n" not in str(no.value)


def test_what_does_not_fit_is_refused_with_the_bytes() -> None:
    d = Deployment(llama_70b(), H100)
    with pytest.raises(DoesNotFit, match=r"each accelerator needs 13\d\.\d GiB .* has 71\.6 GiB usable of 79\.6"):
        require_fit(memory_budget(d, ideal()), d)


@given(st.sampled_from((llama_8b(), deepseek_like(), dense(moe=MoE(64, 4), inner=1024))), st.integers(0, 3))
def test_ranks_hold_no_less_than_their_share(model: Model, doublings: int) -> None:
    tp = 2**doublings
    share, whole = (memory_budget(Deployment(model, H100, tp=n), ideal()).weight_bytes for n in (tp, 1))
    assert whole / tp <= share <= whole


def test_expert_parallel_holds_whole_experts() -> None:
    budgets = [memory_budget(Deployment(deepseek_like(), H100, tp=8, ep=ep), ideal()).weight_bytes for ep in (1, 8)]
    assert budgets[0] == budgets[1]  # 256 experts divide evenly either way


def test_kv_heads_beyond_the_ranks_are_replicated_and_latents_always() -> None:
    blocks = [memory_budget(llama_on_h100(tp=tp), ideal()).kv_bytes_per_block for tp in (1, 8)]
    assert blocks[0] == 8 * blocks[1]
    few = [memory_budget(Deployment(dense(kv_heads=2), H100, tp=tp), ideal()).kv_bytes_per_block for tp in (2, 8)]
    assert few[0] == few[1]
    latent = [memory_budget(Deployment(deepseek_like(), H100, tp=tp), ideal()).kv_bytes_per_block for tp in (1, 8)]
    assert latent[0] == latent[1] == 16 * 70_272


def test_a_short_window_is_state_and_a_long_one_is_tokens() -> None:
    plain = memory_budget(Deployment(dense(layers=4), H100), ideal())
    short = memory_budget(Deployment(dense(layers=4, window=1024, windowed_layers=3), H100), ideal())
    long = memory_budget(Deployment(dense(layers=4, window=8192, windowed_layers=3), H100), ideal())
    assert 8192 > SHORT_WINDOW >= 1024
    assert short.kv_bytes_per_block == plain.kv_bytes_per_block / 4
    assert short.state_bytes_per_sequence == 3 * 1024 * 4096
    assert long.kv_bytes_per_block == plain.kv_bytes_per_block
    assert long.state_bytes_per_sequence == 0.0


def test_recurrent_state_is_held_per_sequence() -> None:
    d = Deployment(recurrent(), H100)
    budget = memory_budget(d, ideal())
    state = 3 * (990_000 * 4 + 10_000 * 2)
    assert budget.state_bytes_per_sequence == state
    assert held_bytes(d, 1000) == state + 1000 * 4096
    only = replace(recurrent(), layers=((3, recurrent().layers[0][1]),))
    assert memory_budget(Deployment(only, H100), ideal()).num_kv_blocks > 0


def test_held_bytes_take_arrays_and_respect_windows() -> None:
    d = Deployment(dense(layers=4, window=1000, windowed_layers=2), H100)
    contexts = np.array([1, 500, 1000, 5000])
    assert held_bytes(d, contexts).tolist() == [held_bytes(d, int(c)) for c in contexts]
    assert held_bytes(d, 5000) == 4096 * (2 * 5000 + 2 * 1000)


def test_a_pipeline_stage_holds_its_share_and_one_end() -> None:
    whole, stage = (memory_budget(llama_on_h100(pp=pp), ideal()).weight_bytes for pp in (1, 2))
    ends = 128_256 * 4096 * 2
    assert stage == pytest.approx((whole - 2 * ends) / 2 + ends, rel=1e-4)
    uneven = Deployment(dense(layers=3), H100, pp=2)
    assert memory_budget(uneven, ideal()).kv_bytes_per_block == 16 * 2 * 4096


def test_more_batched_tokens_leave_less_cache() -> None:
    small, big = (memory_budget(llama_on_h100(max_num_batched_tokens=n), ideal()) for n in (2048, 32768))
    assert small.num_kv_blocks > big.num_kv_blocks
    assert big.activation_bytes < 6 * GIB
