"""Core objects to charts, tables and one self-contained page.

Every chart is one function ``Curve | Run | Plan | TrafficView -> Vega-Lite spec``; ``CHARTS`` names them all. Names are
imported when they are used, so that whoever only formats a number does not load the charts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gambrel.report.answers import answer_tables
    from gambrel.report.charts import CHARTS
    from gambrel.report.choice import (
        against_table,
        cell_latency,
        cell_table,
        cost_of_candidates,
        fix_table,
        keeping_up,
        objective_table,
        plan_table,
        shown_candidates,
    )
    from gambrel.report.compose import curve_report, plan_report
    from gambrel.report.curves import cost_vs_batch, latency_vs_batch, step_vs_context
    from gambrel.report.demand import (
        TrafficView,
        arrivals_over_time,
        bursts,
        in_flight,
        in_flight_over_time,
        joint_lengths,
        output_lengths,
        prompt_lengths,
    )
    from gambrel.report.document import Fact, Report, Section, Table, Tree
    from gambrel.report.gantt import lives
    from gambrel.report.image import render, write_images
    from gambrel.report.measured import MeasuredLevel, MeasuredSweep, Trust
    from gambrel.report.memory import HeldTokens, memory_bar, memory_vs_concurrency
    from gambrel.report.page import page_html, write_page
    from gambrel.report.pareto import cost_vs_latency
    from gambrel.report.perfetto import chrome_trace, write_chrome_trace
    from gambrel.report.requests import request_columns, write_requests
    from gambrel.report.service import batch_over_time, kv_over_time, latency_cdf, latency_vs_load, time_bound_by
    from gambrel.report.style import caption, theme
    from gambrel.report.sweep import sweep_report
    from gambrel.report.tracing import trace_text

__all__ = [
    "CHARTS",
    "Fact",
    "HeldTokens",
    "MeasuredLevel",
    "MeasuredSweep",
    "Report",
    "Section",
    "Table",
    "TrafficView",
    "Tree",
    "Trust",
    "against_table",
    "answer_tables",
    "arrivals_over_time",
    "batch_over_time",
    "bursts",
    "caption",
    "cell_latency",
    "cell_table",
    "chrome_trace",
    "cost_of_candidates",
    "cost_vs_batch",
    "cost_vs_latency",
    "curve_report",
    "fix_table",
    "in_flight",
    "in_flight_over_time",
    "joint_lengths",
    "keeping_up",
    "kv_over_time",
    "latency_cdf",
    "latency_vs_batch",
    "latency_vs_load",
    "lives",
    "memory_bar",
    "memory_vs_concurrency",
    "objective_table",
    "output_lengths",
    "page_html",
    "plan_report",
    "plan_table",
    "prompt_lengths",
    "render",
    "request_columns",
    "shown_candidates",
    "step_vs_context",
    "sweep_report",
    "theme",
    "time_bound_by",
    "trace_text",
    "write_chrome_trace",
    "write_images",
    "write_page",
    "write_requests",
]

_MODULES = {
    "answers": ("answer_tables",),
    "charts": ("CHARTS",),
    "choice": (
        "against_table",
        "cell_latency",
        "cell_table",
        "cost_of_candidates",
        "fix_table",
        "keeping_up",
        "objective_table",
        "plan_table",
        "shown_candidates",
    ),
    "compose": ("curve_report", "plan_report"),
    "curves": ("cost_vs_batch", "latency_vs_batch", "step_vs_context"),
    "demand": (
        "TrafficView",
        "arrivals_over_time",
        "bursts",
        "in_flight",
        "in_flight_over_time",
        "joint_lengths",
        "output_lengths",
        "prompt_lengths",
    ),
    "document": ("Fact", "Report", "Section", "Table", "Tree"),
    "gantt": ("lives",),
    "image": ("render", "write_images"),
    "measured": ("MeasuredLevel", "MeasuredSweep", "Trust"),
    "memory": ("HeldTokens", "memory_bar", "memory_vs_concurrency"),
    "page": ("page_html", "write_page"),
    "pareto": ("cost_vs_latency",),
    "perfetto": ("chrome_trace", "write_chrome_trace"),
    "requests": ("request_columns", "write_requests"),
    "service": (
        "batch_over_time",
        "kv_over_time",
        "latency_cdf",
        "latency_vs_load",
        "time_bound_by",
    ),
    "style": ("caption", "theme"),
    "sweep": ("sweep_report",),
    "tracing": ("trace_text",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gambrel.report' has no attribute {name!r}")
    return getattr(import_module(f"gambrel.report.{_HOMES[name]}"), name)
