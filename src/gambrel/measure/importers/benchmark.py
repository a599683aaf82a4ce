"""What another tool's result file holds, in our words: a run where it kept its requests, and what it says of itself.

Tools use one word for different things and different words for one thing. So every figure is filed here under our
definitions (:class:`gambrel.core.run.Run`), in SI units, whatever it was called: ``tpot`` is (last - first) /
(tokens - 1) per request, ``itl`` the gap between two events, ``e2e_per_token`` is E2E over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.core.run import Histogram, Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from gambrel.core.step import Floats

__all__ = ["STATISTICS", "Benchmark", "Document", "Fields", "Row", "imported_run", "known"]

STATISTICS: Final = {
    "mean": "mean", "avg": "mean", "median": "p50", "std": "std", "std_dev": "std", "stddev": "std", "min": "min",
    "max": "max", "p1": "p1", "p5": "p5", "p10": "p10", "p25": "p25", "p50": "p50", "p75": "p75", "p90": "p90",
    "p95": "p95", "p99": "p99", "p99.9": "p999", "p999": "p999", "p99p9": "p999", "p01": "p1", "p05": "p5",
}  # fmt: skip
"""Other tools' names of a statistic, and ours."""


@dataclass(frozen=True)
class Benchmark:
    """One operating point of a result file.

    Attributes:
        tool: who measured, with its version where known; ``source`` is the file, ``label`` the point within it.
        run: requests, or None where the file has aggregates only.
        reported: what the tool says: metric (``ttft``, ``tpot``, ``itl``, ``e2e``, ``e2e_per_token``,
            ``prompt_tokens``, ``output_tokens``) -> statistic (``mean``, ``p50``, ...) -> seconds or tokens.
        rates: ``request_rate`` (1/s), ``output_tokens_per_s``, ``total_tokens_per_s``, ... as the tool says.
        setting: ``model``, ``gpu``, ``num_gpus``, ``tp``, ``engine``, ``precision``, ``concurrency``, ``rate_rps``,
            ``prompt_tokens``, ``output_tokens``: as far as the file knows them.
        num_requests, num_failed: as the tool counted; ``num_failed`` None where it did not.
        warnings: what a reader should know.
    """

    tool: str
    source: str
    label: str
    run: Run | None
    reported: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    setting: Mapping[str, str | float] = field(default_factory=dict)
    num_requests: int = 0
    num_failed: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Tool, file and point in one line."""
        return f"{self.tool}: {self.source}" + (f" [{self.label}]" if self.label else "")


@dataclass(frozen=True, slots=True)
class Document:
    """A result file that has been read: ``rows`` are its JSON documents (one, or one a line)."""

    path: Path
    rows: tuple[Any, ...]

    @property
    def head(self) -> dict[str, Any]:
        """The first document where it is an object, else the first object of its array, else empty."""
        first = self.rows[0]
        if isinstance(first, list):
            first = first[0] if first else {}
        return first if isinstance(first, dict) else {}

    def fields(self) -> Fields:
        """The first document's fields."""
        return Fields(self.head, str(self.path))


