"""``gambrel fleet``: a day of replicas that scale, start cold and fail; or a thousand of them that do not touch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - typer reads it when the command is made
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gambrel.core.errors import GambrelError
from gambrel.faces.fleet_words import bounds, broken, scaling, seconds, series_of, start_seconds
from gambrel.faces.logs import LogColumns, asked_log

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from gambrel.core.deployment import Deployment
    from gambrel.core.slo import SLO, Verdict
    from gambrel.core.workload import Workload
    from gambrel.traffic import Lengths, RateSeries

__all__ = ["register"]

_TALK_S = 5.0  # between two words on how far it is


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("fleet")(fleet_command)


def fleet_command(
    model: Annotated[str, typer.Option("--model", "-m", help="Shipped name, config.json, directory or GGUF file.")],
    gpu: Annotated[str, typer.Option("--gpu", "-g", help="Accelerator, e.g. h100-sxm.")],
    workload: Annotated[str | None, typer.Option("--workload", "-w", help="A log file, or a profile.")] = None,
    columns: LogColumns = None,
    rate_series: Annotated[
        str | None,
        typer.Option(
            "--rate-series",
            help="Instead of a log: a CSV of times and rates, day:mean=5,peak=1.8 or ramp:from=1,to=10,minutes=30.",
        ),
    ] = None,
    lengths: Annotated[str, typer.Option("--lengths", help="Profile whose lengths a rate series takes.")] = "chat",
    load: Annotated[float, typer.Option("--load", help="Multiple of the log's or the series' rate.")] = 1.0,
    requests: Annotated[
        str | None, typer.Option("--requests", help="Scale the series to this many requests, e.g. 100M.")
    ] = None,
    hours: Annotated[float | None, typer.Option("--hours", help="Only the first hours of a series.")] = None,
    clients: Annotated[int, typer.Option("--clients", help="Make the series the sum of this many clients.")] = 0,
    turns: Annotated[
        float, typer.Option("--turns", help="Mean turns of a conversation; the series then says when they begin.")
    ] = 1.0,
    think: Annotated[str, typer.Option("--think", help="Mean pause between turns, e.g. 30s.")] = "30s",
    turns_wait: Annotated[
        bool, typer.Option("--turns-wait", help="Turns of a log's sessions wait for the turn before.")
    ] = False,
    replicas: Annotated[str, typer.Option("--replicas", help="4, or 1:16 to scale between.")] = "1",
    autoscale: Annotated[
        str | None,
        typer.Option("--autoscale", help="concurrency=32 or kv=0.7; more: rule=kpa, period=, window=, idle=."),
    ] = None,
    start_up: Annotated[str | None, typer.Option("--start-up", help="From asking to serving, e.g. 120s.")] = None,
    load_rate: Annotated[
        float | None, typer.Option("--load-rate", help="Instead: GB/s at which weights reach the accelerators, and")
    ] = None,
    engine_start: Annotated[
        str | None, typer.Option("--engine-start", help="what the engine takes beside that, e.g. 45s.")
    ] = None,
    failures: Annotated[
        str | None, typer.Option("--failures", help="mtbf=500h of one replica (seed=1), or at=3600:0 (replica 0).")
    ] = None,
    shards: Annotated[
        str | None, typer.Option("--shards", help="random or round_robin: replicas one by one, for huge fleets.")
    ] = None,
    tp: Annotated[int, typer.Option("--tp", help="Tensor-parallel degree.")] = 1,
    weights: Annotated[str | None, typer.Option("--weights", help="Weight format, e.g. fp8.")] = None,
    kv: Annotated[str | None, typer.Option("--kv", help="KV cache format: bf16, fp8.")] = None,
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", help="Sequences in a step at most.")] = 256,
    max_num_batched_tokens: Annotated[
        int, typer.Option("--max-num-batched-tokens", help="Token budget of a step.")
    ] = 8192,
    policy: Annotated[str, typer.Option("--policy", help="Whose scheduler, as in simulate.")] = "vllm",
    routing: Annotated[
        str, typer.Option("--routing", help="round_robin, session_sticky, least_outstanding or power_of_two.")
    ] = "least_outstanding",
    slo: Annotated[
        list[str] | None, typer.Option("--slo", help="An objective, e.g. ttft.p95<=1s or goodput>=95%; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same bytes.")] = 0,
    price: Annotated[float | None, typer.Option("--price", help="Dollars per accelerator-hour.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a self-contained report page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """A fleet over time: autoscaling, cold starts, failures; what requests felt and what it cost."""
    from gambrel.faces import api
    from gambrel.faces.console import talk_context, writable
    from gambrel.faces.fleet_answers import fleet_document, fleet_tables

    started = time.perf_counter()
    writable(html)
    settings: dict[str, Any] = {"weights": weights} if weights else {}
    settings |= {"kv": kv} if kv else {}
    low, high = bounds(replicas)
    deployment = api.deployment(
        model, api.accelerator(gpu, price=price), tp=tp, replicas=high, max_num_seqs=max_num_seqs, policy=policy,
        max_num_batched_tokens=max_num_batched_tokens, routing=routing, **settings,
    )  # fmt: skip
    asked = Asked(workload, rate_series, lengths, load, requests, hours, clients, turns, seconds(think, "--think"),
                  turns_wait, seed, columns)  # fmt: skip
    objectives = api.slo(*slo) if slo else None
    if shards is not None:
        if autoscale or failures or low != high:
            raise GambrelError("--shards serves replicas one by one, so nothing scales or fails; --replicas N works")
        shard_command(deployment.with_(routing="round_robin"), asked, shards, objectives, started, as_json=as_json)
        return
    scale = scaling(autoscale, low, high)
    takes = start_seconds(deployment, start_up, load_rate, engine_start, needed=scale is not None or bool(failures))
    served = asked.workload()
    talk_context(deployment, served)
    options: dict[str, Any] = {"start_up_s": takes, "failures": broken(failures)}
    day = api.fleet(deployment, served, autoscale=scale, **options)
    fixed = None
    if scale is not None and objectives is not None:
        from gambrel.engine.fleet import least_fixed

        fixed = least_fixed(objectives, 4 * high, lambda r: api.fleet(deployment.with_(replicas=r), served, **options))
    verdicts = objectives.check(day.run) if objectives else ()
    document = fleet_document(deployment, day, objectives, fixed, time.perf_counter() - started)
    document["start_up_s"] = takes
    if html is not None:
        from gambrel.faces.console import write_report
        from gambrel.report.fleet import fleet_report

        write_report(fleet_report(document), html, None)
    finish(document, fleet_tables(document, verdicts), served.warnings, verdicts, as_json=as_json)


def finish(
    document: Mapping[str, Any], tables: list[RenderableType], warnings: tuple[str, ...],
    verdicts: tuple[Verdict, ...], *, as_json: bool,
) -> None:  # fmt: skip
    """Print, and end with status 1 where an objective is missed."""
    from gambrel.faces.console import emit, show, talk

    if as_json:
        emit(document)
    else:
        for warning in warnings:
            talk(f"note: {warning}")
        show(tables)
    if any(not v.met for v in verdicts):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Asked:
    """The traffic asked for."""

    log: str | None
    rate_series: str | None
    lengths: str
    load: float
    requests: str | None
    hours: float | None
    clients: int
    turns: float
    think_s: float
    turns_wait: bool
    seed: int
    columns: list[str] | None = None

    def rates(self) -> RateSeries:
        """The series, cut and scaled.

        Raises:
            GambrelError: there is none.
        """
        from gambrel.faces.words import number

        if self.columns:
            raise GambrelError("--column names the fields of a log; it goes with --workload FILE")
        if self.rate_series is None:
            raise GambrelError("no traffic given: --workload FILE, or --rate-series FILE, or day:mean=5,peak=1.8")
        found = series_of(self.rate_series)
        if self.hours is not None:
            found = found.cut(0.0, self.hours * 3600.0)
        if self.requests is not None:
            found = found.scaled(number(self.requests, "--requests") / found.num_requests / self.turns)
        return found if self.load == 1.0 else found.scaled(self.load)

    def profile(self) -> Lengths:
        """The lengths asked for.

        Raises:
            UnknownName: no such profile.
        """
        from gambrel.core.errors import UnknownName
        from gambrel.traffic import profiles

        if self.lengths not in profiles():
            raise UnknownName("profile", self.lengths, profiles())
        return profiles()[self.lengths].lengths

    def workload(self) -> Workload:
        """The requests.

        Raises:
            GambrelError: no traffic, or two kinds.
        """
        from gambrel.traffic import ClientPool, chain_turns, conversations, from_rates, ready_to_replay, scale_load

        if self.log is not None:
            if self.rate_series is not None or self.clients or self.turns > 1 or self.hours or self.requests:
                raise GambrelError("--rate-series and what goes with it (--requests, --hours, --clients, --turns) "
                                   "are instead of --workload")  # fmt: skip
            found = ready_to_replay(asked_log(self.log, self.columns), self.seed)
            found = scale_load(found, self.load, self.seed) if self.load != 1.0 else found
            return chain_turns(found) if self.turns_wait else found
        rates, lengths = self.rates(), self.profile()
        if self.turns > 1.0:
            return conversations(rates, lengths, self.turns, self.think_s, self.seed)
        if self.clients:
            return ClientPool.draw(lengths, self.clients, self.seed).workload(rates, self.seed)
        return from_rates(rates, lengths, self.seed)


def shard_command(
    deployment: Deployment, asked: Asked, rule: str, slo: SLO | None, started: float, *, as_json: bool
) -> None:
    """A fleet whose replicas do not touch."""
    from gambrel.faces import api
    from gambrel.faces.console import talk
    from gambrel.faces.fleet_answers import shard_document, shard_tables
    from gambrel.traffic import Split

    if asked.log is not None or asked.clients:
        raise GambrelError("--shards makes each replica's traffic itself: --rate-series FILE works, --clients does not")
    rates = asked.rates()
    split = Split(rates, asked.profile(), deployment.replicas, asked.seed, rule, asked.turns, asked.think_s)
    said = [started]

    def progress(done: int) -> None:
        if not as_json and time.perf_counter() - said[0] > _TALK_S:
            said[0] = time.perf_counter()
            talk(f"{done:,} of {deployment.replicas:,} replicas, {said[0] - started:.0f} s")

    tally = api.fleet_shards(deployment, split, slo=slo, horizon_s=rates.end_s, progress=progress)
    document = shard_document(deployment, tally, slo, rule, time.perf_counter() - started)
    verdicts = tally.check(slo) if slo else ()
    if not tally.complete:
        talk(f"interrupted: {tally.shards:,} of {tally.asked:,} replicas are in the figures")
    finish(document, shard_tables(document, verdicts), (), verdicts, as_json=as_json)
