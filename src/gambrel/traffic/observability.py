"""Logs that observability tools export: OpenTelemetry gen_ai spans, LiteLLM, Langfuse, Helicone, and our own recorder.

They nest (spans in scopes in resources), put counts into maps, and hold what no engine served: cache hits of a proxy,
embeddings, an agent's span whose usage is the sum of its children's. So each row is first turned into the few
plain fields of a request, or left out for a reason that is counted and said; then it is read like any other log.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.traffic.fields import fields_of, workload_of
from gambrel.traffic.nested import SPAN, Rows
from gambrel.traffic.table import show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gambrel.core.workload import Workload
    from gambrel.traffic.table import Log

__all__ = ["helicone", "langfuse", "litellm", "otel", "recorder"]


@dataclass(frozen=True, slots=True)
class _Cells:
    """The cells of one row, by the log's spelling-blind names."""

    log: Log
    line: int
    cells: dict[str, Any]

    def get(self, *names: str) -> Any:
        """The first of ``names`` that holds anything."""
        for name in names:
            own = self.log.find(name)
            cell = self.cells.get(own) if own is not None else None
            if cell is not None and cell != "":
                return cell
        return None

    def number(self, *names: str) -> float | None:
        """The same as a number; WorkloadError when it is none."""
        cell = self.get(*names)
        if cell is None:
            return None
        try:
            if isinstance(cell, bool):
                raise TypeError  # noqa: TRY301 - one way out for all that is no number
            value = float(cell)
        except (TypeError, ValueError, OverflowError):
            raise self.log.refuse(self.line, names[0], show(cell), "a number works") from None
        if not np.isfinite(value):
            raise self.log.refuse(self.line, names[0], show(cell), "a finite number works")
        return value

    def time(self, *names: str) -> float | None:
        """The same as seconds since 1970, from a date or from a number whose size gives its unit away."""
        cell = self.get(*names)
        if cell is None:
            return None
        try:
            return _epoch(cell)
        except (TypeError, ValueError, OverflowError, AttributeError):
            raise self.log.refuse(self.line, names[0], show(cell), "a date and time or an epoch time works") from None

    def mapping(self, *names: str) -> dict[str, Any]:
        """The same as a map, which CSV exports write as JSON text; empty without one."""
        cell = self.get(*names)
        if isinstance(cell, str):
            try:
                cell = msgspec.json.decode(cell)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return {}
        return cell if isinstance(cell, dict) else {}


def _epoch(cell: Any) -> float:
    if isinstance(cell, bool):
        raise TypeError
    if isinstance(cell, datetime):
        found = cell
    else:
        try:
            value = float(cell)
        except ValueError:
            text = str(cell).strip().removesuffix(" UTC")
            found = datetime.fromisoformat(text)
        else:
            if not np.isfinite(value):
                raise ValueError
            for least, unit in ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3)):
                if abs(value) >= least:
                    return value * unit
            return value
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


def _read(log: Log, format_name: str, convert: Callable[[_Cells], dict[str, Any] | str]) -> Workload:
    """Convert every row to plain fields and read those; what ``convert`` gives a reason for is left out."""
    out: list[tuple[int, dict[str, Any]]] = []
    skipped: Counter[str] = Counter()
    total = 0
    for line, cells in log.rows(log.names):
        total += 1
        found = convert(_Cells(log, line, dict(zip(log.names, cells, strict=True))))
        if isinstance(found, str):
            skipped[found] += 1
        else:
            out.append((line, found))
    notes = [f"{count} of {total} rows left out: {reason}" for reason, count in skipped.most_common()]
    if not out:
        reasons = "; ".join(notes) or "no rows"
        raise WorkloadError(f"{log.path}: no answered request with token counts in it ({reasons})")
    optional = [n for n in ("session", "cached_tokens", "service_s") if any(r.get(n) is not None for _, r in out)]
    if "service_s" in optional and any(r.get("service_s") is None for _, r in out):
        optional.remove("service_s")  # a mean over some of the requests would mislead
    for _, row in out:
        if row.get("cached_tokens") is None:
            row["cached_tokens"] = 0
    names = ("arrival_s", "prompt_tokens", "output_tokens", *optional)
    plain = Rows(log.path, "rows", names, gz=log.gz, table=tuple(out))
    return workload_of(plain, fields_of(names), format_name, notes)


def _request(
    arrival: float | None, prompt: float | None, output: float | None, end: float | None = None, **more: Any
) -> dict[str, Any] | str:
    """Plain fields, or why there are none."""
    if arrival is None:
        return "no start time"
    if prompt is None or output is None:
        return "no token counts"
    service = None if end is None else max(end - arrival, 0.0)
    return {"arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": output, "service_s": service, **more}


# The formats ------------------------------------------------------------------------------------------------------


def recorder(log: Log) -> Workload:
    """What ``gambrel record`` wrote: seconds since 1970, the server's token counts, sessions as numbers."""

    def convert(row: _Cells) -> dict[str, Any] | str:
        status = row.number("status")
        if status is not None and status >= 400:
            return f"HTTP status {status:g}"
        prompt = row.number("prompt_tokens")
        if not prompt:
            return "nobody counted the prompt (record with usage, the default)"
        arrival, service = row.number("arrival_s"), row.number("service_s")
        end = None if arrival is None or service is None else arrival + service
        return _request(
            arrival, prompt, row.number("output_tokens"), end,
            session=row.get("session"), cached_tokens=row.number("cached_tokens"),
        )  # fmt: skip

    return _read(_all_names(log, ("cached_tokens", "session", "status", "error")), "recorder", convert)


