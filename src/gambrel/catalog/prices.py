"""What an accelerator costs: every price with its provider, date and source, and the one rule that picks a default.

A price is that of the whole machine over its accelerators. The default is the offer of the **median provider**:

1. only on-demand list prices of confidence A or B for at least one whole accelerator count (no spot, no serverless,
   no marketplace, no third-party page, no fraction of a card);
2. each provider counts once, by its newest date and there by its cheapest machine per accelerator;
3. of the providers in order of price the middle one is taken, of two the cheaper: a figure that somebody really
   charges, never an average that nobody does.

Prices in the user's own files beat the list. Where nothing is left there is no default: :func:`why_no_price` says why.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from gambrel.catalog.tables import PRICE_KINDS, shipped_prices, tables
from gambrel.core.accelerator import Price
from gambrel.core.errors import CatalogError, UnknownName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from gambrel.catalog.tables import Tables

__all__ = ["choose", "given", "offers", "owned", "prices", "why_no_price"]

HOURS_PER_YEAR: Final = 365.25 * 24

_TRUSTED: Final = frozenset({"A", "B", "user"})
_USER_KINDS: Final = ("on_demand", "reserved", "owned")


def prices(accelerator_name: str, files: Sequence[Path] = ()) -> list[Price]:
    """Every known price of one accelerator, the user's first, then as shipped; whole-machine price over its count.

    Raises:
        UnknownName: no accelerator has that name.
        CatalogError: a user file cannot be read.
    """
    known = tables(files)
    return offers(known, known.resolve(accelerator_name))


def offers(known: Tables, name: str) -> list[Price]:
    """The same for tables that are read and a canonical name."""
    return [*(_user(row) for row in known.user_prices.get(name, ())), *_shipped(name)]


def choose(found: Iterable[Price], kind: str = "on_demand", provider: str | None = None) -> tuple[Price, ...]:
    """The offers of the provider that the rule above picks, cheapest per accelerator first; empty if none is left.

    ``kind`` other than ``on_demand`` asks for that kind by the same rule. A ``provider`` asked for by name is taken
    at any confidence: the choice is then the user's.

    Raises:
        CatalogError: ``kind`` is not one of :data:`~gambrel.catalog.tables.PRICE_KINDS`.
        UnknownName: ``provider`` has no price of that kind; the nearest that have.
    """
    if kind not in PRICE_KINDS:
        raise CatalogError(f"unknown price kind {kind!r}; known: {', '.join(PRICE_KINDS)}")
    whole = [p for p in found if p.gpu_count >= 1 and (p.kind == kind or (kind == "on_demand" and _own(p)))]
    if provider is not None:
        named = [p for p in whole if p.provider.lower() == provider.lower()]
        if not named:
            raise UnknownName(
                f"provider with a {kind} price for it", provider, dict.fromkeys(p.provider for p in whole)
            )
        return _newest(named)
    whole = [p for p in whole if p.confidence == "user"] or whole
    by_provider: dict[str, list[Price]] = {}
    for price in whole:
        if price.confidence in _TRUSTED:
            by_provider.setdefault(price.provider, []).append(price)
    ranked = sorted((_newest(rows) for rows in by_provider.values()), key=lambda o: (o[0].usd_per_hour, o[0].provider))
    return ranked[(len(ranked) - 1) // 2] if ranked else ()


def given(usd_per_hour: float, kind: str = "on_demand") -> Price:
    """A price that the user states for one accelerator.

    Raises:
        CatalogError: it is negative or not a number.
    """
    if not math.isfinite(usd_per_hour) or usd_per_hour < 0:
        raise CatalogError(f"a price must be dollars per accelerator-hour, at least 0, got {usd_per_hour!r}")
    return Price(float(usd_per_hour), "given", kind=kind, source="given by the user", confidence="user")


def owned(
    purchase_usd: float,
    years: float,
    watts: float,
    usd_per_kwh: float,
    pue: float = 1.0,
    other_usd_per_hour: float = 0.0,
) -> Price:
    """What an accelerator costs the one who owns it: the purchase spread evenly over the years, power, and the rest.

    ``purchase_usd`` is one accelerator's share of its machine, ``watts`` what it draws with that share, at all hours;
    ``pue`` multiplies power for cooling and losses; ``other_usd_per_hour`` is space, staff, network. Interest and what
    it still fetches at the end are left out: put them into the purchase.

    Raises:
        CatalogError: a figure that is negative or not a number, no years, or a PUE below 1.
    """
    figures = (purchase_usd, years, watts, usd_per_kwh, pue, other_usd_per_hour)
    if not all(math.isfinite(x) and x >= 0 for x in figures) or years <= 0 or pue < 1.0:
        raise CatalogError(
            f"owning needs dollars, watts and $/kWh of at least 0, years above 0 and a PUE of at least 1, got {figures}"
        )
    hourly = purchase_usd / (years * HOURS_PER_YEAR) + watts / 1e3 * pue * usd_per_kwh + other_usd_per_hour
    note = f"${purchase_usd:,.0f} over {years:g} years, {watts:g} W x PUE {pue:g} x ${usd_per_kwh:g}/kWh"
    note += f", ${other_usd_per_hour:g}/h beside" if other_usd_per_hour else ""
    return Price(hourly, "", kind="owned", source="given by the user", confidence="user", note=note)


def why_no_price(found: Sequence[Price], kind: str = "on_demand") -> str:
    """One phrase for a plan that leaves an accelerator out of its ranking by cost; empty if there is a price."""
    if choose(found, kind):
        return ""
    ways = "give one with a price or a catalog file"
    rest = sorted((p for p in found if p.gpu_count >= 1), key=lambda p: p.usd_per_hour)
    if not rest:
        return f"no trustworthy price is known; {ways}"
    low, high = rest[0], rest[-1]
    span = f"${low.usd_per_hour:.2f}" + (
        f" to ${high.usd_per_hour:.2f}" if high.usd_per_hour > low.usd_per_hour else ""
    )
    kinds = ", ".join(dict.fromkeys(f"{p.kind} {p.confidence}" for p in rest))
    return f"no {kind} price of confidence A or B; others ({kinds}) ask {span} an hour; {ways}"


def _own(price: Price) -> bool:
    """Whether it is the user's own steady price, which stands in for an on-demand one."""
    return price.confidence == "user" and price.kind in _USER_KINDS


