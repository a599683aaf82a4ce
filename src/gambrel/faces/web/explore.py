"""The Explore view: one configuration, or two side by side, at a batch and a context that the person moves.

Everything a slider changes comes from one call of the vectorised curve; the charts are those of the reports, with the
person's operating point added.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
import numpy as np

from gambrel.core.step import Step
from gambrel.cost import curve as draw
from gambrel.faces import api
from gambrel.faces.web import wire
from gambrel.faces.web.questions import Question
from gambrel.faces.web.setup import Dollars, Name, Setup, Tp, catalog_document, take_model
from gambrel.faces.web.uploads import Upload
from gambrel.report import Fact, cost_vs_batch, latency_vs_batch, memory_bar, step_vs_context
from gambrel.report import humanise as say
from gambrel.report.marks import log_ticks
from gambrel.report.style import CAUSE_TITLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gambrel.core.curve import Curve
    from gambrel.core.step import CostModel
    from gambrel.report.style import Spec

__all__ = ["QUESTIONS", "ExploreRequest", "explore_document"]

CONTEXTS: Final = tuple(round(2 ** (7 + i / 2)) for i in range(21))  # 128 to 131,072, two a doubling
BATCHES: Final = tuple(sorted({round(2 ** (i / 4)) for i in range(41)}))  # to 1,024, four a doubling
MOST_CONTEXT: Final = 1 << 20


class ExploreRequest(Setup, frozen=True, kw_only=True, rename=lambda name: name.replace("b_", "b.", 1)):
    """Where the sliders are, which form of a step is drawn, and what of a second configuration differs."""

    batch: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    context: Annotated[int, msgspec.Meta(ge=1, le=MOST_CONTEXT)] = 4096
    form: Literal["max", "serial", "textbook"] = "max"
    b_model: Name | None = None
    b_gpu: Name | None = None
    b_tp: Tp | None = None
    b_weights: Name | None = None
    b_kv: Name | None = None
    b_price: Dollars | None = None

    def setups(self) -> tuple[Setup, ...]:
        """The configuration, and the second one where any of its fields is given."""
        names = Setup.__struct_fields__
        first = {name: getattr(self, name) for name in names}
        other = {name: value for name in names if (value := getattr(self, f"b_{name}")) is not None}
        if not other:
            return (Setup(**first),)
        same = dict(first)
        if "gpu" in other:
            same.pop("price")  # a price belongs to its accelerator
        if "model" in other:
            same = {k: v for k, v in same.items() if k not in {"weights", "kv"}}  # formats to their checkpoint
        return Setup(**first), Setup(**same | other)


@lru_cache(maxsize=64)
def cost_model(setup: Setup, form: str) -> CostModel:
    """What prices the steps of a configuration; kept, so that a slider finds it warm."""
    textbook = form == "textbook"
    return api.cost_model(setup.deployment(), form="max" if textbook else form, textbook=textbook)


def explore_document(asked: ExploreRequest) -> dict[str, Any]:
    """Charts and facts of an operating point, of one configuration or of two.

    Raises:
        GambrelError: an unknown name, settings that contradict each other.
    """
    setups, point = asked.setups(), asked
    sides = [_side(setup, point) for setup in setups]
    if len(sides) == 2:
        share_axes([spec for spec, _ in sides[0][1]], [spec for spec, _ in sides[1][1]])
    return {
        "sides": [
            {
                "title": title,
                "facts": wire.facts(found),
                "items": [wire.item(spec) | {"moves": moves} for spec, moves in charts],
                "choices": setup.choices(),
                "setup": setup,
                "basis": basis,
            }
            for setup, (title, charts, found, basis) in zip(setups, sides, strict=True)
        ]
    }


def _side(setup: Setup, point: ExploreRequest) -> tuple[str, list[tuple[Spec, bool]], list[Fact], list[str]]:
    """Title, charts, facts and basis of one configuration."""
    priced = cost_model(setup, point.form)
    d = priced.deployment
    batches = sorted({*BATCHES, point.batch})
    contexts = [point.context, *(c for c in CONTEXTS if c != point.context)]
    curve = draw(priced, batches, contexts, d.usd_per_hour)
    windows = d.model.spans
    step = Step.decode(point.batch, point.context, windows[-1] if windows else None)
    predicted = cost_model(setup, "serial").step_cost(step).seconds
    budget = priced.memory()
    here = int(np.flatnonzero((curve.batch == point.batch) & (curve.context == point.context))[0])
    used = float(curve.memory_bytes[here])
    latency = _here(latency_vs_batch(curve), "batch", "ms", point.batch, 1e3 * float(curve.step_s[here]))
    cost = _cost_here(cost_vs_batch(curve), curve, here)
    context = _here(
        step_vs_context(curve, point.batch), "context", "ms", point.context, 1e3 * float(curve.step_s[here])
    )
    charts = [(latency, True), (cost, True), (context, True), (memory_bar(budget, used, point.batch), True)]
    title = f"{d.model.name.rpartition('/')[2]} in {d.weights} on {d.accelerator.title}"
    title += f", TP {d.tp}" if d.tp > 1 else ""
    return title, charts, _facts(curve, here, predicted, point), _basis(curve)


def _here(spec: Spec, x: str, y: str, at_x: float, at_y: float) -> Spec:
    """The chart with the person's operating point on it."""
    dot = {
        "data": {"values": [{x: at_x, y: at_y}]},
        "mark": {"type": "point", "style": "here", "filled": True, "size": 130, "opacity": 1, "clip": True},
        "encoding": {"x": {"field": x, "type": "quantitative"}, "y": {"field": y, "type": "quantitative"}},
    }
    return {**spec, "layer": [*spec["layer"], dot]}


