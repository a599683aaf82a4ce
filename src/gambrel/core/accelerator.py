"""What an accelerator *is*: dense peaks, memory, links, price, and how far each figure can be trusted.

Peaks are dense: vendors' headlines often count 2:4 sparsity, which no LLM engine uses. SI units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Accelerator", "Price"]

_PAIR = 2  # accelerators that a bridge joins


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per accelerator-hour with where and when it was read.

    Attributes:
        usd_per_hour: dollars per hour of ONE accelerator: the machine's price over ``gpu_count``.
        kind: ``on_demand``, ``reserved``, ``spot``, ``serverless`` (billed by the worker-second), ``community``
            (a marketplace's cheapest), ``owned`` (what it costs its owner).
        gpu_count: accelerators in the machine that is rented as a whole.
        as_of: ISO date or year of the figure; empty where the source has none.
        confidence: A a machine-collected list or the vendor's own page, B a dated hand-kept list, C a third party's
            page or undated, ``user`` from the user.
    """

    usd_per_hour: float
    provider: str
    instance_type: str = ""
    region: str = ""
    kind: str = "on_demand"
    gpu_count: int = 1
    as_of: str = ""
    source: str = ""
    confidence: str = ""
    note: str = ""

    @property
    def basis(self) -> str:
        """One phrase that lets a reader find the figure again."""
        return " ".join(p for p in (self.provider, self.instance_type, self.region, self.kind, self.as_of) if p)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device as software sees it, or a package of a few that are sold as one (``devices``).

    Attributes:
        name: short id, e.g. ``h100-sxm``.
        title: the product's name.
        family: key of the efficiency constants it borrows, e.g. ``hopper``.
        peak_flops: dense FLOP/s by math format (``bf16``, ``fp16``, ``fp8``, ``int8``, ``fp4``).
        memory_bytes: what software can allocate (ECC and reserves removed).
        memory_bandwidth: bytes/s of device memory.
        link_bandwidth: bytes/s, one direction, to peers in the scale-up domain; 0 without one.
        link: the link's name.
        network_bandwidth: bytes/s, one direction, of the network port beside each device in the vendor's reference
            machine, at line rate; 0 where none is known.
        link_domain: how many devices the link joins: 8 on an HGX board, 72 in an NVL72 rack, 2 for a bridged pair;
            None means all ``max_tp`` of them.
        pcie_bandwidth: bytes/s, one direction, to the host.
        tdp_w: board power in watts, or None.
        l2_bytes: last-level cache on the die, or None.
        confidence: A two sources agree, B one source, C partly derived.
        max_tp: devices in a normal machine, the most a tensor-parallel group can hold.
        devices: how many software sees where this is a package of several; 1 for everything else.
        device: the name of one of those, with its share of each figure; empty where ``devices`` is 1.
        price: dollars per hour of one device, or None where no trustworthy price is known.
        offers: machines of the same provider and kind as ``price``, which :meth:`price_for` chooses among.
        offer: what sets this one apart where the same device is on offer in several ways, e.g. ``spot`` or ``owned``.
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
    link_domain: int | None = None
    offers: tuple[Price, ...] = ()
    network_bandwidth: float = 0.0
    offer: str = ""
    devices: int = 1
    device: str = ""

    @property
    def id(self) -> str:
        """The name, with the offer where that sets it apart: ``h100-sxm (spot)``."""
        return f"{self.name} ({self.offer})" if self.offer else self.name

    def __hash__(self) -> int:
        return hash(self.name)  # peak_flops, a mapping, has no hash; equal accelerators have equal names

    @property
    def board(self) -> bool:
        """Whether more than two of them meet over PCIe alone: workstation, edge and PCIe server boards."""
        return not self.link_bandwidth or self.link_domain == _PAIR

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

    def peer_bandwidth(self, ranks: int) -> float:
        """Bytes/s, one direction, of one device to its peers in a group of ``ranks``.

        The link while it joins them all, else PCIe: two bridged cards talk over the bridge, four do not.
        """
        domain = self.max_tp if self.link_domain is None else self.link_domain
        return self.link_bandwidth if self.link_bandwidth > 0.0 and ranks <= domain else self.pcie_bandwidth

    def price_for(self, gpus: int) -> Price | None:
        """The price of one device in a group of ``gpus`` that must share a machine.

        The cheapest per device of ``offers`` whose machine holds them all; ``price`` where there is none (a card
        rented singly is cheaper than in a machine of eight, and a plan with eight must not count on it).
        """
        holding = [offer for offer in self.offers if offer.gpu_count >= gpus]
        return min(holding, key=lambda offer: offer.usd_per_hour) if holding else self.price
