"""What endpoints do wrong, over real sockets on the loopback: one clear line, and everything measured so far kept."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from gambrel.core.errors import EndpointError
from gambrel.core.workload import Workload
from gambrel.measure import sweep as sweeps
from gambrel.measure.client import Client, Endpoint, Timeouts, new_event_loop
from gambrel.measure.mock import MockServer, Script
from gambrel.measure.protocol_events import Exchange
from gambrel.measure.record import Record, RecordWriter, read_recording
from gambrel.measure.sweep import Closed, Open, Replay, Sweep, measure
from measure_wire import needs_openssl, tls_server

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = Script(ttft_s=0.005, gap_s=0.001)
LIMITS = Timeouts(connect_s=2.0, idle_s=0.4, total_s=5.0)


@pytest.fixture(scope="module")
def server() -> Iterator[MockServer]:
    with MockServer(QUICK) as mock:
        yield mock


def ask(endpoint: Endpoint, *, tokens: int = 8, limits: Timeouts = LIMITS, times: int = 1) -> list[Record]:
    """The records of requests one after the other."""

    async def go() -> list[Record]:
        client = Client(endpoint, limits)
        await client.open()
        found = []
        for i in range(times):
            x = Exchange(endpoint.payload("one two three", tokens, f"t-{i}"), time.monotonic_ns(), tokens, index=i)
            await client.send(x)
            found.append(x.record())
        await client.close()
        return found

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(go())


def plan(endpoint: Endpoint, **more: object) -> Sweep:
    fields: dict[str, object] = {
        "levels": (Closed(2, 32, 8),), "num_requests": 8, "timeouts": LIMITS, "metrics_urls": None, "warm_s": 5.0,
    }  # fmt: skip
    return Sweep(endpoint, **(fields | more))  # type: ignore[arg-type] # fields of many types


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_good_answer_over_one_kept_connection(server: MockServer, api: str) -> None:
    server.play(QUICK)
    records = ask(Endpoint(server.url, "mock", api=api), times=3)
    assert [r.error for r in records] == ["", "", ""]
    assert {r.output_tokens for r in records} == {8}
    assert len({r.t_conn_start_ns for r in records}) == 1
    assert all(r.usage is not None and r.usage.prompt_tokens == 3 for r in records)
    truths = server.truths()
    for i, r in enumerate(records):
        truth = truths[f"t-{i}"]
        assert r.t_sent_ns is not None
        assert r.t_first_token_ns is not None
        # Received before it was handed over or seen before it was written: neither can be.
        assert r.t_intended_ns <= r.t_sent_ns
        assert truth.written_ns[0] - truth.received_ns <= r.t_first_token_ns - r.t_sent_ns + 50_000_000
        assert r.t_first_token_ns >= truth.received_ns


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (Script(ttft_s=0.002, gap_s=0.001, cut_after=3), "cut"),
        (Script(ttft_s=0.002, gap_s=0.001, hang_after=3), "timeout"),
        (Script(ttft_s=0.002, gap_s=0.001, hang_after=0), "timeout"),
        (Script(ttft_s=0.002, gap_s=0.001, error_after=3), "stream"),
        (Script(ttft_s=0.002, gap_s=0.001, short_by=2), "short"),
        (Script(ttft_s=0.002, gap_s=0.001, done=False), "incomplete"),
        (Script(ttft_s=0.002, gap_s=0.001, status=500), "http"),
        (Script(ttft_s=0.002, gap_s=0.001, status=429, retry_after="3"), "http"),
        (Script(ttft_s=0.002, gap_s=0.001, status=302), "http"),
    ],
)
def test_each_fault_has_its_class_and_keeps_its_tokens(server: MockServer, script: Script, error: str) -> None:
    server.play(script)
    record = ask(Endpoint(server.url, "mock"))[0]
    assert record.error == error
    assert record.detail
    kept = {"cut": 3, "stream": 3, "short": 6, "incomplete": 8}
    assert record.output_tokens == kept.get(error, 3 if script.hang_after else 0)


@pytest.mark.parametrize(
    "script",
    [
        Script(ttft_s=0.03, gap_s=0.001, role_s=0.001, newline="\r\n", comment_every_s=0.01),
        Script(ttft_s=0.002, gap_s=0.001, split_bytes=7, text=" \N{GRINNING FACE}\N{CJK UNIFIED IDEOGRAPH-4E2D}"),
        Script(ttft_s=0.002, gap_s=0.001, until_close=True),
        Script(ttft_s=0.002, gap_s=0.001, reasoning_tokens=4, tokens_per_event=3),
        Script(ttft_s=0.002, gap_s=0.001, usage="event", tokens_per_event=3),
    ],
)
def test_odd_but_good_answers_are_good(server: MockServer, script: Script) -> None:
    server.play(script)
    for record in ask(Endpoint(server.url, "mock"), times=2):
        assert record.ok, record.detail
        assert record.output_tokens == int(record.tokens.sum()) == 8


def test_a_kept_connection_that_was_closed_is_no_failure(server: MockServer, tmp_path: Path) -> None:
    server.play(Script(ttft_s=0.002, gap_s=0.001, closes=True))
    records = ask(Endpoint(server.url, "mock"), times=4)
    assert [r.error for r in records] == [""] * 4
    assert len({r.t_conn_start_ns for r in records}) == 4
    found = measure(plan(Endpoint(server.url, "mock")), tmp_path / "run.jsonl.gz")
    assert found["levels"][0]["num_errors"] == 0


def test_a_refused_connection_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert ask(Endpoint(url, "m"))[0].error == "connect"
    with pytest.raises(EndpointError, match=r"^http://127\.0\.0\.1:\d+: .*Connection refused; is the server up"):
        measure(plan(Endpoint(url, "m")), tmp_path / "run.jsonl.gz")
    assert not (tmp_path / "run.jsonl.gz").exists()


def test_tls_to_a_server_without_it_and_an_unknown_host(server: MockServer) -> None:
    assert ask(Endpoint(server.url.replace("http:", "https:"), "m"))[0].error == "tls"
    with pytest.raises(EndpointError, match="no host"):
        ask(Endpoint("http://no-such-host.invalid:1", "m"))


@needs_openssl
def test_tls_with_a_certificate_that_is_and_is_not_trusted(tmp_path: Path) -> None:
    context, cert = tls_server(tmp_path)
    body = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(body)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + body)
        await writer.drain()
        writer.close()

    async def go(ca_file: str | None) -> Record:
        listener = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        port = listener.sockets[0].getsockname()[1]
        endpoint = Endpoint(f"https://127.0.0.1:{port}", "m", ca_file=ca_file)
        client = Client(endpoint, LIMITS)
        await client.open()
        x = Exchange(endpoint.payload("a", 1, "t"), time.monotonic_ns(), None, index=0)
        await client.send(x)
        await client.close()
        listener.close()
        return x.record()

    with asyncio.Runner() as runner:
        assert runner.run(go(cert)).ok
        distrusted = runner.run(go(None))
    assert distrusted.error == "tls"
    assert "certificate" in distrusted.detail or "self" in distrusted.detail


def test_a_half_open_socket_ends_by_the_idle_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts in the kernel, never reads or answers
        began = time.monotonic()
        record = ask(Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}", "m"))[0]
    assert record.error == "timeout"
    assert "no answer within 0.4 s" in record.detail
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (Script(key="right"), r"401: invalid api key; is the key in the environment variable OPENAI_API_KEY\?"),
        (Script(model="other"), r"404: The model does not exist; is 'mock' the server's name of the model"),
        (Script(status=429, retry_after="90"), r"429: .*; try again in 90 s"),
        (Script(status=500, body="boom"), r"500: boom"),
        (Script(status=308), r"308: a redirect, which is never followed"),
        (Script(hang_after=0), r"no answer|nothing more"),
        (Script(status=200, done=False), r"without finish reason"),
    ],
)
def test_an_endpoint_that_cannot_be_measured_is_said_at_once(
    server: MockServer, tmp_path: Path, script: Script, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.play(script)
    with pytest.raises(EndpointError, match=says) as raised:
        measure(plan(Endpoint(server.url, "mock")), tmp_path / "run.jsonl.gz")
    assert "\n" not in str(raised.value)


def test_an_early_429_is_waited_out_and_optional_fields_are_given_up(server: MockServer, tmp_path: Path) -> None:
    server.play(Script(ttft_s=0.005, gap_s=0.001, status=429, retry_after="0.1", refusals=2))
    assert measure(plan(Endpoint(server.url, "mock")), tmp_path / "a.jsonl.gz")["levels"][0]["num_ok"] == 8
    server.play(Script(ttft_s=0.005, gap_s=0.001, unsupported=("ignore_eos", "stream_options")))
    found = measure(plan(Endpoint(server.url, "mock")), tmp_path / "b.jsonl.gz")
    assert [n.split(";")[0] for n in found["notes"]][:2] == [
        "the server refuses ignore_eos", "the server refuses stream_options",
    ]  # fmt: skip
    assert any("counted as events" in w for w in found["levels"][0]["warnings"])


def test_the_key_goes_into_the_request_and_nowhere_else(
    server: MockServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-secret-of-the-user"
    monkeypatch.setenv("MY_KEY", key)
    server.play(Script(ttft_s=0.005, gap_s=0.001, key=key))
    out = tmp_path / "run.jsonl"
    found = measure(plan(Endpoint(server.url, "mock", key_env="MY_KEY")), out)
    assert found["levels"][0]["num_errors"] == 0
    assert key not in out.read_text()
    assert key not in str(found)
    for url in (f"http://user:{key}@127.0.0.1:1", f"http://127.0.0.1:1/v1?key={key}"):
        with pytest.raises(EndpointError, match="keys do not belong in a URL") as raised:
            Endpoint(url, "m")
        assert key not in str(raised.value)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", ""])
def test_a_url_that_is_none_is_said(url: str) -> None:
    with pytest.raises(EndpointError, match="must be like http"):
        Endpoint(url, "m")


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/v1/completions"])
def test_any_part_of_the_path_will_do(tail: str) -> None:
    endpoint = Endpoint(f"http://127.0.0.1:1{tail}", "m")
    assert endpoint.path == "/v1/chat/completions"
    assert endpoint.root == "http://127.0.0.1:1"


def test_a_server_killed_in_the_middle_keeps_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl.gz"
    with MockServer(Script(ttft_s=0.02, gap_s=0.005)) as mock:

        def kill() -> None:
            until = time.monotonic() + 60
            while (not out.exists() or out.stat().st_size < 4096) and time.monotonic() < until:
                time.sleep(0.05)  # until some dozens of requests are in the file
            os.kill(mock.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(EndpointError, match=r"stopped answering at c4 p32 o8.*the \d+ requests until then are in"):
            measure(plan(Endpoint(mock.url, "mock"), levels=(Closed(4, 32, 8),), num_requests=100_000), out)
        killer.join()
    recording = read_recording(out)
    assert sum(r.ok for r in recording.records) > 10
    assert {r.error for r in recording.records if not r.ok} <= {"cut", "connect"}
    from gambrel.measure.results import recording_figures

    level = recording_figures(recording)["levels"][0]
    assert level["num_ok"] > 0
    assert "broke off" in level["warnings"][0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_disk_that_fills_up_ends_the_run_and_keeps_the_file(
    server: MockServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Filling(RecordWriter):
        """Its disk is full after twenty requests."""

        def write_encoded(self, line: bytes) -> None:
            if self.num_requests == 20 and b'"kind":"request"' in line:
                full = os.open("/dev/full", os.O_WRONLY)
                os.dup2(full, self._fd)
                os.close(full)
            super().write_encoded(line)

    monkeypatch.setattr(sweeps, "RecordWriter", Filling)
    server.play(QUICK)
    out = tmp_path / "run.jsonl.gz"
    with pytest.raises(EndpointError, match="No space left on device; the 20 requests before it are kept"):
        measure(plan(Endpoint(server.url, "mock"), num_requests=1000), out)
    assert len(read_recording(out).records) == 20


def test_a_killed_client_leaves_a_readable_run(server: MockServer, tmp_path: Path) -> None:
    server.play(Script(ttft_s=0.005, gap_s=0.001))
    out = tmp_path / "run.jsonl.gz"
    code = (
        "import sys; from pathlib import Path; from gambrel.measure.sweep import *; "
        "from gambrel.measure.client import Endpoint\n"
        "measure(Sweep(Endpoint(sys.argv[1], 'mock'), (Closed(4, 32, 8),), num_requests=10**6), Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, server.url, str(out)])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and len(server.truths()) < 150:
        time.sleep(0.05)
    process.kill()
    process.wait()
    answered = len(server.truths())
    recording = read_recording(out)
    # All but those in flight (4 of the loop), and the few of the counting before the first level.
    assert len(recording.records) >= answered - 4 - 5
    assert all(r.ok for r in recording.records)


def test_an_existing_file_is_not_touched(server: MockServer, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl.gz"
    out.write_bytes(b"precious")
    with pytest.raises(EndpointError, match="exists already"):
        measure(plan(Endpoint(server.url, "mock")), out)
    assert out.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "bad",
    [{"repeats": 0}, {"num_requests": 0}, {"duration_s": 0.0}, {"levels": ()}, {"levels": (Closed(0, 1, 1),)},
     {"levels": (Open(1.0, 0, 1),)}],
)  # fmt: skip
def test_a_sweep_that_makes_no_sense_is_refused(bad: dict[str, object]) -> None:
    fields: dict[str, object] = {"levels": (Closed(1, 8, 8),)}
    with pytest.raises(EndpointError):
        Sweep(Endpoint("http://127.0.0.1:1", "m"), **(fields | bad))  # type: ignore[arg-type] # fields of many types


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"processes": -1}, "--processes must be at least 0"),
        ({"shared_tokens": -1}, "--shared-prefix must be at least 0"),
        ({"levels": (Replay(Workload(np.zeros(1), np.array([1]), np.array([1])), 0.0),)}, "--time-scale must be"),
    ],
)
def test_an_option_that_cannot_be_is_named_before_anything_is_sent(bad: dict[str, Any], said: str) -> None:
    fields: dict[str, Any] = {"levels": (Closed(1, 8, 8),)} | bad
    with pytest.raises(EndpointError, match=said):
        Sweep(Endpoint("http://127.0.0.1:1", "m"), **fields)


def test_payloads_are_json_with_exactly_the_fields_asked_for() -> None:
    endpoint = Endpoint("http://127.0.0.1:1", "m", extra={"top_p": 0.5, "temperature": 1}, continuous_usage=True)
    head, _, body = endpoint.payload("hi", 9, "id-1").partition(b"\r\n\r\n")
    assert b"X-Request-Id: id-1" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert msgspec.json.decode(body) == {
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "stream": True,
        "temperature": 1, "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "ignore_eos": True, "top_p": 0.5,
    }  # fmt: skip
