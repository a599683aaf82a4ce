"""What is wanted from a file of rows and what came of it: the words in which formats, files and the fast lane talk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gambrel.core.errors import WorkloadError
    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints
    from gambrel.traffic.table import Log

__all__ = ["Column", "Columns", "Kind"]

Kind = Literal["tokens", "time", "number", "label", "blocks"]


@dataclass(frozen=True, slots=True)
class Column:
    """A wanted column: its ``name`` in the file and what its cells are.

    ``tokens``: whole numbers; ``number``: finite numbers; ``time``: numbers or date-times (then seconds from the
    first row); ``label``: anything, as dense ids in order of first appearance; ``blocks``: lists of hashes.
    """

    name: str
    kind: Kind


@dataclass(frozen=True)
class Columns:
    """Arrays of one file, by column name: float64 for tokens, numbers and times, int64 for labels.

    ``blocks`` columns are (flat int64 hashes, int64[n + 1] offsets). ``dates`` names the time columns that were
    written as dates, so that nobody scales them again.
    """

    log: Log
    arrays: dict[str, Floats | Ints]
    blocks: dict[str, tuple[Ints, Ints]]
    dates: frozenset[str]
    length: int

    def refuse(self, name: str, row: int, found: str, wanted: str) -> WorkloadError:
        """The error for data row ``row`` (0-based) of column ``name``, with the line looked up in the file."""
        return self.log.refuse(self.log.row(row, ())[0], name, found, wanted)
