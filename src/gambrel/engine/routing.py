"""Which replica serves a request, and the replay of all of them.

Round robin looks at nothing, so each replica's line is known beforehand and the replicas run on their own. Least
outstanding looks at the replicas when a request arrives, so they are advanced in one loop over arrivals. In a closed
loop a replica makes the arrivals of its own users (round robin) or the replicas make them together (least outstanding).
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

        loop(0, NEVER, False, *arguments, *replica.arguments())


def serve_closed(
    table: StepTable, limits: Limits, requests: Requests, replicas: Replicas, users: int, line: Ints, assigned: Ints
) -> None:
    """Let ``users`` of a closed loop send the rows of ``line`` to the replicas; makes their arrivals and assignment."""
    loop: Callable[..., None]
    from gambrel.engine.closed_kernel import serve_closed as loop

    number = len(replicas.ints)
    loop(
        users,
        line,
        requests.think,
        np.empty(users),
        assigned,
        np.zeros(number, np.int64),
        np.full(number, -1, np.int64),
        *_shared(table, limits, requests),
        *replicas.arguments(),
    )


def serve_assigned(
    table: StepTable, limits: Limits, requests: Requests, assigned: Ints, replicas: int, every_s: float, *, oracle: bool
) -> list[Replicas]:
    """Serve each request by the replica that ``assigned`` int64[n] names; the replicas when all is done.

    The users of a closed loop whose arrivals are not made yet stay with the replica of their first request.
    """
    order = np.argsort(assigned.astype(np.min_scalar_type(replicas)), kind="stable")
    lines = np.split(order, np.cumsum(np.bincount(assigned, minlength=replicas))[:-1])
    windowed = table.window > 0

    def run(line: Ints) -> Replicas:
        replica = Replicas.of(limits, requests, windowed=windowed, sample_every_s=every_s)
        users = int(np.searchsorted(line, requests.users))
        if users and not oracle:
            serve_closed(table, limits, requests, replica, users, line, np.empty(len(assigned), np.int64))
        else:
            run_replica(table, limits, requests, replica.line_up(requests, line), oracle=oracle)
        return replica

    if replicas > 1 and len(assigned) >= _THREADS_FROM:
        with ThreadPoolExecutor(2) as pool:  # the kernels release the interpreter's lock
            return list(pool.map(run, lines))
    return [run(line) for line in lines]


def again(
    table: StepTable, limits: Limits, requests: Requests, assigned: Ints, replicas: int, every_s: float
) -> list[Replicas]:
    """Serve the same lines, arrivals now known, by the plain scheduler, which cannot be stopped and resumed."""
    requests.forget()
    return serve_assigned(table, limits, requests, assigned, replicas, every_s, oracle=True)


def round_robin(
    table: StepTable, limits: Limits, requests: Requests, replicas: int, every_s: float, oracle: bool
) -> tuple[list[Replicas], Ints]:
    """Request i goes to replica i modulo the number of replicas; so do the users of a closed loop, with all they send.

    Of N users, user u sends as many requests as any other: row i counts as user i modulo N's.
    """
    assigned = np.arange(len(requests.arrival), dtype=np.int64)
    if requests.users:
        assigned %= requests.users
    assigned %= replicas
    served = serve_assigned(table, limits, requests, assigned, replicas, every_s, oracle=oracle and not requests.users)
    if oracle and requests.users:
        served = again(table, limits, requests, assigned, replicas, every_s)
    return served, assigned


def least_outstanding(
    table: StepTable, limits: Limits, requests: Requests, replicas: int, every_s: float, oracle: bool
) -> tuple[list[Replicas], Ints]:
    """Each request goes to the replica with the fewest unfinished requests at its arrival, equals in turn."""
    loop: Callable[..., None]
    from gambrel.engine.routing_kernel import serve_least_outstanding as loop

    n = len(requests.arrival)
    assigned = np.zeros(n, np.int64)
    served = Replicas.of(limits, requests, replicas, windowed=table.window > 0, sample_every_s=every_s)
    if requests.users:
        serve_closed(table, limits, requests, served, requests.users, np.arange(n), assigned)
    else:
        loop(
            assigned,
            np.zeros(replicas, np.int64),
            np.full(replicas, -1, np.int64),
            *_shared(table, limits, requests),
            *served.arguments(),
        )
    return again(table, limits, requests, assigned, replicas, every_s) if oracle else [served], assigned


def _shared(table: StepTable, limits: Limits, requests: Requests) -> tuple[Any, ...]:
    return (*table.arrays(), table.window, *limits.arguments(), *requests.arguments())


ROUTINGS: dict[str, Router] = {"round_robin": round_robin, "least_outstanding": least_outstanding}
