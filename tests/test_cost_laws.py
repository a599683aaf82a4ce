"""The laws of the cost model, for any model, accelerator, format, parallelism and batch that hypothesis invents.

No step is below its physical floor; cost grows with work; max <= serial <= sum; one step = table = array.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_factory import A100, ACCELERATORS, H100, deepseek_like, dense, llama_8b, llama_on_h100
from gambrel.catalog.accelerators import accelerator, accelerators
from gambrel.catalog.efficiency import constants, efficiency
from gambrel.catalog.models import model as shipped
from gambrel.core.deployment import Deployment
from gambrel.core.efficiency import Efficiency, Matmul, ideal
from gambrel.core.errors import DeploymentError
from gambrel.core.formats import KV_FORMATS, WEIGHT_FORMATS, Role
from gambrel.core.model import Model, MoE
from gambrel.core.step import Step, StepTable, causal_pairs, step_parts
from gambrel.cost import Roofline
from gambrel.cost.shards import rank_attention

FAMILIES = tuple(constants()["families"])


@st.composite
def models(draw: st.DrawFn) -> Model:
    head_dim = draw(st.sampled_from((64, 128, 256)))
    kv_heads = draw(st.sampled_from((1, 2, 4, 8)))
    layers = draw(st.integers(1, 8))
    moe = draw(st.one_of(st.none(), st.builds(MoE, st.sampled_from((8, 64, 128)), st.integers(1, 8))))
    return draw(
        st.one_of(
            st.just(deepseek_like()),
            st.builds(
                dense,
                hidden=st.sampled_from((512, 2048, 8192)),
                layers=st.just(layers),
                heads=st.just(kv_heads * draw(st.sampled_from((1, 4, 8)))),
                kv_heads=st.just(kv_heads),
                head_dim=st.just(head_dim),
                inner=st.sampled_from((1024, 4096, 28672)),
                vocab=st.sampled_from((1000, 128256)),
                tied=st.booleans(),
                window=st.sampled_from((128, 1024)),
                windowed_layers=st.integers(0, layers),
                moe=st.just(moe),
                shared=st.sampled_from((0, 1024)),
            ),
        )
    )


fractions = st.floats(0.05, 1.0)
seconds = st.floats(0.0, 1e-4)


@st.composite
def efficiencies(draw: st.DrawFn) -> Efficiency:
    """Shipped, ideal, or anything the constants may legally be."""
    matmuls = st.builds(
        Matmul,
        mfu_max=fractions,
        mfu_half_tokens=st.floats(0, 200),
        bw_max=fractions,
        bw_half_bytes=st.floats(0, 5e7),
        rounding=st.sampled_from((0.0, 0.25, 0.5, 1.0)),
        expert_passes=st.floats(0, 20),
    )
    return draw(
        st.one_of(
            st.just(ideal()),
            st.sampled_from(ACCELERATORS).map(efficiency),
            st.builds(
                Efficiency,
                matmul=matmuls.map(lambda m: (("bf16", m),)),
                grouped=matmuls.map(lambda m: (("bf16", m),)),
                expert_shape=st.floats(0.1, 50),
                kv_bw_max=fractions,
                kv_floor_s=seconds,
                kv_sqrt=st.floats(0, 1e-8),
                prefill_mfu_max=fractions,
                prefill_half_keys=st.floats(0, 1000),
                prefill_floor_s=seconds,
                decode_attention_mfu=fractions,
                layer_s=seconds,
                layer_passes=st.floats(0, 40),
                layer_passes_tp=st.floats(0, 40),
                step_s=seconds,
                seq_s=seconds,
                stream_s=seconds,
                soft_fp8=st.floats(0, 5000),
                logit_passes=st.floats(0, 20),
                allreduce_alpha_s=seconds,
                allreduce_bw=fractions,
                pcie_alpha_s=seconds,
                pcie_bw=fractions,
                pcie_sharing=st.floats(0, 2),
            ),
        )
    )


@st.composite
def deployments(draw: st.DrawFn) -> Deployment:
    tp = draw(st.sampled_from((1, 2, 4, 8)))
    return Deployment(
        draw(models()),
        draw(st.sampled_from(ACCELERATORS)),
        tp=tp,
        ep=draw(st.sampled_from([n for n in (1, 2, 8) if tp % n == 0])),
        weights=draw(st.sampled_from(sorted(WEIGHT_FORMATS))),
        kv=draw(st.sampled_from(sorted(KV_FORMATS))),
    )


@st.composite
def steps(draw: st.DrawFn, window: int | None) -> Step:
    """Decoders at one context, beside at most one prefill chunk."""
    batch, context = draw(st.integers(0, 512)), draw(st.integers(1, 200_000))
    new, cached = draw(st.integers(0 if batch else 1, 4096)), draw(st.integers(0, 100_000))
    base = Step.decode(batch, context, window)
    last = draw(st.booleans()) and new > 0
    return replace(
        base,
        tokens=batch + new,
        sampled=batch + last,
        prefill_tokens=new,
        prefill_chunks=int(new > 0),
        prefill_pairs=causal_pairs(cached, new),
        prefill_pairs_windowed=causal_pairs(cached, new, window) if window else 0,
    )


def cap(model: Model) -> int | None:
    return model.spans[-1] if model.spans else None


def distinct_bytes(model: Model, d: Deployment, tokens: int, shape: float) -> float:
    """Weight bytes that a step must read from all ranks together, each tensor once: a floor for any sharding."""
    fmt = d.weight_format
    total = 0.0
    for n, layer in model.layers:
        for tensor in layer.tensors:
            size = tensor.count * fmt.flat_bits / 8 if fmt.flat_bits else tensor.stored_bytes(fmt, model.base_bits)
            if tensor.role is Role.EXPERT and layer.moe is not None:
                size *= layer.moe.distinct(tokens, shape) / layer.moe.num_experts
            total += n * size
    return total


def floors(d: Deployment, step: Step, shape: float) -> tuple[float, float]:
    """(bytes over peak bandwidth, FLOPs over peak FLOP/s) of one step on perfectly shared work, seconds."""
    model, ranks = d.model, d.tp
    memory = distinct_bytes(model, d, step.tokens, shape)
    if step.sampled:
        head = model.head
        memory += head.count * d.weight_format.flat_bits / 8 if d.weight_format.flat_bits else head.count * 2
    for n, mixer in model.all_mixers():
        read = step.decode_kv if mixer.span is None else step.decode_kv_windowed
        memory += n * mixer.kv_elements * d.kv_format.element_bytes * read
    flops: float = step.tokens * model.layer_flops_per_token + step.sampled * model.head.flops_per_token
    for n, mixer in model.all_mixers():
        full = mixer.span is None
        flops += n * mixer.decode_flops_per_pair * (step.decode_kv if full else step.decode_kv_windowed)
        flops += n * mixer.prefill_flops_per_pair * (step.prefill_pairs if full else step.prefill_pairs_windowed)
    peak = max(d.accelerator.peak_flops.values())
    return memory / (d.accelerator.memory_bandwidth * ranks), flops / (peak * ranks)


@given(st.data())
def test_no_step_is_below_its_physical_floor(data: st.DataObject) -> None:
    d, eff = data.draw(deployments()), data.draw(efficiencies())
    step = data.draw(steps(cap(d.model)))
    memory, compute = floors(d, step, eff.expert_shape)
    for form in ("max", "serial"):
        cost = Roofline(d, eff, form).step_cost(step)
        assert cost.seconds >= memory * (1 - 1e-9)
        assert cost.seconds >= compute * (1 - 1e-9)


@given(st.data())
def test_max_is_at_most_serial_is_at_most_the_sum(data: st.DataObject) -> None:
    d, eff = data.draw(deployments()), data.draw(efficiencies())
    step = data.draw(steps(cap(d.model)))
    low, high = (Roofline(d, eff, form).step_cost(step) for form in ("max", "serial"))
    total = high.compute_s + high.weights_s + high.kv_s + high.collective_s + high.overhead_s
    assert low.seconds <= high.seconds * (1 + 1e-9)
    assert high.seconds <= total * (1 + 1e-9)
    assert high.bound_by in {"compute", "weights", "kv", "collective", "overhead"}


@given(st.data(), st.sampled_from(("max", "serial")))
def test_more_work_never_costs_less(data: st.DataObject, form: str) -> None:
    d, eff = data.draw(deployments()), data.draw(efficiencies())
    model = Roofline(d, eff, form)
    window = cap(d.model)
    batch, context = data.draw(st.integers(1, 500)), data.draw(st.integers(1, 100_000))
    prompt, cached = data.draw(st.integers(1, 4000)), data.draw(st.integers(0, 100_000))
    at = model.step_cost(Step.decode(batch, context, window)).seconds * (1 - 1e-9)
    assert model.step_cost(Step.decode(batch + 1, context, window)).seconds >= at
    assert model.step_cost(Step.decode(batch, context + 1, window)).seconds >= at
    at = model.step_cost(Step.prefill(prompt, 1, cached, window)).seconds * (1 - 1e-9)
    assert model.step_cost(Step.prefill(prompt + 1, 1, cached, window)).seconds >= at
    assert model.step_cost(Step.prefill(prompt, 1, cached + 1, window)).seconds >= at
    assert model.step_cost(Step.prefill(prompt, 2, cached, window)).seconds >= at


@given(st.data(), st.sampled_from(("max", "serial")))
def test_one_step_and_the_table_and_the_arrays_agree(data: st.DataObject, form: str) -> None:
    d, eff = data.draw(deployments()), data.draw(efficiencies())
    model = Roofline(d, eff, form)
    table = model.compile(5000, 520)
    batch = [data.draw(steps(cap(d.model))) for _ in range(3)]
    names = ("tokens", "sampled", "decodes", "decode_kv", "decode_kv_windowed",
             "prefill_tokens", "prefill_chunks", "prefill_pairs", "prefill_pairs_windowed")  # fmt: skip
    columns = [np.array([getattr(s, n) for s in batch]) for n in names]
    together = step_parts(*table.arrays(), *columns)
    for i, step in enumerate(batch):
        one, looked_up = model.step_cost(step), table.cost(step)
        for field, part in zip(
            ("compute_s", "weights_s", "kv_s", "collective_s", "overhead_s", "seconds"), together, strict=True
        ):
            assert getattr(looked_up, field) == pytest.approx(getattr(one, field), rel=1e-12, abs=0)
            assert part[i] == pytest.approx(getattr(looked_up, field), rel=1e-12, abs=0)


def test_numba_compiles_the_very_formula() -> None:
    from numba import njit

    table = Roofline(llama_on_h100(), efficiency(H100)).compile(4096, 256)
    compiled = njit(step_parts)
    for step in (Step.decode(7, 900), Step.prefill(512), Step(0, 0, 0, 0)):
        sums = (step.tokens, step.sampled, step.decodes, step.decode_kv, step.decode_kv_windowed, step.prefill_tokens,
                step.prefill_chunks, step.prefill_pairs, step.prefill_pairs_windowed)  # fmt: skip
        assert compiled(*table.arrays(), *sums) == pytest.approx(step_parts(*table.arrays(), *sums), rel=1e-13)


def test_an_empty_step_costs_nothing() -> None:
    for form in ("max", "serial"):
        assert Roofline(llama_on_h100(), efficiency(H100), form).step_cost(Step(0, 0, 0, 0)).seconds == 0.0


@given(st.floats(0.1, 10))
def test_a_scaled_table_scales_every_step(factor: float) -> None:
    table = Roofline(llama_on_h100(), efficiency(H100)).compile(600, 64)
    scaled: StepTable = table.scaled(factor)
    for step in (Step.decode(33, 1500), Step.prefill(512)):
        assert scaled.cost(step).seconds == pytest.approx(factor * table.cost(step).seconds)


# -- what the textbook says -----------------------------------------------------------------------------------


def test_llama_floor_on_h100() -> None:
    cost = Roofline(llama_on_h100(), ideal(), "max").step_cost(Step.decode(1, 1))
    assert cost.weights_s == pytest.approx(15_009_849_344 / 3350e9, rel=1e-5)
    assert cost.bound_by == "weights"


def test_the_head_is_read_tied_or_not_and_the_embedding_is_not() -> None:
    tied, untied = (
        Roofline(Deployment(dense(vocab=256_000, tied=t), H100), ideal()).step_cost(Step.decode(1, 1))
        for t in (True, False)
    )
    assert tied.weights_s == untied.weights_s
    silent = Roofline(llama_on_h100(), ideal()).step_cost(Step(1, 0, 1, 1))
    assert tied.weights_s > silent.weights_s


def test_eight_bit_weights_on_an_a100_halve_the_bytes_and_not_the_math() -> None:
    full, eight = (Roofline(Deployment(llama_8b(), A100, weights=w), ideal(), "max") for w in ("bf16", "fp8"))
    decode, prefill = Step.decode(1, 1), Step.prefill(8192)
    assert eight.step_cost(decode).weights_s == pytest.approx(0.535 * full.step_cost(decode).weights_s, rel=0.01)
    assert eight.step_cost(prefill).compute_s == full.step_cost(prefill).compute_s
    assert "fp8 weights run in bf16" in eight.basis
    assert not full.assumptions


def test_eight_bit_math_doubles_the_roof_where_there_is_one() -> None:
    full, eight = (Roofline(llama_on_h100(weights=w), ideal(), "max") for w in ("bf16", "fp8"))
    step = Step(8192, 1, 0, 0)
    assert full.step_cost(step).compute_s == pytest.approx(2 * eight.step_cost(step).compute_s, rel=0.02)


def test_logits_are_moved_whole_on_one_rank() -> None:
    """Drawing a token moves its row of 32-bit logits so many times, however many ranks made it."""
    base = llama_on_h100().with_(tp=4)
    none, some = (Roofline(base, ideal().with_(logit_passes=p)).step_cost(Step.decode(64, 100)) for p in (0.0, 5.0))
    moved = 5 * 64 * base.model.vocab_size * 4 / H100.memory_bandwidth
    assert some.seconds - none.seconds == pytest.approx(moved)


def test_a_mixture_reads_the_experts_its_tokens_touch() -> None:
    moe = MoE(64, 4)
    cost = Roofline(Deployment(dense(layers=1, moe=moe, inner=4096), H100), ideal())
    expert = 3 * 4096 * 4096 * 2 / 3350e9

    def read(n: int) -> float:
        return cost.step_cost(Step(n, 0, n, n)).weights_s - n * 4096 * 2 / 3350e9

    assert read(16) - read(1) == pytest.approx(expert * (moe.distinct(16) - 4), rel=1e-9)


@given(st.integers(1, 4096), st.floats(0.05, 10.0))
def test_a_batch_whose_tokens_are_alike_reads_the_experts_of_one(tokens: int, shape: float) -> None:
    moe = MoE(64, 4)
    cost = Roofline(Deployment(dense(layers=1, moe=moe, inner=4096), H100), ideal().with_(expert_shape=shape))

    def read(priced: Roofline, n: int) -> float:
        return priced.step_cost(Step(n, 0, n, n)).weights_s - n * 4096 * 2 / 3350e9

    assert read(cost.alike(), tokens) == pytest.approx(read(cost, 1), rel=0.02)
    assert read(cost.alike(), tokens) <= read(cost, tokens) * 1.0001


@given(st.floats(0.0, 20.0), st.sampled_from([1, 2, 4, 8]), st.integers(1, 4096))
def test_vectors_around_the_experts_are_divided_over_groups_and_not_over_ranks(
    passes: float, tp: int, tokens: int
) -> None:
    """Every expert of every token moves its vector so often, on each rank that sees the token."""
    d = Deployment(dense(layers=3, moe=MoE(64, 4), inner=1024), H100, tp=tp)
    some = ideal().with_(grouped=(("bf16", Matmul(expert_passes=passes)),))
    moved = 3 * 4 * passes * tokens * d.model.hidden_size * 2 / H100.memory_bandwidth
    for groups in {1, tp}:
        apart = d.with_(ep=tp, attention_dp=groups)
        step = Step(tokens * groups, 0, 0, 0)
        none, all_of_them = (Roofline(apart, e).step_cost(step).seconds for e in (ideal(), some))
        assert all_of_them - none == pytest.approx(moved, rel=1e-6, abs=1e-15)


@given(st.floats(0.0, 1.0), st.integers(1, 500))
def test_what_leaves_as_a_stream_costs_the_host_its_packets(packets: float, batch: int) -> None:
    streamed = Roofline(llama_on_h100(), ideal().with_(stream_s=5e-5, seq_s=1e-5))
    step = Step.decode(batch, 100)
    asked = (streamed, streamed.sending(0.0), streamed.sending(packets))
    whole, none, some = (m.step_cost(step).seconds for m in asked)
    assert whole - none == pytest.approx(batch * 5e-5)
    assert some - none == pytest.approx(packets * batch * 5e-5)


@given(st.floats(0.0, 2.0), st.integers(1, 256), st.integers(1, 8192), st.sampled_from([1, 2, 8]))
def test_query_heads_that_do_not_share_read_their_head_again(
    unshared: float, batch: int, context: int, tp: int
) -> None:
    """Each further query head of a group adds its share of a reading; without groups, or in a latent, nothing does."""
    alone, apart = ideal(), ideal().with_(unshared=unshared)

    def seconds(model: Model, efficiency: Efficiency) -> float:
        step = Step.decode(batch, context)
        d = Deployment(model, H100, tp=tp, kv="bf16")
        return Roofline(d, efficiency).step_cost(step).kv_s

    grouped = llama_8b()  # 32 query heads over 8
    assert seconds(grouped, apart) == pytest.approx(seconds(grouped, alone) * (1.0 + 3.0 * unshared), rel=1e-9)
    for model in (dense(layers=2, kv_heads=32), deepseek_like()):
        assert seconds(model, apart) == pytest.approx(seconds(model, alone), rel=1e-9)


@given(st.floats(0.0, 2.0), st.integers(1, 600), st.integers(1, 8_000), st.sampled_from([1, 2, 4, 8]))
def test_contexts_are_divided_up_to_512_sequences_times_query_heads_of_a_rank(
    undivided: float, batch: int, context: int, tp: int
) -> None:
    d = Deployment(llama_8b(), H100, tp=tp)
    step = Step.decode(batch, context)
    plain, older = (Roofline(d, ideal().with_(undivided=u)).step_cost(step).kv_s for u in (0.0, undivided))
    beyond = batch * d.model.num_heads / tp > 512
    assert older == pytest.approx(plain * (1.0 + undivided * beyond), rel=1e-9)


@given(st.integers(1, 256), st.integers(1, 8192))
def test_an_eight_bit_cache_is_unpacked_in_software_where_there_is_no_such_format(batch: int, context: int) -> None:
    """Two elements a query head, dimension and cached token, 1,000 FLOPs' worth each; no such work on an H100."""
    soft = ideal().with_(soft_fp8=1000.0)
    step = Step.decode(batch, context)
    worth = 32 * 2 * 32 * 128 * batch * context * 1000.0  # layers, keys and values, query heads, their width
    old, new = (Roofline(Deployment(llama_8b(), a, kv="fp8"), soft).step_cost(step) for a in (A100, H100))
    plain = [Roofline(Deployment(llama_8b(), a, kv="fp8"), ideal()).step_cost(step) for a in (A100, H100)]
    assert old.compute_s - plain[0].compute_s == pytest.approx(worth / A100.peak_flops["bf16"])
    assert new == plain[1]
    full = Roofline(Deployment(llama_8b(), A100, kv="bf16"), soft).step_cost(step)
    assert full == Roofline(Deployment(llama_8b(), A100, kv="bf16"), ideal()).step_cost(step)


