"""``gambrel measure`` and ``gambrel selfcheck``: a live endpoint in figures, and the client's own error.

A module of its own so that measuring can grow without the rest; :func:`register` hangs the commands on the program.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gambrel.core.errors import EndpointError, GambrelError
from gambrel.core.version import __version__
from gambrel.faces.console import show
from gambrel.faces.logs import LogColumns, asked_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import RenderableType

    from gambrel.measure.sweep import Closed, Open, Progress, Ramp, Replay
    from gambrel.report.measured import MeasuredLevel, MeasuredSweep

__all__ = ["measure_tables", "measured_sweep", "register", "watched"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
WIDE = 140  # columns of a table where there is no terminal
REFRESH_S = 0.5  # drawing shares the client's interpreter, so it is rare and small


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("measure")(measure_command)
    app.command("selfcheck")(selfcheck_command)


def measure_command(
    url: Annotated[
        str | None, typer.Option("--url", "-u", help="OpenAI-compatible server, e.g. http://127.0.0.1:8000.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model's name on that server.")] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Instead: a real small engine, started here for the measurement.")
    ] = False,
    concurrency: Annotated[
        str | None, typer.Option("--concurrency", "-c", help="Requests always in flight: 8, or 1,2,4, or 1:32.")
    ] = None,
    rate: Annotated[str | None, typer.Option("--rate", help="Requests per second, open loop: 2 or 0.5,1,2.")] = None,
    ramp: Annotated[str | None, typer.Option("--ramp", help="Open loop from one rate to another: 1:10.")] = None,
    workload: Annotated[
        str | None, typer.Option("--workload", "-w", help="Replay a log's or profile's own arrivals and lengths.")
    ] = None,
    columns: LogColumns = None,
    prompt: Annotated[str, typer.Option("--prompt", help="Prompt tokens; several make a grid: 128,1k,8k.")] = "512",
    output: Annotated[str, typer.Option("--output", help="Output tokens of each answer.")] = "128",
    arrivals: Annotated[
        str, typer.Option("--arrivals", help="constant, poisson or gamma gaps of an open loop.")
    ] = "poisson",
    cv: Annotated[float, typer.Option("--cv", help="Coefficient of variation of gamma gaps.")] = 2.0,
    time_scale: Annotated[float, typer.Option("--time-scale", help="Stretch a replayed log in time by this.")] = 1.0,
    requests: Annotated[
        int | None, typer.Option("--requests", "-n", help="Measured requests of a closed level; else 4 per user.")
    ] = None,
    duration: Annotated[float, typer.Option("--duration", help="Seconds a level is measured at most.")] = 60.0,
    warm: Annotated[float, typer.Option("--warm", help="Seconds of warm-up at most.")] = 30.0,
    repeats: Annotated[int, typer.Option("--repeats", help="Measure all levels so often; medians are shown.")] = 1,
    api: Annotated[str, typer.Option("--api", help="chat or completions.")] = "chat",
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos/--no-ignore-eos", help="Force answers to their full length.")
    ] = True,
    continuous_usage: Annotated[
        bool, typer.Option("--continuous-usage", help="Ask for token counts with every event (vLLM).")
    ] = False,
    extra: Annotated[str | None, typer.Option("--extra", help="JSON object of further fields of each request.")] = None,
    shared_prefix: Annotated[
        int, typer.Option("--shared-prefix", help="Prompt tokens that all requests share; else none are alike.")
    ] = 0,
    key_env: Annotated[
        str, typer.Option("--key-env", help="Environment variable that holds the API key.")
    ] = "OPENAI_API_KEY",
    ca_file: Annotated[Path | None, typer.Option("--ca-file", help="Certificates to trust.")] = None,
    connect_timeout: Annotated[float, typer.Option("--connect-timeout", help="Seconds.")] = 10.0,
    idle_timeout: Annotated[float, typer.Option("--idle-timeout", help="Seconds without a sign of life.")] = 60.0,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds of a whole request.")] = 600.0,
    keep_alive: Annotated[bool, typer.Option("--keep-alive/--no-keep-alive", help="Use connections again.")] = True,
    processes: Annotated[int, typer.Option("--processes", help="Client processes; 0 takes as many as needed.")] = 0,
    seed: Annotated[int | None, typer.Option("--seed", help="Of prompts and arrivals; else new each time.")] = None,
    metrics_url: Annotated[
        list[str] | None, typer.Option("--metrics-url", help="Page to scrape; else the server's /metrics; repeatable.")
    ] = None,
    no_metrics: Annotated[bool, typer.Option("--no-metrics", help="Scrape nothing.")] = False,
    define: Annotated[
        list[str] | None, typer.Option("--define", help="What a word means, e.g. tpot=tpot.vllm; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Raw records; else measure-DATE-TIME.jsonl.gz here.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a self-contained report page.")] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Write every plot as PNG and SVG into this folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a live endpoint over a sweep of load: latency, throughput, errors, and how far to trust them."""
    from gambrel.measure.client import Endpoint, Timeouts
    from gambrel.measure.metrics import metric
    from gambrel.measure.record import read_recording
    from gambrel.measure.results import recording_figures
    from gambrel.measure.sweep import Sweep, measure

    definitions = {k: metric(v).name for k, v in _pairs(define or [], "--define").items()}
    levels = _levels(concurrency, rate, ramp, workload, prompt, output, arrivals, cv, time_scale, columns)
    path = out or Path(time.strftime("measure-%Y%m%d-%H%M%S.jsonl.gz"))
    with _target(url, model, embedded=embedded) as (where, name), watched() as progress:
        endpoint = Endpoint(
            where,
            name,
            api=api,
            key_env=key_env,
            ignore_eos=ignore_eos,
            continuous_usage=continuous_usage,
            extra=_object(extra),
            ca_file=None if ca_file is None else str(ca_file),
        )
        sweep = Sweep(
            endpoint,
            levels,
            repeats=repeats,
            num_requests=requests,
            duration_s=duration,
            warm_s=warm,
            timeouts=Timeouts(connect_timeout, idle_timeout, timeout),
            processes=processes,
            seed=seed,
            shared_tokens=shared_prefix,
            metrics_urls=None if no_metrics else tuple(metrics_url or ()),
            keep_alive=keep_alive,
        )
        document = measure(sweep, path, progress)
    if definitions:
        document |= recording_figures(read_recording(path), definitions=definitions)
    typer.echo(f"records: {path}", err=True)
    if html is not None or images is not None:
        from gambrel.faces.console import write_report
        from gambrel.report.sweep import sweep_report

        write_report(sweep_report(measured_sweep(document)), html, images)
    if as_json:
        from gambrel.faces.documents import dump

        typer.echo(dump(document))
    else:
        show(measure_tables(document), columns=WIDE)
    if not any(level["num_ok"] for level in document["levels"]):
        first = next((level["error_example"] for level in document["levels"]), "nothing was measured")
        raise EndpointError(f"no request was answered: {first}; the records are in {path}")


