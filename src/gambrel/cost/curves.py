"""Latency, memory and cost per token against batch and context, and the named points where the curve bends.

One vectorised pass over the grid in cache-sized chunks; the same step formula as the event loop. The named points are
taken from the curve's own lines, so what a reader sees crossing is what crosses.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.core.curve import Curve
from gambrel.core.efficiency import ideal
from gambrel.core.errors import DeploymentError
from gambrel.core.step import CAUSES, Step, StepTable, step_parts
from gambrel.cost.blackboard import usd_per_mtok
from gambrel.cost.memory import held_bytes
from gambrel.cost.roofline import Roofline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from gambrel.core.step import CostModel, MemoryBudget, StepCost

__all__ = ["crossover_of", "curve", "floor_seconds", "wall_batch"]

_CHUNK = 1 << 15
_WIDE = 1 << 13  # tokens by which every expert is touched, so that compute per token is a constant
_FAR = 1 << 20  # a batch beyond which nothing bends: weights are amortised to nothing
_MOST_CONTEXT = 1 << 40  # tokens; twice the far batch of such contexts is still counted in 64 bits


def floor_seconds(cost_model: CostModel) -> float:
    """Seconds to read what one token needs of the weights at peak bandwidth: no decode step is shorter."""
    textbook = Roofline(cost_model.deployment, ideal(), "max")
    return textbook.step_cost(Step.decode(1, 0)).weights_s


def crossover_of(table: StepTable) -> float:
    """The context beyond which a sequence's KV takes longer to read than its matmuls to compute, at any batch (L*).

    Attention's own FLOPs are left out, as on the blackboard; layers with a window stop growing at it.
    """
    lines, last = table.lines, table.max_tokens
    rows = table.max_seqs
    per_token = (table.linear_compute[last] - table.linear_compute[last // 2]) / max(1, last - last // 2)
    per_token += (table.head_compute[rows] - table.head_compute[rows // 2]) / max(1, rows - rows // 2)
    full, windowed = lines[1], lines[7]
    if full + windowed <= 0.0:
        return math.inf
    inside = per_token / (full + windowed)
    if not table.window or inside <= table.window:
        return float(inside)
    return float((per_token - windowed * table.window) / full) if full > 0.0 else math.inf


def wall_batch(cost_model: CostModel, context: int) -> int:
    """The most sequences of ``context`` tokens, rounded up to blocks, that the KV cache holds; 0 if nothing fits."""
    budget = cost_model.memory()
    held = float(_held(cost_model, np.array([max(1, context)]))[0])
    if not budget.fits or held <= 0.0:
        return 0 if not budget.fits else _FAR
    return math.floor(budget.kv_cache_bytes / held)


def _held(cost_model: CostModel, context: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Bytes of one sequence on one rank, its last block in full."""
    block = cost_model.deployment.block_size
    return np.asarray(held_bytes(cost_model.deployment, -(-context // block) * block), dtype=np.float64)


def _first(at: Callable[[int], float]) -> float:
    """The batch where ``at`` (difference of two lines) turns from negative to not; infinite if it never does."""
    if at(1) >= 0.0:
        return 1.0
    if at(_FAR) < 0.0:
        return math.inf
    low, high = 1, _FAR
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) < 0.0 else (low, middle)
    before, after = at(low), at(high)
    return low + before / (before - after)


def curve(
    cost_model: CostModel,
    batches: Sequence[int] | Any,
    contexts: Sequence[int] | Any,
    usd_per_hour: float | None = None,
) -> Curve:
    """Steady decode of one replica at every batch of ``batches`` and every context of ``contexts``.

    Args:
        cost_model: what prices the steps.
        batches: sequences in a step, at least 1.
        contexts: tokens that each attends to, at least 0; the first one is the named context.
        usd_per_hour: of the replica; None leaves cost out.

    Returns:
        one row per pair, contexts varying fastest.

    Raises:
        DeploymentError: no batch or no context, or one out of range.
    """
    b, c = np.asarray(batches, dtype=np.int64), np.asarray(contexts, dtype=np.int64)
    if not b.size or not c.size or b.min() < 1 or c.min() < 0:
        raise DeploymentError("a curve needs batches of at least 1 and contexts of at least 0")
    if b.max() > _FAR or c.max() > _MOST_CONTEXT:
        raise DeploymentError(
            f"a curve is drawn for batches of at most {_FAR:,} and contexts of at most {_MOST_CONTEXT:,} tokens, "
            f"got {int(b.max()):,} and {int(c.max()):,}"
        )
    most = int(b.max())
    table = cost_model.compile(most, most)
    budget = cost_model.memory()
    n = b.size * c.size
    out = np.empty((6, n))
    bound = np.empty(n, dtype=np.int8)
    batch, context = np.repeat(b, c.size), np.tile(c, b.size)
    for start in range(0, n, _CHUNK):
        rows = slice(start, min(n, start + _CHUNK))
        _fill(table, batch[rows], context[rows], out[:, rows], bound[rows])
    held = np.tile(_held(cost_model, c), b.size) * batch
    tokens_per_s = batch / out[5]
    named = int(c[0])
    cost = None if usd_per_hour is None else usd_per_mtok(usd_per_hour, tokens_per_s)
    one = cost_model.step_cost(Step.decode(1, named, table.window or None)).seconds
    return Curve(
        deployment=cost_model.deployment,
        basis=cost_model.basis,
        form="max" if table.lines[15] > 0.5 else "serial",
        batch=batch,
        context=context,
        step_s=out[5],
        compute_s=out[0],
        weights_s=out[1],
        kv_s=out[2],
        collective_s=out[3],
        overhead_s=out[4],
        bound_by=bound,
        memory_bytes=held + (budget.weight_bytes + budget.activation_bytes + budget.reserve_bytes),
        fits=held <= budget.kv_cache_bytes,
        tokens_per_s=tokens_per_s,
        usd_per_mtok=cost,
        floor_s=floor_seconds(cost_model),
        named_context=named,
        amortisation=_reached(one, batch, context, out[5], named, _room(budget, held)),
        **_named(cost_model, table, named, one),
    )


def _fill(
    table: StepTable,
    batch: npt.NDArray[np.int64],
    context: npt.NDArray[np.int64],
    out: npt.NDArray[np.float64],
    bound: npt.NDArray[np.int8],
) -> None:
    """Price one chunk of rows into ``out`` (five causes and the total) and ``bound``."""
    sequences = batch.astype(np.float64)
    capped = sequences * np.minimum(context, table.window) if table.window else 0.0
    parts = step_parts(*table.arrays(), batch, batch, sequences, sequences * context, capped, 0, 0, 0, 0)
    out[0] = parts[0]
    bound[:] = 0
    highest = out[0].copy()
    for i, part in enumerate(parts[1:], start=1):
        out[i] = part
        if i < len(CAUSES):
            np.copyto(bound, i, where=out[i] > highest)
            np.maximum(highest, out[i], out=highest)


def _room(budget: MemoryBudget, held: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return held <= budget.kv_cache_bytes


def _reached(
    one: float,
    batch: npt.NDArray[np.int64],
    context: npt.NDArray[np.int64],
    step_s: npt.NDArray[np.float64],
    named: int,
    room: npt.NDArray[np.bool_],
) -> float:
    """Cost per token at batch 1 over the least that a fitting batch of the curve reaches, at the named context."""
    rows = (context == named) & room
    return float(one / np.min(step_s[rows] / batch[rows])) if rows.any() else 1.0


def _named(cost_model: CostModel, table: StepTable, context: int, one: float) -> dict[str, Any]:
    """Ridge, balance and wall at ``context``, the crossover, and the limit of amortisation."""
    window = table.window or None
    seen: dict[int, StepCost] = {}

    def price(batch: int) -> StepCost:
        found = seen.get(batch)
        if found is None:
            found = seen[batch] = cost_model.step_cost(Step.decode(batch, context, window))
        return found

    slope = (price(2 * _FAR).seconds - price(_FAR).seconds) / _FAR
    return {
        "ridge_batch": _first(lambda n: price(n).compute_s - price(n).weights_s - price(n).kv_s),
        "balance_batch": _first(lambda n: price(n).kv_s - price(n).weights_s),
        "wall_batch": wall_batch(cost_model, context),
        "crossover_context": crossover_of(cost_model.compile(_WIDE, _WIDE)),
        "amortisation_limit": one / slope,
    }
