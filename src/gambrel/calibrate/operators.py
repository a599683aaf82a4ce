"""NVIDIA's measured operator times as one more cost model, so that three bases can be held against each other.

The package ``aiconfigurator`` (an extra; ``aisimulate`` from its 0.13 on) carries times of GEMMs, attention, experts
and collectives measured on NVIDIA's accelerators under vLLM, SGLang and TensorRT-LLM, and adds them up to steps.
Its steps are sampled here on a grid and put into the same table that every cost model compiles to; memory, and the
split of a step by cause, stay the roofline's. Host time is not in its data, nor is it added: what it says of small
batches is a lower bound.

Sliding windows are refused: one grid cannot tell what a window saves.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gambrel.core.errors import DeploymentError, GambrelError, UnknownName
from gambrel.core.formats import kv_format
from gambrel.core.step import NUM_LINES
from gambrel.cost import Roofline

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.efficiency import Efficiency
    from gambrel.core.model import Model
    from gambrel.core.step import Floats, MemoryBudget, Step, StepCost, StepTable

__all__ = ["OperatorTimes"]

_PACKAGES: Final = ("aisimulate_core", "aiconfigurator_core")
_BACKENDS: Final = MappingProxyType({"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "trtllm"})
_GEMM: Final = MappingProxyType(
    {"bf16": "bfloat16", "fp16": "bfloat16", "fp8": "fp8", "int4": "int4_wo", "nvfp4": "nvfp4", "mxfp4": "bfloat16"}
)
_EXPERTS: Final = MappingProxyType(
    {"bf16": "bfloat16", "fp16": "bfloat16", "fp8": "fp8_block", "int4": "int4_wo", "nvfp4": "nvfp4",
     "mxfp4": "w4a16_mxfp4"}
)  # fmt: skip
_KV: Final = MappingProxyType({"bf16": "bfloat16", "fp16": "bfloat16", "fp8": "fp8"})
_BATCHES: Final = (1, 4, 16, 64, 256)
_CONTEXTS: Final = (64, 256, 1024, 4096, 16384)
_PROMPTS: Final = (64, 256, 1024, 4096, 8192)


def _package() -> Any:
    """The package's engine module, under either of its names."""
    for name in _PACKAGES:
        try:
            return importlib.import_module(f"{name}.sdk.engine")
        except ModuleNotFoundError:
            continue
    raise GambrelError(
        "NVIDIA's operator times need the package aiconfigurator: install gambrel[operators], or go without"
    )


@cache
def _shapes(folder: Path) -> dict[tuple[int, int], str]:
    """The configs that come with the package, by parameters and KV bytes of a token; unquantised ones first."""
    from gambrel.catalog.models import model

    found: dict[tuple[int, int], str] = {}
    quantised = ("FP8", "NVFP4", "-Static", "INT4")
    for path in sorted(folder.glob("*_config.json"), key=lambda p: (any(q in p.name for q in quantised), p.name)):
        if "quant_config" in path.name:
            continue
        try:
            shape = model(str(path))
        except GambrelError:
            continue
        found.setdefault(_shape(shape), path.name.removesuffix("_config.json").replace("--", "/"))
    return found


def _shape(model: Model) -> tuple[int, int]:
    return model.total_params, model.kv_bytes_per_token(kv_format("bf16"))


