"""Fit the cost model's constants to measured operating points, and say what they could not tell.

Least squares on log error, so that a relative error counts alike at 5 ms and 5 s, within bounds and with a prior at the
shipped defaults: few points move few constants. Every point goes through the simulator as it was driven. Intervals are
the wider of the linearised fit's and of a bootstrap over points; errors on points left out are those of a fit that
never saw them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gambrel.calibrate.constants import BOUND, TIMES, applicable, moved, prior_sigma
from gambrel.calibrate.evidence import require_server_bound
from gambrel.calibrate.predict import simulated
from gambrel.catalog.efficiency import is_measured
from gambrel.core.errors import WorkloadError
from gambrel.cost import Roofline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gambrel.calibrate.evidence import Point
    from gambrel.core.deployment import Deployment
    from gambrel.core.efficiency import Efficiency
    from gambrel.core.step import Floats

__all__ = ["Calibration", "Parameter", "calibrate", "calibration_document", "error_document", "log_errors"]

_NOISE: Final = {"tpot": 0.02, "e2e": 0.03, "output_tok_s": 0.03, "ttft": 0.08}
"""One-sigma repeatability of each metric's log: what a fit weighs them by. Scaled up where residuals are larger."""

_STEP: Final = 0.02  # of a logarithm, for differences through the simulator
_Z95: Final = 1.96
_BOOTSTRAPS: Final = 400
_ROBUST: Final = 3.0  # widths of the noise from which an error counts by its size, not by its square
_MISFIT: Final = 1.5  # residuals over repeatability from which the fit is made again with what they say
# Of request_s's logarithm: tried on a solution.
_SHIFTS: Final = (-2.0, -1.2, -0.7, -0.4, -0.2, -0.1, 0.1, 0.2, 0.4, 0.7, 1.2, 2.0)
_SCANS: Final = 3
_WORTH: Final = 0.95  # of what the solution costs: less gained is no other fold
_TOLD: Final = 0.6  # of the prior's width: what is left of it where measurements decided a constant
_ALIKE: Final = 0.9  # correlation from which two constants cannot be told apart


@dataclass(frozen=True, slots=True)
class Parameter:
    """A fitted constant as a multiple of its default, with its 95 % interval.

    ``told`` is whether the measurements decided it: False means the prior did. ``default`` is what it multiplies:
    seconds for host times, 1 for factors on what kernels reach.
    """

    name: str
    value: float
    low: float
    high: float
    told: bool
    default: float = 1.0


@dataclass(frozen=True)
class Calibration:
    """What a fit found.

    Attributes:
        parameters: in the order of :data:`gambrel.calibrate.constants.CONSTANTS`.
        points: what it was fitted to.
        default_errors, in_sample, held_out: log errors (predicted over measured) by metric, in the order of points:
            with shipped constants, fitted, and with the constants fitted without the point (or without its fold).
        alike: pairs of constants that these points cannot tell apart.
        covariance: of the logarithms of the parameters.
        noise_scale: residuals over what repeatability explains; above 1 the model, not chance, is off.
    """

    parameters: tuple[Parameter, ...]
    points: tuple[Point, ...]
    default_errors: Mapping[str, Floats]
    in_sample: Mapping[str, Floats]
    held_out: Mapping[str, Floats]
    alike: tuple[tuple[str, str, float], ...]
    covariance: Floats
    noise_scale: float
    base: Callable[[Deployment], Efficiency] = field(repr=False)

    @property
    def multiples(self) -> dict[str, float]:
        """The fitted constants as multiples of their defaults."""
        return {p.name: p.value for p in self.parameters}

    @property
    def identifiable(self) -> dict[str, bool]:
        """By constant: whether the measurements decided it."""
        return {p.name: p.told for p in self.parameters}

    @cached_property
    def spread(self) -> float:
        """One-sigma log error of a step to state from now on: of points the fit had not seen, at least 2 %."""
        seen = [v for m, v in self.held_out.items() if m != "ttft"] or list(self.held_out.values())
        return max(0.02, _rms(np.concatenate(seen)))

    @cached_property
    def ttft_spread(self) -> float:
        """The same of a time to first token; twice a step's where none was measured."""
        seen = self.held_out.get("ttft")
        return 2.0 * self.spread if seen is None else max(0.02, _rms(seen))


