"""Several kinds of traffic on one fleet: each keeps its own promises, and the search stays exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gambrel.core.deployment import Deployment
from gambrel.core.errors import GambrelError, SLOError, WorkloadError
from gambrel.core.slo import SLO, Objective
from gambrel.faces import api, offers
from gambrel.plan import Space, plan
from gambrel.plan.beginnings import Beginnings
from gambrel.plan.trial import Bench, judge
from gambrel.traffic import closed_loop, mixed, scale_load
from test_plan_search import MODEL, chat, devices


@given(seed=st.integers(0, 1000), n=st.integers(2, 60), m=st.integers(2, 60))
def test_mixing_keeps_every_request_and_whose_it_is(seed: int, n: int, m: int) -> None:
    logs = {"chat": chat(n, 4.0, seed), "code": chat(m, 9.0, seed + 1, 2000, 30)}
    both = mixed(logs)
    assert both.kinds == ("chat", "code")
    assert both.kind is not None
    for place, log in enumerate(logs.values()):
        rows = both.kind == place
        assert np.array_equal(both.prompt_tokens[rows], log.prompt_tokens)
        assert np.allclose(both.arrival_s[rows], log.arrival_s - log.arrival_s[0])
    more = scale_load(both, 2.0, seed=0)
    assert more.kind is not None
    assert np.bincount(more.kind).tolist() == [2 * n, 2 * m]


def test_kinds_share_no_prefixes() -> None:
    log = replace(
        chat(3), prefix_blocks=np.array([7, 8, 7, 8, 9]), prefix_offsets=np.array([0, 2, 4, 5]), prefix_block_tokens=16
    )
    both = mixed({"a": log, "b": log})
    assert both.prefix_blocks is not None
    assert both.prefix_offsets is not None
    assert len(np.unique(both.prefix_blocks)) == 6
    assert np.diff(both.prefix_offsets).tolist() == [2, 2, 2, 2, 1, 1]
    half = mixed({"a": log, "b": chat(3)})
    assert half.prefix_blocks is None
    assert any("prefix hashes are dropped" in w for w in half.warnings)


def test_an_objective_of_a_kind_reads_its_own_requests() -> None:
    assert Objective.parse("code:ttft.p95<=0.5s") == Objective("ttft", "p95", 0.5, "code")
    assert Objective.parse("code:ttft.p95<=0.5s").name == "code:ttft.p95"
    with pytest.raises(SLOError, match="pooled over all kinds"):
        Objective.parse("code:itl.p99<=0.1s")
    both = mixed({"chat": chat(60), "code": chat(60, 4.0, 1, 4000, 20)})
    deployment = Deployment(MODEL, api.accelerator("l40s"))
    run = Bench.of(api.cost_model(deployment)).run(deployment, both)
    assert both.kind is not None
    for place, name in enumerate(both.kinds):
        reached = Objective.parse(f"{name}:ttft.p95<=1s").reached(run)
        assert reached == pytest.approx(float(np.percentile(run.ttft_s[both.kind == place], 95)))
    with pytest.raises(SLOError, match="the traffic has no kind 'video'; it has chat, code"):
        Objective.parse("video:ttft.p95<=1s").reached(run)
    loose = SLO.parse(["chat:ttft.p95<=1min"])
    assert loose.goodput(run) == 1.0


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1000),
    rate=st.floats(2, 40),
    limit=st.floats(0.02, 3.0),
    statistic=st.sampled_from(["p50", "p95", "mean"]),
)
def test_a_beginning_never_fails_a_kind_that_the_whole_log_would_pass(
    seed: int, rate: float, limit: float, statistic: str
) -> None:
    both = mixed({"chat": chat(150, rate, seed), "code": chat(100, rate / 2, seed + 1, 3000, 20)})
    slo = SLO.parse([f"code:ttft.{statistic}<={limit}s", "chat:tpot.p95<=80ms"])
    deployment = Deployment(MODEL, api.accelerator("l40s"), max_num_batched_tokens=2048)
    bench = Bench.of(api.cost_model(deployment))
    early = Beginnings.of(both, slo).judge(deployment, bench)
    assert early.candidate.feasible == judge(deployment, bench, both, slo).candidate.feasible


def test_one_fleet_keeps_the_promises_made_to_both() -> None:
    both = mixed({"chat": chat(150, 6.0), "code": chat(120, 5.0, 1, 2500, 20)})
    slo = SLO.parse(["chat:tpot.p95<=60ms", "code:ttft.p95<=900ms"])
    space = Space(devices("l40s", "h100-sxm"), tp=(1,), kv=("bf16",))
    answer = plan(MODEL, both, slo, space, api.pricer())
    assert {v.objective.name for v in answer.chosen.verdicts} == {"chat:tpot.p95", "code:ttft.p95"}
    assert answer.chosen.feasible
    assert {"chat:tpot.p95", "code:ttft.p95"} <= set(answer.breaks_at)


def test_what_cannot_be_mixed_says_why() -> None:
    with pytest.raises(WorkloadError, match="chat: kinds of traffic are mixed by their arrival times"):
        mixed({"chat": closed_loop(3, 100, 10)})
    with pytest.raises(GambrelError, match="--mix must be NAME=FILE"):
        offers.mix(["chat.csv"])
    assert offers.mix([]) is None
    both = offers.mix(["chat=chat:rate=5,n=50", "code=code:rate=5,n=50"])
    assert both is not None
    assert len(both) == 100
