"""The routes: the page and its files, and the questions it asks.

What each question takes and answers is in the module of its view; the same tables make the OpenAPI description at
``/api/openapi.json``. Answers are computed in threads, so that a slider never waits behind an upload.
"""

from __future__ import annotations

import gzip
import hashlib
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from gambrel.core.errors import GambrelError
from gambrel.faces.web import wire
from gambrel.faces.web.guard import LOOPBACK, Guard
from gambrel.faces.web.questions import Question, openapi, routes

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.requests import Request

__all__ = ["create_app", "description", "questions", "warm"]

VIEWS: Final = ("explore", "traffic", "plan", "measure", "learn")


def create_app(hosts: Collection[str] = LOOPBACK, token: str | None = None) -> Guard:
    """The ASGI application, guarded; ``hosts`` and ``token`` as in :class:`Guard`."""
    application = Starlette(
        routes=[
            Route("/", page),
            *(Route(f"/{view}", page) for view in VIEWS),
            Route("/learn/{lesson}", page),
            Route("/assets/{name}", asset),
            *routes(questions()),
        ],
        exception_handlers={
            wire.Unknown: unknown,
            GambrelError: refused,
            HTTPException: missing,
            Exception: failed,
        },
    )
    return Guard(application, hosts, token)


@lru_cache(maxsize=1)
def questions() -> tuple[Question, ...]:
    """Everything the page may ask."""
    from gambrel.faces.web import explore, fitting, learn, measuring, planning, runs, traffic

    views = (explore, traffic, planning, measuring, runs, fitting, learn)
    own = Question("GET", "/api/openapi.json", description)
    return (own, *(question for view in views for question in view.QUESTIONS))


def description() -> dict[str, Any]:
    """The OpenAPI description of every question."""
    return openapi(questions())


def warm() -> None:
    """Make what the first visitor would wait for: half a second of packing scripts and reading catalogs."""
    from gambrel.faces.web.explore import ExploreRequest, explore_document
    from gambrel.faces.web.setup import catalog_document

    with suppress(GambrelError):  # whoever opens the page is told
        for name in ("ui.html", "ui.css", "ui.js", "vega.js"):
            _zipped(_asset(name))
        catalog_document()
        explore_document(ExploreRequest())


async def page(request: Request) -> Response:
    """The one HTML document; which view it shows is the address's matter."""
    return _compressed(request, _asset("ui.html"), "text/html; charset=utf-8", "no-cache")


async def asset(request: Request) -> Response:
    """A script or stylesheet; its address carries a hash, so it may be kept for ever."""
    name = request.path_params["name"]
    kinds = {"ui.js": "text/javascript", "vega.js": "text/javascript", "ui.css": "text/css"}
    if name not in kinds:
        raise HTTPException(404, f"no such file: {name[:80]}")
    data = await run_in_threadpool(_asset, name)
    kept = "max-age=31536000, immutable" if "v" in request.query_params else "no-cache"
    return _compressed(request, data, f"{kinds[name]}; charset=utf-8", kept)


async def refused(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
    """A mistake in the input, or an answer that is "no": one line."""
    return wire.answer({"error": str(error)}, 400)


async def unknown(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
    """Nothing under this id or name."""
    return wire.answer({"error": str(error)}, 404)


async def missing(request: Request, error: Exception) -> Response:
    """An address or method that is not there."""
    if not isinstance(error, HTTPException):
        return await failed(request, error)
    told = f"{request.method} is not what this address takes" if error.status_code == 405 else error.detail
    response = wire.answer({"error": told}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def failed(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
    """A defect of gambrel: said without its insides, which go to the log."""
    return wire.answer({"error": f"this is a defect of gambrel: {type(error).__name__}"}, 500)


@lru_cache(maxsize=8)
def _asset(name: str) -> bytes:
    static = files("gambrel.faces.web").joinpath("static")
    if name == "vega.js":
        from gambrel.report.page import runtime

        return runtime().encode()
    if name == "ui.css":  # the reports' look, then what only the page has
        report = files("gambrel.report").joinpath("page.css").read_bytes()
        return report + static.joinpath(name).read_bytes()
    data = static.joinpath(name).read_bytes()
    if name == "ui.html":
        for other in ("ui.css", "ui.js"):
            tag = hashlib.sha256(_asset(other)).hexdigest()[:12]
            data = data.replace(f"/assets/{other}".encode(), f"/assets/{other}?v={tag}".encode())
        tag = hashlib.sha256(_asset("vega.js")).hexdigest()[:12]
        data = data.replace(b"/assets/vega.js", f"/assets/vega.js?v={tag}".encode())
    return data


@lru_cache(maxsize=16)
def _zipped(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def _compressed(request: Request, data: bytes, media_type: str, kept: str) -> Response:
    headers = {"cache-control": kept, "vary": "accept-encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(_zipped(data), 200, headers | {"content-encoding": "gzip"}, media_type)
    return Response(data, 200, headers, media_type)
