"""Workers of several ranks and stages: the laws of the loop, and theory for pipelines and for lockstep.

1 requests conserved, 2 blocks conserved, 3 clock monotone and causality, 4 determinism, 5 one rank and one stage are
the plain engine bit for bit.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_factory import llama_on_h100
from engine_cases import POLICIES, Case, affine_table, cases, constant_table, poisson
from gambrel.core.efficiency import ideal
from gambrel.core.errors import DeploymentError
from gambrel.core.step import NUM_LINES, RankTable, StepTable
from gambrel.core.workload import Workload
from gambrel.cost import Roofline
from gambrel.engine import ROUTINGS, Limits, Watch, replay, simulate
from gambrel.engine import state as at
from gambrel.engine.deployed import pool_of
from gambrel.engine.workers import LOOKING, Played, Pool, serve
from test_engine_prefix import shared

COLUMNS = ("arrival", "scheduled", "first", "last", "preemptions", "paused")


def same(one: Played, other: Played) -> bool:
    return all(
        getattr(one.requests, c).tobytes() == getattr(other.requests, c).tobytes() for c in COLUMNS
    ) and one.floats.tobytes() == other.floats.tobytes() and np.array_equal(one.histogram, other.histogram)  # fmt: skip


def holds_the_laws(played: Played, pool: Pool) -> None:
    """Laws 1 to 3 for one pool."""
    r = played.requests
    n = len(r.arrival)
    assert played.ints[0, at.FINISHED] == n
    assert played.ints[0, at.FREE_BLOCKS] == pool.workers * pool.ranks * pool.limits.num_kv_blocks
    assert played.ints[0, at.USED_MAX] <= pool.ranks * pool.limits.num_kv_blocks
    assert (r.arrival <= r.scheduled).all()
    assert (r.scheduled <= r.first).all()
    assert (r.first <= r.last).all()
    assert played.floats[0, at.CLOCK] == r.last.max()
    assert played.histogram.sum() == (r.output - 1).sum()
    assert ((played.replica >= 0) & (played.replica < pool.workers)).all()
    seconds = (r.last - r.first).sum()
    assert played.floats[0, at.GAP_TOTAL] == pytest.approx(seconds, rel=1e-9, abs=1e-12)


def rank_table(own: StepTable, ranks: int, experts_s: float, token_s: float) -> RankTable:
    tokens = np.arange((own.max_tokens) * ranks + 1.0)
    experts = experts_s + token_s * tokens
    return RankTable(own, experts, token_s * tokens, np.full(len(tokens), experts_s), 1e-7 * tokens)


@given(cases(POLICIES, state=True), st.sampled_from(["round_robin", "session_sticky", *LOOKING]), st.integers(1, 3))
@settings(max_examples=60)
def test_one_rank_and_one_stage_are_the_plain_engine(case: Case, routing: str, workers: int) -> None:
    """Law 5: bit for bit, sums by cause included where one worker makes them."""
    plain = replay(case.table, case.limits, case.workload, replicas=workers, routing=routing, oracle=workers == 1)
    played = serve((Pool(case.table, case.limits, workers),), case.workload, routing=routing)
    for column in COLUMNS:
        assert getattr(played.requests, column).tobytes() == getattr(plain.requests, column).tobytes(), column
    assert np.array_equal(played.histogram[0], plain.histogram)
    assert np.array_equal(played.replica, plain.replica)
    for place in (at.STEPS, at.BATCH_MAX, at.USED_MAX, at.FINISHED, at.FREE_BLOCKS):
        assert played.ints[0, place] == plain.ints[place], place
    if workers == 1:
        keep = [at.BUSY_S, at.PREFILL_S, at.BATCH_S, at.USED_S, at.GAP_TOTAL, *range(at.BOUND_S, at.NUM_FLOATS)]
        assert played.floats[0, keep].tobytes() == plain.floats[keep].tobytes()


@given(
    cases(POLICIES, state=True), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.booleans()
)
@settings(max_examples=100)
def test_laws(case: Case, workers: int, ranks: int, stages: int, by_score: bool, even: bool) -> None:
    """Laws 1 to 4 under every limit that can bind, any shape."""
    table: StepTable | RankTable = case.table if ranks == 1 else rank_table(case.table, ranks, 1e-3, 1e-5)
    shares = (
        tuple([1.0 / stages] * stages)
        if even
        else tuple((1.0 + k) / (stages * (stages + 1) / 2) for k in range(stages))
    )
    pool = Pool(table, case.limits, workers, ranks, shares if stages > 1 else (1.0,), 0 if even else 2, by_score)
    played = serve((pool,), case.workload, series=True)
    holds_the_laws(played, pool)
    assert same(played, serve((pool,), case.workload, series=True))
    assert played.series is not None
    assert ((played.series.kv_usage >= 0) & (played.series.kv_usage <= 1)).all()
    assert (np.diff(played.series.time_s) > 0).all()


@given(shared(), st.integers(1, 3))
@settings(max_examples=100)
def test_one_rank_remembers_as_the_plain_engine_does(case: Case, workers: int) -> None:
    """Law 5 with a prefix cache: the same blocks found, to the same bytes."""
    plain = replay(case.table, case.limits, case.workload, replicas=workers, oracle=True)
    played = serve((Pool(case.table, case.limits, workers),), case.workload)
    for column in (*COLUMNS, "cached"):
        assert getattr(played.requests, column).tobytes() == getattr(plain.requests, column).tobytes(), column
    assert played.ints[0, at.FREE_BLOCKS] == workers * case.limits.num_kv_blocks


@given(shared(), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=100)
def test_laws_hold_with_a_prefix_cache(case: Case, workers: int, ranks: int, stages: int) -> None:
    table: StepTable | RankTable = case.table if ranks == 1 else rank_table(case.table, ranks, 1e-3, 1e-5)
    pool = Pool(table, case.limits, workers, ranks, (1.0 / stages,) * stages)
    played = serve((pool,), case.workload)
    holds_the_laws(played, pool)
    cached = played.requests.cached
    assert (cached < played.requests.prompt).all()
    assert (cached % case.limits.block_size == 0).all()


@given(cases(POLICIES), st.integers(1, 2), st.integers(1, 6))
@settings(max_examples=60)
def test_users_who_wait_for_their_answers(case: Case, workers: int, users: int) -> None:
    n = len(case.workload)
    loop = replace(case.workload, arrival_s=np.zeros(n), closed_loop=users, think_s=np.full(n, 0.25))
    pool = Pool(case.table, case.limits, workers)
    for routing in ("round_robin", "least_outstanding"):
        played = serve((pool,), loop, routing=routing)
        holds_the_laws(played, pool)
        events = np.concatenate([np.ones(n), -np.ones(n)])
        order = np.lexsort((events, np.concatenate([played.requests.arrival, played.requests.last])))
        assert np.cumsum(events[order]).max() <= users
        plain = replay(case.table, case.limits, loop, replicas=workers, routing=routing)
        if workers == 1 or routing == "round_robin":
            assert played.requests.last.tobytes() == plain.requests.last.tobytes()


def test_turns_wait_for_the_turn_before() -> None:
    workload = Workload(
        np.array([0.0, 0.1, 0.2]), np.full(3, 10), np.full(3, 5),
        think_s=np.full(3, 2.0), after=np.array([-1, 0, -1]),
    )  # fmt: skip
    played = serve((Pool(constant_table(0.01, 64, 4), Limits(4, 64, 100), 1, 1, (0.5, 0.5)),), workload)
    assert played.requests.arrival[1] == played.requests.last[0] + 2.0


def test_what_runs_nowhere_but_in_the_plain_scheduler_is_refused_and_crowds_are_spread() -> None:
    cost = Roofline(llama_on_h100(pp=2), ideal())
    few = poisson(4, 1.0, 20, 5)
    with pytest.raises(DeploymentError, match="clients give up in the plain scheduler of equal replicas"):
        simulate(cost.deployment, cost, replace(few, deadline_s=np.full(4, 1.0)))
    with pytest.raises(DeploymentError, match="speculative decoding is not modelled with pipeline stages"):
        simulate(cost.deployment.with_(draft_tokens=2, acceptance=0.5), cost, few)
    crowd = replace(few, arrival_s=np.zeros(4), closed_loop=4, staggered=True)
    run = simulate(cost.deployment, cost, crowd)
    alone = simulate(cost.deployment, cost, few.take(slice(0, 1)))
    assert run.arrival_s == pytest.approx(float(alone.e2e_s[0]) * np.arange(4) / 4)


def test_a_replay_can_be_stopped() -> None:
    watch = Watch()
    watch.stop[0] = True
    pool = Pool(constant_table(0.01, 64, 4), Limits(4, 64, 100), 1, 1, (0.5, 0.5))
    played = serve((pool,), poisson(20, 5.0, 20, 5), watch=watch)
    assert watch.requests is played.requests
    assert np.isnan(played.requests.last).all()


def test_routings_that_know_prefixes_are_refused() -> None:
    assert set(ROUTINGS) - {"prefix_aware"} == {"round_robin", "session_sticky", *LOOKING}
    with pytest.raises(DeploymentError, match="routing 'prefix_aware' does not go with pipeline stages"):
        serve((Pool(constant_table(1.0, 8, 1), Limits(1, 8, 4)),), poisson(3, 1.0, 2, 2), routing="prefix_aware")


# -- pipelines -------------------------------------------------------------------------------------


def prompts(n: int, tokens: int) -> Workload:
    return Workload(np.zeros(n), np.full(n, tokens), np.ones(n, np.int64))


@given(st.integers(1, 8), st.integers(1, 60))
@settings(max_examples=40)
def test_a_train_of_micro_batches_has_the_bubble_of_theory(stages: int, batches: int) -> None:
    """m micro-batches over p equal stages take m + p - 1 stage times: idle share (p - 1) / (m + p - 1)."""
    shares = (1.0 / stages,) * stages if stages > 1 else (1.0,)
    pool = Pool(constant_table(float(stages), 16, 16), Limits(16, 16, 10_000), 1, 1, shares)
    played = serve((pool,), prompts(batches, 16))
    makespan = float(played.requests.last.max())
    assert makespan == pytest.approx(batches + stages - 1)
    busy = float(played.floats[0, at.BUSY_S])  # accelerator-seconds over the number of stages
    assert 1 - busy / makespan == pytest.approx((stages - 1) / (batches + stages - 1))


def test_the_slowest_stage_sets_the_rate_at_saturation() -> None:
    """Stages of 1, 3 and 2 seconds: prompts leave every 3 seconds, the first after 6."""
    pool = Pool(constant_table(6.0, 16, 4), Limits(4, 16, 10_000), 1, 1, (1 / 6, 3 / 6, 2 / 6))
    last = np.sort(serve((pool,), prompts(50, 16)).requests.last)
    assert last[0] == pytest.approx(6.0)
    assert np.diff(last) == pytest.approx(np.full(49, 3.0))


def test_a_long_prompt_fills_the_pipeline_with_its_own_chunks() -> None:
    """vLLM schedules a prompt's next chunk while the one before is still in flight: 8 chunks over 4 stages take 11."""
    pool = Pool(constant_table(4.0, 16, 4), Limits(4, 16, 10_000), 1, 1, (0.25,) * 4)
    assert serve((pool,), prompts(1, 128)).requests.first[0] == pytest.approx(8 + 4 - 1)


