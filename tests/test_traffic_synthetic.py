"""Synthetic workloads have the figures that were asked for; scaled ones keep what scaling must keep."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import gambrel.traffic
from gambrel.core.errors import WorkloadError
from gambrel.traffic import (
    Quantiles,
    ServiceModel,
    compress_time,
    describe,
    from_users,
    profile,
    profiles,
    sample,
    scale_lengths,
    scale_rate,
    slice_time,
    synthesise,
    write_workload,
)
from gambrel.traffic.load import SAMPLE_SPEC

if TYPE_CHECKING:
    from gambrel.core.workload import Workload

PROMPT = Quantiles.of({0.1: 200, 0.5: 1020, 0.9: 2735, 0.99: 4142})
OUTPUT = Quantiles.of({0.1: 50, 0.5: 129, 0.9: 424, 0.99: 601})


def as_bytes(w: Workload) -> bytes:
    return w.arrival_s.tobytes() + w.prompt_tokens.tobytes() + w.output_tokens.tobytes()


def standard_error(q: Quantiles, probability: float, n: int) -> tuple[float, float]:
    """The lengths between which a sample's quantile lies but for four standard errors."""
    width = 4 * math.sqrt(probability * (1 - probability) / n)
    return q.at(max(probability - width, 0.0)), q.at(min(probability + width, 1.0))


# Quantiles


@given(st.lists(st.tuples(st.integers(1, 999), st.integers(1, 10**6)), min_size=1, max_size=6))
def test_quantiles_are_met_at_their_points_and_monotone(points: list[tuple[int, int]]) -> None:
    probabilities = sorted({p / 1000 for p, _ in points})
    tokens = sorted(float(t) for _, t in points)[: len(probabilities)]
    q = Quantiles.of(dict(zip(probabilities, tokens, strict=True)))
    for p, t in zip(probabilities, tokens, strict=True):
        assert q.at(p) == t
    found = [q.at(p) for p in np.linspace(0, 1, 30)]
    assert found == sorted(found)


