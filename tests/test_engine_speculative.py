"""Speculative decoding: tokens a step by theory and as published, and the laws of the plain scheduler."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_factory import llama_on_h100
from engine_cases import Case, affine_table, cases, constant_table, poisson
from gambrel.core.efficiency import ideal
from gambrel.core.errors import CatalogError, DeploymentError
from gambrel.core.workload import Workload
from gambrel.cost import Roofline
from gambrel.engine import Limits, replay, simulate
from gambrel.engine import state as at
from gambrel.faces import api

# Leviathan, Kalman, Matias 2023 (arXiv 2211.17192), table 1: acceptance, guesses, operations, speed-up with c = 0
PUBLISHED = [(0.6, 2, 1.96), (0.7, 3, 2.53), (0.8, 2, 2.44), (0.8, 5, 3.69), (0.9, 2, 2.71), (0.9, 10, 6.86)]


@pytest.mark.parametrize(("acceptance", "guesses", "published"), PUBLISHED)
def test_tokens_a_step_are_the_published_ones(acceptance: float, guesses: int, published: float) -> None:
    """E = (1 - a^(g + 1)) / (1 - a), in a replica whose steps all take the same time."""
    answer = 40_000
    workload = Workload(np.zeros(1), np.array([1]), np.array([answer]))
    limits = Limits(1, 64, 5000, draft_tokens=guesses, acceptance=acceptance)
    played = replay(constant_table(1.0, 64, 64), limits, workload)
    tokens = (answer - 1) / (played.requests.last[0] - played.requests.first[0])
    assert tokens == pytest.approx((1 - acceptance ** (guesses + 1)) / (1 - acceptance), rel=0.015)
    assert tokens == pytest.approx(published, rel=0.015)


@given(cases(), st.integers(1, 4), st.floats(0.0, 0.95))
@settings(max_examples=80)
def test_laws(case: Case, guesses: int, acceptance: float) -> None:
    limits = replace(case.limits, draft_tokens=guesses, acceptance=acceptance, prefix_caching=True)
    table = affine_table(limits.max_num_batched_tokens, limits.max_num_seqs * (1 + guesses))
    played = replay(table, limits, case.workload)
    requests = played.requests
    assert played.ints[at.FINISHED] == len(case.workload)
    assert played.ints[at.FREE_BLOCKS] == limits.num_kv_blocks
    assert (requests.arrival <= requests.scheduled).all()
    assert (requests.scheduled < requests.first).all()
    assert (requests.first <= requests.last).all()
    assert played.histogram.sum() == (requests.output - 1).sum()
    assert played.floats[at.GAP_TOTAL] == pytest.approx((requests.last - requests.first).sum(), abs=1e-9)
    if acceptance == 0.0 and requests.preemptions.sum() == 0:
        plain = replay(table, replace(limits, draft_tokens=0), case.workload)
        assert played.ints[at.STEPS] >= plain.ints[at.STEPS]


def test_guessing_pays_alone_and_not_in_a_crowd() -> None:
    """Weights bind at batch 1, compute at 256: the gain falls from nearly E to below 1."""
    deployment = llama_on_h100(max_num_batched_tokens=4096)
    gains = {}
    for name, workload in (
        ("alone", Workload(np.zeros(1), np.array([200]), np.array([400]))),
        ("crowd", Workload(np.zeros(512), np.full(512, 64), np.full(512, 200))),
    ):
        last = [
            float(simulate(d, Roofline(d, ideal()), workload).last_token_s.max())
            for d in (deployment, deployment.with_(draft_tokens=4, acceptance=0.6, draft_cost=0.05))
        ]
        gains[name] = last[0] / last[1]
    expected = (1 - 0.6**5) / 0.4
    assert 0.6 * expected < gains["alone"] < expected
    assert gains["crowd"] < 0.75 * gains["alone"]


def test_what_the_plain_scheduler_cannot_serve_is_refused() -> None:
    limits = Limits(4, 64, 100, draft_tokens=2, acceptance=0.5)
    with pytest.raises(DeploymentError, match="speculative decoding runs in the plain scheduler"):
        replay(affine_table(64, 12), limits, poisson(5, 1.0, 5, 5), replicas=2, routing="least_outstanding")


def test_deepseek_v3s_own_module_gives_the_published_speed_up() -> None:
    """1.8 times the tokens per second at 85 % to 90 % acceptance (arXiv 2412.19437, section 5.4.3), in a full batch.

    Alone it gains far less: two tokens read twice the experts of one.
    """
    plain = api.deployment("deepseek-v3", "h200", tp=8, max_num_batched_tokens=2048)
    guessing = api.with_multi_token_prediction(plain)
    assert (guessing.draft_tokens, guessing.acceptance) == (1, 0.85)
    assert 0.02 < guessing.draft_cost < 0.06
    gains = {}
    for users in (1, 128):
        workload = Workload(np.zeros(users), np.full(users, 100), np.full(users, 200))
        runs = [api.simulate(d, workload, api.cost_model(d, textbook=True)) for d in (plain, guessing)]
        gains[users] = float(np.median(runs[0].tpot_s) / np.median(runs[1].tpot_s))
    assert gains[128] == pytest.approx(1.8, rel=0.06)
    assert gains[1] < 1.4
    assert (1 + 0.85) / (1 + guessing.draft_cost) == pytest.approx(1.8, rel=0.03)


@pytest.mark.parametrize(
    ("model", "why"), [("llama-3.1-8b", "has no multi-token-prediction module"), ("deepseek-r1", "no acceptance rate")]
)
def test_no_rate_is_made_up(model: str, why: str) -> None:
    with pytest.raises(CatalogError, match=why):
        api.with_multi_token_prediction(api.deployment(model, "h200", tp=8))
