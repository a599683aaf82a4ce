"""Prefill and decode workers of their own: the laws, the tandem, the link, and who waits for whom.

1 requests conserved, 2 blocks conserved in both pools, 3 clock monotone, 4 causality (arrival, scheduled, prefilled,
transferred, first, last), 5 determinism.
"""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_factory import llama_on_h100
from engine_cases import POLICIES, Case, affine_table, cases, constant_table, hashed, poisson
from gambrel.core.efficiency import ideal
from gambrel.core.errors import DeploymentError, WorkloadError
from gambrel.core.step import Step
from gambrel.core.workload import Workload
from gambrel.cost import Roofline
from gambrel.engine import Limits, replay, simulate
from gambrel.engine import state as at
from gambrel.engine.workers import LOOKING, Played, Pool, Transfer, serve, worker_run
from gambrel.engine.workers_room import Room
from test_engine_prefix import shared

PREFILL, DECODE = range(2)
NEVER_MIND = 10_000  # blocks or tokens that do not bind


def rules(seconds: np.ndarray) -> list[Transfer]:
    """vLLM, TensorRT-LLM, SGLang."""
    return [Transfer(seconds), Transfer(seconds, first_along=True), Transfer(seconds, pull=False, first_along=True)]


def instant(n: int) -> Transfer:
    return Transfer(np.zeros(n))


@given(
    st.one_of(cases(POLICIES, state=True), shared()), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from([0.0, 1e-4, 0.05]), st.integers(0, 2),
    st.sampled_from(["round_robin", "session_sticky", *LOOKING]), st.integers(1, 2),
)  # fmt: skip
@settings(max_examples=120)
def test_laws(case: Case, prefills: int, decodes: int, token_s: float, rule: int, routing: str, stages: int) -> None:
    n = len(case.workload)
    transfer = replace(rules(token_s * case.workload.prompt_tokens)[rule], kept_tokens=8)
    shares = (1.0 / stages,) * stages
    pools = (
        Pool(case.table, case.limits, prefills, 1, shares),
        Pool(case.table, case.limits, decodes, 1, shares),
    )
    played = serve(pools, case.workload, transfer=transfer, routing=routing, series=True)
    r = played.requests
    assert played.ints[DECODE, at.FINISHED] == n
    blocks = case.limits.num_kv_blocks
    assert played.ints[PREFILL, at.FREE_BLOCKS] == prefills * blocks
    assert played.ints[DECODE, at.FREE_BLOCKS] == decodes * blocks
    assert (played.ints[:, at.USED_MAX] <= blocks).all()
    assert (r.arrival <= r.scheduled).all()
    assert (r.scheduled < played.prefilled).all()
    assert (played.prefilled <= played.transferred).all()
    assert (played.transferred <= r.first).all()
    assert (r.first <= r.last).all()
    assert played.floats[DECODE, at.CLOCK] == r.last.max()
    assert played.histogram[DECODE].sum() == (r.output - 1).sum()
    assert played.histogram[PREFILL].sum() == 0
    assert played.series is not None
    assert (np.diff(played.series.time_s) > 0).all()
    run = worker_run(played, pools)
    assert [p.name for p in run.pools] == ["prefill", "decode"]
    assert run.busy_s == pytest.approx(sum(p.busy_s for p in run.pools))
    again = serve(pools, case.workload, transfer=transfer, routing=routing, series=True)
    for one, other in (
        (played.prefilled, again.prefilled),
        (r.last, again.requests.last),
        (r.first, again.requests.first),
    ):
        assert one.tobytes() == other.tobytes()
    assert played.floats.tobytes() == again.floats.tobytes()


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31))
@settings(max_examples=60)
def test_an_instant_link_makes_a_tandem(n: int, prompts: int, answers: int, seed: int) -> None:
    """The prefill worker is the plain engine with one-token answers; its ends are the arrivals of the decode worker."""
    workload = poisson(n, 20.0, 100, 12, seed % 1000)
    before, after = affine_table(128, prompts), constant_table(0.01, 64, answers)
    prefill = Pool(before, Limits(prompts, 128, NEVER_MIND))
    decode = Pool(after, Limits(answers, 64, NEVER_MIND))
    played = serve((prefill, decode), workload, transfer=instant(n))
    first = replay(before, prefill.limits, replace(workload, output_tokens=np.ones(n, np.int64))).requests
    assert played.prefilled.tobytes() == first.last.tobytes()
    assert played.requests.scheduled.tobytes() == first.scheduled.tobytes()
    order = np.argsort(first.last, kind="stable")
    handed = Workload(first.last[order], np.ones(n, np.int64), workload.output_tokens[order])
    second = replay(after, decode.limits, handed).requests
    assert played.requests.first[order].tobytes() == second.first.tobytes()
    assert played.requests.last[order].tobytes() == second.last.tobytes()


