"""What if the traffic were another: other hours, other clients, longer prompts and answers, on the chosen deployment.

The log is one sample. Drawn again by hours it says what another day of the same service may bring; drawn again by
clients, what happens if other customers come, or the heaviest one comes twice. Longer prompts are what a new feature or
a longer history brings. Each is simulated with the steps as predicted, so that the traffic alone is in doubt;
:mod:`gambrel.plan.chance` puts both doubts together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.plan import Sensitivity
from gambrel.plan.chance import DAY_S, DRAWS_WITH_PREFIXES, can_redraw, redrawn
from gambrel.report.humanise import percent
from gambrel.traffic import scale_lengths

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.deployment import Deployment
    from gambrel.core.slo import SLO, Verdict
    from gambrel.core.workload import Workload
    from gambrel.plan.trial import Bench

__all__ = ["LEAST_CLIENTS", "clients_redrawn", "sensitivities"]

DRAWS = 20
LEAST_CLIENTS = 8
"""Distinct clients or conversations below which drawing them again says nothing."""
LONGER = (("prompts", 1.25, 1.0), ("prompts", 1.5, 1.0), ("answers", 1.0, 1.25))
"""(what, factor on prompts, factor on answers)."""


def clients_redrawn(workload: Workload, rng: np.random.Generator) -> Workload:
    """Another log of the same span: clients (or conversations) drawn with replacement, each with all its requests.

    The first copy of a client keeps its times; further ones are shifted around the span, by whole days where the log
    has two or more, so that two copies do not send in step. A log without clients is returned as it is.
    """
    if not can_draw_clients(workload) or workload.session is None:
        return workload
    at = workload.arrival_s - workload.arrival_s[0]
    span = float(at[-1])
    names, rank = np.unique(workload.session, return_inverse=True)
    by_client = np.argsort(rank, kind="stable")
    starts = np.searchsorted(rank[by_client], np.arange(len(names) + 1))
    days = int(span // DAY_S)
    rows, times, sessions = [], [], []
    seen: set[int] = set()
    for copy, client in enumerate(rng.integers(0, len(names), len(names)).tolist()):
        own = by_client[starts[client] : starts[client + 1]]
        shift = 0.0
        if client in seen:
            shift = DAY_S * int(rng.integers(1, days)) if days >= 2 else float(rng.uniform(0.0, span))
        seen.add(client)
        rows.append(own)
        times.append((at[own] + shift) % span if span > 0 else at[own])
        sessions.append(np.full(len(own), copy, np.int64))
    together = np.concatenate(times)
    order = np.argsort(together, kind="stable")
    timeless = replace(workload, arrival_s=np.zeros(len(workload)))  # rows repeat, so their times are not in order
    drawn = timeless.take(np.concatenate(rows)[order])
    return replace(drawn, arrival_s=together[order], session=np.concatenate(sessions)[order])


def can_draw_clients(workload: Workload) -> bool:
    """Whether the log names enough clients, and has arrivals of its own."""
    if workload.session is None or workload.closed_loop or not workload.has_arrivals or workload.span_s <= 0:
        return False
    return len(np.unique(workload.session)) >= LEAST_CLIENTS


def sensitivities(deployment: Deployment, bench: Bench, workload: Workload, slo: SLO) -> tuple[Sensitivity, ...]:
    """The chosen deployment on other hours, other clients and longer requests; what the log cannot tell is left out."""
    draws = DRAWS if workload.prefix_blocks is None else DRAWS_WITH_PREFIXES
    found = []
    if can_redraw(workload):
        found.append(drawn("other hours of the log", redrawn, draws, deployment, bench, workload, slo))
    if workload.session is not None and can_draw_clients(workload):
        clients = len(np.unique(workload.session))
        name = f"other clients ({clients:,} drawn again)"
        found.append(drawn(name, clients_redrawn, draws, deployment, bench, workload, slo))
    for what, prompt, output in LONGER:
        once = tried(deployment, bench, scale_lengths(workload, prompt, output), slo)
        change = f"{what} {percent(max(prompt, output) - 1)} longer"
        found.append(Sensitivity(change, 1, float(once.held), once.verdicts, once.behind))
    return tuple(found)


def drawn(
    name: str,
    redraw: Callable[[Workload, np.random.Generator], Workload],
    draws: int,
    deployment: Deployment,
    bench: Bench,
    workload: Workload,
    slo: SLO,
    seed: int = 0,
) -> Sensitivity:
    """The share of redrawn logs on which every objective holds, with the worst one's verdicts."""
    outcomes = [
        tried(deployment, bench, redraw(workload, np.random.default_rng((seed, draw))), slo) for draw in range(draws)
    ]
    worst = min(outcomes, key=lambda o: (o.margin >= 0, not o.behind, o.margin))
    return Sensitivity(name, draws, sum(o.held for o in outcomes) / draws, worst.verdicts, worst.behind)


@dataclass(frozen=True, slots=True)
class Tried:
    """How the objectives came out, none where the longest request no longer fits the cache; why it is ``behind``."""

    verdicts: tuple[Verdict, ...]
    behind: str = ""

    @property
    def margin(self) -> float:
        """To the nearest objective."""
        return min((v.margin for v in self.verdicts), default=-math.inf)

    @property
    def held(self) -> bool:
        """Whether every objective holds and the fleet keeps up."""
        return self.margin >= 0 and not self.behind


def tried(deployment: Deployment, bench: Bench, workload: Workload, slo: SLO) -> Tried:
    """The deployment on other traffic."""
    if int((workload.prompt_tokens + workload.output_tokens).max()) > bench.memory.kv_tokens:
        return Tried(())
    run = bench.run(deployment, workload)
    return Tried(slo.check(run), bench.keeps_up(deployment, workload, run))
