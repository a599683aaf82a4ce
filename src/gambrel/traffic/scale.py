"""More, less, longer, shorter, sooner: what-if versions of a workload that keep what matters about it.

Raising the rate can mean two things, and they stress a deployment differently. More *users* (:func:`scale_rate`)
superposes independent copies: the day's curve stays, single clients' bursts average out. The same users *faster*
(:func:`compress_time`) squeezes the clock: every burst comes sooner and shorter. Growth is nearly always the first.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.core.workload import Workload, gather

if TYPE_CHECKING:
    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints

__all__ = ["compress_time", "scale_lengths", "scale_rate", "slice_time"]

_MAX_SHIFT_S = 300.0
_MAX_REQUESTS = 200_000_000


def scale_rate(workload: Workload, factor: float, seed: int = 0) -> Workload:
    """``factor`` times as many requests over the same span, from more or fewer users of the same kind.

    Below 1 every request is kept with probability ``factor`` (thinning): the curve of the rate over time keeps its
    shape, and the excess of the index of dispersion over 1 shrinks by ``factor``, which is what fewer independent
    users do. Above 1, whole copies and one thinned copy are superposed, each shifted in time by a random amount of
    at most 300 s or a tenth of the span, and wrapped around its end: far enough that bursts of different copies do
    not coincide, near enough that the rush hour stays the rush hour. What bursts add to the index of dispersion
    then stays that of one copy, what the curve of the day adds grows with ``factor``, and the CV of gaps falls
    towards 1, as it does for larger pools of clients in production (ServeGen, arXiv:2505.09999). Sessions and prefix
    blocks of copies are made distinct, so copies share no cache. Turns that wait for others stay together.

    Raises:
        WorkloadError: a factor that is not above 0, or that leaves nothing or too much.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise WorkloadError(f"{workload.name}: rate factor must be above 0, got {factor!r}")
    if factor * len(workload) > _MAX_REQUESTS:
        raise WorkloadError(f"{workload.name}: rate factor {factor:g} makes more than {_MAX_REQUESTS:,} requests")
    if workload.closed_loop:
        raise WorkloadError(f"{workload.name}: a closed loop has users, not a rate; scale_load scales either")
    if factor == 1.0:
        return workload
    rng = np.random.default_rng(seed)
    n = len(workload)
    whole = int(factor)
    root = _roots(workload)
    some = np.flatnonzero(rng.random(n)[root] < factor - whole)
    picks = [np.arange(n)] * whole + ([some] if len(some) else [])
    if not picks:
        raise WorkloadError(f"{workload.name}: rate factor {factor:g} leaves none of {n} requests")
    period = workload.span_s + (workload.span_s / (n - 1) if n > 1 else 0.0)
    reach = min(_MAX_SHIFT_S, 0.1 * workload.span_s)
    shifts = [0.0, *rng.uniform(-reach, reach, len(picks) - 1)]
    start = float(workload.arrival_s[0])
    begin = workload.arrival_s[root] - start  # turns that wait for others move with the first of them
    later = workload.arrival_s - workload.arrival_s[root]
    times = [
        start + (np.mod(begin[rows] + shift, period) if shift else begin[rows]) + later[rows]
        for rows, shift in zip(picks, shifts, strict=True)
    ]
    arrival = np.concatenate(times)
    order = np.argsort(arrival, kind="stable")
    rows = np.concatenate(picks)[order]
    copy = np.repeat(np.arange(len(picks)), [len(p) for p in picks])[order]
    scaled = _rows(workload, rows, arrival[order], copy)
    return replace(scaled, source=f"{workload.source}, rate x {factor:g} (seed {seed})")


def _roots(workload: Workload) -> Ints:
    """The row that begins what each row is part of: itself, or the first of the turns it waits for."""
    rows = np.arange(len(workload))
    if workload.after is None:
        return rows
    root = np.where(workload.after < 0, rows, workload.after)
    while not np.array_equal(root, root[root]):
        root = root[root]
    return root


