from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import report_factory as make
from gambrel.core.plan import (
    BreakEven,
    Chance,
    FrontPoint,
    Hour,
    Measurement,
    Month,
    Outlook,
    Plan,
    PriceMode,
    Schedule,
    Sensitivity,
    Setting,
    SettingStep,
    Surer,
)
from gambrel.core.workload import Workload
from gambrel.faces import notebook
from gambrel.faces.documents import plan_document
from gambrel.faces.tables import plan_tables
from gambrel.report import Table, against_table, answer_tables, page_html, plan_report
from gambrel.report.answers import chance_text, thinned
from gambrel.report.choice import shown_candidates, too_small
from gambrel.report.fragment import fragment_html
from gambrel.report.markdown import cell, markdown, table_markdown

if TYPE_CHECKING:
    from rich.table import Table as Grid


@pytest.fixture(scope="module")
def full() -> Plan:
    """A plan with every answer, each with a word of its own that can be looked for."""
    base = make.plan()
    d = base.chosen.deployment
    verdicts = base.chosen.verdicts
    hours = tuple(Hour(h, 1.0 + h, 2.0 + h, 1, 1 + (h > 8), 0.86 * (1 + (h > 8))) for h in range(24))
    chosen = replace(base.chosen, latency=base.loads[3].latency)
    return replace(
        base,
        chosen=chosen,
        biggest_gpu_because="marked-biggest",
        chances=(Chance("ttft.p95", 0.91, 1.31), Chance("backlog", 1.0, math.inf), Chance("all", 0.9, 1.31)),
        chance_basis="marked-chance-basis",
        surer=(Surer(0.8, 2, 1.72), Surer(0.95, None, math.inf)),
        front=(FrontPoint(d, 1.72, 0.7, 0.03, 0.29), FrontPoint(d.with_(replicas=7), 6.02, 0.1, 0.02, 0.6)),
        break_even=(BreakEven(d, 0.86, 0.9, "marked-rival"), BreakEven(d.with_(tp=1), 1.79, 1.72)),
        settings=(Setting("max_num_seqs", 64, "marked-reason", (SettingStep(32, verdicts, 0.9, "marked-effect"),)),),
        price_modes=(
            PriceMode(1, 60.0, 5.0, 3.0, 20.0, meets_slo=True),
            PriceMode(64, 20.0, 0.25, 1.0, 1.0, meets_slo=False),
        ),
        outlook=Outlook(0.15, 3.9, (Month(1, 1.15, 2, 1.72), Month(2, 1.32, None, math.inf)), None, "marked-then"),
        measurement=Measurement(
            "marked-what", "marked-because", "gambrel measure --url marked", 0.4, 0.21, ((1.3, "3 x l40s", 2.58, 1.79),)
        ),
        sensitivities=(Sensitivity("marked-traffic", 20, 0.85, verdicts), Sensitivity("too long", 1, 0.0, ())),
        caveats=("marked-caveat",),
        schedule=Schedule(hours, 30.0, 41.3, 300.0, verdicts, "marked-basis"),
    )  # fmt: skip


MARKS = (
    "marked-chance-basis",
    "marked-rival",
    "marked-caveat",
    "marked-reason",
    "marked-effect",
    "marked-then",
    "marked-what",
    "marked-because",
    "marked-traffic",
    "arked-basis",
    "gambrel measure --url marked",
    "85 % of 20 draws",
)


def text_of(blocks: list[Any]) -> str:
    from rich.console import Console

    console = Console(width=400, file=StringIO())
    for block in blocks:
        console.print(block)
    return str(console.file.getvalue())  # type: ignore[attr-defined]  # the file is the one above


def test_every_answer_is_in_the_terminal_the_page_and_the_markdown(full: Plan) -> None:
    report = plan_report(full)
    for where in (text_of(plan_tables(full)), page_html(report), markdown(report)):
        for mark in MARKS:
            assert mark in where.replace("\u00a0", " "), mark


