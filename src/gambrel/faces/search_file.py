"""A search on disk: streamed while it runs, read back to resume it.

A long search on a cluster, or one that was interrupted, should not begin anew, and what it tried is worth reading on
its own: one line of JSON a task, with every candidate and its fate.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gambrel.core.errors import GambrelError

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.plan.question import Question, Search

__all__ = ["SearchFile"]

FORMAT = "gambrel-search-1"


class SearchFile:
    """A search written down as it goes, one line of JSON a task, and read again to go on.

    The first line names the question. A file of another question is refused; a last line that was cut off is dropped.
    Tasks are written when they are done, so an interrupted search loses at most those under way.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: dict[str, Any] | None = None
        self._question: Question | None = None

    def found(self, key: str, question: Question) -> Search | None:
        """What the task of that key found before, or None.

        Raises:
            GambrelError: the file cannot be read or written, or belongs to another question.
        """
        from gambrel.plan.journal import read_entry

        if self._read is None:
            self._read = self._open(question)
        known = self._read.get(key)
        return None if known is None else read_entry(known, question)[1]

    def keep(self, key: str, found: Search) -> None:
        """Write a task down."""
        from gambrel.plan.journal import write_entry

        if self._question is not None:
            self._write(write_entry(key, found, self._question), "a")

    def _open(self, question: Question) -> dict[str, Any]:
        from gambrel.plan.journal import digest

        self._question = question
        head = {"format": FORMAT, "question": digest(question)}
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise GambrelError(f"{self._path}: cannot be read ({error})") from None
        whole = [line for line in lines if line.endswith("\n")]
        try:
            documents = [json.loads(line) for line in whole]
            entries = {str(d["task"]): d for d in documents[1:]}
        except (ValueError, KeyError, TypeError):
            raise GambrelError(f"{self._path}: not a search file; --resume names a new file or one it wrote") from None
        if documents and documents[0] != head:
            raise GambrelError(
                f"{self._path}: holds the search of another question (model, log, objectives, axes, prices or version "
                "differ); name another file to start anew"
            )
        if len(whole) < len(lines) or not documents:
            self._write(head, "w")
            for entry in entries.values():
                self._write(entry, "a")
        return entries

    def _write(self, document: dict[str, Any], mode: str) -> None:
        try:
            with self._path.open(mode, encoding="utf-8") as file:
                file.write(json.dumps(document, allow_nan=False) + "\n")
        except OSError as error:
            raise GambrelError(f"{self._path}: cannot be written ({error.strerror})") from None
