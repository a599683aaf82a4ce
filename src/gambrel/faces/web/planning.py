"""The Plan view: a search that can be watched and stopped, its answer, what-ifs on it, and the files to take away."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from gambrel.core.errors import GambrelError
from gambrel.faces import api
from gambrel.faces.web import wire
from gambrel.faces.web.fitting import profile_of_fit
from gambrel.faces.web.jobs import Jobs
from gambrel.faces.web.questions import Question
from gambrel.faces.web.setup import DEFAULT_MODEL, Dollars, Name, chosen_accelerator, chosen_model
from gambrel.faces.web.traffic import Window, window_of
from gambrel.report import Fact
from gambrel.report import humanise as say

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response

    from gambrel.calibrate.profile import Profile
    from gambrel.core.deployment import Deployment
    from gambrel.core.plan import Plan
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload
    from gambrel.faces.web.jobs import Job
    from gambrel.report import Report

__all__ = ["JOBS", "QUESTIONS"]

MOST_WHATIF: Final = 400_000

Text = Annotated[str, msgspec.Meta(max_length=60)]


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan is asked for: objectives like ``ttft.p95<=1s``, and what may be searched.

    ``fit`` is the id of a fit, whose constants then price its accelerator and engine.
    """

    traffic: Window
    model: Name = DEFAULT_MODEL
    slo: Annotated[list[Text], msgspec.Meta(min_length=1, max_length=12)]
    gpus: Annotated[list[Name], msgspec.Meta(max_length=100)] | None = None
    prices: Annotated[dict[Name, Dollars], msgspec.Meta(max_length=100)] = {}
    available: Annotated[dict[Name, Annotated[int, msgspec.Meta(ge=1, le=4096)]], msgspec.Meta(max_length=100)] = {}
    tp: Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=64)], ...], msgspec.Meta(min_length=1, max_length=7)] = (
        1, 2, 4, 8,
    )  # fmt: skip
    weights: Annotated[list[Name], msgspec.Meta(max_length=12)] = []
    kv: Annotated[list[Name], msgspec.Meta(max_length=6)] = []
    max_gpus: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256
    confidence: Annotated[float, msgspec.Meta(ge=0.5, le=0.999)] = 0.5
    spare: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    growth: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    months: Annotated[int, msgspec.Meta(ge=1, le=36)] = 6
    fit: Text = ""

    def checked(self) -> None:
        """Refuse what a search would only find out later.

        Raises:
            GambrelError: a name or an objective is unknown.
        """
        from gambrel.core.formats import kv_format, weight_format

        chosen_model(self.model)
        api.slo(*self.slo)
        for name in (*(self.gpus or ()), *self.prices, *self.available):
            chosen_accelerator(name)
        for name in self.weights:
            weight_format(name)
        for name in self.kv:
            kv_format(name)
        if self.gpus is not None and not self.gpus:
            raise GambrelError("no accelerator is chosen: tick at least one")

    def axes(self) -> dict[str, Any]:
        """Fields of :class:`gambrel.plan.Space`."""
        found: dict[str, Any] = {
            "tp": tuple(sorted(set(self.tp))), "max_gpus": self.max_gpus, "confidence": self.confidence,
            "spare": self.spare, "available": {chosen_accelerator(k).name: v for k, v in self.available.items()},
        }  # fmt: skip
        return found | {k: tuple(v) for k, v in (("weights", self.weights), ("kv", self.kv)) if v}


@dataclass(frozen=True)
class Planned:
    """A question, the log it was asked about, and the answer."""

    asked: PlanRequest
    workload: Workload
    plan: Plan
    profile: Profile | None = None

    def report(self) -> Report:
        """The report, every headline figure traced to its inputs."""
        return api.report_of(self.plan, self.workload, traced=True, profile=self.profile)


JOBS: Final[Jobs[Planned]] = Jobs("search")


def start(asked: PlanRequest) -> dict[str, Any]:
    """Search the cheapest deployment for a log: the id of the search."""
    asked.checked()
    workload = window_of(asked.traffic)
    profile = profile_of_fit(asked.fit) if asked.fit else None
    return {"id": JOBS.start(lambda job: search(asked, workload, profile, job))}


