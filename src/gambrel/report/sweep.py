"""A measured endpoint as a page: what batching gives, what a demo would have hidden, and whether to believe it.

What the client distorted has a table of its own, since a page of measurements is worth what its fidelity is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from gambrel.core.plan import Cell
from gambrel.report import humanise as say
from gambrel.report.choice import cell_latency
from gambrel.report.document import Fact, Report, Section, Table
from gambrel.report.measured import drawn, sure
from gambrel.report.service import NAMES
from gambrel.report.style import caption
from gambrel.report.sweep_charts import measured_latency, measured_step, measured_throughput, prompt_title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gambrel.report.measured import MeasuredSweep
    from gambrel.report.style import Spec

__all__ = ["fidelity_table", "measured_cells", "sweep_report"]

_BATCH: Final = "A step reads the weights once for everybody in it: tokens get cheaper until the step itself grows."
_USER: Final = "A token waits for the prompts and tokens of everybody in the same step."
_DEMO: Final = "One user with short prompts sees the floor of every latency; production is the opposite corner."


def measured_cells(sweep: MeasuredSweep) -> tuple[Cell, ...]:
    """{fewest users, most users} x {shortest, longest prompts} as measured, the demo first; those that exist."""
    levels = [v for v in drawn(sweep) if v.mode == "closed"]
    if not levels:
        return ()
    users = sorted({v.requested for v in levels})
    prompts = sorted({round(v.prompt_tokens) for v in levels})
    found = {(v.requested, round(v.prompt_tokens)): v for v in levels}
    cells = []
    for n in dict.fromkeys((users[0], users[-1])):
        for p in dict.fromkeys((prompts[0], prompts[-1])):
            if (v := found.get((n, p))) is not None:
                people = "1 user" if n == 1 else f"one of {say.count(n)} users"
                cells.append(
                    Cell(
                        users=round(n),
                        prompt_tokens=float(p),
                        label=f"{people} with {prompt_title(p)}",
                        ttft_p95_s=v.ttft.p95,
                        tpot_p95_s=v.tpot.p95,
                        e2e_p95_s=v.e2e.p95,
                        tokens_per_s=v.output_tokens_per_s,
                        kv_usage_max=math.nan,
                        hides="",
                    )
                )
    return tuple(cells)


def _cells_chart(cells: Sequence[Cell]) -> Spec | None:
    """The cells, where there are two or more with every figure."""
    whole = [c for c in cells if all(0 < s < math.inf for s in (c.ttft_p95_s, c.tpot_p95_s, c.e2e_p95_s))]
    spec = cell_latency(whole) if len(whole) > 1 else None
    return None if spec is None else {**spec, "name": "measured-cells"}


def _cells_table(cells: Sequence[Cell]) -> Table | None:
    if len(cells) < 2:
        return None
    demo, real = cells[0], cells[-1]
    sentence = (
        f"{demo.label}: {say.number(demo.tokens_per_s / demo.users)} tokens/s; "
        f"{real.label}: {say.number(real.tokens_per_s / real.users)} tokens/s, "
        f"{say.number(real.tokens_per_s)} tokens/s for all together."
    )
    columns = ("test", "TTFT p95", "TPOT p95", "E2E p95", "tokens/s each", "tokens/s in all")
    lines = tuple(
        (
            c.label,
            say.seconds(c.ttft_p95_s),
            say.seconds(c.tpot_p95_s),
            say.seconds(c.e2e_p95_s),
            say.number(c.tokens_per_s / c.users),
            say.number(c.tokens_per_s),
        )
        for c in cells
    )
    return Table("What a user gets", sentence, columns, lines, (False, *(True,) * 5))


def _level_table(sweep: MeasuredSweep) -> Table:
    percentiles = ("p50", "p95", "p99")
    columns = ("level", "tokens/s", "requests/s", *(f"TTFT {s}" for s in percentiles),
               *(f"TPOT {s}" for s in percentiles), "E2E p50", "server batch", "answered", "failed")  # fmt: skip
    lines = tuple(
        (
            v.label,
            say.number(v.output_tokens_per_s),
            say.number(v.requests_per_s),
            *(say.seconds(v.ttft.percentile(s)) for s in percentiles),
            *(say.seconds(v.tpot.percentile(s)) for s in percentiles),
            say.seconds(v.e2e.p50),
            say.number(v.server_batch),
            str(v.num_ok),
            str(v.num_errors),
        )
        for v in sweep.levels
    )
    total = sum(v.num_ok for v in sweep.levels)
    seconds = sum(v.window_s for v in sweep.levels)
    sentence = f"{say.count(total)} requests were measured in {say.seconds(seconds)} of windows."
    return Table("Every level", sentence, columns, lines, (False, *(True,) * (len(columns) - 1)))


def fidelity_table(sweep: MeasuredSweep) -> Table:
    """Asked against delivered, lateness and the client's own load for every level, with the verdict."""
    bound = [v for v in sweep.levels if v.trust.client_bound]
    columns = ("level", "asked", "delivered", "sent late p99", "loop lag p99", "merged reads", "client CPU", "verdict")
    lines = tuple(
        (
            v.label,
            say.number(v.requested),
            say.number(v.delivered),
            say.seconds(v.trust.late_p99_s),
            say.seconds(v.trust.loop_lag_p99_s),
            say.percent(v.trust.merged_reads_share),
            say.percent(v.trust.cpu_share),
            "client-bound: " + "; ".join(v.trust.reasons) if v.trust.client_bound else "kept up",
        )
        for v in sweep.levels
    )
    if bound:
        sentence = f"{len(bound)} of {len(sweep.levels)} levels measured the client and not the server."
    else:
        sentence = f"At all {len(sweep.levels)} levels the client kept up: what is shown is the server."
    status = tuple("missed" if v.trust.client_bound else "met" for v in sweep.levels)
    return Table("Was it the client?", sentence, columns, lines, (False, *(True,) * 6, False), status)


