"""Two runs side by side: is B different from A, by how much, and could that be chance?

Any two of: what our client measured, what a twin did, what another tool reports, what a simulation printed. Latencies
of one run hang together (a queue makes neighbours slow alike), so intervals come from resampling *blocks* of
consecutive requests, not single ones; throughput's from batch means. A verdict needs the interval, not the point:
``same`` only where all of it lies within the tolerance, ``higher`` or ``lower`` only where none of it touches 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gambrel.core.errors import WorkloadError

if TYPE_CHECKING:
    from gambrel.core.run import Histogram, Run
    from gambrel.core.step import Floats
    from gambrel.measure.sides import Side

__all__ = ["Comparison", "Estimate", "Verdict", "compare"]

TOLERANCE: Final = 0.05
RESAMPLES: Final = 1000
FEWEST: Final = 20  # requests without which a percentile's interval means nothing
STATISTICS: Final = ("mean", "p50", "p90", "p95", "p99")
_SEEN: Final = 2_000_000  # values resampled at a time


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; NaN where the data do not give one."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure of both sides.

    ``ratio`` is B over A. ``verdict``: ``same`` (within the tolerance), ``higher``, ``lower`` (B against A),
    ``unclear`` (the interval holds both), ``too few`` requests, or ``no interval`` (aggregates only).
    """

    metric: str
    statistic: str
    unit: str
    a: Estimate
    b: Estimate
    ratio: Estimate
    verdict: str

    @property
    def name(self) -> str:
        """``ttft.p95``."""
        return f"{self.metric}.{self.statistic}" if self.statistic else self.metric


