"""The Learn view: the theory of serving as short lessons, each with one live plot and a link of its own.

Every plot is drawn by the function the reports use, every number comes from the cost model; a lesson only chooses what
to look at and says why it looks like that.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import numpy as np

from gambrel.core.step import Step
from gambrel.cost import curve as draw
from gambrel.cost.blackboard import train_wait_s
from gambrel.cost.queueing import erlang_c_wait, mg1_wait
from gambrel.faces.web import wire
from gambrel.faces.web.explore import BATCHES, CONTEXTS, cost_model
from gambrel.faces.web.questions import Question
from gambrel.faces.web.setup import Setup
from gambrel.report import Fact, cost_vs_batch, latency_vs_batch, step_vs_context
from gambrel.report import humanise as say
from gambrel.report.marks import colour_scale, labelled_x, labelled_y, linear
from gambrel.report.style import BLUE, GREEN, GREY, ORANGE, chart, rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.curve import Curve
    from gambrel.report.style import Spec

__all__ = ["QUESTIONS", "SHOW", "Dials", "Lesson", "lessons_by_slug"]


class Dials(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader can turn; a lesson shows only the dials it uses."""

    batch: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    context: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 2048
    step_ms: Annotated[int, msgspec.Meta(ge=1, le=500)] = 20
    busy: Annotated[int, msgspec.Meta(ge=5, le=99)] = 70
    cv: Annotated[int, msgspec.Meta(ge=0, le=40)] = 10


