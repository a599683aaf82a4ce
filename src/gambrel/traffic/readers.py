"""Log formats to workloads: one function each, recognised by their field names.

To add a format: write ``def my_format(log: Log) -> Workload``, add its row to :data:`FORMATS` at the foot, and put
a five-line sample called ``my-format.csv`` or ``.jsonl`` into ``traffic/data/formats``. A test reads every sample.

A reader says which fields mean what and in which unit; what all logs share happens once, in :func:`workload_of`:
failures and empty answers are left out and counted, times are put in order and start at 0, and every such change
is a warning of the workload.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import UnknownName, WorkloadError
from gambrel.core.workload import Workload, gather
from gambrel.traffic.doubts import doubts
from gambrel.traffic.nested import nested
from gambrel.traffic.observability import helicone, langfuse, litellm, otel, recorder
from gambrel.traffic.server_metrics import MARK, metrics
from gambrel.traffic.synonyms import SYNONYMS
from gambrel.traffic.table import Column, fold, inspect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

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
            ``session``, ``cached_tokens``, ``service_s`` (or ``_ms``, ``_us``, ``_ns``), ``priority``, ``deadline_s``
            (or ``_ms``).

    Returns:
        Requests in order of arrival, from 0 s, with warnings for all that was changed or looks doubtful.

    Raises:
        WorkloadError: a file, row or field that cannot be read, named.
    """
    log = nested(path) or inspect(path)
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
        if all(fold(n) in names for n in known.fields):
            return known
    return FORMATS["plain"]


# What all readers share ----------------------------------------------------------------------------------------

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_LAST_TIME = 1e19  # nanoseconds since 1970 reach this in the year 2286; larger numbers are no times


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


def workload_of(log: Log, fields: _Fields, format_name: str, notes: Iterable[str] = ()) -> Workload:
    """Read ``fields`` and put the rows in order; the warnings say what was changed."""
    table = log.read(fields.columns())
    warnings = list(notes)
    prompt = table.arrays.pop(fields.prompt).astype(np.int64)
    output = table.arrays.pop(fields.output).astype(np.int64)
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


