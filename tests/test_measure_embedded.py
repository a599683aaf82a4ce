"""The embedded engine: real tokens of a real model over HTTP, or a clear word on what is missing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from gambrel.core.errors import EndpointError
from gambrel.measure import embedded
from gambrel.measure.embedded import Embedded, gguf_path, missing_packages
from gambrel.measure.server import serve
from measure_wire import address, exchange, get, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gambrel.measure.http1 import Listener

needs_engine = pytest.mark.skipif(
    bool(missing_packages()), reason=f"needs {', '.join(missing_packages())}: {embedded.INSTALL}"
)


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "missing_packages", lambda: ("openvino-genai",))
    with pytest.raises(EndpointError, match=r"openvino-genai.*requirements-engine\.txt"):
        gguf_path()


@needs_engine
def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF, not")
    with pytest.raises(EndpointError, match="OpenVINO cannot load it"):
        Embedded(bad)
    with pytest.raises(EndpointError, match="max_num_seqs"):
        Embedded(max_num_seqs=0)


@pytest.fixture(scope="module")
def engine() -> Embedded:
    return Embedded(max_num_seqs=8, max_num_batched_tokens=256)


@asynccontextmanager
async def served(engine: Embedded) -> AsyncIterator[Listener]:
    listener = await serve(engine, port=0)
    try:
        yield listener
    finally:
        await listener.close()


@needs_engine
@pytest.mark.slow
def test_it_answers_streams_and_counts(engine: Embedded) -> None:
    async def main() -> None:
        async with served(engine) as listener:
            asked = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 12}
            whole = (await exchange(listener.url, post("/v1/chat/completions", asked))).json()
            assert "Paris" in whole["choices"][0]["message"]["content"]
            streamed = await exchange(
                listener.url,
                post("/v1/chat/completions", asked | {"stream": True, "stream_options": {"include_usage": True}}),
            )
            events = streamed.events()
            text = "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-2])
            assert text == whole["choices"][0]["message"]["content"]
            assert events[-2]["usage"] == whole["usage"]
            exact = {"prompt": list(range(100, 164)), "max_tokens": 20, "ignore_eos": True}
            usage = (await exchange(listener.url, post("/v1/completions", exact))).json()["usage"]
            assert (usage["prompt_tokens"], usage["completion_tokens"]) == (64, 20)
            counted = (await exchange(listener.url, post("/tokenize", {"prompt": "Hello world"}))).json()
            assert counted["count"] == len(counted["tokens"])
            page = (await exchange(listener.url, get("/metrics"))).body.decode()
            assert 'vllm:request_success_total{engine="0",finished_reason="length"' in page

    asyncio.run(main())


@needs_engine
@pytest.mark.slow
def test_it_survives_rudeness_and_more_requests_than_places(engine: Embedded) -> None:
    async def main() -> None:
        async with served(engine) as listener:
            for body, status in (
                ({"prompt": [10**9]}, 400),
                ({"prompt": "x " * 9000, "max_tokens": 5}, 400),
                ({"prompt": "x", "temperature": -1.0, "max_tokens": 2}, 400),
                (b"{", 400),
            ):
                assert (await exchange(listener.url, post("/v1/completions", body))).status == status
            _, writer = await asyncio.open_connection(*address(listener.url))
            writer.write(post("/v1/completions", {"prompt": "Once", "max_tokens": 4000, "stream": True}))
            await asyncio.sleep(0.2)
            writer.transport.abort()
            asked = post("/v1/completions", {"prompt": "Once", "max_tokens": 4, "ignore_eos": True, "stream": True})
            answers = await asyncio.gather(*(exchange(listener.url, asked, 60) for _ in range(40)))
            assert all(a.status == 200 and a.events()[-1] == "[DONE]" for a in answers)
            assert not engine._running
            assert engine.exposition.finished["abort"] == 1

    asyncio.run(main())
