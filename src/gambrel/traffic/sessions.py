"""Conversations: first turns arrive by themselves, each later turn once the one before has ended and been read.

A turn's prompt is all that was said before and the new message, so context grows and a prefix cache pays. When a turn
arrives depends on how fast the engine was: these workloads are open for sessions and closed for turns. The engine makes
the arrivals; ``arrival_s`` of later turns is a guess (see :class:`gambrel.core.workload.Workload`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.core.workload import Workload
from gambrel.traffic.figures import ServiceModel

if TYPE_CHECKING:
    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints
    from gambrel.traffic.rates import RateSeries
    from gambrel.traffic.synthetic import Lengths

__all__ = ["chain_turns", "conversations", "converse"]


def conversations(
    rates: RateSeries, lengths: Lengths, turns: float, think_s: float, seed: int = 0, *, system_tokens: int = 0,
    cv: float = 1.0, granule: int = 16, max_tokens: int | None = None, name: str = "conversations",
) -> Workload:  # fmt: skip
    """Conversations that begin as ``rates`` say (sessions a second).

    Args:
        rates: how many conversations begin when.
        lengths: of each turn: new message and answer.
        turns: mean number, geometric, at least 1.
        think_s: mean seconds between the end of an answer and the next message, exponential.
        seed: the same seed gives the same bytes.
        system_tokens: a prompt that all conversations begin with.
        cv: burstiness of first turns.
        granule: tokens of a prefix hash; the engine's block size loses nothing. 0: no hashes, no prefix cache.
        max_tokens: a conversation ends before a turn of which prompt and answer would exceed this; those whose first
            does are left out, and counted in a warning.
        name: what the workload is called.

    Raises:
        WorkloadError: a figure out of its range, or no conversation by chance.
    """
    rng = np.random.default_rng(seed)
    begin = rates.arrivals(rng, arrival="poisson" if cv == 1.0 else "gamma", cv=cv)
    if len(begin) == 0:
        raise WorkloadError(
            f"{name}: no conversation begins in {rates.end_s:g} s at {rates.mean_rps:g}/s (seed {seed})"
        )
    made = converse(
        rng, begin, lengths, turns, think_s,
        system_tokens=system_tokens, granule=granule, max_tokens=max_tokens, name=name,
    )  # fmt: skip
    return replace(made, source=f"{made.source}; {rates.source}, seed {seed}")


def converse(
    rng: np.random.Generator, begin: Floats, lengths: Lengths, turns: float, think_s: float, *,
    system_tokens: int = 0, granule: int = 16, max_tokens: int | None = None, name: str = "conversations",
) -> Workload:  # fmt: skip
    """Conversations that begin at these times, float64[n] ascending; see :func:`conversations`.

    Raises:
        WorkloadError: a figure out of its range.
    """
    if not (math.isfinite(turns) and turns >= 1):
        raise WorkloadError(f"{name}: conversations have at least 1 turn on average, got {turns!r}")
    if not (math.isfinite(think_s) and think_s >= 0):
        raise WorkloadError(f"{name}: think_s must be at least 0 seconds, got {think_s!r}")
    if system_tokens < 0 or granule < 0:
        raise WorkloadError(f"{name}: system_tokens and granule must be at least 0, got {system_tokens}, {granule}")
    count = rng.geometric(1.0 / turns, len(begin))
    session = np.repeat(np.arange(len(begin)), count)
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    message, answer = lengths.draw(rng, len(session))
    think = rng.exponential(think_s, len(session)) if think_s > 0 else np.zeros(len(session))
    said = np.cumsum(message + answer)
    before = said - message - answer
    prompt = system_tokens + before - np.repeat(before[first], count) + message
    turn = np.arange(len(session)) - np.repeat(first, count)
    note = ""
    if max_tokens is not None:
        over = prompt + answer > max_tokens
        if bool(over[first].all()):
            raise WorkloadError(f"{name}: no conversation begins with at most max_tokens {max_tokens} tokens")
        if bool(over[first].any()):
            note = f"{int(over[first].sum()):,} conversations that begin above {max_tokens:,} tokens were left out"
        ended = np.minimum.reduceat(np.where(over, turn, len(session)), first)
        kept = turn < np.repeat(ended, count)
        session, turn, prompt = session[kept], turn[kept], prompt[kept]
        answer, think = answer[kept], think[kept]
    guess = ServiceModel()
    alone = prompt / guess.prefill_tokens_per_s + answer * guess.tpot_s
    starts = np.flatnonzero(turn == 0)
    sizes = np.diff(np.append(starts, len(turn)))
    gone = np.cumsum(alone + think) - alone - think
    arrival = np.repeat(begin[session[starts]], sizes) + gone - np.repeat(gone[starts], sizes)
    order = np.argsort(arrival, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    after = np.where(turn > 0, place[np.maximum(np.arange(len(turn)) - 1, 0)], -1)[order]
    made = Workload(
        arrival[order],
        prompt[order].astype(np.int64),
        answer[order],
        session=session[order],
        think_s=think[order],
        after=after,
        name=name,
        source=f"conversations of {turns:g} turns, thinking {think_s:g} s; {lengths.source}",
        warnings=(note,) if note else (),
    )
    return _hashed(made, system_tokens, granule) if granule else made


def _hashed(workload: Workload, system_tokens: int, granule: int) -> Workload:
    """With hashes of each prompt and its answer: the system's are everybody's, the others the conversation's own."""
    assert workload.session is not None  # noqa: S101 - made a few lines above
    sizes = -(-(workload.prompt_tokens + workload.output_tokens) // granule)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    first = (workload.session + 1) * (int(sizes.max()) + 1)
    hashes = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], sizes)
    shared = system_tokens // granule
    if shared:
        places = np.add.outer(offsets[:-1], np.arange(shared))
        hashes[places] = np.arange(shared)
    return replace(workload, prefix_blocks=hashes, prefix_offsets=offsets, prefix_block_tokens=granule)


def chain_turns(workload: Workload, service: ServiceModel | None = None) -> Workload:
    """A log with sessions, its turns waiting for each other: the pauses of the log stay, its waiting times do not.

    A pause is the time from the end of a turn, by the log's own service times or else by ``service`` (an estimate
    without queueing), to the next turn of its session; 0 where turns overlap.

    Raises:
        WorkloadError: a log without sessions or without arrival times.
    """
    if workload.session is None or not workload.has_arrivals or workload.closed_loop:
        raise WorkloadError(f"{workload.source or workload.name}: turns need a session column and arrival times")
    order = np.argsort(workload.session, kind="stable")
    same = workload.session[order][1:] == workload.session[order][:-1]
    after: Ints = np.full(len(workload), -1, np.int64)
    after[order[1:][same]] = order[:-1][same]
    taken = workload.service_s if workload.service_s is not None else (service or ServiceModel()).seconds(workload)
    think = np.zeros(len(workload))
    turns = np.flatnonzero(after >= 0)
    before = after[turns]
    pauses = workload.arrival_s[turns] - workload.arrival_s[before] - taken[before]
    think[before] = np.maximum(pauses, 0.0)
    overlap = int((pauses < 0).sum())
    basis = "its service times" if workload.service_s is not None else (service or ServiceModel()).basis
    note = f"turns wait for the turn before; pauses by {basis}"
    if overlap:
        note += f"; {overlap:,} of {len(turns):,} turns came before the one before had ended: those pauses are 0"
    return replace(workload, after=after, think_s=think, warnings=(*workload.warnings, note))
