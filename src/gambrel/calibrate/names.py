"""What people call models, formats and engines in published tables, as the names that gambrel knows.

A checkpoint of one model has many names on the Hub (quantised, instruction-tuned, re-hosted, dated), and all have
the shapes of the first. A directory of ``config.json`` files the user hands over goes before what is shipped.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Final

from gambrel.catalog.models import model, model_names
from gambrel.core.errors import CatalogError, UnknownName

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gambrel.core.accelerator import Accelerator
    from gambrel.core.model import Model

__all__ = ["Models", "device", "engine_key", "engine_version", "kv_name", "model_key", "weights_name"]

# Words of a name that say how it was tuned, stored or dated, not what shapes it has.
_WORDS: Final = re.compile(
    r"^(instruct|chat|it|pt|hf|base|dynamic|kv|awq|gptq|gguf|int[48]|w\d+a\d+|fp[48]|nvfp4|mxfp[48]|bf16|fp16|"
    r"quantized.*|autogptq|bnb|4bit|8bit|preview|thinking|v0\.\d|0[0-9]{3}|1[0-2][0-9]{2}|2[3-6][0-9]{2})$"
)
# Other names of the same shapes. Sources: the model cards.
_SAME_SHAPES: Final = {
    "qwen2-7b": "Qwen/Qwen2.5-7B",
    "qwen2-72b": "Qwen/Qwen2.5-72B-Instruct",
    "llama-7b": "meta-llama/Llama-2-7b-hf",
    "llama-13b": "meta-llama/Llama-2-13b-hf",
    "deepseek-v3.1": "deepseek-ai/DeepSeek-V3",
    "deepseek-v3.1-terminus": "deepseek-ai/DeepSeek-V3",
    "kimi-k2": "moonshotai/Kimi-K2-Instruct",
    "llama-3-70b": "meta-llama/Meta-Llama-3-70B-Instruct",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B-Instruct",
}


def model_key(name: str) -> str:
    """A Hub name without organisation, tuning, storage format and date, in lower case."""
    tail = name.rsplit("/", 1)[-1].lower().replace("_", "-").removeprefix("meta-").removeprefix("nvidia-")
    first, *rest = tail.split("-")
    return "-".join([first, *(word for word in rest if not _WORDS.match(word))])


@cache
def _shipped() -> dict[str, str]:
    """Shipped names by key; of several the one without a storage format in its name, then the shortest."""
    found: dict[str, str] = {}
    for name in sorted(model_names(), key=lambda n: (bool(re.search(r"fp8|bf16", n.lower())), len(n), n)):
        found.setdefault(model_key(name), name)
    return found


# Words of an accelerator's name that never tell two parts apart, and what marks its memory, count or carrier.
_DEVICE_WORDS: Final = re.compile(
    r"\b(nvidia|amd|intel|huawei|geforce|tesla|quadro|instinct|radeon|graphics|gpu|accelerator|oam|hbm\w*|nvl72|"
    r"tensor core|(?:sxm|pcie)\d*)\b",
    re.IGNORECASE,
)
_DEVICE_COUNT: Final = re.compile(r"^\s*\d+\s*[xX*]\s*", re.IGNORECASE)
_DEVICE_MEMORY: Final = re.compile(r"[-_ (]*\d+\s*gi?b\)?", re.IGNORECASE)


def device(name: str, find: Callable[[str], Accelerator]) -> Accelerator:
    """The accelerator of a published name: as it is, then without its count, memory size, vendor and carrier.

    Raises:
        CatalogError: no such accelerator; the message is about the name as published.
    """
    try:
        return find(name)
    except UnknownName as unknown:
        text = _DEVICE_COUNT.sub("", name)
        tried = [text, _DEVICE_MEMORY.sub("", text)]
        tried += [re.sub(r"(?i)(sxm|pcie)\d+", r"\1", t) for t in tried]
        tried += [re.sub(r"[-_ ]+", " ", _DEVICE_WORDS.sub(" ", re.sub(r"[-_]", " ", t))).strip() for t in tried]
        for candidate in dict.fromkeys(t for t in tried if t and t != name):
            try:
                return find(candidate)
            except UnknownName:
                continue
        raise unknown from None


class Models:
    """Names to models: files of a directory first, then what is shipped, then the same with the variant taken off.

    Args:
        directory: holds ``ORG--NAME.json`` files, or ``NAME/config.json``; None for shipped models alone.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._files: dict[str, Path] = {}
        self._known: dict[str, Model] = {}
        if directory is None:
            return
        if not directory.is_dir():
            raise CatalogError(f"{directory}: not a directory of config files")
        for path in sorted(directory.rglob("*.json")):
            name = path.parent.name if path.name == "config.json" else path.stem
            self._files[name.replace("--", "/", 1).lower()] = path

    def __call__(self, name: str) -> Model:
        """The model of a published name.

        Raises:
            CatalogError: no such model, or a config that lacks a needed field.
        """
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> Model:
        path = self._files.get(name.lower())
        if path is not None:
            return replace(model(path), name=name)
        try:
            return model(name)
        except UnknownName as unknown:
            key = model_key(name)
            near = sorted(f for f in self._files if model_key(f) == key)
            if near:
                return replace(model(self._files[near[0]]), name=name)
            same = _shipped().get(key) or _SAME_SHAPES.get(key)
            if same is None:
                raise unknown from None
            return replace(model(same), name=name)


