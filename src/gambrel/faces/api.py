"""The nouns in a person's words: names and plain values in, core objects out.

The command line and ``import gambrel as gb`` are both thin layers over these functions. This is where the rooms
are wired together: a name becomes an accelerator with its price, a deployment gets the efficiency constants of its
accelerator, and that makes a cost model.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambrel.core.accelerator import Accelerator
from gambrel.core.deployment import Deployment
from gambrel.core.model import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gambrel.calibrate.profile import Profile
    from gambrel.core.curve import Curve
    from gambrel.core.plan import Plan
    from gambrel.core.run import Run
    from gambrel.core.slo import SLO
    from gambrel.core.step import CostModel
    from gambrel.core.trace import Traced
    from gambrel.core.workload import Workload
    from gambrel.engine import Watch
    from gambrel.engine.fleet import FleetRun
    from gambrel.engine.shards import Tally
    from gambrel.plan.several import Together
    from gambrel.report import Report, TrafficView

__all__ = [
    "accelerator",
    "accelerators",
    "cost_model",
    "curve",
    "default_accelerators",
    "deployment",
    "fleet",
    "fleet_shards",
    "load_workload",
    "model",
    "plan",
    "plan_together",
    "pricer",
    "profile",
    "read_workload",
    "report_of",
    "simulate",
    "slo",
    "trace",
    "with_multi_token_prediction",
]

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONTEXTS = (512, 2048, 8192, 32768)
CURVE_BATCHES = tuple(sorted({round(2 ** (i / 8)) for i in range(81)}))  # to 1,024, eight a doubling


def model(name: str | Path | Model) -> Model:
    """A model by shipped name, ``config.json``, directory, GGUF file or safetensors index.

    Raises:
        CatalogError: unknown name (the nearest three are named), or a config that lacks a needed field.
    """
    if isinstance(name, Model):
        return name
    from gambrel.catalog.models import model as load

    return load(str(name))


def accelerator(
    name: str | Accelerator, *, price: float | None = None, provider: str | None = None, files: Sequence[Path] = ()
) -> Accelerator:
    """An accelerator by id or by the spelling people use, with its price per hour.

    ``this-machine`` is the processor this runs on, its rates measured in about a second. ``price`` overrides the
    catalog's dollars per accelerator-hour; ``files`` are user catalogs.

    Raises:
        CatalogError: unknown name or a bad user file.
    """
    if isinstance(name, Accelerator):
        return name
    if name == "this-machine":
        from gambrel.measure.this_machine import this_machine

        return this_machine()
    from gambrel.catalog.accelerators import accelerator as load

    return load(name, price=price, provider=provider, files=files)


def accelerators(files: Sequence[Path] = ()) -> Mapping[str, Accelerator]:
    """Every accelerator of the catalog and of the user's files, by id."""
    from gambrel.catalog.accelerators import accelerators as load

    return load(files=files)


def default_accelerators(files: Sequence[Path] = ()) -> tuple[Accelerator, ...]:
    """What a plan searches when nobody names a GPU: those people can rent for this.

    NVIDIA and AMD accelerators from 2020 on with a known price and specification of confidence A or B, and whatever
    the person's own files add with a price.
    """
    chosen = []
    for a in accelerators(files).values():
        shipped = a.confidence in {"A", "B"} and a.vendor in {"NVIDIA", "AMD"} and (a.year or 0) >= 2020
        if a.price is not None and (shipped or a.confidence == "user"):
            chosen.append(a)
    return tuple(sorted(chosen, key=lambda a: a.name))


def profile(path: str | Path | Profile | None) -> Profile | None:
    """Constants that ``gambrel calibrate`` fitted and wrote to a file; None for none.

    Raises:
        WorkloadError: the file cannot be read, or a field of it is no profile's.
    """
    from gambrel.calibrate.profile import Profile, load_profile

    return path if path is None or isinstance(path, Profile) else load_profile(Path(path))


