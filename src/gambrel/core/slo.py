"""Service level objectives: limits on named percentiles and a floor of goodput, written the way people say them.

``ttft.p95<=1s``, ``tpot.p95<=50ms``, ``itl.p99<=0.2``, ``e2e.p99<=30s``. ``goodput>=95%`` is the least share of
requests that must meet the limits of all the others at once, each request by its own figures. Where several kinds of
traffic share a fleet, ``code:ttft.p95<=0.5s`` is a limit for one of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import SLOError
from gambrel.core.run import Distribution

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from gambrel.core.run import Run
    from gambrel.core.step import Floats

__all__ = ["SLO", "Objective", "Verdict"]

METRICS = ("ttft", "tpot", "itl", "e2e", "queue")
GOODPUT = "goodput"
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "m": 60.0}
_PATTERN = re.compile(
    r"^\s*(?:(?P<kind>[a-z0-9_-]+)\s*:)?\s*(?P<metric>[a-z0-9]+)(?:[._](?P<stat>[a-z0-9]+))?\s*(?P<op><=|<|>=|>|=<|=>)\s*"
    r"(?P<value>[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(?P<unit>[a-z%]*)\s*$"
)


@dataclass(frozen=True, slots=True)
class Objective:
    """One limit: ``metric.statistic`` of a run must not exceed ``limit`` seconds.

    Where ``metric`` is goodput there is no statistic, and ``limit`` is the least share of requests. ``kind`` names the
    kind of traffic it is for; empty is all requests together.
    """

    metric: str
    statistic: str
    limit: float
    kind: str = ""

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Read ``ttft.p95<=1s`` or ``goodput>=95%``.

        Raises:
            SLOError: the text is not of that form; the message says what is.
        """
        example = "write it like ttft.p95<=1s, tpot.p95<=50ms or e2e.p99<=30s"
        match = _PATTERN.match(text.lower())
        if match is None:
            raise SLOError(f"cannot read the objective {text!r}; {example}")
        if match["metric"] == GOODPUT:
            return cls._parse_goodput(text, match)
        metric, stat = match["metric"], match["stat"] or "p95"
        if metric not in METRICS:
            known = ", ".join((*METRICS, GOODPUT))
            raise SLOError(f"objective {text!r}: unknown metric {metric!r}, known: {known}; {example}")
        if stat not in STATISTICS:
            raise SLOError(f"objective {text!r}: unknown statistic {stat!r}, known: {', '.join(STATISTICS)}")
        if ">" in match["op"]:
            raise SLOError(f"objective {text!r}: latencies are limited from above; {example}")
        if match["unit"] not in _UNITS:
            raise SLOError(f"objective {text!r}: unknown unit {match['unit']!r}, known: s, ms, us, min")
        limit = float(match["value"]) * _UNITS[match["unit"]]
        if not 0 < limit < float("inf"):
            raise SLOError(f"objective {text!r}: the limit must be above 0")
        kind = match["kind"] or ""
        if kind and metric == "itl":
            raise SLOError(
                f"objective {text!r}: gaps between tokens are pooled over all kinds; limit {kind}:tpot instead"
            )
        return cls(metric, stat, limit, kind)

    @classmethod
    def _parse_goodput(cls, text: str, match: re.Match[str]) -> Objective:
        example = "write it like goodput>=95% or goodput>=0.95"
        if match["stat"]:
            raise SLOError(f"objective {text!r}: goodput is a share of requests and has no {match['stat']}; {example}")
        if ">" not in match["op"]:
            raise SLOError(f"objective {text!r}: goodput is limited from below; {example}")
        if match["unit"] not in {"", "%"}:
            raise SLOError(f"objective {text!r}: goodput is a share of requests, not {match['unit']!r}; {example}")
        floor = float(match["value"]) / (100.0 if match["unit"] else 1.0)
        if not 0 < floor <= 1:
            raise SLOError(f"objective {text!r}: a share of requests is above 0 and at most 1 (100%); {example}")
        return cls(GOODPUT, "", floor, match["kind"] or "")

    def __str__(self) -> str:
        return f"{self.name}>={self.limit!r}" if self.is_floor else f"{self.name}<={self.limit!r}s"

    @property
    def is_floor(self) -> bool:
        """Whether it is the least share of good requests, and not the most seconds."""
        return self.metric == GOODPUT

    @property
    def name(self) -> str:
        """``ttft.p95`` or ``goodput``; ``code:ttft.p95`` for one kind of traffic."""
        kind = f"{self.kind}:" if self.kind else ""
        return f"{kind}{self.metric}.{self.statistic}" if self.statistic else f"{kind}{self.metric}"

    def looser(self, times: float) -> Objective:
        """The same with room for what now takes ``times`` of what is allowed: see :attr:`Verdict.used`."""
        if not self.is_floor:
            return replace(self, limit=self.limit * times)
        return replace(self, limit=max(0.0, self.limit - (times - 1.0) * ((1.0 - self.limit) or 1.0)))

    def exceeded(self, run: Run) -> npt.NDArray[np.bool_]:
        """Which requests are over a limit by their own figure (ITL is judged by TPOT): bool[n]."""
        values = getattr(run, f"{'tpot' if self.metric == 'itl' else self.metric}_s")
        return np.asarray((values > self.limit) & self.rows(run))

    def rows(self, run: Run) -> npt.NDArray[np.bool_]:
        """The requests that it is about: bool[n].

        Raises:
            SLOError: the run does not know the kind of traffic.
        """
        if not self.kind:
            return np.ones(len(run), np.bool_)
        try:
            return run.of_kind(self.kind)
        except KeyError:
            known = ", ".join(run.kinds) or "one kind only"
            raise SLOError(f"{self.name}: the traffic has no kind {self.kind!r}; it has {known}") from None

    def reached(self, run: Run) -> float:
        """The statistic in seconds; infinite where no request that should have the figure has it.

        Answers of one token have no TPOT: where there are no others it is 0. Requests that a simulated client dropped
        took for ever, whenever their first token came; where all were dropped nothing else counts either.
        """
        rows, answered = self.rows(run), np.isfinite(run.last_token_s)
        if run.origin == "simulated":
            lost = int(np.count_nonzero(rows & ~answered))
            if lost and (self.metric in ("ttft", "e2e", "queue") or not (rows & answered).any()):
                values = getattr(run, f"{'tpot' if self.metric == 'itl' else self.metric}_s")[rows & answered]
                return self._with_lost(np.sort(values), lost)
        found = Distribution.of(getattr(run, f"{self.metric}_s")[rows]) if self.kind else run.distribution(self.metric)
        value = found.percentile(self.statistic)
        if not np.isnan(value):
            return value
        should = rows & (run.output_tokens > 1) if self.metric in ("tpot", "itl") else rows
        return float("inf") if should.any() else 0.0

    def _with_lost(self, values: Floats, lost: int) -> float:
        """The statistic of ascending ``values`` and ``lost`` infinite ones."""
        if self.statistic in ("mean", "max"):
            return float("inf")
        place = float(self.statistic[1:]) / 100.0 * (len(values) + lost - 1)
        if np.ceil(place) >= len(values):
            return float("inf")
        return float(np.interp(place, np.arange(len(values)), values))


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one objective came out: ``reached``, in seconds or as a share of requests, against its limit."""

    objective: Objective
    reached: float

    @property
    def met(self) -> bool:
        """Whether the limit holds."""
        limit = self.objective.limit
        return self.reached >= limit if self.objective.is_floor else self.reached <= limit

    @property
    def used(self) -> float:
        """Reached / limit, or bad requests / those that a floor of goodput allows: above 1 the objective is missed.

        Where a floor allows no bad request at all, 1 and the share of them.
        """
        limit = self.objective.limit
        if not self.objective.is_floor:
            return self.reached / limit
        return 1.0 + (limit - self.reached) / ((1.0 - limit) or 1.0)

    @property
    def margin(self) -> float:
        """1 - used: positive is room, negative is by how much it is missed."""
        return 1.0 - self.used


@dataclass(frozen=True, slots=True)
class SLO:
    """All objectives of a service; every one must hold."""

    objectives: tuple[Objective, ...]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> SLO:
        """Read several objectives; commas separate them too.

        Raises:
            SLOError: one cannot be read, there is none, or goodput has no limit to be judged by.
        """
        parts = [p for text in texts for p in text.split(",") if p.strip()]
        if not parts:
            raise SLOError("no objective given; write at least one, like ttft.p95<=1s")
        found = cls(tuple(Objective.parse(p) for p in parts))
        for floor in found.floors:
            if not any(o.kind in {"", floor.kind} or not floor.kind for o in found.limits):
                raise SLOError(f"{floor.name}: requests are good by the other limits; add one, like ttft.p95<=1s")
        return found

    @property
    def limits(self) -> tuple[Objective, ...]:
        """The objectives on times."""
        return tuple(o for o in self.objectives if not o.is_floor)

    @property
    def floors(self) -> tuple[Objective, ...]:
        """The objectives on goodput."""
        return tuple(o for o in self.objectives if o.is_floor)

    def check(self, run: Run) -> tuple[Verdict, ...]:
        """Every objective against a run."""
        return tuple(
            Verdict(o, float(self.good(run)[o.rows(run)].mean()) if o.is_floor else o.reached(run))
            for o in self.objectives
        )

    def good(self, run: Run) -> npt.NDArray[np.bool_]:
        """The requests that were answered and whose own figures meet every limit at once: bool[n]."""
        good = np.isfinite(run.last_token_s)
        for objective in self.limits:
            good &= ~objective.exceeded(run)
        return good

    def goodput(self, run: Run) -> float:
        """Share of requests that are good."""
        return float(self.good(run).mean())
