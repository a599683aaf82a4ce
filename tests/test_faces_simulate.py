"""What ``gambrel simulate`` does beside its tables: files, windows, progress, and Ctrl-C that keeps what there is."""

from __future__ import annotations

import json
import signal
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from engine_cases import affine_table, poisson
from gambrel.core.errors import GambrelError
from gambrel.engine import Limits, replay, run_of
from gambrel.faces.cli import app
from gambrel.faces.simulate_outputs import progress_text, watched, window_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from gambrel.core.run import Run
    from gambrel.engine import Watch

BASE = ("simulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--json")


def document(*words: str, status: int = 0) -> Any:
    found = CliRunner().invoke(app, [*BASE, *words])
    assert found.exit_code == status, found.output
    return json.loads(found.stdout)


@pytest.fixture
def log(tmp_path: Path) -> str:
    """Two requests a second with priorities, as people write them."""
    path = tmp_path / "log.csv"
    rows = [f"{i / 2},{200 + i},{20 + i % 7},{i % 3},{30 + i}" for i in range(60)]
    path.write_text("arrival_s,prompt_tokens,output_tokens,priority,timeout_s\n" + "\n".join(rows) + "\n")
    return str(path)


def test_files_of_requests_and_of_a_window(log: str, tmp_path: Path) -> None:
    rows, trace = tmp_path / "r.jsonl", tmp_path / "t.json"
    found = document("-w", log, "--requests", str(rows), "--chrome-trace", str(trace), "--window", "5:10")
    assert set(found["phases_s"]) == set(found["time_in"]) == {"queue", "prefill", "decode", "preempted"}
    assert sum(found["time_in"].values()) == pytest.approx(1.0)
    assert found["idle_share"] == pytest.approx(1 - found["utilisation"])
    assert found["num_unfinished"] == 0
    assert len(rows.read_text().splitlines()) == found["num_requests"] == 60
    events = json.loads(trace.read_text())["traceEvents"]
    assert min(e["ts"] for e in events if "ts" in e) >= 5e6
    assert max(e["ts"] for e in events if "ts" in e) <= 10e6


def test_progress_changes_no_figure(log: str) -> None:
    one, two = document("-w", log), document("-w", log, "--progress")
    for found in (one, two):
        found.pop("wall_s")
    assert one == two


def test_patience_and_pauses(log: str) -> None:
    given_up = document("-w", log, "--load", "20", "--max-num-seqs", "4", "--deadline", "0.5", "--slo",
                        "e2e.p99<=10s", status=1)  # fmt: skip
    assert 0 < given_up["num_unfinished"] < given_up["num_requests"]
    assert given_up["goodput"] == pytest.approx(1 - given_up["num_unfinished"] / given_up["num_requests"])
    assert given_up["slo"]["e2e.p99"]["reached_s"] is None  # who gave up waits for ever
    thinking = document("--users", "4", "--prompt", "200", "--output", "20", "--think", "2")
    busy = document("--users", "4", "--prompt", "200", "--output", "20")
    assert thinking["utilisation"] < 0.5 < busy["utilisation"]
    guessed = document("-w", log, "--draft-tokens", "3", "--acceptance", "0.8")
    assert guessed["deployment"]["draft_tokens"] == 3
    assert guessed["tpot_s"]["p50"] < 0.6 * document("-w", log)["tpot_s"]["p50"]


def test_refusals(log: str) -> None:
    for text in ("9", "5:1", "a:b", "-1:3"):
        with pytest.raises(GambrelError, match="--window must be BEGIN:END in seconds"):
            window_of(text)
    assert window_of(None) == (0.0, 60.0)
    for words, why in (
        (("-w", log, "--think", "1"), "--think goes with --users"),
        (("-w", log, "--deadline", "0"), "deadline_s must be above 0"),
        (("-w", log, "--requests", "r.xlsx"), "written as"),
    ):
        found = CliRunner().invoke(app, [*BASE, *words])
        assert isinstance(found.exception, GambrelError)
        assert why in str(found.exception)


def test_progress_says_how_far_it_is() -> None:
    assert progress_text(0, 0, 0.0, 2.0) == "simulating for 2.00 s"
    text = progress_text(250_000, 1_000_000, 3600.0, 0.5)
    assert text == "25 % of 1,000,000 requests, 60.0 min simulated, 500,000 requests/s, 1.50 s left"


@pytest.fixture
def python_takes_interrupts() -> Iterator[None]:
    """Python's own handler: a server that ran in this process before may have left another one behind."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_takes_interrupts")
@pytest.mark.parametrize("routing", ["round_robin", "least_outstanding"])
def test_an_interrupt_keeps_what_there_is(routing: str, capsys: pytest.CaptureFixture[str]) -> None:
    table, limits = affine_table(512, 32), Limits(32, 512, 20_000)
    workload = poisson(2_000_000, 4.0, 100, 800)  # some seconds, were it not for the interrupt

    def simulate(watch: Watch) -> Run:
        def interrupt() -> None:
            until = time.monotonic() + 60
            while watch.look()[0] < 1000 and time.monotonic() < until:
                time.sleep(0.01)
            signal.raise_signal(signal.SIGINT)

        threading.Thread(target=interrupt).start()
        return run_of(replay(table, limits, workload, routing=routing, watch=watch), limits)

    run, interrupted = watched(simulate)
    assert interrupted
    ended = int(np.isfinite(run.last_token_s).sum())
    assert 1000 <= ended < len(run)
    assert f"what follows holds the {ended:,} of 2,000,000 requests that had ended" in capsys.readouterr().err


def test_an_error_comes_through() -> None:
    def fail(_: Watch) -> Run:
        raise GambrelError("no")

    with pytest.raises(GambrelError, match="no"):
        watched(fail)
