"""What one answer says, event by event: server-sent events, chat and completion chunks, and the raw record of them.

Kept apart from the socket so that the laws of parsing (any split of the bytes gives the same events) need none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from gambrel.measure.record import Record, Usage

if TYPE_CHECKING:
    import asyncio

    from gambrel.measure.record import Int64s

__all__ = ["EventStream", "Exchange", "apportion", "message_of"]

DETAIL_LIMIT: Final = 200


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _UsageBody(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None

    def usage(self) -> Usage:
        prompt, output = self.prompt_tokens_details, self.completion_tokens_details
        return Usage(
            self.prompt_tokens,
            self.completion_tokens,
            None if prompt is None else prompt.cached_tokens,
            None if output is None else output.reasoning_tokens,
        )


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _UsageBody | None = None
    error: Any = None
    object: str | None = None
    message: str | None = None


_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode


def apportion(total: int, weights: list[int]) -> list[int]:
    """``total`` whole tokens over events by the length of their text, at least one each where there are enough.

    Largest remainders; the parts add up to ``total``. With fewer tokens than events the first ones get one each.
    """
    n = len(weights)
    if total <= n:
        return [1] * total + [0] * (n - total)
    whole = sum(weights) or n
    spare = total - n
    shares = [spare * (w or (0 if sum(weights) else 1)) / whole for w in weights]
    parts = [int(s) for s in shares]
    left = spare - sum(parts)
    for i in sorted(range(n), key=lambda i: parts[i] - shares[i])[:left]:
        parts[i] += 1
    return [1 + p for p in parts]


class Exchange:
    """One request under way: what :class:`Connection` fills in and :meth:`record` freezes.

    ``payload`` is the whole request, head and body. ``expect_tokens`` is what ignore_eos forces the answer to have,
    or None.
    """

    __slots__ = (
        "body", "bytes_received", "bytes_sent", "conn_start", "dequeued", "detail", "done", "end", "error", "events",
        "expect_tokens", "finish_reason", "first_byte", "first_content", "headers", "intended", "last_activity",
        "lengths", "merged_reads", "meta", "payload", "reads", "retry_after_s", "sent", "server_counts", "status",
        "usage", "waiter",
    )  # fmt: skip

    def __init__(self, payload: bytes, intended: int, expect_tokens: int | None = None, **meta: Any) -> None:
        self.payload = payload
        self.intended = intended
        self.expect_tokens = expect_tokens
        self.meta = meta
        self.dequeued: int | None = None
        self.conn_start: int | None = None
        self.sent: int | None = None
        self.headers: int | None = None
        self.first_byte: int | None = None
        self.first_content: int | None = None
        self.end: int | None = None
        self.last_activity = intended
        self.events: list[int] = []  # monotonic ns of every token event
        self.lengths: list[int] = []  # characters of its text
        self.server_counts: list[int] = []  # the server's running total at each, where it says it
        self.status = 0
        self.error = ""
        self.detail = ""
        self.finish_reason = ""
        self.usage: Usage | None = None
        self.done = False
        self.body = b""
        self.bytes_sent = 0
        self.bytes_received = 0
        self.reads = 0
        self.merged_reads = 0
        self.retry_after_s: float | None = None
        self.waiter: asyncio.Future[None] | None = None

    def fail(self, error: str, detail: str) -> None:
        """Note what went wrong; the first cause counts."""
        if not self.error:
            self.error, self.detail = error, detail[:DETAIL_LIMIT]

    def again(self) -> None:
        """Forget a send on a kept connection that the server had closed: nothing of an answer had come."""
        self.error, self.detail, self.end, self.sent, self.waiter = "", "", None, None, None

    def chunk(self, text: bytes, now: int) -> bool:
        """Take one JSON document of the answer; whether it carried a token."""
        try:
            chunk = _decode_chunk(text)
        except msgspec.DecodeError as error:
            self.fail("protocol", f"an event is no chat or completion chunk: {error}")
            return False
        if chunk.error is not None or chunk.object == "error":
            self.fail("stream", message_of(text))
            return False
        carried = False
        for choice in chunk.choices or ():
            delta = choice.delta or choice.message
            if delta is not None:
                visible, hidden = delta.content, delta.reasoning_content or delta.reasoning
                if visible or hidden or delta.tool_calls:
                    carried = True
                    calls = sum(len(c) for c in delta.tool_calls) if delta.tool_calls else 0
                    self._event(now, len(visible or "") + len(hidden or "") + calls, content=bool(visible))
            elif choice.text:
                carried = True
                self._event(now, len(choice.text), content=True)
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
        if chunk.usage is not None:
            self.usage = chunk.usage.usage()
            if carried and chunk.usage.completion_tokens is not None:
                self.server_counts.append(chunk.usage.completion_tokens)
        return carried

    def _event(self, now: int, length: int, *, content: bool) -> None:
        self.events.append(now)
        self.lengths.append(length)
        if content and self.first_content is None:
            self.first_content = now

    def verdict(self) -> None:
        """The body ended in order: is it an answer?"""
        if self.error:
            return
        if not self.events:
            self.fail("empty", "the answer ended without a token")
        elif not self.done and not self.finish_reason:
            self.fail("incomplete", "the stream ended without finish reason or [DONE]")
        elif self.expect_tokens is not None and self.usage is not None:
            got = self.usage.completion_tokens
            if got is not None and got < self.expect_tokens:
                self.fail("short", f"{got} tokens of {self.expect_tokens}, finish reason {self.finish_reason!r}")

    def counted(self) -> tuple[Int64s, str]:
        """Tokens of each event, and how they are known."""
        n = len(self.events)
        total = None if self.usage is None else self.usage.completion_tokens
        if n and len(self.server_counts) == n:
            totals = np.array([0, *self.server_counts], np.int64)
            return totals[1:] - totals[:-1], "usage.event"
        if total is None or (self.error and total < n):
            return np.ones(n, np.int64), "events"
        if total == n:
            return np.ones(n, np.int64), "usage"
        return np.array(apportion(total, self.lengths), np.int64), "usage.split"

    def record(self) -> Record:
        """The raw record; call it once the exchange has ended."""
        tokens, basis = self.counted()
        times = np.array([self.sent or 0, *self.events], np.int64)
        return Record(
            t_intended_ns=self.intended,
            t_dequeued_ns=self.dequeued,
            t_conn_start_ns=self.conn_start,
            t_sent_ns=self.sent,
            t_headers_ns=self.headers,
            t_first_byte_ns=self.first_byte,
            t_first_token_ns=self.events[0] if self.events else None,
            t_first_content_ns=self.first_content,
            t_last_token_ns=self.events[-1] if self.events else None,
            t_end_ns=self.end,
            gap_ns=times[1:] - times[:-1],
            tokens=tokens,
            token_basis=basis,
            status=self.status,
            error=self.error,
            detail=self.detail,
            finish_reason=self.finish_reason,
            usage=self.usage,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            reads=self.reads,
            merged_reads=self.merged_reads,
            retry_after_s=self.retry_after_s,
            **self.meta,
        )


def message_of(body: bytes) -> str:
    """The message of an error document of any common shape, else the start of the text."""
    try:
        found: Any = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return " ".join(body[:DETAIL_LIMIT].decode("utf-8", "replace").split())
    for _ in range(3):
        if not isinstance(found, dict):
            break
        found = next((found[k] for k in ("error", "message", "detail", "msg") if found.get(k)), "no message")
    return " ".join(str(found).split())[:DETAIL_LIMIT]


class EventStream:
    """Server-sent events out of bytes that may be split anywhere: :meth:`feed` gives the complete ``data`` fields."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every event that ``data`` completes; comments and other fields are dropped."""
        text = self._rest + data if self._rest else data
        if b"\r" in text:
            held = text.endswith(b"\r")  # its LF may come with the next read
            text = text[: len(text) - held].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            blocks = text.split(b"\n\n")
            self._rest = blocks.pop() + b"\r" * held
        else:
            blocks = text.split(b"\n\n")
            self._rest = blocks.pop()
        found = []
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                found.append(block[6:])
                continue
            lines = [
                line[5:].removeprefix(b" ")
                for line in block.lstrip(b"\xef\xbb\xbf").split(b"\n")
                if line.startswith(b"data:")
            ]
            if lines:
                found.append(b"\n".join(lines))
        return found

    def flush(self) -> list[bytes]:
        """What an ended stream leaves, in case the last event lacks its empty line."""
        rest, self._rest = self._rest, b""
        return EventStream().feed(rest + b"\n\n") if rest.strip() else []