def fields_of(names: Iterable[str]) -> _Fields:
    """The fields of a log whose names already are the meanings."""
    have = set(names)

    def one(name: str) -> str | None:
        return name if name in have else None

    return _Fields(
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


def _seconds(table: Columns, name: str, unit: str) -> Floats:
    """A time column in seconds from its least value; dates already are in seconds."""
    times = table.arrays[name]
    if float(np.abs(times).max()) > _LAST_TIME:
        row = int(np.argmax(np.abs(times)))
        raise table.refuse(name, row, f"{times[row]:g}", "seconds, milliseconds, nanoseconds or a date work")
    scale = 1.0 if name in table.dates else _SECONDS[unit]
    return np.asarray((times - times.min()) * scale, np.float64)


def _service(table: Columns, fields: _Fields) -> Floats:
    """Logged seconds from arrival to last token."""
    name = fields.service or ""
    values = np.asarray(table.arrays[name] * _SECONDS[fields.service_unit], np.float64)
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


def _deadline(table: Columns, fields: _Fields) -> Floats:
    """Seconds from arrival to giving up."""
    name = fields.deadline or ""
    values = np.asarray(table.arrays[name] * _SECONDS[fields.deadline_unit], np.float64)
    if values.min() <= 0:
        row = int(np.argmin(values))
        raise table.refuse(name, row, f"{values[row]:g} s", "a duration above 0 works")
    return values


# The formats ---------------------------------------------------------------------------------------------------


def azure(log: Log) -> Workload:
    """Azure LLM inference traces of 2023, 2024 and 2025 (AzurePublicDataset): dates, prompt and output tokens."""
    return workload_of(
        log, _Fields(_need(log, "ContextTokens"), _need(log, "GeneratedTokens"), _need(log, "TIMESTAMP")), "azure"
    )


def burstgpt(log: Log) -> Workload:
    """BurstGPT 1, 2 and 3: seconds; failures have 0 response tokens; the third names sessions and elapsed seconds."""
    return workload_of(
        log,
        _Fields(
            _need(log, "Request tokens"),
            _need(log, "Response tokens"),
            _need(log, "Timestamp"),
            session=log.find("Session ID"),
            service=log.find("Elapsed time"),
        ),
        "burstgpt",
    )


def mooncake(log: Log) -> Workload:
    """Mooncake: milliseconds, and ``hash_ids`` of prefix blocks of 512 tokens."""
    return workload_of(
        log,
        _Fields(
            _need(log, "input_length"),
            _need(log, "output_length"),
            _need(log, "timestamp"),
            arrival_unit="ms",
            blocks=log.find("hash_ids"),
            block_tokens=512,
        ),
        "mooncake",
    )


def bailian(log: Log) -> Workload:
    """Qwen-Bailian: seconds, ``hash_ids`` of 16-token blocks; a conversation is a chain of ``parent_chat_id``."""
    return workload_of(
        log,
        _Fields(
            _need(log, "input_length"),
            _need(log, "output_length"),
            _need(log, "timestamp"),
            session=_need(log, "chat_id"),
            parent=_need(log, "parent_chat_id"),
            blocks=log.find("hash_ids"),
            block_tokens=16,
        ),
        "bailian",
    )


def vidur(log: Log) -> Workload:
    """Vidur and splitwise-sim: prompts and answers in tokens, with ``arrived_at`` seconds or none at all."""
    return workload_of(
        log,
        _Fields(
            _need(log, "num_prefill_tokens"), _need(log, "num_decode_tokens"), log.find("arrived_at", "arrival_time")
        ),
        "vidur",
    )


def apex(log: Log) -> Workload:
    """APEX: JSON Lines with ``StartTimeOffset`` in nanoseconds, or CSV with ``arrival_s``."""
    offset = log.find("StartTimeOffset")
    return workload_of(
        log,
        _Fields(
            _need(log, "ContextTokens"),
            _need(log, "GeneratedTokens"),
            offset or _need(log, "arrival_s"),
            arrival_unit="ns" if offset else "s",
        ),
        "apex",
    )


def llmservingsim(log: Log) -> Workload:
    """LLMServingSim: ``input_toks``, ``output_toks``, ``arrival_time_ns``."""
    return workload_of(
        log,
        _Fields(_need(log, "input_toks"), _need(log, "output_toks"), _need(log, "arrival_time_ns"), arrival_unit="ns"),
        "llmservingsim",
    )


def servegen(log: Log) -> Workload:
    """Requests sampled from ServeGen clients: seconds; reasoning counts as output; a client is a session."""
    return workload_of(
        log,
        _Fields(
            _need(log, "input_tokens"),
            _need(log, "output_tokens"),
            _need(log, "arrival_s"),
            session=_need(log, "client_id"),
        ),
        "servegen",
    )


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
        return given.get(meaning) or log.find(*SYNONYMS.get(meaning, ()))

    def timed(meaning: str) -> tuple[str | None, str]:
        units = [u for u in _SECONDS if f"{meaning}_{u}" in given] or list(_SECONDS)
        for unit in units:
            if name := find(f"{meaning}_{unit}"):
                return name, unit
        return None, "s"

    twice = [n for n in given.values() if list(given.values()).count(n) > 1]
    if twice:
        raise WorkloadError(f"{log.path}: field {twice[0]!r} is given two meanings; one field each works")
    arrival, unit = timed("arrival")
    service, service_unit = timed("service")
    deadline, deadline_unit = timed("deadline")
    notes: list[str] = []
    priority = given.get("priority") or _if_numbers(log, find("priority"), notes)
    if deadline not in given.values():
        deadline = _if_numbers(log, deadline, notes)
    if arrival is not None and unit == "s" and "arrival_s" not in given and fold(arrival) != "arrivals":
        unit = _guess_unit(log, arrival, notes)
    return workload_of(
        log,
        _Fields(
            prompt=given.get("prompt_tokens") or _need(log, *SYNONYMS["prompt_tokens"]),
            output=given.get("output_tokens") or _need(log, *SYNONYMS["output_tokens"]),
            arrival=arrival,
            arrival_unit=unit,
            session=find("session"),
            cached=find("cached_tokens"),
            service=service,
            service_unit=service_unit,
            priority=priority,
            deadline=deadline,
            deadline_unit=deadline_unit,
        ),
        "plain",
        notes,
    )


def _guess_unit(log: Log, name: str, notes: list[str]) -> str:
    """The unit of a time field without one in its name: epoch times give it away, else seconds."""
    first = next((cells[0] for _, cells in log.rows((name,))), None)
    try:
        size = abs(float(str(first)))
    except (TypeError, ValueError, OverflowError):
        return "s"
    for unit, least in (("ns", 1e17), ("us", 1e14), ("ms", 1e11)):
        if size >= least:
            return unit
    if size < 1e8:
        notes.append(f"field {name!r} states no unit: read as seconds (columns={{'arrival_ms': {name!r}}} if not)")
    return "s"


def _if_numbers(log: Log, name: str | None, notes: list[str]) -> str | None:
    """A field that was found by its name, if its first row holds a number: words of other systems are left alone."""
    if name is None:
        return None
    first = next((cells[0] for _, cells in log.rows((name,))), None)
    try:
        float(str(first))
    except ValueError:
        notes.append(f"field {name!r} holds no number in its first row ({str(first)[:20]!r}): not used")
        return None
    return name


# The table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A log format: how to read it, and the fields that give it away."""

    read: Callable[[Log], Workload]
    fields: tuple[str, ...]

    @property
    def about(self) -> str:
        """The first line of its reader's documentation."""
        return (self.read.__doc__ or "").splitlines()[0]


FORMATS: dict[str, Format] = {
    "azure": Format(azure, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")),
    "burstgpt": Format(burstgpt, ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens")),
    "bailian": Format(bailian, ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length")),
    "mooncake": Format(mooncake, ("timestamp", "input_length", "output_length", "hash_ids")),
    "vidur": Format(vidur, ("num_prefill_tokens", "num_decode_tokens")),
    "apex": Format(apex, ("StartTimeOffset", "ContextTokens", "GeneratedTokens")),
    "apex-csv": Format(apex, ("arrival_s", "ContextTokens", "GeneratedTokens")),
    "llmservingsim": Format(llmservingsim, ("input_toks", "output_toks", "arrival_time_ns")),
    "servegen": Format(servegen, ("arrival_s", "client_id", "input_tokens", "output_tokens")),
    "recorder": Format(recorder, ("gambrel_log", "arrival_s", "prompt_tokens", "output_tokens")),
    "litellm": Format(litellm, ("startTime", "call_type", "prompt_tokens", "completion_tokens")),
    "langfuse": Format(langfuse, ("start_time", "usage_details")),
    "helicone": Format(helicone, ("request_created_at", "prompt_tokens", "completion_tokens")),
    "otel": Format(otel, ("otel_span",)),
    "metrics": Format(metrics, (MARK,)),
    "plain": Format(plain, ()),
}
