"""Where the memory goes as more users are served at once, and at which of them the card is full."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gambrel.report import humanise as say
from gambrel.report.marks import colour_scale, labelled_x, labelled_y, linear
from gambrel.report.style import BLUE, GREEN, GREY, PINK, chart, rows

if TYPE_CHECKING:
    from gambrel.core.step import MemoryBudget
    from gambrel.core.workload import Ints
    from gambrel.report.style import Spec

__all__ = ["HeldTokens", "memory_bar", "memory_vs_concurrency"]


@dataclass(frozen=True, slots=True)
class HeldTokens:
    """KV tokens that one request in flight holds: ``mean`` by time in flight (NaN if unknown), and whole lengths.

    ``p50``, ``p95`` and ``max`` are of prompt + output, what a request holds when it ends.
    """

    mean: float
    p50: float
    p95: float
    max: float

    @classmethod
    def of(cls, prompt_tokens: Ints, output_tokens: Ints, mean: float = math.nan) -> HeldTokens:
        """From lengths; ``mean`` is traffic's length-biased figure."""
        whole = prompt_tokens + output_tokens
        p50, p95 = (float(v) for v in np.percentile(whole, (50, 95)))
        return cls(mean, p50, p95, float(whole.max()))

    def items(self) -> list[tuple[str, float]]:
        """Known figures as (name, tokens)."""
        return [(k, v) for k in ("mean", "p50", "p95", "max") if math.isfinite(v := getattr(self, k)) and v > 0]


def memory_vs_concurrency(budget: MemoryBudget, held: HeldTokens, max_num_seqs: int | None = None) -> Spec:
    """Bytes of the fullest accelerator against sequences in flight.

    Stacked: weights, activations, reserve, and the KV cache when every request holds the typical tokens (the mean by
    time in flight, else p50); lines for p50, p95 and max; capacity as rules; the wall marked for each.
    """
    known = held.items()
    fixed = budget.weight_bytes + budget.activation_bytes + budget.reserve_bytes
    room = max(budget.kv_cache_bytes, 0.0)
    per_seq = {name: float(budget.sequence_bytes(tokens)) for name, tokens in known}
    walls = {name: math.floor(room / size) if size > 0 else math.inf for name, size in per_seq.items()}
    typical = "mean" if "mean" in per_seq else "p50"
    wall = walls[typical]
    end = max(1.6 * wall, 4.0) if math.isfinite(wall) else 2.0 * (max_num_seqs or 256)
    parts = (
        ("weights", budget.weight_bytes, BLUE),
        ("activations", budget.activation_bytes, PINK),
        ("reserve", budget.reserve_bytes, GREY),
    )
    kv_title = f"KV at the {typical}"
    titles = [*(p[0] for p in parts), kv_title]
    domain = (0.0, end)
    marks = [(float(w), f"{say.count(w)} {'at the mean' if k == 'mean' else f'if all {k}'}") for k, w in walls.items()]
    if max_num_seqs is not None:
        marks.append((float(max_num_seqs), f"max_num_seqs {say.count(max_num_seqs)}"))
    marks.sort()
    top = budget.memory_bytes / 1e9 * (1.16 + 0.055 * len(marks))
    bands = []
    base = 0.0
    for title, size, _ in parts:
        bands += [{"n": n, "low": base / 1e9, "high": (base + size) / 1e9, "part": title} for n in domain]
        base += size
    reach = min(wall, end)  # beyond the wall requests wait, memory stays full
    for n, held_by in ((0.0, 0.0), (reach, reach), (end, reach)):
        bands.append({"n": n, "low": base / 1e9, "high": (base + held_by * per_seq[typical]) / 1e9, "part": kv_title})
    layers: list[Spec] = [
        {
            "data": {"values": bands},
            "mark": {"type": "area", "opacity": 0.8, "clip": True},
            "encoding": {
                "x": linear("n", "sequences in flight at once on one replica", domain),
                "y": linear("low", "GB on the fullest accelerator", (0, top)),
                "y2": {"field": "high"},
                "color": {
                    "field": "part",
                    "type": "nominal",
                    "title": None,
                    "scale": colour_scale(titles, [*(p[2] for p in parts), GREEN]),
                    "legend": {"symbolType": "square"},
                },
            },
        }
    ]
    for name, size in per_seq.items():
        if name != typical and size > 0 and room > 0:
            n = min(end, room / size)
            layers.append(
                {
                    "data": rows({"n": [0.0, n], "low": [base / 1e9, (base + n * size) / 1e9]}),
                    "mark": {"type": "line", "style": "ink-line", "strokeDash": [5, 3], "strokeWidth": 1.3},
                    "encoding": {
                        "x": {"field": "n", "type": "quantitative"},
                        "y": {"field": "low", "type": "quantitative"},
                    },
                }
            )
    layers += labelled_y(budget.memory_bytes / 1e9, f"card {say.num_bytes(budget.memory_bytes)}", "low", right=True)
    usable = f"usable {say.num_bytes(budget.usable_bytes)}"
    layers += labelled_y(budget.usable_bytes / 1e9, usable, "low", below=True, right=True, style="rule-ink")
    layers += labelled_x(marks, "n", domain, logarithmic=False)
    return chart(
        "memory-vs-concurrency",
        "Memory against concurrency",
        _sentence(budget, held, walls, fixed, typical),
        layers,
    )