class OperatorTimes:
    """A :class:`~gambrel.core.step.CostModel` of measured operator times.

    Args:
        deployment: on an accelerator, engine and model shape that the package has data of.
        efficiency: for memory, and for the split of a step by cause.

    Raises:
        GambrelError: the package is not installed.
        DeploymentError: it has no data for the deployment, or the model has sliding windows.
    """

    def __init__(self, deployment: Deployment, efficiency: Efficiency) -> None:
        self._roofline = Roofline(deployment, efficiency)
        self.engine, version = _compiled(deployment)
        self._basis = f"operator times of {version}, kernels alone: no host time; its interval is not known"
        self._lines: Floats | None = None
        self._tables: dict[tuple[int, int], StepTable] = {}

    @property
    def deployment(self) -> Deployment:
        """What is priced."""
        return self._roofline.deployment

    @property
    def basis(self) -> str:
        """Whose times, and what they leave out."""
        return self._basis

    @property
    def spread(self) -> float:
        """The fitted constants' one-sigma error, for want of the package's own."""
        return self._roofline.spread

    def memory(self) -> MemoryBudget:
        """The roofline's memory budget."""
        return self._roofline.memory()

    def step_cost(self, step: Step) -> StepCost:
        """Seconds of one step by cause."""
        return self.compile(max(step.tokens, 1), max(step.sampled, 1)).cost(step)

    def compile(self, max_tokens: int, max_seqs: int) -> StepTable:
        """The operator times as a table: matmuls and collectives by tokens, attention by straight lines."""
        key = (max_tokens, max_seqs)
        if key not in self._tables:
            base = self._roofline.compile(max_tokens, max_seqs)
            grid = np.unique(np.append(np.round(2.0 ** np.arange(0.0, np.log2(max_tokens) + 0.5, 0.5)), max_tokens))
            shared = [self._parts(0, int(t), _CONTEXTS[0])[0] for t in grid]
            linear = np.interp(np.arange(max_tokens + 1.0), np.append(0.0, grid), np.append(0.0, shared))
            none = np.zeros_like
            self._tables[key] = replace(
                base, linear=linear, collective=none(linear), overhead=none(linear), head=none(base.head),
                lines=self._attention(), request_s=0.0,
            )  # fmt: skip
        return self._tables[key]

    def _parts(self, prefill: int, decodes: int, length: int) -> tuple[float, float, float]:
        """Seconds of (what is not attention, prefill attention, decode attention) of a step."""
        _, shared, context, decode = self.engine.mixed_step_breakdown(prefill, decodes, length, 2)
        return shared / 1e3, context / 1e3, decode / 1e3

    def _attention(self) -> Floats:
        """Attention's coefficients in least squares of the relative error, none of them negative."""
        if self._lines is None:
            lines = np.zeros(NUM_LINES)
            at = [(batch, context) for batch in _BATCHES for context in _CONTEXTS]
            held = np.array([batch * context for batch, context in at], np.float64)
            causes = np.stack([np.ones_like(held), held, np.sqrt(held), held / [context for _, context in at]], axis=1)
            lines[[0, 1, 2, 13]] = _fitted(causes, [self._parts(0, batch, context)[2] for batch, context in at])
            at = [(prompt, chunks) for prompt in _PROMPTS for chunks in (1, 4)]
            tokens = np.array([prompt * chunks for prompt, chunks in at], np.float64)
            pairs = tokens * [(prompt + 1) / 2 for prompt, _ in at]
            causes = np.stack([pairs, tokens, np.ones_like(pairs)], axis=1)
            lines[[4, 5, 12]] = _fitted(causes, [self._parts(p * n, 0, p)[1] for p, n in at])
            self._lines = lines
        return self._lines


def _fitted(causes: Floats, seconds: list[float]) -> Floats:
    """Coefficients at or above 0, one a column of ``causes``, that fit the seconds best in relative error."""
    from scipy.optimize import nnls

    if min(seconds) <= 0.0:
        raise DeploymentError(
            "operator times: the package does not tell this model's attention from the rest of a step"
        )
    found, _ = nnls(causes / np.array(seconds)[:, None], np.ones(len(seconds)))
    return np.asarray(found, np.float64)


def _compiled(deployment: Deployment) -> tuple[Any, str]:
    """(the package's engine for a deployment, its name and version and that of the data)."""
    d = deployment
    if d.model.spans:
        raise DeploymentError(f"{d.model.name} has sliding windows or sparse attention: operator times do not cover it")
    module = _package()
    home = Path(importlib.import_module(module.__name__.split(".")[0]).__path__[0])
    system, systems = d.accelerator.name.replace("-", "_"), sorted(p.stem for p in (home / "systems").glob("*_*.yaml"))
    if system not in systems:
        known = [s.replace("_", "-") for s in systems]
        raise DeploymentError(f"operator times: {UnknownName('accelerator', d.accelerator.name, known)}")
    if d.engine not in _BACKENDS:
        raise DeploymentError(f"operator times: {UnknownName('engine', d.engine, _BACKENDS)}")
    name = _shapes(home / "model_configs").get(_shape(d.model))
    if name is None:
        raise DeploymentError(f"operator times: the package has no model of the shape of {d.model.name}")
    if d.weights not in _GEMM or d.kv not in _KV:
        raise DeploymentError(f"operator times: no data for {d.weights} weights with a {d.kv} KV cache")
    experts = d.model.has_experts
    logging.getLogger(home.name).setLevel(logging.ERROR)
    try:
        engine = module.EngineHandle.compile(
            name, system, _BACKENDS[d.engine], tp_size=d.tp // d.attention_dp, pp_size=d.pp,
            attention_dp_size=d.attention_dp, moe_tp_size=d.tp // d.ep if experts else None,
            moe_ep_size=d.ep if experts else None, gemm_quant_mode=_GEMM[d.weights],
            moe_quant_mode=_EXPERTS[d.weights] if experts else None, kvcache_quant_mode=_KV[d.kv],
        )  # fmt: skip
        engine.mixed_step_breakdown(0, 1, _CONTEXTS[0], 2)
    except Exception as error:  # noqa: BLE001 - the package raises whatever its tables run into
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeploymentError(f"operator times: no data for {d.label} under {d.engine}: {said}") from None
    from importlib.metadata import version

    package = home.name.removesuffix("_core")
    return engine, f"{package} {version(package)} ({name} on {system}, {_BACKENDS[d.engine]})"
