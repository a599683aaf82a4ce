"""Recurrent state: what a sequence of a hybrid model takes beside its tokens, from admission to its end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_cases import POLICIES, Case, cases, constant_table
from gambrel.catalog.accelerators import accelerator
from gambrel.catalog.models import model
from gambrel.core.deployment import Deployment
from gambrel.core.efficiency import ideal
from gambrel.core.errors import WorkloadError
from gambrel.core.formats import kv_format
from gambrel.core.paging import paged_layout
from gambrel.core.workload import Workload
from gambrel.cost import Roofline
from gambrel.engine import Limits, check_fits, limits_of, replay
from gambrel.engine import state as at

HYBRIDS = [
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "Qwen/Qwen3.5-27B",
    "Qwen/Qwen3.5-35B-A3B",
    "nvidia/Nemotron-H-8B-Base-8K",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
]


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_state_takes_the_tokens_that_vllms_pages_take(name: str) -> None:
    """vLLM's pool hands each group of linear layers one page a sequence; ours the same bytes in blocks of 16 tokens."""
    deployment = Deployment(model(name), accelerator("h200"), tp=4)
    budget = Roofline(deployment, ideal()).memory()
    layout = paged_layout(deployment.model, kv_format("bf16"), tp=4)
    pages = layout.state_layers * layout.page_bytes / layout.token_bytes
    assert budget.state_blocks * deployment.block_size == pytest.approx(pages, rel=0.015)
    assert limits_of(deployment, budget).state_blocks == budget.state_blocks


def test_bytes_are_counted_once() -> None:
    """Sequences that fill the cache take all of its bytes: their tokens' blocks and their states', nothing twice."""
    deployment = Deployment(model(HYBRIDS[0]), accelerator("h200"), tp=4)
    budget = Roofline(deployment, ideal()).memory()
    each = 100 * budget.kv_bytes_per_block + budget.state_bytes_per_sequence
    fit = budget.num_kv_blocks // (100 + budget.state_blocks)
    assert fit == pytest.approx(budget.kv_cache_bytes / each, rel=0.01)
    assert budget.kv_tokens == (budget.num_kv_blocks - budget.state_blocks) * 16


def test_a_model_of_states_alone_is_bound_by_sequences() -> None:
    deployment = Deployment(
        model("tiiuae/falcon-mamba-7b"), accelerator("l4"), max_num_seqs=2000, max_num_batched_tokens=4096
    )
    budget = Roofline(deployment, ideal()).memory()
    limits = limits_of(deployment, budget)
    assert limits.max_num_seqs == budget.max_sequences
    assert budget.max_sequences == int(budget.kv_cache_bytes // budget.state_bytes_per_sequence)
    assert (limits.state_blocks, limits.prefix_caching) == (0, False)
    assert limits.max_num_seqs * (4096 // 16) <= limits.num_kv_blocks  # so tokens bind nothing


@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 12), st.booleans())
@settings(max_examples=60)
def test_as_many_run_as_have_room_for_tokens_and_state(room: int, blocks: int, state: int, promise: bool) -> None:
    """Equal requests of ``blocks`` blocks, all there from the start: floor(room / (blocks + state)) at a time."""
    room += blocks + state
    n = 40
    workload = Workload(np.zeros(n), np.full(n, 4 * blocks), np.ones(n, np.int64))
    limits = Limits(64, 4096, room, 4, promise_output=promise, state_blocks=state)
    played = replay(constant_table(0.01, 4096, 64), limits, workload)
    together = min(room // (blocks + state), n)
    assert played.ints[at.BATCH_MAX] == together
    assert played.ints[at.USED_MAX] == together * (blocks + state)
    assert played.ints[at.STEPS] == -(-n // together)


@given(cases(POLICIES, state=True))
@settings(max_examples=60)
def test_state_only_takes_room(case: Case) -> None:
    """With room for everybody's state on top, times are those of a model without."""
    limits = case.limits
    n = len(case.workload)
    most = int((case.workload.prompt_tokens + case.workload.output_tokens).max()) // limits.block_size + 2
    roomy = replace(limits, num_kv_blocks=n * (most + limits.state_blocks) + limits.watermark_blocks)
    with_state = replay(case.table, roomy, case.workload)
    without = replay(case.table, replace(roomy, state_blocks=0), case.workload)
    assert with_state.requests.last.tobytes() == without.requests.last.tobytes()


def test_a_request_that_cannot_hold_its_state_is_refused_with_both_figures() -> None:
    workload = Workload(np.zeros(1), np.array([60]), np.array([5]))
    check_fits(workload, Limits(4, 512, 9, 16, state_blocks=5))
    with pytest.raises(WorkloadError, match=r"need 9 KV blocks of 16 tokens, 5 of them for recurrent state; .* has 8"):
        check_fits(workload, Limits(4, 512, 8, 16, state_blocks=5))
