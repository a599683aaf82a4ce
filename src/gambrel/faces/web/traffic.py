"""The Traffic view: a log dropped on the page becomes a workload, its charts, and a window to plan for.

The file is written to a temporary folder while it is read and deleted before the answer leaves; what stays in memory
are lengths and times, of the last few logs, until the server stops.
"""

from __future__ import annotations

import math
import secrets
import tempfile
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.routing import Route

from gambrel.core.errors import GambrelError, WorkloadError
from gambrel.faces import api
from gambrel.faces.web import wire
from gambrel.report import Fact
from gambrel.report import humanise as say

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from gambrel.core.workload import Workload

__all__ = ["ROUTES", "Window", "window_of"]

MOST_BYTES: Final = 512 * 10**6
MOST_REQUESTS: Final = 5_000_000
KEPT: Final = 6
NAME: Final = "log"

_kept: OrderedDict[str, Workload] = OrderedDict()
_lock = threading.Lock()


def keep(workload: Workload) -> str:
    """Remember a workload under a new id; the oldest of ``KEPT`` is forgotten."""
    if len(workload) > MOST_REQUESTS:
        raise WorkloadError(f"{workload.name}: {len(workload):,} requests; the page takes up to {MOST_REQUESTS:,}")
    key = secrets.token_urlsafe(8)
    with _lock:
        _kept[key] = workload
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return key


def kept(key: str) -> Workload:
    """The workload of an id.

    Raises:
        WorkloadError: there is none, or it was forgotten.
    """
    with _lock:
        if key not in _kept:
            raise WorkloadError("this log is no longer here (the server forgets): drop it again on the Traffic view")
        _kept.move_to_end(key)
        return _kept[key]


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A log, or part of its time: ``start_s`` and ``stop_s`` from the first arrival; None is its beginning or end."""

    id: Annotated[str, msgspec.Meta(max_length=64)]
    start_s: Annotated[float, msgspec.Meta(ge=0, lt=1e12)] | None = None
    stop_s: Annotated[float, msgspec.Meta(ge=0, lt=1e12)] | None = None


def window_of(window: Window) -> Workload:
    """The requests of a window.

    Raises:
        WorkloadError: the log is gone, or nothing arrives in the window.
    """
    from gambrel.traffic import slice_time

    whole = kept(window.id)
    if window.start_s is None and window.stop_s is None:
        return whole
    if whole.closed_loop:
        raise WorkloadError("a fixed number of users has no time to choose a window of")
    return slice_time(whole, window.start_s or 0.0, math.inf if window.stop_s is None else window.stop_s)


def traffic_document(window: Window) -> dict[str, Any]:
    """Figures and charts of a window of a log."""
    from gambrel.report import (
        TrafficView,
        arrivals_over_time,
        bursts,
        in_flight,
        in_flight_over_time,
        joint_lengths,
        output_lengths,
        prompt_lengths,
    )
    from gambrel.traffic import describe

    whole, part = kept(window.id), window_of(window)
    document: dict[str, Any] = {
        "id": window.id,
        "name": part.name,
        "source": part.source,
        "num_requests": len(part),
        "span_s": whole.span_s,
        "start_s": window.start_s,
        "stop_s": window.stop_s,
        "has_arrivals": part.has_arrivals,
        "busiest": [] if whole.closed_loop else busiest_windows(whole),
    }
    figures = describe(part)
    view = TrafficView.of(part, figures)
    charts = (
        arrivals_over_time, in_flight_over_time, prompt_lengths, output_lengths, joint_lengths, in_flight, bursts,
    )  # fmt: skip
    share = float(part.prompt_tokens.sum() / (part.prompt_tokens.sum() + part.output_tokens.sum()))
    facts = [
        Fact("requests", say.count(len(part)), f"over {say.seconds(part.span_s)}"),
        Fact("rate", say.rate(figures.rate_rps) if math.isfinite(figures.rate_rps) else say.UNKNOWN, "mean"),
        Fact("prompts", f"{say.count(figures.prompt_tokens.p50)} tokens",
             f"median; p95 {say.count(figures.prompt_tokens.p95)}"),
        Fact("answers", f"{say.count(figures.output_tokens.p50)} tokens",
             f"median; p95 {say.count(figures.output_tokens.p95)}"),
        Fact("prompt share", say.percent(share), "of all tokens"),
        Fact("in flight", say.count(figures.concurrency.p99), f"p99; mean {say.number(figures.concurrency.mean)}"),
    ]  # fmt: skip
    document["facts"] = wire.facts(facts)
    document["warnings"] = list(part.warnings)
    document["items"] = [wire.item(spec) for draw in charts if (spec := draw(view)) is not None]
    return document


def busiest_windows(workload: Workload) -> list[dict[str, Any]]:
    """The hour and the ten minutes with most tokens, where the log is clearly longer than that."""
    found = []
    weight = np.concatenate([[0.0], np.cumsum(workload.prompt_tokens + workload.output_tokens, dtype=np.float64)])
    for name, length in (("busiest day", 86_400.0), ("busiest hour", 3600.0), ("busiest 10 min", 600.0)):
        if workload.span_s < 1.5 * length:
            continue
        ends = np.searchsorted(workload.arrival_s, workload.arrival_s + length)
        first = int(np.argmax(weight[ends] - weight[:-1]))
        start = float(workload.arrival_s[first])
        found.append({"name": name, "start_s": start, "stop_s": start + length})
    return found


def safe_name(given: str) -> str:
    """The name of an upload as a file name: its last part, printable, its endings kept for the readers."""
    name = PurePosixPath(given.replace("\\", "/")).name
    clean = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[-80:].lstrip(".-")
    return clean or NAME


async def upload(request: Request) -> Response:
    """POST of a raw file; its name is in the query, for its endings."""
    name = safe_name(request.query_params.get("name", NAME))
    with tempfile.TemporaryDirectory(prefix="gambrel-") as folder:
        path = Path(folder) / name
        size = 0
        with path.open("wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > MOST_BYTES:
                    raise GambrelError(f"{name}: larger than {say.num_bytes(MOST_BYTES)}; gzip it, or cut it by time")
                file.write(chunk)
        if size == 0:
            raise GambrelError(f"{name}: the file is empty")
        workload = await run_in_threadpool(_read, path, name)
    return await run_in_threadpool(lambda: wire.answer(traffic_document(Window(id=keep(workload)))))


def scrub(text: str, path: Path, name: str) -> str:
    """A message about the upload without the server's folder, even where a library cut the path short."""
    return text.replace(str(path), name).replace(f"{path.parent}/", "")


