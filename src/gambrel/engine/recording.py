"""A window of a run, step by step: the plain scheduler replays what the run has settled, and writes down what it does.

A run keeps sums, for its loop touches no decoder. Who wants to see single steps asks for a few seconds; the arrivals
and the replica of every request are those of the run, so each replica is replayed alone, from the start (its state at
the window depends on all before) to the window's end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import DeploymentError
from gambrel.core.timeline import PHASES, Phases, Steps, Timeline
from gambrel.engine.prefixes import Prefixes
from gambrel.engine.routing import run_plain
from gambrel.engine.simulation import prepared
from gambrel.engine.state import Replicas, Requests
from gambrel.engine.workers import needed

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run
    from gambrel.core.step import CostModel, Floats, StepTable
    from gambrel.core.workload import Ints, Workload
    from gambrel.engine.state import Limits

__all__ = ["record", "timeline"]

QUEUE, PREFILL, DECODE, PREEMPTED = range(len(PHASES))
ADMITTED, EVICTED, TOKEN, ENDED, ABANDONED = range(5)  # the marks of gambrel.engine.naive_kernel
ARRIVED = -1


def timeline(
    deployment: Deployment, cost_model: CostModel, workload: Workload, run: Run, begin_s: float, end_s: float
) -> Timeline:
    """The steps and phases of ``run`` that touch the window ``begin_s`` to ``end_s``, in seconds on its clock.

    Raises:
        DeploymentError: a window that ends before it begins, or a run that this deployment's plain scheduler does not
            reproduce (workers of several stages, pools, replicas that come and go, or another deployment's run).
    """
    if needed(deployment):
        raise DeploymentError(
            "a window is recorded for whole replicas under one scheduler; this deployment has stages, attention ranks "
            "or prefill workers of their own"
        )
    return record(*prepared(deployment, cost_model), workload, run, begin_s, end_s)


def record(table: StepTable, limits: Limits, workload: Workload, run: Run, begin_s: float, end_s: float) -> Timeline:
    """As :func:`timeline`, from a step table and the limits of a replica."""
    if not 0 <= begin_s < end_s < np.inf:
        raise DeploymentError(
            f"a window must begin at 0 s or later and end after that, got {begin_s:g} s to {end_s:g} s"
        )
    parts = []
    for replica in range(run.replicas):
        line = np.flatnonzero((run.replica == replica) & (run.arrival_s <= end_s))
        line = line[np.argsort(run.arrival_s[line], kind="stable")]
        if len(line):
            parts.append(_one(table, limits, workload, run, line, replica, begin_s, end_s))
    if not parts:
        raise DeploymentError(f"nothing has arrived by {end_s:g} s; the run ends at {np.nanmax(run.last_token_s):g} s")
    steps = np.concatenate([s for s, _ in parts])
    phases = np.concatenate([p for _, p in parts])
    whole = [np.ascontiguousarray(column) for column in steps.T]
    counts = [column.astype(np.int64) for column in whole]
    marks = [np.nan_to_num(column, posinf=0.0).astype(np.int64) for column in phases.T]
    return Timeline(
        begin_s,
        end_s,
        Steps(counts[0], whole[1], whole[2], counts[3], counts[4], counts[5], counts[6], counts[7], counts[8],
              counts[9], counts[10]),
        Phases(marks[0], marks[1], marks[2], phases[:, 3], phases[:, 4], marks[5]),
        limits.num_kv_blocks,
        run.replicas,
    )  # fmt: skip


def _one(
    table: StepTable, limits: Limits, workload: Workload, run: Run, line: Ints, replica: int, begin_s: float,
    end_s: float,
) -> tuple[Floats, Floats]:  # fmt: skip
    """One replica's rows of the steps (in the order of :class:`Steps`) and of the phases (of :class:`Phases`)."""
    arrival_s = run.arrival_s[line]
    alone = replace(workload, closed_loop=0, staggered=False, after=None).take(line)
    alone = replace(alone, arrival_s=arrival_s)
    shared = limits.prefix_caching and alone.prefix_blocks is not None
    prefixes = Prefixes.of(alone, limits.block_size) if shared else Prefixes.none(len(line))
    requests = Requests.of(alone, prefixes)
    served = Replicas.of(limits, requests, windowed=table.window > 0)
    served.line_up(requests, np.arange(len(line)))
    recorded, marks = run_plain(table, limits, requests, served, begin_s, end_s)
    ended = np.isfinite(requests.last)
    late_s = run.last_token_s[line][ended] - requests.last[ended]  # what a client waits beyond the engine's time
    differs = ~(np.abs(late_s - np.median(late_s)) <= 1e-9 * (1 + requests.last[ended])) if ended.any() else late_s
    if differs.any():
        row = int(line[ended][np.argmax(differs)])
        raise DeploymentError(
            f"row {row + 1} of the run does not end when the plain scheduler says; a window is recorded for whole "
            "replicas under one scheduler, not for stages, pools, replicas that come and go or another deployment"
        )
    phases, waits = _phases(arrival_s, marks)
    waiting = np.searchsorted(waits[0], recorded[:, 0], "right") - np.searchsorted(waits[1], recorded[:, 0], "right")
    start, seconds, decodes, verified, prefill_tokens, prompts, cause, running, _, used = recorded.T
    steps = np.column_stack([
        np.full(len(start), replica), start, seconds, decodes, prompts, verified + prefill_tokens, prefill_tokens,
        cause, running, waiting, used,
    ])  # fmt: skip
    phases = phases[(phases[:, 4] > begin_s) & (phases[:, 3] < end_s) & (phases[:, 4] > phases[:, 3])]
    phases[:, 1] = replica
    phases[:, 0] = line[phases[:, 0].astype(np.int64)]
    return steps, phases


def _phases(arrival_s: Floats, marks: Floats) -> tuple[Floats, tuple[Floats, Floats]]:
    """Rows of :class:`Phases`, replica left 0, and the sorted starts and ends of all waits (in queue or preempted)."""
    n = len(arrival_s)
    time = np.concatenate([arrival_s, marks[:, 0]])
    kind = np.concatenate([np.full(n, ARRIVED), marks[:, 1].astype(np.int64)])
    request = np.concatenate([np.arange(n), marks[:, 2].astype(np.int64)])
    order = np.argsort(request, kind="stable")  # in order of time within each request, as they were written
    time, kind, request = time[order], kind[order], request[order]
    follows = np.append(request[1:] == request[:-1], [False])
    end = np.where(follows, np.append(time[1:], np.inf), np.inf)
    then = np.where(follows, np.append(kind[1:], ENDED), ENDED)
    waits = (kind == ARRIVED) | (kind == EVICTED)
    # What is computed again after an eviction still belongs to the eviction: until the next token.
    again = np.zeros(len(kind), np.bool_)
    again[1:] = (kind[1:] == ADMITTED) & (kind[:-1] == EVICTED) & follows[:-1]
    lost = (kind == EVICTED) | again
    phase = np.select([kind == ARRIVED, lost, kind == ADMITTED, kind == TOKEN], [QUEUE, PREEMPTED, PREFILL, DECODE], -1)
    rows = np.column_stack([request, np.zeros(len(kind)), phase, time, end, then == ABANDONED])[phase >= 0]
    rows = _merged(rows)
    return rows, (np.sort(time[waits]), np.sort(end[waits]))


def _merged(rows: Floats) -> Floats:
    """Neighbours of one request in one phase as one row."""
    joins = (rows[1:, 0] == rows[:-1, 0]) & (rows[1:, 2] == rows[:-1, 2]) & (rows[1:, 3] == rows[:-1, 4])
    first = np.flatnonzero(np.append([True], ~joins)) if len(rows) else np.zeros(0, np.int64)
    last = np.append(first[1:], len(rows)) - 1 if len(rows) else first
    merged = rows[first].copy()
    merged[:, 4:] = rows[last, 4:]
    return merged
