from __future__ import annotations

import json
import math
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gambrel.core.errors import DeploymentError
from gambrel.core.slo import SLO
from gambrel.core.workload import Workload
from gambrel.faces import api, plan_outputs
from gambrel.plan import Space, plan
from gambrel.plan.check import check_plan
from gambrel.plan.file import Asked, Figures, PlanFile, busiest_minute, plan_file, read_plan_file
from gambrel.plan.toml_text import toml_text
from gambrel.traffic import closed_loop, scale_load

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
SLOS = ("ttft.p95<=1s", "tpot.p95<=50ms")


def chat(n: int = 500, rate: float = 6.0, seed: int = 0) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        arrival_s=np.cumsum(rng.exponential(1 / rate, n)),
        prompt_tokens=np.maximum(1, rng.lognormal(6.3, 0.7, n)).astype(np.int64),
        output_tokens=np.maximum(1, rng.lognormal(4.8, 0.6, n)).astype(np.int64),
        name="chat",
    )


def made(workload: Workload, **axes: Any) -> PlanFile:
    space = Space((api.accelerator("l40s"), api.accelerator("h100-sxm")), tp=(1, 2), **axes)
    found = plan(api.model(MODEL), workload, SLO.parse(SLOS), space, api.pricer())
    asked = Asked(MODEL, "", list(SLOS), confidence=space.confidence, spare=space.spare)
    return plan_file(found, asked, workload)


@pytest.fixture(scope="module")
def file() -> PlanFile:
    return made(chat())


