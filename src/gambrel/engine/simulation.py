"""Equal replicas from a workload to a run: check, compile, route, replay, gather.

The event loops live in the kernel modules, which import numba; they are imported when the first replay starts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.core.errors import DeploymentError, WorkloadError
from gambrel.core.run import Histogram, Run
from gambrel.core.step import Step
from gambrel.engine.dispatch import turns
from gambrel.engine.policies import POLICIES
from gambrel.engine.prefixes import Prefixes
from gambrel.engine.routing import ROUTINGS
from gambrel.engine.series import joined
from gambrel.engine.state import (
    BATCH_MAX,
    BATCH_S,
    BOUND_S,
    BUSY_S,
    CLOCK,
    GAP_TOTAL,
    NEVER,
    NUM_PARTS,
    PART_S,
    PREFILL_S,
    STEPS,
    USED_MAX,
    USED_S,
    Limits,
    Replicas,
    Requests,
    bucket_edges,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Series
    from gambrel.core.step import CostModel, Floats, MemoryBudget, StepTable
    from gambrel.core.workload import Ints, Workload
    from gambrel.engine.watch import Watch

_KNOWN: list[tuple[tuple[Any, ...], int, Prefixes]] = []  # of the last workloads: their columns, block size, units

__all__ = ["Replay", "check_fits", "driven", "limits_of", "max_request_tokens", "prepared", "replay", "run_of"]


def limits_of(deployment: Deployment, memory: MemoryBudget | int) -> Limits:
    """The scheduler's limits of one replica, under the deployment's policy and engine version.

    ``memory`` as the cost model budgets it, or the number of KV blocks of a model without recurrent state.

    Raises:
        DeploymentError: limits that vLLM refuses, no memory for blocks, or an unknown policy.
    """
    if deployment.policy not in POLICIES:
        raise DeploymentError(f"unknown policy {deployment.policy!r}; known: {', '.join(POLICIES)}")
    if deployment.max_num_batched_tokens < deployment.max_num_seqs:
        raise DeploymentError(
            f"max_num_batched_tokens ({deployment.max_num_batched_tokens}) must be at least max_num_seqs "
            f"({deployment.max_num_seqs}), as vLLM requires: every running sequence takes one token a step"
        )
    num_kv_blocks = memory if isinstance(memory, int) else memory.num_kv_blocks
    most = None if isinstance(memory, int) else memory.max_sequences
    if num_kv_blocks < 1 or most == 0:
        raise DeploymentError(f"{deployment.label}: no memory is left for KV blocks; use more or larger accelerators")
    limits = Limits(
        deployment.max_num_seqs if most is None else min(deployment.max_num_seqs, most),
        deployment.max_num_batched_tokens,
        num_kv_blocks,
        deployment.block_size,
        deployment.chunked_prefill,
        prefix_caching=deployment.prefix_caching and most is None,  # a state is not found by blocks
        draft_tokens=deployment.draft_tokens,
        acceptance=deployment.acceptance,
        state_blocks=0 if isinstance(memory, int) else memory.state_blocks,
    )
    return POLICIES[deployment.policy](limits, deployment.engine_version)


def max_request_tokens(workload: Workload) -> int:
    """Cache tokens the largest request needs: prompt + output - 1, as the last token is never read back."""
    return int((workload.prompt_tokens + workload.output_tokens).max()) - 1


def check_fits(workload: Workload, limits: Limits, max_model_len: int | None = None) -> None:
    """Raise unless every request can be served alone: WorkloadError names the request and both figures."""
    name = workload.source or workload.name
    total = workload.prompt_tokens + workload.output_tokens
    row = int(np.argmax(total))
    worst = int(total[row])
    lengths = f"{name}: request {row + 1} in order of arrival has {int(workload.prompt_tokens[row])} prompt and "
    lengths += f"{int(workload.output_tokens[row])} output tokens"
    if max_model_len is not None and worst > max_model_len:
        raise WorkloadError(f"{lengths}, {worst} in all, more than max_model_len {max_model_len}")
    if not limits.chunked_prefill and worst > limits.max_num_batched_tokens:
        raise WorkloadError(
            f"{lengths}, {worst} in all, more than max_num_batched_tokens {limits.max_num_batched_tokens}, "
            "which without chunked prefill must hold the longest sequence; raise it or allow chunked prefill"
        )
    needed = -(-(worst - 1) // limits.block_size) + limits.state_blocks
    blocks = f"{needed} KV blocks of {limits.block_size} tokens"
    if limits.state_blocks:
        blocks += f", {limits.state_blocks} of them for recurrent state"
    if limits.request_blocks and needed > limits.request_blocks:
        raise WorkloadError(
            f"{lengths}, which need {blocks}; a slot has "
            f"{limits.request_blocks}, an equal share for each of max_num_seqs {limits.max_num_seqs}"
        )
    if needed > limits.num_kv_blocks:
        raise WorkloadError(f"{lengths}, which need {blocks}; a replica has {limits.num_kv_blocks}")


@dataclass(frozen=True, slots=True)
class Replay:
    """What the kernels left behind: columns per request, sums over replicas (see :mod:`gambrel.engine.state`).

    ``table`` priced the steps; it also knows what a request takes outside them, which its times do not hold yet.
    """

    requests: Requests
    replica: Ints
    ints: Ints
    floats: Floats
    histogram: Ints
    series: Series | None
    table: StepTable | None = None


def replay(
    table: StepTable,
    limits: Limits,
    workload: Workload,
    *,
    replicas: int = 1,
    routing: str = "round_robin",
    oracle: bool = False,
    series: bool = False,
    watch: Watch | None = None,
) -> Replay:
    """Replay a workload on equal replicas; the table is reused as it is, whatever their number.

    Requests must fit (:func:`check_fits`). ``oracle`` takes the O(batch) scheduler, without a series. ``watch`` shows
    how far it is, and may end it early.
    """
    _check(table, limits, workload, routing)
    oracle = oracle or bool(special(limits, workload))
    workload = driven(workload, table, lambda alone: replay(table, limits, alone).requests)
    prefixes = _prefixes(workload, limits)
    how = (replicas, routing, oracle, series, watch)
    if limits.prefix_caching and prefixes is None and not oracle:
        # Where nothing is shared only preempted requests find anything: without any, memory changes nothing.
        plain = _played(table, replace(limits, prefix_caching=False), workload, None, *how)
        if not plain.requests.preemptions.any() or (watch is not None and watch.stop[0]):
            return plain
    return _played(table, limits, workload, prefixes, *how)


def _played(
    table: StepTable, limits: Limits, workload: Workload, prefixes: Prefixes | None, replicas: int, routing: str,
    oracle: bool, series: bool, watch: Watch | None,
) -> Replay:  # fmt: skip
    """One pass of the kernels over requests as their users send them."""
    if prefixes is None:  # without rows where no kernel will look for any
        prefixes = Prefixes.none(len(workload) if limits.prefix_caching or routing == "prefix_aware" else 0)
    requests = Requests.of(workload, prefixes, None if watch is None else watch.stop)
    if watch is not None:
        watch.requests = requests
    every = max(workload.span_s / 2048, 1e-3) if series and not oracle else NEVER
    serve = ROUTINGS[routing] if workload.after is None else turns(workload, routing)
    served, assigned = serve(table, limits, requests, replicas, every, oracle)
    ints, floats, histogram = Replicas.total(served)
    sampled = joined(served, limits.num_kv_blocks) if every < NEVER else None
    return Replay(requests, assigned, ints, floats, histogram, sampled, table)


def _check(table: StepTable, limits: Limits, workload: Workload, routing: str) -> None:
    """Raise where a replay cannot be had: no such routing, a table too small, what only the plain scheduler knows."""
    if routing not in ROUTINGS:
        raise DeploymentError(f"unknown routing {routing!r}; known: {', '.join(ROUTINGS)}")
    rows = limits.max_num_seqs * (1 + limits.draft_tokens)
    if table.max_tokens < limits.max_num_batched_tokens or table.max_seqs < rows:
        raise DeploymentError(
            f"the step table holds {table.max_tokens} tokens and {table.max_seqs} sampled rows; a step can have "
            f"{limits.max_num_batched_tokens} and {rows}"
        )
    kind = special(limits, workload)
    made = workload.closed_loop or workload.after is not None
    if kind and (made or routing not in ("round_robin", "session_sticky")):
        raise DeploymentError(
            f"{kind} in the plain scheduler, which serves open arrivals dealt beforehand; "
            "use routing round_robin or session_sticky and a workload with arrival times"
        )
    if routing == "session_sticky" and workload.session is None and not workload.closed_loop:
        raise WorkloadError(
            f"{workload.source or workload.name}: routing session_sticky needs a session column; "
            "name one when reading the log, or route by prefix_aware or least_outstanding"
        )


def special(limits: Limits, workload: Workload) -> str:
    """What only the plain scheduler knows and this replay needs, with its verb; empty for none."""
    if limits.draft_tokens:
        return "speculative decoding runs"
    if limits.by_priority and workload.priority is not None:
        return "priorities are kept"
    if workload.deadline_s is not None and bool(np.isfinite(workload.deadline_s).any()):
        return "clients give up"
    return ""


def driven(workload: Workload, table: StepTable, served: Callable[[Workload], Requests]) -> Workload:
    """The requests as users send them who wait for answers: the next one when the last token has reached them.

    What a request takes outside the steps is part of every pause, in closed loops and sessions alike. However short,
    the engine has begun its next step by then, without the new request; with nothing outside the steps it is there in
    time. ``served`` plays a request alone, after which users start who start spread out. Others are left as they are.
    """
    if not workload.closed_loop and workload.after is None:
        return workload
    if workload.staggered:
        workload = _spread(workload, table, served)
    if not table.request_s:
        return workload
    pauses = np.zeros(len(workload)) if workload.think_s is None else workload.think_s
    return replace(workload, think_s=pauses + table.request_s)


def _spread(workload: Workload, table: StepTable, served: Callable[[Workload], Requests]) -> Workload:
    """The same users, their starts spread evenly over the time the first request takes when it is ``served`` alone."""
    alone = replace(workload.take(slice(0, 1)), closed_loop=0, staggered=False, think_s=None)
    requests = served(alone)
    alone_s = float(requests.last[0] - alone.arrival_s[0]) + table.request_s
    users = min(workload.closed_loop, len(workload))
    arrival_s = np.zeros(len(workload))
    arrival_s[:users] = alone_s * np.arange(users) / users
    arrival_s[users:] = arrival_s[users - 1]
    return replace(workload, arrival_s=arrival_s, staggered=False)


def _prefixes(workload: Workload, limits: Limits) -> Prefixes | None:
    """What the prompts share, where the replicas remember; kept for the next replay of the same hashes."""
    hashes = workload.prefix_blocks
    if not limits.prefix_caching or hashes is None:
        return None
    parts = (hashes, workload.prefix_offsets, workload.prompt_tokens, workload.output_tokens)
    for known, size, prefixes in _KNOWN:
        if size == limits.block_size and all(a is b for a, b in zip(known, parts, strict=True)):
            return prefixes
    prefixes = Prefixes.of(workload, limits.block_size)
    if len(prefixes.sizes) == 0:
        return None
    _KNOWN.insert(0, (parts, limits.block_size, prefixes))
    del _KNOWN[2:]
    return prefixes


def prepared(deployment: Deployment, cost_model: CostModel) -> tuple[StepTable, Limits]:
    """What a step of one replica costs, as tables, and what bounds it.

    Raises:
        DeploymentError: limits that vLLM itself refuses.
    """
    limits = limits_of(deployment, cost_model.memory())
    table = cost_model.compile(limits.max_num_batched_tokens, limits.max_num_seqs * (1 + limits.draft_tokens))
    if limits.draft_tokens:
        alone = table.cost(Step.decode(1, 1)).seconds
        limits = replace(limits, draft_s=limits.draft_tokens * deployment.draft_cost * alone)
    return table, limits


def run_of(played: Replay, limits: Limits, replicas: int = 1, basis: str = "") -> Run:
    """A replay as the table that reports, plans and fits read."""
    requests, ints, floats = played.requests, played.ints, played.floats
    busy = float(floats[BUSY_S])
    used = np.flatnonzero(played.histogram)
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    late = 0.0 if played.table is None else played.table.request_s  # a client sees every token so much later
    return Run(
        arrival_s=requests.arrival,
        scheduled_s=requests.scheduled,
        first_token_s=requests.first + late if late else requests.first,
        last_token_s=requests.last + late if late else requests.last,
        prompt_tokens=requests.prompt,
        output_tokens=requests.output,
        preemptions=requests.preemptions,
        paused_s=requests.paused,
        worked_until_s=float(floats[CLOCK]),
        cached_tokens=requests.cached,
        replica=played.replica,
        itl=Histogram(bucket_edges()[low : high + 1], played.histogram[low:high], float(floats[GAP_TOTAL])),
        busy_s=busy,
        bound_by_s=floats[BOUND_S : BOUND_S + NUM_PARTS],
        part_s=floats[PART_S : PART_S + NUM_PARTS],
        prefill_s=float(floats[PREFILL_S]),
        num_steps=int(ints[STEPS]),
        batch_mean=float(floats[BATCH_S]) / (busy or 1.0),
        batch_max=int(ints[BATCH_MAX]),
        kv_usage_mean=float(floats[USED_S]) / ((busy or 1.0) * limits.num_kv_blocks),
        kv_usage_max=int(ints[USED_MAX]) / limits.num_kv_blocks,
        replicas=replicas,
        series=played.series,
        origin="simulated",
        basis=basis,
    )
