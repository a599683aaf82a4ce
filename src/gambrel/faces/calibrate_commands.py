"""The commands about being believed: predict what others measured, and fit to what a person measured.

``calibrate`` reads whatever holds measurements (tables in the ground-truth layout, record files of ``gambrel measure``,
result files of other load generators) and hands the fit one kind of evidence.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gambrel.core.errors import WorkloadError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from gambrel.calibrate.evidence import Point
    from gambrel.calibrate.fit import Calibration
    from gambrel.calibrate.next_level import NextLevel
    from gambrel.calibrate.profile import Profile
    from gambrel.calibrate.replay import Replayed
    from gambrel.calibrate.validate import Validation
    from gambrel.core.deployment import Deployment
    from gambrel.measure.importers import Benchmark

__all__ = ["Engine", "EngineVersion", "ProfileFile", "own_constants", "points_of", "points_of_recording", "register"]

Tables = Annotated[list[Path], typer.Argument(help="CSV tables in the layout of docs/accuracy.md; several add up.")]
Runs = Annotated[
    list[Path], typer.Argument(help="Record files of gambrel measure, result files of other tools, or CSV tables.")
]
Models = Annotated[Path | None, typer.Option("--models", help="Directory of config.json files by name.")]
ProfileFile = Annotated[Path | None, typer.Option("--profile", help="Constants fitted by gambrel calibrate.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Write the error tables as Markdown.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
ModelName = Annotated[str | None, typer.Option("--model", "-m", help="What was served, where the file does not say.")]
GpuName = Annotated[str | None, typer.Option("--gpu", "-g", help="Accelerator it ran on, e.g. h100-sxm.")]
Tp = Annotated[int, typer.Option("--tp", help="Tensor-parallel degree.")]
Weights = Annotated[str | None, typer.Option("--weights", help="Weight format: bf16, fp8, int8, int4, mxfp4, ...")]
Kv = Annotated[str | None, typer.Option("--kv", help="KV cache format: bf16, fp8.")]
Engine = Annotated[str, typer.Option("--engine", help="vllm, sglang, tensorrt-llm, ...")]
EngineVersion = Annotated[str, typer.Option("--engine-version", help="e.g. 0.19")]
Sequences = Annotated[int, typer.Option("--max-num-seqs", help="As the server was started with.")]
Batched = Annotated[int, typer.Option("--max-num-batched-tokens", help="As the server was started with.")]
Skip = Annotated[list[str] | None, typer.Option("--skip", help="Leave out levels whose name holds this; repeatable.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Write the profile here (TOML).")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("validate")(validate_command)
    app.command("calibrate")(calibrate_command)


def validate_command(
    tables: Tables, models: Models = None, profile: ProfileFile = None, markdown: Markdown = None, as_json: Json = False
) -> None:
    """Predict published measurements and compare: median, 90th percentile and bias of the error, per group."""
    from gambrel.calibrate.published import validate_tables
    from gambrel.calibrate.replay import replays_beside
    from gambrel.faces.console import writable

    writable(markdown)
    found = validate_tables(tables, models, profile)
    replayed = replays_beside(tables, models, profile)
    if markdown is not None:
        from gambrel.calibrate.accuracy import accuracy_page

        markdown.write_text(accuracy_page(found, replayed, None if profile is None else profile.name), encoding="utf-8")
    if as_json:
        from gambrel.faces.console import emit

        emit(found.document() | {"replays": [r.document() for r in replayed]})
        return
    from gambrel.faces.console import show

    show([*validation_tables(found), *replay_tables(replayed)])


def calibrate_command(
    runs: Runs,
    model: ModelName = None,
    gpu: GpuName = None,
    tp: Tp = 1,
    weights: Weights = None,
    kv: Kv = None,
    engine: Engine = "vllm",
    engine_version: EngineVersion = "0.19",
    max_num_seqs: Sequences = 256,
    max_num_batched_tokens: Batched = 8192,
    models: Models = None,
    skip: Skip = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Fit the cost model to your own measurements, with intervals, errors on unseen levels and what to measure next."""
    from gambrel.calibrate.evidence import require_possible
    from gambrel.calibrate.fit import calibrate, calibration_document
    from gambrel.calibrate.next_level import next_levels
    from gambrel.calibrate.profile import profile_of, write_profile
    from gambrel.catalog.efficiency import efficiency
    from gambrel.faces.console import emit, show, writable

    writable(out)
    settings: dict[str, Any] = {
        "tp": tp, "engine": engine, "engine_version": engine_version, "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max(max_num_batched_tokens, max_num_seqs),
    }  # fmt: skip
    settings |= ({"weights": weights} if weights else {}) | ({"kv": kv} if kv else {})
    points = [p for path in runs for p in points_of(path, model, gpu, settings, models)]
    points = [p for p in points if not any(word in p.label for word in skip or ())]
    require_possible(points)
    fitted = calibrate(points, lambda d: efficiency(d.accelerator, d.engine, d.engine_version))
    advice = next_levels(fitted)
    if out is not None:
        write_profile(profile_of(fitted), out)
    if as_json:
        emit(calibration_document(fitted) | {"measure_next": [n.advice for n in advice],
                                             "profile": str(out) if out is not None else None})  # fmt: skip
        return
    show(calibration_tables(fitted, advice))


