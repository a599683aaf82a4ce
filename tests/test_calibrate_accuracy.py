"""Errors on published measurements must not grow: ceilings a little above what docs/accuracy.md shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gambrel.calibrate.accuracy import accuracy_page, classes
from gambrel.calibrate.names import Models
from gambrel.calibrate.predict import Predictor
from gambrel.calibrate.published import default_price, stated_spread
from gambrel.calibrate.replay import read_timed, replay_errors
from gambrel.calibrate.suspicious import suspicious
from gambrel.calibrate.table import read_table
from gambrel.calibrate.validate import Validation, errors_of, validate
from gambrel.catalog.accelerators import accelerator
from gambrel.faces import api

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.shared

EVERY = 7  # rows of each table; enough for a median, quick enough for every run


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Validation:
    folder: Path = request.getfixturevalue("shared_data") / "ground_truth"
    rows = [row for path in sorted(folder.glob("*.csv")) for row in read_table(path)[::EVERY]]
    return validate(rows, Predictor(default_price(), Models(), accelerator), stated_spread)


@pytest.mark.parametrize(
    ("kind", "metric", "median", "p90"),
    [
        ("NVIDIA, dense", "tpot", 0.045, 0.11), ("NVIDIA, dense", "output_tok_s", 0.065, 0.195),
        ("NVIDIA, dense", "e2e", 0.06, 0.17), ("NVIDIA, dense", "ttft", 0.095, 0.28),
        ("NVIDIA, MoE or FP4", "tpot", 0.066, 0.22), ("NVIDIA, MoE or FP4", "output_tok_s", 0.065, 0.155),
        ("NVIDIA, MoE or FP4", "ttft", 0.23, 0.53), ("AMD", "output_tok_s", 0.08, 0.21), ("AMD", "e2e", 0.08, 0.19),
        ("consumer and Volta", "tpot", 0.13, 0.33), ("consumer and Volta", "ttft", 0.185, 0.68),
        ("consumer and Volta", "output_tok_s", 0.11, 0.195),
        ("other accelerators", "e2e", 0.095, 0.21), ("other accelerators", "output_tok_s", 0.095, 0.23),
    ],
)  # fmt: skip
def test_errors_do_not_grow(found: Validation, kind: str, metric: str, median: float, p90: float) -> None:
    mine = [c for c in found.comparisons if (classes(c), c.metric) == (kind, metric) and not suspicious(c.row)]
    errors = errors_of(mine)
    assert errors.n >= 10
    assert errors.median_ape < median
    assert errors.p90_ape < p90


def test_no_row_that_ran_is_refused(found: Validation) -> None:
    """Only accelerators that nobody can describe as peaks and a bandwidth are left out."""
    assert all("unknown accelerator" in reason for reason in found.skipped), found.skipped


def test_stated_intervals_hold_about_as_often_as_they_say(found: Validation) -> None:
    """They are sized by held-out errors, so on rows that were fitted they hold more often than the 80 % they state."""
    fitted = [c for c in found.comparisons if not suspicious(c.row) and c.metric != "ttft"]
    assert 0.7 <= errors_of(fitted).coverage <= 0.96


def test_the_page_names_bad_rows_and_their_cause(found: Validation) -> None:
    page = accuracy_page(found)
    for title in ("By kind of deployment", "By source", "By engine and accelerator", "Decisions", "Bad rows"):
        assert f"## {title}" in page
    assert "multi-token prediction" in page


def test_a_real_trace_is_replayed_request_by_request(shared_data: Path) -> None:
    """300 requests on an RTX 4090 whose KV cache saturates, with the blocks the engine reported."""
    timed = read_timed(shared_data / "ground_truth" / "traces" / "RTX4090__Llama-3.1-8B.csv")
    deployment = api.deployment(
        "meta-llama/Llama-3.1-8B", "rtx-4090", max_num_batched_tokens=2048, engine_version="0.19.0"
    )
    errors = replay_errors(timed, deployment, default_price()(deployment), 2588)
    assert abs(errors["tpot"]) <= 0.05
    assert abs(errors["e2e"]) <= 0.05
    assert abs(errors["ttft"]) <= 0.10
    assert abs(errors["ttft_p99"]) <= 0.15
