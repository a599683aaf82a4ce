from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gambrel.core.deployment import Deployment
from gambrel.core.errors import DeploymentError
from gambrel.core.slo import SLO
from gambrel.core.workload import Workload
from gambrel.faces import api
from gambrel.faces.advise_commands import advice_tables
from gambrel.plan.advice import advise
from gambrel.plan.search import Bench, judge
from test_plan_file import run
from test_plan_search import MODEL, chat

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.plan.advice import Advice

SLOS = SLO.parse(["ttft.p95<=1s", "tpot.p95<=50ms"])


def on(replicas: int, rate: float, change: Callable[[Workload], Workload] = lambda w: w, **settings: int) -> Advice:
    deployment = Deployment(MODEL, api.accelerator("l40s"), replicas=replicas, **settings)  # type: ignore[arg-type]  # whole numbers all
    return advise(deployment, change(chat(400, rate)), SLOS, api.pricer())


def test_too_many_replicas_are_said_to_be_too_many() -> None:
    found = on(5, 5.0)
    assert found.candidate.feasible
    assert found.fewer is not None
    smaller = found.fewer.deployment
    assert smaller.replicas < 5
    assert found.change.startswith(f"{smaller.replicas} instead of 5 replicas")
    assert judge(smaller, Bench.of(api.cost_model(smaller)), chat(400, 5.0), SLOS).candidate.feasible


def test_an_overloaded_deployment_is_told_the_cheapest_change_that_holds() -> None:
    found = on(1, 14.0)
    assert not found.candidate.feasible
    assert found.carries < 1.0
    assert found.fewer is None
    assert any(fix.meets_slo for fix in found.fixes)
    assert found.change.startswith(next(fix.change for fix in found.fixes if fix.meets_slo))


def test_a_hopeless_one_is_told_to_plan_anew() -> None:
    assert "lan anew" in on(1, 200.0).change


def test_what_binds_is_named() -> None:
    assert "max_num_seqs 4 is reached" in on(1, 8.0, max_num_seqs=4).binds
    assert "weights" in on(1, 0.5).binds


def test_the_log_speaks_where_it_can() -> None:
    found = on(2, 5.0, lambda w: replace(w, service_s=np.full(len(w), 60.0)))
    assert found.logged_e2e_p50_s == 60.0
    rows = advice_tables(found)
    assert rows


def test_a_request_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DeploymentError, match="longest request"):
        advise(
            Deployment(MODEL, api.accelerator("l4")),
            Workload(np.zeros(1), np.array([5_000_000]), np.array([5])),
            SLOS,
            api.pricer(),
        )


def test_the_command_exits_by_what_it_finds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["advise", "-m", "meta-llama/Llama-3.1-8B-Instruct", "-g", "l40s", "--slo", "ttft.p95<=1s", "--json"]
    status, out, _ = run(monkeypatch, capsys, *ask, "-w", "chat:rate=2,n=200")
    assert status == 0
    document = json.loads(out)
    assert document["holds"] is True
    assert document["change"]
    status, out, _ = run(monkeypatch, capsys, *ask, "-w", "chat:rate=60,n=400")
    assert status == 1
    assert json.loads(out)["holds"] is False
