"""The planner's and the curve's targets, as ratios of what was measured in this run to what is allowed.

A ratio below 1 meets the target. The workload is the Azure conversation trace where it lies beside the checkout, else
a generated one of the same size and rate.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.deployment import Deployment
from gambrel.faces import api

if TYPE_CHECKING:
    from gambrel.core.workload import Workload

TRACE = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces" / "azure-2023-conv.csv.gz"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
OBJECTIVES = ("ttft.p95<=1s", "tpot.p95<=50ms")


def workload() -> Workload:
    """19,366 requests in 58 minutes."""
    if TRACE.exists():
        return api.load_workload(TRACE)
    return api.load_workload("chat:rate=5.53,n=19366,seed=1")


def report(name: str, seconds: float, allowed_s: float, note: str = "") -> None:
    """One line: measured, allowed, ratio."""
    print(f"{name:44s} {seconds:8.3f} s  allowed {allowed_s:6.3f} s  ratio {seconds / allowed_s:6.3f}  {note}")


def plan_in_process() -> None:
    """A full plan, second call (kernels compiled, tables of the first call dropped)."""
    requests = workload()
    objectives = api.slo(*OBJECTIVES)
    api.plan(MODEL, requests, objectives, gpus=["l4"])
    started = time.perf_counter()
    found = api.plan(MODEL, requests, objectives)
    kinds = {c.deployment.accelerator.name for c in (found.chosen, *found.alternatives)}
    report(
        "plan, warm process",
        time.perf_counter() - started,
        10.0,
        f"{len(requests):,} requests, {len(kinds)} GPU kinds, {found.num_considered} settings, "
        f"{found.num_simulated} simulated",
    )


def plan_fresh() -> None:
    """The same from the shell, kernels from the on-disk cache."""
    spec = str(TRACE) if TRACE.exists() else "chat:rate=5.53,n=19366,seed=1"
    words = ["plan", "--model", MODEL, "--workload", spec, *(w for o in OBJECTIVES for w in ("--slo", o)), "--json"]
    command = [sys.executable, "-c", "from gambrel.faces.cli import main; main()", *words]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own program
    report("plan, fresh process", time.perf_counter() - started, 25.0)


def thousand_candidates() -> None:
    """1,000 deployments simulated on the whole log and held against the objectives, on two threads."""
    from concurrent.futures import ThreadPoolExecutor

    from gambrel.plan.search import Bench, judge

    requests, objectives = workload(), api.slo(*OBJECTIVES)
    model, pricer = api.model(MODEL), api.pricer()
    candidates = [
        Deployment(model, api.accelerator(gpu), weights=weights, max_num_seqs=seqs, max_num_batched_tokens=tokens,
                   replicas=replicas)
        for gpu in ("l40s", "rtx-6000-ada", "a100-sxm-80", "h100-sxm", "h200-sxm")
        for weights in ("bf16", "int8")
        for seqs in (64, 128, 256, 512)
        for tokens in (512, 1024, 2048, 4096, 8192)
        for replicas in (2, 3, 4, 5, 6)
    ]  # fmt: skip
    shapes = list(dict.fromkeys(d.with_(replicas=1) for d in candidates))

    def held(shape: Deployment) -> int:
        bench = Bench.of(pricer(shape))
        fleets = [d for d in candidates if d.with_(replicas=1) == shape]
        return sum(judge(d, bench, requests, objectives).candidate.feasible for d in fleets)

    held(shapes[0])
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        holding = sum(pool.map(held, shapes))
    note = f"{len(candidates)} x {len(requests):,} requests, {holding} hold"
    report("simulate 1,000 candidates", time.perf_counter() - started, 10.0, note)


def hundred_thousand_screened() -> None:
    """Every shape of every accelerator, bounded for 512 fleet sizes at once: what the search never simulates."""
    from gambrel.plan import Space
    from gambrel.plan.screen import Demand
    from gambrel.plan.search import Hunter

    requests, objectives = workload(), api.slo(*OBJECTIVES)
    model, pricer = api.model(MODEL), api.pricer()
    space = Space(api.default_accelerators())
    hunter = Hunter(requests, Demand.of(requests), objectives, space, pricer, ())
    shapes = list(space.shapes(model))
    started = time.perf_counter()
    bounds = [hunter.bound(shape) for shape in shapes]
    fleets = 512
    left = sum(fleets + 1 - min(fleets + 1, b[1]) for b in bounds if b is not None)
    note = f"{len(shapes)} shapes x {fleets} fleet sizes = {len(shapes) * fleets:,}, {left:,} left"
    report("screen 100,000 candidates", time.perf_counter() - started, 2.0, note)


def million_points() -> None:
    """1,000 batches x 1,000 contexts."""
    deployment = api.deployment(MODEL, "h100-sxm")
    batches, contexts = range(1, 1001), np.unique(np.linspace(1, 131072, 1000).astype(int)).tolist()
    best = float("inf")
    for _ in range(4):  # the first touches fresh memory
        started = time.perf_counter()
        drawn = api.curve(deployment, batches, contexts)
        best = min(best, time.perf_counter() - started)
    report("curve, 1e6 points, warm", best, 0.1, f"{len(drawn):,} points")


def start_up() -> None:
    """``gambrel --help`` and ``gambrel model NAME``, best of five: what the program itself needs."""
    for words in (["--help"], ["model", MODEL]):
        command = [sys.executable, "-c", "from gambrel.faces.cli import main; main()", *words]
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own program
            best = min(best, time.perf_counter() - started)
        report(f"gambrel {words[0]}", best, 0.3)


def main() -> None:
    """All of them."""
    start_up()
    million_points()
    plan_in_process()
    plan_fresh()
    hundred_thousand_screened()
    thousand_candidates()


if __name__ == "__main__":
    main()
