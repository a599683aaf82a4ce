"""Which prompts begin alike, as the fewest runs of KV blocks that can be told apart.

A log names the blocks of a prompt by hashes; 128k tokens are thousands of engine blocks. But most blocks belong to one
request only, and blocks that every request shares or none are one thing. So the prefix tree is compressed: a *unit* is
the longest run of engine blocks that the same requests begin with, and a request is the short list of its shared
units. What nobody else asks for is not listed. Hits, references and evictions of units are those of their blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gambrel.core.workload import Ints, Workload

__all__ = ["Prefixes"]


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The shared units of each request, in the order of its tokens.

    ``units`` int32 flat, row i at ``offsets[i]:offsets[i + 1]`` (int64[n + 1]); ``sizes`` int32[u] blocks of each. A
    row's units begin at its first token and have no gaps. Units beyond the prompt hold what the answer adds, known to
    later turns; none of them begins before the prompt's last full block ends.
    """

    units: npt.NDArray[np.int32]
    offsets: Ints
    sizes: npt.NDArray[np.int32]

    @classmethod
    def none(cls, n: int) -> Prefixes:
        """No row shares anything."""
        return cls(np.empty(0, np.int32), np.zeros(n + 1, np.int64), np.empty(0, np.int32))

    @classmethod
    def of(cls, workload: Workload, block_size: int) -> Prefixes:
        """From the hashes of a workload, of any granularity; a row that lists more than its prompt names its answer.

        Hashes need not be chained: a block counts as the same only where everything before it is the same.
        """
        n = len(workload)
        if workload.prefix_blocks is None or workload.prefix_offsets is None or len(workload.prefix_blocks) == 0:
            return cls.none(n)
        offsets = np.asarray(workload.prefix_offsets, np.int64)
        lengths = np.diff(offsets)
        row = np.repeat(np.arange(n), lengths)
        depth = np.arange(offsets[-1]) - offsets[row]
        granule = workload.prefix_block_tokens
        prompt = workload.prompt_tokens[row]
        answered = lengths[row] > -(-prompt // granule)
        known = np.where(answered, prompt + workload.output_tokens[row] - 1, prompt)
        ends = np.minimum((depth + 1) * granule, known) // block_size
        size = ends - np.minimum(depth * granule, known) // block_size
        node = _nodes(np.asarray(workload.prefix_blocks, np.int64), row, depth, size)
        beyond = ends > prompt // block_size

        full = size > 0  # hashes finer than an engine block name none of their own
        node, row, size, beyond = node[full], row[full], size[full], beyond[full]
        if len(node) == 0:
            return cls.none(n)
        begins = np.ones(len(node), np.bool_)
        begins[1:] = row[1:] != row[:-1]
        asked = np.bincount(node)
        # A node joins the one before it where both are asked for by the same rows, unless a prompt ends between them.
        joins = np.zeros(len(node), np.bool_)
        joins[1:] = ~begins[1:] & (asked[node[1:]] == asked[node[:-1]])
        split = np.zeros(len(asked), np.bool_)
        split[node[1:][~begins[1:] & (beyond[1:] != beyond[:-1])]] = True
        joins &= ~split[node]
        heads = np.flatnonzero(~joins)
        summed = np.add.reduceat(size, heads)
        node, row = node[heads], row[heads]
        shared = asked[node] > 1
        node, row, summed = node[shared], row[shared], summed[shared]
        if len(node) == 0:
            return cls.none(n)
        distinct, first, units = np.unique(node, return_index=True, return_inverse=True)
        sizes = summed[first].astype(np.int32)
        if len(distinct) >= 2**30:
            raise OverflowError("more than 2**30 shared prefix blocks")
        found = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))]).astype(np.int64)
        return cls(units.astype(np.int32), found, sizes)


def _nodes(hashes: Ints, row: Ints, depth: Ints, size: Ints) -> Ints:
    """Number the nodes of the prefix tree: equal where hash, size and all before them are equal."""
    _, label = np.unique(hashes, return_inverse=True)
    label = label.astype(np.int64)
    parent = np.full(len(label), -1, np.int64)
    inner = np.flatnonzero(depth > 0)
    parent[inner] = label[inner - 1]
    first = np.full(int(label.max()) + 1, -1, np.int64)
    first[label[::-1]] = np.arange(len(label))[::-1]
    same = first[label]
    if np.array_equal(parent, parent[same]) and np.array_equal(size, size[same]):
        return label  # the hashes are chained, as those of engines and published traces are
    node = np.empty(len(label), np.int64)
    before = np.full(int(row.max()) + 1, -1, np.int64)
    count = 0
    for level in range(int(depth.max()) + 1):
        here = np.flatnonzero(depth == level)
        key = np.stack([before[row[here]], label[here], size[here]], axis=1)
        _, number = np.unique(key, axis=0, return_inverse=True)
        node[here] = number.ravel() + count
        count += int(number.max()) + 1
        before[row[here]] = node[here]
    return node
