"""A bare HTTP client for tests of servers: raw bytes out, parsed bytes in, nothing in between."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from gambrel.measure.http1 import Head, Parser

if TYPE_CHECKING:
    from pathlib import Path

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the openssl program to make a certificate"
)


@dataclass
class Response:
    status: int = 0
    head: Head | None = None
    body: bytes = b""
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of every event; the text itself where it is not JSON."""
        data = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [text if text == "[DONE]" else json.loads(text) for text in data]


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def post(path: str, body: Any, headers: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(data)}\r\n\r\n".encode() + data


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def exchange(url: str, request: bytes, limit_s: float = 20.0) -> Response:
    """Send one request on a connection of its own and read the whole answer."""
    reader, writer = await asyncio.open_connection(*address(url))
    response = Response()
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_head(head: Head) -> None:
        if head.status != 100:
            response.status, response.head = head.status, head

    def on_data(data: bytes) -> None:
        response.body += data
        response.pieces.append((loop.time(), data))

    parser = Parser(on_head, on_data, lambda: done.set() if response.status else None, response=True)
    writer.write(request)

    async def read() -> None:
        while not done.is_set():
            data = await reader.read(65536)
            if not data:
                parser.eof()
                return
            parser.feed(data)

    try:
        await asyncio.wait_for(read(), limit_s)
    finally:
        writer.close()
    return response


def tls_server(folder: Path) -> tuple[ssl.SSLContext, str]:
    """A server's context with a certificate for 127.0.0.1 that nobody trusts yet, and the file to trust it by."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(cert),  # noqa: S607
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, str(cert)
