"""InferenceX (InferenceMAX) ``agg_*.json``: one row per GPU, engine, parallelism, concurrency and lengths.

Aggregates only, latencies **in seconds**, throughput per GPU. ``*_intvty`` is 1 / TPOT. ``output_tput_per_gpu`` of a
disaggregated row is per *decode* GPU and ``input_tput_per_gpu`` per *prefill* GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gambrel.core.errors import WorkloadError
from gambrel.measure.importers.benchmark import Benchmark, Fields, known

if TYPE_CHECKING:
    from gambrel.measure.importers.benchmark import Document

__all__ = ["read_inferencex"]

_METRICS: Final = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2el": "e2e"}
_STATISTICS: Final = {
    "mean": "mean", "median": "p50", "std": "std", "p75": "p75", "p90": "p90", "p95": "p95", "p99": "p99",
    "p99.9": "p999",
}  # fmt: skip


def read_inferencex(document: Document) -> tuple[Benchmark, ...]:
    """Every row of an aggregate file, or of a list of them."""
    rows = [r for row in document.rows for r in (row if isinstance(row, list) else [row])]
    return tuple(_read(Fields(row, f"{document.path}: row {i}")) for i, row in enumerate(rows, 1))


def _read(fields: Fields) -> Benchmark:
    reported: dict[str, dict[str, float]] = {}
    for theirs, ours in _METRICS.items():
        for statistic, name in _STATISTICS.items():
            value = fields.maybe(f"{statistic}_{theirs}")
            if value is not None:
                reported.setdefault(ours, {})[name] = value
    if not reported:
        raise WorkloadError(f"{fields.where}: no figure like 'median_ttft' in it; is it an InferenceX agg file?")
    prefill, decode = fields.count("num_prefill_gpu"), fields.count("num_decode_gpu")
    split = bool(fields.data.get("is_multinode")) and prefill + decode > 0
    tp = fields.count("tp") or fields.count("decode_tp")
    gpus = prefill + decode if split else max(tp, 1) * max(fields.count("pp"), 1)
    setting = known(
        num_gpus=float(gpus),
        tp=float(tp),
        model=fields.text("model", "infmax_model_prefix"),
        gpu=fields.text("hw"),
        engine=fields.text("framework"),
        precision=fields.text("precision"),
        speculative=fields.text("spec_decoding"),
        concurrency=fields.maybe("conc"),
        prompt_tokens=fields.maybe("isl"),
        output_tokens=fields.maybe("osl"),
        ep=fields.maybe("ep", "decode_ep"),
        pp=fields.maybe("pp"),
    )
    rates: dict[str, float] = {}
    for theirs, ours, devices in (
        ("tput_per_gpu", "total_tokens_per_s", gpus),
        ("output_tput_per_gpu", "output_tokens_per_s", decode if split else gpus),
        ("input_tput_per_gpu", "prompt_tokens_per_s", prefill if split else gpus),
    ):
        value = fields.maybe(theirs)
        if value is not None:
            rates[ours] = value * devices
    label = " ".join(f"{k} {setting[k]}" for k in ("gpu", "tp", "concurrency") if k in setting)
    return Benchmark(
        "InferenceX", fields.where, label, None, reported, rates, setting,
        warnings=("aggregates only, no requests",),
    )  # fmt: skip
