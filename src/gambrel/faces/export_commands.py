"""``gambrel export``: a plan file, in; launch commands, manifests, rules, a summary or a benchmark report, out."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations when it runs
from typing import TYPE_CHECKING, Annotated

import typer

from gambrel.core.errors import GambrelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run
    from gambrel.plan.file import PlanFile

__all__ = ["FORMATS", "benchmark_report", "exported", "register"]

FORMATS = ("vllm", "sglang", "trtllm", "kubernetes", "kserve", "prometheus", "markdown", "llm-d")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("export")(export_command)


def export_command(
    plan: Annotated[Path, typer.Argument(help="A plan file that gambrel plan --out wrote.")],
    form: Annotated[str, typer.Option("--as", help=f"One of {', '.join(FORMATS)}.")] = "vllm",
    out: Annotated[Path | None, typer.Option("--out", help="Write to this file instead of stdout.")] = None,
    catalog: Annotated[
        list[Path] | None, typer.Option("--catalog", help="TOML file with your accelerators; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """A plan as a launch command, Kubernetes or KServe objects, Prometheus rules, a summary or a benchmark report."""
    from gambrel.faces.console import emit, talk
    from gambrel.faces.plan_outputs import load_plan, settled, write_text

    if form not in FORMATS:
        raise GambrelError(f"--as must be one of {', '.join(FORMATS)}, got {form!r}")
    file = load_plan(plan)
    text = exported(file, settled(file, catalog or []), form)
    if as_json:
        emit({"plan": str(plan), "format": form, "text": text})
    elif out is None:
        typer.echo(text, nl=False)
    if out is not None:
        write_text(out, text)
        talk(f"{form}: {out}")


def exported(file: PlanFile, deployment: Deployment, form: str) -> str:
    """The text of a plan in one of ``FORMATS``."""
    from gambrel.faces import api
    from gambrel.plan.alerts import prometheus_rules, without_rule
    from gambrel.plan.launch import sglang_command, trtllm_command, trtllm_options, vllm_command
    from gambrel.plan.manifests import kserve_manifests, kubernetes_manifests
    from gambrel.plan.summary import markdown_summary
    from gambrel.plan.yaml_text import yaml_documents, yaml_text

    memory = api.fitting(api.cost_model(deployment)).memory()
    left_out = ", ".join(without_rule(file))
    unseen = f"# no rule for {left_out}: vLLM's metrics do not tell kinds of traffic apart\n" if left_out else ""
    options = "".join(f"# {line}\n" for line in yaml_text(trtllm_options(deployment, memory)).splitlines())
    made: dict[str, Callable[[], str]] = {
        "vllm": lambda: vllm_command(deployment, memory) + "\n",
        "sglang": lambda: sglang_command(deployment, memory) + "\n",
        "trtllm": lambda: f"# options.yaml:\n{options}{trtllm_command(deployment, memory, 'options.yaml')}\n",
        "kubernetes": lambda: yaml_documents(kubernetes_manifests(file, deployment, memory)),
        "kserve": lambda: yaml_documents(kserve_manifests(file, deployment, memory)),
        "prometheus": lambda: unseen + yaml_text(prometheus_rules(file)),
        "markdown": lambda: markdown_summary(file, deployment),
        "llm-d": lambda: benchmark_report(file, deployment),
    }
    return made[form]()


def benchmark_report(file: PlanFile, deployment: Deployment, run: Run | None = None) -> str:
    """llm-d's Benchmark Report 0.2 of the plan simulated on its own log, as JSON (which is YAML as well).

    ``run`` is that simulation where it is at hand; else the log is read again.
    """
    from gambrel.faces import api
    from gambrel.faces.documents import dump
    from gambrel.faces.plan_outputs import own_log
    from gambrel.measure.importers import report_document

    run = run or api.simulate(deployment, own_log(file))
    setting = {"concurrency": file.workload.users or None, "rate_rps": file.workload.rate_rps}
    text = f"simulated by gambrel {file.gambrel}, not measured: {file.label} on {file.workload.name}"
    return dump(report_document(run, deployment=deployment, setting=setting, description=text)) + "\n"