def engine_key(name: str) -> str:
    """The engine family that a published name belongs to: ``vllm-ascend`` is vLLM's scheduler on another device."""
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    for key, marks in (
        ("vllm", ("vllm",)),
        ("sglang", ("sglang",)),
        ("tensorrt-llm", ("tensorrtllm", "trtllm", "tensorrt")),
        ("llama.cpp", ("llamacpp",)),
        ("deepspeed", ("deepspeed",)),
    ):
        if any(mark in text for mark in marks):
            return key
    return text or "vllm"


# First release of each minor version. Sources: the projects' GitHub releases.
_RELEASES: Final = {
    "vllm": (
        ("2023-06", "0.1"), ("2023-12", "0.2.5"), ("2024-04", "0.4"), ("2024-06", "0.5"), ("2024-09", "0.6"),
        ("2025-01", "0.7"), ("2025-03", "0.8"), ("2025-06", "0.9"), ("2025-07", "0.10"), ("2025-10", "0.11"),
        ("2025-12", "0.12"), ("2026-01", "0.14"), ("2026-03", "0.17"), ("2026-04", "0.19"),
    ),
    "tensorrt-llm": (
        ("2023-10", "0.5"), ("2024-04", "0.9"), ("2024-07", "0.11"), ("2024-10", "0.13"), ("2025-01", "0.17"),
        ("2025-06", "0.20"), ("2025-09", "1.0"), ("2025-12", "1.1"), ("2026-02", "1.2"),
    ),
    "sglang": (("2024-01", "0.1"), ("2024-09", "0.3"), ("2025-01", "0.4"), ("2025-09", "0.5")),
}  # fmt: skip


def engine_version(engine: str, version: str, date: str) -> str:
    """The version as published, or the newest release of the month it was measured in; ``""`` when neither is known."""
    if re.match(r"v?\d", version):
        return version.lstrip("vV").replace(".x", "")
    found = ""
    for since, release in _RELEASES.get(engine_key(engine), ()):
        if date[:7] >= since:
            found = release
    return found


def release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; the newest where there is none."""
    return tuple([int(n) for n in re.findall(r"\d+", version)[:2]] or [99])


# What tables write, without its punctuation, and the format meant where nothing about the model decides.
_WEIGHTS: Final = {
    "fp8": "fp8-tensor", "fp8kv": "fp8-tensor", "fp4": "nvfp4", "nvfp4": "nvfp4", "mxfp4": "mxfp4",
    "int8": "int8", "w8a8": "int8", "w8a8int8": "int8", "smoothquant": "int8", "w8a16": "w8a16", "int8wo": "w8a16",
    "int4": "int4", "w4a16": "int4", "awq": "int4", "gptq": "int4", "int4awq": "int4", "int4wo": "int4",
}  # fmt: skip
_SIXTEEN: Final = frozenset({"bf16", "fp16", "half", "float16", "bfloat16"})


def weights_name(text: str, model: Model, accelerator: Accelerator) -> str:
    """The weight format a table means; a blank means what the checkpoint holds.

    A checkpoint's own variant of a format (fp8 in blocks, int4 for experts only) goes before the common one. Experts
    that are published in mxfp4 alone stay so: tables label such runs by what the device computes in.
    """
    word = re.sub(r"[-_/ ]", "", text.lower())
    sixteen = "bf16" if "bf16" in accelerator.peak_flops else "fp16"
    own = model.checkpoint_format
    if word == "fp8fp4":  # MLPerf: the lowest the device has
        word = "fp4" if "fp4" in accelerator.peak_flops else "fp8"
    if not word or word == "auto":
        return sixteen if own in {"bf16", "fp16"} else own
    if word in _SIXTEEN:
        return word if word in accelerator.peak_flops and word in {"bf16", "fp16"} else sixteen
    found = _WEIGHTS.get(word, word)
    if found == "fp8-tensor" and model.scaled_by_block:
        return "fp8"
    if own == "mxfp4" and found in {"fp8-tensor", "nvfp4", "mxfp4"}:
        return own
    family = found.split("-")[0]
    return own if own.startswith(family) or (found == "mxfp4" and "mxfp4" in own) else found


def kv_name(text: str, weights: str, engine: str, accelerator: Accelerator) -> str:
    """The KV cache format a table means; a blank means the engine's default: as wide as the activations."""
    word = text.lower().strip("?").split("(")[0]
    sixteen = "bf16" if "bf16" in accelerator.peak_flops else "fp16"
    if word in {"fp8", "int8"}:
        return word
    if word in {"bf16", "fp16"}:
        return word if word in accelerator.peak_flops else sixteen
    quantised = weights.startswith("fp8") or "fp4" in weights
    return "fp8" if quantised and engine in {"tensorrt-llm", "mlperf"} else sixteen
