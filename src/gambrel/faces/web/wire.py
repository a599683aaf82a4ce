"""What crosses the wire: report parts as JSON for the page to draw, and a person's words as checked values.

The page draws charts, facts and tables of a report as they are, so there is one style and one formula for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.responses import Response

from gambrel.core.errors import GambrelError
from gambrel.report.document import Table, Tree
from gambrel.report.style import caption, title, unbroken

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.datastructures import QueryParams
    from starlette.requests import Request

    from gambrel.core.trace import Traced
    from gambrel.report import Fact, Report, Section
    from gambrel.report.style import Spec

__all__ = [
    "Unknown",
    "answer",
    "asked",
    "asked_in_address",
    "body",
    "facts",
    "file",
    "item",
    "report_document",
    "section",
]

MOST_JSON_BYTES = 64 * 1024
_Asked = TypeVar("_Asked", bound=msgspec.Struct)


class Unknown(GambrelError):  # noqa: N818 - reads as the sentence it is
    """There is nothing under this id or name: 404."""


def answer(document: Mapping[str, Any], status: int = 200) -> Response:
    """A JSON response; NaN and infinities become null."""
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def file(data: bytes | str, name: str, media_type: str) -> Response:
    """A file to take away."""
    charset = "; charset=utf-8" if isinstance(data, str) else ""
    headers = {"content-disposition": f'attachment; filename="gambrel-{name}"'}
    return Response(data, 200, headers, media_type + charset)


def asked(kind: type[_Asked], given: Mapping[str, Any]) -> _Asked:
    """Words of a query or a body as a checked value.

    Raises:
        GambrelError: naming the field, what is wrong with it, and nothing else.
    """
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise GambrelError(str(error)) from error


def asked_in_address(kind: type[_Asked], given: QueryParams) -> _Asked:
    """Words of an address as a checked value: each said once, and none of them ``null``, which is said by silence.

    Raises:
        GambrelError: naming the field.
    """
    names = {field.encode_name: field.name for field in msgspec.structs.fields(kind)}
    for name in names:
        if len(given.getlist(name)) > 1:
            raise GambrelError(f"{name} is given twice; give it once")
    found = asked(kind, dict(given))
    for name, field in names.items():
        if name in given and getattr(found, field) is None:
            raise GambrelError(f"{name} is null; leave it out")
    return found


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


def item(thing: Spec | Table | Tree) -> dict[str, Any]:
    """A chart, a table or a tree of figures."""
    if isinstance(thing, Tree):
        roots = [_node(root) for root in thing.roots]
        return {"kind": "tree", "heading": thing.heading, "sentence": unbroken(thing.sentence), "roots": roots}
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


def _node(node: Traced) -> dict[str, Any]:
    """A figure, where it comes from, and the figures it is made of."""
    from gambrel.report.tracing import figure, origin

    parts = [_node(part) for part in node.inputs]
    return {"name": node.name, "value": unbroken(figure(node)), "origin": unbroken(origin(node)), "parts": parts}


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