def _read(path: Path, name: str) -> Workload:
    """The log, with every mention of the temporary folder replaced by the name the person knows."""
    from gambrel.traffic import ready_to_replay

    try:
        found = ready_to_replay(api.read_workload(path))
    except GambrelError as error:
        raise WorkloadError(scrub(str(error), path, name)) from error
    clean = tuple(scrub(w, path, name) for w in found.warnings)
    return replace(found, source=scrub(found.source, path, name), warnings=clean)


class Generated(msgspec.Struct, frozen=True, kw_only=True):
    """Traffic without a log: the sample, a profile at a rate, or users who are always there."""

    profile: Annotated[str, msgspec.Meta(max_length=40)] = ""
    rate: Annotated[float, msgspec.Meta(ge=0.001, le=1000)] = 5.0


async def generate(request: Request) -> Response:
    """POST of what to generate."""
    wanted = wire.asked(Generated, await wire.body(request))

    def made() -> Response:
        from gambrel.traffic import profile, profiles, sample

        if wanted.profile and wanted.profile not in profiles():
            raise WorkloadError(f"unknown profile {wanted.profile!r}; known: {', '.join(profiles())}")
        found = profile(f"{wanted.profile}:rate={wanted.rate:g}") if wanted.profile else sample()
        return wire.answer(traffic_document(Window(id=keep(found))))

    return await run_in_threadpool(made)


async def view(request: Request) -> Response:
    """GET of a window of a kept log."""
    window = wire.asked(Window, {"id": request.path_params["id"]} | dict(request.query_params))
    return await run_in_threadpool(lambda: wire.answer(traffic_document(window)))


async def known_profiles(request: Request) -> Response:  # noqa: ARG001 - Starlette's signature
    """GET of the profiles there are."""
    from gambrel.traffic import profiles

    return wire.answer({"profiles": [{"name": name, "title": p.title} for name, p in profiles().items()]})


ROUTES: Final = (
    Route("/api/traffic", upload, methods=["POST"]),
    Route("/api/traffic/generate", generate, methods=["POST"]),
    Route("/api/profiles", known_profiles),
    Route("/api/traffic/{id}", view),
)
