"""The traffic that a command is given by ``--workload``: a log or a profile, its fields named with ``--column``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gambrel.core.errors import GambrelError

if TYPE_CHECKING:
    from gambrel.core.workload import Workload

__all__ = ["LogColumns", "asked_log", "pairs"]

LogColumns = Annotated[
    list[str] | None,
    typer.Option("--column", help="Field of the log, MEANING=FIELD, e.g. prompt_tokens=n_in; repeatable."),
]


def asked_log(spec: str, columns: list[str] | None) -> Workload:
    """The workload of a path, with its fields as ``--column`` names them, or of a profile.

    Raises:
        GambrelError: what :func:`gambrel.traffic.load_workload` refuses, or a column that is not of that form.
    """
    from gambrel.faces import api

    return api.load_workload(spec, columns=pairs(columns or [], "--column"))


def pairs(texts: list[str], what: str) -> dict[str, str]:
    """``ROLE=NAME`` texts as a mapping."""
    found = {}
    for text in texts:
        role, separator, name = text.partition("=")
        if not separator or not role or not name:
            raise GambrelError(f"{what} must be ROLE=NAME like prompt_tokens=n_in, got {text!r}")
        found[role.strip()] = name.strip()
    return found
