"""Prices and preferences: which deployments are worth a look, and at what price another accelerator would win.

The search keeps the cheapest; people also ask what a little more money buys, and what to say to the salesman.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gambrel.core.plan import BreakEven, Candidate, FrontPoint
from gambrel.report.humanise import per_hour

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["biggest_because", "break_even_prices", "pareto_front"]


def pareto_front(points: Iterable[FrontPoint]) -> tuple[FrontPoint, ...]:
    """Those that no other beats or equals in all four of dollars, TTFT, TPOT and headroom, the cheapest first."""
    ordered = sorted(points, key=lambda p: (p.usd_per_hour, p.ttft_s, p.tpot_s, -p.headroom, p.deployment.label))
    front: list[FrontPoint] = []
    for point in ordered:
        if not any(no_worse(other, point) for other in front):
            front.append(point)
    return tuple(front)


def no_worse(a: FrontPoint, b: FrontPoint) -> bool:
    """Whether ``a`` is at least as good as ``b`` in every respect."""
    return (
        a.usd_per_hour <= b.usd_per_hour and a.ttft_s <= b.ttft_s and a.tpot_s <= b.tpot_s and a.headroom >= b.headroom
    )


def break_even_prices(best: Candidate, others: Iterable[Candidate]) -> tuple[BreakEven, ...]:
    """The chosen accelerator with the price it may rise to; then every other that holds, the nearest to winning first.

    An accelerator wins below the chosen fleet's dollars over the fewest devices that hold: at one price a device, the
    smallest fleet is the cheapest (list prices differ between machines, so today's cheapest fleet may be another).
    The price is enough to win, not the most at which it wins: only finalists have their batch limits tuned, and a
    loser that becomes one may need fewer devices.
    """
    cheapest: dict[str, Candidate] = {}
    fewest: dict[str, Candidate] = {}
    for c in others:
        name = c.deployment.accelerator.name
        if c.feasible and name != best.deployment.accelerator.name:
            cheapest[name] = min(cheapest.get(name, c), c, key=lambda x: (x.usd_per_hour, x.deployment.label))
            fewest[name] = min(fewest.get(name, c), c, key=lambda x: (x.deployment.num_gpus, x.deployment.label))
    rows = []
    for c in fewest.values():
        d = c.deployment
        rows.append(BreakEven(d, c.usd_per_hour / d.num_gpus, best.usd_per_hour / d.num_gpus))
    rows.sort(key=lambda r: (r.usd_per_gpu_hour / r.break_even, r.deployment.label))
    if not rows:
        return ()
    second = min(cheapest.values(), key=lambda c: (c.usd_per_hour, c.deployment.label))
    d = best.deployment
    own = BreakEven(
        d, best.usd_per_hour / d.num_gpus, second.usd_per_hour / d.num_gpus, second.deployment.accelerator.name
    )  # fmt: skip
    return (own, *rows)


def biggest_because(best: Candidate, biggest: Candidate | None, others: Iterable[Candidate]) -> str:
    """Whether the biggest accelerator is worth its money, in a sentence; empty where none has a price."""
    if biggest is None:
        return ""
    if biggest.deployment.accelerator.name != best.deployment.accelerator.name:
        if not biggest.feasible:
            return f"{biggest.deployment.label}: {biggest.lost_because}"
        more = biggest.usd_per_hour - best.usd_per_hour
        return f"{biggest.deployment.label} holds too, for {per_hour(more)} more than the plan"
    name = best.deployment.accelerator.name
    smaller = [c for c in others if c.deployment.accelerator.name != name]
    holding = [c for c in smaller if c.feasible]
    if holding:
        second = min(holding, key=lambda c: (c.usd_per_hour, c.deployment.label))
        d = second.deployment
        more = second.usd_per_hour - best.usd_per_hour
        mine = best.deployment.num_gpus
        cards = "" if d.num_gpus == mine else f" ({d.num_gpus} instead of {mine} accelerators)"
        return f"it is the right one: the cheapest without it is {d.label}{cards} for {per_hour(more)} more"
    near = min(
        (c for c in smaller if c.verdicts), key=lambda c: -min(v.margin for v in c.verdicts), default=None
    )  # fmt: skip
    if near is None:
        return "it is the right one: nothing smaller was searched that fits"
    return f"it is the right one: nothing smaller holds; nearest is {near.deployment.label}: {near.lost_because}"
