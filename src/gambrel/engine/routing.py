"""Which replica serves a request, and the replay of all of them.

Round robin looks at nothing, so each replica's line is known beforehand and the replicas run on their own. Least
outstanding looks at the replicas when a request arrives, so they are advanced in one loop over arrivals.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.engine.state import Replica

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.step import StepTable
    from gambrel.core.workload import Ints
    from gambrel.engine.state import Limits, Requests

    Router = Callable[[StepTable, Limits, Requests, int, int, float, bool], tuple[list[Replica], Ints]]

__all__ = ["ROUTINGS", "least_outstanding", "round_robin"]

_THREADS_FROM = 20_000  # requests from which a second thread pays for itself


def round_robin(
    table: StepTable, limits: Limits, requests: Requests, replicas: int, longest: int, every_s: float, oracle: bool
) -> tuple[list[Replica], Ints]:
    """Request i goes to replica i modulo the number of replicas; the finished replicas and each request's replica."""
    n = len(requests.arrival)
    origin = float(requests.arrival[0])
    served = [
        Replica.of(
            limits,
            longest,
            first_request=requests.line_up(np.arange(r, n, replicas)),
            origin_s=origin,
            sample_every_s=every_s,
        )
        for r in range(replicas)
    ]

    def run(replica: Replica) -> None:
        run_replica(table, limits, requests, replica, oracle=oracle)

    if replicas > 1 and n >= _THREADS_FROM:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run, served))
    else:
        for replica in served:
            run(replica)
    return served, np.arange(n, dtype=np.int64) % replicas


def run_replica(
    table: StepTable, limits: Limits, requests: Requests, replica: Replica, *, oracle: bool = False
) -> None:
    """Serve one replica's waiting line to the end; results land in ``requests`` and ``replica``."""
    shared: tuple[Any, ...] = (*table.arrays(), table.window, *limits.arguments(), *requests.arguments())
    loop: Callable[..., None]
    if oracle:
        from gambrel.engine.naive_kernel import replay as loop

        loop(*shared, replica.ints, replica.floats, replica.histogram, replica.bits, replica.bits_int)
    else:
        from gambrel.engine.kernel import advance as loop

        loop(float("inf"), *shared, *replica.arguments())


def least_outstanding(
    table: StepTable, limits: Limits, requests: Requests, replicas: int, longest: int, every_s: float, oracle: bool
) -> tuple[list[Replica], Ints]:
    """Each request goes to the replica with the fewest unfinished requests at its arrival, the first of equals."""
    raise NotImplementedError


ROUTINGS: dict[str, Router] = {"round_robin": round_robin}
