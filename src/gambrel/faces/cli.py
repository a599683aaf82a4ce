"""The command line: parse, call, print. stdout is the result, stderr is talk.

Exit status: 0 done, 1 infeasible or an objective missed, 2 usage, bad input or an output that cannot be written, 130
interrupted, 141 where the reader of stdout left before the end, as of a program that SIGPIPE ends. Only here are errors
caught, and each becomes one line. Everything heavy is imported inside the command that needs it, so that ``--help``
stays instant.
"""

from __future__ import annotations

import os
import sys
import time
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gambrel.core.errors import GambrelError, InfeasiblePlan
from gambrel.core.version import __version__
from gambrel.faces import (
    advise_commands,
    calibrate_commands,
    export_commands,
    fleet_commands,
    measure_commands,
    plan_outputs,
    serve_commands,
    web_commands,
)
from gambrel.faces.console import emit, show, talk, talk_context, writable, write_report
from gambrel.faces.logs import LogColumns, asked_log, pairs

if TYPE_CHECKING:
    from gambrel.core.accelerator import Accelerator
    from gambrel.core.workload import Workload

__all__ = ["app", "main"]

EXIT_INFEASIBLE, EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_CLOSED_PIPE = 1, 2, 130, 141
BYTES_PER_GBIT = 1e9 / 8

