"""What a checkpoint's ``quantization_config`` means: the weight format its tensors are stored in.

Engines spell one idea many ways. The common formats of core are named where they match; anything else (other
groups, act-order, per-tensor scales, mixed expert types) becomes a WeightFormat of its own. What cannot be read is
said in the model's assumptions and counted as unquantised, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from gambrel.core.formats import WEIGHT_FORMATS, Role, WeightFormat

if TYPE_CHECKING:
    from gambrel.catalog.config_fields import ConfigFields

__all__ = ["checkpoint"]

_MATMULS: Final = frozenset({Role.LINEAR, Role.EXPERT})
_EXPERTS: Final = frozenset({Role.EXPERT})


def checkpoint(c: ConfigFields) -> WeightFormat | None:
    """How the published weights are stored; None when the config does not quantise."""
    section = c.section("quantization_config") or c.section("compression_config")
    if not section:
        return None
    method = str(section.get("quant_method", "")).lower().replace("_", "-")
    reader = _READERS.get(method)
    found = reader(c, section) if reader is not None else None
    if found is None:
        c.assume(
            f"quantization_config ({method or 'no quant_method'}) does not say how weights are stored: taken as 16-bit"
        )
        return None
    expert = c.find("expert_dtype") or section.get("expert_dtype")
    if expert in ("fp4", "mxfp4") and found.name == "fp8":
        return WEIGHT_FORMATS["fp8-mxfp4"]
    return found


def _whole(c: ConfigFields, section: Mapping[str, Any], field: str, default: int) -> int:
    value = section.get(field)
    return default if value is None else c.whole(f"quantization_config.{field}", value, minimum=-1)


def _only_experts(section: Mapping[str, Any]) -> bool:
    """Whether attention is left out, which leaves the routed experts."""
    skipped = section.get("ignore") or section.get("modules_to_not_convert") or section.get("exclude_modules") or []
    return isinstance(skipped, list) and any("attn" in str(name) for name in skipped)


def _grouped(bits: int, group: int, *, zero: bool, roles: frozenset[Role], act_order: bool = False) -> WeightFormat:
    """Integers with a 16-bit scale (and a zero point of the same bits) per ``group`` inputs; -1: per output row."""
    if bits == 4 and group == 128 and zero and roles == _MATMULS and not act_order:
        return WEIGHT_FORMATS["int4"]
    if bits == 4 and group == 32 and not zero and roles == _EXPERTS:
        return WEIGHT_FORMATS["int4-experts"]
    name = f"int{bits}-g{group}" if group > 0 else f"int{bits}-channel"
    name += ("-experts" if roles == _EXPERTS else "") + ("-actorder" if act_order else "")
    return WeightFormat(
        name, bits, "bf16", roles, (1, max(0, group)), 2 + (bits / 8 if zero else 0),
        source="quantization_config: fp16 scale and zero point per group", column_bytes=4.0 if act_order else 0.0,
    )  # fmt: skip


def _fp8(c: ConfigFields, q: Mapping[str, Any]) -> WeightFormat | None:
    block = q.get("weight_block_size")
    if block is None:
        return WEIGHT_FORMATS["fp8-tensor"]
    if not isinstance(block, list) or len(block) != 2:
        raise c.refuse(f"quantization_config.weight_block_size must be two whole numbers, got {block!r}")
    rows, cols = (c.whole("quantization_config.weight_block_size", b) for b in block)
    base = WEIGHT_FORMATS["fp8"]
    return base if (rows, cols) == base.block else replace(base, name=f"fp8-{rows}x{cols}", block=(rows, cols))


def _integers(c: ConfigFields, q: Mapping[str, Any]) -> WeightFormat | None:
    """AWQ, GPTQ and AutoRound."""
    bits = _whole(c, q, "bits", _whole(c, q, "w_bit", 4))
    group = _whole(c, q, "group_size", _whole(c, q, "q_group_size", 128))
    if not 1 <= bits <= 8 or group == 0:
        raise c.refuse(
            f"quantization_config has bits {bits} and group_size {group}; bits 1 to 8 and a group are needed"
        )
    return _grouped(bits, group, zero=True, roles=_MATMULS, act_order=q.get("desc_act") is True)


def _bitsandbytes(c: ConfigFields, q: Mapping[str, Any]) -> WeightFormat | None:
    del c
    if q.get("load_in_4bit"):
        base = WEIGHT_FORMATS["nf4"]
        if q.get("bnb_4bit_use_double_quant"):  # absmax itself in 8 bits, with one fp32 per 256 of them
            return replace(base, name="nf4-double", scale_bytes=1 + 4 / 256)
        return base
    return replace(WEIGHT_FORMATS["int8"], name="int8-bnb", math="int8") if q.get("load_in_8bit") else None


def _compressed_tensors(c: ConfigFields, q: Mapping[str, Any]) -> WeightFormat | None:
    groups = q.get("config_groups")
    found = [g for g in groups.values() if isinstance(g, Mapping)] if isinstance(groups, Mapping) else []
    weights = next((g["weights"] for g in found if isinstance(g.get("weights"), Mapping)), None)
    if weights is None:
        return None
    bits = _whole(c, weights, "num_bits", 8)
    group = _whole(c, weights, "group_size", -1)
    roles = _EXPERTS if _only_experts(q) else _MATMULS
    if str(weights.get("type", "int")) == "float":
        return _compressed_floats(c, weights, bits, group, roles, str(q.get("format", "")))
    if bits == 8 and any(g.get("input_activations") for g in found):
        return WEIGHT_FORMATS["int8"]
    if 1 <= bits <= 8:
        return _grouped(bits, group, zero=weights.get("symmetric") is False, roles=roles)
    return None


def _compressed_floats(
    c: ConfigFields, weights: Mapping[str, Any], bits: int, group: int, roles: frozenset[Role], style: str
) -> WeightFormat | None:
    """The floating-point schemes of compressed-tensors."""
    if bits == 4:
        name = "mxfp4" if "mxfp4" in style or group == 32 else "nvfp4"
        return replace(WEIGHT_FORMATS[name], roles=roles)
    if bits != 8:
        return None
    strategy = str(weights.get("strategy", "channel"))
    if strategy == "block":
        return _fp8(c, {"weight_block_size": weights.get("block_structure") or [128, 128]})
    if strategy == "group" and group == 32:
        return WEIGHT_FORMATS["mxfp8"]
    return WEIGHT_FORMATS["fp8-tensor" if strategy == "tensor" else "fp8-channel"]


def _modelopt(c: ConfigFields, q: Mapping[str, Any]) -> WeightFormat | None:
    inner = q.get("quantization")
    section: Mapping[str, Any] = inner if isinstance(inner, Mapping) else q
    algorithm = str(section.get("quant_algo", "")).upper()
    names = {"FP8": "fp8-tensor", "FP8_PB_WO": "fp8", "NVFP4": "nvfp4", "MXFP8": "mxfp8", "MXFP4": "mxfp4"}
    if algorithm in names:
        found = WEIGHT_FORMATS[names[algorithm]]
        return replace(found, roles=_EXPERTS) if _only_experts(section) and algorithm == "NVFP4" else found
    if algorithm in {"W4A16_AWQ", "W4A8_AWQ", "W4A16"}:
        return _grouped(4, _whole(c, section, "group_size", 128), zero=False, roles=_MATMULS)
    return _compressed_tensors(c, q)


def _mxfp4(c: ConfigFields, q: Mapping[str, Any]) -> WeightFormat | None:
    del c, q
    return WEIGHT_FORMATS["mxfp4"]


def _fbgemm(c: ConfigFields, q: Mapping[str, Any]) -> WeightFormat | None:
    del c
    return WEIGHT_FORMATS["fp8-ffn" if _only_experts(q) else "fp8-channel"]


_READERS: Final[dict[str, Callable[[ConfigFields, Mapping[str, Any]], WeightFormat | None]]] = {
    "fp8": _fp8,
    "awq": _integers,
    "gptq": _integers,
    "auto-round": _integers,
    "intel/auto-round": _integers,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "modelopt-fp4": _modelopt,
    "mxfp4": _mxfp4,
    "fbgemm-fp8": _fbgemm,
}