def test_decoders_of_p_micro_batches_keep_p_stages_busy_and_wait_a_whole_round() -> None:
    """Two groups of decoders over two stages: a token every round, both stages always busy; one group idles half."""
    table, limits = constant_table(0.02, 8, 8), Limits(8, 8, 10_000)
    pool = Pool(table, limits, 1, 1, (0.5, 0.5), 4)
    eight = Workload(np.zeros(8), np.ones(8, np.int64), np.full(8, 101))
    capped = serve((pool,), eight)
    assert capped.requests.last.max() == pytest.approx(101 * 0.02 + 0.01)
    busy = float(capped.floats[0, at.BUSY_S]) / float(capped.requests.last.max())
    assert busy == pytest.approx(1.0, abs=0.01)
    uncapped = serve((replace(pool, batch_seqs=0),), eight)  # all decode in one micro-batch, as vLLM has it
    assert float(uncapped.floats[0, at.BUSY_S]) / float(uncapped.requests.last.max()) == pytest.approx(0.5, abs=0.01)
    assert uncapped.requests.last.max() == pytest.approx(101 * 0.02)


@pytest.mark.parametrize(("engine", "each"), [("vllm", 64), ("tensorrt-llm", 16), ("sglang", 16)])
def test_engines_that_share_sequences_out_do_so_under_any_scheduler(engine: str, each: int) -> None:
    d = llama_on_h100(engine=engine, pp=4, max_num_seqs=64, policy="vllm")
    assert pool_of(d, Roofline(d, ideal())).batch_seqs == each


