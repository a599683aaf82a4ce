"""Every way a log can be read, and every way it can be wrong."""

from __future__ import annotations

import gzip
import importlib.util
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gambrel.traffic
from gambrel.core.errors import WorkloadError
from gambrel.core.workload import Workload
from gambrel.traffic import FORMATS, describe, load_workload, read_workload, table, write_workload
from gambrel.traffic.columns import Column
from gambrel.traffic.fields import roots

SAMPLES = sorted((Path(gambrel.traffic.__file__).parent / "data" / "formats").iterdir())
HAS_DUCKDB = importlib.util.find_spec("duckdb") is not None
needs_duckdb = pytest.mark.skipif(not HAS_DUCKDB, reason="needs the extra gambrel[logs] (DuckDB)")


def write(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def same(a: Workload, b: Workload) -> bool:
    def equal(x: Any, y: Any) -> bool:
        return (x is None and y is None) or np.array_equal(x, y)

    columns = ("arrival_s", "prompt_tokens", "output_tokens", "session", "cached_tokens", "service_s", "prefix_blocks")
    return a.warnings == b.warnings and all(equal(getattr(a, c), getattr(b, c)) for c in columns)


# Formats


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.name)
def test_every_sample_is_recognised_and_read(path: Path, tmp_path: Path) -> None:
    workload = read_workload(path)
    assert 3 <= len(workload) <= 5
    assert workload.arrival_s[0] == 0.0
    family = path.stem.split("-")[0]
    assert workload.source.endswith(f"({family})")
    assert workload.name == path.stem
    zipped = write(tmp_path / f"{path.name}.gz", path.read_bytes())
    assert same(read_workload(zipped), workload)


def test_every_format_has_a_sample() -> None:
    assert {p.stem for p in SAMPLES} >= set(FORMATS)
    assert all(f.about for f in FORMATS.values())


def test_units_of_the_formats(tmp_path: Path) -> None:
    by_name = {p.name: read_workload(p) for p in SAMPLES}
    assert by_name["mooncake.jsonl"].arrival_s.tolist() == [0, 0.5, 1.25, 1.25, 4.0]
    assert by_name["apex.jsonl"].arrival_s.tolist() == pytest.approx([0, 0.6185, 1.5, 4.0])
    assert by_name["llmservingsim.jsonl"].arrival_s.tolist() == [0, 0.25, 1.0, 1.0, 3.5]
    assert by_name["plain.jsonl"].arrival_s.tolist() == pytest.approx([0, 2.5, 2.75, 10.0])  # epoch milliseconds
    assert by_name["plain.csv"].arrival_s.tolist() == pytest.approx([0, 2.5, 2.75, 10.0])  # dates with zones
    service = by_name["plain.csv"].service_s
    assert service is not None
    assert service.tolist() == pytest.approx([5.1, 0.9, 9.8, 2.25])
    assert not by_name["vidur-lengths.csv"].has_arrivals
    assert "no arrival times" in by_name["vidur-lengths.csv"].warnings[0]
    plain = write(tmp_path / "a.jsonl", '{"timestamp": 100, "input_length": 5, "output_length": 6}\n' * 3)
    assert any("states no unit" in w for w in read_workload(plain).warnings)


def test_conversations_are_chains_of_parents() -> None:
    assert roots(np.array([10, 11, 12, 13, 14]), np.array([-1, -1, 10, 12, 99])).tolist() == [0, 1, 0, 0, 2]


def test_failures_are_left_out_and_counted() -> None:
    workload = read_workload(next(p for p in SAMPLES if p.name == "burstgpt.csv"))
    assert len(workload) == 3
    assert workload.warnings[0].startswith("1 of 4 requests have no output tokens")


