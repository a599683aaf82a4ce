"""From the fields of a log to a workload: what all readers share, written once.

Failures and empty answers are left out and counted, times are put in order and start at 0, and every such change is a
warning of the workload.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.core.workload import Workload, gather
from gambrel.traffic.columns import Column
from gambrel.traffic.synonyms import as_column, meaning_of
from gambrel.traffic.times import SECONDS, seconds

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt

    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints
    from gambrel.traffic.columns import Columns, Kind
    from gambrel.traffic.table import Log

__all__ = ["Fields", "fields_of", "missing", "need", "workload_of"]

PLACEHOLDER_RATE_RPS = 1.0
"""Arrivals per second made up for logs that hold lengths only."""


def need(log: Log, *names: str) -> str:
    """The file's spelling of a field, under any of ``names``; WorkloadError without it."""
    found = log.find(*names)
    if found is None:
        meaning = meaning_of(names[0])
        own = "" if meaning == names[0] else "without a format named, "  # a format's own word
        raise missing(
            log, names[0], f"; {own}name the one that holds it: {as_column(meaning, 'FIELD')}" if meaning else ""
        )
    return found


def missing(log: Log, name: str, hint: str = "") -> WorkloadError:
    """The error for a field that the file does not have, with those that it has."""
    have = ", ".join(repr(n[:30]) for n in log.names[:12]) or "none"
    return WorkloadError(f"{log.path}: field {name!r} is missing; found fields: {have}{hint}")


@dataclass(frozen=True)
class Fields:
    """Which field of a log means what; None where the log has none."""

    prompt: str
    output: str
    arrival: str | None = None
    arrival_unit: str | None = "s"  # None: by the size of the times
    session: str | None = None
    parent: str | None = None
    cached: str | None = None
    service: str | None = None
    service_unit: str = "s"
    priority: str | None = None
    deadline: str | None = None
    deadline_unit: str = "s"
    blocks: str | None = None
    block_tokens: int = 0

    def columns(self) -> list[Column]:
        """What to read of the log, and as what kind of cell."""
        kinds: list[tuple[str | None, Kind]] = [
            (self.prompt, "tokens"),
            (self.output, "tokens"),
            (self.arrival, "time"),
            (self.session, "label" if self.parent is None else "number"),
            (self.parent, "number"),
            (self.cached, "tokens"),
            (self.service, "number"),
            (self.priority, "number"),
            (self.deadline, "number"),
            (self.blocks, "blocks"),
        ]
        return [Column(name, kind) for name, kind in kinds if name is not None]


def workload_of(log: Log, fields: Fields, format_name: str, notes: Iterable[str] = ()) -> Workload:
    """Read ``fields`` and put the rows in order; the warnings say what was changed."""
    table = log.read(fields.columns())
    warnings = list(notes)
    prompt = table.arrays.pop(fields.prompt).astype(np.int64)
    output = table.arrays.pop(fields.output).astype(np.int64)
    keep = _kept(prompt, output, log, warnings)
    if fields.arrival is None:
        gaps = np.random.default_rng(0).exponential(1.0 / PLACEHOLDER_RATE_RPS, len(prompt))
        arrival = np.cumsum(gaps)
        warnings.append(
            f"no arrival times in the log: Poisson arrivals at {PLACEHOLDER_RATE_RPS:g} a second were made up; "
            "rate, burst and concurrency figures say nothing about real use"
        )
    else:
        arrival = seconds(table, fields.arrival, fields.arrival_unit, keep, warnings)
    rows = _in_order(arrival, keep, warnings)

    def pick(name: str | None) -> Ints | None:
        return None if name is None else table.arrays[name].astype(np.int64)[rows]

    if fields.session is not None and fields.parent is not None:
        table.arrays[fields.session] = roots(table.arrays[fields.session], table.arrays[fields.parent])
    blocks = offsets = None
    if fields.blocks is not None:
        blocks, offsets = table.blocks[fields.blocks]
        if not isinstance(rows, slice):
            blocks, offsets = gather(blocks, offsets, rows)
    arrival = arrival[rows]
    return Workload(
        arrival_s=arrival - arrival[0],
        prompt_tokens=prompt[rows],
        output_tokens=output[rows],
        session=pick(fields.session),
        cached_tokens=pick(fields.cached),
        service_s=None if fields.service is None else _service(table, fields)[rows],
        priority=None if fields.priority is None else _priority(table, fields.priority)[rows],
        deadline_s=None if fields.deadline is None else _deadline(table, fields)[rows],
        prefix_blocks=blocks,
        prefix_offsets=offsets,
        prefix_block_tokens=fields.block_tokens,
        name=_stem(log.path),
        source=f"{log.path} ({format_name})",
        warnings=tuple(warnings),
        has_arrivals=fields.arrival is not None,
    )