class Lesson(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The words of a page of theory, and which of :class:`Dials` it lets the reader turn."""

    title: str
    paragraphs: list[str]
    formula: str
    dials: list[str]


def _curve(context: int, *, textbook: bool = True) -> Curve:
    priced = cost_model(Setup(), "textbook" if textbook else "max")
    contexts = [context, *(c for c in CONTEXTS if c != context)]
    return draw(priced, BATCHES, contexts, priced.deployment.usd_per_hour)


def amortisation(dials: Dials) -> tuple[list[Fact], list[Spec]]:
    """Cost per token falls with batch until KV reads or compute hold it."""
    curve = _curve(dials.context)
    facts = [
        Fact("batch 1 costs", say.multiple(curve.amortisation_limit), "the least that any batch reaches"),
        Fact("limit", say.dollars(_limit(curve)), "per million tokens, whatever the batch"),
        Fact("memory is full", f"at batch {say.count(curve.wall_batch)}", f"{say.count(dials.context)} tokens each"),
    ]
    return facts, [cost_vs_batch(curve)]


def _limit(curve: Curve) -> float:
    one = np.flatnonzero((curve.batch == 1) & (curve.context == curve.named_context))[0]
    cost = curve.usd_per_mtok
    return float("nan") if cost is None else float(cost[one]) / curve.amortisation_limit


def roof(dials: Dials) -> tuple[list[Fact], list[Spec]]:
    """A step takes as long as the longer of its arithmetic and its reading."""
    curve = _curve(dials.context)
    name, batch = curve.knee
    facts = [
        Fact("floor", say.seconds(curve.floor_s), "every weight is read once a step"),
        Fact("knee", f"batch {say.count(batch)}", f"the {name} comes first"),
        Fact("crossover", f"{say.count(curve.crossover_context)} tokens", "beyond it compute never binds"),
    ]
    return facts, [latency_vs_batch(curve)]


def kv_share(dials: Dials) -> tuple[list[Fact], list[Spec]]:
    """The cache a step reads grows with batch x context; the weights do not."""
    curve = _curve(max(CONTEXTS[0], dials.context))
    priced = cost_model(Setup(), "textbook")
    cost = priced.step_cost(Step.decode(dials.batch, dials.context))
    share = cost.kv_s / (cost.kv_s + cost.weights_s)
    model = priced.deployment.model
    per_token = model.kv_bytes_per_token(priced.deployment.kv_format)
    facts = [
        Fact("KV share of reading", say.percent(share), f"at batch {say.count(dials.batch)}"),
        Fact("one token of context", say.num_bytes(per_token), "for every sequence, in every step"),
        Fact("the cache read", say.num_bytes(per_token * dials.batch * dials.context), "per step, by the whole batch"),
    ]  # fmt: skip
    return facts, [step_vs_context(curve, dials.batch if dials.batch in BATCHES else _near(dials.batch))]


def _near(batch: int) -> int:
    return min(BATCHES, key=lambda b: abs(b - batch))


def train(dials: Dials) -> tuple[list[Fact], list[Spec]]:
    """Steps leave like trains: who comes waits for the next one, then rides it."""
    step = dials.step_ms / 1e3
    mean, worst = train_wait_s(step)
    ms, top = 1e3, 3e3 * step
    x = linear("t", "a request comes at (ms)", (0.0, top))
    y = linear("ms", "ms until its first token", (0.0, 2.35 * ms * step))
    parts = ("waiting for the train", "riding it: one step")
    waits = [(ms * step * (i + late), ms * step * (1 - late)) for i in range(3) for late in (0, 1)]
    bands = [{"t": t, "low": 0.0, "high": w, "part": parts[0]} for t, w in waits]
    bands += [{"t": t, "low": w, "high": w + ms * step, "part": parts[1]} for t, w in waits]
    area = {
        "data": {"values": bands},
        "mark": {"type": "area", "opacity": 0.75, "clip": True},
        "encoding": {
            "x": x,
            "y": {**y, "field": "low"},
            "y2": {"field": "high"},
            "color": {
                "field": "part",
                "type": "nominal",
                "title": None,
                "scale": colour_scale(parts, (GREY, BLUE)),
                "legend": {"symbolType": "square"},
            },
        },
    }
    departures = [(ms * step * i, f"train {i + 1}") for i in (1, 2)]
    sentence = (
        f"A step every {say.seconds(step)}: a newcomer waits {say.seconds(mean - step)} on average and "
        f"{say.seconds(worst - step)} at worst, then rides one step: its first token comes after {say.seconds(mean)} "
        f"on average and {say.seconds(worst)} at worst."
    )
    facts = [
        Fact("mean wait", say.seconds(mean - step), "half a step"),
        Fact("worst wait", say.seconds(worst - step), "the train has just left"),
        Fact("first token", say.seconds(worst), "at worst, when prompts are short"),
    ]
    layers = [
        area,
        *labelled_y(ms * mean, f"mean {say.seconds(mean)}", "ms"),
        *labelled_x(departures, "t", (0.0, top), logarithmic=False),
    ]
    return facts, [chart("train", "A step is a departing train", sentence, layers)]


def queue(dials: Dials) -> tuple[list[Fact], list[Spec]]:
    """Waiting grows without end as utilisation nears one; bursts and single servers make it worse."""
    busy, scv = dials.busy / 100, (dials.cv / 10) ** 2
    us = np.linspace(0.02, 0.98, 97)
    lines = {
        "one server": [mg1_wait(float(u), scv) for u in us],
        "four servers, one queue": [erlang_c_wait(4, 4 * float(u)) * (1 + scv) / 2 for u in us],
        "service of equal length": [mg1_wait(float(u), 0.0) for u in us],
    }
    top = 10.0
    layers: list[Spec] = [
        {
            "data": rows(
                {
                    "u": [100 * float(u) for _ in lines for u in us],
                    "w": [float(v) for values in lines.values() for v in values],
                    "line": [name for name in lines for _ in us],
                }
            ),
            "mark": {"type": "line", "strokeWidth": 2.4, "clip": True},
            "encoding": {
                "x": linear("u", "% of the time busy", (0.0, 100.0)),
                "y": linear("w", "mean wait, in service times", (0.0, top)),
                "color": {
                    "field": "line",
                    "type": "nominal",
                    "title": None,
                    "scale": colour_scale(list(lines), (ORANGE, GREEN, BLUE)),
                    "legend": {"symbolType": "stroke"},
                },
            },
        },
        *labelled_x([(100 * busy, f"{say.percent(busy)} busy")], "u", (0.0, 100.0), logarithmic=False),
    ]
    alone, pooled = mg1_wait(busy, scv), erlang_c_wait(4, 4 * busy) * (1 + scv) / 2
    doubled = mg1_wait(min(0.99, (1 + busy) / 2), scv)
    sentence = (
        f"At {say.percent(busy)} busy a request waits {say.number(alone)} service times on one server and "
        f"{say.number(pooled)} on four that share a queue; with half the idle time left it would be "
        f"{say.number(doubled)}."
    )
    facts = [
        Fact("one server", f"{say.number(alone)} services", "mean wait (Pollaczek and Khinchine)"),
        Fact("four, one queue", f"{say.number(pooled)} services", "Erlang C, scaled for the spread"),
        Fact("half the idle time", f"{say.number(doubled)} services", f"at {say.percent((1 + busy) / 2)} busy"),
    ]
    return facts, [chart("queue", "Waiting against utilisation", sentence, layers)]


SHOW: Final[dict[str, Callable[[Dials], tuple[list[Fact], list[Spec]]]]] = {
    "roof": roof,
    "amortisation": amortisation,
    "kv-share": kv_share,
    "train": train,
    "queue": queue,
}
"""What draws each lesson; its words are in ``static/lessons.toml``."""


@lru_cache(maxsize=1)
def lessons_by_slug() -> dict[str, Lesson]:
    """Every lesson by the last part of its address, in reading order."""
    text = files("gambrel.faces.web").joinpath("static", "lessons.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, Lesson])


def lessons() -> dict[str, Any]:
    """The lessons there are."""
    return {"lessons": [{"slug": s, "title": lesson.title} for s, lesson in lessons_by_slug().items()]}


def lesson(slug: str, asked: Dials) -> dict[str, Any]:
    """A lesson, its plot drawn at the dials."""
    known = lessons_by_slug()
    if slug not in known:
        raise wire.Unknown(f"no lesson {slug[:80]!r}; there are {', '.join(known)}")
    found = known[slug]
    facts, charts = SHOW[slug](asked)
    return {
        "slug": slug,
        "title": found.title,
        "paragraphs": found.paragraphs,
        "formula": found.formula,
        "dials": {name: getattr(asked, name) for name in found.dials},
        "facts": wire.facts(facts),
        "items": [wire.item(spec) for spec in charts],
    }


QUESTIONS: Final = (Question("GET", "/api/learn", lessons), Question("GET", "/api/learn/{slug}", lesson, query=Dials))
