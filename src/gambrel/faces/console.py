"""Where results and talk go: stdout is the result, stderr is talk, and ``--json`` is one document."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from rich.console import RenderableType

    from gambrel.core.deployment import Deployment
    from gambrel.core.workload import Workload
    from gambrel.report.document import Report

__all__ = ["emit", "require_writable", "show", "talk", "talk_context", "write_report"]


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


def require_writable(path: Path | None, option: str) -> None:
    """Refuse a file that cannot be written before the work for it begins; it is neither made nor emptied.

    A folder that does not allow files (``/proc``) may still say that it does, so a nameless one is tried in it.

    Raises:
        GambrelError: it is a folder, or cannot be written, or its folder is not there.
    """
    import tempfile

    from gambrel.core.errors import GambrelError

    if path is None:
        return
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists():
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise GambrelError(f"{option}: cannot write {path}: {error.strerror}; choose another file") from None


def write_report(report: Report, html: Path | None, images: Path | None) -> None:
    """The page and the plots, with a word on where they are."""
    from gambrel.report import write_images, write_page

    if html is not None:
        write_page(html, report)
        talk(f"report: {html}")
    if images is not None:
        written = write_images(images, report)
        talk(f"plots: {len(written)} files in {images}")
