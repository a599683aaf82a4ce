"""How many sequences a cache holds has one answer: the simulation's, for models that grow, slide or keep a state."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gambrel.core.deployment import Deployment
from gambrel.core.slo import SLO
from gambrel.core.workload import Workload
from gambrel.faces import api
from gambrel.plan.screen import Demand, least_busy_s, shared_tokens
from gambrel.plan.settings import price_modes, why_seqs
from gambrel.plan.trial import Bench
from gambrel.report.memory import HeldTokens, memory_vs_concurrency

BENCHES: dict[tuple[str, str, int, int], Bench] = {}
MODELS = (
    ("meta-llama/Llama-3.1-8B-Instruct", "l4", 1),
    ("google/gemma-3-12b-it", "a10g", 2),
    ("google/gemma-3-12b-it", "l40s", 1),
    ("openai/gpt-oss-20b", "h100-sxm", 1),
    ("mistralai/Mistral-7B-v0.1", "h100-sxm", 1),
    ("Qwen/Qwen3.5-27B", "h100-sxm", 1),
    ("nvidia/Nemotron-H-8B-Base-8K", "l4", 1),
    ("tiiuae/falcon-mamba-7b", "l4", 1),
)
"""Dense; windows short (held as a state) and long (held by the token); recurrent state beside a cache, and alone."""


def bench_of(name: str, gpu: str, tp: int, block_size: int) -> Bench:
    key = (name, gpu, tp, block_size)
    if key not in BENCHES:
        deployment = Deployment(
            api.model(name),
            api.accelerator(gpu),
            tp=tp,
            block_size=block_size,
            max_num_seqs=1024,
            max_num_batched_tokens=8192,
        )
        BENCHES[key] = Bench.of(api.cost_model(deployment))
    return BENCHES[key]


def users(n: int, prompt: int, output: int, rounds: int = 3) -> Workload:
    rows = n * rounds
    return Workload(np.zeros(rows), np.full(rows, prompt), np.full(rows, output), closed_loop=n)


@pytest.mark.parametrize(("name", "gpu", "tp"), MODELS, ids=[f"{m[0].rsplit('/')[-1]}-{m[1]}" for m in MODELS])
@settings(max_examples=8)
@given(block_size=st.sampled_from([64, 256]), blocks=st.integers(2, 24))
def test_seats_are_what_a_simulation_holds_at_once(name: str, gpu: str, tp: int, block_size: int, blocks: int) -> None:
    """Answers that end in the block in which their prompt does, so that all that is ever held is held from the start.

    So many users run together and nobody gives way; of one more, somebody waits.
    """
    bench = bench_of(name, gpu, tp, block_size)
    output = block_size // 2
    prompt = blocks * block_size + 1 - output
    seats = bench.seats(users(1, prompt, output))
    assert seats == min(bench.limits.max_num_seqs, bench.memory.sequences(prompt + output - 1))
    deployment = bench.cost_model.deployment
    full = bench.run(deployment, users(seats, prompt, output))
    assert full.batch_max <= seats
    assert full.num_preemptions == 0
    if seats * prompt <= 8192 * (output // 2):  # the last is there before the first is gone
        assert full.batch_max == seats
    more = bench.run(deployment, users(seats + 1, prompt, output))
    assert more.batch_max <= seats
    assert not bench.keeps_up(deployment, users(seats, prompt, output), full)
    assert bench.keeps_up(deployment, users(seats + 1, prompt, output), more)


@pytest.mark.parametrize(("name", "gpu", "tp"), MODELS, ids=[f"{m[0].rsplit('/')[-1]}-{m[1]}" for m in MODELS])
def test_every_answer_about_room_is_the_same(name: str, gpu: str, tp: int) -> None:
    bench = bench_of(name, gpu, tp, 16)
    cost_model, memory = bench.cost_model, bench.memory
    for context in (1, 100, 400, 3000, 31_500):
        room = memory.sequences(context)
        held = HeldTokens(math.nan, context, context, context)
        assert f"full at {room:,} requests" in str(memory_vs_concurrency(memory, held)).replace(
            "\N{NO-BREAK SPACE}", " "
        )
    log = users(4, 380, 40)
    run = bench.run(cost_model.deployment, log)
    assert f"about {memory.sequences(400):,} requests" in why_seqs(cost_model.deployment, bench, run)
    modes = price_modes(cost_model.deployment, cost_model, log, SLO.parse(["tpot.p95<=1s"]))
    assert max(m.batch for m in modes) == min(1024, memory.sequences(400))


def test_gemma_on_two_a10g_seats_what_its_pool_holds() -> None:
    """Five sixths of its layers hold their window whole: 320 blocks beside the 25 of 399 tokens."""
    bench = bench_of("google/gemma-3-12b-it", "a10g", 2, 16)
    each = bench.memory.state_blocks + 25
    assert bench.memory.state_blocks == 320
    assert bench.seats(users(256, 300, 100)) == bench.memory.num_kv_blocks // each < 50


# Prompts that share


@st.composite
def alike(draw: st.DrawFn, most: int = 60) -> Workload:
    """Logs in which prompts begin alike, wholly, in groups or turn by turn, in hashes of any length."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    n = draw(st.integers(2, most))
    granule = draw(st.sampled_from([16, 48, 512]))
    groups = draw(st.integers(1, 4))
    common = draw(st.integers(0, 4000)) // granule
    prompts, hashes = [], []
    for i in range(n):
        own = int(rng.integers(1, 1500))
        prompts.append(common * granule + own)
        group = int(rng.integers(groups))
        listed = -(-own // granule) if draw(st.booleans()) else 0  # the rest is not always named
        hashes.append([1000 * group + k for k in range(common)] + [10**6 + 10**4 * i + k for k in range(listed)])
    for i in range(1, n):
        if draw(st.integers(0, 3)) == 0:  # a turn after another: all of that and a little more
            hashes[i] = [*hashes[i - 1], 10**9 + i]
            prompts[i] = max(1, (len(hashes[i]) - 1) * granule) + int(rng.integers(1, granule + 1))
    return Workload(
        np.sort(rng.uniform(0.0, draw(st.floats(0.0, 60.0)), n)),
        np.array(prompts),
        rng.integers(1, 300, n),
        prefix_blocks=np.array([h for row in hashes for h in row], np.int64),
        prefix_offsets=np.concatenate(([0], np.cumsum([len(row) for row in hashes]))),
        prefix_block_tokens=granule,
    )


@settings(max_examples=60)
@given(log=alike(), model=st.sampled_from([MODELS[0], MODELS[1], MODELS[6]]), block_size=st.sampled_from([16, 64]))
def test_no_simulation_is_less_busy_than_the_bound(log: Workload, model: tuple[str, str, int], block_size: int) -> None:
    bench = bench_of(*model, block_size)
    run = bench.run(bench.cost_model.deployment, log)
    bound = least_busy_s(bench.table, Demand.of(log), bench.cost_model.deployment, bench.memory)
    assert bound <= run.busy_s * (1 + 1e-9)


def begun_alike(n: int, prompt: int, output: int, every_s: float, loop: int = 0) -> Workload:
    """Prompts that are the same but for their last block of 16 tokens."""
    same = list(range(1000, 1000 + prompt // 16 - 1))
    return Workload(
        np.linspace(0.0, every_s * (n - 1), n),
        np.full(n, prompt),
        np.full(n, output),
        prefix_blocks=np.array([h for i in range(n) for h in (*same, 10**6 + i)]),
        prefix_offsets=np.arange(n + 1) * (prompt // 16),
        prefix_block_tokens=16,
        closed_loop=loop,
    )


def test_prompts_held_once_are_charged_once() -> None:
    """Were each charged with its whole prompt, the bound were five times what the simulation takes."""
    bench = bench_of(*MODELS[0], 16)
    log = begun_alike(200, 10_016, 200, 0.25)
    deployment = bench.cost_model.deployment
    run = bench.run(deployment, log)
    demand = Demand.of(log)
    assert shared_tokens(log).tolist() == [10_000.0] * 200
    assert demand.held_token_steps == 200 * sum(16 + j for j in range(1, 200))
    assert 0.5 * run.busy_s < least_busy_s(bench.table, demand, deployment, bench.memory) <= run.busy_s


def test_users_whose_prompts_begin_alike_sit_together() -> None:
    bench = bench_of(*MODELS[0], 16)
    deployment = bench.cost_model.deployment
    alone = bench.seats(users(1, 10_016, 100))
    seats = bench.seats(begun_alike(400, 10_016, 100, 0.0))
    blocks = bench.memory.num_kv_blocks
    assert (alone, seats) == (blocks // 633, (blocks - 625) // 8)
    log = begun_alike(2 * seats, 10_016, 100, 0.0, seats)
    run = bench.run(deployment, log)
    assert (run.batch_max, run.num_preemptions) == (seats, 0)
    assert not bench.keeps_up(deployment, log, run)


@settings(max_examples=30)
@given(log=alike())
def test_as_many_users_as_have_seats_never_give_way(log: Workload) -> None:
    bench = bench_of(*MODELS[0], 16)
    seats = bench.seats(log)
    assert seats >= bench.memory.sequences(int((log.prompt_tokens + log.output_tokens).max()) - 1)
    loop = Workload(
        np.zeros(len(log)),
        log.prompt_tokens,
        log.output_tokens,
        prefix_blocks=log.prefix_blocks,
        prefix_offsets=log.prefix_offsets,
        prefix_block_tokens=log.prefix_block_tokens,
        closed_loop=min(seats, len(log)),
    )
    assert bench.run(bench.cost_model.deployment, loop).num_preemptions == 0