def test_one_request_takes_as_long_as_without_stages() -> None:
    """The stages of a table add up to it, so a lone request's times are those of the plain engine."""
    workload = Workload(np.array([0.0]), np.array([300]), np.array([50]))
    table, limits = affine_table(512, 16), Limits(16, 512, 1000)
    plain = replay(table, limits, workload).requests
    for stages in (2, 3, 5):
        staged = serve((Pool(table, limits, 1, 1, (1.0 / stages,) * stages),), workload).requests
        assert staged.first == pytest.approx(plain.first)
        assert staged.last == pytest.approx(plain.last)


# -- lockstep --------------------------------------------------------------------------------------


def test_a_step_lasts_as_long_as_the_slowest_rank() -> None:
    """Two ranks, a prompt of 10 and one of 4 tokens: 10 token times, then the experts of 14, the exchange of 2 x 10."""
    tokens, rows = np.arange(33.0), np.zeros(9)
    own = StepTable(tokens, tokens, np.zeros(33), np.zeros(33), np.zeros(33), rows, rows, rows, np.zeros(NUM_LINES), 0)
    every = np.arange(65.0)
    table = RankTable(own, every * 100.0, every * 100.0, np.zeros(65), every * 1e4)
    workload = Workload(np.zeros(2), np.array([10, 4]), np.ones(2, np.int64))
    played = serve((Pool(table, Limits(8, 32, 100), 1, 2),), workload)
    assert played.requests.last.tolist() == [10 + 1400 + 2e5] * 2
    alone = serve((Pool(table, Limits(8, 32, 100), 1, 2),), workload.take(slice(0, 1)))
    assert alone.requests.last.tolist() == [10 + 1100 + 2e5]  # the idle rank runs along with one token