def test_kv_heads_and_the_latent_are_replicated_over_ranks() -> None:
    step = Step.decode(8, 10_000)
    by_tp = [Roofline(Deployment(dense(kv_heads=4), H100, tp=tp), ideal()).step_cost(step).kv_s for tp in (1, 2, 4, 8)]
    assert by_tp[0] == pytest.approx(2 * by_tp[1]) == pytest.approx(4 * by_tp[2])
    assert by_tp[3] == by_tp[2]
    latent = [Roofline(Deployment(deepseek_like(), H100, tp=tp), ideal()).step_cost(step).kv_s for tp in (1, 8)]
    assert latent[0] == latent[1]


def test_mla_decode_is_bound_by_compute_where_bytes_are_few() -> None:
    cost = Roofline(Deployment(deepseek_like(), A100, tp=1), ideal()).step_cost(Step.decode(64, 50_000))
    assert cost.compute_s > cost.kv_s


def test_every_rank_runs_the_whole_selector() -> None:
    """No rank can choose keys by a share of the heads: what selecting takes is no less over eight ranks than on one."""
    model = shipped("deepseek-ai/DeepSeek-V3.2")
    whole = {n: p for n, p in enumerate(rank_attention(Deployment(model, H100))) if p.math == "fp8"}
    shares = rank_attention(Deployment(model, H100, tp=8))
    assert whole
    assert all(shares[n].prefill_flops_per_pair == p.prefill_flops_per_pair for n, p in whole.items())
    pairs = causal_pairs(0, 131_072)
    least = sum(p.layers * p.prefill_flops_per_pair for p in whole.values()) * pairs / H100.peak_flops["fp8"]
    step = Step.prefill(131_072, window=model.spans[-1])
    assert Roofline(Deployment(model, H100, tp=8), ideal()).step_cost(step).seconds > least