def _sentence(budget: MemoryBudget, held: HeldTokens, walls: dict[str, float], fixed: float, typical: str) -> str:
    if not budget.fits:
        return (
            f"It does not fit: weights, activations and reserve take {say.num_bytes(fixed)} of "
            f"{say.num_bytes(budget.usable_bytes)} usable, and no KV block is left."
        )
    tokens = dict(held.items())
    head = (
        f"Weights take {say.num_bytes(budget.weight_bytes)} of {say.num_bytes(budget.usable_bytes)} usable and "
        f"{say.num_bytes(budget.kv_cache_bytes)} is left for KV, {say.count(budget.kv_tokens)} tokens"
    )
    if math.isinf(walls[typical]):
        return head + "; this model keeps no cache that grows, so memory never fills."
    body = (
        f"full at {say.count(walls[typical])} requests that hold the {typical} of {say.count(tokens[typical])} tokens"
    )
    rest = [f"{say.count(walls[k])} at the {k} of {say.count(tokens[k])}" for k in ("p95", "max") if k in walls]
    return f"{head}: {body}" + (f", at only {' and '.join(rest)}" if rest else "") + "."


def memory_bar(budget: MemoryBudget, used_bytes: float, batch: int) -> Spec:
    """One accelerator's memory at one operating point: what is held against what is usable and what there is.

    ``used_bytes`` counts weights, activations, reserve and the KV cache of ``batch`` sequences.
    """
    fixed = budget.weight_bytes + budget.activation_bytes + budget.reserve_bytes
    kv = max(used_bytes - fixed, 0.0)
    parts = (
        ("weights", budget.weight_bytes, BLUE),
        ("activations", budget.activation_bytes, PINK),
        ("reserve", budget.reserve_bytes, GREY),
        ("KV cache", kv, GREEN),
    )
    titles, colours = [p[0] for p in parts], [p[2] for p in parts]
    base, bands = 0.0, []
    for name, size, _ in parts:
        band = {"low": base / 1e9, "high": (base + size) / 1e9, "part": name, "size": say.num_bytes(size)}
        bands.append(band)
        base += size
    domain = (0.0, 1.04 * max(budget.memory_bytes, min(used_bytes, 2 * budget.memory_bytes)) / 1e9)
    bar = {
        "data": {"values": bands},
        "mark": {"type": "rect", "opacity": 0.85, "clip": True},
        "encoding": {
            "x": linear("low", "GB on the fullest accelerator", domain),
            "x2": {"field": "high"},
            "y": {"value": 46},
            "y2": {"value": 96},
            "color": {
                "field": "part",
                "type": "nominal",
                "title": None,
                "scale": colour_scale(titles, colours),
                "legend": {"symbolType": "square"},
            },
            "tooltip": [{"field": f, "type": "nominal"} for f in ("part", "size")],
        },
    }
    marks = [
        (budget.usable_bytes / 1e9, f"usable {say.num_bytes(budget.usable_bytes)}"),
        (budget.memory_bytes / 1e9, f"card {say.num_bytes(budget.memory_bytes)}"),
    ]
    layers = [bar, *labelled_x(marks, "low", domain, logarithmic=False)]
    over = used_bytes - budget.usable_bytes
    together = f"{say.count(batch)} sequence{'s' if batch > 1 else ''}"
    if fixed >= budget.usable_bytes:
        sentence = f"The model alone needs {say.num_bytes(fixed)} of {say.num_bytes(budget.usable_bytes)} usable."
    elif over > 0:
        sentence = f"{together.capitalize()} need {say.num_bytes(over)} more than is usable: some would wait."
    else:
        sentence = f"{together.capitalize()} hold {say.num_bytes(kv)} of KV cache; {say.num_bytes(-over)} stay free."
    return chart("memory", "Memory of one accelerator", sentence, layers, height=110)
