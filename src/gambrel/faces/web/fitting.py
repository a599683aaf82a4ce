"""The Measure view's second half: a measured run held against the model, and the model's constants fitted to it.

What served the run is the person's word (model, accelerator, formats, limits); every level is then predicted through
the simulator as it was driven. A fit is ``gambrel calibrate`` on one run: constants with intervals, errors on levels it
had not seen, a refusal of levels that the client bound, and a profile to take away.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from gambrel.core.errors import WorkloadError
from gambrel.engine import policy_of
from gambrel.faces import api
from gambrel.faces.web import wire
from gambrel.faces.web.jobs import Jobs
from gambrel.faces.web.questions import Question
from gambrel.faces.web.runs import LIBRARY, RunName
from gambrel.faces.web.setup import Setup
from gambrel.report import Fact, Report, Section, Table
from gambrel.report import humanise as say
from gambrel.report.prediction import Compared, measured_and_predicted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.responses import Response

    from gambrel.calibrate.evidence import Point
    from gambrel.calibrate.fit import Calibration
    from gambrel.calibrate.next_level import NextLevel
    from gambrel.calibrate.profile import Profile
    from gambrel.core.deployment import Deployment
    from gambrel.core.efficiency import Efficiency
    from gambrel.faces.web.jobs import Job

__all__ = ["JOBS", "QUESTIONS", "FitRequest", "Served", "profile_of_fit"]

SHIPPED: Final = "shipped"
FITTED: Final = "fitted"
METRICS: Final = ("tpot", "ttft", "output_tok_s")
NAMES: Final = {"tpot": "TPOT", "ttft": "TTFT", "e2e": "E2E", "output_tok_s": "tokens/s"}


class Served(Setup, frozen=True, kw_only=True):
    """What served a run: one replica, with the limits its engine was started with."""

    engine: Annotated[str, msgspec.Meta(min_length=1, max_length=40)] = "vllm"
    engine_version: Annotated[str, msgspec.Meta(max_length=40)] = "0.19"
    max_num_seqs: Annotated[int, msgspec.Meta(ge=1, le=16_384)] = 256
    max_num_batched_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 8192
    leave_out_bound: bool = False

    def server(self) -> Deployment:
        """The deployment.

        Raises:
            CatalogError, DeploymentError: an unknown name, or settings that contradict each other.
        """
        alike = {name: getattr(self, name) for name in Setup.__struct_fields__}
        return Setup(**alike).deployment().with_(
            engine=self.engine, engine_version=self.engine_version,
            policy=policy_of(self.engine, self.engine_version), max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=max(self.max_num_batched_tokens, self.max_num_seqs),
        )  # fmt: skip


class FitRequest(Served, frozen=True, kw_only=True):
    """The run to fit to; ``leave_out_bound`` drops levels that the client bound instead of refusing them."""

    run: RunName


def points_of(name: str, served: Served) -> list[Point]:
    """The levels of a run as evidence about what served it.

    Raises:
        GambrelError: no such run, nothing answered in it, or an unknown deployment.
    """
    from gambrel.faces.calibrate_commands import points_of_recording

    found = points_of_recording(LIBRARY.recording(name), served.server())
    if served.leave_out_bound:
        found = [p for p in found if not p.client_bound]
    if not found:
        raise WorkloadError(f"{name}: no level of it says anything about the server")
    return found


# Measured against predicted -----------------------------------------------------------------------------------------


def predicted(name: str, asked: Served) -> dict[str, Any]:
    """A run against the prediction for what served it: the model's curve over the measured points, with errors."""
    from gambrel.faces.api import cost_model

    points = points_of(name, asked)
    prices: dict[str, Callable[[Deployment], Any]] = {SHIPPED: cost_model}
    charts, figures = overlay(points, prices)
    errors = errors_of(points, figures[SHIPPED])
    bound = [p.label for p in points if p.client_bound]
    return {
        "facts": wire.facts(error_facts(errors)),
        "items": [*(wire.item(spec) for spec in charts), wire.item(level_table(points, figures))],
        "basis": f"Predicted for {points[0].deployment.model.name} on {points[0].deployment.label}: "
        f"{cost_model(points[0].deployment).basis}.",
        "bound": bound,
    }


