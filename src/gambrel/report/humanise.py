"""Numbers as people read them: one place that turns SI into words, for charts, tables and terminals alike.

Everything inside is seconds, bytes, dollars and tokens; a reader wants ``4.48 ms``, ``15.0 GB`` and ``$2.49/h``.
Three significant digits, thousands separators, a unit always, and a dash where nothing is known.
GB is 1e9 bytes; :func:`gib` says GiB when it means 2**30.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gambrel.core.units import GIB

if TYPE_CHECKING:
    from gambrel.core.slo import Objective, Verdict

__all__ = [
    "allowed",
    "asked",
    "count",
    "dollars",
    "figure",
    "gib",
    "limit",
    "multiple",
    "num_bytes",
    "number",
    "outcome",
    "per_hour",
    "per_mtok",
    "percent",
    "rate",
    "seconds",
    "share",
    "signed_percent",
    "tokens",
]

UNKNOWN = "\N{EN DASH}"
_TIMES = ((1e-6, 1e-9, "ns"), (1e-3, 1e-6, "µs"), (1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min"))
_BYTES = ((1e3, 1.0, "B"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB"), (1e15, 1e12, "TB"))


def number(value: float, digits: int = 3) -> str:
    """``digits`` significant digits with thousands separators: 4.48, 15.0, 1,234; never an exponent."""
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else "-\N{INFINITY}"
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if round(abs(value), digits - 1 - power) >= 10.0 ** (power + 1):
        power += 1  # 9.996 becomes 10.0, not 10.00
    return f"{value:,.{max(0, digits - 1 - power)}f}"


def _scaled(value: float, table: tuple[tuple[float, float, str], ...], last: tuple[float, str]) -> str:
    if not math.isfinite(value):
        return number(value)
    for limit, unit, name in table:
        if abs(value) < limit * (1 - 5e-4):
            return f"{number(value / unit)} {name}"
    return f"{number(value / last[0])} {last[1]}"


def seconds(value: float) -> str:
    """A duration in the unit that suits it: ``850 µs``, ``4.48 ms``, ``1.25 s``, ``2.50 min``, ``3.00 h``."""
    return "0 s" if value == 0 else _scaled(value, _TIMES, (3600.0, "h"))


def limit(value: float) -> str:
    """A duration as people set it, without idle zeros: ``1 s``, ``50 ms``, ``1.25 s``."""
    figure, _, unit = seconds(value).partition(" ")
    return f"{figure.rstrip('0').rstrip('.') if '.' in figure else figure} {unit}"


def num_bytes(value: float) -> str:
    """Bytes in decimal units: ``15.0 GB`` is 15.0e9 bytes."""
    return "0 B" if value == 0 else _scaled(value, _BYTES, (1e15, "PB"))


def gib(value: float) -> str:
    """Bytes in units of 2**30: ``14.0 GiB``."""
    return f"{number(value / GIB)} GiB"


def dollars(value: float) -> str:
    """``$1,234``, ``$12.30``, ``$0.85``, ``$0.0123``: cents where they matter, more digits below ten cents."""
    if not math.isfinite(value):
        return number(value)
    if value == 0:
        return "$0"
    sign, size = ("-" if value < 0 else ""), abs(value)
    if size >= 1000:
        return f"{sign}${size:,.0f}"
    return f"{sign}${size:,.2f}" if size >= 0.0995 else f"{sign}${number(size)}"


def per_hour(value: float) -> str:
    """Dollars per hour: ``$2.49/h``."""
    return f"{dollars(value)}/h" if math.isfinite(value) else UNKNOWN


def per_mtok(value: float) -> str:
    """Dollars per million tokens: ``$0.42/Mtok``."""
    return f"{dollars(value)}/Mtok" if math.isfinite(value) else UNKNOWN


def count(value: float) -> str:
    """A whole number with separators: ``19,366``."""
    return f"{value:,.0f}" if math.isfinite(value) else number(value)


def tokens(value: float) -> str:
    """A token count, short: ``850``, ``8.2k``, ``131k``, ``1.2M`` (decimal thousands)."""
    if not math.isfinite(value):
        return number(value)
    if abs(value) < 999.5:
        return f"{value:.0f}"
    size, unit = (value / 1e3, "k") if abs(value) < 999_500 else (value / 1e6, "M")
    return f"{size:.1f}{unit}" if abs(size) < 99.95 else f"{size:,.0f}{unit}"


def percent(share: float) -> str:
    """A share of 1 as per cent: ``12 %``, ``0.4 %``, ``99.9 %``."""
    if not math.isfinite(share):
        return number(share)
    value = 100 * share
    if value != 0 and (abs(value) < 9.95 or 99.0 <= value < 100):
        return f"{math.floor(value * 10) / 10 if 99 <= value < 100 else value:.1f} %"
    return f"{value:,.0f} %"


def share(value: float) -> str:
    """A share of requests to the hundredth of a per cent that it reaches: ``95 %``, ``94.99 %``; never rounded up."""
    return f"{math.floor(1e4 * value + 1e-6) / 100:g} %" if math.isfinite(value) else number(value)


def signed_percent(share: float) -> str:
    """A share with its sign: ``+12 %``, ``-3.4 %``."""
    return f"+{percent(share)}" if share > 0 else percent(share)


def multiple(value: float) -> str:
    """A ratio: ``1.4x``, ``29x``, ``1,000x``."""
    if not math.isfinite(value):
        return number(value)
    return f"{number(value, 2).removesuffix('.0') if abs(value) < 9.95 else count(value)}x"


def rate(per_second: float, of: str = "requests") -> str:
    """Events per second: ``5.30 requests/s``; a dash where they have no rate, all coming at once."""
    return UNKNOWN if math.isnan(per_second) else f"{number(per_second)} {of}/s"


# Objectives


def figure(objective: Objective, value: float) -> str:
    """What an objective is about: ``1.25 s``, or ``95 %`` of goodput."""
    return share(value) if objective.is_floor else seconds(value)


def allowed(objective: Objective) -> str:
    """A limit as people set it: ``1 s``, or ``at least 95 %`` of goodput."""
    return f"at least {share(objective.limit)}" if objective.is_floor else limit(objective.limit)


def asked(objective: Objective) -> str:
    """The whole of it: ``ttft.p95<=1 s``, ``goodput>=95 %``."""
    if objective.is_floor:
        return f"{objective.name}>={share(objective.limit)}"
    return f"{objective.name}<={limit(objective.limit)}"


def outcome(verdict: Verdict) -> str:
    """``ttft.p95 reaches 1.25 s, limit 1.00 s``."""
    o = verdict.objective
    bound = "floor" if o.is_floor else "limit"
    return f"{o.name} reaches {figure(o, verdict.reached)}, {bound} {figure(o, o.limit)}"