def test_one_at_a_time_is_the_recursion_of_lindley() -> None:
    """A tandem of two single servers: each departs a service after its arrival or the departure before it."""
    workload = poisson(300, 8.0, 100, 10)
    prefill = Pool(constant_table(0.1, 256, 1), Limits(1, 256, NEVER_MIND))
    decode = Pool(constant_table(0.01, 8, 1), Limits(1, 8, NEVER_MIND))
    played = serve((prefill, decode), workload, transfer=instant(300))
    done = computed = 0.0
    for i in range(300):
        computed = max(float(workload.arrival_s[i]), computed) + 0.1
        done = max(computed, done) + 0.01 * workload.output_tokens[i]
        assert played.prefilled[i] == pytest.approx(computed)
        assert played.requests.last[i] == pytest.approx(done)


def test_a_prefill_worker_is_an_m_d_1_queue() -> None:
    """DistServe's waiting time, rho S / (2 (1 - rho)), and utilisation lambda S; decode worker out of the way."""
    rate, service, n = 8.0, 0.1, 40_000
    rng = np.random.default_rng(1)
    workload = Workload(np.cumsum(rng.exponential(1 / rate, n)), np.full(n, 50), np.full(n, 2))
    pools = (
        Pool(constant_table(service, 64, 1), Limits(1, 64, NEVER_MIND)),
        Pool(constant_table(1e-3, 64, 64), Limits(64, 64, NEVER_MIND)),
    )
    run = worker_run(serve(pools, workload, transfer=instant(n)), pools)
    rho = rate * service
    assert run.queue_s.mean() == pytest.approx(rho * service / (2 * (1 - rho)), rel=0.05)
    assert run.pools[PREFILL].busy_s / run.makespan_s == pytest.approx(rho, rel=0.02)


@pytest.mark.parametrize("rule", range(3))
def test_prompts_do_not_disturb_answers(rule: int) -> None:
    """No gap of a decode pool is longer than a step of all its sequences; the collocated engine's are."""
    workload = poisson(600, 12.0, 1500, 60)
    table = affine_table(4096, 256)
    pools = (Pool(table, Limits(256, 4096, NEVER_MIND)), Pool(table, Limits(256, 4096, NEVER_MIND)))
    played = serve(pools, workload, transfer=rules(np.full(600, 1e-3))[rule])
    assert played.floats[DECODE, at.PREFILL_S] == 0.0
    run = worker_run(played, pools)
    most = int(played.ints[DECODE, at.BATCH_MAX])
    longest = table.cost(Step.decode(most, 3200)).seconds
    gaps = played.histogram[DECODE]
    assert at.bucket_edges()[np.flatnonzero(gaps)[-1]] <= longest
    collocated = replay(table, pools[0].limits, workload)
    assert at.bucket_edges()[np.flatnonzero(collocated.histogram)[-1]] > 3 * longest
    assert run.tpot_s[np.isfinite(run.tpot_s)].max() <= longest


