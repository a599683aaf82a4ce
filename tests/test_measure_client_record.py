"""The raw record survives whatever stops the client, and becomes the common table under stated definitions."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gambrel.core.errors import EndpointError, WorkloadError
from gambrel.core.run import Histogram
from gambrel.measure.record import (
    TIMES,
    Header,
    Level,
    Record,
    RecordWriter,
    Sample,
    Usage,
    decode,
    encode,
    read_recording,
    to_run,
)

S = 1_000_000_000


def record(i: int, *, tokens: tuple[int, ...] = (1, 1, 2), gap: int = S // 10, **more: object) -> Record:
    """Request ``i``, sent at second ``i``, an event each 100 ms."""
    sent = i * S + 1000
    events = sent + gap * np.arange(1, len(tokens) + 1)
    fields: dict[str, object] = {
        "index": i, "t_intended_ns": i * S + 500, "t_dequeued_ns": i * S + 600, "t_conn_start_ns": i * S + 700,
        "t_sent_ns": sent, "t_headers_ns": sent + 10, "t_first_byte_ns": sent + 20, "t_first_token_ns": int(events[0]),
        "t_first_content_ns": int(events[0]), "t_last_token_ns": int(events[-1]), "t_end_ns": int(events[-1]) + 5,
        "gap_ns": np.diff(events, prepend=sent), "tokens": np.array(tokens), "usage": Usage(7, sum(tokens)),
    }  # fmt: skip
    return Record(**(fields | more))  # type: ignore[arg-type] # fields of many types


def write(path: Path, n: int = 10) -> Path:
    with RecordWriter(path, Header.now(source="http://127.0.0.1:1", model="m")) as writer:
        writer.write(Level(label="a", mode="closed", requested=2))
        for i in range(n):
            writer.write(record(i, level="a"))
            writer.write(Sample(t_ns=i * S, source="s", values={"running": float(i)}))
        writer.write(Level(label="a", mode="closed", requested=2, begin_ns=0, end_ns=n * S))
    return path


@pytest.mark.parametrize("name", ["run.jsonl.gz", "run.jsonl"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    found = read_recording(write(tmp_path / name))
    assert len(found.records) == len(found.samples) == 10
    assert not found.torn
    assert found.levels["a"].end_ns == 10 * S
    again = found.records[3]
    assert encode(again) == encode(record(3, level="a"))
    assert again.event_ns().tolist() == [3 * S + 1000 + k * S // 10 for k in (1, 2, 3)]
    assert list(TIMES) == sorted(TIMES, key=lambda t: getattr(again, t))
    assert found.header.unix_s(found.header.anchor_ns) == found.header.anchor_unix_s


def test_a_file_cut_anywhere_reads_up_to_the_cut(tmp_path: Path) -> None:
    whole = write(tmp_path / "run.jsonl.gz").read_bytes()
    cut = tmp_path / "cut.jsonl.gz"
    seen = []
    for size in range(len(whole) + 1):
        cut.write_bytes(whole[:size])
        try:
            seen.append(len(read_recording(cut).records))
        except WorkloadError:  # not even the header
            seen.append(0)
    assert seen == sorted(seen)
    assert seen[-1] == 10
    assert set(seen) == set(range(11))


def test_two_runs_in_one_file_and_zcat_reads_it(tmp_path: Path) -> None:
    path = write(write(tmp_path / "run.jsonl.gz"))
    assert len(read_recording(path).records) == 20
    assert gzip.decompress(path.read_bytes()).count(b"\n") == 2 * 23


def test_a_killed_writer_loses_nothing_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl.gz"
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from test_measure_client_record import record, RecordWriter, Header\n"
        "w = RecordWriter(Path(sys.argv[1]), Header.now())\n"
        "[w.write(record(i)) for i in range(50)]\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path), str(Path(__file__).parent)], check=False, timeout=60)
    assert done.returncode == -9
    assert len(read_recording(path).records) == 50


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="No space left"):
        RecordWriter(Path("/dev/full"), Header.now())
    path = write(tmp_path / "run.jsonl.gz")
    writer = RecordWriter(path, Header.now())
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._fd)
    os.close(full)
    with pytest.raises(EndpointError, match="0 requests before it are kept"):
        writer.write(record(1))
    writer.close()
    assert len(read_recording(path).records) == 10


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"kind":"header","schema":"gambrel-record","version":99,"anchor_ns":0,"anchor_unix_s":0}\n', "version 99"),
        (b'{"kind":"request","index":0,"t_intended_ns":0}\n', "line 1"),
        (encode(Header.now()) + b"\nnot json\n", "line 2"),
        (encode(Header.now()) + b'\n{"kind":"request","index":"x"}\n', "line 2"),
        (b"", "header"),
    ],
    ids=["version", "no header", "not json", "wrong type", "empty"],  # a header holds the time, an id must not
)
def test_what_is_no_record_file_is_said(tmp_path: Path, text: bytes, says: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(text)
    with pytest.raises(WorkloadError, match=says):
        read_recording(path)


def test_a_missing_file_and_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="No such file"):
        read_recording(tmp_path / "none.jsonl.gz")
    (tmp_path / "file").write_text("")
    with pytest.raises(EndpointError, match="cannot write"):
        RecordWriter(tmp_path / "file" / "run.jsonl.gz", Header.now())


def test_a_run_has_the_times_of_its_definition() -> None:
    records = [record(2), record(0), record(1, error="cut")]
    run = to_run(records)
    assert run.origin == "measured"
    assert run.arrival_s.tolist() == [0.0, 1.0, 2.0]
    assert np.isnan(run.ttft_s[1])
    assert run.ttft_s[0] == pytest.approx(0.1 + 500e-9)
    assert to_run(records, start="sent").ttft_s[0] == pytest.approx(0.1)
    assert to_run(records, start="sent", first="byte").ttft_s[0] == pytest.approx(20e-9)
    assert run.output_tokens.tolist() == [4, 4, 4]
    gap, token = (to_run(records, itl=kind).distribution("itl") for kind in ("gap", "token"))
    assert (gap.count, token.count) == (4, 6)
    assert gap.mean == pytest.approx(0.1)
    assert token.mean == pytest.approx((0.1 + 0.05 + 0.05) / 3)
    with pytest.raises(WorkloadError, match="known: gap, token"):
        to_run(records, itl="chunk")
    with pytest.raises(WorkloadError, match="no requests"):
        to_run([])


def test_samples_become_the_series_of_a_run() -> None:
    samples = [Sample(t_ns=i * S, source="s", values={"running": float(i), "kv_usage": 0.1 * i}) for i in range(5)]
    run = to_run([record(0)], samples=samples)
    assert run.series is not None
    assert run.batch_max == 4
    assert run.kv_usage_max == pytest.approx(0.4)


@given(
    st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 50)), max_size=40),
    st.text(max_size=30),
    st.sampled_from(["", "cut", "http"]),
)
def test_any_record_survives_the_file(events: list[tuple[int, int]], detail: str, error: str) -> None:
    made = Record(
        index=1, t_intended_ns=5, detail=detail, error=error, gap_ns=np.array([g for g, _ in events], np.int64),
        tokens=np.array([t for _, t in events], np.int64),
    )  # fmt: skip
    again = decode(encode(made))
    assert isinstance(again, Record)
    assert encode(again) == encode(made)
    assert again.gap_ns.dtype == np.int64
    assert again.output_tokens == sum(t for _, t in events)


@given(st.lists(st.floats(1e-8, 1e5), min_size=1, max_size=200), st.data())
def test_a_histogram_is_true_to_its_bucket(values: list[float], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 5), min_size=len(values), max_size=len(values)))
    found = Histogram.of(np.array(values), np.array(weights)).distribution()
    assert found.count == sum(weights)
    assert found.mean == pytest.approx(np.average(values, weights=weights))
    assert found.max == pytest.approx(max(values), rel=0.023)
