"""The shipped engine constants are what their script finds: an entry refitted alone comes out the same."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gambrel.catalog.efficiency import constants

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]
ENTRIES = ("vllm:0.6:AMD", "vllm:0.8:AMD")  # one with rows, and one that inherits from it; seconds to fit


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("fit_engines")


def close(again: Any, shipped: Any) -> bool:
    """Values to three digits, ends of intervals to a twentieth: slopes depend on the processor's arithmetic.

    A constant at its lower bound of 0 has no slope to speak of, so its interval is not held to anything.
    """
    if not isinstance(again, dict):
        return bool(again == shipped) if isinstance(again, str) else again == pytest.approx(shipped, rel=2e-3)
    if "value" in again:
        size = abs(float(shipped["value"]))
        ends = (again[k] == pytest.approx(shipped[k], rel=0.05, abs=0.02 * size) for k in ("low", "high"))
        return again["value"] == pytest.approx(shipped["value"], rel=1e-3, abs=1e-9) and (size == 0.0 or all(ends))
    return all(close(value, shipped[name]) for name, value in again.items())


@pytest.mark.shared
def test_kernels_refitted_give_the_shipped_constants(shared_data: Path) -> None:
    kernels = loaded("fit_kernels")
    found = kernels.constants(shared_data / "ground_truth" / "kernels")
    versions = dict.fromkeys((d.kernels for d in kernels.DEVICES), "")
    text = re.sub(r"fitted \S+\"", '"', kernels.medians(found) + "\n" + kernels.document(found, versions))
    again = tomllib.loads(text)["families"]
    for family, sections in again.items():
        for name, section in sections.items():
            if isinstance(section, dict):
                assert close(section, constants()["families"][family][name]), f"{family} {name}"


def shipped(name: str) -> dict[str, Any]:
    engine, since, vendor = name.split(":")
    (found,) = (
        e for e in constants()["engines"][engine] if e["since"] == since and e.get("vendor", "NVIDIA") == vendor
    )
    return dict(found)


@pytest.mark.shared
def test_an_entry_refitted_alone_gives_the_shipped_constants(script: ModuleType, shared_data: Path) -> None:
    solutions = script.solve_all(shared_data / "ground_truth", ENTRIES)
    for solution in solutions:
        entry = solution.problem.entry
        written = "\n".join(script.document(solution, script.held_out(solution, solutions)))
        found = dict(re.findall(r"^(\w+) = \{ value = ([-\w.+]+),", written, re.MULTILINE))
        kept = shipped(entry.name)
        assert set(script.KINDS) <= set(found)
        for name, value in found.items():
            assert float(value) == kept[name]["value"], f"{entry.name} {name}: run scripts/fit_engines.py --write"


def test_every_entry_of_the_script_is_shipped_with_its_rows_and_date(script: ModuleType) -> None:
    for entry in script.ENTRIES:
        found = shipped(entry.name)
        assert found["source"]
        assert found["date"]
        for kind in script.KINDS:
            assert found[kind]["low"] <= found[kind]["value"] <= found[kind]["high"]
        if found["rows"]:
            assert found["spreads"]
            assert 0.02 <= found["spread"] <= found["spread_other"]


def test_an_entry_is_picked_as_the_catalog_picks_it(script: ModuleType) -> None:
    """The script's rule for whose rows an entry gets is the catalog's rule for whose constants a deployment gets."""
    from gambrel.catalog.accelerators import accelerator
    from gambrel.catalog.efficiency import engine_entry
    from gambrel.faces import api

    for gpu in ("h100-sxm", "b200-sxm", "mi300x", "max-1550", "ascend-910b2", "rtx-4090", "gaudi2", "tpu-v5e"):
        device = accelerator(gpu)
        for engine, version in (
            ("vllm", "0.4"), ("vllm", "0.6.3"), ("vllm", "0.19"), ("sglang", "0.5"), ("tensorrt-llm", "0.13"),
            ("tensorrt-llm", "1.2.0rc6"), ("llama.cpp", "0"), ("deepspeed", "0"), ("mlperf", "1.0"),
        ):  # fmt: skip
            weights = "fp16" if "bf16" not in device.peak_flops else "bf16"
            d = api.deployment("meta-llama/Llama-3.1-8B", gpu, engine=engine, engine_version=version, weights=weights)
            mine = script.ENTRIES[script.entry_of(d)]
            entry, _ = engine_entry(engine, version, device.vendor, device.family)
            assert (entry["basis"], entry["since"]) == (mine.basis, mine.since), (gpu, engine, version)


def test_first_tokens_of_few_rows_are_what_others_say_and_of_many_what_they_say_themselves(script: ModuleType) -> None:
    """A request of some 8 ms outside the steps and one of some 33 ms: rows that hold exactly that."""
    rng = np.random.default_rng(0)

    def rows(n: int, request_s: float) -> np.ndarray:
        simulated = rng.uniform(0.02, 0.5, n)
        return np.stack([np.arange(n), simulated, simulated + request_s, np.ones(n)], axis=1)

    theirs, ours = script.REQUESTS[[6, 12]]
    others, many, few = rows(50, theirs), rows(200, ours), rows(3, ours)
    assert script.outside_s(others[:0], [others]) == theirs
    assert script.outside_s(many, [others]) == ours
    assert script.outside_s(many, []) == ours
    assert theirs <= script.outside_s(few, [others]) < ours
    crowd = np.concatenate([many, np.column_stack([rows(200, theirs)[:, :3], np.full(200, 0.1)])])
    assert script.outside_s(crowd, []) == ours  # rows of a large group count less


def test_a_figure_of_an_engine_without_other_rows_counts_once(script: ModuleType) -> None:
    held = [
        script.Held(by, "NVIDIA, dense", "tpot", np.log(1.0 + error), "H100-SXM-80GB", True, few, False, row)
        for by, error, few, row in (("model", 0.1, False, 0), ("gpu", 0.2, True, 0), ("source", 0.2, True, 0),
                                    ("gpu", 0.3, False, 1))
    ]  # fmt: skip
    found = script.by_fold(held)
    assert {fold: pytest.approx(sizes) for fold, sizes in found.items()} == {
        "model": [0.1],
        "gpu": [0.3],
        "engine": [0.2],
    }
    lines = [line for line in script.coverage_table([held]) if line.startswith(("without", "figures"))]
    assert sorted(zip(lines[::2], lines[1::2], strict=True)) == [
        ('without = "engine"', "figures = 1"), ('without = "gpu"', "figures = 1"), ('without = "model"', "figures = 1"),
    ]  # fmt: skip


def test_an_engine_without_rows_states_what_leaving_out_all_rows_of_others_costs(script: ModuleType) -> None:
    """On accelerators with kernel tables that is one figure for all engines, and twice it for a first token."""
    spreads = script.Spreads(0.1, 0.2, 0.3, 0.15, 0.5, {"h100-sxm": 0.1}, {"h100-sxm": 0.4})

    def held(error: float, metric: str = "tpot", *, few: bool = True) -> Any:
        return script.Held("source", "NVIDIA, dense", metric, error, "H100-SXM-80GB", True, few, False, 0)

    assert spreads.stated(held(0.3), 0.27) == 0.27
    assert spreads.stated(held(0.3, "ttft"), 0.27) == 0.54
    assert spreads.stated(held(0.3, few=False), 0.27) == 0.1
    others = [[held(0.1)], [held(0.2)], [held(0.4)]]
    widened = [script.student.ppf(0.9, n - 1) / script.Z80 for n in (2, 3)]  # as few engines as these say little
    assert widened[0] > widened[1] > 1.4
    assert script.alone_sigma(others, tables=True) == pytest.approx(widened[1] * 0.4 / script.Z80)
    assert script.alone_sigma(others, others[2], tables=True) == pytest.approx(widened[0] * 0.2 / script.Z80)
    assert script.alone_sigma(others[:1], tables=True) == script.UNSEEN
    assert script.alone_sigma(others) == script.UNSEEN  # nothing known of accelerators without tables
    assert shipped("sglang:0.0:NVIDIA")["spread_other"] < script.UNSEEN
