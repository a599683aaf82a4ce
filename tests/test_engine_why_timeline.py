"""A window of a run step by step: it says what the run says, and its Chrome trace is one that viewers can read."""

from __future__ import annotations

import gzip
import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_factory import llama_on_h100
from engine_cases import poisson
from gambrel.core.efficiency import ideal
from gambrel.core.errors import DeploymentError, ReportError
from gambrel.core.step import CAUSES
from gambrel.core.timeline import PHASES, Timeline
from gambrel.cost import Roofline
from gambrel.engine import simulate, timeline
from gambrel.report import write_chrome_trace

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run
    from gambrel.core.workload import Workload

SETTINGS: list[dict[str, Any]] = [
    {},
    {"replicas": 3, "routing": "least_outstanding"},
    {"policy": "sglang"},
    {"policy": "vllm_priority"},
    {"draft_tokens": 2, "acceptance": 0.5},
]


def deployed(**settings: Any) -> tuple[Deployment, Roofline]:
    """Few blocks, so that there are preemptions: an H100 that may use just over what the weights take."""
    deployment = llama_on_h100(max_num_seqs=32, max_num_batched_tokens=512, gpu_memory_utilization=0.205, **settings)
    return deployment, Roofline(deployment, ideal())


def workload(n: int = 150, rate: float = 40.0) -> Workload:
    drawn = poisson(n, rate, 300, 150)
    return replace(drawn, priority=np.arange(n) % 3)


def recorded(begin_s: float, end_s: float, **settings: Any) -> tuple[Timeline, Run]:
    deployment, cost_model = deployed(**settings)
    asked = workload()
    run = simulate(deployment, cost_model, asked)
    return timeline(deployment, cost_model, asked, run, begin_s, end_s), run


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_whole_run_in_a_window_says_what_the_run_says(settings: dict[str, Any]) -> None:
    found, run = recorded(0.0, 1e6, **settings)
    steps, phases = found.steps, found.phases
    assert len(steps) == run.num_steps
    assert steps.seconds.sum() == pytest.approx(run.busy_s)
    by_cause = np.bincount(steps.cause, steps.seconds, len(CAUSES))
    np.testing.assert_allclose(by_cause, run.bound_by_s, atol=1e-9)
    batch = steps.decodes + steps.prompts
    assert batch.max() == run.batch_max
    assert (batch * steps.seconds).sum() / run.busy_s == pytest.approx(run.batch_mean)
    assert steps.kv_blocks.max() / found.num_kv_blocks == pytest.approx(run.kv_usage_max)
    assert (steps.waiting >= 0).all()
    if "draft_tokens" not in settings:
        computed = run.prompt_tokens.sum() + run.output_tokens.sum() - len(run)
        assert (steps.tokens.sum() > computed) == (run.num_preemptions > 0)  # evictions compute some again
    # the phases of every request add up to those of the run
    for k, (name, seconds) in enumerate(run.phases_s().items()):
        mine = phases.phase == k
        total = np.bincount(phases.request[mine], (phases.end_s - phases.start_s)[mine], len(run))
        np.testing.assert_allclose(total, seconds, atol=1e-5, err_msg=name)  # the run keeps pauses as float32
    assert np.array_equal(run.replica[phases.request], phases.replica)


@given(st.floats(0.0, 5.0), st.floats(0.01, 5.0))
@settings(max_examples=25, deadline=None)
def test_a_window_is_a_part_of_the_whole(begin_s: float, length_s: float) -> None:
    end_s = begin_s + length_s
    deployment, cost_model = deployed()
    asked = workload()
    run = simulate(deployment, cost_model, asked)
    whole = timeline(deployment, cost_model, asked, run, 0.0, 1e6)
    if run.arrival_s.min() > end_s:
        return
    part = timeline(deployment, cost_model, asked, run, begin_s, end_s)
    inside = (whole.steps.start_s < end_s) & (whole.steps.start_s + whole.steps.seconds > begin_s)
    for name in ("start_s", "seconds", "decodes", "tokens", "cause", "running", "waiting", "kv_blocks"):
        assert np.array_equal(getattr(part.steps, name), getattr(whole.steps, name)[inside]), name
    touching = (whole.phases.start_s < end_s) & (whole.phases.end_s > begin_s)
    assert np.array_equal(part.phases.request, whole.phases.request[touching])
    assert np.array_equal(part.phases.phase, whole.phases.phase[touching])
    assert np.array_equal(part.phases.start_s, whole.phases.start_s[touching])


