"""Core objects as JSON documents: the command line's contract, whose keys other programs rely on.

Keys are stable; new ones may be added. SI units. What is infinite or undefined is ``null``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gambrel.core.run import Distribution
from gambrel.faces.verdicts import slo_document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.core.curve import Curve
    from gambrel.core.deployment import Deployment
    from gambrel.core.plan import Candidate, Plan
    from gambrel.core.run import Run
    from gambrel.core.step import MemoryBudget

__all__ = ["curve_document", "dump", "plan_document", "run_document"]

METRICS = ("ttft", "tpot", "itl", "e2e", "queue")


def dump(document: Mapping[str, Any]) -> str:
    """One JSON document, indented; NaN and infinities become null."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def distribution(d: Distribution) -> dict[str, float]:
    """Mean and percentiles in seconds."""
    return {"mean": d.mean, "p50": d.p50, "p90": d.p90, "p95": d.p95, "p99": d.p99, "max": d.max}


def deployment_document(d: Deployment) -> dict[str, Any]:
    """Every choice of a deployment."""
    price = d.accelerator.price
    return {
        "label": d.label,
        "model": d.model.name,
        "gpu": d.accelerator.name,
        "replicas": d.replicas,
        "tp": d.tp,
        "pp": d.pp,
        "ep": d.ep,
        "attention_dp": d.attention_dp,
        "expert_load": d.expert_load,
        "prefill_replicas": d.prefill_replicas,
        **(
            {
                "prefill": {name: getattr(d.prefill_pool, name) for name in ("tp", "pp", "ep", "attention_dp")},
                "kv_link_bytes_per_s": d.kv_link_bytes_per_s,
            }
            if d.disaggregated
            else {}
        ),
        "num_gpus": d.num_gpus,
        "weights": d.weights,
        "kv": d.kv,
        "max_num_seqs": d.max_num_seqs,
        "max_num_batched_tokens": d.max_num_batched_tokens,
        "gpu_memory_utilization": d.gpu_memory_utilization,
        "block_size": d.block_size,
        "chunked_prefill": d.chunked_prefill,
        "routing": d.routing,
        "policy": d.policy,
        "prefix_caching": d.prefix_caching,
        "draft_tokens": d.draft_tokens,
        "acceptance": d.acceptance,
        "draft_cost": d.draft_cost,
        "engine": d.engine,
        "engine_version": d.engine_version,
        "usd_per_gpu_hour": None if price is None else price.usd_per_hour,
        "price_basis": None if price is None else price.basis,
        "usd_per_hour": d.usd_per_hour,
    }


def memory_document(m: MemoryBudget) -> dict[str, Any]:
    """The parts of one accelerator's memory, in bytes."""
    return {
        "memory_bytes": m.memory_bytes,
        "usable_bytes": m.usable_bytes,
        "weight_bytes": m.weight_bytes,
        "activation_bytes": m.activation_bytes,
        "reserve_bytes": m.reserve_bytes,
        "kv_cache_bytes": m.kv_cache_bytes,
        "num_kv_blocks": m.num_kv_blocks,
        "block_size": m.block_size,
        "kv_tokens": m.kv_tokens,
    }


def curve_document(curve: Curve) -> dict[str, Any]:
    """``points`` and the named figures of ``gambrel curve``."""
    columns = {
        "batch": curve.batch.tolist(),
        "context": curve.context.tolist(),
        "step_s": curve.step_s.tolist(),
        "compute_s": curve.compute_s.tolist(),
        "weights_s": curve.weights_s.tolist(),
        "kv_s": curve.kv_s.tolist(),
        "collective_s": curve.collective_s.tolist(),
        "overhead_s": curve.overhead_s.tolist(),
        "bound_by": curve.causes(),
        "memory_bytes": curve.memory_bytes.tolist(),
        "fits": curve.fits.tolist(),
        "tokens_per_s": curve.tokens_per_s.tolist(),
        "usd_per_mtok": [None] * len(curve) if curve.usd_per_mtok is None else curve.usd_per_mtok.tolist(),
    }
    knee, knee_batch = curve.knee
    return {
        "deployment": deployment_document(curve.deployment),
        "form": curve.form,
        "basis": curve.basis,
        "points": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        "floor_s": curve.floor_s,
        "named_context": curve.named_context,
        "ridge_batch": curve.ridge_batch,
        "balance_batch": curve.balance_batch,
        "wall_batch": curve.wall_batch,
        "knee": knee,
        "knee_batch": knee_batch,
        "crossover_context": curve.crossover_context,
        "amortisation": curve.amortisation,
        "amortisation_limit": curve.amortisation_limit,
    }


def pool_documents(run: Run) -> dict[str, Any]:
    """What each pool did, and how long prompts took to come over; nothing where there is one pool."""
    if not run.pools or run.prefilled_s is None or run.transferred_s is None:
        return {}
    return {
        "transfer_s": distribution(Distribution.of(run.transferred_s - run.prefilled_s)),
        "pools": {
            pool.name: {
                "replicas": pool.replicas,
                "utilisation": pool.busy_s / (run.makespan_s * pool.replicas),
                "num_steps": pool.num_steps,
                "batch": {"mean": pool.batch_mean, "max": pool.batch_max},
                "kv_usage": {"mean": pool.kv_usage_mean, "max": pool.kv_usage_max},
            }
            for pool in run.pools
        },
    }


