"""Comparing two runs: verdicts that hold as often as they say, and every kind of file as a side."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gambrel.core.errors import WorkloadError
from gambrel.measure.compare import compare
from gambrel.measure.importers.benchmark import Row, imported_run
from gambrel.measure.sides import Side, read_side, read_sides

if TYPE_CHECKING:
    from pathlib import Path


def side(seed: int, n: int = 400, slower: float = 1.0, correlated: float = 0.0) -> Side:
    rng = np.random.default_rng(seed)
    noise = rng.normal(0.0, 0.3, n)
    for i in range(1, n):
        noise[i] = correlated * noise[i - 1] + np.sqrt(1 - correlated**2) * noise[i]
    start = np.cumsum(rng.exponential(0.1, n))
    rows = []
    for i in range(n):
        first = start[i] + 0.2 * slower * np.exp(noise[i])
        gaps = rng.uniform(0.009, 0.011, 20) * slower
        rows.append(Row(arrival_s=start[i], first_s=first, last_s=first + gaps.sum(), prompt_tokens=5,
                        output_tokens=21, gaps=gaps))  # fmt: skip
    return Side(f"seed {seed}", imported_run(rows, source="made", basis="made"))


def test_a_run_is_the_same_as_itself() -> None:
    a = side(1)
    found = compare(a, a, tolerance=0.3)
    assert {v.verdict for v in found.metrics} == {"same"}
    assert all(v.ratio.value == 1.0 for v in found.metrics)


def test_a_run_twice_as_slow_is_seen_and_by_how_much() -> None:
    found = {v.name: v for v in compare(side(1), side(2, slower=2.0)).metrics}
    for name in ("ttft.mean", "ttft.p50", "tpot.p95", "e2e.p99", "itl.p50"):
        assert found[name].verdict == "higher", name
        assert found[name].ratio.low < 2.0 < found[name].ratio.high or found[name].ratio.value == pytest.approx(
            2, rel=0.05
        )
    assert {v.name: v for v in compare(side(2, slower=2.0), side(1)).metrics}["ttft.p50"].verdict == "lower"


def test_chance_is_seldom_called_a_difference_even_when_neighbours_hang_together() -> None:
    wrong = sum(
        v.verdict in {"higher", "lower"}
        for seed in range(30)
        for v in compare(side(seed, 200, correlated=0.5), side(seed + 1000, 200, correlated=0.5), seed=seed).metrics
        if v.name == "ttft.mean"
    )
    assert wrong <= 5  # 5 % of 30 is 1.5; blocks of a cube root's length are a little short for this correlation


def test_two_replays_of_one_workload_are_compared_request_by_request() -> None:
    rng = np.random.default_rng(0)
    n = 150
    prompt, output = rng.integers(10, 2000, n), rng.integers(5, 500, n)

    def replay(slower: float) -> Side:
        rows = [
            Row(arrival_s=float(i), first_s=i + 1e-4 * p * slower, last_s=i + (1e-4 * p + 1e-3 * o) * slower,
                prompt_tokens=int(p), output_tokens=int(o))
            for i, (p, o) in enumerate(zip(prompt, output, strict=True))
        ]  # fmt: skip
        return Side("made", imported_run(rows, source="made", basis="made"))

    found = {v.name: v for v in compare(replay(1.0), replay(1.02)).metrics}
    assert found["ttft.p95"].verdict == "same"
    assert found["ttft.p95"].ratio.low == pytest.approx(1.02, rel=1e-9)
    assert found["ttft.p95"].a.high > 1.02 * found["ttft.p95"].a.value  # which alone would not have told


def test_an_interval_of_a_wild_run_ends_at_what_was_seen() -> None:
    def wild(seed: int) -> Side:
        rng = np.random.default_rng(seed)
        rows = [
            Row(arrival_s=0.01 * i, first_s=0.01 * i + t, last_s=0.01 * i + 2 * t, prompt_tokens=5, output_tokens=2)
            for i, t in enumerate(np.exp(rng.normal(-2.0, 3.0, 40)))
        ]
        return Side("made", imported_run(rows, source="made", basis="made"))

    a, b = wild(1), wild(2)
    assert a.run is not None
    for v in compare(a, b).metrics:
        if v.metric in {"ttft", "tpot", "e2e"}:
            assert v.a.low >= float(getattr(a.run, f"{v.metric}_s").min()), v.name
        elif v.metric in {"output_tokens_per_s", "request_rate"}:
            assert v.a.low > v.a.value / 100.0, v.name


def test_few_requests_get_no_verdict() -> None:
    found = compare(side(1, 10), side(2, 10, slower=3.0))
    assert {v.verdict for v in found.metrics if v.unit == "s"} == {"too few"}


def test_sides_without_requests_compare_without_interval(tmp_path: Path) -> None:
    document = {f"{m}_s": {"mean": 0.1, "p50": 0.1, "p99": 0.2} for m in ("ttft", "tpot", "itl", "e2e")}
    path = tmp_path / "s.json"
    path.write_text(json.dumps(document | {"output_tokens_per_s": 100.0}))
    simulated = read_side(path)
    found = compare(simulated, side(1)).to_dict()
    assert found["metrics"]["ttft.p50"]["verdict"] == "no interval"
    assert found["metrics"]["ttft.p50"]["a"] == {"value": 0.1, "low": None, "high": None}
    assert found["metrics"]["output_tokens_per_s"]["a"]["value"] == 100.0
    json.dumps(found)


def test_a_time_scale_divides_times_and_multiplies_rates(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"ttft_s": {"mean": 2.0}, "output_tokens_per_s": 10.0}))
    scaled = read_side(path, scale=10.0)
    assert scaled.reported["ttft"]["mean"] == pytest.approx(0.2)
    assert scaled.rates["output_tokens_per_s"] == pytest.approx(100.0)


@pytest.mark.shared
def test_samples_of_two_tools(shared_data: Path) -> None:
    samples = shared_data / "samples"
    a = read_side(samples / "aiperf-0.13.0-profile_export.jsonl")
    b = read_side(samples / "guidellm-0.8.1-concurrent8.json", level="concurrent 8")
    found = {v.name: v for v in compare(a, b).metrics}
    assert found["tpot.p50"].ratio.value == pytest.approx(0.988, abs=0.01)
    assert found["tpot.p50"].verdict == "too few"  # eight requests


def test_clear_words(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="tolerance"):
        compare(side(1, 30), side(2, 30), tolerance=0.0)
    with pytest.raises(WorkloadError, match="no metric in common"):
        compare(side(1, 30), Side("nothing"))
    with pytest.raises(WorkloadError, match="cannot read"):
        read_sides(tmp_path / "none")
    with pytest.raises(WorkloadError, match="time scale"):
        read_sides(tmp_path / "none", scale=0.0)
    path = tmp_path / "grill.jsonl"
    row = {"target_server": "v", "target_model": "m", "timestamp_start": "2026-01-01", "ttft_s": 0.1, "tpot_s": 0.1,
           "e2e_latency_s": 0.2, "prompt_tokens": 1, "completion_tokens": 2}  # fmt: skip
    path.write_text("\n".join(json.dumps(row | {"concurrent_users_level": k}) for k in (1, 2)))
    with pytest.raises(WorkloadError, match="2 points fit; name one of its levels: '1 users', '2 users'"):
        read_side(path)
    assert read_side(path, level="2 users").name.endswith("[2 users]")