@given(cases(POLICIES), st.integers(2, 4))
@settings(max_examples=40)
def test_one_rank_of_several_with_nothing_to_share_is_the_plain_engine(case: Case, ranks: int) -> None:
    """With nothing shared and everything on one rank, lockstep costs nothing: the max over ranks is that rank's."""
    zero = np.zeros(case.table.max_tokens * ranks + 1)
    table = RankTable(case.table, zero, zero, zero, zero)
    rows = np.flatnonzero(np.arange(len(case.workload)) % ranks == 0)
    lone = case.workload.take(rows[:1])
    plain = replay(case.table, case.limits, lone, oracle=True).requests
    played = serve((Pool(table, case.limits, 1, ranks),), lone).requests
    assert played.last.tobytes() == plain.last.tobytes()


def test_ranks_in_lockstep_are_never_faster_than_replicas_apart() -> None:
    """The same ranks without experts: waiting for the slowest can only cost, and costs nothing when all are equal."""
    table, limits = affine_table(512, 16), Limits(16, 512, 1000)
    zero = np.zeros(512 * 4 + 1)
    locked = Pool(RankTable(table, zero, zero, zero, zero), limits, 1, 4, by_score=False)
    workload = poisson(400, 30.0, 100, 40)
    together = serve((locked,), workload).requests
    apart = serve((Pool(table, limits, 4),), workload).requests
    assert together.last.mean() > apart.last.mean()
    equal = Workload(np.zeros(64), np.full(64, 100), np.full(64, 40))
    assert serve((locked,), equal).requests.last == pytest.approx(serve((Pool(table, limits, 4),), equal).requests.last)