def _rms(logs: Floats) -> float:
    """Root of the mean square, each error at most at three times the median size: one wild point is not the spread."""
    size = np.abs(logs)
    return float(np.sqrt(np.mean(np.minimum(size, 3.0 * max(float(np.median(size)), 1e-3)) ** 2)))


def log_errors(
    points: Sequence[Point], price: Callable[[Deployment], Roofline]
) -> tuple[Floats, list[tuple[int, str]]]:
    """(log of predicted over measured, (point, metric) of each) at the constants of ``price``; throughput inverted."""
    errors, names = [], []
    priced: dict[tuple[object, ...], Roofline] = {}
    for i, point in enumerate(points):
        d = point.deployment  # levels of one sweep share compiled tables
        key = (d.model.name, d.label, d.max_num_seqs, d.max_num_batched_tokens, d.engine_version,
               d.gpu_memory_utilization, point.packets)  # fmt: skip
        if key not in priced:
            priced[key] = price(d).sending(point.packets)
        figures = simulated(point.deployment, priced[key], point.workload, point.measured)
        for metric, figure in point.measured.items():
            if metric not in _NOISE or (metric in {"e2e", "output_tok_s"} and "tpot" in point.measured):
                continue
            sign = -1.0 if metric == "output_tok_s" else 1.0
            errors.append(sign * math.log(figures[metric] / figure.value))
            names.append((i, metric))
    return np.array(errors), names


def calibrate(
    points: Sequence[Point],
    base: Callable[[Deployment], Efficiency],
    *,
    seed: int = 0,
    folds: Sequence[str] | None = None,
) -> Calibration:
    """Fit the constants that the points' deployments depend on; wide priors where the family's are borrowed.

    Args:
        points: measured operating points, all on one kind of accelerator and engine.
        base: the constants a deployment has by default.
        seed: of the bootstrap.
        folds: one name a point: points of one name are held out together; None holds out each alone.

    Raises:
        WorkloadError: no usable figure, a point bound by its client, or points of different accelerators or engines.
    """
    require_server_bound(points)
    _require_one_kind(points)
    names = tuple(dict.fromkeys(n for p in points for n in applicable(p.deployment)))
    measured = is_measured(points[0].deployment.accelerator)
    sigma = np.array([prior_sigma(n, measured=measured) for n in names])

    def errors_at(theta: Floats, subset: Sequence[Point] = points) -> tuple[Floats, list[tuple[int, str]]]:
        multiples = dict(zip(names, np.exp(theta).tolist(), strict=True))
        return log_errors(subset, lambda d: Roofline(d, moved(base(d), multiples)))

    start, where = errors_at(np.zeros(len(names)))
    if not where:
        raise WorkloadError("nothing to fit: no point has a measured ttft, tpot, e2e or output_tok_s")
    repeatability = np.array([_NOISE[m] for _, m in where])
    late = np.array([n == "request_s" for n in names]) * float(base(points[0].deployment).request_s > 0.0)

    def fitted(begin: Floats, width: Floats, subset: Sequence[Point] = points) -> Floats:
        return _descended(
            lambda theta: np.concatenate([errors_at(theta, subset)[0] / width, theta / sigma]), begin, sigma, late
        )

    theta = fitted(np.zeros(len(names)), repeatability)
    error = errors_at(theta)[0]
    # residuals are judged by their median, so that one bad point does not widen every interval
    typical = float(1.4826 * np.median(np.abs(error / repeatability)))
    scale = max(1.0, typical * math.sqrt(len(error) / max(1, len(error) - 2)))
    width = repeatability * scale
    if scale > _MISFIT:  # the model, not chance, is off: points tell less than their repeatability, the prior more
        theta = fitted(theta, width)
        error = errors_at(theta)[0]
    noise = width * _doubt(error / width)
    jacobian = _jacobian(lambda t: errors_at(t)[0], theta)
    covariance = _covariance(jacobian, noise, sigma)
    wide = np.maximum(
        _Z95 * np.sqrt(np.diag(covariance)), _bootstrap(jacobian, error, noise, sigma, theta, where, seed)
    )
    first = base(points[0].deployment)
    parameters = tuple(
        Parameter(
            n, math.exp(t), math.exp(t - w), math.exp(t + w),
            bool(math.sqrt(covariance[k, k]) < _TOLD * sigma[k]), float(getattr(first, n)) if n in TIMES else 1.0,
        )
        for k, (n, t, w) in enumerate(zip(names, theta, wide, strict=True))
    )  # fmt: skip
    held, of = np.empty_like(error), list(range(len(points))) if folds is None else list(folds)
    for fold in dict.fromkeys(of):
        out = np.array([of[j] == fold for j, _ in where])
        if not out.any():
            continue
        without = np.clip(theta + _step(jacobian[~out], error[~out], noise[~out], sigma, theta), -BOUND, BOUND)
        if folds is not None:  # many points at once are too much for one linear step
            kept = [p for p, name in zip(points, of, strict=True) if name != fold]
            without = fitted(without, width[~out], kept)
        left_out = [p for p, name in zip(points, of, strict=True) if name == fold]
        held[out] = errors_at(without, left_out)[0]
    return Calibration(
        parameters=parameters, points=tuple(points), default_errors=_by_metric(start, where),
        in_sample=_by_metric(error, where), held_out=_by_metric(held, where), alike=_alike(names, covariance),
        covariance=covariance, noise_scale=scale, base=base,
    )  # fmt: skip