def own_constants(path: Path | None, deployment: Deployment) -> Profile | None:
    """The profile of a file; a word on stderr where it is of another accelerator or engine and so changes nothing."""
    from gambrel.faces import api
    from gambrel.faces.console import talk

    found = api.profile(path)
    if found is not None and not found.fits(deployment):
        talk(f"note: {path} was fitted on {found.accelerator} under {found.engine} and changes nothing here")
    return found


def points_of(
    path: Path, model: str | None, gpu: str | None, settings: Mapping[str, Any], models: Path | None = None
) -> list[Point]:
    """The operating points of a file, whatever wrote it.

    Raises:
        WorkloadError: not a file of measurements, or one that does not say the model or accelerator and nobody did.
    """
    from gambrel.faces import api

    def deployment(said_model: str, said_gpu: str = "") -> Deployment:
        name, device = model or said_model, gpu or said_gpu
        if not name or not device:
            missing = "--model" if not name else "--gpu"
            raise WorkloadError(f"{path.name} does not say what it measured: give {missing}")
        return api.deployment(name, device, **settings)

    if path.suffix.lower() == ".csv":
        from gambrel.calibrate.evidence import point_of_row
        from gambrel.calibrate.names import Models as Names
        from gambrel.calibrate.table import read_table

        found = [point_of_row(row, Names(models), api.accelerator) for row in read_table(path)]
        return [p for p in found if p is not None]
    from gambrel.measure.importers import import_results
    from gambrel.measure.record import read_recording

    try:
        recording = read_recording(path)
    except WorkloadError as not_ours:
        try:
            benchmarks = import_results(path)
        except WorkloadError as unknown:
            raise WorkloadError(
                f"{path.name}: neither a record file ({not_ours}) nor a result file ({unknown})"
            ) from None
        return [
            _point_of_benchmark(b, deployment(str(b.setting.get("model", "")), str(b.setting.get("gpu", ""))))
            for b in benchmarks
        ]
    return points_of_recording(recording, deployment(recording.header.model))


def points_of_recording(recording: Any, deployment: Deployment) -> list[Point]:
    """The levels of a record file of ``gambrel measure``."""
    from gambrel.calibrate.evidence import point_of_run
    from gambrel.measure.record import to_run

    found = []
    for level in recording.levels.values():
        records = recording.of_level(level.label)
        if not any(r.ok for r in records):
            continue
        users = round(level.requested) if level.mode == "closed" else None
        bound = bool(level.fidelity.get("client_bound", False))
        run = to_run(records)
        found.append(point_of_run(run, deployment, label=level.label, users=users, staggered=True, client_bound=bound))
    return found


