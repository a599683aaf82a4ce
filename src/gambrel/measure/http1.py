"""HTTP/1.1 on the wire: as much of it as streaming servers and a recording proxy need, and no more.

A framework answers a request in a task, a queue and several layers; at 1,000 open streams that costs more than the
tokens do. Here a message is parsed where its bytes arrive and an answer is written where it is made: callbacks only,
one write a token. The parser takes requests and responses alike, since a proxy reads both.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from gambrel.core.errors import EndpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

__all__ = ["BadMessage", "Head", "Listener", "Parser", "Reply", "Request", "frame", "listen", "run_loop"]

MAX_HEAD_BYTES = 65_536
MAX_BODY_BYTES = 64 * 2**20
MAX_UNSENT_BYTES = 4 * 2**20  # a peer that reads nothing is cut off here, so that it cannot eat the memory
HEAD_TIMEOUT_S = 30.0  # a request that is not complete by then is answered 408

_T = TypeVar("_T")
_HEAD, _LENGTH, _SIZE, _CHUNK, _CHUNK_END, _TRAILER, _UNTIL_CLOSE = range(7)


class BadMessage(Exception):  # noqa: N818 - reads as the sentence it is
    """Bytes that are not HTTP/1.1; ``status`` is the answer they deserve."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """First line and header fields of a message; ``start`` holds the three words of its first line."""

    start: tuple[str, str, str]
    fields: tuple[tuple[str, str], ...]

    def get(self, name: str, default: str = "") -> str:
        """The value of the last field ``name`` (lower case), or ``default``."""
        return next((v for k, v in reversed(self.fields) if k.lower() == name), default)

    @property
    def status(self) -> int:
        """The status code of a response."""
        return int(self.start[1])

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection may be used again after this message."""
        version = self.start[0] if self.start[0].startswith("HTTP/") else self.start[2]
        wish = self.get("connection").lower()
        return "keep-alive" in wish if version == "HTTP/1.0" else "close" not in wish

    def encode(self) -> bytes:
        """The head as bytes, with its closing blank line."""
        lines = [" ".join(self.start), *(f"{k}: {v}" for k, v in self.fields), "", ""]
        return "\r\n".join(lines).encode("latin-1")


