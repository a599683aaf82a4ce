"""llama-benchy JSON: prefill and generation speed per prompt size, context and concurrency.

Aggregates only. Its ``ttfr`` and ``est_ppt`` are corrected by the endpoint's measured latency or stop at the first
response byte; ``e2e_ttft`` is TTFT as everyone else has it, so that is what ``ttft`` holds. All three are in ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gambrel.core.errors import WorkloadError
from gambrel.measure.importers.benchmark import Benchmark, Fields

if TYPE_CHECKING:
    from gambrel.measure.importers.benchmark import Document

__all__ = ["read_llama_benchy"]


def read_llama_benchy(document: Document) -> tuple[Benchmark, ...]:
    """Every run of the suite."""
    fields = document.fields()
    runs = fields.items("benchmarks")
    if not runs:
        raise WorkloadError(f"{fields.where}: no benchmarks in it")
    return tuple(_read(run, fields) for run in runs)


def _read(run: Fields, suite: Fields) -> Benchmark:
    reported: dict[str, dict[str, float]] = {}
    if ttft := run.sub("e2e_ttft").statistics(1e-3):
        reported["ttft"] = ttft
    per_user = run.sub("tg_req_throughput").numbers("values")
    if per_user is not None and len(per_user) and float(per_user.min()) > 0:
        reported["tpot"] = {"mean": float((1.0 / per_user).mean())}
    rates = {
        ours: value
        for theirs, ours in (("tg_throughput", "output_tokens_per_s"), ("pp_throughput", "prompt_tokens_per_s"))
        if (value := run.sub(theirs).maybe("mean")) is not None
    }
    context, prompt = run.count("context_size"), run.count("prompt_size")
    concurrency = float(run.count("concurrency") or 1)
    setting: dict[str, str | float] = {
        "model": suite.text("model"),
        "concurrency": concurrency,
        "prompt_tokens": float(context + prompt),
        "output_tokens": float(run.count("response_size")),
    }
    warnings = ["aggregates only, no requests; throughput is of the phase, not of the whole request"]
    if context:
        warnings.append(f"{context} of the prompt's tokens are context that a prefix cache may hold")
    label = f"pp{prompt} tg{run.count('response_size')} @ {context}, concurrency {concurrency:g}"
    version = suite.text("version")
    return Benchmark(
        f"llama-benchy {version}".strip(), run.where, label, None, reported, rates, setting, warnings=tuple(warnings)
    )
