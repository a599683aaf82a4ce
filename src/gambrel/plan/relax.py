"""What to give up, and how little: the nearest requests that can be met, when the one that was made cannot.

A refusal that only says no sends people away to guess. Each thing that was asked (objectives, accelerators that can be
had, spare replicas, certainty, formats and parallelism, the load itself) is given up alone, as little as suffices, and
what then holds is searched and simulated like any plan. What cannot be given up alone is left out. Ordered as people
would try them: what was limited by choice first, then the objectives, then the traffic.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import DoesNotFit, InfeasiblePlan
from gambrel.core.plan import Relaxation
from gambrel.core.slo import SLO, Objective
from gambrel.plan.explain import Loads, carries
from gambrel.plan.safety import Safety
from gambrel.plan.search import search
from gambrel.plan.trial import Bench
from gambrel.report.humanise import asked, figure, number, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gambrel.core.deployment import Deployment
    from gambrel.core.model import Model
    from gambrel.core.plan import Candidate
    from gambrel.core.slo import Verdict
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload
    from gambrel.plan.question import Search
    from gambrel.plan.space import Space

__all__ = ["refusal", "relaxations", "rounded_up"]

LADDER = (1.1, 1.5, 2.5, 5.0, 10.0)
"""Multiples of the least conceivable limit at which a looser objective is tried."""
REFINED = 1
"""Bisections between the last rung that fails and the first that holds."""
EIGHT_AND_FOUR_BITS = ("fp8", "int4")
DEGREES = (1, 2, 4, 8, 16)
ANY_NUMBER = 4096
"""Accelerators that a search may use unless it is told otherwise."""
LEAST_LOAD = 0.05
"""Share of the load below which carrying it is no suggestion."""
SHOWN = 3
"""Suggestions of one kind."""


def relaxations(
    model: Model,
    workload: Workload,
    slo: SLO,
    space: Space,
    pricer: Callable[[Deployment], CostModel],
    found: Search,
) -> tuple[Relaxation, ...]:
    """The nearest requests that can be met; ``found`` is the search that met none of them.

    Where nothing fits the memory: formats and degrees that would. Otherwise what holds without a limit on
    accelerators, without spares or certainty, with looser objectives, or under less load.
    """
    if not found.trials and all(c.stage == "fits" for c in found.ruled_out):
        return (*fitting(model, workload, space, pricer), *shorter(workload, found))

    seqs, tokens = few_limits(space)

    def cheapest(asked: SLO, within: Space) -> Candidate | None:
        within = replace(within, max_num_seqs=seqs, max_num_batched_tokens=tokens)
        held = search(model, workload, asked, within, pricer).feasible
        return held[0].candidate if held else None

    made = [*without_limits(workload, slo, space, pricer, cheapest), *looser(slo, space, found, cheapest)]
    return (*made, *unpriced(found))


def few_limits(space: Space) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The batch limits that relaxed requests are searched with: the first ones, and the largest token budget."""
    seqs, tokens = space.first_limits()
    return (seqs,), tuple(sorted({tokens, max(space.max_num_batched_tokens)}))


def told(change: str, because: str, holds: Candidate) -> Relaxation:
    """A relaxation that a search confirmed."""
    return Relaxation(change, because, holds.deployment, holds.usd_per_hour)


def without_limits(
    workload: Workload,
    slo: SLO,
    space: Space,
    pricer: Callable[[Deployment], CostModel],
    cheapest: Callable[[SLO, Space], Candidate | None],
) -> Iterator[Relaxation]:
    """More accelerators than can be had (or less load), no spares, no certainty: each alone where it was asked."""
    if limited(space):
        free = cheapest(slo, replace(space, available={}, max_gpus=ANY_NUMBER))
        if free is not None:
            d = free.deployment
            have = space.most_gpus(d.accelerator)
            change = f"--available {d.accelerator.name}={d.num_gpus}" if space.available else f"--max-gpus {d.num_gpus}"
            yield told(change, f"{d.accelerator.name}={have} is too few: it takes {d.num_gpus}", free)
            most = space.most_replicas(d)
            if not workload.closed_loop and most:
                yield from carried(d.with_(replicas=most), workload, slo, pricer)
    if space.spare:
        free = cheapest(slo, replace(space, spare=0))
        if free is not None:
            yield told("--spare 0", f"nothing holds {Safety(0.5, space.spare).words}", free)
    if space.confidence > 0.5:
        free = cheapest(slo, replace(space, confidence=0.5))
        if free is not None:
            yield told("--confidence 0.5", f"nothing holds {Safety(space.confidence).words}", free)


