"""Measuring from the page: a server watched, the library of runs, a run against the model, and a fit."""

from __future__ import annotations

import gzip
import socket
import tempfile
import threading
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from web_client import Answer, ask

pytest.importorskip("starlette", reason="the page needs the extra gambrel[web]")

from gambrel.calibrate.evidence import point_of_lengths
from gambrel.calibrate.predict import simulated
from gambrel.calibrate.table import Figure
from gambrel.faces.api import cost_model
from gambrel.faces.web import fitting, measuring, planning, runs
from gambrel.faces.web.app import create_app
from gambrel.measure.mock import MockServer, Script
from gambrel.measure.record import Header, Level, Record, RecordWriter, Usage
from gambrel.report import humanise as say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gambrel.faces.web.jobs import Job, Jobs

APP = create_app()
SERVED = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "gpu": "l4", "max_num_seqs": "64"}


def fine(answer: Answer) -> Any:
    assert answer.status in {200, 202}, answer.body
    return answer.json()


def ended(jobs: Jobs[Any], key: str) -> Job[Any]:
    job = jobs.job(key)
    limit = time.monotonic() + 60
    while job.working and time.monotonic() < limit:
        time.sleep(0.02)
    assert job.ended
    assert not job.working
    return job


def begin(url: str, **more: Any) -> str:
    asked = {"url": url, "model": "mock", "concurrency": [1, 2], "prompt": 16, "output": 8, "duration_s": 1} | more
    return str(fine(ask(APP, "/api/measure", method="POST", body=asked))["id"])


@pytest.fixture(scope="module")
def run() -> str:
    """A run in the library: a scripted server at three loads."""
    with MockServer(Script(ttft_s=0.004, gap_s=0.002)) as mock:
        key = begin(mock.url, concurrency=[1, 2, 4], model="SmolLM2-135M-Instruct")
        job = ended(measuring.JOBS, key)
    assert job.events[-1]["kind"] == "done", job.events[-1]
    return str(fine(ask(APP, f"/api/measure/{key}"))["run"])


# Measuring ----------------------------------------------------------------------------------------------------------


def test_a_measured_server_is_a_run_of_the_library(run: str) -> None:
    found = fine(ask(APP, "/api/runs"))
    entry = next(e for e in found["runs"] if e["name"] == run)
    assert (entry["model"], entry["levels"]) == ("SmolLM2-135M-Instruct", 3)
    opened = fine(ask(APP, f"/api/runs/{run}"))
    assert opened["report"]["sections"]
    assert opened["model"] == SERVED["model"]
    assert opened["levels"] == ["c1 p16 o8", "c2 p16 o8", "c4 p16 o8"]
    assert gzip.decompress(ask(APP, f"/api/runs/{run}/export/records.jsonl.gz").body).count(b"\n") > 10
    assert b"<html" in ask(APP, f"/api/runs/{run}/export/report.html").body
    assert ask(APP, f"/api/runs/{run}/export/x").status == 404