def selfcheck_command(
    streams: Annotated[
        list[str] | None, typer.Option("--streams", help="Streams at once: 128, or 32,128,512, or 1:512; repeatable.")
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="[N]...", help="Further numbers of streams.")] = None,
    processes: Annotated[int, typer.Option("--processes", help="Client processes; 0 takes as many as needed.")] = 0,
    as_json: Json = False,
) -> None:
    """The client's own error on this machine, against a server of known truth in a process of its own."""
    from gambrel.faces.words import counts
    from gambrel.measure.selfcheck import selfcheck

    asked = sorted({n for text in [*(streams or []), *(more or [])] or ["32,128"] for n in counts(text, "--streams")})
    with watched() as progress:
        document = selfcheck(asked, processes=processes, progress=progress)
    if as_json:
        from gambrel.faces.documents import dump

        typer.echo(dump(document))
        return
    show(selfcheck_tables(document), columns=WIDE)


@contextlib.contextmanager
def _target(url: str | None, model: str | None, *, embedded: bool) -> Iterator[tuple[str, str]]:
    """Address and model name of what is to be measured, started here where it is the embedded engine."""
    if not embedded:
        if url is None or model is None:
            raise GambrelError("give --url and --model of a server, or --embedded for a small engine of our own")
        yield url, model
        return
    if url is not None:
        raise GambrelError("give either --url or --embedded, not both")
    from gambrel.measure.client_embedded import EmbeddedProcess

    with EmbeddedProcess(progress=lambda word: typer.echo(word, err=True)) as engine:
        yield engine.url, model or engine.model


def _levels(
    concurrency: str | None,
    rate: str | None,
    ramp: str | None,
    workload: str | None,
    prompt: str,
    output: str,
    process: str,
    cv: float,
    time_scale: float,
    columns: list[str] | None = None,
) -> tuple[Closed | Open | Ramp | Replay, ...]:
    """The levels that the words ask for: a grid over prompt lengths, or one replay."""
    from gambrel.faces.words import counts, number
    from gambrel.measure.sweep import Closed, Open, Ramp, Replay

    if sum(x is not None for x in (concurrency, rate, ramp, workload)) > 1:
        raise GambrelError("give one of --concurrency, --rate, --ramp and --workload")
    if workload is not None:
        return (Replay(asked_log(workload, columns), time_scale),)
    if columns:
        raise GambrelError("--column names the fields of a log; it goes with --workload FILE")
    prompts, answer = counts(prompt, "--prompt"), number(output, "--output")
    if ramp is not None:
        low, _, high = ramp.partition(":")
        ends = _rates(f"{low},{high}", "--ramp")
        return tuple(Ramp(ends[0], ends[1], p, answer, process) for p in prompts)
    if rate is not None:
        return tuple(Open(r, p, answer, process, cv) for p in prompts for r in _rates(rate, "--rate"))
    users = counts(concurrency or "1", "--concurrency")
    return tuple(Closed(n, p, answer) for p in prompts for n in users)


