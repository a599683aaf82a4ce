"""A server of known truth: it answers when its script says, to a fraction of a millisecond, and keeps its own times.

A client can only be called exact against something that knows better. The mock lives in its own process (else the two
would wait for one interpreter), sleeps in ``select`` (event loops round timers to milliseconds), gives each stream
absolute deadlines (so lateness never adds up), and reports when it truly wrote every event. Its script also plays the
faults that servers show in practice. Standard library and msgspec only; ``python -m gambrel.measure.mock`` reads a
script from standard input, prints its port, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import selectors
import socket
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from gambrel.core.errors import EndpointError
from gambrel.measure.child import STDIN, STDOUT, begun, told
from gambrel.measure.machine import raise_file_limit

if TYPE_CHECKING:
    import subprocess
    from types import TracebackType

__all__ = ["MockServer", "Script", "Truth", "serve"]


class Script(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the mock does to every request; seconds, tokens.

    Attributes:
        ttft_s: from receiving the request to writing the first token.
        gap_s: between events after that; absolute deadlines.
        service_s: when above 0, one request at a time is served, in order, each for so long, and its whole answer
            comes at the end: a D/D/1 queue under constant arrivals.
        output_tokens: tokens of each answer; None obeys ``max_tokens``.
        tokens_per_event: tokens in each event after the first, which has one (as vLLM's stream interval does).
        text: the text of a token.
        role_s: when set, a role event with empty content goes out that long after the request.
        reasoning_tokens: so many tokens come as ``reasoning_content`` first.
        usage: ``False`` leaves the usage out though it was asked for; ``True`` sends it; ``event`` with each event.
        done: whether ``[DONE]`` and the finish reason end the stream.
        comment_every_s: keep-alive comments until the first token.
        newline: line end of the event stream.
        split_bytes: write in pieces of so many bytes; 0 writes whole events.
        until_close: the body has no length and ends with the connection.
        closes: the connection is closed after each answer, though nothing says so.
        status, body, retry_after: answer so instead, for the first ``refusals`` requests (None: for all).
        unsupported: request fields that are refused with 400, as strict servers do.
        error_after, cut_after, hang_after: after so many events an error event, a reset, or silence.
        short_by: so many tokens fewer than asked.
        template_tokens, wide_words: prompt tokens are words plus these; words of ``wide_words`` count twice.
        cached_ttft_s: time to first token of a prompt whose first 64 words were seen before; None: no cache.
        model: the one model it has; any other is a 404; empty takes all.
        key: the bearer key it wants; empty wants none.
    """

    ttft_s: float = 0.1
    gap_s: float = 0.01
    service_s: float = 0.0
    output_tokens: int | None = None
    tokens_per_event: int = 1
    text: str = " token"
    role_s: float | None = None
    reasoning_tokens: int = 0
    usage: bool | str = True
    done: bool = True
    comment_every_s: float = 0.0
    newline: str = "\n"
    split_bytes: int = 0
    until_close: bool = False
    closes: bool = False
    status: int = 200
    body: str = ""
    retry_after: str = ""
    refusals: int | None = None
    unsupported: tuple[str, ...] = ()
    error_after: int | None = None
    cut_after: int | None = None
    hang_after: int | None = None
    short_by: int = 0
    template_tokens: int = 0
    wide_words: tuple[str, ...] = ()
    cached_ttft_s: float | None = None
    model: str = ""
    key: str = ""


class Truth(msgspec.Struct, frozen=True):
    """What the mock did for one request: monotonic ns of its receipt and of every token event it wrote."""

    request_id: str
    received_ns: int
    written_ns: list[int]
    tokens: list[int]
    prompt_tokens: int
    late_ns: list[int]


@dataclass(eq=False)
class _Client:
    sock: socket.socket
    inbox: bytes = b""
    outbox: bytes = b""
    closing: bool = False
    streams: int = 0


@dataclass(eq=False)
class _Stream:
    client: _Client
    truth: Truth
    parts: list[tuple[int, bytes, int]]  # (deadline ns, bytes, tokens), in order of time
    at: int = 0
    tail: str = ""  # "cut", "hang", "close" or "": what follows the last part
    running: bool = False


TLS_HELLO: Final = b"\x16\x03"
# struct linger {on, 0 s}: close() sends a reset instead of an orderly end.
RESET: Final = b"\x01\x00\x00\x00\x00\x00\x00\x00"