app = typer.Typer(
    name="gambrel",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="What an LLM deployment will do under your real traffic, before you buy the GPUs.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
ModelName = Annotated[str, typer.Option("--model", "-m", help="Shipped name, config.json, directory or GGUF file.")]
GpuName = Annotated[str, typer.Option("--gpu", "-g", help="Accelerator, e.g. h100-sxm, L4, mi300x.")]
Gpus = Annotated[
    list[str] | None, typer.Option("--gpu", "-g", help="Accelerator to consider; repeat or separate by commas.")
]
Prices = Annotated[
    list[str] | None, typer.Option("--price", help="NAME=DOLLARS per accelerator-hour, e.g. h100-sxm=2.49; repeatable.")
]
Catalog = Annotated[
    list[Path] | None, typer.Option("--catalog", help="TOML file with your accelerators and prices; repeatable.")
]
Tp = Annotated[int, typer.Option("--tp", help="Tensor-parallel degree.")]
Weights = Annotated[str | None, typer.Option("--weights", help="Weight format: bf16, fp8, int8, int4, mxfp4, ...")]
Kv = Annotated[str | None, typer.Option("--kv", help="KV cache format: bf16, fp8.")]
ENGINE, ENGINE_VERSION = "vllm", "0.19"  # whose host time a step has, where nobody says
WorkloadSpec = Annotated[
    str | None, typer.Option("--workload", "-w", help="A log file, or a profile like chat:rate=5.")
]
Users = Annotated[int | None, typer.Option("--users", help="Instead of a log: this many requests always in flight.")]
Prompt = Annotated[str | None, typer.Option("--prompt", help="Prompt tokens of each user, e.g. 128k.")]
Output = Annotated[str | None, typer.Option("--output", help="Output tokens of each user, e.g. 500.")]
Think = Annotated[
    float | None, typer.Option("--think", help="Seconds each user pauses between an answer and the next request.")
]
Operators = Annotated[
    bool, typer.Option("--operators", help="Steps by NVIDIA's operator times (package aiconfigurator) instead.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write a self-contained report page.")]
Images = Annotated[Path | None, typer.Option("--images", help="Write every plot as PNG and SVG into this folder.")]


@app.callback(invoke_without_command=True)
def root(*, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Options of the program itself."""
    if version:
        typer.echo(f"gambrel {__version__}")
        raise typer.Exit


def device(name: str, price_texts: list[str] | None, files: list[Path] | None) -> Accelerator:
    """One accelerator with the person's own price if one was given."""
    return devices([name], price_texts, files)[0]


def devices(
    names: list[str] | None, price_texts: list[str] | None, files: list[Path] | None
) -> tuple[Accelerator, ...]:
    """The accelerators named (all rentable ones when none is), with the person's own prices."""
    from gambrel.faces import api
    from gambrel.faces.words import prices

    given = {api.accelerator(k, files=files or ()).name: v for k, v in prices(price_texts or []).items()}
    if names:
        flat = [part for name in names for part in name.split(",") if part.strip()]
        found = [api.accelerator(n.strip(), files=files or ()) for n in flat]
    else:
        found = list(api.default_accelerators(files or ()))
        have = {a.name for a in found}
        found += [api.accelerator(n, files=files or ()) for n in given if n not in have]
    return tuple(api.accelerator(a.name, price=given.get(a.name), files=files or ()) for a in dict.fromkeys(found))


def traffic(
    spec: str | None, users: int | None, prompt: str | None, output: str | None, columns: list[str] | None = None
) -> Workload | tuple[int, int, int]:
    """The workload asked for: a log or profile, or (users, prompt, output) to be closed over later."""
    from gambrel.faces.words import number

    if columns and spec is None:
        raise GambrelError("--column names the fields of a log; it goes with --workload FILE")
    if users is not None:
        if spec is not None:
            raise GambrelError("give either --workload or --users, not both")
        if users < 1:
            raise GambrelError(f"--users must be at least 1, got {users}")
        if prompt is None or output is None:
            raise GambrelError("--users needs --prompt and --output, e.g. --users 5 --prompt 128k --output 500")
        return users, number(prompt, "--prompt"), number(output, "--output")
    if spec is None:
        raise GambrelError(
            "no traffic given: --workload FILE, --workload chat:rate=5, or --users 5 --prompt 2k --output 300"
        )
    if prompt is not None or output is not None:
        raise GambrelError("--prompt and --output go with --users; a log has its own lengths")
    return asked_log(spec, columns)


@app.command("model")
def model_command(
    names: Annotated[
        list[str], typer.Argument(help="Shipped name, config.json, directory or GGUF file; several compare.")
    ],
    explain: Annotated[bool, typer.Option("--explain", help="The bill, layer kind by layer kind.")] = False,
    as_json: Json = False,
) -> None:
    """What a model weighs: parameters, bytes by format, KV cache and FLOPs per token."""
    from gambrel.faces import api

    models = [api.model(n) for n in names]
    if as_json:
        from gambrel.core.bill import bill, model_figures

        documents = [model_figures(m) | ({"bill": bill(m)} if explain else {}) for m in models]
        emit(documents[0] if len(documents) == 1 else {"models": documents})
        return
    from gambrel.faces.model_text import model_text

    typer.echo(model_text(models, explain=explain))


@app.command("curve")
def curve_command(
    model: ModelName,
    gpu: GpuName,
    tp: Tp = 1,
    weights: Weights = None,
    kv: Kv = None,
    engine: calibrate_commands.Engine = ENGINE,
    engine_version: calibrate_commands.EngineVersion = ENGINE_VERSION,
    context: Annotated[
        str, typer.Option("--context", help="Tokens of context: 4k, or 512,4k,32k, or 1k:64k.")
    ] = "512,4k,32k",
    batch: Annotated[str, typer.Option("--batch", help="Sequences in a step: 1,8,64 or 1:1024.")] = "1:1024",
    form: Annotated[str, typer.Option("--form", help="serial (predictor) or max (textbook bound).")] = "serial",
    textbook: Annotated[
        bool, typer.Option("--textbook", help="Every peak reached, no overheads; implies --form max.")
    ] = False,
    operators: Operators = False,
    profile: calibrate_commands.ProfileFile = None,
    price: Prices = None,
    catalog: Catalog = None,
    html: Html = None,
    images: Images = None,
    as_json: Json = False,
) -> None:
    """Latency, memory and cost per token against batch and context, with ridge, balance and wall."""
    from gambrel.faces import api
    from gambrel.faces.words import counts

    writable(html, folders=[images])
    settings: dict[str, Any] = (
        {"tp": tp, "engine": engine, "engine_version": engine_version}
        | ({"weights": weights} if weights else {})
        | ({"kv": kv} if kv else {})
    )
    deployment = api.deployment(model, device(gpu, price, catalog), **settings)
    contexts = counts(context, "--context")
    drawn = api.curve(
        deployment,
        counts(batch, "--batch"),
        contexts,
        form="max" if textbook else form,
        textbook=textbook,
        operators=operators,
        profile=calibrate_commands.own_constants(profile, deployment),
    )
    most = deployment.model.max_context
    if most is not None and contexts[-1] > most:
        talk(f"note: contexts beyond the {most:,} tokens of {deployment.model.name} are drawn all the same; "
             "an engine refuses them unless it is told otherwise")  # fmt: skip
    if html is not None or images is not None:
        from gambrel.report import curve_report

        write_report(curve_report(drawn), html, images)
    if as_json:
        from gambrel.faces.documents import curve_document

        emit(curve_document(drawn))
        return
    from gambrel.faces.tables import curve_tables

    show(curve_tables(drawn))


@app.command("workload")
def workload_command(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A request log, or a profile like chat:rate=5.")],
    format: Annotated[str | None, typer.Option("--format", help="Name the format instead of detecting it.")] = None,  # noqa: A002
    columns: LogColumns = None,
    as_json: Json = False,
) -> None:
    """What a log holds: lengths, rate, bursts, concurrency, reuse, and what to be wary of."""
    from gambrel.faces import api
    from gambrel.traffic import describe

    if format is not None:
        workload = api.read_workload(source, format=format, columns=pairs(columns or [], "--column"))
    else:
        workload = asked_log(source, columns)
    figures = describe(workload)
    if as_json:
        emit(figures.to_dict())
        return
    from gambrel.faces.tables import workload_tables

    show(workload_tables(figures))


def prefill_degrees(texts: list[str]) -> dict[str, int]:
    """``tp=4`` and the like as fields of a deployment's prefill workers."""
    from gambrel.faces.words import number

    known = ("tp", "pp", "ep", "attention_dp")
    given = pairs(texts, "--prefill")
    for name in given:
        if name not in known:
            raise GambrelError(f"--prefill: unknown degree {name!r}; known: {', '.join(known)}")
    return {f"prefill_{name}": number(value, f"--prefill {name}") for name, value in given.items()}


@app.command("simulate")
def simulate_command(
    model: ModelName,
    gpu: GpuName,
    workload: WorkloadSpec = None,
    columns: LogColumns = None,
    users: Users = None,
    prompt: Prompt = None,
    output: Output = None,
    think: Think = None,
    tp: Tp = 1,
    pp: Annotated[int, typer.Option("--pp", help="Pipeline stages, as many micro-batches in flight.")] = 1,
    ep: Annotated[int, typer.Option("--ep", help="Ranks that experts are divided over; divides --tp.")] = 1,
    attention_dp: Annotated[
        int, typer.Option("--attention-dp", help="Ranks that attend for sequences of their own; divides --tp.")
    ] = 1,
    expert_load: Annotated[
        float | None, typer.Option("--expert-load", help="Tokens of the busiest expert rank over the mean's.")
    ] = None,
    replicas: Annotated[
        int,
        typer.Option(
            "--replicas",
            "--decode-replicas",
            help="Equal replicas behind the router; with --prefill-replicas, decode's.",
        ),
    ] = 1,
    prefill_replicas: Annotated[
        int, typer.Option("--prefill-replicas", help="Workers that compute prompts only; 0: every replica does both.")
    ] = 0,
    prefill: Annotated[
        list[str] | None,
        typer.Option(
            "--prefill", help="A degree of theirs that differs: tp=4, pp=2, ep=4 or attention_dp=4; repeatable."
        ),
    ] = None,
    kv_link_gbps: Annotated[
        float | None,
        typer.Option(
            "--kv-link-gbps", help="Gigabit/s an accelerator moves to decode workers; its network port's if known."
        ),
    ] = None,
    weights: Weights = None,
    kv: Kv = None,
    engine: calibrate_commands.Engine = ENGINE,
    engine_version: calibrate_commands.EngineVersion = ENGINE_VERSION,
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", help="Sequences in a step at most.")] = 256,
    max_num_batched_tokens: Annotated[
        int, typer.Option("--max-num-batched-tokens", help="Token budget of a step.")
    ] = 8192,
    max_model_len: Annotated[int | None, typer.Option("--max-model-len", help="Tokens of a request at most.")] = None,
    gpu_memory_utilization: Annotated[float, typer.Option("--gpu-memory-utilization")] = 0.9,
    block_size: Annotated[int, typer.Option("--block-size", help="Tokens in a KV block.")] = 16,
    chunked_prefill: Annotated[bool, typer.Option("--chunked-prefill/--no-chunked-prefill")] = True,
    routing: Annotated[
        str,
        typer.Option("--routing", help="round_robin, session_sticky, least_outstanding, power_of_two or prefix_aware."),
    ] = "round_robin",
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="vllm, vllm_priority, vllm_v0, sglang, tensorrt_llm, tensorrt_llm_max_utilization, llama_cpp or "
            "static; else that of --engine.",
        ),
    ] = None,
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching/--no-prefix-caching", help="Reuse prompt blocks a log has hashes of.")
    ] = True,
    draft_tokens: Annotated[
        int,
        typer.Option("--draft-tokens", min=0, help="Tokens guessed a step (speculative decoding, MTP); 0 for none."),
    ] = 0,
    acceptance: Annotated[
        float, typer.Option("--acceptance", help="Chance that a guess holds if those before it do, 0 to below 1.")
    ] = 0.0,
    draft_cost: Annotated[
        float,
        typer.Option("--draft-cost", min=0.0, help="Time of a guess, as a share of a decode step of one sequence."),
    ] = 0.0,
    mtp: Annotated[
        bool, typer.Option("--mtp", help="Guesses of the model's own module, at the published acceptance rate.")
    ] = False,
    deadline: Annotated[
        float | None, typer.Option("--deadline", help="Seconds after which a client gives up and drops its request.")
    ] = None,
    load: Annotated[float, typer.Option("--load", help="Multiple of the log's rate, bursts kept.")] = 1.0,
    slo: Annotated[
        list[str] | None,
        typer.Option("--slo", help="Check an objective, e.g. ttft.p95<=1s or goodput>=95%; repeatable."),
    ] = None,
    requests_file: Annotated[
        Path | None, typer.Option("--requests", help="Write one row a request: .parquet, .jsonl or .csv.")
    ] = None,
    chrome_trace: Annotated[
        Path | None, typer.Option("--chrome-trace", help="Write the steps of a window as JSON (or .gz) for Perfetto.")
    ] = None,
    window: Annotated[
        str | None, typer.Option("--window", help="That window, in seconds from the first arrival; else 0:60.")
    ] = None,
    progress: Annotated[
        bool, typer.Option("--progress", help="Say on stderr how far it is; Ctrl-C keeps what there is by then.")
    ] = False,
    operators: Operators = False,
    profile: calibrate_commands.ProfileFile = None,
    price: Prices = None,
    catalog: Catalog = None,
    as_json: Json = False,
) -> None:
    """Replay a workload on a deployment, request by request."""
    from gambrel.faces import api
    from gambrel.faces.simulate_outputs import watched, window_of, write_files

    started = time.perf_counter()
    writable(requests_file, chrome_trace)
    settings: dict[str, Any] = {"weights": weights} if weights else {}
    settings |= {"kv": kv} if kv else {}
    settings |= {"policy": policy} if policy else {}
    deployment = api.deployment(
        model,
        device(gpu, price, catalog),
        tp=tp,
        pp=pp,
        ep=ep,
        attention_dp=attention_dp,
        expert_load=expert_load,
        engine=engine,
        engine_version=engine_version,
        replicas=replicas,
        prefill_replicas=prefill_replicas,
        kv_link_bytes_per_s=None if kv_link_gbps is None else kv_link_gbps * BYTES_PER_GBIT,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        gpu_memory_utilization=gpu_memory_utilization,
        block_size=block_size,
        chunked_prefill=chunked_prefill,
        routing=routing,
        prefix_caching=prefix_caching,
        draft_tokens=draft_tokens,
        acceptance=acceptance,
        draft_cost=draft_cost,
        **settings,
        **prefill_degrees(prefill or []),
    )
    if mtp:
        deployment = api.with_multi_token_prediction(deployment)
    requests = settle(traffic(workload, users, prompt, output, columns), think)
    if load != 1.0:
        from gambrel.traffic import scale_load

        requests = scale_load(requests, load, seed=0)
    constants = calibrate_commands.own_constants(profile, deployment)
    priced = api.cost_model(deployment, operators=operators, profile=constants)
    requests = patient(requests, deadline)
    if requests.priority is not None and deployment.policy != "vllm_priority":
        talk(f"note: the log has priorities; policy {deployment.policy} does not read them, vllm_priority does")
    talk_context(deployment, requests)
    cut = window_of(window)
    run, interrupted = (
        watched(lambda watch: api.simulate(deployment, requests, priced, watch=watch))
        if progress
        else (api.simulate(deployment, requests, priced), False)
    )
    wanted = api.slo(*slo) if slo and not interrupted else None
    verdicts = wanted.check(run) if wanted else ()
    wall_s = time.perf_counter() - started
    from gambrel.faces.documents import run_document
    from gambrel.faces.verdicts import slo_document

    document = run_document(run, deployment, priced.memory(), wall_s)
    if verdicts:
        document["slo"] = slo_document(verdicts)
    if wanted:
        document["goodput"] = wanted.goodput(run)
    write_files(run, deployment, priced, requests, requests=requests_file, trace=chrome_trace, window=cut)
    if as_json:
        emit(document)
    else:
        from gambrel.faces.tables import run_tables, verdict_table

        talk_warnings(requests)
        show(run_tables(run, priced.memory(), document["usd_per_mtok"]))
        if verdicts:
            show(["", verdict_table(verdicts)])
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if any(not v.met for v in verdicts):
        raise typer.Exit(EXIT_INFEASIBLE)


