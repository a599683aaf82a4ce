"""Deployments that are more than equal replicas of one stage: pools, pipelines and ranks in lockstep, as one replay.

A :class:`Pool` is what one kind of worker is; a collocated deployment has one, a disaggregated one two. This module
turns pools into the arrays of :mod:`gambrel.engine.workers_kernel` and what that leaves behind into a run. Where one
pool of one rank and one stage remains, :mod:`gambrel.engine.simulation` serves it by the faster plain kernels instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import DeploymentError, WorkloadError
from gambrel.core.run import Histogram, PoolUse, Run, Series
from gambrel.engine import workers_state as at
from gambrel.engine.prefixes import Prefixes
from gambrel.engine.routing import looking
from gambrel.engine.state import (
    BATCH_MAX,
    BATCH_S,
    BOUND_S,
    BUSY_S,
    CLOCK,
    GAP_TOTAL,
    LEAST,
    NEVER,
    NUM_BUCKETS,
    NUM_FLOATS,
    NUM_INTS,
    NUM_PARTS,
    NUM_SAMPLES_MAX,
    PART_S,
    POWER,
    PREFILL_S,
    STEPS,
    USED_MAX,
    USED_S,
    Limits,
    Requests,
    bucket_edges,
)
from gambrel.engine.workers_room import Room

if TYPE_CHECKING:
    import numpy.typing as npt

    from gambrel.core.deployment import Deployment
    from gambrel.core.step import Floats, RankTable, StepTable
    from gambrel.core.workload import Ints, Workload
    from gambrel.engine.watch import Watch

    Indices = npt.NDArray[np.int32]

__all__ = ["Played", "Pool", "Transfer", "needed", "rank_limits", "serve", "worker_run"]

LOOKING = {"least_outstanding": LEAST, "power_of_two": POWER}
KEPT_TOKENS = 512
"""SGLang's ``num_reserved_decode_tokens``, its default."""
SMALL_SERVER, SPARE_SHARE = 32, 2
"""A decode server of at most 32 running requests gives blocks to twice as many more beforehand (SGLang)."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Equal workers: their table (one rank and stage: a plain one), the limits of one rank, and their shape.

    ``shares`` of the layers by pipeline stage, first to last; ``batch_seqs`` sequences in one micro-batch at most;
    ``gpus`` accelerators make one worker.
    """

    table: StepTable | RankTable
    limits: Limits
    workers: int = 1
    ranks: int = 1
    shares: tuple[float, ...] = (1.0,)
    batch_seqs: int = 0
    by_score: bool = True
    gpus: int = 1


@dataclass(frozen=True, slots=True)
class Transfer:
    """How prompts come over: float64[n] ``seconds`` each on an idle link, and who waits for whom.

    ``pull``: the decode worker fetches finished prompts (vLLM's NIXL connector, TensorRT-LLM); else it gives blocks
    first and the prefill worker sends into them (SGLang). ``first_along``: the first token comes with them; else the
    decode worker makes it.
    """

    seconds: Floats
    pull: bool = True
    first_along: bool = False
    kept_tokens: int = KEPT_TOKENS


@dataclass(frozen=True, slots=True)
class Played:
    """What the kernel left behind; sums have one row a pool, ``prefilled`` and ``transferred`` one entry a request."""

    requests: Requests
    replica: Indices
    prefilled: Floats
    transferred: Floats
    ints: Ints
    floats: Floats
    histogram: Ints
    series: Series | None


def needed(deployment: Deployment) -> bool:
    """Whether a deployment is more than equal replicas of one stage and one scheduler."""
    return deployment.disaggregated or deployment.pp > 1 or deployment.attention_dp > 1


