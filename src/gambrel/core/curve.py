"""Latency, memory and cost per token against batch and context, with the named points of the curve.

Three points are named: the **ridge** (compute time = memory time), the **balance** (KV read = weight read) and the
**wall** (memory full). The **knee** is the first of them that binds as batch grows; :attr:`Curve.knee` says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gambrel.core.step import CAUSES

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints

__all__ = ["Curve"]


@dataclass(frozen=True)
class Curve:
    """Operating points of one replica in steady decode; arrays share one length, one row a (batch, context).

    Seconds per step, bytes per accelerator, tokens per second of the whole replica, dollars per million output
    tokens at full load (None without a price). ``bound_by`` indexes ``CAUSES``. ``ridge_batch``, ``balance_batch``
    and ``wall_batch`` are for ``named_context``; infinite where the point does not exist (compute never catches up
    beyond ``crossover_context``; a model without KV has no balance).
    """

    deployment: Deployment
    basis: str
    form: str
    batch: Ints
    context: Ints
    step_s: Floats
    compute_s: Floats
    weights_s: Floats
    kv_s: Floats
    collective_s: Floats
    overhead_s: Floats
    bound_by: npt.NDArray[np.int8]
    memory_bytes: Floats
    fits: npt.NDArray[np.bool_]
    tokens_per_s: Floats
    usd_per_mtok: Floats | None
    floor_s: float
    named_context: int
    ridge_batch: float
    balance_batch: float
    wall_batch: int
    crossover_context: float
    amortisation: float
    amortisation_limit: float

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def knee(self) -> tuple[str, float]:
        """(name, batch) of the first named point that binds as batch grows at ``named_context``."""
        points = {"ridge": self.ridge_batch, "balance": self.balance_batch, "wall": float(self.wall_batch)}
        name = min(points, key=lambda k: points[k])
        return name, points[name]

    def causes(self) -> list[str]:
        """``bound_by`` as words."""
        return [CAUSES[i] for i in self.bound_by]

    def at_context(self, context: int) -> npt.NDArray[np.intp]:
        """Rows of one context, in order of batch."""
        rows = np.flatnonzero(self.context == context)
        return rows[np.argsort(self.batch[rows], kind="stable")]
