"""A fleet's day as one JSON document and as tables."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.core.units import SECONDS_PER_HOUR
from gambrel.faces.documents import deployment_document, distribution
from gambrel.faces.verdicts import slo_document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run
    from gambrel.core.slo import SLO, Verdict
    from gambrel.engine.fleet import FleetRun
    from gambrel.engine.shards import Tally

__all__ = ["fleet_document", "fleet_tables", "shard_document", "shard_tables"]

METRICS = ("ttft", "tpot", "itl", "e2e", "queue")
_POINTS = 400  # of the timeline in a document


def latencies(run: Run | Tally) -> dict[str, dict[str, float]]:
    """The latency blocks."""
    return {f"{m}_s": distribution(run.distribution(m)) for m in METRICS}


def bill(deployment: Deployment, gpu_hours: float, output_tokens: float) -> dict[str, float | None]:
    """Hours and dollars; None without a price."""
    price = deployment.accelerator.price_for(deployment.tp)
    usd = None if price is None else price.usd_per_hour * gpu_hours
    return {
        "gpu_hours": gpu_hours,
        "usd": usd,
        "usd_per_mtok": None if usd is None or not output_tokens else usd / output_tokens * 1e6,
    }


def fleet_document(
    deployment: Deployment, day: FleetRun, slo: SLO | None, fixed: tuple[int, FleetRun] | None, wall_s: float
) -> dict[str, Any]:
    """The result as one JSON document; the timeline holds means over at most 400 parts of it, by their beginnings."""
    run, t = day.run, day.timeline
    tokens = float(run.output_tokens[np.isfinite(run.last_token_s)].sum())
    starts = np.unique(np.linspace(0, len(t.time_s), min(len(t.time_s), _POINTS), endpoint=False).astype(int))
    sizes = np.diff(np.append(starts, len(t.time_s)))
    course = {
        name: (np.add.reduceat(getattr(t, name), starts) / sizes).tolist()
        for name in ("ready", "starting", "leaving", "in_flight", "held", "kv_usage")
    }
    struck = day.retries > 0
    document: dict[str, Any] = {
        "deployment": deployment_document(deployment),
        "scales": day.scales,
        "num_requests": len(run),
        "span_s": day.horizon_s - day.start_s,
        **latencies(run),
        "fleet": {
            "replicas_mean": day.replicas_mean,
            "replicas_max": int(t.ready.max(initial=0)),
            "replica_hours": day.replica_hours,
            **bill(deployment, day.gpu_hours, tokens),
            "starts": day.num_starts,
            "failures": day.num_failures,
        },
        "held": _part(run, day.held, slo),
        "sent_during_start": _part(run, day.during_start, slo),
        "lost_and_retried": _part(run, struck, slo),
        "num_preemptions": run.num_preemptions,
        "hit_ratio": run.hit_ratio,
        "slo": slo_document(slo.check(run)) if slo else {},
        "goodput": slo.goodput(run) if slo else None,
        "fixed_fleet": None,
        "timeline": {"time_s": t.time_s[starts].tolist(), **course},
        "replicas": [
            {"replica": x.replica, "asked_s": x.asked_s, "ready_s": x.ready_s, "end_s": x.end_s, "end": x.end}
            for x in day.lives
        ],
        "wall_s": wall_s,
    }
    if fixed is not None and slo is not None:
        number, other = fixed
        document["fixed_fleet"] = {
            "replicas": number,
            **bill(deployment, other.gpu_hours, tokens),
            "slo": slo_document(slo.check(other.run)),
            "goodput": slo.goodput(other.run),
        }
    return document


def _part(run: Run, rows: Any, slo: SLO | None) -> dict[str, Any]:
    """Some of the requests: how many, their TTFT, and how many of them met the objectives."""
    from gambrel.core.run import Distribution

    number = int(rows.sum())
    found: dict[str, Any] = {"num": number, "share": number / len(run)}
    if number:
        found["ttft_s"] = distribution(Distribution.of(run.ttft_s[rows]))
    if number and slo is not None:
        columns = ("arrival_s", "scheduled_s", "first_token_s", "last_token_s", "output_tokens")
        picked = replace(run, **{name: getattr(run, name)[np.flatnonzero(rows)] for name in columns})
        found["goodput"] = slo.goodput(picked)
    return found


def fleet_tables(document: Mapping[str, Any], verdicts: tuple[Verdict, ...]) -> list[RenderableType]:
    """The fleet, then what requests felt."""
    from gambrel.faces.tables import facts, grid, verdict_table
    from gambrel.report import humanise as human

    fleet, deployment = document["fleet"], document["deployment"]
    rows = [
        ("deployment", f"{deployment['label']}{' at most' if document['scales'] else ''}, {deployment['model']}"),
        ("traffic", f"{document['num_requests']:,} requests in {human.seconds(document['span_s'])}"),
        ("replicas", f"{fleet['replicas_mean']:.2f} on average, {fleet['replicas_max']} at most"),
        ("cost", _cost(fleet)),
    ]
    if fleet["starts"]:
        starts = f"{fleet['starts']:,} of {human.seconds(document['start_up_s'])} each"
        rows.append(("starts", f"{starts}; {fleet['failures']:,} failures"))
    if document["hit_ratio"] > 0:
        rows.append(("prefix cache", f"{human.percent(document['hit_ratio'])} of prompt tokens found"))
    fixed = document["fixed_fleet"]
    if fixed is not None:
        rows.append(("fixed fleet", f"the objectives hold with {fixed['replicas']} throughout: {_cost(fixed)}"))
    for key, title in (
        ("held", "held"), ("sent_during_start", "sent during a start"), ("lost_and_retried", "lost and sent again")
    ):  # fmt: skip
        part = document[key]
        if part["num"]:
            good = f", {human.percent(part['goodput'])} met the objectives" if "goodput" in part else ""
            rows.append((title, (f"{part['num']:,} requests ({human.percent(part['share'])}), "
                                f"TTFT p99 {human.seconds(part['ttft_s']['p99'])}{good}")))  # fmt: skip
    if document["goodput"] is not None:
        rows.append(("goodput", human.percent(document["goodput"])))
    blocks: list[RenderableType] = [facts("fleet", rows), "", grid("latency", HEAD, latency_rows(document))]
    if document["timeline"]["time_s"]:
        blocks += ["", grid("over time", COURSE, course(document["timeline"]))]
    return [*blocks, "", verdict_table(verdicts)] if verdicts else blocks


HEAD = ("", "mean", "p50", "p90", "p95", "p99")
COURSE = ("from", "ready", "starting", "in flight", "held", "KV cache")


def latency_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the latency table."""
    from gambrel.report import humanise as human

    return [
        [m.upper() if m != "queue" else "queue", *(human.seconds(document[f"{m}_s"][s]) for s in HEAD[1:])]
        for m in METRICS
    ]


