"""A calibration to some levels or models, tried on others: made-up measurements that one factor explains."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gambrel.calibrate.accuracy import accuracy_page
from gambrel.calibrate.carried import carried
from gambrel.calibrate.names import Models
from gambrel.calibrate.predict import Predictor
from gambrel.calibrate.published import default_price
from gambrel.calibrate.table import Figure, read_table
from gambrel.calibrate.validate import validate
from gambrel.catalog.accelerators import accelerator

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.calibrate.table import Row

HEAD = "id,source,date,model,gpu,n_gpus,tp,pp,ep,engine,engine_version,weight_dtype,isl,osl,mode,concurrency_or_rate,"
SLOWER = 1.2


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Two models in a closed loop, every step a fifth longer than predicted."""
    path: Path = tmp_path_factory.mktemp("table") / "sweep.csv"
    lines = [
        f"{model[-3:]}{users}{prompt},made,2026-01,{model},H100-SXM-80GB,1,1,1,1,vLLM,0.11,bf16,{prompt},64,concurrency,"
        f"{users},10,A,made up"
        for model in ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-4B")
        for users in (1, 4, 16)
        for prompt in (256, 2048)
    ]
    path.write_text(HEAD + "tpot_ms_mean,quality,notes\n" + "\n".join(lines) + "\n")
    predict = Predictor(default_price(), Models(), accelerator)
    return [replace(row, measured={"tpot": Figure(SLOWER * predict(row).figures["tpot"])}) for row in read_table(path)]


def test_what_one_factor_explains_carries_to_levels_and_models(sweeps: list[Row]) -> None:
    (found,) = carried(sweeps, Models())
    assert (found.engine, found.accelerator, found.models) == ("vllm", "h100-sxm", 2)
    assert len(found.shipped) == len(found.level) == len(found.model) == 12
    assert np.median(found.shipped) == pytest.approx(1 - 1 / SLOWER, rel=0.02)
    assert np.median(found.level) < 0.02
    assert np.median(found.model) < 0.04


def test_the_page_says_what_a_calibration_is_worth(sweeps: list[Row]) -> None:
    predict = Predictor(default_price(), Models(), accelerator)
    found = validate(sweeps, predict, lambda _, __: 0.1)
    page = accuracy_page(found, carries=carried(sweeps, Models()))
    section = page.partition("## Calibrated")[2].partition("\n## ")[0]
    assert "| made | vllm | h100-sxm | 2 | 12 | 17% / 17% |" in section
    assert "## Calibrated" not in accuracy_page(found)


def test_too_few_levels_make_no_sweep(sweeps: list[Row]) -> None:
    assert carried(sweeps[:5], Models()) == []
