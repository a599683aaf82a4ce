"""Tables inside documents: what is one JSON of boxes in boxes outside and rows of requests inside.

Plain tables are :mod:`gambrel.traffic.table`'s; this module finds out whether a file is a document that is known
here (spans of OpenTelemetry, an API's ``{"data": [...]}``) and takes its rows out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gambrel.core.errors import WorkloadError
from gambrel.traffic.table import Log, guard, open_binary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["SPAN", "Rows", "beginning", "documents", "nested"]

SPAN: Final = "otel_span"
_HEAD: Final = 65_536  # bytes looked at to recognise a document


@dataclass(frozen=True)
class Rows(Log):
    """A log whose rows have been taken out of a nested document: ``table`` holds (place, fields)."""

    table: tuple[tuple[int, dict[str, Any]], ...] = ()

    def rows(self, names: Iterable[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """(place, wanted cells) of every row."""
        wanted = tuple(names)
        for place, row in self.table:
            yield place, tuple(row.get(n) for n in wanted)


def nested(path: str | Path) -> Log | None:
    """The rows inside a nested document, or None where the file is a plain table or nothing that is known here.

    Raises:
        WorkloadError: it is such a document, but damaged or without a row.
    """
    path = Path(path)
    head, gz = beginning(path)
    with guard(path):
        spans = b'"resourceSpans"' in head or (b'"gen_ai.' in head and (b'"attributes"' in head or b'"tags"' in head))
        wrapped = head.startswith(b"{") and head[1:].lstrip().startswith(b'"data"')
        if not head.startswith((b"{", b"[")) or not (spans or wrapped):
            return None
        with open_binary(path, gz=gz) as stream:
            found = list(documents(path, stream.read().removeprefix(b"\xef\xbb\xbf")))
    if spans:
        rows = [row for document in found for row in _spans(document)]
        if not rows:
            raise WorkloadError(f"{path}: no spans in it; an export of gen_ai spans works")
        return _table(path, [SPAN], rows, gz=gz)
    rows = [row for document in found for row in _list(document, "data")]
    return _table(path, [], rows, gz=gz) if rows else None


def beginning(path: Path) -> tuple[bytes, bool]:
    """(the first bytes of a file, unpacked; whether it is gzipped); nothing of a directory.

    Raises:
        WorkloadError: it cannot be read.
    """
    with guard(path):
        if path.is_dir():
            return b"", False
        with path.open("rb") as raw:
            gz = raw.read(2) == b"\x1f\x8b"
        with open_binary(path, gz=gz) as stream:
            return stream.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip(), gz


def _table(path: Path, names: list[str], rows: list[dict[str, Any]], *, gz: bool) -> Rows:
    every = tuple(dict.fromkeys((*names, *(name for row in rows for name in row))))
    return Rows(path, "rows", every, gz=gz, table=tuple(enumerate(rows, 1)))


def documents(path: Path, data: bytes) -> Iterator[Any]:
    """JSON documents one after another, however they are laid out."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path}: not text in UTF-8 ({error.reason})") from None
    decoder, at, count = json.JSONDecoder(), 0, 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at >= len(text):
            return
        count += 1
        try:
            document, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise WorkloadError(
                f"{path}: document {count} is not JSON ({error}); a cut last one can be deleted"
            ) from None
        yield document


def _spans(document: Any) -> Iterator[dict[str, Any]]:
    """Spans of OTLP JSON, of Jaeger JSON or as the console exporter prints them, as flat fields."""
    if isinstance(document, list):
        for part in document:
            yield from _spans(part)
        return
    if not isinstance(document, dict):
        return
    for resource in _list(document, "resourceSpans"):
        for scope in (*_list(resource, "scopeSpans"), *_list(resource, "instrumentationLibrarySpans")):
            for span in _list(scope, "spans"):
                yield {
                    **{str(a.get("key")): _value(a.get("value")) for a in _list(span, "attributes")},
                    SPAN: span.get("name") or "span", "id": span.get("spanId"), "parent": span.get("parentSpanId"),
                    "start": span.get("startTimeUnixNano"), "end": span.get("endTimeUnixNano"),
                }  # fmt: skip
    for trace in _list(document, "data"):
        for span in _list(trace, "spans"):
            begin, duration = span.get("startTime"), span.get("duration")
            known = isinstance(begin, int) and isinstance(duration, int)
            above = next((r.get("spanID") for r in _list(span, "references")), None)
            yield {
                **{str(t.get("key")): t.get("value") for t in _list(span, "tags")},
                SPAN: span.get("operationName") or "span", "id": span.get("spanID"), "parent": above,
                "start": begin, "end": _sum(begin, duration) if known else None,
            }  # fmt: skip
    attributes, context = document.get("attributes"), document.get("context")
    if isinstance(attributes, dict) and "start_time" in document:
        yield {
            **attributes, SPAN: document.get("name") or "span",
            "id": context.get("span_id") if isinstance(context, dict) else None, "parent": document.get("parent_id"),
            "start": document.get("start_time"), "end": document.get("end_time"),
        }  # fmt: skip


def _sum(begin: Any, duration: Any) -> Any:
    return begin + duration


def _list(document: Any, name: str) -> list[dict[str, Any]]:
    found = document.get(name) if isinstance(document, dict) else None
    return [x for x in found if isinstance(x, dict)] if isinstance(found, list) else []


def _value(value: Any) -> Any:
    """An OTLP attribute value: one field that names its kind."""
    if isinstance(value, dict):
        return next((v for k, v in value.items() if k in {"intValue", "doubleValue", "stringValue", "boolValue"}), None)
    return value
