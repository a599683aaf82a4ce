"""Named workloads whose lengths are those of published traces, for the question asked before there is a log.

``chat:rate=5`` is a sentence: the profile, then what to change. The figures, with the trace and the date they were
taken from, are in ``data/profiles.toml``; ``scripts/trace_quantiles.py`` takes them from a trace again.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from gambrel.core.errors import UnknownName, WorkloadError
from gambrel.traffic.synthetic import ARRIVALS, Lengths, Quantiles, synthesise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.core.workload import Workload

__all__ = ["Profile", "profile", "profiles"]

DEFAULT_REQUESTS = 2000
KEYS = ("rate", "n", "minutes", "seed", "cv", "arrival", "correlation")


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """One table of the data file."""

    title: str
    prompt: dict[str, float]
    output: dict[str, float]
    correlation: float
    cv: float
    requests: int
    source: str
    licence: str
    as_of: str
    note: str = ""


@dataclass(frozen=True)
class Profile:
    """Lengths, their rank correlation and burstiness, and the trace that they were taken from (``requests`` rows)."""

    name: str
    title: str
    prompt: Quantiles
    output: Quantiles
    correlation: float
    cv: float
    requests: int
    source: str
    as_of: str
    note: str

    @property
    def lengths(self) -> Lengths:
        """The lengths alone, for arrivals of another kind."""
        return Lengths(self.prompt, self.output, self.correlation, f"lengths of profile {self.name}")


@cache
def profiles() -> Mapping[str, Profile]:
    """All profiles by name."""
    text = files("gambrel.traffic").joinpath("data", "profiles.toml").read_text(encoding="utf-8")
    entries = msgspec.convert(tomllib.loads(text), dict[str, _Entry])

    def quantiles(points: dict[str, float]) -> Quantiles:
        return Quantiles.of({float(p.removeprefix("p")) / 100.0: t for p, t in points.items()})

    return {
        name: Profile(
            name,
            e.title,
            quantiles(e.prompt),
            quantiles(e.output),
            e.correlation,
            e.cv,
            e.requests,
            e.source,
            e.as_of,
            e.note,
        )
        for name, e in entries.items()
    }


def profile(spec: str) -> Workload:
    """The workload of a sentence such as ``chat``, ``chat:rate=5`` or ``code:rate=20,minutes=30,seed=1,cv=2``.

    Keys: ``rate`` requests a second (1); ``n`` requests (2,000) or ``minutes``; ``seed`` (0); ``cv`` of the gaps
    (the profile's own); ``arrival`` poisson, gamma, weibull or constant; ``correlation``.

    Raises:
        WorkloadError: an unknown profile or key (nearest named), or a value out of its range.
    """
    if not spec.isprintable():
        raise WorkloadError(f"{spec!a}: not a profile; chat:rate=5 works")
    name, _, rest = spec.partition(":")
    name = name.strip()
    if name not in profiles():
        raise WorkloadError(f"{UnknownName('profile', name, profiles())}; profiles: {', '.join(profiles())}")
    chosen = profiles()[name]
    options = _options(spec, rest)
    rate = options.get("rate", 1.0)
    if "n" in options and "minutes" in options:
        raise WorkloadError(f"{spec}: n and minutes both say how many requests; give one")
    n = options.get("n", DEFAULT_REQUESTS)
    if "minutes" in options:
        n = max(1, round(min(options["minutes"] * 60.0 * rate, 1e12)))
    cv = options.get("cv", chosen.cv)
    arrival = options.get("arrival", "poisson" if cv == 1.0 else "gamma")
    return synthesise(
        n,
        rate,
        chosen.prompt,
        chosen.output,
        options.get("seed", 0),
        arrival=arrival,
        cv=cv,
        correlation=options.get("correlation", chosen.correlation),
        name=name,
        source=f"profile {name}: lengths of {chosen.source}; {rate:g}/s, cv {cv:g}, seed {options.get('seed', 0)}",
    )


def _options(spec: str, rest: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = (x.strip() for x in part.partition("="))
        if key not in KEYS:
            raise WorkloadError(f"{spec}: {UnknownName('key', key, KEYS)}; keys: {', '.join(KEYS)}")
        kind: type = {"n": int, "seed": int, "arrival": str}.get(key, float)
        try:
            found[key] = kind(value)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise WorkloadError(f"{spec}: {key} must be {wanted}, got {value!r}") from None
        if not equals or (key == "arrival" and value not in ARRIVALS):
            raise WorkloadError(f"{spec}: {key} must be one of {', '.join(ARRIVALS)}" if equals else f"{spec}: {key}=?")
        if key == "minutes" and not 0 < found[key] < 1e7:
            raise WorkloadError(f"{spec}: minutes must be above 0, got {value}")
        if key == "seed" and found[key] < 0:
            raise WorkloadError(f"{spec}: seed must be at least 0, got {value}")
    return found
