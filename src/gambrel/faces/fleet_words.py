"""What people type about a fleet, as values: times, replicas, rules, failures, rates; a clear line if it is unclear."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gambrel.core.errors import GambrelError

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.engine.autoscaling import Autoscale
    from gambrel.engine.fleet import Failures
    from gambrel.traffic import RateSeries

__all__ = ["bounds", "broken", "scaling", "seconds", "series_of", "start_seconds"]

UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds(text: str, what: str) -> float:
    """``90``, ``120s``, ``15m``, ``500h`` or ``2d`` as seconds.

    Raises:
        GambrelError: naming ``what`` and the text.
    """
    cleaned = text.strip().lower()
    unit = next((u for u in sorted(UNITS, key=len, reverse=True) if cleaned.endswith(u)), "")
    try:
        value = float(cleaned.removesuffix(unit)) * (UNITS[unit] if unit else 1.0)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e12:
        raise GambrelError(f"{what} must be a time of at least 0 like 120s, 15m or 500h, got {text!r}")
    return value


def words(text: str, what: str, known: tuple[str, ...]) -> dict[str, str]:
    """``concurrency=32,rule=kpa`` as a mapping.

    Raises:
        GambrelError: an unknown key, or a part that is not KEY=VALUE.
    """
    found = {}
    for part in (p.strip() for p in text.split(",") if p.strip()):
        key, equals, value = (x.strip() for x in part.partition("="))
        if not equals or key not in known or not value:
            raise GambrelError(f"{what}: {part!r} is not KEY=VALUE with a known key; known: {', '.join(known)}")
        found[key] = value
    return found


def real(text: str, what: str) -> float:
    """A number.

    Raises:
        GambrelError: it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise GambrelError(f"{what} must be a number, got {text!r}") from None


def bounds(text: str) -> tuple[int, int]:
    """``4`` as (4, 4), ``1:16`` as (1, 16), ``0:16`` too.

    Raises:
        GambrelError: neither.
    """
    low, colon, high = text.partition(":")
    try:
        found = int(low), int(high if colon else low)
    except ValueError:
        found = -1, -1
    if not 0 <= found[0] <= found[1] or found[1] < 1:
        raise GambrelError(f"--replicas must be a number of at least 1 like 4, or a range like 1:16, got {text!r}")
    return found


def scaling(text: str | None, low: int, high: int) -> Autoscale | None:
    """The rule of ``--autoscale`` between the bounds of ``--replicas``; None for a fixed fleet.

    Raises:
        GambrelError: a range without a rule or the other way round, or a rule that cannot be read.
    """
    if text is None:
        if low != high:
            raise GambrelError("--replicas with a range needs --autoscale, e.g. --autoscale concurrency=32")
        return None
    if low == high:
        raise GambrelError(f"--autoscale needs a range to scale in, e.g. --replicas 1:{max(high, 2)}")
    from gambrel.engine.autoscaling import METRICS as SCALED
    from gambrel.engine.autoscaling import Autoscale

    times = {"period": "period_s", "window": "window_s", "idle": "idle_s", "activation": "activation_s"}
    found = words(text, "--autoscale", (*SCALED, "rule", "initial", *times))
    metrics = [m for m in SCALED if m in found]
    if len(metrics) != 1:
        raise GambrelError(f"--autoscale needs one of {' or '.join(f'{m}=TARGET' for m in SCALED)}, got {text!r}")
    return Autoscale(
        real(found[metrics[0]], f"--autoscale {metrics[0]}"),
        metrics[0],
        found.get("rule", "hpa"),
        low,
        high,
        initial=int(real(found["initial"], "--autoscale initial")) if "initial" in found else None,
        **{name: seconds(found[key], f"--autoscale {key}") for key, name in times.items() if key in found},
    )


def start_seconds(
    deployment: Deployment, start_up: str | None, load_rate: float | None, engine_start: str | None, *, needed: bool
) -> float:
    """How long a replica takes to start.

    Raises:
        GambrelError: not said, or said twice.
    """
    if start_up is not None and (load_rate is not None or engine_start is not None):
        raise GambrelError("give --start-up, or --load-rate and --engine-start, not both")
    if start_up is not None:
        return seconds(start_up, "--start-up")
    if load_rate is not None and engine_start is not None:
        from gambrel.engine.fleet import cold_start_s

        weight_bytes = deployment.model.weight_bytes(deployment.weight_format)
        return cold_start_s(weight_bytes, load_rate * 1e9, seconds(engine_start, "--engine-start"))
    if needed or load_rate is not None or engine_start is not None:
        raise GambrelError(
            "how long does a replica take to start? --start-up 120s, or --load-rate GB/s with --engine-start 45s"
        )
    return 0.0


def broken(text: str | None) -> Failures:
    """The failures asked for.

    Raises:
        GambrelError: they cannot be read.
    """
    from gambrel.engine.fleet import Failures

    if text is None:
        return Failures()
    found = words(text, "--failures", ("mtbf", "seed", "at"))
    at = []
    for part in filter(None, found.get("at", "").split("+")):
        when, colon, number = part.partition(":")
        if not colon or not number.isdigit():
            raise GambrelError(f"--failures at must be TIME:REPLICA, several joined by +, like 3600:0, got {part!r}")
        at.append((seconds(when, "--failures at"), int(number)))
    mtbf = seconds(found["mtbf"], "--failures mtbf") if "mtbf" in found else None
    return Failures(mtbf, tuple(at), int(real(found.get("seed", "0"), "--failures seed")))


def series_of(text: str) -> RateSeries:
    """A file, ``day:mean=5,peak=1.8,hour=15,days=2`` or ``ramp:from=1,to=10,minutes=30``.

    Raises:
        GambrelError: it cannot be read.
    """
    from gambrel.traffic import day, ramp, read_rates

    kind, colon, rest = text.partition(":")
    if colon and kind == "day":
        found = words(rest, "--rate-series day", ("mean", "peak", "hour", "days"))
        values = {k: real(v, f"--rate-series day {k}") for k, v in found.items()}
        if "mean" not in values:
            raise GambrelError("--rate-series day needs mean, e.g. day:mean=5,peak=1.8")
        return day(
            values["mean"], values.get("peak", 1.8), peak_hour=values.get("hour", 15.0), days=int(values.get("days", 1))
        )
    if colon and kind == "ramp":
        found = words(rest, "--rate-series ramp", ("from", "to", "minutes"))
        if len(found) < 3:
            raise GambrelError("--rate-series ramp needs from, to and minutes, e.g. ramp:from=1,to=10,minutes=30")
        low, high, minutes = (real(found[k], f"--rate-series ramp {k}") for k in ("from", "to", "minutes"))
        return ramp(low, high, 60.0 * minutes)
    return read_rates(Path(text))
