"""Which replica serves a request, and the replay of all of them.

Round robin looks at nothing, so each replica's line is known beforehand and the replicas run on their own. Least
outstanding looks at the replicas when a request arrives, so they are advanced in one loop over arrivals.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.engine.state import NEVER, Replicas

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.step import StepTable
    from gambrel.core.workload import Ints
    from gambrel.engine.state import Limits, Requests

    Router = Callable[[StepTable, Limits, Requests, int, float, bool], tuple[list[Replicas], Ints]]

__all__ = ["ROUTINGS", "least_outstanding", "round_robin", "run_replica", "serve_assigned"]

_THREADS_FROM = 20_000  # requests from which a second thread pays for itself


def run_replica(
    table: StepTable, limits: Limits, requests: Requests, replica: Replicas, *, oracle: bool = False
) -> None:
    """Serve the waiting line of a single replica to the end; results land in ``requests`` and ``replica``."""
    loop: Callable[..., None]
    arguments = _shared(table, limits, requests)
    if oracle:
        from gambrel.engine.naive_kernel import replay as loop

        loop(*arguments, replica.ints, replica.floats, replica.histogram, replica.bits, replica.bits_int)
    else:
        from gambrel.engine.kernel import advance as loop

        loop(0, NEVER, *arguments, *replica.arguments())


def serve_assigned(
    table: StepTable, limits: Limits, requests: Requests, assigned: Ints, replicas: int, every_s: float, *, oracle: bool
) -> list[Replicas]:
    """Serve each request by the replica that ``assigned`` int64[n] names; the replicas when all is done."""
    order = np.argsort(assigned.astype(np.min_scalar_type(replicas)), kind="stable")
    lines = np.split(order, np.cumsum(np.bincount(assigned, minlength=replicas))[:-1])
    windowed = table.window > 0
    served = [
        Replicas.of(limits, requests, windowed=windowed, sample_every_s=every_s).line_up(requests, line)
        for line in lines
    ]

    def run(replica: Replicas) -> None:
        run_replica(table, limits, requests, replica, oracle=oracle)

    if replicas > 1 and len(assigned) >= _THREADS_FROM:
        with ThreadPoolExecutor(2) as pool:  # the kernels release the interpreter's lock
            list(pool.map(run, served))
    else:
        for replica in served:
            run(replica)
    return served


def round_robin(
    table: StepTable, limits: Limits, requests: Requests, replicas: int, every_s: float, oracle: bool
) -> tuple[list[Replicas], Ints]:
    """Request i goes to replica i modulo the number of replicas."""
    assigned = np.arange(len(requests.arrival), dtype=np.int64) % replicas
    return serve_assigned(table, limits, requests, assigned, replicas, every_s, oracle=oracle), assigned


def least_outstanding(
    table: StepTable, limits: Limits, requests: Requests, replicas: int, every_s: float, oracle: bool
) -> tuple[list[Replicas], Ints]:
    """Each request goes to the replica with the fewest unfinished requests at its arrival, equals in turn."""
    loop: Callable[..., None]
    from gambrel.engine.routing_kernel import serve_least_outstanding as loop

    assigned = np.zeros(len(requests.arrival), np.int64)
    served = Replicas.of(limits, requests, replicas, windowed=table.window > 0, sample_every_s=every_s)
    loop(
        assigned,
        np.zeros(replicas, np.int64),
        np.full(replicas, -1, np.int64),
        *_shared(table, limits, requests),
        *served.arguments(),
    )
    if oracle:  # the plain scheduler cannot be interrupted; it serves the same lines
        requests.forget()
        return serve_assigned(table, limits, requests, assigned, replicas, every_s, oracle=True), assigned
    return [served], assigned


def _shared(table: StepTable, limits: Limits, requests: Requests) -> tuple[Any, ...]:
    return (*table.arrays(), table.window, *limits.arguments(), *requests.arguments())


ROUTINGS: dict[str, Router] = {"round_robin": round_robin, "least_outstanding": least_outstanding}
