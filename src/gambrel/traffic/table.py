"""Files of rows to columns, with every doubt traced back to a line.

Logs come as CSV, JSON Lines or Parquet, plain or gzipped, whole or cut off. This module knows files and cells, not
formats: it finds out what a file is (:func:`inspect`) and turns wanted columns into arrays (:meth:`Log.read`).

Reading in Python is the *definition*: it names the line, the field and the finding of the first bad cell. DuckDB,
where installed, is the fast lane for big clean CSV files; whatever it stumbles over is read again by the
definition, so the two cannot tell a user different things. Parquet has no second reader and needs DuckDB.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.traffic import fast
from gambrel.traffic.columns import Columns
from gambrel.traffic.synonyms import fold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints
    from gambrel.traffic.columns import Column

__all__ = ["Log", "inspect"]

_CHUNK = 65_536  # rows turned into arrays at a time, so that a list of Python objects never holds a whole log
_FAST_BYTES = {"csv": 8_000_000, "csv.gz": 2_000_000}  # above these DuckDB's start-up (about 0.1 s) pays
_DELIMITERS = ",;\t|"
_MAGIC = {
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
}


@dataclass(frozen=True)
class Log:
    """A file whose kind and field names are known, not yet read.

    ``kind`` is ``csv``, ``jsonl``, ``json`` (one array) or ``parquet``; ``names`` are the header's or the first
    object's; ``first`` is the first JSON object.
    """

    path: Path
    kind: str
    names: tuple[str, ...]
    gz: bool = False
    delimiter: str = ","
    first: dict[str, Any] | None = None

    def find(self, *names: str) -> str | None:
        """The file's own spelling of the first of ``names`` that it has, ignoring case and punctuation."""
        folded = {fold(n): n for n in reversed(self.names)}
        return next((folded[fold(n)] for n in names if fold(n) in folded), None)

    def refuse(self, line: int | None, name: str, found: str, wanted: str) -> WorkloadError:
        """One line that names file, row, field, finding and remedy."""
        where = f"row {line}, " if line is not None else ""
        return WorkloadError(f"{self.path}: {where}field {name!r}: found {found}; {wanted}")

    def row(self, row: int, names: Sequence[str]) -> tuple[int, tuple[Any, ...]]:
        """(1-based line, wanted cells) of data row ``row`` (0-based); for Parquet and JSON arrays the row itself."""
        return next(islice(self.rows(names), row, None))

    def read(self, columns: Sequence[Column]) -> Columns:
        """The wanted columns as arrays of one length; WorkloadError at the first cell that cannot be one."""
        if self.kind == "parquet":
            return fast.read_parquet(self, columns) or self.read_slowly(columns)
        size = self.path.stat().st_size
        if self.kind == "csv" and size > _FAST_BYTES["csv.gz" if self.gz else "csv"]:
            quick = fast.read_csv(self, columns)
            if quick is not None:
                return quick
        return self.read_slowly(columns)

    def read_slowly(self, columns: Sequence[Column]) -> Columns:
        """The definition of :meth:`read`, in Python."""
        builders = [_BUILDERS[c.kind](self, c.name) for c in columns]
        names = tuple(c.name for c in columns)
        rows = self.rows(names)
        length = 0
        while chunk := list(islice(rows, _CHUNK)):
            lines = [line for line, _ in chunk]
            for j, builder in enumerate(builders):
                builder.add([cells[j] for _, cells in chunk], lines)
            length += len(chunk)
        if length == 0:
            raise WorkloadError(f"{self.path}: no requests after the header; a log needs at least one row")
        arrays: dict[str, Floats | Ints] = {}
        blocks: dict[str, tuple[Ints, Ints]] = {}
        dates = set()
        for column, builder in zip(columns, builders, strict=True):
            if isinstance(builder, _Blocks):
                blocks[column.name] = builder.done()
            else:
                arrays[column.name] = builder.done()
            if isinstance(builder, _Times) and builder.dated:
                dates.add(column.name)
        return Columns(self, arrays, blocks, frozenset(dates), length)

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """(line, wanted cells) of every row that is not blank; None for a cell that is not there."""
        with guard(self.path):
            yield from {
                "csv": self._csv_rows,
                "jsonl": self._jsonl_rows,
                "json": self._json_rows,
                "parquet": self._parquet_rows,
            }[self.kind](names)

    def _csv_rows(self, names: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
        at = [self.names.index(n) for n in names]
        with open_text(self.path, gz=self.gz) as stream:
            reader = csv.reader(stream, delimiter=self.delimiter)
            rows = (row for row in reader if row and (len(row) > 1 or row[0].strip()))
            next(rows, None)
            width = len(self.names)
            for row in rows:
                if len(row) > width and any(map(str.strip, row[width:])):
                    raise WorkloadError(
                        f"{self.path}: row {reader.line_num}: {len(row)} cells under {width} fields, "
                        f"{show(row[width])} after the last, {self.names[-1]!r}; "
                        "numbers without thousands separators and text in quotes work"
                    )
                try:
                    yield reader.line_num, tuple([row[i] for i in at])
                except IndexError:
                    yield reader.line_num, tuple(row[i] if i < len(row) else None for i in at)

    def _jsonl_rows(self, names: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        with open_binary(self.path, gz=self.gz) as stream:
            for line, text in enumerate(stream, 1):
                if text.isspace():
                    continue
                try:
                    get = decode(text).get
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise WorkloadError(
                        f"{self.path}: row {line}: not a JSON object ({error}); "
                        "one object a line works, and a cut last line can be deleted"
                    ) from None
                yield line, tuple([get(n) for n in names])

    def _json_rows(self, names: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
        with open_binary(self.path, gz=self.gz) as stream:
            rows = _json_array(self.path, stream.read())
        for line, row in enumerate(rows, 1):
            yield line, tuple([row.get(n) for n in names])

    def _parquet_rows(self, names: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
        return enumerate(fast.parquet_rows(self.path, names), 1)


def inspect(path: str | Path) -> Log:
    """Find out what ``path`` is and how its fields are called; WorkloadError for what holds no rows."""
    path = Path(path)
    with guard(path):
        if path.is_dir():
            raise WorkloadError(f"{path}: is a folder; name one file in it")
        with path.open("rb") as raw:
            head = raw.read(8)
        if not head:
            raise WorkloadError(f"{path}: empty file (0 bytes); copy or export it again")
        for magic, what in _MAGIC.items():
            if head.startswith(magic):
                raise WorkloadError(f"{path}: {what}; plain, .gz or Parquet files can be read, so decompress it first")
        if head.startswith(b"PAR1"):
            return Log(path, "parquet", fast.parquet_names(path))
        gz = head.startswith(b"\x1f\x8b")
        with open_binary(path, gz=gz) as stream:
            start = _first_line(stream)
        if not start:
            raise WorkloadError(f"{path}: holds no text{' once decompressed' if gz else ''}; copy or export it again")
        return _inspect_text(path, start, gz=gz)


def _first_line(stream: IO[bytes]) -> bytes:
    """The first line that is not blank, at most a megabyte of it."""
    while line := stream.readline(1_000_000):
        if not line.isspace():
            return line.removeprefix(b"\xef\xbb\xbf")
    return b""


def _inspect_text(path: Path, start: bytes, *, gz: bool) -> Log:
    text = start.lstrip()
    if text.startswith(b"["):
        with open_binary(path, gz=gz) as stream:
            rows = _json_array(path, stream.read())
        return Log(path, "json", tuple(rows[0]), gz, first=rows[0])
    if text.startswith(b"{"):
        try:
            first = msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise WorkloadError(
                f"{path}: row 1: not a JSON object ({error}); JSON Lines with one object a line works"
            ) from None
        return Log(path, "jsonl", tuple(first), gz, first=first)
    header = text.partition(b"\r")[0].decode("utf-8", errors="replace").rstrip("\n")  # lines may end in it alone
    if not header.isprintable() and "\t" not in header:
        raise WorkloadError(f"{path}: not text in UTF-8; CSV, JSON Lines (either may be .gz) and Parquet can be read")
    delimiter = max(_DELIMITERS, key=header.count)
    names = next(csv.reader([header], delimiter=delimiter), [])
    return Log(path, "csv", tuple(n.strip() if delimiter != "\t" else n for n in names), gz, delimiter)


def _json_array(path: Path, data: bytes) -> list[dict[str, Any]]:
    try:
        rows = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=list[dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WorkloadError(f"{path}: not a JSON array of objects ({error}); that or one object a line works") from None
    if not rows:
        raise WorkloadError(f"{path}: an empty JSON array; a log needs at least one row")
    return rows


@contextmanager
def guard(path: Path) -> Iterator[None]:
    """Turn what files do wrong into one clear line."""
    try:
        yield
    except FileNotFoundError:
        raise WorkloadError(f"{path}: no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = str(error).lower().rstrip(".")
        raise WorkloadError(f"{path}: truncated or damaged gzip ({reason}); copy or export it again") from None
    except csv.Error as error:
        raise WorkloadError(f"{path}: not CSV ({error}); check quotes and the delimiter") from None
    except ValueError as error:  # an embedded NUL in the path, or a stream that cannot be decoded
        raise WorkloadError(f"{path}: cannot be read ({error})") from None
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read ({error.strerror or error})") from None


def open_binary(path: Path, *, gz: bool) -> IO[bytes]:
    """Bytes, decompressed where needed."""
    return cast("IO[bytes]", gzip.open(path, "rb")) if gz else path.open("rb")


def open_text(path: Path, *, gz: bool) -> io.TextIOWrapper:
    """UTF-8 text; bytes that are not become replacement characters, which no number survives."""
    return io.TextIOWrapper(open_binary(path, gz=gz), encoding="utf-8-sig", errors="replace", newline="")


# Cells to arrays -----------------------------------------------------------------------------------------------


def show(cell: Any) -> str:
    """A cell as an error message quotes it."""
    if cell is None:
        return "nothing there"
    if isinstance(cell, str) and not cell.strip():
        return "an empty cell"
    text = repr(cell)
    return text if len(text) <= 40 else text[:37] + "..."


def _number(cell: Any) -> float:
    if isinstance(cell, bool) or not isinstance(cell, (str, int, float, Decimal)):
        raise TypeError
    value = float(cell)
    if not np.isfinite(value):
        raise ValueError
    return value


class _Numbers:
    """Finite float64 from cells."""

    wanted = "a finite number"

    def __init__(self, log: Log, name: str) -> None:
        self.log = log
        self.name = name
        self.parts: list[Floats] = []

    def add(self, cells: list[Any], lines: list[int]) -> None:
        """Append a chunk; WorkloadError at its first bad cell."""
        try:
            values = np.fromiter(map(float, cells), np.float64, len(cells))
            good = bool(np.isfinite(values).all()) and bool not in set(map(type, cells))
        except (TypeError, ValueError, OverflowError):
            good = False
        if not good:
            values = np.fromiter((self.parse(c, n) for c, n in zip(cells, lines, strict=True)), np.float64, len(cells))
        self.check(values, cells, lines)
        self.parts.append(values)

    def parse(self, cell: Any, line: int) -> float:
        """One cell; WorkloadError if it is no finite number."""
        try:
            return _number(cell)
        except (TypeError, ValueError, OverflowError):
            ends = "; if the log was cut here, delete the row" if cell is None else ""
            raise self.log.refuse(line, self.name, show(cell), f"{self.wanted} works{ends}") from None

    def check(self, values: Floats, cells: list[Any], lines: list[int]) -> None:
        """Refuse what the kind forbids beyond being finite."""

    def done(self) -> Floats | Ints:
        """The whole column."""
        return np.concatenate(self.parts)


class _Tokens(_Numbers):
    """Whole numbers of at least 0, below 2**31, as float64."""

    wanted = "a whole number of tokens"

    def check(self, values: Floats, cells: list[Any], lines: list[int]) -> None:
        bad = (values < 0) | (values != np.floor(values)) | (values >= 2**31)
        if bad.any():
            i = int(np.argmax(bad))
            raise self.log.refuse(lines[i], self.name, show(cells[i]), f"{self.wanted}, 0 to 2**31, works")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Times(_Numbers):
    """Numbers as they are, or date-times as seconds from the first row; one kind a column."""

    wanted = "a finite number or a date and time such as 2023-11-16 18:15:46.68"

    def __init__(self, log: Log, name: str) -> None:
        super().__init__(log, name)
        self.dated: bool | None = None
        self.origin = _EPOCH

    def add(self, cells: list[Any], lines: list[int]) -> None:
        if self.dated is None:
            self.dated = _is_date(cells[0])
            if self.dated:
                self.origin = _date(cells[0])
        if not self.dated:
            super().add(cells, lines)
            return
        values = np.empty(len(cells))
        second = timedelta(seconds=1)
        for i, cell in enumerate(cells):
            try:
                values[i] = (_date(cell) - self.origin) / second
            except (ValueError, TypeError, AttributeError, OverflowError):
                wanted = "a date and time such as 2023-11-16 18:15:46.68 works, as in the first row"
                raise self.log.refuse(lines[i], self.name, show(cell), wanted) from None
        self.parts.append(values)


def _date(cell: Any) -> datetime:
    """ISO 8601 with space or T, any fraction, with or without zone; without one, read as UTC."""
    found = cell if isinstance(cell, datetime) else datetime.fromisoformat(cell.strip().removesuffix(" UTC"))
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _is_date(cell: Any) -> bool:
    try:
        _number(cell)
    except (TypeError, ValueError, OverflowError):
        try:
            _date(cell)
        except (TypeError, ValueError, AttributeError, OverflowError):
            return False
        return True
    return False


class _Labels(_Numbers):
    """Dense int64 ids in order of first appearance; an absent cell is a label of its own row."""

    def __init__(self, log: Log, name: str) -> None:
        super().__init__(log, name)
        self.ids: dict[str, int] = {}
        self.count = 0
        self.chunks: list[Ints] = []

    def add(self, cells: list[Any], lines: list[int]) -> None:
        del lines
        out = np.empty(len(cells), np.int64)
        for i, cell in enumerate(cells):
            key = "" if cell is None else str(cell)
            known = self.ids.get(key) if key else None
            if known is None:
                known = self.count
                self.count += 1
                if key:
                    self.ids[key] = known
            out[i] = known
        self.chunks.append(out)

    def done(self) -> Floats | Ints:
        return np.concatenate(self.chunks)


class _Blocks:
    """Lists of prefix-block hashes, flattened; hashes may be any number or text and become dense ids."""

    def __init__(self, log: Log, name: str) -> None:
        self.log = log
        self.name = name
        self.flat: list[Ints] = []
        self.sizes: list[Ints] = []
        self.ids: dict[str, int] = {}

    def add(self, cells: list[Any], lines: list[int]) -> None:
        """Append a chunk; WorkloadError at the first cell that is not a list of hashes."""
        for cell, line in zip(cells, lines, strict=True):
            if not isinstance(cell, list):
                raise self.log.refuse(line, self.name, show(cell), "a list of block hashes works")
        self.sizes.append(np.fromiter(map(len, cells), np.int64, len(cells)))
        flat = list(chain.from_iterable(cells))
        if set(map(type, flat)) <= {int} and not self.ids:
            try:
                self.flat.append(np.fromiter(flat, np.int64, len(flat)))
            except OverflowError:
                pass
            else:
                return
        # Text or 128-bit hashes: negative ids cannot collide with the plain ones of earlier chunks.
        ids = self.ids
        self.flat.append(np.fromiter((ids.setdefault(str(h), -1 - len(ids)) for h in flat), np.int64, len(flat)))

    def done(self) -> tuple[Ints, Ints]:
        """(hashes, offsets) of the whole column."""
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(self.sizes))])
        return np.concatenate(self.flat), offsets


_BUILDERS: dict[str, Callable[[Log, str], _Numbers | _Blocks]] = {
    "tokens": _Tokens,
    "time": _Times,
    "number": _Numbers,
    "label": _Labels,
    "blocks": _Blocks,
}
