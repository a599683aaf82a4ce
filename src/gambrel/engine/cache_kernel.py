"""The prefix cache of a replica, as vLLM keeps it, on units instead of blocks.

A free block that holds a cached prefix stays findable until it is handed out again. Blocks without a hash go first,
then the least recently freed; a request frees its blocks last to first, so a prefix outlives what follows it. Here
the queue holds *extents*: a unit nobody references (its leading ``COUNT`` blocks are left), the own blocks of a
preempted request, or anonymous ones that nobody will ask for again. All costs are per unit, not per block.

The naive kernel keeps single blocks, a hash table and the queue instead, and must agree bit for bit.
"""

from __future__ import annotations

from typing import Any

from gambrel.engine.compiled import compiled
from gambrel.engine.state import (
    ANONYMOUS,
    BLANK,
    COUNT,
    FILLED,
    HELD,
    NEWER,
    NEWEST,
    OLDER,
    OLDEST,
    REFS,
    REQUEST,
    SHARED,
    SPARE_NODE,
    STATE_BLOCKS,
)

__all__ = ["cover", "join", "match", "release", "take"]


@compiled()
def append(replica: int, node: int, ints: Any, cache: Any) -> None:
    """Put an extent at the young end of the queue."""
    newest = ints[replica, NEWEST]
    cache[replica, OLDER, node] = newest
    cache[replica, NEWER, node] = -1
    if newest >= 0:
        cache[replica, NEWER, newest] = node
    else:
        ints[replica, OLDEST] = node
    ints[replica, NEWEST] = node


@compiled()
def unlink(replica: int, node: int, ints: Any, cache: Any) -> None:
    """Take an extent out of the queue; anonymous neighbours become one."""
    older = cache[replica, OLDER, node]
    newer = cache[replica, NEWER, node]
    if older >= ints[replica, ANONYMOUS] and newer >= ints[replica, ANONYMOUS]:
        cache[replica, COUNT, older] += cache[replica, COUNT, newer]
        cache[replica, NEWER, older] = newer
        node = newer
        newer = cache[replica, NEWER, node]
        cache[replica, NEWER, node] = ints[replica, SPARE_NODE]
        ints[replica, SPARE_NODE] = node
    if older >= 0:
        cache[replica, NEWER, older] = newer
    else:
        ints[replica, OLDEST] = newer
    if newer >= 0:
        cache[replica, OLDER, newer] = older
    else:
        ints[replica, NEWEST] = older


@compiled()
def take(replica: int, blocks: int, ints: Any, cache: Any) -> None:
    """Hand out that many free blocks: those without a hash first, then the oldest, whose prefixes are forgotten."""
    blank = min(blocks, ints[replica, BLANK])
    ints[replica, BLANK] -= blank
    blocks -= blank
    while blocks > 0:
        node = ints[replica, OLDEST]
        count = cache[replica, COUNT, node]
        if count > blocks:
            cache[replica, COUNT, node] = count - blocks
            break
        blocks -= count
        cache[replica, COUNT, node] = 0
        newer = cache[replica, NEWER, node]
        ints[replica, OLDEST] = newer
        if newer >= 0:
            cache[replica, OLDER, newer] = -1
        else:
            ints[replica, NEWEST] = -1
        if node >= ints[replica, ANONYMOUS]:
            cache[replica, NEWER, node] = ints[replica, SPARE_NODE]
            ints[replica, SPARE_NODE] = node


@compiled()
def match(
    replica: int, request: int, slot: int, limit: int, cache: Any, units: Any, unit_offsets: Any, unit_sizes: Any
) -> Any:
    """(blocks found, how many of them are free now) for a request's prompt of ``limit`` full blocks.

    ``slot`` of a preempted request adds its own blocks that are left, -1 for none.
    """
    found = 0
    evictable = 0
    for k in range(unit_offsets[request], unit_offsets[request + 1]):
        unit = units[k]
        count = cache[replica, COUNT, unit]
        if count == 0 or found + unit_sizes[unit] > limit:
            break
        if cache[replica, REFS, unit] == 0:
            evictable += count
        found += count
        if count < unit_sizes[unit]:
            break
    if slot >= 0:
        own = cache[replica, COUNT, len(unit_sizes) + slot]
        found += own
        evictable += own
    return found, evictable


