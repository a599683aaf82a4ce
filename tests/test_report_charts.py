"""Every chart compiles, has the shape that theory gives it, and says what it shows with numbers and units."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import report_factory as make
from gambrel import report
from gambrel.core.errors import ReportError
from gambrel.report.marks import lowest_free_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

UNIT = re.compile(r"\d (ms|s|min|h|GB|%|tokens|requests)|\d x|\$\d|/Mtok|\dx|chip-seconds")


def points(spec: Mapping[str, Any], x: str, y: str, line: str | None = None) -> list[tuple[float, float]]:
    """(x, y) of the thin line called ``line``, or of the hover points that lie on the bold one."""
    for layer in spec["layer"]:
        values = layer["data"]["values"]
        if line is not None and values and "line" in values[0]:
            return [(v[x], v[y]) for v in values if v["line"] == line]
        if line is None and layer["mark"]["type"] == "point" and layer["mark"].get("opacity") == 0:
            return [(v[x], v[y]) for v in values]
    raise AssertionError(f"no line {line!r}")


@pytest.fixture(scope="module")
def specs() -> list[dict[str, Any]]:
    curve = make.curve(contexts=[2**i for i in range(7, 16)], named_context=1024)
    return list(report.plan_report(make.plan(), curve, make.traffic_view()).specs())


def test_every_chart_compiles(specs: list[dict[str, Any]]) -> None:
    vl_convert = pytest.importorskip("vl_convert")
    for spec in specs:
        assert vl_convert.vegalite_to_vega(spec)["marks"], spec["name"]


def test_every_registered_chart_is_in_the_report(specs: list[dict[str, Any]]) -> None:
    families = {r".+-vs-load": "latency-vs-load", r"cost-vs-(ttft|tpot|itl|e2e|queue)": "cost-vs-latency"}
    drawn = {next((f for p, f in families.items() if re.fullmatch(p, s["name"])), s["name"]) for s in specs}
    assert drawn == set(report.CHARTS)


def test_names_are_unique(specs: list[dict[str, Any]]) -> None:
    names = [spec["name"] for spec in specs]
    assert len(set(names)) == len(names)


def test_captions_are_one_sentence_with_units(specs: list[dict[str, Any]]) -> None:
    for spec in specs:
        text = report.caption(spec)
        assert text.endswith("."), text
        assert not re.search(r"[.!?] [A-Z]", text), text
        assert UNIT.search(text), text
        assert "nan" not in text.lower().split(), text


def test_every_axis_names_its_unit(specs: list[dict[str, Any]]) -> None:
    for spec in specs:
        titles = [
            layer["encoding"][channel]["title"]
            for layer in spec["layer"]
            for channel in ("x", "y")
            if layer["encoding"].get(channel, {}).get("scale") and layer["encoding"][channel]["type"] == "quantitative"
        ]
        assert titles, spec["name"]
        assert all(titles), spec["name"]


def test_specs_are_plain_json(specs: list[dict[str, Any]]) -> None:
    for spec in specs:
        assert json.loads(json.dumps(spec, allow_nan=False)) == spec


@settings(max_examples=25)
@given(context=st.integers(1, 8192), gpu=st.sampled_from(["h100-sxm", "l40s", "b200", "l4"]))
def test_latency_is_the_maximum_flat_then_slope(context: int, gpu: str) -> None:
    curve = make.curve(contexts=[context], gpu=gpu)
    spec = report.latency_vs_batch(curve)
    bold = points(spec, "batch", "ms")
    compute = dict(points(spec, "batch", "ms", "compute"))
    memory = dict(points(spec, "batch", "ms", "weights + KV"))
    batch, ms = (np.array(v) for v in zip(*bold, strict=True))
    np.testing.assert_allclose(ms, [max(compute[b], memory[b]) for b in batch], rtol=1e-12)
    assert np.all(ms >= 1e3 * curve.floor_s * (1 - 1e-12))
    slope = np.diff(ms) / np.diff(batch)
    assert np.all(slope >= -1e-12)
    assert np.all(np.diff(slope) >= -1e-9 * slope.max()), "convex"
    assert slope[0] <= slope[-1] * (1 + 1e-9)


@settings(max_examples=25)
@given(context=st.integers(1, 4096))
def test_cost_falls_with_slope_minus_one_then_is_flat(context: int) -> None:
    curve = make.curve(contexts=[context], batches=[1, 2, *(2**i for i in range(2, 27))])
    assert curve.usd_per_mtok is not None
    cost = curve.usd_per_mtok
    slopes = np.diff(np.log(cost)) / np.diff(np.log(curve.batch.astype(float)))
    shared = context * make.LLAMA_KV / make.LLAMA_READ  # the KV of one sequence is this much of the weights
    assert slopes[0] == pytest.approx(-1, abs=0.01 + 2 * shared)
    assert slopes[-1] == pytest.approx(0, abs=0.01)
    assert np.all(np.diff(slopes) >= -1e-9)
    # The limit that is printed is max(2N/F, c KV/BW) times the price.
    a = curve.deployment.accelerator
    limit = max(make.LLAMA_FLOPS / a.peak_flops["bf16"], context * make.LLAMA_KV / a.memory_bandwidth)
    assert cost[0] / curve.amortisation_limit == pytest.approx(1e6 * limit * 2.99 / 3600)
    assert cost[-1] == pytest.approx(1e6 * limit * 2.99 / 3600, rel=0.01)


@settings(max_examples=25)
@given(beyond=st.integers(1, 20_000))
def test_beyond_the_crossover_compute_never_meets_memory(beyond: int) -> None:
    crossover = make.curve().crossover_context
    curve = make.curve(contexts=[math.ceil(crossover) + beyond])
    spec = report.latency_vs_batch(curve)
    compute = dict(points(spec, "batch", "ms", "compute"))
    memory = dict(points(spec, "batch", "ms", "weights + KV"))
    assert all(compute[b] < memory[b] for b in compute)
    assert math.isinf(curve.ridge_batch)
    assert "compute binds" not in report.caption(spec)


def test_ridge_balance_and_wall_are_labelled() -> None:
    curve = make.curve(contexts=[128])
    labels = [
        v["label"] for layer in report.latency_vs_batch(curve)["layer"] for v in layer["data"]["values"] if "label" in v
    ]
    for word in ("ridge", "balance", "wall", "floor 4.48 ms"):
        assert any(label.startswith(word) for label in labels), word


def test_regime_colours_follow_the_maximum_not_the_largest_part() -> None:
    # weights 4, KV 4, compute 6: memory binds with 8, though compute is the largest single cause.
    curve = make.curve(contexts=[256])
    at = np.flatnonzero((curve.compute_s > np.maximum(curve.weights_s, curve.kv_s)) & (curve.step_s > curve.compute_s))
    assert len(at), "the case exists on this curve"
    b = int(curve.batch[at[0]])
    spec = report.latency_vs_batch(make.curve(contexts=[256], batches=[b // 2, b]))
    colours = {layer["mark"]["color"] for layer in spec["layer"] if layer["mark"].get("strokeWidth") == 4}
    assert report.style.CAUSE_COLOURS["compute"] not in colours


def test_without_a_price_the_unit_is_chip_seconds() -> None:
    spec = report.cost_vs_batch(make.curve(usd=None))
    assert "chip-seconds" in report.caption(spec)
    assert "$" not in json.dumps(spec["layer"]).replace("$schema", "")


def test_step_against_context_needs_two_contexts() -> None:
    with pytest.raises(ReportError, match="two contexts"):
        report.step_vs_context(make.curve())
    with pytest.raises(ReportError, match="holds 1,024"):
        report.latency_vs_batch(make.curve(), context=77)


def test_a_curve_where_nothing_fits_still_draws() -> None:
    curve = make.curve(contexts=[200_000], gpu="l4")
    assert curve.wall_batch == 0
    for draw in (report.latency_vs_batch, report.cost_vs_batch):
        spec = draw(curve)
        assert json.dumps(spec, allow_nan=False)
    assert "not one sequence fits" in report.caption(report.latency_vs_batch(curve))


def test_one_batch_is_enough() -> None:
    assert report.latency_vs_batch(make.curve(batches=[8]))["layer"]


@settings(max_examples=30)
@given(mean=st.floats(16, 4000), gpu=st.sampled_from(["h100-sxm", "l40s", "l4"]))
def test_memory_reaches_usable_exactly_at_the_wall(mean: float, gpu: str) -> None:
    budget = make.memory(gpu)
    spec = report.memory_vs_concurrency(budget, report.HeldTokens(mean, mean, 2 * mean, 4 * mean))
    values = spec["layer"][0]["data"]["values"]
    kv = [v for v in values if v["part"].startswith("KV")]
    top = max(v["high"] for v in kv)
    block = budget.kv_bytes_per_block * math.ceil(mean / budget.block_size)
    assert top <= budget.usable_bytes / 1e9 * (1 + 1e-9)
    assert top + block / 1e9 >= budget.usable_bytes / 1e9 * (1 - 1e-9)


def test_memory_that_does_not_fit_says_so() -> None:
    budget = replace(make.memory("l4"), num_kv_blocks=0, weight_bytes=30e9)
    text = report.caption(report.memory_vs_concurrency(budget, report.HeldTokens(math.nan, 100, 200, 300)))
    assert text.startswith("It does not fit")


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1), st.text("abc 0123456789", min_size=1, max_size=14)), max_size=7))
def test_labels_in_one_row_never_touch(labels: list[tuple[float, str]]) -> None:
    shares, texts = [s for s, _ in labels], [t for _, t in labels]
    placed = lowest_free_rows(shares, texts)
    for i, a in enumerate(labels):
        for j, b in enumerate(labels[:i]):
            if placed[i] == placed[j]:
                assert abs(a[0] - b[0]) * 270 >= 6.4 * min(len(a[1]), len(b[1])) / 2


def test_traffic_view_of_a_workload_carries_every_figure() -> None:
    traffic = pytest.importorskip("gambrel.traffic")
    workload = traffic.load_workload("chat:rate=5")
    view = report.TrafficView.of(workload, traffic.describe(workload))
    for draw in (
        report.prompt_lengths,
        report.joint_lengths,
        report.in_flight,
        report.arrivals_over_time,
        report.bursts,
    ):
        spec = draw(view)
        assert spec is not None
        assert UNIT.search(report.caption(spec))