@app.command("plan")
def plan_command(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Shipped name, config.json, directory or GGUF file.")
    ] = None,
    workload: WorkloadSpec = None,
    columns: LogColumns = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            "--mix", help="Instead: several kinds of traffic on one fleet, NAME=FILE; limit each by NAME:ttft..."
        ),
    ] = None,
    users: Users = None,
    prompt: Prompt = None,
    output: Output = None,
    slo: Annotated[
        list[str] | None, typer.Option("--slo", help="An objective, e.g. ttft.p95<=1s or goodput>=95%; repeatable.")
    ] = None,
    gpu: Gpus = None,
    tp: Annotated[str, typer.Option("--tp", help="Tensor-parallel degrees to search.")] = "1,2,4,8",
    weights: Annotated[str | None, typer.Option("--weights", help="Weight formats to search, by commas.")] = None,
    kv: Annotated[str | None, typer.Option("--kv", help="KV cache formats to search, by commas.")] = None,
    max_num_seqs: Annotated[str | None, typer.Option("--max-num-seqs", help="Values to search.")] = None,
    max_num_batched_tokens: Annotated[
        str | None, typer.Option("--max-num-batched-tokens", help="Values to search.")
    ] = None,
    gpu_memory_utilization: Annotated[float, typer.Option("--gpu-memory-utilization")] = 0.9,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", help="Cap on prompt and answer; what it refuses and cuts is said.")
    ] = None,
    pp: Annotated[str, typer.Option("--pp", help="Pipeline stages to search.")] = "1",
    ep: Annotated[str | None, typer.Option("--ep", help="Expert-parallel degrees to search.")] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            "--axis", help="Any other setting to search, e.g. attention_dp=1,8 or draft_tokens=0,3; repeatable."
        ),
    ] = None,
    price_kind: Annotated[
        str | None, typer.Option("--price-kind", help="Terms to weigh: on_demand, spot, reserved, ...; by commas.")
    ] = None,
    provider: Annotated[str | None, typer.Option("--provider", help="Clouds to weigh, by commas.")] = None,
    region: Annotated[str | None, typer.Option("--region", help="Regions to weigh, by commas.")] = None,
    owned: Annotated[
        list[str] | None,
        typer.Option("--owned", help="Your own: NAME=DOLLARS,years=4,kwh=0.12[,pue=1.3][,watts=W]; repeatable."),
    ] = None,
    max_gpus: Annotated[int, typer.Option("--max-gpus", help="Accelerators in the fleet at most.")] = 4096,
    available: Annotated[
        list[str] | None, typer.Option("--available", help="NAME=COUNT that can be had, e.g. h100-sxm=16; repeatable.")
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", help="Chance that the objectives hold; 0.5 takes the prediction as it is.")
    ] = 0.5,
    spare: Annotated[int, typer.Option("--spare", help="Hold with this many replicas down (N+1 is 1).")] = 0,
    growth: Annotated[
        float | None, typer.Option("--growth", help="Share by which the load grows each month, e.g. 0.15.")
    ] = None,
    months: Annotated[int, typer.Option("--months", help="Months of --growth to look ahead.")] = 6,
    schedule: Annotated[
        bool, typer.Option("--schedule", help="Replicas by hour of the day, and what that saves; needs a day of log.")
    ] = False,
    start_up: Annotated[
        float, typer.Option("--start-up", min=0.0, help="Seconds a replica of --schedule takes to start.")
    ] = 300.0,
    backend: Annotated[
        str, typer.Option("--backend", help="Who simulates: auto, threads, loky, ray or dask; the answer is the same.")
    ] = "auto",
    address: Annotated[
        str | None, typer.Option("--address", help="The Ray or Dask cluster; without it a local one is started.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="Write the search to this file as it goes, and take it up from there."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the plan file, TOML or .json.")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="Instead of planning: does this plan file hold on --workload?")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Write every headline figure down to its inputs: text, or .json.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the report as Markdown, every table in it.")
    ] = None,
    profile: calibrate_commands.ProfileFile = None,
    price: Prices = None,
    catalog: Catalog = None,
    html: Html = None,
    images: Images = None,
    as_json: Json = False,
) -> None:
    """The cheapest GPU x parallelism x replicas x formats x batch limits that meets the objectives."""
    from gambrel.faces import api, offers

    if check is not None:
        plan_outputs.unchecked(context)
        named = workload is not None or users is not None or columns
        asked = settle(traffic(workload, users, prompt, output, columns)) if named else None
        if not plan_outputs.show_check(check, asked, catalog or [], api.profile(profile), as_json=as_json):
            raise typer.Exit(EXIT_INFEASIBLE)
        return
    if model is None:
        raise GambrelError("no model given: --model NAME, or --check PLAN_FILE to run a plan again")
    writable(out, trace, markdown, html, folders=[images])
    axes: dict[str, Any] = {"gpu_memory_utilization": gpu_memory_utilization, "max_gpus": max_gpus}
    axes |= {"confidence": confidence, "spare": spare, "available": plan_outputs.available(available or [])}
    axes |= search_axes(tp, weights, kv, max_num_seqs, max_num_batched_tokens)
    axes |= {"max_model_len": max_model_len, "axes": offers.axes(axis or [])} | offers.degrees(pp=pp, ep=ep)
    objectives = api.slo(*(slo or []))
    requests = offers.mix(mix or [], columns) or settle(traffic(workload, users, prompt, output, columns))
    requests = offers.capped(requests, max_model_len)
    mine = offers.owned(owned or [], catalog or [])
    rented = () if mine and not gpu else devices(gpu, price, catalog)
    chosen_devices = (*offers.on_offer(rented, price_kind, provider, region, catalog or []), *mine)
    constants = api.profile(profile)
    talk_warnings(requests)
    with plan_outputs.refused(as_json=as_json), progress_on_stderr() as progress:
        plan = api.plan(
            model,
            requests,
            objectives,
            gpus=chosen_devices,
            progress=progress,
            backend=backend,
            address=address,
            resume=resume,
            profile=constants,
            **axes,
        )
        if growth is not None:
            progress("growth")
            plan = plan_outputs.with_outlook(plan, requests, chosen_devices, axes, growth, months, constants)
        if schedule:
            progress("schedule")
            plan = plan_outputs.with_schedule(plan, requests, axes, start_up, constants)
    if out is not None:
        plan_outputs.write_plan(
            out,
            plan,
            requests,
            model=model,
            source=workload or "",
            catalog=[str(c) for c in catalog or []],
            confidence=confidence,
            spare=spare,
        )
    plan_outputs.write_files(plan, requests, constants, trace=trace, html=html, images=images, markdown=markdown)
    if as_json:
        from gambrel.faces.documents import plan_document

        emit(plan_document(plan))
        return
    from gambrel.faces.tables import plan_tables

    show(plan_tables(plan))


