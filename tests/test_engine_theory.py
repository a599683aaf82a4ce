"""The engine against queueing theory and against identities that hold on every sample path."""

from __future__ import annotations

import numpy as np
import pytest

from engine_cases import affine_table, constant_table, poisson
from gambrel.core.workload import Workload
from gambrel.engine import Limits, replay, run_of
from gambrel.engine import state as at


@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.8])
def test_md1(utilisation: float) -> None:
    """One sequence at a time and one token each is M/D/1: mean wait rho D / (2 (1 - rho)) (Pollaczek-Khinchine)."""
    service, n = 0.02, 400_000
    rng = np.random.default_rng(7)
    ones = np.ones(n, np.int64)
    workload = Workload(np.cumsum(rng.exponential(service / utilisation, n)), ones * 100, ones)
    played = replay(constant_table(service, 128, 1), Limits(1, 128, 1000), workload)
    wait = played.requests.scheduled - played.requests.arrival
    assert wait.mean() == pytest.approx(utilisation * service / (2 * (1 - utilisation)), rel=0.03)
    assert (wait == 0).mean() == pytest.approx(1 - utilisation, abs=0.005)
    assert played.floats[at.BUSY_S] == pytest.approx(n * service)


def test_littles_law() -> None:
    """Mean requests in the system, read off the series, is the arrival rate times the mean time in it."""
    workload = poisson(20_000, 45.0, 300, 100)
    limits = Limits(64, 2048, 3000)
    run = run_of(replay(affine_table(2048, 64), limits, workload, series=True), limits)
    assert run.series is not None
    assert len(run.series.time_s) <= at.NUM_SAMPLES_MAX
    present = float((run.series.running + run.series.waiting).mean())
    assert present == pytest.approx(len(run) / run.makespan_s * run.e2e_s.mean(), rel=0.02)


def test_sequence_seconds_add_up() -> None:
    """Without preemption, batch size over time and residence of requests are two ways to count the same thing."""
    workload = poisson(5_000, 30.0, 200, 60)
    limits = Limits(256, 8192, 20_000)
    run = run_of(replay(affine_table(8192, 256), limits, workload), limits)
    assert run.num_preemptions == 0
    residence = (run.last_token_s - run.scheduled_s).sum()
    assert run.batch_mean * run.busy_s == pytest.approx(residence, rel=1e-9)


def test_gap_histogram_matches_the_run() -> None:
    """Its total is exact; its percentiles lie within a bucket (1/32 of an octave at most) of the oracle's gaps."""
    workload = poisson(3_000, 40.0, 200, 60)
    limits = Limits(256, 2048, 20_000)
    run = run_of(replay(affine_table(2048, 256), limits, workload), limits)
    assert run.itl.total == pytest.approx((run.last_token_s - run.first_token_s).sum(), rel=1e-9)
    assert run.itl.counts.sum() == (run.output_tokens - 1).sum()
    assert (np.diff(run.itl.edges) / run.itl.edges[:-1] <= 1 / 32 + 1e-12).all()
    # with one request the gaps are known one by one
    alone = Workload(np.array([0.0]), np.array([10]), np.array([2]))
    one = run_of(replay(affine_table(2048, 256), limits, alone), limits)
    assert one.distribution("itl").p50 == pytest.approx(float(one.tpot_s[0]), rel=1 / 32)


def test_more_decoders_cost_no_more_steps() -> None:
    """Continuous batching: 200 answers of 50 tokens that start together take as many steps as one."""
    n = 200
    workload = Workload(np.zeros(n), np.full(n, 8), np.full(n, 50))
    played = replay(affine_table(2048, 256), Limits(256, 2048, 20_000), workload)
    assert played.ints[at.STEPS] == 50
