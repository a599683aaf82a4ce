"""Where results and talk go: stdout is the result, stderr is talk, and ``--json`` is one document."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import RenderableType

__all__ = ["emit", "show", "talk"]


def show(blocks: Iterable[RenderableType]) -> None:
    """Print tables to stdout at the terminal's width, at 100 columns where there is no terminal."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    for block in blocks:
        console.print(block)


def talk(text: str) -> None:
    """A word to the person, on stderr."""
    typer.echo(text, err=True)


def emit(document: Mapping[str, Any]) -> None:
    """The one JSON document."""
    from gambrel.faces.documents import dump

    typer.echo(dump(document))
