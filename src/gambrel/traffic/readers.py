"""Log formats to workloads: one function each, recognised by their field names.

To add a format: write ``def my_format(log: Log) -> Workload``, add its row to :data:`FORMATS` at the foot, and put
a five-line sample called ``my-format.csv`` or ``.jsonl`` into ``traffic/data/formats``. A test reads every sample.

A reader says which fields mean what and in which unit; what all logs share happens once, in :func:`_workload`:
failures and empty answers are left out and counted, times are put in order and start at 0, and every such change
is a warning of the workload.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import UnknownName, WorkloadError
from gambrel.core.workload import Workload, gather
from gambrel.traffic.doubts import doubts
from gambrel.traffic.table import Column, fold, inspect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy.typing as npt

    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints
    from gambrel.traffic.table import Columns, Kind, Log

__all__ = ["FORMATS", "SYNONYMS", "Format", "read_workload"]

PLACEHOLDER_RATE_RPS = 1.0
"""Arrivals per second made up for logs that hold lengths only."""


def read_workload(path: str | Path, *, format: str | None = None, columns: Mapping[str, str] | None = None) -> Workload:  # noqa: A002 - the word users say
    """Read a request log or trace as a :class:`Workload`.

    Args:
        path: CSV, JSON Lines (either may be gzipped), a JSON array of objects, or Parquet.
        format: a name of :data:`FORMATS`; None recognises it by its field names.
        columns: field names of a plain log by meaning, e.g. ``{"prompt_tokens": "n_in", "arrival_ms": "ts"}``.
            Meanings: ``arrival_s`` (or ``_ms``, ``_us``, ``_ns``), ``prompt_tokens``, ``output_tokens``,
            ``session``, ``cached_tokens``, ``service_s`` (or ``_ms``, ``_us``, ``_ns``).

    Returns:
        Requests in order of arrival, from 0 s, with warnings for all that was changed or looks doubtful.

    Raises:
        WorkloadError: a file, row or field that cannot be read, named.
    """
    log = inspect(path)
    if columns:
        found = plain(log, columns)
    elif format is not None:
        if format not in FORMATS:
            raise WorkloadError(f"{path}: {UnknownName('log format', format, FORMATS)}; known: {', '.join(FORMATS)}")
        found = FORMATS[format].read(log)
    else:
        found = _recognise(log).read(log)
    return replace(found, warnings=tuple(dict.fromkeys((*found.warnings, *doubts(found)))))


def _recognise(log: Log) -> Format:
    names = {fold(n) for n in log.names}
    for known in FORMATS.values():
        if known.kind in {"", log.kind} and all(fold(n) in names for n in known.fields):
            return known
    return FORMATS["plain"]


# What all readers share ----------------------------------------------------------------------------------------

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def _need(log: Log, *names: str) -> str:
    """The file's spelling of a field, under any of ``names``; WorkloadError without it."""
    found = log.find(*names)
    if found is None:
        have = ", ".join(repr(n[:30]) for n in log.names[:12]) or "none"
        raise WorkloadError(
            f"{log.path}: field {names[0]!r} is missing; found fields: {have}; "
            f"name the one that holds it, e.g. columns={{{names[0]!r}: 'FIELD'}}"
        )
    return found


@dataclass(frozen=True)
class _Fields:
    """Which field of a log means what; None where the log has none."""

    prompt: str
    output: str
    arrival: str | None = None
    arrival_unit: str = "s"
    session: str | None = None
    cached: str | None = None
    service: str | None = None
    service_unit: str = "s"
    blocks: str | None = None
    block_tokens: int = 0

    def columns(self) -> list[Column]:
        kinds: list[tuple[str | None, Kind]] = [
            (self.prompt, "tokens"),
            (self.output, "tokens"),
            (self.arrival, "time"),
            (self.session, "label"),
            (self.cached, "tokens"),
            (self.service, "number"),
            (self.blocks, "blocks"),
        ]
        return [Column(name, kind) for name, kind in kinds if name is not None]


def _workload(log: Log, fields: _Fields, format_name: str, notes: Iterable[str] = ()) -> Workload:
    """Read ``fields`` and put the rows in order; the warnings say what was changed."""
    table = log.read(fields.columns())
    warnings = list(notes)
    prompt = table.arrays[fields.prompt].astype(np.int64)
    output = table.arrays[fields.output].astype(np.int64)
    if fields.arrival is None:
        gaps = np.random.default_rng(0).exponential(1.0 / PLACEHOLDER_RATE_RPS, len(prompt))
        arrival = np.cumsum(gaps)
        warnings.append(
            f"no arrival times in the log: Poisson arrivals at {PLACEHOLDER_RATE_RPS:g} a second were made up; "
            "rate, burst and concurrency figures say nothing about real use"
        )
    else:
        arrival = _seconds(table, fields.arrival, fields.arrival_unit)
    keep = _kept(prompt, output, log, warnings)
    rows = _in_order(arrival, keep, warnings)

    def pick(name: str | None) -> Ints | None:
        return None if name is None else table.arrays[name].astype(np.int64)[rows]

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
        prefix_blocks=blocks,
        prefix_offsets=offsets,
        prefix_block_tokens=fields.block_tokens,
        name=_stem(log.path),
        source=f"{log.path} ({format_name})",
        warnings=tuple(warnings),
        has_arrivals=fields.arrival is not None,
    )


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


def _seconds(table: Columns, name: str, unit: str) -> Floats:
    """A time column in seconds from its least value; dates already are in seconds."""
    times = table.arrays[name].astype(np.float64)
    times -= times.min()
    if name not in table.dates:
        times *= _SECONDS[unit]
    if not np.isfinite(times[-1]) or not np.isfinite(times.max()):
        row = int(np.argmax(times))
        raise table.refuse(name, row, "a time beyond all clocks", "seconds, milliseconds or a date work")
    return times


