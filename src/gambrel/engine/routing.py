"""Which replica serves a request, and the replay of all of them.

Round robin and sticky sessions look at nothing, so each replica's line is known beforehand and the replicas run on
their own. The other rules look at the replicas when a request arrives, so they are advanced in one loop over arrivals.
In a closed loop a replica makes the arrivals of its own users where the rule looks at nothing, else all make them
together.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.engine.state import (
    CLOCK,
    DECODES,
    LEAST,
    NEVER,
    NEXT,
    PARTIAL,
    POWER,
    PREEMPTED,
    PREFIX,
    Replicas,
)
from gambrel.engine.watch import in_slices

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.step import Floats, StepTable
    from gambrel.core.workload import Ints
    from gambrel.engine.state import Limits, Requests

    Router = Callable[[StepTable, Limits, Requests, int, float, bool], tuple[list[Replicas], Ints]]

__all__ = ["ROUTINGS", "round_robin", "run_plain", "run_replica", "serve_assigned", "session_sticky"]

_THREADS_FROM = 20_000  # requests from which a second thread pays for itself


def run_replica(
    table: StepTable, limits: Limits, requests: Requests, replica: Replicas, *, oracle: bool = False
) -> None:
    """Serve the waiting line of a single replica to the end; results land in ``requests`` and ``replica``."""
    if oracle:
        run_plain(table, limits, requests, replica)
        return
    loop: Callable[..., None]
    from gambrel.engine.kernel import advance as loop

    arguments = (*_shared(table, limits, requests), *replica.arguments())
    if requests.stop is None:
        loop(0, NEVER, False, *arguments)
        return

    def to(until: float) -> float | None:
        loop(0, until, False, *arguments)
        busy = replica.ints[0, DECODES] > 0 or replica.ints[0, PARTIAL] >= 0 or replica.ints[0, PREEMPTED] > 0
        return float(replica.floats[0, CLOCK]) if busy or replica.ints[0, NEXT] >= 0 else None

    in_slices(to, requests.stop, float(replica.floats[0, CLOCK]))


def run_plain(
    table: StepTable, limits: Limits, requests: Requests, replica: Replicas, since_s: float = NEVER,
    until_s: float = NEVER,
) -> tuple[Floats, Floats]:  # fmt: skip
    """The same by the plain scheduler, to ``until_s``; the steps and marks it recorded, none where ``since_s`` is."""
    loop: Callable[..., tuple[Floats, Floats]]
    from gambrel.engine.naive_kernel import replay as loop

    rank = requests.rank if limits.by_priority else None
    return loop(
        *_shared(table, limits, requests, specialised=False),
        replica.ints, replica.floats, replica.histogram, replica.bits, replica.bits_int,
        limits.draft_tokens, limits.draft_s, limits.accepted(),
        np.empty(0, np.int64) if rank is None else rank,
        np.empty(0) if requests.deadline is None else requests.deadline,
        since_s if since_s < NEVER else None, until_s,
        np.zeros(1, np.bool_) if requests.stop is None else requests.stop,
    )  # fmt: skip


def looking(requests: Requests, replicas: int, rule: int) -> tuple[Any, ...]:
    """The arrays of a rule that looks, in the order of the kernels: draws, units sent, blocks sent."""
    n = len(requests.arrival)
    draws = np.zeros((0, 2), np.int64)
    if rule == POWER:
        rng = np.random.default_rng(0)
        draws = np.repeat(rng.integers(0, replicas, (n, 1)), 2, axis=1)
        if replicas > 1:  # two different ones
            draws[:, 1] = (draws[:, 0] + rng.integers(1, replicas, n)) % replicas
    units = len(requests.prefixes.sizes) if rule == PREFIX else 0
    return rule, draws, np.zeros((replicas, units), np.bool_), np.zeros(replicas, np.int64)


def serve_closed(
    table: StepTable, limits: Limits, requests: Requests, replicas: Replicas, users: int, line: Ints, assigned: Ints,
    rule: int = LEAST,
) -> None:  # fmt: skip
    """Let ``users`` of a closed loop send the rows of ``line`` to the replicas; makes their arrivals and assignment."""
    from gambrel.engine import closed_kernel

    number = len(replicas.ints)
    if number == 1:
        assigned[line] = 0
        closed_kernel.serve_alone(
            users, line, requests.think, np.empty(users), *_shared(table, limits, requests), *replicas.arguments()
        )
        return
    closed_kernel.serve_closed(
        users,
        line,
        requests.think,
        np.empty(users),
        *looking(requests, number, rule),
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


def dealt(
    table: StepTable, limits: Limits, requests: Requests, assigned: Ints, replicas: int, every_s: float, oracle: bool
) -> tuple[list[Replicas], Ints]:
    """Serve lines that are known beforehand; in a closed loop the arrivals are made first."""
    made = requests.users > 0
    served = serve_assigned(table, limits, requests, assigned, replicas, every_s, oracle=oracle and not made)
    if oracle and made:
        served = again(table, limits, requests, assigned, replicas, every_s)
    return served, assigned


def round_robin(
    table: StepTable, limits: Limits, requests: Requests, replicas: int, every_s: float, oracle: bool
) -> tuple[list[Replicas], Ints]:
    """Request i goes to replica i modulo the number of replicas; so do the users of a closed loop, with all they send.

    Of N users, user u sends as many requests as any other: row i counts as user i modulo N's.
    """
    assigned = np.arange(len(requests.arrival), dtype=np.int64)
    if requests.users:
        assigned %= requests.users
    return dealt(table, limits, requests, assigned % replicas, replicas, every_s, oracle)


def session_sticky(
    table: StepTable, limits: Limits, requests: Requests, replicas: int, every_s: float, oracle: bool
) -> tuple[list[Replicas], Ints]:
    """A session stays with one replica; new sessions go to the replicas in turn. A closed loop's users are sessions."""
    if requests.users:
        return round_robin(table, limits, requests, replicas, every_s, oracle)
    _, first, session = np.unique(np.asarray(requests.session, np.int64), return_index=True, return_inverse=True)
    turn = np.empty(len(first), np.int64)
    turn[np.argsort(first)] = np.arange(len(first))
    return dealt(table, limits, requests, turn[session] % replicas, replicas, every_s, oracle)


