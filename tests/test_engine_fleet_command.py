"""``gambrel fleet``: what is typed is understood or refused in one line; the document holds what it promises."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gambrel.core.errors import GambrelError
from gambrel.faces.cli import main
from gambrel.faces.fleet_words import bounds, broken, scaling, seconds, series_of, start_seconds

if TYPE_CHECKING:
    from pathlib import Path

BASE = ["--model", "meta-llama/Llama-3.1-8B-Instruct", "--gpu", "l40s"]
SHORT = ["--rate-series", "ramp:from=1,to=3,minutes=10"]


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """(status, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["gambrel", "fleet", *BASE, *words])
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, out.getvalue(), err.getvalue()


def test_a_scaled_fleet_as_a_document(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status, out, err = call(
        monkeypatch, *SHORT, "--replicas", "1:4", "--autoscale", "concurrency=6,initial=2,window=1m",
        "--start-up", "30s", "--failures", "at=120:0", "--slo", "ttft.p95<=5s", "--json",
        "--html", str(tmp_path / "page.html"),
    )  # fmt: skip
    assert status == 0, err
    found = json.loads(out)
    fleet = found["fleet"]
    assert fleet["failures"] == 1
    assert fleet["starts"] >= 1
    assert fleet["gpu_hours"] == pytest.approx(fleet["replicas_mean"] * found["span_s"] / 3600)
    assert fleet["usd"] == pytest.approx(fleet["gpu_hours"] * found["deployment"]["usd_per_gpu_hour"])
    assert found["fixed_fleet"]["replicas"] >= 1
    assert found["slo"]["ttft.p95"]["met"]
    assert found["lost_and_retried"]["num"] >= 1
    assert 0.9 < found["goodput"] <= 1
    assert {x["end"] for x in found["replicas"]} >= {"failed", "open"}
    columns = found["timeline"]
    assert len({len(values) for values in columns.values()}) == 1
    assert len(columns["time_s"]) <= 400
    assert max(columns["ready"]) >= 2
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Replicas over time" in page
    assert "Load over time" in page


def test_the_same_words_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*SHORT, "--replicas", "0:3", "--autoscale", "kv=0.2,rule=kpa", "--load-rate", "2", "--engine-start", "20s",
             "--failures", "mtbf=10m,seed=2", "--clients", "5", "--json"]  # fmt: skip
    one, two = (json.loads(call(monkeypatch, *words)[1]) for _ in range(2))
    assert one.pop("wall_s") > 0
    assert two.pop("wall_s") > 0
    assert one == two
    assert one["start_up_s"] == pytest.approx(16.06e9 / 2e9 + 20.0, rel=0.01)
    assert one["held"]["num"] > 0


def test_tables_say_what_the_document_says(monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = call(
        monkeypatch, *SHORT, "--turns", "3", "--think", "5s", "--replicas", "2", "--routing", "session_sticky",
        "--slo", "ttft.p95<=1ms",
    )  # fmt: skip
    assert status == 1
    assert "missed" in out
    assert "prefix cache" in out
    assert "in flight" in out
    assert "at most, meta" not in out


def test_a_log_with_sessions_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = "\n".join(f"{t},{100},{20},{t % 3}" for t in range(30))
    log.write_text(f"arrival_s,prompt_tokens,output_tokens,session\n{rows}\n")
    status, out, err = call(monkeypatch, "--workload", str(log), "--turns-wait", "--load", "2")
    assert status == 0, err
    assert "turns wait for the turn before" in err
    assert "60 requests" in out


def test_shards_as_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*SHORT, "--replicas", "6", "--shards", "random", "--slo", "ttft.p95<=1s"]
    status, out, err = call(monkeypatch, *words, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["complete"]
    assert found["replicas_served"] == 6
    assert found["num_requests"] == sum(found["windows"]["arrivals"])
    assert found["num_requests"] == pytest.approx(1200, rel=0.15)
    assert np.isfinite(found["ttft_s"]["p95"])
    assert call(monkeypatch, *words)[0] == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [("90", 90.0), ("120s", 120.0), ("15m", 900.0), ("15min", 900.0), ("500h", 1.8e6), ("2d", 172_800.0)],
)
def test_times(text: str, value: float) -> None:
    assert seconds(text, "--start-up") == value


def test_ranges_and_series() -> None:
    assert bounds("4") == (4, 4)
    assert bounds("0:16") == (0, 16)
    assert series_of("day:mean=3,peak=1.5,hour=9,days=2").end_s == 172_800.0
    assert series_of("ramp:from=1,to=2,minutes=5").peak_rps == pytest.approx(1.995)
    assert broken("mtbf=2h,at=60:1+2m:0").at == ((60.0, 1), (120.0, 0))
    found = scaling("kv=0.6,rule=kpa,period=4s,initial=3", 1, 9)
    assert found is not None
    assert (found.metric, found.target, found.rule, found.every_s, found.first) == ("kv", 0.6, "kpa", 4.0, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no traffic given"),
        (["-w", "chat:rate=1,n=5", *SHORT], "are instead of --workload"),
        ([*SHORT, "--replicas", "1:4"], "--replicas with a range needs --autoscale"),
        ([*SHORT, "--replicas", "4", "--autoscale", "concurrency=3"], "needs a range to scale in"),
        ([*SHORT, "--replicas", "many"], "--replicas must be a number"),
        ([*SHORT, "--replicas", "1:4", "--autoscale", "concurrency=3"], "how long does a replica take to start?"),
        ([*SHORT, "--replicas", "1:4", "--autoscale", "cpu=3", "--start-up", "1s"], "known: concurrency, kv"),
        (
            [*SHORT, "--replicas", "1:4", "--autoscale", "rule=hpa", "--start-up", "1s"],
            "needs one of concurrency=TARGET",
        ),
        ([*SHORT, "--replicas", "1:4", "--autoscale", "kv=high", "--start-up", "1s"], "kv must be a number"),
        ([*SHORT, "--failures", "mtbf=1h"], "how long does a replica take to start?"),
        ([*SHORT, "--failures", "at=3", "--start-up", "1s"], "at must be TIME:REPLICA"),
        ([*SHORT, "--start-up", "soon"], "--start-up must be a time"),
        ([*SHORT, "--start-up", "3s", "--load-rate", "3"], "not both"),
        ([*SHORT, "--load-rate", "3"], "--load-rate GB/s with --engine-start"),
        (["--rate-series", "day:peak=1.2"], "day needs mean"),
        (["--rate-series", "ramp:from=1"], "ramp needs from, to and minutes"),
        (["--rate-series", "nowhere.csv"], "nowhere.csv"),
        ([*SHORT, "--lengths", "chatter"], "nearest: chat"),
        ([*SHORT, "--shards", "random", "--failures", "mtbf=1h"], "nothing scales or fails"),
        ([*SHORT, "--shards", "sticky"], "known: random, round_robin"),
        (["-w", "chat:rate=1,n=5", "--shards", "random"], "--shards makes each replica's traffic itself"),
        ([*SHORT, "--routing", "prefix_aware"], "remembers what it sent"),
    ],
)
def test_what_cannot_be_is_one_line(monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    status, out, err = call(monkeypatch, *words)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_starts_are_said_once() -> None:
    nothing: Any = None
    assert start_seconds(nothing, None, None, None, needed=False) == 0.0
    with pytest.raises(GambrelError):
        start_seconds(nothing, None, None, "3s", needed=False)
