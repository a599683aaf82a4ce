"""What can stand on either side of a comparison: every file that holds a run, or what a tool says of one."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gambrel.core.errors import WorkloadError
from gambrel.core.run import Histogram
from gambrel.measure.importers import import_results, recognise
from gambrel.measure.importers.document import read_document
from gambrel.measure.record import read_recording, to_run
from gambrel.measure.twin import TRUTH, read_truth, truth_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.core.run import Run
    from gambrel.measure.importers import Benchmark
    from gambrel.measure.importers.benchmark import Document

__all__ = ["Side", "read_side", "read_sides"]


@dataclass(frozen=True)
class Side:
    """One of the two: a run, or only what a tool reports of one.

    ``reported`` and ``rates`` are in our words and SI units (see :class:`gambrel.measure.importers.Benchmark`).
    """

    name: str
    run: Run | None = None
    reported: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_sides(path: Path | str, *, scale: float = 1.0) -> tuple[Side, ...]:
    """Every operating point that a file holds; ``scale`` divides its times (a twin's time scale).

    Reads records of ``gambrel measure``, truth of ``gambrel twin``, the JSON of ``gambrel simulate``, and every
    format of :data:`gambrel.measure.importers.IMPORTERS`.

    Raises:
        WorkloadError: none of these, or unreadable.
    """
    if not 0.0 < scale < float("inf"):
        raise WorkloadError(f"the time scale must be above 0, got {scale!r}")
    path = Path(path)
    start = _start(path)
    if b'"kind":"header"' in start and b'"anchor_ns"' in start:
        sides = _recorded(path)
    elif f'"{TRUTH}"'.encode() in start:
        header, truths = read_truth(path)
        sides = (Side(f"{path.name} (twin)", truth_run(header, truths)),)
    else:
        document = read_document(path)
        if "ttft_s" in document.head and "output_tokens_per_s" in document.head and not recognise(document):
            sides = (_simulated(document),)
        else:
            sides = tuple(_imported(b) for b in import_results(path))
    return sides if scale == 1.0 else tuple(_scaled(s, scale) for s in sides)


def read_side(path: Path | str, *, level: str | None = None, scale: float = 1.0) -> Side:
    """The one operating point of a file, or the one whose name holds ``level``.

    Raises:
        WorkloadError: none or several fit; the message lists them.
    """
    sides = read_sides(path, scale=scale)
    fitting = [s for s in sides if level is None or level in s.name]
    exact = [s for s in fitting if level is not None and s.name.endswith(f"[{level}]")]
    fitting = exact or fitting
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(repr(s.name.rsplit("[", 1)[-1].rstrip("]")) for s in sides[:12])
    many = "none of its points fits" if not fitting else f"{len(fitting)} points fit"
    raise WorkloadError(f"{path}: {many}; name one of its levels: {known}")


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as raw:
            head = raw.read(4096)
        if head.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(31).decompress(head)
    except (OSError, ValueError, zlib.error) as error:
        raise WorkloadError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return head


def _recorded(path: Path) -> tuple[Side, ...]:
    recording = read_recording(path)
    sides = []
    for label, level in recording.levels.items():
        records = recording.of_level(label)
        if not records:
            continue
        warnings = ["the file ends in mid-line: the client was killed"] if recording.torn else []
        if level.fidelity.get("client_bound"):
            warnings.append("the client was the bottleneck: these figures are its own, not the server's")
        samples = recording.samples_between(level.begin_ns, level.end_ns) if level.begin_ns and level.end_ns else ()
        sides.append(Side(f"{path.name} [{label}]", to_run(records, samples=samples), warnings=tuple(warnings)))
    if not sides:
        raise WorkloadError(f"{path}: no requests of a measured window in it")
    return tuple(sides)


def _imported(benchmark: Benchmark) -> Side:
    name = f"{Path(benchmark.source).name} ({benchmark.tool})" + (f" [{benchmark.label}]" if benchmark.label else "")
    return Side(name, benchmark.run, benchmark.reported, benchmark.rates, benchmark.warnings)


def _simulated(document: Document) -> Side:
    fields = document.fields()
    reported = {m: s for m in ("ttft", "tpot", "itl", "e2e") if (s := fields.sub(f"{m}_s").statistics())}
    rates = {"output_tokens_per_s": fields.number("output_tokens_per_s")}
    return Side(f"{document.path.name} (simulated)", None, reported, rates)


def _scaled(side: Side, scale: float) -> Side:
    run = side.run
    if run is not None:
        itl = Histogram(run.itl.edges / scale, run.itl.counts, run.itl.total / scale)
        times = {
            name: getattr(run, name) / scale for name in ("arrival_s", "scheduled_s", "first_token_s", "last_token_s")
        }
        run = replace(run, itl=itl, series=None, **times)
    reported = {
        m: {k: v / scale for k, v in s.items()} if not m.endswith("tokens") else s for m, s in side.reported.items()
    }
    rates = {k: v * scale if k != "concurrency" else v for k, v in side.rates.items()}
    return replace(side, run=run, reported=reported, rates=rates)
