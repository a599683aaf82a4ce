"""What the event loop over workers works in: its arrays, made here, where making them needs no compiling.

Their names and order are those of :func:`gambrel.engine.workers_kernel.serve`, which fills them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.engine.state import NUM_PARTS, SHARE_FIRST

if TYPE_CHECKING:
    from gambrel.core.workload import Ints
    from gambrel.engine.state import Requests

__all__ = ["make_room"]


def make_room(limits: Ints, requests: Requests) -> tuple[Any, ...]:
    """The arrays for the pools of ``limits`` int64[p, NUM_LIMITS], nobody there yet, every block free."""
    from gambrel.engine import workers_kernel as at

    n = len(requests.prompt)
    per_worker = np.repeat(np.arange(len(limits)), limits[:, at.NUM_WORKERS])  # pool of each worker
    ranks_of = limits[per_worker, at.RANKS]
    per_rank = np.repeat(per_worker, ranks_of)  # pool of each rank
    num_workers, num_ranks = len(per_worker), len(per_rank)
    deep, wide = int(limits[:, at.STAGES].max()), int(limits[:, at.NUM_SEQS].max())

    workers = np.zeros((num_workers, at.NUM_WORKER), np.int64)
    workers[:, at.POOL] = per_worker
    ranks = np.zeros((num_ranks, at.NUM_RANK), np.int64)
    ranks[:, at.FREE] = limits[per_rank, at.NUM_BLOCKS]
    ranks[:, [at.HEAD, at.READY]] = -1
    bits = np.zeros(1)
    events = 2 * n + requests.users + 1
    return (
        workers,
        ranks,
        np.cumsum(ranks_of) - ranks_of,
        np.repeat(np.arange(num_workers), ranks_of),
        np.full((num_ranks, 1), SHARE_FIRST),
        np.full(num_ranks, -1.0),
        np.zeros((num_ranks, wide), np.int64),
        *(np.zeros((num_ranks, deep, wide), np.int64) for _ in range(3)),
        np.zeros((num_ranks, deep), np.int64),
        np.zeros((num_workers, deep)),
        np.zeros((num_workers, deep)),
        np.zeros(num_workers),
        np.zeros((num_ranks, at.NUM_SUMS), np.int64),
        np.zeros((n, at.NUM_REQ), np.int64),
        np.zeros(n),
        *(np.zeros(n + 1, np.int64) for _ in range(3)),
        bits,
        bits.view(np.int64),
        np.zeros(events),
        np.zeros(events, np.int64),
        np.full(len(limits), -1, np.int64),
        np.zeros(deep),
        np.zeros(NUM_PARTS),
        np.zeros(NUM_PARTS),
        *_cache(limits, per_rank, wide, requests),
    )


def _cache(limits: Ints, per_rank: Ints, wide: int, requests: Requests) -> tuple[Any, ...]:
    """The prefix cache: one row a rank, and one list of blocks for each request that runs or is on its way."""
    from gambrel.engine import workers_kernel as at

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
    state = int(limits[caching, at.STATE].max(initial=0))
    longest = int((requests.prompt + requests.output).max()) if num else 0
    most = -(-longest // int(limits[0, at.BLOCK_SIZE])) + state
    rows = wide if num else 0
    n = len(requests.prompt) if num else 0
    return (
        starts,
        np.full((num, int(starts[-1])), -1, np.int64),
        np.full((num, some), -1, np.int64),
        np.zeros((num, some), np.int64),
        np.full((num, some), -1, np.int64),
        np.zeros((num, some), np.int64),
        newer,
        older,
        np.zeros((rows, most), np.int64),
        np.zeros(rows, np.int64),
        np.full(n, -1, np.int64),
        np.zeros(n, np.int64),
        np.append(rows, np.arange(rows)),
    )
