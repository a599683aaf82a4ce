"""Write docs/accuracy.md: every published measurement at hand, predicted with the shipped constants and compared.

Usage: ``python scripts/accuracy.py [DIRECTORY] [--out FILE]`` where DIRECTORY holds the ground-truth tables and
``traces/`` (default ``../shared/data/ground_truth``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gambrel.calibrate.accuracy import accuracy_page
from gambrel.calibrate.published import validate_tables
from gambrel.calibrate.replay import replays_beside
from gambrel.catalog.efficiency import constants

ROOT = Path(__file__).resolve().parents[1]


def replayed(tables: list[Path]) -> list[str]:
    """The trace replay's errors as Markdown."""
    found = replays_beside(tables)
    lines = [
        "## Trace replay", "",
        "300 requests that vLLM 0.19 served on an RTX 4090 (its KV cache saturates), each replayed; signed errors.", "",
        "| KV blocks | TTFT mean | TTFT p99 | TPOT mean | E2E mean |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for replay in found:
        e, blocks = replay.errors, replay.num_kv_blocks
        label = "as estimated" if blocks is None else f"{blocks}, as the engine reported"
        lines.append(f"| {label} | {e['ttft']:+.1%} | {e['ttft_p99']:+.1%} | {e['tpot']:+.1%} | {e['e2e']:+.1%} |")
    return [*lines, ""] if found else []


def held_out() -> list[str]:
    """The fit's held-out errors, as its script wrote them beside the constants."""
    data = constants()
    lines = [
        "## Held out", "",
        ("Every figure predicted by constants that were fitted without its model, without its accelerator, without its"
         " source (`python scripts/fit_engines.py`): one Gauss-Newton step back from the common fit, then simulated. A"
         " source that is all an engine has leaves nothing but the start of the fit. Intervals are sized on these"
         " errors engine by engine; the last column says how often they held by kind."), "",
        "| kind | metric | without its | figures | median | p90 | within the 80 % interval |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    lines += [
        f"| {h['kind']} | {h['metric']} | {h['without'].replace('gpu', 'accelerator')} | {h['figures']} |"
        f" {h['median']:.0%} | {h['p90']:.0%} | {h['covered']:.0%} |"
        for h in data["held_out"]
    ]
    lines += [
        "", "Time per token, end-to-end time and throughput by engine, median:", "",
        "| engine | since | accelerators of | figures | without its model | its accelerator | its source |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    lines += [
        f"| {engine} | {e['since']} | {e.get('vendor', 'NVIDIA')} | {e['rows']} | {e['held_out_model']:.0%} |"
        f" {e['held_out_gpu']:.0%} | {e['held_out_source']:.0%} |"
        for engine, entries in data["engines"].items()
        for e in entries
        if e.get("rows")
    ]
    return [*lines, ""]


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?", default=ROOT.parent / "shared" / "data" / "ground_truth")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "accuracy.md")
    arguments = parser.parse_args()
    tables = sorted(arguments.directory.glob("*.csv"))
    found = validate_tables(tables)
    page = accuracy_page(found, [*replayed(tables), *held_out()])
    arguments.out.write_text(page, encoding="utf-8")
    for (metric,), e in found.by(lambda c: (c.metric,)).items():
        print(f"{metric}: {e.n} figures, median {e.median_ape:.1%}, p90 {e.p90_ape:.0%}, in 80 % {e.coverage:.0%}")


if __name__ == "__main__":
    main()
