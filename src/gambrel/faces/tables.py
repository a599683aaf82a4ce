"""Results as terminal tables that read well at 100 columns; human units, every one named."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from gambrel.core.run import Distribution
from gambrel.report import humanise as human

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import RenderableType

    from gambrel.core.curve import Curve
    from gambrel.core.plan import Plan, Relaxation
    from gambrel.core.run import Run
    from gambrel.core.slo import Verdict
    from gambrel.core.step import MemoryBudget
    from gambrel.report import Table as Page
    from gambrel.traffic import WorkloadFigures

__all__ = ["curve_tables", "grid", "plan_tables", "refusal_tables", "run_tables", "verdict_table", "workload_tables"]

MARKS = {"compute": "compute", "weights": "weights", "kv": "KV", "collective": "collective", "overhead": "overhead"}
SAID = {"How sure", "Growth", "Measure next", "Replicas by hour of the day"}
"""Tables whose sentence says what no row does."""


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> Table:
    """A quiet table: the first ``left`` columns and the last are words, the others figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        words = i < left
        table.add_column(name, justify="left" if words else "right", overflow="fold", header_style="dim")
    for row in rows:
        table.add_row(*row)
    return table


def facts(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False,
                  padding=(0, 2, 0, 0))  # fmt: skip
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def verdict_table(verdicts: Iterable[Verdict]) -> Table:
    """Objectives against what was reached."""
    rows = [
        [o.name, human.allowed(o), human.figure(o, v.reached), "met" if v.met else "missed"]
        for v in verdicts
        for o in (v.objective,)
    ]
    return grid("objectives", ["", "limit", "reached", ""], rows)


def length_row(label: str, d: Distribution) -> list[str]:
    """A row of token lengths."""
    return [label, f"{d.mean:,.0f}", *(f"{x:,.0f}" for x in (d.p50, d.p90, d.p99, d.max))]


def workload_tables(figures: WorkloadFigures) -> list[RenderableType]:
    """What a log holds, warnings last so that they are read."""
    f, c = figures, figures.concurrency
    rows = [
        (
            "requests",
            f"{f.num_requests:,} over {human.seconds(f.span_s)}, {f.rate_rps:.3g} a second"
            if f.span_s > 0
            else f"{f.num_requests:,} at one time, so no rate can be known",
        ),
        ("bursts", bursts_text(f)),
        (
            "in flight",
            f"mean {c.mean:.1f}, p99 {c.p99:.0f}, most {c.max:,} at once; demand: {c.basis}",
        ),
        ("KV held", f"{f.kv_tokens_held:,.0f} tokens by a request in flight, weighted by how long it stays"),
        (
            "correlation",
            f"{f.correlation:+.2f} between prompt and output length (Spearman)"
            if math.isfinite(f.correlation)
            else "none to be known: the prompts or the outputs are all of one length",
        ),
    ]
    if f.prefix_reuse is not None:
        r = f.prefix_reuse
        text = f"an infinite cache hits {human.percent(r.hit_ratio)} of prompt blocks ({r.block_tokens} tokens each)"
        rows.append(("prefix reuse", text))
    if f.cached_share is not None:
        rows.append(("cached", f"{human.percent(f.cached_share)} of prompt tokens, as the log says"))
    if f.num_sessions is not None:
        rows.append(("sessions", f"{f.num_sessions:,} distinct clients or conversations"))
    lengths = grid(
        "tokens",
        ["", "mean", "p50", "p90", "p99", "max"],
        [length_row("prompt", f.prompt_tokens), length_row("output", f.output_tokens)],
    )
    blocks: list[RenderableType] = [facts(f.source or f.name, rows), Text(), lengths]
    if f.warnings:
        blocks += [Text(), facts("before you believe it", [("-", w) for w in f.warnings])]
    return blocks


def bursts_text(f: WorkloadFigures) -> str:
    """How uneven the arrivals are, as far as their times tell."""
    if not math.isfinite(f.cv):
        return "not to be known: no two requests have different times"
    peaks = ", ".join(f"{human.multiple(x)} in {window}" for window, x in f.peak_to_mean.items() if math.isfinite(x))
    text = f"gaps vary by CV {f.cv:.2f} (Poisson is 1); busiest window over the mean: "
    return text + (peaks or "the log is shorter than one")


def batch_text(batch: float) -> str:
    """A batch size, or that it does not exist."""
    return f"{batch:,.0f}" if math.isfinite(batch) else "never"


