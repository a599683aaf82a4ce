"""Everything that can go wrong, in one tree, so that one handler can turn it into one clear line.

::

    GambrelError
    ├── CatalogError       an unknown or incomplete model, accelerator or price
    │   └── UnknownName    a name that is not in a catalog; carries the nearest three
    ├── WorkloadError      a log that cannot be read, or holds what no log can hold
    ├── DeploymentError    settings that contradict each other
    │   └── DoesNotFit     the model does not fit the memory; carries needed and available bytes
    ├── SLOError           a service level objective that cannot be read
    ├── InfeasiblePlan     no candidate meets the objectives; carries the best that was reached
    ├── EndpointError      a live endpoint that did not answer as it should
    └── ReportError        a chart or page that could not be written

Only ``faces`` catches these: exit status 1 for :class:`InfeasiblePlan` (and for a plan of a model that fits nowhere), 2
for every other.
A message names the file, row or field, what was found, and what would work.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gambrel.core.plan import Relaxation

__all__ = [
    "CatalogError",
    "DeploymentError",
    "DoesNotFit",
    "EndpointError",
    "GambrelError",
    "InfeasiblePlan",
    "ReportError",
    "SLOError",
    "UnknownName",
    "WorkloadError",
]


class GambrelError(Exception):
    """The root: a mistake in the input or an answer that is "no", never a defect of gambrel."""


class CatalogError(GambrelError):
    """A model, accelerator or price is unknown or lacks a needed figure."""


class UnknownName(CatalogError):  # noqa: N818 - reads as the sentence it is
    """A name that is not in a catalog, with the three nearest that are."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        folded = {k.lower(): k for k in known}
        tails = {k.rsplit("/", 1)[-1]: full for k, full in folded.items()}
        close = difflib.get_close_matches(name.lower(), [*folded, *tails], n=6, cutoff=0.0)
        nearest = list(dict.fromkeys(folded.get(c) or tails[c] for c in close))[:3]
        self.name = name
        self.nearest = tuple(nearest)
        message = f"unknown {kind} {name!r}; nearest: {', '.join(nearest)}" if nearest else f"unknown {kind} {name!r}"
        super().__init__(f"{message}{'; ' + hint if hint else ''}")


class WorkloadError(GambrelError):
    """A log or trace that cannot be read as requests."""


class DeploymentError(GambrelError):
    """Settings that contradict each other or the model."""


class DoesNotFit(DeploymentError):  # noqa: N818 - reads as the sentence it is
    """The model does not fit the accelerator's memory: needed and available bytes are attributes."""

    def __init__(
        self, message: str, *, needed_bytes: float, available_bytes: float, relaxations: tuple[Relaxation, ...] = ()
    ) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        self.relaxations = relaxations


class SLOError(GambrelError):
    """A service level objective that cannot be read."""


class InfeasiblePlan(GambrelError):  # noqa: N818 - reads as the sentence it is
    """No candidate meets every objective; ``relaxations`` are the nearest requests that some candidate does meet."""

    def __init__(self, message: str, relaxations: tuple[Relaxation, ...] = ()) -> None:
        super().__init__(message)
        self.relaxations = relaxations


class EndpointError(GambrelError):
    """A live endpoint refused, broke off, or did not speak the protocol."""


class ReportError(GambrelError):
    """A chart or page could not be rendered or written."""
