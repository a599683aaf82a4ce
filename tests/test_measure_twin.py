"""The twin over real sockets: true to its simulation, OpenAI-shaped, and not to be brought down."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gambrel.core.errors import DeploymentError, EndpointError, WorkloadError
from gambrel.core.workload import Workload
from gambrel.engine import replay
from gambrel.measure.server import serve
from gambrel.measure.twin import TruthHeader, Twin, read_truth, truth_run
from measure_wire import address, exchange, get, post
from twin_case import TableCost, small_deployment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from gambrel.measure.http1 import Listener


@asynccontextmanager
async def twin_of(
    seconds: float | None = 0.004, deployment: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[Twin, Listener]]:
    shape = small_deployment(**(deployment or {}))
    twin = Twin(shape, TableCost(shape, seconds), model="m", **settings)
    listener = await serve(twin, port=0, extra={"/truth": twin.truth})
    try:
        yield twin, listener
    finally:
        await listener.close()
        twin.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def words(n: int) -> str:
    return " ".join(["w"] * n)


def test_a_stream_has_the_tokens_times_and_usage_it_should() -> None:
    async def main() -> None:
        async with twin_of(0.01) as (twin, listener):
            asked = {"model": "m", "prompt": words(7), "max_tokens": 20, "stream": True}
            answer = await exchange(
                listener.url,
                post("/v1/completions", asked | {"stream_options": {"include_usage": True}}, "X-Request-Id: mine\r\n"),
            )
            events = answer.events()
            assert answer.status == 200
            assert events[-1] == "[DONE]"
            assert events[-2]["usage"] == {"prompt_tokens": 7, "total_tokens": 27, "completion_tokens": 20}
            texts = [e["choices"][0]["text"] for e in events[:-2]]
            assert len(texts) == 20
            assert [e["choices"][0]["finish_reason"] for e in events[:-2]] == [None] * 19 + ["length"]
            truth = twin.truths[0]
            assert truth.client_id == "mine"
            assert np.diff(truth.token_s) == pytest.approx([0.01] * 19, abs=1e-9)  # the clock does not drift
            late = np.array(truth.chunk_s) - np.array(truth.token_s)
            assert float(np.median(late)) < 0.005  # a tenth of a millisecond on an idle machine
            assert float(late.min()) >= 0.0

    run(main())


def test_chat_whole_and_streamed() -> None:
    async def main() -> None:
        async with twin_of(0.001) as (_, listener):
            asked = {"messages": [{"role": "user", "content": "one two"}], "max_completion_tokens": 3}
            whole = (await exchange(listener.url, post("/v1/chat/completions", asked))).json()
            assert whole["usage"]["prompt_tokens"] == 2
            assert whole["choices"][0]["message"]["content"].split() == ["the"] * 3
            parts = [{"role": "user", "content": [{"type": "text", "text": "a b c"}]}]
            asked = {"messages": parts, "max_tokens": 3, "stream": True}
            events = (await exchange(listener.url, post("/v1/chat/completions", asked))).events()
            assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
            assert sum("content" in e["choices"][0]["delta"] for e in events[1:-1]) == 3

    run(main())


def test_several_tokens_a_chunk_when_asked() -> None:
    async def main() -> None:
        async with twin_of(0.001, stream_interval=4) as (twin, listener):
            asked = {"prompt": [1, 2, 3], "max_tokens": 10, "stream": True}
            events = (await exchange(listener.url, post("/v1/completions", asked))).events()
            assert [len(e["choices"][0]["text"].split()) for e in events[:-1]] == [1, 4, 4, 1]
            assert len(twin.truths[0].token_s) == 10
            assert len(twin.truths[0].chunk_s) == 4

    run(main())


BAD = [
    (post("/v1/completions", b"{"), 400),
    (post("/v1/completions", {"prompt": 5}), 400),
    (post("/v1/completions", {"prompt": ""}), 400),
    (post("/v1/completions", {"prompt": ["a", "b"]}), 400),
    (post("/v1/completions", {"prompt": "a", "max_tokens": 0}), 400),
    (post("/v1/completions", {"prompt": "a", "max_tokens": 10**9}), 400),
    (post("/v1/completions", {"prompt": "a", "n": 2}), 400),
    (post("/v1/completions", {"prompt": "a", "model": "other"}), 404),
    (post("/v1/chat/completions", {"messages": []}), 400),
    (post("/v1/nothing", {}), 404),
    (get("/v1/completions"), 405),
    (b"DELETE /health HTTP/1.1\r\n\r\n", 405),
    (b"rubbish\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    (b"POST /v1/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
    (b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    (b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
    (b"GET /health HTTP/1.1\r\nA: " + b"x" * 70_000, 431),
]


def test_bad_requests_are_answered_and_survived() -> None:
    async def main() -> None:
        async with twin_of(0.001) as (twin, listener):
            for request, status in BAD:
                answer = await exchange(listener.url, request)
                assert answer.status == status, request[:60]
                assert answer.json()["error"]["message"]
            assert (await exchange(listener.url, get("/health"))).status == 200
            assert listener.failures == 0
            assert not twin._serving

    run(main())


def test_a_request_in_single_bytes_and_two_at_once() -> None:
    async def main() -> None:
        async with twin_of(0.001) as (_, listener):
            reader, writer = await asyncio.open_connection(*address(listener.url))
            request = post("/v1/completions", {"prompt": "a b", "max_tokens": 2})
            for i in range(len(request)):
                writer.write(request[i : i + 1])
                if i % 20 == 0:
                    await asyncio.sleep(0)
            writer.write(get("/v1/models") + get("/health"))
            data = b""
            while data.count(b"HTTP/1.1 200 OK") < 3:
                data += await asyncio.wait_for(reader.read(65536), 5)
            assert data.index(b"text_completion") < data.index(b'"max_model_len"')  # in the order asked
            writer.close()

    run(main())


def test_a_client_that_leaves_frees_its_place() -> None:
    async def main() -> None:
        async with twin_of(0.002) as (twin, listener):
            reader, writer = await asyncio.open_connection(*address(listener.url))
            writer.write(post("/v1/completions", {"prompt": words(64), "max_tokens": 2000, "stream": True}))
            await reader.readuntil(b"the")
            writer.transport.abort()
            for _ in range(100):
                await asyncio.sleep(0.01)
                if twin.replicas[0].batch.outstanding == 0:
                    break
            assert twin.replicas[0].batch.free == twin.limits.num_kv_blocks
            assert twin.truths[-1].status == "abort"
            assert twin.exposition.finished["abort"] == 1

    run(main())


def test_metrics_have_vllms_names() -> None:
    async def main() -> None:
        async with twin_of(0.001) as (_, listener):
            await exchange(listener.url, post("/v1/completions", {"prompt": words(5), "max_tokens": 4}))
            text = (await exchange(listener.url, get("/metrics"))).body.decode()
            assert 'vllm:prompt_tokens_total{engine="0",model_name="m"} 5.0' in text
            assert 'vllm:generation_tokens_total{engine="0",model_name="m"} 4.0' in text
            assert 'vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 3.0' in text
            assert 'finished_reason="length",model_name="m"} 1.0' in text
            assert "vllm:kv_cache_usage_perc" in text

    run(main())


def test_it_holds_a_thousand_streams() -> None:
    async def main() -> None:
        async with twin_of(0.25, {"max_num_batched_tokens": 8192}) as (twin, listener):
            asked = post("/v1/completions", {"prompt": "a b", "max_tokens": 6, "stream": True})
            answers = await asyncio.gather(*(exchange(listener.url, asked, 60) for _ in range(1000)))
            assert all(len(a.events()) == 7 for a in answers)
            assert len(twin.truths) == 1000
            assert twin.exposition.finished["length"] == 1000

    run(main())


def test_open_loop_is_the_simulation_of_the_same_arrivals(tmp_path: Path) -> None:
    """What the twin did is what the engine makes of the arrivals it had; only the wire lies between."""

    async def main() -> None:
        async with twin_of(None, truth=tmp_path / "t.jsonl", scale=2.0, grace_s=0.0) as (twin, listener):
            rng = np.random.default_rng(1)

            async def one(at: float, prompt: int, output: int) -> None:
                await asyncio.sleep(at)
                asked = {"prompt": words(prompt), "max_tokens": output, "stream": True}
                await exchange(listener.url, post("/v1/completions", asked))

            times = np.cumsum(rng.exponential(0.02, 40))
            lengths = zip(times, rng.integers(1, 400, 40), rng.integers(1, 40, 40), strict=True)
            await asyncio.gather(*(one(float(t), int(p), int(o)) for t, p, o in lengths))
            limits, table = twin.limits, TableCost(twin.deployment).compile(4096, 1024)
        header, truths = read_truth(tmp_path / "t.jsonl")
        assert isinstance(header, TruthHeader)
        assert len(truths) == 40
        done = truth_run(header, truths)
        again = Workload(done.arrival_s, done.prompt_tokens, done.output_tokens)
        simulated = replay(table, limits, again, oracle=True).requests
        np.testing.assert_allclose(done.first_token_s, simulated.first, atol=1e-9)
        np.testing.assert_allclose(done.last_token_s, simulated.last, atol=1e-9)

    run(main())


def test_a_closed_loop_agrees_with_the_simulation_of_one() -> None:
    """Users who ask again at once: a step's end and the next request count as one moment, as in the engine."""

    async def main() -> None:
        async with twin_of(None, scale=3.0, grace_s=0.5) as (twin, listener):

            async def user() -> None:
                for _ in range(4):
                    asked = {"prompt": words(300), "max_tokens": 12, "stream": True}
                    await exchange(listener.url, post("/v1/completions", asked))

            await asyncio.gather(*(user() for _ in range(4)))
            later = [t for t in twin.truths if t.arrival_s > 1e-2 + min(x.arrival_s for x in twin.truths)]
            starts = {t.last_s for t in twin.truths}
            assert later
            assert all(t.arrival_s in starts for t in later)  # each counts from the end of the one before

    run(main())


def test_replicas_take_turns() -> None:
    async def main() -> None:
        async with twin_of(0.002, {"replicas": 3}) as (twin, listener):
            asked = post("/v1/completions", {"prompt": "a", "max_tokens": 5})
            await asyncio.gather(*(exchange(listener.url, asked) for _ in range(6)))
            assert sorted(t.replica for t in twin.truths) == [0, 0, 1, 1, 2, 2]

    run(main())


def test_clear_words_for_what_cannot_be(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(DeploymentError, match="time scale"):
            async with twin_of(0.01, scale=0.0):
                pass
        async with twin_of(0.01) as (twin, listener):
            with pytest.raises(EndpointError, match="cannot listen"):
                await serve(twin, port=address(listener.url)[1])
            with pytest.raises(EndpointError, match="cannot listen"):
                await serve(twin, "host.invalid", 0)
        with pytest.raises(EndpointError, match="cannot write"):
            async with twin_of(0.01, truth=tmp_path):
                pass

    run(main())
    bad = tmp_path / "x"
    bad.write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(WorkloadError, match="line 1"):
        read_truth(bad)
    with pytest.raises(WorkloadError, match="cannot read"):
        read_truth(tmp_path / "none")