def curve_tables(curve: Curve) -> list[RenderableType]:
    """Named points first, then the points, one row a (context, batch)."""
    d = curve.deployment
    price = d.with_(replicas=1).usd_per_hour
    knee, knee_batch = curve.knee
    at = f", context {curve.named_context:,}"
    known = d.accelerator.price
    priced = "none known" if price is None or known is None else f"{human.per_hour(price)}, {known.basis}"
    head = facts(
        f"{d.model.name} on {d.gpus_per_replica} x {d.accelerator.title}, weights {d.weights}, KV {d.kv}",
        [
            ("floor", f"{human.seconds(curve.floor_s)} a step: reading every weight once, at peak bandwidth"),
            ("ridge", f"compute = memory at batch {batch_text(curve.ridge_batch)}{at}"),
            ("balance", f"KV read = weight read at batch {batch_text(curve.balance_batch)}{at}"),
            ("wall", f"memory full at batch {curve.wall_batch:,}{at}"),
            ("knee", f"{knee} at batch {batch_text(knee_batch)}"),
            ("crossover", f"above {curve.crossover_context:,.0f} tokens of context no batch is compute-bound"),
            ("amortisation", f"{human.multiple(curve.amortisation)} cheaper per token at the wall than at batch 1"),
            ("price", priced),
            ("basis", f"{curve.basis}; form {curve.form}"),
        ],
    )  # fmt: skip
    rows = []
    causes = curve.causes()
    for i in np.lexsort((curve.batch, curve.context)):
        usd = "" if curve.usd_per_mtok is None else human.dollars(float(curve.usd_per_mtok[i]))
        rows.append(
            [
                f"{int(curve.context[i]):,}",
                f"{int(curve.batch[i]):,}",
                human.seconds(float(curve.step_s[i])),
                human.seconds(float(curve.compute_s[i])),
                human.seconds(float(curve.weights_s[i])),
                human.seconds(float(curve.kv_s[i])),
                MARKS[causes[i]] if curve.fits[i] else "does not fit",
                f"{float(curve.memory_bytes[i]) / 1e9:.1f}",
                f"{float(curve.tokens_per_s[i]):,.0f}",
                usd if curve.fits[i] else "",
            ]
        )
    columns = ["context", "batch", "step", "compute", "weights", "KV", "bound by", "GB/GPU", "tok/s", "$/Mtok"]
    return [head, Text(), grid("", columns, rows, left=0)]


def latency_rows(latency: Mapping[str, Distribution]) -> list[list[str]]:
    """One row a metric."""
    names = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E", "queue": "queue"}
    rows = []
    for metric, label in names.items():
        d = latency[metric]
        rows.append([label, *(human.seconds(x) for x in (d.mean, d.p50, d.p90, d.p95, d.p99))])
    return rows


def phase_rows(run: Run) -> list[list[str]]:
    """One row a phase of a request's life, with its share of all requests' E2E; no preempted row where nobody was."""
    shares = run.time_in()
    rows = []
    for name, seconds in run.phases_s().items():
        if name == "preempted" and not run.num_preemptions:
            continue
        d = Distribution.of(seconds)
        times = [human.seconds(x) for x in (d.mean, d.p50, d.p90, d.p95, d.p99)]
        rows.append([name, *times, human.percent(shares[name])])
    return rows


def cost_words(usd_per_mtok: float | None) -> str:
    """Dollars with the whole fleet charged to the output that was delivered."""
    if usd_per_mtok is None:
        return "no price known"
    if math.isinf(usd_per_mtok):
        return "no answer came to its end"
    return f"{human.per_mtok(usd_per_mtok)} of output all-in, at this load"


def run_tables(run: Run, memory: MemoryBudget, usd_per_mtok: float | None) -> list[RenderableType]:
    """Latency blocks, then what the replicas did."""
    lost = run.num_unfinished
    unfinished = [("unfinished", f"{lost:,} of {len(run):,} requests; no latency counts them")] if lost else []
    latency = {m: run.distribution(m) for m in ("ttft", "tpot", "itl", "e2e", "queue")}
    shares = ", ".join(f"{MARKS[c]} {human.percent(s)}" for c, s in run.time_bound_by().items() if s >= 0.005)
    return [
        grid("latency", ["", "mean", "p50", "p90", "p95", "p99"], latency_rows(latency)),
        Text(),
        grid("the time of a request", ["", "mean", "p50", "p90", "p95", "p99", "of E2E"], phase_rows(run)),
        Text(),
        facts(
            "replicas",
            [
                ("output", f"{run.output_tokens_per_s:,.0f} tokens/s over {human.seconds(run.makespan_s)}"),
                (
                    "busy",
                    (f"{human.percent(run.utilisation)} of the time, idle {human.percent(run.idle_share)}; "
                    f"{run.num_steps:,} steps"),
                ),
                ("bound by", f"{shares} of busy time"),
                *unfinished,
                ("batch", f"mean {run.batch_mean:.1f}, max {run.batch_max:,} sequences"),
                (
                    "KV cache",
                    (f"mean {human.percent(run.kv_usage_mean)}, max {human.percent(run.kv_usage_max)} of "
                    f"{memory.kv_tokens:,} tokens; {run.num_preemptions:,} preemptions"),
                ),
                ("cost", cost_words(usd_per_mtok)),
                ("basis", run.basis),
            ],
        ),
        *pool_tables(run),
    ]  # fmt: skip


