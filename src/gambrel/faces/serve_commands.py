"""The commands that serve or set side by side: ``twin``, ``serve-embedded``, ``record`` and ``compare``.

Servers talk on stderr; with ``--json`` the address is one JSON document on stdout as soon as the door is open. They
end with Ctrl-C, and that is their normal end. All listen on this machine alone unless told otherwise.
"""

from __future__ import annotations

import contextlib
import math
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gambrel.core.errors import GambrelError
from gambrel.faces.calibrate_commands import ProfileFile, own_constants
from gambrel.faces.console import emit, show, talk

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from rich.console import RenderableType

    from gambrel.measure.compare import Comparison, Estimate, Verdict

__all__ = ["Port", "register"]

FIGURES = 54  # columns for the figures of a comparison, of the 80 of a terminal
UNITS = " abcdefghijklmnopqrstuvwxyzµ/"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; the default is this machine alone.")]
Port = Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Port to listen on; 0 takes a free one.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("twin")(twin_command)
    app.command("serve-embedded")(serve_embedded_command)
    app.command("record")(record_command)
    app.command("compare")(compare_command)


def run_server(main: Coroutine[Any, Any, None]) -> None:
    """Serve until Ctrl-C or SIGTERM, which are no errors."""
    import asyncio

    from gambrel.measure.http1 import run_loop
    from gambrel.measure.machine import raise_file_limit

    raise_file_limit()

    async def until_told() -> None:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows: KeyboardInterrupt does it
                loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with contextlib.suppress(KeyboardInterrupt):
        run_loop(until_told())