def cost_model(
    deployment: Deployment,
    *,
    form: str = "serial",
    textbook: bool = False,
    operators: bool = False,
    profile: Profile | None = None,
) -> CostModel:
    """The analytic cost model of a deployment with the fitted constants of its accelerator.

    ``textbook`` takes every peak as reached and no overhead: the roofline of the blackboard. A ``profile`` moves the
    constants of the accelerator and engine it was fitted on, and no other's. ``operators`` prices steps by NVIDIA's
    operator times instead: see :mod:`gambrel.calibrate.operators`.
    """
    from gambrel.cost import Roofline

    if textbook:
        from gambrel.core.efficiency import ideal

        return Roofline(deployment, ideal(), form=form)
    from gambrel.catalog.efficiency import efficiency

    constants = efficiency(deployment.accelerator, deployment.engine, deployment.engine_version)
    if profile is not None:
        constants = profile.apply(constants, deployment)
    if operators:
        from gambrel.calibrate.operators import OperatorTimes

        return OperatorTimes(deployment, constants)
    return Roofline(deployment, constants, form=form)


def fitting(priced: CostModel) -> CostModel:
    """The cost model as it is, where the model fits the memory of its accelerators.

    Raises:
        DoesNotFit: not one block of KV cache is left, on decode or on prefill workers; with the bytes.
    """
    from gambrel.core.step import WorkerCost
    from gambrel.cost import require_fit

    require_fit(priced.memory(), priced.deployment.decode_pool)
    if priced.deployment.disaggregated and isinstance(priced, WorkerCost):
        fitting(priced.prefill())
    return priced


