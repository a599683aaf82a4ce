"""MLPerf submissions: what a row of them says, and how its tokens per second come about.

A submission states a task, a scenario and a machine, and nothing of the engine: arrangement and batch limit are
whatever gave the most tokens within the task's limits. So the answer is searched for, as its submitter did. Offline
sends everything at once and has no limit on latency; Server and Interactive send Poisson arrivals and report the
highest rate at which the 99th percentiles of time to first token and time per token keep the task's limits.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from gambrel.calibrate.lengths import lognormal
from gambrel.calibrate.names import device
from gambrel.core.errors import CatalogError
from gambrel.core.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.calibrate.table import Row
    from gambrel.core.accelerator import Accelerator
    from gambrel.core.run import Run

__all__ = [
    "Lengths", "Limit", "Task", "as_submitted", "drawn", "highest_rate", "limit_of", "midway", "task_of", "while_full",
]  # fmt: skip

_SPREAD: Final = 0.6  # of lengths over their mean; their distribution is not published with the rows
_REQUESTS: Final = 1000  # of one trial at least: ten of them lie beyond the 99th percentile
_ROUNDS: Final = 4  # times that a trial turns over what is in flight
_HALVINGS: Final = 5  # of the rate: to within 3 % of what saturates


@dataclass(frozen=True, slots=True)
class Limit:
    """What the 99th percentiles of a scenario may be, seconds; infinite where nothing is asked."""

    ttft_s: float = math.inf
    tpot_s: float = math.inf
    e2e_s: float = math.inf

    def kept(self, run: Run) -> bool:
        """Whether a run keeps all of it."""
        asked = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}
        return all(run.distribution(m).percentile("p99") <= most for m, most in asked.items() if math.isfinite(most))


@dataclass(frozen=True, slots=True)
class Task:
    """A task of the benchmark: mean tokens where rows leave them blank (NaN: rows state them), limits, beams.

    ``longest`` (prompt, answer): what the engine is built for, as no request has more. ``beams`` sequences are decoded
    for each answer that counts; so many of them share each reading of the cache ``together``: all could, and kernels
    that follow one beam at a time share nothing.
    """

    server: Limit
    interactive: Limit
    prompt: float = math.nan
    output: float = math.nan
    longest: tuple[float, float] = (math.inf, math.inf)
    beams: int = 1
    together: int = 1


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of prompts and answers, and the most of each."""

    prompt: float
    output: float
    longest: tuple[float, float] = (math.inf, math.inf)


# Limits: mlcommons/inference loadgen/mlperf.conf and language/gpt-oss-120b/mlperf_gptoss.conf (read 2026-11-29).
# Mean lengths and beams: READMEs of the reference implementations beside them. Longest: max_input_len and max_seq_len
# of NVIDIA's configurations of v5.0 and v5.1; 128 new tokens at most of the two summaries, as the references ask.
_TASKS: Final = {
    # CNN-DailyMail, 69 tokens an answer (token_latency_scaling_factor), beam_size=4
    "gpt-j-6b": Task(Limit(e2e_s=20.0), Limit(e2e_s=20.0), 778.0, 69.0, (1919.0, 128.0), beams=4, together=2),
    "llama-2-70b": Task(Limit(2.0, 0.2), Limit(0.45, 0.04), longest=(1024.0, 1024.0)),
    "llama-3.1-405b": Task(Limit(6.0, 0.175), Limit(4.5, 0.08), longest=(20_000.0, 2_000.0)),
    # CNN-DailyMail again; gen_len 8,167,644 characters of 13,368 answers is 128 tokens each at 4.8 characters a token
    "llama-3.1-8b": Task(Limit(2.0, 0.1), Limit(0.5, 0.03), 778.0, 128.0, (math.inf, 128.0)),
    "mixtral-8x7b": Task(Limit(2.0, 0.2), Limit(2.0, 0.2)),
    # mixed reasoning set; MLCommons v5.1 task description
    "deepseek-r1": Task(Limit(2.0, 0.08), Limit(1.5, 0.015), 800.0, 3880.0),
    "gpt-oss-120b": Task(Limit(3.0, 0.08), Limit(2.0, 0.015), output=1278.2),
}
_UNLIMITED: Final = Task(Limit(), Limit())

_COUNT: Final = (
    r"(?<!\w)(?:(\d+)\s*x\s*)?(\d+)\s*x\s*(?:NVIDIA\s+|AMD\s+|Instinct\s+)*"  # before the accelerator's name
)
_NODES: Final = re.compile(r"\b(\d+)-node", re.IGNORECASE)
_NAMED: Final = re.compile(r"(?:^|[/;])\s*(?:virtualized\s+)?([^/;]+);\s*scenario", re.IGNORECASE)


