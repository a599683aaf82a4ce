"""The public door: errors that name the row, the engine version's admission rule, and a real cost model behind it."""

from __future__ import annotations

import numpy as np
import pytest

from cost_factory import llama_on_h100
from engine_cases import affine_table, poisson
from gambrel.core.efficiency import ideal
from gambrel.core.errors import DeploymentError, WorkloadError
from gambrel.core.run import Histogram
from gambrel.core.step import Step
from gambrel.core.workload import Workload
from gambrel.cost import Roofline
from gambrel.engine import Limits, check_fits, limits_of, max_request_tokens, replay, simulate


def lengths(*rows: tuple[int, int]) -> Workload:
    prompt, output = np.array(rows).T
    return Workload(np.zeros(len(rows)), prompt, output, name="three rows")


def test_a_request_that_never_fits_is_refused_with_its_place() -> None:
    workload = lengths((10, 10), (900, 101), (50, 20))
    check_fits(workload, Limits(4, 64, 63, 16))  # the last token is never cached: 1000 tokens, 63 blocks
    with pytest.raises(WorkloadError, match=r"request 2 in order of arrival has 900 prompt and 101 .* 63 KV .* has 62"):
        check_fits(workload, Limits(4, 64, 62, 16))
    with pytest.raises(WorkloadError, match=r"three rows: request 2 .* 1001 in all, more than max_model_len 1000"):
        check_fits(workload, Limits(4, 64, 63, 16), 1000)
    with pytest.raises(WorkloadError, match=r"request 2 .* more than max_num_batched_tokens 64, .* chunked prefill"):
        check_fits(workload, Limits(4, 64, 63, 16, chunked_prefill=False))
    assert max_request_tokens(workload) == 1000


def test_limits_that_vllm_refuses() -> None:
    with pytest.raises(DeploymentError, match=r"max_num_batched_tokens \(128\) must be at least max_num_seqs \(256\)"):
        limits_of(llama_on_h100(max_num_batched_tokens=128), 100)
    with pytest.raises(DeploymentError, match="no memory is left for KV blocks"):
        limits_of(llama_on_h100(), 0)


@pytest.mark.parametrize(
    ("version", "reserves"), [("0.11", False), ("0.18.1", False), ("0.19", True), ("v0.20.0rc1", True), ("main", True)]
)
def test_admission_follows_the_engine_version(version: str, reserves: bool) -> None:
    assert limits_of(llama_on_h100(engine_version=version), 100).reserve_full_prompt is reserves


def test_reserving_the_prompt_ends_the_thrashing() -> None:
    """The case vLLM changed its default for: long prompts admitted by their first chunk evict each other."""
    workload = lengths(*[(1600, 40)] * 12)
    table = affine_table(256, 16)
    evictions = [
        int(replay(table, Limits(16, 256, 256, 16, True, reserve), workload).requests.preemptions.sum())
        for reserve in (False, True)
    ]
    assert evictions[0] > evictions[1]


def test_a_watermark_keeps_blocks_free_at_admission() -> None:
    workload = lengths(*[(160, 20)] * 8)
    table = affine_table(2048, 16)
    used = [replay(table, Limits(16, 2048, 40, 16, True, True, mark), workload).requests for mark in (0, 12)]
    assert used[1].preemptions.sum() < used[0].preemptions.sum()


def test_without_chunking_a_prompt_is_admitted_whole_or_not_at_all() -> None:
    late = Workload(np.array([0.0, 0.001]), np.array([10, 90]), np.array([50, 1]))
    served = {
        (chunked, budget): replay(affine_table(budget, 4), Limits(4, budget, 100, 16, chunked), late).requests
        for chunked in (True, False)
        for budget in (91, 90)
    }
    for chunked, budget in ((True, 91), (True, 90), (False, 91)):
        assert served[chunked, budget].scheduled[1] < served[chunked, budget].last[0]
    # 90 tokens and one decoder do not fit a budget of 90: the prompt waits until the replica is idle
    assert served[False, 90].scheduled[1] == served[False, 90].last[0]


def test_the_roofline_drives_the_engine() -> None:
    deployment = llama_on_h100(replicas=2)
    model = Roofline(deployment, ideal())
    workload = poisson(600, 30.0, 500, 100)
    run = simulate(deployment, model, workload)
    naive = simulate(deployment, model, workload, oracle=True)
    assert run.last_token_s.tobytes() == naive.last_token_s.tobytes()
    assert run.replicas == 2
    assert run.basis == model.basis
    assert np.array_equal(run.prompt_tokens, workload.prompt_tokens)
    assert run.part_s.shape == run.bound_by_s.shape == (5,)
    assert sum(run.time_bound_by().values()) == pytest.approx(1.0)
    assert 0 < run.kv_usage_mean <= run.kv_usage_max <= 1
    assert 1 <= run.batch_mean <= run.batch_max <= 256
    assert 0 < run.prefill_s < run.busy_s
    assert run.utilisation <= 1
    # physics: no gap between tokens is shorter than the cheapest decode step
    floor = model.step_cost(Step.decode(1, 2)).seconds
    assert run.itl.edges[1] >= floor
    assert float(np.nanmin(run.tpot_s)) >= floor * (1 - 1e-9)
    # the sum over two equal replicas equals the replay of each
    assert run.series is not None
    assert run.series.running.max() <= 2 * 256


def test_a_run_without_gaps_has_an_empty_histogram() -> None:
    run = simulate(llama_on_h100(), Roofline(llama_on_h100(), ideal()), lengths((10, 1), (20, 1)), series=False)
    assert isinstance(run.itl, Histogram)
    assert run.distribution("itl").count == 0
    assert run.series is None


def test_the_compiled_cache_notices_a_changed_part() -> None:
    from gambrel.engine.compiled import digest

    def one(x: float) -> float:
        return x + 1.0

    def two(x: float) -> float:
        return x + 2.0

    assert digest(one) == digest(one)
    assert len({digest(one), digest(two), digest(one, two)}) == 3
