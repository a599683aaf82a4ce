"""The Plan view: a search that can be watched and stopped, its answer, what-ifs on it, and the files to take away.

One search runs at a time, in a thread of its own; what it has done so far is a list of events that any number of
listeners read from the start, so a page that is reloaded misses nothing.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import Route

from gambrel.core.errors import GambrelError
from gambrel.faces import api
from gambrel.faces.web import wire
from gambrel.faces.web.setup import DEFAULT_MODEL, Dollars, Name, chosen_accelerator, chosen_model
from gambrel.faces.web.traffic import Window, window_of
from gambrel.report import Fact, Section
from gambrel.report import humanise as say

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from gambrel.core.plan import Plan
    from gambrel.core.workload import Workload
    from gambrel.report import Report

__all__ = ["ROUTES"]

KEPT: Final = 4
MOST_WHATIF: Final = 400_000

Text = Annotated[str, msgspec.Meta(max_length=60)]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan is asked for."""

    traffic: Window
    model: Name = DEFAULT_MODEL
    slo: Annotated[list[Text], msgspec.Meta(min_length=1, max_length=12)]
    gpus: Annotated[list[Name], msgspec.Meta(max_length=100)] | None = None
    prices: dict[Name, Dollars] = {}
    tp: Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=64)], ...], msgspec.Meta(min_length=1, max_length=7)] = (
        1, 2, 4, 8,
    )  # fmt: skip
    weights: Annotated[list[Name], msgspec.Meta(max_length=12)] = []
    max_gpus: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256


class Cancelled(GambrelError):  # noqa: N818 - reads as the sentence it is
    """The person stopped the search."""


@dataclass
class Job:
    """A search: what it was asked, what it has said so far, and what came of it."""

    asked: Asked
    workload: Workload
    events: list[dict[str, Any]] = field(default_factory=list)
    plan: Plan | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    ended: bool = False
    started: float = field(default_factory=time.monotonic)

    def say(self, kind: str, text: str) -> None:
        """Add an event; a search that was cancelled ends here."""
        self.events.append({"kind": kind, "text": text, "elapsed_s": time.monotonic() - self.started})
        if kind == "part" and self.stop.is_set():
            raise Cancelled("cancelled")

    def run(self) -> None:
        """Search; errors become the last event."""
        try:
            self.plan = self._search()
            self.say("done", "")
        except Cancelled:
            self.say("cancelled", "cancelled")
        except GambrelError as error:
            self.say("failed", str(error))
        except Exception as error:
            self.say("failed", f"this is a defect of gambrel: {type(error).__name__}")
            raise
        finally:
            self.ended = True

    def _search(self) -> Plan:
        a = self.asked
        chosen = [d.name for d in api.default_accelerators()] if a.gpus is None else a.gpus
        devices = [chosen_accelerator(name, a.prices.get(name)) for name in dict.fromkeys(chosen)]
        axes: dict[str, Any] = {"tp": tuple(sorted(set(a.tp))), "max_gpus": a.max_gpus}
        if a.weights:
            axes["weights"] = tuple(a.weights)
        return api.plan(
            chosen_model(a.model), self.workload, api.slo(*a.slo), gpus=devices,
            progress=lambda word: self.say("part", word), **axes,
        )  # fmt: skip


_jobs: OrderedDict[str, Job] = OrderedDict()
_lock = threading.Lock()


def start(asked: Asked) -> str:
    """Start a search and give its id.

    Raises:
        GambrelError: a name or an objective is unknown, or another search is running.
    """
    from gambrel.core.formats import weight_format

    chosen_model(asked.model)
    api.slo(*asked.slo)
    for name in (*(asked.gpus or ()), *asked.prices):
        chosen_accelerator(name)
    for name in asked.weights:
        weight_format(name)
    if asked.gpus is not None and not asked.gpus:
        raise GambrelError("no accelerator is chosen: tick at least one")
    job = Job(asked, window_of(asked.traffic))
    with _lock:
        if any(not j.ended for j in _jobs.values()):
            raise GambrelError("another search is still running: cancel it first")
        key = secrets.token_urlsafe(8)
        _jobs[key] = job
        while len(_jobs) > KEPT:
            _jobs.popitem(last=False)
    threading.Thread(target=job.run, name=f"plan-{key}", daemon=True).start()
    return key


