"""Step tables and workloads made by hand, so that the engine is tested without a cost model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from gambrel.core.step import NUM_LINES, StepTable
from gambrel.core.workload import Workload
from gambrel.engine import Limits


def affine_table(max_tokens: int, max_seqs: int, window: int = 0, *, form: str = "serial") -> StepTable:
    """An 8B-like device: 5 ms of weights a step, 32 us a token, KV reads, attention and a little of everything else."""
    tokens = np.arange(max_tokens + 1.0)
    rows = np.arange(max_seqs + 1.0)
    compute, weights = tokens * 3.2e-5, np.full(max_tokens + 1, 5e-3)
    lines = np.zeros(NUM_LINES)
    lines[[0, 1, 2, 3, 4, 5]] = 2e-5, 4e-8, 1e-7, 3e-9, 1e-9, 1e-7
    lines[[12, 13, 14, 16, 17]] = 1e-5, 3e-8, 1e-6, 2e-8, 1e-8
    if window:
        lines[[6, 7, 8, 9, 10, 11]] = 1e-5, 3e-8, 2e-7, 2e-9, 2e-9, 3e-8
    lines[15] = 1.0 if form == "max" else 0.0
    return StepTable(
        np.maximum(compute, weights), compute, weights, tokens * 1e-7, 1e-3 + tokens * 1e-8,
        np.maximum(rows * 1e-6, 2e-4), rows * 1e-6, np.full(max_seqs + 1, 2e-4), lines, window,
    )  # fmt: skip


def constant_table(seconds: float, max_tokens: int, max_seqs: int) -> StepTable:
    """Every step takes the same time."""
    none, rows = np.zeros(max_tokens + 1), np.zeros(max_seqs + 1)
    return StepTable(none + seconds, none, none + seconds, none, none, rows, rows, rows, np.zeros(NUM_LINES), 0)


def poisson(n: int, rate: float, prompt: int, output: int, seed: int = 0) -> Workload:
    """Poisson arrivals; lengths uniform with the given means."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1.0 / rate, n))
    return Workload(
        arrival, rng.integers(1, 2 * prompt, n), rng.integers(1, 2 * output, n), session=np.arange(n) % (n // 4 + 1)
    )


def hashed(workload: Workload, rows: list[list[int]], granule: int) -> Workload:
    """The workload with these hashes, row by row."""
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    flat = np.array([h for r in rows for h in r], np.int64)
    return replace(workload, prefix_blocks=flat, prefix_offsets=offsets, prefix_block_tokens=granule)


@dataclass(frozen=True)
class Case:
    table: StepTable
    limits: Limits
    workload: Workload


MIXED: dict[str, dict[str, bool]] = {"mixed": {}}
POLICIES = MIXED | {
    "promise": {"promise_output": True},
    "train": {"static_batch": True},
    "train that promises": {"static_batch": True, "promise_output": True},
    "prompts first": {"prefill_first": True},
    "prompts first, a share kept": {"prefill_first": True, "keep_share": True},
}


@st.composite
def cases(draw: st.DrawFn, policies: dict[str, dict[str, bool]] = MIXED, *, state: bool = False) -> Case:
    """Small replicas under every limit that can bind, and requests that each fit alone; ``state`` may take blocks."""
    n = draw(st.integers(1, 40))
    lengths = st.lists(st.integers(1, draw(st.sampled_from([1, 5, 60]))), min_size=n, max_size=n)
    prompt = np.array(draw(lengths))
    output = np.array(draw(lengths))
    gap = draw(st.sampled_from([0.0, 1e-3, 2e-2, 0.3]))
    gaps = draw(st.lists(st.floats(0.0, 1.0), min_size=n, max_size=n))
    session = np.array(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))
    workload = Workload(np.cumsum(np.array(gaps) * gap), prompt, output, session=session)
    longest = int((prompt + output).max())
    block_size = draw(st.sampled_from([1, 2, 3, 7, 16]))
    max_num_seqs = draw(st.integers(1, 12))
    chunked = draw(st.booleans())
    budget = draw(st.integers(max_num_seqs, max_num_seqs + 40))
    if not chunked:
        budget = max(budget, longest)
    window = draw(st.one_of(st.just(0), st.integers(1, 70)))
    state_blocks = draw(st.sampled_from([0, 1, 5])) if state else 0
    limits = Limits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        num_kv_blocks=-(-(longest - 1) // block_size) + state_blocks + draw(st.integers(0, 40)),
        block_size=block_size,
        chunked_prefill=chunked,
        reserve_full_prompt=draw(st.booleans()),
        watermark_blocks=draw(st.integers(0, 3)),
        state_blocks=state_blocks,
        **policies[draw(st.sampled_from(sorted(policies)))],
    )
    return Case(
        affine_table(budget, max_num_seqs, window, form=draw(st.sampled_from(["serial", "max"]))), limits, workload
    )
