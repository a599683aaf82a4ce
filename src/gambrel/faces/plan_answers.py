"""The plan's further answers as documents; as tables they are :mod:`gambrel.report.answers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gambrel.faces.verdicts import slo_document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gambrel.core.plan import Measurement, Outlook, Plan, Relaxation, Schedule

__all__ = ["answers_document", "refusal_document"]


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
                        "slo": slo_document(step.verdicts),
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
        "schedule": None if plan.schedule is None else schedule_document(plan.schedule),
        "other_traffic": [
            {
                "change": s.change,
                "draws": s.draws,
                "chance": s.chance,
                "worst": slo_document(s.worst),
                "behind": s.behind,
            }
            for s in plan.sensitivities
        ],
        "measurement": None if plan.measurement is None else measurement_document(plan.measurement),
    }


def schedule_document(s: Schedule) -> dict[str, Any]:
    """Replicas by hour of the day, and the saving of the fleet that followed them."""
    return {
        "hours": [
            {
                "hour": h.hour,
                "rate_rps": h.rate_rps,
                "busiest_rps": h.busiest_rps,
                "needed": h.needed,
                "replicas": h.replicas,
                "usd_per_hour": h.usd_per_hour,
            }
            for h in s.hours
        ],
        "usd_per_day": s.usd_per_day,
        "flat_usd_per_day": s.flat_usd_per_day,
        "start_up_s": s.start_s,
        "slo": slo_document(s.verdicts),
        "basis": s.basis,
    }


def measurement_document(m: Measurement) -> dict[str, Any]:
    """What to measure, how, and what it is worth."""
    return {
        "what": m.what,
        "because": m.because,
        "command": m.command,
        "flips": m.flips,
        "expected_saving_usd_per_hour": m.saves_usd_per_hour,
        "choices": [
            {"step_factor": factor, "label": label, "plan_usd_per_hour": now, "choice_usd_per_hour": then}
            for factor, label, now, then in m.choices
        ],
    }


def refusal_document(reason: str, relaxations: Sequence[Relaxation]) -> dict[str, Any]:
    """An infeasible request: the reason, and the nearest requests that can be met."""
    return {
        "feasible": False,
        "reason": reason,
        "relaxations": [
            {
                "change": r.change,
                "because": r.because,
                "label": None if r.deployment is None else r.deployment.label,
                "usd_per_hour": r.usd_per_hour,
            }
            for r in relaxations
        ],
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
