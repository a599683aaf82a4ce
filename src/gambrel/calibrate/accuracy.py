"""The accuracy page: errors on published measurements, source by source, with the bad rows and their known causes."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from gambrel.calibrate.replay import REPLAY_HEAD
from gambrel.calibrate.suspicious import suspicious
from gambrel.calibrate.validate import errors_of
from gambrel.catalog.accelerators import accelerator
from gambrel.catalog.efficiency import constants
from gambrel.cost.shards import fullest_rank_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gambrel.calibrate.carried import Carried
    from gambrel.calibrate.replay import Replayed
    from gambrel.calibrate.validate import Comparison, Validation
    from gambrel.core.deployment import Deployment

__all__ = ["Decision", "accuracy_page", "classes", "decision_regret", "kind_of", "likely_cause"]

_NVIDIA: Final = ("A100", "A800", "H100", "H200", "GH200", "B200", "GB200", "L40S", "L4", "A10", "A30", "A40", "B300")
_CONSUMER: Final = ("RTX", "V100", "T4")


def classes(c: Comparison) -> str:
    """Which line of the targets a comparison counts for."""
    return kind_of(c.row.gpu, c.prediction.deployment)


def kind_of(gpu: str, deployment: Deployment) -> str:
    """The kind of deployment that an error counts for: by accelerator, on NVIDIA's also by model and format."""
    mixture = deployment.model.has_experts
    if gpu.startswith(_CONSUMER):
        return "consumer and Volta"
    if not gpu.startswith(_NVIDIA):
        return "AMD" if deployment.accelerator.vendor == "AMD" else "other accelerators"
    return "NVIDIA, MoE or FP4" if mixture or "fp4" in deployment.weights else "NVIDIA, dense"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


_HEAD: Final = ("n", "median", "p90", "bias", "within the 80 % interval")


def _grouped(found: Validation, title: Sequence[str], key: Callable[[Comparison], tuple[str, ...]]) -> list[str]:
    return _table([*title, *_HEAD], ([*k, *e.cells()] for k, e in found.by(key).items()))


_LIMITS: Final = (0.015, 0.03, 0.06)
"""Limits on time per token that a choice is made under, seconds: fast, comfortable and slow reading."""
_MEANT: Final = 1.1
"""A pick is worth something up to this multiple of the limit: the figures themselves repeat to a few per cent."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A choice between measured configurations.

    Attributes:
        question: the model, lengths and limit on time per token.
        regret: share of the best measured throughput per accelerator lost by following the prediction; 1 where what
            was picked misses the limit.
        options: configurations there were.
        differs: what the pick has otherwise than the best.
    """

    question: str
    regret: float
    options: int
    differs: str


def _differs(pick: Comparison, best: Comparison) -> str:
    """What sets a pick apart, the weightiest thing first."""
    a, b = pick.prediction.deployment, best.prediction.deployment
    if a.accelerator.name != b.accelerator.name or a.engine != b.engine:
        return "accelerator or engine"
    if a.weights != b.weights:
        return "weight format"
    if (a.num_gpus, a.tp, a.ep, a.attention_dp) != (b.num_gpus, b.tp, b.ep, b.attention_dp):
        return "number of accelerators"
    return "load" if pick.row.load != best.row.load else "nothing"


def decision_regret(found: Validation) -> list[Decision]:
    """Every choice in the table: a model, lengths and a limit on time per token.

    The answer is the configuration (accelerators, format, load) with the most tokens per second and accelerator that
    keeps the limit. Regret is measured throughput lost by following the prediction.
    """
    questions: dict[str, list[Comparison]] = {}
    for c in found.comparisons:
        if c.metric == "tpot" and c.row.mode == "concurrency" and not suspicious(c.row):
            key = f"{c.row.model} {c.row.prompt_tokens:.0f}/{c.row.output_tokens:.0f}"
            questions.setdefault(key, []).append(c)
    answers = []
    for key, options in questions.items():
        if len({(c.row.gpu, c.row.num_gpus, c.row.weights) for c in options}) < 2:
            continue
        for limit in _LIMITS:
            feasible = [c for c in options if c.measured <= limit]
            trusted = [c for c in options if c.predicted <= limit]
            if len(feasible) < 2 or not trusted:
                continue
            best = max(feasible, key=lambda c: _worth(c, c.measured))
            pick = max(trusted, key=lambda c: _worth(c, c.predicted))
            got = _worth(pick, pick.measured) if pick.measured <= limit * _MEANT else 0.0
            regret = max(0.0, 1.0 - got / _worth(best, best.measured))
            question = f"{key}, {limit * 1e3:.0f} ms a token"
            answers.append(Decision(question, regret, len(options), _differs(pick, best)))
    return answers