@pytest.mark.parametrize("guesses", [1, 3])
def test_the_tokens_that_are_verified_together_share_what_is_read_and_not_the_arithmetic(guesses: int) -> None:
    step = Step.decode(64, 50_000)
    one, more = (
        Roofline(Deployment(deepseek_like(), A100, draft_tokens=n), ideal()).step_cost(step) for n in (0, guesses)
    )
    linear = Roofline(Deployment(deepseek_like(), A100), ideal()).step_cost(Step.decode(64, 0)).compute_s
    assert more.kv_s == one.kv_s
    assert more.compute_s - linear == pytest.approx((1 + guesses) * (one.compute_s - linear))


def test_windowed_layers_stop_growing_at_the_window() -> None:
    d = Deployment(dense(window=1024, windowed_layers=32), H100)
    cost = Roofline(d, ideal())
    assert cost.step_cost(Step.decode(4, 1024, 1024)).kv_s == cost.step_cost(Step.decode(4, 90_000, 1024)).kv_s


def test_a_cached_prefix_is_read_by_the_chunk_that_follows_it() -> None:
    cost = Roofline(llama_on_h100(), ideal()).step_cost(Step.prefill(1, cached=100_000))
    assert cost.seconds >= (100_000 * 131072 + 15e9) / 3350e9