def pool_tables(run: Run) -> list[RenderableType]:
    """What the prefill and the decode workers did, each for itself; nothing where there is one pool."""
    if not run.pools or run.prefilled_s is None or run.transferred_s is None:
        return []
    rows = [
        [
            p.name, f"{p.replicas:,}", human.percent(p.busy_s / (run.makespan_s * p.replicas)),
            f"{p.batch_mean:.1f}", f"{p.batch_max:,}", human.percent(p.kv_usage_mean), human.percent(p.kv_usage_max),
        ]
        for p in run.pools
    ]  # fmt: skip
    over = human.seconds(float((run.transferred_s - run.prefilled_s).mean()))
    heading = f"pools: a prompt takes {over} on average from computed to come over"
    return [Text(), grid(heading, ["", "workers", "busy", "batch", "max", "KV", "max"], rows)]


def shown(table: Page, columns: Sequence[str] | None = None) -> Table:
    """A table of the report in the terminal: the same rows, all its columns or those named."""
    kept = range(len(table.columns)) if columns is None else [table.columns.index(name) for name in columns]
    found = grid(
        table.heading[:1].lower() + table.heading[1:],
        [table.columns[i] for i in kept],
        [[row[i] for i in kept] for row in table.rows],
    )
    for column, i in zip(found.columns, kept, strict=True):
        column.justify = "right" if table.numeric[i] else "left"
    return found


def answer_table(plan: Plan) -> Table:
    """What to rent and how to start it."""
    c, d = plan.chosen, plan.chosen.deployment
    rows = [
        ("rent", f"{d.num_gpus} x {d.accelerator.title}: {d.replicas} replica{'s'[: d.replicas > 1]} of tp {d.tp}"),
        ("formats", f"weights {d.weights}, KV cache {d.kv}"),
        ("limits", f"max_num_seqs {d.max_num_seqs}, max_num_batched_tokens {d.max_num_batched_tokens}"),
    ]
    if c.pricing is not None and d.accelerator.price is not None:
        prompt, output = human.per_mtok(c.pricing.usd_per_mtok_input), human.per_mtok(c.pricing.usd_per_mtok_output)
        rows += [
            ("cost", f"{human.per_hour(c.pricing.usd_per_hour)} ({d.accelerator.price.basis})"),
            ("", f"{prompt} input, {output} output, by share of busy time at the log's load"),
        ]
    rows += [("launch", plan.launch), ("basis", plan.basis)]
    rows += [("know", sentence) for sentence in plan.caveats]
    rate = "all at once" if math.isnan(plan.rate_rps) else f"{plan.rate_rps:.3g}/s"
    return facts(f"plan for {plan.workload}: {plan.num_requests:,} requests, {rate}", rows)


def last_column_left(table: Table) -> Table:
    """Words in the last column."""
    table.columns[-1].justify = "left"
    return table


def plan_tables(plan: Plan) -> list[RenderableType]:
    """The answer, why, against what, and what next: the rows of the report, for 100 columns."""
    from gambrel.report import (
        against_table,
        answer_tables,
        cell_table,
        fix_table,
        keeping_up,
        objective_table,
        plan_table,
    )

    c = plan.chosen
    blocks: list[RenderableType] = [answer_table(plan), "", shown(objective_table(plan)), ""]
    if word := keeping_up(plan):
        blocks += [word, ""]
    unlimited = [m for m in ("ttft", "tpot") if not any(v.objective.metric in {m, "e2e"} for v in c.verdicts)]
    if unlimited:
        reached = ", ".join(f"{m}.p95 reaches {human.seconds(c.latency[m].p95)}" for m in unlimited)
        blocks += [f"without an objective: {reached}; add one to bound it", ""]
    blocks += [shown(plan_table(plan), ("deployment", "$/h", "$/Mtok all-in", "unused", "worst margin", "why not")), ""]
    blocks += [shown(against_table(plan)), ""]
    if plan.cells:
        columns = ("test", "TTFT p95", "TPOT p95", "E2E p95", "tokens/s", "KV max", "what it hides")
        blocks += [shown(cell_table(plan.cells), columns), ""]
    for table in (fix_table(plan.cheaper_fixes), *answer_tables(plan)):
        if table is not None:
            blocks += [shown(table), ""]
            if table.heading in SAID:
                blocks[-1:] = [Text(table.sentence, style="dim"), ""]
    done = f"{plan.num_considered:,} settings, {plan.num_simulated:,} simulated, {plan.wall_s:.1f} s"
    measure = plan.measure_next if plan.measurement is None else plan.measurement.command
    return [*blocks, facts("next", [("measure", measure), ("searched", done)])]


def refusal_tables(relaxations: Sequence[Relaxation]) -> list[RenderableType]:
    """The nearest requests that can be met, when the one that was made cannot."""
    rows = [
        [r.change, "" if r.deployment is None else r.deployment.label,
         "" if r.usd_per_hour is None else human.per_hour(r.usd_per_hour), r.because]
        for r in relaxations
    ]  # fmt: skip
    if not rows:
        return ["no smaller change of the request was found that holds"]
    return [last_column_left(grid("what would hold instead", ["ask", "deployment", "cost", "because"], rows, left=2))]
