"""The arrays of :mod:`gambrel.engine.fleet_kernel`, made once and handed to it again and again.

A :class:`Dispatch` is a fleet in the middle of its day: who has arrived, who waits for whom, which replicas are up.
Sessions whose turns wait for each other are served to the end in one call; a fleet that changes stops at every event.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gambrel.core.errors import DeploymentError, WorkloadError
from gambrel.engine.routing import looking, run_replica
from gambrel.engine.state import (
    BATCH_MAX,
    BEFORE,
    DECODED,
    FINISHED,
    LEAST,
    NEVER,
    NEXT,
    NUM_SAMPLES,
    NUM_SEEN,
    NUM_STARTED,
    POWER,
    PREEMPTED,
    PREFIX,
    REQUEST,
    SAMPLE_EVERY,
    SHARE,
    STACK,
    STEPS,
    TAIL,
    USED_MAX,
    Replicas,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.step import Floats, StepTable
    from gambrel.core.workload import Ints, Workload
    from gambrel.engine.routing import Router
    from gambrel.engine.state import Limits, Requests

__all__ = ["Dispatch", "turns"]

TURNS, STICKY = -1, -2  # as in the kernel, which is not to be imported before a replay starts
NUM_WAKES, NUM_HELD = 1, 2  # places in the cursor, likewise
RULES = {
    "round_robin": TURNS,
    "session_sticky": STICKY,
    "least_outstanding": LEAST,
    "power_of_two": POWER,
    "prefix_aware": PREFIX,
}
KEPT_INTS = [STEPS, FINISHED, BATCH_MAX, USED_MAX, NUM_SAMPLES, NUM_SEEN, NUM_STARTED]  # what a loss does not undo
CLEARED_FLOATS = [DECODED, SHARE]
_THREADS_FROM = 20_000  # requests from which a second thread pays for itself


@dataclass(frozen=True)
class Dispatch:
    """A fleet and its requests between two calls of the loop; arrays as in the kernel's docstring.

    ``up`` bool[replicas] is the caller's to set; ``plain`` promises that all are up for good.
    """

    table: StepTable
    limits: Limits
    requests: Requests
    replicas: Replicas
    fresh: Replicas
    rule: int
    plain: bool
    chained: bool
    cursor: Ints
    line: Ints
    asked: Floats
    nexts: Ints
    think: Floats
    wake_s: Floats
    wake_row: Ints
    held: Ints
    was_held: npt.NDArray[np.bool_]
    order: Ints
    up: npt.NDArray[np.bool_]
    key: Ints
    home: Ints
    looks: tuple[Any, ...]
    assigned: Ints
    counts: Ints
    ends: Ints

    @classmethod
    def of(
        cls, table: StepTable, limits: Limits, workload: Workload, requests: Requests, number: int, routing: str, *,
        plain: bool, line: Ints | None = None, sample_every_s: float = NEVER, assigned: Ints | None = None,
    ) -> Dispatch:  # fmt: skip
        """A fleet of ``number`` replicas before the first arrival; ``line``: the rows to serve, all by default.

        ``requests.arrival`` is not read: the workload says who arrives when. Everybody is up where ``plain``.

        Raises:
            DeploymentError: a rule that cannot be followed by a fleet that changes.
            WorkloadError: sticky sessions without sessions.
        """
        if routing not in RULES:
            raise DeploymentError(f"unknown routing {routing!r}; known: {', '.join(RULES)}")
        rule = RULES[routing]
        if rule == PREFIX and not plain:
            raise DeploymentError(
                "routing prefix_aware remembers what it sent to replicas that stay; a fleet that changes can use "
                "session_sticky, least_outstanding, power_of_two or round_robin"
            )
        n = len(workload)
        key = np.zeros(n, np.int64)
        if rule == STICKY:
            if workload.session is None:
                raise WorkloadError(
                    f"{workload.source or workload.name}: routing session_sticky needs a session column"
                )
            key = np.unique(workload.session, return_inverse=True)[1].astype(np.int64)
        looks = looking(requests, number, max(rule, 0) if plain else LEAST)[1:]
        if rule == POWER and not plain:
            looks = (np.random.default_rng(0).integers(0, 1 << 62, (n, 2)), *looks[1:])
        rows = np.arange(n) if line is None else line
        nexts, first = np.full(n, -1, np.int64), np.ones(n, np.bool_)
        if workload.after is not None:
            waits = np.flatnonzero(workload.after >= 0)
            nexts[workload.after[waits]] = waits
            first[waits] = False
        make = {"windowed": table.window > 0}
        return cls(
            table,
            limits,
            requests,
            Replicas.of(limits, requests, number, sample_every_s=sample_every_s, **make),
            Replicas.of(limits, requests, 1, **make),
            rule,
            plain,
            bool((nexts >= 0).any()),
            np.array([0, 0, 0, -1, 0], np.int64),
            np.ascontiguousarray(rows[first[rows]], dtype=np.int64),
            np.where(first, workload.arrival_s, NEVER),
            nexts,
            np.zeros(n) if workload.think_s is None else np.ascontiguousarray(workload.think_s, dtype=np.float64),
            np.zeros(n),
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
            np.zeros(n, np.bool_),
            np.zeros(n, np.int64),
            np.full(number, plain),
            key,
            np.full(int(key.max()) + 1, -1, np.int64),
            looks,
            np.zeros(n, np.int64) if assigned is None else assigned,
            np.zeros(number, np.int64),
            np.full(number, -1, np.int64),
        )

    def until(self, time: float = NEVER) -> None:
        """Serve what arrives, and run every step that begins, before ``time``."""
        loop: Callable[..., None]
        from gambrel.engine.fleet_kernel import serve_until as loop

        loop(time, *self.arguments)

    def watch(self, *looks: Any) -> tuple[int, bool, int]:
        """Serve from look to look: see :func:`gambrel.engine.fleet_kernel.watch`, which takes ``looks`` first."""
        loop: Callable[..., tuple[int, bool, int]]
        from gambrel.engine.fleet_kernel import watch as loop

        r = self.replicas
        return loop(*looks, len(self.asked), self.counts, r.ints, r.floats, self.cursor, self.arguments)

    @cached_property
    def arguments(self) -> tuple[Any, ...]:
        """In the order of the kernel, behind the time; the arrays change, the tuple does not."""
        q, r = self.requests, self.replicas
        return (
            self.chained, self.plain, self.rule, self.cursor,
            self.line, self.asked, self.nexts, self.think, self.wake_s, self.wake_row, self.held, self.was_held,
            self.order, self.up, self.key, self.home, *self.looks, self.assigned, self.counts, self.ends,
            self.limits.block_size, q.arrival, q.prompt, q.follow, q.last,
            q.prefixes.units, q.prefixes.offsets, q.prefixes.sizes, r.ints, r.floats, r.slots,
            (*self.table.arrays(), self.table.window, *self.limits.arguments()), q.arguments(), r.arguments(),
        )  # fmt: skip

    def part(self, line: Ints) -> Dispatch:
        """One replica that serves only ``line`` and what follows from it; the columns of the requests are shared."""
        return replace(
            self,
            replicas=Replicas.of(
                self.limits, self.requests, windowed=self.table.window > 0,
                sample_every_s=float(self.replicas.floats[0, SAMPLE_EVERY]),
            ),
            line=line,
            cursor=self.cursor.copy(),
            wake_s=np.zeros(len(line)),
            wake_row=np.zeros(len(line), np.int64),
            home=self.home.copy(),
            counts=self.counts.copy(),
            ends=self.ends.copy(),
        )  # fmt: skip

    @property
    def num_finished(self) -> int:
        """Requests that have ended."""
        return int(self.replicas.ints[:, FINISHED].sum())

    @property
    def num_held(self) -> int:
        """Requests that wait for any replica to be up."""
        return int(self.cursor[NUM_HELD])

    def release_held(self, time: float) -> None:
        """Let those who were held arrive at ``time``, in order."""
        rows = self.held[: self.num_held].copy()
        self.cursor[NUM_HELD] = 0
        self._wake(time, rows)

    def lose(self, replica: int, time: float) -> Ints:
        """Wipe a replica at ``time``; the rows it held, int64[k], which arrive anew then with nothing done."""
        ints, slots = self.replicas.ints[replica], self.replicas.slots[replica]
        rows = [int(slots[REQUEST, slots_at]) for slots_at in slots[STACK, : ints[PREEMPTED]]]
        slot = int(ints[TAIL])
        while slot >= 0:
            rows.append(int(slots[REQUEST, slot]))
            slot = int(slots[BEFORE, slot])
        row = int(ints[NEXT])
        while row >= 0:
            rows.append(row)
            row = int(self.requests.follow[row])
        lost = np.array(sorted(rows, key=lambda r: int(self.order[r])), np.int64)
        self.counts[replica] -= len(lost)
        self.forget(replica)
        for column in (self.requests.scheduled, self.requests.first, self.requests.last):
            column[lost] = np.nan
        self.requests.paused[lost] = 0.0
        self._wake(time, lost)
        return lost

    def forget(self, replica: int) -> None:
        """Make a replica that holds nothing a new one, with an empty cache; what it did before still counts."""
        kept = self.replicas.ints[replica, KEPT_INTS].copy()
        for name in ("ints", "slots", "token_s", "ring", "crossings", "offsets", "cache"):
            getattr(self.replicas, name)[replica] = getattr(self.fresh, name)[0]
        self.replicas.ints[replica, KEPT_INTS] = kept
        self.replicas.floats[replica, CLEARED_FLOATS] = self.fresh.floats[0, CLEARED_FLOATS]
        self.ends[replica] = -1
        self.home[self.home == replica] = -1

    def _wake(self, time: float, rows: Ints) -> None:
        from gambrel.engine.heap_kernel import push

        for row in rows:
            self.cursor[NUM_WAKES] = push(self.wake_s, self.wake_row, self.cursor[NUM_WAKES], time, row)


def turns(workload: Workload, routing: str) -> Router:
    """A router of sessions whose turns wait for each other, on a fleet that stays as it is; it makes their arrivals.

    Sticky sessions never look at other replicas, so each replica runs on its own. As oracle the plain scheduler serves
    the arrivals that were made.
    """

    def route(
        table: StepTable, limits: Limits, requests: Requests, replicas: int, every_s: float, oracle: bool
    ) -> tuple[list[Replicas], Ints]:
        split = routing == "session_sticky" and replicas > 1
        number, rule = (1, "round_robin") if split else (replicas, routing)
        whole = Dispatch.of(table, limits, workload, requests, number, rule, plain=True, sample_every_s=every_s)
        assigned, parts = whole.assigned, [whole]
        if split:
            assigned = _homes(workload, replicas)
            parts = [whole.part(line) for line in (whole.line[assigned[whole.line] == r] for r in range(replicas))]
        if len(parts) > 1 and len(workload) >= _THREADS_FROM:
            with ThreadPoolExecutor(2) as pool:  # the kernels release the interpreter's lock
                list(pool.map(Dispatch.until, parts))
        else:
            for part in parts:
                part.until()
        if not oracle:
            return [part.replicas for part in parts], assigned
        requests.forget()
        served = []
        for r in range(replicas):
            line = np.flatnonzero(assigned == r)
            replica = Replicas.of(limits, requests, windowed=table.window > 0)
            replica.line_up(requests, line[np.argsort(whole.order[line])])
            run_replica(table, limits, requests, replica, oracle=True)
            served.append(replica)
        return served, assigned

    return route


def _homes(workload: Workload, replicas: int) -> Ints:
    """The replica of each row, int64[n]: sessions in turn by their first row, with all turns that follow from it.

    Raises:
        WorkloadError: there is no session column.
    """
    if workload.session is None or workload.after is None:
        raise WorkloadError(f"{workload.source or workload.name}: routing session_sticky needs a session column")
    root = np.where(workload.after < 0, np.arange(len(workload)), workload.after)
    while not np.array_equal(root, root[root]):
        root = root[root]
    _, first, session = np.unique(workload.session[root], return_index=True, return_inverse=True)
    turn = np.empty(len(first), np.int64)
    turn[np.argsort(first)] = np.arange(len(first))
    return turn[session] % replicas