def test_pipeline_stages_add_their_latency() -> None:
    step = Step.decode(1, 1)
    one, two = (Roofline(llama_on_h100(pp=pp), ideal()).step_cost(step) for pp in (1, 2))
    assert two.weights_s == one.weights_s
    assert two.collective_s > one.collective_s == 0.0


def test_more_ranks_shorten_the_floor_and_pay_for_it_in_collectives() -> None:
    costs = [Roofline(llama_on_h100(tp=tp), efficiency(H100)).step_cost(Step.decode(1, 1)) for tp in (1, 2, 4, 8)]
    assert all(b.weights_s < a.weights_s for a, b in pairwise(costs))
    assert all(b.collective_s > a.collective_s for a, b in pairwise(costs[:3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"tp": 4, "ep": 3}, "must divide tp"), ({"pp": 64}, "exceeds the model's 32 layers")],
)
def test_parallel_degrees_that_cannot_be_laid_out(change: dict[str, int], message: str) -> None:
    with pytest.raises(DeploymentError, match=message):
        Roofline(llama_on_h100(**change), ideal())


def test_bad_form_and_bad_constants() -> None:
    with pytest.raises(DeploymentError, match="serial, max"):
        Roofline(llama_on_h100(), ideal(), "sum")
    with pytest.raises(DeploymentError, match="above 0 and at most 1"):
        Matmul(mfu_max=1.2)
    with pytest.raises(DeploymentError, match="not negative"):
        Efficiency(step_s=-1.0)
    with pytest.raises(DeploymentError, match="above 0"):
        Efficiency(expert_shape=0.0)


