"""The page stands alone: no request, no inline handler, nothing but its own two scripts; images land where asked."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import report_factory as make
from gambrel import report
from gambrel.core.errors import ReportError
from gambrel.report import image

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("vl_convert")


@pytest.fixture(scope="module")
def whole() -> report.Report:
    return report.plan_report(make.plan(), make.curve(contexts=[512, 1024, 2048]), make.traffic_view())


@pytest.fixture(scope="module")
def html(whole: report.Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report.write_page(tmp_path_factory.mktemp("page") / "deep" / "report.html", whole).read_text("utf-8")


def without_scripts(html: str) -> str:
    return re.sub(r"<script\b.*?</script>", "", html, flags=re.DOTALL)


def test_no_resource_comes_from_outside(html: str) -> None:
    shell = without_scripts(html)
    assert "http://" not in shell
    assert "https://" not in shell
    assert "url(" not in shell
    assert "@import" not in shell
    assert re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", shell) == ["data:,"]
    assert not re.search(r"""<script[^>]+src""", html)


def test_the_policy_names_exactly_the_scripts_that_run(html: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts}
    assert hashes == set(re.findall(r"'sha256-[^']*'", policy[1]))
    assert "default-src 'none'" in policy[1]
    assert "unsafe-eval" not in policy[1]
    assert not re.search(r"<[^>]+\son\w+=", without_scripts(html))


def test_size_is_kept(html: str) -> None:
    assert 0.9e6 < len(html.encode()) < 1.3e6


def test_every_chart_has_a_place_and_a_spec(html: str, whole: report.Report) -> None:
    block = re.search(r'id="specs">(.*?)</script>', html, flags=re.DOTALL)
    assert block is not None
    specs: dict[str, Any] = json.loads(block[1])
    assert set(specs) == {s["name"] for s in whole.specs()}
    assert set(re.findall(r'data-chart="([^"]*)"', html)) == set(specs)


def test_text_is_escaped() -> None:
    plan = replace(make.plan(), workload="<script>alert(1)</script>", measure_next="</script><b>&")
    text = report.page_html(report.plan_report(plan))
    assert "<script>alert" not in text
    assert "</script><b>" not in text


def test_report_works_without_curve_and_traffic() -> None:
    plan = replace(make.plan(), loads=(), cells=(), cheaper_fixes=(), biggest_gpu=None, demo_plan=None, intervals={})
    plan = replace(plan, run=replace(plan.run, series=None), breaks_at={})
    whole = report.plan_report(plan)
    assert report.page_html(whole)
    for spec in whole.specs():
        json.dumps(spec, allow_nan=False)


def test_plan_table_has_the_chosen_first_and_the_biggest_always() -> None:
    plan = make.plan()
    table = report.plan_table(plan)
    assert table.status[0] == "chosen"
    assert "biggest" in table.status
    assert any("biggest GPU" in cell for row in table.rows for cell in row)
    reasons = [row[-1] for row in table.rows[1:]]
    assert all(reasons)
    crowd = replace(plan, alternatives=tuple(a for a in plan.alternatives if a is not plan.biggest_gpu) * 30)
    assert len(report.plan_table(crowd).rows) <= 15
    assert "biggest" in report.plan_table(crowd).status


def test_biggest_gpu_that_is_the_chosen_one_is_said_to_be_right() -> None:
    plan = make.plan()
    plan = replace(plan, biggest_gpu=plan.chosen)
    assert any("right one" in line for line in report.plan_report(plan).headline)


def test_no_price_is_no_nan() -> None:
    plan = make.plan()
    free = make.candidate("l40s", 0.86, 2, plan.slo, [0.71, 0.031, 22.0])
    bare = replace(free.deployment, accelerator=replace(free.deployment.accelerator, price=None))
    plan = replace(plan, chosen=replace(free, deployment=bare, pricing=None), biggest_gpu_extra_usd_per_hour=math.nan)
    whole = report.plan_report(plan)
    words = " ".join(
        [*whole.headline, *(f.value for f in whole.facts), *(c for t in whole.tables() for r in t.rows for c in r)]
    )
    assert "nan" not in words
    assert "inf" not in words.split()


@pytest.mark.parametrize(("kind", "head"), [("png", b"\x89PNG"), ("svg", b"<svg")])
def test_images(kind: Any, head: bytes) -> None:
    assert report.render(report.latency_vs_batch(make.curve()), kind, 1.0).startswith(head)


def test_write_images(tmp_path: Path) -> None:
    written = report.write_images(tmp_path / "plots", report.curve_report(make.curve()), scale=1.0)
    assert sorted(p.name for p in written) == [
        "cost-vs-batch.png", "cost-vs-batch.svg", "latency-vs-batch.png", "latency-vs-batch.svg",
    ]  # fmt: skip


def test_mistakes_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = report.latency_vs_batch(make.curve())
    with pytest.raises(ReportError, match="known: png, svg"):
        report.render(spec, "gif")  # type: ignore[arg-type]  # the mistake under test
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ReportError, match="cannot write the report"):
        report.write_page(tmp_path / "file" / "report.html", report.curve_report(make.curve()))
    with pytest.raises(ReportError, match="cannot write charts"):
        report.write_images(tmp_path / "file", report.curve_report(make.curve()))
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(ReportError, match=r"gambrel\[charts\]"):
        image.charts_library()
