"""Where a run's time went, as files and documents: rows of requests, the JSON of ``gambrel simulate``."""

from __future__ import annotations

import csv
import gzip
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engine_cases import affine_table, poisson
from gambrel.core.errors import ReportError
from gambrel.engine import Limits, record, replay, run_of
from gambrel.report import lives, request_columns, write_requests
from gambrel.traffic import read_workload

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.core.run import Run


@pytest.fixture(scope="module")
def run() -> Run:
    limits = Limits(16, 64, 60, 4)
    return run_of(replay(affine_table(64, 16), limits, poisson(200, 30.0, 60, 30)), limits)


def test_rows_hold_what_the_run_holds(run: Run, tmp_path: Path) -> None:
    columns = request_columns(run)
    write_requests(tmp_path / "r.csv", run)
    write_requests(tmp_path / "r.csv.gz", run)
    write_requests(tmp_path / "r.jsonl", run)
    text = (tmp_path / "r.csv").read_text()
    assert gzip.decompress((tmp_path / "r.csv.gz").read_bytes()).decode() == text
    of_csv = list(csv.DictReader(text.splitlines()))
    of_json = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert len(of_csv) == len(of_json) == len(run)
    for name, values in columns.items():
        for i, value in enumerate(values.tolist()):
            if np.isnan(value):  # one token has no time between tokens
                assert name == "tpot_s"
                assert of_csv[i][name] == ""
                assert of_json[i][name] is None
            else:
                assert float(of_csv[i][name]) == of_json[i][name] == value
    for row in of_json:
        parts = sum(row[f"{name}_s"] for name in ("queue", "prefill", "decode", "preempted"))
        assert parts == pytest.approx(row["e2e_s"], abs=1e-9)
    again = read_workload(tmp_path / "r.jsonl")
    assert np.array_equal(again.prompt_tokens, run.prompt_tokens)


def test_parquet_holds_the_same(run: Run, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "it's.parquet"
    write_requests(path, run)
    found = duckdb.execute("SELECT * FROM read_parquet(?)", [str(path)]).fetchnumpy()
    for name, values in request_columns(run).items():
        got = np.ma.filled(found[name].astype(np.float64), np.nan)
        assert np.array_equal(got, values.astype(np.float64), equal_nan=True), name


def test_refusals(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"written as \.parquet, \.jsonl or \.csv"):
        write_requests(tmp_path / "r.xlsx", run)
    for name in ("none/r.csv", "none/r.parquet"):
        with pytest.raises(ReportError, match="cannot be written"):
            write_requests(tmp_path / name, run)


def test_lives_are_drawn_to_scale() -> None:
    """One line a request, as long as it lived, in the marks of its phases; no more lines than wanted."""
    limits = Limits(16, 64, 60, 4)
    table, workload = affine_table(64, 16), poisson(40, 30.0, 60, 30)
    run = run_of(replay(table, limits, workload), limits)
    found = record(table, limits, workload, run, 0.0, 1e3)
    lines = lives(found, width=200, most=40).splitlines()
    assert len(lines) == 42
    end = run.last_token_s.max()
    for row, line in enumerate(lines[:40]):
        drawn = line.split("|")[1]
        assert len(drawn) == 200
        assert len(drawn.strip()) == pytest.approx(run.e2e_s[row] / end * 200, abs=1.01)
        for mark, seconds in zip(".#=~", run.phases_s().values(), strict=True):
            assert drawn.count(mark) == pytest.approx(seconds[row] / end * 200, abs=3)
    assert len(lives(found, most=5).splitlines()) == 7
