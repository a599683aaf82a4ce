"""The plan's further answers as documents; as tables they are :mod:`gambrel.report.answers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gambrel.core.plan import Outlook, Plan

__all__ = ["answers_document"]


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