@dataclass(frozen=True)
class Comparison:
    """Everything that both sides know."""

    a: Side
    b: Side
    tolerance: float
    metrics: tuple[Verdict, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document: ``metrics`` {name: {a, b, ratio (each value, low, high), unit, verdict}}."""

        def number(x: float) -> float | None:
            return float(x) if np.isfinite(x) else None

        def estimate(e: Estimate) -> dict[str, float | None]:
            return {"value": number(e.value), "low": number(e.low), "high": number(e.high)}

        return {
            "a": self.a.name,
            "b": self.b.name,
            "tolerance": self.tolerance,
            "metrics": {
                v.name: {
                    "a": estimate(v.a), "b": estimate(v.b), "ratio": estimate(v.ratio), "unit": v.unit,
                    "verdict": v.verdict,
                }
                for v in self.metrics
            },
            "warnings": [f"a: {w}" for w in self.a.warnings] + [f"b: {w}" for w in self.b.warnings],
        }  # fmt: skip


def compare(a: Side, b: Side, *, tolerance: float = TOLERANCE, seed: int = 0) -> Comparison:
    """Compare every metric that both sides have.

    Raises:
        WorkloadError: they have none in common, or the tolerance is not above 0.
    """
    if not 0.0 < tolerance < 1.0:
        raise WorkloadError(f"the tolerance must lie between 0 and 1, e.g. 0.05, got {tolerance!r}")
    rng = np.random.default_rng(seed)
    found: list[Verdict] = []
    for metric in ("ttft", "tpot", "itl", "e2e"):
        found += _latency(metric, a, b, tolerance, rng)
    found += _throughput(a, b, tolerance)
    if not found:
        raise WorkloadError(f"{a.name} and {b.name} have no metric in common")
    return Comparison(a, b, tolerance, tuple(found))


def _latency(metric: str, a: Side, b: Side, tolerance: float, rng: np.random.Generator) -> list[Verdict]:
    if a.run is not None and b.run is not None:
        if metric == "itl":
            return _gaps(a.run, b.run, tolerance)
        left, right, paired = _values(a.run, b.run, metric)
        if len(left) == 0 or len(right) == 0:
            return []
        seeds = rng.integers(0, 2**63, 2)
        drawn = [
            _resample(v, np.random.default_rng(s))
            for v, s in zip((left, right), seeds[[0, 0]] if paired else seeds, strict=True)
        ]
        points = [_statistics(v[None, :])[:, 0] for v in (left, right)]
        few = min(len(left), len(right)) < FEWEST
        return [
            _judge(metric, s, "s", (points[0][i], drawn[0][i]), (points[1][i], drawn[1][i]), tolerance, few=few)
            for i, s in enumerate(STATISTICS)
        ]
    found = []
    for statistic in STATISTICS:
        x, y = (_reported(side, metric, statistic) for side in (a, b))
        if x is not None and y is not None:
            found.append(
                Verdict(metric, statistic, "s", Estimate(x), Estimate(y), Estimate(_over(y, x)), "no interval")
            )
    return found


def _values(a: Run, b: Run, metric: str) -> tuple[Floats, Floats, bool]:
    """The figure of each request on both sides, and whether the requests are the same ones in the same order.

    Two replays of one workload are: then blocks are drawn alike, and what only chance in the workload made differs no
    longer widens the interval of the ratio.
    """
    left: Floats = getattr(a, f"{metric}_s")
    right: Floats = getattr(b, f"{metric}_s")
    if np.array_equal(a.prompt_tokens, b.prompt_tokens) and np.array_equal(a.output_tokens, b.output_tokens):
        both = np.isfinite(left) & np.isfinite(right)
        lengths = a.prompt_tokens[both] * 2**20 + a.output_tokens[both]
        if len(np.unique(lengths)) > len(lengths) // 4:  # else equal lengths prove nothing
            return left[both], right[both], True
    return left[np.isfinite(left)], right[np.isfinite(right)], False


def _reported(side: Side, metric: str, statistic: str) -> float | None:
    if side.run is not None:
        value = side.run.distribution(metric).percentile(statistic)
        return value if np.isfinite(value) else None
    return side.reported.get(metric, {}).get(statistic)


def _statistics(values: Floats) -> Floats:
    """float64[statistic, row] of float64[row, value]."""
    points = np.percentile(values, [50, 90, 95, 99], axis=1)
    return np.vstack([values.mean(axis=1), points])


def _resample(values: Floats, rng: np.random.Generator) -> Floats:
    """float64[statistic, resample] by circular blocks."""
    n = len(values)
    length = _block(values)
    blocks = -(-n // length)
    at_once = max(1, _SEEN // n)
    total = RESAMPLES if n <= 5000 else RESAMPLES // 4
    parts = []
    for begin in range(0, total, at_once):
        rows = min(at_once, total - begin)
        starts = rng.integers(0, n, (rows, blocks))
        index = (starts[:, :, None] + np.arange(length)).reshape(rows, -1)[:, :n] % n
        parts.append(_statistics(values[index]))
    draws = np.concatenate(parts, axis=1)
    centre = np.median(draws, axis=1, keepdims=True)
    wide = centre + (draws - centre) * _widening(n / length)
    return np.maximum(wide, float(values.min()))  # no figure of a run is below all of its requests


def _widening(blocks: float) -> float:
    """How much too narrow the spread of resampled blocks is when there are few of them.

    Student's t over the normal (Cornish and Fisher's series at 97.5 %), and the variance lost within few blocks.
    """
    z, v = 1.96, max(blocks - 1.0, 1.0)
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v * v)
    return float(t / z * np.sqrt((v + 1) / v) / np.sqrt(max(1.0 - 1.0 / blocks, 0.5)))


def _block(values: Floats) -> int:
    """Length of a block: the cube root of n, times what neighbours' correlation asks for (Politis and White, 2004).

    For a first-order autoregression with coefficient r the best length is (2 r / (1 - r^2)) ** (2/3) n ** (1/3).
    """
    n = len(values)
    ranks = np.argsort(np.argsort(values)).astype(np.float64)
    spread = float(ranks.std())
    r = float(np.corrcoef(ranks[:-1], ranks[1:])[0, 1]) if n > 3 and spread > 0 else 0.0
    r = min(max(r if np.isfinite(r) else 0.0, 0.0), 0.95)
    factor = max(1.0, 2.0 * (2.0 * r / (1.0 - r * r)) ** (2.0 / 3.0))
    return int(min(max(round(factor * n ** (1 / 3)), 1), max(n // 4, 1)))


def _judge(
    metric: str,
    statistic: str,
    unit: str,
    a: tuple[float, Floats],
    b: tuple[float, Floats],
    tolerance: float,
    *,
    few: bool = False,
) -> Verdict:
    with np.errstate(divide="ignore", invalid="ignore"):
        m = min(len(a[1]), len(b[1]))
        ratios = b[1][:m] / a[1][:m]
    ratio = Estimate(_over(b[0], a[0]), *_interval(ratios))
    return Verdict(
        metric, statistic, unit, Estimate(a[0], *_interval(a[1])), Estimate(b[0], *_interval(b[1])), ratio,
        "too few" if few else _word(ratio, tolerance),
    )  # fmt: skip


def _interval(values: Floats) -> tuple[float, float]:
    good = values[np.isfinite(values)]
    if len(good) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(good, [2.5, 97.5])
    return float(low), float(high)


def _word(ratio: Estimate, tolerance: float) -> str:
    if not np.isfinite(ratio.low):
        return "no interval"
    if ratio.low >= 1.0 - tolerance and ratio.high <= 1.0 + tolerance:
        return "same"
    if ratio.low > 1.0:
        return "higher"
    return "lower" if ratio.high < 1.0 else "unclear"


def _over(b: float, a: float) -> float:
    return b / a if a else float("nan")


def _gaps(a: Run, b: Run, tolerance: float) -> list[Verdict]:
    """ITL: pooled gaps; a percentile's interval from its rank, as if each request gave one independent gap."""
    sides = [(r.itl, int(np.isfinite(r.last_token_s).sum())) for r in (a, b)]
    if any(int(h.counts.sum()) == 0 for h, _ in sides):
        return []
    found = []
    for statistic, share in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        x, y = (_rank(h, share, n) for h, n in sides)
        ratio = Estimate(_over(y.value, x.value), _over(y.low, x.high), _over(y.high, x.low))
        few = min(n for _, n in sides) < FEWEST
        found.append(Verdict("itl", statistic, "s", x, y, ratio, "too few" if few else _word(ratio, tolerance)))
    return found