def twin_command(
    model: Annotated[str, typer.Option("--model", "-m", help="Shipped name, config.json, directory or GGUF file.")],
    gpu: Annotated[str, typer.Option("--gpu", "-g", help="Accelerator, e.g. h100-sxm, L4, mi300x.")],
    tp: Annotated[int, typer.Option("--tp", help="Tensor-parallel degree.")] = 1,
    replicas: Annotated[int, typer.Option("--replicas", help="Equal replicas behind the router.")] = 1,
    weights: Annotated[str | None, typer.Option("--weights", help="Weight format: bf16, fp8, int8, int4, ...")] = None,
    kv: Annotated[str | None, typer.Option("--kv", help="KV cache format: bf16, fp8.")] = None,
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", help="Sequences in a step at most.")] = 256,
    max_num_batched_tokens: Annotated[
        int, typer.Option("--max-num-batched-tokens", help="Token budget of a step.")
    ] = 8192,
    max_model_len: Annotated[int | None, typer.Option("--max-model-len", help="Tokens of a request at most.")] = None,
    gpu_memory_utilization: Annotated[
        float, typer.Option("--gpu-memory-utilization", help="Share of memory the engine may take.")
    ] = 0.9,
    block_size: Annotated[int, typer.Option("--block-size", help="Tokens in a KV block.")] = 16,
    chunked_prefill: Annotated[
        bool, typer.Option("--chunked-prefill/--no-chunked-prefill", help="Split prompts over steps.")
    ] = True,
    routing: Annotated[str, typer.Option("--routing", help="round_robin or least_outstanding.")] = "round_robin",
    policy: Annotated[
        str, typer.Option("--policy", help="vllm, tensorrt_llm, tensorrt_llm_max_utilization, llama_cpp or static.")
    ] = "vllm",
    textbook: Annotated[bool, typer.Option("--textbook", help="Every peak reached, no overheads.")] = False,
    served_name: Annotated[
        str | None, typer.Option("--served-model-name", help="The name it serves under; else the model's.")
    ] = None,
    scale: Annotated[
        float, typer.Option("--scale", help="Real seconds for each simulated one; 10 helps on a busy machine.")
    ] = 1.0,
    grace: Annotated[
        float, typer.Option("--grace", help="Milliseconds in which a next request counts as sent at once.")
    ] = 5.0,
    stream_interval: Annotated[int, typer.Option("--stream-interval", help="Tokens in each event.")] = 1,
    truth: Annotated[Path | None, typer.Option("--truth", help="Write what truly happened to each request.")] = None,
    profile: ProfileFile = None,
    catalog: Annotated[
        list[Path] | None, typer.Option("--catalog", help="TOML file with your accelerators; repeatable.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    as_json: Json = False,
) -> None:
    """Serve the simulation of a deployment as an OpenAI-compatible endpoint, in real time or stretched."""
    from gambrel.faces import api
    from gambrel.measure.twin import serve_twin

    settings: dict[str, Any] = {"weights": weights} if weights else {}
    settings |= {"kv": kv} if kv else {}
    deployment = api.deployment(
        model, api.accelerator(gpu, files=catalog or ()), tp=tp, replicas=replicas, max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens, max_model_len=max_model_len,
        gpu_memory_utilization=gpu_memory_utilization, block_size=block_size, chunked_prefill=chunked_prefill,
        routing=routing, policy=policy, **settings,
    )  # fmt: skip
    if not 0.0 <= grace < 10_000.0:
        raise GambrelError(f"--grace must be milliseconds from 0 to 10,000, got {grace:g}")
    constants = own_constants(profile, deployment)
    form = "max" if textbook else "serial"
    priced = api.fitting(api.cost_model(deployment, form=form, textbook=textbook, profile=constants))
    served: list[Any] = []

    def ready(twin: Any, listener: Any) -> None:
        served.append(twin)
        at = "real time" if scale == 1.0 else f"{scale:g} times slower than real"
        talk(f"twin of {deployment.model.name} on {deployment.label}, {at}: {listener.url}/v1  (Ctrl-C ends it)")
        talk("note: the twin has no prefix cache; every prompt is computed whole")
        if as_json:
            emit({"url": listener.url, "model": twin.model, "deployment": deployment.label, "scale": scale})

    run_server(
        serve_twin(
            deployment, priced, host=host, port=port, ready=ready, model=served_name, scale=scale, grace_s=grace / 1e3,
            stream_interval=stream_interval, truth=truth,
        )
    )  # fmt: skip
    for twin in served:
        done = twin.exposition.finished
        talk(f"served {done['length']} requests, {done['abort']} given up by their client; "
             f"a step's end was noticed {twin.late_s * 1e3:.2f} ms late at most")  # fmt: skip


def serve_embedded_command(
    path: Annotated[
        Path | None, typer.Option("--path", help="A GGUF file, or a folder in OpenVINO's format; else SmolLM2-135M.")
    ] = None,
    served_name: Annotated[str | None, typer.Option("--served-model-name", help="The name it serves under.")] = None,
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", help="Sequences in a step at most.")] = 64,
    max_num_batched_tokens: Annotated[
        int, typer.Option("--max-num-batched-tokens", help="Token budget of a step.")
    ] = 512,
    cache_gb: Annotated[int, typer.Option("--cache-gb", help="GB of KV cache.")] = 1,
    threads: Annotated[int | None, typer.Option("--threads", help="Inference threads; else all cores.")] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    as_json: Json = False,
) -> None:
    """Serve a real small engine (OpenVINO GenAI, SmolLM2-135M) on this machine's CPU, OpenAI-compatible."""
    from gambrel.measure.embedded import MODEL, Embedded, serve_embedded

    name = served_name or (MODEL if path is None else path.stem)
    engine = Embedded(
        path, model=name, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, cache_gb=cache_gb,
        threads=threads, progress=talk,
    )  # fmt: skip

    def ready(listener: Any) -> None:
        talk(f"{name} with {engine.threads} threads: {listener.url}/v1  (Ctrl-C ends it)")
        if as_json:
            emit({"url": listener.url, "model": name, "warm_s": engine.warm_s})

    run_server(serve_embedded(engine, host=host, port=port, ready=ready))


def record_command(
    upstream: Annotated[str, typer.Option("--upstream", help="The server behind, e.g. http://127.0.0.1:8000.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The log; full ones are renamed with their time.")] = Path(
        "requests.jsonl"
    ),
    rotate_mb: Annotated[float, typer.Option("--rotate-mb", help="Begin a new file at this size.")] = 64.0,
    rotate_hours: Annotated[float, typer.Option("--rotate-hours", help="Begin a new file after this time.")] = 24.0,
    keep: Annotated[int, typer.Option("--keep", help="Old files to keep; 0 keeps all.")] = 0,
    ask_usage: Annotated[
        bool, typer.Option("--ask-usage/--no-ask-usage", help="Ask streams for token counts, and hide the answer.")
    ] = True,
    ca_file: Annotated[Path | None, typer.Option("--ca-file", help="Certificates to trust.")] = None,
    host: Host = "127.0.0.1",
    port: Port = 8001,
    as_json: Json = False,
) -> None:
    """Record token counts and times, never content or keys, as a reverse proxy before an endpoint."""
    from gambrel.measure.recorder import LogFile, Upstream, record_traffic

    if not rotate_mb > 0 or not rotate_hours > 0 or keep < 0:
        raise GambrelError("--rotate-mb and --rotate-hours must be above 0, --keep at least 0")
    Upstream.parse(upstream)
    log = LogFile(out, max_bytes=int(rotate_mb * 1e6), max_age_s=rotate_hours * 3600.0, keep=keep, complain=talk)

    def ready(listener: Any) -> None:
        talk(f"recording {upstream} into {out}: send requests to {listener.url}/v1  (Ctrl-C ends it)")
        if as_json:
            emit({"url": listener.url, "upstream": upstream, "log": str(out)})

    trusted = None if ca_file is None else str(ca_file)
    run_server(record_traffic(upstream, log, host=host, port=port, ask_usage=ask_usage, ca_file=trusted, ready=ready))
    talk(f"{log.written} requests recorded" + (f", {log.lost} lines lost" if log.lost else ""))


def compare_command(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run: ours, a twin's truth, or another tool's result file.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The run to hold against it.")],
    level_a: Annotated[str | None, typer.Option("--level-a", help="Which level of A, where it has several.")] = None,
    level_b: Annotated[str | None, typer.Option("--level-b", help="Which level of B.")] = None,
    scale_a: Annotated[float, typer.Option("--scale-a", help="Divide A's times: the time scale of a twin.")] = 1.0,
    scale_b: Annotated[float, typer.Option("--scale-b", help="Divide B's times.")] = 1.0,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Share within which two figures are the same.")
    ] = 0.05,
    as_json: Json = False,
) -> None:
    """Two runs side by side: each metric with its interval, B over A, and a verdict."""
    from gambrel.measure.compare import compare
    from gambrel.measure.sides import read_side

    found = compare(
        read_side(a, level=level_a, scale=scale_a), read_side(b, level=level_b, scale=scale_b), tolerance=tolerance
    )
    if as_json:
        emit(found.to_dict())
        return
    for warning in found.to_dict()["warnings"]:
        talk(f"note: {warning}")
    show(comparison_tables(found))


def comparison_tables(found: Comparison) -> list[RenderableType]:
    """The comparison as a table, and what A and B are.

    An interval stands below its figure: side by side they are wider than a terminal. Names and verdicts wrap before
    figures do, as long as that can be enough at 80 columns.
    """
    from gambrel.faces.tables import grid

    def stacked(text: str) -> str:
        return text.removesuffix("]").replace(" [", "\n")

    rows = [[v.name, *map(stacked, (figure(v, v.a), figure(v, v.b), ratio(v.ratio))), word(v)] for v in found.metrics]
    table = grid(f"A: {found.a.name}\nB: {found.b.name}", ["", "A", "B", "B / A", "verdict"], rows)
    figures = table.columns[1:4]
    widest = sum(max(len(line) for cell in column.cells for line in str(cell).split("\n")) for column in figures)
    for column in figures:
        column.no_wrap = widest <= FIGURES
    table.columns[4].justify = "left"
    share = f"{found.tolerance:.0%}"
    return [table, f"below a figure: its 95 % interval; same: all of it within {share}; unclear: it allows both"]


def figure(verdict: Verdict, estimate: Estimate) -> str:
    """A value with its interval."""
    from gambrel.report import humanise as human

    def shown(value: float) -> str:
        return human.seconds(value) if verdict.unit == "s" else f"{human.number(value)}/s"

    return _with_interval(estimate, shown)


def ratio(estimate: Estimate) -> str:
    """B over A with its interval."""
    from gambrel.report import humanise as human

    def shown(value: float) -> str:
        return f"{value:.3f}" if value < 1000.0 else human.number(value)

    return _with_interval(estimate, shown)


def _with_interval(estimate: Estimate, shown: Callable[[float], str]) -> str:
    """``26.9 ms [26.4 to 27.6 ms]``: a unit that both ends share is said once."""
    if not math.isfinite(estimate.low):
        return shown(estimate.value)
    low, high = shown(estimate.low), shown(estimate.high)
    number = low.rstrip(UNITS)
    shared = low[len(number) :] == high[len(high.rstrip(UNITS)) :]
    return f"{shown(estimate.value)} [{number if shared else low} to {high}]"


def word(verdict: Verdict) -> str:
    """The verdict as a reader takes it: which side is worse."""
    worse = "slower" if verdict.unit == "s" else "faster"
    better = "faster" if verdict.unit == "s" else "slower"
    return {"higher": f"B {worse}", "lower": f"B {better}"}.get(verdict.verdict, verdict.verdict)