def _point_of_benchmark(benchmark: Benchmark, deployment: Deployment) -> Point:
    """A level of another tool's result file: its requests where it kept them, else its aggregates."""
    from gambrel.calibrate.evidence import point_of_lengths, point_of_run
    from gambrel.calibrate.table import Figure

    users = benchmark.setting.get("concurrency")
    if benchmark.run is not None:
        return point_of_run(
            benchmark.run, deployment, label=benchmark.name, users=None if users is None else round(float(users))
        )
    measured = {}
    for metric in ("ttft", "tpot", "e2e"):
        reported = benchmark.reported.get(metric, {})
        statistic = "mean" if "mean" in reported else "p50"
        if statistic in reported:
            measured[metric] = Figure(reported[statistic], statistic)
    if "output_tokens_per_s" in benchmark.rates:
        measured["output_tok_s"] = Figure(benchmark.rates["output_tokens_per_s"])
    rate = benchmark.setting.get("rate_rps")

    def length(name: str) -> float:
        reported = benchmark.reported.get(name, {})
        return float(reported.get("mean", benchmark.setting.get(name, 0.0)))

    return point_of_lengths(
        deployment, measured, prompt_tokens=length("prompt_tokens"), output_tokens=length("output_tokens"),
        users=None if users is None else round(float(users)),
        rate=float(rate) if rate is not None and users is None else None, label=benchmark.name,
    )  # fmt: skip


def validation_tables(found: Validation) -> list[RenderableType]:
    """Errors per engine, accelerator and metric, and what was not compared."""
    from gambrel.faces.tables import grid

    groups = found.by(lambda c: (c.row.engine, c.row.gpu, c.metric))
    rows = [[*key, *e.cells()] for key, e in groups.items()]
    rows += [["all", "", metric, *e.cells()] for (metric,), e in found.by(lambda c: (c.metric,)).items()]
    columns = ["engine", "accelerator", "metric", "n", "median", "p90", "bias", "in 80 %"]
    skipped: list[RenderableType] = [f"skipped {n}: {reason}" for reason, n in found.skipped.most_common()]
    return [grid("predicted against measured", columns, rows, left=3), *skipped]


def replay_tables(replayed: list[Replayed]) -> list[RenderableType]:
    """Signed errors of the traces beside the tables, replayed request by request."""
    from gambrel.calibrate.replay import REPLAY_HEAD
    from gambrel.faces.tables import grid

    if not replayed:
        return []
    title = "traces replayed request by request, error of the simulated figure"
    return ["", grid(title, list(REPLAY_HEAD), [r.cells() for r in replayed])]


def calibration_tables(fitted: Calibration, advice: list[NextLevel]) -> list[RenderableType]:
    """The constants with intervals, the errors before, in and out of sample, and what remains open."""
    from gambrel.calibrate.fit import error_document
    from gambrel.faces.tables import grid

    constants = [
        [p.name, f"{p.value:.2f} x", f"{p.low:.2f} to {p.high:.2f}", "measured" if p.told else "default kept"]
        for p in fitted.parameters
    ]
    errors = []
    for label, found in (("shipped constants", fitted.default_errors), ("fitted", fitted.in_sample),
                         ("levels left out", fitted.held_out)):  # fmt: skip
        for metric, e in error_document(found).items():
            errors.append(
                [label, metric, str(e["n"]), f"{e['median_ape']:.1%}", f"{e['p90_ape']:.1%}", f"{e['bias']:+.1%}"]
            )
    notes: list[RenderableType] = [
        f"{a} and {b} cannot be told apart by these levels (correlation {r:+.2f})" for a, b, r in fitted.alike
    ]
    notes += [f"measure next: {n.advice}" for n in advice]
    return [
        grid("constants, times their shipped default", ["constant", "value", "95 %", "decided by"], constants, left=1),
        grid("errors", ["constants", "metric", "n", "median", "p90", "bias"], errors, left=2),
        *notes,
    ]