def litellm(log: Log) -> Workload:
    """LiteLLM's spend table (LiteLLM_SpendLogs): start and end as dates; hits of its own cache never reach a model."""

    def convert(row: _Cells) -> dict[str, Any] | str:
        if str(row.get("cache_hit")).lower() == "true":
            return "answered from the proxy's cache"
        kind = str(row.get("call_type") or "")
        if kind and "completion" not in kind and "responses" not in kind and "messages" not in kind:
            return f"call type {kind[:30]}"
        if str(row.get("status") or "success").lower() not in {"success", "none"}:
            return "failed"
        usage = row.mapping("metadata").get("usage_object")
        details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        return _request(
            row.time("startTime"), row.number("prompt_tokens"), row.number("completion_tokens"), row.time("endTime"),
            session=row.get("session_id", "end_user"), cached_tokens=cached,
        )  # fmt: skip

    return _read(log, "litellm", convert)


def langfuse(log: Log) -> Workload:
    """Langfuse observations: counts in the map ``usage_details``, whose ``input_*`` parts add to ``input``."""

    def convert(row: _Cells) -> dict[str, Any] | str:
        kind = str(row.get("type") or "GENERATION").upper()
        if kind != "GENERATION":
            return f"observation type {kind[:20]}"
        usage = row.mapping("usage_details")
        prompt, output, cached = _langfuse_counts(row, usage)
        return _request(
            row.time("start_time"), prompt, output, row.time("end_time"),
            session=row.get("session_id", "trace_id"), cached_tokens=cached,
        )  # fmt: skip

    return _read(log, "langfuse", convert)


def _langfuse_counts(row: _Cells, usage: dict[str, Any]) -> tuple[float | None, float | None, float | None]:
    counts = {k: float(v) for k, v in usage.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    if "prompt_tokens" in counts:
        return counts["prompt_tokens"], counts.get("completion_tokens"), counts.get("cached_tokens")
    if "input" not in counts:
        return row.number("input_tokens", "prompt_tokens"), row.number("output_tokens", "completion_tokens"), None
    inputs = {k: v for k, v in counts.items() if k == "input" or k.startswith("input_")}
    outputs = {k: v for k, v in counts.items() if k == "output" or k.startswith("output_")}
    prompt, output = sum(inputs.values()), sum(outputs.values())
    if counts.get("total") == counts["input"] + counts.get("output", 0.0):  # the parts are within, not beside
        prompt, output = counts["input"], counts.get("output", 0.0)
    cached = [v for k, v in inputs.items() if "cache" in k and "creation" not in k and "write" not in k]
    return prompt, output, sum(cached) if cached else None


def helicone(log: Log) -> Workload:
    """Helicone requests: dates, token counts, ``delay_ms`` from request to response."""

    def convert(row: _Cells) -> dict[str, Any] | str:
        status = row.number("response_status")
        if status is not None and not 200 <= status < 300:
            return f"HTTP status {status:g}"
        start, delay = row.time("request_created_at"), row.number("delay_ms")
        end = row.time("response_created_at")
        if start is not None and delay is not None:
            end = start + delay / 1e3
        return _request(
            start, row.number("prompt_tokens"), row.number("completion_tokens"), end,
            cached_tokens=row.number("prompt_cache_read_tokens"),
            session=row.get("session_id", "request_session_id", "user_id", "request_user_id"),
        )  # fmt: skip

    return _read(log, "helicone", convert)


def otel(log: Log) -> Workload:
    """OpenTelemetry gen_ai spans: OTLP JSON, the console exporter's, or Jaeger's; totals of agents are left out."""
    if log.find(SPAN) is None or not isinstance(log, Rows):
        raise WorkloadError(f"{log.path}: no OpenTelemetry spans in it; OTLP JSON, console or Jaeger JSON works")
    with_usage = [row for _, row in log.table if _tokens(row, "input") is not None]
    parents = {row.get("parent") for row in with_usage}

    def convert(row: _Cells) -> dict[str, Any] | str:
        cells = row.cells
        operation = str(cells.get("gen_ai.operation.name") or "")
        if operation in {"embeddings", "execute_tool", "create_agent", "invoke_agent", "invoke_workflow"}:
            return f"operation {operation}"
        if _tokens(cells, "input") is not None and cells.get("id") in parents:
            return "its child spans carry the usage"
        return _request(
            row.time("start"), row.number("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
            row.number("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"), row.time("end"),
            session=row.get("gen_ai.conversation.id"),
            cached_tokens=row.number("gen_ai.usage.cache_read.input_tokens"),
        )  # fmt: skip

    return _read(log, "otel", convert)


def _tokens(row: dict[str, Any], side: str) -> Any:
    old = {"input": "prompt", "output": "completion"}[side]
    return row.get(f"gen_ai.usage.{side}_tokens", row.get(f"gen_ai.usage.{old}_tokens"))


def _all_names(log: Log, optional: Iterable[str]) -> Log:
    """The log with field names that its first line may lack, as JSON Lines leave out what is empty."""
    names = (*log.names, *(n for n in optional if log.find(n) is None)) if log.kind == "jsonl" else log.names
    return replace(log, names=names)
