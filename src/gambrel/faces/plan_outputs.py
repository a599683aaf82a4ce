"""Plans as files: write one, hold it to its word on another log; refusals and traces as answers.

Every plan file is read and written here; what is in it is :mod:`gambrel.plan.file`'s to say.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gambrel.core.errors import DoesNotFit, GambrelError, InfeasiblePlan
from gambrel.faces.verdicts import slo_document

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType

    from gambrel.calibrate.profile import Profile
    from gambrel.core.accelerator import Accelerator
    from gambrel.core.deployment import Deployment
    from gambrel.core.plan import Plan
    from gambrel.core.workload import Workload
    from gambrel.plan.check import PlanCheck
    from gambrel.plan.file import PlanFile

__all__ = [
    "available", "check_document", "check_file", "load_plan", "settled", "show_check", "unchecked", "write_plan",
]  # fmt: skip

CHECKED = {"check", "workload", "columns", "users", "prompt", "output", "catalog", "profile", "as_json"}
"""Parameters of ``gambrel plan`` that a check reads."""


def available(texts: Iterable[str]) -> dict[str, int]:
    """``h100-sxm=16`` as accelerators that can be had, by id.

    Raises:
        GambrelError: one is not of that form.
    """
    from gambrel.faces import api
    from gambrel.faces.words import number

    found = {}
    for part in (p for text in texts for p in text.split(",") if p.strip()):
        name, separator, count = part.partition("=")
        if not separator:
            raise GambrelError(f"--available must be NAME=COUNT like h100-sxm=16, got {part!r}")
        found[api.accelerator(name.strip()).name] = number(count, "--available")
    return found


def write_plan(path: Path, plan: Plan, workload: Workload, **asked: Any) -> None:
    """Write the plan file: TOML, or JSON where the name ends in ``.json``; ``asked`` are fields of ``Asked``."""
    from gambrel.plan.file import Asked, plan_file

    slo = [str(o) for o in plan.slo.objectives]
    write_text(path, plan_file(plan, Asked(slo=slo, **asked), workload).text(as_json=path.suffix == ".json"))


def write_text(path: Path, text: str) -> None:
    """Write a file; folders are made.

    Raises:
        GambrelError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GambrelError(f"{path}: cannot be written ({error.strerror})") from None


@contextmanager
def refused(*, as_json: bool) -> Iterator[None]:
    """Turn a plan that cannot be made into an answer, status 1: the reason on stderr, what would hold on stdout."""
    try:
        yield
    except (InfeasiblePlan, DoesNotFit) as error:
        from gambrel.faces.console import emit, show, talk
        from gambrel.faces.plan_answers import refusal_document
        from gambrel.faces.tables import refusal_tables

        talk(f"gambrel: {error}")
        if as_json:
            emit(refusal_document(str(error), error.relaxations))
        else:
            show(refusal_tables(error.relaxations))
        raise typer.Exit(1) from None


def write_trace(path: Path, plan: Plan, workload: Workload, profile: Profile | None = None) -> None:
    """Write every headline figure down to its inputs: indented text, or JSON where the name ends in ``.json``."""
    from gambrel.faces import api
    from gambrel.faces.console import talk
    from gambrel.faces.documents import dump
    from gambrel.report import trace_text

    roots = api.trace(plan, workload, profile)
    text = dump({"trace": roots}) + "\n" if path.suffix == ".json" else trace_text(roots)
    write_text(path, text)
    talk(f"trace: {path}")


def write_files(
    plan: Plan,
    workload: Workload,
    profile: Profile | None = None,
    *,
    trace: Path | None = None,
    html: Path | None = None,
    images: Path | None = None,
    markdown: Path | None = None,
) -> None:
    """Write what was asked for: the trace, the page, the plots, the page as Markdown."""
    from gambrel.faces import api
    from gambrel.faces.console import talk, write_report
    from gambrel.report.markdown import markdown as as_markdown

    if trace is not None:
        write_trace(trace, plan, workload, profile)
    if html is None and images is None and markdown is None:
        return
    report = api.report_of(plan, workload, traced=True, profile=profile)
    write_report(report, html, images)
    if markdown is not None:
        write_text(markdown, as_markdown(report))
        talk(f"markdown: {markdown}")


def with_outlook(
    plan: Plan,
    workload: Workload,
    devices: Sequence[Accelerator],
    axes: dict[str, Any],
    growth: float,
    months: int,
    profile: Profile | None = None,
) -> Plan:
    """The plan with what growth asks of it."""
    from dataclasses import replace

    from gambrel.faces import api
    from gambrel.plan import Space
    from gambrel.plan.growth import outlook

    space = Space(tuple(devices), **axes)
    return replace(plan, outlook=outlook(plan, workload, space, api.pricer(profile=profile), growth, months))


def with_schedule(
    plan: Plan, workload: Workload, axes: dict[str, Any], start_s: float, profile: Profile | None = None
) -> Plan:
    """The plan with its replicas by hour of the day."""
    from dataclasses import replace

    from gambrel.faces import api
    from gambrel.plan import Space
    from gambrel.plan.schedule import schedule

    priced = api.pricer(profile=profile)(plan.chosen.deployment)
    return replace(plan, schedule=schedule(plan, workload, priced, Space((), **axes).safety, start_s))


def load_plan(path: Path) -> PlanFile:
    """Read a plan file.

    Raises:
        GambrelError: it cannot be read, or is no plan file.
    """
    from gambrel.plan.file import read_plan_file

    try:
        data = path.read_bytes()
    except OSError as error:
        raise GambrelError(f"{path}: cannot be read ({error.strerror})") from None
    return read_plan_file(data, str(path))


