"""Rates over time, the sum of clients, conversations and splits, against their definitions and what is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gambrel.core.errors import WorkloadError
from gambrel.core.workload import Workload
from gambrel.traffic import (
    ClientPool,
    Lengths,
    Quantiles,
    RateSeries,
    Split,
    chain_turns,
    compress_time,
    conversations,
    day,
    describe,
    from_rates,
    profiles,
    ramp,
    read_rates,
    read_workload,
    scale_rate,
    synthesise,
)

if TYPE_CHECKING:
    from pathlib import Path

SHORT = Lengths(Quantiles.of({0.5: 200, 0.9: 800}), Quantiles.of({0.5: 50, 0.9: 200}), 0.3)


@st.composite
def series(draw: st.DrawFn) -> RateSeries:
    """A few windows of any widths, some without requests."""
    k = draw(st.integers(1, 8))
    widths = np.array(draw(st.lists(st.floats(0.5, 100.0), min_size=k, max_size=k)))
    rates = np.array(draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0]), min_size=k, max_size=k)))
    rates[draw(st.integers(0, k - 1))] = 2.0
    edges = np.concatenate([[0.0], np.cumsum(widths)])
    return RateSeries(edges[:-1], rates, float(edges[-1]))


# Rates ---------------------------------------------------------------------------------------------------------


@given(series(), st.integers(0, 5), st.sampled_from(["poisson", "gamma", "weibull", "constant"]))
@settings(max_examples=100)
def test_arrivals_ascend_stay_inside_and_come_where_there_is_a_rate(rates: RateSeries, seed: int, process: str) -> None:
    times = rates.arrivals(np.random.default_rng(seed), arrival=process, cv=2.0 if process != "poisson" else 1.0)
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times <= rates.end_s)).all()
    counts, _ = np.histogram(times, rates.edges_s)
    inside = np.diff(rates.edges_s) * rates.rate_rps
    assert counts[inside == 0].sum() <= (np.isin(times, rates.edges_s)).sum()
    again = rates.arrivals(np.random.default_rng(seed), arrival=process, cv=2.0 if process != "poisson" else 1.0)
    assert times.tobytes() == again.tobytes()


@given(series(), st.lists(st.floats(0.0, 1.0), max_size=20))
@settings(max_examples=100)
def test_operational_time_is_the_inverse_of_the_cumulated_rate(rates: RateSeries, shares: list[float]) -> None:
    wanted = np.sort(np.array(shares)) * rates.num_requests * 0.999
    times = rates.at(wanted)
    edges, heights = rates.edges_s, np.append(0.0, np.cumsum(np.diff(rates.edges_s) * rates.rate_rps))
    assert np.interp(times, edges, heights) == pytest.approx(wanted, abs=1e-9 * rates.num_requests)


@given(series(), st.floats(0.1, 10.0), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=100)
def test_scaling_and_cutting_keep_the_curve(rates: RateSeries, factor: float, one: float, two: float) -> None:
    assert rates.scaled(factor).num_requests == pytest.approx(factor * rates.num_requests)
    low, high = sorted((one * rates.end_s, two * rates.end_s))
    if high - low < 1e-3:
        return
    try:
        part = rates.cut(low, high)
    except WorkloadError:  # nothing but empty windows
        return
    assert part.end_s == pytest.approx(high - low)
    middle = (part.edges_s[1:] + part.edges_s[:-1]) / 2 + low
    assert np.array_equal(part.rate_rps, rates.rate_rps[np.searchsorted(rates.start_s, middle, "right") - 1])


def test_counts_of_a_day_are_poisson_around_its_rates() -> None:
    rates = day(3.0, 1.8)
    times = rates.arrivals(np.random.default_rng(1))
    counts, _ = np.histogram(times, rates.edges_s)
    expected = rates.rate_rps * 600.0
    assert ((counts - expected) ** 2 / expected).mean() == pytest.approx(1.0, abs=0.3)
    assert np.corrcoef(counts, expected)[0, 1] > 0.99
    assert rates.mean_rps == pytest.approx(3.0)
    assert rates.peak_rps == pytest.approx(5.4, rel=1e-3)
    assert rates.start_s[np.argmax(rates.rate_rps)] == pytest.approx(15 * 3600, abs=600)


@pytest.mark.parametrize(("process", "cv"), [("gamma", 3.0), ("weibull", 2.0), ("weibull", 0.5), ("gamma", 0.4)])
def test_gaps_have_the_burstiness_asked_for(process: str, cv: float) -> None:
    made = synthesise(200_000, 5.0, Quantiles.of(10), Quantiles.of(10), arrival=process, cv=cv)
    gaps = np.diff(made.arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)
    assert gaps.mean() == pytest.approx(0.2, rel=0.03)


def test_a_ramp_climbs() -> None:
    made = from_rates(ramp(1.0, 9.0, 3600.0), SHORT, 1)
    first, last = (int(((made.arrival_s >= a) & (made.arrival_s < a + 360)).sum()) for a in (0, 3240))
    assert len(made) == pytest.approx(5 * 3600, rel=0.03)
    assert first == pytest.approx(1.4 * 360, rel=0.2)
    assert last == pytest.approx(8.6 * 360, rel=0.1)


def test_reading_a_series(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("time,requests_per_second,note\n100,1.5,a\n160,0,b\n280,4,c\n")
    rates = read_rates(path)
    assert rates.start_s.tolist() == [0.0, 60.0, 180.0]
    assert rates.end_s == 300.0
    assert rates.num_requests == pytest.approx(1.5 * 60 + 4 * 120)
    path.write_text("date,rps\n2026-01-01 00:00:00,1\n2026-01-01 00:10:00,2\n")
    assert read_rates(path).end_s == 1200.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("time,n\n0,1\n1,2\n", "no column of rates"),
        ("rate,n\n0,1\n1,2\n", "no column of times"),
        ("time,rate\n0,1\n", "one row"),
        ("time,rate\n0,1\n0,2\n9,2\n", "row 3, field 'time': found '0'; a time after"),
        ("time,rate\n0,1\n\n5,-2\n9,2\n", "row 4, field 'rate': found -2; a rate of at least 0"),
        ("time,rate\n0,0\n5,0\n", "no window has a rate above 0"),
        ("time,rate\n0,1\n5,many\n", "row 3, field 'rate'"),
    ],
)
def test_a_series_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=words):
        read_rates(path)


def test_figures_that_cannot_be() -> None:
    for bad in (
        lambda: day(1.0, 2.5), lambda: day(0.0), lambda: ramp(1, 2, 0.0), lambda: day(1.0).scaled(0.0),
        lambda: day(1.0).cut(9e9, 9e10), lambda: day(2e6).arrivals(np.random.default_rng(0)),
        lambda: conversations(day(0.01), SHORT, 0.5, 1.0), lambda: conversations(day(0.01), SHORT, 2.0, -1.0),
        lambda: Split(day(1.0), SHORT, 0), lambda: Split(day(1.0), SHORT, 2, rule="sticky"),
        lambda: ClientPool.draw(SHORT, 0), lambda: ClientPool(()), lambda: from_rates(day(1e-9), SHORT),
        lambda: chain_turns(Workload(np.zeros(1), np.ones(1, np.int64), np.ones(1, np.int64))),
        lambda: Lengths(SHORT.prompt, SHORT.output, 2.0),
    ):  # fmt: skip
        with pytest.raises(WorkloadError):
            bad()


@pytest.mark.shared
def test_two_weeks_and_a_day_are_everyday_inputs(shared_data: Path) -> None:
    rates = read_rates(shared_data / "traces" / "servegen-m-small-rate10min.csv.gz")
    assert (len(rates.start_s), rates.end_s) == (2016, 14 * 86_400.0)
    assert rates.mean_rps == pytest.approx(1174, abs=1)
    assert rates.peak_rps / rates.mean_rps == pytest.approx(3.30, abs=0.01)
    made = from_rates(rates.scaled(1e-4), profiles()["chat"].lengths)
    assert len(made) == pytest.approx(rates.num_requests * 1e-4, rel=0.01)
    pool = ClientPool.of(read_workload(shared_data / "traces" / "servegen-m-large-sampled-day3-2rps.csv.gz"))
    assert len(pool) == 88
    assert pool.heavy(0.9) == 25
    assert pool.clients[0].share == pytest.approx(0.314, abs=0.001)


# Clients -------------------------------------------------------------------------------------------------------


def test_many_bursty_clients_look_like_poisson_and_few_do_not() -> None:
    """What ServeGen's data show: clients of CV 2.3, whose sum has a CV near 1.

    Bursts of one client stay a little closer together than a Poisson process would have them.
    """
    steady = RateSeries(np.zeros(1), np.array([30.0]), 3600.0)
    alike = {n: ClientPool.draw(SHORT, n, rate_spread=0.0, cv=2.3, cv_spread=0.0).workload(steady) for n in (1, 200)}
    assert describe(alike[1]).cv == pytest.approx(2.3, rel=0.05)
    assert 1.0 < describe(alike[200]).cv < 1.4
    heavy = ClientPool.draw(SHORT, 200, rate_spread=2.2, cv=2.3, cv_spread=0.0).workload(steady)
    assert describe(alike[200]).cv < describe(heavy).cv < 2.2  # one of them sends a quarter of all


def test_a_pool_has_the_shape_of_a_measured_one() -> None:
    pool = ClientPool.draw(profiles()["chat"].lengths)
    assert len(pool) == 88
    assert 15 <= pool.heavy(0.9) <= 30  # 25 were measured
    assert 0.25 <= pool.clients[0].share <= 0.4  # 0.31
    cvs = np.array([c.cv for c in pool.clients])
    assert np.median(cvs) == pytest.approx(1.46, rel=0.2)


def test_taking_a_pool_from_a_log_finds_what_made_it() -> None:
    steady = RateSeries(np.zeros(1), np.array([20.0]), 7200.0)
    pool = ClientPool.draw(SHORT, 12, 3)
    log = pool.workload(steady, 1)
    found = ClientPool.of(log)
    assert found.clients[0].share == pytest.approx(pool.clients[0].share, rel=0.1)
    assert found.clients[0].cv == pytest.approx(pool.clients[0].cv, rel=0.25)
    again = found.workload(steady, 2)
    assert len(again) == pytest.approx(len(log), rel=0.1)
    for q in (0.25, 0.5, 0.9):
        assert np.quantile(again.prompt_tokens, q) == pytest.approx(np.quantile(log.prompt_tokens, q), rel=0.15)


@given(st.integers(1, 30), st.integers(0, 3), st.sampled_from(["gamma", "weibull"]))
@settings(max_examples=30)
def test_the_sum_is_its_clients(num: int, seed: int, family: str) -> None:
    steady = RateSeries(np.zeros(1), np.array([5.0]), 300.0)
    pool = ClientPool.draw(SHORT, num, seed, family=family)
    made = pool.workload(steady, seed)
    assert math.isclose(sum(c.share for c in pool.clients), 1.0)
    assert (np.diff(made.arrival_s) >= 0).all()
    assert made.session is not None
    assert set(made.session) <= set(range(num))
    assert made.arrival_s.tobytes() == pool.workload(steady, seed).arrival_s.tobytes()


# Conversations -------------------------------------------------------------------------------------------------


@given(
    st.floats(1.0, 6.0), st.floats(0.0, 60.0), st.integers(0, 3), st.sampled_from([0, 100]), st.sampled_from([0, 16])
)
@settings(max_examples=60)
def test_a_turn_holds_all_that_was_said(turns: float, think: float, seed: int, system: int, granule: int) -> None:
    steady = RateSeries(np.zeros(1), np.array([0.3]), 200.0)
    made = conversations(steady, SHORT, turns, think, seed, system_tokens=system, granule=granule)
    after, session = made.after, made.session
    assert after is not None
    assert session is not None
    waits = np.flatnonzero(after >= 0)
    assert (session[waits] == session[after[waits]]).all()
    said = made.prompt_tokens + made.output_tokens
    assert (made.prompt_tokens[waits] > said[after[waits]]).all()
    assert (made.prompt_tokens > system).all()
    assert len(np.unique(session)) == (after < 0).sum()
    if granule:
        hashes, offsets = made.prefix_blocks, made.prefix_offsets
        assert hashes is not None
        assert offsets is not None
        for i in waits[:20]:
            full = int(said[after[i]]) // granule
            mine, before = (hashes[offsets[k] : offsets[k] + full] for k in (i, after[i]))
            assert np.array_equal(mine, before)
        starts = hashes[offsets[:-1]]
        assert len(np.unique(starts)) == (1 if system >= granule else len(np.unique(session)))


def test_conversations_have_the_turns_and_end_before_the_context_does() -> None:
    steady = RateSeries(np.zeros(1), np.array([2.0]), 3600.0)
    made = conversations(steady, SHORT, 4.0, 10.0)
    assert len(made) / 7200 == pytest.approx(4.0, rel=0.05)
    capped = conversations(steady, SHORT, 4.0, 10.0, max_tokens=4000)
    assert int((capped.prompt_tokens + capped.output_tokens).max()) <= 4000
    assert len(capped) < len(made)
    assert "conversations that begin above 4,000 tokens were left out" in capped.warnings[0]
    with pytest.raises(WorkloadError, match="begins with at most max_tokens 2 tokens"):
        conversations(steady, SHORT, 4.0, 10.0, max_tokens=2)


def test_a_log_of_sessions_keeps_its_pauses() -> None:
    ones = np.ones(5, np.int64)
    log = Workload(
        np.array([0.0, 1.0, 10.0, 10.5, 30.0]), ones, ones, session=np.array([7, 8, 7, 8, 7]),
        service_s=np.array([2.0, 20.0, 5.0, 1.0, 1.0]),
    )  # fmt: skip
    chained = chain_turns(log)
    assert chained.after is not None
    assert chained.think_s is not None
    assert chained.after.tolist() == [-1, -1, 0, 1, 2]
    assert chained.think_s.tolist() == [8.0, 0.0, 15.0, 0.0, 0.0]
    assert "1 of 3 turns came before" in chained.warnings[-1]


@given(st.floats(0.2, 3.7), st.integers(0, 3))
@settings(max_examples=40)
def test_more_conversations_are_whole_ones(factor: float, seed: int) -> None:
    steady = RateSeries(np.zeros(1), np.array([0.5]), 300.0)
    made = conversations(steady, SHORT, 3.0, 20.0, 1)
    scaled = scale_rate(made, factor, seed=seed)
    assert scaled.after is not None
    assert scaled.session is not None
    waits = np.flatnonzero(scaled.after >= 0)
    assert (scaled.session[waits] == scaled.session[scaled.after[waits]]).all()
    assert made.session is not None
    turns = np.unique(scaled.session, return_counts=True)[1]
    assert np.isin(turns, np.unique(made.session, return_counts=True)[1]).all()
    assert len(turns) == (scaled.after < 0).sum()
    quick = compress_time(made, 2.0)
    assert quick.think_s is not None
    assert made.think_s is not None
    assert np.array_equal(quick.think_s, made.think_s / 2.0)


# Splits --------------------------------------------------------------------------------------------------------


def test_a_random_split_of_poisson_is_poisson() -> None:
    split = Split(RateSeries(np.zeros(1), np.array([200.0]), 3600.0), SHORT, 100)
    parts = [split(k) for k in range(100)]
    counts = np.array([0 if p is None else len(p) for p in parts])
    assert counts.sum() == pytest.approx(720_000, rel=0.005)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.35)
    gaps = np.concatenate([np.diff(p.arrival_s) for p in parts if p is not None])
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("replicas", [2, 25])
def test_a_round_robin_split_has_the_law_of_every_rth(replicas: int) -> None:
    """Against dealing one Poisson stream: counts, gaps, and the first arrival of the last replica."""
    rates = RateSeries(np.zeros(1), np.array([50.0]), 3600.0)
    split = Split(rates, SHORT, replicas, rule="round_robin")
    whole = from_rates(rates, SHORT, 5).arrival_s
    drawn = [p.arrival_s for p in (split(k) for k in range(replicas)) if p is not None]
    assert sum(map(len, drawn)) == pytest.approx(len(whole), rel=0.01)
    dealt = np.diff(whole[::replicas])
    gaps = np.concatenate([np.diff(d) for d in drawn])
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(replicas), rel=0.05)
    for q in (0.05, 0.5, 0.95):
        assert np.quantile(gaps, q) == pytest.approx(np.quantile(dealt, q), rel=0.05)
    short = rates.cut(0.0, 60.0)
    firsts = [Split(short, SHORT, replicas, seed, "round_robin")(replicas - 1) for seed in range(300)]
    mean = np.mean([w.arrival_s[0] for w in firsts if w is not None])
    assert mean == pytest.approx(replicas / 50.0, rel=0.2)


def test_a_split_is_the_same_for_the_same_seed_and_no_two_replicas_are_alike() -> None:
    split = Split(day(0.5), SHORT, 10, 4)
    one, again, other, reseeded = split(3), split(3), split(4), replace(split, seed=5)(3)
    assert one is not None
    assert again is not None
    assert other is not None
    assert reseeded is not None
    assert one.arrival_s.tobytes() == again.arrival_s.tobytes()
    assert one.prompt_tokens.tobytes() == again.prompt_tokens.tobytes()
    assert one.arrival_s[0] != other.arrival_s[0]
    assert one.arrival_s[0] != reseeded.arrival_s[0]
    turns = replace(split, turns=3.0, think_s=5.0)(3)
    assert turns is not None
    assert turns.after is not None
    assert Split(RateSeries(np.zeros(1), np.array([1e-6]), 1.0), SHORT, 10)(0) is None
