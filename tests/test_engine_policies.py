"""The rules of other engines: each against what defines it and against theory."""

from __future__ import annotations

from dataclasses import replace
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings

from cost_factory import llama_on_h100
from engine_cases import POLICIES as RULES
from engine_cases import Case, affine_table, cases, constant_table, poisson
from gambrel.core.errors import DeploymentError, WorkloadError
from gambrel.core.step import Step
from gambrel.core.workload import Workload
from gambrel.engine import POLICIES, Limits, check_fits, limits_of, policy_of, replay
from gambrel.engine import state as at

PROMISES = {name: rule for name, rule in RULES.items() if rule.get("promise_output")}
TRAINS = {name: rule for name, rule in RULES.items() if rule.get("static_batch")}
FIRST = {name: rule for name, rule in RULES.items() if rule.get("prefill_first")}


def limits_under(policy: str, blocks: int, **changes: object) -> Limits:
    return limits_of(llama_on_h100(policy=policy, **changes), blocks)


def test_a_deployment_names_its_policy() -> None:
    assert limits_under("vllm", 100).reserve_full_prompt
    assert limits_under("sglang", 100).prefill_first
    assert limits_under("sglang", 100).keep_share
    old = limits_under("vllm_v0", 1000)
    assert (old.prefill_first, old.keep_share, old.watermark_blocks) == (True, False, 10)
    assert (policy_of("vllm", "0.7.3"), policy_of("vllm", "0.8"), policy_of("sglang", "0.5")) == (
        "vllm_v0", "vllm", "sglang",
    )  # fmt: skip
    assert limits_under("tensorrt_llm", 100).promise_output
    assert limits_under("tensorrt_llm_max_utilization", 100) == limits_under("vllm", 100, engine_version="0.18")
    assert limits_under("static", 100).static_batch
    with pytest.raises(
        DeploymentError, match="unknown policy 'orca'; known: vllm, vllm_priority, vllm_v0, sglang, tensorrt_llm, "
    ):
        limits_under("orca", 100)
    assert set(POLICIES) >= {"vllm", "sglang", "tensorrt_llm", "llama_cpp", "static"}


@given(cases(PROMISES))
@settings(max_examples=100)
def test_who_was_promised_room_is_never_preempted(case: Case) -> None:
    played = replay(case.table, case.limits, case.workload)
    assert played.requests.preemptions.sum() == 0
    assert played.ints[at.PROMISED] == 0


def test_a_promise_admits_as_many_as_fit_to_their_end() -> None:
    """Equal requests of 100 + 61 tokens, 10 blocks of 16 each: 57 blocks hold five, however short they are at first."""
    n = 40
    workload = Workload(np.zeros(n), np.full(n, 100), np.full(n, 61))
    table = affine_table(4096, 64)
    promise, current = (
        replay(table, Limits(64, 4096, 57, promise_output=promised), workload) for promised in (True, False)
    )
    assert promise.ints[at.BATCH_MAX] == 5
    assert current.ints[at.BATCH_MAX] == 8  # seven blocks each for the prompt
    assert current.requests.preemptions.sum() > 0 == promise.requests.preemptions.sum()


@given(cases(TRAINS))
@settings(max_examples=100)
def test_nobody_boards_a_running_train(case: Case) -> None:
    requests = replay(case.table, case.limits, case.workload).requests
    if requests.preemptions.sum():
        return  # who was thrown off boards the next one
    departures = np.unique(requests.scheduled)
    for leaves in departures:
        assert not ((requests.scheduled < leaves) & (requests.last > leaves)).any()


def test_a_newcomer_waits_half_a_train_on_average_and_one_at_worst() -> None:
    """Poisson arrivals at trains of constant duration that leave back to back (bulk service, no limit of seats)."""
    step, answer, n = 0.01, 50, 30_000
    rng = np.random.default_rng(0)
    workload = Workload(np.cumsum(rng.exponential(0.01, n)), np.ones(n, np.int64), np.full(n, answer))
    limits = Limits(1000, 8192, 100_000, static_batch=True, promise_output=True)
    requests = replay(constant_table(step, 8192, 1000), limits, workload).requests
    wait = (requests.scheduled - requests.arrival)[100:-100]
    assert wait.mean() == pytest.approx(step * answer / 2, rel=0.02)
    assert wait.max() <= step * answer + 1e-9
    mixed = replay(constant_table(step, 8192, 1000), replace(limits, static_batch=False), workload).requests
    assert (mixed.scheduled - mixed.arrival).max() <= step + 1e-9


