"""Published and reference counts, reproduced to the integer from the project's own facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gambrel.catalog.models import model, model_from_config, model_names
from gambrel.core.bill import bill, model_figures
from gambrel.core.formats import Role, kv_format, weight_format
from gambrel.core.model import MoE
from gambrel.core.paging import paged_layout

FACTS = Path(__file__).parent / "facts"
BF16, FP8 = kv_format("bf16"), kv_format("fp8")
FAR = 1 << 62


def facts(name: str) -> list[dict[str, Any]]:
    document = json.loads((FACTS / f"{name}.json").read_text())
    assert document["source"]
    assert document["as_of"]
    return list(document["facts"])


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [r["id"] for r in rows]


COUNTS, FLOPS, WEIGHTS = facts("model_counts"), facts("model_flops"), facts("model_weights")
KV, REFERENCE = facts("model_kv_published"), facts("model_reference_totals")


@pytest.mark.parametrize("fact", COUNTS, ids=ids(COUNTS))
def test_parameters_match(fact: dict[str, Any]) -> None:
    m = model_from_config(fact["config"], fact["id"])
    assert m.total_params == fact["total"]
    assert m.routed_params == fact["routed"]
    assert m.active_params == fact["active"]
    assert m.active_params_without_embedding == fact["active_without_embedding"]
    assert m.input_embedding_params == fact["embedding"]
    assert m.tied == fact["tied"]
    assert fact.get("mtp", dict(m.extras).get("mtp")) == dict(m.extras).get("mtp")


@pytest.mark.parametrize("fact", [f for f in COUNTS if "kv" in f], ids=ids([f for f in COUNTS if "kv" in f]))
def test_kv_cache_matches(fact: dict[str, Any]) -> None:
    m = model_from_config(fact["config"], fact["id"])
    layers = [(n, x.mixer) for n, x in m.layers if x.mixer.kv_elements]
    assert [
        layers[0][1].kv_elements,
        sum(n for n, x in layers if x.window is None),
        sum(n for n, x in layers if x.window is not None),
        m.windows[0] if m.windows else None,
        m.kv_elements_per_token(),
        m.kv_elements_per_token(FAR),
    ] == fact["kv"]
    assert m.kv_bytes_per_token(BF16) == 2 * fact["kv"][4]
    assert m.kv_bytes_per_token(FP8) == fact["kv"][4]
    held = {c: m.kv_bytes_held(int(c), BF16) for c in fact["held_bf16"]}
    assert held == fact["held_bf16"]


@pytest.mark.parametrize("fact", [f for f in COUNTS if "state" in f], ids=ids([f for f in COUNTS if "state" in f]))
def test_recurrent_state_matches(fact: dict[str, Any]) -> None:
    m = model_from_config(fact["config"], fact["id"])
    conv = sum(n * x.conv_elements for n, x in m.all_mixers())
    assert [m.state_elements_per_sequence - conv, conv] == fact["state"]


@pytest.mark.parametrize("fact", KV, ids=ids(KV))
def test_published_kv_statements_match(fact: dict[str, Any]) -> None:
    m = model_from_config(fact["config"], fact["id"])
    expect = fact["expect"]
    assert m.kv_bytes_per_token(BF16) == expect.get("bytes_per_token_bf16_below_window", m.kv_bytes_per_token(BF16))
    assert m.kv_bytes_per_token(FP8) == expect.get("bytes_per_token_fp8_below_window", m.kv_bytes_per_token(FP8))
    for context, held in expect.get("bytes_held_one_sequence_bf16", {}).items():
        assert m.kv_bytes_held(int(context), BF16) == held
    assert any("only the KV figures" in a for a in m.assumptions)


FORWARD = [f for f in FLOPS if f["kind"] == "forward_matmul_flops"]


@pytest.mark.parametrize("fact", FORWARD, ids=ids(FORWARD))
def test_forward_flops_match(fact: dict[str, Any]) -> None:
    m = model_from_config(fact["config"], fact["id"])
    expect = fact["expect"]
    assert m.linear_flops_per_token == m.decode_flops_per_token == expect["linear_flops_per_token_incl_lm_head"]
    assert m.attention_flops_per_pair() == expect["attention_flops_per_query_key_pair"]
    assert (
        m.linear_flops_per_token + m.attention_flops_per_pair(decode=True) * 4096
        == (expect["decode_step_flops_one_token_at_context_4096"])
    )
    for length in (128, 1024):
        square = m.linear_flops_per_token * length + m.attention_flops_per_pair() * length * length
        assert square == expect[f"prefill_{length}_tokens_batch1_full_square_attention_lm_head_all_positions"]


def test_latent_attention_flops_match_the_published_ones() -> None:
    m = model("deepseek-ai/DeepSeek-V3")
    by_id = {f["id"]: f["expect"] for f in FLOPS}
    (mixer,) = {x.mixer for _, x in m.layers}
    absorbed = by_id["mla/DeepSeek-V3 absorbed decode"]
    assert mixer.decode_flops_per_pair == absorbed["flops_per_layer_per_query_per_cached_token"]
    assert mixer.kv_elements * 2 == absorbed["bytes_per_layer_per_cached_token_bf16"]
    expanded = by_id["mla/DeepSeek-V3 expanded prefill"]["flops_per_layer_per_query_key_pair"]
    assert mixer.prefill_flops_per_pair == expanded
    decode = m.linear_flops_per_token + expanded * 61 * 8193
    assert decode == by_id["v3-reference/decode at context 8192"]["matrix_flops"]
    prefill = 8192 * m.linear_flops_per_token + expanded * 61 * (8192 * 8193 // 2)
    assert prefill == by_id["v3-reference/prefill 8192"]["matrix_flops"]
    llama = model("meta-llama/Llama-3.1-8B")
    intensity = llama.attention_flops_per_pair(decode=True) / llama.kv_bytes_per_token(BF16)
    assert intensity == by_id["gqa/intensity"]["llama31_8b_bf16_decode_intensity"]


@pytest.mark.parametrize("fact", WEIGHTS, ids=ids(WEIGHTS))
def test_weight_bytes_match(fact: dict[str, Any]) -> None:
    m, expect, name = model(fact["model"]), fact["expect"], fact["id"]
    key = next(
        f
        for word, f in {
            "fp8": "fp8", "mxfp4": "mxfp4", "Q4_K_M": "q4_k_m", "Q8_0": "q8_0", "Q6_K": "q6_k", "Q5_K_M": "q5_k_m",
            "F16": "f16", "AWQ": "int4", "bf16": "bf16",
        }.items()
        if word in name
    )  # fmt: skip
    fmt = weight_format(key)
    got = m.weight_bytes(fmt) + (m.mtp_weight_bytes(fmt) if "with MTP" in name else 0)
    unit = {"payload_bytes": 1, "size_gib": 2**30, "size_gb": 1e9}
    for field, want in expect.items():
        if field in unit:
            assert got / unit[field] == pytest.approx(want, rel=fact["tolerance"], abs=0 if fact["tolerance"] else 1e-9)
    if "f8_elements" in expect and "without" in name:
        quantised = sum(n * t.count for n, t in m.all_tensors() if t.role in {Role.LINEAR, Role.EXPERT})
        assert quantised == expect["f8_elements"]
    if "mxfp4_elements" in expect:
        assert sum(n * t.count for n, t in m.all_tensors() if t.role is Role.EXPERT) == expect["mxfp4_elements"]
    if "quantised_linear_elements" in expect:
        linear = sum(n * t.count for n, t in m.all_tensors() if t.role is Role.LINEAR)
        assert linear == expect["quantised_linear_elements"]


@pytest.mark.parametrize("fact", REFERENCE, ids=ids(REFERENCE))
def test_reference_classes_match(fact: dict[str, Any]) -> None:
    assert model_from_config(fact["config"], fact["id"]).total_params == fact["total"]


PUBLISHED = {
    # published totals and active counts, in billions, as their model cards round them
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (107.77, 17.17),
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1": (49.87, 49.87),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (31.58, 3.58),
    "moonshotai/Kimi-K2-Instruct": (1026.41, 32.86),
    "MiniMaxAI/MiniMax-M2.5": (228.69, 11.03),
    "XiaomiMiMo/MiMo-V2-Flash": (308.78, 15.45),
    "google/gemma-4-26B-A4B": (25.23, 3.82),
    "deepseek-ai/DeepSeek-V3.2": (671.88, 38.40),
    "deepseek-ai/DeepSeek-V4-Flash": (284.33, 13.80),
    "zai-org/GLM-4.5": (352.80, 33.63),
    "zai-org/GLM-5": (743.91, 41.78),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_model_cards_agree(name: str) -> None:
    m = model(name)
    assert (round(m.total_params / 1e9, 2), round(m.active_params / 1e9, 2)) == PUBLISHED[name]


@pytest.mark.parametrize("name", model_names())
def test_the_bill_adds_up(name: str) -> None:
    m = model(name)
    rows = bill(m)
    assert sum(r.params for r in rows) == m.total_params
    assert sum(r.active_params for r in rows) == m.active_params
    assert sum(r.bytes_bf16 for r in rows) == m.weight_bytes(weight_format("bf16"))
    assert sum(r.flops_per_token for r in rows) == m.decode_flops_per_token
    assert sum(r.flops_per_pair for r in rows) == m.attention_flops_per_pair(decode=True)
    assert sum(r.kv_bytes_per_token for r in rows) == m.kv_bytes_per_token(BF16)
    assert sum(r.state_bytes for r in rows) == m.state_bytes_per_sequence
    assert all(r.formula for r in rows)
    figures = model_figures(m)
    assert json.loads(json.dumps(figures)) == figures
    assert not m.assumptions, "shipped facts leave nothing to assume"
    assert m.source


def test_hybrid_blocks_inflate_as_vllm_logs_say() -> None:
    # vLLM 0.19 start-up logs: 784 tokens and 0.13 % padding (Qwen3.5-27B); 528 and 1056 (Qwen3.5-9B, bf16 and fp8 KV)
    layout = paged_layout(model("Qwen/Qwen3.5-27B"), BF16)
    assert layout.block_size == 784
    assert round(100 * layout.state_padding, 2) == 0.13
    nine = {
        "model_type": "qwen3_5_text", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248320,
        "full_attention_interval": 4, "mamba_ssm_dtype": "float32",
    }  # fmt: skip
    m = model_from_config(nine)
    assert paged_layout(m, BF16).block_size == 528
    assert paged_layout(m, FP8).block_size == 1056
    assert paged_layout(m, BF16).sequence_bytes(1) > m.state_bytes_per_sequence


def test_dense_blocks_do_not_inflate() -> None:
    layout = paged_layout(model("meta-llama/Llama-3.1-8B"), BF16)
    assert (layout.block_size, layout.sequence_bytes(17)) == (16, 32 * 131072)


def test_distinct_experts() -> None:
    moe = MoE(256, 8)
    assert moe.distinct(1) == pytest.approx(8)
    assert moe.distinct(0) == 0
    assert moe.distinct(1e9) == pytest.approx(256)
    assert MoE(4, 4).distinct(3) == 4
