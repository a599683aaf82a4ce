"""The library of measured runs: listed, opened, held against one another, deleted, taken away.

A run is the record file that ``gambrel measure`` writes. With ``gambrel ui --runs DIR`` the library is the record files
of that folder, so page and command line share it; without, runs are kept in memory until the server stops. A run is
asked for by its name in the listing, never by a path.
"""

from __future__ import annotations

import gzip
import tempfile
import threading
import time
import zlib
from collections import OrderedDict
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from starlette.concurrency import run_in_threadpool

from gambrel.core.errors import GambrelError, WorkloadError
from gambrel.faces.web import wire
from gambrel.faces.web.questions import Question
from gambrel.faces.web.setup import model_names
from gambrel.faces.web.uploads import Upload, received, safe_name, scrub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from gambrel.measure.compare import Comparison
    from gambrel.measure.record import Recording
    from gambrel.report import Report, Table

__all__ = ["LIBRARY", "QUESTIONS", "Library", "RunName"]

ENDING: Final = ".jsonl.gz"
KEPT: Final = 24
KEPT_READ: Final = 6
MOST_BYTES: Final = 64 * 10**6
HEAD_BYTES: Final = 1 << 16
MOST_LEVELS: Final = 12

RunName = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Library:
    """Record files by name, in a folder or in memory; safe to ask from several threads."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._read: OrderedDict[tuple[str, float], Recording] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, folder: Path | None) -> None:
        """Use a folder from now on, made where it is missing; None for memory.

        Raises:
            GambrelError: it cannot be one.
        """
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise GambrelError(f"--runs {folder}: cannot be a folder of runs ({error.strerror})") from None
        self.folder = folder

    def names(self) -> list[str]:
        """The runs there are, newest first."""
        if self.folder is None:
            with self._lock:
                return list(reversed(self._kept))
        found = [(p.stat().st_mtime, p.name) for p in self.folder.glob(f"*{ENDING}") if p.is_file()]
        return [name for _, name in sorted(found, reverse=True)]

    def new_name(self) -> str:
        """A name that no run has: ``measure-DATE-TIME.jsonl.gz``."""
        return self._free(time.strftime("measure-%Y%m%d-%H%M%S"))

    def _free(self, stem: str) -> str:
        known = set(self.names())
        names = (f"{stem}{'' if i == 1 else f'-{i}'}{ENDING}" for i in range(1, len(known) + 2))
        return next(name for name in names if name not in known)

    def add(self, name: str, records: bytes) -> str:
        """Keep a record file that is not in the folder already; the name it got, which no other run has.

        Raises:
            GambrelError: the folder cannot be written.
        """
        name = self._free(name.removesuffix(".gz").removesuffix(".jsonl"))
        data = records if records.startswith(b"\x1f\x8b") else gzip.compress(records, 6)
        if self.folder is not None:
            try:
                (self.folder / name).write_bytes(data)
            except OSError as error:
                raise GambrelError(f"{name}: cannot be kept ({error.strerror})") from None
            return name
        with self._lock:
            self._kept[name] = data
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return name

    def records(self, name: str) -> bytes:
        """The record file.

        Raises:
            Unknown: there is no such run.
        """
        if self.folder is not None and name in self.names():
            return (self.folder / name).read_bytes()
        with self._lock:
            if self.folder is None and name in self._kept:
                return self._kept[name]
        raise wire.Unknown(f"no run {name[:80]!r} in the library: it was deleted, or the server forgot it")

    def head(self, name: str) -> tuple[bytes, int]:
        """The first bytes of a record file, enough for its header, and its size; raises Unknown likewise."""
        if self.folder is None:
            data = self.records(name)
            return data[:HEAD_BYTES], len(data)
        if name not in self.names():
            return self.records(name), 0
        with (self.folder / name).open("rb") as file:
            return file.read(HEAD_BYTES), (self.folder / name).stat().st_size

    def delete(self, name: str) -> None:
        """Forget a run, file and all; raises Unknown like :meth:`records`, GambrelError where the file stays."""
        self.records(name)
        if self.folder is None:
            with self._lock:
                self._kept.pop(name, None)
            return
        try:
            (self.folder / name).unlink()
        except OSError as error:
            raise GambrelError(f"{name}: cannot be deleted ({error.strerror})") from None

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """The record file as a file, for as long as the context lasts; raises Unknown like :meth:`records`."""
        data = self.records(name)
        if self.folder is not None:
            yield self.folder / name
            return
        with tempfile.TemporaryDirectory(prefix="gambrel-") as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            yield path

    def recording(self, name: str) -> Recording:
        """The run as objects; raises Unknown like :meth:`records`, WorkloadError where the file is damaged."""
        from gambrel.measure.record import read_recording

        with self.file(name) as path:
            key = (name, path.stat().st_mtime if self.folder is not None else 0.0)
            with self._lock:
                known = self._read.get(key)
            if known is not None:
                return known
            try:
                found = read_recording(path)
            except WorkloadError as error:
                raise WorkloadError(scrub(str(error), path)) from error
        with self._lock:
            self._read[key] = found
            while len(self._read) > KEPT_READ:
                self._read.popitem(last=False)
        return found


LIBRARY: Final = Library()
"""The one of this server."""


def listing() -> dict[str, Any]:
    """The runs of the library, newest first."""
    found = [entry for name in LIBRARY.names() if (entry := _entry(name)) is not None]
    return {"runs": found, "folder": None if LIBRARY.folder is None else str(LIBRARY.folder)}


def _entry(name: str) -> dict[str, Any] | None:
    """A line of the listing, from the head of the file alone; None where it is no record file."""
    from gambrel.measure.record import Header, decode

    try:
        data, size = LIBRARY.head(name)
        text = zlib.decompressobj(31).decompress(data, 8 * HEAD_BYTES) if data.startswith(b"\x1f\x8b") else data
        line = decode(text.split(b"\n", 1)[0])
    except (GambrelError, OSError, zlib.error, msgspec.DecodeError):
        return None
    if not isinstance(line, Header):
        return None
    return {
        "name": name,
        "model": line.model,
        "source": line.source,
        "when": datetime.fromtimestamp(line.anchor_unix_s, UTC).isoformat(timespec="seconds"),
        "levels": len(line.settings.get("levels", ())),
        "bytes": size,
    }


async def take(request: Request, asked: Upload) -> dict[str, Any]:
    """Add a record file that gambrel measure wrote elsewhere."""
    async with received(request, safe_name(asked.name), MOST_BYTES) as path:
        return await run_in_threadpool(_take, path)


def _take(path: Path) -> dict[str, Any]:
    from gambrel.measure.record import read_recording

    try:
        read_recording(path)
    except WorkloadError as error:
        raise WorkloadError(scrub(str(error), path)) from error
    return {"name": LIBRARY.add(path.name, path.read_bytes())}


def report_of(name: str) -> Report:
    """The report of a run, as ``gambrel measure --html`` writes it.

    Raises:
        Unknown, WorkloadError: no such run, or a damaged file.
    """
    from gambrel.faces.measure_commands import measured_sweep
    from gambrel.measure.results import recording_figures
    from gambrel.report import sweep_report

    document = recording_figures(LIBRARY.recording(name)) | {"records": name}
    return sweep_report(measured_sweep(document))


def opened(name: str) -> dict[str, Any]:
    """A run's report, its levels, and which model of the catalog it may have been."""
    recording = LIBRARY.recording(name)
    served = recording.header.model
    tail = served.rpartition("/")[2].lower()
    same = [m for m in model_names() if m.lower() == served.lower() or m.rpartition("/")[2].lower() == tail]
    users = [round(level.requested) for level in recording.levels.values() if level.mode == "closed"]
    return {
        "name": name,
        "report": wire.report_document(report_of(name)),
        "levels": [label for label in recording.levels if recording.of_level(label)],
        "served": served,
        "model": same[0] if same else "",
        "users": max(users, default=0),
        "exports": [{"name": n, "title": title} for n, title in EXPORTS.items()],
    }


