"""The shipped efficiency constants: what each accelerator family was measured to reach, and what engines add.

Kernel tables exist for four families; every other one borrows, and says so in its basis, with a wider spread.
The data file ``data/efficiency.toml`` carries rows, error, interval, source and date of every constant.
"""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from gambrel.catalog.tables import shipped_accelerators
from gambrel.core.efficiency import UNPACKED, Efficiency, Matmul

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.core.accelerator import Accelerator

__all__ = ["constants", "efficiency", "engine_entry", "is_measured", "kernel_efficiency"]

_FILE: Final = Path(__file__).with_name("data") / "efficiency.toml"
_ENGINES: Final = Path(__file__).with_name("data") / "engines.toml"
_FLAT: Final = ("decode_attention", "prefill_attention", "all_reduce", "small_operations")
_MATMUL_FIELDS: Final = ("mfu_max", "mfu_half_tokens", "bw_max", "bw_half_bytes", "rounding", "expert_passes")
_ENGINE_FIELDS: Final = (
    "layer_s", "step_s", "seq_s", "stream_s", "soft_fp8", "logit_passes", "expert_shape", "unshared",
    "undivided", "request_s",
)  # fmt: skip
_ENGINE_FACTORS: Final = (
    "bandwidth", "compute", "kv", "experts", "expert_compute", "quantised", "four_bit", "by_block",
    "quantising", "wire", "bus", "passes",
)  # fmt: skip
_MOST_BANDWIDTH: Final = 0.95  # of the peak: what no kernel table exceeds
_MEASURED_VENDOR: Final = "NVIDIA"  # whose kernels the families and generic entries stand on
_WIDEST: Final = 1.5  # one-sigma log error beyond which an interval says nothing: a factor of seven either way
# Formats without kernel tables of their own borrow the constants of the next wider one that has them.
_BLOCK: Final = "fp8_block"  # 8-bit weights with a scale per block
_BLOCK_TIMED: Final = "hopper"
_BORROW: Final = (("int8", "fp8"), ("fp4", "fp8"))


@cache
def constants() -> Mapping[str, Any]:
    """The data file as it is: values with intervals, rows, sources."""
    engines = tomllib.loads(_ENGINES.read_text(encoding="utf-8"))
    return MappingProxyType(tomllib.loads(_FILE.read_text(encoding="utf-8")) | engines)


def _value(entry: Any) -> float:
    return float(entry["value"] if isinstance(entry, dict) else entry)


def _matmuls(section: Mapping[str, Any]) -> tuple[tuple[str, Matmul], ...]:
    """Constants by math format; formats that have none of their own borrow."""
    found = {
        math_format: Matmul(**{name: _value(fields[name]) for name in _MATMUL_FIELDS if name in fields})
        for math_format, fields in section.items()
    }
    for math_format, wider in _BORROW:
        if math_format not in found and wider in found:
            found[math_format] = found[wider]
    if "fp8" in found and _BLOCK not in found:
        found[_BLOCK] = _by_block(found["fp8"])
    return tuple(sorted(found.items()))


