"""Work that takes longer than an answer may: run in a thread, watched while it runs, stopped when nobody wants it.

A search, a measurement and a fit are the same to the page: what they have said so far is a list of events that any
number of listeners read from the start (server-sent events), so a page that is reloaded misses nothing. One job of a
kind runs at a time; one that was cancelled no longer counts, though its thread may take a moment to notice.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec
from starlette.responses import Response, StreamingResponse

from gambrel.core.errors import GambrelError
from gambrel.faces.web.questions import Question
from gambrel.faces.web.wire import Unknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request

__all__ = ["Cancelled", "Job", "Jobs"]

KEPT: Final = 4
POLL_S: Final = 0.05

_Found = TypeVar("_Found")


class Cancelled(GambrelError):  # noqa: N818 - reads as the sentence it is
    """The person stopped the job."""


@dataclass
class Job(Generic[_Found]):
    """What a job has said so far, and what came of it; ``found`` is None until it has ended well.

    ``ended`` is whether listeners have heard the last word, ``working`` whether its thread still runs.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    ended: bool = False
    working: bool = True
    found: _Found | None = None
    started: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Raise Cancelled once the person has cancelled."""
        if self.stop.is_set():
            raise Cancelled("cancelled")

    def tell(self, text: str) -> None:
        """Tell what it is at."""
        self._event("part", text)

    def say(self, text: str) -> None:
        """Tell what it is at; raises Cancelled like :meth:`check`."""
        self.check()
        self.tell(text)

    def cancel(self) -> None:
        """Stop: listeners hear it at once, the thread at its next word."""
        self.stop.set()
        self._end("cancelled", "cancelled")

    def run(self, work: Callable[[Job[_Found]], _Found]) -> None:
        """Do the work; how it ended is the last event."""
        try:
            found = work(self)
            self.check()
            self.found = found
            self._end("done", "")
        except Cancelled:
            self._end("cancelled", "cancelled")
        except GambrelError as error:
            self._end("failed", str(error))
        except Exception as error:
            self._end("failed", f"this is a defect of gambrel: {type(error).__name__}")
            if not self.stop.is_set():
                raise
        finally:
            self.working = False

    def _end(self, kind: str, text: str) -> None:
        self._event(kind, text)
        self.ended = True

    def _event(self, kind: str, text: str) -> None:
        with self._lock:
            if not self.ended:
                self.events.append({"kind": kind, "text": text, "elapsed_s": time.monotonic() - self.started})


class Jobs(Generic[_Found]):
    """The last few jobs of one kind.

    Args:
        noun: what one is called in messages: ``search``.
        alone: whether the next one waits until the thread of a cancelled one is gone, since both would disturb
            each other's figures.
        kept: how many ended ones are remembered.
    """

    def __init__(self, noun: str, *, alone: bool = False, kept: int = KEPT) -> None:
        self.noun, self.alone, self.kept = noun, alone, kept
        self._jobs: OrderedDict[str, Job[_Found]] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, work: Callable[[Job[_Found]], _Found]) -> str:
        """Begin a job and give its id.

        Raises:
            GambrelError: another one is running.
        """
        job: Job[_Found] = Job()
        with self._lock:
            if any(not j.ended for j in self._jobs.values()):
                raise GambrelError(f"another {self.noun} is still running: cancel it first")
            if self.alone and any(j.working for j in self._jobs.values()):
                raise GambrelError(f"the cancelled {self.noun} is still ending: try again in a moment")
            key = secrets.token_urlsafe(8)
            self._jobs[key] = job
            while len(self._jobs) > self.kept:
                self._jobs.popitem(last=False)
        threading.Thread(target=job.run, args=(work,), name=f"{self.noun}-{key}", daemon=True).start()
        return key

    def job(self, key: str) -> Job[_Found]:
        """The job of an id.

        Raises:
            Unknown: there is none, or it was forgotten.
        """
        with self._lock:
            if key not in self._jobs:
                raise Unknown(f"this {self.noun} is no longer here (the server forgets): run it again")
            return self._jobs[key]

    def found(self, key: str) -> _Found:
        """What came of a job that ended well.

        Raises:
            Unknown: it is not known, has not ended, or came to nothing.
        """
        found = self.job(key).found
        if found is None:
            raise Unknown(f"this {self.noun} has no result")
        return found

    def questions(self, path: str) -> tuple[Question, Question]:
        """The questions that all jobs answer alike: watch, and cancel."""
        jobs = self

        async def events(request: Request, id: str) -> Response:  # noqa: A002 - the parameter of the address
            """What the job says, as it happens (server-sent events)."""
            return stream(jobs.job(id), request)

        def cancel(id: str) -> dict[str, Any]:  # noqa: A002 - the parameter of the address
            """Stop the job."""
            jobs.job(id).cancel()
            return {"cancelled": True}

        return (
            Question("GET", f"{path}/{{id}}/events", events, media=("text/event-stream",)),
            Question("DELETE", f"{path}/{{id}}", cancel),
        )


def stream(job: Job[Any], request: Request) -> Response:
    """Events of a job from the first one on, as they happen, ending with its last."""

    async def told() -> AsyncIterator[bytes]:
        sent = 0
        while True:
            ended = job.ended  # read first: what is said before the end is still sent
            for event in job.events[sent:]:
                yield b"data: " + msgspec.json.encode(event) + b"\n\n"
                sent += 1
            if ended or await request.is_disconnected():
                return
            await asyncio.sleep(POLL_S)

    return StreamingResponse(told(), media_type="text/event-stream", headers={"cache-control": "no-store"})
