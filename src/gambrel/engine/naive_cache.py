"""The prefix cache of the oracle, block by block: a hash table, reference counts and one queue of free blocks.

It follows vLLM's block pool in behaviour: a block taken from the head of the queue loses its hash; freed blocks without
a hash go to the head, those with one to the tail, a request's last block first; a hit takes the block out of the queue.
:mod:`gambrel.engine.cache_kernel` does the same on runs of blocks.
"""

from __future__ import annotations

from typing import Any

from gambrel.engine.compiled import compiled

__all__ = ["found_blocks", "free_all", "free_state", "make_findable", "pull", "put", "take_block"]


@compiled()
def put(block: int, after: int, newer: Any, older: Any) -> None:
    """Insert a block into the queue behind ``after``; the last place of the arrays is both ends."""
    before = newer[after]
    newer[after] = block
    older[block] = after
    newer[block] = before
    older[before] = block


@compiled()
def pull(block: int, newer: Any, older: Any) -> None:
    """Take a block out of the queue."""
    newer[older[block]] = newer[block]
    older[newer[block]] = older[block]


@compiled(pull)
def take_block(newer: Any, older: Any, key_of: Any, block_of: Any, owner: Any, place: Any, left: Any, refs: Any) -> int:
    """The block at the head of the queue, its hash forgotten."""
    block = newer[len(newer) - 1]
    pull(block, newer, older)
    if key_of[block] >= 0:
        block_of[key_of[block]] = -1
        key_of[block] = -1
    if owner[block] >= 0:
        left[owner[block]] = min(left[owner[block]], place[block])
        owner[block] = -1
    refs[block] = 1
    return int(block)


@compiled()
def found_blocks(request: int, limit: int, starts: Any, block_of: Any, units: Any, offsets: Any) -> int:
    """Leading blocks of the prompt that are cached; units that reach beyond ``limit`` blocks are not looked up."""
    found = 0
    for k in range(offsets[request], offsets[request + 1]):
        unit = units[k]
        if found + starts[unit + 1] - starts[unit] > limit:
            break
        for key in range(starts[unit], starts[unit + 1]):
            if block_of[key] < 0:
                return found
            found += 1
    return found


@compiled()
def make_findable(
    request: int, shared: int, full: int, limit: int, blocks: Any, starts: Any, block_of: Any, key_of: Any,
    units: Any, offsets: Any,
) -> int:  # fmt: skip
    """Hash the blocks ``shared`` to ``full`` of a request as far as their units are known; how many are hashed then."""
    number = 0
    for k in range(offsets[request], offsets[request + 1]):
        unit = units[k]
        size = starts[unit + 1] - starts[unit]
        if number + size > limit:
            break
        for j in range(size):
            if number == full:
                return shared
            if number >= shared:
                if block_of[starts[unit] + j] >= 0:
                    return shared
                block_of[starts[unit] + j] = blocks[number]
                key_of[blocks[number]] = starts[unit] + j
                shared += 1
            number += 1
    return shared


@compiled(put)
def free_all(
    row: int, num: int, shared: int, full: int, finished: bool, blocks: Any,
    newer: Any, older: Any, owner: Any, place: Any, left: Any, refs: Any,
) -> int:  # fmt: skip
    """Free a request's ``num`` blocks, the last first; how many nobody else holds.

    Of those beyond the ``shared`` ones, the first up to ``full`` have a hash of their own; a preempted request may find
    them again.
    """
    freed = 0
    ends = len(newer) - 1
    for k in range(num - 1, -1, -1):
        block = blocks[k]
        refs[block] -= 1
        if refs[block] > 0:
            continue
        freed += 1
        if k >= max(shared, full):
            put(block, ends, newer, older)
        else:
            put(block, older[ends], newer, older)
            if k >= shared and not finished:
                owner[block] = row
                place[block] = k - shared
    if not finished:
        left[row] = max(full - shared, 0)
    return freed


@compiled(put)
def free_state(state: int, blocks: Any, newer: Any, older: Any, refs: Any) -> int:
    """Free the ``state`` blocks of a request's recurrent state, the last of its ``blocks``; nobody finds them again."""
    for k in range(len(blocks) - state, len(blocks)):
        refs[blocks[k]] = 0
        put(blocks[k], len(newer) - 1, newer, older)
    return state
