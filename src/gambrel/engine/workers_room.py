"""What the event loop over workers works in: its arrays, made here, where making them needs no compiling.

Their names and order are those of :func:`gambrel.engine.workers_kernel.serve`, which fills them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.engine import workers_state as at
from gambrel.engine.state import NEVER, NUM_PARTS, SHARE_FIRST

if TYPE_CHECKING:
    import numpy.typing as npt

    from gambrel.core.workload import Ints
    from gambrel.engine.state import Requests

    Indices = npt.NDArray[np.int32]

__all__ = ["Room"]


@dataclass(frozen=True, slots=True)
class Room:
    """Arrays of workers and ranks (``fixed``), slots, events, prefix caches, and of the lists of slots there."""

    fixed: tuple[Any, ...]
    slots: tuple[Any, ...]
    events: tuple[Any, ...]
    caches: tuple[Any, ...]
    lists: tuple[Any, ...]

    @classmethod
    def of(cls, limits: Ints, requests: Requests, line: Indices, waits: int, every_s: float) -> Room:
        """For the pools of ``limits`` int64[p, NUM_LIMITS], nobody there yet, every block free.

        The first user asks by ``line`` int32[n], and so on; ``waits`` rows wait for others to end; a sample every
        ``every_s`` seconds.
        """
        per_worker = np.repeat(np.arange(len(limits)), limits[:, at.NUM_WORKERS])  # pool of each worker
        per_rank = np.repeat(per_worker, limits[per_worker, at.RANKS])  # pool of each rank
        seqs = limits[per_rank, at.NUM_SEQS]
        number = min(int(seqs.sum() + seqs[per_rank == 0].sum()), len(requests.prompt))  # who runs, who may be admitted
        caching = limits[:, at.CACHING] > 0
        some = number if caching.any() else 0
        state = int(limits[caching, at.STATE].max(initial=0))
        longest = int((requests.prompt + requests.output).max()) if some else 0
        most = -(-longest // int(limits[0, at.BLOCK_SIZE])) + state
        return cls(
            _fixed(limits, per_worker, per_rank, requests, every_s),
            _slots(number),
            _events(requests, line, waits + number),
            _caches(limits, per_rank, requests),
            (np.zeros((some, most), np.int64), np.zeros(some, np.int64), np.zeros(some, np.int64)),
        )

    def doubled(self, limit: int) -> Room:
        """With twice as many slots, ``limit`` at most; those that there are stay as they are."""
        slots, spare = self.slots[:2]
        number = len(slots)
        more = min(number, limit - number)
        fresh = np.arange(number, number + more)
        events = tuple(np.append(a, np.zeros(more, a.dtype)) for a in self.events)
        grown = tuple(np.concatenate([a, np.zeros((more, *a.shape[1:]), a.dtype)]) for a in (slots, *self.slots[2:]))
        spares = np.concatenate([spare, np.zeros(more, np.int32)])
        spares[1 + spare[0] : 1 + spare[0] + more] = fresh
        spares[0] += more
        lists = self.lists
        if len(lists[0]):
            lists = tuple(np.concatenate([a, np.zeros((more, *a.shape[1:]), a.dtype)]) for a in lists)
        return replace(self, slots=(grown[0], spares, *grown[1:]), events=events, lists=lists)

    @property
    def progress(self) -> Ints:
        """How far the loop is."""
        return self.fixed[0]  # type: ignore[no-any-return]

    def arguments(self) -> tuple[Any, ...]:
        """In the order of the kernel."""
        return (*self.fixed, *self.slots, *self.events, *self.caches, *self.lists)


def _fixed(limits: Ints, per_worker: Ints, per_rank: Ints, requests: Requests, every_s: float) -> tuple[Any, ...]:
    """What there is of workers, ranks and stages, however many requests."""
    ranks_of = limits[per_worker, at.RANKS]
    num_workers, num_ranks = len(per_worker), len(per_rank)
    deep, wide = int(limits[:, at.STAGES].max()), int(limits[:, at.NUM_SEQS].max())
    workers = np.zeros((num_workers, at.NUM_WORKER), np.int64)
    workers[:, at.POOL] = per_worker
    ranks = np.zeros((num_ranks, at.NUM_RANK), np.int64)
    ranks[:, at.FREE] = limits[per_rank, at.NUM_BLOCKS]
    ranks[:, [at.HEAD, at.READY]] = -1
    progress = np.zeros(at.NUM_PROGRESS, np.int64)
    progress[at.NUM_EVENTS] = requests.users
    bits = np.zeros(1)
    return (
        progress,
        np.array([requests.arrival[0], requests.arrival[0], every_s]),
        workers,
        ranks,
        np.cumsum(ranks_of) - ranks_of,
        np.repeat(np.arange(num_workers), ranks_of),
        np.full((num_ranks, 1), SHARE_FIRST),
        np.full(num_ranks, -1.0),
        np.zeros((num_ranks, wide), np.uint32),
        np.zeros((num_ranks, deep, wide), np.uint32),
        np.zeros((num_ranks, deep, wide), np.int32),
        np.zeros((num_ranks, deep, wide), np.bool_),
        np.zeros((num_ranks, deep), np.int64),
        np.zeros((num_workers, deep)),
        np.full(num_workers, NEVER),
        np.zeros((num_workers, deep)),
        np.zeros(num_workers),
        np.zeros((num_ranks, at.NUM_SUMS), np.int64),
        bits,
        bits.view(np.int64),
        np.full(len(limits), -1, np.int64),
        np.zeros(deep),
        np.zeros(NUM_PARTS),
    )


def _slots(number: int) -> tuple[Any, ...]:
    """So many slots, all unused, and lists of as many of them after their length."""
    spare = np.arange(-1, number, dtype=np.int32)
    spare[0] = number
    return (
        np.zeros((number, at.NUM_SLOT), np.int32),
        spare,
        np.zeros(number),
        *(np.zeros(1 + number, np.int32) for _ in range(3)),
    )


def _events(requests: Requests, line: Indices, more: int) -> tuple[Any, ...]:
    """A heap of the first request of every user, which it is when sorted, with room for ``more``."""
    times, rows = requests.arrival[: requests.users], -1 - line[: requests.users].astype(np.int64)
    order = np.lexsort((rows, times))
    return np.append(times[order], np.zeros(more + 1)), np.append(rows[order], np.zeros(more + 1, np.int64))


def _caches(limits: Ints, per_rank: Ints, requests: Requests) -> tuple[Any, ...]:
    """The prefix caches, one row a rank."""
    caching = limits[:, at.CACHING] > 0
    num = len(per_rank) if caching.any() else 0
    some = int(limits[caching, at.NUM_BLOCKS].max(initial=0))
    starts = np.zeros(len(requests.prefixes.sizes) + 1, np.int64)  # first block of each unit in the hash table
    starts[1:] = np.cumsum(requests.prefixes.sizes)
    newer = np.zeros((num, some + 1), np.int64)
    older = np.zeros((num, some + 1), np.int64)
    for g in range(num):  # a ring of the rank's blocks and of both its ends, in the last place
        blocks = int(limits[per_rank[g], at.NUM_BLOCKS]) if caching[per_rank[g]] else 0
        ring = np.append(np.arange(blocks), some)
        newer[g, ring] = np.roll(ring, -1)
        older[g, ring] = np.roll(ring, 1)
    return (
        starts,
        np.full((num, int(starts[-1])), -1, np.int64),
        np.full((num, some), -1, np.int64),
        np.zeros((num, some), np.int64),
        np.full((num, some), -1, np.int64),
        np.zeros((num, some), np.int64),
        newer,
        older,
    )