def overlay(
    points: Sequence[Point], prices: Mapping[str, Callable[[Deployment], Any]]
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, float]]]]:
    """Charts of every metric, and what each kind of constants says of each point."""
    from gambrel.calibrate.predict import simulated

    figures = {
        kind: [simulated(p.deployment, price(p.deployment), p.workload, p.measured) for p in points]
        for kind, price in prices.items()
    }
    groups: dict[tuple[int, int, bool], list[int]] = {}
    for i, p in enumerate(points):
        prompt, output = (round(float(c.mean())) for c in (p.workload.prompt_tokens, p.workload.output_tokens))
        groups.setdefault((prompt, output, bool(p.workload.closed_loop)), []).append(i)
    charts = []
    for metric in METRICS:
        shown = []
        for key, rows in groups.items():
            said = {kind: [found[i] for i in rows] for kind, found in figures.items()}
            shown.append(_compared(metric, key, [points[i] for i in rows], prices, said))
        spec = measured_and_predicted(metric, [g for g in shown if g.measured])
        if spec is not None:
            charts.append(spec)
    return charts, figures


def _load(point: Point) -> float:
    return float(point.workload.closed_loop) if point.workload.closed_loop else point.workload.rate_rps


def _compared(
    metric: Any,
    key: tuple[int, int, bool],
    points: Sequence[Point],
    prices: Mapping[str, Callable[[Deployment], Any]],
    figures: Mapping[str, Sequence[Mapping[str, float]]],
) -> Compared:
    """The points of one length, and the lines: at the measured loads, and between them for a closed loop."""
    prompt, output, closed = key
    rows = sorted((p for p in enumerate(points) if metric in p[1].measured), key=lambda p: _load(p[1]))
    measured = [(_load(p), p.measured[metric].value, p.label) for _, p in rows]
    lines = {}
    for kind, price in prices.items():
        line = {_load(p): figures[kind][i][metric] for i, p in rows}
        if closed and len(line) > 1:
            line |= _between(metric, prompt, output, sorted(line), rows[0][1], price)
        lines[kind] = sorted(line.items())
    return Compared(f"{say.count(prompt)}-token prompts", measured, lines, closed=closed)


def _between(
    metric: str, prompt: int, output: int, loads: Sequence[float], like: Point, price: Callable[[Deployment], Any]
) -> dict[float, float]:
    """The metric at the doublings between the measured loads."""
    from gambrel.calibrate.evidence import point_of_lengths
    from gambrel.calibrate.predict import simulated

    found = {}
    users = 2 ** math.ceil(math.log2(loads[0]))
    while users < loads[-1]:
        if users not in loads:
            wanted = {metric: like.measured[metric]}
            p = point_of_lengths(
                like.deployment, wanted, prompt_tokens=prompt, output_tokens=output, users=users, staggered=True
            )
            found[float(users)] = simulated(p.deployment, price(p.deployment), p.workload, wanted)[metric]
        users *= 2
    return found


