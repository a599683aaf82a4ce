"""Names to accelerators: ``H100``, ``A100-SXM-80GB``, ``NVIDIA GeForce RTX 4090`` and what the user adds.

The facts lie in ``data/accelerators.toml`` and ``data/prices.csv``; :mod:`gambrel.catalog.tables` reads and checks
them, :mod:`gambrel.catalog.prices` holds the rule for the price that an accelerator carries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gambrel.catalog.prices import choose, given, offers
from gambrel.catalog.tables import tables
from gambrel.core.accelerator import Accelerator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gambrel.core.accelerator import Price

__all__ = ["accelerator", "accelerators"]


def accelerator(
    name: str,
    *,
    files: Sequence[Path] = (),
    price: float | None = None,
    provider: str | None = None,
    price_kind: str = "on_demand",
    region: str | None = None,
) -> Accelerator:
    """The accelerator of that name or spelling, with its price.

    Args:
        name: canonical (``h100-sxm``) or as people write it (``H100``, ``H100-SXM-80GB``).
        files: the user's catalog files, over the default location and ``$GAMBREL_CATALOG``.
        price: dollars per accelerator-hour, instead of the catalog's.
        provider: take this provider's price; without it the default rule of :mod:`gambrel.catalog.prices` holds.
        price_kind: ``on_demand``, ``spot``, ``serverless``, ``community``, ``reserved`` or ``owned``.
        region: take only prices of this region, as its provider spells it.

    Raises:
        UnknownName: no such accelerator, or no price of that provider and kind; the nearest three.
        CatalogError: a user file, price or kind is not what it should be.
    """
    known = tables(files)
    canonical = known.resolve(name)
    rows = [p for p in offers(known, canonical) if region is None or p.region == region]
    found = (given(price, price_kind),) if price is not None else choose(rows, price_kind, provider)
    return _build(canonical, known.accelerators[canonical], found)


def accelerators(files: Sequence[Path] = ()) -> dict[str, Accelerator]:
    """Every accelerator by canonical name, each with its default price.

    Raises:
        CatalogError: a user file cannot be read or holds what it should not.
    """
    known = tables(files)
    return {name: _build(name, row, choose(offers(known, name))) for name, row in known.accelerators.items()}


def _build(name: str, row: Mapping[str, Any], found: tuple[Price, ...]) -> Accelerator:
    dated = f"{row['source']} ({row['date']})" if "date" in row else row["source"]
    return Accelerator(
        name=name,
        title=row["title"],
        vendor=row.get("vendor", ""),
        family=row["family"],
        peak_flops={fmt: float(flops) for fmt, flops in row["peak_flops"].items()},
        memory_bytes=float(row["memory_bytes"]),
        memory_bandwidth=float(row["memory_bandwidth"]),
        link=row.get("link", "none"),
        link_bandwidth=float(row.get("link_bandwidth", 0.0)),
        link_domain=row.get("link_domain"),
        pcie_bandwidth=float(row.get("pcie_bandwidth", 0.0)),
        tdp_w=row.get("tdp_w"),
        l2_bytes=row.get("l2_bytes"),
        year=row.get("year"),
        confidence=row.get("confidence", ""),
        source=dated,
        notes=row.get("notes", ""),
        max_tp=row.get("max_tp", 8),
        devices=row.get("devices", 1),
        device=row.get("device", ""),
        network_bandwidth=float(row.get("network_bandwidth", 0.0)),
        price=found[0] if found else None,
        offers=found,
    )
