from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gambrel.core.errors import DoesNotFit, InfeasiblePlan
from gambrel.core.slo import SLO, Objective
from gambrel.faces import api
from gambrel.plan import Space, plan
from gambrel.plan.relax import rounded_up
from gambrel.plan.trial import Bench, judge
from test_plan_file import run
from test_plan_search import MODEL, chat, devices

FEW: dict[str, Any] = {"pp": (1,), "max_num_seqs": (256,), "max_num_batched_tokens": (512, 2048)}
"""Axes that these tests are not about."""

if TYPE_CHECKING:
    from gambrel.core.model import Model
    from gambrel.core.plan import Relaxation
    from gambrel.core.workload import Workload


def refused(asked: SLO, space: Space, log: Workload, model: Model = MODEL) -> tuple[str, tuple[Relaxation, ...]]:
    with pytest.raises((InfeasiblePlan, DoesNotFit)) as caught:
        plan(model, log, asked, space, api.pricer())
    assert isinstance(caught.value, (InfeasiblePlan, DoesNotFit))
    return str(caught.value), caught.value.relaxations


@given(st.floats(1e-4, 1e4))
def test_a_rounded_limit_is_never_below_and_hardly_above(value: float) -> None:
    limit = Objective.parse(f"ttft.p95<={rounded_up(value)}").limit
    assert value * (1 - 1e-6) <= limit <= 1.11 * value


def test_a_limit_below_every_floor_is_relaxed_to_what_holds() -> None:
    log, space = chat(200, 5.0), Space(devices("l4", "l40s"), tp=(1,), **FEW)
    reason, found = refused(SLO.parse(["tpot.p95<=1ms"]), space, log)
    assert "tpot.p95" in reason
    first = found[0]
    assert "below the floor of every candidate" in first.because
    assert first.deployment is not None
    asked = SLO.parse([re.findall(r"'([^']+)'", first.change)[0]])
    again = judge(first.deployment, Bench.of(api.cost_model(first.deployment)), log, asked)
    assert again.candidate.feasible
    assert plan(MODEL, log, asked, space, api.pricer()).chosen.usd_per_hour <= (first.usd_per_hour or 0) + 1e-9


def test_too_few_accelerators_are_counted() -> None:
    space = Space(devices("l40s"), tp=(1,), available={"l40s": 1}, **FEW)
    _, found = refused(SLO.parse(["ttft.p95<=1s", "tpot.p95<=50ms"]), space, chat(600, 40.0))
    d = found[0].deployment
    assert d is not None
    assert found[0].change == f"--available l40s={d.num_gpus}"
    assert found[0].because == f"l40s=1 is too few: it takes {d.num_gpus}"
    assert any("of the load" in r.change for r in found)


def test_what_can_be_had_counts_the_prefill_pool() -> None:
    axes = {"prefill_replicas": (1,), "prefill_tp": (2,), "kv_link_bytes_per_s": (25e9,)}
    space = Space(devices("l40s"), tp=(1,), max_gpus=3, axes=axes, **FEW)
    log = chat(600, 40.0, prompt=150, output=300)
    _, found = refused(SLO.parse(["ttft.p95<=1s", "tpot.p95<=40ms"]), space, log)
    assert found[0].change.startswith("--max-gpus ")
    (part,) = (r.deployment for r in found if "of the load" in r.change)
    assert part is not None
    assert part.num_gpus == 3


def test_spares_that_cannot_be_had_are_given_up() -> None:
    space = Space(devices("l40s"), tp=(1,), max_gpus=1, spare=1, **FEW)
    _, found = refused(SLO.parse(["ttft.p95<=2s"]), space, chat(200, 2.0))
    assert {"--max-gpus 2", "--spare 0"} <= {r.change for r in found}


def test_objectives_that_contradict_each_other_are_relaxed_one_at_a_time() -> None:
    space = Space(devices("l40s"), tp=(1, 2), **FEW)
    _, found = refused(SLO.parse(["ttft.p95<=60ms", "tpot.p95<=13ms"]), space, chat(300, 6.0))
    assert found
    for r in found:
        assert r.change.count("--slo") == 1
        assert r.deployment is not None


def test_a_model_that_does_not_fit_is_told_what_would() -> None:
    big = api.model("meta-llama/Llama-3.3-70B-Instruct")
    space = Space(devices("l40s"), tp=(1,), **FEW)
    _, found = refused(SLO.parse(["ttft.p95<=5s"]), space, chat(100, 1.0), big)
    assert found[0].change == "--gpu l40s --tp 2"
    assert any("--weights int4" in r.change for r in found)
    longest = int((chat(100, 1.0).prompt_tokens + chat(100, 1.0).output_tokens).max())
    for r in found:
        assert r.deployment is not None
        assert api.cost_model(r.deployment).memory().kv_tokens >= longest


def test_the_command_answers_with_one_block_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["plan", "-m", MODEL.name, "-w", "chat:rate=2,n=100", "--gpu", "l40s", "--tp", "1", "--slo", "tpot.p95<=1ms"]
    status, out, talk = run(monkeypatch, capsys, *ask, "--json")
    assert status == 1
    assert "tpot.p95" in talk
    assert talk.count("\n") == 1
    document = json.loads(out)
    assert document["feasible"] is False
    assert document["relaxations"][0]["change"].startswith("--slo 'tpot.p95<=")
    status, out, _ = run(monkeypatch, capsys, *ask)
    assert status == 1
    assert "what would hold instead" in out