def search_axes(
    tp: str, weights: str | None, kv: str | None, max_num_seqs: str | None, max_num_batched_tokens: str | None
) -> dict[str, tuple[int | str, ...]]:
    """The axes that were named, as fields of :class:`gambrel.plan.Space`."""
    from gambrel.faces.words import counts

    axes: dict[str, tuple[int | str, ...]] = {"tp": tuple(counts(tp, "--tp"))}
    for name, text in (("max_num_seqs", max_num_seqs), ("max_num_batched_tokens", max_num_batched_tokens)):
        if text:
            axes[name] = tuple(counts(text, "--" + name.replace("_", "-")))
    for name, text in (("weights", weights), ("kv", kv)):
        if text:
            axes[name] = tuple(part.strip() for part in text.split(","))
    return axes


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option("--out", help="Where to write the report and its plots.")] = Path("out"),
    skip_measure: Annotated[bool, typer.Option("--skip-measure", help="Go without the measured engine.")] = False,
    as_json: Json = False,
) -> None:
    """The whole loop: a real engine measured and predicted, a generated log, a plan for Llama-3.1-8B, the reports."""
    from gambrel.faces import api
    from gambrel.faces.demo import calibrate_act, measure_act
    from gambrel.faces.documents import plan_document

    measured = None if skip_measure else measure_act(out)
    if measured is not None and not as_json:
        show([*measure_commands.measure_tables(measured), ""])
    if measured is not None:
        measured["calibrated"], tables = calibrate_act(out)
        if not as_json:
            show([*tables, ""])
    requests = api.load_workload("sample")
    talk(f"log: {requests.source}; objectives: ttft.p95<=1s, tpot.p95<=50ms")
    with progress_on_stderr() as progress:
        plan = api.plan(
            "meta-llama/Llama-3.1-8B-Instruct", requests, api.slo("ttft.p95<=1s", "tpot.p95<=50ms"), progress=progress
        )
    write_report(api.report_of(plan, requests, traced=True), out / "report.html", out / "plots")
    if as_json:
        emit(plan_document(plan) | ({} if measured is None else {"measured": measured}))
        return
    from gambrel.faces.tables import plan_tables

    show(plan_tables(plan))


