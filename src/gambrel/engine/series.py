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

    from gambrel.engine.state import Replica

__all__ = ["joined"]


def joined(replicas: Sequence[Replica], num_kv_blocks: int) -> Series:
    """Running and waiting summed over replicas, KV usage as the share of all their blocks; at most 4096 samples."""
    every = max(float(r.floats[SAMPLE_EVERY]) for r in replicas)
    strides = [round(every / float(r.floats[SAMPLE_EVERY])) for r in replicas]
    sampled = [r.samples[:, : r.ints[NUM_SAMPLES] : stride] for r, stride in zip(replicas, strides, strict=True)]
    length = max(s.shape[1] for s in sampled)
    total = np.zeros((3, length))
    for s in sampled:
        total[:, : s.shape[1]] += s[1:]
    time = float(replicas[0].floats[SAMPLE_ORIGIN]) + np.arange(length) * every
    return Series(time, total[0], total[1], total[2] / (num_kv_blocks * len(replicas)))
