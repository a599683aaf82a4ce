"""The Traffic view: a log dropped on the page becomes a workload, its charts, and a window to plan for.

The file is written to a temporary folder while it is read and deleted before the answer leaves; what stays in memory
are lengths and times, of the last few logs, until the server stops.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import numpy as np
from starlette.concurrency import run_in_threadpool

from gambrel.core.errors import GambrelError, WorkloadError
from gambrel.faces import api
from gambrel.faces.web import wire
from gambrel.faces.web.questions import Question
from gambrel.faces.web.uploads import Upload, received, safe_name, scrub
from gambrel.report import Fact
from gambrel.report import humanise as say

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request

    from gambrel.core.workload import Workload

__all__ = ["QUESTIONS", "Window", "window_of"]

MOST_BYTES: Final = 512 * 10**6
MOST_REQUESTS: Final = 5_000_000
KEPT: Final = 6

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
        Unknown: there is none, or it was forgotten.
    """
    with _lock:
        if key not in _kept:
            raise wire.Unknown("this log is no longer here (the server forgets): drop it again on the Traffic view")
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
    document["warnings"] = list(part.warnings)
    if part.closed_loop:
        return document | {"facts": wire.facts(_users_facts(part)), "items": []}
    figures = describe(part)
    view = TrafficView.of(part, figures)
    charts = (
        arrivals_over_time, in_flight_over_time, prompt_lengths, output_lengths, joint_lengths, in_flight, bursts,
    )  # fmt: skip
    share = float(part.prompt_tokens.sum() / (part.prompt_tokens.sum() + part.output_tokens.sum()))
    facts = [
        Fact("requests", say.count(len(part)), f"over {say.seconds(part.span_s)}"),
        Fact("rate", f"{say.number(rate)} req/s" if math.isfinite(rate := figures.rate_rps) else say.UNKNOWN, "mean"),
        Fact("prompts", f"{say.count(figures.prompt_tokens.p50)} tokens",
             f"median; p95 {say.count(figures.prompt_tokens.p95)}"),
        Fact("answers", f"{say.count(figures.output_tokens.p50)} tokens",
             f"median; p95 {say.count(figures.output_tokens.p95)}"),
        Fact("prompt share", say.percent(share), "of all tokens"),
        Fact("in flight", say.count(figures.concurrency.p99), f"p99; mean {say.number(figures.concurrency.mean)}"),
    ]  # fmt: skip
    document["facts"] = wire.facts(facts)
    document["items"] = [wire.item(spec) for draw in charts if (spec := draw(view)) is not None]
    return document


def _users_facts(users: Workload) -> list[Fact]:
    """What is known of users without a log: how many, and what each asks for."""
    return [
        Fact("users at once", say.count(users.closed_loop), "each asks again when answered"),
        Fact("prompts", f"{say.count(float(users.prompt_tokens.mean()))} tokens", "every one"),
        Fact("answers", f"{say.count(float(users.output_tokens.mean()))} tokens", "every one"),
        Fact("simulated", say.count(len(users)), "requests"),
    ]


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


async def upload(request: Request, asked: Upload) -> dict[str, Any]:
    """Read a log, of any format: its figures and charts, and the id under which it can be planned for."""
    async with received(request, safe_name(asked.name), MOST_BYTES) as path:
        workload = await run_in_threadpool(_read, path)
    return await run_in_threadpool(lambda: traffic_document(Window(id=keep(workload))))


def _read(path: Path) -> Workload:
    """The log, with every mention of the temporary folder replaced by the name the person knows."""
    from gambrel.traffic import ready_to_replay

    try:
        found = ready_to_replay(api.read_workload(path))
    except GambrelError as error:
        raise WorkloadError(scrub(str(error), path)) from error
    clean = tuple(scrub(w, path) for w in found.warnings)
    return replace(found, source=scrub(found.source, path), warnings=clean)


class TrafficRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Traffic without a log: the sample (nothing given), a profile at a rate, or users who are always there."""

    profile: Annotated[str, msgspec.Meta(max_length=40)] = ""
    rate: Annotated[float, msgspec.Meta(ge=0.001, le=1000)] = 5.0
    users: Annotated[int, msgspec.Meta(ge=1, le=10_000)] | None = None
    prompt: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 2000
    output: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 300


def generate(asked: TrafficRequest) -> dict[str, Any]:
    """Make traffic where there is no log."""
    from gambrel.traffic import closed_loop, profile, profiles, sample

    if asked.users is not None:
        made = closed_loop(asked.users, asked.prompt, asked.output)
    elif not asked.profile:
        made = sample()
    elif asked.profile in profiles():
        made = profile(f"{asked.profile}:rate={asked.rate:g}")
    else:
        raise WorkloadError(f"unknown profile {asked.profile!r}; known: {', '.join(profiles())}")
    return traffic_document(Window(id=keep(made)))


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Part of a log's time, seconds from its first arrival."""

    start_s: Annotated[float, msgspec.Meta(ge=0, lt=1e12)] | None = None
    stop_s: Annotated[float, msgspec.Meta(ge=0, lt=1e12)] | None = None


def view(id: str, asked: Part) -> dict[str, Any]:  # noqa: A002 - the parameter of the address
    """Figures and charts of a log that was read, or of a window of it."""
    return traffic_document(Window(id=id, start_s=asked.start_s, stop_s=asked.stop_s))


def known_profiles() -> dict[str, Any]:
    """The profiles there are."""
    from gambrel.traffic import profiles

    return {"profiles": [{"name": name, "title": p.title} for name, p in profiles().items()]}


QUESTIONS: Final = (
    Question("POST", "/api/traffic", upload, query=Upload, upload="application/octet-stream"),
    Question("POST", "/api/traffic/generate", generate, body=TrafficRequest),
    Question("GET", "/api/profiles", known_profiles),
    Question("GET", "/api/traffic/{id}", view, query=Part),
)
