"""The state of a replica over time, on a regular grid, summed over replicas.

Every replica samples at ``origin + k * every``; a full table drops every second sample and doubles ``every``, so the
grids of different replicas are nested and the coarsest of them is common to all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.run import Series
from gambrel.engine.state import NUM_SAMPLES, SAMPLE_EVERY, SAMPLE_ORIGIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gambrel.engine.state import Replicas

__all__ = ["joined"]


def joined(served: Sequence[Replicas], num_kv_blocks: int) -> Series:
    """Running and waiting summed over replicas, KV usage as the share of all their blocks; at most 4096 samples."""
    floats = np.concatenate([r.floats for r in served])
    counts = np.concatenate([r.ints[:, NUM_SAMPLES] for r in served])
    samples = [row for r in served for row in r.samples]
    every = floats[:, SAMPLE_EVERY].max()
    strides = np.rint(every / floats[:, SAMPLE_EVERY]).astype(int)
    kept = [row[1:, :count:stride] for row, count, stride in zip(samples, counts, strides, strict=True)]
    total = np.zeros((3, max(k.shape[1] for k in kept)))
    for k in kept:
        total[:, : k.shape[1]] += k
    time = floats[0, SAMPLE_ORIGIN] + np.arange(total.shape[1]) * every
    return Series(time, total[0], total[1], total[2] / (num_kv_blocks * len(samples)))
