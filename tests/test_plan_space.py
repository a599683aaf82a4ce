"""What is searched: any field of a deployment, any terms, any cap; and what each choice brings with it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gambrel.catalog.accelerators import accelerator
from gambrel.catalog.prices import owned
from gambrel.core.accelerator import Price
from gambrel.core.deployment import Deployment
from gambrel.core.errors import CatalogError, DeploymentError, GambrelError, WorkloadError
from gambrel.core.slo import SLO
from gambrel.cost.shards import require_tp, tp_is_possible
from gambrel.faces import api, offers
from gambrel.plan import Space, plan
from gambrel.plan.caveats import caveats, context_caveats
from gambrel.plan.search import search
from gambrel.plan.space import AXES, shape_of
from gambrel.plan.trial import Bench, judge
from gambrel.traffic import cap_context, closed_loop
from test_plan_search import MODEL, chat, devices

SLOS = SLO.parse(["ttft.p95<=1s", "tpot.p95<=50ms"])
MIXTRAL = api.model("mistralai/Mixtral-8x7B-v0.1")


def test_every_field_of_a_deployment_is_an_axis() -> None:
    own = {"model", "accelerator", "replicas", "max_model_len"}
    fields = set(Deployment.__dataclass_fields__) - own
    assert set(AXES) | set(Space.__dataclass_fields__) >= fields
    assert {"attention_dp", "draft_tokens", "prefix_caching", "prefill_replicas", "policy", "routing"} <= set(AXES)


@settings(max_examples=30)
@given(
    tp=st.sets(st.sampled_from([1, 2, 4, 8]), min_size=1),
    pp=st.sets(st.sampled_from([1, 2, 64]), min_size=1),
    dp=st.sets(st.sampled_from([1, 2, 8]), min_size=1),
    drafts=st.sets(st.sampled_from([0, 3]), min_size=1),
)
def test_shapes_are_all_different_and_can_be_laid_out(
    tp: set[int], pp: set[int], dp: set[int], drafts: set[int]
) -> None:
    space = Space(
        devices("h100-sxm", "l4"),
        tp=tuple(sorted(tp)),
        pp=tuple(sorted(pp)),
        axes={"attention_dp": tuple(sorted(dp)), "draft_tokens": tuple(sorted(drafts))},
    )
    shapes = list(space.shapes(MIXTRAL))
    assert len({shape_of(d) for d in shapes}) == len(shapes) == len({d.label for d in shapes})
    for d in shapes:
        require_tp(d)
        assert d.tp % d.ep == 0
        assert d.tp % d.attention_dp == 0
        assert d.pp <= MIXTRAL.num_layers
        api.cost_model(d)


def test_experts_are_spread_only_where_there_are_some() -> None:
    assert {d.ep for d in Space(devices("h100-sxm"), tp=(8,)).shapes(MIXTRAL)} == {1, 8}
    assert {d.ep for d in Space(devices("h100-sxm"), tp=(8,)).shapes(MODEL)} == {1}


def test_stages_are_added_where_the_weights_ask_for_them() -> None:
    big = api.model("meta-llama/Meta-Llama-3.1-405B")
    space = Space(devices("h100-sxm"), pp=None, weights=("bf16",), kv=("bf16",))
    assert {(d.tp, d.pp) for d in space.shapes(big)} == {(1, 1), (2, 1), (4, 1), (8, 1), (8, 2)}
    assert {d.pp for d in space.shapes(MODEL)} == {1}


def test_key_value_heads_divide_or_are_copied_to_equally_many_ranks() -> None:
    phi = api.model("microsoft/phi-4")  # 40 heads, 10 key-value heads
    assert {d.tp for d in Space(devices("h100-sxm")).shapes(phi)} == {1, 2}
    assert {d.tp for d in Space(devices("h100-sxm"), tp=(1, 5)).shapes(phi)} == {1, 5}
    qwen = api.model("Qwen/Qwen2.5-7B-Instruct")  # 28 heads, 4 key-value heads
    assert {d.tp for d in Space(devices("h100-sxm")).shapes(qwen)} == {1, 2, 4}
    latent = api.model("deepseek-ai/DeepSeek-V3")
    assert {d.tp for d in Space(devices("h100-sxm")).shapes(latent)} == {1, 2, 4, 8}


def test_prefill_workers_are_cut_as_engines_accept() -> None:
    phi = api.model("microsoft/phi-4")
    space = Space(devices("h100-sxm"), tp=(1,), axes={"prefill_replicas": (1,), "prefill_tp": (1, 2, 4, 16)})
    assert {d.prefill_tp for d in space.shapes(phi)} == {1, 2}


@given(
    allowed=st.integers(0, 40), tp=st.sampled_from([1, 2, 4]), prefills=st.integers(0, 3), cut=st.sampled_from([1, 8])
)
def test_a_fleet_has_all_the_replicas_that_fit_beside_its_prefill_pool(
    allowed: int, tp: int, prefills: int, cut: int
) -> None:
    d = api.deployment(MODEL, "h100-sxm", tp=tp, prefill_replicas=prefills, prefill_tp=cut if prefills else None)
    most = Space(devices("h100-sxm"), max_gpus=allowed).most_replicas(d)
    assert d.with_(replicas=most + 1).num_gpus > allowed
    assert most == 0 or d.with_(replicas=most).num_gpus <= allowed


def test_fewer_guesses_than_none_are_refused() -> None:
    space = Space(devices("h100-sxm"), tp=(1,), axes={"draft_tokens": (-1,)})
    with pytest.raises(DeploymentError, match="draft_tokens must be a whole number of at least 0, got -1"):
        plan(MODEL, chat(20), SLOS, space, api.pricer())


def test_a_name_that_is_no_axis_is_refused_with_those_that_are() -> None:
    with pytest.raises(DeploymentError, match="'colour' is no axis of the search; known: attention_dp, "):
        Space(devices("l4"), axes={"colour": ("red",)})
    with pytest.raises(DeploymentError, match="axis policy has no values"):
        Space(devices("l4"), axes={"policy": ()})


@pytest.mark.parametrize(
    "axes",
    [
        {"prefill_replicas": (0, 1), "kv_link_bytes_per_s": (1e10,)},
        {"draft_tokens": (0, 3), "acceptance": (0.8,), "draft_cost": (0.1,)},
        {"prefix_caching": (False, True)},
        {"policy": ("vllm", "sglang", "tensorrt_llm")},
        {"routing": ("round_robin", "least_outstanding")},
    ],
)
def test_what_an_axis_adds_is_chosen_when_it_is_the_cheapest_that_holds(axes: dict[str, tuple[object, ...]]) -> None:
    workload = chat(150, 12.0)
    few = {"max_num_seqs": (256,), "max_num_batched_tokens": (2048,), "tp": (1,), "max_gpus": 6}
    space = Space(devices("l40s"), kv=("bf16",), axes=axes, **few)  # type: ignore[arg-type]  # a dict of mixed values
    found = search(MODEL, workload, SLOS, space, api.pricer())
    best = np.inf
    for shape in space.shapes(MODEL):
        bench = Bench.of(api.cost_model(shape))
        for replicas in range(1, 7):
            fleet = shape.with_(replicas=replicas)
            if fleet.num_gpus <= 6 and judge(fleet, bench, workload, SLOS).candidate.feasible:
                best = min(best, fleet.usd_per_hour or np.inf)
    assert found.best[0] <= 1.02 * best


def test_stages_and_ranks_are_searched_like_any_other_shape() -> None:
    space = Space(
        devices("l40s"), tp=(1, 2), pp=(1, 2), weights=("fp8",), kv=("bf16",), max_num_seqs=(64,),
        max_num_batched_tokens=(1024,), axes={"attention_dp": (1, 2)},
    )  # fmt: skip
    found = search(MIXTRAL, chat(80, 2.0), SLO.parse(["tpot.p95<=200ms"]), space, api.pricer())
    seen = {(t.candidate.deployment.tp, t.candidate.deployment.pp, t.candidate.deployment.attention_dp)
            for t in found.trials} | {(c.deployment.tp, c.deployment.pp, c.deployment.attention_dp)
                                      for c in found.ruled_out}  # fmt: skip
    assert {(1, 2, 1), (2, 2, 1), (2, 1, 2)} <= seen


def test_what_an_engine_refuses_is_ruled_out_with_its_words() -> None:
    space = Space(devices("l40s"), tp=(1,), axes={"draft_tokens": (3,), "routing": ("least_outstanding",)})
    found = search(MODEL, chat(60), SLOS, space, api.pricer())
    assert not found.trials
    assert all("speculative decoding" in c.lost_because for c in found.ruled_out)


# -- terms -------------------------------------------------------------------------------------------------------------


@given(
    purchase=st.floats(0, 1e5),
    years=st.floats(0.5, 10),
    watts=st.floats(0, 2000),
    kwh=st.floats(0, 1),
    pue=st.floats(1, 3),
)
def test_owning_costs_the_purchase_and_the_power_over_its_years(
    purchase: float, years: float, watts: float, kwh: float, pue: float
) -> None:
    price = owned(purchase, years, watts, kwh, pue)
    hours = years * 365.25 * 24
    assert price.usd_per_hour * hours == pytest.approx(purchase + hours * watts / 1000 * pue * kwh)
    assert price.kind == "owned"
    assert price.confidence == "user"


def test_owning_needs_figures_that_can_be() -> None:
    with pytest.raises(CatalogError, match="PUE of at least 1"):
        owned(1000.0, 4.0, 300.0, 0.1, 0.9)
    for text in ("h100-sxm", "h100-sxm=x,years=4,kwh=1", "h100-sxm=3,kwh=1", "h100-sxm=3,years=4,kwh=1,colour=2"):
        with pytest.raises(GambrelError, match="--owned must be NAME=DOLLARS,years=N"):
            offers.owned([text])
    (mine,) = offers.owned(["H100=31000,years=4,kwh=0.12,pue=1.3"])
    assert mine.id == "h100-sxm (owned)"
    assert mine.price is not None
    assert mine.price.usd_per_hour == pytest.approx(31000 / (4 * 8766) + 0.7 * 1.3 * 0.12)


def test_the_same_card_on_several_terms_is_several_candidates() -> None:
    h100 = api.accelerator("h100-sxm")
    both = offers.on_offer([h100], kinds="on_demand,spot")
    assert [a.id for a in both] == ["h100-sxm", "h100-sxm (spot)"]
    clouds = offers.on_offer([h100], providers="aws,lambda")
    assert [a.offer for a in clouds] == ["aws", "lambda"]
    assert [a.price.provider for a in clouds if a.price] == ["aws", "lambda"]
    here = offers.on_offer([h100], regions="us-east-1")
    assert [a.price.region for a in here if a.price] == ["us-east-1"]
    with pytest.raises(GambrelError, match="no price of reserved is known for h100-sxm"):
        offers.on_offer([h100], kinds="reserved")
    answer = plan(MODEL, chat(100), SLOS, Space(both, tp=(1,), weights=("bf16",), kv=("bf16",)), api.pricer())
    rows = [answer.chosen.deployment, *(c.deployment for c in answer.alternatives)]
    assert {d.accelerator.id for d in rows} == {"h100-sxm", "h100-sxm (spot)"}
    assert answer.chosen.deployment.accelerator.offer == "spot"
    assert any("taken away" in sentence for sentence in answer.caveats)


def test_what_can_be_had_is_per_card_or_per_offer() -> None:
    both = offers.on_offer([api.accelerator("h100-sxm")], kinds="on_demand,spot")
    space = Space(both, available={"h100-sxm": 16, "h100-sxm (spot)": 4})
    assert [space.most_gpus(a) for a in both] == [16, 4]


def test_formats_that_change_answers_say_so_with_their_source() -> None:
    plain = Deployment(MODEL, accelerator("h100-sxm"), replicas=8)  # a machine of them
    assert caveats(plain) == ()
    assert any("arXiv 2411.02355" in s and "unknown" in s for s in caveats(plain.with_(weights="fp8")))
    assert any("unknown" in s for s in caveats(plain.with_(weights="mxfp4")))
    assert any("KV cache" in s and "unknown" in s for s in caveats(plain.with_(kv="fp8")))
    assert any("0.7 as you stated" in s for s in caveats(plain.with_(draft_tokens=3, acceptance=0.7)))


@pytest.mark.parametrize(("replicas", "idle"), [(1, 7), (3, 5), (8, 0), (9, 7)])
def test_machines_that_are_rented_whole_say_what_stands_idle(replicas: int, idle: int) -> None:
    offer = Price(2.0, "someone", gpu_count=8)
    machine = replace(api.accelerator("h100-sxm"), price=offer, offers=(offer,))
    said = [s for s in caveats(api.deployment(MODEL, machine, replicas=replicas)) if "stand idle" in s]
    assert len(said) == (idle > 0)
    assert all(f"{idle} would stand idle" in s and f"${2 * (replicas + idle)}" in s.replace(".00", "") for s in said)


@pytest.mark.parametrize("tp", [3, 7, 64])
def test_a_degree_that_engines_refuse_is_refused_to_whoever_names_it(tp: int) -> None:
    assert not tp_is_possible(MODEL, api.accelerator("h100-sxm"), tp)
    with pytest.raises(DeploymentError, match=rf"degree {tp} does not suit .* \(32 attention heads\).*: 1, 2, 4, 8$"):
        api.deployment(MODEL, "h100-sxm", tp=tp)
    with pytest.raises(DeploymentError, match=f"degree {tp} does not suit"):
        api.deployment(MODEL, "h100-sxm", prefill_replicas=1, prefill_tp=tp)


def test_a_group_of_machines_needs_a_network_and_heads_divide_within_attention_groups() -> None:
    h100 = api.accelerator("h100-sxm")
    assert api.deployment(MODEL, h100, tp=16).tp == 16
    with pytest.raises(DeploymentError, match="up to 8 in a machine"):
        api.deployment(MODEL, replace(h100, network_bandwidth=0.0), tp=16)
    assert api.deployment(MODEL, h100, tp=6, attention_dp=3).tp == 6
    with pytest.raises(DeploymentError, match=r"possible: 2, 4, 8$"):
        api.deployment(MODEL, h100, tp=6, attention_dp=2)


# -- caps --------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), cap=st.integers(2, 3000))
def test_a_cap_refuses_and_cuts_and_says_whom(seed: int, cap: int) -> None:
    log = chat(60, 4.0, seed)
    if int(log.prompt_tokens.min()) >= cap:
        with pytest.raises(WorkloadError, match="every prompt has"):
            cap_context(log, cap)
        return
    served = cap_context(log, cap)
    refused = int((log.prompt_tokens >= cap).sum())
    assert len(served) == len(log) - refused
    assert int((served.prompt_tokens + served.output_tokens).max()) <= cap
    assert int(served.output_tokens.min()) >= 1
    assert any("refuses" in w for w in served.warnings) == (refused > 0)
    kept = log.prompt_tokens < cap
    changed = int((served.output_tokens != log.output_tokens[kept]).sum())
    assert any("cuts" in w for w in served.warnings) == (changed > 0)


def test_a_cap_that_binds_nobody_changes_nothing() -> None:
    log = chat(60)
    assert cap_context(log, 1_000_000) is log
    with pytest.raises(WorkloadError, match="do not fit"):
        cap_context(closed_loop(3, 1000, 100), 1050)


def test_requests_longer_than_the_models_context_are_counted_and_nobody_is_refused() -> None:
    log = chat(60)
    total = log.prompt_tokens + log.output_tokens
    most = int(np.sort(total)[-4])
    model = replace(MODEL, max_context=most)
    longer = np.flatnonzero(total > most)
    (said,) = context_caveats(model, log)
    assert said.startswith(f"{len(longer)} of 60 requests are longer than the {most:,} tokens")
    assert f"the first, request {longer[0] + 1} in order of arrival, with {total[longer[0]]:,}" in said
    assert context_caveats(model, log, max_model_len=int(total.max())) == ()
    assert context_caveats(replace(MODEL, max_context=int(total.max())), log) == ()
    assert context_caveats(replace(MODEL, max_context=None), log) == ()
    space = Space(devices("l40s"), tp=(1,), weights=("fp8",), kv=("bf16",))
    assert said in plan(model, log, SLOS, space, api.pricer()).caveats


def test_axes_as_they_are_typed() -> None:
    assert offers.axes(["attention-dp=1,8", "prefix_caching=true,false", "acceptance=0.7", "policy=sglang"]) == {
        "attention_dp": (1, 8), "prefix_caching": (True, False), "acceptance": (0.7,), "policy": ("sglang",),
    }  # fmt: skip
    with pytest.raises(GambrelError, match="--axis must be NAME=VALUE"):
        offers.axes(["attention_dp"])


def test_the_plan_is_one_json_document_with_its_caveats() -> None:
    from gambrel.faces.documents import plan_document

    log = replace(cap_context(chat(80), 900), name="capped")
    space = Space(devices("l40s"), tp=(1,), weights=("fp8",), kv=("bf16",), max_model_len=900)
    document = json.loads(json.dumps(plan_document(plan(MODEL, log, SLOS, space, api.pricer()))))
    assert any("refuses" in s for s in document["caveats"])
