"""Collectives between the accelerators of a replica: alpha-beta times by message size, ranks and link.

Tensor parallelism puts two all-reduces into most layers, so a small message's latency matters as much as the
link's bandwidth. Engines pick the algorithm by message size; so does :func:`all_reduce_s`, by taking the fastest.

Symbols: ``n`` bytes of the message on each rank, ``p`` ranks, ``alpha`` seconds of an empty message, ``beta``
bytes/s of one device in one direction. Source of the formulas: Thakur, Rabenseifner and Gropp 2005, and the one-shot
and two-shot kernels of vLLM and TensorRT-LLM (docs/theory.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.core.errors import DeploymentError

if TYPE_CHECKING:
    from gambrel.core.accelerator import Accelerator
    from gambrel.core.deployment import Deployment
    from gambrel.core.efficiency import Efficiency

__all__ = ["Wire", "all_gather_s", "all_reduce_s", "all_to_all_s", "pool_wire", "send_s", "wire"]

NETWORK_SHARE = 0.87
"""Of a network port's line rate that large transfers reach. Mooncake's transfer engine moved 87 GB/s over four ports of
200 Gb/s (repository kvcache-ai/Mooncake, README, 40 GB of cache; 190 of 400 GB/s over eight of 400 Gb/s). DeepEP's
low-latency kernels reach 43 of 50 GB/s in dispatch and 46 in combine over 64 H800 (repository deepseek-ai/DeepEP,
README, ConnectX-7 of 400 Gb/s)."""


@dataclass(frozen=True, slots=True)
class Wire:
    """What joins the ranks: seconds of an empty message, achieved bytes/s per device and direction, and its name."""

    alpha_s: float
    bytes_per_s: float
    name: str


def wire(accelerator: Accelerator, ranks: int, efficiency: Efficiency) -> Wire:
    """The slowest link that ``ranks`` accelerators of one replica must cross.

    Within the scale-up domain that is the accelerator's own link; beyond it, or without one, PCIe through the host;
    beyond a machine, where the network port is known, that.

    Raises:
        DeploymentError: more than one rank and no link of either kind is known.
    """
    if ranks <= 1:
        return Wire(0.0, float("inf"), "none")
    if ranks > accelerator.max_tp and accelerator.network_bandwidth > 0.0:
        return Wire(efficiency.pcie_alpha_s, accelerator.network_bandwidth * NETWORK_SHARE, "network")
    peak = accelerator.peer_bandwidth(ranks)
    if peak > 0 and peak == accelerator.link_bandwidth:
        return Wire(efficiency.allreduce_alpha_s, peak * efficiency.allreduce_bw, accelerator.link)
    if peak > 0:
        shared = (2.0 / ranks) ** efficiency.pcie_sharing
        return Wire(efficiency.pcie_alpha_s, peak * efficiency.pcie_bw * shared, "PCIe")
    raise DeploymentError(
        f"{accelerator.name}: {ranks} accelerators need a link, and neither link_bandwidth nor pcie_bandwidth is known;"
        " use tp=1 and pp=1"
    )


def pool_wire(deployment: Deployment) -> Wire:
    """What joins a prefill to a decode worker, per accelerator and direction: as stated, else the network port's.

    Raises:
        DeploymentError: nothing is stated and the accelerator's port is not known.
    """
    if deployment.kv_link_bytes_per_s is not None:
        return Wire(0.0, deployment.kv_link_bytes_per_s, "stated")
    port = deployment.accelerator.network_bandwidth
    if port > 0.0:
        return Wire(0.0, port * NETWORK_SHARE, "network port")
    raise DeploymentError(
        f"{deployment.accelerator.name}: the network port of an accelerator is not known; state kv_link_bytes_per_s "
        "(--kv-link-gbps), what one accelerator moves from prefill to decode workers"
    )


def all_reduce_s(num_bytes: Any, ranks: int, link: Wire) -> Any:
    """Seconds of an all-reduce of ``num_bytes`` (number or array) on each of ``ranks`` ranks.

    The fastest of one-shot ``alpha + (p - 1) n / beta`` (every rank reads all others: small messages),
    two-shot ``2 alpha + 2 (p - 1)/p n / beta`` (scatter, then gather),
    ring ``2 (p - 1) alpha + 2 (p - 1)/p n / beta`` (never faster than two-shot over a switch, so left out).
    """
    if ranks <= 1:
        return num_bytes * 0.0
    one_shot = link.alpha_s + (ranks - 1) * num_bytes / link.bytes_per_s
    two_shot = 2 * link.alpha_s + 2 * (ranks - 1) / ranks * num_bytes / link.bytes_per_s
    return np.minimum(one_shot, two_shot) * (np.asarray(num_bytes) > 0)


def all_gather_s(num_bytes: Any, ranks: int, link: Wire) -> Any:
    """Seconds to give every rank all of a message of ``num_bytes`` that is spread over ``ranks``: direct, one hop."""
    if ranks <= 1:
        return num_bytes * 0.0
    return (link.alpha_s + (ranks - 1) / ranks * num_bytes / link.bytes_per_s) * (np.asarray(num_bytes) > 0)


def all_to_all_s(num_bytes: Any, ranks: int, link: Wire) -> Any:
    """Seconds for every rank to send an equal share of its ``num_bytes`` to each other: ``alpha + (p-1)/p n/beta``.

    Expert parallelism over ranks that hold different tokens dispatches and combines ``tokens x top_k x hidden`` so.
    """
    return all_gather_s(num_bytes, ranks, link)


def send_s(num_bytes: Any, link: Wire) -> Any:
    """Seconds of one point-to-point message, as between pipeline stages."""
    return (link.alpha_s + num_bytes / link.bytes_per_s) * (np.asarray(num_bytes) > 0)