def test_every_field_of_a_plan_with_answers_has_a_key_in_the_document(full: Plan) -> None:
    named = {"front": "pareto_front", "sensitivities": "other_traffic"}
    answers = {f.name for f in fields(Plan) if f.default in (None, (), "") and f.name != "measurement"} | {
        "measurement"
    }
    document = plan_document(full)
    assert {named.get(name, name) for name in answers} <= set(document)
    assert all(document[named.get(name, name)] for name in answers)


def test_a_plan_without_answers_has_no_empty_sections() -> None:
    report = plan_report(make.plan())
    assert answer_tables(make.plan()) == ()
    for section in report.sections:
        assert section.items or section.code, section.heading


def test_page_and_terminal_choose_the_same_candidates(full: Plan) -> None:
    labels = [c.deployment.label for c in shown_candidates(full)]
    grids: list[Grid] = [b for b in plan_tables(full) if getattr(b, "title", "") == "candidates"]  # type: ignore[misc]  # tables among blocks
    assert list(grids[0].columns[0].cells) == labels


def test_accelerators_that_hold_nothing_are_one_row_and_no_candidates(full: Plan) -> None:
    gone = [replace(c, stage="fits") for c in full.alternatives if c.deployment.accelerator.name == "l4"]
    rest = [c for c in full.alternatives if c.deployment.accelerator.name != "l4"]
    plan = replace(full, alternatives=(*rest, *gone))
    assert {c.deployment.accelerator.name for c in too_small(plan)} == {"l4"}
    assert "l4" not in {c.deployment.accelerator.name for c in shown_candidates(plan)}
    assert against_table(plan).rows[-1][0] == "too small"


def test_the_right_biggest_gpu_says_why(full: Plan) -> None:
    plan = replace(full, biggest_gpu=full.chosen)
    assert against_table(plan).rows[0][-1] == "marked-biggest"


@given(st.integers(0, 60), st.integers(2, 20))
def test_thinning_keeps_the_ends_and_repeats_nothing(size: int, most: int) -> None:
    rows = list(range(size))
    kept = thinned(rows, most)
    assert len(kept) == min(size, most)
    assert kept == sorted(set(kept))
    if rows:
        assert (kept[0], kept[-1]) == (rows[0], rows[-1])


def test_certainty_is_never_claimed() -> None:
    assert chance_text(1.0) == "over 97 %"
    assert chance_text(0.0) == "under 3 %"


# Markdown


@given(st.text(max_size=30))
def test_a_cell_stays_in_its_column(text: str) -> None:
    assert not re.search(r"(?<!\\)\|", cell(text))
    assert "\n" not in cell(text)


def test_markdown_tables_have_as_many_columns_as_the_page(full: Plan) -> None:
    for table in plan_report(full).tables():
        lines = [line for line in table_markdown(table).splitlines() if line.startswith("|")]
        assert len(lines) == (len(table.rows) + 2 if table.rows else 0)
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} <= {len(table.columns) + 1}


def test_a_table_without_rows_is_its_sentence() -> None:
    assert table_markdown(Table("Heading", "Sentence.", ("a",), (), (False,))) == "### Heading\n\nSentence."


# Notebooks


class Shell:
    """As much of IPython as formatters need."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], Any] = {}
        self.display_formatter = self
        self.formatters = {"text/html": self}

    def for_type_by_name(self, module: str, name: str, show: Any) -> None:
        self.known[module, name] = show


def test_every_noun_is_shown_without_scripts(full: Plan) -> None:
    shell = Shell()
    notebook.register(shell)
    rng = np.random.default_rng(0)
    log = Workload(np.sort(rng.random(60) * 90), rng.integers(10, 900, 60), rng.integers(5, 90, 60), source="a log")
    d = full.chosen.deployment
    for noun in (full, make.curve(contexts=[512]), full.run, log, d.model, d.accelerator, d, full.slo):
        kind = type(noun)
        page = shell.known[kind.__module__, kind.__name__](noun)
        assert page.startswith('<div class="gambrel">')
        assert "<script" not in page
        assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_a_notebook_gets_charts_as_drawings_and_no_more_than_asked(full: Plan) -> None:
    pytest.importorskip("vl_convert")
    page = fragment_html(plan_report(full), charts=2, tables=1)
    assert page.count("<svg") == 2
    assert page.count("<table") == 1
