"""A report as a piece of HTML for a notebook: no script, charts as inline SVG, the tables of the page."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Final

from gambrel.core.errors import ReportError
from gambrel.report.document import Table
from gambrel.report.image import render
from gambrel.report.page import header_html, table_html

if TYPE_CHECKING:
    from gambrel.report.document import Report

__all__ = ["fragment_html"]

STYLE: Final = """<style>
.gambrel { font-family: Inter, system-ui, sans-serif; max-width: 68rem; line-height: 1.45; }
.gambrel .facts { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: .6rem 0; }
.gambrel .facts dd { margin: 0; font-weight: 600; } .gambrel .facts dd.note { font-weight: 400; opacity: .75; }
.gambrel dt, .gambrel .caption, .gambrel .subtitle { opacity: .75; font-size: .9em; }
.gambrel table { border-collapse: collapse; margin: .3rem 0 1rem; }
.gambrel td, .gambrel th { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #8884; }
.gambrel .number { text-align: right; } .gambrel .scroll { overflow-x: auto; }
.gambrel svg { max-width: 100%; height: auto; }
</style>"""


def fragment_html(report: Report, charts: int = 4, tables: int = 20) -> str:
    """The head of the report, its first ``charts`` charts and ``tables`` tables, in reading order.

    Charts are left out where vl-convert is not installed.
    """
    parts = [STYLE, header_html(report)]
    drawn = shown = 0
    for section in report.sections:
        inside = []
        for item in section.items:
            if isinstance(item, Table) and shown < tables:
                shown += 1
                inside.append(table_html(item))
            elif isinstance(item, dict) and drawn < charts:
                drawn += 1
                inside.append(_drawn(item))
        if any(inside):
            parts += [f"<h3>{html.escape(section.heading)}</h3>", *inside]
    return f'<div class="gambrel">{"".join(parts)}</div>'


def _drawn(spec: dict[str, object]) -> str:
    try:
        return render(spec, "svg").decode()
    except ReportError:
        return ""