for commands in (
    export_commands,
    advise_commands,
    fleet_commands,
    measure_commands,
    serve_commands,
    calibrate_commands,
    web_commands,
):
    commands.register(app)


def settle(asked: Workload | tuple[int, int, int], think_s: float | None = None) -> Workload:
    """A log as it is (quantised times spread), or users as a closed loop with their pauses."""
    from gambrel.traffic import closed_loop, ready_to_replay

    if isinstance(asked, tuple):
        return closed_loop(*asked, think_s=think_s or 0.0)
    if think_s is not None:
        raise GambrelError("--think goes with --users; a log has its own arrival times")
    return ready_to_replay(asked)


def patient(workload: Workload, deadline_s: float | None) -> Workload:
    """The workload with one patience for all its clients, if one is given."""
    if deadline_s is None:
        return workload
    from dataclasses import replace

    import numpy as np

    return replace(workload, deadline_s=np.full(len(workload), deadline_s))


def talk_warnings(workload: Workload) -> None:
    """What a reader should know about the log, on stderr."""
    for warning in workload.warnings:
        talk(f"note: {warning}")


def progress_on_stderr() -> Any:
    """A context whose value is called with each part that is finished; a spinner where stderr is a terminal."""
    import contextlib

    @contextlib.contextmanager
    def context() -> Any:
        if not sys.stderr.isatty():
            yield lambda _: None
            return
        from rich.console import Console

        with Console(stderr=True).status("planning") as status:
            yield lambda word: status.update(f"planning: {word}")

    return context()