def test_ranks_without_any_link() -> None:
    lonely = replace(H100, name="lonely", link_bandwidth=0.0, pcie_bandwidth=0.0)
    with pytest.raises(DeploymentError, match="need a link"):
        Roofline(Deployment(llama_8b(), lonely, tp=2), ideal())


def test_every_accelerator_of_the_catalog_is_priced() -> None:
    """Or refused in one clear line where no 16-bit peak is known."""
    for a in accelerators().values():
        eff = efficiency(a)
        assert eff.basis
        assert 0.0 < eff.spread <= 1.5
        if a.math_format("bf16") is None:
            with pytest.raises(DeploymentError, match="no dense 16-bit"):
                Roofline(Deployment(llama_8b(), a), eff).step_cost(Step.decode(1, 1))
            continue
        cost = Roofline(Deployment(llama_8b(), a), eff).step_cost(Step.decode(1, 1))
        assert cost.seconds > 15_009_849_344 / a.memory_bandwidth
        assert cost.seconds < 4 * 15_009_849_344 / a.memory_bandwidth + 0.01


def test_borrowed_constants_say_so() -> None:
    fitted = efficiency(H100)
    assert "kernels of H100" in fitted.basis
    assert "vLLM V1" in fitted.basis
    turing = efficiency(replace(A100, name="t4", family="turing"))
    assert "constants of ampere" in turing.basis
    strange = efficiency(replace(A100, name="x", family="abacus"))
    assert "median of the fitted families" in strange.basis
    assert fitted.spread < turing.spread < strange.spread
    assert "itself was not measured" in efficiency(replace(H100, name="h20")).basis


