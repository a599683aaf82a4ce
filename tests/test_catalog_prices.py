"""Prices: every row is whole, and the default follows the stated rule: the median provider's cheapest machine."""

from __future__ import annotations

import csv
import math
import statistics
from typing import TYPE_CHECKING

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from gambrel.catalog.accelerators import accelerator, accelerators
from gambrel.catalog.prices import choose, given, prices, why_no_price
from gambrel.catalog.tables import PRICE_KINDS, shipped_prices
from gambrel.core.accelerator import Price
from gambrel.core.errors import CatalogError, UnknownName

if TYPE_CHECKING:
    from pathlib import Path

NAMES = sorted(accelerators())


def test_every_price_is_of_a_known_accelerator() -> None:
    assert set(shipped_prices()) <= set(NAMES)
    assert sum(len(rows) for rows in shipped_prices().values()) >= 140


@pytest.mark.parametrize("name", sorted(shipped_prices()))
def test_rows_are_whole(name: str) -> None:
    for price in prices(name):
        assert 0.05 < price.usd_per_hour < 20
        assert price.provider
        assert price.source
        assert price.kind in PRICE_KINDS
        assert price.confidence in {"A", "B", "C"}
        assert price.as_of or price.note, "a price without a date says so"
        assert price.provider in price.basis


@pytest.mark.parametrize("name", NAMES)
def test_default_is_a_trusted_on_demand_offer_or_none_with_a_reason(name: str) -> None:
    device = accelerator(name)
    found = prices(name)
    if device.price is None:
        assert why_no_price(found)
        assert not [p for p in found if p.kind == "on_demand" and p.confidence in "AB" and p.gpu_count >= 1]
        return
    assert not why_no_price(found)
    assert device.price in found
    assert device.price.kind == "on_demand"
    assert device.price.confidence in {"A", "B"}
    assert device.price == device.price_for(1)
    assert {o.provider for o in device.offers} == {device.price.provider}


def test_h100_default_is_the_median_provider() -> None:
    price = accelerator("H100").price
    assert price is not None
    cheapest: dict[str, float] = {}
    for p in prices("H100"):
        if p.kind == "on_demand" and p.confidence in "AB":
            cheapest[p.provider] = min(p.usd_per_hour, cheapest.get(p.provider, math.inf))
    assert price.usd_per_hour == statistics.median_low(cheapest.values())
    assert (price.provider, price.usd_per_hour) == ("lambda", 3.99)


def test_traps() -> None:
    aws = accelerator("h100-sxm", provider="aws").price
    assert aws is not None
    assert aws.usd_per_hour == 6.88  # 55.04 for eight, not the 98.32 that many pages still print
    assert accelerator("mi300x").price is None  # third-party pages only
    assert accelerator("rtx-4090").price is None  # serverless and marketplace only
    assert accelerator("rtx-4090", price_kind="serverless").price is not None
    a10 = accelerator("a10", provider="oci").price
    assert a10 is not None
    with pytest.raises(UnknownName, match="provider"):
        accelerator("a10", provider="azure")  # a sixth of a card is not an A10
    tpu = [p for p in prices("tpu-v6e") if p.usd_per_hour > 100]
    assert not tpu  # a placeholder of 700 dollars circulates


def test_choice_by_provider_kind_and_figure() -> None:
    spot = accelerator("h100-sxm", price_kind="spot").price
    assert spot is not None
    assert spot.kind == "spot"
    vultr = accelerator("mi300x", provider="Vultr").price
    assert vultr is not None
    assert vultr.confidence == "C"  # asked for by name: the user's choice
    mine = accelerator("mi300x", price=2).price
    assert mine == Price(2.0, "given", source="given by the user", confidence="user")
    with pytest.raises(UnknownName, match="nearest"):
        accelerator("h100-sxm", provider="nobody")
    with pytest.raises(CatalogError, match="kind"):
        accelerator("h100-sxm", price_kind="gratis")
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(CatalogError, match="dollars per accelerator-hour"):
            given(bad)


def test_user_prices_win_and_are_per_machine(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        """
        [[prices]]
        accelerator = "H100"
        provider = "our rack"
        kind = "owned"
        gpu_count = 8
        usd_per_hour = 12.0
        as_of = "2026-11-01"
        """,
        encoding="utf-8",
    )
    device = accelerator("h100-sxm", files=[path])
    assert device.price is not None
    assert device.price.usd_per_hour == 1.5
    assert device.price.basis == "our rack owned 2026-11-01"
    assert device.price_for(8) == device.price
    aws = accelerator("h100-sxm", files=[path], provider="aws").price
    assert aws is not None
    assert aws.usd_per_hour == 6.88


PRICES = st.lists(
    st.builds(
        Price,
        usd_per_hour=st.floats(0.01, 100),
        provider=st.sampled_from(["p", "q", "r", "s"]),
        kind=st.sampled_from(PRICE_KINDS),
        gpu_count=st.sampled_from([0, 1, 2, 8]),
        as_of=st.sampled_from(["", "2025", "2026", "2026-02-09", "2026-09-06"]),
        confidence=st.sampled_from(["A", "B", "C"]),
    ),
    max_size=12,
)


@forall(PRICES, st.sampled_from(PRICE_KINDS))
def test_rule_holds_for_any_list(found: list[Price], kind: str) -> None:
    chosen = choose(found, kind)
    eligible = [p for p in found if p.kind == kind and p.confidence in "AB" and p.gpu_count >= 1]
    assert bool(chosen) == bool(eligible)
    assert bool(why_no_price(found, kind)) != bool(eligible)
    if not chosen:
        return
    first = chosen[0]
    assert first in eligible
    assert all(p.provider == first.provider and p.as_of == first.as_of for p in chosen)
    assert all(first.usd_per_hour <= p.usd_per_hour for p in chosen)
    newest = {q: max((len(p.as_of) == 10, p.as_of) for p in eligible if p.provider == q)[1] for q in "pqrs" if any(
        p.provider == q for p in eligible)}  # fmt: skip
    cheapest = [min(p.usd_per_hour for p in eligible if (p.provider, p.as_of) == pair) for pair in newest.items()]
    assert first.usd_per_hour == statistics.median_low(cheapest)


@pytest.mark.shared
def test_shipped_prices_agree_with_the_collected_list(shared_data: Path) -> None:
    with (shared_data / "prices" / "gpu_prices.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["usd_per_gpu_hour"]]
    ours = {name: {round(p.usd_per_hour, 2) for p in prices(name)} for name in shipped_prices()}
    for row in rows:
        want = float(row["usd_per_hour_on_demand"]) / float(row["gpu_count"])
        assert round(want, 2) in ours[row["gpu_id"]], row
