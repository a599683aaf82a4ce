"""``gambrel validate`` replays the traces beside its tables and prints the errors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from gambrel.calibrate.replay import replays_beside
from gambrel.faces.cli import app

if TYPE_CHECKING:
    from pathlib import Path

HEAD = (
    "id,source,model,gpu,n_gpus,tp,engine,engine_version,weight_dtype,kv_dtype,isl,osl,mode,concurrency_or_rate,quality"
)
ROW = "x1,somebody,meta-llama/Llama-3.1-8B,RTX-4090-24GB,1,1,vLLM,0.19.0,bf16,bf16,200,20,rate,2,A"


def test_a_trace_beside_a_table_is_replayed_as_its_row_says(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text(f"{HEAD}\n{ROW}\n")
    assert replays_beside([table]) == []
    (tmp_path / "traces").mkdir()
    lines = ["arrival_s,input_tokens,output_tokens,ttft_ms,e2e_ms,tpot_ms"]
    lines += [f"{i / 2},{200 + i},20,50,600,28" for i in range(40)]
    text = "\n".join(lines) + "\n"
    (tmp_path / "traces" / "RTX4090__Llama-3.1-8B.csv").write_text(text)
    (tmp_path / "traces" / "RTX4090__Somebody-8B.csv").write_text(text)  # no row tells of it
    found = replays_beside([table])
    assert [r.num_kv_blocks for r in found] == [2588, None]
    for r in found:
        assert r.num_requests == 40
        assert set(r.errors) == {"ttft", "ttft_p99", "tpot", "e2e"}
        assert np.isfinite(list(r.errors.values())).all()
    said = CliRunner().invoke(app, ["validate", str(table)], env={"COLUMNS": "120"})
    assert "traces replayed request by request" in said.stdout
    assert "2,588 as reported" in said.stdout
    page = tmp_path / "page.md"
    assert CliRunner().invoke(app, ["validate", str(table), "--markdown", str(page)]).exit_code == 0
    text = page.read_text()
    assert text.count("| RTX4090__Llama-3.1-8B.csv | 40 |") == 2
    assert "## Held out" in text
    document = json.loads(CliRunner().invoke(app, ["validate", str(table), "--json"]).stdout)
    assert [r["num_kv_blocks"] for r in document["replays"]] == [2588, None]


@pytest.mark.shared
def test_the_published_trace_is_printed(shared_data: Path) -> None:
    found = replays_beside([shared_data / "ground_truth" / "llmservingsim_bench.csv"])
    assert [(r.num_requests, r.num_kv_blocks) for r in found] == [(300, 2588), (300, None)]
    for r in found:
        assert abs(r.errors["ttft"]) < 0.2
        assert abs(r.errors["tpot"]) < 0.15
        assert abs(r.errors["e2e"]) < 0.15
