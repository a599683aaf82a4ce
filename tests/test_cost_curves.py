"""Curves: vectorised points equal single steps, named points lie where the lines cross, and it is fast."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_factory import A100, H100, deepseek_like, dense, llama_8b, llama_on_h100
from gambrel.catalog.efficiency import efficiency
from gambrel.core.deployment import Deployment
from gambrel.core.efficiency import Efficiency, ideal
from gambrel.core.errors import DeploymentError
from gambrel.core.step import Step
from gambrel.cost import Blackboard, Roofline, curve, floor_seconds, wall_batch

MODELS = (llama_8b(), deepseek_like(), dense(layers=6, window=512, windowed_layers=4))


@settings(max_examples=30)
@given(
    st.sampled_from(MODELS),
    st.sampled_from((ideal(), efficiency(H100))),
    st.sampled_from(("max", "serial")),
    st.lists(st.integers(1, 600), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(0, 50_000), min_size=1, max_size=5, unique=True),
)
def test_every_point_is_a_single_step(
    model: object, eff: Efficiency, form: str, batches: list[int], contexts: list[int]
) -> None:
    d = Deployment(model, H100, tp=4)  # type: ignore[arg-type] # sampled_from widens
    cost = Roofline(d, eff, form)
    found = curve(cost, batches, contexts, 8.0)
    assert len(found) == len(batches) * len(contexts)
    assert found.form == form
    budget = cost.memory()
    window = d.model.spans[-1] if d.model.spans else None
    for i in range(len(found)):
        b, c = int(found.batch[i]), int(found.context[i])
        one = cost.step_cost(Step.decode(b, c, window))
        assert found.step_s[i] == pytest.approx(one.seconds, rel=1e-12)
        assert found.kv_s[i] == pytest.approx(one.kv_s, rel=1e-12, abs=1e-18)
        assert found.causes()[i] == one.bound_by
        assert found.step_s[i] >= found.floor_s
        assert found.tokens_per_s[i] == b / found.step_s[i]
        assert found.usd_per_mtok is not None
        assert found.usd_per_mtok[i] == pytest.approx(8.0 / 3600 / found.tokens_per_s[i] * 1e6)
        assert found.fits[i] == (found.memory_bytes[i] <= budget.usable_bytes * (1 + 1e-12))
        assert not c or found.fits[i] == (b <= wall_batch(cost, c))  # without context there is no wall


@pytest.mark.parametrize("context", [16, 128, 300])
def test_named_points_of_the_textbook(context: int) -> None:
    """Against the closed forms, but for attention's own FLOPs in the compute line and the embedding rows (0.5 %)."""
    cost = Roofline(llama_on_h100(), ideal(), "max")
    found = curve(cost, [1, 64, 4096], [context])
    board = Blackboard(15_009_849_344, 15_009_316_864 + context * 524_288, 131_072, 989e12, 3350e9)
    plain = Blackboard(15_009_849_344, 15_009_316_864, 131_072, 989e12, 3350e9)
    assert found.ridge_batch == pytest.approx(board.ridge_batch(context), rel=5e-3)
    assert found.balance_batch == pytest.approx(board.balance_batch(context), rel=5e-3)
    assert found.floor_s == pytest.approx(board.floor_s, rel=1e-5)
    assert found.crossover_context == pytest.approx(plain.crossover_context, rel=5e-3)
    assert found.amortisation_limit == pytest.approx(board.amortisation(context), rel=5e-3)
    assert found.knee[1] == min(found.ridge_batch, found.balance_batch, found.wall_batch)


def test_beyond_the_crossover_compute_never_catches_up() -> None:
    found = curve(Roofline(llama_on_h100(), ideal(), "max"), [1, 512], [400])
    assert found.crossover_context < 400
    assert math.isinf(found.ridge_batch)
    assert found.amortisation <= found.amortisation_limit


def test_a_mixture_has_a_crossover_of_its_active_flops() -> None:
    d = Deployment(deepseek_like(), H100, weights="fp8")
    found = curve(Roofline(d, ideal(), "max"), [1], [0])
    flops = d.model.layer_flops_per_token + d.model.head.flops_per_token
    assert found.crossover_context == pytest.approx(flops / 1979e12 * 3350e9 / 70_272, rel=0.06)  # 16-bit parts


def test_windowed_layers_push_the_crossover_out() -> None:
    every, some, all_of_them = (
        curve(Roofline(Deployment(dense(layers=4, window=64, windowed_layers=n), H100), ideal()), [1], [0])
        for n in (0, 2, 4)
    )
    assert every.crossover_context < some.crossover_context < all_of_them.crossover_context == math.inf


def test_context_zero_and_a_model_that_does_not_fit() -> None:
    found = curve(Roofline(Deployment(llama_8b(), A100, max_num_batched_tokens=64), efficiency(A100)), [1, 2], [0])
    assert math.isfinite(found.ridge_batch)
    big = curve(Roofline(Deployment(deepseek_like(), A100), ideal()), [1, 2], [100])
    assert big.wall_batch == 0
    assert not big.fits.any()
    assert big.knee == ("wall", 0.0)


@pytest.mark.parametrize(("batches", "contexts"), [([], [1]), ([1], []), ([0], [1]), ([1], [-1])])
def test_bad_axes(batches: list[int], contexts: list[int]) -> None:
    with pytest.raises(DeploymentError, match="at least 1"):
        curve(Roofline(llama_on_h100(), ideal()), batches, contexts)


@pytest.mark.parametrize(("batch", "context"), [(1, 10**15 - 1), (10**12, 512)])
def test_axes_that_no_sum_holds(batch: int, context: int) -> None:
    with pytest.raises(DeploymentError, match="at most"):
        curve(Roofline(llama_on_h100(), ideal()), [batch], [context])


def test_the_longest_context_is_drawn() -> None:
    found = curve(Roofline(llama_on_h100(), ideal()), [1], [1 << 40])
    assert not found.fits.any()
    assert found.step_s[0] > 1e3


def test_the_floor_does_not_depend_on_efficiency() -> None:
    d = llama_on_h100()
    assert floor_seconds(Roofline(d, ideal())) == floor_seconds(Roofline(d, efficiency(H100)))


def test_a_million_points_and_a_table_are_fast() -> None:
    """Bounds are loose for a busy machine; the figures to reach are 0.1 s and 2 ms (see docs/cost.md)."""
    batches, contexts = np.arange(1, 1001), np.arange(1, 1001) * 64
    best = table = math.inf
    for _ in range(5):
        cost = Roofline(llama_on_h100(), efficiency(H100))
        begin = time.perf_counter()
        cost.compile(8192, 256)
        table = min(table, time.perf_counter() - begin)
        begin = time.perf_counter()
        assert len(curve(cost, batches, contexts)) == 1_000_000
        best = min(best, time.perf_counter() - begin)
    assert best < 0.5
    assert table < 0.01