class Parser:
    """Bytes in, ``on_head``, ``on_data`` and ``on_end`` out, for messages one after another on one connection.

    A parser of responses must be told with :attr:`bodiless` that the answer to HEAD has no body.
    """

    def __init__(
        self,
        on_head: Callable[[Head], None],
        on_data: Callable[[bytes], None],
        on_end: Callable[[], None],
        *,
        response: bool = False,
    ) -> None:
        self._on_head, self._on_data, self._on_end = on_head, on_data, on_end
        self._response = response
        self._buffer = b""
        self._state = _HEAD
        self._left = 0
        self.bodiless = False

    @property
    def idle(self) -> bool:
        """Whether no message is under way."""
        return self._state == _HEAD and not self._buffer

    def feed(self, data: bytes) -> None:
        """Take what arrived; BadMessage for what is not HTTP/1.1."""
        data = self._buffer + data if self._buffer else data
        self._buffer = b""
        while data:
            rest = self._take(data)
            if rest is None:
                self._buffer = data
                return
            data = rest

    def eof(self) -> None:
        """The peer sends no more: ends a body that lasts until then; BadMessage in the middle of any other."""
        if self._state == _UNTIL_CLOSE:
            self._finish()
        elif not self.idle:
            raise BadMessage(400, "the connection ended in the middle of a message")

    def _take(self, data: bytes) -> bytes | None:
        """Consume from the front; what is left, or None when more is needed first."""
        state = self._state
        if state == _HEAD:
            return self._take_head(data)
        if state in {_LENGTH, _CHUNK}:
            piece, rest = (data, b"") if len(data) <= self._left else (data[: self._left], data[self._left :])
            self._left -= len(piece)
            self._on_data(piece)
            if self._left == 0:
                if state == _CHUNK:
                    self._state = _CHUNK_END
                else:
                    self._finish()
            return rest
        if state == _UNTIL_CLOSE:
            self._on_data(data)
            return b""
        line, found, rest = data.partition(b"\n")
        if not found:
            if len(data) > MAX_HEAD_BYTES:
                raise BadMessage(400, "a chunk or trailer line without an end")
            return None
        self._take_line(line.strip())
        return rest

    def _take_line(self, line: bytes) -> None:
        if self._state == _CHUNK_END:
            if line:
                raise BadMessage(400, "a chunk that is longer than it says")
            self._state = _SIZE
        elif self._state == _SIZE:
            digits = line.split(b";", 1)[0].strip()
            if not digits or len(digits) > 8 or not all(c in b"0123456789abcdefABCDEF" for c in digits):
                raise BadMessage(400, "a chunk size that is not hexadecimal")
            self._left = int(digits, 16)
            self._state = _CHUNK if self._left else _TRAILER
        elif not line:  # the end of the trailer
            self._finish()

    def _take_head(self, data: bytes) -> bytes | None:
        data = data.lstrip(b"\r\n")
        end, skip = data.find(b"\r\n\r\n"), 4
        if end < 0:
            if len(data) > MAX_HEAD_BYTES:
                raise BadMessage(431, f"a header of more than {MAX_HEAD_BYTES} bytes")
            if not data:
                return b""
            bare = data.find(b"\n\n")
            if bare < 0:
                return None
            end, skip = bare, 2
        head = _parse_head(data[:end], response=self._response)
        self._state = self._framing(head)
        self._on_head(head)
        if self._state == _LENGTH and self._left == 0:
            self._finish()
        return data[end + skip :]

    def _framing(self, head: Head) -> int:
        """How the body of this message ends (RFC 9112, section 6)."""
        self._left = 0
        if self._response and (self.bodiless or head.status in {204, 304} or head.status < 200):
            return _LENGTH
        coding = head.get("transfer-encoding").lower()
        if coding:
            if coding.rsplit(",", 1)[-1].strip() != "chunked":
                raise BadMessage(501, f"transfer-encoding {coding!r}; chunked works")
            return _SIZE
        length = head.get("content-length")
        if length:
            if not length.isdigit() or len(length) > 15:
                raise BadMessage(400, f"content-length {length!r}")
            self._left = int(length)
            return _LENGTH
        return _UNTIL_CLOSE if self._response else _LENGTH

    def _finish(self) -> None:
        self._state = _HEAD
        self._on_end()


def _parse_head(data: bytes, *, response: bool) -> Head:
    first, *lines = data.decode("latin-1").split("\n")
    words = first.strip().split(" ", 2)
    version = words[0] if response else words[-1]
    if response and len(words) == 2:
        words.append("")
    if len(words) != 3 or not version.startswith("HTTP/1.") or (response and not words[1].isdigit()):
        raise BadMessage(400, "not an HTTP/1.1 message")
    fields = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadMessage(400, f"a header line without a name: {line.strip()[:40]!r}")
        fields.append((name, value.strip()))
    return Head((words[0], words[1], words[2]), tuple(fields))


