"""Published measurements as rows: one table layout, SI units, blanks as NaN.

The layout is that of the ground-truth tables (docs/accuracy.md): latencies in milliseconds there become seconds here,
throughput is tokens per second of the whole system. Nothing is guessed in this module; what a row leaves open is
settled, by name, in :mod:`gambrel.calibrate.setting` and :mod:`gambrel.calibrate.harness`.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gambrel.core.errors import WorkloadError
from gambrel.core.units import MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["METRICS", "MODES", "Figure", "Row", "read_table"]

METRICS: Final = ("ttft", "tpot", "e2e", "output_tok_s")
"""What a row can be compared on, in the order of every report."""

_FIGURE: Final = re.compile(
    r"(?P<sign>-?)(?P<digits>[\d.,]+(?:[eE][+-]?\d+)?|inf(?:inity)?|∞)(?P<unit>[kK]?)(?:x|X|ms|s|tok/s|tokens)?"
)
_GROUPED: Final = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")  # 1,024 is a thousand; 1,5 is nobody's business
_THOUSANDS: Final = 1000.0
_MODES: Final = {
    "closed": "concurrency", "closed_loop": "concurrency", "closed loop": "concurrency", "concurrent": "concurrency",
    "users": "concurrency", "open": "rate", "open_loop": "rate", "open loop": "rate", "poisson": "rate",
    "qps": "rate", "rps": "rate", "request_rate": "rate", "server": "rate", "batch": "offline", "static": "offline",
    "throughput": "offline", "max": "offline",
}  # fmt: skip
_NOTHING: Final = frozenset({"nan", "none", "null", "n/a", "na", "-", "?", "unknown"})  # how people write a blank
MODES: Final = ("concurrency", "rate", "offline")
"""How a load was put on, as the layout names it."""

_NEEDED: Final = ("id", "model", "gpu", "mode")
_LATENCIES: Final = (
    ("ttft", "ttft_ms_mean", "mean"), ("ttft", "ttft_ms_p50", "p50"),
    ("tpot", "tpot_ms_mean", "mean"), ("tpot", "tpot_ms_p50", "p50"),
    ("e2e", "e2e_ms", "mean"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure: seconds, or tokens per second; ``statistic`` is ``mean`` or ``p50`` over requests."""

    value: float
    statistic: str = "mean"


@dataclass(frozen=True, slots=True)
class Row:
    """One published measurement with everything its source said about how it was made.

    Attributes:
        load: requests in flight (``concurrency``), requests per second (``rate``), requests at once (``offline``);
            infinite for an unbounded queue, NaN where it was not published.
        measured: by metric; where a source gives mean and median, the mean.
        quality: A to D, as the table's author judged it.
    """

    id: str
    source: str
    date: str
    model: str
    gpu: str
    num_gpus: int
    tp: int | None
    pp: int | None
    ep: int | None
    engine: str
    engine_version: str
    weights: str
    kv: str
    prompt_tokens: float
    output_tokens: float
    mode: str
    load: float
    max_num_seqs: int | None
    measured: Mapping[str, Figure]
    quality: str
    notes: str


def _number(text: str | None) -> float:
    """A figure as people write it: ``1,024``, ``~512``, ``1 024``, ``8x``, ``1.5k``; NaN for what is none."""
    if not isinstance(text, str):
        return math.nan
    plain = text.strip().lstrip("~≈≤<=+ ").replace("_", "").replace(" ", "").replace("\u00a0", "")
    found = _FIGURE.fullmatch(plain)
    if found is None:
        return math.nan
    value = found["sign"] + (
        found["digits"].replace(",", "") if _GROUPED.fullmatch(found["digits"]) else found["digits"]
    )
    try:
        return float(value) * (_THOUSANDS if found["unit"] in {"k", "K"} else 1.0)
    except ValueError:
        return math.nan


def _whole(text: str | None) -> int | None:
    value = _number(text)
    return round(value) if math.isfinite(value) and value >= 1 else None


def _row(fields: Mapping[str, str | None]) -> Row:
    def text(name: str) -> str:
        found = fields.get(name)
        plain = found.strip() if isinstance(found, str) else ""
        return "" if plain.lower() in _NOTHING else plain

    measured: dict[str, Figure] = {}
    for metric, column, statistic in _LATENCIES:
        value = _number(fields.get(column))
        if value > 0.0 and metric not in measured:
            measured[metric] = Figure(value * MS, statistic)
    throughput = _number(fields.get("output_tok_s"))
    if throughput > 0.0:
        measured["output_tok_s"] = Figure(throughput)
    return Row(
        id=text("id"), source=text("source"), date=text("date"), model=text("model"), gpu=text("gpu"),
        num_gpus=_whole(fields.get("n_gpus")) or 1, tp=_whole(fields.get("tp")), pp=_whole(fields.get("pp")),
        ep=_whole(fields.get("ep")), engine=text("engine"), engine_version=text("engine_version"),
        weights=text("weight_dtype"), kv=text("kv_dtype"), prompt_tokens=_number(fields.get("isl")),
        output_tokens=_number(fields.get("osl")), mode=_MODES.get(text("mode").lower(), text("mode").lower()),
        load=_number(fields.get("concurrency_or_rate")), max_num_seqs=_whole(fields.get("max_num_seqs")),
        measured=measured, quality=text("quality").upper(), notes=text("notes"),
    )  # fmt: skip


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV file in the ground-truth layout, in the order of the file.

    Raises:
        WorkloadError: unreadable, or without the columns that say what was measured.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise WorkloadError(
                    f"{path.name}: no column {', '.join(missing)}; a table of measurements has id, model, gpu, mode and"
                    " the rest of the layout in docs/accuracy.md"
                )
            return _rows(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WorkloadError(f"{path.name}: cannot be read as a table ({error})") from None


def _rows(reader: Iterable[Mapping[str, str | None]]) -> list[Row]:
    return [_row(fields) for fields in reader]
