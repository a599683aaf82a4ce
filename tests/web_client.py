"""The page's application asked in process, without a socket: what the tests of the web face share."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    app: ASGIApp,
    path: str,
    query: Mapping[str, Any] | None = None,
    *,
    method: str = "GET",
    body: bytes | dict[str, Any] = b"",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request; a defect that reaches the server raises here."""
    sent = {"host": "127.0.0.1:8620"} | dict(headers or {})
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": urlencode(query or {}).encode(),
        "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in sent.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8620),
        "root_path": "",
    }
    heard: list[Message] = []

    async def one() -> None:
        parts = [data[i : i + 65536] for i in range(0, len(data), 65536)] or [b""]
        fed = iter({"type": "http.request", "body": p, "more_body": i < len(parts) - 1} for i, p in enumerate(parts))

        async def receive() -> Message:
            return next(fed, {"type": "http.disconnect"})

        async def send(message: Message) -> None:
            heard.append(message)

        await app(scope, receive, send)

    asyncio.run(one())
    start = heard[0]
    return Answer(
        start["status"],
        {k.decode("latin-1"): v.decode("latin-1") for k, v in start["headers"]},
        b"".join(m.get("body", b"") for m in heard[1:]),
    )