class _Mock:
    """The loop: one thread, one selector, one heap of deadlines."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.heap: list[tuple[int, int, _Stream]] = []
        self.truths: list[Truth] = []
        self.sequence = 0
        self.free_at = 0
        self.refused = 0
        self.running = 0
        self.total_tokens = 0
        self.seen: set[str] = set()
        self.stdin_open = True

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.listener.getsockname()[1])

    def run(self) -> None:
        """Until standard input ends."""
        self.selector.register(STDIN, selectors.EVENT_READ, "stdin")
        # The selector's own time-outs are whole milliseconds; select() on it has microseconds.
        outer = self.selector.fileno()
        while self.stdin_open:
            wait = None if not self.heap else max(0.0, (self.heap[0][0] - monotonic_ns()) / 1e9)
            ready, _, _ = select.select([outer], [], [], wait)
            if self.heap:
                self._due()
            if ready:
                for key, mask in self.selector.select(0):
                    self._event(key, mask)

    def _event(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.data is None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock, _ = self.listener.accept()
                    sock.setblocking(False)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.selector.register(sock, selectors.EVENT_READ, _Client(sock))
        elif key.data == "stdin":
            self.stdin_open = bool(os.read(STDIN, 1 << 12))
        else:
            client: _Client = key.data
            if mask & selectors.EVENT_WRITE:
                self._write(client, b"")
            if mask & selectors.EVENT_READ:
                self._read(client)

    def _read(self, client: _Client) -> None:
        try:
            data = client.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        now = monotonic_ns()
        client.inbox += data
        if client.inbox.startswith(TLS_HELLO):
            self._answer(client, 400, b"this is plain HTTP", "Connection: close\r\n")
            self._drop(client)
            return
        while True:
            end = client.inbox.find(b"\r\n\r\n")
            if end < 0:
                return
            lines = client.inbox[:end].split(b"\r\n")
            fields = {n.strip().lower(): v.strip() for n, _, v in (x.partition(b":") for x in lines[1:])}
            size = int(fields.get(b"content-length", b"0"))
            if len(client.inbox) < end + 4 + size:
                return
            body = client.inbox[end + 4 : end + 4 + size]
            client.inbox = client.inbox[end + 4 + size :]
            method, path, _ = lines[0].split(b" ", 2)
            self._request(client, method.decode(), path.decode(), fields, body, now)

    def _drop(self, client: _Client) -> None:
        client.closing = True
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(client.sock)
        client.sock.close()

    def _write(self, client: _Client, data: bytes) -> None:
        if client.closing:
            return
        data = client.outbox + data
        client.outbox = b""
        try:
            sent = client.sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(client)
            return
        if sent < len(data):
            client.outbox = data[sent:]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.outbox else 0)
        if self.selector.get_key(client.sock).events != wanted:
            self.selector.modify(client.sock, wanted, client)

    def _answer(
        self, client: _Client, status: int, body: bytes, extra: str = "", kind: str = "application/json"
    ) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        self._write(client, head.encode() + body)

    def _request(
        self, client: _Client, method: str, path: str, fields: dict[bytes, bytes], body: bytes, now: int
    ) -> None:
        if path == "/truth":
            self._answer(client, 200, msgspec.json.encode(self.truths))
        elif path == "/script":
            self.script = msgspec.json.decode(body, type=Script)
            self.truths, self.refused, self.free_at = [], 0, 0
            self._answer(client, 200, b"{}")
        elif path == "/metrics":
            text = (
                f'vllm:num_requests_running{{model_name="mock"}} {float(self.running)}\n'
                f'vllm:num_requests_waiting{{model_name="mock"}} 0.0\n'
                f'vllm:generation_tokens_total{{model_name="mock"}} {float(self.total_tokens)}\n'
            )
            self._answer(client, 200, text.encode(), kind="text/plain")
        elif path == "/v1/models":
            self._answer(client, 200, msgspec.json.encode({"data": [{"id": self.script.model or "mock"}]}))
        elif method == "POST" and path in {"/v1/chat/completions", "/v1/completions"}:
            self._complete(client, fields, body, now, chat="chat" in path)
        else:
            self._answer(client, 404, b'{"error":{"message":"no such path"}}')

    def _refusal(self, fields: dict[bytes, bytes], request: dict[str, Any]) -> tuple[int, str] | None:
        s = self.script
        if s.key and fields.get(b"authorization", b"") != f"Bearer {s.key}".encode():
            return 401, '{"error":{"message":"invalid api key"}}'
        if s.model and request.get("model") != s.model:
            return 404, '{"error":{"message":"The model does not exist"}}'
        for name in s.unsupported:
            if name in request:
                return 400, msgspec.json.encode(
                    {"error": {"message": f"Unrecognized request argument: {name}"}}
                ).decode()
        if s.status != 200 and (s.refusals is None or self.refused < s.refusals):
            self.refused += 1
            return s.status, s.body or '{"error":{"message":"as the script says"}}'
        return None

    def _complete(self, client: _Client, fields: dict[bytes, bytes], body: bytes, now: int, *, chat: bool) -> None:
        s = self.script
        request: dict[str, Any] = msgspec.json.decode(body)
        refusal = self._refusal(fields, request)
        if refusal is not None:
            extra = f"Retry-After: {s.retry_after}\r\n" if s.retry_after else ""
            extra += "Location: /elsewhere\r\n" if 300 <= refusal[0] < 400 else ""
            self._answer(client, refusal[0], refusal[1].encode(), extra)
            return
        prompt = "".join(m["content"] for m in request["messages"]) if chat else request["prompt"]
        words = prompt.split()
        wide = set(s.wide_words)
        prompt_tokens = len(words) + s.template_tokens + (sum(w in wide for w in words) if wide else 0)
        asked = request.get("max_tokens") or request.get("max_completion_tokens") or 16
        wanted = max((s.output_tokens or int(asked)) - s.short_by, 0)
        truth = Truth(fields.get(b"x-request-id", b"").decode(), now, [], [], prompt_tokens, [])
        self.truths.append(truth)
        usage = bool(s.usage) and bool((request.get("stream_options") or {}).get("include_usage"))
        stream = _Stream(client, truth, [], running=True)
        self._plan(stream, now, self._ttft_ns(words), wanted, usage=usage, chat=chat)
        self.running += 1
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n" + (
            "Connection: close\r\n\r\n" if s.until_close else "Transfer-Encoding: chunked\r\n\r\n"
        )
        self._write(client, head.encode())
        self._push(stream)

    def _ttft_ns(self, words: list[str]) -> int:
        s = self.script
        if s.cached_ttft_s is None:
            return round(s.ttft_s * 1e9)
        start = " ".join(words[:64])
        known = start in self.seen
        self.seen.add(start)
        return round((s.cached_ttft_s if known else s.ttft_s) * 1e9)

    def _plan(self, stream: _Stream, now: int, ttft: int, wanted: int, *, usage: bool, chat: bool) -> None:
        """Lay out the whole answer: what to write when."""
        s = self.script
        parts = stream.parts
        if s.service_s > 0:
            self.free_at = max(self.free_at, now) + round(s.service_s * 1e9)
            ttft, gap = self.free_at - now, 0
        else:
            gap = round(s.gap_s * 1e9)
        first = now + ttft
        if s.role_s is not None:
            delta = {"delta": {"role": "assistant", "content": ""}}
            parts.append((now + round(s.role_s * 1e9), self._frame({"choices": [{"index": 0, **delta}]}), 0))
        if s.comment_every_s > 0:
            step = round(s.comment_every_s * 1e9)
            parts.extend((t, self._wrap(f": waiting{s.newline}{s.newline}"), 0) for t in range(now + step, first, step))
        given, k, when = 0, 0, first
        plain = self._frame(self._piece(s.text, hidden=False, chat=chat, count=None))
        while given < wanted:
            when = first + k * gap
            if s.error_after == k:
                parts.append((when, self._frame({"error": {"message": "out of memory", "code": 500}}), 0))
                parts.append((when, self._end(), 0))
                return
            if k in {s.cut_after, s.hang_after}:
                stream.tail = "cut" if k == s.cut_after else "hang"
                parts.append((when, b"", 0))
                return
            n = min(1 if k == 0 else s.tokens_per_event, wanted - given)
            hidden = given < s.reasoning_tokens
            each = {"completion_tokens": given + n, "prompt_tokens": stream.truth.prompt_tokens}
            simple = n == 1 and not hidden and s.usage != "event"
            parts.append((
                when,
                plain if simple else self._frame(
                    self._piece(s.text * n, hidden=hidden, chat=chat, count=each if s.usage == "event" else None)
                ),
                n,
            ))  # fmt: skip
            given, k = given + n, k + 1
        last = b""
        if s.done:
            choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
            choice["delta" if chat else "text"] = {} if chat else ""
            last += self._frame({"choices": [choice]})
        if usage:
            counts = {"prompt_tokens": stream.truth.prompt_tokens, "completion_tokens": given}
            last += self._frame({"choices": [], "usage": {**counts, "total_tokens": sum(counts.values())}})
        if s.done:
            last += self._wrap(f"data: [DONE]{s.newline}{s.newline}")
        parts.append((when, last + self._end(), 0))
        stream.tail = "close" if s.until_close or s.closes else ""
        parts.sort(key=lambda p: p[0])

    def _piece(self, text: str, *, hidden: bool, chat: bool, count: dict[str, int] | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        if not chat:
            choice["text"] = text
        else:
            choice["delta"] = {"reasoning_content" if hidden else "content": text}
        found: dict[str, Any] = {"id": "mock", "object": "chat.completion.chunk", "choices": [choice]}
        return found if count is None else {**found, "usage": count}

    def _frame(self, document: dict[str, Any]) -> bytes:
        end = self.script.newline
        return self._wrap(f"data: {msgspec.json.encode(document).decode()}{end}{end}")

    def _wrap(self, text: str) -> bytes:
        data = text.encode()
        return data if self.script.until_close else b"%x\r\n%s\r\n" % (len(data), data)

    def _end(self) -> bytes:
        return b"" if self.script.until_close else b"0\r\n\r\n"

    def _push(self, stream: _Stream) -> None:
        self.sequence += 1
        heapq.heappush(self.heap, (stream.parts[stream.at][0], self.sequence, stream))

    def _due(self) -> None:
        """Write everything whose time has come."""
        heap = self.heap
        while heap and heap[0][0] <= monotonic_ns():
            deadline, _, stream = heap[0]
            if stream.client.closing:
                heapq.heappop(heap)
                self.running -= 1
                continue
            self._play_part(stream, deadline)
            stream.at += 1
            if stream.at < len(stream.parts):
                self.sequence += 1
                heapq.heapreplace(heap, (stream.parts[stream.at][0], self.sequence, stream))
            else:
                heapq.heappop(heap)
                self._end_stream(stream)

    def _play_part(self, stream: _Stream, deadline: int) -> None:
        _, data, tokens = stream.parts[stream.at]
        step = self.script.split_bytes or len(data) or 1
        for i in range(0, len(data), step):
            self._write(stream.client, data[i : i + step])
        if tokens:
            now = monotonic_ns()
            stream.truth.written_ns.append(now)
            stream.truth.tokens.append(tokens)
            stream.truth.late_ns.append(now - deadline)
            self.total_tokens += tokens

    def _end_stream(self, stream: _Stream) -> None:
        if stream.tail == "hang":
            return
        self.running -= 1
        if stream.tail == "cut":
            stream.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if stream.tail in {"cut", "close"}:
            self._drop(stream.client)


def serve() -> None:
    """Read a script from the first line of standard input, print the port, serve until standard input ends."""
    raise_file_limit()
    mock = _Mock(msgspec.json.decode(told(), type=Script))
    os.write(STDOUT, b"%d\n" % mock.port)
    with contextlib.suppress(KeyboardInterrupt):
        mock.run()


@dataclass
class MockServer:
    """The mock in a process of its own, as a context; the process ends with it, or with the process that began it.

    Raises:
        EndpointError: it did not start.
    """

    script: Script = field(default_factory=Script)
    url: str = ""
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process, lines = begun("gambrel.measure.mock", self.script)
        port = lines.readline().strip()
        if not port.isdigit():
            self.kill()
            raise EndpointError("the mock server did not start")
        self.url = f"http://127.0.0.1:{port.decode()}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Its process id."""
        return 0 if self._process is None else self._process.pid

    def kill(self) -> None:
        """End it at once, as a crashing server would."""
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process.wait()
            self._process = None

    def play(self, script: Script) -> None:
        """Change the script, and forget the truth so far."""
        self.script = script
        self._ask("POST", "/script", msgspec.json.encode(script))

    def truths(self) -> dict[str, Truth]:
        """What it did, by request id; of requests with one id, the last."""
        return {t.request_id: t for t in self.all_truths()}

    def all_truths(self) -> list[Truth]:
        """What it did, in order of receipt."""
        return msgspec.json.decode(self._ask("GET", "/truth"), type=list[Truth])

    def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        from http.client import HTTPConnection

        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=30)
        try:
            connection.request(method, path, body)
            return connection.getresponse().read()
        except OSError as error:
            raise EndpointError(f"the mock server at {self.url} is gone: {error}") from None
        finally:
            connection.close()


if __name__ == "__main__":
    serve()
