"""AccelMark's suites as its harness runs them: limits of the engine, lengths of the requests, prompts that come again.

The harness starts vLLM inside its own process, and one event loop sends requests and handles every token of every
stream: a request that is due while it is busy goes out late. Offline runs hand the engine ``max_num_seqs``; the
asynchronous one behind all other runs is given none, and in that context vLLM V1 takes 128 sequences and 2,048 tokens a
step on every accelerator, half or less of what its server takes. Poisson streams are drawn from a fixed seed, rate
after rate and three times each, and a figure is that of the three together: the very times at which requests came are
known. The same prompts are sent in every run and at every rate, so from the second time on V1, which caches prefixes
unless told not to, computes almost nothing of them wherever the cache holds them all.

Source: repository FreedomIntelligence/AccelMark at 5797fc4 (``suites/*/suite.json``, ``loadgen/loadgen.py``, the
runners of vLLM), read 2026-11-29; vLLM's ``EngineArgs`` and ``SchedulerConfig``.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gambrel.calibrate.lengths import stretched
from gambrel.calibrate.names import release

if TYPE_CHECKING:
    from gambrel.calibrate.table import Row
    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints, Workload

__all__ = [
    "LOTS", "WARMING", "Suite", "again", "answers", "arrivals", "caches", "late_steps", "prompts", "sent",
    "suite_limits", "suite_of",
]  # fmt: skip

LOTS: Final = 3
"""How often a Poisson stream of each rate is sent; the figures are those of all requests together."""

WARMING: Final = "warming"
"""The kind of requests that only fill a cache: what they took is not counted."""


@dataclass(frozen=True, slots=True)
class Suite:
    """What a suite fixes: ``max_model_len``, the longest answer, how many prompts there are by kind of run.

    ``rates``: requests per second of its Poisson streams, in their order.
    """

    model_len: int
    longest: int
    offline: int
    online: int
    alone: int
    sustained: int
    rates: tuple[float, ...] = ()


_STANDARD: Final = Suite(4096, 512, 100, 300, 150, 100, (5.0, 25.0, 100.0))
_SUITES: Final = {
    "A": _STANDARD,
    "B": replace(_STANDARD, online=200, alone=50, rates=(2.0, 5.0, 10.0, 25.0)),
    "C": replace(_STANDARD, alone=100, rates=(5.0, 10.0, 25.0, 50.0)),
    "D": Suite(30208, 256, 50, 200, 100, 50, (0.5, 1.0, 2.0)),
    "E": replace(_STANDARD, offline=150, rates=()),
    "F": Suite(2048, 256, 200, 300, 150, 200, (10.0, 40.0)),
    "G": replace(_STANDARD, alone=50, rates=(2.0, 10.0, 40.0)),
}
_SEED: Final = 42  # SAMPLE_SEED of loadgen.py
_OFFLINE_SEQS: Final = 512  # the runners' max_num_seqs for vLLM's LLM class
_ASYNC: Final = (128, 2048)  # SchedulerConfig's defaults, which the context of an embedded asynchronous engine gets
_EARLIER: Final = (256, 2048)  # before V1: sequences, and prompt tokens of a step where no prompt may be longer
_CACHING_SINCE: Final = (0, 8)
_BLOCK: Final = 16  # tokens
_LATE: Final = 0.5  # steps: first tokens of its streams show it on every device, those of servers none
_APART_S: Final = 1e6  # between a pass that warms the cache and the one that counts: longer than any takes

# Prompt lengths over their mean at some of their quantiles: the data set's, in characters.
_AT: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_LENGTHS: Final = (0.25, 0.29, 0.44, 0.84, 1.51, 2.18, 2.5)
_ANSWERS: Final = 0.582  # one-sigma of the logarithm of an answer's length: half are under 310 tokens, 99 % under 1,200


def suite_of(row: Row) -> Suite | None:
    """The suite of a row; None for rows of other sources."""
    said = re.search(r"suite ([A-G])\b", row.notes)
    return _SUITES[said.group(1)] if said and row.source.startswith("AccelMark") else None


def suite_limits(suite: Suite, version: str, limits: tuple[int, int], *, offline: bool) -> tuple[int, int]:
    """(``max_num_seqs``, ``max_num_batched_tokens``) under the harness; ``limits`` are the engine's own defaults."""
    if release(version) < _CACHING_SINCE:
        sequences, tokens = _EARLIER
        return _OFFLINE_SEQS if offline else sequences, max(tokens, suite.model_len)
    return (_OFFLINE_SEQS, limits[1]) if offline else _ASYNC