def job_of(key: str) -> Job:
    """The search of an id."""
    with _lock:
        if key not in _jobs:
            raise GambrelError("this plan is no longer here (the server forgets): run it again")
        return _jobs[key]


def plan_of(key: str) -> tuple[Job, Plan]:
    """A search that ended well, with its plan."""
    job = job_of(key)
    if job.plan is None:
        raise GambrelError("this search has no plan")
    return job, job.plan


# The answer ---------------------------------------------------------------------------------------------------------


def report_of(job: Job, plan: Plan) -> Report:
    """The report of a plan, with cost against latency added to the decision."""
    from dataclasses import replace

    from gambrel.report import cost_vs_latency

    report = api.report_of(plan, job.workload)
    fronts = [spec for o in plan.slo.objectives if (spec := cost_vs_latency(plan, o)) is not None]
    distinct = list({spec["name"]: spec for spec in fronts}.values())
    decision = report.sections[0]
    items = (*decision.items[:-1], *distinct, *decision.items[-1:])
    changed: tuple[Section, ...] = (replace(decision, items=items), *report.sections[1:])
    return replace(report, sections=changed)


def plan_answer(job: Job, plan: Plan) -> dict[str, Any]:
    """The report, what a what-if can change, and the files on offer."""
    price = plan.chosen.deployment.accelerator.price
    return {
        "report": wire.report_document(report_of(job, plan)),
        "whatif": {
            "replicas": plan.chosen.deployment.replicas,
            "usd_per_gpu_hour": None if price is None else price.usd_per_hour,
            "most_load": max(1.0, min(8.0, MOST_WHATIF / len(job.workload))),
        },
        "exports": [{"name": name, "title": title} for name, (title, _, _) in EXPORTS.items()],
    }


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """Multiples of load and prompt length, and a fleet: what the chosen deployment would do then."""

    load: Annotated[float, msgspec.Meta(ge=0.05, le=16)] = 1.0
    prompt: Annotated[float, msgspec.Meta(ge=0.1, le=16)] = 1.0
    replicas: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    price: Dollars | None = None


def whatif_answer(job: Job, plan: Plan, asked: WhatIf) -> dict[str, Any]:
    """The chosen deployment simulated again under other traffic, with other replicas or another price.

    Raises:
        GambrelError: the traffic asked for is more than a what-if simulates, or a request no longer fits.
    """
    from gambrel.report import latency_cdf
    from gambrel.traffic import scale_lengths, scale_load

    started = time.perf_counter()
    if asked.load * len(job.workload) > MOST_WHATIF:
        raise GambrelError(f"a what-if simulates up to {MOST_WHATIF:,} requests; choose a shorter window of the log")
    d = plan.chosen.deployment
    if asked.replicas is not None:
        d = d.with_(replicas=asked.replicas)
    if asked.price is not None:
        d = d.with_(accelerator=chosen_accelerator(d.accelerator.name, asked.price))
    requests = job.workload
    if asked.prompt != 1.0:
        requests = scale_lengths(requests, prompt=asked.prompt)
    if asked.load != 1.0:
        requests = scale_load(requests, asked.load, seed=0)
    run = api.simulate(d, requests)
    verdicts = plan.slo.check(run)
    from gambrel.plan.search import price_run

    usd = d.usd_per_hour
    pricing = None if usd is None else price_run(run, usd)
    facts = [
        Fact(
            v.objective.name,
            say.seconds(v.reached_s),
            f"limit {say.limit(v.objective.limit_s)}",
            "met" if v.met else "missed",
        )
        for v in verdicts
    ]
    facts += [
        Fact("cost", "no price" if usd is None else say.per_hour(usd), d.label),
        Fact("$ per Mtok", "no price" if pricing is None else say.dollars(pricing.usd_per_mtok_output), "output"),
        Fact("busy", say.percent(run.utilisation), f"KV at most {say.percent(run.kv_usage_max)}"),
        Fact("goodput", say.percent(plan.slo.goodput(run)), "of requests meet every limit"),
    ]
    return {
        "facts": wire.facts(facts),
        "holds": all(v.met for v in verdicts),
        "items": [wire.item(latency_cdf(run, plan.slo))],
        "wall_s": time.perf_counter() - started,
    }


