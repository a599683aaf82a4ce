"""What a simulation is fed: a log with usable times, or a fixed number of users; and more or less of either.

An open loop has arrival times; a closed loop has users, each of whom sends the next request the moment the last one
ends (or a pause later), so its arrivals are made by the engine that serves it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.core.workload import Workload
from gambrel.traffic.doubts import quantum_s, spread_quantised
from gambrel.traffic.scale import scale_rate

__all__ = ["closed_loop", "ready_to_replay", "scale_load"]

ROUNDS = 40
"""Requests each user of a closed loop sends: enough that start-up and drain are a twentieth of the run."""


def ready_to_replay(workload: Workload, seed: int = 0) -> Workload:
    """The workload with batched timestamps spread over their quantum, and a warning that says so; else as it is.

    A collector that wakes every three seconds makes bursts that never happened; they would decide a TTFT percentile.
    """
    if workload.closed_loop or not workload.has_arrivals or quantum_s(workload.arrival_s) is None:
        return workload
    return spread_quantised(workload, seed=seed)


def closed_loop(
    users: int, prompt_tokens: int, output_tokens: int, rounds: int = ROUNDS, *, think_s: float = 0.0
) -> Workload:
    """``users`` requests always in flight, all of one length: what "five users with 128k prompts" means at its fullest.

    They start one after the other, as people and load clients do: together, they would prefill together for ever.
    ``think_s`` above 0: each pauses that many seconds between an answer and the next request.

    Raises:
        WorkloadError: a figure below 1, or a pause below 0.
    """
    if not 0 <= think_s < float("inf"):
        raise WorkloadError(f"think time must be at least 0 seconds, got {think_s:g}")
    for what, value in (("users", users), ("prompt tokens", prompt_tokens), ("output tokens", output_tokens)):
        if value < 1:
            raise WorkloadError(f"{what} must be at least 1, got {value}")
    n = users * rounds
    return Workload(
        arrival_s=np.zeros(n),
        prompt_tokens=np.full(n, prompt_tokens, np.int64),
        output_tokens=np.full(n, output_tokens, np.int64),
        name=f"{users} users, {prompt_tokens:,} prompt and {output_tokens:,} output tokens",
        source=f"closed loop with {think_s:g} s of think time" if think_s else "closed loop without think time",
        think_s=np.full(n, think_s) if think_s else None,
        has_arrivals=False,
        closed_loop=users,
        staggered=True,
    )


def scale_load(workload: Workload, factor: float, seed: int = 0) -> Workload:
    """More or less of the same traffic: ``factor`` times the rate of an open loop, or the users of a closed one.

    Users are whole people: their number is rounded, to at least one.
    """
    if not workload.closed_loop:
        return scale_rate(workload, factor, seed=seed)
    users = max(1, round(workload.closed_loop * factor))
    rows = np.arange(users * max(1, len(workload) // workload.closed_loop)) % len(workload)
    return replace(workload.take(rows), closed_loop=users)
