"""The load client's targets, as ratios of what was measured in this run to what is allowed; below 1 meets the target.

The server of known truth shares the machine, so on a busy one both suffer: how late the server itself was is printed,
and the best of up to three runs counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from gambrel.measure.client import Endpoint
from gambrel.measure.mock import MockServer, Script
from gambrel.measure.prompts import Prompts
from gambrel.measure.selfcheck import selfcheck
from gambrel.measure.sweep import Open, Sweep, measure

ATTEMPTS = 3
AT_128 = {"ttft_error": 0.02, "gap_error": 0.01, "tpot_error": 0.005, "cpu_s_per_1k_tokens": 0.04}
AT_512 = {"gap_error": 0.03}


def report(name: str, value: float, allowed: float, note: str = "") -> None:
    """One line: measured, allowed, ratio."""
    print(f"{name:44s} {value:8.4f}    allowed {allowed:6.3f}    ratio {value / allowed:6.3f}  {note}")


def streams(n: int, allowed: dict[str, float]) -> None:
    """The client's error at ``n`` streams of 100 tokens/s on one core."""

    def worst(level: dict[str, Any]) -> float:
        return max(float(level[k]) / limit for k, limit in allowed.items())

    best = selfcheck([n], processes=1)["levels"][0]
    for _ in range(ATTEMPTS - 1):
        if worst(best) > 0.8:
            best = min(best, selfcheck([n], processes=1)["levels"][0], key=worst)
    for key, limit in allowed.items():
        report(f"{n} streams, {key}", best[key], limit, f"mock late p99 {1e3 * best['server_late_p99_s']:.1f} ms")


def first_request() -> None:
    """From starting the interpreter to the first byte of the first request at the server."""
    code = (
        "import sys; from pathlib import Path; from gambrel.measure.client import Endpoint; "
        "from gambrel.measure.sweep import *\n"
        "measure(Sweep(Endpoint(sys.argv[1], 'mock'), (Closed(1, 16, 2),), num_requests=1, metrics_urls=None), "
        "Path(sys.argv[2]))"
    )
    found = []
    for _ in range(ATTEMPTS):
        with tempfile.TemporaryDirectory() as folder, MockServer(Script(ttft_s=0.001, gap_s=0.001)) as mock:
            began = time.monotonic_ns()
            words = [sys.executable, "-c", code, mock.url, str(Path(folder) / "run.jsonl.gz")]
            subprocess.run(words, check=True)  # noqa: S603 - our own program
            found.append((min(t.received_ns for t in mock.all_truths()) - began) / 1e9)
    report("first request after start, s", min(found), 1.0)


def overload() -> None:
    """An open load of twice the capacity: every latency, its queue included, against the D/D/1 queue."""
    rate, service_s, span_s = 100.0, 0.02, 3.0
    with tempfile.TemporaryDirectory() as folder, MockServer(Script(service_s=service_s)) as mock:
        sweep = Sweep(
            Endpoint(mock.url, "mock"), (Open(rate, 16, 4, "constant"),), duration_s=span_s, warm_s=1e-9,
            metrics_urls=None, prompts=Prompts(verified=True),
        )  # fmt: skip
        level = measure(sweep, Path(folder) / "run.jsonl.gz")["levels"][0]
    waits = service_s + (service_s - 1 / rate) * np.arange(level["num_ok"])
    off = max(abs(level["e2e_s"][k] / f - 1) for k, f in (("mean", waits.mean()), ("p50", np.median(waits))))
    report("open-loop overload against D/D/1", float(off), 0.05, f"{level['num_ok']} requests")


if __name__ == "__main__":
    streams(128, AT_128)
    streams(512, AT_512)
    first_request()
    overload()
