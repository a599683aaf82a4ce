"""A reverse proxy that writes down what a plan needs and nothing else: when requests came, how many tokens, how long.

Put it in front of an endpoint for a day and ``gambrel workload`` reads the log. Bytes are passed on as they come and
looked at afterwards, so a token waits for nothing. Neither prompts nor answers nor keys are ever written: a line
holds times, counts, the model's name and a status; a session is a number made with a key that dies with the process.

Streams tell their token counts only when asked (``stream_options.include_usage``). Where a client did not ask, the
recorder does, and takes the extra event out again before the client sees it; ``ask_usage=False`` leaves requests
untouched and counts events instead, which cannot know the prompt.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import ssl
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from gambrel.core.errors import EndpointError
from gambrel.measure.client import trust
from gambrel.measure.http1 import BadMessage, Head, Parser, listen
from gambrel.measure.protocol_events import EventStream, Exchange

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gambrel.measure.http1 import Listener, Reply, Request

__all__ = ["LOG", "Entry", "LogFile", "Recorder", "Upstream", "record_traffic"]

LOG: Final = 1  # version of the log's lines
IDLE_MAX: Final = 256  # connections to the upstream that are kept for the next request
IDLE_S: Final = 4.0  # servers close idle ones after 5 s (uvicorn's default)
_BODY_LIMIT: Final = 4 * 2**20  # an answer that is not a stream is looked at up to here
_HOP: Final = {"connection", "keep-alive", "proxy-connection", "te", "upgrade", "transfer-encoding", "content-length",
               "host", "accept-encoding", "expect"}  # fmt: skip


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="gambrel_log", tag=LOG):
    """One line of the log.

    ``arrival_s`` is seconds since 1970; ``ttft_s``, ``last_token_s`` and ``service_s`` (end of the answer) are seconds
    after it. ``prompt_tokens`` 0 means that nobody said. ``tokens_from``: ``usage`` (the server's count) or
    ``events`` (one token an event assumed). ``status`` 0: no answer. ``error``: a class of
    ``gambrel.measure.record.ERROR_CLASSES``, or ``client`` where the client left first.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    service_s: float
    ttft_s: float | None = None
    last_token_s: float | None = None
    events: int = 0
    cached_tokens: int | None = None
    max_tokens: int | None = None
    session: int | None = None
    model: str = ""
    stream: bool = False
    status: int = 200
    tokens_from: str = "usage"
    finish_reason: str = ""
    error: str = ""


_encode: Final = msgspec.json.Encoder().encode


class LogFile:
    """Appends lines; a file that is full or old is renamed with its time and a new one begun.

    What cannot be written is counted in ``lost`` and said once: the traffic matters more than its log.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 64 * 2**20,
        max_age_s: float = 86_400.0,
        keep: int = 0,
        complain: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.path, self.max_bytes, self.max_age_s, self.keep = path, max_bytes, max_age_s, keep
        self.written, self.lost = 0, 0
        self._complain = complain
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise EndpointError(f"cannot write {path}: {error.strerror}; choose another --out") from None

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._fd).st_size
        self._since_s = time.monotonic()

    def write(self, entry: Entry) -> None:
        """One line, in the file when this returns."""
        line = _encode(entry) + b"\n"
        try:
            old = time.monotonic() - self._since_s > self.max_age_s
            if self._size and (old or self._size + len(line) > self.max_bytes):
                self._rotate()
            os.write(self._fd, line)
        except OSError as error:
            if not self.lost:
                self._complain(f"cannot write {self.path}: {error.strerror}; requests go on, their lines are lost")
            self.lost += 1
            return
        self._size += len(line)
        self.written += 1

    def _rotate(self) -> None:
        os.close(self._fd)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self.path.rename(self.path.with_name(f"{self.path.stem}-{stamp}{self.path.suffix}"))
        self._open()
        if self.keep:
            old = sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}"))
            for path in old[: -self.keep]:
                path.unlink()

    def close(self) -> None:
        """End the file."""
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where requests go."""

    host: str
    port: int
    tls: bool
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Upstream:
        """Read ``http(s)://host[:port][/path]``; EndpointError for anything else."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # brackets that do not match, a port that is no number
            parts, port = urlsplit(""), -1
        if parts.scheme not in {"http", "https"} or not parts.hostname or port == -1:
            raise EndpointError(f"--upstream must be a URL like http://127.0.0.1:8000, got {url!r}")
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """The value of the Host field."""
        usual = self.port == (443 if self.tls else 80)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if usual else f"{host}:{self.port}"


class _Wanted(msgspec.Struct):
    """What is looked at in a request; its content is skipped by the parser."""

    model: str | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    user: str | None = None
    prompt_cache_key: str | None = None


_wanted: Final = msgspec.json.Decoder(_Wanted)


class _Passage(asyncio.Protocol):
    """One request on a connection to the upstream; the connection may carry others before and after."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.transport: asyncio.Transport
        self.forward: _Forward | None = None
        self.fresh = True
        self.idle_since_s = 0.0
        self._parser = Parser(self._on_head, self._on_data, self._on_end, response=True)

    def connection_made(self, transport: Any) -> None:
        """Connected."""
        self.transport = transport

    def start(self, forward: _Forward) -> None:
        """Send a request."""
        self.forward = forward
        self._parser.bodiless = forward.request.method == "HEAD"
        self.transport.write(forward.payload)

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer."""
        if self.forward is None:
            self.transport.abort()  # an answer that nobody asked for
            return
        try:
            self._parser.feed(data)
        except BadMessage as error:
            self._broken("protocol", str(error))

    def _on_head(self, head: Head) -> None:
        if self.forward is not None and head.status >= 200:
            self.forward.on_head(head)

    def _on_data(self, data: bytes) -> None:
        if self.forward is not None:
            self.forward.on_data(data)

    def _on_end(self) -> None:
        forward = self.forward
        if forward is None or not forward.answered:
            return  # 100 Continue
        self.forward, self.fresh = None, False
        forward.on_end()
        self._recorder.give_back(self, keep=forward.keeps_alive)

    def eof_received(self) -> bool:
        """The upstream sends no more."""
        try:
            self._parser.eof()
        except BadMessage:
            self._broken("cut", "the upstream ended in mid-answer")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The upstream has gone."""
        self._recorder.forget(self)
        self._broken("cut", str(exc) if exc else "the upstream closed the connection")

    def _broken(self, error: str, detail: str) -> None:
        forward, self.forward = self.forward, None
        self.transport.abort()
        if forward is not None:
            forward.on_broken(error, detail, retry=not self.fresh)


class _Forward:
    """One request from its arrival to its line in the log."""

    def __init__(self, recorder: Recorder, request: Request, reply: Reply) -> None:
        self._recorder, self.request, self._reply = recorder, request, reply
        self._arrival_ns = int(request.received_s * 1e9)
        self._wanted = _Wanted()
        self._logged = request.method == "POST" and request.path.rstrip("/").endswith("/completions")
        body = request.body
        self._asked = False
        if self._logged:
            try:
                self._wanted = _wanted.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # the upstream will say what is wrong with it
            else:
                if recorder.ask_usage and self._wanted.stream and not self._wanted.stream_options:
                    self._asked = True
                    body = _with_usage(body)
        self.payload = recorder.head(request, len(body)) + body
        self._exchange = Exchange(b"", self._arrival_ns)
        self._events: EventStream | None = None
        self._rest = b""  # of an event that is not complete
        self._seen = b""  # events of the last read, the one taken out included
        self._whole = bytearray()
        self._passage: _Passage | None = None
        self.answered = False
        self.keeps_alive = True
        self._retried = False
        self._over = False
        reply.on_lost = self.on_lost

    def go(self, passage: _Passage) -> None:
        """Send it over a connection."""
        if self._over:
            self._recorder.give_back(passage, keep=True)
            return
        self._passage = passage
        passage.start(self)

    def on_head(self, head: Head) -> None:
        """The answer begins."""
        self.answered = True
        self.keeps_alive = head.keeps_alive
        self._exchange.status = head.status
        kind = head.get("content-type").lower()
        if self._logged and "text/event-stream" in kind:
            self._events = EventStream()
        else:
            self._asked = False
        self._reply.relay(head)

    def on_data(self, data: bytes) -> None:
        """A piece of the answer: passed on first, looked at afterwards."""
        now = time.monotonic_ns()
        if not self._asked:
            self._reply.write(data)
        else:
            data = self._filtered(data)
            if data:
                self._reply.write(data)
            data = self._seen
        self._look(data, now)

    def _filtered(self, data: bytes) -> bytes:
        """Whole events, but for the one with usage that the client did not ask for."""
        text = self._rest + data
        mark = b"\r\n\r\n" if b"\r\n\r\n" in text else b"\n\n"
        end = text.rfind(mark)
        if end < 0:
            self._rest, self._seen = text, b""
            return b""
        whole, self._rest = text[: end + len(mark)], text[end + len(mark) :]
        self._seen = whole
        if b'"usage"' not in whole:
            return whole
        return b"".join(e + mark for e in whole.split(mark)[:-1] if not _is_usage(e))

    def _look(self, data: bytes, now: int) -> None:
        exchange = self._exchange
        if self._events is not None:
            for text in self._events.feed(data):
                if text == b"[DONE]":
                    exchange.done = True
                else:
                    exchange.chunk(text, now)
        elif self._logged and len(self._whole) < _BODY_LIMIT:
            self._whole += data

    def on_end(self) -> None:
        """The answer is complete."""
        now = time.monotonic_ns()
        if self._asked and self._rest:
            self._reply.write(self._rest)
            self._look(self._rest, now)
        self._reply.end()
        if self._logged:
            exchange = self._exchange
            if exchange.status >= 400:
                exchange.fail("http", "")
            elif self._events is not None:
                for text in self._events.flush():
                    if text != b"[DONE]":
                        exchange.chunk(text, now)
                exchange.verdict()
            else:
                exchange.chunk(bytes(self._whole), now)
        self._note(now)

    def on_broken(self, error: str, detail: str, *, retry: bool) -> None:
        """The upstream failed: once more on a new connection if it was an old one, else say so."""
        if self._over:
            return
        if retry and not self.answered and not self._retried:
            self._retried = True
            self._recorder.connect(self)
            return
        self._exchange.fail(error, detail)
        if self._reply.started:
            self._reply.abort()
        else:
            message = f"the upstream {self._recorder.upstream.authority} did not answer: {detail}"
            body = {"error": {"message": message, "type": "BadGatewayError", "code": 502}}
            self._reply.send(502, _encode(body))
        self._note(time.monotonic_ns())

    def on_lost(self) -> None:
        """The client left first: so does the request."""
        if self._over:
            return
        self._exchange.error = "client"
        if self._passage is not None and self._passage.forward is self:
            self._passage.forward = None
            self._passage.transport.abort()
        self._note(time.monotonic_ns())

    def _note(self, now: int) -> None:
        """Write the line."""
        if self._over:
            return
        self._over = True
        if not self._logged:
            return
        exchange, wanted, usage = self._exchange, self._wanted, self._exchange.usage
        counted = usage is not None and usage.completion_tokens is not None
        streamed = self._events is not None

        def after(t: int) -> float:
            return round((t - self._arrival_ns) / 1e9, 6)

        said = usage.completion_tokens if usage is not None else None
        self._recorder.log.write(
            Entry(
                arrival_s=round(self._recorder.unix_s(self._arrival_ns), 6),
                prompt_tokens=(usage.prompt_tokens or 0) if usage is not None else 0,
                output_tokens=said if said is not None else len(exchange.events) if streamed else 0,
                service_s=after(now),
                ttft_s=after(exchange.events[0]) if streamed and exchange.events else None,
                last_token_s=after(exchange.events[-1]) if streamed and exchange.events else None,
                events=len(exchange.events) if streamed else 0,
                cached_tokens=None if usage is None else usage.cached_tokens,
                max_tokens=wanted.max_completion_tokens or wanted.max_tokens,
                session=self._recorder.session(wanted.prompt_cache_key or wanted.user),
                model=wanted.model or "",
                stream=bool(wanted.stream),
                status=exchange.status,
                tokens_from="usage" if counted else "events",
                finish_reason=exchange.finish_reason,
                error=exchange.error,
            )
        )


def _with_usage(body: bytes) -> bytes:
    """The same JSON object with usage asked for; a field of that name that is null comes later and must go."""
    start = body.index(b"{") + 1
    if b'"stream_options"' in body:
        document = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        document["stream_options"] = msgspec.Raw(b'{"include_usage":true}')
        return _encode(document)
    return body[:start] + b'"stream_options":{"include_usage":true},' + body[start:]


def _is_usage(event: bytes) -> bool:
    """Whether an event says nothing but usage."""
    if b'"usage"' not in event or b'"choices"' not in event:
        return False
    for line in event.splitlines():
        if line.startswith(b"data:"):
            try:
                found = msgspec.json.decode(line[5:])
            except msgspec.DecodeError:
                return False
            return isinstance(found, dict) and found.get("choices") == [] and found.get("usage") is not None
    return False


class Recorder:
    """The proxy: a handler for :func:`gambrel.measure.http1.listen`. Must be made on the event loop it will run on."""

    def __init__(self, upstream: str, log: LogFile, *, ask_usage: bool = True, ca_file: str | None = None) -> None:
        self.upstream = Upstream.parse(upstream)
        self.log, self.ask_usage = log, ask_usage
        self.loop = asyncio.get_running_loop()
        self._anchor = (time.monotonic_ns(), time.time())
        self._key = secrets.token_bytes(16)
        self._idle: deque[_Passage] = deque()
        self._tls = trust(ca_file) if self.upstream.tls else None
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, request: Request, reply: Reply) -> None:
        """Pass a request on."""
        forward = _Forward(self, request, reply)
        while self._idle:
            passage = self._idle.pop()
            if not passage.transport.is_closing() and time.monotonic() - passage.idle_since_s < IDLE_S:
                forward.go(passage)
                return
            passage.transport.abort()
        self.connect(forward)

    def connect(self, forward: _Forward) -> None:
        """Send a request over a new connection."""
        task = self.loop.create_task(self._connect(forward))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, forward: _Forward) -> None:
        up = self.upstream
        try:
            _, passage = await asyncio.wait_for(
                self.loop.create_connection(
                    lambda: _Passage(self), up.host, up.port, ssl=self._tls,
                    server_hostname=up.host if up.tls else None,
                ),
                timeout=10.0,
            )  # fmt: skip
        except ssl.SSLError as error:
            forward.on_broken("tls", str(error.reason or error), retry=False)
        except TimeoutError:
            forward.on_broken("timeout", "no connection within 10 s", retry=False)
        except OSError as error:
            forward.on_broken("connect", error.strerror or str(error), retry=False)
        else:
            forward.go(passage)

    def give_back(self, passage: _Passage, *, keep: bool) -> None:
        """Keep a connection for the next request."""
        if keep and len(self._idle) < IDLE_MAX and not passage.transport.is_closing():
            passage.idle_since_s = time.monotonic()
            self._idle.append(passage)
        else:
            passage.transport.close()

    def forget(self, passage: _Passage) -> None:
        """A connection has gone."""
        if passage in self._idle:
            self._idle.remove(passage)

    def head(self, request: Request, length: int) -> bytes:
        """The request's head as the upstream gets it."""
        method, target, _ = request.head.start
        fields = [("Host", self.upstream.authority)]
        fields += [(k, v) for k, v in request.head.fields if k.lower() not in _HOP]
        if length or method in {"POST", "PUT", "PATCH"}:
            fields.append(("Content-Length", str(length)))
        return Head((method, self.upstream.prefix + target, "HTTP/1.1"), tuple(fields)).encode()

    def session(self, name: str | None) -> int | None:
        """A number for a session's name that cannot be turned back into it."""
        if not name:
            return None
        return int.from_bytes(hashlib.blake2b(name.encode(), key=self._key, digest_size=6).digest())

    def unix_s(self, t_ns: int) -> float:
        """A monotonic time as seconds since 1970."""
        return self._anchor[1] + (t_ns - self._anchor[0]) / 1e9

    def close(self) -> None:
        """Give up the connections."""
        for task in self._tasks:
            task.cancel()
        for passage in self._idle:
            passage.transport.abort()
        self.log.close()


async def record_traffic(
    upstream: str,
    log: LogFile,
    *,
    host: str = "127.0.0.1",
    port: int = 8001,
    ask_usage: bool = True,
    ca_file: str | None = None,
    ready: Callable[[Listener], None] = lambda _: None,
) -> None:
    """Proxy and record until cancelled; ``ready`` is called once with the listener, whose ``.url`` is the address.

    Raises:
        EndpointError: a bad URL, a ``ca_file`` that cannot be read, or the address cannot be had.
    """
    recorder = Recorder(upstream, log, ask_usage=ask_usage, ca_file=ca_file)
    listener = await listen(recorder, host, port)
    try:
        ready(listener)
        await asyncio.Event().wait()
    finally:
        await listener.close()
        recorder.close()