def looser(
    slo: SLO, space: Space, found: Search, cheapest: Callable[[SLO, Space], Candidate | None]
) -> Iterator[Relaxation]:
    """Objectives that are out of reach together as little looser as suffices; else each of them alone."""
    beyond = [v for o in slo.objectives if (v := best_of(o, found)) is not None and not v.met]
    if beyond:
        why = " and ".join(
            f"{asked(v.objective)} is {'above the ceiling' if v.objective.is_floor else 'below the floor'} of every "
            f"candidate, {figure(v.objective, v.reached)}"
            for v in beyond
        )
        loosened = loosen(slo, {v.objective: v.used for v in beyond}, space, cheapest)
        if loosened is not None:
            yield told(loosened[0], why, loosened[1])
        return
    shown = 0
    for o, ratio, label in missed(slo, found):
        loosened = loosen(slo, {o: ratio}, space, cheapest)
        if loosened is not None:
            others = " with the rest met" if len(slo.objectives) > 1 else ""
            because = f"{asked(o)} is out of reach{others}: nearest {label}, {figure(o, o.looser(ratio).limit)}"
            yield told(loosened[0], because, loosened[1])
            shown += 1
        if shown == SHOWN:
            return


def best_of(o: Objective, found: Search) -> Verdict | None:
    """The best that any candidate could reach; None where bounds alone did not rule out all of them."""
    fitted = [c for c in (*(t.candidate for t in found.trials), *found.ruled_out) if c.stage != "fits" and c.verdicts]
    if not all(c.stage == "screen" for c in fitted):
        return None
    return min((v for c in fitted for v in c.verdicts if v.objective == o), key=lambda v: v.used, default=None)


def missed(slo: SLO, found: Search) -> list[tuple[Objective, float, str]]:
    """(objective, by what multiple of what it allows, where) of candidates that miss nothing else, the least first.

    Who misses a limit may miss a floor of goodput for it, which a looser limit then mends as well.
    """
    least: dict[Objective, tuple[float, str]] = {}
    for c in (*(t.candidate for t in found.trials), *found.ruled_out):
        wrong = [v for v in c.verdicts if not v.met]
        wrong = [v for v in wrong if not v.objective.is_floor] or wrong
        if len(wrong) == 1 and wrong[0].objective in slo.objectives and math.isfinite(wrong[0].used):
            v = wrong[0]
            here = (v.used, c.deployment.label)
            least[v.objective] = min(least.get(v.objective, here), here)
    return [(o, *least[o]) for o in sorted(least, key=lambda o: least[o])]


def loosen(
    slo: SLO, least: dict[Objective, float], space: Space, cheapest: Callable[[SLO, Space], Candidate | None]
) -> tuple[str, Candidate] | None:
    """(the objectives to ask instead, what then holds) for the smallest rung of the ladder at which something does.

    ``least`` has a multiple of what each objective allows to start from. The limits named are those that were reached,
    rounded, not those that were tried; but beside a floor of goodput, which counts by the limits, they are those tried.
    """

    def eased(rung: float) -> SLO:
        return SLO(tuple(o.looser(least[o] * rung) if o in least else o for o in slo.objectives))

    def at(rung: float) -> Candidate | None:
        return cheapest(eased(rung), space)

    below, holds = 1.0, None
    for rung in LADDER:
        holds = at(rung)
        if holds is not None:
            above = rung
            break
        below = rung
    if holds is None:
        return None
    for _ in range(REFINED):
        middle = math.sqrt(below * above)
        nearer = at(middle)
        if nearer is None:
            below = middle
        else:
            above, holds = middle, nearer
    named = {v.objective.name: v.reached for v in sorted((*holds.verdicts, *holds.safety), key=lambda v: v.used)}
    if slo.floors:
        named |= {o.name: o.limit for o in eased(above).limits}
    return " ".join(f"--slo '{asking(o, named[o.name])}'" for o in slo.objectives if o in least), holds


def asking(o: Objective, reached: float) -> str:
    """The objective with a limit that what was reached meets, in as many digits as people write."""
    if o.is_floor:
        return f"{o.name}>={math.floor(1e3 * min(reached, o.limit) + 1e-9) / 10:g}%"
    return f"{o.name}<={rounded_up(max(reached, o.limit))}"


def rounded_up(value_s: float) -> str:
    """A limit that is not below the value: two digits, as people write it (``340ms``, ``1.3s``)."""
    size, unit = (1e-3, "ms") if value_s < 0.9995 else (1.0, "s")
    scaled = value_s / size
    step = 10.0 ** (math.floor(math.log10(scaled)) - 1)
    up = math.ceil(scaled / step - 1e-9) * step
    return f"{float(f'{up:.3g}'):g}{unit}"


def carried(
    d: Deployment, workload: Workload, slo: SLO, pricer: Callable[[Deployment], CostModel]
) -> Iterator[Relaxation]:
    """The share of the load that a fleet carries, where it carries any."""
    load = carries(d, Bench.of(pricer(d)), Loads(workload), slo)
    if LEAST_LOAD < load < 1.0:
        because = f"{d.label} carries {number(load, 2)}x of this load within the objectives"
        yield Relaxation(f"{percent(load)} of the load", because, d, d.usd_per_hour)


