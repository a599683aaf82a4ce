"""What a search found, as plain values: streamed to a file, read back, and the search goes on where it stopped.

A task's entry holds every candidate with its fate and its figures, enough to make the very same objects again: numbers
are written in full, so a resumed search answers byte for byte what an uninterrupted one would. The entries belong to
one question; :func:`digest` says which, from everything that can change an answer. Files are the faces' business.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gambrel.core.deployment import Deployment
from gambrel.core.errors import DeploymentError
from gambrel.core.plan import Candidate, FrontPoint, Pricing
from gambrel.core.run import Distribution  # noqa: TC001 - msgspec reads the annotations
from gambrel.core.slo import Verdict  # noqa: TC001 - msgspec reads the annotations
from gambrel.core.step import MemoryBudget  # noqa: TC001 - msgspec reads the annotations
from gambrel.core.version import __version__
from gambrel.plan.question import Search
from gambrel.plan.trial import Outcome

if TYPE_CHECKING:
    from gambrel.plan.question import Question

__all__ = ["Entry", "digest", "read_entry", "write_entry"]

_SETTINGS = tuple(f.name for f in fields(Deployment) if f.name not in {"model", "accelerator"})


@dataclass(frozen=True)
class Row:
    """A candidate; ``gpu`` is the accelerator's place in the space, ``settings`` every other field of it."""

    gpu: int
    settings: dict[str, Any]
    stage: str
    memory: MemoryBudget
    verdicts: list[Verdict]
    safety: list[Verdict]
    latency: dict[str, Distribution]
    pricing: Pricing | None
    goodput: float
    idle_share: float
    keeps_up: bool
    lost_because: str
    label: str = ""
    stressed: float = -math.inf


@dataclass(frozen=True)
class Point:
    """A deployment that was simulated and holds."""

    gpu: int
    settings: dict[str, Any]
    usd_per_hour: float
    ttft_s: float
    tpot_s: float
    headroom: float


@dataclass(frozen=True)
class Entry:
    """What one task found, as :class:`~gambrel.plan.question.Search` has it."""

    task: str
    trials: list[Row] = field(default_factory=list)
    ruled_out: list[Row] = field(default_factory=list)
    tried: list[Point] = field(default_factory=list)
    num_simulated: int = 0
    num_considered: int = 0


def digest(question: Question) -> str:
    """A name for the question: gambrel's version, the model, the log, the objectives, the space and what steps cost.

    Costs are sampled: one table of each accelerator, so that other constants are another question.
    """
    said = hashlib.sha256()
    for part in (__version__, question.model, question.slo, question.space):
        said.update(repr(part).encode())
    log = question.workload
    for column in fields(log):
        value = getattr(log, column.name)
        if isinstance(value, np.ndarray):
            said.update(np.ascontiguousarray(value).tobytes())
        elif column.name in {"closed_loop", "staggered", "prefix_block_tokens", "kinds"}:
            said.update(repr(value).encode())
    for shapes in question.groups().values():
        table = question.pricer(shapes[0]).compile(256, 16)
        for array in table.arrays():
            said.update(np.ascontiguousarray(array).tobytes())
    return said.hexdigest()


def write_entry(task: str, found: Search, question: Question) -> dict[str, Any]:
    """What a task found as values that JSON can hold; numbers that are not finite become words."""

    def row(candidate: Candidate, stressed: float = -math.inf) -> Row:
        gpu, settings = placed(candidate.deployment, question)
        return Row(
            gpu,
            settings,
            candidate.stage,
            candidate.memory,
            list(candidate.verdicts),
            list(candidate.safety),
            dict(candidate.latency),
            candidate.pricing,
            candidate.goodput,
            candidate.idle_share,
            candidate.keeps_up,
            candidate.lost_because,
            candidate.deployment.label,
            stressed,
        )

    entry = Entry(
        task,
        [row(t.candidate, t.stressed) for t in found.trials],
        [row(c) for c in found.ruled_out],
        [Point(*placed(p.deployment, question), p.usd_per_hour, p.ttft_s, p.tpot_s, p.headroom) for p in found.tried],
        found.num_simulated,
        found.num_considered,
    )
    worded: dict[str, Any] = in_words(msgspec.to_builtins(entry, enc_hook=float))
    return worded


def read_entry(document: object, question: Question) -> tuple[str, Search]:
    """The task and what it found.

    Raises:
        DeploymentError: the entry is damaged.
    """
    try:
        entry = msgspec.convert(document, Entry, strict=False)
    except msgspec.ValidationError as error:
        raise DeploymentError(f"an entry of the search file is damaged: {error}") from None

    def deployment(gpu: int, settings: dict[str, Any]) -> Deployment:
        return Deployment(question.model, question.space.accelerators[gpu], **settings)

    def candidate(row: Row) -> Candidate:
        return Candidate(
            deployment(row.gpu, row.settings),
            row.stage,
            row.memory,
            tuple(row.verdicts),
            row.latency,
            row.pricing,
            row.goodput,
            row.idle_share,
            row.keeps_up,
            row.lost_because,
            tuple(row.safety),
        )

    return entry.task, Search(
        [Outcome(candidate(row), row.stressed) for row in entry.trials],
        [candidate(row) for row in entry.ruled_out],
        [
            FrontPoint(deployment(p.gpu, p.settings), p.usd_per_hour, p.ttft_s, p.tpot_s, p.headroom)
            for p in entry.tried
        ],
        entry.num_simulated,
        entry.num_considered,
    )


def placed(deployment: Deployment, question: Question) -> tuple[int, dict[str, Any]]:
    """The accelerator's place in the space, and the settings."""
    place = question.space.accelerators.index(deployment.accelerator)
    return place, {name: getattr(deployment, name) for name in _SETTINGS}


def in_words(value: Any) -> Any:
    """The value with ``nan``, ``inf`` and ``-inf`` as text, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {key: in_words(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [in_words(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
