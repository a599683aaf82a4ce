"""``gambrel advise``: a log and a deployment that runs already, in; where it stands and the one change, out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gambrel.faces.calibrate_commands import ProfileFile, own_constants

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gambrel.plan.advice import Advice

__all__ = ["advice_document", "advice_tables", "register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("advise")(advise_command)


def advise_command(
    model: Annotated[str, typer.Option("--model", "-m", help="Shipped name, config.json, directory or GGUF file.")],
    gpu: Annotated[str, typer.Option("--gpu", "-g", help="Accelerator it runs on, e.g. h100-sxm.")],
    workload: Annotated[str, typer.Option("--workload", "-w", help="A log, a dump of /metrics, or a profile.")],
    slo: Annotated[list[str], typer.Option("--slo", help="An objective, e.g. ttft.p95<=1s; repeatable.")],
    replicas: Annotated[int, typer.Option("--replicas", help="Equal replicas behind the router.")] = 1,
    tp: Annotated[int, typer.Option("--tp", help="Tensor-parallel degree.")] = 1,
    weights: Annotated[str | None, typer.Option("--weights", help="Weight format, e.g. fp8.")] = None,
    kv: Annotated[str | None, typer.Option("--kv", help="KV cache format: bf16, fp8.")] = None,
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", help="As the engine was started with.")] = 256,
    max_num_batched_tokens: Annotated[int, typer.Option("--max-num-batched-tokens", help="Likewise.")] = 8192,
    gpu_memory_utilization: Annotated[float, typer.Option("--gpu-memory-utilization", help="Likewise.")] = 0.9,
    profile: ProfileFile = None,
    price: Annotated[float | None, typer.Option("--price", help="Dollars per accelerator-hour.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Where a running deployment stands on its own traffic, what binds, and the one change worth making."""
    from gambrel.faces import api
    from gambrel.faces.console import emit, show
    from gambrel.plan.advice import advise
    from gambrel.traffic import ready_to_replay

    settings: dict[str, Any] = {"weights": weights} if weights else {}
    settings |= {"kv": kv} if kv else {}
    deployment = api.deployment(
        model,
        api.accelerator(gpu, price=price),
        replicas=replicas,
        tp=tp,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        gpu_memory_utilization=gpu_memory_utilization,
        **settings,
    )
    requests = ready_to_replay(api.load_workload(workload))
    found = advise(deployment, requests, api.slo(*slo), api.pricer(profile=own_constants(profile, deployment)))
    if as_json:
        emit(advice_document(found))
    else:
        show(advice_tables(found))
    if not found.candidate.feasible:
        raise typer.Exit(1)


def advice_document(found: Advice) -> dict[str, Any]:
    """The result as one JSON document."""
    run, c = found.run, found.candidate
    return {
        "deployment": c.deployment.label,
        "holds": c.feasible,
        "binds": found.binds,
        "batch": {"mean": run.batch_mean, "max": run.batch_max},
        "kv_usage": {"mean": run.kv_usage_mean, "max": run.kv_usage_max},
        "time_bound_by": run.time_bound_by(),
        "slo": {
            v.objective.name: {"limit_s": v.objective.limit_s, "reached_s": v.reached_s, "met": v.met}
            for v in c.verdicts
        },
        "carries": found.carries,
        "change": found.change,
        "fixes": [{"change": f.change, "effect": f.effect, "usd_per_hour": f.usd_per_hour} for f in found.fixes],
        "fewer_replicas": None if found.fewer is None else found.fewer.deployment.replicas,
        "usd_per_hour": c.usd_per_hour,
        "e2e_p50_s": run.distribution("e2e").p50,
        "logged_e2e_p50_s": found.logged_e2e_p50_s,
    }


def advice_tables(found: Advice) -> list[RenderableType]:
    """The change first, then where it stands."""
    from gambrel.faces.tables import facts, verdict_table
    from gambrel.report import humanise as human

    c = found.candidate
    holds = "holds" if c.feasible else f"does not hold: {c.lost_because}"
    load = f"{found.carries:.2f}x this load before the first objective breaks"
    rows = [("change", found.change), ("today", f"{c.deployment.label} {holds}"), ("binds", found.binds)]
    rows.append(("carries", load))
    if not math.isnan(found.logged_e2e_p50_s):
        simulated, logged = found.run.distribution("e2e").p50, found.logged_e2e_p50_s
        apart = (
            "" if 0.5 < logged / simulated < 2.0 else ": something other than the engine decides, or settings differ"
        )
        rows.append(("log says", f"E2E p50 {human.seconds(logged)}, simulated {human.seconds(simulated)}{apart}"))
    others = [(f.change, f"{human.per_hour(f.usd_per_hour)}: {f.effect}") for f in found.fixes]
    blocks: list[RenderableType] = [facts("advice", rows), "", verdict_table(c.verdicts)]
    return [*blocks, "", facts("other changes", others)] if others else blocks
