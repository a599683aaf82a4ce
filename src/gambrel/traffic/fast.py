"""The fast lane: DuckDB for CSV files of millions of rows, and for Parquet at all.

Only what comes out exactly as the definition in :mod:`gambrel.traffic.table` would have it is accepted: every
cell a finite number (whole and not negative for tokens) or a date-time. :func:`read_csv` answers None at the
first doubt, and the definition then finds the line and the words.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.traffic.columns import Columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints
    from gambrel.traffic.columns import Column
    from gambrel.traffic.table import Log

_THREADS = 2  # each holds parse buffers of its own; two keep five million rows below half a gigabyte

__all__ = ["parquet_names", "read_csv", "read_parquet"]


def _duckdb() -> Any:
    """The module, or None without the extra ``logs``."""
    try:
        import duckdb
    except ImportError:
        return None
    return duckdb


@contextlib.contextmanager
def _connection() -> Iterator[Any]:
    """A private in-memory database that writes nothing beside the log and prints no progress."""
    with _duckdb().connect(
        ":memory:", config={"memory_limit": "1GB", "temp_directory": "", "threads": _THREADS}
    ) as con:
        con.execute("SET enable_progress_bar = false")
        yield con


def _quote(name: str, mark: str = '"') -> str:
    return mark + name.replace(mark, mark + mark) + mark


def _expression(column: Column, *, dated: bool, typed: bool) -> str:
    """The SQL that turns a cell of ``column`` into what :class:`Columns` holds, or NULL."""
    cell = _quote(column.name)
    if column.kind == "time" and dated and typed:
        return f"epoch_us({cell})"
    if column.kind == "time" and dated:
        # The cast drops a zone's offset silently, so text with one is left to the definition.
        zoned = f"contains({cell}, '+') OR contains(substr({cell}, 11), '-')"
        return f"CASE WHEN NOT ({zoned}) THEN epoch_us(TRY_CAST({cell} AS TIMESTAMP)) END"
    if column.kind == "label":
        return f"CAST(hash({cell}) >> 1 AS BIGINT)"
    number = f"TRY_CAST({cell} AS DOUBLE)"
    if column.kind == "tokens":
        # A direct cast would round 374.5; 32 bits halve the memory of the result.
        return f"CASE WHEN {number} = floor({number}) AND {number} BETWEEN 0 AND 2147483647 THEN {number}::INTEGER END"
    return number


def read_csv(log: Log, columns: Sequence[Column]) -> Columns | None:
    """The columns of a clean CSV file; None without DuckDB or at any doubt."""
    duckdb = _duckdb()
    if duckdb is None or len(set(log.names)) != len(log.names):
        return None
    fields = "{" + ", ".join(f"{_quote(n, chr(39))}: 'VARCHAR'" for n in log.names) + "}"
    source = (
        f"read_csv(?, header=true, auto_detect=false, columns={fields}, delim={_quote(log.delimiter, chr(39))}, "
        f"quote='\"', escape='\"', compression='{'gzip' if log.gz else 'none'}', strict_mode=true)"
    )
    try:
        with _connection() as con:
            dates = set()
            for column in columns:
                if column.kind == "time":
                    name = _quote(column.name)
                    row = con.execute(f"SELECT {name} FROM {source} LIMIT 1", [str(log.path)]).fetchone()  # noqa: S608 - names are quoted, the path is bound
                    if row is None:
                        return None
                    if not _is_number(row[0]):
                        dates.add(column.name)
            return _fetch(con, log, columns, source, dates)
    except (duckdb.Error, UnicodeDecodeError):
        return None


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True


def _fetch(con: Any, log: Log, columns: Sequence[Column], source: str, dates: set[str]) -> Columns | None:
    """Run the query; None where a cell is missing or not what its column is."""
    typed = log.kind == "parquet"
    select = ", ".join(f"{_expression(c, dated=c.name in dates, typed=typed)} AS c{i}" for i, c in enumerate(columns))
    found = con.execute(f"SELECT {select} FROM {source}", [str(log.path)]).fetchnumpy()  # noqa: S608 - see read_csv
    arrays: dict[str, Floats | Ints] = {}
    length = 0
    for i, column in enumerate(columns):
        values = found.pop(f"c{i}")
        if isinstance(values, np.ma.MaskedArray):
            if np.ma.is_masked(values):
                return None
            values = values.data
        length = len(values)
        if length == 0:
            return None
        if column.kind == "label":
            arrays[column.name] = _dense(values)
        elif column.name in dates:
            values -= values[0]
            arrays[column.name] = values / 1e6
        elif column.kind != "tokens" and not bool(np.isfinite(values).all()):
            return None
        else:
            arrays[column.name] = values
    return Columns(log, arrays, {}, frozenset(dates), length)


def _dense(values: Ints) -> Ints:
    """Ids in order of first appearance."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


# Parquet -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """A connection to read ``path`` with; WorkloadError without DuckDB or for a damaged file."""
    duckdb = _duckdb()
    if duckdb is None:
        raise WorkloadError(f"{path}: Parquet needs DuckDB; install gambrel[logs], or export the log as CSV")
    try:
        with _connection() as con:
            yield con
    except duckdb.Error as error:
        reason = str(error).splitlines()[0][:120]
        raise WorkloadError(f"{path}: damaged or truncated Parquet ({reason}); export it again") from None


def _types(con: Any, path: Path) -> dict[str, str]:
    """Column types by name."""
    described = con.execute("SELECT * FROM read_parquet(?) LIMIT 0", [str(path)]).description
    return {str(r[0]): str(r[1]).upper() for r in described}


def parquet_names(path: Path) -> tuple[str, ...]:
    """Column names; WorkloadError for a file that only begins like Parquet."""
    with _parquet(path) as con:
        return tuple(_types(con, path))


def parquet_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of the wanted columns as Python objects, times in UTC, for the definition."""
    with _parquet(path) as con:
        types = _types(con, path)
        cells = [
            f"make_timestamp(epoch_us({_quote(n)}))" if types[n].startswith("TIMESTAMP") else _quote(n) for n in names
        ]
        con.execute(f"SELECT {', '.join(cells) or '1'} FROM read_parquet(?)", [str(path)])  # noqa: S608 - see read_csv
        while rows := con.fetchmany(65_536):
            yield from rows


_NUMERIC = ("TINYINT", "SMALLINT", "INT", "BIGINT", "FLOAT", "DOUBLE", "HUGEINT", "DECIMAL")


def read_parquet(log: Log, columns: Sequence[Column]) -> Columns | None:
    """The columns of a clean Parquet file; None at any doubt."""
    if any(c.kind == "blocks" for c in columns):
        return None
    with _parquet(log.path) as con:
        types = _types(con, log.path)
        dates = {c.name for c in columns if c.kind == "time" and types[c.name].startswith("TIMESTAMP")}
        for column in columns:
            kind = types[column.name].removeprefix("U")
            if column.kind != "label" and column.name not in dates and not kind.startswith(_NUMERIC):
                return None
        return _fetch(con, log, columns, "read_parquet(?)", dates)
