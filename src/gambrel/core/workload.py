"""What traffic *is*: one row a request, as columns, with where it came from.

Lengths are tokens, times are seconds from the first arrival. Prompt content is never held.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gambrel.core.errors import WorkloadError

if TYPE_CHECKING:
    from gambrel.core.step import Floats

__all__ = ["Ints", "Workload", "gather"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival.

    Attributes:
        arrival_s: float64[n], non-decreasing, starting at 0 or later.
        prompt_tokens: int64[n], at least 1.
        output_tokens: int64[n], at least 1.
        session: int64[n] id of the conversation or client, or None.
        cached_tokens: int64[n] prompt tokens already in a prefix cache as the log reports, or None.
        prefix_blocks: flattened int64 prefix-block hashes with ``prefix_offsets`` int64[n + 1], or None.
        prefix_block_tokens: tokens per hashed block.
        service_s: float64[n] how long the request took in the log (E2E), or None.
        name: what it is called.
        source: file or profile it came from, with format.
        warnings: what a reader should know before believing it.
        closed_loop: when above 0, this many users each send their next request when the last one has ended; arrival
            times are then the engine's to make. ``arrival_s`` holds the users' starts in the first ``closed_loop``
            rows (all zero: together) and is not read beyond them.
        staggered: users of a closed loop start evenly spread over the time one request takes alone, which only the
            engine knows; requests of one length would otherwise go in step with each other for ever. And each sends
            the next request when the last token has reached them, not when the engine has made it.
        think_s: float64[n] seconds a user of a closed loop, or of a session, pauses between the end of this request and
            the next one sent, or None for no pause.
        after: int64[n] the row whose end this one waits for (and then for its ``think_s``), an earlier one, each named
            once at most; -1 for rows that arrive by themselves. ``arrival_s`` of the others is a guess that orders the
            rows; the engine makes their arrivals. None: all arrive by themselves.
        priority: int64[n] of each request, lower first as in vLLM, or None; read by policies that know priorities.
        deadline_s: float64[n] seconds after its arrival at which the client gives up and drops the request, infinite
            for never, or None.
        kind: int64[n] which kind of traffic each request is, a place in ``kinds`` (chat, code, ...), or None.
        has_arrivals: False when the source had lengths only and the times were made up.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    session: Ints | None = None
    cached_tokens: Ints | None = None
    prefix_blocks: Ints | None = None
    prefix_offsets: Ints | None = None
    prefix_block_tokens: int = 0
    service_s: Floats | None = None
    name: str = "workload"
    source: str = ""
    warnings: tuple[str, ...] = field(default=())
    has_arrivals: bool = True
    closed_loop: int = 0
    staggered: bool = False
    think_s: Floats | None = None
    after: Ints | None = None
    priority: Ints | None = None
    deadline_s: Floats | None = None
    kind: Ints | None = None
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        if n == 0:
            raise WorkloadError(f"{self.source or self.name}: no requests")
        for column in (
            "prompt_tokens", "output_tokens", "session", "cached_tokens", "service_s", "think_s", "after", "priority",
            "deadline_s",
        ):  # fmt: skip
            values = getattr(self, column)
            if values is not None and len(values) != n:
                raise WorkloadError(f"{self.source or self.name}: {column} has {len(values)} rows, arrival_s {n}")
        self._check_seconds()
        if not np.all(np.isfinite(self.arrival_s)):
            raise WorkloadError(f"{self.source or self.name}: arrival times must be finite")
        if n > 1 and bool(np.any(np.diff(self.arrival_s) < 0)):
            raise WorkloadError(f"{self.source or self.name}: arrival times must not decrease")
        if self.after is not None:
            self._check_turns(self.after)
        for column in ("prompt_tokens", "output_tokens"):
            values = getattr(self, column)
            if int(values.min()) < 1:
                row = int(np.argmin(values))
                raise WorkloadError(
                    f"{self.source or self.name}: {column} must be at least 1, row {row + 1} has {int(values[row])}"
                )

    def _check_seconds(self) -> None:
        name, think_s, deadline_s = self.source or self.name, self.think_s, self.deadline_s
        if think_s is not None and not bool(np.all(np.isfinite(think_s) & (think_s >= 0))):
            raise WorkloadError(f"{name}: think_s must be finite and at least 0")
        if deadline_s is not None and not bool(np.all(deadline_s > 0)):
            row = int(np.argmin(deadline_s > 0))
            raise WorkloadError(f"{name}: deadline_s must be above 0, row {row + 1} has {deadline_s[row]:g}")

    def _check_turns(self, after: Ints) -> None:
        name = self.source or self.name
        wrong = np.flatnonzero((after >= np.arange(len(after))) | (after < -1))
        if len(wrong):
            row = int(wrong[0])
            raise WorkloadError(f"{name}: row {row + 1} waits for row {int(after[row]) + 1}; an earlier row works")
        named = after[after >= 0]
        if len(np.unique(named)) < len(named):
            row = int(np.argmax(np.bincount(named)))
            raise WorkloadError(f"{name}: several rows wait for row {row + 1}; a turn has one next turn")
        if self.closed_loop:
            raise WorkloadError(f"{name}: a closed loop's users make all arrivals; it can have no turns of its own")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        """Seconds from first to last arrival."""
        return float(self.arrival_s[-1] - self.arrival_s[0])

    @property
    def rate_rps(self) -> float:
        """Mean arrivals per second over the span: (n - 1) gaps; infinite when all arrive at once."""
        span = self.span_s
        return (len(self) - 1) / span if span > 0 else float("inf")

    def take(self, rows: npt.NDArray[np.intp] | slice) -> Workload:
        """The given rows, in the given order, as a workload of their own."""
        blocks, offsets = self.prefix_blocks, self.prefix_offsets
        if offsets is not None and blocks is not None:
            chosen = np.arange(len(self))[rows] if isinstance(rows, slice) else rows
            blocks, offsets = gather(blocks, offsets, chosen)
        after = self.after
        if after is not None:  # turns whose turn before is left out arrive by themselves
            chosen = np.arange(len(self))[rows]
            place = np.full(len(self) + 1, -1, np.int64)
            place[chosen] = np.arange(len(chosen))
            after = place[after[chosen]]  # the last place answers for -1
        return replace(
            self,
            arrival_s=self.arrival_s[rows],
            prompt_tokens=self.prompt_tokens[rows],
            output_tokens=self.output_tokens[rows],
            session=None if self.session is None else self.session[rows],
            cached_tokens=None if self.cached_tokens is None else self.cached_tokens[rows],
            service_s=None if self.service_s is None else self.service_s[rows],
            think_s=None if self.think_s is None else self.think_s[rows],
            priority=None if self.priority is None else self.priority[rows],
            deadline_s=None if self.deadline_s is None else self.deadline_s[rows],
            kind=None if self.kind is None else self.kind[rows],
            after=after,
            prefix_blocks=blocks,
            prefix_offsets=offsets,
        )


def gather(values: Ints, offsets: Ints, rows: npt.NDArray[np.intp]) -> tuple[Ints, Ints]:
    """The given rows of a ragged array (``values`` flat, row i at ``offsets[i]:offsets[i + 1]``), ragged again."""
    sizes = offsets[rows + 1] - offsets[rows]
    found = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    places = np.arange(found[-1]) + np.repeat(offsets[rows] - found[:-1], sizes)
    return values[places], found
