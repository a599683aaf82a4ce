"""A measured sweep as a page: captions with units, charts that compile, the break found where it is, gaps survived."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gambrel import report
from gambrel.core.run import Distribution
from gambrel.faces.measure_commands import measured_sweep
from gambrel.report.measured import MeasuredLevel, MeasuredSweep, Trust, find_break
from gambrel.report.sweep import fidelity_table, measured_cells, sweep_report
from gambrel.report.sweep_charts import measured_latency, measured_step, measured_throughput

if TYPE_CHECKING:
    from collections.abc import Sequence

UNIT = re.compile(r"\d (ms|s|min|tokens/s|requests)\b")
UNKNOWN = Distribution.of(np.empty(0))


def spread(p50: float) -> Distribution:
    return Distribution(1.05 * p50, p50, 1.2 * p50, 1.4 * p50, 2 * p50, 2.5 * p50, 60)


def level(users: float, prompt: float = 64, *, step_s: float = 0.02, bound: bool = False, **more: Any) -> MeasuredLevel:
    ttft_s = 0.03 + 1e-4 * prompt + 0.005 * users
    e2e_s = ttft_s + 63 * step_s
    trust = Trust(bound, ("a client process used 93% of a core",) if bound else (), 1e-3, 2e-3, 0.0, 0.3)
    found = MeasuredLevel(
        label=f"c{users:g} p{prompt:g} o64",
        mode="closed",
        requested=users,
        delivered=0.99 * users,
        prompt_tokens=prompt,
        output_tokens=64.0,
        num_ok=60,
        num_errors=0,
        window_s=12.0,
        output_tokens_per_s=64 * users / e2e_s,
        requests_per_s=users / e2e_s,
        ttft=spread(ttft_s),
        tpot=spread(step_s),
        e2e=spread(e2e_s),
        trust=trust,
    )
    return replace(found, **more)


def sweep(levels: Sequence[MeasuredLevel]) -> MeasuredSweep:
    return MeasuredSweep("http://127.0.0.1:8000", "org/model", tuple(levels), {"ttft": "ttft.token"})


def failed(users: float) -> MeasuredLevel:
    return level(users, math.nan, label=f"c{users:g} failed",
                 ttft=UNKNOWN, tpot=UNKNOWN, e2e=UNKNOWN, num_ok=0, num_errors=9,
                 output_tokens_per_s=0.0, requests_per_s=0.0, output_tokens=math.nan)  # fmt: skip


GRID = [level(n, p, step_s=0.02 + 0.001 * max(0, n - 8)) for p in (64, 1024) for n in (1, 2, 4, 8, 16, 32)]
SWEEPS = {
    "one length": sweep(GRID[:6]),
    "grid": sweep(GRID),
    "client-bound at the end": sweep([*GRID[:6], level(64, step_s=0.09, bound=True)]),
    "a level failed": sweep([*GRID[:3], failed(8), *GRID[4:6]]),
    "two levels": sweep(GRID[:2]),
    "answers of one token": sweep([replace(v, tpot=UNKNOWN) for v in GRID[:4]]),
    "open": sweep([level(r, label=f"r{r}", mode="open", delivered=r) for r in (0.5, 1, 2)]),
    "warned": sweep([replace(v, warnings=("p99 of 60 requests is close to their largest",)) for v in GRID[:3]]),
}


def check(made: report.Report) -> None:
    for spec in made.specs():
        text = report.caption(spec)
        assert text.endswith("."), text
        assert not re.search(r"[.!?] [A-Z]", text), text
        assert UNIT.search(text), text
        assert not re.search(r"nan|\N{EN DASH}|\N{INFINITY}", text), text
        assert json.loads(json.dumps(spec, allow_nan=False)) == spec
        titles = [
            layer["encoding"][c].get("title")
            for layer in spec["layer"]
            for c in ("x", "y")
            if "scale" in layer["encoding"].get(c, {})
        ]
        assert titles, spec["name"]
        assert all(titles), spec["name"]
    names = [spec["name"] for spec in made.specs()]
    assert len(set(names)) == len(names)
    assert all("nan" not in cell for table in made.tables() for row in table.rows for cell in row)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_chart_compiles_and_says_what_it_shows(name: str) -> None:
    vl_convert = pytest.importorskip("vl_convert")
    made = sweep_report(SWEEPS[name])
    check(made)
    assert list(made.specs())
    for spec in made.specs():
        assert vl_convert.vegalite_to_vega(spec)["marks"], spec["name"]


@pytest.mark.parametrize("levels", [(), (GRID[0],), (failed(1), failed(2)), (replace(GRID[0], mode="other"),)])
def test_levels_that_carry_no_chart_still_make_a_page(levels: tuple[MeasuredLevel, ...]) -> None:
    made = sweep_report(sweep(levels))
    assert list(made.specs()) == []
    assert [t.heading for t in made.tables()][-1] == "Every level"
    check(made)


@settings(max_examples=40)
@given(
    floor_s=st.floats(1e-3, 0.1),
    steep=st.floats(0.02, 1.0),
    at=st.integers(0, 2),
    loads=st.lists(st.integers(1, 256), min_size=5, max_size=8, unique=True).map(sorted),
)
def test_a_broken_line_is_found_where_it_breaks(floor_s: float, steep: float, at: int, loads: list[int]) -> None:
    knee = float(loads[at])
    steps = [floor_s + steep * floor_s * max(0.0, n - knee) for n in loads]
    found = find_break([float(n) for n in loads], steps)
    assert found is not None
    assert found.knee == knee
    assert found.floor_s == pytest.approx(floor_s, rel=1e-6)
    assert found.slope_s == pytest.approx(steep * floor_s, rel=1e-6)
    assert [found.at(n) for n in loads] == pytest.approx(steps, rel=1e-6)


@pytest.mark.parametrize(
    "steps",
    [[0.02, 0.02, 0.03], [0.05, 0.04, 0.03, 0.02], [0.07, 0.04, 0.05, 0.09, 0.84], [0.02, 0.06, 0.02, 0.06, 0.02]],
)
def test_no_break_is_claimed_where_there_is_none(steps: list[float]) -> None:
    assert find_break([float(2**i) for i in range(len(steps))], steps) is None
    levels = [level(2**i, step_s=s) for i, s in enumerate(steps)]
    spec = measured_step(sweep(levels))
    assert spec is not None
    assert "no break is claimed" in report.caption(spec)
    assert "flat" not in spec["title"]


def test_a_client_bound_level_is_shown_but_claims_nothing_of_the_server() -> None:
    bound = SWEEPS["client-bound at the end"]
    plain, marked = measured_step(SWEEPS["one length"]), measured_step(bound)
    assert plain is not None
    assert marked is not None
    assert "flat up to 8" in report.caption(plain)
    assert "flat up to 8" in report.caption(marked)
    loads = [
        v["load"] for layer in marked["layer"] for v in layer["data"]["values"] if v.get("label") == "client-bound"
    ]
    assert set(loads) == {64}
    best = replace(bound, levels=(*bound.levels[:-1], replace(bound.levels[-1], output_tokens_per_s=1e6)))
    spec = measured_throughput(best)
    assert spec is not None
    assert "with 32 requests" in report.caption(spec)
    assert fidelity_table(bound).status == ("met",) * 6 + ("missed",)
    assert "1 of 7 levels" in fidelity_table(bound).sentence


@given(levels=st.lists(st.sampled_from(GRID), unique_by=lambda v: v.label, max_size=12))
def test_any_part_of_a_grid_draws_what_it_holds(levels: list[MeasuredLevel]) -> None:
    part = sweep(levels)
    spec = measured_latency(part, "ttft")
    assert (spec is None) == (len({v.requested for v in levels}) < 2)
    if spec is not None:
        drawn = {(d["load"], d["prompt"]) for d in spec["layer"][0]["data"]["values"]}
        assert len(drawn) == len(levels)
    cells = measured_cells(part)
    users, prompts = {v.requested for v in levels}, {v.prompt_tokens for v in levels}
    corners = set(itertools.product({min(users), max(users)}, {min(prompts), max(prompts)})) if levels else set()
    held = {(v.requested, v.prompt_tokens) for v in levels}
    assert {(c.users, c.prompt_tokens) for c in cells} == corners & held


def test_the_four_cells_put_the_demo_first() -> None:
    cells = measured_cells(SWEEPS["grid"])
    assert [(c.users, c.prompt_tokens) for c in cells] == [(1, 64), (1, 1024), (32, 64), (32, 1024)]


def test_the_document_of_measure_becomes_a_sweep_and_null_is_unknown() -> None:
    def block(value: float | None) -> dict[str, Any]:
        return dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), value) | {"count": 3, "definition": "x.y"}

    one = {
        "label": "c2 p64 o8", "mode": "closed", "requested_concurrency": 2.0, "requested_rate_rps": None,
        "delivered_concurrency": 1.9, "delivered_rate_rps": 3.0, "prompt_tokens": {"asked": 64.0, "counted": 64.0},
        "output_tokens": 8.0, "num_ok": 3, "num_errors": 0, "window_s": 1.0, "output_tokens_per_s": 24.0,
        "requests_per_s": 3.0, "ttft_s": block(0.1), "tpot_s": block(None), "e2e_s": block(0.5),
        "server_batch_mean": None, "warnings": ["short"],
        "fidelity": {"client_bound": True, "reasons": ["late"], "dispatch_late_s": {"p50": 0.0, "p99": 0.2}},
    }  # fmt: skip
    dead = one | {"prompt_tokens": {"asked": None, "counted": None}, "num_ok": 0, "output_tokens": None, "fidelity": {}}
    read = measured_sweep({"source": "u", "model": "m", "levels": [one, dead | {"mode": "replay"}],
                           "definitions": {"x.y": "from x to y"}})  # fmt: skip
    first, last = read.levels
    assert (first.requested, first.delivered, first.ttft.p95, first.trust.late_p99_s) == (2.0, 1.9, 0.1, 0.2)
    assert math.isnan(first.tpot.p50)
    assert math.isnan(first.server_batch)
    assert math.isnan(last.prompt_tokens)
    assert last.mode == "other"
    assert read.definitions["ttft"] == "x.y: from x to y"
    check(sweep_report(read))
