"""What happened between two moments, step by step and request by request: the record behind a figure that surprises.

A :class:`~gambrel.core.run.Run` says how long everything took; a timeline says in which order. It holds a window only,
for a day of steps is more than anybody reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints

__all__ = ["PHASES", "Phases", "Steps", "Timeline"]

PHASES = ("queue", "prefill", "decode", "preempted")
"""What a request is doing, in the order of :meth:`gambrel.core.run.Run.phases_s`."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Engine iterations that touch the window, by replica, then time; one row a step.

    Attributes:
        replica: int64.
        start_s, seconds: float64 on the workload's clock.
        decodes: int64 sequences that decode; ``prompts``: sequences whose prompt (or a part of it) is computed.
        tokens: int64 computed in all; ``prefill_tokens``: those of prompts.
        cause: int64 what binds it, a place in ``CAUSES``.
        running, waiting: int64 sequences in the batch, and requests that wait at its start (preempted ones too).
        kv_blocks: int64 in use.
    """

    replica: Ints
    start_s: Floats
    seconds: Floats
    decodes: Ints
    prompts: Ints
    tokens: Ints
    prefill_tokens: Ints
    cause: Ints
    running: Ints
    waiting: Ints
    kv_blocks: Ints

    def __len__(self) -> int:
        return len(self.start_s)


@dataclass(frozen=True, slots=True)
class Phases:
    """Stretches of requests' lives that touch the window, uncut, by request, then time; one row a stretch.

    Attributes:
        request: int64 row of the workload.
        replica: int64.
        phase: int64 place in ``PHASES``.
        start_s, end_s: float64; the end is infinite where the record stops first.
        gave_up: int64 1 where the client dropped the request at its end.
    """

    request: Ints
    replica: Ints
    phase: Ints
    start_s: Floats
    end_s: Floats
    gave_up: Ints

    def __len__(self) -> int:
        return len(self.start_s)


@dataclass(frozen=True, slots=True)
class Timeline:
    """A window of a run: ``begin_s`` to ``end_s`` on the workload's clock, ``num_kv_blocks`` in each replica."""

    begin_s: float
    end_s: float
    steps: Steps
    phases: Phases
    num_kv_blocks: int
    replicas: int
