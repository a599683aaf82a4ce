"""What an accelerator *is*: dense peaks, memory, links, price, and how far each figure can be trusted.

Peaks are dense: vendors' headlines often count 2:4 sparsity, which no LLM engine uses. SI units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Accelerator", "Price"]


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per accelerator-hour with where and when it was read."""

    usd_per_hour: float
    provider: str
    instance_type: str = ""
    region: str = ""
    kind: str = "on_demand"  # on_demand, spot, reserved, owned
    gpu_count: int = 1
    as_of: str = ""
    source: str = ""
    confidence: str = ""

    @property
    def basis(self) -> str:
        """One phrase that lets a reader find the figure again."""
        return " ".join(p for p in (self.provider, self.instance_type, self.region, self.kind, self.as_of) if p)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device as software sees it.

    Attributes:
        name: short id, e.g. ``h100-sxm``.
        title: the product's name.
        family: key of the efficiency constants it borrows, e.g. ``hopper``.
        peak_flops: dense FLOP/s by math format (``bf16``, ``fp16``, ``fp8``, ``int8``, ``fp4``).
        memory_bytes: what software can allocate (ECC and reserves removed).
        memory_bandwidth: bytes/s of device memory.
        link_bandwidth: bytes/s, one direction, to peers in the scale-up domain; 0 without one.
        link: the link's name.
        pcie_bandwidth: bytes/s, one direction, to the host.
        confidence: A two sources agree, B one source, C partly derived.
        price: dollars per hour, or None where no trustworthy price is known.
    """

    name: str
    title: str
    vendor: str
    family: str
    peak_flops: Mapping[str, float]
    memory_bytes: float
    memory_bandwidth: float
    link: str = "none"
    link_bandwidth: float = 0.0
    pcie_bandwidth: float = 0.0
    tdp_w: float | None = None
    l2_bytes: float | None = None
    year: int | None = None
    confidence: str = ""
    source: str = ""
    notes: str = ""
    max_tp: int = 8
    price: Price | None = None

    def math_format(self, wanted: str) -> str | None:
        """The math format the device runs weights of math ``wanted`` in, or None if it cannot.

        16-bit formats stand in for each other (Volta and Turing have fp16 only); 8- and 4-bit formats without
        tensor-core support fall back to 16-bit math (weights are dequantised), which ``None`` from an
        8-bit-only device would contradict, so only a device without any 16-bit peak answers None.
        """
        if wanted in self.peak_flops:
            return wanted
        return next((m for m in ("bf16", "fp16") if m in self.peak_flops), None)

    def ridge(self, math: str = "bf16") -> float:
        """FLOPs per byte at which compute and memory take the same time."""
        return self.peak_flops[math] / self.memory_bandwidth
