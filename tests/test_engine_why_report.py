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
from gambrel.engine import Limits, replay, run_of
from gambrel.report import request_columns, write_requests
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
