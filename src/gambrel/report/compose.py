"""Which charts answer which question, in which order: a curve or a plan to a whole :class:`Report`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gambrel.report import humanise as say
from gambrel.report.curves import cost_vs_batch, latency_vs_batch, step_vs_context
from gambrel.report.document import Fact, Report, Section
from gambrel.report.style import caption

if TYPE_CHECKING:
    from gambrel.core.curve import Curve

_KNEE = {
    "ridge": "compute overtakes memory there",
    "balance": "KV reads overtake the weights there",
    "wall": "memory is full there",
}

__all__ = ["curve_report"]


def curve_report(curve: Curve) -> Report:
    """The report of a latency and cost curve alone."""
    d = curve.deployment
    latency, cost = latency_vs_batch(curve), cost_vs_batch(curve)
    name, knee = curve.knee
    price = d.accelerator.price
    items = [latency, cost]
    if len(np.unique(curve.context)) > 1:
        items.append(step_vs_context(curve))
    return Report(
        title=f"{d.model.name} on {d.accelerator.title}",
        subtitle=f"{d.weights} weights, {d.kv} KV cache, TP {d.tp}; steady decode of one replica",
        headline=(caption(latency), caption(cost)),
        facts=_curve_facts(curve, name, knee),
        sections=(Section("Where the slope breaks", "", tuple(items)),),
        provenance=_curve_basis(curve, "" if price is None else price.basis),
    )


def _curve_facts(curve: Curve, name: str, knee: float) -> tuple[Fact, ...]:
    cost = curve.usd_per_mtok
    fitting = curve.fits & (curve.context == curve.named_context)
    facts = [
        Fact("floor of a step", say.seconds(curve.floor_s), "all weights read once"),
        Fact("knee", f"batch {say.count(knee)}" if math.isfinite(knee) else "none", _KNEE[name]),
        Fact(
            "wall",
            f"batch {say.count(curve.wall_batch)}",
            f"memory full at {say.count(curve.named_context)} tokens each",
        ),
        Fact("crossover context", f"{say.count(curve.crossover_context)} tokens", "beyond it never compute-bound"),
        Fact("amortisation", say.multiple(curve.amortisation), "cost at batch 1 over the cheapest that fits"),
    ]
    if cost is not None and fitting.any():
        facts.append(
            Fact("cost per Mtok", say.dollars(float(cost[fitting].min())), "output tokens, largest batch, full load")
        )
    return tuple(facts)


def _curve_basis(curve: Curve, price: str) -> tuple[str, ...]:
    lines = [f"Step times: {curve.basis}; form {curve.form}."]
    lines.append(f"Price: {price}." if price else "No price is known for this accelerator: cost is in chip-seconds.")
    lines.append("GB is 1e9 bytes. Peaks are dense. Cost assumes full load; divide by the real utilisation.")
    return tuple(lines)
