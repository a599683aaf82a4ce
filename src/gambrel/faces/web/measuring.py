"""The Measure view's first half: a live endpoint, or the embedded engine, measured while one watches.

Only the address that the person typed is asked, redirects are never followed (the client's rule), and the key in the
server's environment is sent only when the person ticks that it should be. What was measured goes to the library of
:mod:`gambrel.faces.web.runs`.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from gambrel.core.errors import EndpointError
from gambrel.faces.measure_commands import progress_line
from gambrel.faces.web.jobs import Jobs
from gambrel.faces.web.questions import Question
from gambrel.faces.web.runs import LIBRARY
from gambrel.faces.web.uploads import scrub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gambrel.faces.web.jobs import Job
    from gambrel.measure.sweep import Progress, Sweep

__all__ = ["JOBS", "QUESTIONS", "MeasureRequest"]

TELL_S: Final = 0.5
KEY_VARIABLE: Final = "OPENAI_API_KEY"

Text = Annotated[str, msgspec.Meta(max_length=400)]
Users = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class MeasureRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: closed levels of so many requests in flight, of one prompt and answer length.

    Either ``url`` and ``model`` of a server, or ``embedded``: a small real engine, started here for the measurement.
    """

    url: Text = ""
    model: Text = ""
    embedded: bool = False
    concurrency: Annotated[tuple[Users, ...], msgspec.Meta(min_length=1, max_length=12)]
    prompt: Tokens = 512
    output: Tokens = 128
    duration_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0
    with_key: bool = False

    def checked(self) -> None:
        """Refuse what could only fail.

        Raises:
            EndpointError: no address or one that is none, no model, or the embedded engine's packages are missing.
        """
        from gambrel.measure.embedded import INSTALL, missing_packages

        if self.embedded and self.url:
            raise EndpointError("give either the address of a server or the embedded engine, not both")
        if self.embedded and (missing := missing_packages()):
            raise EndpointError(f"the embedded engine needs {', '.join(missing)}; install with: {INSTALL}")
        if not self.embedded and not (self.url and self.model):
            raise EndpointError("give the address of a server and its model, or choose the embedded engine")
        self.sweep(self.url or "http://127.0.0.1", self.model or "embedded")

    def sweep(self, url: str, model: str) -> Sweep:
        """The sweep of the measuring room; raises EndpointError for an address that is none."""
        from gambrel.measure.client import Endpoint
        from gambrel.measure.sweep import Closed, Sweep

        endpoint = Endpoint(url, model, key_env=KEY_VARIABLE if self.with_key else "")
        levels = tuple(Closed(c, self.prompt, self.output) for c in sorted(set(self.concurrency)))
        return Sweep(endpoint, levels, duration_s=self.duration_s)


JOBS: Final[Jobs[str]] = Jobs("measurement", alone=True)


def start(asked: MeasureRequest) -> dict[str, Any]:
    """Measure a server, or the embedded engine: the id of the measurement."""
    asked.checked()
    return {"id": JOBS.start(lambda job: measured(asked, job))}


def measured(asked: MeasureRequest, job: Job[str]) -> str:
    """Measure; the name of the run in the library. A cancelled one ends with its next answered request."""
    from gambrel.measure.sweep import Progress, measure

    class Watched(Progress):
        """Progress that ends the run at its next record once the person has cancelled."""

        def take(self, r: Any) -> None:
            job.check()
            super().take(r)

    progress = Watched()
    with target(asked, job) as (url, model), told(progress, job), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / LIBRARY.new_name()
        try:
            measure(asked.sweep(url, model), path, progress)
        except EndpointError as error:
            job.check()
            if path.exists():
                LIBRARY.add(path.name, path.read_bytes())  # what was measured until then
            raise EndpointError(scrub(str(error), path)) from error
        job.check()
        return LIBRARY.add(path.name, path.read_bytes())


@contextlib.contextmanager
def target(asked: MeasureRequest, job: Job[str]) -> Iterator[tuple[str, str]]:
    """Address and model of what is measured; the embedded engine runs as long as the context does."""
    if not asked.embedded:
        yield asked.url, asked.model
        return
    from gambrel.measure.client_embedded import EmbeddedProcess

    settings = {"max_num_seqs": max(asked.concurrency)}  # it visits every batch size once before it serves
    with contextlib.ExitStack() as stack:
        engine = EmbeddedProcess(settings, progress=job.say)
        stack.push(engine)  # before it starts: a cancelled start must end the process too
        engine.__enter__()
        yield engine.url, engine.model


@contextlib.contextmanager
def told(progress: Progress, job: Job[str]) -> Iterator[None]:
    """Tell, twice a second, how far the sweep is."""
    over = threading.Event()

    def tell() -> None:
        last = ""
        while not over.wait(TELL_S) and not job.ended:
            line = progress_line(progress)
            if line != last:
                job.tell(line)
                last = line

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def found(id: str) -> dict[str, Any]:  # noqa: A002 - the parameter of the address
    """The run that a measurement became."""
    return {"run": JOBS.found(id)}


QUESTIONS: Final = (
    Question("POST", "/api/measure", start, body=MeasureRequest, status=202),
    Question("GET", "/api/measure/{id}", found),
    *JOBS.questions("/api/measure"),
)