def errors_of(points: Sequence[Point], figures: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Signed errors (0.05 = predicted 5 % too high) by metric, in the order of the points that have it."""
    return {
        m: [f[m] / p.measured[m].value - 1.0 for p, f in zip(points, figures, strict=True) if m in p.measured]
        for m in METRICS
        if any(m in p.measured for p in points)
    }


def error_facts(errors: Mapping[str, Sequence[float]]) -> list[Fact]:
    """Median and largest error of each metric."""
    found = []
    for metric, signed in errors.items():
        worst = max(signed, key=abs)
        found.append(
            Fact(
                f"{NAMES[metric]} off by",
                say.percent(median(abs(e) for e in signed)),
                f"median of {len(signed)}; at worst {say.signed_percent(worst)}",
            )
        )
    return found


def level_table(points: Sequence[Point], figures: Mapping[str, Sequence[Mapping[str, float]]]) -> Table:
    """Level by level: measured, predicted, error."""
    kinds = list(figures)
    columns = ("level", "metric", "measured", *(c for k in kinds for c in (f"predicted, {k}", "error")))
    rows = []
    for i, p in enumerate(points):
        for metric in (m for m in METRICS if m in p.measured):
            value = p.measured[metric].value
            cells = [c for k in kinds for c in (_told(figures[k][i][metric], metric),
                                                say.signed_percent(figures[k][i][metric] / value - 1.0))]  # fmt: skip
            label = p.label + (" (client-bound)" if p.client_bound else "")
            rows.append((label, NAMES[metric], _told(value, metric), *cells))
    sentence = "Means of each level. An error above 0 means that the prediction is higher than what was measured."
    return Table("Level by level", sentence, columns, tuple(rows), (False, False, *(True,) * (len(columns) - 2)))


def _told(value: float, metric: str) -> str:
    return say.rate(value, "tokens") if metric == "output_tok_s" else say.seconds(value)


# Fitting ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """What came of a fit."""

    asked: FitRequest
    calibration: Calibration
    advice: tuple[NextLevel, ...]
    report: Report


JOBS: Final[Jobs[Fit]] = Jobs("fit")


def start(asked: FitRequest) -> dict[str, Any]:
    """Fit the model's constants to a run: the id of the fit."""
    from gambrel.calibrate.evidence import require_possible, require_server_bound

    points = points_of(asked.run, asked)
    require_server_bound(points)
    require_possible(points)
    return {"id": JOBS.start(lambda job: fitted(asked, points, job))}


def fitted(asked: FitRequest, points: Sequence[Point], job: Job[Fit]) -> Fit:
    """The constants, what they change, and what to measure next."""
    from gambrel.calibrate.constants import moved
    from gambrel.calibrate.fit import calibrate
    from gambrel.calibrate.next_level import next_levels
    from gambrel.catalog.efficiency import efficiency
    from gambrel.cost import Roofline

    def base(d: Deployment) -> Efficiency:
        job.check()
        return efficiency(d.accelerator, d.engine, d.engine_version)

    job.say(f"fitting to {len(points)} levels")
    found = calibrate(points, base)
    job.say("drawing the fitted curve")
    prices: dict[str, Callable[[Deployment], Any]] = {
        SHIPPED: api.cost_model,
        FITTED: lambda d: Roofline(d, moved(base(d), found.multiples)),
    }
    charts, figures = overlay(points, prices)
    job.say("choosing what to measure next")
    advice = tuple(next_levels(found))
    report = fit_report(asked, found, advice, (*charts, level_table(points, figures)))
    return Fit(asked, found, advice, report)


def fit_report(
    asked: FitRequest, found: Calibration, advice: Sequence[NextLevel], drawn: Sequence[dict[str, Any] | Table]
) -> Report:
    """A fit as a report: what moved, how far to believe it, what remains open."""
    from gambrel.calibrate.fit import error_document

    d = found.points[0].deployment
    groups = (("shipped constants", found.default_errors), ("fitted", found.in_sample),
              ("levels left out", found.held_out))  # fmt: skip
    errors = tuple(
        (label, NAMES.get(m, m), str(e["n"]), say.percent(e["median_ape"]), say.percent(e["p90_ape"]),
         say.signed_percent(e["bias"]))
        for label, logs in groups
        for m, e in error_document(logs).items()
    )  # fmt: skip
    constants = tuple(
        (p.name, say.multiple(p.value), f"{say.multiple(p.low)} to {say.multiple(p.high)}",
         "these measurements" if p.told else "nothing here: default kept")
        for p in found.parameters
    )  # fmt: skip
    decided = sum(p.told for p in found.parameters)
    before, after = (_typical(e) for e in (found.default_errors, found.held_out))
    alike = [f"{a} and {b} cannot be told apart by these levels." for a, b, _ in found.alike]
    return Report(
        title=f"{d.model.name.rpartition('/')[2]} on {d.accelerator.title}: fitted",
        subtitle=f"{len(found.points)} levels of {asked.run}; {d.engine} {d.engine_version}, {d.label}",
        headline=(
            f"These levels decide {decided} of {len(found.parameters)} constants; the others keep their defaults.",
            f"Typical error {say.percent(before)} with shipped constants, {say.percent(after)} on levels not fitted.",
        ),
        facts=(
            Fact("error before", say.percent(before), "shipped constants, median"),
            Fact("error on unseen levels", say.percent(after), "each level by a fit without it, median"),
            Fact("constants decided", f"{decided} of {len(found.parameters)}", "the others keep their default"),
            Fact("spread from now on", say.percent(found.spread), "one sigma of a step"),
        ),
        sections=(
            Section("Measured and predicted", "", tuple(drawn)),
            Section(
                "The constants",
                " ".join(alike),
                (
                    Table(
                        "Constants, times their shipped default",
                        "The interval holds 95 %.",
                        ("constant", "value", "95 %", "decided by"),
                        constants,
                        (False, True, True, False),
                    ),
                    Table(
                        "Errors",
                        "Left out: each level predicted by a fit that never saw it.",
                        ("constants", "metric", "n", "median", "90th percentile", "bias"),
                        errors,
                        (False, False, True, True, True, True),
                    ),
                ),
            ),
            Section("Measure next", "", code="\n".join(n.advice for n in advice) or "nothing that would narrow much"),
        ),
        provenance=(f"Base: {api.cost_model(d).basis}.", "A profile changes nothing on another accelerator or engine."),
    )


def _typical(errors: Mapping[str, Any]) -> float:
    sizes = [abs(math.expm1(e)) for logs in errors.values() for e in logs]
    return median(sizes) if sizes else math.nan


def found(id: str) -> dict[str, Any]:  # noqa: A002 - the parameter of the address
    """A fit: its report, and the files on offer."""
    fit = JOBS.found(id)
    return {
        "report": wire.report_document(fit.report),
        "exports": [{"name": name, "title": title} for name, title in EXPORTS.items()],
    }


def profile_of_fit(key: str) -> Profile:
    """The profile that a fit amounts to; raises Unknown where the fit is gone."""
    from gambrel.calibrate.profile import profile_of

    return profile_of(JOBS.found(key).calibration)


EXPORTS: Final = {"profile.toml": "Profile, for --profile", "fit.html": "Report, one file"}


def export(id: str, name: str) -> Response:  # noqa: A002 - the parameter of the address
    """The profile of a fit, or its report as one file."""
    fit = JOBS.found(id)
    if name == "profile.toml":
        from gambrel.calibrate.profile import write_profile

        with tempfile.TemporaryDirectory(prefix="gambrel-") as folder:
            path = Path(folder) / name
            write_profile(profile_of_fit(id), path)
            return wire.file(path.read_text(encoding="utf-8"), name, "application/toml")
    if name == "fit.html":
        from gambrel.report import page_html

        return wire.file(page_html(fit.report), name, "text/html")
    raise wire.Unknown(f"no such file {name[:60]!r}; there are {', '.join(EXPORTS)}")


QUESTIONS: Final = (
    Question("GET", "/api/runs/{name}/predicted", predicted, query=Served),
    Question("POST", "/api/fit", start, body=FitRequest, status=202),
    Question("GET", "/api/fit/{id}", found),
    Question("GET", "/api/fit/{id}/export/{name}", export, media=("application/toml", "text/html")),
    *JOBS.questions("/api/fit"),
)
