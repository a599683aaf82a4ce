"""Service level objectives: limits on named percentiles, written the way people say them.

``ttft.p95<=1s``, ``tpot.p95<=50ms``, ``itl.p99<=0.2``, ``e2e.p99<=30s``. Where several kinds of
traffic share a fleet, ``code:ttft.p95<=0.5s`` is a limit for one of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
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
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "m": 60.0}
_PATTERN = re.compile(
    r"^\s*(?:(?P<kind>[a-z0-9_-]+)\s*:)?\s*(?P<metric>[a-z0-9]+)(?:[._](?P<stat>[a-z0-9]+))?\s*(?P<op><=|<|>=|>|=<|=>)\s*"
    r"(?P<value>[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(?P<unit>[a-z%]*)\s*$"
)


@dataclass(frozen=True, slots=True)
class Objective:
    """One limit: ``metric.statistic`` of a run must not exceed ``limit_s`` seconds.

    ``kind`` names the kind of traffic it is for; empty is all requests together.
    """

    metric: str
    statistic: str
    limit_s: float
    kind: str = ""

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Read ``ttft.p95<=1s``.

        Raises:
            SLOError: the text is not of that form; the message says what is.
        """
        example = "write it like ttft.p95<=1s, tpot.p95<=50ms or e2e.p99<=30s"
        match = _PATTERN.match(text.lower())
        if match is None:
            raise SLOError(f"cannot read the objective {text!r}; {example}")
        metric, stat = match["metric"], match["stat"] or "p95"
        if metric not in METRICS:
            raise SLOError(f"objective {text!r}: unknown metric {metric!r}, known: {', '.join(METRICS)}; {example}")
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

    @property
    def name(self) -> str:
        """``ttft.p95``, or ``code:ttft.p95`` for one kind of traffic."""
        kind = f"{self.kind}:" if self.kind else ""
        return f"{kind}{self.metric}.{self.statistic}"

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
        """The statistic in seconds; 0 where it is not defined (no answer longer than one token has no TPOT).

        Requests that a simulated client dropped before their first token (or their last, for E2E) took for ever.
        """
        if run.origin == "simulated" and self.metric in ("ttft", "e2e", "queue"):
            values = getattr(run, f"{self.metric}_s")[self.rows(run)]
            lost = int(np.count_nonzero(np.isnan(values)))
            if lost:
                return self._with_lost(np.sort(values[~np.isnan(values)]), lost)
        if self.kind:
            found = Distribution.of(getattr(run, f"{self.metric}_s")[self.rows(run)])
        else:
            found = run.distribution(self.metric)
        value = found.percentile(self.statistic)
        return 0.0 if np.isnan(value) else value

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
    """How one objective came out: ``reached_s`` against its limit."""

    objective: Objective
    reached_s: float

    @property
    def met(self) -> bool:
        """Whether the limit holds."""
        return self.reached_s <= self.objective.limit_s

    @property
    def margin(self) -> float:
        """1 - reached / limit: positive is room, negative is by how much it is missed."""
        return 1.0 - self.reached_s / self.objective.limit_s


@dataclass(frozen=True, slots=True)
class SLO:
    """All objectives of a service; every one must hold."""

    objectives: tuple[Objective, ...]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> SLO:
        """Read several objectives; commas separate them too.

        Raises:
            SLOError: one cannot be read, or there is none.
        """
        parts = [p for text in texts for p in text.split(",") if p.strip()]
        if not parts:
            raise SLOError("no objective given; write at least one, like ttft.p95<=1s")
        return cls(tuple(Objective.parse(p) for p in parts))

    def check(self, run: Run) -> tuple[Verdict, ...]:
        """Every objective against a run."""
        return tuple(Verdict(o, o.reached(run)) for o in self.objectives)

    def goodput(self, run: Run) -> float:
        """Share of requests whose own figures meet every limit jointly (ITL is judged by TPOT)."""
        good = np.isfinite(run.last_token_s)
        for objective in self.objectives:
            values = getattr(run, f"{'tpot' if objective.metric == 'itl' else objective.metric}_s")
            good = good & ~((values > objective.limit_s) & objective.rows(run))
        return float(good.mean())