def course(timeline: Mapping[str, Any], parts: int = 12) -> list[list[str]]:
    """The timeline as means over equal parts of it."""
    from gambrel.report import humanise as human

    columns = {name: np.asarray(values, np.float64) for name, values in timeline.items()}
    rows = []
    for place in np.array_split(np.arange(len(columns["time_s"])), min(parts, len(columns["time_s"]))):
        mean = {name: float(values[place].mean()) for name, values in columns.items()}
        rows.append([
            human.seconds(float(columns["time_s"][place[0]])), f"{mean['ready']:.1f}", f"{mean['starting']:.1f}",
            f"{mean['in_flight']:,.1f}", f"{mean['held']:,.1f}", human.percent(mean["kv_usage"]),
        ])  # fmt: skip
    return rows


def _cost(part: Mapping[str, Any]) -> str:
    from gambrel.report import humanise as human

    hours = f"{part['gpu_hours']:,.1f} GPU-hours"
    if part["usd"] is None:
        return f"{hours}; no price known"
    return f"{hours}, {human.dollars(part['usd'])}, {human.per_mtok(part['usd_per_mtok'])}"


def shard_document(deployment: Deployment, tally: Tally, slo: SLO | None, rule: str, wall_s: float) -> dict[str, Any]:
    """The result as one JSON document."""
    gpus = deployment.gpus_per_replica * tally.shards
    return {
        "deployment": deployment_document(deployment),
        "split": rule,
        "replicas_served": tally.shards,
        "complete": tally.complete,
        "num_requests": tally.num_requests,
        "span_s": tally.last_s,
        **latencies(tally),
        "resolution": 1.0 / 32.0,  # the widest bucket over its lower edge
        "fleet": bill(deployment, gpus * tally.last_s / SECONDS_PER_HOUR, tally.sums["output_tokens"]),
        "utilisation": tally.utilisation,
        "batch": {"mean": tally.sums["batch_s"] / tally.sums["busy_s"], "max": tally.batch_max},
        "kv_usage": {"max": tally.kv_usage_max},
        "num_preemptions": int(tally.sums["preemptions"]),
        "hit_ratio": tally.sums["cached_tokens"] / tally.sums["prompt_tokens"],
        "time_bound_by": tally.time_bound_by(),
        "slo": slo_document(tally.check(slo)) if slo else {},
        "goodput": tally.goodput if slo else None,
        "windows": {
            "window_s": tally.window_s,
            "arrivals": tally.arrivals.tolist(),
            "in_flight": tally.in_flight.tolist(),
            "ttft_p95_s": tally.ttft_by_window().tolist(),
        },
        "wall_s": wall_s,
    }


def shard_tables(document: Mapping[str, Any], verdicts: tuple[Verdict, ...]) -> list[RenderableType]:
    """The fleet, then what requests felt."""
    from gambrel.faces.tables import facts, grid, verdict_table
    from gambrel.report import humanise as human

    wall = document["wall_s"]
    rows = [
        ("deployment", f"{document['deployment']['label']}, {document['deployment']['model']}"),
        ("traffic", (f"{document['num_requests']:,} requests in {human.seconds(document['span_s'])}, "
                    f"{document['split']} split")),
        ("replicas", (f"{document['replicas_served']:,} one by one, busy {human.percent(document['utilisation'])}"
                     f" of the time, batch {document['batch']['mean']:.1f} on average")),
        ("cost", _cost(document["fleet"])),
        ("computed", (f"in {human.seconds(wall)}, {document['num_requests'] / wall:,.0f} requests/s; "
                     f"percentiles to {human.percent(document['resolution'])}")),
    ]  # fmt: skip
    if document["goodput"] is not None:
        rows.append(("goodput", human.percent(document["goodput"])))
    blocks: list[RenderableType] = [facts("fleet", rows), "", grid("latency", HEAD, latency_rows(document))]
    return [*blocks, "", verdict_table(verdicts)] if verdicts else blocks