def run_document(run: Run, deployment: Deployment, memory: MemoryBudget, wall_s: float) -> dict[str, Any]:
    """The result of ``gambrel simulate``."""
    from gambrel.plan.trial import price_run

    price = deployment.usd_per_hour
    pricing = None if price is None else price_run(run, price)
    return {
        "deployment": deployment_document(deployment),
        "num_requests": len(run),
        "num_unfinished": run.num_unfinished,
        **{f"{m}_s": distribution(run.distribution(m)) for m in METRICS},
        "output_tokens_per_s": run.output_tokens_per_s,
        "num_preemptions": run.num_preemptions,
        "hit_ratio": run.hit_ratio,
        "num_steps": run.num_steps,
        "makespan_s": run.makespan_s,
        "utilisation": run.utilisation,
        "kv_usage": {"mean": run.kv_usage_mean, "max": run.kv_usage_max},
        "batch": {"mean": run.batch_mean, "max": run.batch_max},
        "time_bound_by": run.time_bound_by(),
        **pool_documents(run),
        "idle_share": run.idle_share,
        "phases_s": {name: distribution(Distribution.of(seconds)) for name, seconds in run.phases_s().items()},
        "time_in": run.time_in(),
        "usd_per_hour": price,
        "usd_per_mtok": None if pricing is None else pricing.usd_per_mtok,
        "usd_per_mtok_input": None if pricing is None else pricing.usd_per_mtok_input,
        "usd_per_mtok_output": None if pricing is None else pricing.usd_per_mtok_output,
        "memory": memory_document(memory),
        "basis": run.basis,
        "wall_s": wall_s,
    }


def candidate_document(c: Candidate) -> dict[str, Any]:
    """One considered deployment with what became of it."""
    pricing = c.pricing
    return {
        **deployment_document(c.deployment),
        "stage": c.stage,
        "feasible": c.feasible,
        "lost_because": c.lost_because,
        "goodput": c.goodput,
        "idle_share": c.idle_share,
        "keeps_up": c.keeps_up,
        "usd_per_mtok": None if pricing is None else pricing.usd_per_mtok,
        "usd_per_mtok_input": None if pricing is None else pricing.usd_per_mtok_input,
        "usd_per_mtok_output": None if pricing is None else pricing.usd_per_mtok_output,
        "slo": slo_document(c.verdicts),
        **{f"{m}_s": distribution(d) for m, d in c.latency.items()},
        "memory": memory_document(c.memory),
    }


def plan_document(plan: Plan) -> dict[str, Any]:
    """The result of ``gambrel plan``."""
    from gambrel.faces.plan_answers import answers_document

    biggest = plan.biggest_gpu
    demo = plan.demo_plan
    return {
        "workload": {"name": plan.workload, "num_requests": plan.num_requests, "rate_rps": plan.rate_rps},
        "chosen": candidate_document(plan.chosen),
        "alternatives": [candidate_document(c) for c in plan.alternatives],
        "biggest_gpu": None
        if biggest is None
        else {
            **candidate_document(biggest),
            "extra_usd_per_hour": plan.biggest_gpu_extra_usd_per_hour,
        },
        "demo_plan": {
            "deployment": None if demo is None else candidate_document(demo),
            "under_real_traffic": plan.demo_plan_hits,
            "cells": [
                {
                    "label": cell.label,
                    "users": cell.users,
                    "prompt_tokens": cell.prompt_tokens,
                    "ttft_p95_s": cell.ttft_p95_s,
                    "tpot_p95_s": cell.tpot_p95_s,
                    "e2e_p95_s": cell.e2e_p95_s,
                    "tokens_per_s": cell.tokens_per_s,
                    "kv_usage_max": cell.kv_usage_max,
                    "hides": cell.hides,
                }
                for cell in plan.cells
            ],
        },
        "breaks_at": dict(plan.breaks_at),
        "loads": [
            {
                "load": p.load,
                "rate_rps": p.rate_rps,
                "goodput": p.goodput,
                "tokens_per_s": p.tokens_per_s,
                "kv_usage_max": p.kv_usage_max,
                **{f"{m}_s": distribution(d) for m, d in p.latency.items()},
            }
            for p in plan.loads
        ],
        "cheaper_fixes": [
            {"change": f.change, "effect": f.effect, "usd_per_hour": f.usd_per_hour, "meets_slo": f.meets_slo}
            for f in plan.cheaper_fixes
        ],
        "intervals": {name: {"low": low, "high": high} for name, (low, high) in plan.intervals.items()},
        "measure_next": plan.measure_next,
        "launch": plan.launch,
        "caveats": list(plan.caveats),
        "basis": plan.basis,
        "num_considered": plan.num_considered,
        "num_simulated": plan.num_simulated,
        "wall_s": plan.wall_s,
        **answers_document(plan),
    }