def test_two_points_are_a_lognormal() -> None:
    z = 1.2815515655446004  # the normal score of 0.9
    q = Quantiles.of({0.5: 1000, 0.9: 1000 * math.exp(0.5 * z)})
    assert q.mean == pytest.approx(1000 * math.exp(0.5 * 0.25), rel=0.002)
    assert q.at(0.1) == pytest.approx(1000 * math.exp(-0.5 * z), abs=0.5)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ({}, "no points"),
        ({0.5: 0}, "at least 1"),
        ({1.5: 10}, "probability"),
        ({0.5: 100, 0.9: 50}, "must rise"),
        ({0.5: math.nan}, "at least 1"),
    ],
)
def test_quantiles_refuse(points: dict[float, float], words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        Quantiles.of(points)


# Synthesis


@given(
    n=st.integers(3000, 6000),
    rate=st.floats(0.01, 1000),
    seed=st.integers(0, 2**32),
    correlation=st.floats(-0.9, 0.9),
    cv=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
@settings(max_examples=20)
def test_figures_asked_for_are_figures_found(n: int, rate: float, seed: int, correlation: float, cv: float) -> None:
    w = synthesise(n, rate, PROMPT, OUTPUT, seed, arrival="gamma", cv=cv, correlation=correlation)
    assert len(w) == n
    found = describe(w)
    # Four standard errors of each estimate.
    assert found.rate_rps == pytest.approx(rate, rel=max(5 * cv / math.sqrt(n), 1e-9))
    assert found.cv == pytest.approx(cv, abs=0.3 * cv + 1e-6)
    assert found.correlation == pytest.approx(correlation, abs=5 / math.sqrt(n))
    for q, lengths in ((PROMPT, w.prompt_tokens), (OUTPUT, w.output_tokens)):
        for p in (0.5, 0.9, 0.99):
            low, high = standard_error(q, p, n)
            assert low - 1 <= float(np.percentile(lengths, 100 * p)) <= high + 1
    assert as_bytes(synthesise(n, rate, PROMPT, OUTPUT, seed, arrival="gamma", cv=cv, correlation=correlation)) == (
        as_bytes(w)
    )


def test_seeds_differ_and_constants_are_constant() -> None:
    a, b = (synthesise(50, 1.0, PROMPT, OUTPUT, seed) for seed in (0, 1))
    assert as_bytes(a) != as_bytes(b)
    w = synthesise(10, 4.0, Quantiles.of(512), Quantiles.of(64), arrival="constant")
    assert set(w.prompt_tokens.tolist()) == {512}
    assert np.allclose(np.diff(w.arrival_s), 0.25)


@pytest.mark.parametrize(
    "options", [{"n": 0}, {"rate": 0.0}, {"rate": math.nan}, {"cv": -1.0}, {"arrival": "weekly"}, {"correlation": 2.0}]
)
def test_synthesis_refuses(options: dict[str, float | str]) -> None:
    n, rate = int(options.pop("n", 5)), float(options.pop("rate", 1.0))
    with pytest.raises(WorkloadError):
        synthesise(n, rate, PROMPT, OUTPUT, **options)  # type: ignore[arg-type] # the wrong types are the test


# Profiles

PUBLISHED_MEANS = {
    # Means of the traces that the quantiles were taken from; the quantiles alone must give them back.
    "chat": (1155, 211),
    "code": (2048, 28),
    "long-document": (12035, 343),
    "reasoning": (852, 1323),
    "summarisation": (2588, 291),
}


def test_profiles_are_the_ones_promised() -> None:
    assert set(profiles()) == set(PUBLISHED_MEANS)
    for p in profiles().values():
        assert p.source
        assert p.as_of
        assert p.requests > 1000


@pytest.mark.parametrize("name", PUBLISHED_MEANS)
def test_profiles_keep_the_means_of_their_traces(name: str) -> None:
    prompt, output = PUBLISHED_MEANS[name]
    assert profiles()[name].prompt.mean == pytest.approx(prompt, rel=0.035)
    assert profiles()[name].output.mean == pytest.approx(output, rel=0.035)


def test_splitwise_medians() -> None:
    # Patel et al., ISCA 2024: median prompt 1,020 and 1,500 tokens, median output 129 and 13.
    assert profiles()["chat"].prompt.at(0.5) == 1020
    assert profiles()["chat"].output.at(0.5) == 129
    assert profiles()["code"].prompt.at(0.5) == pytest.approx(1500, rel=0.03)
    assert profiles()["code"].output.at(0.5) == 13


def test_profile_sentences() -> None:
    w = profile("chat:rate=5,minutes=10,seed=3")
    assert len(w) == 3000
    assert w.rate_rps == pytest.approx(5, rel=0.1)
    assert as_bytes(w) == as_bytes(profile("chat: rate=5, minutes=10, seed=3"))
    assert len(profile("code")) == 2000
    assert describe(profile("code:n=20000")).cv == pytest.approx(3.1, rel=0.15)
    assert describe(profile("chat:n=20000,cv=2")).cv == pytest.approx(2.0, rel=0.1)
    assert np.ptp(np.diff(profile("chat:n=100,arrival=constant").arrival_s)) < 1e-9
    for spec, words in (
        ("chatt:rate=5", "nearest: chat"),
        ("chat:rte=5", "'rte'; nearest: rate"),
        ("chat:rate=fast", "rate must be a number, got 'fast'"),
        ("chat:rate", "rate"),
        ("chat:n=2.5", "whole number"),
        ("chat:n=5,minutes=3", "give one"),
        ("chat:rate=-1", "above 0"),
        ("chat:arrival=weekly", "poisson, gamma, weibull, constant"),
        ("chat:seed=-4", "seed"),
        ("chat:minutes=nan", "minutes"),
    ):
        with pytest.raises(WorkloadError, match=words):
            profile(spec)


def test_the_shipped_sample_is_what_its_script_makes(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "scripts" / "make_sample.py"
    spec = importlib.util.spec_from_file_location("make_sample", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(tmp_path / "sample.csv.gz")])
    shipped = Path(gambrel.traffic.__file__).parent / "data" / "sample.csv.gz"
    again = tmp_path / "plain.csv"
    write_workload(profile(SAMPLE_SPEC), again)
    import gzip

    # The text is compared, not the compressed bytes, which depend on the version of zlib.
    texts = {gzip.decompress(p.read_bytes()) for p in (shipped, tmp_path / "sample.csv.gz")} | {again.read_bytes()}
    assert len(texts) == 1
    assert len(sample()) == 2000


# Users


@given(
    users=st.integers(1, 40),
    think=st.sampled_from([0.0, 1.0, 30.0]),
    service=st.floats(0.1, 60),
    n=st.integers(1, 400),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_users_never_overlap_themselves(users: int, think: float, service: float, n: int, seed: int) -> None:
    w = from_users(users, 128_000, 500, think, service, n, seed)
    assert len(w) == n
    assert set(w.prompt_tokens.tolist()) == {128_000}
    assert w.session is not None
    for user in set(w.session.tolist()):
        gaps = np.diff(w.arrival_s[w.session == user])
        assert np.all(gaps >= service * (1 - 1e-9))
    busy = describe(w, ServiceModel(1e30, service * (1 - 1e-9) / 500)).concurrency
    assert busy.max <= users
    assert as_bytes(from_users(users, 128_000, 500, think, service, n, seed)) == as_bytes(w)


def test_the_closed_loop_law() -> None:
    w = from_users(50, 1000, 100, think_s=20.0, service_s=5.0, n=20_000)
    assert w.rate_rps == pytest.approx(50 / 25.0, rel=0.03)  # X = N / (R + Z)
    held = from_users(5, 128_000, 500, think_s=0.0, service_s=20.0, n=1000)
    assert held.rate_rps == pytest.approx(5 / 20.0, rel=0.01)
    assert describe(held, ServiceModel(1e30, 20 * (1 - 1e-9) / 500)).concurrency.p50 == 5  # always all of them
    for bad in ({"users": 0}, {"think_s": -1.0}, {"service_s": 0.0}, {"n": 0}):
        with pytest.raises(WorkloadError):
            from_users(**{"users": 5, "prompt": 10, "output": 5, "think_s": 1.0, "service_s": 1.0, **bad})  # type: ignore[arg-type] # int for all


# Scaling


def bursty(seed: int = 0, n: int = 4000) -> Workload:
    """An hour in bursts, twice as busy in its first half as in its second."""
    w = synthesise(n, n / 3600, PROMPT, OUTPUT, seed, arrival="gamma", cv=2.0)
    share = w.arrival_s / w.arrival_s[-1]
    warped = np.where(share < 2 / 3, share * 0.75, 0.5 + (share - 2 / 3) * 1.5)
    return replace(
        w,
        arrival_s=warped * 3600.0,
        session=np.arange(n) % 7,
        prefix_blocks=np.arange(n) // 2,
        prefix_offsets=np.arange(n + 1),
        prefix_block_tokens=16,
    )


@given(factor=st.floats(0.05, 6.0), seed=st.integers(0, 50))
@settings(max_examples=30)
def test_scaled_rate(factor: float, seed: int) -> None:
    w = bursty()
    scaled = scale_rate(w, factor, seed)
    assert len(scaled) == pytest.approx(factor * len(w), abs=5 * math.sqrt(len(w) * 0.25) + 1)
    assert scaled.span_s == pytest.approx(w.span_s, rel=0.05)
    assert as_bytes(scaled) == as_bytes(scale_rate(w, factor, seed))
    # The curve of the day stays: two thirds come in the first half, give or take the shifts of up to 300 s.
    early = float((scaled.arrival_s < 1800).mean())
    assert early == pytest.approx(2 / 3, abs=0.06 + 2.5 / math.sqrt(len(scaled)))
    # What is kept are whole requests of the log.
    pairs = set(zip(w.prompt_tokens.tolist(), w.output_tokens.tolist(), strict=True))
    assert set(zip(scaled.prompt_tokens.tolist(), scaled.output_tokens.tolist(), strict=True)) <= pairs


def test_copies_share_no_cache_and_no_sessions() -> None:
    w = bursty()
    before, after = describe(w), describe(scale_rate(w, 3.0))
    assert before.prefix_reuse is not None
    assert after.prefix_reuse is not None
    assert after.prefix_reuse.hit_ratio == pytest.approx(before.prefix_reuse.hit_ratio)
    assert after.num_sessions == 3 * (before.num_sessions or 0)
    assert w.prefix_blocks is not None
    raw = replace(w, prefix_blocks=w.prefix_blocks * 2**50 - 2**60)
    reuse = describe(scale_rate(raw, 3.0)).prefix_reuse
    assert reuse is not None
    assert reuse.hit_ratio == pytest.approx(before.prefix_reuse.hit_ratio)


def test_superposition_keeps_dispersion_and_compression_keeps_cv() -> None:
    w = synthesise(20_000, 5.0, PROMPT, OUTPUT, arrival="gamma", cv=2.0)
    before = describe(w)
    more, faster = describe(scale_rate(w, 4.0)), describe(compress_time(w, 4.0))
    assert more.dispersion["1s"] == pytest.approx(before.dispersion["1s"], rel=0.15)
    assert 1.0 < more.cv < 0.9 * before.cv
    assert faster.cv == pytest.approx(before.cv)
    assert more.rate_rps == pytest.approx(faster.rate_rps, rel=0.01)
    less = describe(scale_rate(w, 0.25))
    assert less.dispersion["1s"] - 1 == pytest.approx(0.25 * (before.dispersion["1s"] - 1), rel=0.35)


@given(st.floats(0.001, 50), st.floats(0.001, 50))
@settings(max_examples=30)
def test_scaled_lengths(prompt: float, output: float) -> None:
    w = bursty(n=200)
    scaled = scale_lengths(w, prompt, output)
    assert np.all(np.abs(scaled.prompt_tokens - np.maximum(w.prompt_tokens * prompt, 1)) <= 0.5)
    assert np.all(np.abs(scaled.output_tokens - np.maximum(w.output_tokens * output, 1)) <= 0.5)
    assert (scaled.prefix_blocks is None) == (prompt != 1.0)
    assert scale_lengths(w).prefix_blocks is not None


@given(st.floats(0, 3600), st.floats(0, 3600))
@settings(max_examples=40)
def test_slices_partition_the_log(a: float, b: float) -> None:
    low, high = sorted((a, b))
    w = bursty(n=300)
    inside = (w.arrival_s >= low) & (w.arrival_s < high)
    assume(inside.any())
    part = slice_time(w, low, high)
    assert np.array_equal(part.prompt_tokens, w.prompt_tokens[inside])
    assert np.allclose(part.arrival_s + low, w.arrival_s[inside])
    assert part.prefix_blocks is not None
    assert w.prefix_blocks is not None
    assert np.array_equal(part.prefix_blocks, w.prefix_blocks[inside])


def test_scaling_refuses() -> None:
    w = bursty(n=10)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        for change in (scale_rate, compress_time, scale_lengths):
            with pytest.raises(WorkloadError, match="above 0"):
                change(w, wrong)
    with pytest.raises(WorkloadError, match="leaves none"):
        scale_rate(w, 1e-9)
    with pytest.raises(WorkloadError, match="more than"):
        scale_rate(w, 1e12)
    with pytest.raises(WorkloadError, match="2\\*\\*31"):
        scale_lengths(w, 1e9)
    with pytest.raises(WorkloadError, match="arrivals run from"):
        slice_time(w, 5000, 6000)
    with pytest.raises(WorkloadError, match="users, not a rate"):
        scale_rate(replace(w, closed_loop=2), 2.0)