def _cost_here(spec: Spec, curve: Curve, here: int) -> Spec:
    if curve.usd_per_mtok is None:
        cost = 1e6 * curve.deployment.gpus_per_replica * float(curve.step_s[here]) / float(curve.batch[here])
    else:
        cost = float(curve.usd_per_mtok[here])
    return _here(spec, "batch", "cost", float(curve.batch[here]), cost)


_WORDS: Final = {
    "ridge": "compute overtakes memory",
    "balance": "KV reads overtake the weights",
    "wall": "memory is full",
}


def _facts(curve: Curve, here: int, predicted: float, point: ExploreRequest) -> list[Fact]:
    step = float(curve.step_s[here])
    fits = bool(curve.fits[here])
    causes = {c: float(getattr(curve, f"{c}_s")[here]) for c in CAUSE_TITLES}
    name, knee = curve.knee
    share = {c: v / step for c, v in causes.items()}
    largest = max(share, key=lambda c: share[c])
    note = {
        "serial": "predicted: kernels one after another",
        "max": f"at best; predicted {say.seconds(predicted)}" if predicted > 1.005 * step else "predicted",
        "textbook": "no overhead, every peak reached",
    }[point.form]
    price = "" if curve.usd_per_mtok is None else say.dollars(float(curve.usd_per_mtok[here]))
    gpu_s = 1e6 * curve.deployment.gpus_per_replica * step / float(curve.batch[here])
    return [
        Fact("a step", say.seconds(step), note),
        Fact("one user sees", f"{say.number(1 / step)} tok/s", "one token each step"),
        Fact("all users", f"{say.number(float(curve.tokens_per_s[here]))} tok/s", f"{say.count(point.batch)} together"),
        Fact("$ per Mtok", price, "output, at full load")
        if price
        else Fact("chip-seconds", say.number(gpu_s), "per million tokens; no price known"),
        Fact("longest part", CAUSE_TITLES[largest], f"{say.percent(share[largest])} of the step"),
        Fact(
            "knee", f"batch {say.count(knee)}" if math.isfinite(knee) else "none", f"{name}: {_WORDS[name]}"
        ),
        Fact(
            "memory",
            say.num_bytes(float(curve.memory_bytes[here])),
            f"fits; full at {say.count(curve.wall_batch)} sequences" if fits and curve.wall_batch < MOST_CONTEXT
            else "fits" if fits else f"does not fit; full at {say.count(curve.wall_batch)} sequences",
            "met" if fits else "missed",
        ),
    ]  # fmt: skip


def _basis(curve: Curve) -> list[str]:
    price = curve.deployment.accelerator.price
    money = (
        "No price is known for this accelerator."
        if price is None
        else f"Price: {say.per_hour(price.usd_per_hour)} per accelerator, {price.basis}."
    )
    return [f"Step times: {curve.basis}; form {curve.form}.", money]


def share_axes(first: Sequence[Spec], second: Sequence[Spec]) -> None:
    """Give the charts of two sides the same scales, in place: what looks longer is longer."""
    for a, b in zip(first, second, strict=True):
        for channel in ("x", "y"):
            scales = [e for spec in (a, b) for e in _scaled(spec, channel)]
            if not scales:
                continue
            low = min(e["scale"]["domain"][0] for e in scales)
            high = max(e["scale"]["domain"][1] for e in scales)
            for e in scales:
                e["scale"] = {**e["scale"], "domain": [low, high]}
                if "values" in e.get("axis", {}):
                    e["axis"] = {**e["axis"], "values": _ticks(e["scale"], low, high)}


def _ticks(scale: Spec, low: float, high: float) -> list[float]:
    if scale.get("base") != 2:
        return log_ticks(low, high)
    start, end = math.floor(math.log2(low)), math.ceil(math.log2(high))
    step = max(1, -(-(end - start) // 14))
    return [2.0**p for p in range(start, end + 1, step) if low <= 2.0**p <= high]


def _scaled(spec: Spec, channel: str) -> list[Spec]:
    """Encodings of the channel that state a numeric domain; each layer gets its own copy to change."""
    found = []
    for layer in spec["layer"]:
        encoding = layer.get("encoding", {}).get(channel)
        if encoding and isinstance(encoding.get("scale", {}).get("domain"), list) and _numeric(encoding):
            layer["encoding"] = {**layer["encoding"], channel: dict(encoding)}
            found.append(layer["encoding"][channel])
    return found


def _numeric(encoding: Spec) -> bool:
    return encoding.get("type") == "quantitative"


QUESTIONS: Final = (
    Question("GET", "/api/catalog", catalog_document),
    Question("GET", "/api/explore", explore_document, query=ExploreRequest),
    Question("POST", "/api/models", take_model, query=Upload, upload="application/json"),
)
