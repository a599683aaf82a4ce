"""What a report *is*: headline, facts, sections of charts and tables, and what it all stands on.

Plain frozen data, so that the page, the images and a terminal each show the same report in their own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gambrel.core.trace import Traced
    from gambrel.report.style import Spec

__all__ = ["Fact", "Report", "Section", "Table", "Tree"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One number of the headline: ``value`` with its unit, what it is, and a short note."""

    label: str
    value: str
    note: str = ""
    status: str = ""  # "", "met" or "missed"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of finished text.

    ``numeric`` says which columns are aligned right. ``status`` holds one word a row: ``chosen``, ``met``,
    ``missed``, ``biggest`` or ``""``; faces colour by it, so no meaning hangs on colour alone (a column says it too).
    """

    heading: str
    sentence: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    status: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.heading!r}: a row has {len(row)} cells, {len(self.columns)} columns")
        if len(self.numeric) != len(self.columns) or len(self.status) not in {0, len(self.rows)}:
            raise ValueError(f"table {self.heading!r}: numeric needs one flag a column, status one word a row or none")


@dataclass(frozen=True, slots=True)
class Tree:
    """Figures with where they come from, folded until somebody doubts one."""

    heading: str
    sentence: str
    roots: tuple[Traced, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A question: ``sentence`` answers it, ``items`` (specs, tables, trees) show it, ``code`` is what to run."""

    heading: str
    sentence: str
    items: tuple[Spec | Table | Tree, ...] = ()
    code: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The whole report, in reading order."""

    title: str
    subtitle: str
    headline: tuple[str, ...]
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]
    provenance: tuple[str, ...] = ()

    def specs(self) -> Iterator[Spec]:
        """Every chart in reading order."""
        for section in self.sections:
            yield from (item for item in section.items if isinstance(item, dict))

    def tables(self) -> Iterator[Table]:
        """Every table in reading order."""
        for section in self.sections:
            yield from (item for item in section.items if isinstance(item, Table))
