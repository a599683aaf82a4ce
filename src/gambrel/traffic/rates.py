"""Rates over time: what a day, a ramp or a measured fortnight does to the number of requests a second.

A :class:`RateSeries` is a rate in each of some windows, read from a CSV file or made here. Arrivals follow it exactly
in the mean: a renewal process is drawn in *operational time*, in which one request is expected a unit, and mapped
through the inverse of the cumulated rate. With exponential gaps that is the inhomogeneous Poisson process; with others
the gaps keep their coefficient of variation wherever the rate is steady (time rescaling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.core.workload import Workload
from gambrel.traffic.columns import Column
from gambrel.traffic.synthetic import MAX_REQUESTS, Lengths, gaps
from gambrel.traffic.table import inspect

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.core.step import Floats

__all__ = ["RateSeries", "day", "from_rates", "ramp", "read_rates"]

TIMES = (
    "window_start_s",
    "start_s",
    "time_s",
    "arrival_s",
    "timestamp_s",
    "timestamp",
    "time",
    "ts",
    "datetime",
    "date",
)
RATES = ("rate_rps", "rate", "rps", "qps", "requests_per_second", "req_per_s", "requests_per_s")
DAY_S = 86_400.0
_WINDOW_S = 600.0  # of a made-up day, as in the published series


@dataclass(frozen=True)
class RateSeries:
    """Requests a second, ``rate_rps`` float64[k], from ``start_s`` float64[k] (ascending, from 0) to ``end_s``."""

    start_s: Floats
    rate_rps: Floats
    end_s: float
    name: str = "rates"
    source: str = ""

    def __post_init__(self) -> None:
        name = self.source or self.name
        if len(self.start_s) == 0 or len(self.start_s) != len(self.rate_rps):
            raise WorkloadError(
                f"{name}: {len(self.start_s)} times and {len(self.rate_rps)} rates; one rate a time works"
            )
        if not (np.isfinite(self.start_s).all() and math.isfinite(self.end_s)) or not self.edges_s[0] == 0.0:
            raise WorkloadError(f"{name}: times must be finite and begin at 0")
        late = np.flatnonzero(np.diff(self.edges_s) <= 0)
        if len(late):
            raise WorkloadError(f"{name}: times must ascend; window {int(late[0]) + 1} ends when it begins or before")
        bad = np.flatnonzero(~(np.isfinite(self.rate_rps) & (self.rate_rps >= 0)))
        if len(bad):
            row = int(bad[0])
            raise WorkloadError(f"{name}: window {row + 1} has rate {self.rate_rps[row]:g}; at least 0 works")
        if not self.num_requests > 0:
            raise WorkloadError(f"{name}: no window has a rate above 0")

    @property
    def edges_s(self) -> Floats:
        """Where windows begin and the last one ends: float64[k + 1]."""
        return np.append(self.start_s, self.end_s)

    @property
    def num_requests(self) -> float:
        """Requests expected in all."""
        return float(np.dot(self.rate_rps, np.diff(self.edges_s)))

    @property
    def mean_rps(self) -> float:
        """Requests a second on average."""
        return self.num_requests / self.end_s

    @property
    def peak_rps(self) -> float:
        """The highest rate of a window."""
        return float(self.rate_rps.max())

    def scaled(self, factor: float) -> RateSeries:
        """The same curve, ``factor`` times as high.

        Raises:
            WorkloadError: a factor that is not above 0.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise WorkloadError(f"{self.name}: rate factor must be above 0, got {factor!r}")
        return replace(self, rate_rps=self.rate_rps * factor, source=f"{self.source}, x {factor:g}")

    def cut(self, start_s: float, stop_s: float) -> RateSeries:
        """The part from ``start_s`` to ``stop_s``; the clock restarts at its beginning.

        Raises:
            WorkloadError: nothing lies in between.
        """
        low, high = max(start_s, 0.0), min(stop_s, self.end_s)
        if not low < high:
            raise WorkloadError(f"{self.name}: nothing from {start_s:g} to {stop_s:g} s; it runs to {self.end_s:g} s")
        first = int(np.searchsorted(self.start_s, low, "right")) - 1
        last = int(np.searchsorted(self.start_s, high, "left"))
        starts = np.maximum(self.start_s[first:last], low) - low
        return replace(self, start_s=starts, rate_rps=self.rate_rps[first:last], end_s=high - low)

    def arrivals(self, rng: np.random.Generator, *, arrival: str = "poisson", cv: float = 1.0) -> Floats:
        """Arrival times in seconds, ascending: float64[n], n by chance. The arguments are those of ``synthesise``.

        Raises:
            WorkloadError: more requests than a workload holds, or an unknown process.
        """
        total = self.num_requests
        if total > MAX_REQUESTS:
            raise WorkloadError(
                f"{self.name}: {total:,.0f} requests; a workload holds {MAX_REQUESTS:,}, more are for a sharded fleet"
            )
        parts = []
        reached = 0.0
        while reached < total:
            left = total - reached
            drawn = gaps(rng, math.ceil(left + 4.0 * max(cv, 1.0) * math.sqrt(left) + 8), 1.0, arrival, cv, self.name)
            parts.append(reached + np.cumsum(drawn))
            reached = float(parts[-1][-1])
        return self.at(np.concatenate(parts))

    def at(self, operational: Floats) -> Floats:
        """Seconds at which so many requests are expected to have arrived, float64; those after the end are left out."""
        windows = np.diff(self.edges_s) * self.rate_rps
        some = windows > 0  # windows without requests take no operational time
        cumulated = np.append(0.0, np.cumsum(windows[some]))
        kept = operational[: np.searchsorted(operational, cumulated[-1])]
        starts, ends = self.start_s[some], self.edges_s[1:][some]
        place = np.minimum(np.searchsorted(cumulated, kept, "right") - 1, len(starts) - 1)
        if bool(some.all()):
            return np.interp(kept, cumulated, self.edges_s)
        share = (kept - cumulated[place]) / windows[some][place]
        return np.asarray(np.minimum(starts[place] + share * (ends - starts)[place], ends[place]), np.float64)