def _worth(c: Comparison, seconds: float) -> float:
    """Tokens per second and accelerator at a time per token."""
    return c.row.load / seconds / c.prediction.deployment.num_gpus


def _decisions(found: Validation) -> list[str]:
    """The section on choices, with what the wrong ones got wrong."""
    answers = decision_regret(found)
    if not answers:
        return []
    sizes = sorted(a.regret for a in answers)
    wrong = Counter((a.differs, a.regret >= 1.0) for a in answers if a.regret >= 0.05)
    return [
        "## Decisions", "",
        (f"Of {len(answers)} choices between measured configurations under a limit on time per token, following the"
         f" prediction loses a median of {sizes[len(sizes) // 2]:.0%} and a mean of {sum(sizes) / len(sizes):.0%}"
         f" of the throughput that the best measured configuration has, {sizes[int(len(sizes) * 0.9)]:.0%} at the 90th"
         f" percentile; {sum(r < 0.05 for r in sizes)} lose less than 5 %. A pick that misses its limit by more"
         " than 10 % counts as a loss of everything. The planner leaves a margin; this test none."), "",
        *_table(["choices that lose 5 % or more", "the pick differs in", "misses the limit"], (
            [str(n), what, "yes" if missed else "no"] for (what, missed), n in wrong.most_common()
        )),
    ]  # fmt: skip


_QUEUED: Final = (
    10.0  # times that a first token is off where one of measured and predicted waits and the other does not
)
_WARMING: Final = 4.0  # seconds that nothing but loading kernels takes at a low load
_QUIET: Final = 64
_MISCOUNTED: Final = 4.0


def likely_cause(c: Comparison) -> str:
    """Why an error may be as large as it is, from the row itself; ``""`` where nothing in it says."""
    d = c.prediction.deployment
    reading = fullest_rank_bytes(d) / d.accelerator.memory_bandwidth
    whole = c.row.measured.get("e2e")
    if whole is not None and c.row.mode == "offline" and whole.value < 0.9 * reading * c.row.output_tokens:
        return "faster than the weights can be read: the run failed"
    if c.row.source.startswith("MLPerf") and c.measured > _MISCOUNTED * c.predicted:
        return "more accelerators than the row counts"
    if c.metric != "ttft":
        return ""
    if c.measured > _WARMING and c.row.mode == "concurrency" and c.row.load <= _QUIET and c.predicted < c.measured:
        return "seconds at a low load: kernels loaded, or compiled, within the measurement"
    if max(c.predicted / c.measured, c.measured / c.predicted) > _QUEUED:
        return "at the edge of a full cache: one of the two queues, the other does not"
    return ""


def _replays(replayed: Sequence[Replayed]) -> list[str]:
    """The section on traces; none where there is none."""
    if not replayed:
        return []
    return [
        "## Trace replay", "",
        ("Real requests with their times, replayed one by one, with the KV blocks that the engine reported and with the"
        " estimated number; signed errors."), "",
        *_table(REPLAY_HEAD, (r.cells() for r in replayed)),
    ]  # fmt: skip


def _held_out() -> list[str]:
    """The section on the fit's held-out errors, as its script wrote them beside the constants."""
    data = constants()
    return [
        "## Held out", "",
        ("Every figure predicted by constants that were fitted without its model, without its accelerator, without its"
        " source (`python scripts/fit_engines.py`): one Gauss-Newton step back from the common fit, then simulated."
        " Where that takes away all rows of an engine generation on a vendor's accelerators, only the start of its fit"
        " is left (the defaults, or an earlier generation's way): such a figure counts once, as one without its engine."
        " Intervals are sized on these errors engine by engine; the last column says how often they held by kind."), "",
        *_table(["kind", "metric", "without its", "figures", "median", "p90", "within the 80 % interval"], (
            [h["kind"], h["metric"], h["without"].replace("gpu", "accelerator"), str(h["figures"]),
             *(f"{h[k]:.0%}" for k in ("median", "p90", "covered"))] for h in data["held_out"]
        )),
        "Time per token, end-to-end time and throughput by engine, median:", "",
        *_table([
            "engine", "since", "accelerators of", "figures", "without its model", "its accelerator", "its source",
            "its engine",
        ], (
            [engine, str(e["since"]), e.get("vendor", "NVIDIA"), str(e["rows"]),
             *(f"{e[k]:.0%}" if (k := f"held_out_{fold}") in e else "-"
               for fold in ("model", "gpu", "source", "engine"))]
            for engine, entries in data["engines"].items() for e in entries if e.get("rows")
        )),
    ]  # fmt: skip


