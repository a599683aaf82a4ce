"""Tables by strangers: whatever a cell holds, a row is predicted or skipped with a reason, never a traceback."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gambrel.calibrate.names import device
from gambrel.calibrate.published import validate_tables
from gambrel.calibrate.table import read_table
from gambrel.catalog.accelerators import accelerator
from gambrel.core.errors import UnknownName, WorkloadError

if TYPE_CHECKING:
    from pathlib import Path

GOOD = {
    "id": "a1", "source": "bench", "date": "2025-11", "model": "meta-llama/Llama-3.1-8B-Instruct",
    "gpu": "H100-SXM-80GB", "n_gpus": "1", "tp": "1", "pp": "1", "ep": "1", "engine": "vLLM", "engine_version": "0.11",
    "weight_dtype": "bf16", "kv_dtype": "", "isl": "256", "osl": "32", "mode": "concurrency",
    "concurrency_or_rate": "4", "max_num_seqs": "", "output_tok_s": "500", "ttft_ms_mean": "30",
    "tpot_ms_mean": "7", "e2e_ms": "250", "quality": "A", "notes": "",
}  # fmt: skip
NEEDED = {"id", "model", "gpu", "mode"}
CELLS = st.one_of(
    st.sampled_from([
        "", "nan", "inf", "-1", "0", "1e400", "1e18", "1,024", "~7", "8x", "1.5k", "0x10", "None", "-inf", "1e-300",
        "☃", "tp8", "v0", "0.0.0", "fp8", "fp3", "int4", "nvfp4", "H200", "MI355X", "gpt2", "offline", "rate", "closed",
        "2024-13", "D", "TGI", "sglang", "suite D", "static batch", "single stream", "attention_dp=0", "DEP999",
        "max_num_batched_tokens 99999999999", "max_num_batched_tokens 0", "InferenceX-db",
    ]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12),
)  # fmt: skip


def table(path: Path, *rows: dict[str, str]) -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(sorted(GOOD)), CELLS, min_size=1, max_size=4),
    st.sets(st.sampled_from(sorted(GOOD))),
)
def test_any_row_is_predicted_or_skipped_with_a_reason(
    tmp_path: Path, changed: dict[str, str], absent: set[str]
) -> None:
    row = {k: v for k, v in (GOOD | changed).items() if k in NEEDED or k not in absent}
    found = validate_tables([table(tmp_path / "t.csv", row)])
    assert all(found.skipped)
    for c in found.comparisons:
        assert 0.0 < c.low <= c.predicted <= c.high < math.inf
    assert found.comparisons or sum(found.skipped.values()) == 1 or not found.document()["rows"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,024", 1024.0), ("~512", 512.0), ("1 024", 1024.0), ("8x", 8.0), ("1.5k", 1500.0), ("12.5 ms", 12.5),
     ("1_000", 1000.0), ("1e3", 1000.0)],
)  # fmt: skip
def test_figures_as_people_write_them(tmp_path: Path, text: str, value: float) -> None:
    (row,) = read_table(table(tmp_path / "t.csv", GOOD | {"isl": text}))
    assert row.prompt_tokens == value


@pytest.mark.parametrize("text", ["", "nan", "abc", "1,5", "5%", "0x10"])
def test_what_is_no_figure_is_a_blank(tmp_path: Path, text: str) -> None:
    (row,) = read_table(table(tmp_path / "t.csv", GOOD | {"isl": text}))
    assert math.isnan(row.prompt_tokens)


@pytest.mark.parametrize(
    ("published", "name"),
    [("H100-SXM5-80GB", "h100-sxm"), ("8xH200", "h200-sxm"), ("NVIDIA H100 80GB HBM3", "h100-sxm"),
     ("AMD Instinct MI325X 256GB", "mi325x"), ("GB200-NVL72-186GB", "gb200"), ("Tesla T4", "t4"),
     ("A100-SXM4-40GB", "a100-sxm-40"), ("NVIDIA RTX A6000", "rtx-a6000"), ("Gaudi 2", "gaudi2"), ("MI250", "mi250")],
)  # fmt: skip
def test_accelerators_as_tables_spell_them(published: str, name: str) -> None:
    assert device(published, accelerator).name == name


def test_an_accelerator_nobody_knows_is_named_as_it_was_published() -> None:
    with pytest.raises(UnknownName, match="8x NoSuchChip-80GB"):
        device("8x NoSuchChip-80GB", accelerator)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"isl": ""}, "lengths"), ({"isl": "1e9"}, "lengths beyond"), ({"n_gpus": "9999999"}, "more accelerators"),
     ({"mode": "weird"}, "unknown mode"), ({"concurrency_or_rate": ""}, "concurrency or rate"),
     ({"gpu": "NoSuchChip"}, "unknown accelerator"), ({"model": "no/such"}, "unknown model"),
     ({"weight_dtype": "fp3"}, "unknown weight format"), ({"quality": "D"}, "quality D"),
     ({"tp": "8", "pp": "999"}, "exceeds the model's")],
)  # fmt: skip
def test_reasons_are_words(tmp_path: Path, changed: dict[str, str], reason: str) -> None:
    found = validate_tables([table(tmp_path / "t.csv", GOOD | changed)])
    assert not found.comparisons
    assert reason in next(iter(found.skipped))


@pytest.mark.parametrize("changed", [
    {"engine": "LMDeploy", "engine_version": "v99.x"}, {"engine": ""}, {"engine_version": "nightly-2026"},
    {"date": ""}, {"n_gpus": ""}, {"tp": ""}, {"weight_dtype": "auto"}, {"mode": "closed_loop"},
    {"model": "meta-llama/Llama-3.1-405B-Instruct", "weight_dtype": "bf16"},
])  # fmt: skip
def test_what_is_left_open_is_predicted_all_the_same(tmp_path: Path, changed: dict[str, str]) -> None:
    """An engine or version nobody described, and a model that fits no such accelerator: it ran, so it is compared."""
    found = validate_tables([table(tmp_path / "t.csv", GOOD | changed)])
    assert not found.skipped
    assert {c.metric for c in found.comparisons} == {"ttft", "tpot", "e2e", "output_tok_s"}


def test_a_file_that_is_no_table_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(WorkloadError, match=r"t\.csv"):
        read_table(path)
