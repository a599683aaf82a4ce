"""Kubernetes' inference-perf: ``per_request_lifecycle_metrics.json`` and the ``*_lifecycle_metrics.json`` summaries.

Traps: times are seconds of a monotonic clock; ``output_token_times`` repeats one time for every token that a chunk
was re-tokenised to, so gaps come from ``chunk_times``; ``normalized_time_per_output_token`` is E2E over tokens. The
file embeds the requests and answers, of which nothing is kept here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from gambrel.measure.importers.benchmark import Benchmark, Fields, Row, imported_run, known

if TYPE_CHECKING:
    from gambrel.measure.importers.benchmark import Document

__all__ = ["read_inference_perf", "read_inference_perf_requests"]

_METRICS: Final = {
    "time_to_first_token": "ttft",
    "time_per_output_token": "tpot",
    "inter_token_latency": "itl",
    "request_latency": "e2e",
    "normalized_time_per_output_token": "e2e_per_token",
}


def read_inference_perf(document: Document) -> tuple[Benchmark, ...]:
    """A summary, of the whole run or of one stage."""
    fields = document.fields()
    load, good, bad = fields.sub("load_summary"), fields.sub("successes"), fields.sub("failures")
    latency = good.sub("latency")
    reported = {ours: s for theirs, ours in _METRICS.items() if (s := latency.sub(theirs).statistics())}
    for theirs, ours in (("prompt_len", "prompt_tokens"), ("output_len", "output_tokens")):
        if lengths := good.sub(theirs).statistics():
            reported[ours] = lengths
    throughput = good.sub("throughput")
    rates = {
        ours: value
        for theirs, ours in (
            ("requests_per_sec", "request_rate"),
            ("output_tokens_per_sec", "output_tokens_per_s"),
            ("total_tokens_per_sec", "total_tokens_per_s"),
        )
        if (value := throughput.maybe(theirs)) is not None
    }
    setting = known(
        rate_rps=load.maybe("requested_rate") or None,
        concurrency=load.maybe("concurrency") or None,
        prompt_tokens=reported.get("prompt_tokens", {}).get("mean"),
        output_tokens=reported.get("output_tokens", {}).get("mean"),
    )
    failed = bad.count("count")
    label = f"{setting['rate_rps']:g} requests/s" if "rate_rps" in setting else ""
    return (
        Benchmark(
            "inference-perf", fields.where, label, None, reported, rates, setting,
            load.count("count") or good.count("count") + failed, failed, ("aggregates only, no requests",),
        ),
    )  # fmt: skip


def read_inference_perf_requests(document: Document) -> tuple[Benchmark, ...]:
    """The requests of a run."""
    first = document.rows[0]
    listed = first if isinstance(first, list) else list(document.rows)
    rows = [_row(Fields(data, f"{document.path}: request {i}")) for i, data in enumerate(listed, 1)]
    run = imported_run(rows, source=str(document.path), basis="inference-perf: from sending, gap per chunk")
    failed = sum(not r.ok for r in rows)
    return (Benchmark("inference-perf", str(document.path), "", run, num_requests=len(rows), num_failed=failed),)


def _row(fields: Fields) -> Row:
    info = fields.sub("info")
    answer = info.sub("response_metrics")
    times = answer.numbers("chunk_times")
    if times is None or len(times) == 0:
        times = answer.numbers("output_token_times")
    if times is None:
        times = info.numbers("output_token_times")
    usage = answer.sub("server_usage").maybe("completion_tokens")
    tokens = int(usage) if usage is not None else answer.count("output_tokens") or info.count("output_tokens")
    prompt = info.sub("request_metrics", "text").count("input_tokens") or info.count("input_tokens")
    start = fields.number("start_time")
    seen = times is not None and len(times) > 0
    return Row(
        arrival_s=start,
        first_s=float(times[0]) if times is not None and seen else None,
        last_s=float(times[-1]) if times is not None and seen else fields.maybe("end_time"),
        prompt_tokens=prompt,
        output_tokens=tokens,
        gaps=np.diff(times) if times is not None and seen else None,
        ok=not fields.data.get("error") and tokens > 0,
    )
