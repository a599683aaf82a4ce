"""AccelMark's rows become what its harness runs: limits of an embedded engine, its data set's lengths, repetition."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gambrel.calibrate.accelmark import LOTS, WARMING, again, answers, arrivals, caches, prompts, sent, suite_of
from gambrel.calibrate.harness import workload_of
from gambrel.calibrate.names import Models
from gambrel.calibrate.predict import Predictor
from gambrel.calibrate.published import default_price
from gambrel.calibrate.setting import deployments
from gambrel.calibrate.table import read_table
from gambrel.catalog.accelerators import accelerator
from gambrel.core.workload import Workload

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.calibrate.table import Row

HEAD = (
    "id,source,date,model,gpu,n_gpus,tp,engine,engine_version,weight_dtype,isl,osl,mode,concurrency_or_rate,"
    "output_tok_s,ttft_ms_p50,tpot_ms_p50,quality,notes\n"
)
LINE = (
    "x1,AccelMark,2026-05,meta-llama/Meta-Llama-3-8B-Instruct,A100-SXM-80GB,1,1,vLLM,{version},bf16,256,346,{load},"
    '{measured},B,"suite {suite}; Poisson arrivals, 300 requests"'
)


def row(tmp_path: Path, version: str = "0.20.1", load: str = "rate,25", suite: str = "A") -> Row:
    measured = "900,," if load.startswith("offline") else "900,75,22" if load.startswith("conc") else ",75,22"
    path = tmp_path / "table.csv"
    path.write_text(HEAD + LINE.format(version=version, load=load, suite=suite, measured=measured) + "\n")
    (found,) = read_table(path)
    return found


@pytest.mark.parametrize(
    ("version", "load", "suite", "limits"),
    [
        ("0.20.1", "rate,25", "A", (128, 2048)),  # nothing is handed to the asynchronous engine
        ("0.20.1", "concurrency,8", "A", (128, 2048)),
        ("0.20.1", "offline,100", "A", (512, 8192)),  # an A100 gets the smaller default
        ("0.7.3", "rate,25", "A", (256, 4096)),  # before V1 a step takes the longest request
        ("0.7.3", "rate,0.5", "D", (256, 30208)),
        ("0.7.3", "offline,100", "A", (512, 4096)),
    ],
)
def test_the_engine_has_the_limits_of_its_context(
    tmp_path: Path, version: str, load: str, suite: str, limits: tuple[int, int]
) -> None:
    (found,) = deployments(row(tmp_path, version, load, suite), Models(), accelerator)
    assert (found.max_num_seqs, found.max_num_batched_tokens) == limits


def test_prompts_come_again_only_where_the_engine_looks_for_them(tmp_path: Path) -> None:
    new, old = row(tmp_path), row(tmp_path, "0.7.3")
    assert caches(new)
    assert not caches(old)
    twice, once = workload_of(new), workload_of(old)
    assert twice is not None
    assert once is not None
    assert len(once) == LOTS * 300
    assert len(twice) == len(once) + 300
    assert twice.kinds[0] == WARMING
    assert twice.prefix_blocks is not None
    lots = twice.prefix_blocks.reshape(LOTS + 1, -1)
    assert (lots == lots[0]).all()  # every lot names the same blocks
    assert once.prefix_blocks is None


def test_requests_come_when_the_harness_sent_them(tmp_path: Path) -> None:
    """One generator for all rates, three lots each: the times of a later rate depend on the draws before it."""
    suite = suite_of(row(tmp_path))
    assert suite is not None
    rng = random.Random(42)  # noqa: S311
    draws = [rng.expovariate(1.0) for _ in range(2 * LOTS * 300)]
    first, second = arrivals(suite, 5.0), arrivals(suite, 25.0)
    assert first is not None
    assert second is not None
    assert first[:300] == pytest.approx(np.cumsum(draws[:300]) / 5.0)
    assert second[:300] == pytest.approx(np.cumsum(draws[LOTS * 300 : LOTS * 300 + 300]) / 25.0)
    lots = second.reshape(LOTS, -1)
    assert (np.diff(lots, axis=1) > 0.0).all()
    assert (lots[1:, 0] > lots[:-1, -1] + 1e5).all()  # nothing of one lot is left when the next begins
    assert arrivals(suite, 7.0) is None
    other = workload_of(row(tmp_path, "0.7.3", load="rate,7"))
    assert other is not None
    assert len(other) == 300


def test_a_cached_prompt_is_not_computed_again(tmp_path: Path) -> None:
    """Cached prompts leave the steps to the decoders: what counts is faster than the same row of an engine without."""
    new = row(tmp_path)
    predictor = Predictor(default_price(), Models(), accelerator)
    cached = predictor(new).figures
    assert cached["tpot"] < 0.9 * predictor(row(tmp_path, load="rate,25", suite="H")).figures["tpot"]


def test_only_the_second_lot_counts() -> None:
    one = Workload(np.array([0.0, 1.0]), np.array([100, 40]), np.array([5, 6]))
    both = again(one)
    assert both.arrival_s[2] - both.arrival_s[0] > 1e5
    assert both.kind is not None
    assert both.kind.tolist() == [0, 0, 1, 1]
    assert both.prefix_offsets is not None
    assert np.diff(both.prefix_offsets).tolist() == [6, 2, 6, 2]  # whole blocks of 16
    assert both.prefix_blocks is not None
    assert both.prefix_blocks[:8].tolist() == both.prefix_blocks[8:].tolist() == list(range(8))


@given(st.integers(20, 2000), st.integers(0, 1000))
def test_prompts_have_the_mean_they_are_given(mean: int, seed: int) -> None:
    drawn = prompts(np.random.default_rng(seed), mean, 300)
    assert drawn.mean() == pytest.approx(mean, rel=0.02, abs=0.5)
    assert drawn.max() > 2 * drawn.min()


@given(st.integers(20, 480), st.integers(0, 1000))
def test_answers_end_at_the_limit_and_keep_their_mean(mean: int, seed: int) -> None:
    drawn = answers(np.random.default_rng(seed), mean, 512, 300)
    assert drawn.mean() == pytest.approx(mean, abs=1.0)
    assert drawn.min() >= 1
    assert drawn.max() <= 512


def test_half_an_hour_of_a_closed_loop_has_no_ends(tmp_path: Path) -> None:
    """Throughput is of users who are always there, not of a run whose last answers are alone."""
    figures = Predictor(default_price(), Models(), accelerator)(row(tmp_path, load="concurrency,8")).figures
    assert figures["output_tok_s"] == pytest.approx(8 * 346 / (figures["ttft"] + 345 * figures["tpot"]), rel=0.04)


def test_suites_by_name(tmp_path: Path) -> None:
    suite = suite_of(row(tmp_path, load="concurrency,1", suite="G"))
    assert suite is not None
    assert sent(row(tmp_path, load="concurrency,1", suite="G"), suite) == 50
    assert suite_of(row(tmp_path, suite="H")) is None