def _rows(workload: Workload, rows: Ints, arrival: Floats, copy: Ints) -> Workload:
    """Rows at new times; sessions and blocks of different copies are kept apart."""
    session, blocks, offsets = workload.session, workload.prefix_blocks, workload.prefix_offsets
    if session is not None:
        session = session[rows] + copy * (int(session.max()) + 1)
    if blocks is not None and offsets is not None:
        low, width = int(blocks.min(initial=0)), int(blocks.max(initial=0)) - int(blocks.min(initial=0)) + 1
        if width * (int(copy.max()) + 1) >= 2**62:  # raw 64-bit hashes: make them dense first
            blocks = np.unique(blocks, return_inverse=True)[1].astype(np.int64)
            low, width = 0, int(blocks.max(initial=0)) + 1
        blocks, offsets = gather(blocks - low, offsets, rows)
        blocks = blocks + np.repeat(copy * width, np.diff(offsets))
    after = workload.after
    if after is not None:
        place = np.full((int(copy.max()) + 1, len(workload)), -1, np.int64)
        place[copy, rows] = np.arange(len(rows))
        after = np.where(after[rows] < 0, -1, place[copy, np.maximum(after[rows], 0)])
    return replace(
        workload,
        after=after,
        think_s=None if workload.think_s is None else workload.think_s[rows],
        priority=None if workload.priority is None else workload.priority[rows],
        deadline_s=None if workload.deadline_s is None else workload.deadline_s[rows],
        kind=None if workload.kind is None else workload.kind[rows],
        arrival_s=arrival,
        prompt_tokens=workload.prompt_tokens[rows],
        output_tokens=workload.output_tokens[rows],
        session=session,
        cached_tokens=None if workload.cached_tokens is None else workload.cached_tokens[rows],
        service_s=None if workload.service_s is None else workload.service_s[rows],
        prefix_blocks=blocks,
        prefix_offsets=offsets,
    )


def compress_time(workload: Workload, factor: float) -> Workload:
    """The same requests ``factor`` times as fast: CV stays exactly, every burst and lull lasts 1/``factor`` as long.

    Raises:
        WorkloadError: a factor that is not above 0.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise WorkloadError(f"{workload.name}: time factor must be above 0, got {factor!r}")
    return replace(
        workload,
        arrival_s=workload.arrival_s / factor,
        think_s=None if workload.think_s is None else workload.think_s / factor,
        source=f"{workload.source}, time compressed x {factor:g}",
    )


def scale_lengths(workload: Workload, prompt: float = 1.0, output: float = 1.0) -> Workload:
    """Lengths times ``prompt`` and ``output``, rounded, at least 1.

    Prefix hashes describe the old prompts and are dropped where those change; cached tokens scale with the prompt;
    logged service times belong to the old lengths and are dropped.

    Raises:
        WorkloadError: a factor that is not above 0, or lengths of 2**31 tokens and more.
    """
    for what, factor in (("prompt", prompt), ("output", output)):
        if not (math.isfinite(factor) and factor > 0):
            raise WorkloadError(f"{workload.name}: {what} factor must be above 0, got {factor!r}")
    if max(prompt * int(workload.prompt_tokens.max()), output * int(workload.output_tokens.max())) >= 2**31:
        raise WorkloadError(f"{workload.name}: scaled lengths reach 2**31 tokens; a smaller factor works")
    same = prompt == 1.0
    cached = workload.cached_tokens

    def scaled(lengths: Ints, factor: float, least: float) -> Ints:
        return np.asarray(np.maximum(np.rint(lengths * factor), least), np.int64)

    return replace(
        workload,
        prompt_tokens=scaled(workload.prompt_tokens, prompt, 1.0),
        output_tokens=scaled(workload.output_tokens, output, 1.0),
        cached_tokens=None if cached is None else scaled(cached, prompt, 0.0),
        prefix_blocks=workload.prefix_blocks if same else None,
        prefix_offsets=workload.prefix_offsets if same else None,
        service_s=workload.service_s if same and output == 1.0 else None,
        source=f"{workload.source}, prompts x {prompt:g}, outputs x {output:g}",
    )


def slice_time(workload: Workload, start: float, stop: float) -> Workload:
    """Requests that arrive from ``start`` up to but not at ``stop`` seconds; the clock restarts at ``start``.

    Raises:
        WorkloadError: nothing arrives in between.
    """
    first, last = (int(i) for i in np.searchsorted(workload.arrival_s, (start, stop)))
    if not start < stop or last <= first:
        raise WorkloadError(
            f"{workload.name}: no requests from {start:g} to {stop:g} s; "
            f"arrivals run from {workload.arrival_s[0]:g} to {workload.arrival_s[-1]:g} s"
        )
    part = workload.take(slice(first, last))
    return replace(
        part, arrival_s=np.maximum(part.arrival_s - start, 0.0), source=f"{workload.source}, {start:g} to {stop:g} s"
    )