class Fields:
    """A JSON object whose fields are asked for by name and kind; errors say where they are."""

    def __init__(self, data: Any, where: str) -> None:
        self.data: dict[str, Any] = data if isinstance(data, dict) else {}
        self.where = where

    def refuse(self, name: str, found: Any, wanted: str) -> WorkloadError:
        """The error for a field that is not what it should be."""
        what = "nothing" if found is None else repr(found)[:40]
        return WorkloadError(f"{self.where}: field {name!r}: found {what}; {wanted}")

    def sub(self, *names: str) -> Fields:
        """The object under a path of names; empty where there is none."""
        inner: Any = self.data
        for name in names:
            inner = inner.get(name) if isinstance(inner, dict) else None
        return Fields(inner, f"{self.where}: {'.'.join(names)}")

    def items(self, name: str) -> list[Fields]:
        """The objects of a list; none where there is none."""
        found = self.data.get(name)
        if found is None:
            return []
        if not isinstance(found, list):
            raise self.refuse(name, found, "a list works")
        return [Fields(item, f"{self.where}: {name}[{i}]") for i, item in enumerate(found)]

    def text(self, *names: str) -> str:
        """The first of ``names`` that holds text; empty without any."""
        return next((v for v in (self.data.get(n) for n in names) if isinstance(v, str)), "")

    def maybe(self, *names: str) -> float | None:
        """The first of ``names`` that is there, as a number (``"inf"`` too); None without any.

        Raises:
            WorkloadError: it is not a number.
        """
        for name in names:
            found = self.data.get(name)
            if found is None:
                continue
            try:
                if isinstance(found, bool):
                    raise TypeError  # noqa: TRY301 - one way out for all that is no number
                return float(found)
            except (TypeError, ValueError, OverflowError):
                raise self.refuse(name, found, "a number works") from None
        return None

    def number(self, *names: str) -> float:
        """The first of ``names`` that is there; WorkloadError without any."""
        found = self.maybe(*names)
        if found is None:
            raise self.refuse(names[0], None, "a number is needed")
        return found

    def count(self, *names: str) -> int:
        """A whole number of at least 0; 0 without any."""
        found = self.maybe(*names) or 0.0
        if not 0 <= found < 2**53:
            raise self.refuse(names[0], found, "a count works")
        return int(found)

    def numbers(self, name: str) -> Floats | None:
        """A list of numbers; None without it."""
        found = self.data.get(name)
        if found is None:
            return None
        try:
            return np.asarray(found, np.float64).reshape(-1) if isinstance(found, list) else _no_list(found)
        except (TypeError, ValueError, OverflowError):
            raise self.refuse(name, found, "a list of numbers works") from None

    def statistics(self, scale: float = 1.0) -> dict[str, float]:
        """Every statistic that this object holds, under our names, times ``scale``."""
        found = {}
        for theirs, ours in STATISTICS.items():
            value = self.data.get(theirs)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[ours] = float(value) * scale
        for theirs, value in self.sub("percentiles").data.items():
            if theirs in STATISTICS and isinstance(value, int | float):
                found[STATISTICS[theirs]] = float(value) * scale
        return found


def known(**values: str | float | None) -> dict[str, str | float]:
    """Those of ``values`` that a file stated: neither None nor empty."""
    return {name: value for name, value in values.items() if value is not None and value != ""}


def _no_list(found: Any) -> Floats:
    raise TypeError(f"{type(found).__name__} is no list")


class Row(msgspec.Struct, kw_only=True):
    """One request as an importer found it: seconds on one clock of the file; None where it failed or is unknown.

    ``gaps`` are seconds between token events, in order.
    """

    arrival_s: float
    first_s: float | None = None
    last_s: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    gaps: Any = None
    ok: bool = True


def imported_run(rows: Sequence[Row], *, source: str, basis: str, meta: Mapping[str, str] | None = None) -> Run:
    """Rows as a run in order of arrival, its clock starting at the first.

    Raises:
        WorkloadError: no rows, or times that cannot be.
    """
    if not rows:
        raise WorkloadError(f"{source}: holds no requests")
    ordered = sorted(rows, key=lambda r: r.arrival_s)
    zero = ordered[0].arrival_s
    n = len(ordered)

    def times(values: Iterable[float | None]) -> Floats:
        found = np.array([np.nan if v is None else v for v in values], np.float64) - zero
        found[[not r.ok for r in ordered]] = np.nan
        return found

    first, last = times(r.first_s for r in ordered), times(r.last_s for r in ordered)
    arrival = np.array([r.arrival_s for r in ordered]) - zero
    bad = (first < arrival - 1e-6) | (last < first - 1e-6) | ~np.isfinite(arrival)
    if bad.any():
        i = int(np.argmax(bad))
        raise WorkloadError(
            f"{source}: request {i + 1}: arrival {arrival[i]:g} s, first token {first[i]:g} s, last {last[i]:g} s: "
            "they must be in this order"
        )
    gaps = [np.asarray(r.gaps, np.float64) for r in ordered if r.ok and r.gaps is not None]
    pooled = np.concatenate([*gaps, np.empty(0)])
    if not np.all(np.isfinite(pooled)) or (len(pooled) and pooled.min() < 0):
        raise WorkloadError(f"{source}: a gap between tokens is negative or not a number")
    return Run(
        arrival_s=arrival,
        scheduled_s=np.full(n, np.nan),
        first_token_s=first,
        last_token_s=last,
        prompt_tokens=np.array([r.prompt_tokens for r in ordered], np.int64),
        output_tokens=np.array([r.output_tokens for r in ordered], np.int64),
        preemptions=np.zeros(n, np.int64),
        replica=np.zeros(n, np.int64),
        itl=Histogram.of(pooled),
        origin="imported",
        basis=basis,
        meta=meta or {},
    )
