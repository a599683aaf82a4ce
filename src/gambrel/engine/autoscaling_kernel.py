"""Knative's rule as compiled code: it looks every two seconds, 43,200 times a day, most often to change nothing.

See :mod:`gambrel.engine.autoscaling`, which describes the rule and keeps its arrays. This module imports numba; import
it only where a fleet starts.
"""

from __future__ import annotations

import math
from typing import Any

from gambrel.engine.compiled import compiled

__all__ = ["kpa"]

# Places in the settings.
TARGET, MIN_REPLICAS, MAX_REPLICAS, STABLE_S, PANIC_S, IDLE_S, ACTIVATION_S, RATIO, UP, DOWN, NUM_SETTINGS = range(11)
# Places in the state: what the two windows hold in all, when there was work, when it may look again, when it panicked,
# and how many replicas that does not let go.
STABLE_SUM, PANIC_SUM, BUSY, POLL, PANICKED, KEPT, NUM_STATE = range(7)
# Rows of the rings, and of the marks: the first look in it, and how many there are.
STABLE, PANIC = range(2)
FIRST, NUMBER = range(2)


@compiled()
def mean(
    window: int, seconds: float, now: float, value: float, times: Any, values: Any, marks: Any, state: Any
) -> float:
    """The mean of what was seen in the last so many seconds, with what is seen now."""
    size = times.shape[1]
    last = (marks[window, FIRST] + marks[window, NUMBER]) % size
    times[window, last] = now
    values[window, last] = value
    marks[window, NUMBER] += 1
    state[window] += value
    first = marks[window, FIRST]
    while times[window, first] <= now - seconds:
        state[window] -= values[window, first]
        first = (first + 1) % size
        marks[window, NUMBER] -= 1
    marks[window, FIRST] = first
    if marks[window, NUMBER] == 1:
        state[window] = value  # nothing is left of rounding
    return float(max(state[window], 0.0) / marks[window, NUMBER])


@compiled(mean)
def kpa(
    now: float, ready_now: int, starting: int, total: float, busy: bool,
    settings: Any, state: Any, times: Any, values: Any, marks: Any,
) -> int:  # fmt: skip
    """Replicas wanted from now on; ``times`` and ``values`` float64[2, looks] are what was seen in both windows."""
    target = settings[TARGET]
    stable_mean = mean(STABLE, settings[STABLE_S], now, total, times, values, marks, state)
    panic_mean = mean(PANIC, settings[PANIC_S], now, total, times, values, marks, state)
    if busy:
        state[BUSY] = now
    if ready_now + starting == 0:
        if now < state[POLL] or not busy:
            return 0
        state[POLL] = now + settings[ACTIVATION_S]
    elif settings[MIN_REPLICAS] == 0.0 and now - state[BUSY] >= settings[IDLE_S]:
        return 0
    ready = max(ready_now, 1)
    most = math.ceil(settings[UP] * ready)
    least = math.floor(ready_now / settings[DOWN])
    wanted = min(max(math.ceil(stable_mean / target - 1e-9), least), most)
    if panic_mean / target / ready >= settings[RATIO]:
        state[PANICKED] = now
    if now - state[PANICKED] < settings[STABLE_S]:
        burst = min(math.ceil(panic_mean / target - 1e-9), most)
        wanted = max(int(state[KEPT]), wanted, burst, ready_now)
        state[KEPT] = wanted
    else:
        state[KEPT] = 0.0
    return int(min(max(wanted, int(settings[MIN_REPLICAS]), 1), int(settings[MAX_REPLICAS])))
