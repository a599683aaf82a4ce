"""The prefix tree of a workload, built in one pass over its hashes and compressed to the runs that requests share.

Numbering by sorting would take longer than the replay itself; a hash table of nodes does not. This module imports
numba; import it only where prompts share something.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gambrel.engine.compiled import compiled

__all__ = ["shared_units"]


@compiled()
def _slot(parent: int, value: int, size: int, mask: int) -> Any:
    """Where a node's search in the table begins (the finaliser of splitmix64)."""
    x = np.uint64(value) ^ (np.uint64(parent + 1) * np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(size)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((x ^ (x >> np.uint64(31))) & np.uint64(mask))


@compiled(_slot, allocates=True)
def shared_units(hashes: Any, offsets: Any, prompt: Any, output: Any, granule: int, block_size: int) -> Any:
    """(units int32 flat, offsets int64[n + 1], sizes int32) as :class:`gambrel.engine.prefixes.Prefixes` has them.

    ``hashes`` int64 flat, row i at ``offsets[i]:offsets[i + 1]``, each of ``granule`` tokens.
    """
    n = len(prompt)
    total = len(hashes)
    room = 1024
    mask = 2 * room - 1
    table = np.full(2 * room, -1, np.int32)
    above = np.empty(room, np.int32)  # parent in the tree
    value = np.empty(room, np.int64)
    size = np.empty(room, np.int32)  # engine blocks that end in the node
    asked = np.empty(room, np.int32)  # rows that pass it
    split = np.zeros(room, np.bool_)  # a prompt ends before it
    node_of = np.empty(total, np.int32)
    num = 0
    for i in range(n):
        length = offsets[i + 1] - offsets[i]
        known = prompt[i]
        if length * granule >= known + granule:
            known += output[i] - 1
        parent = -1
        done = 0
        beyond = False
        any_before = False
        for k in range(length):
            ends = min((k + 1) * granule, known) // block_size
            blocks = ends - done
            done = ends
            x = hashes[offsets[i] + k]
            slot = _slot(parent, x, blocks, mask)
            while True:
                node = table[slot]
                if node < 0 or (above[node] == parent and value[node] == x and size[node] == blocks):
                    break
                slot = (slot + 1) & mask
            if node < 0:
                node = num
                table[slot] = node
                above[node] = parent
                value[node] = x
                size[node] = blocks
                asked[node] = 0
                num += 1
            asked[node] += 1
            if blocks > 0:
                now_beyond = ends > prompt[i] // block_size
                if any_before and now_beyond != beyond:
                    split[node] = True
                beyond = now_beyond
                any_before = True
            node_of[offsets[i] + k] = node
            parent = node
            if num == room:
                room *= 2
                mask = 2 * room - 1
                above = np.concatenate((above, np.empty(num, np.int32)))
                value = np.concatenate((value, np.empty(num, np.int64)))
                size = np.concatenate((size, np.empty(num, np.int32)))
                asked = np.concatenate((asked, np.empty(num, np.int32)))
                split = np.concatenate((split, np.zeros(num, np.bool_)))
                table = np.full(2 * room, -1, np.int32)
                for other in range(num):
                    slot = _slot(above[other], value[other], size[other], mask)
                    while table[slot] >= 0:
                        slot = (slot + 1) & mask
                    table[slot] = other

    # A node joins the one above it where the same rows pass both, unless a prompt ends between them.
    full = np.empty(num, np.int32)  # the node itself, or the nearest above it in which a block ends
    head = np.full(num, -1, np.int32)
    unit_of = np.full(num, -1, np.int32)
    sizes = np.empty(num, np.int32)
    num_units = 0
    for node in range(num):  # parents come before their children
        up = full[above[node]] if above[node] >= 0 else -1
        full[node] = up
        if size[node] == 0:
            continue
        full[node] = node
        if up >= 0 and asked[up] == asked[node] and not split[node]:
            head[node] = head[up]
            if asked[node] > 1:
                sizes[unit_of[head[node]]] += size[node]
            continue
        head[node] = node
        if asked[node] > 1:
            unit_of[node] = num_units
            sizes[num_units] = size[node]
            num_units += 1

    found = np.zeros(n + 1, np.int64)
    number = 0
    for k in range(total):
        if unit_of[node_of[k]] >= 0:
            number += 1
    units = np.empty(number, np.int32)
    number = 0
    for i in range(n):
        for k in range(offsets[i], offsets[i + 1]):
            unit = unit_of[node_of[k]]
            if unit >= 0:
                units[number] = unit
                number += 1
        found[i + 1] = number
    return units, found, sizes[:num_units].copy()
