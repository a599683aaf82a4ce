"""Cost against latency of everything that was simulated, with the front no other candidate beats in both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from gambrel.report import humanise as say
from gambrel.report.marks import colour_scale, labelled_y, log
from gambrel.report.style import BLUE, GREEN, ORANGE, chart, rows

if TYPE_CHECKING:
    from gambrel.core.plan import Candidate, Plan
    from gambrel.core.slo import Objective
    from gambrel.report.style import Spec

__all__ = ["cost_vs_latency"]

_FAR: Final = 3.0
"""Times the dearest fleet that holds, beyond which nobody looks."""


def cost_vs_latency(plan: Plan, objective: Objective) -> Spec | None:
    """Every simulated candidate at its dollars per hour and the statistic of one objective, both logarithmic.

    The line joins the Pareto front: who is on it can be beaten in cost only at the price of latency. What misses at
    many times the price of what holds is left out. None where fewer than two candidates have a price and a figure.
    """
    found = [(c, v) for c in (plan.chosen, *plan.alternatives) if math.isfinite(v := _reached(c, objective))]
    found = [(c, v) for c, v in found if c.stage == "simulated" and 0 < c.usd_per_hour < math.inf and v > 0]
    most = _FAR * max((c.usd_per_hour for c, _ in found if c.feasible), default=math.inf)
    found = [(c, v) for c, v in found if c.usd_per_hour <= most]
    found.sort(key=lambda p: p[0] is plan.chosen)  # the last is drawn on top
    if len(found) < 2:
        return None
    front: list[tuple[Candidate, float]] = []
    for c, v in sorted(found, key=lambda p: (p[0].usd_per_hour, p[1])):
        if not front or v < front[-1][1]:
            front.append((c, v))
    domain, colours = ("chosen", "holds", "misses"), (BLUE, GREEN, ORANGE)
    standing = ["chosen" if c is plan.chosen else "holds" if c.feasible else "misses" for c, _ in found]
    prices = [c.usd_per_hour for c, _ in found]
    values = [v for _, v in found]
    x = log("usd", "$ per hour of the fleet", (min(prices) / 1.15, max(prices) * 1.15), prefix="$")
    low, high = min(*values, objective.limit), max(*values, objective.limit)
    y = log("s", f"seconds, {objective.name}", (low / 1.4, high * 1.6))
    dots = {
        "data": rows(
            {
                "usd": prices,
                "s": values,
                "standing": standing,
                "deployment": [c.deployment.label for c, _ in found],
                "cost": [say.per_hour(p) for p in prices],
                "reached": [say.seconds(v) for v in values],
                "why": [c.lost_because or "the cheapest that holds" for c, _ in found],
            }
        ),
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0.9, "clip": True},
        "encoding": {
            "x": x,
            "y": y,
            "color": {
                "field": "standing",
                "type": "nominal",
                "title": None,
                "scale": colour_scale(domain, colours),
                "legend": {},
            },
            "shape": {
                "field": "standing",
                "type": "nominal",
                "title": None,
                "scale": {"domain": list(domain), "range": ["diamond", "circle", "cross"]},
            },
            "tooltip": [{"field": f, "type": "nominal"} for f in ("deployment", "standing", "cost", "reached", "why")],
        },
    }
    line = {
        "data": rows({"usd": [c.usd_per_hour for c, _ in front], "s": [v for _, v in front]}),
        "mark": {"type": "line", "style": "ink-line", "interpolate": "step-after", "strokeWidth": 1.3, "opacity": 0.6},
        "encoding": {"x": x, "y": y},
    }
    chosen = next((v for c, v in found if c is plan.chosen), math.nan)
    best = front[-1]
    sentence = f"The chosen fleet reaches {objective.name} {say.seconds(chosen)}"
    if best[0] is plan.chosen:
        sentence += "; nobody simulated is faster at any price."
    else:
        extra = best[0].usd_per_hour - plan.chosen.usd_per_hour
        sentence += f"; the fastest simulated, {best[0].deployment.label}, {say.seconds(best[1])} for "
        sentence += f"{say.per_hour(extra)} more." if extra > 0 else f"{say.per_hour(best[0].usd_per_hour)}."
    limit = labelled_y(objective.limit, f"limit {say.limit(objective.limit)}", "s", right=True)
    return chart(f"cost-vs-{objective.metric}", f"Cost against {objective.name}", sentence, [line, dots, *limit])


def _reached(candidate: Candidate, objective: Objective) -> float:
    return next((v.reached for v in candidate.verdicts if v.objective == objective), math.nan)