def test_slots_are_an_erlang_queue() -> None:
    """M/M/c: eight slots, answers of geometrically many steps; mean wait C(c, a) S / (c - a) by Erlang's formula."""
    slots, load, steps, n = 8, 0.85, 40, 400_000
    rng = np.random.default_rng(1)
    offered = slots * load
    workload = Workload(
        np.cumsum(rng.exponential(steps / offered, n)), np.ones(n, np.int64), rng.geometric(1 / steps, n)
    )
    limits = limits_under("llama_cpp", 80_000, max_num_seqs=slots, max_num_batched_tokens=64)
    requests = replay(constant_table(1.0, 64, slots), limits, workload).requests
    top = offered**slots / factorial(slots) / (1 - load)
    busy = top / (sum(offered**k / factorial(k) for k in range(slots)) + top)
    # steps begin on a grid, so everybody waits half a step more
    assert (requests.scheduled - requests.arrival).mean() == pytest.approx(
        busy * steps / (slots - offered) + 0.5, rel=0.05
    )
    assert requests.preemptions.sum() == 0


def test_a_slot_has_an_equal_share_of_the_context() -> None:
    limits = limits_under("llama_cpp", 1000, max_num_seqs=4)
    check_fits(Workload(np.zeros(1), np.array([3990]), np.array([11])), limits)
    with pytest.raises(WorkloadError, match=r"need 251 KV blocks of 16 tokens; a slot has 250, an equal share"):
        check_fits(Workload(np.zeros(1), np.array([3990]), np.array([12])), limits)


@given(cases(FIRST))
@settings(max_examples=100)
def test_decoders_stand_still_while_a_prompt_is_computed(case: Case) -> None:
    """No step is mixed: each is a decode step of everybody or of prompts only, and no token comes from both."""
    played = replay(case.table, case.limits, case.workload)
    assert played.ints[at.FINISHED] == len(case.workload)
    assert played.ints[at.REMAINING] == played.ints[at.ASKED] == played.ints[at.NUM_JOINED] == 0
    assert played.histogram.sum() == (case.workload.output_tokens - 1).sum()
    assert played.floats[at.GAP_TOTAL] == pytest.approx((played.requests.last - played.requests.first).sum(), abs=1e-9)


def test_a_prompt_that_goes_first_delays_a_decoder_by_just_its_steps() -> None:
    table = affine_table(512, 4)
    workload = Workload(np.array([0.0, 0.2]), np.array([100, 1000]), np.array([100, 2]))
    limits = Limits(4, 512, 1000, prefill_first=True)
    requests = replay(table, limits, workload).requests
    alone = replay(table, limits, workload.take(slice(0, 1))).requests
    prompt = (
        table.cost(replace(Step.prefill(512), sampled=0)).seconds + table.cost(Step.prefill(488, cached=512)).seconds
    )
    both = table.cost(Step(2, 2, 2, 0)).seconds - table.cost(Step(1, 1, 1, 0)).seconds
    delay = requests.last[0] - alone.last[0]
    assert delay == pytest.approx(prompt + both, abs=2e-4)  # and one shared decode step, with its keys
    mixed = replay(table, replace(limits, prefill_first=False), workload).requests
    assert requests.first[1] < mixed.first[1]


def test_what_is_kept_free_prevents_most_retractions() -> None:
    """SGLang's share of answers against admission by what fits now: fewer requests lose their work."""
    workload = poisson(1500, 60.0, 300, 200)
    table = affine_table(2048, 256)
    kept, greedy = (
        int(
            replay(
                table, Limits(256, 2048, 1500, prefill_first=first, keep_share=first), workload
            ).requests.preemptions.sum()
        )
        for first in (True, False)
    )
    assert kept < greedy / 2


def test_vllm_before_v1_admits_what_sglang_keeps_room_for() -> None:
    """Long answers, room for half of them at their end: SGLang holds requests back, vLLM V0 admits and preempts."""
    n = 24
    asked = Workload(np.zeros(n), np.full(n, 100), np.full(n, 400))
    table = constant_table(0.01, 512, n)
    runs = {}
    for policy in ("vllm_v0", "sglang"):
        limits = limits_under(policy, 400, max_num_seqs=n, max_num_batched_tokens=512)
        runs[policy] = replay(table, limits, asked)
    first = {policy: float(np.nanmax(r.requests.first)) for policy, r in runs.items()}
    assert runs["vllm_v0"].requests.preemptions.sum() > runs["sglang"].requests.preemptions.sum()
    assert first["vllm_v0"] < first["sglang"]