def frame(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(slots=True)
class Request:
    """A whole request: its head, its body, and when its last byte came (``time.monotonic``, seconds)."""

    head: Head
    body: bytes
    received_s: float

    @property
    def method(self) -> str:
        """GET, POST, ..."""
        return self.head.start[0]

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.head.start[1].partition("?")[0]


class Reply:
    """The answer to one request: whole with :meth:`send`, or :meth:`begin`, many :meth:`write`, :meth:`end`.

    Writing after the peer has gone is harmless; ``on_lost`` is called once when it goes before the end.
    """

    __slots__ = ("_chunked", "_connection", "_keep", "done", "on_lost", "started")

    def __init__(self, connection: _Connection, request: Request) -> None:
        self._connection = connection
        self._keep = request.head.keeps_alive
        self._chunked = request.head.start[2] != "HTTP/1.0"
        self.on_lost: Callable[[], None] | None = None
        self.started = False
        self.done = False

    @property
    def lost(self) -> bool:
        """Whether the peer has gone."""
        return self._connection.transport.is_closing()

    def send(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """The whole answer at once."""
        self._head(status, content_type, (("Content-Length", str(len(body))), *headers), body)
        self._finish()

    def begin(self, status: int, content_type: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        """The head of an answer whose body follows piece by piece."""
        coding = (("Transfer-Encoding", "chunked"),) if self._chunked else ()
        self._keep = self._keep and self._chunked
        self._head(status, content_type, (*coding, *headers), b"")

    def relay(self, head: Head) -> None:
        """The head of another server's answer, in this connection's framing; its body follows piece by piece."""
        length = head.get("content-length")
        counted = bool(length) or head.status in {204, 304}
        self._chunked = self._chunked and not counted
        self._keep = self._keep and (self._chunked or counted)
        own = {"connection", "keep-alive", "transfer-encoding", "proxy-connection", "upgrade"}
        fields = [(k, v) for k, v in head.fields if k.lower() not in own]
        if self._chunked:
            fields.append(("Transfer-Encoding", "chunked"))
        fields.append(("Connection", "keep-alive" if self._keep else "close"))
        self.started = True
        self._connection.write(Head(("HTTP/1.1", *head.start[1:]), tuple(fields)).encode())

    def write(self, data: bytes) -> None:
        """A piece of the body, sent at once."""
        self._connection.write(frame(data) if self._chunked else data)

    def end(self, data: bytes = b"") -> None:
        """The last piece, if any, and the end of the body."""
        if self._chunked:
            self._connection.write((frame(data) if data else b"") + b"0\r\n\r\n")
        elif data:
            self._connection.write(data)
        self._finish()

    def abort(self) -> None:
        """Cut the connection without an end, as a server that dies does."""
        self.done = True
        self._connection.transport.abort()

    def _head(self, status: int, content_type: str, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        self.started = True
        fields = (("Content-Type", content_type), *headers, ("Connection", "keep-alive" if self._keep else "close"))
        head = Head(("HTTP/1.1", str(status), _phrase(status)), fields)
        self._connection.write(head.encode() + body)

    def _finish(self) -> None:
        self.done = True
        self.on_lost = None
        self._connection.answered(keep=self._keep)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


class _Connection(asyncio.Protocol):
    """One peer: requests are answered in order, one at a time."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._parser = Parser(self._on_head, self._on_data, self._on_end)
        self._head: Head | None = None
        self._body: list[bytes] = []
        self._size = 0
        self._reply: Reply | None = None
        self._waiting: deque[Request] = deque()
        self.transport: asyncio.Transport
        self.since_s = 0.0  # when the request under way began; 0 between requests

    def connection_made(self, transport: Any) -> None:
        """A peer connected."""
        self.transport = transport
        transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)
        self.since_s = self._listener.loop.time()
        self._listener.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of one or more requests."""
        if self.since_s == 0.0:
            self.since_s = self._listener.loop.time()
        try:
            self._parser.feed(data)
        except BadMessage as error:
            self.refuse(error.status, str(error))

    def refuse(self, status: int, reason: str) -> None:
        """Answer what cannot be parsed, and hang up."""
        if self._reply is None and not self.transport.is_closing():
            body = msgspec.json.encode({"error": {"message": reason, "type": "BadRequestError", "code": status}})
            head = Head(
                ("HTTP/1.1", str(status), _phrase(status)),
                (("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")),
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    def _on_head(self, head: Head) -> None:
        self._head = head
        self._body, self._size = [], 0
        if int(head.get("content-length") or 0) > MAX_BODY_BYTES:
            raise BadMessage(413, f"a body of more than {MAX_BODY_BYTES} bytes")
        if head.get("expect").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _on_data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_BODY_BYTES:
            raise BadMessage(413, f"a body of more than {MAX_BODY_BYTES} bytes")
        self._body.append(data)

    def _on_end(self) -> None:
        assert self._head is not None  # noqa: S101 - the parser calls on_head first
        self.since_s = 0.0
        request = Request(self._head, b"".join(self._body), time.monotonic())
        self._body = []
        if self._reply is not None:
            self._waiting.append(request)
            if len(self._waiting) > 64:
                self.transport.abort()
            return
        self._answer(request)

    def _answer(self, request: Request) -> None:
        reply = self._reply = Reply(self, request)
        try:
            self._listener.handler(request, reply)
        except Exception as error:  # noqa: BLE001 - one bad request must not end the server for the others
            self._listener.failures += 1
            if reply.started:
                self.transport.abort()
            else:
                message = {"error": {"message": f"{type(error).__name__}: {error}", "type": "InternalServerError"}}
                reply.send(500, msgspec.json.encode(message))

    def answered(self, *, keep: bool) -> None:
        """The present answer is complete: close, or go on with the next request."""
        self._reply = None
        if not keep:
            self.transport.close()
        elif self._waiting and not self.transport.is_closing():
            self._listener.loop.call_soon(self._next)

    def _next(self) -> None:
        if self._waiting and self._reply is None and not self.transport.is_closing():
            self._answer(self._waiting.popleft())

    def write(self, data: bytes) -> None:
        """Send, unless the peer has gone."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def pause_writing(self) -> None:
        """The peer reads too slowly: cut it off rather than buffer for it without end."""
        self.transport.abort()

    def eof_received(self) -> bool:
        """The peer sends no more; it may still read the answer under way."""
        return self._reply is not None

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer has gone."""
        del exc
        self._listener.connections.discard(self)
        reply, self._reply = self._reply, None
        self._waiting.clear()
        if reply is not None and not reply.done and reply.on_lost is not None:
            lost, reply.on_lost = reply.on_lost, None
            lost()


class Listener:
    """A listening socket whose requests go to ``handler(request, reply)``; see :func:`listen`."""

    def __init__(self, handler: Callable[[Request, Reply], None]) -> None:
        self.handler = handler
        self.loop = asyncio.get_running_loop()
        self.connections: set[_Connection] = set()
        self.failures = 0
        self.url = ""
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def open(self, host: str, port: int) -> None:
        """Start to listen; EndpointError when the address cannot be had."""
        try:
            self._server = await self.loop.create_server(lambda: _Connection(self), host, port, backlog=4096)
        except (OSError, OverflowError, UnicodeError) as error:
            raise EndpointError(f"cannot listen on {host}:{port}: {error}; choose another --host or --port") from None
        bound, number = self._server.sockets[0].getsockname()[:2]
        self.url = f"http://[{bound}]:{number}" if ":" in bound else f"http://{bound}:{number}"
        self._sweep()

    def _sweep(self) -> None:
        """Hang up on requests that never become complete."""
        limit = self.loop.time() - HEAD_TIMEOUT_S
        for connection in list(self.connections):
            if 0.0 < connection.since_s < limit:
                connection.refuse(408, "the request was not complete in time")
        self._sweeper = self.loop.call_later(HEAD_TIMEOUT_S / 6, self._sweep)

    async def close(self) -> None:
        """Stop listening and cut what is open."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        if self._server is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), 1.0)


async def listen(handler: Callable[[Request, Reply], None], host: str = "127.0.0.1", port: int = 0) -> Listener:
    """Serve ``handler`` on ``host:port`` (0: any free port); the address is in ``.url``.

    Raises:
        EndpointError: the address is in use or not this machine's.
    """
    listener = Listener(handler)
    await listener.open(host, port)
    return listener


def run_loop(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)
