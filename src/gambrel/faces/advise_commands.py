"""``gambrel advise``: a log or a live server, and its deployment, in; where it stands and the one change, out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gambrel.core.errors import GambrelError
from gambrel.faces.calibrate_commands import ProfileFile, own_constants
from gambrel.faces.logs import LogColumns, asked_log
from gambrel.faces.verdicts import slo_document

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gambrel.core.workload import Workload
    from gambrel.plan.advice import Advice
    from gambrel.traffic.server_metrics import ServerFigures

__all__ = ["advice_document", "advice_tables", "register"]


Measured = dict[str, dict[str, tuple[float, float]]]
"""By metric and statistic, the seconds (low, high] of the bucket that a server's histogram has it in."""
EVERY_S = 5.0
FAR = 1.5
"""Factor between a bucket's edge and the simulation beyond which they are called far apart."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("advise")(advise_command)


def advise_command(
    model: Annotated[str, typer.Option("--model", "-m", help="Shipped name, config.json, directory or GGUF file.")],
    gpu: Annotated[str, typer.Option("--gpu", "-g", help="Accelerator it runs on, e.g. h100-sxm.")],
    slo: Annotated[
        list[str], typer.Option("--slo", help="An objective, e.g. ttft.p95<=1s or goodput>=95%; repeatable.")
    ],
    workload: Annotated[
        str | None, typer.Option("--workload", "-w", help="A log, a dump of /metrics, or a profile.")
    ] = None,
    columns: LogColumns = None,
    url: Annotated[
        str | None, typer.Option("--url", "-u", help="Instead: the running server, whose /metrics is watched.")
    ] = None,
    watch: Annotated[float, typer.Option("--watch", min=2.0, help="Seconds to watch --url.")] = 60.0,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Requests per second, where the log has lengths and no times.")
    ] = None,
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
    from gambrel.faces.console import emit, show, talk, talk_context
    from gambrel.plan.advice import advise

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
    requests, server = traffic(workload, url, watch, rate, columns)
    for warning in requests.warnings:
        talk(f"note: {warning}")
    talk_context(deployment, requests)
    pricer = api.pricer(profile=own_constants(profile, deployment))
    api.fitting(pricer(deployment))
    found = advise(deployment, requests, api.slo(*slo), pricer)
    if as_json:
        emit(advice_document(found) | {"server": server})
    else:
        show(advice_tables(found, server))
    if not found.candidate.feasible:
        raise typer.Exit(1)


def traffic(
    workload: str | None, url: str | None, watch_s: float, rate: float | None, columns: list[str] | None = None
) -> tuple[Workload, Measured]:
    """The requests to simulate, and what the server itself says of its latencies: by metric, {share: (low, high)}.

    Raises:
        GambrelError: no source or two, an endpoint that does not answer, or a log without a rate.
    """
    from gambrel.traffic import compress_time, ready_to_replay
    from gambrel.traffic.server_metrics import is_metrics, read_server_metrics, watched_server

    if (workload is None) == (url is None):
        raise GambrelError("give either --workload LOG or --url http://HOST:8000, whose /metrics is then watched")
    if columns and url is not None:
        raise GambrelError("--column names the fields of a log; it goes with --workload FILE")
    if url is not None:
        figures = watched_server(url, pages(url, watch_s))
        requests, server = figures.workload(url), said(figures)
    else:
        requests, server = asked_log(str(workload), columns), {}
        path = Path(str(workload))
        if path.is_file():
            with path.open("rb") as stream:
                head = stream.read(4096)
            server = said(read_server_metrics(path)) if is_metrics(head) else {}
    if rate is not None:
        requests = compress_time(replace(requests, has_arrivals=True), rate / requests.rate_rps)
    elif not requests.has_arrivals and not requests.closed_loop:
        raise GambrelError(
            f"{requests.source or workload}: has lengths and no rate, so nobody knows what the server carries; "
            "add --rate REQUESTS_PER_SECOND, watch the server with --url, or give a log with times"
        )
    return ready_to_replay(requests), server


def said(figures: ServerFigures) -> Measured:
    """The buckets in which a server's own histograms have the percentiles that objectives are about."""
    names = {"ttft_s": "ttft", "itl_s": "itl", "e2e_s": "e2e", "queue_s": "queue"}
    return {
        ours: {f"p{share:g}": found.quantile(share / 100) for share in (50, 90, 95, 99)}
        for theirs, ours in names.items()
        if (found := figures.histograms.get(theirs)) is not None and found.count
    }


