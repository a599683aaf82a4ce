"""The demo's first act: a real engine measured on this machine, before anything is predicted.

About a minute on two quiet cores. The engine is an optional install of 180 MB; where it is absent the demo says so in
one line and goes on, since its plan needs no engine.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from gambrel.core.errors import EndpointError
from gambrel.faces.console import talk, write_report

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CONCURRENCY", "measure_act"]

CONCURRENCY: Final = (1, 2, 4, 8, 16)
PROMPT_TOKENS: Final = 32
OUTPUT_TOKENS: Final = 24  # short, so that a level of a few seconds sees dozens of answers
LEVEL_S: Final = 8.0


def measure_act(out: Path) -> dict[str, Any] | None:
    """Measure the embedded engine in a sweep, write ``measured.html`` and the raw records into ``out``.

    Returns the document of ``gambrel measure``, or None where the engine's packages are not installed.

    Raises:
        EndpointError: the engine did not load or refused every question, or ``out`` cannot be written.
    """
    from gambrel.measure.embedded import INSTALL, missing_packages

    missing = missing_packages()
    if missing:
        talk(f"nothing measured: the embedded engine needs {', '.join(missing)}; install with: {INSTALL}")
        return None
    from gambrel.faces.measure_commands import measured_sweep, watched
    from gambrel.measure.client import Endpoint
    from gambrel.measure.client_embedded import EmbeddedProcess
    from gambrel.measure.sweep import Closed, Sweep, measure
    from gambrel.report import sweep_report

    levels = tuple(Closed(n, PROMPT_TOKENS, OUTPUT_TOKENS) for n in CONCURRENCY)
    records = out / "measured.jsonl.gz"
    try:
        out.mkdir(parents=True, exist_ok=True)
        records.unlink(missing_ok=True)  # the last demo's
    except OSError as error:
        raise EndpointError(f"cannot write to {out}: {error.strerror or error}") from error
    busy = _busy()
    talk("measuring a small real engine on this machine, about a minute (--skip-measure goes without)")
    settings = {"max_num_seqs": max(CONCURRENCY)}  # it visits every batch size once before it serves
    with EmbeddedProcess(settings, progress=talk) as engine, watched() as progress:
        document = measure(Sweep(Endpoint(engine.url, engine.model), levels, duration_s=LEVEL_S), records, progress)
    document["notes"] = [*document.get("notes", ()), *busy]
    write_report(sweep_report(measured_sweep(document)), out / "measured.html", None)
    return document


def _busy() -> list[str]:
    """A word on what else runs here, since a CPU engine is slowed by it; none on a quiet machine."""
    if not hasattr(os, "getloadavg"):  # Windows
        return []
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < 0.5 * cores:
        return []
    return [f"this machine was busy before: a load of {load:.1f} on {cores} cores, which slows what was measured"]
