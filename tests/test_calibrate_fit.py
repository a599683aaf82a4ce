"""Fits recover what made the measurements, and say what they could not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gambrel.calibrate.constants import moved
from gambrel.calibrate.evidence import Point, point_of_lengths, point_of_run, require_possible
from gambrel.calibrate.fit import Calibration, calibrate, calibration_document
from gambrel.calibrate.next_level import next_levels
from gambrel.calibrate.predict import Predictor, simulated
from gambrel.calibrate.profile import load_profile, profile_of, write_profile
from gambrel.calibrate.table import Figure
from gambrel.catalog.efficiency import efficiency, kernel_efficiency
from gambrel.core.errors import WorkloadError
from gambrel.cost import Roofline
from gambrel.engine import simulate
from gambrel.faces import api

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.core.deployment import Deployment
    from gambrel.core.efficiency import Efficiency

TRUTH = {"bandwidth": 0.85, "compute": 0.8, "kv": 0.8, "step_s": 3.0, "layer_s": 1.3, "seq_s": 2.0, "request_s": 2.0}
LEVELS = [(1, 128, 128), (1, 2048, 64), (8, 512, 64), (32, 512, 64), (64, 256, 64), (64, 4096, 32)]
ASKED = {"tpot": Figure(1.0), "ttft": Figure(1.0)}


def base(deployment: Deployment) -> Efficiency:
    host = {"step_s": 5e-4, "layer_s": 1e-5, "seq_s": 8e-6, "request_s": 0.01}
    return kernel_efficiency(deployment.accelerator).with_(**host)


def twin() -> Deployment:
    return api.deployment("meta-llama/Llama-3.1-8B", "h100-sxm", max_num_seqs=64, max_num_batched_tokens=2048)


def measured_levels(noise: float = 0.02) -> list[Point]:
    """What a client would have measured on a server with the true constants, each figure a little off."""
    deployment, rng = twin(), np.random.default_rng(7)
    server = Roofline(deployment, moved(base(deployment), TRUTH))
    points = []
    for users, prompt, output in LEVELS:
        lengths = {"prompt_tokens": prompt, "output_tokens": output, "users": users}
        asked = point_of_lengths(deployment, ASKED, **lengths)  # type: ignore[arg-type]
        exact = simulated(deployment, server, asked.workload, ASKED)
        figures = {m: Figure(v * float(np.exp(rng.normal(0.0, noise)))) for m, v in exact.items()}
        points.append(point_of_lengths(deployment, figures, **lengths))  # type: ignore[arg-type]
    return points


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    return calibrate(measured_levels(), base)


def test_the_constants_of_a_twin_lie_within_their_intervals(fitted: Calibration) -> None:
    inside = {p.name: p.low <= TRUTH[p.name] <= p.high for p in fitted.parameters}
    assert all(inside.values()), inside
    told = {p.name: p for p in fitted.parameters if p.told}
    assert "compute" in told
    assert told["compute"].value == pytest.approx(TRUTH["compute"], rel=0.1)


def test_levels_left_out_are_predicted_far_better_than_by_default(fitted: Calibration) -> None:
    document = calibration_document(fitted)
    before, after = document["error"]["default"]["tpot"], document["error"]["held_out"]["tpot"]
    assert before["median_ape"] > 0.2
    assert after["median_ape"] < 0.05
    assert set(document) >= {"parameters", "error", "identifiable"}
    assert all(e["low"] <= e["value"] <= e["high"] for e in document["parameters"].values())


def test_a_constant_no_level_depends_on_keeps_its_prior_and_the_next_level_would_tell(fitted: Calibration) -> None:
    alone = calibrate([measured_levels()[0]], base)
    assert not alone.identifiable["seq_s"]
    assert not alone.identifiable["kv"]
    advice = next_levels(alone, limit=1)[0]
    assert advice.gain > 0
    assert f"concurrency {advice.users}" in advice.advice
    assert len(fitted.parameters) == len(alone.parameters)


def test_one_stream_cannot_tell_bandwidth_from_host_time() -> None:
    alone = calibrate([measured_levels()[0]], base)
    pairs = {frozenset((a, b)) for a, b, _ in alone.alike}
    assert pairs or not alone.identifiable["bandwidth"]


def test_a_level_that_cannot_be_ruins_no_other(fitted: Calibration) -> None:
    points = measured_levels()
    wild = {"tpot": points[3].measured["tpot"], "ttft": Figure(points[3].measured["ttft"].value * 20.0)}
    spoiled = calibrate([*points[:3], Point("wild", points[3].deployment, points[3].workload, wild), *points[4:]], base)
    assert np.abs(spoiled.held_out["ttft"])[3] > 2.0  # the level itself is told apart, not bent to
    for metric in ("tpot", "ttft"):
        others = np.delete(np.abs(spoiled.held_out[metric]), 3)
        assert np.median(others) < np.median(np.abs(fitted.held_out[metric])) + 0.05
    assert spoiled.multiples["compute"] == pytest.approx(TRUTH["compute"], rel=0.15)


def test_users_who_keep_step_by_a_hair_do_not_hide_what_a_request_takes_outside() -> None:
    """First tokens of a closed loop jump with ``request_s``; a fit that only descends stays where it begins."""
    deployment = api.deployment("Qwen/Qwen3-0.6B", "l4", max_num_seqs=64, max_num_batched_tokens=2048)
    rng = np.random.default_rng(1)

    def shipped(d: Deployment) -> Efficiency:
        return efficiency(d.accelerator, d.engine, d.engine_version)

    priced, points = Roofline(deployment, shipped(deployment)), []
    table = priced.compile(2048, 64).scaled(1.15)
    table = replace(table, request_s=1.15 * table.request_s)
    for users in (1, 2, 4, 8, 16):
        lengths = {"prompt_tokens": 256, "output_tokens": 64, "users": users, "staggered": True}
        asked = point_of_lengths(deployment, ASKED, **lengths)  # type: ignore[arg-type]
        run, _ = Predictor.run(deployment, table, priced.memory(), asked.workload)
        noise = {"tpot": 0.01, "ttft": 0.05}
        seen = {m: Figure(run.distribution(m).mean * float(np.exp(rng.normal(0.0, noise[m])))) for m in ASKED}
        points.append(point_of_lengths(deployment, seen, **lengths))  # type: ignore[arg-type]
    found = calibrate(points, shipped)
    # five first tokens that scatter by 5 % tell a half of each to some 6 %
    assert found.multiples["request_s"] == pytest.approx(1.15, rel=0.12)
    (late,) = (p for p in found.parameters if p.name == "request_s")
    assert late.low < 1.15 < late.high
    assert np.abs(found.in_sample["ttft"]).max() < 0.08
    assert np.abs(found.in_sample["tpot"]).max() < 0.02


def test_points_of_one_name_are_left_out_together() -> None:
    points = measured_levels()
    short = calibrate([p for p, (u, _, _) in zip(points, LEVELS, strict=True) if u > 1], base)
    folded = calibrate(points, base, folds=["one" if u == 1 else "many" for u, _, _ in LEVELS])
    multiples = short.multiples
    asked = [simulated(p.deployment, Roofline(p.deployment, moved(base(p.deployment), multiples)), p.workload, ASKED)
             for p in points[:2]]  # fmt: skip
    for metric in ("tpot", "ttft"):
        unseen = [float(np.log(a[metric] / p.measured[metric].value)) for a, p in zip(asked, points, strict=False)]
        assert folded.held_out[metric][:2] == pytest.approx(unseen, abs=0.03)


def test_a_level_bound_by_its_client_is_refused() -> None:
    points = measured_levels()[:2]
    bound = Point("c512", points[0].deployment, points[0].workload, points[0].measured, client_bound=True)
    with pytest.raises(WorkloadError, match=r"bound by the client.*c512"):
        calibrate([*points, bound], base)


def test_a_level_faster_than_its_weights_can_be_read_is_refused() -> None:
    lengths = {"prompt_tokens": 128, "output_tokens": 32, "users": 1}
    h100 = twin()  # 4.48 ms a step at least
    l4 = api.deployment("meta-llama/Llama-3.1-8B", "l4")

    def level(deployment: Deployment, tpot_s: float) -> Point:
        return point_of_lengths(deployment, {"tpot": Figure(tpot_s)}, **lengths)  # type: ignore[arg-type]

    require_possible([level(h100, 4.6e-3), level(h100, 4.2e-3), point_of_lengths(l4, {}, **lengths)])  # type: ignore[arg-type]
    with pytest.raises(WorkloadError, match=r"c1 p128 o32: 6.30 ms a token, but l4 takes at least 50.0 ms"):
        require_possible([level(h100, 6.3e-3), level(l4, 6.3e-3)])
    with pytest.raises(WorkloadError, match="what ran"):
        require_possible([level(h100, 3.9e-3)])
    guessing = h100.with_(draft_tokens=3, acceptance=0.7)
    require_possible(
        [level(guessing, 1.2e-3), level(h100.with_(weights="fp8"), 2.3e-3), level(h100.with_(tp=2), 2.3e-3)]
    )


@pytest.mark.shared
def test_published_rows_are_slower_than_their_weights_can_be_read(shared_data: Path) -> None:
    from gambrel.calibrate.evidence import point_of_row
    from gambrel.calibrate.names import Models
    from gambrel.calibrate.table import read_table

    names = ("dstack.csv", "gpu_conc.csv", "llmservingsim_bench.csv")
    rows = [r for name in names for r in read_table(shared_data / "ground_truth" / name)]
    points = [p for r in rows if (p := point_of_row(r, Models(None), api.accelerator)) is not None]
    assert len(points) > 40
    require_possible(points)


def test_one_profile_is_of_one_accelerator() -> None:
    point = measured_levels()[0]
    other = api.deployment("meta-llama/Llama-3.1-8B", "a100-sxm-80")
    with pytest.raises(WorkloadError, match="one accelerator and engine"):
        calibrate([point, Point("b", other, point.workload, point.measured)], base)


def test_a_profile_survives_its_file_and_leaves_other_accelerators_alone(fitted: Calibration, tmp_path: Path) -> None:
    written = profile_of(fitted)
    write_profile(written, tmp_path / "p.toml")
    read = load_profile(tmp_path / "p.toml")
    assert read.multiples == pytest.approx(dict(written.multiples), rel=1e-5)
    deployment, other = twin(), api.deployment("meta-llama/Llama-3.1-8B", "a100-sxm-80")
    changed = read.apply(base(deployment), deployment)
    assert changed.step_s == pytest.approx(5e-4 * written.multiples["step_s"], rel=1e-5)
    assert changed.basis.startswith("calibrated")
    assert read.apply(base(other), other) == base(other)


@pytest.mark.parametrize(
    ("text", "says"),
    [("accelerator = 'h100-sxm'", "no engine"), ("x = [", "cannot be read"),
     ("accelerator='a'\nengine='b'\n[constants.speed]\nvalue=1", "unknown constant 'speed'"),
     ("accelerator='a'\nengine='b'\n[constants.kv]\nvalue=-1\nlow=1\nhigh=1", "above 0")],
)  # fmt: skip
def test_a_bad_profile_is_one_clear_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=says):
        load_profile(path)


def test_a_run_with_its_own_arrivals_is_evidence_too() -> None:
    deployment = twin()
    closed = point_of_lengths(deployment, ASKED, prompt_tokens=256, output_tokens=32, users=4)
    run = simulate(deployment, Roofline(deployment, base(deployment)), closed.workload, series=False)
    point = point_of_run(run, deployment, users=4)
    again = simulated(deployment, Roofline(deployment, base(deployment).with_(request_s=0.0)), point.workload, ASKED)
    assert again["tpot"] == pytest.approx(point.measured["tpot"].value, rel=0.02)
    opened = point_of_run(run, deployment)
    assert not opened.workload.closed_loop
    assert opened.workload.arrival_s[0] == 0.0
