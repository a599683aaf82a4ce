"""The plan as a file: what was asked, what was decided, what it should do, and everything to run it again.

A decision that lives in a terminal's scrollback cannot be reviewed, diffed or held to its word. The file is plain
values (TOML or JSON, the same document): the question (model, log, objectives), the deployment with every engine
setting, the price with its source, the log in figures, and what the simulation predicted with its intervals.
:mod:`gambrel.plan.check` simulates it again on another log; :mod:`~gambrel.plan.launch`,
:mod:`~gambrel.plan.manifests`, :mod:`~gambrel.plan.alerts` and :mod:`~gambrel.plan.summary` turn it into configuration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gambrel.core.deployment import Deployment
from gambrel.core.errors import DeploymentError
from gambrel.core.slo import SLO
from gambrel.core.version import __version__
from gambrel.plan.toml_text import toml_text
from gambrel.plan.worth import in_flight_at_break

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gambrel.core.accelerator import Accelerator
    from gambrel.core.model import Model
    from gambrel.core.plan import Candidate, Plan
    from gambrel.core.workload import Workload

__all__ = [
    "FORMAT",
    "Asked",
    "Figures",
    "Loser",
    "PlanFile",
    "Predicted",
    "PredictedShare",
    "Price",
    "plan_file",
    "read_plan_file",
]

FORMAT = "gambrel-plan-1"
LOSERS_KEPT = 12

HEAD = """# A deployment plan written by gambrel {version}. Seconds, bytes, tokens and dollars.
# Run it again, on this log or the next:  gambrel plan --check THIS_FILE --workload LOG   (status 1: it no longer holds)
# Turn it into configuration:             gambrel export THIS_FILE --as kubernetes

