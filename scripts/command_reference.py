"""Write docs/commands.md from the command line itself, so that the two cannot differ.

``python scripts/command_reference.py docs/commands.md`` writes it, with ``--check`` it only says whether it is
current. A test runs the check.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import typer

from gambrel.faces.cli import app

HEAD = """<!-- Written by scripts/command_reference.py (make docs); edit the help texts in faces/cli.py instead. -->

# Commands

stdout is the result, stderr is talk. `--json` gives exactly one JSON document on stdout. Exit status: 0 done,
1 infeasible or an objective missed, 2 usage, bad input or an output that cannot be written, 141 where the reader of
stdout left early. Objectives are written `ttft.p95<=1s`, `tpot.p95<=50ms`, `e2e.p99<=30s`; quote them, for the shell
reads `<` itself. Counts may be written `4k` or `128k`.
"""


def cell(text: str) -> str:
    """Text for one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def default(parameter: Any) -> str:
    """How a default reads, empty where there is none to tell."""
    value = parameter.default
    return "" if value is None or value is False or value in ((), []) or "UNSET" in repr(value) else f"`{value}`"


def spelling(parameter: Any) -> str:
    """How an argument or option is written."""
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
        return f"`{name}{'...' if parameter.nargs == -1 else ''}`"
    return ", ".join(f"`{o}`" for o in (*parameter.opts, *parameter.secondary_opts))


def section(name: str, command: Any) -> str:
    """One command: what it does, its arguments and options."""
    lines = [f"## gambrel {name}", "", inspect.cleandoc(command.help or ""), ""]
    lines += ["| argument or option | default | meaning |", "| --- | --- | --- |"]
    for parameter in command.params:
        if parameter.name != "help":
            lines.append(f"| {spelling(parameter)} | {default(parameter)} | {cell(parameter.help or '')} |")
    return "\n".join(lines) + "\n"


def reference() -> str:
    """The whole page."""
    commands: dict[str, Any] = getattr(typer.main.get_command(app), "commands")  # noqa: B009 - typer's types hide it
    return "\n".join([HEAD, *(section(name, command) for name, command in commands.items())])


def main() -> None:
    """Write or check the page."""
    path = Path(sys.argv[1])
    text = reference()
    if "--check" in sys.argv:
        current = path.exists() and path.read_text(encoding="utf-8") == text
        sys.exit(0 if current else f"{path} is not current: run `make docs`")
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