def delete(name: str) -> dict[str, Any]:
    """Delete a run, its file too where the library is a folder."""
    LIBRARY.delete(name)
    return {"deleted": name}


EXPORTS: Final = {"report.html": "Report, one file", "records.jsonl.gz": "Raw records"}


def export(name: str, file: str) -> Response:
    """The report of a run as one file, or its raw records."""
    if file == "report.html":
        from gambrel.report import page_html

        return wire.file(page_html(report_of(name)), f"measure-{file}", "text/html")
    if file == "records.jsonl.gz":
        return wire.file(LIBRARY.records(name), f"measure-{file}", "application/gzip")
    raise wire.Unknown(f"no such file {file[:60]!r}; there are {', '.join(EXPORTS)}")


# Two runs side by side ----------------------------------------------------------------------------------------------


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs, and the level of each; without levels, those that both have, or the only ones."""

    a: RunName
    b: RunName
    level_a: Annotated[str, msgspec.Meta(max_length=200)] = ""
    level_b: Annotated[str, msgspec.Meta(max_length=200)] = ""


def compared(asked: Pair) -> dict[str, Any]:
    """Two runs held against each other, level by level: each figure with its interval, B over A, and a verdict."""
    from gambrel.measure.compare import compare
    from gambrel.measure.sides import read_sides

    levels = [list(_levels(name)) for name in (asked.a, asked.b)]
    pairs = _pairs(asked, *levels)
    with LIBRARY.file(asked.a) as path_a, LIBRARY.file(asked.b) as path_b:
        sides = [{s.name.rpartition(" [")[2].removesuffix("]"): s for s in read_sides(p)} for p in (path_a, path_b)]
    tables = [_table(x, y, compare(sides[0][x], sides[1][y])) for x, y in pairs[:MOST_LEVELS]]
    return {
        "a": asked.a,
        "b": asked.b,
        "levels": levels,
        "items": [wire.item(table) for table in tables],
        "note": "Intervals hold 95 %. Same: all of the interval within 5 %. Unclear: it allows both."
        + (f" The first {MOST_LEVELS} of {len(pairs)} levels are shown." if len(pairs) > MOST_LEVELS else ""),
    }


def _levels(name: str) -> list[str]:
    recording = LIBRARY.recording(name)
    found = [label for label in recording.levels if recording.of_level(label)]
    if not found:
        raise WorkloadError(f"{name}: no requests of a measured window in it")
    return found


def _pairs(asked: Pair, a: list[str], b: list[str]) -> list[tuple[str, str]]:
    for which, level, known in (("A", asked.level_a, a), ("B", asked.level_b, b)):
        if level and level not in known:
            raise wire.Unknown(f"{which} has no level {level!r}; it has {', '.join(known)}")
    if asked.level_a or asked.level_b:
        return [(asked.level_a or a[0], asked.level_b or b[0])]
    shared = [(x, x) for x in a if x in b]
    if not shared and len(a) == len(b) == 1:
        return [(a[0], b[0])]
    if not shared:
        raise WorkloadError(f"no level is in both: A has {', '.join(a)}; B has {', '.join(b)}; choose one of each")
    return shared


def _table(x: str, y: str, found: Comparison) -> Table:
    from gambrel.faces.serve_commands import figure, ratio, word
    from gambrel.report import Table

    rows = tuple((v.name, figure(v, v.a), figure(v, v.b), ratio(v.ratio), word(v)) for v in found.metrics)
    verdicts = {"higher": "missed", "lower": "met"}
    status = tuple(verdicts.get(v.verdict, "") if v.unit == "s" else "" for v in found.metrics)
    told = [f"{v.name}: {word(v)}" for v in found.metrics if v.name in {"ttft.p50", "tpot.p50", "output_tokens_per_s"}]
    heading = x if x == y else f"{x} against {y}"
    warnings = "; ".join(found.to_dict()["warnings"])
    sentence = "; ".join(told) + "." + (f" Before you believe it: {warnings}." if warnings else "")
    return Table(heading, sentence, ("figure", "A", "B", "B / A", "verdict"), rows,
                 (False, True, True, True, False), status=status)  # fmt: skip


QUESTIONS: Final = (
    Question("GET", "/api/runs", listing),
    Question("POST", "/api/runs", take, query=Upload, upload="application/octet-stream"),
    Question("GET", "/api/runs/{name}", opened),
    Question("DELETE", "/api/runs/{name}", delete),
    Question("GET", "/api/runs/{name}/export/{file}", export, media=("text/html", "application/gzip")),
    Question("GET", "/api/compare", compared, query=Pair),
)
