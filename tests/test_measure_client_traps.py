"""Every trap that known load generators fall into, with the figure they report and the one that is true."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from gambrel.core.errors import EndpointError
from gambrel.measure.metrics import DEFINITIONS, batch_means, metric, samples
from gambrel.measure.prompts import Prompts
from measure_tape import DONE, END, HEAD, Tape, chunk, content, event, finish

if TYPE_CHECKING:
    from gambrel.measure.record import Record

ROLE = chunk(event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    return Tape(monkeypatch)


def ms(record: Record, name: str) -> float:
    """The median of a metric, in milliseconds."""
    return float(np.median(samples([record], name))) * 1e3


def basis(record: Record) -> str:
    """How its tokens are known."""
    return record.token_basis


def test_a_role_without_content_is_no_token(tape: Tape) -> None:
    tokens = [(100 + 10 * k, chunk(content(" a"))) for k in range(10)]
    record = tape.play([(1, HEAD), (19, ROLE), *tokens, (190, finish(10))])
    assert record.ok
    assert ms(record, "ttft.token") == pytest.approx(100)
    assert ms(record, "ttft.vllm") == pytest.approx(19)
    assert ms(record, "tpot.token") == pytest.approx(10)
    assert ms(record, "tpot.vllm") == pytest.approx(19)


def test_four_tokens_an_event_have_three_inter_token_latencies(tape: Tape) -> None:
    events = [(100 + 40 * k, chunk(content(" a b c d"))) for k in range(10)]
    record = tape.play([(1, HEAD), *events, (460, finish(40))])
    assert record.tokens.tolist() == [4] * 10
    assert basis(record) == "usage.split"
    assert ms(record, "itl.gap") == pytest.approx(40)
    assert ms(record, "itl.per_token") == pytest.approx(10)
    assert ms(record, "itl.guidellm") == pytest.approx(9.2, abs=0.04)
    assert ms(record, "itl.zero_filled") == 0.0
    assert ms(record, "tpot.token") == pytest.approx(10)
    assert len(samples([record], "itl.gap")) == 9
    assert len(samples([record], "itl.per_token")) == 36


def test_per_event_usage_is_believed_over_the_length_of_text(tape: Tape) -> None:
    totals = [1, 4, 5]
    events = [
        (100 + 30 * k, chunk(content("abcdefgh"[: 2 * k + 1], usage={"completion_tokens": n})))
        for k, n in enumerate(totals)
    ]
    record = tape.play([(1, HEAD), *events, (160, finish(5))])
    assert record.tokens.tolist() == [1, 3, 1]
    assert basis(record) == "usage.event"
    assert ms(record, "tpot.token") == pytest.approx(15)


def test_no_usage_counts_events_and_says_so(tape: Tape) -> None:
    record = tape.play([(1, HEAD), *((100 + 10 * k, chunk(content(" a"))) for k in range(10)), (190, finish(None))])
    assert record.ok
    assert record.output_tokens == 10
    assert basis(record) == "events"
    assert ms(record, "tpot.token") == pytest.approx(10)


@pytest.mark.parametrize(
    "document",
    [
        {"error": {"message": "CUDA out of memory", "code": 500}},
        {"object": "error", "message": "CUDA out of memory", "code": 500},
        {"error": "CUDA out of memory"},
    ],
)
def test_an_error_event_under_status_200_is_an_error(tape: Tape, document: dict[str, object]) -> None:
    record = tape.play([(1, HEAD), (100, chunk(content(" a"))), (110, chunk(event(document) + DONE) + END)])
    assert (record.status, record.error) == (200, "stream")
    assert "CUDA out of memory" in record.detail
    assert record.output_tokens == 1
    assert len(samples([record], "ttft.token")) == 0


@pytest.mark.parametrize("last", [None, b"GARBAGE\r\n"])
def test_a_cut_keeps_the_tokens_seen(tape: Tape, last: bytes | None) -> None:
    record = tape.play([(1, HEAD), *((100 + 10 * k, chunk(content(" a"))) for k in range(3)), (130, last)])
    assert record.error == ("cut" if last is None else "protocol")
    assert record.output_tokens == 3
    assert record.t_end_ns is not None
    assert record.t_last_token_ns is not None
    assert record.t_end_ns - record.t_last_token_ns == 10_000_000


def test_a_stream_without_finish_reason_or_done_is_incomplete(tape: Tape) -> None:
    assert tape.play([(1, HEAD), (100, chunk(content(" a"))), (110, END)]).error == "incomplete"


@pytest.mark.parametrize("tail", [event({"choices": [{"delta": {}, "finish_reason": "stop"}]}), DONE])
def test_either_of_the_two_ends_a_stream(tape: Tape, tail: bytes) -> None:
    assert tape.play([(1, HEAD), (100, chunk(content(" a"))), (110, chunk(tail) + END)]).ok


def test_no_token_at_all_is_an_error(tape: Tape) -> None:
    assert tape.play([(1, HEAD), (100, ROLE + finish(0))]).error == "empty"


def test_a_short_answer_under_ignore_eos_is_an_error(tape: Tape) -> None:
    parts = [(1, HEAD), *((100 + 10 * k, chunk(content(" a"))) for k in range(5)), (140, finish(5))]
    assert tape.play(parts, expect=8).error == "short"
    assert tape.play(parts, expect=5).ok


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_starts_the_clock_and_content_has_its_own(tape: Tape, field: str) -> None:
    thought = [(100 + 10 * k, chunk(event({"choices": [{"delta": {field: "hm"}}]}))) for k in range(5)]
    said = [(150 + 10 * k, chunk(content(" a"))) for k in range(5)]
    record = tape.play([(1, HEAD), *thought, *said, (190, finish(10))])
    assert ms(record, "ttft.token") == pytest.approx(100)
    assert ms(record, "ttft.content") == pytest.approx(150)
    assert record.output_tokens == 10


def test_a_tool_call_is_a_token(tape: Tape) -> None:
    call = {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}}]}
    record = tape.play([(1, HEAD), (100, chunk(event(call))), (110, finish(1))])
    assert record.ok
    assert ms(record, "ttft.token") == pytest.approx(100)
    assert record.t_first_content_ns is None


def test_keep_alive_comments_and_slow_start_are_not_tokens(tape: Tape) -> None:
    waits = [(500 * k, chunk(b": waiting\n\n")) for k in range(1, 10)]
    record = tape.play(
        [(1, HEAD), *waits, (5000, chunk(content(" a"))), (5010, chunk(content(" b"))), (5010, finish(2))]
    )
    assert record.ok
    assert ms(record, "ttft.token") == pytest.approx(5000)
    assert record.output_tokens == 2


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_any_line_end_and_any_split_parses(tape: Tape, newline: str, piece: int) -> None:
    body = event('{"choices":[{"delta":{"content":"\N{GRINNING FACE} \N{LATIN SMALL LETTER E WITH ACUTE}"}}]}', newline)
    body += f"event: x{newline}id: 3{newline}".encode() + event(
        {"choices": [{"delta": {"content": "b"}, "finish_reason": "stop"}],
         "usage": {"prompt_tokens": 3, "completion_tokens": 2}}, newline,
    )  # fmt: skip
    whole = HEAD + chunk(body[:31]) + chunk(body[31:]) + chunk(event("[DONE]", newline)) + END
    parts = [(100 + i / 1000, whole[i : i + piece]) for i in range(0, len(whole), piece)]
    record = tape.play(parts)
    assert record.ok, record.detail
    assert record.output_tokens == 2
    assert len(record.tokens) == 2


def test_several_events_in_one_read_give_the_client_away(tape: Tape) -> None:
    late = chunk(content(" a")) + chunk(content(" b")) + chunk(content(" c"))
    record = tape.play([(1, HEAD), (100, chunk(content(" z"))), (130, late), (130, finish(4))])
    assert record.merged_reads == 1
    assert record.reads == 4
    assert ms(record, "tpot.token") == pytest.approx(10)  # the mean looks fine
    assert ms(record, "itl.gap") == 0.0  # the median does not


@pytest.mark.parametrize(
    ("status", "head", "body", "says"),
    [
        (429, b"Retry-After: 7\r\n", b'{"error":{"message":"slow down"}}', "slow down"),
        (503, b"", b"no healthy upstream", "no healthy upstream"),
        (401, b"", b'{"detail":"bad key"}', "bad key"),
        (307, b"Location: http://elsewhere/\r\n", b"", "redirect"),
    ],
)
def test_other_statuses_are_errors_with_the_servers_words(
    tape: Tape, status: int, head: bytes, body: bytes, says: str
) -> None:
    answer = b"HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s" % (status, head, len(body), body)
    record = tape.play([(5, answer)])
    assert (record.status, record.error) == (status, "http")
    assert says in record.detail
    assert record.retry_after_s == (7 if status == 429 else None)
    assert record.output_tokens == 0


def test_a_server_that_cannot_stream_is_one_event(tape: Tape) -> None:
    body = (
        b'{"choices":[{"message":{"role":"assistant","content":"a b c"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":4,"completion_tokens":3}}'
    )
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    record = tape.play([(250, answer)])
    assert record.ok
    assert record.tokens.tolist() == [3]
    assert ms(record, "ttft.token") == pytest.approx(250)


def test_prompts_are_never_alike_and_begin_apart() -> None:
    prompts = Prompts(template_tokens=5)
    texts = [prompts.text(64, i) for i in range(5000)]
    assert len({t.split()[0] for t in texts}) == 1  # as the first word without a space, some would be two tokens
    assert len({t.split()[1] for t in texts[:100]}) > 50
    assert len({" ".join(t.split()[:13]) for t in texts}) == 5000
    assert {len(t.split()) for t in texts} == {59}
    assert len({prompts.text(8, i) for i in range(len(prompts.words) ** 2)}) == len(prompts.words) ** 2


def test_a_shared_prefix_is_shared_and_the_rest_is_not() -> None:
    prompts = Prompts(template_tokens=5, shared_tokens=20)
    a, b = prompts.text(64, 1).split(), prompts.text(64, 2).split()
    assert a[:20] == b[:20]
    assert a[21] != b[21]
    assert len(a) == len(b) == 59


def test_unknown_metrics_are_named() -> None:
    with pytest.raises(EndpointError, match=r"tpot\.vllm"):
        metric("tpot.nonsense")
    assert all(d.says for d in DEFINITIONS.values())


def test_batch_means_cover_a_correlated_series_and_say_when_too_short() -> None:
    rng = np.random.default_rng(1)
    covered, naive = 0, 0
    for _ in range(300):
        noise = rng.normal(0, 1, 4000)
        series = np.empty(4000)
        level = 0.0
        for i, e in enumerate(noise):  # AR(1): neighbours share 90 % of their level
            level = 0.9 * level + e
            series[i] = 100 + level
        found = batch_means(series)
        covered += found.low <= 100 <= found.high
        half = 1.96 * series.std() / np.sqrt(len(series))
        naive += bool(abs(series.mean() - 100) <= half)
    assert covered / 300 > 0.9
    assert naive / 300 < 0.6
    assert "give no interval" in batch_means(np.ones(10)).too_short
    assert batch_means(np.ones(60)).too_short == ""
    assert "drifting" in batch_means(np.linspace(1.0, 1.05, 1000)).too_short
