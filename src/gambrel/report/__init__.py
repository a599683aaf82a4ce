"""Core objects to charts, tables and one self-contained page."""

from __future__ import annotations

from gambrel.report.compose import curve_report
from gambrel.report.curves import cost_vs_batch, latency_vs_batch, step_vs_context
from gambrel.report.document import Fact, Report, Section, Table
from gambrel.report.image import render, write_images
from gambrel.report.page import page, write_page
from gambrel.report.style import caption, theme

__all__ = [
    "Fact",
    "Report",
    "Section",
    "Table",
    "caption",
    "cost_vs_batch",
    "curve_report",
    "latency_vs_batch",
    "page",
    "render",
    "step_vs_context",
    "theme",
    "write_images",
    "write_page",
]
