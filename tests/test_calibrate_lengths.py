"""Lengths known by their mean and the longest of them: the draw keeps both, and the order of what was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gambrel.calibrate.lengths import lognormal, stretched


@given(st.integers(0, 1000), st.floats(1.0, 1e4), st.floats(0.01, 3.0))
def test_one_factor_keeps_the_mean_under_the_longest(seed: int, mean: float, room: float) -> None:
    drawn = np.random.default_rng(seed).lognormal(3.0, 0.8, 200)
    most = mean * (1.0 + room)
    found = stretched(drawn, mean, most)
    assert found.mean() == pytest.approx(mean, rel=1e-6)
    assert found.max() <= most * (1.0 + 1e-12)
    factors = found / drawn
    assert factors[found < most * (1.0 - 1e-9)] == pytest.approx(factors.max(), rel=1e-9)


@given(st.floats(1.0, 1e4), st.floats(1.0, 3.0))
def test_a_mean_beyond_the_longest_is_the_longest(most: float, beyond: float) -> None:
    assert (stretched(np.array([1.0, 2.0, 9.0]), most * beyond, most) == most).all()


@given(st.integers(0, 100), st.floats(2.0, 5000.0), st.floats(0.1, 1.5))
def test_lengths_without_a_limit_keep_their_mean_up_to_rounding(seed: int, mean: float, cv: float) -> None:
    found = lognormal(np.random.default_rng(seed), mean, cv, 400)
    assert found.min() >= 1
    assert found.mean() == pytest.approx(mean, abs=1.0)
