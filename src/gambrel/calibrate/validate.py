"""Predicted against measured: the error table, by engine, accelerator and metric, with intervals and their coverage."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gambrel.calibrate.predict import Predictor, Skip
from gambrel.calibrate.table import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gambrel.calibrate.predict import Prediction
    from gambrel.calibrate.table import Row

__all__ = ["Comparison", "Errors", "Validation", "errors_of", "validate"]

Z80: Final = 1.2815515655446004
"""Standard deviations either side of the middle that hold 80 % of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of one row: seconds or tokens per second, with the stated 80 % interval."""

    row: Row
    metric: str
    measured: float
    predicted: float
    low: float
    high: float
    prediction: Prediction

    @property
    def log_error(self) -> float:
        """``ln(predicted / measured)``: what fits and intervals are made of."""
        return math.log(self.predicted / self.measured)

    @property
    def covered(self) -> bool:
        """Whether the measurement lies within the stated interval."""
        return self.low <= self.measured <= self.high


@dataclass(frozen=True, slots=True)
class Errors:
    """The errors of some comparisons: fractions (0.1 = 10 %); ``bias`` is the median signed error."""

    n: int
    median_ape: float
    p90_ape: float
    bias: float
    coverage: float

    def cells(self) -> list[str]:
        """As a row of the printed table and of the page has them."""
        return [str(self.n), *(f"{e:.0%}" for e in (self.median_ape, self.p90_ape)), f"{self.bias:+.0%}",
                f"{self.coverage:.0%}"]  # fmt: skip


def errors_of(comparisons: Sequence[Comparison]) -> Errors:
    """Median, 90th percentile, bias and the share of measurements within their interval."""
    if not comparisons:
        return Errors(0, math.nan, math.nan, math.nan, math.nan)
    signed = np.array([c.predicted / c.measured - 1.0 for c in comparisons])
    size = np.abs(signed)
    return Errors(
        len(comparisons), float(np.median(size)), float(np.percentile(size, 90)), float(np.median(signed)),
        float(np.mean([c.covered for c in comparisons])),
    )  # fmt: skip


@dataclass(frozen=True)
class Validation:
    """Every comparison that could be made and, by reason, how many rows could not."""

    comparisons: tuple[Comparison, ...]
    skipped: Counter[str]
    spreads_basis: str = ""

    def by(self, key: Callable[[Comparison], tuple[str, ...]]) -> dict[tuple[str, ...], Errors]:
        """Errors of groups, in the order of the group names."""
        groups: defaultdict[tuple[str, ...], list[Comparison]] = defaultdict(list)
        for comparison in self.comparisons:
            groups[key(comparison)].append(comparison)
        return {k: errors_of(groups[k]) for k in sorted(groups)}

    def document(self) -> dict[str, Any]:
        """The machine-readable answer of ``gambrel validate``: rows, summary, skipped; SI units, fractions."""
        rows = [
            {"id": c.row.id, "metric": c.metric, "measured": c.measured, "predicted": c.predicted,
             "low": c.low, "high": c.high}
            for c in self.comparisons
        ]  # fmt: skip
        summary = [
            {"engine": engine, "gpu": gpu, "metric": metric, "n": e.n, "median_ape": e.median_ape,
             "p90_ape": e.p90_ape, "bias": e.bias, "coverage": e.coverage}
            for (engine, gpu, metric), e in self.by(lambda c: (c.row.engine, c.row.gpu, c.metric)).items()
        ]  # fmt: skip
        overall = {metric: _fractions(e) for (metric,), e in self.by(lambda c: (c.metric,)).items()}
        return {"rows": rows, "summary": summary, "overall": overall, "skipped": dict(self.skipped)}


def _fractions(errors: Errors) -> dict[str, float]:
    return {
        "n": errors.n, "median_ape": errors.median_ape, "p90_ape": errors.p90_ape, "bias": errors.bias,
        "coverage": errors.coverage,
    }  # fmt: skip


def validate(
    rows: Iterable[Row],
    predictor: Predictor,
    spread: Callable[[Prediction, str], float],
    progress: Callable[[int], None] = lambda _: None,
) -> Validation:
    """Predict every row and compare.

    Args:
        rows: of a table.
        predictor: rows to predictions.
        spread: one-sigma log error of a prediction's metric, for the 80 % interval.
        progress: told how many rows are done.
    """
    comparisons: list[Comparison] = []
    skipped: Counter[str] = Counter()
    for done, row in enumerate(rows, 1):
        try:
            prediction = predictor(row)
        except Skip as reason:
            skipped[str(reason)] += 1
        else:
            comparisons += _compare(row, prediction, spread)
        progress(done)
    return Validation(tuple(comparisons), skipped)


def _compare(row: Row, prediction: Prediction, spread: Callable[[Prediction, str], float]) -> list[Comparison]:
    found = []
    for metric in METRICS:
        figure, predicted = row.measured.get(metric), prediction.figures.get(metric, math.nan)
        if figure is None or not (math.isfinite(predicted) and predicted > 0.0):
            continue
        wide = math.exp(Z80 * spread(prediction, metric))
        found.append(Comparison(row, metric, figure.value, predicted, predicted / wide, predicted * wide, prediction))
    return found