def caches(row: Row) -> bool:
    """Whether prompts of a row's suite are found again: V1 looks for prefixes unless its settings say not to."""
    return release(row.engine_version) >= _CACHING_SINCE and not row.engine.lower().startswith("1cat")


def late_steps(row: Row) -> float:
    """Steps by which a stream's requests go out late: the loop that sends them handles the last step's tokens first."""
    return _LATE if suite_of(row) is not None and row.mode == "rate" else 0.0


def prompts(rng: np.random.Generator, mean: float, n: int) -> Ints:
    """int64[n]: prompt lengths drawn as the data set's are spread, with the given mean."""
    drawn = np.interp(rng.uniform(size=n), _AT, _LENGTHS)
    found: Ints = np.maximum(1, np.rint(drawn * (mean / drawn.mean()))).astype(np.int64)
    return found


def answers(rng: np.random.Generator, mean: float, longest: int, n: int) -> Ints:
    """int64[n]: answers that end by themselves, lognormal, or at ``longest`` tokens; their mean is the one given."""
    drawn = rng.lognormal(0.0, _ANSWERS, n)
    found: Ints = np.maximum(1, np.rint(stretched(drawn, mean, longest))).astype(np.int64)
    return found


def sent(row: Row, suite: Suite) -> int:
    """How many prompts a run of a row's kind sends before it begins again."""
    if row.mode == "offline":
        return suite.offline
    if row.mode == "rate":
        return suite.online
    return suite.alone if row.load <= 1.0 else suite.sustained


def arrivals(suite: Suite, rate: float) -> Floats | None:
    """float64[LOTS * online], seconds: when the requests of a rate came, one lot long after the other.

    None for a rate that the suite does not have.
    """
    if rate not in suite.rates:
        return None
    rng = random.Random(_SEED)  # noqa: S311 - the harness's own generator
    for each in suite.rates:
        lots = [[rng.expovariate(each) for _ in range(suite.online)] for _ in range(LOTS)]
        if each == rate:
            break
    return np.concatenate([np.array(list(itertools.accumulate(lot))) + k * _APART_S for k, lot in enumerate(lots)])


def again(workload: Workload, lots: int = 1) -> Workload:
    """The requests of a workload after a lot that warms the cache, their blocks named, so that they are found there.

    ``lots``: how often the workload itself sends the same prompts. The first lot of the result is of the kind
    ``WARMING``; rows come one lot after the other.
    """
    n, shift = len(workload) // lots, 0.0 if workload.closed_loop else _APART_S
    blocks = workload.prompt_tokens // _BLOCK
    names = np.tile(np.arange(int(blocks[:n].sum())), lots + 1)
    lead = np.cumsum(np.concatenate([blocks[:n], blocks]))

    def led(column: Any) -> Any:
        return np.concatenate([column[:n], column])

    return replace(
        workload,
        arrival_s=np.concatenate([workload.arrival_s[:n], workload.arrival_s + shift]),
        prompt_tokens=led(workload.prompt_tokens),
        output_tokens=led(workload.output_tokens),
        prefix_blocks=names,
        prefix_offsets=np.concatenate([[0], lead]).astype(np.int64),
        prefix_block_tokens=_BLOCK,
        kind=np.repeat([0, 1], [n, len(workload)]),
        kinds=(WARMING, "counted"),
    )
