"""A question that the page may ask: its address, what it takes, what it answers; said once.

From the same table come the routes that serve the page and the OpenAPI description that others program and fuzz
against, so neither can promise what the other does not do. What a question takes is a msgspec struct: its checks are
the description's limits.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from gambrel.core.version import __version__
from gambrel.faces.web import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.requests import Request

__all__ = ["Question", "openapi", "routes"]

_REFERENCE: Final = "#/components/schemas/{name}"
_PATH_PART: Final = {"type": "string", "minLength": 1, "maxLength": 128}


@dataclass(frozen=True, slots=True)
class Question:
    """One method of one address.

    Attributes:
        method: ``GET``, ``POST`` or ``DELETE``.
        path: with its parameters in braces; they are passed to ``answer`` by name.
        answer: a plain function, run in a thread, that gives a JSON document or a response; or a coroutine function,
            which gets the request first. Its docstring's first line is the summary.
        query, body: what it takes, as structs; passed as ``asked``.
        upload: media type of a body that ``answer`` reads itself, bounded; "" where there is none.
        status: of a good answer.
        media: media types of a good answer.
    """

    method: str
    path: str
    answer: Callable[..., Any]
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    upload: str = ""
    status: int = 200
    media: tuple[str, ...] = ("application/json",)

    async def respond(self, request: Request) -> Response:
        """Read what was asked, answer it.

        Raises:
            GambrelError: the request is not what this question takes, or cannot be answered.
        """
        given: dict[str, Any] = dict(request.path_params)
        if self.body is not None:
            given["asked"] = wire.asked(self.body, await wire.body(request))
        elif self.query is not None:
            given["asked"] = wire.asked_in_address(self.query, request.query_params)
        if inspect.iscoroutinefunction(self.answer):
            return self._said(await self.answer(request, **given))
        return await run_in_threadpool(lambda: self._said(self.answer(**given)))

    def _said(self, found: Any) -> Response:
        return found if isinstance(found, Response) else wire.answer(found, self.status)

    def operation(self, schemas: dict[str, Any]) -> dict[str, Any]:
        """The OpenAPI operation; ``schemas`` are the components that structs refer to."""
        summary = (inspect.getdoc(self.answer) or "").split("\n", 1)[0]
        parameters = [
            {"name": n, "in": "path", "required": True, "schema": _PATH_PART} for n in re.findall(r"{(\w+)}", self.path)
        ]
        if self.query is not None:
            found = schemas[self.query.__name__]
            parameters += [
                {"name": n, "in": "query", "required": n in found.get("required", ()), "schema": _without_null(schema)}
                for n, schema in found["properties"].items()
            ]
        described: dict[str, Any] = {
            "operationId": f"{self.method.lower()}{re.sub(r'[^a-zA-Z]+', '_', self.path)}".rstrip("_"),
            "summary": summary,
            "parameters": parameters,
            "responses": {
                str(self.status): {
                    "description": "the answer",
                    "content": {m: {"schema": _schema_of(m)} for m in self.media},
                },
                "4XX": {
                    "description": "why not, in one line",
                    "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(name="Refusal")}}},
                },
            },
        }
        if self.body is not None:
            reference = {"$ref": _REFERENCE.format(name=self.body.__name__)}
            described["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
        elif self.upload:
            described["requestBody"] = {"required": True, "content": {self.upload: {"schema": _schema_of(self.upload)}}}
        return described


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """What an address can say: a value, or nothing at all."""
    if "anyOf" not in schema:
        return schema
    kinds = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _schema_of(media: str) -> dict[str, Any]:
    if media == "application/json":
        return {"type": "object"}
    if media.startswith("text/") or media in {"application/toml", "application/yaml"}:
        return {"type": "string"}
    return {"type": "string", "format": "binary"}


def routes(questions: Iterable[Question]) -> list[Route]:
    """One route per address, which knows all of its methods."""
    by_path: dict[str, dict[str, Question]] = {}
    for question in questions:
        by_path.setdefault(question.path, {})[question.method] = question
    return [Route(path, _endpoint(found), methods=list(found)) for path, found in by_path.items()]


def _endpoint(found: dict[str, Question]) -> Callable[[Request], Any]:
    async def respond(request: Request) -> Response:
        question = found.get("GET" if request.method == "HEAD" else request.method)
        if question is None:
            raise HTTPException(405, headers={"allow": ", ".join(found)})
        return await question.respond(request)

    return respond


def openapi(questions: Iterable[Question]) -> dict[str, Any]:
    """The OpenAPI 3.1 description of the questions."""
    asked = list(questions)
    structs = dict.fromkeys(s for q in asked for s in (q.query, q.body) if s is not None)
    _, schemas = msgspec.json.schema_components(structs, ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for question in asked:
        paths.setdefault(question.path, {})[question.method.lower()] = question.operation(schemas)
    refusal = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string", "minLength": 1}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gambrel ui",
            "version": __version__,
            "description": "What the page asks its own server. SI units: seconds, bytes, tokens, dollars.",
        },
        "paths": paths,
        "components": {"schemas": schemas | {"Refusal": refusal}},
    }
