"""The blackboard formulas and the queueing formulas against published and worked-out figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gambrel.core.model import MoE
from gambrel.core.units import GB, GIB, MS
from gambrel.cost import blackboard as bb
from gambrel.cost import queueing as q

FACTS = Path(__file__).parent / "facts"
Fact = dict[str, Any]


def facts(name: str) -> list[Fact]:
    loaded: list[Fact] = json.loads((FACTS / name).read_text())["facts"]
    return loaded


def critical_batch(g: Fact) -> Fact:
    flops, bandwidth = g["peak_flops_dense_bf16"], g["hbm_bytes_per_s"]
    found = {
        "flops_per_byte": flops / bandwidth,
        "critical_batch": bb.ridge_batch(flops, bandwidth),
        "critical_batch_bf16_weights_bf16_math": bb.ridge_batch(flops, bandwidth, 2),
        "critical_batch_8bit_weights_bf16_math": bb.ridge_batch(flops, bandwidth, 1),
        "critical_batch_4bit_weights_bf16_math": bb.ridge_batch(flops, bandwidth, 0.5),
    }
    if "hbm_bytes" in g:
        found["hbm_drain_ms"] = bb.drain_s(g["hbm_bytes"], bandwidth) / MS
    return found


def decode_step(g: Fact) -> Fact:
    if "total_bytes" in g:
        step_s = bb.Blackboard(g["total_bytes"], 0, 0, 1, g["chips"] * g["hbm"]).floor_s
        rate = g["batch"] / step_s
        return {"step_ms": step_s / MS, "tokens_per_s": rate, "tokens_per_s_per_chip": rate / g["chips"]}
    board = bb.Blackboard(
        g["params"] * g["weight_bytes_per_param"],
        2 * g["params"],
        g["kv_bytes_per_token"],
        g["chips"] * g["flops"],
        g["chips"] * g["hbm"],
    )
    return {"step_ms": float(board.parts(g["batch"], g["context"], "serial")[5]) / MS}


def decode_step_table(g: Fact) -> Fact:
    kv = g["batch"] * g["kv_gib_per_sequence"]
    # the book divides GiB by TB-like figures of its own: the ratio is what it prints
    board = bb.Blackboard(g["weight_gib"], 0, g["kv_gib_per_sequence"], 1, g["hbm_tib_per_s_total"] * 1000)
    step_s = float(board.parts(g["batch"], 1)[5])
    return {
        "kv_gib": kv,
        "total_gib": kv + g["weight_gib"],
        "step_ms": step_s / MS,
        "tokens_per_s": g["batch"] / step_s,
    }


def curve_points(g: Fact) -> Fact:
    board = bb.Blackboard(
        g["weight_bytes_read"], g["flops_per_token"], g["kv_bytes_per_token"], g["peak_flops"], g["hbm_bytes_per_s"]
    )
    batches = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096])
    compute, weights, kv, _, _, step = board.parts(batches, g["context"], "max")
    serial = board.parts(batches, g["context"], "serial")[5]
    dollars = bb.usd_per_mtok(g["usd_per_hour"], batches / step)
    ridge = board.ridge_batch(g["context"])
    return {
        "points": {
            str(b): row
            for b, *row in zip(
                batches.tolist(), compute / MS, (weights + kv) / MS, step / MS, serial / MS, dollars, strict=True
            )
        },
        "latency_floor_ms": board.floor_s / MS,
        "crossover_batch": None if math.isinf(ridge) else ridge,
        "crossover_context_tokens": board.crossover_context,
        "cost_ratio_batch1_to_infinity": board.amortisation(g["context"]),
    }


KINDS: dict[str, Any] = {
    "critical_batch_bf16_dense": critical_batch,
    "decode_step": decode_step,
    "decode_step_table": decode_step_table,
    "latency_and_cost_curve": curve_points,
    "memory": lambda g: {
        "total_gb": (g["params"] * g["weight_bytes_per_param"] + g["batch"] * g["context"] * g["kv_bytes_per_token"])
        / GB
    },
    "prefill": lambda g: {"seconds": bb.prefill_s(2 * g["params"] * g["tokens"], g["chips"] * g["flops"], g["mfu"])},
    "disaggregation_ratio": lambda g: {
        "prefill_per_decode_server": bb.prefill_per_decode_server(
            g["prefill_s"], g["decode_step_s"], g["batch"], g["output_tokens"]
        )
    },
    "decode_mfu": lambda g: {
        "mfu": bb.mfu(2 * g["params"] * g["batch"] * g["steps"], g["seconds"], g["chips"] * g["peak"]),
        "ms_per_token": g["seconds"] / g["steps"] / MS,
    },
    "max_context": lambda g: {
        "tokens": bb.max_context(
            g["chips"] * g["hbm_gib"] * GIB * g["kv_fraction"],
            2 * g["layers"] * g["kv_heads"] * g["head_dim"] * g["kv_bytes"],
            g["batch"],
        )
    },
    "mbu": lambda g: {"mbu": bb.mbu(g["params"] * g["bytes"], g["tpot_s"], g["peak_bw"])},
    "critical_batch": lambda g: {"batch": bb.ridge_batch(g["hardware_ratio"], 1, 2, g["sparsity"])},
    "kv_crossover": lambda g: {
        "bytes_per_token": bb.crossover_kv_bytes(g["n_active"], g["context"], g["hardware_ratio"])
    },
    "train_schedule": lambda g: {"worst_case_s": bb.train_wait_s(g["step_s"])[1]},
    "kv_slots": lambda g: {"slots": bb.kv_slots(g["kv_gib"] * GIB, g["kv_bytes_per_token"])},
    "expected_distinct_experts": lambda g: {
        "distinct": {str(1 << i): MoE(g["experts"], g["topk"]).distinct(1 << i) for i in range(9)}
    },
    "speculative_speedup_zero_cost_draft": lambda g: {"tokens_per_step": bb.speculative_tokens(g["alpha"], g["gamma"])},
}


def close(found: Any, wanted: Any, tolerance: float) -> None:
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            close(found[key], value, tolerance)
    elif isinstance(wanted, list):
        close(dict(enumerate(found)), dict(enumerate(wanted)), tolerance)
    elif wanted is None:
        assert found is None
    else:
        assert found == pytest.approx(wanted, rel=tolerance)


@pytest.mark.parametrize("fact", facts("roofline.json"), ids=lambda f: f["id"])
def test_roofline_facts(fact: Fact) -> None:
    close(KINDS[fact["kind"]](fact["given"]), fact["expect"], fact["tolerance"])


def queue(g: Fact) -> Fact:
    if "servers" in g:
        c, a = g["servers"], g["offered_load"]
        return {
            "erlang_b": q.erlang_b(c, a),
            "erlang_c": q.erlang_c(c, a),
            "mean_wait_over_service": q.erlang_c_wait(c, a),
            "p99_wait_over_service": q.erlang_c_wait_quantile(c, a, 0.99),
        }
    if "users" in g:
        response = g.get("response_s") or g["step_s"] * g["output_tokens"]
        rate = q.closed_loop_rate(g["users"], response, g["think_s"])
        return {
            "throughput_rps": rate,
            "tokens_per_s": rate * g.get("output_tokens", math.nan),
            "in_service": rate * response,
        }
    rho = g["utilisation"]
    found = {"mean_sojourn_over_service": q.mg1_ps_sojourn(rho)}
    if "service_scv" in g:
        found["mean_wait_over_service"] = q.mg1_wait(rho, g["service_scv"])
    return found


@pytest.mark.parametrize("fact", facts("queueing.json"), ids=lambda f: f["id"])
def test_queueing_facts(fact: Fact) -> None:
    close(queue(fact["given"]), fact["expect"], fact["tolerance"])


def test_named_queues_are_the_general_one() -> None:
    for rho in (0.0, 0.3, 0.95):
        assert q.md1_wait(rho) == q.mg1_wait(rho, 0.0) == pytest.approx(q.kingman_wait(rho, 1.0, 0.0))
        assert q.mm1_wait(rho) == q.mg1_wait(rho, 1.0) == pytest.approx(q.erlang_c_wait(1, rho))
    assert q.md1_wait(1.0) == q.mg1_ps_sojourn(1.2) == q.erlang_c_wait(2, 2.0) == math.inf
    assert q.erlang_c(3, 5.0) == 1.0


@pytest.mark.shared
@pytest.mark.parametrize("name", ["roofline", "queueing"])
def test_every_shared_vector(shared_data: Path, name: str) -> None:
    vectors = json.loads((shared_data / "test_vectors" / f"{name}.json").read_text())["vectors"]
    for v in vectors:
        found = queue(v["inputs"]) if name == "queueing" else KINDS[v["kind"]](v["inputs"])
        wanted = dict(v["expect"])
        points = wanted.pop("points", {})
        close(found, wanted, v["tolerance"])
        for batch, p in points.items():
            close(found["points"][batch], list(p.values()), v["tolerance"])
