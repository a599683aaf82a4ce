"""Where results and talk go: stdout is the result, stderr is talk, and ``--json`` is one document."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any

import typer

from gambrel.core.errors import GambrelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from rich.console import RenderableType

    from gambrel.core.deployment import Deployment
    from gambrel.core.workload import Workload
    from gambrel.report.document import Report

__all__ = ["emit", "show", "talk", "talk_context", "writable", "write_report"]


def show(blocks: Iterable[RenderableType], *, columns: int = 100) -> None:
    """Print tables to stdout at the terminal's width; elsewhere at that of ``COLUMNS``, or else of ``columns``."""
    from rich.console import Console

    asked = os.environ.get("COLUMNS", "")
    known = sys.stdout.isatty() or (asked.isdecimal() and int(asked) > 0)  # rich reads both by itself
    console = Console(width=None if known else columns, highlight=False)
    for block in blocks:
        console.print(block)


def talk(text: str) -> None:
    """A word to the person, on stderr."""
    typer.echo(text, err=True)


def talk_context(deployment: Deployment, workload: Workload) -> None:
    """A note on stderr where requests are longer than the model's context."""
    from gambrel.plan.caveats import context_caveats

    for caveat in context_caveats(deployment.model, workload, deployment.max_model_len):
        talk(f"note: {caveat}")


def emit(document: Mapping[str, Any]) -> None:
    """The one JSON document."""
    from gambrel.faces.documents import dump

    typer.echo(dump(document))


def writable(*files: Path | None, folders: Iterable[Path | None] = ()) -> None:
    """Refuse outputs that could not be written, before the work they are of; nothing is made or emptied.

    A folder that does not allow files (``/proc``) may still say that it does, so a nameless one is tried in it.

    Raises:
        GambrelError: a file's place is a folder's or the other way round, or nobody may write there.
    """
    import tempfile

    for path, folder in [(p, False) for p in files] + [(p, True) for p in folders]:
        if path is None:
            continue
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        if there == path and there.is_dir() != folder:
            raise GambrelError(f"{path}: cannot be written ({'not a folder' if folder else 'a folder is there'})")
        if there != path and not there.is_dir():
            raise GambrelError(f"{path}: cannot be written ({there} is not a folder)")
        try:
            if there.is_dir():
                tempfile.TemporaryFile(dir=there).close()
            elif not os.access(there, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise GambrelError(f"{path}: cannot be written ({there}: {error.strerror})") from None


def write_report(report: Report, html: Path | None, images: Path | None) -> None:
    """The page and the plots, with a word on where they are."""
    from gambrel.report import write_images, write_page

    if html is not None:
        write_page(html, report)
        talk(f"report: {html}")
    if images is not None:
        written = write_images(images, report)
        talk(f"plots: {len(written)} files in {images}")