def limited(space: Space) -> bool:
    """Whether there are fewer accelerators than money could buy."""
    return bool(space.available) or space.max_gpus < ANY_NUMBER


def unpriced(found: Search) -> Iterator[Relaxation]:
    """Accelerators that could not be ranked for want of a price."""
    names = {c.deployment.accelerator.name for c in found.ruled_out if c.deployment.accelerator.price is None}
    for name in sorted(names)[:SHOWN]:
        yield Relaxation(f"--price {name}=DOLLARS", f"no price is known for {name}, so it was not ranked")


# Memory


def fitting(
    model: Model, workload: Workload, space: Space, pricer: Callable[[Deployment], CostModel]
) -> list[Relaxation]:
    """Formats and degrees under which one replica holds the model and the longest request, the least change first.

    By memory alone: nothing is simulated here, so the objectives may still be missed.
    """
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    wide = replace(space, tp=DEGREES, pp=None)
    found = []
    for own in (None, *((f,) for f in EIGHT_AND_FOUR_BITS)):
        for d in replace(wide, weights=space.weights if own is None else own).shapes(model):
            memory = pricer(d).memory()
            if memory.kv_tokens >= longest:
                found.append((own is not None, d.gpus_per_replica, d.usd_per_hour or math.inf, d.label, d, memory))
    found.sort(key=lambda x: x[:4])
    made: list[Relaxation] = []
    seen = set()
    for changed, _, usd, _, d, memory in found:
        key = (d.accelerator.name, d.weights if changed else "")
        if key in seen or len(made) == SHOWN:
            continue
        seen.add(key)
        words = [f"--gpu {d.accelerator.name} --tp {d.tp}"] + ([f"--pp {d.pp}"] if d.pp > 1 else [])
        words += [f"--weights {d.weights}"] if changed else []
        room = f"one replica then holds {memory.kv_tokens:,} tokens of KV cache; not simulated"
        made.append(Relaxation(" ".join(words), room, d, usd if math.isfinite(usd) else None))
    return made


def shorter(workload: Workload, found: Search) -> Iterator[Relaxation]:
    """The longest requests left out, where the model itself fits and only they do not."""
    best = max(found.ruled_out, key=lambda c: (c.memory.kv_tokens, c.deployment.label))
    held = best.memory.kv_tokens
    total = workload.prompt_tokens + workload.output_tokens
    share = float(np.mean(total > held))
    if held > 0 and share < 0.5:
        because = f"{best.deployment.label} holds {held:,} tokens; {percent(share)} of the requests are longer"
        yield Relaxation(f"requests of at most {held:,} tokens", because, best.deployment, best.deployment.usd_per_hour)


# The refusal


def refusal(
    model: Model,
    workload: Workload,
    slo: SLO,
    space: Space,
    pricer: Callable[[Deployment], CostModel],
    found: Search,
) -> InfeasiblePlan | DoesNotFit:
    """Why there is no plan, in one line: bytes when nothing fits, else each objective's best and by whom.

    The error carries the nearest requests that can be met.
    """
    nearest_requests = relaxations(model, workload, slo, space, pricer, found)
    if not found.trials and all(c.stage == "fits" for c in found.ruled_out):
        nearest = max(found.ruled_out, key=lambda c: (c.memory.kv_cache_bytes, c.deployment.label))
        m = nearest.memory
        needed = m.weight_bytes + m.activation_bytes + m.reserve_bytes
        return DoesNotFit(
            f"{model.name} fits nowhere in the search; nearest is {nearest.deployment.label}: {nearest.lost_because} "
            f"({needed:.0f} bytes needed, {m.usable_bytes:.0f} available per accelerator)",
            needed_bytes=needed,
            available_bytes=m.usable_bytes,
            relaxations=nearest_requests,
        )
    judged = [c for c in (*(t.candidate for t in found.trials), *found.ruled_out) if c.verdicts]
    if not judged:
        example = next(c for c in found.ruled_out if c.stage == "screen")
        text = f"no deployment is possible: {example.deployment.label}: {example.lost_because}"
        return InfeasiblePlan(text, nearest_requests)
    parts = []
    for objective in slo.objectives:
        best = min(
            ((v, c) for c in judged for v in c.verdicts if v.objective == objective),
            key=lambda pair: (pair[0].used, pair[1].deployment.label),
            default=None,
        )
        if best is not None and not best[0].met:
            bound = " at the very best" if best[1].stage == "screen" else ""
            reached = figure(objective, best[0].reached)
            parts.append(f"{objective.name} reaches {reached}{bound} on {best[1].deployment.label}")
    if not parts:
        nearest = max(judged, key=lambda c: (min(v.margin for v in c.verdicts), c.deployment.label))
        parts.append(
            f"each objective can be met alone, not all at once; nearest is {nearest.deployment.label}: "
            f"{nearest.lost_because}"
        )
    return InfeasiblePlan(f"no deployment meets the objectives: {'; '.join(parts)}", nearest_requests)
