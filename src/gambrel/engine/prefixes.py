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
        hashes, offsets = workload.prefix_blocks, workload.prefix_offsets
        if hashes is None or offsets is None or len(hashes) == 0:
            return cls.none(len(workload))
        from gambrel.engine.prefix_kernel import shared_units

        columns = (hashes, offsets, workload.prompt_tokens, workload.output_tokens)
        return cls(
            *shared_units(
                *(np.ascontiguousarray(c, dtype=np.int64) for c in columns), workload.prefix_block_tokens, block_size
            )
        )
