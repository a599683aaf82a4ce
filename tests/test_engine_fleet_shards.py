"""Replicas one by one: counts are those of the replays, whoever computes them, and stop where they are interrupted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_cases import Case, affine_table, cases, poisson
from gambrel.core.errors import WorkloadError
from gambrel.core.slo import SLO
from gambrel.core.workload import Workload
from gambrel.engine import Limits, replay, run_of
from gambrel.engine.shards import METRICS, Tally, serve_shards

TABLE, LIMITS = affine_table(1024, 64), Limits(64, 1024, 3000)


def source(k: int) -> Workload | None:
    """The requests of replica k; the fifth has none."""
    return None if k == 5 else poisson(400 + 10 * k, 20.0 + k, 100, 40, seed=k)


def same(one: Tally, two: Tally) -> bool:
    return (
        all(np.array_equal(one.counts[m], two.counts[m]) for m in METRICS)
        and one.sums == two.sums
        and one.totals == two.totals
        and np.array_equal(one.in_flight, two.in_flight)
        and np.array_equal(one.ttft, two.ttft)
    )


def test_the_tally_is_that_of_the_replays() -> None:
    slo = SLO.parse(["ttft.p95<=20ms", "tpot.p95<=8ms", "goodput>=50%"])
    tally = serve_shards(TABLE, LIMITS, source, 8, slo=slo, horizon_s=30.0, windows=10)
    runs = [run_of(replay(TABLE, LIMITS, w), LIMITS) for w in map(source, range(8)) if w is not None]
    assert tally.complete
    assert tally.num_requests == sum(map(len, runs))
    for metric in METRICS:
        found = tally.distribution(metric)
        if metric == "itl":
            assert found.count == sum(int(r.itl.counts.sum()) for r in runs)
            continue
        values = np.concatenate([getattr(r, f"{metric}_s") for r in runs])
        values = values[np.isfinite(values)]
        assert found.count == len(values)
        assert found.mean == pytest.approx(values.mean(), rel=1e-9)
        for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            exact = float(np.quantile(values, q, method="inverted_cdf"))
            assert found.percentile(name) == pytest.approx(exact, rel=0.032, abs=2e-9)
    assert tally.goodput == pytest.approx(sum(slo.goodput(r) * len(r) for r in runs) / tally.num_requests)
    assert tally.sums["busy_s"] == pytest.approx(sum(r.busy_s for r in runs))
    assert tally.sums["output_tokens"] == sum(int(r.output_tokens.sum()) for r in runs)
    assert sum(tally.time_bound_by().values()) == pytest.approx(1.0)
    assert [v.objective.name for v in tally.check(slo)] == ["ttft.p95", "tpot.p95", "goodput"]
    assert tally.check(slo)[-1].reached == tally.goodput
    # Windows: arrivals add up, and what is in flight is the sum of residences (Little, on the sample path).
    assert tally.arrivals.sum() == tally.num_requests
    assert tally.ttft.sum() == tally.num_requests
    inside = sum(float((np.minimum(r.last_token_s, 30.0) - np.minimum(r.arrival_s, 30.0)).sum()) for r in runs)
    assert float(tally.in_flight.sum()) * tally.window_s == pytest.approx(inside, rel=1e-9)
    windows = tally.ttft_by_window()
    assert np.isfinite(windows).sum() == (tally.arrivals > 0).sum()


@given(st.lists(cases(), min_size=1, max_size=4), st.integers(1, 3))
@settings(max_examples=40)
def test_it_does_not_matter_who_computes(several: list[Case], workers: int) -> None:
    first = several[0]
    one, other = (
        serve_shards(first.table, first.limits, lambda _: first.workload, 4, horizon_s=1.0, windows=3, workers=w)
        for w in (1, workers)
    )
    assert same(one, other)
    assert one.num_requests == 4 * len(first.workload)


def test_an_interrupt_keeps_what_is_done() -> None:
    def progress(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    part = serve_shards(TABLE, LIMITS, source, 50, horizon_s=30.0, progress=progress)
    assert not part.complete
    assert 3 <= part.shards < 12
    assert part.asked == 50
    assert part.num_requests == part.counts["ttft"].sum() > 0
    with pytest.raises(KeyboardInterrupt):
        serve_shards(TABLE, LIMITS, lambda _: None, 50, progress=progress)


def test_a_day_without_a_request_is_refused() -> None:
    with pytest.raises(WorkloadError, match="no request arrives at any of 3 replicas"):
        serve_shards(TABLE, LIMITS, lambda _: None, 3)


def test_a_request_that_fits_no_replica_is_named() -> None:
    with pytest.raises(WorkloadError, match="need 313 KV blocks"):
        serve_shards(TABLE, Limits(64, 1024, 100), lambda _: Workload(np.zeros(1), np.array([5000]), np.array([2])), 3)


def test_a_split_router_is_what_it_stands_for() -> None:
    """Pooled over replicas, parts drawn apart are like the whole dealt in turn: the same law, other numbers."""
    n, replicas = 60_000, 6
    rng = np.random.default_rng(0)
    whole = Workload(np.cumsum(rng.exponential(1 / 240.0, n)), rng.integers(1, 200, n), rng.integers(1, 80, n))
    dealt = run_of(replay(TABLE, LIMITS, whole, replicas=replicas), LIMITS)

    def part(k: int) -> Workload:
        own = np.random.default_rng(k + 1)
        m = n // replicas
        arrival = np.cumsum(own.gamma(replicas, 1 / 240.0, m))
        return Workload(arrival, own.integers(1, 200, m), own.integers(1, 80, m))

    tally = serve_shards(TABLE, LIMITS, part, replicas, horizon_s=250.0)
    for metric in ("ttft", "e2e", "tpot"):
        assert tally.distribution(metric).mean == pytest.approx(dealt.distribution(metric).mean, rel=0.02)
        assert tally.distribution(metric).p95 == pytest.approx(dealt.distribution(metric).p95, rel=0.05)
