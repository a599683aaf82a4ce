"""The recording proxy: bytes pass unchanged, figures are right, nothing private is kept, and nothing brings it down."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gambrel.core.errors import EndpointError
from gambrel.measure.http1 import listen
from gambrel.measure.recorder import Entry, LogFile, Recorder, Upstream, record_traffic
from gambrel.measure.server import serve
from gambrel.measure.twin import Twin
from gambrel.traffic import read_workload
from measure_wire import address, exchange, get, needs_openssl, post, tls_server
from twin_case import TableCost, small_deployment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from gambrel.measure.http1 import Reply, Request


@asynccontextmanager
async def twin(seconds: float = 0.002) -> AsyncIterator[str]:
    shape = small_deployment()
    engine = Twin(shape, TableCost(shape, seconds), model="m")
    listener = await serve(engine, port=0)
    try:
        yield listener.url
    finally:
        await listener.close()
        engine.close()


@asynccontextmanager
async def proxy(upstream: str, path: Path, **settings: Any) -> AsyncIterator[tuple[str, Recorder]]:
    recorder = Recorder(upstream, LogFile(path), **settings)
    listener = await listen(recorder)
    try:
        yield listener.url, recorder
    finally:
        await listener.close()
        recorder.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def words(n: int) -> str:
    return " ".join(["secret"] * n)


def test_it_counts_times_and_keeps_nothing_private(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "log.jsonl"
        async with twin() as url, proxy(url, path) as (front, _):
            body = {"prompt": words(9), "max_tokens": 12, "stream": True, "user": "anna"}
            headers = "Authorization: Bearer key-123\r\n"
            streamed = await exchange(front, post("/v1/completions", body, headers))
            events = streamed.events()
            assert events[-1] == "[DONE]"
            assert len(events) == 13  # twelve tokens and the end: the usage that nobody asked for was taken out
            assert not any(isinstance(e, dict) and e.get("usage") for e in events)
            asked = body | {"stream_options": {"include_usage": True}, "user": "bert"}
            assert (await exchange(front, post("/v1/completions", asked))).events()[-2]["usage"]["prompt_tokens"] == 9
            whole = await exchange(front, post("/v1/chat/completions", {
                "messages": [{"role": "user", "content": words(3)}], "max_tokens": 5, "user": "anna"}))  # fmt: skip
            assert whole.json()["usage"]["completion_tokens"] == 5
            assert (await exchange(front, get("/v1/models"))).json()["data"][0]["id"] == "m"
        found = lines(path)
        assert [(e["prompt_tokens"], e["output_tokens"]) for e in found] == [(9, 12), (9, 12), (3, 5)]
        assert {e["gambrel_log"] for e in found} == {1}
        assert 0.001 < found[0]["ttft_s"] < found[0]["last_token_s"] <= found[0]["service_s"]
        assert 0.020 < found[0]["last_token_s"] - found[0]["ttft_s"] < 0.1  # 11 x 2 ms, and what a busy machine adds
        assert found[0]["session"] == found[2]["session"] != found[1]["session"]
        assert abs(found[0]["arrival_s"] - time.time()) < 60
        text = path.read_text()
        for private in ("secret", "key-123", "anna", "the", "Bearer"):
            assert private not in text

    asyncio.run(main())


def test_gambrel_workload_reads_it(tmp_path: Path) -> None:
    async def main(path: Path) -> None:
        async with twin() as url, proxy(url, path) as (front, _):
            for n in (5, 6, 7):
                await exchange(front, post("/v1/completions", {"prompt": words(n), "max_tokens": n, "stream": True}))
            await exchange(front, post("/v1/completions", {"prompt": ""}))  # 400

    path = tmp_path / "log.jsonl"
    asyncio.run(main(path))
    workload = read_workload(path)
    assert workload.prompt_tokens.tolist() == [5, 6, 7]
    assert workload.output_tokens.tolist() == [5, 6, 7]
    assert workload.service_s is not None
    assert workload.has_arrivals


def test_requests_left_untouched_are_counted_by_events(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "log.jsonl"
        async with twin() as url, proxy(url, path, ask_usage=False) as (front, _):
            await exchange(front, post("/v1/completions", {"prompt": "a", "max_tokens": 4, "stream": True}))
        (found,) = lines(path)
        assert (found["output_tokens"], found["tokens_from"], found["prompt_tokens"]) == (4, "events", 0)

    asyncio.run(main())


async def upstream_of(answer: Callable[[Request, Reply], None]) -> Any:
    return await listen(answer)


def test_faults_of_the_upstream_and_of_the_client(tmp_path: Path) -> None:
    chunk = b'data: {"choices":[{"index":0,"text":"x","finish_reason":null}]}\r\n\r\n'

    def answer(request: Request, reply: Reply) -> None:
        kind = request.path.split("/")[1]
        if kind == "busy":
            reply.send(429, b'{"error": {"message": "later"}}', headers=(("Retry-After", "3"),))
        elif kind == "cut":
            reply.begin(200, "text/event-stream")
            reply.write(chunk)
            asyncio.get_running_loop().call_later(0.05, reply.abort)
        elif kind == "error":
            reply.begin(200, "text/event-stream")
            reply.end(chunk + b'data: {"error": {"message": "oom"}}\n\n')
        elif kind == "slow":
            reply.begin(200, "text/event-stream")
            reply.write(chunk)
        elif kind == "split":  # events split across writes
            reply.begin(200, "text/event-stream")
            whole = chunk * 3 + b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":3}}\r\n\r\n'
            for i in range(0, len(whole), 7):
                reply.write(whole[i : i + 7])
            reply.end(b"data: [DONE]\r\n\r\n")
        else:
            reply.send(200, b"not json")

    async def main() -> None:
        path = tmp_path / "log.jsonl"
        behind = await upstream_of(answer)
        body = {"prompt": "a", "stream": True}
        async with proxy(behind.url, path) as (front, _):
            busy = await exchange(front, post("/busy/v1/completions", body))
            assert busy.status == 429
            assert busy.head is not None
            assert busy.head.get("retry-after") == "3"
            with pytest.raises(Exception, match="middle"):
                await exchange(front, post("/cut/v1/completions", body))
            await exchange(front, post("/error/v1/completions", body))
            split = await exchange(front, post("/split/v1/completions", body))
            assert split.body == chunk * 3 + b"data: [DONE]\r\n\r\n"
            assert (await exchange(front, post("/plain/v1/completions", {"prompt": "a"}))).body == b"not json"
            reader, writer = await asyncio.open_connection(*address(front))
            writer.write(post("/slow/v1/completions", body))
            await reader.readuntil(b'"text"')
            writer.transport.abort()
            await asyncio.sleep(0.1)
            assert not any(c.since_s for c in behind.connections)
        found = lines(path)
        assert [e.get("error", "") for e in found] == ["http", "cut", "stream", "", "protocol", "client"]
        assert (found[3]["prompt_tokens"], found[3]["output_tokens"]) == (2, 3)
        await behind.close()
        async with proxy(behind.url, tmp_path / "dead.jsonl") as (front, _):
            dead = await exchange(front, post("/v1/completions", body))
            assert dead.status == 502
            assert "did not answer" in dead.json()["error"]["message"]
        assert lines(tmp_path / "dead.jsonl")[0]["error"] == "connect"

    asyncio.run(main())


def test_a_kept_connection_that_died_is_tried_once_more(tmp_path: Path) -> None:
    async def main() -> None:
        seen = []

        def answer(request: Request, reply: Reply) -> None:
            seen.append(request.path)
            reply.send(200, b"{}")

        behind = await upstream_of(answer)
        async with proxy(behind.url, tmp_path / "log.jsonl") as (front, _):
            assert (await exchange(front, get("/a"))).status == 200
            behind.handler = lambda _, reply: reply.abort()
            for connection in list(behind.connections):
                connection.transport.pause_reading()  # so that the next request is met by a closing socket
            behind.handler = answer
            for connection in list(behind.connections):
                connection.transport.abort()
            assert (await exchange(front, get("/b"))).status == 200
        await behind.close()
        assert seen == ["/a", "/b"]

    asyncio.run(main())


def test_it_adds_less_than_a_millisecond(tmp_path: Path) -> None:
    async def main() -> None:
        async with twin(0.004) as url, proxy(url, tmp_path / "log.jsonl") as (front, _):
            asked = post("/v1/completions", {"prompt": words(50), "max_tokens": 20, "stream": True})

            async def first(at: str) -> float:
                sent = asyncio.get_running_loop().time()
                return (await exchange(at, asked)).pieces[0][0] - sent

            for at in (url, front):
                await first(at)
            added = []
            for _ in range(3):  # a busy machine may spoil one round
                pairs = [(await first(url), await first(front)) for _ in range(25)]
                direct, through = np.median(np.array(pairs), axis=0)
                added.append(through - direct)
                if added[-1] < 1e-3:
                    break
            assert min(added) < 1e-3

    asyncio.run(main())


def test_files_rotate_and_old_ones_go(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log.jsonl", max_bytes=300, keep=2)
    for i in range(20):
        log.write(Entry(arrival_s=float(i), prompt_tokens=1, output_tokens=1, service_s=0.1))
    log.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert all(f.stat().st_size <= 300 for f in files)
    kept = sorted(e["arrival_s"] for f in files for e in lines(f))
    assert kept == [float(i) for i in range(20 - len(kept), 20)]
    assert log.written == 20


def test_a_full_disk_costs_lines_not_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    log = LogFile(tmp_path / "log.jsonl", complain=said.append)
    entry = Entry(arrival_s=1.0, prompt_tokens=1, output_tokens=1, service_s=0.1)

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gambrel.measure.recorder.os.write", full)
    log.write(entry)
    log.write(entry)
    assert log.lost == 2
    assert len(said) == 1
    assert "No space left" in said[0]


def test_clear_words(tmp_path: Path) -> None:
    for bad in ("ftp://x", "http://", "http://x:port", "http://[::1", "foo", "localhost:8000"):
        with pytest.raises(EndpointError, match="--upstream must be a URL"):
            Upstream.parse(bad)
    assert Upstream.parse("http://localhost:8000/base/") == Upstream("localhost", 8000, tls=False, prefix="/base")
    assert Upstream.parse("https://api.example.com").authority == "api.example.com"
    with pytest.raises(EndpointError, match="cannot write"):
        LogFile(tmp_path)
    with pytest.raises(EndpointError, match="cannot listen"):
        asyncio.run(record_traffic("http://x", LogFile(tmp_path / "l.jsonl"), host="host.invalid"))


@needs_openssl
def test_an_upstream_that_speaks_tls(tmp_path: Path) -> None:
    context, cert = tls_server(tmp_path)
    log = tmp_path / "log.jsonl"

    async def main() -> None:
        async with twin() as url:

            async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(1 << 16):
                    sink.write(data)
                sink.close()

            async def end_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                inner = await asyncio.open_connection(*address(url))
                await asyncio.gather(pipe(reader, inner[1]), pipe(inner[0], writer), return_exceptions=True)

            door = await asyncio.start_server(end_tls, "127.0.0.1", 0, ssl=context)
            upstream = f"https://127.0.0.1:{door.sockets[0].getsockname()[1]}"
            ask = post("/v1/completions", {"prompt": words(9), "max_tokens": 12, "stream": True})
            async with proxy(upstream, log, ca_file=cert) as (front, _):
                assert (await exchange(front, ask)).events()[-1] == "[DONE]"
            async with proxy(upstream, log) as (front, _):
                refused = await exchange(front, ask)
            assert refused.status == 502
            assert "certificate" in refused.body.decode().lower()
            door.close()

    asyncio.run(main())
    first = lines(log)[0]
    assert (first["prompt_tokens"], first["output_tokens"]) == (9, 12)
    with pytest.raises(EndpointError, match="cannot read the certificates"):
        asyncio.run(record_traffic("https://127.0.0.1:1", LogFile(log), ca_file="missing.pem"))
