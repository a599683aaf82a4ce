"""One row a request, as a file for whoever wants to slice a run in a way no table here does.

Columns are the names of :class:`~gambrel.core.run.Run` in SI units; the four phases add up to ``e2e_s``. The file is a
log that :func:`gambrel.traffic.read_workload` reads again. What never happened is empty, or ``null``.
"""

from __future__ import annotations

import csv
import gzip
import io
from typing import IO, TYPE_CHECKING, Any

import msgspec
import numpy as np

from gambrel.core.errors import ReportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from gambrel.core.run import Run

__all__ = ["request_columns", "write_requests"]

_CHUNK = 65_536  # rows turned into Python objects at a time


def request_columns(run: Run) -> dict[str, npt.NDArray[Any]]:
    """Every column of the file, one row a request: seconds (float64) and counts (int64)."""
    columns: dict[str, npt.NDArray[Any]] = {
        "request": np.arange(len(run)),
        "replica": run.replica,
        "arrival_s": run.arrival_s,
        "scheduled_s": run.scheduled_s,
        "first_token_s": run.first_token_s,
        "last_token_s": run.last_token_s,
        "prompt_tokens": run.prompt_tokens,
        "output_tokens": run.output_tokens,
    }
    if run.cached_tokens is not None:
        columns["cached_tokens"] = run.cached_tokens
    columns["preemptions"] = run.preemptions
    columns |= {"ttft_s": run.ttft_s, "tpot_s": run.tpot_s, "e2e_s": run.e2e_s}
    columns |= {f"{name}_s": seconds for name, seconds in run.phases_s().items()}
    return columns


def write_requests(path: Path, run: Run) -> None:
    """Write the rows of a run; the name's ending says how: ``.parquet``, ``.jsonl`` or ``.csv`` (also ``.gz``).

    Raises:
        ReportError: another ending, a file that cannot be written, or Parquet without DuckDB.
    """
    name = path.name.removesuffix(".gz")
    writers: dict[str, Callable[[IO[bytes], dict[str, npt.NDArray[Any]]], None]] = {".jsonl": _jsonl, ".csv": _csv}
    kind = next((k for k in writers if name.endswith(k)), None)
    if kind is None and not path.name.endswith(".parquet"):
        raise ReportError(f"{path}: requests are written as .parquet, .jsonl or .csv (the last two also .gz)")
    columns = request_columns(run)
    try:
        if kind is None:
            _parquet(path, columns)
        else:
            with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
                writers[kind](file, columns)  # type: ignore[arg-type]  # a GzipFile is an IO[bytes] in all but name
    except OSError as error:
        raise ReportError(f"{path}: cannot be written ({error.strerror or error})") from None


def _rows(columns: dict[str, npt.NDArray[Any]]) -> Iterator[list[tuple[Any, ...]]]:
    """Rows as Python values, NaN as None, a chunk at a time."""
    number = len(next(iter(columns.values())))
    for begin in range(0, number, _CHUNK):
        cells = []
        for values in columns.values():
            part = values[begin : begin + _CHUNK]
            plain = part.tolist()
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                plain = [x if x == x else None for x in plain]  # noqa: PLR0124 - only NaN differs from itself
            cells.append(plain)
        yield list(zip(*cells, strict=True))


def _jsonl(file: IO[bytes], columns: dict[str, npt.NDArray[Any]]) -> None:
    for rows in _rows(columns):
        file.write(b"".join(msgspec.json.encode(dict(zip(columns, row, strict=True))) + b"\n" for row in rows))


def _csv(file: IO[bytes], columns: dict[str, npt.NDArray[Any]]) -> None:
    file.write(",".join(columns).encode() + b"\n")
    for rows in _rows(columns):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        file.write(text.getvalue().encode())


def _parquet(path: Path, columns: dict[str, npt.NDArray[Any]]) -> None:
    try:
        import duckdb
    except ImportError:
        raise ReportError(
            f"{path}: Parquet needs the package duckdb, which is not installed; install the extra gambrel[logs], "
            "or name a .jsonl or .csv file"
        ) from None
    tokens = {k: np.ascontiguousarray(v) for k, v in columns.items()}
    with duckdb.connect(":memory:") as con:
        con.register("requests", tokens)
        seconds = {k for k, v in tokens.items() if v.dtype.kind == "f"}
        cells = ", ".join(f"CASE WHEN NOT isnan({k}) THEN {k} END AS {k}" if k in seconds else k for k in tokens)
        try:
            target = str(path).replace("'", "''")
            con.execute(f"COPY (SELECT {cells} FROM requests) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")  # noqa: S608 - our own names; the path is quoted
        except duckdb.IOException as error:
            raise ReportError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from None
