"""Where an efficiency constant comes from, in a sentence: the value, its interval, rows, source and date.

A constant that the planner uses is a kernel's, fitted on an accelerator family, times the factor of an engine
generation. Both halves are named, so that whoever doubts a figure knows which table to open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gambrel.catalog.efficiency import constants, engine_entry
from gambrel.core.efficiency import UNPACKED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.core.deployment import Deployment

__all__ = ["constant_source"]

_SECTIONS: Final = ("decode_attention", "prefill_attention", "all_reduce", "small_operations")
_FACTORS: Final = {
    "mfu_max": "compute",
    "bw_max": "bandwidth",
    "kv_bw_max": "kv",
    "kv_sqrt": "kv",
    "prefill_mfu_max": "compute",
    "allreduce_alpha_s": "wire",
    "allreduce_bw": "wire",
    "pcie_alpha_s": "bus",
    "pcie_bw": "bus",
}
"""Which factor of an engine multiplies which constant of the kernels."""
_UNPACKING: Final = ("mfu_max", "mfu_half_tokens")


def constant_source(deployment: Deployment, name: str, math: str = "bf16", *, grouped: bool = False) -> str:
    """What the constant ``name`` (a field of Efficiency or Matmul) of a deployment's accelerator and engine rests on.

    ``math`` is the number format of a matmul's constants, ``grouped`` whether they are the experts'.
    """
    a = deployment.accelerator
    entry, _ = engine_entry(deployment.engine, deployment.engine_version, a.vendor, a.family)
    if name in entry:
        return f"{_figures(entry, name)}, {_standing(entry)}"
    families = constants()["families"]
    source = a.family if a.family in families else constants()["stand_ins"].get(a.family, "default")
    found, of = _section(families[source], name, math, grouped=grouped), source
    if found is None:
        found, of = _section(families["default"], name, math, grouped=grouped), "default"
    if found is None:
        return f"gambrel's constants for {a.family}"
    family = families[of]
    text = f"{_figures(found, name)}, {_rows(found)}{family['fitted_on']}; {family['source']}, {family['date']}"
    if math == UNPACKED and name in _UNPACKING:
        rule = constants()["unpacked"]
        text = f"weights are unpacked: at most {_figures(rule, 'mfu_max')} of the full rate, from few tokens on"
        text += f"; {rule['source']}, {rule['date']}"
    factor = _FACTORS.get(name)
    if factor in entry:
        text += f"; times {_figures(entry, str(factor))}, {_standing(entry)}"
    if factor in {"compute", "bandwidth"} and math not in {"bf16", "fp16", UNPACKED} and "quantised" in entry:
        text += f"; times {_figures(entry, 'quantised')}"
    if factor in {"compute", "bandwidth"} and grouped and "experts" in entry:
        text += f"; times {_figures(entry, 'experts')}"
    if factor == "compute" and grouped and "expert_compute" in entry:
        text += f"; times {_figures(entry, 'expert_compute')}"
    return text


def _section(family: Mapping[str, Any], name: str, math: str, *, grouped: bool) -> Mapping[str, Any] | None:
    """The table of a family that holds a constant."""
    for section in _SECTIONS:
        if name in family.get(section, {}):
            return dict(family[section])
    table = family.get("grouped" if grouped else "matmul", {})
    for wanted in (math, "fp8" if math in {"int8", "fp4"} else "bf16", "bf16"):
        if name in table.get(wanted, {}):
            return dict(table[wanted])
    return None


def _figures(table: Mapping[str, Any], name: str) -> str:
    """``bw_max 0.777 (95 %: 0.748 to 0.805)``."""
    entry = table[name]
    if not isinstance(entry, dict):
        return f"{name} {entry:.4g}"
    return f"{name} {entry['value']:.4g} (95 %: {entry['low']:.4g} to {entry['high']:.4g})"


def _rows(table: Mapping[str, Any]) -> str:
    return f"fitted to {table['rows']} rows of " if "rows" in table else "from "


def _standing(entry: Mapping[str, Any]) -> str:
    """What an engine's entry rests on."""
    rows = f", {entry['rows']} rows" if "rows" in entry else ""
    return f"{entry['basis']}{rows}" + (f" of {entry['source']}, {entry['date']}" if "source" in entry else "")
