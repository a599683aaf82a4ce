"""The demo's first acts: a real engine measured on this machine, then predicted at loads that no fit has seen.

Not two minutes on two quiet cores. The engine is an optional install of 180 MB; where it is absent the demo
says so in one line and goes on, since its plan needs no engine.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from gambrel.core.errors import EndpointError
from gambrel.faces.console import talk, write_report

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

__all__ = ["LOADS", "calibrate_act", "measure_act"]

LOADS: Final = {32: (1, 2, 4, 8, 16, 32), 128: (1, 4, 8, 16)}  # prompt tokens -> users
FITTED_USERS: Final = 8  # levels up to here are fitted to, those beyond are predicted
OUTPUT_TOKENS: Final = 24  # short, so that a level of a few seconds sees dozens of answers
LEVEL_S: Final = 4.0
OPEN_S: Final = 12.0
OPEN_SHARE: Final = 0.5  # of the requests/s that the fitted users got, as a Poisson stream
RECORDS: Final = "measured.jsonl.gz"
OPEN_RECORDS: Final = "measured-poisson.jsonl.gz"


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
    from gambrel.measure.sweep import Closed, Open, Sweep, measure
    from gambrel.report import sweep_report

    levels = tuple(Closed(n, p, OUTPUT_TOKENS) for p, users in LOADS.items() for n in users)
    records, poisson = out / RECORDS, out / OPEN_RECORDS
    try:
        out.mkdir(parents=True, exist_ok=True)
        for last in (records, poisson):
            last.unlink(missing_ok=True)  # the last demo's
    except OSError as error:
        raise EndpointError(f"cannot write to {out}: {error.strerror or error}") from error
    busy = _busy()
    talk("measuring a small real engine on this machine, nearly two minutes (--skip-measure goes without)")
    settings = limits()
    with EmbeddedProcess(settings, progress=talk) as engine, watched() as progress:
        endpoint = Endpoint(engine.url, engine.model)
        document = measure(Sweep(endpoint, levels, duration_s=LEVEL_S), records, progress)
        prompt = min(LOADS)
        most = Closed(FITTED_USERS, prompt, OUTPUT_TOKENS).label
        rate = next(found["requests_per_s"] for found in document["levels"] if found["label"] == most)
        stream = Open(round(OPEN_SHARE * rate, 2), prompt, OUTPUT_TOKENS)
        measure(Sweep(endpoint, (stream,), duration_s=OPEN_S), poisson, progress)
    document["notes"] = [*document.get("notes", ()), *busy]
    write_report(sweep_report(measured_sweep(document)), out / "measured.html", None)
    return document


def limits() -> dict[str, Any]:
    """What the engine is started with, and what its prediction assumes; it visits every batch size before it serves."""
    return {"max_num_seqs": max(n for users in LOADS.values() for n in users), "max_num_batched_tokens": 256}


def calibrate_act(out: Path) -> tuple[dict[str, Any], list[RenderableType]]:
    """Fit the cost model to the levels of a few users and predict the others and the Poisson stream: both as shown.

    Returns a JSON document (``fitted``, ``predicted`` with measured, predicted and error of each unseen level) and its
    tables.

    Raises:
        WorkloadError: the records of :func:`measure_act` cannot be read.
    """
    from gambrel.calibrate.fit import calibrate
    from gambrel.calibrate.predict import simulated
    from gambrel.calibrate.profile import profile_of, write_profile
    from gambrel.catalog.efficiency import efficiency
    from gambrel.faces import api
    from gambrel.faces.calibrate_commands import points_of
    from gambrel.faces.tables import grid
    from gambrel.measure.embedded import gguf_path
    from gambrel.report import humanise as human

    settings, served = limits() | {"engine": "openvino"}, str(gguf_path())
    points = [p for name in (RECORDS, OPEN_RECORDS) for p in points_of(out / name, served, "this-machine", settings)]
    seen = [p for p in points if 0 < p.workload.closed_loop <= FITTED_USERS and not p.client_bound]
    unseen = [p for p in points if not 0 < p.workload.closed_loop <= FITTED_USERS]
    fitted = calibrate(seen, lambda d: efficiency(d.accelerator, d.engine, d.engine_version))
    profile = profile_of(fitted)
    write_profile(profile, out / "profile.toml")
    found, cells = [], []
    for p in unseen:
        said = simulated(p.deployment, api.cost_model(p.deployment, profile=profile), p.workload, p.measured)
        for metric in ("ttft", "tpot", "e2e"):
            if metric not in p.measured:
                continue
            was, is_said = p.measured[metric].value, said[metric]
            error = is_said / was - 1.0
            found.append({"level": p.label, "metric": metric, "measured": was, "predicted": is_said, "error": error})
            cells.append([p.label, metric.upper(), human.seconds(was), human.seconds(is_said), f"{error:+.0%}"])
    title = f"predicted from {len(seen)} levels of up to {FITTED_USERS} users, against what was measured"
    tables: list[RenderableType] = [grid(title, ["level", "mean", "measured", "predicted", "error"], cells, left=2)]
    constants = {q.name: {"value": q.value, "low": q.low, "high": q.high} for q in fitted.parameters}
    return {"fitted": constants, "predicted": found}, tables


def _busy() -> list[str]:
    """A word on what else runs here, since a CPU engine is slowed by it; none on a quiet machine."""
    if not hasattr(os, "getloadavg"):  # Windows
        return []
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < 0.5 * cores:
        return []
    return [f"this machine was busy before: a load of {load:.1f} on {cores} cores, which slows what was measured"]