def _carried(carries: Sequence[Carried]) -> list[str]:
    """The section on what a calibration is worth where it has not measured; none where there was no sweep."""
    if not carries:
        return []

    def cells(of: Sequence[Carried]) -> list[str]:
        errors = [np.concatenate([getattr(c, name) for c in of]) for name in ("shipped", "level", "model")]
        return [f"{np.median(e):.0%} / {np.percentile(e, 90):.0%}" if len(e) else "-" for e in errors]

    def row(title: Sequence[str], of: Sequence[Carried]) -> list[str]:
        return [*title, str(sum(c.models for c in of)), str(sum(len(c.shipped) for c in of)), *cells(of)]

    fast = [
        c for c in carries
        if accelerator(c.accelerator).vendor == "NVIDIA" and not c.accelerator.upper().startswith(_CONSUMER)
    ]  # fmt: skip
    return [
        "## Calibrated", "",
        ("Sweeps of at least six levels of one engine on one accelerator, fitted as `gambrel calibrate` fits a user's"
         " own runs: errors of time per token, end-to-end time and throughput with the shipped constants, on each level"
         " by a fit to the model's other levels, and on each model by a fit to the others (median / 90th percentile)."),
        "",
        *_table(["source", "engine", "accelerator", "models", "figures", "shipped", "unseen batch or length",
                 "unseen model"], [
            row(["all", "all", "NVIDIA data centre"], fast), row(["all", "all", "all"], carries),
            *(row([c.source, c.engine, c.accelerator], [c]) for c in carries),
        ]),
    ]  # fmt: skip


def accuracy_page(
    found: Validation,
    replayed: Sequence[Replayed] = (),
    profile: str | None = None,
    carries: Sequence[Carried] = (),
) -> str:
    """The page as Markdown; ``profile`` names the file that corrected the shipped constants, if one did."""
    clean = [c for c in found.comparisons if not suspicious(c.row)]
    causes = Counter(suspicious(c.row) for c in found.comparisons if suspicious(c.row))
    command = "python scripts/accuracy.py" if carries else "gambrel validate --markdown"
    told = f"shipped constants as {profile} corrects them" if profile else "shipped constants"
    lines = [
        "# Accuracy", "",
        (f"Predictions with {told} against {len(found.comparisons)} published figures of"
        f" {len({c.row.id for c in found.comparisons})} rows; generated by `{command}`"
        f" on {dt.datetime.now(dt.UTC).date()}. Errors are of single rows: median and 90th percentile of the absolute"
        " error, bias the median signed error. Shipped constants are fitted per engine generation and vendor, never per"
        " row or model ([calibrate.md](calibrate.md)); the fit's held-out errors are below."), "",
        "## By kind of deployment", "",
        "Rows with a known contradiction (last section) are left out here and counted in every other table.", "",
        *_table(["kind", "metric", *_HEAD], (
            [kind, metric, *errors_of([c for c in clean if (classes(c), c.metric) == (kind, metric)]).cells()]
            for kind, metric in sorted({(classes(c), c.metric) for c in clean})
        )),
        "## By source", "", *_grouped(found, ("source", "metric"), lambda c: (c.row.source, c.metric)),
        "## By engine and accelerator", "",
        *_grouped(found, ("engine", "accelerator", "metric"), lambda c: (c.row.engine, c.row.gpu, c.metric)),
    ]  # fmt: skip
    lines += [*_decisions(found), *_replays(replayed), *_held_out(), *_carried(carries)]
    worst = sorted(clean, key=lambda c: -abs(c.log_error))[:25]
    lines += [
        "## Bad rows", "",
        "Rows whose columns contradict themselves or their neighbours, never fitted:", "",
        *_table(["figures", "what is known"], ([str(n), cause] for cause, n in causes.most_common())),
        "The largest errors of all other rows:", "",
        *_table(["row", "model", "accelerators", "engine", "load", "metric", "measured", "predicted", "likely cause"], (
            [c.row.id, c.row.model, f"{c.row.num_gpus} x {c.row.gpu}", f"{c.row.engine} {c.row.engine_version}".strip(),
             f"{c.row.mode} {c.row.load:g}", c.metric, f"{c.measured:.4g}", f"{c.predicted:.4g}",
             likely_cause(c) or "-"] for c in worst
        )),
        "## Rows that were not compared", "",
        *_table(["rows", "reason"], ([str(n), reason] for reason, n in found.skipped.most_common())),
    ]  # fmt: skip
    return "\n".join(lines)
