"""Looking at a replay while it runs, and ending it early: the kernels hold no lock, so another thread may do both.

The columns of requests fill as the replay goes; counting the finished ones costs the replay nothing. Whoever sets
:attr:`Watch.stop` ends it after the present slice of simulated time; what has happened by then is kept.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from gambrel.engine.state import Requests

__all__ = ["Watch", "in_slices"]

SLICE_WALL_S = 0.2  # how long nobody can interrupt


@dataclass(slots=True)
class Watch:
    """A replay under way: give it to :func:`gambrel.engine.simulate`, read and stop it from another thread.

    ``stop`` bool[1]; ``requests`` are there once the replay has begun, under the schedulers that can be watched.
    """

    stop: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(1, np.bool_))
    requests: Requests | None = None

    def look(self) -> tuple[int, int, float]:
        """Requests that have ended, requests in all, and the latest end in seconds on the workload's clock."""
        if self.requests is None:
            return 0, 0, 0.0
        ended = self.requests.last[np.isfinite(self.requests.last)]
        return len(ended), len(self.requests.last), float(ended.max()) if len(ended) else 0.0


def in_slices(advance: Callable[[float], float | None], stop: npt.NDArray[np.bool_], clock: float) -> None:
    """Call ``advance(until)`` with growing times until it says None (all is done) or ``stop`` is set.

    It answers the clock it has reached. A slice is as much simulated time as takes a fifth of a second.
    """
    length = 1.0
    now: float | None = clock
    while now is not None and not stop[0]:
        started = time.perf_counter()
        now = advance(now + length)
        took = max(time.perf_counter() - started, 1e-6)
        length *= min(max(SLICE_WALL_S / took, 0.25), 4.0)