def test_engine_generations_differ() -> None:
    old, new = efficiency(H100, "vllm", "0.7.3"), efficiency(H100, "vllm", "0.11.2rc1")
    assert new == efficiency(H100, "vllm")
    assert old.step_s > new.step_s
    assert "none of its own" in efficiency(H100, "homemade").basis


def test_a_lower_ridge_shortens_the_compute_ramp() -> None:
    slow = replace(A100, name="slow", peak_flops={"bf16": 78e12})
    assert efficiency(slow).matmul_for("bf16").mfu_half_tokens == pytest.approx(
        efficiency(A100).matmul_for("bf16").mfu_half_tokens / 4, rel=0.01
    )


def test_weights_with_a_scale_per_block_have_kernels_of_their_own() -> None:
    """Where they are multiplied in 8 bits; per-tensor scales and other math keep the format's constants."""
    h100, b200 = efficiency(accelerator("h100-sxm")), efficiency(accelerator("b200-sxm"))
    block, whole = h100.matmul_for("fp8", "fp8"), h100.matmul_for("fp8", "fp8-tensor")
    assert block.mfu_max < whole.mfu_max
    assert block.bw_half_bytes > whole.bw_half_bytes
    assert h100.grouped_for("fp8", "fp8") != h100.grouped_for("fp8", "fp8-tensor")
    assert h100.matmul_for("bf16", "fp8") == h100.matmul_for("bf16")
    own, borrowed = b200.matmul_for("fp8", "fp8-tensor"), b200.matmul_for("fp8", "fp8")  # not timed: Hopper's shares
    assert borrowed.mfu_max / own.mfu_max == pytest.approx(block.mfu_max / whole.mfu_max, rel=0.01)
    assert ideal().matmul_for("fp8", "fp8") == ideal().matmul_for("fp8")