def _rank(histogram: Histogram, share: float, n: int) -> Estimate:
    spread = 1.96 * float(np.sqrt(share * (1.0 - share) / max(n, 1)))
    total = np.cumsum(histogram.counts) / histogram.counts.sum()
    middles = np.sqrt(np.maximum(histogram.edges[:-1], 1e-12) * np.maximum(histogram.edges[1:], 1e-12))

    def at(p: float) -> float:
        return float(middles[min(int(np.searchsorted(total, p)), len(middles) - 1)])

    distribution = histogram.distribution()
    value = distribution.percentile({0.5: "p50", 0.9: "p90", 0.95: "p95", 0.99: "p99"}[share])
    return Estimate(value, min(at(share - spread), value), max(at(min(share + spread, 1.0)), value))


def _throughput(a: Side, b: Side, tolerance: float) -> list[Verdict]:
    found = []
    for name in ("output_tokens_per_s", "request_rate"):
        left, right = _rate(a, name, 0), _rate(b, name, 1)
        if left is None or right is None:
            continue
        if len(left[1]) and len(right[1]):
            found.append(_judge(name, "", "1/s", left, right, tolerance))
        else:
            ratio = Estimate(_over(right[0], left[0]))
            found.append(Verdict(name, "", "1/s", Estimate(left[0]), Estimate(right[0]), ratio, "no interval"))
    return found


def _rate(side: Side, name: str, seed: int) -> tuple[float, Floats] | None:
    """The rate over the makespan, and draws of it from the means of ten batches in time; ``seed``: of the side."""
    run = side.run
    if run is None:
        value = side.rates.get(name)
        return None if value is None else (value, np.empty(0))
    good = np.isfinite(run.last_token_s)
    if not good.any() or run.makespan_s <= 0:
        return None
    weights = run.output_tokens[good].astype(float) if name == "output_tokens_per_s" else np.ones(int(good.sum()))
    value = float(weights.sum()) / run.makespan_s
    batches = 10
    if int(good.sum()) < 2 * batches:
        return value, np.empty(0)
    ends = np.sort(run.last_token_s[good])
    order = np.argsort(run.last_token_s[good], kind="stable")
    edges = np.linspace(ends[0], ends[-1], batches + 1)
    sums, _ = np.histogram(ends, edges, weights=weights[order])
    means = sums / np.diff(edges)
    error = float(means.std(ddof=1)) / np.sqrt(batches)
    draws = np.random.default_rng((seed, len(ends))).normal(0.0, error / value, RESAMPLES)
    return value, value * np.exp(draws)  # of the logarithm: a rate is above 0, however far its batches are apart