def search(asked: PlanRequest, workload: Workload, profile: Profile | None, job: Job[Planned]) -> Planned:
    """The plan; a search that is cancelled ends with the next deployment it would price."""
    from gambrel.faces.plan_outputs import with_outlook
    from gambrel.plan import Space
    from gambrel.plan import plan as cheapest

    make = api.pricer(profile=profile)

    def priced(d: Deployment) -> CostModel:
        job.check()
        return make(d)

    chosen = [d.name for d in api.default_accelerators()] if asked.gpus is None else asked.gpus
    prices = {chosen_accelerator(k).name: v for k, v in asked.prices.items()}
    names = dict.fromkeys(chosen_accelerator(name).name for name in chosen)
    devices = tuple(chosen_accelerator(name, prices.get(name)) for name in names)
    axes = asked.axes()
    plan = cheapest(
        chosen_model(asked.model), workload, api.slo(*asked.slo), Space(devices, **axes), priced, progress=job.say
    )
    if asked.growth is not None:
        job.say("growth, month by month")
        plan = with_outlook(plan, workload, devices, axes, asked.growth, asked.months, profile)
    return Planned(asked, workload, plan, profile)


# The answer ---------------------------------------------------------------------------------------------------------


def found(id: str) -> dict[str, Any]:  # noqa: A002 - the parameter of the address
    """The plan of a search: its report, what a what-if can change, and the files on offer."""
    return plan_answer(JOBS.found(id))


def plan_answer(planned: Planned) -> dict[str, Any]:
    """The report, what a what-if can change, and the files on offer."""
    plan, workload = planned.plan, planned.workload
    price = plan.chosen.deployment.accelerator.price
    return {
        "report": wire.report_document(planned.report()),
        "whatif": {
            "replicas": plan.chosen.deployment.replicas,
            "usd_per_gpu_hour": None if price is None else price.usd_per_hour,
            "most_load": max(1.0, min(8.0, MOST_WHATIF / len(workload))),
        },
        "exports": [{"name": name, "title": title} for name, (title, _, _) in EXPORTS.items()],
    }


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """Multiples of load and prompt length, and a fleet: what the chosen deployment would do then."""

    load: Annotated[float, msgspec.Meta(ge=0.05, le=16)] = 1.0
    prompt: Annotated[float, msgspec.Meta(ge=0.1, le=16)] = 1.0
    replicas: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    price: Dollars | None = None


def whatif(id: str, asked: WhatIf) -> dict[str, Any]:  # noqa: A002 - the parameter of the address
    """The chosen deployment simulated again under other load, lengths, replicas or price."""
    return whatif_answer(JOBS.found(id), asked)


def whatif_answer(planned: Planned, asked: WhatIf) -> dict[str, Any]:
    """The chosen deployment simulated again under other traffic, with other replicas or another price.

    Raises:
        GambrelError: the traffic asked for is more than a what-if simulates, or a request no longer fits.
    """
    from gambrel.report import latency_cdf
    from gambrel.traffic import scale_lengths, scale_load

    started = time.perf_counter()
    plan, requests = planned.plan, planned.workload
    if asked.load * len(requests) > MOST_WHATIF:
        raise GambrelError(f"a what-if simulates up to {MOST_WHATIF:,} requests; choose a shorter window of the log")
    d = plan.chosen.deployment
    if asked.replicas is not None:
        d = d.with_(replicas=asked.replicas)
    if asked.price is not None:
        d = d.with_(accelerator=chosen_accelerator(d.accelerator.name, asked.price))
    if asked.prompt != 1.0:
        requests = scale_lengths(requests, prompt=asked.prompt)
    if asked.load != 1.0:
        requests = scale_load(requests, asked.load, seed=0)
    run = api.simulate(d, requests, api.cost_model(d, profile=planned.profile))
    verdicts = plan.slo.check(run)
    from gambrel.plan.trial import price_run

    usd = d.usd_per_hour
    pricing = None if usd is None else price_run(run, usd)
    facts = [
        Fact(
            v.objective.name,
            say.figure(v.objective, v.reached),
            f"limit {say.allowed(v.objective)}",
            "met" if v.met else "missed",
        )
        for v in verdicts
    ]
    facts += [
        Fact("cost", "no price" if usd is None else say.per_hour(usd), d.label),
        Fact(
            "$ per Mtok",
            "no price" if pricing is None else say.dollars(pricing.usd_per_mtok_output),
            "output, by time share",
        ),
        Fact("busy", say.percent(run.utilisation), f"KV at most {say.percent(run.kv_usage_max)}"),
    ]
    if not plan.slo.floors:
        facts.append(Fact("goodput", say.percent(plan.slo.goodput(run)), "of requests meet every limit"))
    return {
        "facts": wire.facts(facts),
        "holds": all(v.met for v in verdicts),
        "items": [wire.item(latency_cdf(run, plan.slo))],
        "wall_s": time.perf_counter() - started,
    }


