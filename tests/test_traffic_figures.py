"""Figures of a workload against laws, by-hand cases, and the published traces."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gambrel.core.workload import Workload
from gambrel.traffic import ServiceModel, describe, quantum_s, read_workload, spread_quantised, synthesise
from gambrel.traffic.doubts import ceiling, round_piles, tally
from gambrel.traffic.synthetic import Quantiles

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

CHAT = Quantiles.of({0.5: 1000, 0.9: 2700})
SHORT = Quantiles.of({0.5: 130, 0.9: 420})


def workload(times: list[float], prompt: list[int] | int = 8, output: list[int] | int = 1) -> Workload:
    n = len(times)
    return Workload(
        arrival_s=np.array(times, np.float64),
        prompt_tokens=np.broadcast_to(np.asarray(prompt, np.int64), n),
        output_tokens=np.broadcast_to(np.asarray(output, np.int64), n),
    )


lists = st.lists(
    st.tuples(st.integers(0, 2000).map(lambda i: i / 8), st.integers(1, 40_000), st.integers(1, 3000)),
    min_size=1,
    max_size=60,
)


def build(rows: list[tuple[float, int, int]]) -> Workload:
    rows = sorted(rows)
    return workload([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])


# Laws


@given(lists)
def test_little_and_brute_force_concurrency(rows: list[tuple[float, int, int]]) -> None:
    w = build(rows)
    found = describe(w).concurrency
    service = ServiceModel().seconds(w)
    ends = w.arrival_s + service
    total = float(ends.max() - w.arrival_s[0])
    assert found.mean == pytest.approx(float(service.sum()) / total)  # Little, exactly
    events = np.unique(np.concatenate([w.arrival_s, ends]))
    middles = 0.5 * (events[1:] + events[:-1])
    level = np.array([int(((w.arrival_s <= m) & (m < ends)).sum()) for m in middles])
    lasts = np.diff(events)
    real = lasts > 1e-9  # rounding may part two ends that are one
    assert found.max >= level[real].max(initial=0)
    assert found.max <= len(w)
    assert found.mean <= found.max + 1e-9
    assert found.p50 <= found.p90 <= found.p99 <= found.max
    above = float(lasts[level > found.p99].sum()) / total
    assert above <= 0.01 + 1e-6
    bins = (found.time_s[1] - found.time_s[0]) * len(found.time_s)
    assert float(found.in_flight.mean()) * bins == pytest.approx(float(service.sum()), rel=1e-6, abs=1e-6)


@given(lists)
def test_figures_agree_with_their_definitions(rows: list[tuple[float, int, int]]) -> None:
    w = build(rows)
    found = describe(w)
    p, g = w.prompt_tokens.tolist(), w.output_tokens.tolist()
    held = sum(sum(a + j for j in range(1, b + 1)) for a, b in zip(p, g, strict=True)) / sum(g)
    assert found.kv_tokens_held == pytest.approx(held)
    assert int(found.length_counts.sum()) == len(w)
    for i, j in np.argwhere(found.length_counts).tolist():
        inside = sum(2**i <= a < 2 ** (i + 1) and 2**j <= b < 2 ** (j + 1) for a, b in zip(p, g, strict=True))
        assert inside == found.length_counts[i, j]
    for window, key in ((1.0, "1s"), (10.0, "10s"), (60.0, "60s")):
        full = math.floor(w.span_s / window)
        if full == 0:
            assert math.isnan(found.peak_to_mean[key])
            continue
        counts = np.bincount(((w.arrival_s - w.arrival_s[0]) // window).astype(int), minlength=full)[:full]
        assert found.peak_to_mean[key] == pytest.approx(counts.max() / counts.mean())
        assert found.dispersion[key] == pytest.approx(counts.var() / counts.mean(), abs=1e-9)
    if found.rate_series_rps.size:
        bins = len(found.rate_series_rps)
        assert float(found.rate_series_rps.sum()) * w.span_s / bins == pytest.approx(len(w))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["num_requests"] == len(w)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=3, max_size=30))
def test_rank_correlation(rows: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs the extra gambrel[fits] (SciPy)")
    p, g = np.array(rows).T
    found = describe(workload(list(range(len(rows))), p.tolist(), g.tolist())).correlation
    if len(set(p.tolist())) == 1 or len(set(g.tolist())) == 1:
        assert math.isnan(found)
        return
    assert found == pytest.approx(float(stats.spearmanr(p, g)[0]), abs=1e-12)
    huge = describe(workload(list(range(len(rows))), (p * 10**8).tolist(), g.tolist())).correlation
    assert huge == pytest.approx(found, abs=1e-12)


def test_poisson_has_cv_one_and_dispersion_one() -> None:
    n = 40_000
    found = describe(synthesise(n, 20.0, CHAT, SHORT, seed=3))
    assert found.cv == pytest.approx(1.0, abs=4 / math.sqrt(n))  # the CV's own standard error is 1/sqrt(n)
    assert found.cv_1min[0] == pytest.approx(1.0, abs=0.03)
    assert found.dispersion["1s"] == pytest.approx(1.0, abs=0.15)
    assert found.rate_rps == pytest.approx(20.0, rel=0.03)


def test_logged_service_times_win(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens,latency_s\n0,8,1,10\n5,8,1,10\n")
    found = describe(read_workload(path)).concurrency
    assert found.basis == "logged service times"
    assert found.mean == pytest.approx(20 / 15)
    assert found.max == 2
    stated = describe(workload([0.0, 5.0]), ServiceModel(prefill_tokens_per_s=1.0, tpot_s=2.0)).concurrency
    assert stated.mean == pytest.approx(20 / 15)
    assert "prompt/1 + output x 2 s" in stated.basis


def test_one_request_and_all_at_once() -> None:
    one = describe(workload([0.0])).to_dict()
    assert one["rate_rps"] is None
    assert one["cv"] is None
    assert one["concurrency"]["max"] == 1
    together = describe(workload([3.0] * 7)).to_dict()
    assert together["concurrency"]["max"] == 7
    users = describe(replace(workload([0.0] * 9), closed_loop=3, has_arrivals=False)).concurrency
    assert (users.mean, users.max) == (3.0, 3)


def test_sessions_and_caches() -> None:
    w = workload([0, 1, 2, 3], 100, 5)
    w = replace(w, session=np.array([4, 4, 9, 4]), cached_tokens=np.array([0, 50, 0, 50]))
    found = describe(w)
    assert found.num_sessions == 2
    assert found.cached_share == 0.25


def test_prefix_reuse_counts_repeated_blocks() -> None:
    w = replace(
        workload([0, 1, 2], 1024),
        prefix_blocks=np.array([1, 2, 1, 3, 1, 2]),
        prefix_offsets=np.array([0, 2, 4, 6]),
        prefix_block_tokens=512,
    )
    reuse = describe(w).prefix_reuse
    assert reuse is not None
    assert (reuse.hit_ratio, reuse.num_blocks, reuse.distinct_blocks) == (0.5, 6, 3)


# Doubts


def test_quantised_clocks_are_named() -> None:
    rng = np.random.default_rng(0)
    fine = np.sort(rng.uniform(0, 3600, 5000))
    assert quantum_s(fine) is None
    assert quantum_s(np.floor(fine * 1000) / 1000) is None  # milliseconds are fine enough at this rate
    assert quantum_s(np.floor(fine)) == 1.0
    jitter = np.floor(fine / 3) * 3 + np.floor(fine / 3) % 2 * 0.001
    assert quantum_s(jitter) == pytest.approx(3.0, abs=0.0011)
    found = describe(workload(np.floor(fine).tolist()))
    assert any("quantum 1 s" in x and "spread_quantised" in x for x in found.warnings)


@given(st.integers(0, 100), st.sampled_from([1.0, 3.0, 60.0]))
def test_spreading_keeps_counts_and_order(seed: int, tick: float) -> None:
    rng = np.random.default_rng(seed)
    ticks = np.sort(rng.integers(0, 50, 400)) * tick
    w = workload(ticks.tolist(), list(range(1, 401)))
    spread = spread_quantised(w, seed)
    assert np.array_equal(np.floor(spread.arrival_s / tick + 1e-9) * tick, ticks)
    assert np.array_equal(spread.prompt_tokens, w.prompt_tokens)
    assert np.array_equal(spread_quantised(w, seed).arrival_s, spread.arrival_s)
    assert quantum_s(spread.arrival_s) is None
    assert describe(spread).cv == pytest.approx(1.0, abs=0.35)
    assert any("spread uniformly" in x for x in spread.warnings)
    assert spread_quantised(spread) is spread


def test_limits_leave_marks() -> None:
    rng = np.random.default_rng(1)
    free = np.exp(rng.normal(5, 1, 20_000)).astype(np.int64) + 1
    assert ceiling(*tally(free)) is None
    assert round_piles(*tally(free)) == []
    cut = ceiling(*tally(np.minimum(free, 1000)))
    assert cut is not None
    assert cut[:2] == (1000, 1000)
    assert cut[2] == int((free >= 1000).sum())
    inner = free.copy()
    inner[:200] = 2048
    assert (2048, 2048) in {x[:2] for x in round_piles(*tally(inner))}
    near = np.where(free > 1000, 990 + free % 10, free)
    near[:20] = 3000 + np.arange(20) * 50
    band = ceiling(*tally(near))
    assert band is not None
    assert 960 <= band[0] <= 990
    assert band[1] <= 1010
    assert ceiling(*tally(np.full(500, 512))) is None
    assert ceiling(*tally(free * 10**6)) == ceiling(*tally(free))  # no memory is taken for large values


def test_short_logs_say_so() -> None:
    warnings = describe(workload([0.0, 1.0, 2.0])).warnings
    assert any("3 requests" in x for x in warnings)
    assert any("busiest hour" in x for x in warnings)


# The published traces: expected figures of the table beside them, to one unit of its last digit

EXPECTED: dict[str, tuple[str, ...]] = {
    "azure-2023-conv.csv.gz": (
        "19366", "3502", "5.53", "1.09", "1.02/1.09", "2.9/1.8/1.5",
        "1020/2735/4142/14050", "129/424/601/1000", "0.07", "36/56/63",
    ),
    "mooncake-fast25-conversation.jsonl.gz": (
        "12031", "3537", "3.40", "3.03", "3.13/3.36", "8.2/2.0/1.2",
        "6909/27367/85400/126195", "350/597/1119/2000", "0.07", "40/63/80",
    ),
    "mooncake-fast25-synthetic.jsonl.gz": (
        "3993", "1022", "3.91", "1.01", "1.00/1.09", "3.3/1.4/1.2",
        "11587/38611/66456/191378", "69/390/768/893", "-0.52", "25/39/45",
    ),
    "apex-creation-poisson0.5.csv.gz": (
        "512", "1097", "0.47", "0.96", "0.92/1.06", "6.4/2.6/1.3",
        "309/400/566/1232", "1107/1708/2341/3501", "0.71", "15/26/28",
    ),
    "apex-lmsys-poisson0.5.csv.gz": (
        "1024", "2024", "0.51", "1.00", "0.96/1.16", "7.9/2.4/1.5",
        "17/177/586/1037", "117/389/533/761", "0.14", "2.5/7/9",
    ),
    "apex-summarization-poisson0.5.csv.gz": (
        "1302", "2714", "0.48", "0.95", "0.90/1.08", "8.4/2.3/1.4",
        "2943/3880/4075/4092", "162/269/357/458", "0.10", "2.6/7/9",
    ),
    "vidur-arxiv-summarization-lengths.csv.gz": (
        "28257", "", "", "", "", "", "2730/3702/3933/4054", "167/372/3271/4056", "", "",
    ),
    "servegen-deepseek-r1-sampled-1h.csv.gz": (
        "103527", "3600", "28.8", "0.98", "0.97/1.01", "1.8/1.2/1.1",
        "50/1160/18344/47264", "1165/1821/9580/32768", "-0.24", "950/1240/1260",
    ),
    "servegen-m-large-sampled-day3-2rps.csv.gz": (
        "181580", "86399", "2.10", "1.22", "1.11/1.36", "16.2/4.8/2.0",
        "586/1769/3676/28490", "73/477/726/7944", "-0.06", "13/34/53",
    ),
}  # fmt: skip


def agrees(found: tuple[float, ...], printed: str) -> None:
    """To one unit of the last printed digit: quantiles of the table are order statistics, ours interpolate."""
    if printed:
        for value, text in zip(found, printed.split("/"), strict=True):
            assert value == pytest.approx(float(text), abs=10.0 ** -len(text.partition(".")[2])), (value, text)


@pytest.mark.shared
@pytest.mark.parametrize("name", EXPECTED)
def test_published_traces(name: str, shared_data: Path) -> None:
    found = describe(read_workload(shared_data / "traces" / name))
    rows, span, rate, cv, minute, peaks, prompt, output, correlation, concurrency = EXPECTED[name]
    assert found.num_requests == int(rows)
    agrees((found.span_s,), span)
    agrees((found.rate_rps,), rate)
    agrees((found.cv,), cv)
    agrees(found.cv_1min, minute)
    agrees(tuple(found.peak_to_mean[k] for k in ("1s", "10s", "60s")), peaks)
    for lengths, text in ((found.prompt_tokens, prompt), (found.output_tokens, output)):
        agrees((lengths.p50, lengths.p90, lengths.p99, lengths.max), text)
    agrees((found.correlation,), correlation)
    agrees((found.concurrency.mean, found.concurrency.p99, float(found.concurrency.max)), concurrency)


@pytest.mark.shared
def test_mooncake_reuse_and_clock(shared_data: Path) -> None:
    traces = shared_data / "traces"
    for name, ratio in (("conversation", 0.366), ("synthetic", 0.640)):
        reuse = describe(read_workload(traces / f"mooncake-fast25-{name}.jsonl.gz")).prefix_reuse
        assert reuse is not None
        assert reuse.hit_ratio == pytest.approx(ratio, abs=0.0005)
        assert reuse.block_tokens == 512
    w = read_workload(traces / "mooncake-fast25-conversation.jsonl.gz")
    assert any("1,180 distinct times for 12,031 requests, quantum 3 s" in x for x in w.warnings)
    before, after = describe(w), describe(spread_quantised(w))
    assert after.cv == pytest.approx(1.0, abs=0.05)
    for window in ("10s", "60s"):  # the README: these are real
        assert after.peak_to_mean[window] == pytest.approx(before.peak_to_mean[window], rel=0.15)


def test_arrays_are_plain(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,2\n1,3,4\n")
    w = read_workload(path)
    columns: tuple[npt.NDArray[np.float64] | npt.NDArray[np.int64], ...] = (w.arrival_s, w.prompt_tokens)
    assert [c.dtype for c in columns] == [np.dtype(np.float64), np.dtype(np.int64)]


# What cannot be known


def test_words_for_what_one_time_cannot_tell() -> None:
    from rich.console import Console

    from gambrel.faces.tables import workload_tables

    def shown(workload: Workload) -> str:
        console = Console(width=200)
        with console.capture() as captured:
            for block in workload_tables(describe(workload)):
                console.print(block)
        return captured.get()

    ones = np.ones(4, np.int64)
    together = Workload(np.zeros(4), 10 * ones, 5 * ones)
    for text in (shown(together), shown(together.take(slice(1)))):
        assert "at one time, so no rate can be known" in text
        assert "bursts       not to be known" in text
        assert "correlation  none to be known" in text
        assert "nan" not in text
        assert "inf a second" not in text
    assert "all 4 requests have one time" in shown(together)
    assert "have one time" not in shown(together.take(slice(1)))
    figures = describe(together).to_dict()
    assert figures["rate_rps"] is figures["cv"] is figures["correlation"] is figures["peak_to_mean"]["1s"] is None
    quick = Workload(np.array([0.0, 0.2, 0.5]), ones[:3], np.array([1, 2, 3]))
    assert "busiest window over the mean: the log is shorter than one" in shown(quick)