def settled(file: PlanFile, catalog: Sequence[Path] = ()) -> Deployment:
    """The file's deployment, at the price it was chosen at.

    Raises:
        DeploymentError: settings that are unknown, contradict each other, or that no engine accepts.
    """
    from dataclasses import replace

    from gambrel.core.accelerator import Price
    from gambrel.cost.shards import require_tp
    from gambrel.faces import api

    found = api.accelerator(file.gpu, files=(*(Path(c) for c in file.asked.catalog), *catalog))
    if file.price is not None:
        p = file.price
        price = Price(p.usd_per_gpu_hour, p.basis, as_of=p.as_of, source=p.source, confidence=p.confidence)
        found = replace(found, price=price, offers=())
    deployment = file.settled(api.model(file.asked.model), found)
    require_tp(deployment)
    return deployment


def unchecked(context: typer.Context) -> None:
    """Refuse options beside ``--check`` that a check does not read: the file says what they would.

    Raises:
        GambrelError: there are such options; all are named.
    """
    given = [
        max(p.opts, key=len)
        for p in context.command.params
        if p.name not in CHECKED and getattr(context.get_parameter_source(str(p.name)), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise GambrelError(
            f"--check takes the deployment and its objectives from the plan file, not {', '.join(given)}; "
            "plan again to change them"
        )


def show_check(
    path: Path, workload: Workload | None, catalog: Sequence[Path], profile: Profile | None = None, *, as_json: bool
) -> bool:
    """Check a plan file, print what came of it, and say whether it holds."""
    from gambrel.faces.console import emit, show

    found = check_file(path, workload, catalog, profile)
    if as_json:
        emit(check_document(found))
    else:
        show(check_tables(found))
    return found.holds


def check_file(
    path: Path, workload: Workload | None, catalog: Sequence[Path] = (), profile: Profile | None = None
) -> PlanCheck:
    """Simulate a plan file's deployment on a log, its own where none is given."""
    from gambrel.faces import api
    from gambrel.plan.check import check_plan

    file = load_plan(path)
    log = own_log(file) if workload is None else workload
    return check_plan(file, settled(file, catalog), log, api.pricer(profile=profile))


def own_log(file: PlanFile) -> Workload:
    """The traffic that a plan file was made for, read again."""
    from gambrel.faces import api
    from gambrel.traffic import closed_loop, ready_to_replay

    figures = file.workload
    if figures.users:
        prompt, output = (int(x["max"]) for x in (figures.prompt_tokens, figures.output_tokens))
        return closed_loop(figures.users, prompt, output)
    if not file.asked.source:
        raise GambrelError("the plan file names no log of its own (asked.source is empty); give one with --workload")
    return ready_to_replay(api.load_workload(file.asked.source))


def check_document(check: PlanCheck) -> dict[str, Any]:
    """The result of ``gambrel plan --check`` as one JSON document."""
    needs, pricing = check.needs, check.pricing
    return {
        "holds": check.holds,
        "broken": list(check.broken),
        "deployment": check.deployment.label,
        "workload": {"name": check.workload, "num_requests": check.num_requests},
        "slo": {
            name: told | {"was" if "floor" in told else "was_s": check.was.get(name)}
            for name, told in slo_document(check.verdicts).items()
        },
        "slo_with_safety": slo_document(check.safety),
        "drift": [
            {"figure": d.name, "was": d.was, "now": d.now, "change": d.change, "notable": d.notable}
            for d in check.drift
        ],
        "carries": check.carries,
        "usd_per_hour": None if pricing is None else pricing.usd_per_hour,
        "usd_per_mtok_input": None if pricing is None else pricing.usd_per_mtok_input,
        "usd_per_mtok_output": None if pricing is None else pricing.usd_per_mtok_output,
        "needs": None
        if needs is None
        else {"replicas": needs.deployment.replicas, "usd_per_hour": needs.deployment.usd_per_hour},
    }


def check_tables(check: PlanCheck) -> list[RenderableType]:
    """The verdict first, then each objective then and now, then what drifted."""
    from gambrel.faces.tables import facts, grid, last_column_left
    from gambrel.plan.explain import carried
    from gambrel.report import humanise as human

    verdict = "holds" if check.holds else "no longer holds"
    rows = [("deployment", check.deployment.label), ("log", f"{check.workload}: {check.num_requests:,} requests")]
    rows += [("broken", text) for text in check.broken]
    if check.holds:
        rows.append(("carries", carried(check.carries)))
    elif check.needs is not None:
        d = check.needs.deployment
        usd = "" if d.usd_per_hour is None else f", {human.per_hour(d.usd_per_hour)}"
        rows.append(("would hold", f"{d.replicas} replicas instead of {check.deployment.replicas}{usd}"))
    else:
        rows.append(("would hold", "more replicas of this kind do not help; plan again"))
    objectives = [
        [v.objective.name, human.allowed(v.objective),
         human.figure(v.objective, check.was.get(v.objective.name, math.nan)),
         human.figure(v.objective, v.reached), human.signed_percent(v.margin), "met" if v.met else "MISSED"]
        for v in check.verdicts
    ]  # fmt: skip
    drift = [
        [d.name, human.number(d.was), human.number(d.now), human.signed_percent(d.change), "drifted" * d.notable]
        for d in check.drift
    ]
    blocks: list[RenderableType] = [facts(f"the plan {verdict}", rows), ""]
    if objectives:
        heads = ["", "limit", "planned", "now", "margin", ""]
        blocks += [last_column_left(grid("objectives", heads, objectives)), ""]
    return [*blocks, last_column_left(grid("traffic", ["", "planned for", "now", "change", ""], drift))]
