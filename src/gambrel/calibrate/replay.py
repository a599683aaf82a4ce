"""A log of real requests with their times, replayed request by request: the hardest comparison, as queues build up.

The engine's own number of KV blocks is used where the log's source reports it, so that the error is the cost model's
and the scheduler's, not the memory estimate's.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.calibrate.names import Models, device
from gambrel.calibrate.predict import Predictor
from gambrel.calibrate.profile import load_profile
from gambrel.calibrate.published import default_price
from gambrel.calibrate.setting import deployments
from gambrel.calibrate.table import read_table
from gambrel.catalog.accelerators import accelerator
from gambrel.core.errors import CatalogError, DeploymentError, WorkloadError
from gambrel.core.units import MS
from gambrel.core.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run
    from gambrel.core.step import Floats
    from gambrel.cost import Roofline

__all__ = ["REPLAY_HEAD", "Replayed", "Timed", "read_timed", "replay_errors", "replays_beside"]

REPORTED_BLOCKS = {("rtx-4090", "Llama-3.1-8B"): 2588}
"""KV blocks of 16 tokens that the engine itself reported, by accelerator and model of a trace.

vLLM 0.19.0 in LLMServingSim-bench (casys-kaist/LLMServingSim at commit 5daddb2).
"""

REPLAY_HEAD = ("trace", "requests", "KV blocks", "TTFT mean", "TTFT p99", "TPOT mean", "E2E mean")

_COLUMNS = ("arrival_s", "input_tokens", "output_tokens", "ttft_ms", "e2e_ms", "tpot_ms")


@dataclass(frozen=True)
class Timed:
    """Requests and what each took: ``ttft_s``, ``tpot_s`` and ``e2e_s`` float64[n], in order of arrival."""

    workload: Workload
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats


def read_timed(path: Path) -> Timed:
    """A CSV of arrival, lengths and measured times, one row a request.

    Raises:
        WorkloadError: unreadable, or without one of the columns.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        columns = {name: np.array([float(r[name]) for r in rows]) for name in _COLUMNS}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise WorkloadError(f"{path.name}: needs columns {', '.join(_COLUMNS)} ({error!r})") from None
    order = np.argsort(columns["arrival_s"], kind="stable")
    kept = {name: values[order] for name, values in columns.items()}
    workload = Workload(
        kept["arrival_s"], kept["input_tokens"].astype(np.int64), kept["output_tokens"].astype(np.int64), name=path.stem
    )
    return Timed(workload, kept["ttft_ms"] * MS, kept["tpot_ms"] * MS, kept["e2e_ms"] * MS)


def replay_errors(
    timed: Timed, deployment: Deployment, priced: Roofline, num_kv_blocks: int | None = None
) -> dict[str, float]:
    """Signed errors (0.05 = 5 % too long) of the mean TTFT, TPOT and E2E and of the 99th percentile of TTFT."""
    memory = priced.memory()
    if num_kv_blocks is not None:
        memory = replace(memory, num_kv_blocks=num_kv_blocks)
    table = priced.compile(deployment.max_num_batched_tokens, deployment.max_num_seqs)
    run: Run = Predictor.run(deployment, table, memory, timed.workload)[0]
    ttft = run.ttft_s
    return {
        "ttft": float(ttft.mean() / timed.ttft_s.mean() - 1.0),
        "ttft_p99": float(np.percentile(ttft, 99) / np.percentile(timed.ttft_s, 99) - 1.0),
        "tpot": float(np.nanmean(run.tpot_s) / np.nanmean(timed.tpot_s) - 1.0),
        "e2e": float(run.e2e_s.mean() / timed.e2e_s.mean() - 1.0),
    }


@dataclass(frozen=True)
class Replayed:
    """A trace replayed: signed fractions of :func:`replay_errors`; ``num_kv_blocks`` is None where it was estimated."""

    name: str
    label: str
    num_requests: int
    num_kv_blocks: int | None
    errors: dict[str, float]

    def cells(self) -> list[str]:
        """As a row of the printed table and of the page has them, under ``REPLAY_HEAD``."""
        blocks = "as estimated" if self.num_kv_blocks is None else f"{self.num_kv_blocks:,} as reported"
        errors = (f"{self.errors[k]:+.1%}" for k in ("ttft", "ttft_p99", "tpot", "e2e"))
        return [self.name, f"{self.num_requests:,}", blocks, *errors]

    def document(self) -> dict[str, object]:
        """Every figure, for JSON."""
        return {
            "trace": self.name, "deployment": self.label, "num_requests": self.num_requests,
            "num_kv_blocks": self.num_kv_blocks, "errors": self.errors,
        }  # fmt: skip


def replays_beside(tables: Iterable[Path], models: Path | None = None, profile: Path | None = None) -> list[Replayed]:
    """The traces that lie in ``traces/`` beside the tables, each replayed as the table's row of it says.

    A trace is called ``ACCELERATOR__MODEL.csv``; its row is one of mode ``rate`` on that accelerator with that model.
    It is replayed with the KV blocks that the engine reported, where they are known, and with the estimated number.
    Traces without a row, or of an unknown model or accelerator, are left out.

    Raises:
        WorkloadError: a table, trace or profile that cannot be read.
    """
    price = default_price() if profile is None else default_price(load_profile(profile).apply)
    known = Models(models)
    found = []
    for table in tables:
        rows = [row for row in read_table(table) if row.mode == "rate"]
        for path in sorted((table.parent / "traces").glob("*__*.csv")) if rows else ():
            card, _, name = path.stem.partition("__")
            for row in rows:
                try:
                    same = device(row.gpu, accelerator).name == device(card, accelerator).name
                    if not same or row.model.rpartition("/")[2] != name:
                        continue
                    deployment = deployments(row, known, accelerator)[0]
                except (CatalogError, DeploymentError):
                    continue
                timed, priced = read_timed(path), price(deployment)
                reported = REPORTED_BLOCKS.get((deployment.accelerator.name, name))
                found += [
                    Replayed(path.name, deployment.label, len(timed.workload), blocks,
                             replay_errors(timed, deployment, priced, blocks))
                    for blocks in ([] if reported is None else [reported]) + [None]
                ]  # fmt: skip
                break
    return found
