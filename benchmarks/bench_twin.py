"""The loop closed: a twin's percentiles as our client measures them, against the simulation it serves.

``--scale`` makes every second last longer, so that what two processes on a small machine add to each other weighs less.
The targets are 3 % at the median and 6 % at the 95th percentile; a ratio below 1 meets them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

MODEL, GPU = "meta-llama/Llama-3.1-8B-Instruct", "h100-sxm"
RATE_RPS = 6.0
ALLOWED = {"p50": 0.03, "p95": 0.06}
GAMBREL = str(Path(sys.executable).with_name("gambrel"))


def answer(*words: str) -> dict[str, Any]:
    """The JSON document of a command."""
    done = subprocess.run([GAMBREL, *words, "--json"], capture_output=True, text=True, check=True)  # noqa: S603 - our own program
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def address(server: subprocess.Popen[str]) -> str:
    """Where a server listens, from the JSON document that it prints as soon as the door is open."""
    text = ""
    for line in server.stdout or ():
        text += line
        try:
            return str(json.loads(text)["url"])
        except json.JSONDecodeError:
            continue  # the document takes several lines
    sys.exit("the twin ended before its door was open")


def main() -> None:
    """Simulate, serve, measure, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--scale", type=float, default=8.0)
    asked = parser.parse_args()
    rng, n = np.random.default_rng(3), asked.requests
    arrival_s = np.cumsum(rng.exponential(1.0 / RATE_RPS, n))
    rows = zip(arrival_s, rng.integers(50, 1500, n), rng.integers(8, 160, n), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "loop.csv"
        log.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{a:.6f},{p},{o}\n" for a, p, o in rows))
        told = answer("simulate", "-m", MODEL, "-g", GPU, "-w", str(log))
        serve = [GAMBREL, "twin", "-m", MODEL, "-g", GPU, "--port", "0", "--scale", str(asked.scale), "--json"]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as twin:  # noqa: S603 - our own program
            try:
                found = answer(
                    "measure", "--url", address(twin), "--model", MODEL, "--workload", str(log),
                    "--time-scale", str(asked.scale), "--out", str(Path(folder) / "run.jsonl.gz"),
                )["levels"][0]  # fmt: skip
            finally:
                twin.terminate()
    bound = found["fidelity"]["client_bound"]
    print(f"{n} Poisson requests at {RATE_RPS:g}/s, time stretched {asked.scale:g} times; client-bound: {bound}")
    for metric in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        for statistic in ("p50", "p95", "p99"):
            measured, simulated = found[metric][statistic] / asked.scale, told[metric][statistic]
            error, allowed = measured / simulated - 1.0, ALLOWED.get(statistic)
            note = "" if allowed is None else f"    allowed {allowed:.2f}    ratio {abs(error) / allowed:.3f}"
            print(f"{metric:8s}{statistic:5s}{1e3 * measured:10.3f} ms measured  {error:+8.4f}{note}")


if __name__ == "__main__":
    main()
