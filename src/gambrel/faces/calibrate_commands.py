"""The commands about being believed: predict what others measured, and fit to what a person measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gambrel.calibrate.validate import Validation

__all__ = ["register"]

Tables = Annotated[list[Path], typer.Argument(help="CSV tables in the layout of docs/accuracy.md; several add up.")]
Models = Annotated[Path | None, typer.Option("--models", help="Directory of config.json files by name.")]
Profile = Annotated[Path | None, typer.Option("--profile", help="Constants fitted by gambrel calibrate.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Write the error tables as Markdown.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("validate")(validate_command)


def validate_command(
    tables: Tables, models: Models = None, profile: Profile = None, markdown: Markdown = None, as_json: Json = False
) -> None:
    """Predict published measurements and compare: median, 90th percentile and bias of the error, per group."""
    from gambrel.calibrate.published import validate_tables

    found = validate_tables(tables, models, profile)
    if markdown is not None:
        from gambrel.calibrate.accuracy import accuracy_page

        markdown.write_text(accuracy_page(found), encoding="utf-8")
    if as_json:
        from gambrel.faces.console import emit

        emit(found.document())
        return
    _show(found)


def _show(found: Validation) -> None:
    from rich.table import Table

    from gambrel.faces.console import show

    table = Table(title="predicted against measured", title_justify="left")
    for name in ("engine", "accelerator", "metric"):
        table.add_column(name)
    for name in ("n", "median", "p90", "bias", "in 80 %"):
        table.add_column(name, justify="right")
    groups = found.by(lambda c: (c.row.engine, c.row.gpu, c.metric))
    for (engine, gpu, metric), e in groups.items():
        table.add_row(
            engine, gpu, metric, str(e.n), f"{e.median_ape:.0%}", f"{e.p90_ape:.0%}", f"{e.bias:+.0%}",
            f"{e.coverage:.0%}",
        )  # fmt: skip
    for (metric,), e in found.by(lambda c: (c.metric,)).items():
        table.add_row(
            "all", "", metric, str(e.n), f"{e.median_ape:.0%}", f"{e.p90_ape:.0%}", f"{e.bias:+.0%}",
            f"{e.coverage:.0%}",
        )  # fmt: skip
    skipped = [f"skipped {n}: {reason}" for reason, n in found.skipped.most_common()]
    show([table, *skipped])