def _descended(residuals: Callable[[Floats], Floats], begin: Floats, sigma: Floats, late: Floats) -> Floats:
    """The least robust squares of ``residuals`` from where they begin, or from elsewhere along ``late`` if less there.

    ``late`` is the direction of ``request_s``: whether users stay in step hangs by a hair of it, so the errors have
    folds that a descent does not cross.
    """
    from scipy.optimize import least_squares

    def cost(theta: Floats) -> float:
        return float((np.sqrt(1.0 + (residuals(theta) / _ROBUST) ** 2) - 1.0).sum())

    def solved(start: Floats) -> Floats:
        found = least_squares(
            residuals, start, bounds=(-BOUND, BOUND), loss="soft_l1", f_scale=_ROBUST,
            diff_step=[_STEP] * len(start), x_scale=sigma, max_nfev=12,
        )  # fmt: skip
        return np.asarray(found.x, dtype=np.float64)

    theta = solved(begin)
    for _ in range(_SCANS if late.any() else 0):
        tried = [theta, *(np.clip(theta + shift * late, -BOUND, BOUND) for shift in _SHIFTS)]
        costs = [cost(t) for t in tried]
        best = int(np.argmin(costs))
        if costs[best] > _WORTH * costs[0]:
            break
        theta = solved(tried[best])
    return theta


def _require_one_kind(points: Sequence[Point]) -> None:
    kinds = {(p.deployment.accelerator.name, p.deployment.engine) for p in points}
    if not points:
        raise WorkloadError("nothing to fit: no measured level was given")
    if len(kinds) > 1:
        listed = ", ".join(f"{a} with {e}" for a, e in sorted(kinds))
        raise WorkloadError(f"one profile is of one accelerator and engine; these runs are of {listed}")


def _jacobian(errors: Callable[[Floats], Floats], theta: Floats) -> Floats:
    """Central differences: the simulator is smooth but for whole steps."""
    columns = []
    for k in range(len(theta)):
        up, down = theta.copy(), theta.copy()
        up[k], down[k] = theta[k] + _STEP, theta[k] - _STEP
        columns.append((errors(up) - errors(down)) / (2 * _STEP))
    return np.array(columns).T


