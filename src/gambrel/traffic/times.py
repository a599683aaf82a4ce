"""Time columns to seconds: in which unit they are, and whether they can be one clock's at all.

One empty time among epochs, or milliseconds below seconds, makes a span of decades: every rate is then wrong, and
whoever steps through the span never ends. No log pauses for ten years, so a column whose times lie further apart than
that is refused, with the row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gambrel.traffic.synonyms import as_column

if TYPE_CHECKING:
    import numpy.typing as npt

    from gambrel.core.step import Floats
    from gambrel.traffic.columns import Columns

__all__ = ["SECONDS", "seconds", "unit_of_epochs"]

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_EPOCHS = {"ns": 1e17, "us": 1e14, "ms": 1e11, "s": 1e8}  # what a time since 1970 is at least, in each unit
_LAST_TIME = 1e19  # nanoseconds since 1970 reach this in the year 2286; larger numbers are no times
_APART_S = 10 * 365.25 * 86_400.0


def unit_of_epochs(value: float) -> str | None:
    """The unit in which ``value`` is a time since 1970, by its size; None for one too small to be any."""
    return next((unit for unit, least in _EPOCHS.items() if abs(value) >= least), None)


def seconds(
    table: Columns, name: str, unit: str | None, kept: npt.NDArray[np.bool_] | None, notes: list[str]
) -> Floats:
    """A time column in seconds, the least of the ``kept`` rows at 0 (None keeps all); dates already are in seconds.

    Without a ``unit`` the size of the times says which epochs they are; other numbers are seconds, with a note.

    Raises:
        WorkloadError: a number too large for a time, or times of several units or decades apart.
    """
    times = table.arrays[name]
    if float(np.abs(times).max()) > _LAST_TIME:
        row = int(np.argmax(np.abs(times)))
        raise table.refuse(name, row, f"{times[row]:g}", "seconds, milliseconds, nanoseconds or a date work")
    used = times if kept is None else times[kept]
    first = float(used.min())
    dated = name in table.dates
    guessed = unit is None and not dated
    if guessed:
        unit = unit_of_epochs(first)
        if unit is None:
            notes.append(f"field {name!r} states no unit: read as seconds (if not: {as_column('arrival_ms', name)})")
    scale = 1.0 if dated or unit is None else SECONDS[unit]
    if (float(used.max()) - first) * scale > _APART_S:
        rows = np.arange(len(times)) if kept is None else np.flatnonzero(kept)
        _check_one_clock(table, name, scale, rows, guessed=guessed)
    return np.asarray((times - first) * scale, np.float64)


def _check_one_clock(table: Columns, name: str, scale: float, rows: npt.NDArray[np.intp], *, guessed: bool) -> None:
    """WorkloadError if the times of ``rows`` leave out ten years; it names the first row of the smaller part."""
    times = table.arrays[name][rows]
    ordered = np.sort(times)
    pauses = np.diff(ordered) * scale > _APART_S
    if not pauses.any():
        return
    early = times <= ordered[int(np.argmax(np.diff(ordered)))]
    num_early = int(early.sum())
    odd = early if (num_early, bool(early[0])) < (len(times) - num_early, not early[0]) else ~early
    number, usual = int(odd.sum()), int(np.argmax(~odd))
    row = int(np.argmax(odd))
    line, (cell,) = table.log.row(int(rows[row]), (name,))
    _, (other,) = table.log.row(int(rows[usual]), (name,))
    found = f"{str(cell)[:30]!r}{f' and {number - 1:,} more like it' if number > 1 else ''}"
    found += f" beside {str(other)[:30]!r} and {len(times) - number - 1:,} more"
    own, theirs = (unit_of_epochs(float(times[i])) for i in (row, usual))
    if name not in table.dates and own and theirs and own != theirs:
        raise table.log.refuse(line, name, f"{found}: times in {own} and in {theirs}", "one unit a column works")
    wanted = "the time of that request, or the log without its row, works"
    if guessed and int(pauses.sum()) > 1:
        wanted = f"the unit named, if it is not seconds, works: {as_column('arrival_ms', name)}"
    raise table.log.refuse(line, name, f"{found}: more than ten years apart", wanted)
