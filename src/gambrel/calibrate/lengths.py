"""Lengths of requests whose source publishes their mean and the longest they may be, and not the lengths."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints

__all__ = ["lognormal", "stretched"]

_CUTS: Final = 40  # halvings of the factor that lengths are stretched by: to far less than a token


def lognormal(rng: np.random.Generator, mean: float, cv: float, n: int, most: float = math.inf) -> Ints:
    """int64[n]: lengths with the given mean, which the draw keeps up to rounding, spread over it, ``most`` at most."""
    sigma = math.sqrt(math.log1p(cv * cv))
    drawn = rng.lognormal(0.0, sigma, n)
    found: Ints = np.maximum(1, np.rint(stretched(drawn, mean, most))).astype(np.int64)
    return found


def stretched(drawn: Floats, mean: float, most: float) -> Floats:
    """float64[n]: the numbers times one factor, none above ``most``, so that their mean is ``mean`` (or ``most``)."""
    if mean >= most:
        return np.full_like(drawn, most)
    low, high = mean / float(drawn.mean()), most / float(drawn.min())
    if float(drawn.max()) * low <= most:
        return drawn * low
    for _ in range(_CUTS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if np.minimum(drawn * middle, most).mean() < mean else (low, middle)
    return np.minimum(drawn * low, most)