# Files to take away -------------------------------------------------------------------------------------------------


def _html(planned: Planned) -> str:
    from gambrel.report import page_html

    return page_html(planned.report())


def _json(planned: Planned) -> str:
    from gambrel.faces.documents import dump, plan_document

    return dump(plan_document(planned.plan))


def _plan_file(planned: Planned) -> Any:
    from gambrel.plan.file import Asked, plan_file

    plan, asked = planned.plan, planned.asked
    question = Asked(
        model=asked.model, source=planned.workload.source, slo=[str(o) for o in plan.slo.objectives],
        confidence=asked.confidence, spare=asked.spare,
    )  # fmt: skip
    return plan_file(plan, question, planned.workload)


def _toml(planned: Planned) -> str:
    return str(_plan_file(planned).text(as_json=False))


def _llm_d(planned: Planned) -> str:
    from gambrel.faces.export_commands import benchmark_report

    return benchmark_report(_plan_file(planned), planned.plan.chosen.deployment, planned.plan.run)


def _form(form: str) -> Callable[[Planned], str]:
    def made(planned: Planned) -> str:
        from gambrel.faces.export_commands import exported

        return exported(_plan_file(planned), planned.plan.chosen.deployment, form)

    return made


EXPORTS: Final[dict[str, tuple[str, str, Callable[[Planned], str]]]] = {
    "report.html": ("Report, one file", "text/html", _html),
    "plan.toml": ("Plan file", "application/toml", _toml),
    "plan.json": ("Every figure, JSON", "application/json", _json),
    "plan.md": ("Summary, Markdown", "text/markdown", _form("markdown")),
    "vllm.sh": ("vLLM start", "text/x-shellscript", _form("vllm")),
    "sglang.sh": ("SGLang start", "text/x-shellscript", _form("sglang")),
    "trtllm.sh": ("TensorRT-LLM start", "text/x-shellscript", _form("trtllm")),
    "kubernetes.yaml": ("Kubernetes manifest", "application/yaml", _form("kubernetes")),
    "kserve.yaml": ("KServe manifest", "application/yaml", _form("kserve")),
    "prometheus.yaml": ("Prometheus alerts", "application/yaml", _form("prometheus")),
    "llm-d.json": ("llm-d report", "application/json", _llm_d),
}
"""What a plan can be taken away as: file name -> (title, media type, writer)."""


def export(id: str, name: str) -> Response:  # noqa: A002 - the parameter of the address
    """One of the files of a plan."""
    planned = JOBS.found(id)
    if name not in EXPORTS:
        raise wire.Unknown(f"no such file {name[:60]!r}; there are {', '.join(EXPORTS)}")
    _, media_type, write = EXPORTS[name]
    return wire.file(write(planned), name, media_type)


QUESTIONS: Final = (
    Question("POST", "/api/plan", start, body=PlanRequest, status=202),
    Question("GET", "/api/plan/{id}", found),
    Question("GET", "/api/plan/{id}/whatif", whatif, query=WhatIf),
    Question(
        "GET", "/api/plan/{id}/export/{name}", export, media=tuple(dict.fromkeys(m for _, m, _ in EXPORTS.values()))
    ),
    *JOBS.questions("/api/plan"),
)
