"""How a notebook shows every noun: the plan as its report, a curve as its charts, a log as its figures.

``import gambrel`` in IPython or Jupyter registers these; nothing is loaded until something is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.accelerator import Accelerator
    from gambrel.core.curve import Curve
    from gambrel.core.deployment import Deployment
    from gambrel.core.model import Model
    from gambrel.core.plan import Plan
    from gambrel.core.run import Run
    from gambrel.core.slo import SLO
    from gambrel.core.workload import Workload
    from gambrel.report import Report

__all__ = ["SHOWN", "register", "shown"]


def register(shell: Any) -> None:
    """Tell an IPython shell how to show the nouns."""
    formatter = shell.display_formatter.formatters["text/html"]
    for module, name in SHOWN:
        formatter.for_type_by_name(module, name, shown)


def shown(noun: Any) -> str:
    """A noun as HTML.

    Raises:
        KeyError: not one of ``SHOWN``.
    """
    from gambrel.report.fragment import fragment_html

    kind = type(noun)
    return fragment_html(SHOWN[kind.__module__, kind.__name__](noun))


def plan(noun: Plan) -> Report:
    """The decision with every answer around it."""
    from gambrel.report import plan_report

    return plan_report(noun)


def curve(noun: Curve) -> Report:
    """The named points and the charts."""
    from gambrel.report import curve_report

    return curve_report(noun)


def run(noun: Run) -> Report:
    """Latencies, and what the time went to."""
    from gambrel.report import Fact, Report, Section, Table, latency_cdf, time_bound_by
    from gambrel.report import humanise as say

    metrics = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E", "queue": "queue"}
    rows = []
    for metric, name in metrics.items():
        d = noun.distribution(metric)
        rows.append((name, *(say.seconds(x) for x in (d.mean, d.p50, d.p90, d.p95, d.p99))))
    latency = Table("Latency", "", ("", "mean", "p50", "p90", "p95", "p99"), tuple(rows), (False, *(True,) * 5))
    facts = (
        Fact("requests", say.count(len(noun))),
        Fact("output", say.rate(noun.output_tokens_per_s, "tokens")),
        Fact("batch", f"{noun.batch_mean:.1f} on average, {noun.batch_max} at most"),
        Fact("KV cache", f"{say.percent(noun.kv_usage_max)} at most"),
        Fact("busy", say.percent(noun.utilisation)),
    )
    charts = (latency, latency_cdf(noun), time_bound_by(noun))
    return Report(f"Run, {noun.origin}", noun.basis, (), facts, (Section("Requests", "", charts),))


def workload(noun: Workload) -> Report:
    """Lengths, rate and bursts."""
    from gambrel.faces import api
    from gambrel.report import Fact, Report, Section, prompt_lengths
    from gambrel.report import humanise as say

    rate = f"{noun.closed_loop} users" if noun.closed_loop else say.rate(noun.rate_rps)
    facts = (
        Fact("requests", say.count(len(noun)), f"over {say.seconds(noun.span_s)}"),
        Fact("load", rate),
        Fact("prompt", f"{say.tokens(float(noun.prompt_tokens.mean()))} tokens", "on average"),
        Fact("answer", f"{say.tokens(float(noun.output_tokens.mean()))} tokens", "on average"),
    )
    view = api.traffic_view(noun)
    charts = () if view is None else (prompt_lengths(view),)
    return Report(noun.name, noun.source, noun.warnings, facts, (Section("Requests", "", charts),))


def model(noun: Model) -> Report:
    """What it weighs."""
    from gambrel.core.bill import model_figures
    from gambrel.report import Fact, Report
    from gambrel.report import humanise as say

    figures = model_figures(noun)
    own = noun.checkpoint_format
    facts = (
        Fact("parameters", f"{figures['total_params'] / 1e9:.2f} B", f"{figures['active_params'] / 1e9:.2f} B a token"),
        Fact("weights", say.num_bytes(figures["weight_bytes"][own]), own),
        Fact("KV cache", say.num_bytes(figures["kv_bytes_per_token"]), "a token, bf16"),
        Fact("layers", f"{noun.num_layers}"),
    )
    return Report(noun.name, noun.source, (), facts, ())


def accelerator(noun: Accelerator) -> Report:
    """Peaks, memory and price."""
    from gambrel.report import Fact, Report
    from gambrel.report import humanise as say

    facts = [Fact(f"{name} peak", f"{x / 1e12:,.0f} TFLOP/s", "dense") for name, x in noun.peak_flops.items()]
    facts += [
        Fact("memory", say.num_bytes(noun.memory_bytes)),
        Fact("bandwidth", f"{say.num_bytes(noun.memory_bandwidth)}/s"),
    ]
    if noun.price is not None:
        facts.append(Fact("price", say.per_hour(noun.price.usd_per_hour), noun.price.basis))
    return Report(noun.title, f"{noun.source}, confidence {noun.confidence}", (), tuple(facts), ())


def deployment(noun: Deployment) -> Report:
    """Every choice."""
    from dataclasses import fields

    from gambrel.report import Fact, Report
    from gambrel.report import humanise as say

    names = [f.name for f in fields(noun) if f.name not in {"model", "accelerator"}]
    default = {f.name: f.default for f in fields(noun)}
    facts = [Fact(n, f"{getattr(noun, n)}") for n in names if getattr(noun, n) != default[n] or n == "replicas"]
    price = noun.usd_per_hour
    facts += [] if price is None else [Fact("cost", say.per_hour(price))]
    return Report(noun.label, noun.model.name, (), tuple(facts), ())


def slo(noun: SLO) -> Report:
    """Every limit."""
    from gambrel.report import Fact, Report
    from gambrel.report import humanise as say

    return Report("Objectives", "", (), tuple(Fact(o.name, say.allowed(o)) for o in noun.objectives), ())


SHOWN: dict[tuple[str, str], Callable[[Any], Report]] = {
    ("gambrel.core.plan", "Plan"): plan,
    ("gambrel.core.curve", "Curve"): curve,
    ("gambrel.core.run", "Run"): run,
    ("gambrel.core.workload", "Workload"): workload,
    ("gambrel.core.model", "Model"): model,
    ("gambrel.core.accelerator", "Accelerator"): accelerator,
    ("gambrel.core.deployment", "Deployment"): deployment,
    ("gambrel.core.slo", "SLO"): slo,
}
"""(module, name) of every noun that a notebook shows, and its report."""
