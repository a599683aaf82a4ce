from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gambrel.core.errors import InfeasiblePlan
from gambrel.core.slo import SLO
from gambrel.faces import api
from gambrel.plan import Space, plan
from gambrel.plan.safety import Safety
from gambrel.plan.search import search
from gambrel.plan.slower import Slower
from gambrel.plan.trial import Bench, judge
from test_plan_search import MODEL, chat, devices

SLOS = SLO.parse(["ttft.p95<=1s", "tpot.p95<=40ms"])
NARROW: dict[str, Any] = {"tp": (1,), "max_num_seqs": (64, 256), "max_num_batched_tokens": (512, 2048)}


def best(rate: float, *, slo: SLO = SLOS, **axes: Any) -> Any:
    space = Space(devices("l40s", "h100-sxm"), **NARROW, **axes)
    return search(MODEL, chat(300, rate), slo, space, api.pricer()).feasible[0].candidate


@settings(max_examples=6)
@given(rate=st.floats(2, 40), confidence=st.sampled_from([0.6, 0.8, 0.95]), spare=st.integers(0, 2))
def test_a_safe_plan_holds_with_spares_down_and_steps_at_the_quantile(
    rate: float, confidence: float, spare: int
) -> None:
    chosen = best(rate, confidence=confidence, spare=spare)
    cost_model = api.cost_model(chosen.deployment)
    slow = Slower(cost_model, Safety(confidence).factor(cost_model.spread))
    left = chosen.deployment.with_(replicas=chosen.deployment.replicas - spare)
    assert judge(left, Bench.of(slow), chat(300, rate), SLOS).candidate.feasible
    assert judge(chosen.deployment, Bench.of(cost_model), chat(300, rate), SLOS).candidate.feasible


def test_safety_is_never_cheaper() -> None:
    plain = best(25.0).usd_per_hour
    assert plain <= best(25.0, confidence=0.8).usd_per_hour <= best(25.0, confidence=0.95).usd_per_hour
    assert plain < best(25.0, spare=1).usd_per_hour


def test_the_prediction_itself_is_confidence_one_half() -> None:
    assert Safety().factor(0.3) == pytest.approx(1.0)
    assert Safety(0.8).factor(0.15) == pytest.approx(math.exp(0.8416212 * 0.15))
    assert not Safety().asked
    assert Safety(0.9, 2).words == "with 2 replicas down and with steps at their 90 % quantile"


def test_no_more_than_can_be_had() -> None:
    need = best(200.0)
    name, count = need.deployment.accelerator.name, need.deployment.num_gpus
    assert count > 1
    other = best(200.0, available={name: count - 1})
    d = other.deployment
    assert d.accelerator.name != name or d.num_gpus < count
    space = Space(devices("l40s"), **NARROW, available={"l40s": 1})
    with pytest.raises(InfeasiblePlan, match="allowed"):
        plan(MODEL, chat(20_000, 400.0), SLOS, space, api.pricer())
