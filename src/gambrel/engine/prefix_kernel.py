"""The prefix tree of a workload, built in one pass over its hashes and compressed to the runs that requests share.

It is a radix tree: an edge is a run of hashes, kept as a place in the log, so that following one is comparing two
stretches of memory, and only where requests part is anything looked up or made. A log of 128k-token prompts has
hundreds of hashes a row but few such places. This module imports numba; import it only where prompts share something.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gambrel.engine.compiled import compiled

__all__ = ["shared_units"]


@compiled()
def _slot(parent: int, value: int, size: int, mask: int) -> Any:
    """Where an edge's search in the table begins (the finaliser of splitmix64)."""
    x = np.uint64(value) ^ (np.uint64(parent + 1) * np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(size)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((x ^ (x >> np.uint64(31))) & np.uint64(mask))


@compiled()
def _blocks(k: int, number: int, known: int, granule: int, block_size: int) -> Any:
    """Engine blocks that end in the hashes ``k`` to ``k + number`` of a row of ``known`` tokens."""
    return min((k + number) * granule, known) // block_size - min(k * granule, known) // block_size


@compiled()
def _alike(hashes: Any, one: int, two: int, number: int) -> int:
    """How many of the ``number`` hashes from place ``one`` on equal those from place ``two`` on."""
    j = 0
    while j + 8 <= number:
        differ = 0
        for k in range(8):
            differ |= hashes[one + j + k] ^ hashes[two + j + k]
        if differ != 0:
            break
        j += 8
    while j < number and hashes[one + j] == hashes[two + j]:
        j += 1
    return j


@compiled(_slot, _blocks)
def _part(
    edge: int, number: int, upper: int, table: Any, above: Any, owner: Any, first: Any, length: Any, asked: Any,
    hashes: Any, offsets: Any, known: Any, granule: int, block_size: int,
) -> None:  # fmt: skip
    """Make the first ``number`` hashes of an edge the edge ``upper``; rows that end in it end in what is left."""
    mask = len(table) - 1
    row = owner[edge]
    k = first[edge]
    slot = _slot(above[edge], hashes[offsets[row] + k], _blocks(k, 1, known[row], granule, block_size), mask)
    while table[slot] != edge:
        slot = (slot + 1) & mask
    table[slot] = upper
    above[upper] = above[edge]
    owner[upper] = row
    first[upper] = k
    length[upper] = number
    asked[upper] = asked[edge]
    k += number
    above[edge] = upper
    first[edge] = k
    length[edge] -= number
    slot = _slot(upper, hashes[offsets[row] + k], _blocks(k, 1, known[row], granule, block_size), mask)
    while table[slot] >= 0:
        slot = (slot + 1) & mask
    table[slot] = edge


@compiled(_slot, _blocks, _alike, _part, allocates=True)
def shared_units(hashes: Any, offsets: Any, prompt: Any, output: Any, granule: int, block_size: int) -> Any:
    """(units int32 flat, offsets int64[n + 1], sizes int32) as :class:`gambrel.engine.prefixes.Prefixes` has them.

    ``hashes`` int64 flat, row i at ``offsets[i]:offsets[i + 1]``, each of ``granule`` tokens.
    """
    n = len(prompt)
    known = np.empty(n, np.int64)  # tokens of a row that its hashes speak of
    for i in range(n):
        known[i] = prompt[i]
        if (offsets[i + 1] - offsets[i]) * granule >= prompt[i] + granule:
            known[i] += output[i] - 1
    room = 1024
    while room < n:
        room *= 2
    mask = 2 * room - 1
    table = np.full(2 * room, -1, np.int32)
    above = np.empty(room, np.int32)  # the edge before it
    owner = np.empty(room, np.int32)  # a row that has it
    first = np.empty(room, np.int32)  # its first hash in that row
    length = np.empty(room, np.int32)
    asked = np.empty(room, np.int32)  # rows that pass it
    last = np.empty(n, np.int32)  # the edge in which each row ends
    num = 0
    for i in range(n):
        if num + 3 > room:  # a row makes a leaf and parts two edges at most
            room *= 2
            mask = 2 * room - 1
            above = np.concatenate((above, above))
            owner = np.concatenate((owner, owner))
            first = np.concatenate((first, first))
            length = np.concatenate((length, length))
            asked = np.concatenate((asked, asked))
            table = np.full(2 * room, -1, np.int32)
            for edge in range(num):
                value = hashes[offsets[owner[edge]] + first[edge]]
                size = _blocks(first[edge], 1, known[owner[edge]], granule, block_size)
                slot = _slot(above[edge], value, size, mask)
                while table[slot] >= 0:
                    slot = (slot + 1) & mask
                table[slot] = edge
        begin = offsets[i]
        total = offsets[i + 1] - begin
        edge = -1
        k = 0
        while k < total:
            value = hashes[begin + k]
            size = _blocks(k, 1, known[i], granule, block_size)
            slot = _slot(edge, value, size, mask)
            while True:
                child = table[slot]
                if child < 0 or (
                    above[child] == edge
                    and hashes[offsets[owner[child]] + k] == value
                    and _blocks(k, 1, known[owner[child]], granule, block_size) == size
                ):
                    break
                slot = (slot + 1) & mask
            if child < 0:
                table[slot] = num
                above[num] = edge
                owner[num] = i
                first[num] = k
                length[num] = total - k
                asked[num] = 1
                edge = num
                num += 1
                break
            # Where both rows' tokens fill the granules, equal hashes are equal blocks.
            here = offsets[owner[child]] + k
            stop = min(length[child], total - k)
            j = _alike(hashes, begin + k, here, min(stop, min(known[i], known[owner[child]]) // granule - k))
            j = max(j, 1)
            while (
                j < stop
                and hashes[begin + k + j] == hashes[here + j]
                and _blocks(k + j, 1, known[i], granule, block_size)
                == _blocks(k + j, 1, known[owner[child]], granule, block_size)
            ):
                j += 1
            edge = child
            if j < length[child]:
                edge = num
                num += 1
                _part(
                    child, j, edge, table, above, owner, first, length, asked,
                    hashes, offsets, known, granule, block_size,
                )  # fmt: skip
            asked[edge] += 1
            k += j
        last[i] = edge
        # The answer's blocks are units of their own, from the first hash in which one beyond the prompt's ends.
        beyond = (prompt[i] // block_size + 1) * block_size
        k = (beyond + granule - 1) // granule - 1
        if beyond <= known[i] and k < total:
            while first[edge] > k:
                edge = above[edge]
            if first[edge] < k:
                _part(
                    edge, k - first[edge], num, table, above, owner, first, length, asked,
                    hashes, offsets, known, granule, block_size,
                )  # fmt: skip
                num += 1

    # Edges that several rows pass, and in which a block ends, are units.
    unit_of = np.full(num, -1, np.int32)
    sizes = np.empty(num, np.int32)
    num_units = 0
    for edge in range(num):
        if asked[edge] > 1:
            size = _blocks(first[edge], length[edge], known[owner[edge]], granule, block_size)
            if size > 0:
                unit_of[edge] = num_units
                sizes[num_units] = size
                num_units += 1
    found = np.zeros(n + 1, np.int64)
    for i in range(n):
        found[i + 1] = found[i]
        edge = last[i]
        while edge >= 0:
            if unit_of[edge] >= 0:
                found[i + 1] += 1
            edge = above[edge]
    units = np.empty(found[n], np.int32)
    for i in range(n):
        k = found[i + 1]
        edge = last[i]
        while edge >= 0:
            if unit_of[edge] >= 0:
                k -= 1
                units[k] = unit_of[edge]
            edge = above[edge]
    return units, found, sizes[:num_units].copy()
