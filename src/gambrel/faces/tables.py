"""Results as terminal tables that read well at 100 columns; human units, every one named."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from gambrel.report import humanise as human

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import RenderableType

    from gambrel.core.curve import Curve
    from gambrel.core.plan import Candidate, Plan
    from gambrel.core.run import Distribution, Run
    from gambrel.core.slo import Verdict
    from gambrel.core.step import MemoryBudget
    from gambrel.traffic import WorkloadFigures

__all__ = ["curve_tables", "grid", "plan_tables", "run_tables", "verdict_table", "workload_tables"]

MARKS = {"compute": "compute", "weights": "weights", "kv": "KV", "collective": "collective", "overhead": "overhead"}
ALTERNATIVES_SHOWN = 12


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
        [v.objective.name, human.seconds(v.objective.limit_s), human.seconds(v.reached_s), "met" if v.met else "missed"]
        for v in verdicts
    ]
    return grid("objectives", ["", "limit", "reached", ""], rows)


def length_row(label: str, d: Distribution) -> list[str]:
    """A row of token lengths."""
    return [label, f"{d.mean:,.0f}", *(f"{x:,.0f}" for x in (d.p50, d.p90, d.p99, d.max))]


def workload_tables(figures: WorkloadFigures) -> list[RenderableType]:
    """What a log holds, warnings last so that they are read."""
    f, c = figures, figures.concurrency
    peaks = ", ".join(f"{human.multiple(x)} in {window}" for window, x in f.peak_to_mean.items() if math.isfinite(x))
    rows = [
        ("requests", f"{f.num_requests:,} over {human.seconds(f.span_s)}, {f.rate_rps:.3g} a second"),
        ("bursts", f"gaps vary by CV {f.cv:.2f} (Poisson is 1); busiest window over the mean: {peaks}"),
        (
            "in flight",
            f"mean {c.mean:.1f}, p99 {c.p99:.0f}, most {c.max:,} at once; demand: {c.basis}",
        ),
        ("KV held", f"{f.kv_tokens_held:,.0f} tokens by a request in flight, weighted by how long it stays"),
        ("correlation", f"{f.correlation:+.2f} between prompt and output length (Spearman)"),
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


def run_tables(run: Run, memory: MemoryBudget, usd_per_mtok: float | None) -> list[RenderableType]:
    """Latency blocks, then what the replicas did."""
    latency = {m: run.distribution(m) for m in ("ttft", "tpot", "itl", "e2e", "queue")}
    shares = ", ".join(f"{MARKS[c]} {human.percent(s)}" for c, s in run.time_bound_by().items() if s >= 0.005)
    return [
        grid("latency", ["", "mean", "p50", "p90", "p95", "p99"], latency_rows(latency)),
        Text(),
        facts(
            "replicas",
            [
                ("output", f"{run.output_tokens_per_s:,.0f} tokens/s over {human.seconds(run.makespan_s)}"),
                ("busy", f"{human.percent(run.utilisation)} of the time, {run.num_steps:,} steps"),
                ("bound by", shares),
                ("batch", f"mean {run.batch_mean:.1f}, max {run.batch_max:,} sequences"),
                (
                    "KV cache",
                    (f"mean {human.percent(run.kv_usage_mean)}, max {human.percent(run.kv_usage_max)} of "
                    f"{memory.kv_tokens:,} tokens; {run.num_preemptions:,} preemptions"),
                ),
                ("cost", "no price known" if usd_per_mtok is None else f"{human.per_mtok(usd_per_mtok)} at this load"),
                ("basis", run.basis),
            ],
        ),
    ]  # fmt: skip


def candidate_row(c: Candidate) -> list[str]:
    """A row of the plan table."""
    d = c.deployment
    price = d.usd_per_hour
    worst = min((v for v in c.verdicts), key=lambda v: v.margin, default=None)
    simulated = c.stage == "simulated"
    return [
        d.label,
        "" if price is None or not simulated else human.dollars(price),
        "" if c.pricing is None else human.dollars(c.pricing.usd_per_mtok),
        human.percent(c.idle_share) if simulated else "",
        "" if worst is None or not simulated else human.signed_percent(worst.margin),
        c.lost_because or "chosen",
    ]


def best_of_each(plan: Plan) -> list[Candidate]:
    """The chosen one, then the best row of every accelerator, then more of those that hold, up to the limit."""
    shown = [plan.chosen]
    seen = {plan.chosen.deployment.accelerator.name}
    for c in plan.alternatives:
        name = c.deployment.accelerator.name
        if name not in seen and c.stage != "fits":
            seen.add(name)
            shown.append(c)
    rest = [c for c in plan.alternatives if c.feasible and c not in shown]
    shown += rest[: max(0, ALTERNATIVES_SHOWN - len(shown))]
    shown[1:] = sorted(shown[1:], key=lambda c: (not c.feasible, c.stage != "simulated", c.usd_per_hour))
    if plan.biggest_gpu is not None and plan.biggest_gpu not in shown[: ALTERNATIVES_SHOWN + 4]:
        shown.append(plan.biggest_gpu)
    return shown


def too_small(plan: Plan) -> list[Candidate]:
    """Shapes of accelerators on which no shape of the search fits, the nearest to fitting first."""
    others = {c.deployment.accelerator.name for c in (plan.chosen, *plan.alternatives) if c.stage != "fits"}
    return [c for c in plan.alternatives if c.deployment.accelerator.name not in others]


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
    return facts(f"plan for {plan.workload}: {plan.num_requests:,} requests, {plan.rate_rps:.3g}/s", rows)


def objective_rows(plan: Plan) -> list[list[str]]:
    """Each objective: limit, reached, interval, margin, where it breaks."""
    rows = []
    for v in plan.chosen.verdicts:
        low, high = plan.intervals.get(v.objective.name, (float("nan"), float("nan")))
        breaks = plan.breaks_at.get(v.objective.name, float("inf"))
        rows.append(
            [
                v.objective.name,
                human.seconds(v.objective.limit_s),
                human.seconds(v.reached_s),
                "" if math.isnan(low) else f"{human.seconds(low)} to {human.seconds(high)}",
                human.signed_percent(v.margin),
                f"{breaks:.2f}x load" if math.isfinite(breaks) else "beyond 4x",
            ]
        )
    return rows


def against_table(plan: Plan) -> Table:
    """What fits nowhere, the biggest GPU, and what a demo would have bought."""
    rows = []
    small = too_small(plan)
    if small:
        names = ", ".join(dict.fromkeys(x.deployment.accelerator.name for x in small))
        rows.append(("too small", f"{names}; nearest {small[0].deployment.label}: {small[0].lost_because}"))
    b = plan.biggest_gpu
    if b is not None and b is plan.chosen:
        rows.append(("biggest GPU", plan.biggest_gpu_because or "it is the right one here"))
    elif b is not None and b.feasible:
        extra, idle = human.per_hour(plan.biggest_gpu_extra_usd_per_hour), human.percent(b.idle_share)
        text = f"{b.deployment.label} holds too, for {extra} more; {idle} of what it can carry stays unused"
        rows.append(("biggest GPU", text))
    elif b is not None:
        rows.append(("biggest GPU", f"{b.deployment.label}: {b.lost_because}"))
    demo = plan.demo_plan
    name = "" if demo is None else f"{demo.deployment.label}; under the real log: "
    rows.append(("a demo buys", f"{name}{plan.demo_plan_hits}"))
    return facts("against", rows)


def last_column_left(table: Table) -> Table:
    """Words in the last column."""
    table.columns[-1].justify = "left"
    return table


def plan_tables(plan: Plan) -> list[RenderableType]:
    """The answer, why, against what, and what next."""
    from gambrel.faces.plan_answers import answers_tables

    c = plan.chosen
    blocks: list[RenderableType] = [
        answer_table(plan),
        "",
        grid("objectives", ["", "limit", "reached", "80 % interval", "margin", "breaks at"], objective_rows(plan)),
        "",
    ]
    unlimited = [m for m in ("ttft", "tpot") if not any(v.objective.metric in {m, "e2e"} for v in c.verdicts)]
    if unlimited:
        reached = ", ".join(f"{m}.p95 reaches {human.seconds(c.latency[m].p95)}" for m in unlimited)
        blocks += [f"without an objective: {reached}; add one to bound it", ""]
    columns = ["deployment", "$/h", "$/Mtok", "unused", "margin", "why not"]
    rows = [candidate_row(x) for x in best_of_each(plan)]
    cells = [
        [x.label, human.seconds(x.ttft_p95_s), human.seconds(x.tpot_p95_s), human.seconds(x.e2e_p95_s),
         f"{x.tokens_per_s:,.0f}", human.percent(x.kv_usage_max), x.hides]
        for x in plan.cells
    ]  # fmt: skip
    heads = ["", "TTFT", "TPOT", "E2E", "tok/s", "KV max", "what it hides"]
    blocks += [
        last_column_left(grid("candidates: the best of each accelerator", columns, rows)),
        "",
        against_table(plan),
        "",
        last_column_left(grid("demo against production, on the chosen deployment (p95)", heads, cells)),
        "",
    ]
    if plan.cheaper_fixes:
        fix_rows = [[f.change, human.per_hour(f.usd_per_hour), f.effect] for f in plan.cheaper_fixes]
        blocks += [last_column_left(grid("before an upgrade", ["change", "cost", "effect"], fix_rows)), ""]
    blocks += answers_tables(plan)
    done = f"{plan.num_considered:,} settings, {plan.num_simulated:,} simulated, {plan.wall_s:.1f} s"
    return [*blocks, facts("next", [("measure", plan.measure_next), ("searched", done)])]
