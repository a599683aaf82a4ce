"""Specs to PNG and SVG without a browser: for slides, documents and the reader who wants one file a plot.

vl-convert carries the Vega compiler and a renderer; it is an extra and loaded only when an image is asked for.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gambrel.core.errors import ReportError
from gambrel.report.style import DARK, LIGHT, caption, theme, title, unbroken

if TYPE_CHECKING:
    from gambrel.report.document import Report
    from gambrel.report.style import Spec

__all__ = ["charts_library", "render", "write_images"]

_CHARACTERS = 106  # of the caption per line of a 640 px plot


def charts_library() -> Any:
    """The vl_convert module.

    Raises:
        ReportError: it is not installed; the message names the extra that brings it.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise ReportError(
            "charts need the package vl-convert-python, which is not installed; install the extra: gambrel[charts]"
        ) from error
    return vl_convert


def render(spec: Spec, kind: Literal["png", "svg"] = "png", scale: float = 2.0, *, dark: bool = False) -> bytes:
    """The chart as an image with its heading and sentence above it, on a white (or dark) ground.

    ``scale`` multiplies the 640 px width of a PNG; an SVG has none.

    Raises:
        ReportError: vl-convert is not installed, ``kind`` is neither ``png`` nor ``svg``, or the spec does not compile.
    """
    if kind not in {"png", "svg"}:
        raise ReportError(f"cannot render a chart as {kind!r}; known: png, svg")
    library = charts_library()
    full = {
        **spec,
        "background": DARK if dark else LIGHT,
        "padding": 16,
        "title": {"text": title(spec), "subtitle": textwrap.wrap(unbroken(caption(spec)), _CHARACTERS)},
        "config": {k: v for k, v in theme(dark=dark).items() if k not in {"background", "padding"}},
    }
    try:
        if kind == "svg":
            return str(library.vegalite_to_svg(full)).encode()
        return bytes(library.vegalite_to_png(full, scale=scale))
    except ValueError as error:
        raise ReportError(f"chart {spec.get('name', '')!r} does not compile: {str(error).splitlines()[0]}") from error


def write_images(folder: str | Path, report: Report, *, scale: float = 2.0) -> list[Path]:
    """Write ``name.png`` and ``name.svg`` of every chart of a report into ``folder``, made if absent.

    Raises:
        ReportError: the folder cannot be written, or as :func:`render`.
    """
    folder = Path(folder)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for spec in report.specs():
            for kind in ("png", "svg"):
                path = folder / f"{spec['name']}.{kind}"
                path.write_bytes(render(spec, kind, scale))
                written.append(path)
    except OSError as error:
        raise ReportError(f"cannot write charts to {folder}: {error.strerror or error}") from error
    return written
