"""InferenceX's rows become what its scripts start: limits, arrangements, and steps that options make prompts wait."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gambrel.calibrate.inferencex import arrangement, cache, limits, published, stream_interval, waiting_steps
from gambrel.calibrate.names import Models
from gambrel.calibrate.predict import Predictor
from gambrel.calibrate.published import default_price
from gambrel.calibrate.setting import deployments
from gambrel.calibrate.table import read_table
from gambrel.catalog.accelerators import accelerator

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.calibrate.table import Row

HEAD = (
    "id,source,date,model,gpu,n_gpus,tp,pp,ep,engine,engine_version,weight_dtype,kv_dtype,isl,osl,mode,"
    "concurrency_or_rate,ttft_ms_mean,tpot_ms_mean,quality,notes\n"
)
LINE = (
    "x1,aiconfigurator-silicon,{date},{model},B200-SXM-180GB,{tp},{tp},1,1,{engine},,{weights},,{lengths},concurrency,"
    "{users},200,10,B,InferenceX-db-dump; attention_dp=1"
)
DENSE, MIXTURE = "meta-llama/Llama-3.1-70B", "deepseek-ai/DeepSeek-V3"


def row(tmp_path: Path, **said: str) -> Row:
    cells = {"date": "2025-10-29", "model": DENSE, "tp": "4", "engine": "TensorRT-LLM", "weights": "fp8",
             "lengths": "1024,1024", "users": "16"} | said  # fmt: skip
    path = tmp_path / "table.csv"
    path.write_text(HEAD + LINE.format(**cells) + "\n")
    (found,) = read_table(path)
    return found


@pytest.mark.parametrize(
    ("said", "steps"),
    [
        ({}, 20.0),
        ({"tp": "8"}, 0.0),
        ({"lengths": "8192,1024"}, 0.0),
        ({"model": MIXTURE}, 0.0),
        ({"engine": "vLLM"}, 0.0),
        ({"model": MIXTURE, "engine": "SGLang", "weights": "fp4"}, 15.0),
        ({"model": MIXTURE, "engine": "SGLang", "weights": "fp4", "users": "8"}, 5.0),
        ({"model": MIXTURE, "engine": "SGLang"}, 0.0),
    ],
)
def test_prompts_wait_as_the_options_ask(tmp_path: Path, said: dict[str, str], steps: float) -> None:
    found = row(tmp_path, **said)
    assert waiting_steps(found, 1) == steps
    assert waiting_steps(replace(found, notes="a run of our own"), 1) == 0.0


def test_ranks_of_data_parallel_attention_wait_for_each_other(tmp_path: Path) -> None:
    found = row(tmp_path, model=MIXTURE)
    assert waiting_steps(found, 8) > waiting_steps(found, 1)


def test_a_wait_is_charged_to_the_first_token_alone(tmp_path: Path) -> None:
    waiting, whole = row(tmp_path), row(tmp_path, lengths="1024,1024", tp="4")
    whole = replace(whole, prompt_tokens=1023.0)  # of no script
    predictor = Predictor(default_price(), Models(), accelerator)
    late, soon = predictor(waiting).figures, predictor(whole).figures
    assert late["tpot"] == pytest.approx(soon["tpot"], rel=0.02)
    assert late["ttft"] - soon["ttft"] == pytest.approx(20.0 * late["tpot"], rel=0.1)


@pytest.mark.parametrize(
    ("said", "ranks"),
    [
        ({"users": "16"}, (1, 1)),
        ({"users": "64"}, (4, 1)),
        ({"users": "256"}, (4, 4)),
        ({"users": "64", "lengths": "8192,1024"}, (4, 4)),
        ({"users": "16", "tp": "8"}, (8, 1)),
        ({"users": "16", "weights": "fp8"}, (4, 1)),
        ({"users": "64", "weights": "fp8"}, (4, 4)),
        ({"users": "64", "weights": "fp8", "lengths": "1024,8192"}, (4, 1)),
    ],
)
def test_scripts_chose_what_rows_leave_out(tmp_path: Path, said: dict[str, str], ranks: tuple[int, int]) -> None:
    found = row(tmp_path, **{"date": "2025-11-02", "model": MIXTURE, "weights": "fp4"} | said)
    assert arrangement(found) == ranks
    (deployment,) = deployments(found, Models(), accelerator)
    assert (deployment.ep, deployment.attention_dp) == ranks
    assert arrangement(replace(found, date="2026-01-29")) is None  # stated from then on


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, (2048, 16384, 0.9)),
        ({"engine": "vLLM"}, (512, 8192, 0.9)),
        ({"model": MIXTURE, "date": "2025-12-15"}, (2048, 1152, 0.8)),
        ({"model": MIXTURE, "date": "2026-02-03"}, (2048, 8192, 0.8)),
        ({"model": MIXTURE, "engine": "SGLang"}, (128, 32768, 0.82)),
        ({"model": MIXTURE, "engine": "SGLang", "users": "512"}, (512, 32768, 0.82)),
        ({"model": MIXTURE, "engine": "SGLang", "weights": "fp4"}, (256, 16384, 0.85)),
    ],
)
def test_limits_are_those_of_the_scripts(
    tmp_path: Path, said: dict[str, str], expected: tuple[int, int, float]
) -> None:
    found = row(tmp_path, **said)
    engine = {"TensorRT-LLM": "tensorrt-llm"}.get(found.engine, found.engine.lower())
    assert limits(found, engine) == expected
    assert limits(replace(found, notes="a run of our own"), engine) is None
    assert limits(replace(found, load=float("inf")), engine) is None


def test_caches_have_eight_bits_where_the_rows_bear_it_out(tmp_path: Path) -> None:
    found = row(tmp_path, engine="vLLM")
    assert cache(found) == "fp8"
    assert cache(replace(found, gpu="H100-SXM-80GB")) == ""
    assert cache(replace(found, weights="bf16")) == ""


def test_repeated_rows_are_known_for_what_they_are(tmp_path: Path) -> None:
    found = replace(row(tmp_path, model=MIXTURE, engine="SGLang"), notes="aic-internal; attention_dp=1")
    assert published(found)
    assert stream_interval(found) == 30
    assert not published(replace(found, engine="TensorRT-LLM"))
