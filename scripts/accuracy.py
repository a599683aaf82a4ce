"""Write docs/accuracy.md: every published measurement at hand, predicted with the shipped constants and compared.

Usage: ``python scripts/accuracy.py [DIRECTORY] [--out FILE]`` where DIRECTORY holds the ground-truth tables and
``traces/`` (default ``../shared/data/ground_truth``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gambrel.calibrate.accuracy import accuracy_page
from gambrel.calibrate.published import default_price, validate_tables
from gambrel.calibrate.replay import read_timed, replay_errors
from gambrel.catalog.efficiency import constants
from gambrel.faces import api

ROOT = Path(__file__).resolve().parents[1]
REPORTED_BLOCKS = 2588  # of 16 tokens, by vLLM 0.19 on the RTX 4090 of the trace


def replayed(traces: Path) -> list[str]:
    """The trace replay's errors as Markdown."""
    path = traces / "RTX4090__Llama-3.1-8B.csv"
    if not path.is_file():
        return []
    deployment = api.deployment(
        "meta-llama/Llama-3.1-8B", "rtx-4090", max_num_batched_tokens=2048, engine_version="0.19.0"
    )
    timed, priced = read_timed(path), default_price()(deployment)
    lines = [
        "## Trace replay", "",
        "300 requests that vLLM 0.19 served on an RTX 4090 (its KV cache saturates), each replayed; signed errors.", "",
        "| KV blocks | TTFT mean | TTFT p99 | TPOT mean | E2E mean |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for label, blocks in ((f"{REPORTED_BLOCKS}, as the engine reported", REPORTED_BLOCKS), ("as estimated", None)):
        e = replay_errors(timed, deployment, priced, blocks)
        lines.append(f"| {label} | {e['ttft']:+.1%} | {e['ttft_p99']:+.1%} | {e['tpot']:+.1%} | {e['e2e']:+.1%} |")
    return [*lines, ""]


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
    found = validate_tables(sorted(arguments.directory.glob("*.csv")))
    page = accuracy_page(found, [*replayed(arguments.directory / "traces"), *held_out()])
    arguments.out.write_text(page, encoding="utf-8")
    for (metric,), e in found.by(lambda c: (c.metric,)).items():
        print(f"{metric}: {e.n} figures, median {e.median_ape:.1%}, p90 {e.p90_ape:.0%}, in 80 % {e.coverage:.0%}")


if __name__ == "__main__":
    main()