def _newest(rows: Sequence[Price]) -> tuple[Price, ...]:
    """The rows of the newest date (a full date beats a bare year), cheapest per accelerator first."""
    dated = max(rows, key=lambda p: (len(p.as_of) >= len("2026-01-01"), p.as_of)).as_of
    return tuple(sorted((p for p in rows if p.as_of == dated), key=lambda p: (p.usd_per_hour, p.gpu_count)))


def _shipped(name: str) -> list[Price]:
    return [
        Price(
            usd_per_hour=float(row["usd_per_hour"]) / float(row["gpu_count"]),
            provider=row["provider"],
            instance_type=row["instance_type"],
            region=row["region"],
            kind=row["kind"],
            gpu_count=int(float(row["gpu_count"])),  # a sixth of a card counts as none
            as_of=row["as_of"],
            source=row["source"],
            confidence=row["confidence"],
            note=row["note"],
        )
        for row in shipped_prices().get(name, ())
    ]


def _user(row: Mapping[str, Any]) -> Price:
    count = int(row.get("gpu_count", 1))
    return Price(
        usd_per_hour=float(row["usd_per_hour"]) / count,
        provider=row.get("provider", "user"),
        instance_type=row.get("instance_type", ""),
        region=row.get("region", ""),
        kind=row.get("kind", "on_demand"),
        gpu_count=count,
        as_of=row.get("as_of", ""),
        source=row["source"],
        confidence="user",
        note=row.get("note", ""),
    )
