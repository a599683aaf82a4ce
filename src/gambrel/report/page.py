"""A report as one HTML file that works offline for years: scripts, styles and data inside, no request ever.

The Vega runtime comes from vl-convert, so page, images and tests draw with the same code. A content security policy
in the page allows exactly its own two scripts (by hash) and nothing from outside; expressions run in Vega's
interpreter, so not even ``eval`` is allowed. Bundling takes seconds, so the bundle is kept in the user's cache.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambrel.core.errors import ReportError
from gambrel.report.document import Table, Tree
from gambrel.report.image import charts_library
from gambrel.report.style import caption, theme, title, unbroken
from gambrel.report.tracing import figure, origin

if TYPE_CHECKING:
    from gambrel.core.trace import Traced
    from gambrel.report.document import Fact, Report, Section
    from gambrel.report.style import Spec

__all__ = ["header_html", "page_html", "runtime", "table_html", "write_page"]


def page_html(report: Report) -> str:
    """The whole HTML document.

    Raises:
        ReportError: vl-convert, which carries the chart runtime, is not installed.
    """
    specs = {str(spec["name"]): spec for spec in report.specs()}
    bundle, script = runtime(), _asset("page.js")
    body = "\n".join(
        (
            header_html(report),
            "<main>",
            *(_section(section) for section in report.sections),
            "</main>",
            _footer(report),
        )
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(bundle, script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="gambrel">
<title>{_text(report.title)}</title>
<link rel="icon" href="data:,">
<style>
{_asset("page.css")}</style>
</head>
<body>
{body}
<script type="application/json" id="specs">{_json(specs)}</script>
<script type="application/json" id="themes">{_json({"light": theme(), "dark": theme(dark=True)})}</script>
<script>{bundle}</script>
<script>{script}</script>
</body>
</html>
"""


def write_page(path: str | Path, report: Report) -> Path:
    """Write the report as one self-contained HTML file; folders are made.

    Raises:
        ReportError: the file cannot be written, or as :func:`page`.
    """
    path = Path(path)
    text = page_html(report)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"cannot write the report to {path}: {error.strerror or error}") from error
    return path


def _policy(*scripts: str) -> str:
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return files("gambrel.report").joinpath(name).read_text(encoding="utf-8")


def runtime() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; bundled once per version of vl-convert, then read from cache."""
    library = charts_library()
    cached = _cache_folder() / f"vega-{library.__version__}.js"
    try:
        text = cached.read_text(encoding="utf-8")
        if text.endswith("\n/* end */"):
            return text
    except (OSError, UnicodeDecodeError):
        pass
    text = str(library.javascript_bundle()).replace("</script", "<\\/script") + "\n/* end */"
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cached.parent, encoding="utf-8", delete=False) as file:
            file.write(text)
        Path(file.name).replace(cached)
    except OSError:
        pass  # a read-only home costs three seconds, no more
    return text


def _cache_folder() -> Path:
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "gambrel"
    if sys.platform == "win32" and (root := os.environ.get("LOCALAPPDATA")):
        return Path(root) / "gambrel" / "cache"
    return Path.home() / ".cache" / "gambrel"


def _text(value: str) -> str:
    return html.escape(unbroken(value), quote=True)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity, and no screen shows more than six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _json(value: Any) -> str:
    compact = json.dumps(_finite(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return compact.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def header_html(report: Report) -> str:
    """Title, headline and facts."""
    sentences = "".join(f"<li>{_text(s)}</li>" for s in report.headline)
    facts = "".join(_fact(f) for f in report.facts)
    return (
        f'<header><h1>{_text(report.title)}</h1><p class="subtitle">{_text(report.subtitle)}</p>'
        + (f'<ul class="headline">{sentences}</ul>' if sentences else "")
        + (f'<dl class="facts">{facts}</dl>' if facts else "")
        + "</header>"
    )


def _fact(fact: Fact) -> str:
    status = f' class="{_text(fact.status)}"' if fact.status else ""
    note = f'<dd class="note">{_text(fact.note)}</dd>' if fact.note else ""
    return f"<div><dt>{_text(fact.label)}</dt><dd{status}>{_text(fact.value)}</dd>{note}</div>"


def _section(section: Section) -> str:
    items = "\n".join(_item(item) for item in section.items)
    lead = f'<p class="lead">{_text(section.sentence)}</p>' if section.sentence else ""
    code = f"<pre>{html.escape(section.code)}</pre>" if section.code else ""
    grid = f'<div class="grid">\n{items}\n</div>' if items else ""
    return f"<section><h2>{_text(section.heading)}</h2>{lead}{grid}{code}</section>"


def _item(item: Spec | Table | Tree) -> str:
    if isinstance(item, Tree):
        return _tree(item)
    return table_html(item) if isinstance(item, Table) else _figure(item)


def _tree(tree: Tree) -> str:
    roots = "".join(_node(root) for root in tree.roots)
    return (
        f'<div class="table trace"><h3>{_text(tree.heading)}</h3><p class="caption">{_text(tree.sentence)}</p>'
        f"{roots}</div>"
    )


def _node(node: Traced) -> str:
    value = f"<b>{_text(figure(node))}</b>"
    line = f'<span>{_text(node.name)}</span> {value} <span class="origin">{_text(origin(node))}</span>'
    if not node.inputs:
        return f'<p class="leaf">{line}</p>'
    return f"<details><summary>{line}</summary>{''.join(_node(part) for part in node.inputs)}</details>"


def _figure(spec: Spec) -> str:
    name = _text(str(spec["name"]))
    return (
        f'<figure><figcaption><h3>{_text(title(spec))}</h3><p class="caption">{_text(caption(spec))}</p></figcaption>'
        f'<div class="chart" data-chart="{name}" id="{name}"></div></figure>'
    )


def table_html(table: Table) -> str:
    """A table with its heading and sentence."""

    def cell(tag: str, text: str, column: int) -> str:
        kind = "number" if table.numeric[column] else "verdict" if table.columns[column] == "verdict" else ""
        kind = "words" if not kind and len(text) > 28 else kind
        about = ' scope="col"' if tag == "th" else f' data-column="{_text(table.columns[column])}"'
        return f"<{tag}{f' class={kind}' if kind else ''}{about}>{_text(text)}</{tag}>"

    head = "".join(cell("th", text, i) for i, text in enumerate(table.columns))
    status = table.status or ("",) * len(table.rows)
    lines = "".join(
        f'<tr class="{_text(s)}">' + "".join(cell("td", text, i) for i, text in enumerate(row)) + "</tr>"
        for s, row in zip(status, table.rows, strict=True)
    )
    return (
        f'<div class="table"><h3>{_text(table.heading)}</h3><p class="caption">{_text(table.sentence)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(table.heading)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div></div>"
    )


def _footer(report: Report) -> str:
    if not report.provenance:
        return ""
    lines = "".join(f"<li>{_text(line)}</li>" for line in report.provenance)
    return f"<footer><strong>What this stands on</strong><ul>{lines}</ul></footer>"
