"""A published row as requests: how the harness behind it drew lengths, and how long it ran.

The same nominal lengths mean different traffic: InferenceX draws every length between 0.8 and 1 times the nominal one
and sends ten requests per user; static benches send one batch; trace replays draw from conversations. Equal lengths
synchronise into waves that random ones do not, so this decides TTFT.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from gambrel.calibrate.accelmark import LOTS, again, answers, arrivals, caches, prompts, sent, suite_of
from gambrel.calibrate.inferencex import published, stream_interval
from gambrel.calibrate.lengths import lognormal
from gambrel.calibrate.names import engine_key
from gambrel.calibrate.tuned import task_of
from gambrel.core.workload import Workload

if TYPE_CHECKING:
    from gambrel.calibrate.table import Row
    from gambrel.core.workload import Ints

__all__ = ["alike", "packets", "row_lengths", "workload_of"]

_ROUNDS: Final = 10  # requests per user of a closed loop, as InferenceX sends
_MOST: Final = 20_000  # requests of one replay: enough for any figure compared here
# $num_requests of NVIDIA/TensorRT-LLM docs/source/performance/perf-overview.md (0.17 to 1.2), by (input, output) tokens
_QUEUED: Final = {
    (128, 128): 30_000, (128, 2048): 3_000, (128, 4096): 1_500, (500, 2000): 3_000, (1000, 1000): 3_000,
    (1000, 2000): 1_500, (2048, 128): 3_000, (2048, 2048): 1_500, (5000, 500): 1_500, (20000, 2000): 1_000,
    (1024, 1024): 3_000, (8192, 1024): 1_500, (1024, 8192): 1_500, (32768, 1024): 1_000, (1024, 32768): 1_000,
}  # fmt: skip
_INFERENCEX_RANGE: Final = 0.8  # its RANDOM_RANGE_RATIO


def _uniform(rng: np.random.Generator, low: float, high: float, n: int) -> Ints:
    return np.maximum(1, np.rint(rng.uniform(low, high, n))).astype(np.int64)


def _lengths(row: Row, prompt: float, output: float, n: int) -> tuple[Ints, Ints]:
    """Prompt and output tokens of ``n`` requests as the harness draws them; fixed where nothing else is known."""
    rng = np.random.default_rng(zlib.crc32(row.id.encode()))
    if published(row):
        return (
            _uniform(rng, prompt * _INFERENCEX_RANGE, prompt, n),
            _uniform(rng, output * _INFERENCEX_RANGE, output, n),
        )
    suite = suite_of(row)
    if suite is not None and output < suite.longest:  # answers end by themselves or at the suite's limit
        return prompts(rng, prompt, n), answers(rng, output, suite.longest, n)
    if "ShareGPT" in row.notes and not row.source.startswith("AccelMark"):
        return lognormal(rng, prompt, 1.0, n), lognormal(rng, output, 0.8, n)
    return (
        np.full(n, max(1, round(prompt)), np.int64),
        np.full(n, max(1, round(output)), np.int64),
    )


def row_lengths(row: Row) -> tuple[float, float]:
    """Mean (prompt, output) tokens of a row, from its data set where the row leaves them blank; NaN if neither says."""
    prompt, output = row.prompt_tokens, row.output_tokens
    task = task_of(row)
    if task is not None:
        prompt = task.prompt if math.isnan(prompt) else prompt
        output = task.output if math.isnan(output) else output
    if math.isnan(prompt) and math.isfinite(output) and row.source.startswith("AccelMark"):
        prompt = 281.5 if "suite C" in row.notes else 28640.8 if "suite D" in row.notes else 256.2
    return prompt, output


def packets(row: Row) -> float:
    """Packets that left the server per token: none of a batch that was read at its end."""
    return 0.0 if row.mode == "offline" else 1.0 / stream_interval(row)


def alike(row: Row) -> bool:
    """Whether all requests of a batch were one prompt of one word repeated, whose tokens all go to the same experts.

    So argonne-lcf/LLM-Inference-Bench runs TensorRT-LLM and DeepSpeed (``generate_input`` of its scripts: "France" for
    every word of every prompt); its vLLM scripts draw random tokens.
    """
    return row.source.startswith("ANL") and engine_key(row.engine) in {"tensorrt-llm", "deepspeed"}


def workload_of(row: Row, *, saturating: int = 256) -> Workload | None:
    """The requests of a row, or None where it does not say how long they were.

    Args:
        row: of a table.
        saturating: sequences a replica can hold; an unbounded queue sends enough to keep that many busy.
    """
    suite = suite_of(row)
    times = arrivals(suite, row.load) if suite is not None and row.mode == "rate" else None
    made = _sent_once(row, saturating, len(times) // LOTS if times is not None else 0)
    if made is not None and times is not None:
        made = replace(
            made, arrival_s=times, prompt_tokens=np.tile(made.prompt_tokens, LOTS),
            output_tokens=np.tile(made.output_tokens, LOTS),
        )  # fmt: skip
    if made is None or suite is None or not caches(row):
        return made
    return again(made, LOTS if times is not None else 1)


def _sent_once(row: Row, saturating: int, known: int) -> Workload | None:
    """The requests of one run; ``known``: how many a stream has, where its harness says."""
    prompt, output = row_lengths(row)
    if not (prompt >= 1.0 and output >= 1.0):
        return None
    suite = suite_of(row)
    if row.mode == "concurrency" and row.load > 0.0 and math.isfinite(row.load):
        users = min(_MOST, max(1, round(row.load)))
        n = min(_MOST, sent(row, suite) if suite else max(users * _ROUNDS, 4))
        p, g = _lengths(row, prompt, output, n)
        return Workload(np.zeros(n), p, g, name=row.id, has_arrivals=False, closed_loop=users)
    if row.mode == "rate" and row.load > 0.0 and math.isfinite(row.load):
        said = re.search(r"(\d+)(?: prompts|-request| requests)", row.notes)
        n = known or min(_MOST, int(said.group(1)) if said else 500)
        rng = np.random.default_rng(zlib.crc32(row.id.encode()) ^ 1)
        p, g = _lengths(row, prompt, output, n)
        gaps = rng.exponential(1.0 / row.load, n)
        gaps[0] = 0.0
        return Workload(np.cumsum(gaps), p, g, name=row.id)
    bounded = math.isfinite(row.load) and row.load >= 1.0
    stated = _QUEUED.get((round(prompt), round(output))) if row.source.startswith("TensorRT-LLM") else None
    endless = stated or max(64, 4 * saturating)
    n = min(_MOST, round(row.load) if bounded else endless)
    p, g = _lengths(row, prompt, output, n)
    return Workload(np.zeros(n), p, g, name=row.id)