def test_memory_reaches_alike_for_every_number_format() -> None:
    """Where 8-bit matmuls of whole tensors were timed; what they take whatever their size is another constant."""
    families = [f["matmul"] for f in constants()["families"].values() if "fp8" in f["matmul"]]
    assert len(families) >= 3
    for matmul in families:
        assert matmul["fp8"]["bw_max"]["value"] == pytest.approx(matmul["bf16"]["bw_max"]["value"], rel=0.08)


@given(st.floats(0.2, 5.0), st.sampled_from([0, 64, 4096]))
def test_what_narrower_matmuls_take_whatever_their_size_is_the_engines(factor: float, tokens: int) -> None:
    """It scales with the number of matmuls, not with their bytes or tokens, and plain ones know nothing of it."""
    base = ideal().with_(
        matmul=(("bf16", Matmul(bw_half_bytes=1e7, rounding=0.0)), ("fp8", Matmul(bw_half_bytes=1e7, rounding=0.0)))
    )
    times = base.scaled(quantising=factor)
    assert times.matmul_for("bf16") == base.matmul_for("bf16")
    assert times.matmul_for("fp8").bw_half_bytes == pytest.approx(1e7 * factor)
    for weights in ("fp8-tensor", "bf16"):
        d = Deployment(llama_8b(), H100, weights=weights)
        before, after = (Roofline(d, e).step_cost(Step.decode(1, tokens)).weights_s for e in (base, times))
        kernels = 4 * 32  # qkv, output, gate with up, down; the head stays in 16 bits
        extra = (factor - 1.0) * kernels * 1e7 / H100.memory_bandwidth if weights != "bf16" else 0.0
        assert after - before == pytest.approx(extra, rel=1e-6, abs=1e-12)


def test_only_models_published_so_run_kernels_scaled_by_block() -> None:
    """Another model in ``fp8`` is quantised per tensor or channel, whatever its scales weigh."""
    latent, plain = (
        Roofline(Deployment(m, H100, tp=8, weights="fp8"), efficiency(H100)) for m in (deepseek_like(), llama_8b())
    )
    by_block = replace(latent.deployment.model, also_by_block=True)
    blocks = Roofline(latent.deployment.with_(model=by_block), efficiency(H100))
    assert blocks.step_cost(Step.decode(64, 100)).compute_s > latent.step_cost(Step.decode(64, 100)).compute_s
    per_tensor = Roofline(plain.deployment.with_(weights="fp8-tensor"), efficiency(H100))
    assert plain.step_cost(Step.decode(64, 100)).compute_s == pytest.approx(
        per_tensor.step_cost(Step.decode(64, 100)).compute_s
    )