"""


@dataclass(frozen=True)
class Asked:
    """The question, as it was typed: enough to ask it again. ``source`` is the log or profile, empty for users."""

    model: str
    source: str
    slo: list[str]
    catalog: list[str] = field(default_factory=list)
    confidence: float = 0.5
    spare: int = 0


@dataclass(frozen=True)
class Price:
    """Dollars per accelerator-hour with where they come from."""

    usd_per_gpu_hour: float
    usd_per_hour: float
    basis: str
    source: str = ""
    as_of: str = ""
    confidence: str = ""


@dataclass(frozen=True)
class Figures:
    """A log in the figures a plan depends on.

    ``peak_to_mean_60s`` is the busiest minute's arrivals over the mean minute's; null where the log is shorter than
    two minutes or a closed loop. Lengths are tokens by statistic.
    """

    name: str
    num_requests: int
    span_s: float
    prompt_tokens: dict[str, float]
    output_tokens: dict[str, float]
    users: int = 0
    rate_rps: float | None = None
    peak_to_mean_60s: float | None = None

    @classmethod
    def of(cls, workload: Workload) -> Figures:
        """Sum up a workload."""
        users = workload.closed_loop
        return cls(
            name=workload.name,
            num_requests=len(workload),
            span_s=workload.span_s,
            rate_rps=None if users else finite(workload.rate_rps),
            peak_to_mean_60s=None if users else busiest_minute(workload),
            users=users,
            prompt_tokens=lengths(workload.prompt_tokens),
            output_tokens=lengths(workload.output_tokens),
        )


@dataclass(frozen=True)
class Predicted:
    """One objective's prediction: the statistic, its 80 % interval, and the load multiple at which it breaks.

    ``breaks_at`` is null when nothing breaks at the largest load tried; ``chance`` is the chance that it holds.
    """

    objective: str
    limit_s: float
    reached_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    breaks_at: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class PredictedShare:
    """The same of a floor of goodput: shares of the requests."""

    objective: str
    floor: float
    reached: float | None = None
    low: float | None = None
    high: float | None = None
    breaks_at: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Loser:
    """A runner-up: what it was, what it would cost, why it lost."""

    label: str
    lost_because: str
    usd_per_hour: float | None = None


@dataclass(frozen=True)
class PlanFile:
    """Everything of a plan that is worth keeping, in plain values; see the module's docstring.

    ``deployment`` holds the accelerator's id under ``gpu`` and every other field of
    :class:`~gambrel.core.deployment.Deployment` but the model under its own name. ``memory`` is bytes per
    accelerator. ``latency_s`` has every metric's percentiles under the log. ``in_flight_at_break`` is requests in
    flight per replica at the load where the first objective breaks (Little's law: rate times mean E2E).
    """

    format: str
    gambrel: str
    asked: Asked
    deployment: dict[str, Any]
    workload: Figures
    predicted: list[Predicted]
    floors: list[PredictedShare] = field(default_factory=list)
    label: str = ""
    basis: str = ""
    launch: str = ""
    measure_next: str = ""
    measure_command: str = ""
    price: Price | None = None
    usd_per_mtok_input: float | None = None
    usd_per_mtok_output: float | None = None
    utilisation: float | None = None
    goodput: float | None = None
    breaks_at: float | None = None
    chance: float | None = None
    in_flight_at_break: float | None = None
    kv_tokens: int = 0
    kv_usage_max: float | None = None
    max_prompt_tokens: int = 0
    max_total_tokens: int = 0
    memory: dict[str, float] = field(default_factory=dict)
    latency_s: dict[str, dict[str, float | None]] = field(default_factory=dict)
    fixes: list[str] = field(default_factory=list)
    losers: list[Loser] = field(default_factory=list)

    @property
    def slo(self) -> SLO:
        """The objectives.

        Raises:
            SLOError: the file's cannot be read.
        """
        return SLO.parse(self.asked.slo)

    @property
    def gpu(self) -> str:
        """The accelerator's id."""
        return str(self.deployment.get("gpu", ""))

    def settled(self, model: Model, accelerator: Accelerator) -> Deployment:
        """The deployment on the given model and accelerator, every setting as the file has it.

        Raises:
            DeploymentError: a setting this version does not know, or one that contradicts another.
        """
        known = {f.name for f in fields(Deployment)}
        settings = {k: v for k, v in self.deployment.items() if k not in {"gpu", "model"}}
        strange = sorted(set(settings) - known)
        if strange:
            raise DeploymentError(
                f"the plan file's deployment has settings unknown to gambrel {__version__}: {', '.join(strange)}"
            )
        return Deployment(model, accelerator, **settings)

    def text(self, *, as_json: bool = False) -> str:
        """The file as TOML with a comment that says how to use it, or as JSON."""
        document = msgspec.to_builtins(self)
        if as_json:
            return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
        return HEAD.format(version=self.gambrel) + toml_text(document)


def read_plan_file(data: bytes, name: str) -> PlanFile:
    """A plan file's bytes, TOML or JSON; ``name`` is what an error calls it.

    Raises:
        DeploymentError: it is neither, lacks a field, or is of a later format.
    """
    try:
        document = msgspec.json.decode(data) if data.lstrip()[:1] == b"{" else msgspec.toml.decode(data)
        found = msgspec.convert(document, PlanFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DeploymentError(f"{name}: not a plan file ({reason}); gambrel plan --out writes one") from None
    if found.format != FORMAT:
        raise DeploymentError(f"{name}: format {found.format!r}, this version reads {FORMAT}")
    return found


def plan_file(plan: Plan, asked: Asked, workload: Workload) -> PlanFile:
    """The file of a plan that was made for ``workload``."""
    c, d = plan.chosen, plan.chosen.deployment
    price = d.accelerator.price_for(d.tp)
    settings = {f.name: getattr(d, f.name) for f in fields(d) if f.name not in {"model", "accelerator"}}
    settings = {name: value for name, value in settings.items() if value is not None}  # TOML has no null
    pricing, measured, flight = c.pricing, plan.measurement, in_flight_at_break(plan)
    m, (times, shares) = c.memory, predictions(plan)
    return PlanFile(
        format=FORMAT,
        gambrel=__version__,
        asked=asked,
        deployment={"model": d.model.name, "gpu": d.accelerator.name, **settings},
        workload=Figures.of(workload),
        predicted=times,
        floors=shares,
        label=d.label,
        basis=plan.basis,
        launch=plan.launch,
        measure_next="" if measured is None else measured.because,
        measure_command="" if measured is None else measured.command,
        price=None
        if price is None or d.usd_per_hour is None
        else Price(price.usd_per_hour, d.usd_per_hour, price.basis, price.source, price.as_of, price.confidence),
        usd_per_mtok_input=None if pricing is None else finite(pricing.usd_per_mtok_input),
        usd_per_mtok_output=None if pricing is None else finite(pricing.usd_per_mtok_output),
        utilisation=None if pricing is None else finite(pricing.utilisation),
        goodput=finite(c.goodput),
        breaks_at=finite(min(plan.breaks_at.values(), default=math.inf)),
        chance=next((c.chance for c in plan.chances if c.objective == "all"), None),
        in_flight_at_break=None if flight is None else finite(flight),
        kv_tokens=m.kv_tokens,
        kv_usage_max=finite(plan.run.kv_usage_max),
        max_prompt_tokens=int(workload.prompt_tokens.max()),
        max_total_tokens=int((workload.prompt_tokens + workload.output_tokens).max()),
        memory={
            "memory_bytes": m.memory_bytes,
            "usable_bytes": m.usable_bytes,
            "weight_bytes": m.weight_bytes,
            "activation_bytes": m.activation_bytes,
            "reserve_bytes": m.reserve_bytes,
            "kv_cache_bytes": m.kv_cache_bytes,
        },
        latency_s={
            metric: {s: finite(x.percentile(s)) for s in ("mean", "p50", "p90", "p95", "p99", "max")}
            for metric, x in c.latency.items()
        },
        fixes=[f"{f.change}: {f.effect}" for f in plan.cheaper_fixes],
        losers=kept(plan.alternatives),
    )


def predictions(plan: Plan) -> tuple[list[Predicted], list[PredictedShare]]:
    """Every objective with what is known about it: those on times, and those on goodput."""
    times, shares = [], []
    for v in plan.chosen.verdicts:
        o, low_high = v.objective, plan.intervals.get(v.objective.name, (math.nan, math.nan))
        breaks = plan.breaks_at.get(o.name, math.inf)
        chance = next((c.chance for c in plan.chances if c.objective == o.name), None)
        reached, low, high, breaks_at = (finite(x) for x in (v.reached, *low_high, breaks))
        if o.is_floor:
            shares.append(PredictedShare(o.name, o.limit, reached, low, high, breaks_at, chance))
        else:
            times.append(Predicted(o.name, o.limit, reached, low, high, breaks_at, chance))
    return times, shares


def kept(alternatives: Iterable[Candidate]) -> list[Loser]:
    """The best row of each accelerator, in the order they lost."""
    best: dict[str, Loser] = {}
    for c in alternatives:
        usd = finite(c.usd_per_hour) if c.stage == "simulated" else None
        best.setdefault(c.deployment.accelerator.name, Loser(c.deployment.label, c.lost_because, usd))
    return list(best.values())[:LOSERS_KEPT]


def finite(value: float) -> float | None:
    """The number to six digits, or None where it is infinite or undefined (JSON has neither).

    More digits than a prediction has would make two plans differ in every line.
    """
    return float(f"{value:.6g}") if math.isfinite(value) else None


def lengths(tokens: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, float]:
    """Mean, percentiles and maximum of a length column."""
    p50, p90, p99 = (float(f"{x:.6g}") for x in np.percentile(tokens, (50, 90, 99)))
    return {"mean": float(f"{tokens.mean():.6g}"), "p50": p50, "p90": p90, "p99": p99, "max": float(tokens.max())}


def busiest_minute(workload: Workload) -> float | None:
    """Arrivals of the busiest full minute over the mean of all full minutes; None below two minutes."""
    at = workload.arrival_s - workload.arrival_s[0]
    minutes = int(at[-1] // 60.0)
    if minutes < 2:
        return None
    counts = np.bincount((at[at < 60.0 * minutes] // 60.0).astype(np.int64), minlength=minutes)
    return finite(float(counts.max() / counts.mean()))


def by_name(figures: Mapping[str, float], name: str) -> float:
    """A length statistic, NaN where a hand-written file leaves it out."""
    return float(figures.get(name, math.nan))