def read_rates(path: str | Path) -> RateSeries:
    """A rate series from a CSV or JSON file with a time and a rate (requests a second) a row; columns by their names.

    Times are window starts, in seconds or as dates; the last window is as long as the one before.

    Raises:
        WorkloadError: no such columns, or a cell that is no number, with its row.
    """
    log = inspect(path)
    time, rate = log.find(*TIMES), log.find(*RATES)
    if time is None or rate is None:
        have = ", ".join(repr(n[:30]) for n in log.names[:12]) or "none"
        missing = "times (window_start_s)" if time is None else "rates (rate_rps)"
        raise WorkloadError(f"{log.path}: no column of {missing}; found fields: {have}")
    table = log.read([Column(time, "time"), Column(rate, "number")])
    start = np.asarray(table.arrays[time], np.float64)
    start = start - start[0]
    rates = np.asarray(table.arrays[rate], np.float64)
    if len(start) < 2:
        raise WorkloadError(f"{log.path}: one row; a series needs two, for the length of a window")
    late = np.flatnonzero(np.diff(start) <= 0)
    if len(late):
        _, (cell,) = log.row(int(late[0]) + 1, (time,))
        raise table.refuse(time, int(late[0]) + 1, f"{str(cell)[:40]!r}", "a time after that of the row above works")
    if float(rates.min()) < 0:
        row = int(np.argmin(rates))
        raise table.refuse(rate, row, f"{rates[row]:g}", "a rate of at least 0 works")
    return RateSeries(
        start, rates, float(2 * start[-1] - start[-2]), name=log.path.name.partition(".")[0], source=str(path)
    )


def ramp(low_rps: float, high_rps: float, seconds: float, *, steps: int = 100) -> RateSeries:
    """From one rate to another in equal steps over ``seconds``.

    Raises:
        WorkloadError: a figure out of its range.
    """
    if not (math.isfinite(seconds) and seconds > 0 and steps >= 1):
        raise WorkloadError(f"a ramp takes above 0 seconds in at least 1 step, got {seconds!r} and {steps!r}")
    middle = (np.arange(steps) + 0.5) / steps
    return RateSeries(
        np.linspace(0.0, seconds, steps, endpoint=False, dtype=np.float64),
        low_rps + (high_rps - low_rps) * middle,
        seconds,
        name="ramp",
        source=f"ramp from {low_rps:g} to {high_rps:g}/s in {seconds:g} s",
    )


def day(mean_rps: float, peak_to_mean: float = 2.0, *, peak_hour: float = 15.0, days: int = 1) -> RateSeries:
    """Days whose rate is a cosine around its mean, highest at ``peak_hour``, in windows of ten minutes.

    Raises:
        WorkloadError: a figure out of its range; a cosine peaks at 1 to 2 times its mean.
    """
    if not 1.0 <= peak_to_mean <= 2.0:
        raise WorkloadError(
            f"the peak of a cosine is 1 to 2 times its mean, got {peak_to_mean!r}; a series can have more"
        )
    if not (math.isfinite(mean_rps) and mean_rps > 0 and days >= 1):
        raise WorkloadError(f"a day needs a mean rate above 0 and at least one day, got {mean_rps!r} and {days!r}")
    start = np.arange(int(days * DAY_S / _WINDOW_S), dtype=np.float64) * _WINDOW_S
    phase = 2.0 * np.pi * ((start + 0.5 * _WINDOW_S) / DAY_S - peak_hour / 24.0)
    return RateSeries(
        start,
        np.maximum(mean_rps * (1.0 + (peak_to_mean - 1.0) * np.cos(phase)), 0.0),
        days * DAY_S,
        name="day",
        source=f"cosine day: {mean_rps:g}/s on average, {peak_to_mean:g} times that at {peak_hour:g} h",
    )


def from_rates(
    rates: RateSeries, lengths: Lengths, seed: int = 0, *, arrival: str = "poisson", cv: float = 1.0, name: str = ""
) -> Workload:
    """Requests that arrive as ``rates`` say, with ``lengths`` of their own.

    Raises:
        WorkloadError: no request by chance, or more than a workload holds.
    """
    rng = np.random.default_rng(seed)
    times = rates.arrivals(rng, arrival=arrival, cv=cv)
    if len(times) == 0:
        raise WorkloadError(
            f"{rates.name}: no request arrives in {rates.end_s:g} s at {rates.mean_rps:g}/s (seed {seed})"
        )
    prompt, output = lengths.draw(rng, len(times))
    return Workload(
        times,
        prompt,
        output,
        name=name or rates.name,
        source=f"{rates.source or rates.name}; {lengths.source}, seed {seed}",
    )