# Files to take away -------------------------------------------------------------------------------------------------


def _html(job: Job, plan: Plan) -> str:
    from gambrel.report import page_html

    return page_html(report_of(job, plan))


def _json(job: Job, plan: Plan) -> str:  # noqa: ARG001 - all exports are asked alike
    from gambrel.faces.documents import dump, plan_document

    return dump(plan_document(plan))


def _plan_file(job: Job, plan: Plan) -> Any:
    from gambrel.plan.file import Asked as Question
    from gambrel.plan.file import objective_text, plan_file

    slo = [objective_text(o) for o in plan.slo.objectives]
    return plan_file(plan, Question(model=job.asked.model, source=job.workload.source, slo=slo), job.workload)


def _toml(job: Job, plan: Plan) -> str:
    return str(_plan_file(job, plan).text(as_json=False))


def _form(form: str) -> Callable[[Job, Plan], str]:
    def made(job: Job, plan: Plan) -> str:
        from gambrel.faces.plan_outputs import exported

        return exported(_plan_file(job, plan), plan.chosen.deployment, form)

    return made


EXPORTS: Final[dict[str, tuple[str, str, Callable[[Job, Plan], str]]]] = {
    "report.html": ("Report, one file", "text/html", _html),
    "plan.toml": ("Plan file", "application/toml", _toml),
    "plan.json": ("Every figure, JSON", "application/json", _json),
    "plan.md": ("Summary, Markdown", "text/markdown", _form("markdown")),
    "vllm.sh": ("vLLM", "text/x-shellscript", _form("vllm")),
    "sglang.sh": ("SGLang", "text/x-shellscript", _form("sglang")),
    "trtllm.sh": ("TensorRT-LLM", "text/x-shellscript", _form("trtllm")),
    "kubernetes.yaml": ("Kubernetes", "application/yaml", _form("kubernetes")),
    "kserve.yaml": ("KServe", "application/yaml", _form("kserve")),
    "prometheus.yaml": ("Prometheus rules", "application/yaml", _form("prometheus")),
}
"""What a plan can be taken away as: file name -> (title, media type, writer)."""


# Routes -------------------------------------------------------------------------------------------------------------


async def begin(request: Request) -> Response:
    """POST of what to plan for: the id of the search."""
    asked = wire.asked(Asked, await wire.body(request))
    return wire.answer({"id": await run_in_threadpool(start, asked)}, 202)


async def events(request: Request) -> Response:
    """GET of a search's events as they happen (server-sent events), ending with the last one."""
    return wire.stream(job_of(request.path_params["id"]), request)


async def cancel(request: Request) -> Response:
    """DELETE of a search: it stops at its next part."""
    job_of(request.path_params["id"]).stop.set()
    return wire.answer({"cancelled": True})


async def found(request: Request) -> Response:
    """GET of a plan."""
    job, plan = plan_of(request.path_params["id"])
    return await run_in_threadpool(lambda: wire.answer(plan_answer(job, plan)))


async def whatif(request: Request) -> Response:
    """GET of a what-if on a plan."""
    job, plan = plan_of(request.path_params["id"])
    asked = wire.asked(WhatIf, dict(request.query_params))
    return await run_in_threadpool(lambda: wire.answer(whatif_answer(job, plan, asked)))


async def export(request: Request) -> Response:
    """GET of one of ``EXPORTS``."""
    job, plan = plan_of(request.path_params["id"])
    name = request.path_params["name"]
    if name not in EXPORTS:
        raise GambrelError(f"no such file {name[:60]!r}; there are {', '.join(EXPORTS)}")
    _, media_type, write = EXPORTS[name]
    text = await run_in_threadpool(write, job, plan)
    headers = {"content-disposition": f'attachment; filename="gambrel-{name}"'}
    return Response(text, 200, headers, f"{media_type}; charset=utf-8")


ROUTES: Final = (
    Route("/api/plan", begin, methods=["POST"]),
    Route("/api/plan/{id}", found, methods=["GET"]),
    Route("/api/plan/{id}", cancel, methods=["DELETE"]),
    Route("/api/plan/{id}/events", events),
    Route("/api/plan/{id}/whatif", whatif),
    Route("/api/plan/{id}/export/{name}", export),
)
