"""Workloads to files that :func:`gambrel.traffic.read_workload` reads back: CSV, gzipped where the name ends so.

The same workload gives the same bytes: the gzip header carries no name and no time.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import WorkloadError

if TYPE_CHECKING:
    from gambrel.core.workload import Workload

__all__ = ["write_workload"]


def write_workload(workload: Workload, path: str | Path) -> None:
    """Write arrivals (microseconds), lengths, and sessions, cached tokens, priorities and the like where known.

    Prefix hashes have no place in CSV and are not written; nor are deadlines of which some are infinite. Turns that
    wait for others are written as sessions at their guessed arrivals; ``chain_turns`` makes them wait again.

    Raises:
        WorkloadError: the file cannot be written.
    """
    path = Path(path)
    columns: dict[str, list[str]] = {
        "arrival_s": [f"{t:.6f}" for t in workload.arrival_s.tolist()],
        "prompt_tokens": list(map(str, workload.prompt_tokens.tolist())),
        "output_tokens": list(map(str, workload.output_tokens.tolist())),
    }
    if workload.session is not None:
        columns["session"] = list(map(str, workload.session.tolist()))
    if workload.cached_tokens is not None:
        columns["cached_tokens"] = list(map(str, workload.cached_tokens.tolist()))
    if workload.priority is not None:
        columns["priority"] = list(map(str, workload.priority.tolist()))
    if workload.deadline_s is not None and bool(np.isfinite(workload.deadline_s).all()):
        columns["deadline_s"] = [f"{t:.6f}" for t in workload.deadline_s.tolist()]
    if workload.service_s is not None:
        columns["service_s"] = [f"{t:.6f}" for t in workload.service_s.tolist()]
    text = io.StringIO()
    text.write(",".join(columns) + "\n")
    text.writelines(",".join(row) + "\n" for row in zip(*columns.values(), strict=True))
    data = text.getvalue().encode()
    try:
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be written ({error.strerror or error})") from None