def test_clients_that_give_up_end_there() -> None:
    deployment, cost_model = deployed()
    asked = replace(workload(rate=100.0), deadline_s=np.full(150, 2.0))
    run = simulate(deployment, cost_model, asked)
    found = timeline(deployment, cost_model, asked, run, 0.0, 1e3)
    gone = np.unique(found.phases.request[found.phases.gave_up == 1])
    assert np.array_equal(gone, np.flatnonzero(~np.isfinite(run.last_token_s)))
    assert len(gone) == run.num_unfinished > 0


def test_a_closed_loop_is_recorded_as_it_was_made() -> None:
    deployment, cost_model = deployed()
    asked = replace(workload(), arrival_s=np.zeros(150), closed_loop=8, think_s=np.full(150, 0.1))
    run = simulate(deployment, cost_model, asked)
    found = timeline(deployment, cost_model, asked, run, 0.0, 1e6)
    assert len(found.steps) == run.num_steps
    assert (found.steps.running <= 8).all()


def test_refusals() -> None:
    deployment, cost_model = deployed()
    asked = workload(20)
    run = simulate(deployment, cost_model, asked)
    with pytest.raises(DeploymentError, match="a window must begin at 0 s or later and end after that, got 3 s to 1 s"):
        timeline(deployment, cost_model, asked, run, 3.0, 1.0)
    with pytest.raises(DeploymentError, match="nothing has arrived by 1e-09 s"):
        timeline(deployment, cost_model, asked, run, 0.0, 1e-9)
    other = replace(run, last_token_s=run.last_token_s * 1.01)
    with pytest.raises(DeploymentError, match="does not end when the plain scheduler says"):
        timeline(deployment, cost_model, asked, other, 0.0, 1e3)


def traced(found: Timeline, path: Path) -> dict[str, Any]:
    number = write_chrome_trace(path, found)
    data = path.read_bytes()
    document: dict[str, Any] = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    assert number == len(document["traceEvents"])
    return document


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("window", [(0.0, 1e3), (1.0, 1.5)], ids=str)
def test_the_trace_is_in_the_published_format(
    settings: dict[str, Any], window: tuple[float, float], tmp_path: Path
) -> None:
    """Google's "Trace Event Format": the fields of each kind, nesting, and no slice over its neighbour."""
    found, run = recorded(*window, **settings)
    document = traced(found, tmp_path / "trace.json")
    events = document["traceEvents"]
    assert {e["ph"] for e in events} == {"M", "X", "C", "b", "e"}
    low, high = window[0] * 1e6, min(window[1], float(run.last_token_s.max())) * 1e6
    for e in events:
        assert {"ph", "pid", "tid", "name"} <= set(e)
        assert e["pid"] >= 1
        if e["ph"] == "M":
            assert e["name"] in {"process_name", "thread_name"}
            assert isinstance(e["args"]["name"], str)
        else:
            assert low - 1e-3 <= e["ts"] <= high + 1e-3
            assert e["cat"]
    for pid in {e["pid"] for e in events}:
        mine = [e for e in events if e["pid"] == pid]
        slices = [e for e in mine if e["ph"] == "X"]
        for one, two in itertools.pairwise(slices):
            assert one["ts"] + one["dur"] <= two["ts"] + 2e-3  # a nanosecond of rounding
        for e in slices:
            assert e["args"]["bound_by"] in CAUSES
            assert 0 < e["args"]["batch"] <= 32
        for name in ("requests", "KV blocks"):
            states = [e for e in mine if e["ph"] == "C" and e["name"] == name]
            assert (np.diff([e["ts"] for e in states]) >= 0).all()
            assert all(isinstance(v, int) and v >= 0 for e in states for v in e["args"].values())
    opened: dict[str, list[tuple[str, float]]] = {}
    for e in events:
        if e["ph"] == "b":
            stack = opened.setdefault(e["id"], [])
            assert not stack or (stack[-1][1] <= e["ts"] and e["name"] in PHASES)
            stack.append((e["name"], e["ts"]))
        elif e["ph"] == "e":
            name, since = opened[e["id"]].pop()
            assert name == e["name"]
            assert since <= e["ts"]
    assert not any(opened.values())
    touched = (run.arrival_s < window[1]) & (run.last_token_s > window[0])
    assert len(opened) == touched.sum()


def test_the_trace_is_bounded_and_can_be_gzipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = recorded(0.0, 2.0)
    assert traced(found, tmp_path / "a.json.gz") == traced(found, tmp_path / "a.json")
    with pytest.raises(ReportError, match="cannot be written"):
        write_chrome_trace(tmp_path / "none" / "a.json", found)
    monkeypatch.setattr("gambrel.report.perfetto.MAX_EVENTS", 500)
    with pytest.raises(ReportError, match=r"the window of 2 s has .* viewers bear 500: take 0\.\d+ s or less"):
        write_chrome_trace(tmp_path / "b.json", found)
