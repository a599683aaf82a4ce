"""The plan as a page of Markdown: what a pull request, a ticket or an email needs, and no more.

The first sentence is for whoever pays; the tables are for whoever doubts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gambrel.core.units import HOURS_PER_MONTH
from gambrel.report.humanise import dollars, limit, per_hour, per_mtok, percent, seconds, share, tokens

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.plan.file import PlanFile

__all__ = ["markdown_summary", "sentence"]


def sentence(file: PlanFile, deployment: Deployment) -> str:
    """The decision in one sentence that needs no glossary."""
    d = deployment
    cards = f"{d.num_gpus} x {d.accelerator.title}"
    cost = "" if file.price is None else f" for {per_hour(file.price.usd_per_hour)}"
    month = "" if file.price is None else f", about {dollars(file.price.usd_per_hour * HOURS_PER_MONTH)} a month"
    room = "" if file.breaks_at is None else f", with room for {percent(max(0.0, file.breaks_at - 1))} more traffic"
    sure = "" if file.chance is None else f" (chance that all targets hold: {percent(min(file.chance, 0.97))})"
    return f"Rent {cards}{cost}{month}: it meets every target on the log{room}{sure}."


def markdown_summary(file: PlanFile, deployment: Deployment) -> str:
    """The page."""
    d, w = deployment, file.workload
    traffic = f"{w.users} users" if w.users else f"{w.rate_rps:.3g} requests/s" if w.rate_rps else "all at once"
    made_for = (
        f"Made for *{w.name}*: {w.num_requests:,} requests, {traffic}, prompts of {tokens(w.prompt_tokens['mean'])} "
        f"tokens on average (p99 {tokens(w.prompt_tokens['p99'])}), answers of {tokens(w.output_tokens['mean'])}."
    )
    lines = [
        f"## Deployment plan: {d.model.name}",
        "",
        f"**{sentence(file, d)}**",
        "",
        made_for,
        "",
        "| objective | limit | predicted | 80 % interval | holds up to |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for p in file.predicted:
        reached = "" if p.reached_s is None else seconds(p.reached_s)
        between = "" if p.low_s is None or p.high_s is None else f"{seconds(p.low_s)} to {seconds(p.high_s)}"
        breaks = "beyond 4x" if p.breaks_at is None else f"{p.breaks_at:.2f}x load"
        lines.append(f"| {p.objective} | {limit(p.limit_s)} | {reached} | {between} | {breaks} |")
    for f in file.floors:
        reached = "" if f.reached is None else share(f.reached)
        between = "" if f.low is None or f.high is None else f"{share(f.low)} to {share(f.high)}"
        breaks = "beyond 4x" if f.breaks_at is None else f"{f.breaks_at:.2f}x load"
        lines.append(f"| {f.objective} | at least {share(f.floor)} | {reached} | {between} | {breaks} |")
    lines += ["", "| setting | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in settings(file, d)]
    if file.losers:
        lines += ["", "Why not the others:", ""]
        lines += [f"- **{loser.label}**{cost(loser.usd_per_hour)}: {loser.lost_because}" for loser in file.losers]
    if file.fixes:
        lines += ["", "Before an upgrade:", "", *(f"- {fix}" for fix in file.fixes)]
    if file.measure_command:
        lines += ["", f"Measure next: {file.measure_next}.", "", "```bash", file.measure_command, "```"]
    lines += ["", f"Predicted with gambrel {file.gambrel}; {file.basis}.", "", "```bash", file.launch, "```"]
    return "\n".join(lines) + "\n"


def cost(usd_per_hour: float | None) -> str:
    """Dollars in brackets."""
    return "" if usd_per_hour is None else f" ({per_hour(usd_per_hour)})"


def settings(file: PlanFile, d: Deployment) -> list[tuple[str, str]]:
    """What to set, and what it costs."""
    rows = [
        ("fleet", f"{d.replicas} replicas of {d.gpus_per_replica} x {d.accelerator.title}"),
        ("formats", f"weights {d.weights}, KV cache {d.kv}"),
        ("`max_num_seqs`", f"{d.max_num_seqs}"),
        ("`max_num_batched_tokens`", f"{d.max_num_batched_tokens}"),
        ("`gpu_memory_utilization`", f"{d.gpu_memory_utilization:g}"),
    ]
    if file.asked.spare:
        rows.append(("spare", f"holds with {file.asked.spare} of {d.replicas} replicas down"))
    if file.asked.confidence > 0.5:
        rows.append(("confidence", percent(file.asked.confidence)))
    if file.price is not None:
        rows.append(("price", f"{file.price.usd_per_gpu_hour:.4g} $/h each ({file.price.basis})"))
    if file.usd_per_mtok_output is not None and file.usd_per_mtok_input is not None:
        prompt, output = per_mtok(file.usd_per_mtok_input), per_mtok(file.usd_per_mtok_output)
        rows.append(("tokens", f"{prompt} input, {output} output, by share of busy time"))
    return rows
