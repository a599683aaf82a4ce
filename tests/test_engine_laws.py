"""What every replay must obey, whatever the limits: conservation, causality, determinism, and the oracle."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_cases import POLICIES, Case, affine_table, cases, poisson
from gambrel.core.step import Step, decode_parts, decode_terms, step_parts
from gambrel.core.workload import Workload
from gambrel.engine import Limits, Replay, Replicas, Requests, replay, run_replica
from gambrel.engine import state as at
from gambrel.engine.prefixes import Prefixes

LOADS = {
    # name: arrivals a second, KV blocks; the replica saturates at about 70 requests a second
    "light": (1.0, 20_000),
    "moderate": (40.0, 20_000),
    "saturated": (200.0, 20_000),
    "KV-tight": (60.0, 700),
}


def assert_same(fast: Replay, naive: Replay) -> None:
    for column in ("scheduled", "first", "last", "preemptions"):
        assert getattr(fast.requests, column).tobytes() == getattr(naive.requests, column).tobytes(), column
    assert np.array_equal(fast.histogram, naive.histogram)
    for place in (at.STEPS, at.FINISHED, at.FREE_BLOCKS, at.BATCH_MAX, at.USED_MAX):
        assert fast.ints[place] == naive.ints[place]
    exact = [at.CLOCK, at.BUSY_S, at.PREFILL_S, at.BATCH_S, at.USED_S, *range(at.BOUND_S, at.NUM_FLOATS)]
    assert fast.floats[exact].tobytes() == naive.floats[exact].tobytes()
    assert fast.floats[at.GAP_TOTAL] == pytest.approx(naive.floats[at.GAP_TOTAL], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("window", [0, 300])
@pytest.mark.parametrize("reserve", [False, True])
def test_fast_equals_naive_at_four_loads(load: str, window: int, reserve: bool) -> None:
    rate, blocks = LOADS[load]
    workload = poisson(1500, rate, 300, 100)
    table = affine_table(2048, 256, window)
    limits = Limits(256, 2048, blocks, reserve_full_prompt=reserve)
    fast = replay(table, limits, workload)
    assert_same(fast, replay(table, limits, workload, oracle=True))
    assert (int(fast.requests.preemptions.sum()) > 0) == (load == "KV-tight")


@given(cases(POLICIES, state=True))
@settings(max_examples=400)
def test_fast_equals_naive(case: Case) -> None:
    fast = replay(case.table, case.limits, case.workload)
    assert_same(fast, replay(case.table, case.limits, case.workload, oracle=True))


@given(cases(POLICIES, state=True))
@settings(max_examples=200)
def test_laws(case: Case) -> None:
    requests = Requests.of(case.workload, Prefixes.none(len(case.workload)))
    replica = Replicas.of(case.limits, requests, windowed=case.table.window > 0, sample_every_s=1e-3)
    replica.line_up(requests, np.arange(len(case.workload)))
    run_replica(case.table, case.limits, requests, replica)
    ints, floats, slots = replica.ints[0], replica.floats[0], replica.slots[0]
    n = len(case.workload)
    # requests are conserved, and so is everything they held
    assert ints[at.FINISHED] == ints[at.NUM_STARTED] == n
    assert ints[at.FREE_BLOCKS] == case.limits.num_kv_blocks
    assert ints[at.FREE_SLOTS] == case.limits.max_num_seqs
    assert sorted(slots[at.SPARE]) == list(range(case.limits.max_num_seqs))
    for place in (at.DECODES, at.CONTEXT, at.CONTEXT_WINDOWED, at.BELOW_WINDOW, at.PREEMPTED):
        assert ints[place] == 0
    for place in (at.TAIL, at.PARTIAL, at.NEXT):
        assert ints[place] == -1
    assert not replica.offsets.any()
    assert not replica.crossings.any()
    assert (replica.ring == -1).all()
    assert 0 < ints[at.USED_MAX] <= case.limits.num_kv_blocks
    assert 0 < ints[at.BATCH_MAX] <= case.limits.max_num_seqs
    # causality and order
    assert (requests.arrival <= requests.scheduled).all()
    assert (requests.scheduled < requests.first).all()
    assert (requests.first <= requests.last).all()
    assert ((requests.last > requests.first) == (requests.output > 1)).all()
    assert (np.diff(requests.scheduled) >= 0).all()  # first come, first served
    # time adds up
    assert floats[at.CLOCK] == requests.last.max()
    assert floats[at.BUSY_S] <= floats[at.CLOCK] - requests.arrival[0] + 1e-9
    assert floats[at.BOUND_S : at.PART_S].sum() == pytest.approx(floats[at.BUSY_S])
    assert 0 < floats[at.PREFILL_S] <= floats[at.BUSY_S] * (1 + 1e-12)
    assert replica.histogram.sum() == (requests.output - 1).sum()
    assert floats[at.GAP_TOTAL] == pytest.approx((requests.last - requests.first).sum(), abs=1e-9)
    # the series is a regular grid of states within bounds
    count = ints[at.NUM_SAMPLES]
    time, running, waiting, used = replica.samples[0, :, :count]
    assert np.allclose(time, floats[at.SAMPLE_ORIGIN] + np.arange(count) * floats[at.SAMPLE_EVERY])
    assert count == 0 or time[-1] < floats[at.CLOCK]
    assert (running <= case.limits.max_num_seqs).all()
    assert ((waiting >= 0) & (waiting + running <= n)).all()
    assert ((used >= 0) & (used <= case.limits.num_kv_blocks)).all()


@given(cases(POLICIES, state=True))
@settings(max_examples=30)
def test_same_input_same_bytes(case: Case) -> None:
    for routing in ("round_robin", "least_outstanding"):
        one, two = (replay(case.table, case.limits, case.workload, replicas=3, routing=routing) for _ in range(2))
        for a, b in zip(one.requests.arguments(), two.requests.arguments(), strict=True):
            assert a.tobytes() == b.tobytes()
        assert one.floats.tobytes() == two.floats.tobytes()


@given(cases(POLICIES, state=True))
@settings(max_examples=60)
def test_a_clock_can_be_stopped_and_resumed(case: Case) -> None:
    from gambrel.engine.kernel import advance

    whole = replay(case.table, case.limits, case.workload)
    requests = Requests.of(case.workload, Prefixes.none(len(case.workload)))
    replica = Replicas.of(case.limits, requests, windowed=case.table.window > 0)
    replica.line_up(requests, np.arange(len(case.workload)))
    clock = -1.0
    for until in (*np.linspace(0.0, float(whole.floats[at.CLOCK]), 7), float("inf")):
        shared = (*case.table.arrays(), case.table.window, *case.limits.arguments(), *requests.arguments())
        advance(0, until, False, *shared, *replica.arguments())
        assert replica.floats[0, at.CLOCK] >= clock  # never backwards
        clock = float(replica.floats[0, at.CLOCK])
    for column in ("scheduled", "first", "last", "preemptions", "cached"):
        assert getattr(requests, column).tobytes() == getattr(whole.requests, column).tobytes()


@given(st.integers(1, 256), st.integers(1, 10**7), st.floats(0, 1), st.sampled_from(["serial", "max"]))
def test_decoders_alone_cost_the_same_bits(decodes: int, keys: int, within: float, form: str) -> None:
    """What the loop works out once a stretch of decode steps is the step formula, not nearly so."""
    table = affine_table(256, 256, 300, form=form)
    windowed = int(keys * within)
    whole = step_parts(*table.arrays(), decodes, decodes, decodes, keys, windowed, 0, 0, 0, 0)
    alone = (*decode_terms(*table.arrays(), decodes), keys, windowed)
    assert decode_parts(*alone) == whole


@pytest.mark.parametrize("window", [0, 700])
@pytest.mark.parametrize("form", ["serial", "max"])
def test_a_request_alone_takes_the_sum_of_its_steps(window: int, form: str) -> None:
    """Chunks and decodes priced by the Python formula: the compiled one must say the same."""
    table = affine_table(512, 4, window, form=form)
    workload = Workload(np.array([0.0]), np.array([1200]), np.array([30]))
    played = replay(table, Limits(4, 512, 1000), workload)
    seconds = 0.0
    done = 0
    for chunk in (512, 512, 176):
        pairs = Step.prefill(chunk, cached=done, window=window or None)
        seconds += table.cost(replace(pairs, sampled=int(done + chunk == 1200))).seconds
        done += chunk
    assert played.requests.first[0] == pytest.approx(seconds, rel=1e-12)
    for context in range(1201, 1230):
        seconds += table.cost(Step.decode(1, context, window or None)).seconds
    assert played.requests.last[0] == pytest.approx(seconds, rel=1e-12)
    assert played.ints[at.STEPS] == 3 + 29


def test_the_kernels_run_without_a_compiler() -> None:
    """The same source under NUMBA_DISABLE_JIT, for debugging, to the same bytes."""
    script = (
        "import hashlib, sys; sys.path.insert(0, 'tests')\n"
        "from engine_cases import POLICIES, affine_table, poisson\n"
        "from gambrel.engine import Limits, replay\n"
        "digest = hashlib.sha256()\n"
        "for routing, oracle in (('round_robin', False), ('round_robin', True), ('least_outstanding', False)):\n"
        "    played = replay(affine_table(64, 8, 20), Limits(8, 64, 9, 4), poisson(25, 60, 10, 8), replicas=2,\n"
        "                    routing=routing, oracle=oracle, series=True)\n"
        "    for a in (*played.requests.arguments(), played.histogram, played.replica):\n"
        "        digest.update(a.tobytes())\n"
        "print(digest.hexdigest())\n"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={"NUMBA_DISABLE_JIT": flag, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for flag in ("0", "1")
    ]
    assert said[0] == said[1]


def test_importing_the_engine_does_not_import_numba() -> None:
    script = "import sys, gambrel.engine; print('numba' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