def _by_block(whole: Matmul) -> Matmul:
    """What a family's 8-bit matmuls reach with a scale per block, where its own were not timed: as on Hopper."""
    timed = constants()["families"][_BLOCK_TIMED]["matmul"]

    def share(field: str) -> float:
        return _value(timed[_BLOCK][field]) / _value(timed["fp8"][field])

    timed_fields = [field for field in _MATMUL_FIELDS if field in timed[_BLOCK]]
    return replace(whole, **{field: getattr(whole, field) * share(field) for field in timed_fields})


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``0.11.0rc1`` -> (0, 11, 0)."""
    return tuple(int(n) for n in re.findall(r"\d+", re.split(r"rc|\+|post|dev", text, maxsplit=1)[0])[:3])


def engine_entry(engine: str, version: str | None, vendor: str, family: str = "") -> tuple[Mapping[str, Any], str]:
    """(the engine generation's entry on a vendor's accelerators, a phrase that names it and says what it borrows)."""
    engines, name = constants()["engines"], engine.lower()
    known = name in engines
    entries = engines[name] if known else engines["vllm"]
    of = (lambda e: e.get("vendor") == family, lambda e: e.get("vendor") == vendor, lambda e: "vendor" not in e)
    entries = next(own for belongs in of if (own := [e for e in entries if belongs(e)]))
    chosen = entries[-1]
    if version and known:
        asked = _version(version)
        chosen = next((e for e in reversed(entries) if _version(e["since"]) <= asked), entries[0])
    phrase = f"host time of {chosen['basis']}"
    return chosen, phrase if known else f"{phrase}, {engine} having none of its own"


@cache
def _family(name: str) -> tuple[Efficiency, str]:
    """(the family's constants without an engine, what they stand on)."""
    data = constants()
    families = data["families"]
    source = name if name in families else data["stand_ins"].get(name, "default")
    own, fallback = families[source], families["default"]
    flat: dict[str, float] = {}
    for section in _FLAT:
        for fields in (fallback.get(section, {}), own.get(section, {})):
            flat.update({k: _value(v) for k, v in fields.items() if isinstance(v, dict)})
    flat.pop("eager_layer_s", None)  # the engine's figure: with CUDA graphs most of it goes
    flat["pcie_sharing"] = _value(data["pcie"]["sharing"])
    spread = data["spread"]
    if source == name:
        basis, sigma = own["basis"], spread["fitted"]
    elif source == "default":
        basis, sigma = f"{name}: {fallback['basis']}", spread["default"]
    else:
        basis, sigma = (
            f"{name}: constants of {source}, not fitted for this family: the interval is wide",
            spread["borrowed"],
        )
    matmul, grouped = _matmuls(own["matmul"]), _matmuls(own["grouped"])
    if name in data["published"]:
        known = data["published"][name]
        matmul = _plateaus(matmul, _value(known["mfu_max"]), _value(known["bw_max"]))
        basis, sigma = f"{name}: {known['basis']}; all else median of the fitted families", spread["borrowed"]
    made = Efficiency(
        matmul=matmul,
        grouped=grouped,
        expert_shape=_value(data["experts"]["shape"]),
        decode_attention_mfu=_value(data["attention"]["decode_mfu"]),
        reserve_bytes=_value(data["memory"]["reserve_bytes"]),
        basis=basis,
        spread=_value(sigma),
        **flat,
    )
    return made, basis


def _scaled(table: tuple[tuple[str, Matmul], ...], share: float) -> tuple[tuple[str, Matmul], ...]:
    """The same constants with the compute ramp shortened to ``share`` of its tokens."""
    return tuple((name, replace(m, mfu_half_tokens=m.mfu_half_tokens * share)) for name, m in table)


def _filled(table: tuple[tuple[str, Matmul], ...], share: float) -> tuple[tuple[str, Matmul], ...]:
    """The same constants with the memory ramp shortened to ``share`` of its bytes."""
    return tuple((name, replace(m, bw_half_bytes=m.bw_half_bytes * share)) for name, m in table)


def _plateaus(table: tuple[tuple[str, Matmul], ...], mfu: float, bandwidth: float) -> tuple[tuple[str, Matmul], ...]:
    """The same curves with other plateaus."""
    return tuple((name, replace(m, mfu_max=mfu, bw_max=bandwidth)) for name, m in table)


def _set_apart(base: Efficiency, name: str, measured: tuple[str, ...], power: float, memory: float) -> Efficiency:
    """The family's constants on one of its accelerators: check bits in memory, half-rate arithmetic, no peer access.

    ``power`` of 1 or less: what its limit on power leaves of the clock. ``memory``: its bandwidth over that of the
    accelerator with the same chip that was measured; 1 for other chips.
    """
    data = constants()
    ecc, half, alone = data["inline_ecc"], data["half_rate"], data["no_peer_access"]

    def left(device: str) -> float:
        return 1.0 - _value(ecc["share"]) if device in ecc["accelerators"] else 1.0

    share = left(name) / (left(measured[0]) if measured else 1.0)
    least = _value(half["mfu_max"]) if name in half["accelerators"] else 0.0
    fullest = _value(data["same_chip"]["most_share"])

    def used(share_then: float) -> float:
        """The share of the peak bandwidth that a kernel reaches here: what it takes on the chip stays."""
        on_chip = max(0.0, 1.0 / share_then - 1.0 / fullest)
        return min(_MOST_BANDWIDTH, share / (1.0 / share_then - on_chip * (1.0 - memory)))

    def faster(m: Matmul, math_format: str, mfu: float) -> Matmul:
        gain = max(power, least / mfu) if math_format.removesuffix("_block") in half["formats"] else power
        return replace(m, mfu_max=min(1.0, m.mfu_max * gain), bw_max=used(m.bw_max))

    plateau = {n: m.mfu_max for n, m in base.matmul}
    gain = max(power, least / plateau["bf16"])
    matmul = {n: faster(m, n, m.mfu_max) for n, m in base.matmul}
    # half of the arithmetic's rate leaves a kernel that unpacks as much time again
    most = _value(data["unpacked"]["mfu_max"]) * (2.0 if name in half["accelerators"] else 1.0)
    matmul[UNPACKED] = replace(matmul["bf16"], mfu_max=min(matmul["bf16"].mfu_max, most), mfu_half_tokens=0.0)
    return replace(
        base,
        matmul=tuple(sorted(matmul.items())),
        grouped=tuple((n, faster(m, n, plateau.get(n, m.mfu_max))) for n, m in base.grouped),
        kv_bw_max=used(base.kv_bw_max),
        kv_sqrt=base.kv_sqrt / share,
        prefill_mfu_max=min(1.0, base.prefill_mfu_max * gain),
        pcie_bw=base.pcie_bw * (_value(alone["pcie_bw"]) if name in alone["accelerators"] else 1.0),
    )


def _measured_in(family: str) -> Mapping[str, Any] | None:
    """The data sheet of the accelerator whose kernels the family's constants were fitted to; None without one."""
    names = constants()["families"].get(family, {}).get("accelerators", ())
    return shipped_accelerators()[names[0]] if names else None


def _clock(accelerator: Accelerator) -> float:
    """The share of its clock that a board holds under full load if it has fewer watts a FLOP/s than the measured one.

    Boards whose power or 16-bit rate is unknown are taken to hold all of it.
    """
    rule, stand_ins = constants()["power"], constants()["stand_ins"]
    family = stand_ins.get(accelerator.family, accelerator.family)
    measured, math_format = _measured_in(family), accelerator.math_format("bf16")
    if accelerator.tdp_w is None or math_format is None or measured is None:
        return 1.0
    watts = measured["tdp_w"] / measured["peak_flops"]["bf16"]
    share = accelerator.tdp_w / accelerator.peak_flops[math_format] / watts
    return float(min(1.0, share ** _value(rule["of_family"].get(family, rule["exponent"]))))


def _fitted_for(accelerator: Accelerator) -> tuple[float, str]:
    """(the ridge point over that of what was measured, at most 1; what to say when the accelerator itself was not)."""
    data = constants()
    source = accelerator.family if accelerator.family in data["families"] else data["stand_ins"].get(accelerator.family)
    fitted = data["families"][source or "default"]
    math_format = accelerator.math_format("bf16")
    ridge = accelerator.ridge(math_format) if math_format else math.inf
    mine = accelerator.name in fitted.get("accelerators", ())
    note = "" if mine or accelerator.family != source else f"; {accelerator.name} itself was not measured"
    if accelerator.devices > 1:
        note += f"; an engine sees {accelerator.devices} devices here, each with its share: {accelerator.device}"
    return min(1.0, ridge / fitted["ridge"]), note


def _other_memory(accelerator: Accelerator) -> float:
    """Its memory bandwidth over that of the measured accelerator with the same chip; 1 where there is none."""
    chip = constants()["same_chip"]
    if accelerator.name not in chip["accelerators"]:
        return 1.0
    measured = _measured_in(accelerator.family)
    return float(accelerator.memory_bandwidth / measured["memory_bandwidth"]) if measured else 1.0


@cache
def _kernels(
    family: str, name: str, ridge_share: float, note: str, ramp_share: float, clock: float, memory: float
) -> Efficiency:
    base, basis = _family(family)
    measured = constants()["families"].get(family, {}).get("accelerators", ())
    base = _set_apart(base, name, tuple(measured), clock, memory)
    return replace(
        base,
        matmul=_filled(_scaled(base.matmul, ridge_share), ramp_share),
        grouped=_filled(_scaled(base.grouped, ridge_share), ramp_share),
        basis=f"{basis}{note}",
    )


def kernel_efficiency(accelerator: Accelerator) -> Efficiency:
    """What kernels of the accelerator's family reach, without any engine: no host time, no factor of software.

    A matmul's compute ramp (``mfu_half_tokens``) is a share of the ridge point: an accelerator with a lower ridge than
    the one that was measured leaves it at proportionally fewer tokens.
    """
    ramp = constants()["ramp"]
    share = accelerator.memory_bandwidth / ramp["bandwidth"] if accelerator.family in ramp["families"] else 1.0
    ridge, note = _fitted_for(accelerator)
    clock, memory = _clock(accelerator), _other_memory(accelerator)
    return _kernels(accelerator.family, accelerator.name, ridge, note, min(1.0, share), clock, memory)


def is_measured(accelerator: Accelerator) -> bool:
    """Whether kernels of the accelerator's family were measured, rather than borrowed from another."""
    return accelerator.family in constants()["families"]


@cache
def _made(
    kernels: Efficiency, engine: str, version: str | None, vendor: str, family: str, name: str, *, board: bool
) -> Efficiency:
    entry, phrase = engine_entry(engine, version, vendor, family)
    own, own_first = entry.get("spreads", {}).get(name), entry.get("ttft_spreads", {}).get(name)
    host = {k: _value(entry[k]) for k in _ENGINE_FIELDS if k in entry}
    elsewhere = entry.get("spread_other", kernels.spread)
    spread = own if own is not None else _value(entry.get("spread_board", elsewhere) if board else elsewhere)
    if own is None and "vendor" not in entry and "spread_other" in entry:  # a borrowed family is less certain still
        spread *= max(1.0, kernels.spread / _value(constants()["spread"]["fitted"]))
        if vendor != _MEASURED_VENDOR:
            spread = max(spread, constants()["unseen"]["spread"])
    spread = min(spread, _WIDEST)
    first = own_first if own_first is not None else _value(entry.get("ttft_spread", 2.0 * spread))
    made = kernels.with_(
        **host,
        basis=f"{kernels.basis}; {phrase}",
        spread=spread,
        expert_spread=min(_value(entry.get("expert_spread", spread)), _WIDEST),
        ttft_spread=max(spread, min(first, _WIDEST)),
    )
    return made.scaled(**{k: _value(entry[k]) for k in _ENGINE_FACTORS if k in entry})


def efficiency(accelerator: Accelerator, engine: str = "vllm", version: str | None = None) -> Efficiency:
    """The default constants of an accelerator under an engine generation; never fails, and says what it borrowed.

    Args:
        accelerator: its ``family`` picks the constants: fitted, a sister family's, or the median of all.
        engine: ``vllm``, ``sglang``, ``tensorrt-llm``, ...; another name gets vLLM's entry and says so.
        version: e.g. ``0.11``; None for the newest known generation.
    """
    return _made(
        kernel_efficiency(accelerator), engine, version or None, accelerator.vendor, accelerator.family,
        accelerator.name, board=accelerator.board,
    )  # fmt: skip
