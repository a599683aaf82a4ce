"""Requests to one OpenAI-compatible endpoint: address, key, bodies, connections, time-outs. No retries, no redirects.

A retry hides the failure it repairs and counts its own waiting as the server's, and a redirect may carry a key to
somebody else; both are refused. The key comes from the environment and goes nowhere but into the request.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping  # noqa: TC003 - msgspec reads the fields' types at run time
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from gambrel.core.errors import EndpointError
from gambrel.core.version import __version__
from gambrel.measure.protocol import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.measure.protocol_events import Exchange

__all__ = ["APIS", "Client", "Endpoint", "Timeouts", "new_event_loop"]

APIS: Final = {"chat": "/chat/completions", "completions": "/completions"}
SWEEP_S: Final = 0.05  # how often time-outs are looked at
DONE_GRACE_NS: Final = 500_000_000  # after [DONE], for a server that does not end the body


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop of uvloop where that is installed, else asyncio's own, which keeps up with fewer streams."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def trust(ca_file: str | None) -> ssl.SSLContext:
    """TLS that believes the system's certificates, or those of ``ca_file``; EndpointError where it cannot be read."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise EndpointError(f"cannot read the certificates {ca_file}: {error}") from None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds until a request is given up: to connect, without a sign of life, and in all."""

    connect_s: float = 10.0
    idle_s: float = 60.0
    total_s: float = 600.0


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server and how it likes to be asked.

    Attributes:
        url: ``http://host:port``, with or without ``/v1`` or the full path of an API.
        model: the name it serves.
        api: ``chat`` or ``completions``.
        key_env: environment variable that holds the key; no variable, no key.
        ignore_eos: force every answer to its full length (vLLM, SGLang, llama.cpp and others know the field).
        ask_usage: ask for the server's token counts at the end of the stream; ``continuous_usage`` with each event.
        extra: further fields of the body.
        ca_file: certificates to trust besides the system's.

    Raises:
        EndpointError: a URL without scheme or host, or with a key or password in it.
    """

    url: str
    model: str
    api: str = "chat"
    key_env: str = "OPENAI_API_KEY"
    ignore_eos: bool = True
    ask_usage: bool = True
    continuous_usage: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    ca_file: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise EndpointError(f"--url must be like http://127.0.0.1:8000, got {self.url!r}")
        if parts.username or parts.password or parts.query:
            raise EndpointError(f"keys do not belong in a URL; put yours into the environment variable {self.key_env}")
        if self.api not in APIS:
            raise EndpointError(f"unknown API {self.api!r}; known: {', '.join(APIS)}")

    @property
    def host(self) -> str:
        """Name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """TCP port."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken."""
        return urlsplit(self.url).scheme == "https"

    @property
    def path(self) -> str:
        """Path of the API, whatever part of it the URL already had."""
        base = urlsplit(self.url).path.rstrip("/")
        for tail in APIS.values():
            base = base.removesuffix(tail)
        return (base if base.endswith(("/v1", "/v2", "/v3")) else f"{base}/v1") + APIS[self.api]

    @property
    def root(self) -> str:
        """The URL without any path: where ``/metrics`` is."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{name}:{self.port}"

    def body(self, text: str, output_tokens: int) -> bytes:
        """The JSON of one streaming request."""
        asked: dict[str, Any] = {"model": self.model}
        if self.api == "chat":
            asked["messages"] = [{"role": "user", "content": text}]
        else:
            asked["prompt"] = text
        asked |= {"max_tokens": output_tokens, "stream": True, "temperature": 0}
        if self.ask_usage:
            asked["stream_options"] = {"include_usage": True} | (
                {"continuous_usage_stats": True} if self.continuous_usage else {}
            )
        if self.ignore_eos:
            asked["ignore_eos"] = True
        return msgspec.json.encode(asked | dict(self.extra))

    def payload(self, text: str, output_tokens: int, request_id: str) -> bytes:
        """Head and body of one request."""
        body = self.body(text, output_tokens)
        key = os.environ.get(self.key_env, "")
        if "\r" in key or "\n" in key:
            raise EndpointError(f"the key in {self.key_env} holds a line break")
        name = f"[{self.host}]" if ":" in self.host else self.host
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {name}:{self.port}\r\nUser-Agent: gambrel/{__version__}\r\n"
            "Accept: text/event-stream\r\nContent-Type: application/json\r\n"
            f"X-Request-Id: {request_id}\r\n"
            + (f"Authorization: Bearer {key}\r\n" if key else "")
            + f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("latin-1", "replace") + body


class Client:
    """Sends exchanges over kept-alive connections. Use it inside a running event loop; :meth:`close` it there."""

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts | None = None, *, keep_alive: bool = True) -> None:
        self.endpoint = endpoint
        self.timeouts = timeouts or Timeouts()
        self.in_flight = 0
        self.num_stale = 0
        self._keep_alive = keep_alive
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._address: tuple[Any, ...] | None = None
        self._family = 0
        self._tls: ssl.SSLContext | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Resolve the host once and read the certificates.

        Raises:
            EndpointError: no such host, or a certificate file that cannot be read.
        """
        loop = asyncio.get_running_loop()
        e = self.endpoint
        try:
            found = await loop.getaddrinfo(e.host, e.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise EndpointError(f"no host {e.host!r}: {error.strerror or error}") from None
        self._family, self._address = found[0][0], found[0][4]
        if e.secure:
            self._tls = trust(e.ca_file)
        self._timer = loop.call_later(SWEEP_S, self._sweep)

    async def close(self) -> None:
        """Close every connection; what is in flight ends as ``cancelled``."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._busy):
            connection.give_up("cancelled", "the client stopped")
        for connection in [*self._idle, *self._busy]:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)

    async def send(self, x: Exchange) -> None:
        """Send one request and wait for its end, good or bad; never raises for what the endpoint does.

        A kept connection that turns out closed before a byte of the answer is no failure of the request: it goes out
        again on a new one, :attr:`num_stale` counts it, and this client keeps no more connections.
        """
        x.dequeued = monotonic_ns()
        self.in_flight += 1
        try:
            while not await self._attempt(x):
                self.num_stale += 1
                self._keep_alive = False
                for connection in [*self._idle]:
                    connection.close()
                self._idle.clear()
                x.again()
        finally:
            if x.end is None:
                x.fail("cancelled", "the client stopped")
                x.end = monotonic_ns()
            self.in_flight -= 1

    async def _attempt(self, x: Exchange) -> bool:
        """Send it; False where a kept connection was closed already."""
        connection = self._idle.pop() if self._idle else await self._connect(x)
        if connection is None:
            return True
        kept = connection.num_started > 0
        x.waiter = asyncio.get_running_loop().create_future()
        self._busy.add(connection)
        try:
            connection.start(x)
            await x.waiter
        except asyncio.CancelledError:
            if connection.exchange is x:
                connection.give_up("cancelled", "the client stopped")
            raise
        return not (kept and x.error == "cut" and x.headers is None)

    async def _connect(self, x: Exchange) -> Connection | None:
        begun = x.conn_start = monotonic_ns()
        address = self._address
        if address is None:
            raise EndpointError("the client is not open")
        released: Callable[[Connection], None] = self._released
        try:
            async with asyncio.timeout(self.timeouts.connect_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(begun, released),
                    address[0],
                    address[1],
                    family=self._family,
                    ssl=self._tls,
                    server_hostname=self.endpoint.host if self._tls is not None else None,
                )
        except TimeoutError:
            x.fail("timeout", f"no connection within {self.timeouts.connect_s:g} s")
        except ssl.SSLError as error:
            x.fail("tls", f"TLS failed: {getattr(error, 'verify_message', '') or error.reason or error}")
        except OSError as error:
            if self._tls is not None and not isinstance(error, ConnectionRefusedError) and error.errno is None:
                x.fail("tls", f"TLS failed: {error}")
            else:
                x.fail("connect", f"no connection to {self.endpoint.host}:{self.endpoint.port}: {reason(error)}")
        else:
            return connection
        x.end = monotonic_ns()
        return None

    def _released(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if connection.reusable and self._keep_alive:
            if connection not in self._idle:
                self._idle.append(connection)
        else:
            if connection in self._idle:
                self._idle.remove(connection)
            connection.close()

    def _sweep(self) -> None:
        """Give up what has taken too long."""
        now = monotonic_ns()
        limits = self.timeouts
        for connection in list(self._busy):
            x = connection.exchange
            if x is None:
                continue
            if x.done and now - x.last_activity > DONE_GRACE_NS:
                connection.give_up("", "")
            elif now - x.last_activity > limits.idle_s * 1e9:
                what = "no answer" if x.headers is None else f"nothing more after {len(x.events)} token events"
                connection.give_up("timeout", f"{what} within {limits.idle_s:g} s")
            elif now - (x.dequeued or now) > limits.total_s * 1e9:
                connection.give_up("timeout", f"not done within {limits.total_s:g} s")
        self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)


def reason(error: OSError) -> str:
    """What the system says, without addresses and numbers."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error)