def pages(url: str, watch_s: float) -> list[tuple[float, str]]:
    """The server's ``/metrics`` page at its start, every few seconds and at its end, with the seconds since.

    Raises:
        GambrelError: the page cannot be read.
    """
    import time
    from urllib.error import URLError
    from urllib.request import urlopen

    from gambrel.faces.console import talk

    if not url.startswith(("http://", "https://")):
        raise GambrelError(f"--url must begin with http:// or https://, got {url!r}")
    address = f"{url.rstrip('/').removesuffix('/v1')}/metrics"
    every = min(EVERY_S, watch_s / 4)
    began, found = time.monotonic(), []
    talk(f"watching {address} for {watch_s:g} s")
    while True:
        try:
            with urlopen(address, timeout=10) as answer:  # noqa: S310 - http and https alone, as checked above
                found.append((time.monotonic() - began, answer.read().decode("utf-8", errors="replace")))
        except (URLError, OSError, ValueError) as error:
            raise GambrelError(f"{address}: cannot be read ({error}); vLLM and SGLang serve it by default") from None
        left = watch_s - (time.monotonic() - began)
        if left <= 0:
            return found
        time.sleep(min(every, max(left, 0.01)))


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
        "slo": slo_document(c.verdicts),
        "carries": found.carries,
        "change": found.change,
        "fixes": [{"change": f.change, "effect": f.effect, "usd_per_hour": f.usd_per_hour} for f in found.fixes],
        "fewer_replicas": None if found.fewer is None else found.fewer.deployment.replicas,
        "usd_per_hour": c.usd_per_hour,
        "e2e_p50_s": run.distribution("e2e").p50,
        "logged_e2e_p50_s": found.logged_e2e_p50_s,
    }


def advice_tables(found: Advice, server: Measured | None = None) -> list[RenderableType]:
    """The change first, then where it stands; ``server`` is what its own histograms say."""
    from gambrel.faces.tables import facts, verdict_table
    from gambrel.plan.explain import carried
    from gambrel.report import humanise as human

    c = found.candidate
    holds = "holds" if c.feasible else f"does not hold: {c.lost_because}"
    rows = [("change", found.change), ("today", f"{c.deployment.label} {holds}"), ("binds", found.binds)]
    rows.append(("carries", carried(found.carries)))
    if not math.isnan(found.logged_e2e_p50_s):
        simulated, logged = found.run.distribution("e2e").p50, found.logged_e2e_p50_s
        apart = (
            "" if 0.5 < logged / simulated < 2.0 else ": something other than the engine decides, or settings differ"
        )
        rows.append(("log says", f"E2E p50 {human.seconds(logged)}, simulated {human.seconds(simulated)}{apart}"))
    rows += [("server says", text) for text in compared(found, server or {})]
    others = [(f.change, f"{human.per_hour(f.usd_per_hour)}: {f.effect}") for f in found.fixes]
    blocks: list[RenderableType] = [facts("advice", rows), "", verdict_table(c.verdicts)]
    return [*blocks, "", facts("other changes", others)] if others else blocks


def compared(found: Advice, server: Measured) -> list[str]:
    """Each objective's figure as the server's histogram has it, against the simulation."""
    from gambrel.report import humanise as human

    lines = []
    for v in found.candidate.verdicts:
        o = v.objective
        low, high = server.get(o.metric, {}).get(o.statistic, (math.nan, math.nan))
        if math.isnan(low):
            continue
        between = (
            f"{human.seconds(low)} to {human.seconds(high)}" if math.isfinite(high) else f"over {human.seconds(low)}"
        )
        far = v.reached < low / FAR or v.reached > FAR * high
        apart = ": far apart, so settings, lengths or bursts differ, or something else decides" if far else ""
        lines.append(f"{o.name} within {between}, simulated {human.seconds(v.reached)}{apart}")
    return lines