def only_what_is_asked(words: list[str]) -> typer.Typer:
    """The program with the one command that ``words`` name, or with all: making all options takes 0.1 s."""
    asked = [c for c in app.registered_commands if words and c.name == words[0]]
    if not asked:
        return app
    alone = copy(app)
    alone.registered_commands = asked
    return alone


def unwritten(error: SystemExit | OSError) -> Any:
    """The exit status where a file or stdout could not be written; a closed pipe needs no word.

    Click and rich end the program themselves when a pipe closes, with status 1.
    """
    closed = isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError)
    if isinstance(error, SystemExit) and not closed:
        return error.code
    # What is left to print is dropped: at its end Python would try again, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    if closed:
        return EXIT_CLOSED_PIPE
    talk(f"gambrel: {getattr(error, 'filename', None) or 'the output'}: {getattr(error, 'strerror', None) or error}")
    return EXIT_BAD_INPUT


def main() -> None:
    """Run the command line; every expected failure is one line on stderr and an exit status."""
    try:
        status = only_what_is_asked(sys.argv[1:])(standalone_mode=False)
        sys.stdout.flush()
    except InfeasiblePlan as error:
        talk(f"gambrel: {error}")
        sys.exit(EXIT_INFEASIBLE)
    except GambrelError as error:
        talk(f"gambrel: {error}")
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        talk("gambrel: interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except (SystemExit, OSError) as error:
        sys.exit(unwritten(error))
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is None:
            raise
        talk(f"gambrel: {usage()}")
        sys.exit(EXIT_BAD_INPUT)
    if status == EXIT_INTERRUPTED:
        talk("gambrel: interrupted")
    # Without its standalone mode the parser returns the status of an Exit instead of raising it.
    sys.exit(status if isinstance(status, int) else 0)
