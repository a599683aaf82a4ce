"""A report as Markdown: every sentence, figure and table of the page, for a pull request, a ticket or an email.

Charts stay on the page; where one would be, its sentence stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gambrel.report.document import Table, Tree
from gambrel.report.style import caption, title
from gambrel.report.tracing import trace_text

if TYPE_CHECKING:
    from gambrel.report.document import Report, Section
    from gambrel.report.style import Spec

__all__ = ["markdown", "table_markdown"]


def markdown(report: Report) -> str:
    """The whole report; every table is there, every chart is its one sentence."""
    blocks = [f"# {report.title}", report.subtitle, "\n".join(f"- {line}" for line in report.headline)]
    facts = [f"| {cell(f.label)} | {cell(f.value)} | {cell(f.note)} |" for f in report.facts]
    if facts:
        blocks.append("\n".join(["| | | |", "| --- | ---: | --- |", *facts]))
    blocks += [_section(section) for section in report.sections]
    blocks += ["## What this stands on", "\n".join(f"- {line}" for line in report.provenance)] * bool(report.provenance)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _section(section: Section) -> str:
    blocks = [f"## {section.heading}", section.sentence, *(_item(item) for item in section.items)]
    if section.code:
        blocks.append(f"```bash\n{section.code}\n```")
    return "\n\n".join(block for block in blocks if block)


def _item(item: Spec | Table | Tree) -> str:
    if isinstance(item, Table):
        return table_markdown(item)
    if isinstance(item, Tree):
        return f"<details><summary>{item.heading}</summary>\n\n```text\n{trace_text(item.roots)}```\n\n</details>"
    return f"**{title(item)}.** {caption(item)}"


def table_markdown(table: Table) -> str:
    """A table with its heading and sentence; only the heading and sentence where it has no rows."""
    head = [f"### {table.heading}", table.sentence]
    if table.rows:
        columns = "| " + " | ".join(cell(c) for c in table.columns) + " |"
        rule = "| " + " | ".join("---:" if numeric else "---" for numeric in table.numeric) + " |"
        head.append("\n".join([columns, rule, *("| " + " | ".join(map(cell, row)) + " |" for row in table.rows)]))
    return "\n\n".join(block for block in head if block)


def cell(text: str) -> str:
    """Text that stays within its cell."""
    return text.replace("|", "\\|").replace("\n", " ")
