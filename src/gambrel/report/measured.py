"""What was measured, as plain data of any load client, and the one thing read out of it: where a step breaks.

The report knows no load client, so levels come in as these types. A client that distorted a level says so in its
:class:`Trust`; such a level supports no claim about the server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gambrel.core.run import Distribution

__all__ = [
    "Break",
    "MeasuredLevel",
    "MeasuredSweep",
    "Trust",
    "by_prompt",
    "drawn",
    "find_break",
    "num_loads",
    "sure",
]

_FIT_LIMIT: Final = 0.1  # a broken line whose root-mean-square relative error is above this is not drawn
FEWEST: Final = 4  # levels that a broken line of three unknowns needs at least


@dataclass(frozen=True, slots=True)
class Trust:
    """What the client did to its own figures: times in s, shares of 1, NaN where it was not seen."""

    client_bound: bool
    reasons: tuple[str, ...] = ()
    late_p99_s: float = math.nan
    loop_lag_p99_s: float = math.nan
    merged_reads_share: float = math.nan
    cpu_share: float = math.nan


@dataclass(frozen=True, slots=True)
class MeasuredLevel:
    """One load held for a while.

    ``requested`` and ``delivered`` are requests in flight of a ``closed`` loop and requests/s of an ``open`` one;
    ``other`` (a ramp, a replay) has no place on either axis. ``prompt_tokens`` is NaN where no request was answered.
    ``server_batch`` is the mean of what the server said was running, NaN where it said nothing.
    """

    label: str
    mode: Literal["closed", "open", "other"]
    requested: float
    delivered: float
    prompt_tokens: float
    output_tokens: float
    num_ok: int
    num_errors: int
    window_s: float
    output_tokens_per_s: float
    requests_per_s: float
    ttft: Distribution
    tpot: Distribution
    e2e: Distribution
    trust: Trust
    server_batch: float = math.nan
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MeasuredSweep:
    """Levels of one server in measuring order; ``definitions`` maps ``ttft`` and so on to its full name."""

    source: str
    model: str
    levels: tuple[MeasuredLevel, ...]
    definitions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    basis: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Break:
    """A flat stretch and a slope: ``floor_s`` up to ``knee`` requests in flight, then ``slope_s`` more for each."""

    floor_s: float
    knee: float
    slope_s: float

    def at(self, concurrency: float) -> float:
        """Seconds at a concurrency."""
        return self.floor_s + self.slope_s * max(0.0, concurrency - self.knee)


def find_break(concurrency: Sequence[float], step_s: Sequence[float]) -> Break | None:
    """The broken line nearest to measured steps, its knee at a level with at least two more beyond it.

    Nearest in least squares of the relative error, so that the flat stretch counts as much as the slope. None where
    there are fewer than four levels, where the line would fall, or where it is off by more than a tenth (root mean
    square): then the figures show no such break.
    """
    x, y = np.asarray(concurrency, np.float64), np.asarray(step_s, np.float64)
    if len(x) < FEWEST or len(np.unique(x)) < len(x) or not np.all(y > 0):
        return None
    best: tuple[float, Break] | None = None
    for knee in np.sort(x)[:-2]:
        parts = np.column_stack([np.ones_like(x), np.maximum(0.0, x - knee)]) / y[:, None]
        (floor, slope), *_ = np.linalg.lstsq(parts, np.ones_like(x), rcond=None)
        miss = float(np.sqrt(np.mean((parts @ (floor, slope) - 1.0) ** 2)))
        if slope > 0 and floor > 0 and (best is None or miss < best[0] - 1e-9):
            best = miss, Break(float(floor), float(knee), float(slope))
    return best[1] if best is not None and best[0] <= _FIT_LIMIT else None


def drawn(sweep: MeasuredSweep) -> list[MeasuredLevel]:
    """The levels that share an axis and were answered: the closed ones, else the open ones; by prompt, then load."""
    good = [v for v in sweep.levels if v.num_ok and math.isfinite(v.prompt_tokens) and v.requested > 0]
    found = [v for v in good if v.mode == "closed"] or [v for v in good if v.mode == "open"]
    return sorted(found, key=lambda v: (round(v.prompt_tokens), v.requested))


def num_loads(levels: Sequence[MeasuredLevel]) -> int:
    """Different loads asked for: a chart against load needs two."""
    return len({v.requested for v in levels})


def by_prompt(levels: Sequence[MeasuredLevel]) -> dict[int, list[MeasuredLevel]]:
    """The levels of each prompt length in whole tokens."""
    found: dict[int, list[MeasuredLevel]] = {}
    for v in levels:
        found.setdefault(round(v.prompt_tokens), []).append(v)
    return found


def sure(levels: Sequence[MeasuredLevel]) -> Sequence[MeasuredLevel]:
    """The levels that say what the server can do: those at which the client kept up, else all."""
    return [v for v in levels if not v.trust.client_bound] or levels
