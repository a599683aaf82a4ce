"""The steady state of continuous batching, and collectives: limits, monotone answers, bounds, published times."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_factory import H100, L40S, deepseek_like, llama_8b, llama_70b, llama_on_h100
from gambrel.catalog.efficiency import efficiency, kernel_efficiency
from gambrel.core.deployment import Deployment
from gambrel.core.efficiency import ideal
from gambrel.core.step import Step
from gambrel.cost import Demand, Roofline, busy_seconds, closed_loop, steady_state
from gambrel.cost.collectives import (
    Wire,
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
    reduce_scatter_s,
    send_s,
    wire,
)

CHAT = Demand(1000, 200)
COSTS = (
    Roofline(llama_on_h100(), efficiency(H100)),
    Roofline(llama_on_h100(), ideal()),
    Roofline(
        Deployment(deepseek_like(), H100, tp=8, ep=8, weights="int4", max_num_batched_tokens=2048), efficiency(H100)
    ),
)


@pytest.mark.parametrize("cost", COSTS)
def test_a_lone_request_is_not_disturbed(cost: Roofline) -> None:
    lone = steady_state(cost, 1e-6, CHAT)
    alone = cost.step_cost(Step.decode(1, round(CHAT.context)))
    assert lone.tpot_s == pytest.approx(alone.seconds, rel=0.01)
    assert lone.stable
    assert lone.batch < 1e-3


@settings(max_examples=60)
@given(
    st.sampled_from(COSTS),
    st.floats(0.01, 30),
    st.floats(1.01, 2.0),
    st.integers(1, 8000),
    st.integers(1, 2000),
)
def test_more_load_means_more_batch_and_slower_tokens(
    cost: Roofline, rate: float, factor: float, prompt: int, output: int
) -> None:
    demand = Demand(prompt, output)
    low, high = (steady_state(cost, r, demand) for r in (rate, rate * factor))
    assert high.batch >= low.batch * (1 - 1e-9)
    assert high.utilisation > low.utilisation
    assert low.stable or not high.stable
    assert high.tpot_s >= low.tpot_s * (1 - 0.02)  # batches are whole numbers of rows: steps are interpolated
    hopeful = steady_state(cost, rate, demand, optimistic=True)
    assert hopeful.tpot_s <= low.tpot_s * (1 + 1e-9) or not low.stable
    assert hopeful.max_rate >= low.max_rate * (1 - 1e-9)
    assert hopeful.ttft_service_s <= low.ttft_service_s * (1 + 1e-9)
    assert hopeful.stable or not low.stable


def test_little_holds_where_the_replica_is_busy() -> None:
    for rate in (3.0, 8.0, 15.0):
        state = steady_state(COSTS[0], rate, CHAT)
        assert 1 < state.batch < state.batch_limit
        assert state.batch == pytest.approx(rate * CHAT.output_tokens * state.tpot_s)


@given(st.sampled_from(COSTS), st.booleans())
def test_a_fuller_batch_never_costs_a_request_more(cost: Roofline, optimistic: bool) -> None:
    seconds = busy_seconds(cost, np.arange(1.0, 200.0), CHAT, optimistic=optimistic)
    assert np.all(np.diff(seconds) <= 1e-9 * seconds[1:])


def test_the_closed_loop_meets_the_open_one() -> None:
    open_state = steady_state(COSTS[0], 10.0, CHAT)
    users = round(open_state.batch)
    closed = closed_loop(COSTS[0], users, CHAT)
    assert closed.max_rate == pytest.approx(10.0, rel=0.05)
    assert closed.tpot_s == pytest.approx(open_state.tpot_s, rel=0.05)
    assert not closed_loop(COSTS[0], 100_000, CHAT).stable


def test_length_bias_fills_memory() -> None:
    """Half the requests ten times as long: in-flight sequences are mostly long ones (THEORY 2.7, T15)."""
    constant, mixed = Demand(550, 550), Demand(550, 550, context_tokens=(100 * 100 + 1000 * 1000) / 1100 * 1.5)
    limits = [steady_state(COSTS[0], 1.0, d).batch_limit for d in (constant, mixed)]
    assert limits[1] <= limits[0]
    assert mixed.context > constant.context


def test_a_model_that_does_not_fit_serves_nobody() -> None:
    state = steady_state(Roofline(Deployment(llama_70b(), H100), ideal()), 1.0, CHAT)
    assert not state.stable
    assert state.max_rate == 0.0
    assert math.isinf(closed_loop(Roofline(Deployment(llama_70b(), H100), ideal()), 4, CHAT).tpot_s)


# -- collectives ----------------------------------------------------------------------------------------------

sizes = st.floats(1, 1e9)
wires = st.builds(Wire, st.floats(0, 1e-4), st.floats(1e9, 1e12), st.just("link"))


@given(sizes, sizes, st.sampled_from((2, 4, 8, 64)), wires)
def test_collectives_grow_with_bytes_and_respect_the_wire(a: float, b: float, ranks: int, link: Wire) -> None:
    low, high = sorted((a, b))
    for cost in (all_reduce_s, all_gather_s, all_to_all_s):
        assert cost(low, ranks, link) <= cost(high, ranks, link)
    # every byte a rank lacks must arrive: a reduced result from one source, the rest of a gather from p - 1
    assert all_reduce_s(high, ranks, link) >= link.alpha_s + (high / link.bytes_per_s) * (1 - 1e-9)
    assert all_gather_s(high, ranks, link) >= high * (ranks - 1) / ranks / link.bytes_per_s
    both = all_gather_s(high, ranks, link) + reduce_scatter_s(high, ranks, link)
    assert all_reduce_s(high, ranks, link) <= both * (1 + 1e-12)
    assert send_s(high, link) == link.alpha_s + high / link.bytes_per_s


def test_one_rank_and_no_bytes_cost_nothing() -> None:
    link = Wire(1e-5, 1e11, "link")
    assert all_reduce_s(1e6, 1, link) == all_gather_s(1e6, 1, link) == all_reduce_s(0.0, 8, link) == 0.0
    assert wire(H100, 1, ideal()).name == "none"


@pytest.mark.parametrize(("size", "low", "high"), [(32768, 4.4, 5.5), (2 * 2**20, 12, 21.5), (16 * 2**20, 60, 107)])
def test_measured_all_reduce_times_of_an_h100_board(size: int, low: float, high: float) -> None:
    """vLLM under CUDA graphs, 2 to 8 ranks, microseconds (aiconfigurator data base); fitted constants, 5 % around."""
    for ranks in (2, 4, 8):
        seconds = all_reduce_s(float(size), ranks, wire(H100, ranks, kernel_efficiency(H100)))
        assert low * 0.9 <= seconds * 1e6 <= high * 1.05


def test_ranks_over_pcie_share_the_host() -> None:
    """8 x L40S: 2 MiB took 2.6 ms on the machine of the kernel table, the slowest known; serving rows show far less."""
    eff = kernel_efficiency(L40S)
    two, eight = (all_reduce_s(2.0 * 2**20, n, wire(L40S, n, eff)) for n in (2, 8))
    assert wire(L40S, 8, eff).name == "PCIe"
    assert 1.5 * two < eight < 2.6e-3
    assert two == pytest.approx(0.12e-3, rel=0.15)
    assert llama_8b().num_layers == 32
