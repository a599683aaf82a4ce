"""llm-d's Benchmark Report 0.2, read and written: the one format with hardware, parallelism, load and result together.

Aggregates with explicit units, in YAML or JSON (JSON is YAML too, so that is what is written). Schema: package
``llmd-benchmark-report`` 0.2.1.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from gambrel.core.errors import ReportError, WorkloadError
from gambrel.core.version import __version__
from gambrel.measure.importers.benchmark import Benchmark, Document, Fields, known

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run

__all__ = ["read_llmd_report", "report_document", "write_llmd_report"]

VERSION: Final = "0.2.1"
_LATENCY: Final = {
    "time_to_first_token": "ttft",
    "time_per_output_token": "tpot",
    "inter_token_latency": "itl",
    "request_latency": "e2e",
    "normalized_time_per_output_token": "e2e_per_token",
}
_RATES: Final = {
    "request_rate": "request_rate",
    "output_token_rate": "output_tokens_per_s",
    "input_token_rate": "prompt_tokens_per_s",
    "total_token_rate": "total_tokens_per_s",
}
_UNITS: Final = {
    "s": 1.0, "ms": 1e-3, "s/token": 1.0, "ms/token": 1e-3, "queries/s": 1.0, "tokens/s": 1.0, "count": 1.0,
}  # fmt: skip
_PERCENTILES: Final = (0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)


def read_llmd_report(document: Document) -> tuple[Benchmark, ...]:
    """One report."""
    fields = document.fields()
    version = str(fields.data.get("version", ""))
    if not version.startswith("0.2"):
        raise WorkloadError(f"{fields.where}: benchmark report version {version!r}; 0.2 can be read")
    aggregate = fields.sub("results", "request_performance", "aggregate")
    if not aggregate.data:
        raise WorkloadError(f"{fields.where}: no results.request_performance.aggregate in it")
    reported: dict[str, dict[str, float]] = {}
    for theirs, ours in _LATENCY.items():
        if found := _scaled(aggregate.sub("latency", theirs)):
            reported[ours] = found
    for theirs, ours in (("input_length", "prompt_tokens"), ("output_length", "output_tokens")):
        if found := _scaled(aggregate.sub("requests", theirs)):
            reported[ours] = found
    rates = {
        ours: found["mean"]
        for theirs, ours in _RATES.items()
        if "mean" in (found := _scaled(aggregate.sub("throughput", theirs)))
    }
    load = fields.sub("scenario", "load", "standardized")
    setting = _stack(fields)
    for name, value in (
        ("concurrency", load.maybe("concurrency")),
        ("rate_rps", load.maybe("rate_qps")),
        ("prompt_tokens", load.sub("input_seq_len").maybe("value")),
        ("output_tokens", load.sub("output_seq_len").maybe("value")),
    ):
        if value is not None and np.isfinite(value):
            setting[name] = value
    requests = aggregate.sub("requests")
    failures = requests.maybe("failures")
    tool = " ".join(t for t in (load.text("tool"), load.text("tool_version")) if t)
    return (
        Benchmark(
            f"llm-d report {version}" + (f" of {tool}" if tool else ""), fields.where, fields.sub("run").text("uid"),
            None, reported, rates, setting, requests.count("total"), None if failures is None else int(failures),
            ("aggregates only, no requests",),
        ),
    )  # fmt: skip


def _scaled(fields: Fields) -> dict[str, float]:
    if not fields.data:
        return {}
    unit = fields.text("units")
    if unit not in _UNITS:
        raise fields.refuse("units", unit or None, f"one of {', '.join(_UNITS)} works")
    return fields.statistics(_UNITS[unit])


def _stack(fields: Fields) -> dict[str, str | float]:
    """Hardware and parallelism of the inference engines, summed over replicas."""
    engines = [
        component.sub("standardized")
        for component in fields.sub("scenario").items("stack")
        if component.sub("standardized").text("kind") == "inference_engine"
    ]
    if not engines:
        return {}
    first = engines[0]
    gpus = sum(e.sub("accelerator").count("count") * max(e.count("replicas"), 1) for e in engines)
    return known(
        engine=f"{first.text('tool')} {first.text('tool_version')}".strip(),
        model=first.sub("model").text("name"),
        gpu=first.sub("accelerator").text("model"),
        tp=first.sub("accelerator", "parallelism").maybe("tp"),
        num_gpus=float(gpus),
    )


def report_document(
    run: Run,
    *,
    deployment: Deployment | None = None,
    setting: Mapping[str, Any] | None = None,
    description: str = "",
) -> dict[str, Any]:
    """A run as a Benchmark Report 0.2: plain dicts that :func:`write_llmd_report` writes.

    ``setting`` may hold ``concurrency``, ``rate_rps``, ``tool``, ``tool_version``; ``deployment`` is what was measured.
    """
    given = dict(setting or {})
    good = np.isfinite(run.last_token_s)
    tokens = run.output_tokens[good]
    span = run.makespan_s if good.any() else 0.0
    load: dict[str, Any] = {
        "tool": given.get("tool", "gambrel"),
        "tool_version": given.get("tool_version", __version__),
        "source": "unknown",
        "input_seq_len": {"distribution": "other", "value": float(run.prompt_tokens.mean())},
    }
    if len(tokens):
        load["output_seq_len"] = {"distribution": "other", "value": float(tokens.mean())}
    for theirs, ours in (("concurrency", "concurrency"), ("rate_qps", "rate_rps")):
        if given.get(ours) is not None:
            load[theirs] = given[ours]
    scenario: dict[str, Any] = {
        "load": {
            "metadata": {"schema_version": "0.0.1", "cfg_id": _hash(load)},
            "standardized": load,
            "native": {"config": {"origin": run.origin, "basis": run.basis}},
        }
    }
    if deployment is not None:
        scenario["stack"] = [_component(deployment)]
    latency = {
        "time_to_first_token": _statistics(run.ttft_s, "s"),
        "time_per_output_token": _statistics(run.tpot_s, "s/token"),
        "normalized_time_per_output_token": _statistics(run.e2e_s / np.maximum(run.output_tokens, 1), "s/token"),
        "request_latency": _statistics(run.e2e_s, "s"),
    }
    gaps = run.itl.distribution()
    if gaps.count:
        latency["inter_token_latency"] = {
            "units": "s/token", "mean": gaps.mean, "p50": gaps.p50, "p90": gaps.p90, "p95": gaps.p95, "p99": gaps.p99,
        }  # fmt: skip
    prompt = run.prompt_tokens[good]
    throughput = {
        name: {"units": units, "mean": value / span}
        for name, units, value in (
            ("request_rate", "queries/s", float(good.sum())),
            ("output_token_rate", "tokens/s", float(tokens.sum())),
            ("input_token_rate", "tokens/s", float(prompt.sum())),
            ("total_token_rate", "tokens/s", float(tokens.sum() + prompt.sum())),
        )
        if span > 0
    }
    aggregate: dict[str, dict[str, Any]] = {
        "requests": {
            "total": len(run),
            "failures": int((~good).sum()),
            "input_length": _statistics(run.prompt_tokens.astype(float), "count"),
            "output_length": _statistics(tokens.astype(float), "count"),
        },
        "latency": latency,
        "throughput": throughput,
    }
    stated = {name: {k: v for k, v in part.items() if v is not None} for name, part in aggregate.items()}
    results = {"request_performance": {"aggregate": stated}}
    about: dict[str, Any] = {"uid": _hash({"scenario": scenario, "results": results})}
    if span > 0:
        about["time"] = {"duration": f"PT{span}S"}
    if description:
        about["description"] = description
    return {"version": VERSION, "run": about, "scenario": scenario, "results": results}


def write_llmd_report(path: Path, document: Mapping[str, Any]) -> None:
    """Write a report as JSON, which is YAML as well.

    Raises:
        ReportError: the file cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror}") from None