def task_of(row: Row) -> Task | None:
    """The task of a submission; None for rows of other sources."""
    if not row.source.startswith("MLPerf"):
        return None
    name = row.model.lower()
    return next((task for key, task in _TASKS.items() if key in name), _UNLIMITED)


def limit_of(row: Row, task: Task) -> Limit | None:
    """What a scenario must keep; None offline, where nothing is asked."""
    if row.mode != "rate":
        return None
    return task.interactive if "nteractive" in row.notes else task.server


def as_submitted(row: Row, find: Callable[[str], Accelerator]) -> Row:
    """The row with the accelerators that its system's name states, where they are more, or other ones.

    Tables list some systems of several machines with the accelerators of one, and boards by the name of a sibling;
    the name of the system, kept in ``notes``, has both: ``(2x8x MI300X-192GB ...)``, ``/ NVIDIA H100-NVL-94GB``.
    """
    if not row.source.startswith("MLPerf"):
        return row
    system = row.notes.partition("; scenario")[0]
    name = re.escape(re.split(r"[-_ ]", row.gpu, maxsplit=1)[0])
    counts = [int(a or 1) * int(b) for a, b in re.findall(_COUNT + name, system, re.IGNORECASE)]
    nodes = _NODES.search(system)
    counted = max([row.num_gpus, *counts, int(nodes[1]) * row.num_gpus if nodes else 1])
    named, gpu = _NAMED.search(row.notes), row.gpu
    if named:
        try:
            if device(named[1].strip(), find).name != device(row.gpu, find).name:
                gpu = named[1].strip()
        except CatalogError:
            pass  # a name that is not of an accelerator: the column's counts
    return row if (counted, gpu) == (row.num_gpus, row.gpu) else replace(row, num_gpus=counted, gpu=gpu)


def drawn(seed: int, lengths: Lengths, n: int, rate: float = math.inf) -> Workload:
    """``n`` requests of a task: lognormal lengths of these means, Poisson arrivals (at once if infinite)."""
    rng = np.random.default_rng(seed)
    prompts = lognormal(rng, lengths.prompt, _SPREAD, n, lengths.longest[0])
    outputs = lognormal(rng, lengths.output, _SPREAD, n, lengths.longest[1])
    gaps = rng.exponential(1.0 / rate, n) if math.isfinite(rate) else np.zeros(n)
    return Workload(np.cumsum(gaps), prompts, outputs, name="submission")


def midway(workload: Workload, running: int, seed: int = 2) -> Workload:
    """The same requests at once, the first ``running`` of them as a full system would be found: partly answered.

    What is found running is long in proportion, and anywhere in its answer: what it has said is prompt now. So a
    replay starts where a submission is after its first minutes.
    """
    rng = np.random.default_rng(seed)
    prompts, outputs = workload.prompt_tokens.copy(), workload.output_tokens.copy()
    found = rng.choice(len(workload), running, p=outputs / outputs.sum())
    left = rng.integers(1, outputs[found] + 1)
    prompts[:running] = prompts[found] + outputs[found] - left
    outputs[:running] = left
    return replace(workload, prompt_tokens=prompts, output_tokens=outputs)


def while_full(run: Run, running: int) -> tuple[float, float]:
    """(output tokens per second, mean time per token) of a run that found ``running`` midway, while others wait.

    Each answer's tokens are taken to come evenly between its first and its last.
    """
    begin, end = float(run.scheduled_s[running:].min()), float(run.scheduled_s.max())
    first, last = run.first_token_s, run.last_token_s
    decoding = np.maximum(last - first, 1e-12)
    inside = np.clip(np.minimum(last, end) - np.maximum(first, begin), 0.0, None) / decoding
    tokens = ((run.output_tokens - 1) * inside).sum() + ((first >= begin) & (first < end)).sum()
    rate = float(tokens / (end - begin)) if end > begin else run.output_tokens_per_s
    whole = (last <= end) & (np.arange(len(last)) >= running)
    return rate, float(np.nanmean(run.tpot_s[whole] if whole.any() else run.tpot_s))


def highest_rate(
    serve: Callable[[Workload], Run], limit: Limit, capacity: float, in_flight: float, lengths: Lengths
) -> float:
    """Requests per second of the fastest Poisson stream that keeps a limit, found by halving below ``capacity``.

    Args:
        serve: a replica.
        limit: of the scenario.
        capacity: requests per second of the replica when saturated.
        in_flight: sequences it then holds.
        lengths: of its requests.
    """
    n = max(_REQUESTS, math.ceil(_ROUNDS * in_flight))
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        tried = (low + high) / 2
        if limit.kept(serve(drawn(1, lengths, n, tried * capacity))):
            low = tried
        else:
            high = tried
    return low * capacity
