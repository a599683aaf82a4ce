"""The configs and vectors kept beside the checkout: all load, and agree with the totals noted there."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from gambrel.catalog.models import model_from_config
from gambrel.core.formats import kv_format

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.shared

BF16 = kv_format("bf16")
# Explained in docs/models.md: reasons why our total is not the one noted beside the configs.
DIFFERENT_TOTAL = {
    "XiaomiMiMo--MiMo-V2-Flash": "308.78",  # windowed layers have their own KV heads; 309 B is published
    "zai-org--GLM-5.2": "743.38",  # layers that share a selection have no indexer
    "zai-org--GLM-5.2-FP8": "743.38",
}


def rows(folder: Path) -> dict[str, tuple[str, str, str]]:
    pattern = re.compile(r"\| (\S+?--\S+?)(?: \(.*?\))? \| (\S+) \| (\S+) \| (\S+) \| .* \|$", re.MULTILINE)
    return {m[1]: (m[2], m[3], m[4]) for m in pattern.finditer((folder / "README.md").read_text())}


def test_every_config_loads_and_agrees(shared_data: Path) -> None:
    folder = shared_data / "model_configs"
    noted = rows(folder)
    files = sorted(folder.glob("*.json"))
    assert len(files) == len(noted) == 103
    wrong = []
    for path in files:
        m = model_from_config(json.loads(path.read_text()), path.stem)
        total, active, _ = noted[path.stem]
        got = f"{m.total_params / 1e9:.2f}"
        if path.stem in DIFFERENT_TOTAL:
            assert got == DIFFERENT_TOTAL[path.stem]
        elif total not in {"n/c", got} or active not in {"n/c", f"{m.active_params_without_embedding / 1e9:.2f}"}:
            wrong.append((path.stem, got, total))
    assert not wrong


def test_every_visible_vector_matches(shared_data: Path) -> None:
    folder = shared_data / "test_vectors"
    for v in json.loads((folder / "params.json").read_text())["vectors"]:
        assert model_from_config(v["config"], v["id"]).total_params == v["expect"]["total_params"]
    for v in json.loads((folder / "kv_bytes.json").read_text())["vectors"]:
        m, expect = model_from_config(v["config"], v["id"]), v["expect"]
        if "bytes_per_token_bf16_below_window" in expect:
            assert m.kv_bytes_per_token(BF16) == expect["bytes_per_token_bf16_below_window"]