def rank_limits(limits: Limits, deployment: Deployment) -> Limits:
    """A rank's part of its worker's limits, which count all ranks: rounded up, blocks rounded down."""
    ranks = deployment.attention_dp
    if ranks == 1:
        return limits
    return replace(
        limits,
        max_num_seqs=-(-limits.max_num_seqs // ranks),
        max_num_batched_tokens=-(-limits.max_num_batched_tokens // ranks),
        num_kv_blocks=limits.num_kv_blocks // ranks,
    )


def _stacked(pools: tuple[Pool, ...]) -> tuple[tuple[Floats, ...], npt.NDArray[np.bool_]]:
    """The tables of all stages of all pools as arrays with one row a stage, padded to the longest.

    And which of them have the same table of their own as the stage before.
    """
    own: list[StepTable] = []
    shared: list[tuple[Floats, Floats, Floats, Floats]] = []
    from gambrel.core.step import RankTable

    for pool in pools:
        if isinstance(pool.table, RankTable):
            for part in pool.table.stages(pool.shares):
                own.append(part.own)
                shared.append((part.experts, part.experts_compute, part.experts_weights, part.exchange))
        else:
            own += pool.table.stages(pool.shares)
            shared += [(np.zeros(1),) * 4] * len(pool.shares)

    def rows(arrays: list[Floats]) -> Floats:
        out = np.zeros((len(arrays), max(len(a) for a in arrays)))
        for row, array in zip(out, arrays, strict=True):
            row[: len(array)] = array
        return out

    ours = tuple(rows([table.arrays()[k] for table in own]) for k in range(9))
    alike = np.array([k > 0 and all(np.array_equal(a[k], a[k - 1]) for a in ours) for k in range(len(own))])
    return (*ours, *(rows([s[k] for s in shared]) for k in range(4))), alike


def _limit_rows(pools: tuple[Pool, ...], transfer: Transfer | None) -> Ints:
    rows = np.zeros((len(pools), at.NUM_LIMITS), np.int64)
    stage = worker = 0
    for p, (row, pool) in enumerate(zip(rows, pools, strict=True)):
        limits = pool.limits
        role = at.BOTH if transfer is None else (at.PREFILL, at.DECODE)[p]
        row[at.ROLE] = role
        row[at.NUM_SEQS] = limits.max_num_seqs
        row[at.NUM_TOKENS] = limits.max_num_batched_tokens
        row[at.NUM_BLOCKS] = limits.num_kv_blocks
        row[at.BLOCK_SIZE] = limits.block_size
        row[at.CHUNKED] = limits.chunked_prefill
        row[at.WHOLE_PROMPT] = limits.reserve_full_prompt or role == at.PREFILL
        row[at.WATERMARK] = limits.watermark_blocks
        row[at.PROMISE] = limits.promise_output
        row[at.STATIC] = limits.static_batch
        row[at.PROMPTS_FIRST] = 0 if role == at.DECODE else limits.step_order
        row[at.BATCH_SEQS] = pool.batch_seqs or limits.max_num_seqs
        row[at.RANKS] = pool.ranks
        row[at.STAGES] = len(pool.shares)
        row[at.FIRST_STAGE] = stage
        row[at.WINDOW] = pool.table.window if not hasattr(pool.table, "own") else pool.table.own.window
        row[at.FIRST_WORKER] = worker
        row[at.NUM_WORKERS] = pool.workers
        row[at.BY_SCORE] = pool.by_score
        row[at.STATE] = limits.state_blocks
        row[at.CACHING] = limits.prefix_caching and role != at.DECODE
        if transfer is not None:
            row[at.PULL] = transfer.pull
            row[at.ALONG] = transfer.first_along
            row[at.KEPT_TOKENS] = max(transfer.kept_tokens, limits.block_size)
            if limits.max_num_seqs <= SMALL_SERVER:
                row[at.SPARE_SEQS] = SPARE_SHARE * limits.max_num_seqs
        stage += len(pool.shares)
        worker += pool.workers
    return rows


def _fixed(workload: Workload, requests: Requests, routing: str) -> Indices:
    """Which worker serves each row where the rule looks at nothing, before the modulo; empty for the row itself."""
    if routing in LOOKING:
        return np.empty(0, np.int32)
    if requests.users:
        return np.arange(len(workload), dtype=np.int32) % np.int32(requests.users)
    if routing != "session_sticky":
        return np.empty(0, np.int32)
    if workload.session is None:
        raise WorkloadError(
            f"{workload.source or workload.name}: routing session_sticky needs a session column; "
            "name one when reading the log, or route by least_outstanding"
        )
    _, first, session = np.unique(np.asarray(workload.session, np.int64), return_index=True, return_inverse=True)
    turn = np.empty(len(first), np.int32)
    turn[np.argsort(first)] = np.arange(len(first))
    return turn[session]


def _lines(users: int, fixed: Indices, number: int, n: int) -> tuple[Indices, Indices, Indices]:
    """The rows that each line of users asks one after the other: line of a row, row after a row, first of a line."""
    if not users:
        return (np.empty(0, np.int32),) * 3
    line = fixed % np.int32(number) if len(fixed) else np.zeros(n, np.int32)
    after = np.full(n, n, np.int32)
    cursor = np.full(number, n, np.int32)
    for k in range(number):
        own = np.flatnonzero(line == k)
        after[own[:-1]] = own[1:]
        cursor[k] = own[0] if len(own) else n
    return line, after, cursor


def _turns(workload: Workload, requests: Requests) -> tuple[int, Indices, Indices]:
    """How many rows arrive by themselves, which if not the first, the row after each; others lose their arrival."""
    if workload.after is None:
        return 0 if requests.users else len(workload), np.empty(0, np.int32), np.empty(0, np.int32)
    then = np.full(len(workload), -1, np.int32)
    waits = np.flatnonzero(workload.after >= 0)
    then[workload.after[waits]] = waits
    requests.arrival[waits] = NEVER
    opens = np.flatnonzero(workload.after < 0).astype(np.int32)
    return len(opens), opens, then


def serve(
    pools: tuple[Pool, ...],
    workload: Workload,
    *,
    transfer: Transfer | None = None,
    routing: str = "round_robin",
    series: bool = False,
    watch: Watch | None = None,
) -> Played:
    """Replay a workload on one pool, or on a prefill and a decode pool with a ``transfer`` between them.

    Requests must fit (:func:`gambrel.engine.simulation.check_fits`). Decode workers keep no prefix cache.

    Raises:
        DeploymentError: a routing that these workers do not have.
        WorkloadError: sticky sessions without a session column.
    """
    from gambrel.engine.workers_kernel import serve as loop

    if routing not in LOOKING and routing not in ("round_robin", "session_sticky"):
        raise DeploymentError(
            f"routing {routing!r} does not go with pipeline stages, data-parallel attention or pools of their own; "
            f"known there: round_robin, session_sticky, {', '.join(LOOKING)}"
        )
    prefixes = Prefixes.none(0)
    if pools[0].limits.prefix_caching:
        if workload.prefix_blocks is not None:
            prefixes = Prefixes.of(workload, pools[0].limits.block_size)
        if len(prefixes.sizes) == 0:
            # Where nothing is shared only preempted requests find anything: without any, memory changes nothing.
            prefixes = Prefixes.none(0)
            plain = tuple(replace(pool, limits=replace(pool.limits, prefix_caching=False)) for pool in pools)
            played = serve(plain, workload, transfer=transfer, routing=routing, series=series, watch=watch)
            if not played.requests.preemptions.any() or (watch is not None and watch.stop[0]):
                return played
            del played
            prefixes = Prefixes.none(len(workload))
    requests = Requests.of(workload, prefixes, None if watch is None else watch.stop)
    if watch is not None:
        watch.requests = requests
    n = len(workload)
    rule = LOOKING.get(routing, -1)
    fixed = _fixed(workload, requests, routing)
    line, after, cursor = _lines(requests.users, fixed, 1 if rule >= 0 else pools[0].workers, n)
    turns = _turns(workload, requests)
    draws = np.stack([looking(requests, pool.workers, rule)[1] for pool in pools])
    draws[1:] = draws[1:, ::-1]  # no request draws alike in both pools
    nobody = 0 if transfer is None else n  # where there is one pool nothing comes over
    prefilled, transferred = np.full(nobody, np.nan), np.full(nobody, np.nan)
    seat = np.zeros(n, np.int32)
    ints = np.zeros((len(pools), NUM_INTS), np.int64)
    floats = np.zeros((len(pools), NUM_FLOATS))
    histogram = np.zeros((len(pools), NUM_BUCKETS), np.int64)
    every = max(workload.span_s / 2048, 1e-3) if series else NEVER
    samples = np.zeros((4, NUM_SAMPLES_MAX if series else 2))
    limits = _limit_rows(pools, transfer)
    room = Room.of(limits, requests, line, int((turns[2] >= 0).sum()), every)
    arguments = (
        *_stacked(pools), limits, requests.users, requests.think, line, after, cursor,
        *turns, rule, fixed, draws,
        requests.arrival, requests.prompt, requests.output, requests.follow,
        requests.scheduled, requests.first, requests.last, requests.preemptions, requests.paused,
        requests.cached, requests.prefixes.units, requests.prefixes.offsets,
        prefilled, transferred, np.empty(0) if transfer is None else transfer.seconds, seat,
        ints, floats, histogram, samples, np.zeros(1, np.bool_) if requests.stop is None else requests.stop,
    )  # fmt: skip
    while not loop(*arguments, room.arguments()):
        room = room.doubled(n)
    if watch is not None and watch.stop[0]:
        seat[np.isnan(requests.last)] = 0  # these have not ended
    taken = int(room.progress[at.NUM_SAMPLED])
    sampled = Series(*(row[:taken].copy() for row in samples)) if series else None
    return Played(requests, seat, prefilled, transferred, ints, floats, histogram, sampled)


def worker_run(played: Played, pools: tuple[Pool, ...], basis: str = "") -> Run:
    """A replay as the table that reports, plans and fits read; use by pool where there are two."""
    requests, ints, floats = played.requests, played.ints, played.floats
    total = floats.sum(axis=0)
    busy = max(float(total[BUSY_S]), 1e-300)  # stopped before anything began
    histogram = played.histogram.sum(axis=0)
    used = np.flatnonzero(histogram)
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    names = ("prefill", "decode") if len(pools) > 1 else ("",)
    uses = tuple(
        PoolUse(
            name=name,
            replicas=pool.workers,
            busy_s=float(f[BUSY_S]),
            num_steps=int(i[STEPS]),
            batch_mean=float(f[BATCH_S]) / max(float(f[BUSY_S]), 1e-300),
            batch_max=int(i[BATCH_MAX]),
            kv_usage_mean=float(f[USED_S]) / (max(float(f[BUSY_S]), 1e-300) * pool.limits.num_kv_blocks * pool.ranks),
            kv_usage_max=int(i[USED_MAX]) / (pool.limits.num_kv_blocks * pool.ranks),
            gpus=pool.gpus,
            prefill_s=float(f[PREFILL_S]),
        )
        for name, pool, i, f in zip(names, pools, ints, floats, strict=True)
    )
    apart = len(pools) > 1
    return Run(
        arrival_s=requests.arrival,
        scheduled_s=requests.scheduled,
        first_token_s=requests.first,
        last_token_s=requests.last,
        prompt_tokens=requests.prompt,
        output_tokens=requests.output,
        preemptions=requests.preemptions,
        paused_s=requests.paused,
        cached_tokens=requests.cached,
        replica=played.replica,
        itl=Histogram(bucket_edges()[low : high + 1], histogram[low:high], float(total[GAP_TOTAL])),
        busy_s=busy,
        bound_by_s=total[BOUND_S : BOUND_S + NUM_PARTS],
        part_s=total[PART_S : PART_S + NUM_PARTS],
        prefill_s=float(total[PREFILL_S]),
        num_steps=int(ints[:, STEPS].sum()),
        batch_mean=float(total[BATCH_S]) / busy,
        batch_max=int(ints[:, BATCH_MAX].max()),
        kv_usage_mean=sum(u.kv_usage_mean * u.busy_s for u in uses) / busy,
        kv_usage_max=max(u.kv_usage_max for u in uses),
        replicas=sum(pool.workers for pool in pools),
        series=played.series,
        origin="simulated",
        basis=basis,
        worked_until_s=float(floats[:, CLOCK].max()),
        prefilled_s=played.prefilled if apart else None,
        transferred_s=played.transferred if apart else None,
        pools=uses if apart else (),
    )
