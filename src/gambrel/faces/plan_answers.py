"""The plan's further answers, as documents and as tables: how sure, what else money buys, settings, prices, growth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gambrel.report import humanise as human

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gambrel.core.plan import Outlook, Plan

__all__ = ["answers_document", "answers_tables"]

FRONT_SHOWN, PRICES_SHOWN, MODES_SHOWN = 8, 6, 6


def answers_document(plan: Plan) -> dict[str, Any]:
    """Keys that ``gambrel plan --json`` adds to the contract; infinite and undefined numbers become null."""
    return {
        "biggest_gpu_because": plan.biggest_gpu_because,
        "chances": {c.objective: {"chance": c.chance, "slack": c.slack} for c in plan.chances},
        "chance_basis": plan.chance_basis,
        "surer": [
            {"confidence": s.confidence, "replicas": s.replicas, "usd_per_hour": s.usd_per_hour} for s in plan.surer
        ],
        "pareto_front": [
            {
                "label": p.deployment.label,
                "max_num_seqs": p.deployment.max_num_seqs,
                "max_num_batched_tokens": p.deployment.max_num_batched_tokens,
                "usd_per_hour": p.usd_per_hour,
                "ttft_p95_s": p.ttft_s,
                "tpot_p95_s": p.tpot_s,
                "headroom": p.headroom,
            }
            for p in plan.front
        ],
        "break_even": [
            {
                "gpu": b.deployment.accelerator.name,
                "label": b.deployment.label,
                "usd_per_gpu_hour": b.usd_per_gpu_hour,
                "break_even_usd_per_gpu_hour": b.break_even,
                "rival": b.rival or None,
            }
            for b in plan.break_even
        ],
        "settings": [
            {
                "name": s.name,
                "value": s.value,
                "reason": s.reason,
                "steps": [
                    {
                        "value": step.value,
                        "carries": step.carries,
                        "effect": step.effect,
                        "slo": {v.objective.name: {"reached_s": v.reached_s, "met": v.met} for v in step.verdicts},
                    }
                    for step in s.steps
                ],
            }
            for s in plan.settings
        ],
        "price_modes": [
            {
                "batch": m.batch,
                "tokens_per_s": m.tokens_per_s,
                "usd_per_mtok": m.usd_per_mtok,
                "speed": m.speed,
                "price": m.price,
                "meets_slo": m.meets_slo,
            }
            for m in plan.price_modes
        ],
        "outlook": None if plan.outlook is None else outlook_document(plan.outlook),
    }


def outlook_document(o: Outlook) -> dict[str, Any]:
    """Growth, month by month."""
    then = o.then
    return {
        "growth": o.growth,
        "lasts_months": o.lasts,
        "months": [
            {"month": m.month, "load": m.load, "replicas": m.replicas, "usd_per_hour": m.usd_per_hour} for m in o.months
        ],
        "then": None if then is None else {"label": then.deployment.label, "usd_per_hour": then.usd_per_hour},
        "then_because": o.then_because,
    }


def answers_tables(plan: Plan) -> list[RenderableType]:
    """How sure, the settings, what more money buys, prices, and growth where it was asked."""
    blocks: list[RenderableType] = []
    for table in (sure_table(plan), setting_table(plan), front_table(plan), price_table(plan), mode_table(plan)):
        if table is not None:
            blocks += [table, ""]
    if plan.outlook is not None:
        blocks += [outlook_table(plan.outlook), ""]
    return blocks


def chance_text(chance: float) -> str:
    """A share of draws: what all of them or none of them did is not certain."""
    return "over 97 %" if chance >= 1.0 else "under 3 %" if chance <= 0.0 else human.percent(chance)


def sure_table(plan: Plan) -> RenderableType | None:
    """The chance that everything holds, objective by objective, and the price of more."""
    from gambrel.faces.tables import facts

    if not plan.chances:
        return None
    rows = []
    for c in plan.chances:
        if c.objective == "backlog":
            continue
        name = "every objective" if c.objective == "all" else c.objective
        until = "" if math.isinf(c.slack) else f"; breaks if every step is {c.slack - 1:.0%} slower"
        rows.append((name, f"holds with a chance of {chance_text(c.chance)}{until}"))
    for s in plan.surer:
        if s.replicas is None:
            rows.append((f"for {s.confidence:.0%}", "another shape is needed: ask with --confidence"))
        elif s.replicas == plan.chosen.deployment.replicas:
            rows.append((f"for {s.confidence:.0%}", "nothing more is needed"))
        else:
            usd = human.per_hour(s.usd_per_hour)
            rows.append((f"for {s.confidence:.0%}", f"{s.replicas} replicas, {usd}"))
    rows.append(("basis", plan.chance_basis))
    return facts("how sure", rows)


def setting_table(plan: Plan) -> RenderableType | None:
    """Each setting with its reason, then a line per step."""
    from gambrel.faces.tables import facts

    if not plan.settings:
        return None
    rows = []
    for s in plan.settings:
        rows.append((f"{s.name} {s.value:g}", s.reason))
        rows += [(f"  {step.value:g}", step.effect) for step in s.steps]
    return facts("the settings, and one step either way", rows)


def front_table(plan: Plan) -> RenderableType | None:
    """What more money buys: no row is worse than another in everything."""
    from gambrel.faces.tables import grid

    if len(plan.front) < 2:
        return None
    step = max(1.0, (len(plan.front) - 1) / (FRONT_SHOWN - 1))
    shown = [plan.front[min(round(i * step), len(plan.front) - 1)] for i in range(min(FRONT_SHOWN, len(plan.front)))]
    rows = [
        [
            f"{p.deployment.label} ({p.deployment.max_num_seqs}, {p.deployment.max_num_batched_tokens})",
            human.per_hour(p.usd_per_hour),
            human.seconds(p.ttft_s),
            human.seconds(p.tpot_s),
            human.signed_percent(p.headroom),
        ]
        for p in dict.fromkeys(shown)
    ]
    return grid("what more money buys (seqs, tokens)", ["", "cost", "TTFT p95", "TPOT p95", "margin"], rows)


def price_table(plan: Plan) -> RenderableType | None:
    """At what price each accelerator wins."""
    from gambrel.faces.tables import facts

    if not plan.break_even:
        return None
    own, *others = plan.break_even
    name = own.deployment.accelerator.name
    limit, now = human.per_hour(own.break_even), human.per_hour(own.usd_per_gpu_hour)
    rows = [(name, f"stays the cheapest up to {limit} each (now {now}); then {own.rival} wins")]
    for b in others[:PRICES_SHOWN]:
        limit, now = human.per_hour(b.break_even), human.per_hour(b.usd_per_gpu_hour)
        rows.append((b.deployment.accelerator.name, f"wins below {limit} each (now {now}), as {b.deployment.label}"))
    return facts("break-even prices", rows)


def mode_table(plan: Plan) -> RenderableType | None:
    """Fast and slow modes: what speed costs along the curve."""
    from gambrel.faces.tables import grid, last_column_left

    modes = plan.price_modes
    if len(modes) < 2:
        return None
    step = max(1.0, (len(modes) - 1) / (MODES_SHOWN - 1))
    shown = list(
        dict.fromkeys(modes[min(round(i * step), len(modes) - 1)] for i in range(min(MODES_SHOWN, len(modes))))
    )
    rows = [
        [
            f"{m.batch}",
            f"{m.tokens_per_s:.1f}",
            human.dollars(m.usd_per_mtok),
            human.multiple(m.speed),
            human.multiple(m.price),
            "" if m.meets_slo else "misses the TPOT limit",
        ]
        for m in shown
    ]
    heads = ["batch", "tok/s each", "$/Mtok out", "speed", "price", ""]
    return last_column_left(grid("fast and slow modes: full batches on one replica, decode only", heads, rows))


def outlook_table(o: Outlook) -> RenderableType:
    """Month by month."""
    from gambrel.faces.tables import facts

    lasts = "does not break in the loads tried" if math.isinf(o.lasts) else f"lasts {o.lasts:.1f} months"
    rows = [(f"{o.growth:+.0%} a month", f"the plan as it is {lasts}")]
    for m in o.months:
        fleet = "no number of replicas holds" if m.replicas is None else f"{m.replicas} replica{'s'[: m.replicas > 1]}"
        usd = "" if m.replicas is None else f", {human.per_hour(m.usd_per_hour)}"
        rows.append((f"month {m.month}", f"{m.load:.2f}x: {fleet}{usd}"))
    return facts("growth", [*rows, ("then", o.then_because)])
