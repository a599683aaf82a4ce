"""The prefix cache of each rank of a worker, block by block, out of the pieces of :mod:`gambrel.engine.naive_cache`.

All ranks' arrays travel as one tuple, one row a rank, in the order of :data:`PARTS`. Lists of blocks (``blocks``
int64[slots, most], ``left`` and ``shared`` int64[slots]) belong to the slots of requests, wherever they run.
"""

from __future__ import annotations

from typing import Any

from gambrel.engine.compiled import compiled
from gambrel.engine.naive_cache import found_blocks, free_all, free_state, make_findable, pull, put, take_block

__all__ = ["PARTS", "find", "give_back", "grow", "hold"]

PARTS = (
    "units", "unit_offsets", "starts", "block_of", "key_of", "refs", "owner", "place", "newer", "older",
    "blocks", "left", "shared",
)  # fmt: skip


@compiled(found_blocks)
def find(i: int, slot: int, g: int, again: bool, limit: int, memory: Any) -> Any:
    """(blocks in common with others, found in all, free ones among those found) of a request at a rank.

    A request that comes ``again`` has a slot, and may find blocks of its own.
    """
    units, offsets, starts, block_of, _, refs, _, _, _, _, _, left, _ = memory
    common = found_blocks(i, limit, starts, block_of[g], units, offsets)
    found = common
    evictable = 0
    if again:
        found += left[slot]
        evictable += left[slot]
    number = 0
    for k in range(offsets[i], offsets[i + 1]):
        for key in range(starts[units[k]], starts[units[k] + 1]):
            if number < common and refs[g, block_of[g, key]] == 0:
                evictable += 1
            number += 1
    return common, found, evictable


@compiled(make_findable, pull, take_block)
def hold(
    i: int, slot: int, g: int, common: int, found: int, need: int, full: int, limit: int, state: int, memory: Any
) -> None:
    """Take the blocks found and ``need`` more, and those of its recurrent state; hash the ``full`` first."""
    units, offsets, starts, block_of, key_of, refs, owner, place, newer, older, blocks, left, shared = memory
    most = blocks.shape[1]
    number = 0
    for k in range(offsets[i], offsets[i + 1]):
        for key in range(starts[units[k]], starts[units[k] + 1]):
            if number < common:
                block = block_of[g, key]
                if refs[g, block] == 0:
                    pull(block, newer[g], older[g])
                refs[g, block] += 1
                blocks[slot, number] = block
                number += 1
    for k in range(common, found):  # its own, where they were
        block = blocks[slot, k]
        pull(block, newer[g], older[g])
        refs[g, block] = 1
        owner[g, block] = -1
    left[slot] = 0
    for k in range(found, found + need):
        blocks[slot, k] = take_block(newer[g], older[g], key_of[g], block_of[g], owner[g], place[g], left, refs[g])
    for k in range(most - state, most):
        blocks[slot, k] = take_block(newer[g], older[g], key_of[g], block_of[g], owner[g], place[g], left, refs[g])
    shared[slot] = make_findable(i, common, full, limit, blocks[slot], starts, block_of[g], key_of[g], units, offsets)


@compiled(make_findable, take_block)
def grow(i: int, slot: int, g: int, held: int, need: int, full: int, limit: int, memory: Any) -> None:
    """Take ``need`` blocks beside the ``held`` ones; hash the ``full`` first, unless that is negative."""
    units, offsets, starts, block_of, key_of, refs, owner, place, newer, older, blocks, left, shared = memory
    for k in range(held, held + need):
        blocks[slot, k] = take_block(newer[g], older[g], key_of[g], block_of[g], owner[g], place[g], left, refs[g])
    if full >= 0:
        shared[slot] = make_findable(
            i, shared[slot], full, limit, blocks[slot], starts, block_of[g], key_of[g], units, offsets
        )


@compiled(free_all, free_state, make_findable, put)
def give_back(i: int, slot: int, g: int, held: int, full: int, finished: bool, state: int, memory: Any) -> int:
    """Free a request's blocks, ``full`` of them with a hash; how many nobody else holds."""
    units, offsets, starts, block_of, key_of, refs, owner, place, newer, older, blocks, left, shared = memory
    if finished:
        shared[slot] = make_findable(
            i, shared[slot], full, full, blocks[slot], starts, block_of[g], key_of[g], units, offsets
        )
    return int(
        free_state(state, blocks[slot], newer[g], older[g], refs[g])
        + free_all(
            slot, held, shared[slot], full, finished, blocks[slot],
            newer[g], older[g], owner[g], place[g], left, refs[g],
        )
    )  # fmt: skip