def test_nothing_of_a_measurement_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with MockServer(Script()) as mock:
        job = ended(measuring.JOBS, begin(mock.url))
    assert job.events[-1]["kind"] == "done", job.events[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_measurement_can_be_cancelled_and_none_begins_while_it_ends() -> None:
    with MockServer(Script()) as mock:
        key = begin(mock.url, duration_s=600, concurrency=[1], output=200)
        again = {"url": mock.url, "model": "mock", "concurrency": [1]}
        assert "still running" in ask(APP, "/api/measure", method="POST", body=again).json()["error"]
        time.sleep(0.5)
        assert fine(ask(APP, f"/api/measure/{key}", method="DELETE")) == {"cancelled": True}
        assert measuring.JOBS.job(key).ended
        job = ended(measuring.JOBS, key)
    assert job.events[-1]["kind"] == "cancelled"
    assert ask(APP, f"/api/measure/{key}").status == 404


def test_what_cannot_be_measured_is_one_line() -> None:
    job = ended(measuring.JOBS, begin("http://127.0.0.1:9"))
    assert job.events[-1]["kind"] == "failed"
    assert "127.0.0.1:9" in job.events[-1]["text"]
    changes: list[dict[str, Any]] = [
        {"url": "file:///etc/passwd"}, {"url": "http://user:key@x"}, {"concurrency": []}, {"prompt": 0},
        {"url": ""}, {"model": ""}, {"embedded": True},
    ]  # fmt: skip
    for change in changes:
        body = {"url": "http://x", "model": "m", "concurrency": [1]} | change
        answer = ask(APP, "/api/measure", method="POST", body=body)
        assert answer.status == 400, change
        assert "\n" not in answer.json()["error"]


def test_a_missing_embedded_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gambrel.measure.embedded.missing_packages", lambda: ("openvino-genai",))
    answer = ask(APP, "/api/measure", method="POST", body={"embedded": True, "concurrency": [1]})
    assert answer.status == 400
    assert "openvino-genai" in answer.json()["error"]
    assert "requirements-engine.txt" in answer.json()["error"]


def test_a_redirect_of_the_measured_server_is_not_followed() -> None:
    asked: list[bytes] = []

    def redirect(listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(65536))
                away = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/v1/chat/completions"
                connection.sendall(f"HTTP/1.1 307 x\r\nlocation: {away}\r\ncontent-length: 0\r\n\r\n".encode())

    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.3)
        threading.Thread(target=redirect, args=(listening,), daemon=True).start()
        job = ended(measuring.JOBS, begin(f"http://127.0.0.1:{listening.getsockname()[1]}"))
        assert job.events[-1]["kind"] == "failed"
        assert "307" in job.events[-1]["text"] or "redirect" in job.events[-1]["text"]
        assert asked
        with pytest.raises(TimeoutError):
            elsewhere.accept()


# The library --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    runs.LIBRARY.open(tmp_path / "runs")
    yield tmp_path / "runs"
    runs.LIBRARY.open(None)


def test_a_folder_of_runs_is_shared_with_the_command_line(run: str, folder: Path) -> None:
    assert fine(ask(APP, "/api/runs"))["runs"] == []
    runs.LIBRARY.folder = None
    records = runs.LIBRARY.records(run)
    runs.LIBRARY.folder = folder
    (folder / "mine.jsonl.gz").write_bytes(records)
    (folder / "notes.txt").write_text("mine")
    (folder / "broken.jsonl.gz").write_bytes(b"\x1f\x8bnothing")
    assert [e["name"] for e in fine(ask(APP, "/api/runs"))["runs"]] == ["mine.jsonl.gz"]
    name = fine(ask(APP, "/api/runs", {"name": "mine.jsonl.gz"}, method="POST", body=records))["name"]
    assert name == "mine-2.jsonl.gz"
    assert (folder / name).read_bytes() == records
    for bad in ("notes.txt", "..%2Fx", "x", ".."):
        assert ask(APP, f"/api/runs/{bad}").status == 404
        assert ask(APP, f"/api/runs/{bad}", method="DELETE").status == 404
    assert fine(ask(APP, f"/api/runs/{name}", method="DELETE")) == {"deleted": name}
    assert sorted(p.name for p in folder.iterdir()) == ["broken.jsonl.gz", "mine.jsonl.gz", "notes.txt"]
    assert ask(APP, "/api/runs/broken.jsonl.gz").status == 400


def test_what_is_no_run_is_not_taken() -> None:
    answer = ask(APP, "/api/runs", {"name": "x.jsonl"}, method="POST", body=b"hello\n")
    assert answer.status == 400
    assert answer.json()["error"].startswith("x.jsonl")