KEYS = st.text(min_size=1, max_size=8)
SCALARS = st.one_of(st.text(), st.integers(-(2**60), 2**60), st.floats(), st.booleans())
TREES = st.recursive(
    st.one_of(SCALARS, st.lists(SCALARS, max_size=3)),
    lambda inner: st.one_of(
        st.dictionaries(KEYS, inner, max_size=4),
        st.lists(st.dictionaries(KEYS, inner, max_size=3), min_size=1, max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=50)
@given(st.dictionaries(KEYS, TREES, max_size=5))
def test_what_is_written_as_toml_is_read_back(document: dict[str, Any]) -> None:
    assert repr(tomllib.loads(toml_text(document))) == repr(ordered(document))


def ordered(value: Any) -> Any:
    """Scalars before tables, as TOML must have them."""
    if not isinstance(value, dict):
        return [ordered(v) for v in value] if isinstance(value, list) else value

    def table(v: Any) -> bool:
        return isinstance(v, dict) or (isinstance(v, list) and bool(v) and all(isinstance(x, dict) for x in v))

    return {k: ordered(v) for k, v in sorted(value.items(), key=lambda item: table(item[1]))}


def test_none_is_left_out_of_toml_and_strange_things_are_refused() -> None:
    assert toml_text({"a": None, "b": 1}) == "b = 1\n"
    with pytest.raises(TypeError, match="complex"):
        toml_text({"a": 1j})


@pytest.mark.parametrize("as_json", [False, True])
def test_a_plan_file_reads_back_as_itself(file: PlanFile, as_json: bool) -> None:
    assert read_plan_file(file.text(as_json=as_json).encode(), "plan") == file


@given(st.binary(max_size=200))
def test_random_bytes_are_no_plan_file(data: bytes) -> None:
    with pytest.raises(DeploymentError, match="not a plan file"):
        read_plan_file(data, "plan.toml")


def test_a_later_format_and_unknown_settings_are_refused(file: PlanFile) -> None:
    with pytest.raises(DeploymentError, match="gambrel-plan-9"):
        read_plan_file(file.text().replace("gambrel-plan-1", "gambrel-plan-9").encode(), "plan.toml")
    strange = read_plan_file(file.text().replace("routing =", "rooting =").encode(), "plan.toml")
    with pytest.raises(DeploymentError, match="rooting"):
        strange.settled(api.model(MODEL), api.accelerator("l40s"))


@given(st.floats(1e-6, 1e6, allow_subnormal=False))
def test_an_objective_survives_the_file_exactly(limit: float) -> None:
    (objective,) = SLO.parse([f"ttft.p95<={limit!r}s"]).objectives
    assert SLO.parse([str(objective)]).objectives == (objective,)


def test_the_file_settles_to_the_deployment_that_was_chosen(file: PlanFile) -> None:
    deployment = plan_outputs.settled(file)
    assert deployment.label == file.label
    assert file.price is not None
    assert deployment.usd_per_hour == pytest.approx(file.price.usd_per_hour)


def test_a_plan_holds_on_its_own_log_with_the_same_figures(file: PlanFile) -> None:
    check = check_plan(file, plan_outputs.settled(file), chat(), api.pricer())
    assert check.holds
    assert check.carries >= 1.0
    assert not any(d.notable for d in check.drift)
    for v in check.verdicts:
        assert v.reached == pytest.approx(check.was[v.objective.name], rel=1e-5)


def test_a_plan_breaks_where_it_said_it_would_and_says_what_would_hold(file: PlanFile) -> None:
    deployment = plan_outputs.settled(file)
    assert file.breaks_at is not None
    below = check_plan(file, deployment, scale_load(chat(), file.breaks_at), api.pricer())
    assert below.holds
    above = check_plan(file, deployment, scale_load(chat(), 1.4 * file.breaks_at), api.pricer())
    assert not above.holds
    assert above.carries < 1.0
    assert any("limit" in text for text in above.broken)
    assert above.needs is not None
    assert above.needs.feasible
    assert above.needs.deployment.replicas > deployment.replicas
    rate = next(d for d in above.drift if d.name.startswith("rate"))
    assert rate.notable
    assert rate.change == pytest.approx(1.4 * file.breaks_at - 1, rel=0.1)


def test_a_log_that_does_not_fit_breaks_the_plan_with_the_tokens(file: PlanFile) -> None:
    long = Workload(np.zeros(1), np.array([10_000_000]), np.array([10]))
    check = check_plan(file, plan_outputs.settled(file), long, api.pricer())
    assert not check.holds
    assert "10,000,010" in check.broken[0]
    assert math.isnan(check.carries)


def test_users_are_kept_as_users() -> None:
    workload = closed_loop(3, 2000, 100)
    kept = Figures.of(workload)
    assert kept.users == 3
    assert kept.rate_rps is None
    file = made(workload)
    assert check_plan(file, plan_outputs.settled(file), workload, api.pricer()).holds
    more = check_plan(file, plan_outputs.settled(file), closed_loop(5000, 2000, 100, rounds=1), api.pricer())
    assert not more.holds
    assert any(d.name == "users" and d.notable for d in more.drift)


def test_busiest_minute_counts_full_minutes() -> None:
    at = np.concatenate([np.linspace(0, 59, 30), np.linspace(60, 119, 90), [150.0]])
    workload = Workload(at, np.ones(len(at), np.int64), np.ones(len(at), np.int64))
    assert busiest_minute(workload) == pytest.approx(90 / 60)
    assert busiest_minute(workload.take(slice(0, 20))) is None


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    from gambrel.faces.cli import main

    monkeypatch.setattr(sys, "argv", ["gambrel", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_the_command_writes_checks_and_alarms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "plans" / "plan.json")
    ask = ["plan", "-m", MODEL, "-w", "chat:rate=6,n=400", "--gpu", "l40s", *(w for o in SLOS for w in ("--slo", o))]
    assert run(monkeypatch, capsys, *ask, "--out", target)[0] == 0
    assert json.loads(Path(target).read_text(encoding="utf-8"))["format"] == "gambrel-plan-1"
    status, out, _ = run(monkeypatch, capsys, "plan", "--check", target)
    assert status == 0
    assert "the plan holds" in out
    other = ["-m", "Qwen/Qwen3-8B", "-g", "h100-sxm", "--slo", "ttft.p95<=1ms", "--tp", "1"]
    status, out, err = run(monkeypatch, capsys, "plan", "--check", target, *other)
    assert (status, out) == (2, "")
    assert "not --model, --slo, --gpu, --tp;" in err
    odd, named = tmp_path / "odd.csv", ["--column", "arrival_s=a", "--column", "prompt_tokens=b"]
    odd.write_text("a,b,output_tokens\n" + "".join(f"{i},{100 + i},{20 + i}\n" for i in range(30)))
    status, out, _ = run(monkeypatch, capsys, "plan", "--check", target, "-w", str(odd), *named)
    assert status == 0
    assert "the plan holds" in out
    status, out, err = run(monkeypatch, capsys, "plan", "--check", target, *named)
    assert (status, out) == (2, "")
    assert "it goes with --workload" in err
    heavier = ["plan", "--check", target, "--workload", "chat:rate=60,n=1500"]
    status, out, _ = run(monkeypatch, capsys, *heavier, "--json")
    assert status == 1
    document = json.loads(out)
    assert document["holds"] is False
    assert document["broken"]
    assert document["needs"]["replicas"] > 1
    status, out, err = run(monkeypatch, capsys, "plan", "--check", str(tmp_path / "none.toml"))
    assert status == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [["--available", "h100-sxm"], ["--confidence", "0.2"], ["--spare", "-1"]])
def test_what_cannot_be_asked_is_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["plan", "-m", MODEL, "-w", "chat:rate=2,n=50", "--gpu", "l40s", "--slo", "ttft.p95<=1s", *words]
    status, _, err = run(monkeypatch, capsys, *ask)
    assert status == 2
    assert len([line for line in err.splitlines() if not line.startswith("note:")]) == 1
