"""Continuous batching in steady state, without simulating: the batch at which arrivals and completions balance.

A replica that holds ``B`` decoding sequences spends ``s(B)`` seconds on each request: its share of ``G`` decode steps,
and what its prompt adds to the steps that carry it. ``s`` falls with ``B`` (weights are read once for all), so the
batch settles where ``s(B) = 1 / rate``, and no batch settles it when even the largest is too slow. Little's law then
gives the time between tokens, ``B / (rate G)``. This is the fixed point ``B = rate E[G] t(B)`` of docs/theory.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.step import Step, causal_pairs, step_parts
from gambrel.cost.memory import held_bytes

if TYPE_CHECKING:
    from gambrel.core.step import CostModel, Floats, StepTable

__all__ = ["Demand", "SteadyState", "busy_seconds", "closed_loop", "steady_state"]


@dataclass(frozen=True, slots=True)
class Demand:
    """Mean figures of a workload, per request.

    Attributes:
        prompt_tokens: prompt tokens to compute (cached prefixes left out).
        output_tokens: tokens generated.
        context_tokens: cached tokens that a decoding sequence attends to, averaged over decode steps, so
            **length-biased**: ``(E[P G] + E[G (G + 1)] / 2) / E[G]``. NaN takes lengths as constant.
        prompt_pairs: causal pairs of a prompt, ``E[P (P + 1)] / 2``. NaN takes lengths as constant.
    """

    prompt_tokens: float
    output_tokens: float
    context_tokens: float = math.nan
    prompt_pairs: float = math.nan

    @property
    def context(self) -> float:
        """``context_tokens``, or its value for constant lengths."""
        if math.isnan(self.context_tokens):
            return self.prompt_tokens + (self.output_tokens + 1) / 2
        return self.context_tokens

    @property
    def pairs(self) -> float:
        """``prompt_pairs``, or its value for constant lengths."""
        if math.isnan(self.prompt_pairs):
            return self.prompt_tokens * (self.prompt_tokens + 1) / 2
        return self.prompt_pairs


@dataclass(frozen=True, slots=True)
class SteadyState:
    """Where a replica settles; ``batch`` and ``tpot_s`` are those at the limit when it is not ``stable``.

    Attributes:
        stable: whether the replica keeps up.
        utilisation: arrival rate over the largest rate it sustains.
        batch: mean decoding sequences (below 1: the replica is idle part of the time).
        batch_limit: the most that memory and ``max_num_seqs`` allow at the mean held context.
        tpot_s: mean seconds between tokens of a request, prompts of others included.
        ttft_service_s: seconds of a prompt's own steps, without waiting.
        max_rate: requests per second at ``batch_limit``.
    """

    stable: bool
    utilisation: float
    batch: float
    batch_limit: int
    tpot_s: float
    ttft_service_s: float
    max_rate: float


def _decode_seconds(table: StepTable, batch: Floats, context: float) -> Floats:
    """Seconds of decode steps of the given batches at one mean context."""
    rows = np.rint(batch).astype(np.int64)
    windowed = min(context, table.window) if table.window else 0.0
    parts = step_parts(*table.arrays(), rows, rows, batch, batch * context, batch * windowed, 0, 0, 0, 0)
    return np.asarray(parts[5])


def _mixed_seconds(table: StepTable, batch: Floats, demand: Demand, chunks: Floats, together: Floats) -> Floats:
    """Seconds of steps that carry ``together`` chunks of prompts cut into ``chunks`` equal parts, beside each batch."""
    rows = np.rint(batch).astype(np.int64)
    part = demand.prompt_tokens / chunks * together
    tokens = np.minimum(rows + np.rint(part).astype(np.int64), table.max_tokens)
    sampled = np.minimum(rows + np.rint(together).astype(np.int64), table.max_seqs)
    windowed = min(demand.context, table.window) if table.window else 0.0
    pairs = demand.pairs / chunks * together
    inside = _windowed_share(table, demand) * pairs
    parts = step_parts(
        *table.arrays(), tokens, sampled, batch, batch * demand.context, batch * windowed, part, together, pairs, inside
    )
    return np.asarray(parts[5])


def _windowed_share(table: StepTable, demand: Demand) -> float:
    """Share of a prompt's pairs that lie within the window, by its mean length."""
    if not table.window:
        return 0.0
    length = max(1, round(demand.prompt_tokens))
    return causal_pairs(0, length, table.window) / causal_pairs(0, length)


