"""Several models under what can be had of each accelerator: the least in all, against every combination."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gambrel.core.deployment import Deployment
from gambrel.core.errors import InfeasiblePlan
from gambrel.core.plan import Candidate
from gambrel.core.slo import SLO
from gambrel.faces import api
from gambrel.plan import Space
from gambrel.plan.several import Service, cheapest, fits, plan_together, used
from test_plan_search import MODEL, chat, devices

SMALL = api.model("meta-llama/Llama-3.2-1B")
CARDS = devices("l4", "l40s", "h100-sxm")
MEMORY = api.cost_model(Deployment(SMALL, CARDS[0])).memory()


def offer(card: int, replicas: int) -> Candidate:
    return Candidate(Deployment(SMALL, CARDS[card], replicas=replicas), "simulated", MEMORY)


lists = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=3, unique_by=lambda x: x[0])


@given(
    st.lists(lists, min_size=1, max_size=4),
    st.dictionaries(st.sampled_from(["l4", "l40s", "h100-sxm"]), st.integers(1, 12)),
    st.integers(1, 30),
)
def test_the_least_in_all_is_found(asked: list[list[tuple[int, int]]], had: dict[str, int], most: int) -> None:
    offers = [sorted((offer(*x) for x in row), key=lambda c: (c.usd_per_hour, c.deployment.label)) for row in asked]
    space = Space(CARDS, available=had, max_gpus=most)
    every = [sum(c.usd_per_hour for c in row) for row in itertools.product(*offers) if fits(row, space)]
    found = cheapest(offers, space)
    if not every:
        assert found is None
        return
    assert found is not None
    assert fits(found, space)
    assert sum(c.usd_per_hour for c in found) == pytest.approx(min(every))


def test_a_scarce_card_goes_to_the_model_that_saves_most_by_it() -> None:
    slo = SLO.parse(["ttft.p95<=1s", "tpot.p95<=50ms"])
    few = Space(devices("l4", "l40s"), tp=(1,), kv=("bf16",), max_num_seqs=(256,), max_num_batched_tokens=(2048,))
    services = [Service(MODEL, chat(100, 6.0), slo), Service(SMALL, chat(100, 6.0, 1), slo)]
    free = plan_together(services, few, api.pricer())
    assert len(free.chosen) == 2
    assert free.usd_per_hour == pytest.approx(sum(c.usd_per_hour for c in free.chosen))
    assert free.used == used(free.chosen)
    scarce = plan_together(services, replace(few, available={"l4": 1, "l40s": 3}), api.pricer())
    assert scarce.used.get("l4", 0) <= 1
    assert scarce.usd_per_hour >= free.usd_per_hour
    with pytest.raises(InfeasiblePlan, match=r"what can be had is too little for all|no accelerator of the search"):
        plan_together(services, replace(few, max_gpus=1), api.pricer())
