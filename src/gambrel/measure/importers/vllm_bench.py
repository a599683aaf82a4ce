"""``vllm bench serve --save-result`` and its kin: InferenceX's raw files, SGLang's ``bench_serving`` lines.

Traps: ``request_rate`` may be the text ``inf``; older files spell a key ``request_goodput:``, with its colon, and
have no ``failed``; a failed request has a TTFT of 0 and no tokens; gaps are per chunk, and a role chunk adds one
that is almost 0. Start times are in newer files only: without them, users of a closed loop are known to have sent
their next request when a slot became free, in order, so the arrivals are rebuilt from the durations.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.measure.importers.benchmark import Benchmark, Document, Fields, Row, imported_run, known

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gambrel.core.run import Run
    from gambrel.core.step import Floats

__all__ = ["read_sglang", "read_vllm"]

_METRICS = {
    "ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2el": "e2e", "e2e_latency": "e2e",
}  # fmt: skip
_STATISTICS = {"mean": "mean", "median": "p50", "std": "std", "max": "max"} | {
    f"p{p}": f"p{p}" for p in (1, 5, 10, 25, 50, 75, 90, 95, 99)
}


def read_vllm(document: Document) -> tuple[Benchmark, ...]:
    """A file of ``vllm bench serve --save-result``, with ``--save-detailed`` for requests."""
    return tuple(_read(Fields(row, str(document.path)), "vllm bench") for row in document.rows)


def read_sglang(document: Document) -> tuple[Benchmark, ...]:
    """A file of ``sglang.bench_serving``: one run a line, with ``--output-details`` for requests."""
    many = len(document.rows) > 1
    found = []
    for i, row in enumerate(document.rows, 1):
        where = f"{document.path}: line {i}" if many else str(document.path)
        found.append(_read(Fields(row, where), "sglang bench_serving"))
    return tuple(found)


def _read(fields: Fields, tool: str) -> Benchmark:
    warnings: list[str] = []
    reported: dict[str, dict[str, float]] = {}
    for theirs, ours in _METRICS.items():
        for statistic, name in _STATISTICS.items():
            value = fields.maybe(f"{statistic}_{theirs}_ms")
            if value is not None:
                reported.setdefault(ours, {})[name] = value / 1e3
    if not reported:
        raise WorkloadError(f"{fields.where}: no figure like 'mean_ttft_ms' in it; is it a result of {tool}?")
    completed = fields.count("completed")
    asked = max(fields.count("num_prompts"), completed)
    failed = fields.maybe("failed")
    if failed is None:
        failed = float(asked - completed) if fields.maybe("num_prompts") is not None else None
    concurrency = fields.maybe("max_concurrency")
    rate = fields.maybe("request_rate")
    setting = known(
        model=fields.text("model_id", "model"),
        engine=fields.text("backend"),
        concurrency=concurrency,
        rate_rps=rate if rate is not None and np.isfinite(rate) else None,
    )
    if completed:
        setting["prompt_tokens"] = fields.count("total_input_tokens") / completed
        setting["output_tokens"] = fields.count("total_output_tokens") / completed
    rates = {
        ours: value
        for ours, theirs in (
            ("request_rate", ("request_throughput",)),
            ("output_tokens_per_s", ("output_throughput",)),
            ("total_tokens_per_s", ("total_token_throughput", "total_throughput")),
            ("goodput_rps", ("request_goodput", "request_goodput:")),
            ("concurrency", ("concurrency",)),
        )
        if (value := fields.maybe(*theirs)) is not None
    }
    warnings.append("throughput counts the ramp and the drain of the run, not the steady state alone")
    run = _run(fields, tool, concurrency, rate, warnings)
    label = f"concurrency {concurrency:g}" if concurrency else f"{rate:g} requests/s" if rate else ""
    return Benchmark(
        tool, fields.where, label, run, reported, rates, setting, asked, None if failed is None else int(failed),
        tuple(warnings),
    )  # fmt: skip


def _run(fields: Fields, tool: str, concurrency: float | None, rate: float | None, warnings: list[str]) -> Run | None:
    ttfts = fields.numbers("ttfts")
    if ttfts is None:
        warnings.append("no requests in the file: save with --save-detailed (vLLM) or --output-details (SGLang)")
        return None
    gaps = _gaps(fields, len(ttfts))
    prompt = _column(fields, "input_lens", len(ttfts))
    output = _column(fields, "output_lens", len(ttfts))
    errors = fields.data.get("errors") or [""] * len(ttfts)
    good = [not error and tokens > 0 for error, tokens in zip(errors, output, strict=False)]
    latencies = fields.numbers("latencies")
    spans = latencies if latencies is not None else ttfts + np.array([float(g.sum()) for g in gaps])
    starts = fields.numbers("start_times")
    if starts is None:
        starts = _rebuilt(spans, concurrency, rate, warnings)
    rows = [
        Row(
            arrival_s=float(starts[i]),
            first_s=float(starts[i] + ttfts[i]),
            last_s=float(starts[i] + ttfts[i] + gaps[i].sum()),
            prompt_tokens=int(prompt[i]),
            output_tokens=int(output[i]),
            gaps=gaps[i],
            ok=good[i],
        )
        for i in range(len(ttfts))
    ]
    extra = sum(len(g) >= n for g, n, ok in zip(gaps, output, good, strict=True) if ok and n > 1)
    if extra:
        warnings.append(
            f"{extra} answers have a chunk more than tokens (a role or empty chunk was timed): one of their gaps is "
            "near 0 and their TTFT may be early"
        )
    return imported_run(rows, source=fields.where, basis=f"{tool}: from sending, first chunk, gap per chunk")


def _gaps(fields: Fields, n: int) -> list[Floats]:
    found = fields.data.get("itls")
    if found is None:
        return [np.empty(0)] * n
    try:
        gaps = [np.asarray(g, np.float64).reshape(-1) for g in found]
    except (TypeError, ValueError):
        raise fields.refuse("itls", found, "a list of lists of seconds works") from None
    if len(gaps) != n:
        raise WorkloadError(f"{fields.where}: itls has {len(gaps)} requests, ttfts {n}")
    return gaps


def _column(fields: Fields, name: str, n: int) -> Floats:
    found = fields.numbers(name)
    if found is None:
        raise fields.refuse(name, None, "token counts are needed beside ttfts")
    if len(found) != n:
        raise WorkloadError(f"{fields.where}: {name} has {len(found)} requests, ttfts {n}")
    return found


def _rebuilt(
    spans: Sequence[float] | Floats, concurrency: float | None, rate: float | None, warnings: list[str]
) -> Floats:
    """When requests were sent, from how long they took."""
    n = len(spans)
    if rate is not None and np.isfinite(rate) and rate > 0:
        warnings.append("no start times in the file: arrivals were spread evenly at the asked rate")
        return np.arange(n) / rate
    if not concurrency or concurrency >= n:
        return np.zeros(n)  # an infinite rate sends all at once
    warnings.append("no start times in the file: arrivals were rebuilt from the order of slots becoming free")
    free = [0.0] * int(concurrency)
    starts = np.empty(n)
    for i, span in enumerate(spans):
        starts[i] = heapq.heappop(free)
        heapq.heappush(free, float(starts[i] + span))
    return starts