def _doubts_table(sweep: MeasuredSweep) -> Table | None:
    """Every warning once, with the levels it is about."""
    about: dict[str, list[str]] = {note: [] for note in sweep.notes}
    for v in sweep.levels:
        for text in v.warnings:
            about.setdefault(text, []).append(v.label)
    if not about:
        return None
    lines = tuple((text, ", ".join(labels) or "all") for text, labels in about.items())
    sentence = "What keeps these figures from being surer; a longer --duration and --repeats 3 mend most of it."
    return Table("What to know before believing it", sentence, ("what", "levels"), lines, (False, False))


def sweep_report(sweep: MeasuredSweep) -> Report:
    """The page of a measured sweep; charts that the levels cannot carry are left out."""
    throughput, step = measured_throughput(sweep), measured_step(sweep)
    latencies = [measured_latency(sweep, m) for m in ("ttft", "tpot", "e2e")]
    cells = measured_cells(sweep)
    trust, doubts = fidelity_table(sweep), _doubts_table(sweep)
    cell_chart, cell_table = _cells_chart(cells), _cells_table(cells)
    sections = [
        Section("What does the batch give?", _BATCH, _kept(throughput, step)),
        Section("What does it cost each user?", _USER, _kept(*latencies)),
        Section("What would a demo have shown?", _DEMO, _kept(cell_chart, cell_table)),
        Section("Can it be believed?", trust.sentence, _kept(trust, doubts)),
        Section("All figures", "", (_level_table(sweep),)),
    ]
    return Report(
        title=f"{sweep.model.rpartition('/')[2] or 'An endpoint'}, measured",
        subtitle=f"{sweep.model} at {sweep.source}; {len(sweep.levels)} level{'s' if len(sweep.levels) != 1 else ''}",
        headline=(*(caption(c) for c in (throughput, step) if c is not None), trust.sentence),
        facts=_facts(sweep),
        sections=tuple(s for s in sections if s.items),
        provenance=(
            *sweep.basis,
            *(f"{NAMES.get(word, word)} is {name}" for word, name in sweep.definitions.items()),
            "Percentiles are of measured requests that ended well; throughput counts every token within the window.",
        ),
    )


def _kept(*items: Spec | Table | None) -> tuple[Spec | Table, ...]:
    return tuple(item for item in items if item is not None)


def _facts(sweep: MeasuredSweep) -> tuple[Fact, ...]:
    levels = drawn(sweep)
    failed = sum(v.num_errors for v in sweep.levels)
    bound = sum(v.trust.client_bound for v in sweep.levels)
    end = (
        Fact("failed", f"{failed} requests", status="missed" if failed else "met"),
        Fact("client-bound", f"{bound} of {len(sweep.levels)} levels", status="missed" if bound else "met"),
    )
    if not levels:
        return end
    best = max(sure(levels), key=lambda v: v.output_tokens_per_s)
    calm = min(levels, key=lambda v: (v.requested, v.prompt_tokens))
    return (
        Fact("most throughput", say.rate(best.output_tokens_per_s, "tokens"), f"at {best.label}"),
        Fact("first token, median", say.seconds(calm.ttft.p50), f"at {calm.label}"),
        Fact("per token, median", say.seconds(calm.tpot.p50), f"at {calm.label}"),
        *end,
    )
