"""Characterising a log of five million requests, as ratios of the target to what was measured in this run.

Ratios are written so that 1 or more meets the target: at most 6 s of CPU time and 500 MB of memory for reading and
describing a CSV log of 5,000,000 rows with dates (DuckDB's fast lane), in a fresh process that also pays for its
imports. Beside it: rows per second of the fast lane and of the definition in Python, and of JSON Lines with hashes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS = 5_000_000
PYTHON_ROWS = 300_000
HASH_ROWS = 20_000
CPU_TARGET_S = 6.0
MEMORY_TARGET_MB = 500.0


def write_log(path: Path, rows: int) -> None:
    """An Azure-like CSV: microsecond dates, Poisson at 16 a second, log-normal lengths."""
    rng = np.random.default_rng(1)
    gaps = rng.exponential(60_000.0, rows).astype("timedelta64[us]")
    dates = np.datetime64("2024-05-10T00:00:00", "us") + np.cumsum(gaps)
    prompt = np.exp(rng.normal(7, 1, rows)).astype(np.int64) + 1
    output = np.exp(rng.normal(5, 1, rows)).astype(np.int64) + 1
    with path.open("w") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for i in range(0, rows, 250_000):
            part = slice(i, i + 250_000)
            texts = np.datetime_as_string(dates[part]).tolist()
            cells = zip(texts, prompt[part].tolist(), output[part].tolist(), strict=True)
            file.writelines(f"{t.replace('T', ' ')},{p},{g}\n" for t, p, g in cells)


def write_hashes(path: Path, rows: int) -> None:
    """Mooncake-like JSON Lines with 24 block hashes a row."""
    with path.open("w") as file:
        for i in range(rows):
            row = {"timestamp": 40 * i, "input_length": 24 * 512, "output_length": 100}
            file.write(json.dumps({**row, "hash_ids": list(range(i, i + 24))}) + "\n")


def characterise(path: str) -> None:
    """Read and describe in this process; print CPU seconds, wall seconds and peak memory as JSON."""
    start = time.perf_counter()
    from gambrel.traffic import describe, read_workload

    workload = read_workload(path)
    read = time.perf_counter() - start
    figures = describe(workload)
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "rows": figures.num_requests,
        "cpu_s": used.ru_utime + used.ru_stime,
        "wall_s": time.perf_counter() - start,
        "read_s": read,
        "memory_mb": used.ru_maxrss / 1024.0,
    }
    print(json.dumps(found))


def measure(path: Path) -> dict[str, float]:
    """:func:`characterise` in a fresh process."""
    command = [sys.executable, __file__, "--characterise", str(path)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603 - this file
    return found


def main() -> None:
    """Print the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.csv"
        write_log(log, ROWS)
        big = measure(log)
        write_log(log, PYTHON_ROWS)
        from gambrel.traffic import table
        from gambrel.traffic.columns import Column
        from gambrel.traffic.readers import read_workload

        start = time.perf_counter()
        opened = table.inspect(log)
        opened.read_slowly([Column(n, "time" if n == "TIMESTAMP" else "tokens") for n in opened.names])
        slow = PYTHON_ROWS / (time.perf_counter() - start)
        hashes = Path(folder) / "hashes.jsonl"
        write_hashes(hashes, HASH_ROWS)
        start = time.perf_counter()
        read_workload(hashes)
        hashed = HASH_ROWS / (time.perf_counter() - start)
    fast = big["rows"] / big["read_s"]
    spent = f"{big['cpu_s']:.2f} s CPU, {big['wall_s']:.2f} s wall, {big['memory_mb']:.0f} MB"
    print(f"{ROWS:,}-row CSV characterised: {spent}")
    print(f"cpu      target {CPU_TARGET_S:g} s / measured   = {CPU_TARGET_S / big['cpu_s']:.2f}")
    print(f"memory   target {MEMORY_TARGET_MB:g} MB / measured = {MEMORY_TARGET_MB / big['memory_mb']:.2f}")
    print(f"fast lane {fast / 1e6:.2f} M rows/s, definition {slow / 1e6:.2f} M rows/s, ratio {fast / slow:.1f}")
    print(f"JSON Lines with 24 hashes a row: {hashed / 1e3:.0f} k rows/s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--characterise"]:
        characterise(sys.argv[2])
    else:
        main()