def _component(deployment: Deployment) -> dict[str, Any]:
    native = {
        "--max-num-seqs": deployment.max_num_seqs,
        "--max-num-batched-tokens": deployment.max_num_batched_tokens,
        "--block-size": deployment.block_size,
        "--tensor-parallel-size": deployment.tp,
        "--gpu-memory-utilization": deployment.gpu_memory_utilization,
        "--kv-cache-dtype": deployment.kv,
    }
    return {
        "metadata": {"schema_version": "0.0.1", "label": deployment.label, "cfg_id": _hash(native)},
        "standardized": {
            "kind": "inference_engine",
            "tool": deployment.engine,
            "tool_version": deployment.engine_version,
            "role": "replica",  # the schema's word for prefill and decode together
            "replicas": deployment.replicas,
            "model": {"name": deployment.model.name},
            "accelerator": {
                "model": deployment.accelerator.name,
                "count": deployment.gpus_per_replica,
                "parallelism": {
                    "dp": 1, "dp_local": 1, "workers": 1, "ep": deployment.ep, "pp": deployment.pp, "tp": deployment.tp,
                },
            },
        },
        "native": {"args": native},
    }  # fmt: skip


def _statistics(values: Any, units: str) -> dict[str, Any] | None:
    found = values[np.isfinite(values)]
    if len(found) == 0:
        return None
    points = np.percentile(found, _PERCENTILES)
    named = {f"p{p:g}".replace(".", "p"): float(x) for p, x in zip(_PERCENTILES, points, strict=True)}
    return {
        "units": units, "mean": float(found.mean()), "stddev": float(found.std()), "min": float(found.min()),
        **named, "max": float(found.max()),
    }  # fmt: skip


def _hash(data: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(data, order="deterministic")).hexdigest()[:32]
