"""Log formats to workloads: one function each, recognised by their field names.

To add a format: write ``def my_format(log: Log) -> Workload``, add its row to :data:`FORMATS` at the foot, and put
a five-line sample called ``my-format.csv`` or ``.jsonl`` into ``traffic/data/formats``. A test reads every sample.

A reader says which fields mean what and in which unit; what all logs share happens once, in
:mod:`gambrel.traffic.fields`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gambrel.core.errors import UnknownName, WorkloadError
from gambrel.traffic.doubts import doubts
from gambrel.traffic.fields import Fields, missing, need, workload_of
from gambrel.traffic.nested import nested
from gambrel.traffic.observability import helicone, langfuse, litellm, otel, recorder
from gambrel.traffic.server_metrics import MARK, metrics, metrics_page
from gambrel.traffic.synonyms import SYNONYMS, as_column, fold
from gambrel.traffic.table import inspect
from gambrel.traffic.times import SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from gambrel.core.workload import Workload
    from gambrel.traffic.table import Log

__all__ = ["FORMATS", "SYNONYMS", "Format", "read_workload"]


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
    log = metrics_page(path) or nested(path) or inspect(path)
    if columns and format not in {None, "plain"}:
        raise WorkloadError(
            f"{path}: format {format!r} names its own fields; give it or the fields' meanings, not both"
        )
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


# The formats ---------------------------------------------------------------------------------------------------


def azure(log: Log) -> Workload:
    """Azure LLM inference traces of 2023, 2024 and 2025 (AzurePublicDataset): dates, prompt and output tokens."""
    return workload_of(
        log, Fields(need(log, "ContextTokens"), need(log, "GeneratedTokens"), need(log, "TIMESTAMP")), "azure"
    )


def burstgpt(log: Log) -> Workload:
    """BurstGPT 1, 2 and 3: seconds; failures have 0 response tokens; the third names sessions and elapsed seconds."""
    return workload_of(
        log,
        Fields(
            need(log, "Request tokens"),
            need(log, "Response tokens"),
            need(log, "Timestamp"),
            session=log.find("Session ID"),
            service=log.find("Elapsed time"),
        ),
        "burstgpt",
    )


def mooncake(log: Log) -> Workload:
    """Mooncake: milliseconds, and ``hash_ids`` of prefix blocks of 512 tokens."""
    return workload_of(
        log,
        Fields(
            need(log, "input_length"),
            need(log, "output_length"),
            need(log, "timestamp"),
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
        Fields(
            need(log, "input_length"),
            need(log, "output_length"),
            need(log, "timestamp"),
            session=need(log, "chat_id"),
            parent=need(log, "parent_chat_id"),
            blocks=log.find("hash_ids"),
            block_tokens=16,
        ),
        "bailian",
    )


def vidur(log: Log) -> Workload:
    """Vidur and splitwise-sim: prompts and answers in tokens, with ``arrived_at`` seconds or none at all."""
    return workload_of(
        log,
        Fields(need(log, "num_prefill_tokens"), need(log, "num_decode_tokens"), log.find("arrived_at", "arrival_time")),
        "vidur",
    )


def apex(log: Log) -> Workload:
    """APEX: JSON Lines with ``StartTimeOffset`` in nanoseconds, or CSV with ``arrival_s``."""
    offset = log.find("StartTimeOffset")
    return workload_of(
        log,
        Fields(
            need(log, "ContextTokens"),
            need(log, "GeneratedTokens"),
            offset or need(log, "arrival_s"),
            arrival_unit="ns" if offset else "s",
        ),
        "apex",
    )


def llmservingsim(log: Log) -> Workload:
    """LLMServingSim: ``input_toks``, ``output_toks``, ``arrival_time_ns``."""
    return workload_of(
        log,
        Fields(need(log, "input_toks"), need(log, "output_toks"), need(log, "arrival_time_ns"), arrival_unit="ns"),
        "llmservingsim",
    )


def servegen(log: Log) -> Workload:
    """Requests sampled from ServeGen clients: seconds; reasoning counts as output; a client is a session."""
    return workload_of(
        log,
        Fields(
            need(log, "input_tokens"),
            need(log, "output_tokens"),
            need(log, "arrival_s"),
            session=need(log, "client_id"),
        ),
        "servegen",
    )


def plain(log: Log, columns: Mapping[str, str] | None = None) -> Workload:
    """Any CSV, JSON or Parquet whose fields go by usual names, or by the names given."""
    given = _given(log, columns or {})

    def find(meaning: str) -> str | None:
        return given.get(meaning) or log.find(*SYNONYMS.get(meaning, ()))

    def timed(meaning: str) -> tuple[str | None, str]:
        units = [u for u in SECONDS if f"{meaning}_{u}" in given] or list(SECONDS)
        for unit in units:
            if name := find(f"{meaning}_{unit}"):
                return name, unit
        return None, "s"

    unit: str | None
    arrival, unit = timed("arrival")
    service, service_unit = timed("service")
    deadline, deadline_unit = timed("deadline")
    notes: list[str] = []
    priority = given.get("priority") or _if_numbers(log, find("priority"), notes)
    if deadline not in given.values():
        deadline = _if_numbers(log, deadline, notes)
    if arrival is not None and unit == "s" and "arrival_s" not in given and fold(arrival) != "arrivals":
        unit = None
    return workload_of(
        log,
        Fields(
            prompt=given.get("prompt_tokens") or need(log, *SYNONYMS["prompt_tokens"]),
            output=given.get("output_tokens") or need(log, *SYNONYMS["output_tokens"]),
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


def _given(log: Log, columns: Mapping[str, str]) -> dict[str, str]:
    """The file's spelling of the fields named, by meaning; WorkloadError for what is none or named twice."""
    given: dict[str, str] = {}
    for meaning, name in columns.items():
        if meaning not in SYNONYMS:
            raise WorkloadError(
                f"{log.path}: {UnknownName('column meaning', meaning, SYNONYMS)}; known: {', '.join(SYNONYMS)}"
            )
        found = log.find(name)
        if found is None:
            raise missing(log, name, f"; name one of them: {as_column(meaning, 'FIELD')}")
        given[meaning] = found
    twice = [n for n in given.values() if list(given.values()).count(n) > 1]
    if twice:
        raise WorkloadError(f"{log.path}: field {twice[0]!r} is given two meanings; one field each works")
    return given


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
