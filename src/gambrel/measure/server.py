"""An OpenAI-compatible door in front of any engine: one small server for the twin and the embedded engine alike.

``/v1/models``, ``/v1/completions`` and ``/v1/chat/completions`` (streamed or whole, with usage), ``/tokenize``,
``/metrics`` under vLLM's names, ``/health`` and ``/version``. What an engine must offer is :class:`Engine`; what it
calls back is :class:`Answer`. Errors have vLLM's shape and status. Nothing that a client sends or does (bad JSON,
a wrong field, a connection cut in the middle) ends the server or leaves a request running for nobody.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gambrel.core.errors import GambrelError
from gambrel.core.version import __version__
from gambrel.measure.http1 import listen

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.measure.exposition import Exposition
    from gambrel.measure.http1 import Listener, Reply, Request

__all__ = ["Answer", "Ask", "Engine", "Prompt", "Refusal", "serve"]

Prompt = str | list[int] | list[dict[str, Any]]
"""A completion's text, its token ids, or the messages of a chat."""

_DONE = b"data: [DONE]\n\n"
_json = msgspec.json.encode


class Refusal(GambrelError):  # noqa: N818 - reads as the sentence it is
    """A request that cannot be served: ``status`` and ``kind`` as vLLM answers them."""

    def __init__(self, status: int, message: str, *, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param

    def body(self) -> bytes:
        """The JSON answer."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}
        return _json({"error": error})


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that the engine is to serve.

    ``prompt_tokens`` is the engine's own count; ``max_tokens`` None means as many as the engine will;
    ``temperature`` None means unsaid; ``received_s`` is when its last byte came (``time.monotonic``); ``client_id`` is
    the client's ``X-Request-Id``.
    """

    id: str
    client_id: str
    prompt: Prompt
    prompt_tokens: int
    max_tokens: int | None
    ignore_eos: bool
    temperature: float | None
    seed: int | None
    stop: tuple[str, ...]
    received_s: float


class Engine(Protocol):
    """What the door needs of an engine; all is called on the event loop's thread and must not block."""

    @property
    def model(self) -> str:
        """The name it serves under."""

    @property
    def max_model_len(self) -> int:
        """Prompt and output tokens of one request at most."""

    @property
    def exposition(self) -> Exposition:
        """Its metrics."""

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Header fields that every answer carries."""

    def count(self, prompt: Prompt) -> tuple[Prompt, int]:
        """The prompt as the engine wants it, and its tokens; Refusal when it cannot be read."""

    def submit(self, ask: Ask, answer: Answer) -> None:
        """Take a request; Refusal when it cannot be served. Tokens go to ``answer``."""

    def cancel(self, ask: Ask) -> None:
        """The client has gone."""

    def refresh(self) -> None:
        """Bring the gauges of :attr:`exposition` up to date."""


class Answer:
    """Where an engine puts its tokens: :meth:`push` them, then :meth:`finish` or :meth:`fail`, once.

    ``push`` writes to the socket at once; text may be empty while a character is incomplete.
    """

    __slots__ = ("_chat", "_events", "_head", "_mid", "_reply", "_text", "_usage", "ask", "created", "model", "tokens")

    def __init__(
        self, ask: Ask, reply: Reply, model: str, *, chat: bool, stream: bool, usage: bool, each_usage: bool
    ) -> None:
        self.ask, self.model, self.created = ask, model, int(time.time())
        self.tokens = 0
        self._reply, self._chat = reply, chat
        self._usage = (usage, each_usage)
        self._text: list[str] = []
        self._events = stream
        kind = "chat.completion.chunk" if chat else "text_completion"
        self._head = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,' % (
            _json(ask.id), kind.encode(), self.created, _json(model),
        )  # fmt: skip
        self._mid = b'"choices":[{"index":0,"delta":{"content":' if chat else b'"choices":[{"index":0,"text":'

    @property
    def gone(self) -> bool:
        """Whether nobody listens any more."""
        return self._reply.lost

    def open(self, headers: tuple[tuple[str, str], ...]) -> None:
        """Send the head of a stream; nothing yet where the answer is to come whole."""
        if self._events:
            self._reply.begin(200, "text/event-stream; charset=utf-8", (("Cache-Control", "no-cache"), *headers))

    def push(self, text: str, tokens: int = 1, reason: str | None = None) -> None:
        """``tokens`` new tokens that read ``text``; with ``reason`` they are the last."""
        first = self.tokens == 0
        self.tokens += tokens
        if not self._events:
            self._text.append(text)
            if reason is not None:
                self._whole(reason)
            return
        data = b""
        if first and self._chat:
            data = self._head + (
                b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
                b'"finish_reason":null}]}\n\n'
            )
        close = b"}" if self._chat else b""
        word = b'"%b"' % reason.encode() if reason is not None else b"null"
        tail = b',"usage":' + _json(self._counts()) if self._usage[1] else b""
        data += b'%b%b%b%b,"logprobs":null,"finish_reason":%b}]%b}\n\n' % (
            self._head, self._mid, _json(text), close, word, tail,
        )  # fmt: skip
        if reason is None:
            self._reply.write(data)
            return
        if self._usage[0]:
            data += self._head + b'"choices":[],"usage":' + _json(self._counts()) + b"}\n\n"
        self._reply.end(data + _DONE)

    def fail(self, refusal: Refusal) -> None:
        """The engine cannot go on: an error status, or an error event where the stream has begun."""
        if self._reply.done:
            return
        if self._reply.started:
            self._reply.end(b"data: " + refusal.body() + b"\n\n" + _DONE)
        else:
            self._reply.send(refusal.status, refusal.body())

    def _counts(self) -> dict[str, int]:
        prompt = self.ask.prompt_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + self.tokens, "completion_tokens": self.tokens}

    def _whole(self, reason: str) -> None:
        text = "".join(self._text)
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        body = {
            "id": self.ask.id,
            "object": "chat.completion" if self._chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": reason}],
            "usage": self._counts(),
        }
        self._reply.send(200, _json(body))


class _Options(msgspec.Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class _Body(msgspec.Struct, kw_only=True):
    """The fields that count; all others are accepted and ignored."""

    model: str | None = None
    prompt: Any = None
    messages: list[dict[str, Any]] | None = None
    stream: bool | None = False
    stream_options: _Options | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = 1
    ignore_eos: bool = False
    temperature: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


class _Door:
    """Routes requests to an engine."""

    def __init__(self, engine: Engine, extra: dict[str, Callable[[Request, Reply], None]]) -> None:
        self._engine = engine
        self._body = msgspec.json.Decoder(_Body)
        self._started = int(time.time())
        self._get: dict[str, Callable[[Request, Reply], None]] = {
            "/health": lambda _, reply: reply.send(200, b"", headers=engine.headers),
            "/version": lambda _, reply: reply.send(200, _json({"version": f"gambrel-{__version__}"})),
            "/v1/models": self._models,
            "/metrics": self._metrics,
            **extra,
        }
        self._post: dict[str, Callable[[Request, Reply], None]] = {
            "/v1/completions": lambda request, reply: self._complete(request, reply, chat=False),
            "/v1/chat/completions": lambda request, reply: self._complete(request, reply, chat=True),
            "/tokenize": self._tokenize,
        }

    def __call__(self, request: Request, reply: Reply) -> None:
        try:
            self._route(request)(request, reply)
        except Refusal as refusal:
            reply.send(refusal.status, refusal.body())

    def _route(self, request: Request) -> Callable[[Request, Reply], None]:
        method, path = request.method, request.path
        routes = {"GET": self._get, "POST": self._post}.get(method, {})
        if path in routes:
            return routes[path]
        if path in self._get or path in self._post:
            raise Refusal(405, f"{method} is not allowed on {path}", kind="MethodNotAllowed")
        known = ", ".join(sorted(self._get | self._post))
        raise Refusal(404, f"no route {path}; known: {known}", kind="NotFoundError")

    def _models(self, _: Request, reply: Reply) -> None:
        card = {
            "id": self._engine.model,
            "object": "model",
            "created": self._started,
            "owned_by": "gambrel",
            "max_model_len": self._engine.max_model_len,
        }
        reply.send(200, _json({"object": "list", "data": [card]}), headers=self._engine.headers)

    def _metrics(self, _: Request, reply: Reply) -> None:
        self._engine.refresh()
        reply.send(200, self._engine.exposition.text(), "text/plain; version=0.0.4; charset=utf-8")

    def _read(self, request: Request, *, chat: bool) -> tuple[_Body, Prompt]:
        try:
            body = self._body.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(400, f"the body is not such a request: {error}") from None
        if body.model is not None and body.model != self._engine.model:
            raise Refusal(
                404, f"The model `{body.model}` does not exist; this server has `{self._engine.model}`.",
                kind="NotFoundError", param="model",
            )  # fmt: skip
        if body.n not in {None, 1}:
            raise Refusal(400, f"n must be 1, got {body.n}", param="n")
        if chat:
            if not body.messages:
                raise Refusal(400, "messages must be a list of at least one message", param="messages")
            return body, body.messages
        prompt = body.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]  # a batch of one
        if isinstance(prompt, str) or (isinstance(prompt, list) and all(type(t) is int for t in prompt)):
            return body, prompt
        raise Refusal(400, "prompt must be one text or one list of token ids", param="prompt")

    def _tokenize(self, request: Request, reply: Reply) -> None:
        body, prompt = self._read(request, chat=b'"messages"' in request.body)
        del body
        ids, count = self._engine.count(prompt)
        tokens = ids if isinstance(ids, list) and len(ids) == count else None
        reply.send(200, _json({"count": count, "max_model_len": self._engine.max_model_len, "tokens": tokens}))

    def _complete(self, request: Request, reply: Reply, *, chat: bool) -> None:
        body, prompt = self._read(request, chat=chat)
        prompt, tokens = self._engine.count(prompt)
        if tokens < 1:
            raise Refusal(400, "the prompt is empty", param="messages" if chat else "prompt")
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        if limit is None and not chat:
            limit = 16  # OpenAI's and vLLM's default for completions
        if limit is not None and limit < 1:
            raise Refusal(400, f"max_tokens must be at least 1, got {limit}", param="max_tokens")
        longest = self._engine.max_model_len
        if tokens + (limit or 1) > longest:
            raise Refusal(
                400, f"This model's maximum context length is {longest} tokens; the request has {tokens} prompt "
                f"tokens and asks for {limit or 1} more.",
            )  # fmt: skip
        options = body.stream_options or _Options()
        ask = Ask(
            id=("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex[:16],
            client_id=request.head.get("x-request-id"),
            prompt=prompt,
            prompt_tokens=tokens,
            max_tokens=limit,
            ignore_eos=body.ignore_eos,
            temperature=body.temperature,
            seed=body.seed,
            stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
            received_s=request.received_s,
        )
        answer = Answer(
            ask, reply, self._engine.model, chat=chat, stream=bool(body.stream),
            usage=options.include_usage, each_usage=options.include_usage and options.continuous_usage_stats,
        )  # fmt: skip
        reply.on_lost = lambda: self._engine.cancel(ask)
        self._engine.submit(ask, answer)
        answer.open(self._engine.headers)


async def serve(
    engine: Engine,
    host: str = "127.0.0.1",
    port: int = 8000,
    extra: dict[str, Callable[[Request, Reply], None]] | None = None,
) -> Listener:
    """Serve an engine; ``extra`` adds GET routes. The address is in ``.url`` of what comes back.

    Raises:
        EndpointError: the address cannot be had.
    """
    return await listen(_Door(engine, extra or {}), host, port)