def fields_of(names: Iterable[str]) -> Fields:
    """The fields of a log whose names already are the meanings."""
    have = set(names)

    def one(name: str) -> str | None:
        return name if name in have else None

    return Fields(
        "prompt_tokens", "output_tokens", one("arrival_s"), session=one("session"), cached=one("cached_tokens"),
        service=one("service_s"),
    )  # fmt: skip


def roots(chat: Floats | Ints, parent: Floats | Ints) -> Ints:
    """The conversation of every request: the first of its chain of parents (-1: none), as dense ids."""
    first: dict[float, int] = {}
    out = np.empty(len(chat), np.int64)
    count = 0
    for i, (own, above) in enumerate(zip(chat.tolist(), parent.tolist(), strict=True)):
        known = first.get(above) if above >= 0 else None
        if known is None:
            known = count
            count += 1
        first[own] = known
        out[i] = known
    return out


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".gz", ".csv", ".jsonl", ".json", ".parquet"):
        name = name.removesuffix(suffix)
    return name or "log"


def _kept(prompt: Ints, output: Ints, log: Log, warnings: list[str]) -> npt.NDArray[np.bool_] | None:
    """Which rows are requests that were answered; None for all of them."""
    silent, blank = output == 0, prompt == 0
    num_silent, num_blank = int(silent.sum()), int((blank & ~silent).sum())
    if num_silent:
        warnings.append(f"{num_silent} of {len(output)} requests have no output tokens (failures): left out")
    if num_blank:
        warnings.append(f"{num_blank} of {len(output)} requests have no prompt tokens: left out")
    if num_silent + num_blank == len(output):
        raise WorkloadError(
            f"{log.path}: all {len(output)} rows have zero prompt or output tokens; a log of answered requests works"
        )
    return ~(silent | blank) if num_silent + num_blank else None


def _in_order(arrival: Floats, keep: npt.NDArray[np.bool_] | None, warnings: list[str]) -> npt.NDArray[np.intp] | slice:
    """The kept rows in order of arrival."""
    rows = None if keep is None else np.flatnonzero(keep)
    times = arrival if rows is None else arrival[rows]
    backwards = int(np.count_nonzero(times[1:] < times[:-1]))
    if backwards:
        warnings.append(f"times out of order: {backwards} rows arrive before the row above them; sorted by time")
        order = np.argsort(times, kind="stable")
        return order if rows is None else rows[order]
    return slice(None) if rows is None else rows


def _service(table: Columns, fields: Fields) -> Floats:
    """Logged seconds from arrival to last token."""
    name = fields.service or ""
    values = np.asarray(table.arrays[name] * SECONDS[fields.service_unit], np.float64)
    if values.min() < 0:
        row = int(np.argmin(values))
        raise table.refuse(name, row, f"{values[row]:g} s", "a duration of at least 0 works")
    return values


def _priority(table: Columns, name: str) -> Ints:
    """Whole numbers, lower first."""
    values = table.arrays[name]
    broken = values != np.rint(values)
    if broken.any():
        row = int(np.argmax(broken))
        raise table.refuse(name, row, f"{values[row]:g}", "a whole number, lower for more urgent, works")
    return np.asarray(values, np.int64)


def _deadline(table: Columns, fields: Fields) -> Floats:
    """Seconds from arrival to giving up."""
    name = fields.deadline or ""
    values = np.asarray(table.arrays[name] * SECONDS[fields.deadline_unit], np.float64)
    if values.min() <= 0:
        row = int(np.argmin(values))
        raise table.refuse(name, row, f"{values[row]:g} s", "a duration above 0 works")
    return values