def test_the_oldest_run_in_memory_is_forgotten(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = runs.Library()
    monkeypatch.setattr(runs, "KEPT", 2)
    records = runs.LIBRARY.records(run)
    names = [library.add("a.jsonl.gz", records) for _ in range(3)]
    assert names == ["a.jsonl.gz", "a-2.jsonl.gz", "a-3.jsonl.gz"]
    assert library.names() == ["a-3.jsonl.gz", "a-2.jsonl.gz"]


def test_two_runs_are_compared_level_by_level(run: str) -> None:
    found = fine(ask(APP, "/api/compare", {"a": run, "b": run}))
    assert [i["heading"] for i in found["items"]] == ["c1 p16 o8", "c2 p16 o8", "c4 p16 o8"]
    rows = found["items"][0]["rows"]
    assert all(row[3].startswith("1.000") for row in rows)
    one = fine(ask(APP, "/api/compare", {"a": run, "b": run, "level_a": "c1 p16 o8", "level_b": "c4 p16 o8"}))
    assert [i["heading"] for i in one["items"]] == ["c1 p16 o8 against c4 p16 o8"]
    assert ask(APP, "/api/compare", {"a": run, "b": "x"}).status == 404
    assert ask(APP, "/api/compare", {"a": run, "b": run, "level_a": "x"}).status == 404


def bound_by_client(run: str, levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say of the first levels that the client bound them, and of no other: a busy machine says so of any."""
    for i, level in enumerate(runs.LIBRARY.recording(run).levels.values()):
        monkeypatch.setitem(level.fidelity, "client_bound", i < levels)


# Against the model --------------------------------------------------------------------------------------------------


def test_a_run_is_held_against_the_prediction(run: str) -> None:
    found = fine(ask(APP, f"/api/runs/{run}/predicted", SERVED))
    assert [i["name"] for i in found["items"][:3]] == ["predicted-tpot", "predicted-ttft", "predicted-output-tok-s"]
    rows = found["items"][3]["rows"]
    assert len(rows) == 9
    points = fitting.points_of(run, fitting.Served(model=SERVED["model"], gpu="l4", max_num_seqs=64))
    _, figures = fitting.overlay(points, {"shipped": cost_model})
    errors = fitting.errors_of(points, figures["shipped"])
    for point, figure, error in zip(points, figures["shipped"], errors["tpot"], strict=True):
        assert figure["tpot"] == pytest.approx(point.measured["tpot"].value * (1 + error))


def test_the_curve_between_levels_passes_through_the_predictions_at_them(run: str) -> None:
    found = fine(ask(APP, f"/api/runs/{run}/predicted", SERVED))
    lines, points = (layer["data"]["values"] for layer in found["items"][0]["spec"]["layer"])
    assert [p["load"] for p in points] == [1.0, 2.0, 4.0]
    assert sorted(p["load"] for p in lines) == [1.0, 2.0, 4.0]


def slower_run(factor: float) -> str:
    """A run of a server that is slower than predicted by a factor: its records, written as the client would."""
    served = fitting.Served(model=SERVED["model"], gpu="l4", max_num_seqs=64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slower.jsonl.gz"
        with RecordWriter(path, Header.now(source="http://127.0.0.1", model=SERVED["model"])) as writer:
            for users in (1, 2, 4, 8):
                label = f"c{users} p512 o64"
                writer.write(Level(label=label, mode="closed", requested=users, begin_ns=1, end_ns=10**9))
                wanted = {"ttft": Figure(1.0), "tpot": Figure(1.0)}
                point = point_of_lengths(served.server(), wanted, prompt_tokens=512, output_tokens=64, users=users)
                said = simulated(point.deployment, cost_model(point.deployment), point.workload, wanted)
                first, gap = (round(factor * 1e9 * said[m]) for m in ("ttft", "tpot"))
                for i in range(20):
                    sent = 10**9 + i * (first + 63 * gap)
                    writer.write(
                        Record(
                            index=i, level=label, t_intended_ns=sent, t_sent_ns=sent, t_first_token_ns=sent + first,
                            t_last_token_ns=sent + first + 63 * gap, t_end_ns=sent + first + 63 * gap, status=200,
                            gap_ns=np.array([first, *[gap] * 63]), tokens=np.ones(64, np.int64),
                            usage=Usage(prompt_tokens=512, completion_tokens=64),
                        )
                    )  # fmt: skip
        return runs.LIBRARY.add(path.name, path.read_bytes())


def test_a_fit_is_closer_than_what_it_began_with_and_gives_a_profile() -> None:
    body = {"run": slower_run(1.3), **SERVED, "max_num_seqs": 64}
    key = fine(ask(APP, "/api/fit", method="POST", body=body))["id"]
    job = ended(fitting.JOBS, key)
    assert job.events[-1]["kind"] == "done", job.events[-1]
    report = fine(ask(APP, f"/api/fit/{key}"))["report"]
    headings = [i["heading"] for s in report["sections"] for i in s["items"]]
    assert {"Level by level", "Constants, times their shipped default", "Errors"} <= set(headings)
    fit = fitting.JOBS.found(key)
    assert fitting._typical(fit.calibration.default_errors) == pytest.approx(1 - 1 / 1.3, rel=0.02)
    tokens = fitting._typical({"tpot": fit.calibration.in_sample["tpot"]})  # first tokens of equal users come in jumps
    assert tokens < 0.06
    profile = tomllib.loads(ask(APP, f"/api/fit/{key}/export/profile.toml").body.decode())
    assert (profile["accelerator"], profile["engine"]) == ("l4", "vllm")
    for p in fit.calibration.parameters:
        assert profile["constants"][p.name]["value"] == pytest.approx(p.value, rel=1e-5)
    assert b"<html" in ask(APP, f"/api/fit/{key}/export/fit.html").body
    assert ask(APP, f"/api/fit/{key}/export/x").status == 404


def test_a_plan_is_priced_by_the_constants_of_a_fit() -> None:
    fit = fine(ask(APP, "/api/fit", method="POST", body={"run": slower_run(1.3), **SERVED, "max_num_seqs": 64}))["id"]
    ended(fitting.JOBS, fit)
    log = fine(ask(APP, "/api/traffic/generate", method="POST", body={"users": 8, "prompt": 512, "output": 64}))["id"]
    body = {"traffic": {"id": log}, "model": SERVED["model"], "gpus": ["l4"], "tp": [1], "slo": ["tpot.p95<=60ms"]}
    found = []
    for constants in ("", fit):
        key = fine(ask(APP, "/api/plan", method="POST", body=body | {"fit": constants}))["id"]
        ended(planning.JOBS, key)
        found.append(planning.JOBS.found(key))
        same = {f["label"]: f["value"] for f in fine(ask(APP, f"/api/plan/{key}/whatif"))["facts"]}
        reached = found[-1].plan.chosen.verdicts[0].reached
        assert same["tpot.p95"].replace("\u00a0", " ") == say.seconds(reached)
    assert "calibrated" in found[1].plan.basis
    assert "calibrated" not in found[0].plan.basis
    assert ask(APP, "/api/plan", method="POST", body=body | {"fit": "x"}).status == 404


def test_levels_that_the_client_bound_are_refused_unless_left_out(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bound_by_client(run, 2, monkeypatch)
    body: dict[str, Any] = {"run": run, **SERVED, "max_num_seqs": 64}
    answer = ask(APP, "/api/fit", method="POST", body=body)
    assert answer.status == 400
    assert "bound by the client" in answer.json()["error"]
    assert len(fitting.points_of(run, fitting.Served(gpu="l4", leave_out_bound=True))) == 1
    assert fine(ask(APP, f"/api/runs/{run}/predicted", SERVED))["bound"] == ["c1 p16 o8", "c2 p16 o8"]
