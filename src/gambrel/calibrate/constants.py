"""The constants a fit may move, as multiples of their defaults, with how far each is believed to lie from them.

One vocabulary for the shipped engine entries, a person's profile and the twin that tests them: factors on what kernels
reach (:meth:`gambrel.core.efficiency.Efficiency.scaled`) and host times.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.core.deployment import Deployment
    from gambrel.core.efficiency import Efficiency

__all__ = ["BOUND", "CONSTANTS", "FACTORS", "TIMES", "applicable", "moved", "prior_sigma"]

FACTORS: Final = ("bandwidth", "compute", "kv", "experts", "quantised", "wire")
TIMES: Final = ("step_s", "layer_s", "seq_s", "request_s")
CONSTANTS: Final = FACTORS + TIMES
BOUND: Final = 3.0
"""Natural logarithm of the furthest multiple that a fit may reach, either way."""

# One-sigma of each constant's logarithm before any measurement: where kernels were measured software moves rates by a
# tenth or a fifth, host times are known to a factor; elsewhere a rate may be half or double.
_MEASURED: Final = MappingProxyType(
    {"bandwidth": 0.15, "compute": 0.2, "kv": 0.25, "experts": 0.3, "quantised": 0.2, "wire": 0.4,
     "step_s": 0.8, "layer_s": 0.6, "seq_s": 1.0, "request_s": 1.0}
)  # fmt: skip
_BORROWED: Final = MappingProxyType(
    {"bandwidth": 0.6, "compute": 0.7, "kv": 0.6, "experts": 0.5, "quantised": 0.4, "wire": 0.8,
     "step_s": 1.0, "layer_s": 0.8, "seq_s": 1.2, "request_s": 1.0}
)  # fmt: skip


def prior_sigma(name: str, *, measured: bool) -> float:
    """One-sigma of a constant's logarithm; ``measured``: its accelerator's kernels were (not a borrowed family)."""
    return (_MEASURED if measured else _BORROWED)[name]


def moved(base: Efficiency, multiples: Mapping[str, float]) -> Efficiency:
    """The constants with each named one multiplied: rates never above their peak, times of 0 stay 0."""
    times = {name: getattr(base, name) * multiples[name] for name in TIMES if name in multiples}
    times["stream_s"] = base.stream_s * multiples.get("seq_s", 1.0)  # runs that stream cannot tell the two apart
    factors = {name: multiples[name] for name in FACTORS if name in multiples}
    return base.with_(**times).scaled(**factors, bus=multiples.get("wire", 1.0))  # ranks meet over one of the two


def applicable(deployment: Deployment) -> tuple[str, ...]:
    """The constants that a deployment's steps depend on at all."""
    found = set(CONSTANTS)
    if all(layer.moe is None for _, layer in deployment.model.layers):
        found.discard("experts")
    if deployment.tp == 1:
        found.discard("wire")
    if deployment.weight_format.math in {"bf16", "fp16"}:
        found.discard("quantised")
    return tuple(name for name in CONSTANTS if name in found)
