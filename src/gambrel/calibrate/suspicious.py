"""Rows whose deployment is not what their columns say, with the evidence: compared like all others, never fitted.

Each rule names what in the row or among its neighbours contradicts the columns. A bad error with a known cause is
still an error and stays in every table; a fit that bends to it would spoil all other predictions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.calibrate.table import Row

__all__ = ["suspicious"]

_AIC: Final = "aiconfigurator-silicon"
_A_TOKEN: Final = 1e-3
_START_S: Final = 18.0
_COMPILED_S: Final = 5.0
_CEILING: Final = (36.0, 9200.0)  # requests, and tokens, a second that 2, 4 and 8 devices of one sweep stop at alike
_NEAR: Final = 0.6  # of a ceiling, from where what stands before the engine queues


def _too_fast(row: Row) -> bool:
    """Whether a static batch of 6 billion parameters or more took less than a millisecond a token, start to end."""
    whole = row.measured.get("e2e")
    return whole is not None and whole.value < _A_TOKEN * row.output_tokens


def _first_wave(row: Row) -> bool:
    """Whether first tokens took seconds on average that do not grow with the load."""
    first = row.measured.get("ttft")
    return first is not None and first.value > _COMPILED_S


def _unwarmed(row: Row) -> bool:
    """Whether a run has the 17 seconds in it that others of the same device and load lack."""
    whole = row.measured.get("e2e")
    return whole is not None and whole.value > _START_S + _A_TOKEN * row.output_tokens


def _before_the_engine(row: Row) -> bool:
    """Whether a run on several devices is near the rates that all widths of its sweep stop at alike."""
    if not {"ttft", "tpot"} <= set(row.measured) or (row.tp or 1) < 2:
        return False
    whole = row.measured["ttft"].value + row.measured["tpot"].value * (row.output_tokens - 1)
    rate = row.load / whole
    requests, tokens = _CEILING
    return rate > _NEAR * requests or rate * row.output_tokens > _NEAR * tokens


_RULES: Final[tuple[tuple[Callable[[Row], bool], str], ...]] = (
    (
        lambda r: r.source == _AIC and r.gpu.startswith("GB200") and (r.tp or 1) > 8,
        "disaggregated prefill and decode on a rack, published as one tensor-parallel group",
    ),
    (
        lambda r: r.source == _AIC and "DeepSeek-R1" in r.model and r.engine == "TensorRT-LLM",
        "some runs used multi-token prediction; rows do not say which",
    ),
    (
        lambda r: r.source == _AIC and "aic-internal" in r.notes and r.engine_version.startswith("1.3"),
        "release candidate of one run each; some 2.5 times slower than the rest",
    ),
    (
        lambda r: (
            r.source == _AIC and "Llama-3.1-8B" in r.model and r.engine_version == "1.0.0rc3" and _before_the_engine(r)
        ),
        "2, 4 and 8 devices stop alike at 36 requests and 9,200 tokens a second: what sends or streams them is full",
    ),
    (
        lambda r: r.source == _AIC and r.engine == "SGLang" and not r.engine_version and _first_wave(r),
        "first tokens of 5 to 12 s from some load on, no more at four times it: kernels compiled in the first wave",
    ),
    (
        lambda r: r.source.startswith("TensorRT-LLM") and r.gpu.startswith("GH200") and r.tp == 2,
        "two GH200 are slower than one: joined by a network, not by NVLink",
    ),
    (
        lambda r: r.source == "sariekr-gpu_conc",
        "time per token grows with the client's concurrency, on faster GPUs too: bound by the client",
    ),
    (
        lambda r: r.source.startswith("ANL") and _too_fast(r),
        "answers faster than one reading of the weights per token: the run failed",
    ),
    (
        lambda r: r.source.startswith("ANL") and r.engine == "llama.cpp" and "Max1550" in r.gpu and r.num_gpus > 1,
        "several devices take five times as long as one: what they share goes through the host",
    ),
    (
        lambda r: (
            r.source.startswith("ANL")
            and r.engine == "vLLM"
            and "Max1550" in r.gpu
            and r.num_gpus == 1
            and _unwarmed(r)
        ),
        "17 seconds whatever the length, which the same load lacks in another run (2 s instead of 19): compiled inside",
    ),
    (
        lambda r: r.source == "AccelMark" and "suite D" in r.notes and r.mode == "rate",
        "repeated 28k prompts: completes twice what the same GPU does offline",
    ),
    (
        lambda r: r.source == "AccelMark" and r.engine_version.startswith("0.20") and r.weights.startswith("w"),
        "run without CUDA graphs (enforce_eager, as the runner asks of quantised models): slower than 16-bit with them",
    ),
    (
        lambda r: r.source == "AccelMark" and r.mode == "offline" and r.weights == "w4a16",
        "the runner names the method gptq, offline alone, which keeps vLLM from its Marlin kernels: slower than 8 bits",
    ),
    (
        lambda r: r.source == "AccelMark" and r.engine.lower().startswith("1cat"),
        "experimental attention kernels; ten times slower than any other run of the device",
    ),
    (
        lambda r: r.source.startswith("dstack") and r.gpu.startswith("MI300X") and not r.model.startswith("amd/"),
        "four times slower than AMD's checkpoint of the model on the same machine: no 8-bit kernel for this one",
    ),
    (
        lambda r: r.source.startswith("dstack") and r.mode == "rate",
        "multi-step scheduling, which no current engine does",
    ),
)


def suspicious(row: Row) -> str:
    """The known cause of a row that contradicts its columns, or ``""``."""
    return next((cause for applies, cause in _RULES if applies(row)), "")
