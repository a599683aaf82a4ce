"""guidellm's JSON (``metadata.version`` 2, guidellm 0.5 and later): one benchmark per rate or concurrency.

Traps: its ``time_per_output_token_ms`` is E2E over tokens, and its ``inter_token_latency_ms`` is what others call
TPOT; it keeps no gaps; requests may be a sample of those that the aggregates are of; the file holds every prompt
and answer in full, of which nothing is kept here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gambrel.core.errors import WorkloadError
from gambrel.measure.importers.benchmark import Benchmark, Row, imported_run, known

if TYPE_CHECKING:
    from gambrel.measure.importers.benchmark import Document, Fields

__all__ = ["read_guidellm"]

_METRICS: Final = {
    "time_to_first_token_ms": ("ttft", 1e-3),
    "inter_token_latency_ms": ("tpot", 1e-3),
    "time_per_output_token_ms": ("e2e_per_token", 1e-3),
    "request_latency": ("e2e", 1.0),
    "prompt_token_count": ("prompt_tokens", 1.0),
    "output_token_count": ("output_tokens", 1.0),
}
_RATES: Final = {
    "requests_per_second": "request_rate",
    "output_tokens_per_second": "output_tokens_per_s",
    "tokens_per_second": "total_tokens_per_s",
    "request_concurrency": "concurrency",
}


def read_guidellm(document: Document) -> tuple[Benchmark, ...]:
    """Every benchmark of a guidellm file."""
    fields = document.fields()
    version = fields.sub("metadata").text("guidellm_version")
    benchmarks = fields.items("benchmarks")
    if not benchmarks:
        raise WorkloadError(f"{fields.where}: no benchmarks in it; guidellm 0.5 and later can be read")
    spec = fields.sub("config", "spec")
    return tuple(_read(b, version, spec) for b in benchmarks)


def _read(fields: Fields, version: str, spec: Fields) -> Benchmark:
    strategy = fields.sub("config", "strategy")
    kind = strategy.text("type_")
    if not kind:
        raise WorkloadError(f"{fields.where}: no config.strategy.type_; guidellm before 0.5 wrote another format")
    streams, rate = strategy.maybe("streams", "max_concurrency"), strategy.maybe("rate")
    metrics = fields.sub("metrics")
    reported: dict[str, dict[str, float]] = {}
    for theirs, (ours, scale) in _METRICS.items():
        if found := metrics.sub(theirs, "successful").statistics(scale):
            reported[ours] = found
    rates = {
        ours: value
        for theirs, ours in _RATES.items()
        if (value := metrics.sub(theirs, "successful").maybe("mean")) is not None
    }
    totals = metrics.sub("request_totals")
    requests = fields.sub("requests")
    rows = [_row(r, ok=True) for r in requests.items("successful")]
    rows += [_row(r, ok=False) for kind_ in ("errored", "incomplete") for r in requests.items(kind_)]
    done = totals.count("total") or len(rows)
    warnings = [f"guidellm: {w.text('message')}" for w in fields.items("warnings")]
    if rows and len(rows) < done:
        warnings.append(f"the file keeps {len(rows)} of {done} requests; what the tool reports is of all")
    setting = known(
        model=spec.sub("backend").text("model"),
        concurrency=streams,
        rate_rps=rate,
        prompt_tokens=reported.get("prompt_tokens", {}).get("mean"),
        output_tokens=reported.get("output_tokens", {}).get("mean"),
    )
    run = None
    if rows:
        basis = "guidellm: from sending, first token of any channel; no gaps kept"
        run = imported_run(rows, source=fields.where, basis=basis)
    label = f"{kind} {streams or rate:g}" if (streams or rate) else kind
    failed = totals.count("errored") + totals.count("incomplete")
    return Benchmark(
        f"guidellm {version}".strip(), fields.where, label, run, reported, rates, setting, done, failed, tuple(warnings)
    )


def _row(fields: Fields, *, ok: bool) -> Row:
    timings = fields.sub("info", "timings")
    start = fields.maybe("request_start_time")
    start = timings.number("request_start") if start is None else start
    first = timings.maybe("first_token_iteration")
    ttft = fields.maybe("time_to_first_token_ms")
    if first is None and ttft is not None:
        first = start + ttft / 1e3
    last = timings.maybe("last_token_iteration")
    tokens = fields.count("output_tokens")
    return Row(
        arrival_s=start,
        first_s=first,
        last_s=last if last is not None else fields.maybe("request_end_time"),
        prompt_tokens=fields.count("prompt_tokens"),
        output_tokens=tokens,
        ok=ok and tokens > 0 and first is not None,
    )
