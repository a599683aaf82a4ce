"""The adapter of NVIDIA's operator times: a stand-in of the package with known times, and the package where it is."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

import pytest

import gambrel as gb
from gambrel.calibrate.operators import OperatorTimes
from gambrel.core.errors import DeploymentError, GambrelError
from gambrel.core.step import Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENGINE = """
class EngineHandle:
    @classmethod
    def compile(cls, model, system, backend, **settings):
        if backend == "sglang":
            raise ValueError("no such table\\nand a long story")
        return cls()

    def mixed_step_breakdown(self, prefill, decodes, length, out):
        shared = 5.0 + 0.01 * (prefill + decodes)
        context = 0.2 + 1e-6 * prefill * (length + 1) / 2 if prefill else 0.0
        decode = 0.4 + 3e-5 * decodes * length + 2e-3 * decodes if decodes else 0.0
        return shared + context + decode, shared, context, decode
"""
CONFIG = """{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
"max_position_embeddings": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16"}"""
INSTALLED = any(importlib.util.find_spec(n) for n in ("aiconfigurator_core", "aisimulate_core"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of that name whose times are straight lines, in milliseconds."""
    home = tmp_path / "aiconfigurator_core"
    for folder in ("sdk", "systems", "model_configs"):
        (home / folder).mkdir(parents=True)
    (home / "__init__.py").touch()
    (home / "sdk" / "__init__.py").touch()
    (home / "sdk" / "engine.py").write_text(ENGINE)
    (home / "systems" / "h100_sxm.yaml").touch()
    (home / "model_configs" / "meta-llama--Meta-Llama-3.1-8B_config.json").write_text(CONFIG)
    described = tmp_path / "aiconfigurator-0.99.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: aiconfigurator\nVersion: 0.99\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [n for n in sys.modules if n.startswith("aiconfigurator_core")]:
        del sys.modules[name]


@pytest.mark.skipif(INSTALLED, reason="the real package is installed")
@pytest.mark.usefixtures("package")
def test_the_table_says_what_the_package_says() -> None:
    d = gb.deployment("meta-llama/Llama-3.1-8B-Instruct", "h100-sxm")
    priced = gb.cost_model(d, operators=True)
    assert "aiconfigurator 0.99" in priced.basis
    for batch, context in ((1, 512), (7, 300), (64, 2000), (256, 8000)):
        told = 5.0 + 0.01 * batch + 0.4 + 3e-5 * batch * context + 2e-3 * batch
        assert priced.step_cost(Step.decode(batch, context)).seconds * 1e3 == pytest.approx(told, rel=0.01)
    prompt = 2048
    told = 5.0 + 0.01 * prompt + 0.2 + 1e-6 * prompt * (prompt + 1) / 2
    assert priced.step_cost(Step.prefill(prompt)).seconds * 1e3 == pytest.approx(told, rel=0.02)
    table = priced.compile(512, 16)
    assert table.request_s == 0.0
    assert priced.memory() == gb.cost_model(d).memory()


@pytest.mark.skipif(INSTALLED, reason="the real package is installed")
@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("model", "gpu", "settings", "says"),
    [
        ("Qwen/Qwen3-8B", "h100-sxm", {}, "no model of the shape of Qwen/Qwen3-8B"),
        ("google/gemma-3-27b-it", "h100-sxm", {}, "sliding windows"),
        ("meta-llama/Llama-3.1-8B-Instruct", "mi300x", {}, "unknown accelerator 'mi300x'"),
        ("meta-llama/Llama-3.1-8B-Instruct", "h100-sxm", {"engine": "llama.cpp"}, "unknown engine 'llama.cpp'"),
        ("meta-llama/Llama-3.1-8B-Instruct", "h100-sxm", {"engine": "sglang"}, "under sglang: no such table$"),
        ("meta-llama/Llama-3.1-8B-Instruct", "h100-sxm", {"weights": "q4_k_m"}, "no data for q4_k_m weights"),
    ],
)
def test_what_it_has_no_data_of_is_refused(model: str, gpu: str, settings: dict[str, str], says: str) -> None:
    with pytest.raises(DeploymentError, match=says):
        gb.cost_model(gb.deployment(model, gpu, **settings), operators=True)


@pytest.mark.skipif(INSTALLED, reason="the package is installed")
def test_without_the_package_it_says_what_to_install() -> None:
    d = gb.deployment("meta-llama/Llama-3.1-8B-Instruct", "h100-sxm")
    with pytest.raises(GambrelError, match=r"install gambrel\[operators\]"):
        gb.cost_model(d, operators=True)


@pytest.mark.skipif(not INSTALLED, reason="needs the package aiconfigurator (gambrel[operators], about 700 MB)")
def test_the_real_package_and_the_fitted_constants_agree_on_an_h100() -> None:
    d = gb.deployment("meta-llama/Llama-3.1-8B-Instruct", "h100-sxm")
    told, fitted = gb.cost_model(d, operators=True), gb.cost_model(d)
    for batch, context in ((16, 1000), (64, 2000), (64, 8000)):
        step = Step.decode(batch, context)
        seconds = told.step_cost(step).seconds
        assert seconds == pytest.approx(fitted.step_cost(step).seconds, rel=0.2)
        assert isinstance(told, OperatorTimes)
        assert seconds == pytest.approx(told.engine.decode_step_latency(batch, context, 2) / 1e3, rel=0.06)