def _service(table: Columns, fields: _Fields) -> Floats:
    """Logged seconds from arrival to last token."""
    name = fields.service or ""
    values = table.arrays[name] * _SECONDS[fields.service_unit]
    if values.min() < 0:
        row = int(np.argmin(values))
        raise table.refuse(name, row, f"{values[row]:g} s", "a duration of at least 0 works")
    return values


# The formats ---------------------------------------------------------------------------------------------------


def azure(log: Log) -> Workload:
    """Azure LLM inference traces of 2023, 2024 and 2025 (AzurePublicDataset): dates, prompt and output tokens."""
    return _workload(
        log,
        _Fields(_need(log, "ContextTokens"), _need(log, "GeneratedTokens"), _need(log, "TIMESTAMP")),
        "azure",
    )


_ARRIVAL = (
    "arrival_s arrived_at arrival_time arrival timestamp time start_time starttime request_time created_at "
    "request_created_at created ts date datetime"
).split()
_PROMPT = (
    "prompt_tokens input_tokens context_tokens num_prefill_tokens prompt_length input_length prompt_len input_len "
    "input_toks request_tokens num_prompt_tokens num_input_tokens prefill_tokens tokens_in "
    "gen_ai.usage.input_tokens gen_ai.usage.prompt_tokens"
).split()
_OUTPUT = (
    "output_tokens completion_tokens generated_tokens num_decode_tokens output_length response_length output_len "
    "completion_length output_toks response_tokens generation_tokens num_output_tokens num_generated_tokens "
    "decode_tokens tokens_out gen_ai.usage.output_tokens gen_ai.usage.completion_tokens"
).split()
SYNONYMS: dict[str, list[str]] = {
    "arrival_s": _ARRIVAL,
    "arrival_ms": ["arrival_time_ms", "timestamp_ms", "start_time_ms"],
    "arrival_us": ["arrival_time_us", "timestamp_us", "start_time_us"],
    "arrival_ns": ["arrival_time_ns", "timestamp_ns", "start_time_ns", "StartTimeOffset", "request_start_ns"],
    "prompt_tokens": _PROMPT,
    "output_tokens": _OUTPUT,
    "session": "session_id session conversation_id gen_ai.conversation.id chat_id client_id user_id user".split(),
    "cached_tokens": (
        "cached_tokens num_cached_tokens prompt_cache_read_tokens gen_ai.usage.cache_read.input_tokens"
    ).split(),
    "service_s": "service_s latency_s e2e_s e2e_latency_s elapsed_time request_latency duration_s".split(),
    "service_ms": "latency_ms e2e_ms delay_ms request_duration_ms duration_ms elapsed_ms".split(),
    "service_us": ["latency_us", "duration_us"],
    "service_ns": ["latency_ns", "duration_ns"],
}
"""Field names that plain logs use, by meaning; the first that a log has is taken, ignoring case and punctuation."""


def plain(log: Log, columns: Mapping[str, str] | None = None) -> Workload:
    """Any CSV, JSON or Parquet whose fields go by usual names, or by the names given."""
    given = dict(columns or {})
    for meaning, name in given.items():
        if meaning not in SYNONYMS:
            raise WorkloadError(
                f"{log.path}: {UnknownName('column meaning', meaning, SYNONYMS)}; known: {', '.join(SYNONYMS)}"
            )
        given[meaning] = _need(log, name)

    def find(meaning: str) -> str | None:
        return given.get(meaning) or log.find(meaning, *SYNONYMS[meaning])

    def timed(meaning: str) -> tuple[str | None, str]:
        units = [u for u in _SECONDS if f"{meaning}_{u}" in given] or list(_SECONDS)
        for unit in units:
            if name := find(f"{meaning}_{unit}"):
                return name, unit
        return None, "s"

    arrival, unit = timed("arrival")
    service, service_unit = timed("service")
    notes: list[str] = []
    if arrival is not None and unit == "s" and "arrival_s" not in given and fold(arrival) != "arrivals":
        unit = _guess_unit(log, arrival, notes)
    return _workload(
        log,
        _Fields(
            prompt=given.get("prompt_tokens") or _need(log, "prompt_tokens", *_PROMPT),
            output=given.get("output_tokens") or _need(log, "output_tokens", *_OUTPUT),
            arrival=arrival,
            arrival_unit=unit,
            session=find("session"),
            cached=find("cached_tokens"),
            service=service,
            service_unit=service_unit,
        ),
        "plain",
        notes,
    )


def _guess_unit(log: Log, name: str, notes: list[str]) -> str:
    """The unit of a time field without one in its name: epoch times give it away, else seconds."""
    first = next((cells[0] for _, cells in log.rows((name,))), None)
    try:
        size = abs(float(first))  # type: ignore[arg-type] - what is no number lands below
    except (TypeError, ValueError, OverflowError):
        return "s"
    for unit, least in (("ns", 1e17), ("us", 1e14), ("ms", 1e11)):
        if size >= least:
            return unit
    if size < 1e8:
        notes.append(f"field {name!r} states no unit: read as seconds (columns={{'arrival_ms': {name!r}}} if not)")
    return "s"


# The table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A log format: how to read it and the fields that give it away (``kind`` restricts to CSV or JSON Lines)."""

    read: Callable[[Log], Workload]
    fields: tuple[str, ...]
    kind: str = ""
    about: str = ""


FORMATS: dict[str, Format] = {
    "azure": Format(azure, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")),
    "plain": Format(plain, ()),
}
