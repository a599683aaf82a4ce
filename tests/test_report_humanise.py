"""Numbers read as people write them, and never lose their unit or their size."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gambrel.report import humanise as say

TIME = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}


@given(st.floats(1e-9, 1e6))
def test_seconds_keep_three_digits(value: float) -> None:
    figure, unit = say.seconds(value).split(" ")
    assert float(figure.replace(",", "")) * TIME[unit] == pytest.approx(value, rel=0.0051)


@given(st.floats(1, 1e15))
def test_bytes_keep_three_digits(value: float) -> None:
    figure, unit = say.num_bytes(value).split(" ")
    assert float(figure.replace(",", "")) * BYTES[unit] == pytest.approx(value, rel=0.0051)


@given(st.floats(1e-6, 1e12))
def test_numbers_have_no_exponent_and_at_least_three_digits(value: float) -> None:
    text = say.number(value)
    assert re.fullmatch(r"[0-9][0-9,]*(\.[0-9]+)?", text)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (say.seconds(0.00448), "4.48 ms"),
        (say.seconds(0.9999), "1.00 s"),
        (say.seconds(0), "0 s"),
        (say.seconds(math.nan), say.UNKNOWN),
        (say.limit(1.0), "1 s"),
        (say.limit(0.05), "50 ms"),
        (say.limit(0.1), "100 ms"),
        (say.num_bytes(15.0e9), "15.0 GB"),
        (say.gib(2**30 * 14), "14.0 GiB"),
        (say.dollars(1234.5), "$1,234"),
        (say.dollars(12.3), "$12.30"),
        (say.dollars(0.0123), "$0.0123"),
        (say.dollars(-2.5), "-$2.50"),
        (say.per_hour(2.49), "$2.49/h"),
        (say.per_hour(math.inf), say.UNKNOWN),
        (say.per_mtok(0.42), "$0.42/Mtok"),
        (say.count(19366), "19,366"),
        (say.tokens(850), "850"),
        (say.tokens(8192), "8.2k"),
        (say.tokens(131072), "131k"),
        (say.tokens(1.2e6), "1.2M"),
        (say.percent(0.12), "12 %"),
        (say.percent(0.004), "0.4 %"),
        (say.percent(0.9996), "99.9 %"),
        (say.percent(1.0), "100 %"),
        (say.signed_percent(0.12), "+12 %"),
        (say.signed_percent(-0.034), "-3.4 %"),
        (say.multiple(1.0), "1x"),
        (say.multiple(1.42), "1.4x"),
        (say.multiple(29.4), "29x"),
        (say.rate(5.3), "5.30 requests/s"),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert text == expected