def test_columns_can_be_named_with_units(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.csv", "when,n_in,n_out,took\n1000,5,6,2000\n3500,7,8,100\n")
    workload = read_workload(
        path, columns={"arrival_ms": "when", "prompt_tokens": "n_in", "output_tokens": "n_out", "service_ms": "took"}
    )
    assert workload.arrival_s.tolist() == [0.0, 2.5]
    assert workload.service_s is not None
    assert workload.service_s.tolist() == [2.0, 0.1]


def test_rows_out_of_order_are_sorted_with_a_warning(tmp_path: Path) -> None:
    lines = [
        '{"timestamp": 900, "input_length": 3, "output_length": 1, "hash_ids": [5, 6, 7]}',
        '{"timestamp": 100, "input_length": 4, "output_length": 2, "hash_ids": [8]}',
        '{"timestamp": 500, "input_length": 5, "output_length": 0, "hash_ids": [9, 9]}',
        '{"timestamp": 400, "input_length": 6, "output_length": 4, "hash_ids": []}',
    ]
    workload = read_workload(write(tmp_path / "w.jsonl", "\n".join(lines)))
    assert workload.arrival_s.tolist() == pytest.approx([0, 0.3, 0.8])
    assert workload.prompt_tokens.tolist() == [4, 6, 3]
    assert workload.prefix_blocks is not None
    assert workload.prefix_offsets is not None
    assert workload.prefix_blocks.tolist() == [8, 5, 6, 7]
    assert workload.prefix_offsets.tolist() == [0, 1, 1, 4]
    assert any("out of order: 1 rows" in w for w in workload.warnings)


def test_spelling_does_not_matter(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", "\ufeffTime;Prompt-Tokens;COMPLETION TOKENS\r\n0;5;6\r\n\r\n1;7;8\r\n")
    assert read_workload(a).prompt_tokens.tolist() == [5, 7]
    b = write(
        tmp_path / "b.json",
        '[{"ts": 0, "tokens_in": 5, "tokens_out": 6}, {"ts": 1, "tokens_in": 7.0, "tokens_out": 8}]',
    )
    assert read_workload(b).prompt_tokens.tolist() == [5, 7]


# Bad input: one line that names file, row, field, finding and remedy

HEADER = "arrival_s,prompt_tokens,output_tokens\n"
GOOD = "0,10,20\n1,11,21\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("empty file", "0 bytes")),
        ("\n \n", ("holds no text",)),
        (HEADER, ("no requests after the header",)),
        (HEADER + GOOD + "2,-5,3\n", ("row 4", "'prompt_tokens'", "'-5'", "whole number")),
        (HEADER + GOOD + "2,5,many\n", ("row 4", "'output_tokens'", "'many'", "whole number")),
        (HEADER + GOOD + "2,5,nan\n", ("row 4", "'output_tokens'", "'nan'")),
        (HEADER + GOOD + "2,5.5,3\n", ("row 4", "'prompt_tokens'", "'5.5'", "whole number")),
        (HEADER + GOOD + "2,,3\n", ("row 4", "'prompt_tokens'", "an empty cell")),
        (HEADER + GOOD + "2,5\n", ("row 4", "'output_tokens'", "nothing there", "delete the row")),
        (HEADER + GOOD + "\n\nlater,5,5\n", ("row 6", "'arrival_s'", "'later'")),
        (HEADER + "2024-01-01 00:00:00,1,1\nlater,5,5\n", ("row 3", "'arrival_s'", "'later'", "date")),
        (HEADER + "inf,5,5\n", ("row 2", "'arrival_s'", "'inf'")),
        (HEADER + "0,1e30,5\n", ("row 2", "'prompt_tokens'", "1e30")),
        (HEADER + "0,0,0\n1,4,0\n", ("all 2 rows", "zero")),
        ("arrival_s,prompt_tokens\n0,5\n", ("'output_tokens'", "missing", "'arrival_s', 'prompt_tokens'", "columns=")),
        ("just one line of prose", ("'prompt_tokens'", "missing", "just one line")),
        ('{"prompt_tokens": 5, "output_tokens": 6}\n{"prompt_tokens": 5, "outp', ("row 2", "not a JSON object")),
        ('{"prompt_tokens": 5, "output_tokens": null}\n', ("row 1", "'output_tokens'", "nothing there")),
        ('{"prompt_tokens": true, "output_tokens": 3}\n', ("row 1", "'prompt_tokens'", "True")),
        ('{"prompt_tokens": [1], "output_tokens": 3}\n', ("row 1", "'prompt_tokens'", "[1]")),
        ("[]", ("empty JSON array",)),
        ("[1, 2]", ("not a JSON array of objects",)),
        (b"\x00\x01\xfe\xff" * 50, ("not text",)),
        (b"PK\x03\x04 something", ("zip archive", "decompress")),
        (HEADER + "0,10,20\n1700000000,1,000,5\n", ("row 3", "4 cells under 3 fields", "'5'", "thousands separators")),
        ("a,b,c\n1,2,3\n", ("--column prompt_tokens=FIELD", "columns={'prompt_tokens': 'FIELD'}")),
    ],
)
def test_bad_logs_are_one_clear_line(text: str | bytes, parts: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "bad.log"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(WorkloadError) as caught:
        read_workload(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_gzip_that_is_empty_cut_or_damaged(tmp_path: Path) -> None:
    data = gzip.compress((HEADER + GOOD * 5000).encode())
    for name, found, words in (
        ("zero.csv.gz", b"", "0 bytes"),
        ("hollow.csv.gz", gzip.compress(b""), "no text once decompressed"),
        ("cut.csv.gz", data[: len(data) // 2], "truncated or damaged gzip"),
        ("cut-head.csv.gz", data[:6], "truncated or damaged gzip"),
        ("hurt.csv.gz", data[:20] + bytes(30) + data[50:], "gzip"),
    ):
        (tmp_path / name).write_bytes(found)
        with pytest.raises(WorkloadError, match=words):
            read_workload(tmp_path / name)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="no such file"):
        read_workload(tmp_path / "nothing.csv")
    with pytest.raises(WorkloadError, match="is a folder"):
        read_workload(tmp_path)
    good = write(tmp_path / "a.csv", HEADER + GOOD)
    with pytest.raises(WorkloadError, match=r"unknown log format 'azur'; nearest: azure"):
        read_workload(good, format="azur")
    with pytest.raises(WorkloadError, match=r"'promt_tokens'; nearest: prompt_tokens"):
        read_workload(good, columns={"promt_tokens": "x"})
    with pytest.raises(WorkloadError, match=r"'x' is missing; .*; name one of them: --column prompt_tokens=FIELD"):
        read_workload(good, columns={"prompt_tokens": "x"})
    with pytest.raises(WorkloadError, match="two meanings"):
        read_workload(good, columns={"prompt_tokens": "output_tokens", "output_tokens": "output_tokens"})


# Times that cannot be one clock's

EPOCH = 1_700_000_000.25


def timed(tmp_path: Path, times: list[Any], output: int = 6) -> Path:
    rows = "".join(f"{t},5,{output}\n" for t in times)
    return write(tmp_path / "times.csv", "timestamp,prompt_tokens,output_tokens\n" + rows)


@pytest.mark.parametrize(
    ("times", "parts"),
    [
        (
            [EPOCH, EPOCH + 1, 0, EPOCH + 2],
            ("row 4", "'timestamp'", "found '0'", "'1700000000.25' and 2 more", "years"),
        ),
        ([0, EPOCH, EPOCH + 1], ("row 2", "found '0'", "without its row")),
        ([1e3 * EPOCH, 1e3 * EPOCH + 9, 0], ("row 4", "found '0'", "years")),
        (
            [EPOCH, EPOCH + 1, 1e3 * EPOCH + 2e3],
            ("row 4", "found '1700000002250.0'", "times in ms and in s", "one unit"),
        ),
        ([EPOCH] * 4 + [1e3 * EPOCH] * 4, ("row 6", "and 3 more like it", "times in ms and in s")),
        ([1e3 * EPOCH, 1e9 * EPOCH, 1e9 * EPOCH], ("row 2", "times in ms and in ns")),
        ([1e9 * EPOCH, 1e9 * EPOCH, 1e6 * EPOCH], ("row 4", "times in us and in ns")),
        (["2024-01-01 10:00:00", "1970-01-01 00:00:00", "2024-01-01 11:00:00"], ("row 3", "'1970-01-01 00:00:00'")),
        (["2024-01-01 10:00:00", "2024-01-01 10:00:01", "0001-01-01 00:00:00"], ("row 4", "'0001-01-01 00:00:00'")),
        ([0, 400e6, 900e6, 1900e6], ("if it is not seconds", "--column arrival_ms=timestamp")),
    ],
)
def test_times_of_several_units_or_decades_apart_name_their_row(
    times: list[Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(WorkloadError) as caught:
        read_workload(timed(tmp_path, times))
    for part in parts:
        assert part in str(caught.value), caught.value
    one_line(caught.value)


@pytest.mark.parametrize(
    ("times", "span_s"),
    [
        ([0, 1, 2.5], 2.5),
        ([0, 30 * 86400.0], 30 * 86400.0),
        ([EPOCH, EPOCH + 1, EPOCH + 9 * 86400.0], 9 * 86400.0),
        ([EPOCH, EPOCH + 3 * 365 * 86400.0], 3 * 365 * 86400.0),
        ([1e3 * EPOCH, 1e3 * EPOCH + 500], 0.5),
        (["2021-01-01", "2024-01-01"], 1095 * 86400.0),
    ],
)
def test_times_of_real_logs_are_read(times: list[Any], span_s: float, tmp_path: Path) -> None:
    assert read_workload(timed(tmp_path, times)).span_s == pytest.approx(span_s)


def test_a_failure_without_a_time_neither_stops_the_reading_nor_gives_the_unit(tmp_path: Path) -> None:
    path = timed(tmp_path, [1e3 * EPOCH, 1e3 * EPOCH + 500])
    head, rows = path.read_text().split("\n", 1)
    write(path, f"{head}\n0,5,0\n{rows}")
    assert read_workload(path).arrival_s.tolist() == pytest.approx([0.0, 0.5])


@needs_duckdb
def test_the_fast_lane_refuses_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [timed(tmp_path, [EPOCH, 0, EPOCH + 1]), write(tmp_path / "long.csv", HEADER + GOOD + "2,1,000,5\n")]
    said = []
    for least in (10**9, 0):
        monkeypatch.setattr(table, "_FAST_BYTES", {"csv": least, "csv.gz": least})
        for path in bad:
            with pytest.raises(WorkloadError) as caught:
                read_workload(path)
            said.append(str(caught.value))
    assert said[:2] == said[2:]


def test_lines_that_end_in_a_carriage_return_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "old.csv", (HEADER + GOOD).replace("\n", "\r"))
    assert read_workload(path).prompt_tokens.tolist() == [10, 11]
    monkeypatch.setattr(table, "_FAST_BYTES", {"csv": 0, "csv.gz": 0})
    assert read_workload(path).prompt_tokens.tolist() == [10, 11]
    write(path, (HEADER + GOOD + "2,5,many\n").replace("\n", "\r"))
    with pytest.raises(WorkloadError, match="row 4, field 'output_tokens'"):
        read_workload(path)


def test_empty_cells_after_the_last_field_are_no_cells(tmp_path: Path) -> None:
    path = write(tmp_path / "ends.csv", HEADER + "0,10,20,\n1,11,21, ,\n")
    assert read_workload(path).output_tokens.tolist() == [20, 21]


def test_a_format_names_its_own_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.csv", "a,b,c\n1,2,3\n")
    with pytest.raises(WorkloadError, match=r"'ContextTokens' is missing.*without a format.*--column prompt_tokens="):
        read_workload(path, format="azure")
    with pytest.raises(WorkloadError, match="'azure' names its own fields"):
        read_workload(path, format="azure", columns={"prompt_tokens": "a"})
    named = {"arrival_s": "a", "prompt_tokens": "b", "output_tokens": "c"}
    assert len(load_workload(path, columns=named)) == len(read_workload(path, format="plain", columns=named)) == 1
    with pytest.raises(WorkloadError, match="'chat': no such file; columns name the fields of a log file"):
        load_workload("chat", columns=named)


# Laws: whatever the bytes, a workload or a WorkloadError


def read_or_refuse(path: Path, **options: Any) -> Workload | None:
    try:
        workload = read_workload(path, **options)
    except WorkloadError as error:
        one_line(error)
        return None
    describe(workload).to_dict()
    return workload


def one_line(error: WorkloadError) -> None:
    assert str(error).isprintable() or "\n" not in str(error), str(error)


@given(data=st.binary(max_size=400), kind=st.sampled_from(["", "gz", "PAR1", "{", "[", *FORMATS]))
@settings(max_examples=300)
def test_random_bytes_never_escape(data: bytes, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "noise"
    if kind in FORMATS:
        path.write_bytes(",".join(FORMATS[kind].fields or ("prompt_tokens", "output_tokens")).encode() + b"\n" + data)
        read_or_refuse(path, format=kind)
    elif kind == "gz":
        path.write_bytes(gzip.compress(data))
    else:
        path.write_bytes(kind.encode() + data)
    read_or_refuse(path)


@given(sample=st.sampled_from(SAMPLES), seed=st.integers(0, 2**32), zipped=st.booleans())
@settings(max_examples=300)
def test_damaged_samples_never_escape(
    sample: Path, seed: int, zipped: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(gzip.compress(sample.read_bytes()) if zipped else sample.read_bytes())
    rng = random.Random(seed)  # noqa: S311 - noise for a test
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.choice([rng.randrange(256), *b'0-9,."\n[]{}e '])
    if rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    path = tmp_path_factory.getbasetemp() / f"damaged{sample.suffix}"
    path.write_bytes(bytes(data))
    read_or_refuse(path)
    read_or_refuse(path, format=random.Random(seed).choice(list(FORMATS)))  # noqa: S311 - the same


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3),
    max_leaves=4,
)


@given(
    known=st.sampled_from([f for f in FORMATS.values() if f.fields]),
    rows=st.lists(st.lists(JSON, min_size=6, max_size=6), min_size=1, max_size=4),
)
@settings(max_examples=300)
def test_any_json_values_never_escape(
    known: Any, rows: list[list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.jsonl"
    path.write_bytes(
        b"\n".join(msgspec.json.encode(dict(zip((*known.fields, "hash_ids"), r, strict=False))) for r in rows)
    )
    read_or_refuse(path)


CELL = st.one_of(
    st.integers(-3, 5000).map(str),
    st.floats(-10, 1e6).map(str),
    st.sampled_from(
        ["", " ", "nan", "inf", "1e3", " 12 ", "0x10", "1_000", "12.0", "+7", "007", '"9"', "2**3", "\uff12"]
    ),
    st.sampled_from(["2024-01-01", "2024-01-01 00:00:05.1234567", "2024-01-01T00:00:05Z", "2024-01-01 00:00:00+02:00"]),
)


@needs_duckdb
@given(rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6))
@settings(max_examples=60)
def test_the_fast_lane_says_what_the_definition_says(
    rows: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "lanes.csv"
    path.write_text("arrival_s,prompt_tokens,session_id\n" + "".join(",".join(r) + "\n" for r in rows))
    log = table.inspect(path)
    columns = [
        Column("arrival_s", "time"),
        Column("prompt_tokens", "tokens"),
        Column("session_id", "label"),
    ]
    from gambrel.traffic import fast

    quick = fast.read_csv(log, columns)
    if quick is None:
        return
    slow = log.read_slowly(columns)
    for name in ("arrival_s", "prompt_tokens"):
        assert quick.arrays[name] == pytest.approx(slow.arrays[name], abs=2e-6)
    assert quick.dates == slow.dates


@needs_duckdb
@pytest.mark.parametrize("path", [p for p in SAMPLES if p.suffix == ".csv"], ids=lambda p: p.name)
def test_the_fast_lane_reads_samples_alike(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = read_workload(path)
    monkeypatch.setattr(table, "_FAST_BYTES", {"csv": 0, "csv.gz": 0})
    fast = read_workload(path)
    assert same(slow, fast)


@needs_duckdb
def test_parquet(tmp_path: Path) -> None:
    import duckdb

    path = tmp_path / "log.parquet"

    def save(select: str) -> None:
        duckdb.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")

    save(
        "SELECT TIMESTAMP '2024-01-01' + i * INTERVAL 250 MILLISECOND AS time, 10 + i AS input_tokens, "
        "1 + i AS output_tokens, 'u' || (i % 2) AS user_id FROM range(4) t(i)"
    )
    workload = read_workload(path)
    assert workload.arrival_s.tolist() == [0, 0.25, 0.5, 0.75]
    assert workload.prompt_tokens.tolist() == [10, 11, 12, 13]
    assert workload.session is not None
    assert workload.session.tolist() == [0, 1, 0, 1]
    data = path.read_bytes()
    for damaged in (data[:40], data[:-9], b"PAR1" + bytes(60) + b"PAR1", data[:30] + bytes(200) + data[230:]):
        path.write_bytes(damaged)
        read_or_refuse(path)
    duckdb.execute(f"COPY (SELECT 1 AS timestamp, 2 AS input_length, -3 AS output_length) TO '{path}' (FORMAT parquet)")
    with pytest.raises(WorkloadError, match=r"row 1, field 'output_length': found -3"):
        read_workload(path)
    save("SELECT 1000 * i AS timestamp, 512 AS input_length, 3 AS output_length, [1, i] AS hash_ids FROM range(3) t(i)")
    mooncake = read_workload(path)
    assert mooncake.prefix_blocks is not None
    assert mooncake.prefix_blocks.tolist() == [1, 0, 1, 1, 1, 2]
    assert mooncake.arrival_s.tolist() == [0, 1, 2]


# Round trips


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 10**7), st.integers(1, 10**6), st.integers(1, 10**5)), min_size=1, max_size=40
    ),
    extras=st.booleans(),
    suffix=st.sampled_from([".csv", ".csv.gz"]),
)
@settings(max_examples=60)
def test_written_workloads_read_back(
    rows: list[tuple[int, int, int]], extras: bool, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    times = np.sort(np.array([r[0] for r in rows])) / 1e3
    n = len(rows)
    workload = Workload(
        arrival_s=times - times[0],
        prompt_tokens=np.array([r[1] for r in rows]),
        output_tokens=np.array([r[2] for r in rows]),
        session=np.arange(n) if extras else None,
        cached_tokens=np.zeros(n, np.int64) if extras else None,
        service_s=np.ones(n) if extras else None,
    )
    path = tmp_path_factory.getbasetemp() / f"trip{suffix}"
    write_workload(workload, path)
    first = path.read_bytes()
    back = read_workload(path)
    assert back.arrival_s == pytest.approx(workload.arrival_s, abs=2e-6)
    for column in ("prompt_tokens", "output_tokens", "session", "cached_tokens", "service_s"):
        assert np.array_equal(getattr(back, column), getattr(workload, column)) or getattr(workload, column) is None
    write_workload(workload, path)
    assert path.read_bytes() == first


# One door


def test_one_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(load_workload("chat:n=10")) == 10
    assert len(load_workload("profile:chat:n=10")) == 10
    assert len(load_workload("sample")) == 2000
    path = write(tmp_path / "a.csv", HEADER + GOOD)
    assert len(load_workload(str(path))) == len(load_workload(path)) == 2
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "chat", HEADER + GOOD)
    assert len(load_workload("chat")) == 2
    with pytest.raises(WorkloadError, match=r"'chatt'; nearest: chat.*summarisation"):
        load_workload("chatt")
    with pytest.raises(WorkloadError, match=r"nothing\.csv: no such file"):
        load_workload("nothing.csv")


@given(st.text(max_size=30))
@settings(max_examples=100)
def test_any_words_at_the_door(text: str) -> None:
    for spec in (text, f"chat:{text}", f"profile:{text}"):
        try:
            load_workload(spec)
        except WorkloadError as error:
            one_line(error)
