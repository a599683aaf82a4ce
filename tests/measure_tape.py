"""An answer played to the client's connection under a clock that the test holds: exact figures, no waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gambrel.measure import protocol
from gambrel.measure.protocol import Connection
from gambrel.measure.protocol_events import Exchange

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

    from gambrel.measure.record import Record

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"
START_NS = 1_000_000_000


class FakeTransport:
    """Takes what is written and does nothing."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def set_write_buffer_limits(self, **_: int) -> None:
        """Nothing is buffered."""

    def get_extra_info(self, name: str) -> object:
        """As if TLS, so that the connection writes through this object."""
        return name

    def get_write_buffer_size(self) -> int:
        """Nothing is buffered."""
        return 0

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written += bytes(data)

    def abort(self) -> None:
        """Keep that too."""
        self.aborted = True


def event(document: dict[str, Any] | str, newline: str = "\n") -> bytes:
    """One server-sent event."""
    text = document if isinstance(document, str) else msgspec.json.encode(document).decode()
    return f"data: {text}{newline}{newline}".encode()


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def content(text: str, **more: Any) -> bytes:
    """A chat event with visible text."""
    return event({"choices": [{"index": 0, "delta": {"content": text}}], **more})


def finish(tokens: int | None, prompt: int = 7) -> bytes:
    """Finish reason, usage where ``tokens`` is given, and the end."""
    last = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    if tokens is not None:
        last += event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens}})
    return chunk(last + DONE) + END


class Tape:
    """Plays timed bytes to a connection."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = START_NS
        patch.setattr(protocol, "monotonic_ns", lambda: self.now)

    def play(self, parts: Iterable[tuple[float, bytes | None]], *, expect: int | None = None) -> Record:
        """The record of an answer whose bytes arrive at the given milliseconds after sending; None ends the stream."""
        self.now = START_NS
        connection = Connection(self.now, lambda _: None)
        connection.connection_made(FakeTransport())  # type: ignore[arg-type] # it is all a connection uses of one
        x = Exchange(b"request", self.now, expect, index=0)
        x.dequeued = self.now
        connection.start(x)
        for ms, data in parts:
            self.now = START_NS + round(ms * 1e6)
            if data is None:
                connection.connection_lost(None)
            else:
                connection.data_received(data)
        if x.end is None:
            connection.give_up("timeout", "the tape ended")
        return x.record()