@pytest.mark.parametrize("rule", range(3))
def test_the_transfer_adds_itself_to_the_first_token(rule: int) -> None:
    alone = Workload(np.array([0.0]), np.array([700]), np.array([5]))
    pool = Pool(affine_table(1024, 8), Limits(8, 1024, NEVER_MIND))
    slow = serve((pool, pool), alone, transfer=rules(np.array([0.25]))[rule])
    fast = serve((pool, pool), alone, transfer=rules(np.array([0.0]))[rule])
    assert slow.requests.first[0] == pytest.approx(fast.requests.first[0] + 0.25)
    assert slow.transferred[0] - slow.prefilled[0] == pytest.approx(0.25)
    if rule:  # the first token is there when the prompt is
        assert slow.requests.first[0] == slow.transferred[0]
    else:  # the decode worker makes it in a step of its own
        assert slow.requests.first[0] > slow.transferred[0]


@pytest.mark.parametrize("rule", range(3))
def test_a_link_carries_one_prompt_at_a_time(rule: int) -> None:
    """Twenty prompts done together, half a second each: the last is over after ten, on two links after five."""
    burst = Workload(np.zeros(20), np.full(20, 10), np.full(20, 3))
    pool = Pool(constant_table(0.01, 512, 64), Limits(64, 512, NEVER_MIND))
    for workers, expected in ((1, 10.0), (2, 5.0)):
        both = replace(pool, workers=workers)
        played = serve((both, both), burst, transfer=rules(np.full(20, 0.5))[rule])
        assert played.transferred.max() == pytest.approx(0.01 + expected)


def test_slots_grow_with_the_prompts_that_wait_for_a_slow_link() -> None:
    """Two run at a time, but three hundred are done with their prompts before the link has carried ten."""
    n = 300
    burst = Workload(np.zeros(n), np.full(n, 10), np.full(n, 3))
    pool = Pool(constant_table(0.01, 64, 2), Limits(2, 64, NEVER_MIND))
    with patch.object(Room, "doubled", autospec=True, side_effect=Room.doubled) as grown:
        played = serve((pool, pool), burst, transfer=Transfer(np.full(n, 0.5)))
    assert grown.call_count > 3
    assert played.transferred.max() == pytest.approx(0.01 + 0.5 * n)
    assert played.ints[DECODE, at.FINISHED] == n
    assert (played.ints[:, at.FREE_BLOCKS] == NEVER_MIND).all()


def test_chunks_are_sent_while_the_next_is_computed() -> None:
    """SGLang sends chunk by chunk: of four chunks only the last one's quarter comes after the prompt is done."""
    alone = Workload(np.array([0.0]), np.array([64]), np.array([2]))
    pool = Pool(constant_table(1.0, 16, 8), Limits(8, 16, NEVER_MIND))
    played = serve((pool, pool), alone, transfer=Transfer(np.array([2.0]), pull=False, first_along=True))
    assert played.prefilled[0] == 4.0
    assert played.transferred[0] == pytest.approx(4.5)


def test_a_full_decode_worker_holds_the_prefill_worker_back() -> None:
    """The decode pool holds one request, the prefill pool two prompts: the third is computed when the first has ended.

    The first ends, the second is given its blocks and comes over, and only then are its old ones free.
    """
    workload = Workload(np.zeros(3), np.full(3, 32), np.full(3, 17))
    pools = (
        Pool(constant_table(0.01, 32, 8), Limits(8, 32, 4)),
        Pool(constant_table(0.01, 32, 8), Limits(8, 32, 3)),
    )
    played = serve(pools, workload, transfer=Transfer(np.full(3, 0.5)))
    r = played.requests
    assert r.scheduled[1] == pytest.approx(0.01)
    assert played.transferred[1] == pytest.approx(r.last[0] + 0.5)
    assert r.scheduled[2] == pytest.approx(played.transferred[0])  # its blocks; the decode worker's it awaits later
    assert played.transferred[2] == pytest.approx(r.last[1] + 0.5)


def test_where_the_decode_worker_reserves_first_nothing_is_computed_before() -> None:
    """SGLang: with room for one answer, each prompt starts when the answer before has ended."""
    workload = Workload(np.zeros(4), np.full(4, 32), np.full(4, 17))
    pools = (
        Pool(constant_table(0.01, 32, 8), Limits(8, 32, NEVER_MIND)),
        Pool(constant_table(0.01, 32, 8), Limits(8, 32, 3)),
    )
    played = serve(pools, workload, transfer=Transfer(np.full(4, 0.5), pull=False, first_along=True))
    assert played.requests.scheduled[1:] == pytest.approx(played.requests.last[:-1])