def _rates(text: str, what: str) -> list[float]:
    """``0.5,1,2`` as numbers of at least 0."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [-1.0]
    if not all(0 <= r < 1e6 for r in found) or not any(found):
        raise GambrelError(f"{what} needs requests per second like 2.5, got {text!r}")
    return found


def _object(text: str | None) -> dict[str, Any]:
    """A JSON object."""
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise GambrelError(f"--extra is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise GambrelError(f"--extra must be a JSON object like '{{\"top_p\": 1}}', got {text!r}")
    return found


def _pairs(texts: list[str], what: str) -> dict[str, str]:
    """``WORD=NAME`` texts as a mapping."""
    from gambrel.measure.metrics import DEFAULTS

    found = {}
    for text in texts:
        word, _, name = text.partition("=")
        if word not in DEFAULTS or not name:
            raise GambrelError(f"{what} must be like tpot=tpot.vllm, with one of {', '.join(DEFAULTS)}; got {text!r}")
        found[word] = name
    return found


@contextlib.contextmanager
def watched() -> Iterator[Progress]:
    """Progress that is drawn on stderr: a live line on a terminal, one line a level elsewhere."""
    from gambrel.measure.sweep import Progress

    progress = Progress()
    stop = threading.Event()
    thread = threading.Thread(target=_draw, args=(progress, stop), daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        stop.set()
        thread.join(timeout=2.0)


def _draw(progress: Progress, stop: threading.Event) -> None:
    """Until ``stop``: what :func:`progress_line` says."""
    if not sys.stderr.isatty():
        said = ""
        while not stop.wait(REFRESH_S):
            if progress.label and progress.label != said:
                said = progress.label
                typer.echo(f"level {progress.level} of {progress.levels}: {said}", err=True)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(Text(""), console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        while not stop.wait(REFRESH_S):
            live.update(Text(progress_line(progress), no_wrap=True, overflow="ellipsis"), refresh=True)


def progress_line(p: Progress) -> str:
    """Level, delivered concurrency, tokens/s, medians so far, time left."""
    from gambrel.report import humanise as human

    if not p.label:
        return p.phase
    parts = [f"{p.level}/{p.levels} {p.label}", p.phase]
    if p.began_ns and p.elapsed_s > 0:
        parts.append(f"{p.done}/{p.quota}")
        parts.append(f"{human.number((p.tokens - p.tokens_before) / p.elapsed_s)} tok/s")
        if p.in_flight is not None:
            parts.append(f"{p.in_flight()} in flight")
        for word, values in (("TTFT", p.ttft_s), ("TPOT", p.tpot_s)):
            if values:
                recent = sorted(values[-200:])
                parts.append(f"{word} {human.seconds(recent[len(recent) // 2])}")
        if p.failed:
            parts.append(f"{p.failed} failed")
        if p.done and p.quota > p.done:
            parts.append(f"{human.seconds(p.elapsed_s * (p.quota - p.done) / p.done)} left")
    return "  ".join(parts)


def measure_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """The levels as a table, then what to know before believing them."""
    from gambrel.faces.tables import facts, grid
    from gambrel.report import humanise as human

    rows = []
    for level in document["levels"]:
        asked = level["requested_concurrency"] or level["requested_rate_rps"]
        closed = level["requested_concurrency"] is not None
        got = level["delivered_concurrency"] if closed else level["delivered_rate_rps"]
        cells = [human.seconds(level[f"{w}_s"][s]) for w, s in COLUMNS]
        rows.append([
            level["label"], "all at once" if asked is None else f"{human.number(got)} of {human.number(asked)}",
            human.number(level["output_tokens_per_s"]), *cells, str(level["num_ok"]), str(level["num_errors"] or ""),
            "client-bound" if level["fidelity"].get("client_bound") else "",
        ])  # fmt: skip
    heads = ["level", "delivered", "tok/s", *(f"{w.upper()} {s}" for w, s in COLUMNS), "ok", "failed", ""]
    blocks: list[RenderableType] = [grid(f"{document['model']} at {document['source']}", heads, rows)]
    notes = [("", note) for note in document.get("notes", ())]
    notes += [(level["label"], w) for level in document["levels"] for w in level["warnings"]]
    if notes:
        blocks.append(facts("", notes))
    return blocks


def measured_sweep(document: Mapping[str, Any]) -> MeasuredSweep:
    """The document that ``gambrel measure --json`` prints as what a report draws; null and NaN are both unknown."""
    from gambrel.report.measured import MeasuredSweep

    settings = document.get("settings", {})
    repeats = settings.get("repeats", 1)
    length = "full length forced" if settings.get("ignore_eos") else "answers end by themselves"
    first, says = next(iter(document["levels"]), None), document.get("definitions", {})
    names = {w: first[f"{w}_s"]["definition"] for w in ("ttft", "tpot", "e2e")} if first else {}
    return MeasuredSweep(
        source=document["source"],
        model=document["model"],
        levels=tuple(_measured_level(level) for level in document["levels"]),
        definitions={w: f"{n}: {says[n]}" if n in says else n for w, n in names.items()},
        notes=tuple(document.get("notes", ())),
        basis=(
            f"Measured by gambrel {__version__}; raw records in {document.get('records', 'no named file')}.",
            f"{settings.get('api', 'chat')} requests, {length}"
            + (f"; every figure is the median of {repeats} repeats." if repeats > 1 else "; one pass over the levels."),
        ),
    )


def _measured_level(level: Mapping[str, Any]) -> MeasuredLevel:
    from gambrel.core.run import Distribution
    from gambrel.report.measured import MeasuredLevel, Trust

    def known(value: float | None) -> float:
        return math.nan if value is None else float(value)

    def spread(word: str) -> Distribution:
        block = level[f"{word}_s"]
        mean, p50, p90, p95, p99, most = (known(block[s]) for s in ("mean", "p50", "p90", "p95", "p99", "max"))
        return Distribution(mean, p50, p90, p95, p99, most, round(block["count"]))

    closed, fidelity = level["mode"] == "closed", level["fidelity"]
    return MeasuredLevel(
        label=level["label"],
        mode="closed" if closed else "open" if level["mode"] == "open" else "other",
        requested=known(level["requested_concurrency"] if closed else level["requested_rate_rps"]),
        delivered=known(level["delivered_concurrency"] if closed else level["delivered_rate_rps"]),
        prompt_tokens=known(level["prompt_tokens"]["asked"]),
        output_tokens=known(level["output_tokens"]),
        num_ok=level["num_ok"],
        num_errors=level["num_errors"],
        window_s=known(level["window_s"]),
        output_tokens_per_s=known(level["output_tokens_per_s"]),
        requests_per_s=known(level["requests_per_s"]),
        ttft=spread("ttft"),
        tpot=spread("tpot"),
        e2e=spread("e2e"),
        trust=Trust(
            client_bound=bool(fidelity.get("client_bound")),
            reasons=tuple(fidelity.get("reasons", ())),
            late_p99_s=known(fidelity.get("dispatch_late_s", {}).get("p99")),
            loop_lag_p99_s=known(fidelity.get("loop_lag_s", {}).get("p99")),
            merged_reads_share=known(fidelity.get("merged_reads_share")),
            cpu_share=known(fidelity.get("cpu_share")),
        ),
        server_batch=known(level["server_batch_mean"]),
        warnings=tuple(level["warnings"]),
    )


COLUMNS = (("ttft", "p50"), ("ttft", "p99"), ("tpot", "p50"), ("itl", "p99"), ("e2e", "p50"))


def selfcheck_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """Errors per number of streams against what the client is built to hold."""
    from gambrel.faces.tables import facts, grid
    from gambrel.report import humanise as human

    rows = [
        [str(x["streams"]), human.percent(x["ttft_error"]), human.percent(x["tpot_error"]),
         human.percent(x["gap_error"]), human.number(x["cpu_s_per_1k_tokens"]),
         human.seconds(x["server_late_p99_s"]), "; ".join(x["reasons"])]
        for x in document["levels"]
    ]  # fmt: skip
    heads = ["streams", "TTFT", "TPOT", "gap", "CPU s per 1,000 tokens", "mock late p99", ""]
    targets = document["targets"]
    built = (
        f"at 128 streams: TTFT {human.percent(targets['ttft_error'])}, TPOT {human.percent(targets['tpot_error'])}, "
        f"gap {human.percent(targets['gap_error'])}, {targets['cpu_s_per_1k_tokens']} CPU s per 1,000 tokens"
    )
    return [
        grid("the client's own error, medians against the mock's own times", heads, rows),
        facts("", [("built for", built)]),
    ]
