"""Laws of every model that a config can describe: conservation over ranks, windows, formats; clear refusals."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gambrel.catalog
from gambrel.catalog.models import model, model_from_config, model_names
from gambrel.core.bill import bill, model_figures
from gambrel.core.errors import CatalogError, GambrelError
from gambrel.core.formats import KV_FORMATS, WEIGHT_FORMATS, kv_format, weight_format
from gambrel.core.model import Model, MoE, Shard
from gambrel.core.paging import paged_layout

BF16 = kv_format("bf16")
KINDS = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "cohere2",
    "starcoder2",
    "gpt_neox",
)
NAMES = model_names()


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A dense or expert decoder whose sides divide by eight ranks."""
    kv = draw(st.sampled_from((1, 2, 4, 8)))
    heads = kv * draw(st.sampled_from((1, 2, 4, 8)))
    heads = max(8, heads)
    config: dict[str, Any] = {
        "model_type": draw(st.sampled_from(KINDS)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": draw(st.sampled_from((32, 64, 128))),
        "hidden_size": 64 * draw(st.integers(1, 32)),
        "intermediate_size": 256 * draw(st.integers(1, 64)),
        "num_hidden_layers": draw(st.integers(1, 24)),
        "vocab_size": 128 * draw(st.integers(1, 2000)),
        "tie_word_embeddings": draw(st.booleans()),
        "sliding_window": draw(st.one_of(st.none(), st.integers(1, 8192))),
        "max_position_embeddings": 131072,
    }
    if draw(st.booleans()):
        experts = 8 * draw(st.integers(1, 16))
        config |= {
            "model_type": draw(st.sampled_from(("qwen3_moe", "mixtral", "glm4_moe", "gpt_oss"))),
            "num_experts": experts,
            "num_experts_per_tok": draw(st.integers(1, 8)),
            "moe_intermediate_size": 64 * draw(st.integers(1, 32)),
        }
    return config


@given(configs(), st.sampled_from((1, 2, 4, 8)))
def test_ranks_sum_to_the_whole_plus_the_stated_replication(config: dict[str, Any], tp: int) -> None:
    m = model_from_config(config)
    kv_heads = config["num_key_value_heads"]
    extra = 0
    pairs = [(1, t) for t in m.tensors] + [(n, t) for n, x in m.layers for t in x.tensors]
    for n, tensor in pairs:
        if tensor.shard is Shard.REPLICATED:
            extra += n * tensor.count * (tp - 1)
        elif tensor.shard is Shard.KV_HEADS and tp > kv_heads:
            extra += n * tensor.count * (tp // kv_heads - 1)
    on_rank = sum(t.on_rank(tp).count for t in m.tensors)
    on_rank += sum(n * t.on_rank(tp, x.mixer.kv_heads).count for n, x in m.layers for t in x.tensors)
    assert on_rank * tp == m.total_params + extra


@given(configs(), st.integers(1, 16))
def test_kv_on_a_rank_is_never_below_its_share(config: dict[str, Any], tp: int) -> None:
    m = model_from_config(config)
    for fmt in KV_FORMATS.values():
        whole = m.kv_bytes_per_token(fmt)
        share = m.kv_bytes_per_token_on_rank(fmt, tp)
        assert whole <= share * tp
        if tp <= config["num_key_value_heads"] and config["num_key_value_heads"] % tp == 0:
            assert share * tp == whole
        if tp >= config["num_key_value_heads"]:
            assert share == m.kv_bytes_per_token_on_rank(fmt, config["num_key_value_heads"])


@given(configs(), st.integers(0, 1 << 20))
def test_a_window_never_costs_more_than_full_attention(config: dict[str, Any], context: int) -> None:
    full = model_from_config({**config, "sliding_window": None})
    windowed = model_from_config(config)
    assert windowed.kv_bytes_held(context, BF16) <= full.kv_bytes_held(context, BF16)
    assert windowed.kv_elements_read(context) <= full.kv_elements_read(context)
    assert windowed.attention_flops(context) <= full.attention_flops(context)
    assert windowed.total_params == full.total_params
    # held bytes are the sum of what each token added
    assert windowed.kv_bytes_held(context + 1, BF16) - windowed.kv_bytes_held(context, BF16) == (
        windowed.kv_bytes_per_token(BF16, context)
    )


@given(configs())
def test_quantised_is_never_larger_than_bf16(config: dict[str, Any]) -> None:
    m = model_from_config(config)
    whole = m.weight_bytes(weight_format("bf16"))
    assert whole >= 2 * m.total_params
    for fmt in WEIGHT_FORMATS.values():
        if fmt.flat_bits is None:
            assert m.weight_bytes(fmt) <= whole
        assert m.weight_bytes(fmt) >= m.total_params * 0.5


@given(configs(), st.integers(1, 100_000))
def test_paged_memory_covers_what_is_held(config: dict[str, Any], context: int) -> None:
    m = model_from_config(config)
    layout = paged_layout(m, BF16)
    assert layout.sequence_bytes(context) >= m.kv_bytes_held(context, BF16)
    assert layout.sequence_bytes(context + layout.block_size) >= layout.sequence_bytes(context)


@given(configs())
def test_experts_are_routed_exactly(config: dict[str, Any]) -> None:
    m = model_from_config(config)
    moe = next((x.moe for _, x in m.layers if x.moe), None)
    if moe is None:
        assert m.active_params == m.total_params
    else:
        idle = m.total_params - m.active_params
        assert idle * moe.num_experts == m.routed_params * (moe.num_experts - moe.top_k)


@given(st.integers(1, 512), st.integers(1, 16), st.lists(st.integers(0, 100_000), min_size=1, max_size=8))
def test_distinct_experts_of_an_array_are_those_of_its_numbers(num: int, top_k: int, tokens: list[int]) -> None:
    moe = MoE(num, min(num, top_k))
    assert moe.distinct(np.array(tokens)).tolist() == [float(moe.distinct(t)) for t in tokens]
    assert all(moe.distinct(t) <= min(num, t * moe.top_k) + 1e-9 for t in tokens)


@given(st.integers(2, 512), st.integers(1, 16), st.floats(0.05, 50.0), st.integers(1, 10_000))
def test_the_more_popularity_is_spread_the_fewer_experts_are_touched(
    num: int, top_k: int, shape: float, tokens: int
) -> None:
    """One token touches as many as it is routed to; more touch more, but never as many as under even routing."""
    moe = MoE(num, min(num, top_k))
    assert moe.distinct(1, shape) == pytest.approx(moe.top_k, rel=1e-6)
    few, more, even = moe.distinct(tokens, shape), moe.distinct(tokens + 1, shape), moe.distinct(tokens)
    assert few <= more * (1 + 1e-9)
    assert few <= even * (1 + 1e-6)
    assert moe.distinct(tokens, 1e6) == pytest.approx(float(even), rel=1e-3)


def test_the_busiest_rank_of_experts_by_simulation() -> None:
    """Shares drawn from the same spread: the formula's largest of 8 ranks lies within 5 % of the drawn ones' mean."""
    moe, shape, rng = MoE(128, 8), 1.0, np.random.default_rng(0)
    whole = shape * moe.num_experts / moe.top_k
    share = moe.top_k / moe.num_experts
    drawn = rng.beta(whole * share, whole * (1 - share), (4000, 8, 16)).sum(axis=2)
    largest = (drawn.max(axis=1) / drawn.mean(axis=1)).mean()
    assert moe.busiest(8, shape) == pytest.approx(largest, rel=0.05)
    assert moe.busiest(1, shape) == moe.busiest(8) == 1.0


@pytest.mark.parametrize("tokens", [4, 16, 64])
@pytest.mark.parametrize("ranks", [4, 8])
def test_the_rank_with_most_experts_touched_by_simulation(tokens: int, ranks: int) -> None:
    """Tokens routed by drawn popularities: the formula's largest of the ranks lies within 5 % of the drawn mean."""
    moe, shape, rng = MoE(128, 8), 1.0, np.random.default_rng(0)
    whole, share = shape * moe.num_experts / moe.top_k, moe.top_k / moe.num_experts
    chance = rng.beta(whole * share, whole * (1 - share), (600, 1, moe.num_experts))
    hit = (rng.random((600, tokens, moe.num_experts)) < chance).any(axis=1)
    largest = hit.reshape(600, ranks, -1).sum(axis=2).max(axis=1).mean()
    assert moe.touched(tokens, ranks, shape) == pytest.approx(largest, rel=0.05)


@given(st.integers(1, 64), st.integers(1, 8), st.floats(0.05, 50.0), st.integers(0, 10_000))
def test_no_rank_touches_less_than_the_mean_or_more_than_it_has(
    per: int, ranks: int, shape: float, tokens: int
) -> None:
    moe = MoE(per * ranks, min(per * ranks, 8))
    mean, most = moe.distinct(tokens, shape) / ranks, moe.touched(tokens, ranks, shape)
    assert mean * (1 - 1e-9) <= most <= per * (1 + 1e-9)
    assert moe.touched(tokens, ranks) == pytest.approx(float(moe.distinct(tokens)) / ranks)
    assert moe.touched(np.array([tokens]), ranks, shape)[0] == most


@pytest.mark.parametrize("name", [n for n in NAMES if "DeepSeek" in n or "Kimi" in n])
def test_the_latent_is_replicated(name: str) -> None:
    m = model(name)
    mla = [(n, x) for n, x in m.all_mixers() if x.kind == "mla"]
    for n, mixer in mla:
        assert n * mixer.bytes_per_token_on_rank(BF16, 8) == n * mixer.bytes_per_token(BF16)


# -- refusals -----------------------------------------------------------------------------------------


def check(config: Any) -> None:
    """A config gives a Model whose figures are finite, or one clear line."""
    try:
        m = model_from_config(config, "mutant")
    except GambrelError as error:
        line = str(error)
    else:
        assert isinstance(m, Model)
        assert m.total_params >= 0
        json.dumps(model_figures(m))
        bill(m)
        return
    assert "\n" not in line
    assert len(line) < 600
    assert "mutant" in line


WEIRD: tuple[Any, ...] = (
    None, 0, -1, 1, 3, 2.5, 1e300, float("nan"), float("inf"), True, False, "", "x", "4096", [], [1], [None] * 3, {},
    {"a": 1}, 10**30, "full_attention", ["full_attention"], ["sliding_attention"] * 400,
)  # fmt: skip


def mutate(rng: random.Random, config: dict[str, Any]) -> dict[str, Any]:
    mutant = copy.deepcopy(config)
    for _ in range(rng.randint(1, 3)):
        place: Any = mutant
        inner = [k for k, v in place.items() if isinstance(v, dict)]
        while inner and rng.random() < 0.6:
            place = place[rng.choice(inner)]
            inner = [k for k, v in place.items() if isinstance(v, dict)]
        keys = list(place)
        if not keys:
            continue
        key = rng.choice(keys)
        action = rng.random()
        if action < 0.35:
            del place[key]
        elif action < 0.8:
            place[key] = rng.choice(WEIRD)
        elif isinstance(place[key], int):
            place[key] = rng.choice((place[key] * 2, place[key] + 1, -place[key], place[key] // 2, place[key] * 10**9))
        elif isinstance(place[key], list) and place[key]:
            place[key] = place[key][: rng.randint(0, len(place[key]))] or [rng.choice(WEIRD)]
        else:
            place[key] = rng.choice(WEIRD)
    return mutant


def test_a_thousand_mutated_configs_give_a_model_or_one_clear_line() -> None:
    folder = Path(gambrel.catalog.__file__).parent / "data" / "models"
    originals = [json.loads(p.read_text())["config"] for p in sorted(folder.glob("*.json"))]
    rng = random.Random(20261122)  # noqa: S311 - reproducible mutations, no secrets
    for _ in range(1000):
        check(mutate(rng, rng.choice(originals)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(("model_type", "text_config", "hidden_size", "num_hidden_layers",
                                        "num_attention_heads", "vocab_size", "architectures", "quantization_config",
                                        "layer_types", "intermediate_size", "vision_config")), JSON))  # fmt: skip
def test_arbitrary_json_gives_a_model_or_one_clear_line(config: dict[str, Any]) -> None:
    check(config)


@pytest.mark.parametrize("config", [[], 3, None, "x", True])
def test_a_config_must_be_an_object(config: Any) -> None:
    with pytest.raises(CatalogError, match="must be a JSON object"):
        model_from_config(config)


LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 100,
}  # fmt: skip


@pytest.mark.parametrize(
    "field", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(CatalogError, match=field):
        model_from_config({k: v for k, v in LLAMA.items() if k != field}, "lacking")


def test_an_unknown_type_is_computed_and_says_what_it_assumed() -> None:
    m = model_from_config({**LLAMA, "model_type": "brand_new"})
    assert m.total_params == model_from_config(LLAMA).total_params
    assert any("brand_new" in a for a in m.assumptions)
    by_class = model_from_config({**LLAMA, "model_type": "custom", "architectures": ["Qwen3ForCausalLM"]})
    assert any("Qwen3ForCausalLM" in a for a in by_class.assumptions)


def test_unknown_recurrent_layers_are_refused() -> None:
    with pytest.raises(CatalogError, match="ssm_state_size"):
        model_from_config({**LLAMA, "model_type": "brand_new", "ssm_state_size": 16})


def test_every_spelling_reads_the_same() -> None:
    base = model_from_config({**LLAMA, "num_key_value_heads": 2})
    other = {
        "model_type": "llama",
        "n_embd": 64,
        "ffn_dim": 128,
        "n_layer": 2,
        "n_head": 4,
        "n_vocab": 100,
        "n_kv_heads": 2,
    }
    assert model_from_config(other).layers == base.layers
    nested = model_from_config({"model_type": "llava", "text_config": {**LLAMA, "num_key_value_heads": 2}})
    assert nested.layers == base.layers


def test_class_defaults_fill_what_nested_configs_omit() -> None:
    # google/gemma-3-4b-it states only what departs from the class: heads, vocabulary and head width are omitted
    stated = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024,
              "model_type": "gemma3_text"}  # fmt: skip
    m = model_from_config({"model_type": "gemma3", "text_config": stated, "vision_config": {"hidden_size": 1152,
                           "num_hidden_layers": 27, "intermediate_size": 4304, "patch_size": 14}})  # fmt: skip
    assert m.num_heads == 8
    assert m.vocab_size == 262208
    assert m.windows == (1024,)
    assert 0.38e9 < dict(m.extras)["vision"] < 0.45e9
    assert any("num_attention_heads 8" in a for a in m.assumptions)


def test_windows_that_never_bind_are_none() -> None:
    assert model("microsoft/Phi-4-mini-instruct").windows == ()
    assert model("Qwen/Qwen2.5-7B-Instruct").windows == ()
    assert model("mistralai/Mistral-7B-v0.1").windows == (4096,)
    scout = model("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    assert scout.windows == (8192,)
    assert sum(n for n, x in scout.layers if x.mixer.window is None) == 12
