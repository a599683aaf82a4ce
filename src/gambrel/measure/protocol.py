"""HTTP/1.1 as one asyncio protocol: the hot path of the load client.

General HTTP clients put a parser, a queue and a task switch between the socket and the clock, and at a hundred
streams that is what their users measure. Here the clock is read once, first thing, when the kernel hands over bytes;
parsing comes after. One connection carries one request at a time; TLS comes from asyncio. Chunked, sized and
close-delimited bodies are read.
"""

from __future__ import annotations

import asyncio
import os
from time import monotonic_ns
from typing import TYPE_CHECKING, Final, cast

from gambrel.measure.protocol_events import EventStream, message_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.measure.protocol_events import Exchange

__all__ = ["Connection"]

HEAD_LIMIT: Final = 1 << 16
BODY_LIMIT: Final = 1 << 20

# Where in a response the next byte belongs.
IDLE, HEAD, SIZE, CHUNK, CHUNK_END, TRAILER, SIZED, UNTIL_CLOSE = range(8)


class Connection(asyncio.Protocol):
    """One TCP or TLS connection that carries one :class:`Exchange` at a time.

    ``released`` is called with the connection each time an exchange has ended, when it may be used again
    (:attr:`reusable`) or has closed.
    """

    def __init__(self, begun: int, released: Callable[[Connection], None]) -> None:
        self.begun = begun
        self.reusable = True
        self.num_started = 0
        self._released = released
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._exchange: Exchange | None = None
        self._state = IDLE
        self._rest = b""
        self._left = 0
        self._sse: EventStream | None = None
        self._partial = False
        self._steps = (
            self._until_close, self._head, self._size, self._chunk, self._chunk_end, self._trailer, self._sized,
            self._until_close,
        )  # fmt: skip

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected: plain sockets are written to directly, so that the clock is read after the system call."""
        stream = self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass
        stream.set_write_buffer_limits(high=0, low=0)
        if transport.get_extra_info("sslcontext") is None:
            self._fd = transport.get_extra_info("socket").fileno()

    def resume_writing(self) -> None:
        """The last byte of a long request has gone to the kernel."""
        x = self._exchange
        if x is not None and self._partial:
            x.sent = x.last_activity = monotonic_ns()
            self._partial = False

    def data_received(self, data: bytes) -> None:
        """The hot path: clock first, then parse."""
        now = monotonic_ns()
        x = self._exchange
        if x is None:
            self.close()  # nothing was asked: a 408 or garbage on an idle connection
            return
        x.last_activity = now
        x.reads += 1
        x.bytes_received += len(data)
        if self._rest:
            data = self._rest + data
            self._rest = b""
        before = len(x.events)
        self._parse(x, data, now)
        if len(x.events) - before > 1:
            x.merged_reads += 1

    def eof_received(self) -> bool:
        """The server said it is done; close our side too."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed by either side."""
        self.reusable = False
        x = self._exchange
        if x is None:
            self._released(self)
            return
        now = monotonic_ns()
        if self._state == UNTIL_CLOSE and exc is None:
            self._flush_body(x, now)
            self._finish(x, now)
            return
        cause = f": {exc}" if exc is not None else ""
        if x.done or (x.error and x.error != "cut"):
            pass  # all of the answer was there, or something said more already
        elif x.headers is None:
            x.fail("cut", f"the server closed the connection before it answered{cause}")
        else:
            x.fail("cut", f"the connection ended after {len(x.events)} token events{cause}")
        self._finish(x, now)

    # -- the client's side

    def start(self, x: Exchange) -> None:
        """Send a request; ``x.waiter`` is done when the answer has ended or failed."""
        transport = self._transport
        if transport is None or self._exchange is not None:
            raise RuntimeError("the connection is not idle")
        self._exchange = x
        self.num_started += 1
        self._state = HEAD
        self._rest = b""
        x.conn_start = self.begun
        data = x.payload
        x.bytes_sent = len(data)
        written = 0
        if self._fd >= 0 and transport.get_write_buffer_size() == 0:
            try:
                written = os.write(self._fd, data)
            except (BlockingIOError, InterruptedError):
                written = 0
            except OSError as error:
                self.reusable = False
                x.fail("cut", f"could not send: {error.strerror}")
                transport.abort()
                return
        x.sent = x.last_activity = monotonic_ns()
        if written < len(data):
            self._partial = True
            transport.write(memoryview(data)[written:])
            if transport.get_write_buffer_size() == 0:
                self.resume_writing()

    def give_up(self, error: str, detail: str) -> None:
        """End the exchange under way from our side."""
        x = self._exchange
        if x is not None:
            if not x.done:
                x.fail(error, detail)
            self.reusable = False
            self._finish(x, monotonic_ns())

    def close(self) -> None:
        """Close; an exchange under way ends as cut."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    @property
    def exchange(self) -> Exchange | None:
        """What is under way."""
        return self._exchange

    # -- parsing

    def _finish(self, x: Exchange, now: int) -> None:
        x.end = now
        self._exchange = None
        self._state = IDLE
        self._sse = None
        self._partial = False
        if 200 <= x.status < 300:
            x.verdict()
        elif x.status:
            self._http_error(x)
        if not self.reusable and self._transport is not None:
            self._transport.abort()
        if x.waiter is not None and not x.waiter.done():
            x.waiter.set_result(None)
        self._released(self)

    @staticmethod
    def _http_error(x: Exchange) -> None:
        if 300 <= x.status < 400:
            x.fail("http", f"HTTP {x.status}: a redirect, which is never followed; give the final URL")
        else:
            x.fail("http", f"HTTP {x.status}: {message_of(x.body)}" if x.body else f"HTTP {x.status}")

    def _broken(self, x: Exchange, detail: str, now: int) -> None:
        x.fail("protocol", detail)
        self.reusable = False
        self._finish(x, now)

    def _parse(self, x: Exchange, data: bytes, now: int) -> None:
        """Walk through what has arrived; each step answers where the next begins, or -1 to wait or stop."""
        at, size = 0, len(data)
        while 0 <= at < size:
            at = self._steps[self._state](x, data, at, now)

    def _line(self, x: Exchange, data: bytes, at: int, now: int) -> int:
        """Where the line at ``at`` ends; -1 keeps it for the next read."""
        end = data.find(b"\r\n", at)
        if end < 0:
            self._rest = data[at:]
            if len(data) - at > HEAD_LIMIT:
                self._broken(x, "a line without an end", now)
        return end

    def _size(self, x: Exchange, data: bytes, at: int, now: int) -> int:
        end = self._line(x, data, at, now)
        if end < 0:
            return -1
        try:
            self._left = int(data[at:end].split(b";", 1)[0], 16)
        except ValueError:
            self._broken(x, f"not a chunk size: {data[at : at + 20]!r}", now)
            return -1
        self._state = CHUNK if self._left else TRAILER
        return end + 2

    def _chunk(self, x: Exchange, data: bytes, at: int, now: int) -> int:
        end = at + self._left
        self._body(x, data[at:end], now)
        if end <= len(data):
            self._state = CHUNK_END
            return end
        self._left = end - len(data)
        return -1

    def _chunk_end(self, x: Exchange, data: bytes, at: int, now: int) -> int:
        if len(data) - at < 2:
            self._rest = data[at:]
            return -1
        if data[at : at + 2] != b"\r\n":
            self._broken(x, "a chunk longer than its size", now)
            return -1
        self._state = SIZE
        return at + 2

    def _trailer(self, x: Exchange, data: bytes, at: int, now: int) -> int:
        end = self._line(x, data, at, now)
        if end < 0:
            return -1
        if end > at:
            return end + 2
        self._complete(x, whole=end + 2 == len(data), now=now)
        return -1

    def _sized(self, x: Exchange, data: bytes, at: int, now: int) -> int:
        end = at + self._left
        self._body(x, data[at:end], now)
        if end > len(data):
            self._left = end - len(data)
        else:
            self._complete(x, whole=end == len(data), now=now)
        return -1

    def _until_close(self, x: Exchange, data: bytes, at: int, now: int) -> int:
        self._body(x, data[at:], now)
        return -1

    def _complete(self, x: Exchange, *, whole: bool, now: int) -> None:
        """The last byte of the body is here; more after it than a response may have ends the connection."""
        self._flush_body(x, now)
        self.reusable = self.reusable and whole
        self._finish(x, now)

    def _head(self, x: Exchange, data: bytes, at: int, now: int) -> int:
        if x.headers is None:
            x.headers = now
        end = data.find(b"\r\n\r\n", at)
        if end >= 0:
            return self._headers(x, data[at:end], end + 4, now)
        self._rest = data[at:]
        if not data.startswith(b"HTTP/1.", at) and len(data) - at >= 7:
            self._broken(x, f"not HTTP: {data[at : at + 40]!r}", now)
        elif len(data) - at > HEAD_LIMIT:
            self._broken(x, "a head without an end", now)
        return -1

    def _headers(self, x: Exchange, head: bytes, at: int, now: int) -> int:
        """Read status and headers; the place where the body begins."""
        lines = head.split(b"\r\n")
        parts = lines[0].split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            self._broken(x, f"not HTTP: {head[:40]!r}", now)
            return -1
        fields: dict[bytes, bytes] = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            fields[name.strip().lower()] = value.strip()
        status = int(parts[1])
        if 100 <= status < 200:
            x.headers = None
            return at
        x.status = status
        connection = fields.get(b"connection", b"").lower()
        self.reusable = connection != b"close" if parts[0] == b"HTTP/1.1" else connection == b"keep-alive"
        if b"retry-after" in fields:
            try:
                x.retry_after_s = float(fields[b"retry-after"])
            except ValueError:
                x.retry_after_s = None  # an HTTP date: kept out, servers of models send seconds
        kind = fields.get(b"content-type", b"").lower()
        self._sse = EventStream() if kind.startswith(b"text/event-stream") and 200 <= status < 300 else None
        if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
            self._state = SIZE
        elif fields.get(b"content-length", b"").isdigit():
            self._left = int(fields[b"content-length"])
            self._state = SIZED
        elif status in {204, 304}:
            self._left, self._state = 0, SIZED
        else:
            self.reusable = False
            self._state = UNTIL_CLOSE
        if self._state == SIZED and self._left == 0:
            self._complete(x, whole=True, now=now)
            return -1
        return at

    def _body(self, x: Exchange, data: bytes, now: int) -> None:
        if x.first_byte is None:
            x.first_byte = now
        if self._sse is None:
            if len(x.body) < BODY_LIMIT:
                x.body += data
            return
        for text in self._sse.feed(data):
            if text == b"[DONE]":
                x.done = True
            else:
                x.chunk(text, now)

    def _flush_body(self, x: Exchange, now: int) -> None:
        """The body is complete: an unterminated last event, or a whole JSON answer from a server that cannot stream."""
        if self._sse is not None:
            for text in self._sse.flush():
                if text == b"[DONE]":
                    x.done = True
                else:
                    x.chunk(text, now)
        elif 200 <= x.status < 300:
            x.chunk(x.body, now)
