"""A replay that is watched gives the same bytes; one that is stopped keeps what it has."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engine_cases import affine_table, poisson
from gambrel.engine import Limits, Watch, replay, run_of
from gambrel.engine import state as at

if TYPE_CHECKING:
    from typing import Any

HOW: list[dict[str, Any]] = [
    {},
    {"replicas": 3},
    {"oracle": True},
    {"routing": "least_outstanding", "replicas": 2},
]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_watching_changes_nothing(how: dict[str, Any]) -> None:
    table, limits = affine_table(512, 32), Limits(32, 512, 800)
    workload = poisson(2000, 30.0, 100, 40)
    alone = replay(table, limits, workload, **how)
    watch = Watch()
    seen = replay(table, limits, workload, watch=watch, **how)
    for column in ("scheduled", "first", "last", "preemptions", "paused"):
        assert getattr(alone.requests, column).tobytes() == getattr(seen.requests, column).tobytes()
    assert alone.floats[at.BUSY_S] == seen.floats[at.BUSY_S]
    assert np.array_equal(alone.histogram, seen.histogram)
    assert watch.look() == (2000, 2000, alone.requests.last.max())


@pytest.mark.parametrize("how", HOW[:3], ids=str)
def test_stopping_keeps_what_it_has(how: dict[str, Any]) -> None:
    """From another thread, in the middle: who has ended is as in the whole replay, nobody else has."""
    table, limits = affine_table(512, 32), Limits(32, 512, 20_000)
    workload = poisson(1_000_000 if not how.get("oracle") else 300_000, 30.0, 100, 40)
    watch = Watch()
    found = []
    thread = threading.Thread(target=lambda: found.append(replay(table, limits, workload, watch=watch, **how)))
    thread.start()
    until = time.monotonic() + 60
    while watch.look()[0] < 1000 and time.monotonic() < until:
        time.sleep(0.01)
    watch.stop[0] = True
    thread.join(20)
    assert not thread.is_alive()
    run = run_of(found[0], limits, how.get("replicas", 1))
    assert 1000 <= len(run) - run.num_unfinished < len(run)
    assert watch.look()[0] == len(run) - run.num_unfinished
    ended = np.isfinite(run.last_token_s)
    whole = replay(table, limits, workload, **how)
    assert np.array_equal(whole.requests.last[ended], run.last_token_s[ended])


def test_nothing_done_yet_is_no_error() -> None:
    limits = Limits(32, 512, 800)
    watch = Watch()
    assert watch.look() == (0, 0, 0.0)
    watch.stop[0] = True
    run = run_of(replay(affine_table(512, 32), limits, poisson(50, 1.0, 10, 10), watch=watch), limits)
    assert run.num_unfinished == 50
