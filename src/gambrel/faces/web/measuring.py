"""The Measure view: a live endpoint in figures, watched while it is measured.

Only the address that the person typed is asked, redirects are never followed (the client's rule), and the key in the
server's environment is sent only when the person ticks that it should be. Raw records stay in a temporary folder while
the run lasts and in memory after it, until the server stops.
"""

from __future__ import annotations

import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import Route

from gambrel.core.errors import EndpointError, GambrelError
from gambrel.faces.measure_commands import measured_sweep, progress_line
from gambrel.faces.web import wire

if TYPE_CHECKING:
    from starlette.requests import Request

    from gambrel.measure.sweep import Progress, Sweep
    from gambrel.report import Report

__all__ = ["ROUTES"]

KEPT: Final = 4
TELL_S: Final = 0.5
KEY_VARIABLE: Final = "OPENAI_API_KEY"

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=400)]
Users = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: closed levels of so many requests in flight, of one prompt and answer length."""

    url: Text
    model: Text
    concurrency: Annotated[tuple[Users, ...], msgspec.Meta(min_length=1, max_length=12)]
    prompt: Tokens = 512
    output: Tokens = 128
    duration_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0
    with_key: bool = False

    def sweep(self) -> Sweep:
        """The sweep of the measuring room.

        Raises:
            EndpointError: an address that is none.
        """
        from gambrel.measure.client import Endpoint
        from gambrel.measure.sweep import Closed, Sweep

        endpoint = Endpoint(self.url, self.model, key_env=KEY_VARIABLE if self.with_key else "")
        levels = tuple(Closed(c, self.prompt, self.output) for c in sorted(set(self.concurrency)))
        return Sweep(endpoint, levels, duration_s=self.duration_s)


@dataclass
class Measurement:
    """A measurement: what it said so far, and its figures, report and raw records once it has ended."""

    sweep: Sweep
    events: list[dict[str, Any]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    ended: bool = False
    report: Report | None = None
    records: bytes = b""
    started: float = field(default_factory=time.monotonic)

    def say(self, kind: str, text: str) -> None:
        """Add an event."""
        self.events.append({"kind": kind, "text": text, "elapsed_s": time.monotonic() - self.started})

    def run(self) -> None:
        """Measure; errors become the last event."""
        from gambrel.measure.sweep import Progress, measure
        from gambrel.report import sweep_report

        stop = self.stop

        class Watched(Progress):
            """Progress that ends the run at its next record once the person has cancelled."""

            def take(self, r: Any) -> None:
                if stop.is_set():
                    raise EndpointError("cancelled")
                super().take(r)

        progress = Watched()
        teller = threading.Thread(target=self._tell, args=(progress,), daemon=True)
        teller.start()
        try:
            with tempfile.TemporaryDirectory(prefix="gambrel-") as folder:
                path = Path(folder) / "measure.jsonl.gz"
                document = measure(self.sweep, path, progress)
                self.records = path.read_bytes()
            self.report = sweep_report(measured_sweep(document | {"records": "the file to take away"}))
            kind, text = "done", ""
        except GambrelError as error:
            kind, text = ("cancelled", "cancelled") if stop.is_set() else ("failed", str(error))
        except Exception as error:
            kind, text = "failed", f"this is a defect of gambrel: {type(error).__name__}"
            raise
        finally:
            self.say(kind, text)
            self.ended = True

    def _tell(self, progress: Progress) -> None:
        last = ""
        while not self.ended:
            line = progress_line(progress)
            if line != last and not self.ended:
                self.say("part", line)
                last = line
            time.sleep(TELL_S)


_runs: OrderedDict[str, Measurement] = OrderedDict()
_lock = threading.Lock()


def start(asked: Asked) -> str:
    """Start a measurement and give its id.

    Raises:
        GambrelError: the address is none, or another measurement is running.
    """
    run = Measurement(asked.sweep())
    with _lock:
        if any(not r.ended for r in _runs.values()):
            raise GambrelError("another measurement is still running: cancel it first")
        key = secrets.token_urlsafe(8)
        _runs[key] = run
        while len(_runs) > KEPT:
            _runs.popitem(last=False)
    threading.Thread(target=run.run, name=f"measure-{key}", daemon=True).start()
    return key


def run_of(key: str) -> Measurement:
    """The measurement of an id."""
    with _lock:
        if key not in _runs:
            raise GambrelError("this measurement is no longer here (the server forgets): measure again")
        return _runs[key]


async def begin(request: Request) -> Response:
    """POST of what to measure: the id of the run."""
    asked = wire.asked(Asked, await wire.body(request))
    return wire.answer({"id": await run_in_threadpool(start, asked)}, 202)


async def events(request: Request) -> Response:
    """GET of a run's events as they happen."""
    return wire.stream(run_of(request.path_params["id"]), request)


async def cancel(request: Request) -> Response:
    """DELETE of a run: it ends at its next answered request."""
    run_of(request.path_params["id"]).stop.set()
    return wire.answer({"cancelled": True})


async def found(request: Request) -> Response:
    """GET of the report of a run."""
    report = run_of(request.path_params["id"]).report
    if report is None:
        raise GambrelError("this measurement has no report")
    return await run_in_threadpool(lambda: wire.answer({"report": wire.report_document(report)}))


async def export(request: Request) -> Response:
    """GET of the report as one file, or of the raw records."""
    run, name = run_of(request.path_params["id"]), request.path_params["name"]
    if run.report is None:
        raise GambrelError("this measurement has no report")
    if name == "report.html":
        from gambrel.report import page_html

        data: bytes = (await run_in_threadpool(page_html, run.report)).encode()
        media_type = "text/html; charset=utf-8"
    elif name == "records.jsonl.gz":
        data, media_type = run.records, "application/gzip"
    else:
        raise GambrelError(f"no such file {name[:60]!r}; there are report.html, records.jsonl.gz")
    headers = {"content-disposition": f'attachment; filename="gambrel-measure-{name}"'}
    return Response(data, 200, headers, media_type)


ROUTES: Final = (
    Route("/api/measure", begin, methods=["POST"]),
    Route("/api/measure/{id}", found, methods=["GET"]),
    Route("/api/measure/{id}", cancel, methods=["DELETE"]),
    Route("/api/measure/{id}/events", events),
    Route("/api/measure/{id}/export/{name}", export),
)