@compiled(unlink)
def join(
    replica: int, slot: int, limit: int, ints: Any, slots: Any, cache: Any,
    units: Any, unit_offsets: Any, unit_sizes: Any,
) -> None:  # fmt: skip
    """Hold what :func:`match` found."""
    request = slots[replica, REQUEST, slot]
    found = 0
    held = 0
    filled = 0
    for k in range(unit_offsets[request], unit_offsets[request + 1]):
        unit = units[k]
        count = cache[replica, COUNT, unit]
        if count == 0 or found + unit_sizes[unit] > limit:
            break
        if cache[replica, REFS, unit] == 0:
            unlink(replica, unit, ints, cache)
        cache[replica, REFS, unit] += 1
        found += count
        filled = count
        held += 1
        if count < unit_sizes[unit]:
            break
    slots[replica, HELD, slot] = held
    slots[replica, SHARED, slot] = found
    slots[replica, FILLED, slot] = filled
    own = len(unit_sizes) + slot
    if cache[replica, COUNT, own] > 0:
        unlink(replica, own, ints, cache)
        cache[replica, COUNT, own] = 0


@compiled()
def cover(
    replica: int, slot: int, full: int, limit: int, slots: Any, cache: Any,
    units: Any, unit_offsets: Any, unit_sizes: Any,
) -> None:  # fmt: skip
    """Make a request's first ``full`` blocks findable, as far as units within its first ``limit`` blocks hold them.

    A unit that somebody else has cached meanwhile is not cached twice; the request's own copy stays private.
    """
    request = slots[replica, REQUEST, slot]
    shared = slots[replica, SHARED, slot]
    held = slots[replica, HELD, slot]
    filled = slots[replica, FILLED, slot]
    begin = unit_offsets[request]
    num = unit_offsets[request + 1] - begin
    while shared < full:
        if held > 0 and filled < unit_sizes[units[begin + held - 1]]:
            unit = units[begin + held - 1]
            if cache[replica, COUNT, unit] != filled:
                break
        else:
            if held == num:
                break
            unit = units[begin + held]
            if shared + unit_sizes[unit] > limit or cache[replica, COUNT, unit] > 0:
                break
            cache[replica, REFS, unit] += 1
            held += 1
            filled = 0
        more = min(unit_sizes[unit] - filled, full - shared)
        filled += more
        shared += more
        cache[replica, COUNT, unit] = filled
    slots[replica, SHARED, slot] = shared
    slots[replica, HELD, slot] = held
    slots[replica, FILLED, slot] = filled


@compiled(append, cover)
def release(
    replica: int, slot: int, cached: int, block_size: int, finished: bool, ints: Any, slots: Any, cache: Any,
    units: Any, unit_offsets: Any, unit_sizes: Any,
) -> int:  # fmt: skip
    """Let go of a request's state and its blocks with ``cached`` tokens in them; how many became free.

    Of one that ended, the units of its answer become findable. Of a preempted one, its own blocks wait for it.
    """
    full = cached // block_size
    if finished:
        cover(replica, slot, full, full, slots, cache, units, unit_offsets, unit_sizes)
    private = (cached + block_size - 1) // block_size - slots[replica, SHARED, slot]
    full = max(full - slots[replica, SHARED, slot], 0)
    freed = private + ints[replica, STATE_BLOCKS]
    ints[replica, BLANK] += freed - full
    if full > 0:
        if not finished:
            node = len(unit_sizes) + slot
            cache[replica, COUNT, node] = full
            append(replica, node, ints, cache)
        elif ints[replica, NEWEST] >= ints[replica, ANONYMOUS]:
            cache[replica, COUNT, ints[replica, NEWEST]] += full
        else:
            node = ints[replica, SPARE_NODE]
            ints[replica, SPARE_NODE] = cache[replica, NEWER, node]
            cache[replica, COUNT, node] = full
            append(replica, node, ints, cache)
    begin = unit_offsets[slots[replica, REQUEST, slot]]
    for k in range(begin + slots[replica, HELD, slot] - 1, begin - 1, -1):
        unit = units[k]
        cache[replica, REFS, unit] -= 1
        if cache[replica, REFS, unit] == 0:
            freed += cache[replica, COUNT, unit]
            append(replica, unit, ints, cache)
    slots[replica, HELD, slot] = 0
    slots[replica, SHARED, slot] = 0
    slots[replica, FILLED, slot] = 0
    return int(freed)
