"""The planner's and the curve's targets, as ratios of what was measured in this run to what is allowed.

A ratio below 1 meets the target. The workload is the Azure conversation trace where it lies beside the checkout, else
a generated one of the same size and rate.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gambrel.faces import api
from gambrel.plan import Space
from gambrel.plan.hunter import Hunter
from gambrel.plan.question import Question
from gambrel.plan.search import search
from gambrel.plan.trial import Bench, fewest_replicas

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
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


GPUS = ("l40s", "rtx-6000-ada", "a100-sxm-80", "h100-sxm", "h200-sxm")


def thousand() -> tuple[Question, list[Deployment]]:
    """1,000 deployments: 5 cards x 2 formats x 20 pairs of limits, in fleets of 1 to 5."""
    space = Space(
        tuple(api.accelerator(gpu) for gpu in GPUS),
        tp=(1,),
        weights=("bf16", "int8"),
        kv=("bf16",),
        max_num_seqs=(64, 128, 256, 512),
        max_num_batched_tokens=(512, 1024, 2048, 4096, 8192),
        max_gpus=5,
    )
    question = Question(api.model(MODEL), workload(), api.slo(*OBJECTIVES), space, api.pricer())
    settings = [
        shape.with_(max_num_seqs=seqs, max_num_batched_tokens=tokens)
        for shape in space.shapes(question.model)
        for seqs, tokens in space.limits()
    ]
    return question, settings


def thousand_decided() -> None:
    """The planner's way: the cheapest of 1,000, and why the others lose."""
    q, settings = thousand()
    search(q.model, q.workload, q.slo, q.space, q.pricer)
    started, busy = time.perf_counter(), time.process_time()
    found = search(q.model, q.workload, q.slo, q.space, api.pricer())
    note = f"{5 * len(settings)} x {len(q.workload):,} requests, {found.num_simulated} simulations begun, "
    note += f"{time.process_time() - busy:.1f} s of processor"
    report("decide among 1,000 candidates", time.perf_counter() - started, 10.0, note)


def thousand_candidates() -> None:
    """The verdict on each of the 1,000: every setting's fewest replicas (more hold, fewer miss), on two threads."""
    q, settings = thousand()

    def held(setting: Deployment) -> int:
        bench = Bench.of(q.pricer(setting))
        least = fewest_replicas(lambda d: q.beginnings.judge(d, bench), setting, 1, 5)
        return 6 - least.candidate.deployment.replicas if least.candidate.feasible else 0

    held(settings[0])
    started, busy = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(2) as pool:
        holding = sum(pool.map(held, settings))
    note = f"{holding} hold, {time.process_time() - busy:.1f} s of processor"
    report("verdict on each of 1,000 candidates", time.perf_counter() - started, 10.0, note)


def thousand_to_the_end() -> None:
    """What neither needs: all 1,000 simulated to the last token, one by one. A tenth is run."""
    q, settings = thousand()
    fleets = [(setting, replicas) for setting in settings for replicas in range(1, 6)][::10]

    def run(fleet: tuple[Deployment, int]) -> int:
        return Bench.of(q.pricer(fleet[0])).run(fleet[0].with_(replicas=fleet[1]), q.workload).num_steps

    run(fleets[0])
    started, busy = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(2) as pool:
        steps = sum(pool.map(run, fleets))
    seconds = time.perf_counter() - started
    busy = time.process_time() - busy
    words = f"{10 * busy:.1f} s of processor, {busy / steps * 1e9:.0f} ns a step"
    print(f"{'simulate all 1,000 to the end':44s} {10 * seconds:8.3f} s  {words}")


def hundred_thousand_screened() -> None:
    """Every shape of every accelerator, bounded for 512 fleet sizes at once: what the search never simulates."""
    space = Space(api.default_accelerators())
    question = Question(api.model(MODEL), workload(), api.slo(*OBJECTIVES), space, api.pricer())
    shapes = list(space.shapes(question.model))
    started = time.perf_counter()
    bounds = [Hunter(question).bound(shape) for shape in shapes]
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
    thousand_decided()
    thousand_candidates()
    thousand_to_the_end()


if __name__ == "__main__":
    main()