def by_rule(rule: int) -> Router:
    """A router that looks at the replicas by one of the rules of :mod:`gambrel.engine.routing_kernel`."""

    def route(
        table: StepTable, limits: Limits, requests: Requests, replicas: int, every_s: float, oracle: bool
    ) -> tuple[list[Replicas], Ints]:
        loop: Callable[..., None]
        from gambrel.engine.routing_kernel import serve_open as loop

        n = len(requests.arrival)
        assigned = np.zeros(n, np.int64)
        served = Replicas.of(limits, requests, replicas, windowed=table.window > 0, sample_every_s=every_s)
        if requests.users:
            serve_closed(table, limits, requests, served, requests.users, np.arange(n), assigned, rule)
        else:
            loop(
                np.zeros(1, np.bool_) if requests.stop is None else requests.stop,
                *looking(requests, replicas, rule),
                assigned,
                np.zeros(replicas, np.int64),
                np.full(replicas, -1, np.int64),
                *_shared(table, limits, requests),
                *served.arguments(),
            )
        return again(table, limits, requests, assigned, replicas, every_s) if oracle else [served], assigned

    return route


def _shared(table: StepTable, limits: Limits, requests: Requests, *, specialised: bool = True) -> tuple[Any, ...]:
    return (
        *table.arrays(), table.window, *limits.arguments(specialised=specialised), *requests.arguments()
    )  # fmt: skip


ROUTINGS: dict[str, Router] = {
    "round_robin": round_robin,
    "least_outstanding": by_rule(LEAST),
    "power_of_two": by_rule(POWER),
    "prefix_aware": by_rule(PREFIX),
    "session_sticky": session_sticky,
}
