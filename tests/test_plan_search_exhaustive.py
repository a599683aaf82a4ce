"""The search against the simulation of everything: the choice, and each simulation that was cut short."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gambrel.core.deployment import Deployment
from gambrel.core.slo import SLO
from gambrel.faces import api
from gambrel.plan import Space
from gambrel.plan.beginnings import Beginnings, too_many
from gambrel.plan.safety import Safety
from gambrel.plan.search import search
from gambrel.plan.trial import Bench, judge
from test_plan_search import MODEL, chat, devices

if TYPE_CHECKING:
    from gambrel.core.workload import Workload

MOST = 8
"""Replicas tried by the exhaustive search."""


def cheapest(workload: Workload, slo: SLO, space: Space) -> float:
    """Dollars per hour of the cheapest that holds, by simulating every candidate."""
    best = math.inf
    for shape in space.shapes(MODEL):
        for seqs, tokens in itertools.product(space.max_num_seqs, space.max_num_batched_tokens):
            if tokens < seqs:
                continue
            deployment = shape.with_(max_num_seqs=seqs, max_num_batched_tokens=tokens)
            cost_model = api.cost_model(deployment)
            if cost_model.memory().kv_tokens < int((workload.prompt_tokens + workload.output_tokens).max()):
                continue
            bench = Bench.of(cost_model, space.safety)
            for replicas in range(1, MOST // shape.gpus_per_replica + 1):
                fleet = deployment.with_(replicas=replicas)
                if fleet.usd_per_hour is not None and fleet.usd_per_hour < best:
                    best = fleet.usd_per_hour if judge(fleet, bench, workload, slo).candidate.feasible else best
    return best


objective = st.one_of(
    st.tuples(st.sampled_from(["ttft.p50", "ttft.p95", "ttft.p99", "ttft.mean"]), st.floats(0.03, 3.0)),
    st.tuples(st.sampled_from(["tpot.p50", "tpot.p95", "tpot.max"]), st.floats(0.008, 0.12)),
    st.tuples(st.sampled_from(["e2e.p95", "e2e.mean"]), st.floats(1.0, 20.0)),
    st.tuples(st.sampled_from(["itl.p99"]), st.floats(0.02, 0.4)),
)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10_000),
    rate=st.floats(1.0, 60.0),
    prompt=st.sampled_from([150.0, 600.0, 2500.0]),
    output=st.sampled_from([40.0, 120.0]),
    gpus=st.sets(st.sampled_from(["l4", "a10g", "l40s", "rtx-6000-ada", "h100-sxm"]), min_size=1, max_size=3),
    tp=st.sampled_from([(1,), (1, 2)]),
    seqs=st.sets(st.sampled_from([8, 32, 128, 512]), min_size=1, max_size=2),
    tokens=st.sets(st.sampled_from([512, 1024, 4096, 16384]), min_size=1, max_size=2),
    wanted=st.lists(objective, min_size=1, max_size=2),
    spare=st.sampled_from([0, 0, 0, 1]),
    floor=st.sampled_from([None, 0.5, 0.9, 0.99]),
)  # fmt: skip
def test_the_choice_is_at_most_two_per_cent_dearer_than_exhaustive_search(
    seed: int, rate: float, prompt: float, output: float, gpus: set[str], tp: tuple[int, ...], seqs: set[int],
    tokens: set[int], wanted: list[tuple[str, float]], spare: int, floor: float | None,
) -> None:  # fmt: skip
    workload = chat(160, rate, seed, prompt, output)
    joint = [] if floor is None else [f"goodput>={floor}"]
    slo = SLO.parse([*(f"{name}<={limit}s" for name, limit in wanted), *joint])
    space = Space(
        devices(*sorted(gpus)),
        tp=tp,
        max_num_seqs=tuple(sorted(seqs)),
        max_num_batched_tokens=tuple(sorted(tokens)),
        max_gpus=MOST,
        spare=spare,
    )
    found = search(MODEL, workload, slo, space, api.pricer()).best[0]
    truth = cheapest(workload, slo, space)
    assert found == truth == math.inf or found <= 1.02 * truth


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(64, 400),
    rate=st.floats(0.5, 80.0),
    gpu=st.sampled_from(["l4", "l40s", "h100-sxm"]),
    policy=st.sampled_from(["vllm", "sglang", "tensorrt_llm", "static"]),
    routing=st.sampled_from(["round_robin", "least_outstanding", "power_of_two"]),
    replicas=st.integers(1, 4),
    seqs=st.sampled_from([4, 32, 256]),
    limit=st.floats(0.01, 5.0),
    metric=st.sampled_from(["ttft", "tpot", "e2e", "queue"]),
    statistic=st.sampled_from(["mean", "p50", "p90", "p95", "p99", "max"]),
    safety=st.sampled_from([Safety(), Safety(0.9), Safety(0.5, 1)]),
)
def test_a_beginning_never_fails_what_the_whole_log_would_pass(
    seed: int, n: int, rate: float, gpu: str, policy: str, routing: str, replicas: int, seqs: int, limit: float,
    metric: str, statistic: str, safety: Safety,
) -> None:  # fmt: skip
    workload = chat(n, rate, seed)
    deployment = Deployment(
        MODEL, api.accelerator(gpu), weights="int8", replicas=replicas, max_num_seqs=seqs, policy=policy,
        routing=routing, max_num_batched_tokens=4096,
    )  # fmt: skip
    slo = SLO.parse([f"{metric}.{statistic}<={limit if metric != 'tpot' else limit / 20}s"])
    bench = Bench.of(api.cost_model(deployment), safety)
    early = Beginnings.of(workload, slo).judge(deployment, bench)
    full = judge(deployment, bench, workload, slo)
    assert early.candidate.feasible == full.candidate.feasible
    if early.share == 1.0:
        assert early.candidate.verdicts == full.candidate.verdicts


@settings(max_examples=200)
@given(
    values=st.lists(st.floats(0, 10), min_size=1, max_size=200),
    limit=st.floats(0, 10),
    statistic=st.sampled_from(["p50", "p90", "p95", "p99", "max"]),
)
def test_too_many_over_a_limit_put_the_percentile_above_it(values: list[float], limit: float, statistic: str) -> None:
    reached = max(values) if statistic == "max" else float(np.percentile(values, float(statistic[1:])))
    if sum(v > limit for v in values) >= too_many(statistic, len(values)):
        assert reached > limit