def _lower_hull(x: Floats, y: Floats) -> Floats:
    """The largest convex function below the points, at the same ``x``."""
    keep: list[int] = []
    for i in range(len(x)):
        while len(keep) > 1:
            a, b = keep[-2], keep[-1]
            if (y[b] - y[a]) * (x[i] - x[a]) <= (y[i] - y[a]) * (x[b] - x[a]):
                break
            keep.pop()
        keep.append(i)
    return np.interp(x, x[keep], y[keep])


def _fluid_seconds(table: StepTable, batch: Floats, demand: Demand) -> Floats:
    """A lower bound on the mean step at each mean batch: prompts spread evenly, concave terms under their chord.

    By Jensen's inequality no arrangement of the same tokens over steps takes less time, as every cost is taken as a
    convex function of the tokens in a step and the attention terms are sums that do not depend on the arrangement.
    """
    knots = np.unique(np.geomspace(1, table.max_tokens, 96).astype(np.int64)) if table.max_tokens > 1 else np.array([1])
    per_token = table.linear if table.lines[15] < 0.5 else np.maximum(table.linear_compute, table.linear_weights)
    flat = _lower_hull(knots.astype(np.float64), (per_token + table.collective + table.overhead)[knots])
    prompt = batch * (demand.prompt_tokens / demand.output_tokens)
    requests = batch / demand.output_tokens
    windowed = min(demand.context, table.window) if table.window else 0.0
    lines = table.lines
    decode = np.maximum(
        batch * (lines[1] * demand.context + lines[7] * windowed + lines[13]),
        batch * (lines[3] * demand.context + lines[9] * windowed + lines[17]),
    )
    inside = _windowed_share(table, demand) * demand.pairs
    prefill = requests * (lines[4] * demand.pairs + lines[10] * inside) + (lines[5] + lines[11]) * prompt
    attention = decode + prefill if lines[15] < 0.5 else 0.0
    return np.asarray(np.interp(batch + prompt, knots, flat) + attention + lines[14] * batch)


def busy_seconds(cost_model: CostModel, batch: Floats, demand: Demand, *, optimistic: bool = False) -> Floats:
    """Seconds of the replica that one request takes at each mean decoding batch (float64, at least 1).

    ``(G / B) (t_decode(B) + n (t_mixed(B) - t_decode(B)))``: prompts come whole and a share ``n`` of the steps carries
    one of their chunks. ``optimistic`` spreads prompts evenly over all steps instead, a lower bound for any schedule.
    """
    d = cost_model.deployment
    table = cost_model.compile(d.max_num_batched_tokens, d.max_num_seqs)
    if optimistic:
        return demand.output_tokens / batch * _fluid_seconds(table, batch, demand)
    return _burst_seconds(table, batch, demand)[0]


def _burst_seconds(table: StepTable, batch: Floats, demand: Demand) -> tuple[Floats, Floats]:
    """(seconds of the replica per request, seconds of the steps that carry one prompt) at each mean batch.

    A prompt is cut where the token budget ends; where more than one chunk per step arrives, every step carries them.
    """
    alone = _decode_seconds(table, batch, demand.context)
    room = np.maximum(table.max_tokens - batch, 1.0)
    chunks = np.maximum(np.ceil(demand.prompt_tokens / room), 1.0)
    per_step = chunks * batch / demand.output_tokens
    together = np.maximum(per_step, 1.0)
    mixed = _mixed_seconds(table, batch, demand, chunks, together)
    extra = per_step / together * np.maximum(mixed - alone, 0.0)
    return demand.output_tokens / batch * (alone + extra), chunks * mixed


