"""The same accelerator on several terms: on demand, spot, reserved or owned, from one cloud or another.

Each becomes a candidate of its own, so that a plan weighs them. What the terms bring with them beyond the price (a spot
machine can be taken away) is said by :mod:`gambrel.plan.caveats`. Here also: what ``--axis`` means.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gambrel.core.errors import GambrelError, UnknownName

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from gambrel.core.accelerator import Accelerator
    from gambrel.core.workload import Workload

__all__ = ["axes", "capped", "degrees", "mix", "on_offer", "owned"]

USUAL = "on_demand"


def split(text: str | None) -> list[str | None]:
    """Comma-separated words; one None where nothing was given."""
    return [part.strip() for part in text.split(",") if part.strip()] if text else [None]


def on_offer(
    devices: Sequence[Accelerator],
    kinds: str | None = None,
    providers: str | None = None,
    regions: str | None = None,
    files: Sequence[Path] = (),
) -> tuple[Accelerator, ...]:
    """Every device at every kind of price, provider and region that has one for it.

    Raises:
        GambrelError: no device has such a price, or a kind is unknown.
    """
    if not devices or not (kinds or providers or regions):
        return tuple(devices)
    from gambrel.catalog.accelerators import accelerator as load

    found = []
    for device in devices:
        for kind in split(kinds):
            for provider in split(providers):
                for region in split(regions):
                    try:
                        offered = load(
                            device.name, files=files, provider=provider, price_kind=kind or USUAL, region=region
                        )
                    except UnknownName:  # this provider has no price for this device
                        continue
                    if offered.price is None:
                        continue
                    apart = (kind if kind != USUAL else None, provider, region)
                    found.append(replace(offered, offer=" ".join(word for word in apart if word)))
    if not found:
        asked = " ".join(x for x in (kinds, providers, regions) if x)
        raise GambrelError(f"no price of {asked} is known for {', '.join(d.name for d in devices)}; give one: --price")
    return tuple(found)


def owned(texts: Iterable[str], files: Sequence[Path] = ()) -> tuple[Accelerator, ...]:
    """``h100-sxm=31000,years=4,kwh=0.12,pue=1.3`` as accelerators at what they cost their owner.

    ``watts`` is the board's power where it is not given, ``other`` dollars per hour beside.

    Raises:
        GambrelError: one is not of that form, or no power is known.
    """
    from gambrel.catalog.accelerators import accelerator as load
    from gambrel.catalog.prices import owned as price_of

    found = []
    for text in texts:
        name, figures = named_figures(text)
        device = load(name, files=files)
        watts = figures.get("watts", device.tdp_w)
        if watts is None:
            raise GambrelError(f"--owned {name}: its power is not known; add watts=...")
        price = price_of(
            figures["purchase"], figures["years"], watts, figures["kwh"], figures.get("pue", 1.0),
            figures.get("other", 0.0),
        )  # fmt: skip
        found.append(replace(device, price=price, offers=(), offer="owned"))
    return tuple(found)


def named_figures(text: str) -> tuple[str, dict[str, float]]:
    """The accelerator and the figures of one ``--owned``."""
    known = ("years", "kwh", "pue", "watts", "other")
    form = f"NAME=DOLLARS,years=N,kwh=DOLLARS[,pue=X][,watts=W][,other=DOLLARS_PER_HOUR], got {text!r}"
    first, *rest = text.split(",")
    name, _, dollars = first.partition("=")
    figures: dict[str, float] = {}
    try:
        figures["purchase"] = float(dollars)
        for part in rest:
            key, _, value = part.partition("=")
            if key.strip() not in known:
                raise GambrelError(f"--owned must be {form}")
            figures[key.strip()] = float(value)
    except ValueError:
        raise GambrelError(f"--owned must be {form}") from None
    if not name or not {"years", "kwh"} <= set(figures):
        raise GambrelError(f"--owned must be {form}")
    return name.strip(), figures


def axes(texts: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """``attention_dp=1,8`` as values of a field of the deployment; numbers, ``true`` and ``false``, else words.

    Raises:
        GambrelError: one is not of that form.
    """
    found = {}
    for text in texts:
        name, _, values = text.partition("=")
        parts = [value(part.strip()) for part in values.split(",") if part.strip()]
        if not name or not parts:
            raise GambrelError(f"--axis must be NAME=VALUE,VALUE like attention_dp=1,8, got {text!r}")
        found[name.strip().replace("-", "_")] = tuple(parts)
    return found


def value(text: str) -> Any:
    """A word as what it looks like."""
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def degrees(**texts: str | None) -> dict[str, tuple[int, ...]]:
    """Parallel degrees as fields of the space, those that were named.

    Raises:
        GambrelError: one cannot be read.
    """
    from gambrel.faces.words import counts

    return {name: tuple(counts(text, f"--{name}")) for name, text in texts.items() if text}


def capped(workload: Workload, max_model_len: int | None) -> Workload:
    """The traffic that a cap on the context leaves, as :func:`gambrel.traffic.cap_context` says."""
    if max_model_len is None:
        return workload
    from gambrel.traffic import cap_context

    return cap_context(workload, max_model_len)


def mix(texts: Sequence[str], columns: list[str] | None = None) -> Workload | None:
    """``chat=chat.csv`` and ``code=code.csv`` as one workload that knows whose request is whose; None for none.

    ``columns`` are the fields of them all, as ``--column`` names them.

    Raises:
        GambrelError: one is not of that form, or a log cannot be read or mixed.
    """
    if not texts:
        return None
    from gambrel.faces.logs import asked_log
    from gambrel.traffic import mixed, ready_to_replay

    logs = {}
    for text in texts:
        name, _, spec = text.partition("=")
        if not name.strip() or not spec.strip():
            raise GambrelError(f"--mix must be NAME=FILE or NAME=PROFILE like chat=chat.csv, got {text!r}")
        logs[name.strip().lower()] = ready_to_replay(asked_log(spec.strip(), columns))
    return mixed(logs)