class Pricer:
    """Deployments to cost models, remembering those made for equal settings; it can be sent to another process."""

    _MOST = 512  # cost models remembered: each holds its tables, up to a megabyte

    def __init__(self, form: str = "serial", profile: Profile | None = None) -> None:
        self._form, self._profile = form, profile
        self._made: dict[tuple[Any, ...], CostModel] = {}

    def __call__(self, d: Deployment) -> CostModel:
        """The cost model of a deployment with the fitted constants of its accelerator."""
        key = (id(d.model), d.accelerator.name, *(getattr(d, name) for name in _PRICED))
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= self._MOST:
                self._made.clear()
            found = self._made[key] = cost_model(d.with_(replicas=1), form=self._form, profile=self._profile)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Without what was made: another process makes its own."""
        return {"_form": self._form, "_profile": self._profile, "_made": {}}


_PRICED = tuple(f.name for f in fields(Deployment) if f.name not in {"model", "accelerator", "replicas", "routing"})
"""What a step's cost and a replica's limits can depend on: all but who serves whom."""


def pricer(*, form: str = "serial", profile: Profile | None = None) -> Callable[[Deployment], CostModel]:
    """A function from deployments to cost models, remembering the one it made for equal settings."""
    return Pricer(form, profile)


def deployment(model_name: str | Model, gpu: str | Accelerator, **settings: Any) -> Deployment:
    """A deployment from names; ``settings`` are the fields of :class:`~gambrel.core.deployment.Deployment`.

    Weights default to the checkpoint's own format, or 16 bits in the format the device has; the scheduler's policy to
    that of the engine.

    Raises:
        DeploymentError: settings that contradict each other, or a tensor-parallel degree that no engine accepts.
    """
    from gambrel.cost.shards import require_tp

    m, a = model(model_name), accelerator(gpu)
    sixteen = "bf16" if "bf16" in a.peak_flops else "fp16"
    settings.setdefault("weights", m.checkpoint_format if m.checkpoint_format not in {"bf16", "fp16"} else sixteen)
    settings.setdefault("kv", sixteen)
    if "policy" not in settings and "engine" in settings:
        from gambrel.engine import policy_of

        settings["policy"] = policy_of(settings["engine"], settings.get("engine_version", Deployment.engine_version))
    made = Deployment(m, a, **settings)
    require_tp(made)
    return made


def curve(
    deployment: Deployment,
    batches: Iterable[int] = BATCHES,
    contexts: Iterable[int] = CONTEXTS,
    *,
    form: str = "serial",
    textbook: bool = False,
    operators: bool = False,
    profile: Profile | None = None,
) -> Curve:
    """Latency, memory and cost per token against batch and context of one replica in steady decode.

    The named points (ridge, balance, wall) are those of the first context.
    """
    import numpy as np

    from gambrel.cost import curve as draw

    one = deployment.with_(replicas=1)
    priced = cost_model(one, form=form, textbook=textbook, operators=operators, profile=profile)
    fitting(priced)
    b, c = np.array(sorted(set(batches)), np.int64), np.array(list(dict.fromkeys(contexts)), np.int64)
    return draw(priced, b, c, one.usd_per_hour)


def read_workload(path: str | Path, *, format: str | None = None, columns: Mapping[str, str] | None = None) -> Workload:  # noqa: A002 - the word people use
    """A request log as a workload; see :func:`gambrel.traffic.read_workload`."""
    from gambrel.traffic import read_workload as read

    return read(Path(path), format=format, columns=columns)


def load_workload(spec: str | Path | Workload, *, columns: Mapping[str, str] | None = None) -> Workload:
    """A workload from a file (its ``columns`` by meaning), a profile like ``chat:rate=5``, or as it is."""
    from gambrel.core.workload import Workload as Noun

    if isinstance(spec, Noun):
        return spec
    from gambrel.traffic import load_workload as load

    return load(str(spec), columns=columns)


def simulate(
    deployment: Deployment,
    workload: str | Path | Workload,
    priced: CostModel | None = None,
    *,
    watch: Watch | None = None,
) -> Run:
    """Replay a workload on a deployment, with its analytic cost model or one of your own.

    ``watch``: a :class:`gambrel.engine.Watch` that says how far it is, and may end it early, from another thread.
    """
    from gambrel.engine import simulate as replay

    return replay(deployment, fitting(priced or cost_model(deployment)), load_workload(workload), watch=watch)


def with_multi_token_prediction(deployment: Deployment) -> Deployment:
    """The deployment with the guesses of the model's own MTP module, at the acceptance rate that is published.

    Raises:
        CatalogError: the model has no such module, or nobody published how often its guesses hold.
        DeploymentError: it guesses already.
    """
    from gambrel.catalog.speculation import multi_token_prediction
    from gambrel.core.errors import DeploymentError

    if deployment.draft_tokens:
        raise DeploymentError("the deployment has draft tokens of its own; take those or the model's MTP, not both")
    found = multi_token_prediction(deployment.model)
    return deployment.with_(draft_tokens=found.draft_tokens, acceptance=found.acceptance, draft_cost=found.draft_cost)


def fleet(
    deployment: Deployment, workload: str | Path | Workload, priced: CostModel | None = None, **settings: Any
) -> FleetRun:
    """A fleet over time; ``settings`` are those of :func:`gambrel.engine.fleet.serve_fleet`.

    ``autoscale`` (:class:`gambrel.engine.autoscaling.Autoscale`), ``start_up_s``, ``failures``
    (:class:`gambrel.engine.fleet.Failures`), ``horizon_s``.
    """
    from gambrel.engine.fleet import simulate_fleet

    priced = fitting(priced or cost_model(deployment))
    return simulate_fleet(deployment, priced, load_workload(workload), **settings)


def fleet_shards(
    deployment: Deployment, source: Callable[[int], Workload | None], priced: CostModel | None = None, **settings: Any
) -> Tally:
    """A fleet too large to hold, replica by replica; ``source`` makes the requests of each.

    ``source``: :class:`gambrel.traffic.Split`, or any function; ``settings``: see
    :func:`gambrel.engine.shards.serve_shards`.
    """
    from gambrel.engine.shards import serve_shards
    from gambrel.engine.simulation import prepared

    priced = fitting(priced or cost_model(deployment))
    table, limits = prepared(deployment, priced)
    return serve_shards(table, limits, source, deployment.replicas, basis=priced.basis, **settings)


def report_of(plan: Plan, workload: Workload, *, traced: bool = False, profile: Profile | None = None) -> Report:
    """The page of a plan: the decision, the log behind it, the chosen deployment's curve, the trace if asked."""
    import numpy as np

    from gambrel.report import plan_report

    chosen = plan.chosen.deployment
    held = int(np.ceil(float((workload.prompt_tokens + workload.output_tokens / 2).mean())))
    contexts = (held, max(64, held // 4), held * 4, held * 16)
    drawn = curve(chosen, CURVE_BATCHES, contexts, form="max", profile=profile)
    told = trace(plan, workload, profile) if traced else ()
    return plan_report(plan, drawn, traffic_view(workload), told)


def trace(plan: Plan, workload: str | Path | Workload, profile: Profile | None = None) -> tuple[Traced, ...]:
    """Every headline figure of a plan as a tree down to its inputs; see :func:`gambrel.plan.trace.plan_trace`."""
    from gambrel.plan.trace import plan_trace

    return plan_trace(plan, load_workload(workload), cost_model(plan.chosen.deployment, profile=profile))


def traffic_view(workload: Workload) -> TrafficView | None:
    """A log as the charts need it; None for a closed loop, which has no arrivals of its own."""
    if workload.closed_loop:
        return None
    from gambrel.report import TrafficView
    from gambrel.traffic import describe

    return TrafficView.of(workload, describe(workload))


def slo(*objectives: str) -> SLO:
    """Objectives from text like ``ttft.p95<=1s``."""
    from gambrel.core import slo as slos

    return slos.SLO.parse(objectives)


def plan(
    model_name: str | Model,
    workload: str | Path | Workload,
    objectives: SLO | Iterable[str],
    *,
    gpus: Iterable[str | Accelerator] | None = None,
    progress: Callable[[str], None] = lambda _: None,
    backend: str = "auto",
    address: str | None = None,
    resume: str | Path | None = None,
    profile: Profile | None = None,
    **axes: Any,
) -> Plan:
    """The cheapest deployment that meets the objectives; ``axes`` are fields of :class:`gambrel.plan.Space`.

    ``backend`` (with ``address``) says who simulates, ``resume`` is a file that the search writes and takes up again:
    see :mod:`gambrel.faces.backends` and :mod:`gambrel.faces.search_file`. Neither changes the answer. ``profile``
    holds constants of your own: see :func:`profile`.

    Raises:
        DoesNotFit, InfeasiblePlan: with the reason in one line.
    """
    from gambrel.core import slo as slos
    from gambrel.plan import Space
    from gambrel.plan import plan as search

    devices = default_accelerators() if gpus is None else tuple(accelerator(g) for g in gpus)
    target = objectives if isinstance(objectives, slos.SLO) else slos.SLO.parse(objectives)
    from gambrel.faces.backends import workers
    from gambrel.faces.search_file import SearchFile

    with workers(backend, address) as pool:
        return search(
            model(model_name),
            load_workload(workload),
            target,
            Space(devices, **axes),
            pricer(profile=profile),
            progress=progress,
            pool=pool,
            journal=None if resume is None else SearchFile(Path(resume)),
        )


def plan_together(
    services: Iterable[tuple[str | Model, str | Path | Workload, SLO | Iterable[str]]],
    *,
    gpus: Iterable[str | Accelerator] | None = None,
    backend: str = "auto",
    address: str | None = None,
    **axes: Any,
) -> Together:
    """The cheapest fleets for several models, each ``(model, workload, objectives)``, under what can be had together.

    ``axes`` are fields of :class:`gambrel.plan.Space`; ``available`` and ``max_gpus`` count all models.

    Raises:
        InfeasiblePlan: with the reason in one line.
    """
    from gambrel.core import slo as slos
    from gambrel.faces.backends import workers
    from gambrel.plan import Space
    from gambrel.plan.several import Service
    from gambrel.plan.several import plan_together as put_together

    devices = default_accelerators() if gpus is None else tuple(accelerator(g) for g in gpus)
    asked = [
        Service(model(name), load_workload(log), wanted if isinstance(wanted, slos.SLO) else slos.SLO.parse(wanted))
        for name, log, wanted in services
    ]
    with workers(backend, address) as pool:
        return put_together(asked, Space(devices, **axes), pricer(), pool)