def steady_state(cost_model: CostModel, rate: float, demand: Demand, *, optimistic: bool = False) -> SteadyState:
    """Where one replica settles under ``rate`` requests per second.

    With ``optimistic`` every figure is a bound in the candidate's favour: least time between tokens, most
    throughput. A candidate that this calls unstable cannot be saved by any schedule.
    """
    d = cost_model.deployment
    budget = cost_model.memory()
    if not budget.fits:
        return SteadyState(False, math.inf, 0.0, 0, math.inf, math.inf, 0.0)
    held = float(held_bytes(d, demand.context if not optimistic else max(1.0, demand.context / 2)))
    limit = _batch_limit(cost_model, held)
    # a step holds at most max_num_batched_tokens, decoded and prompt tokens together
    most = min(float(limit), d.max_num_batched_tokens / (1.0 + demand.prompt_tokens / demand.output_tokens))
    grid = np.arange(1.0, math.floor(most) + 1.0) if most >= 1.0 else np.array([most])
    seconds = np.minimum.accumulate(busy_seconds(cost_model, grid, demand, optimistic=optimistic))
    table = cost_model.compile(d.max_num_batched_tokens, d.max_num_seqs)
    max_rate = 1.0 / float(seconds[-1])
    wanted = 1.0 / rate if rate > 0 else math.inf
    batch = float(seconds[0]) * rate if wanted >= seconds[0] else _between(wanted, seconds, grid)
    served = min(rate, max_rate) if rate > 0 else 0.0
    at = np.array([max(1.0, batch)])
    alone = _decode_seconds(table, at, demand.context)
    tpot = float(alone[0]) if batch <= 1.0 else batch / (served * demand.output_tokens)
    ttft = float(_burst_seconds(table, at, demand)[1][0])
    if optimistic:
        tpot = min(tpot, float(alone[0]))
        ttft = _prompt_alone(cost_model, demand)
    return SteadyState(rate < max_rate, rate / max_rate, batch, limit, tpot, ttft, max_rate)


def _between(wanted: float, seconds: Floats, grid: Floats) -> float:
    """The batch at which falling ``seconds`` meet ``wanted``; on logarithms, as amortisation is a power law."""
    return math.exp(float(np.interp(-math.log(wanted), -np.log(seconds), np.log(grid))))


def closed_loop(cost_model: CostModel, users: int, demand: Demand) -> SteadyState:
    """Where one replica settles under ``users`` that each send their next request when the last is answered.

    All users but the prompts in flight decode; Little's law with no thinking time gives the rate, ``1 / s(users)``.
    ``utilisation`` is 1 by construction. Equal lengths would synchronise into waves that only a simulation shows.
    """
    d = cost_model.deployment
    budget = cost_model.memory()
    if not budget.fits:
        return SteadyState(False, math.inf, 0.0, 0, math.inf, math.inf, 0.0)
    limit = _batch_limit(cost_model, float(held_bytes(d, demand.context)))
    batch = min(users, limit)
    table = cost_model.compile(d.max_num_batched_tokens, d.max_num_seqs)
    at = np.array([float(batch)])
    busy, prompt = _burst_seconds(table, at, demand)
    rate, ttft = 1.0 / float(busy[0]), float(prompt[0])
    return SteadyState(users <= limit, 1.0, float(batch), limit, batch / (rate * demand.output_tokens), ttft, rate)


def _batch_limit(cost_model: CostModel, held: float) -> int:
    """The most sequences of ``held`` bytes each that memory and ``max_num_seqs`` allow; at least 1."""
    d = cost_model.deployment
    fitting = d.max_num_seqs if held <= 0.0 else math.floor(cost_model.memory().kv_cache_bytes / held)
    return max(1, min(d.max_num_seqs, fitting))


def _prompt_alone(cost_model: CostModel, demand: Demand) -> float:
    """Seconds of a mean prompt on an idle replica, in as many steps as the token budget asks for."""
    d = cost_model.deployment
    table = cost_model.compile(d.max_num_batched_tokens, d.max_num_seqs)
    left, cached, seconds = max(1, round(demand.prompt_tokens)), 0, 0.0
    while left > 0:
        chunk = min(left, d.max_num_batched_tokens)
        seconds += table.cost(Step.prefill(chunk, cached=cached, window=table.window or None)).seconds
        left, cached = left - chunk, cached + chunk
    return seconds
