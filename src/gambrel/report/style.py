"""One look for every chart: colours that survive colour blindness and both backgrounds, axes that read in words.

Specs carry no background of their own. Marks that must follow the page (ink, notes, shading) name a mark style;
:func:`theme` gives those styles for a light or a dark page, so the very same spec serves image, page and notebook.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "BLUE",
    "CAUSE_COLOURS",
    "CAUSE_TITLES",
    "GREEN",
    "GREY",
    "ORANGE",
    "PERCENTILE_COLOURS",
    "Spec",
    "caption",
    "chart",
    "rows",
    "theme",
    "title",
    "unbroken",
]

Spec = dict[str, Any]

WIDTH: Final = 640
HEIGHT: Final = 320
FONT: Final = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"

LIGHT: Final = "#ffffff"
DARK: Final = "#14181e"

# Hues after Okabe and Ito (2008), shifted to at least 3:1 contrast on white and on the dark page.
ORANGE: Final = "#d1571b"
BLUE: Final = "#2f7fc1"
GREEN: Final = "#1a9a76"
PINK: Final = "#c0649a"
GREY: Final = "#878f9b"
VIOLET: Final = "#8b78d8"

CAUSE_COLOURS: Final[Mapping[str, str]] = {
    "compute": ORANGE,
    "weights": BLUE,
    "kv": GREEN,
    "collective": PINK,
    "overhead": GREY,
}
CAUSE_TITLES: Final[Mapping[str, str]] = {
    "compute": "compute",
    "weights": "weight read",
    "kv": "KV read",
    "collective": "collectives",
    "overhead": "overhead",
}
PERCENTILE_COLOURS: Final[Mapping[str, str]] = {"mean": GREY, "p50": GREEN, "p95": BLUE, "p99": PINK, "max": ORANGE}
MET: Final = GREEN
MISSED: Final = ORANGE


def theme(*, dark: bool = False) -> Spec:
    """The Vega-Lite ``config`` of a light or a dark page; background transparent."""
    ink, muted, grid, ground = (
        ("#e7eaef", "#a3acb9", "#2a313b", DARK) if dark else ("#1b2330", "#586170", "#e5e8ed", LIGHT)
    )
    return {
        "background": "transparent",
        "font": FONT,
        "padding": {"left": 4, "right": 12, "top": 4, "bottom": 4},
        "view": {"stroke": None},
        "axis": {
            "labelColor": muted,
            "titleColor": muted,
            "labelFontSize": 11.5,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "gridColor": grid,
            "domain": False,
            "ticks": False,
            "labelPadding": 6,
            "labelSeparation": 5,
            "titlePadding": 10,
        },
        "axisX": {
            "grid": False,
            "domain": True,
            "domainColor": muted,
            "ticks": True,
            "tickColor": muted,
            "tickSize": 4,
        },
        "axisY": {
            "titleAngle": 0,
            "titleAlign": "left",
            "titleAnchor": "end",
            "titleBaseline": "bottom",
            "titleX": 0,
            "titleY": -8,
        },
        "axisBand": {"grid": False},
        "legend": {
            "orient": "bottom",
            "title": None,
            "labelColor": ink,
            "titleColor": muted,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "labelFontSize": 12,
            "labelLimit": 220,
            "symbolStrokeWidth": 2.5,
            "symbolSize": 160,
            "columnPadding": 18,
            "rowPadding": 4,
            "padding": 0,
            "offset": 14,
        },
        "title": {
            "anchor": "start",
            "frame": "group",
            "color": ink,
            "fontSize": 15,
            "fontWeight": 600,
            "subtitleColor": muted,
            "subtitleFontSize": 12,
            "subtitleLineHeight": 17,
            "subtitlePadding": 6,
            "offset": 24,
        },
        "text": {"color": ink, "fontSize": 11.5},
        "rule": {"color": ink},
        "bar": {"cornerRadius": 1.5},
        "style": {
            "rule-ink": {"color": ink, "strokeDash": [2, 3], "strokeWidth": 1.2, "opacity": 0.75},
            "rule-limit": {"color": ink, "strokeDash": [6, 3], "strokeWidth": 1.4},
            "ink-line": {"color": ink, "strokeWidth": 1.6},
            "shade": {"color": muted, "opacity": 0.13},
            "here": {"color": ink, "stroke": ground, "strokeWidth": 2},
            "note": {"color": ink, "fontSize": 11.5, "fontWeight": 600},
            "halo": {
                "color": ground,
                "stroke": ground,
                "strokeWidth": 3.5,
                "strokeJoin": "round",
                "fontSize": 11.5,
                "fontWeight": 600,
            },
            "quiet": {"color": muted, "fontSize": 11.5},
            "on-colour": {"color": "#ffffff", "fontSize": 11.5, "fontWeight": 600},
        },
    }


def chart(
    name: str,
    heading: str,
    sentence: str,
    layers: Sequence[Spec],
    *,
    height: int | None = None,
    **more: Any,
) -> Spec:
    """A single-view spec: ``name`` is its slug, ``sentence`` what it shows here (also read by screen readers)."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "name": name,
        "description": sentence,
        "title": heading,
        "width": WIDTH,
        "height": HEIGHT if height is None else height,
        "layer": list(layers),
        **more,
    }


def caption(spec: Spec) -> str:
    """The one sentence that says what the chart shows here."""
    return str(spec["description"])


def title(spec: Spec) -> str:
    """The chart's heading."""
    return str(spec["title"])


_UNIT: Final = re.compile(r"(?<=[0-9.]) (?=(?:%|s|ms|µs|ns|min|h|B|kB|MB|GB|TB|GiB|tokens|requests)(?![A-Za-z]))")


def unbroken(text: str) -> str:
    """The text with every number tied to its unit, for places that wrap."""
    return _UNIT.sub("\u00a0", text)


def rows(columns: Mapping[str, Sequence[Any]]) -> Spec:
    """Inline data from equal columns (sequences of one length)."""
    names = list(columns)
    return {"values": [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]}
