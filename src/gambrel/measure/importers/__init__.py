"""Result files of other load generators as ours: one module a tool, one row each in the table at the foot.

To add a tool: a module with ``read_tool(document) -> tuple[Benchmark, ...]``, and its row in :data:`IMPORTERS` with the
fields that give its files away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gambrel.core.errors import UnknownName, WorkloadError
from gambrel.measure.importers.aiperf import read_aiperf, read_aiperf_requests
from gambrel.measure.importers.benchmark import Benchmark, Document
from gambrel.measure.importers.document import read_document
from gambrel.measure.importers.guidellm import read_guidellm
from gambrel.measure.importers.inference_perf import read_inference_perf, read_inference_perf_requests
from gambrel.measure.importers.inferencex import read_inferencex
from gambrel.measure.importers.llama_benchy import read_llama_benchy
from gambrel.measure.importers.llm_grill import read_llm_grill
from gambrel.measure.importers.llmd_report import read_llmd_report, report_document, write_llmd_report
from gambrel.measure.importers.vllm_bench import read_sglang, read_vllm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "IMPORTERS",
    "Benchmark",
    "Importer",
    "import_results",
    "recognise",
    "report_document",
    "write_llmd_report",
]


@dataclass(frozen=True, slots=True)
class Importer:
    """A tool's format: how to read it, and fields that every object of it has (dots go down)."""

    read: Callable[[Document], tuple[Benchmark, ...]]
    fields: tuple[str, ...]

    def knows(self, document: Document) -> bool:
        """Whether the document has this format's fields."""
        head = document.fields()
        return all(_has(head.data, name) for name in self.fields)


def _has(data: object, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(data, dict) or part not in data:
            return False
        data = data[part]
    return True


def recognise(document: Document) -> str:
    """The name of the format, empty when none fits."""
    return next((name for name, importer in IMPORTERS.items() if importer.knows(document)), "")


def import_results(path: Path | str, *, format: str | None = None) -> tuple[Benchmark, ...]:  # noqa: A002 - the word users say
    """Every operating point of a result file of another tool.

    Args:
        path: JSON, JSON Lines or (with PyYAML) YAML; gzip too.
        format: a name of :data:`IMPORTERS`; None recognises it by its fields.

    Raises:
        WorkloadError: unreadable, of no known format, or holding what cannot be.
    """
    if format is not None and format not in IMPORTERS:
        raise WorkloadError(f"{path}: {UnknownName('result format', format, IMPORTERS)}; known: {', '.join(IMPORTERS)}")
    document = read_document(path)
    name = format or recognise(document)
    if not name:
        have = ", ".join(repr(k[:30]) for k in list(document.head)[:8]) or "no fields"
        raise WorkloadError(f"{path}: no known result format (found {have}); known: {', '.join(IMPORTERS)}")
    return IMPORTERS[name].read(document)


IMPORTERS: dict[str, Importer] = {
    "llmd-report": Importer(read_llmd_report, ("version", "run", "results")),
    "guidellm": Importer(read_guidellm, ("metadata.guidellm_version", "benchmarks")),
    "aiperf": Importer(read_aiperf, ("aiperf_version", "request_latency")),
    "aiperf-requests": Importer(read_aiperf_requests, ("metadata.request_start_ns", "metrics")),
    "inference-perf": Importer(read_inference_perf, ("load_summary", "successes")),
    "inference-perf-requests": Importer(read_inference_perf_requests, ("start_time", "end_time", "info")),
    "inferencex": Importer(read_inferencex, ("hw", "conc", "isl", "osl")),
    "llm-grill": Importer(read_llm_grill, ("ttft_s", "tpot_s", "e2e_latency_s", "concurrent_users_level")),
    "llama-benchy": Importer(read_llama_benchy, ("latency_mode", "benchmarks")),
    "sglang": Importer(read_sglang, ("backend", "dataset_name", "mean_e2e_latency_ms")),
    "vllm": Importer(read_vllm, ("completed", "mean_ttft_ms", "request_throughput")),
}