def _covariance(jacobian: Floats, noise: Floats, sigma: Floats) -> Floats:
    scaled = jacobian / noise[:, None]
    return np.asarray(np.linalg.inv(scaled.T @ scaled + np.diag(1.0 / sigma**2)))


def _doubt(scaled: Floats) -> Floats:
    """Factor on each error's width that makes squares at this point weigh as the robust loss does."""
    return np.asarray((1.0 + (scaled / _ROBUST) ** 2) ** 0.25)


def _step(jacobian: Floats, error: Floats, noise: Floats, sigma: Floats, theta: Floats) -> Floats:
    """Gauss-Newton's step from ``theta`` on the given errors and the prior."""
    scaled = jacobian / noise[:, None]
    right = -(scaled.T @ (error / noise)) - theta / sigma**2
    return np.asarray(_covariance(jacobian, noise, sigma) @ right)


def _bootstrap(
    jacobian: Floats,
    error: Floats,
    noise: Floats,
    sigma: Floats,
    theta: Floats,
    where: list[tuple[int, str]],
    seed: int,
) -> Floats:
    """Half the width of the central 95 % of each constant when points are drawn anew, linearised."""
    rng, owner = np.random.default_rng(seed), np.array([i for i, _ in where])
    count = int(owner.max()) + 1
    rows = [np.flatnonzero(owner == i) for i in range(count)]
    drawn = np.empty((_BOOTSTRAPS, len(theta)))
    for b in range(_BOOTSTRAPS):
        pick = np.concatenate([rows[i] for i in rng.integers(0, count, count)])
        if len(pick) == 0:
            drawn[b] = 0.0
            continue
        drawn[b] = _step(jacobian[pick], error[pick], noise[pick], sigma, theta)
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    return np.asarray((high - low) / 2)


def _by_metric(error: Floats, where: list[tuple[int, str]]) -> dict[str, Floats]:
    """Log errors by metric, throughput as throughput again."""
    found: dict[str, Floats] = {}
    for metric in dict.fromkeys(m for _, m in where):
        sign = -1.0 if metric == "output_tok_s" else 1.0
        found[metric] = sign * np.array([e for e, (_, m) in zip(error, where, strict=True) if m == metric])
    return found


def _alike(names: Sequence[str], covariance: Floats) -> tuple[tuple[str, str, float], ...]:
    wide = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(wide, wide)
    return tuple(
        (names[i], names[j], float(correlation[i, j]))
        for i in range(len(names)) for j in range(i)
        if abs(correlation[i, j]) > _ALIKE
    )  # fmt: skip


def calibration_document(c: Calibration) -> dict[str, Any]:
    """The machine-readable answer of ``gambrel calibrate``: constants (seconds, or factors), errors as fractions."""
    return {
        "parameters": {
            p.name: {"value": p.value * p.default, "low": p.low * p.default, "high": p.high * p.default,
                     "default": p.default, "multiple": p.value}
            for p in c.parameters
        },
        "error": {
            "default": error_document(c.default_errors), "in_sample": error_document(c.in_sample),
            "held_out": error_document(c.held_out),
        },
        "identifiable": c.identifiable,
        "indistinguishable": [{"constants": [a, b], "correlation": r} for a, b, r in c.alike],
        "levels": [p.label for p in c.points],
        "noise_scale": c.noise_scale,
        "spread": c.spread,
    }  # fmt: skip


def error_document(errors: Mapping[str, Floats]) -> dict[str, Any]:
    """Median and 90th percentile of the absolute error and the median signed one, as fractions, per metric."""
    found = {}
    for metric, logs in errors.items():
        signed = np.expm1(logs)
        found[metric] = {
            "n": len(signed), "median_ape": float(np.median(np.abs(signed))),
            "p90_ape": float(np.percentile(np.abs(signed), 90)), "bias": float(np.median(signed)),
        }  # fmt: skip
    return found
