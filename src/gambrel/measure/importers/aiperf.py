"""NVIDIA aiperf: ``profile_export_aiperf.json`` (aggregates) and ``profile_export.jsonl`` (requests) beside it.

Either file is enough to name; the other is looked for next to it. Traps: an error event inside a stream counts as a
success there, so answers without tokens are failures here; warm-up is told apart by ``benchmark_phase``; units vary
from metric to metric and are read from the file; its ``inter_token_latency`` is TPOT, the gaps are
``inter_chunk_latency``, and a client that lags writes gaps of 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.measure.importers.benchmark import Benchmark, Fields, Row, imported_run
from gambrel.measure.importers.document import read_document

if TYPE_CHECKING:
    from gambrel.core.run import Run
    from gambrel.measure.importers.benchmark import Document

__all__ = ["read_aiperf", "read_aiperf_requests"]

_SECONDS: Final = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_METRICS: Final = {
    "time_to_first_token": "ttft",
    "inter_token_latency": "tpot",
    "inter_chunk_latency": "itl",
    "request_latency": "e2e",
    "input_sequence_length": "prompt_tokens",
    "output_sequence_length": "output_tokens",
}
_RATES: Final = {
    "request_throughput": "request_rate",
    "output_token_throughput": "output_tokens_per_s",
    "total_token_throughput": "total_tokens_per_s",
    "effective_concurrency": "concurrency",
}


def read_aiperf(document: Document) -> tuple[Benchmark, ...]:
    """The summary, with the requests of the file beside it."""
    fields = document.fields()
    beside = document.path.with_name(document.path.name.replace("_aiperf.json", ".jsonl"))
    warnings: list[str] = []
    run, failed = None, None
    if beside != document.path and beside.is_file():
        run, failed = _requests(read_document(beside), warnings)
    else:
        warnings.append(f"no requests: {beside.name} is not beside the summary")
    return (_summary(fields, run, failed, warnings),)


def read_aiperf_requests(document: Document) -> tuple[Benchmark, ...]:
    """The requests, with the summary of the file beside them."""
    beside = document.path.with_name(document.path.name.replace(".jsonl", "_aiperf.json"))
    if beside != document.path and beside.is_file():
        return read_aiperf(read_document(beside))
    warnings = [f"no summary: {beside.name} is not beside the requests"]
    run, failed = _requests(document, warnings)
    done = len(run)
    return (
        Benchmark(
            "aiperf", str(document.path), "", run, num_requests=done, num_failed=failed, warnings=tuple(warnings)
        ),
    )


def _summary(fields: Fields, run: Run | None, failed: int | None, warnings: list[str]) -> Benchmark:
    reported: dict[str, dict[str, float]] = {}
    for theirs, ours in _METRICS.items():
        metric = fields.sub(theirs)
        if metric.data:
            scale = 1.0 if ours.endswith("tokens") else _scale(metric)
            reported[ours] = metric.statistics(scale)
    rates = {ours: value for theirs, ours in _RATES.items() if (value := fields.sub(theirs).maybe("avg")) is not None}
    setting: dict[str, str | float] = {}
    config = fields.sub("input_config")
    models = config.sub("models").items("items")
    if models:
        setting["model"] = models[0].text("name")
    phases = [p for p in config.items("phases") if p.text("kind") in {"", "profiling"}]
    for name, theirs in (("concurrency", "concurrency"), ("rate_rps", "request_rate")):
        value = next((v for p in phases if (v := p.maybe(theirs)) is not None), None)
        value = config.sub("loadgen").maybe(theirs) if value is None else value
        if value is not None:
            setting[name] = value
    for name in ("prompt_tokens", "output_tokens"):
        if "mean" in reported.get(name, {}):
            setting[name] = reported[name]["mean"]
    errors = sum(e.count("count") or 1 for e in fields.items("error_summary"))
    good = fields.sub("request_count").maybe("avg") or 0.0
    label = f"concurrency {setting['concurrency']:g}" if "concurrency" in setting else ""
    version = fields.text("aiperf_version")
    return Benchmark(
        f"aiperf {version}".strip(), fields.where, label, run, reported, rates, setting, int(good) + errors,
        errors if failed is None else failed, tuple(warnings),
    )  # fmt: skip


def _scale(metric: Fields) -> float:
    unit = metric.text("unit")
    if unit not in _SECONDS:
        raise metric.refuse("unit", unit or None, f"one of {', '.join(_SECONDS)} works")
    return _SECONDS[unit]


def _requests(document: Document, warnings: list[str]) -> tuple[Run, int]:
    rows: list[Row] = []
    warm, silent, zeros, total = 0, 0, 0, 0
    zero_ns: int | None = None
    for i, data in enumerate(document.rows, 1):
        fields = Fields(data, f"{document.path}: line {i}")
        meta, metrics = fields.sub("metadata"), fields.sub("metrics")
        if meta.text("benchmark_phase") not in {"", "profiling"}:
            warm += 1
            continue
        stamp = meta.data.get("request_start_ns")
        start_ns = stamp if isinstance(stamp, int) else int(meta.number("request_start_ns"))
        zero_ns = start_ns if zero_ns is None else zero_ns
        start = (start_ns - zero_ns) / 1e9  # as whole numbers: seconds since 1970 have no nanoseconds to spare
        tokens = int(_value(metrics, "output_sequence_length", "usage_completion_tokens") or 0)
        ttft, latency = _value(metrics, "time_to_first_token"), _value(metrics, "request_latency")
        bad = bool(fields.data.get("error")) or bool(meta.data.get("was_cancelled"))
        silent += not bad and tokens < 1
        gaps = _gaps(metrics)
        zeros += int((gaps < 1e-6).sum())
        total += len(gaps)
        rows.append(
            Row(
                arrival_s=start,
                first_s=None if ttft is None else start + ttft,
                last_s=None if latency is None else start + latency,
                prompt_tokens=int(_value(metrics, "input_sequence_length", "usage_prompt_tokens") or 0),
                output_tokens=tokens,
                gaps=gaps,
                ok=not bad and tokens > 0 and ttft is not None and latency is not None,
            )
        )
    if not rows:
        raise WorkloadError(f"{document.path}: no requests of the profiling phase")
    if warm:
        warnings.append(f"{warm} requests of the warm-up were left out")
    if silent:
        warnings.append(f"{silent} answers without a token count as failed here, as successes in aiperf")
    if total and zeros > 0.01 * total:
        warnings.append(f"{zeros / total:.0%} of the gaps are 0: the client read several events at once; trust TPOT")
    run = imported_run(rows, source=str(document.path), basis="aiperf: from request_start_ns, gap per chunk")
    return run, sum(not r.ok for r in rows)


def _value(metrics: Fields, *names: str) -> float | None:
    for name in names:
        metric = metrics.sub(name)
        value = metric.maybe("value")
        if value is not None:
            unit = metric.text("unit")
            return value * _SECONDS[unit] if unit in _SECONDS else value
    return None


def _gaps(metrics: Fields) -> np.ndarray[Any, np.dtype[np.float64]]:
    metric = metrics.sub("inter_chunk_latency")
    found = metric.numbers("value")
    return np.empty(0) if found is None else found * _scale(metric)
