"""What crosses the wire: report parts as JSON for the page to draw, and a person's words as checked values.

The page draws charts, facts and tables of a report as they are, so there is one style and one formula for each.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
from starlette.responses import Response, StreamingResponse

from gambrel.core.errors import GambrelError
from gambrel.report.document import Table
from gambrel.report.style import caption, title, unbroken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from starlette.requests import Request

    from gambrel.report import Fact, Report, Section
    from gambrel.report.style import Spec

__all__ = ["Told", "answer", "asked", "body", "facts", "item", "report_document", "section", "stream"]

MOST_JSON_BYTES = 64 * 1024
POLL_S = 0.1
_Asked = TypeVar("_Asked")


class Told(Protocol):
    """Work in a thread that says what it is at."""

    events: list[dict[str, Any]]
    ended: bool


def stream(work: Told, request: Request) -> Response:
    """Its events from the first one on, as they happen (server-sent events), ending with its last."""

    async def told() -> AsyncIterator[bytes]:
        sent = 0
        while True:
            ended = work.ended  # read first: what is said before the end is still sent
            for event in work.events[sent:]:
                yield b"data: " + msgspec.json.encode(event) + b"\n\n"
                sent += 1
            if ended or await request.is_disconnected():
                return
            await asyncio.sleep(POLL_S)

    return StreamingResponse(told(), media_type="text/event-stream", headers={"cache-control": "no-store"})


def answer(document: Mapping[str, Any], status: int = 200) -> Response:
    """A JSON response; NaN and infinities become null."""
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def asked(kind: type[_Asked], given: Mapping[str, Any]) -> _Asked:
    """Words of a query or a body as a checked value.

    Raises:
        GambrelError: naming the field, what is wrong with it, and nothing else.
    """
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise GambrelError(str(error)) from error


async def body(request: Request, most: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in the body of a request, read no further than ``most`` bytes.

    Raises:
        GambrelError: too long, or not a JSON object.
    """
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > most:
            raise GambrelError(f"the request is longer than {most:,} bytes")
    try:
        found = msgspec.json.decode(bytes(read))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise GambrelError(f"the request is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise GambrelError("the request must be a JSON object")
    return found


def facts(found: Iterable[Fact]) -> list[dict[str, str]]:
    """Facts as the page shows them."""
    return [{"label": f.label, "value": unbroken(f.value), "note": unbroken(f.note), "status": f.status} for f in found]


def item(thing: Spec | Table) -> dict[str, Any]:
    """A chart or a table."""
    if isinstance(thing, Table):
        return {
            "kind": "table",
            "heading": thing.heading,
            "sentence": unbroken(thing.sentence),
            "columns": thing.columns,
            "rows": [[unbroken(cell) for cell in row] for row in thing.rows],
            "numeric": thing.numeric,
            "status": thing.status or [""] * len(thing.rows),
        }
    spec = {k: v for k, v in thing.items() if k not in {"title", "description", "$schema"}}
    return {
        "kind": "chart",
        "name": thing["name"],
        "heading": unbroken(title(thing)),
        "sentence": unbroken(caption(thing)),
        "spec": spec,
    }


def section(found: Section) -> dict[str, Any]:
    """A section of a report."""
    return {
        "heading": found.heading,
        "sentence": unbroken(found.sentence),
        "items": [item(thing) for thing in found.items],
        "code": found.code,
    }


def report_document(report: Report) -> dict[str, Any]:
    """A whole report."""
    return {
        "title": report.title,
        "subtitle": unbroken(report.subtitle),
        "headline": [unbroken(line) for line in report.headline],
        "facts": facts(report.facts),
        "sections": [section(s) for s in report.sections],
        "provenance": list(report.provenance),
    }