def test_an_evicted_answer_is_computed_again_where_it_decodes() -> None:
    workload = Workload(np.zeros(4), np.full(4, 30), np.full(4, 40))
    table = affine_table(128, 8)
    pools = (Pool(table, Limits(8, 128, 100)), Pool(table, Limits(8, 128, 10)))
    played = serve(pools, workload, transfer=Transfer(np.full(4, 1e-3)))
    assert played.requests.preemptions.sum() > 0
    assert played.floats[DECODE, at.PREFILL_S] > 0.0
    assert played.ints[DECODE, at.FREE_BLOCKS] == 10


def test_a_prompt_computed_before_is_found_by_the_prefill_worker_and_sent_whole() -> None:
    """Two equal prompts of 64 tokens in blocks of 16: of the second, 48 are found; all 64 come over."""
    twice = hashed(Workload(np.array([0.0, 1.0]), np.full(2, 64), np.full(2, 2)), [[1, 2, 3, 4]] * 2, 16)
    pool = Pool(affine_table(128, 8), Limits(8, 128, 100, prefix_caching=True))
    for transfer in rules(np.full(2, 0.1)):
        played = serve((pool, pool), twice, transfer=transfer)
        assert played.requests.cached.tolist() == [0, 48]
        assert played.transferred - played.prefilled == pytest.approx(np.full(2, 0.1))
        took = played.prefilled - played.requests.scheduled
        assert took[1] < took[0]


def test_users_wait_for_answers_of_two_pools() -> None:
    """Little's law on the sample path: N users without pauses, N = X R."""
    n, users = 400, 12
    loop = Workload(np.zeros(n), np.full(n, 200), np.full(n, 30), closed_loop=users)
    table = affine_table(512, 16)
    pools = (Pool(table, Limits(16, 512, 2000), 2), Pool(table, Limits(16, 512, 2000), 3))
    for routing in ("round_robin", *LOOKING):
        played: Played = serve(pools, loop, transfer=Transfer(np.full(n, 2e-3)), routing=routing)
        spent = (played.requests.last - played.requests.arrival).sum()
        steady = played.requests.arrival.max()
        assert spent == pytest.approx(users * steady, rel=0.05)


def test_a_deployment_of_two_pools_from_end_to_end() -> None:
    """Accelerators, label and price count both pools; the run says what each did; slower links, later first tokens."""
    d = llama_on_h100(tp=2, replicas=2, prefill_replicas=1, prefill_tp=4, kv_link_bytes_per_s=50e9)
    assert (d.num_gpus, d.prefill_pool.num_gpus, d.decode_pool.num_gpus) == (8, 4, 4)
    assert "prefill + 2 x h100-sxm tp2" in d.label
    workload = poisson(200, 10.0, 800, 40)
    runs = {
        policy: simulate(d.with_(policy=policy), Roofline(d.with_(policy=policy), ideal()), workload)
        for policy in ("vllm", "sglang", "tensorrt_llm")
    }
    for run in runs.values():
        assert np.isfinite(run.last_token_s).all()
        assert run.replicas == 3
        assert [(p.name, p.replicas) for p in run.pools] == [("prefill", 1), ("decode", 2)]
        assert sum(run.phases_s()[name].sum() for name in run.phases_s()) == pytest.approx(run.e2e_s.sum())
    thin = d.with_(kv_link_bytes_per_s=1e9)
    assert simulate(thin, Roofline(thin, ideal()), workload).ttft_s.mean() > runs["vllm"].ttft_s.mean() + 0.04
    with pytest.raises(DeploymentError, match="policy 'static' has no prefill workers; known with them: vllm"):
        simulate(d.with_(policy="static"), Roofline(d, ideal()), workload)
    tiny = replace(workload, prompt_tokens=np.full(200, 9_000_000))
    with pytest.raises(WorkloadError, match="a replica has"):
        simulate(d, Roofline(d, ideal()), tiny)
