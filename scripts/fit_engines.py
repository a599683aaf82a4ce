"""Fit what engines add to kernels, from published serving measurements, and write it with its provenance.

Usage: ``python scripts/fit_engines.py [DIRECTORY] [--only ENGINE:SINCE:VENDOR] [--write]`` where DIRECTORY holds the
end-to-end tables (default ``../shared/data/ground_truth``). Kernel constants stay as scripts/fit_kernels.py left them:
here each engine generation gets host times and factors on what kernels reach, on each vendor's accelerators, by least
squares on log error through the simulator itself. Every entry is fitted by itself, from the same start, so one can be
refitted alone (``--only``) and gives the same constants as all together.

The fit is hierarchical: an entry's constants are pulled towards their default (factor 1, the hand-set host times), or
some of the way towards the mean of what its parent entries were fitted to, with the strength of a prior: an entry with
few rows stays near its parents, one without rows is there. What a first token takes outside the steps is pulled towards
what the rows of all other entries say together (with ``--only``, of the entries that are fitted). Rows are fitted as
physics sees them: rows whose deployment is not what their columns say (``suspicious``) are left out, and no constant
belongs to a model or row.

Held-out errors are those of rows of one model (accelerator, source), simulated with the constants of a fit without
them: one Gauss-Newton step back from the common solution. Where that leaves an entry no row, it starts from its centre:
such figures count as "without engine", once.
"""

from __future__ import annotations

import argparse
import datetime as dt
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from gambrel.calibrate.accuracy import kind_of
from gambrel.calibrate.names import Models, engine_key
from gambrel.calibrate.predict import Predictor, Skip
from gambrel.calibrate.setting import deployments
from gambrel.calibrate.suspicious import suspicious
from gambrel.calibrate.table import read_table
from gambrel.calibrate.tuned import task_of
from gambrel.catalog.accelerators import accelerator
from gambrel.catalog.efficiency import kernel_efficiency
from gambrel.core.errors import GambrelError
from gambrel.cost import Roofline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gambrel.calibrate.table import Row
    from gambrel.core.deployment import Deployment
    from gambrel.core.efficiency import Efficiency

Floats = npt.NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "src" / "gambrel" / "catalog" / "data" / "engines.toml"
MARK = "# --- fitted by scripts/fit_engines.py; what follows is overwritten ---\n"
# One-sigma of the prior on each constant's logarithm, where kernels were measured and elsewhere: software moves rates
# little on the former, and much on the latter; host times are known to a factor. Rates first.
RATES = {
    "bandwidth": (0.10, 0.7),
    "compute": (0.12, 0.7),
    "kv": (0.2, 0.7),
    "experts": (0.10, 0.4),
    "expert_compute": (0.4, 0.4),  # many tokens an expert come with data-parallel attention, whose costs it also takes
    "quantised": (0.15, 0.3),
    "four_bit": (0.15, 0.2),
    "by_block": (0.15, 0.3),
    "quantising": (0.5, 0.5),
    "wire": (0.3, 0.7),
    "bus": (0.3, 0.7),
    "passes": (0.4, 0.4),
}
HOST = {
    "step_s": (0.35, 0.7),
    "layer_s": (0.4, 0.5),
    "seq_s": (0.8, 1.0),
    "stream_s": (0.8, 1.0),
    "soft_fp8": (0.8, 0.8),
    "logit_passes": (0.6, 0.6),
    "expert_shape": (0.8, 0.5),
    "unshared": (1.0, 1.0),
    "undivided": (1.0, 1.0),
}
PRIORS = RATES | HOST
KERNELS = tuple(rate for rate in RATES if rate not in {"wire", "bus"})
FACTORS, TIMES, KINDS = tuple(RATES), tuple(HOST), tuple(PRIORS)
UNSURE = 0.3  # on Blackwell: 8-bit matmuls scatter, by block they are Hopper's, 4 bits and their experts have no table
SCATTERED = ("quantised", "four_bit", "by_block", "experts")
NOISE = 0.15  # one-sigma of a row's log error that no constant explains
HUBER = 2.0  # noises beyond which a row pulls no harder
STEP = 0.05  # of a logarithm, for differences
ROWS_A_GROUP = 16  # rows of one source, model, accelerator, formats and engine at most: enough to see all shapes
COUNTED = 12.0  # rows that a source, model and accelerator count for at most
ITERATIONS = 12
FARTHEST = 1.0  # of a logarithm that one iteration moves a constant
INHERITED = 0.5  # share of its parent's way that an entry starts from
# What rows that state neither arrangement nor batch can tell apart.
TUNED = ("bandwidth", "compute", "kv", "experts", "passes", "expert_shape")
TRIES = 6  # of a step, each more damped
LEAST_DAMPING = 0.05
FIRST_DAMPING = 0.5  # of the first step: far from the rows, constants that trade against each other run apart
CONVERGED = 0.002  # of the loss
FIGURES = ("tpot", "e2e", "output_tok_s")
FOLDS = ("model", "gpu", "source")
WIDEST = 1.5  # one-sigma beyond which an interval says nothing: as the catalog has it
NARROWEST = 0.08  # one-sigma below which nothing is stated: rows repeat no better
UNSEEN = 0.45  # one-sigma of an entry without rows, of a vendor whose kernels have no tables but that has others
Z80 = 1.2815515655446004
SENT = 0.01  # seconds outside the steps while the rest is fitted: users' next requests miss the step that follows
REQUESTS = np.geomspace(0.002, 0.3, 21)  # seconds outside the steps that are tried
LENT = 8.0  # rows that the first tokens of all other entries count for together


@dataclass(frozen=True)
class Entry:
    """An engine generation on a vendor's or family's accelerators, with the hand-set host times its fit starts from."""

    engine: str
    since: str
    vendor: str
    step_s: float
    layer_s: float
    seq_s: float
    basis: str
    parents: tuple[str, ...] = ()
    free: tuple[str, ...] = KINDS
    inherits: float = INHERITED
    unsure: tuple[str, ...] = ()  # what the kernel tables of its accelerators say little about
    fresh: tuple[str, ...] = ()  # what its parents' kernels say nothing about: starts from its default
    served: bool = True  # over a network; MLPerf's load generator calls the engine in its process
    stream_s: float = 0.0  # rows of batches say nothing about it
    soft_fp8: float = 1300.0  # between what vLLM and TensorRT-LLM lost by such a cache on an A100
    expert_shape: float = 1.0  # between what was counted of DeepSeek-R1 (0.22) and even routing
    unshared: float = 0.01  # nearly none, as in the tables; 1 where vLLM's paged attention runs: a block a query head
    undivided: float = 0.0  # where vLLM's paged attention runs, a guess to begin with
    logit_passes: float = 6.0  # to fp32, softmax, a draw: each reads or writes the row, greedy ones less

    @property
    def name(self) -> str:
        """What ``--only`` and ``parent`` call it."""
        return f"{self.engine}:{self.since}:{self.vendor}"

    @property
    def generic(self) -> bool:
        """Whether it also speaks for vendors without entries."""
        return self.vendor == "NVIDIA"

    @property
    def sigma(self) -> Floats:
        """One-sigma of each constant's prior."""
        measured = self.vendor in TABLES and self.engine in {
            "vllm",
            "sglang",
            "tensorrt-llm",
            "mlperf",
        }
        return np.array([UNSURE if k in self.unsure else PRIORS[k][0 if measured else 1] for k in KINDS])


ENTRIES = (
    Entry("vllm", "0.0", "NVIDIA", 1.0e-3, 25e-6, 20e-6, "vLLM before V1", stream_s=20e-6),
    Entry("vllm", "0.0", "volta", 1.0e-3, 25e-6, 20e-6, "vLLM before V1 on Volta", stream_s=20e-6, unshared=1.0,
          undivided=0.3, parents=("vllm:0.0:NVIDIA",), inherits=1.0, fresh=("unshared", "undivided")),
    Entry("vllm", "0.8", "NVIDIA", 0.5e-3, 10e-6, 8e-6, "vLLM V1", stream_s=5e-6),
    Entry("vllm", "0.8", "blackwell", 0.5e-3, 10e-6, 8e-6, "vLLM V1 on Blackwell", stream_s=5e-6,
          parents=("vllm:0.8:NVIDIA",), inherits=1.0, unsure=SCATTERED, fresh=KERNELS),
    Entry("vllm", "0.0", "AMD", 1.0e-3, 25e-6, 20e-6, "vLLM on ROCm, early 2024", stream_s=50e-6, unshared=1.0,
          undivided=0.3),
    Entry("vllm", "0.6", "AMD", 1.0e-3, 25e-6, 20e-6, "vLLM 0.6 on ROCm", stream_s=50e-6),
    Entry("vllm", "0.8", "AMD", 0.7e-3, 15e-6, 10e-6, "vLLM V1 on ROCm", stream_s=5e-6,
          parents=("vllm:0.6:AMD", "mlperf:0.0:AMD"), inherits=1.0),
    Entry("vllm", "0.0", "xe", 2.0e-3, 40e-6, 40e-6, "vLLM on oneAPI, 2024", stream_s=50e-6),
    Entry("vllm", "0.8", "xe", 0.7e-3, 15e-6, 10e-6, "vLLM V1 on oneAPI", stream_s=5e-6, parents=("vllm:0.0:xe",)),
    Entry("vllm", "0.8", "Huawei", 3.0e-3, 100e-6, 20e-6, "vLLM V1 on Ascend", stream_s=5e-6),
    Entry("sglang", "0.0", "NVIDIA", 0.5e-3, 10e-6, 8e-6, "SGLang", stream_s=5e-6, parents=("vllm:0.8:NVIDIA",)),
    Entry("sglang", "0.0", "blackwell", 0.5e-3, 10e-6, 8e-6, "SGLang on Blackwell", stream_s=5e-6,
          parents=("sglang:0.0:NVIDIA",), unsure=SCATTERED, fresh=KERNELS),
    Entry("sglang", "0.0", "AMD", 0.7e-3, 15e-6, 10e-6, "SGLang on ROCm", stream_s=5e-6,
          parents=("vllm:0.6:AMD", "mlperf:0.0:AMD"), inherits=1.0),
    # A heuristic picks its attention kernel (docs/source/advanced/gpt-attention.md): the early rows' static batches
    # read a KV head for each query head, later ones' many requests in flight, like users', do not.
    Entry("tensorrt-llm", "0.0", "NVIDIA", 0.5e-3, 10e-6, 2e-6, "TensorRT-LLM before 0.13"),
    Entry("tensorrt-llm", "0.13", "NVIDIA", 0.5e-3, 10e-6, 2e-6, "TensorRT-LLM 0.13 to 1.0 (C++ runtime)",
          parents=("tensorrt-llm:0.0:NVIDIA",), inherits=1.0, fresh=("unshared",),
          # its rows are of full batches, which say nothing of the least time of a layer
          free=tuple(k for k in KINDS if k not in {"unshared", "layer_s"})),
    Entry("tensorrt-llm", "1.0", "NVIDIA", 0.5e-3, 10e-6, 4e-6, "TensorRT-LLM 1.x (PyTorch runtime)", stream_s=30e-6),
    Entry("tensorrt-llm", "1.0", "blackwell", 0.5e-3, 10e-6, 4e-6, "TensorRT-LLM 1.x on Blackwell", stream_s=30e-6,
          parents=("tensorrt-llm:1.0:NVIDIA",), inherits=1.0, unsure=SCATTERED, fresh=KERNELS),
    Entry("mlperf", "0.0", "NVIDIA", 0.5e-3, 10e-6, 4e-6, "MLPerf submissions: TensorRT-LLM, tuned by hand",
          ("tensorrt-llm:1.0:NVIDIA",), TUNED, served=False),
    Entry("mlperf", "0.0", "blackwell", 0.5e-3, 10e-6, 4e-6, "MLPerf submissions on Blackwell, tuned by hand",
          ("tensorrt-llm:1.0:blackwell",), TUNED, served=False),
    Entry("mlperf", "0.0", "AMD", 0.7e-3, 15e-6, 10e-6, "MLPerf submissions: vLLM on ROCm, tuned by hand",
          ("vllm:0.6:AMD",), TUNED, served=False),
    Entry("llama.cpp", "0.0", "NVIDIA", 1.0e-3, 30e-6, 50e-6, "llama.cpp on CUDA, 2024"),
    Entry("llama.cpp", "0.0", "AMD", 1.0e-3, 30e-6, 50e-6, "llama.cpp on ROCm, 2024"),
    Entry("llama.cpp", "0.0", "xe", 2.0e-3, 100e-6, 50e-6, "llama.cpp on SYCL, 2024"),
    Entry("deepspeed", "0.0", "NVIDIA", 1.0e-3, 30e-6, 20e-6, "DeepSpeed-MII, 2024"),
    Entry("deepspeed", "0.0", "gaudi", 1.0e-3, 30e-6, 20e-6, "DeepSpeed on Gaudi 2, 2024"),
)  # fmt: skip
TABLES = ("NVIDIA", "blackwell", "volta")  # whose accelerators, or their sisters, have kernel tables
NAMED = {e.name: i for i, e in enumerate(ENTRIES)}


def release(text: str) -> tuple[int, ...]:
    """Leading numbers of a version."""
    numbers = []
    for part in text.split("."):
        digits = "".join(c for c in part if c.isdigit())
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers[:2]) or (99,)


def entry_of(deployment: Deployment) -> int:
    """The entry that prices a deployment."""
    engine, device = deployment.engine, deployment.accelerator
    for wanted in (device.family, device.vendor, "NVIDIA"):
        mine = [i for i, e in enumerate(ENTRIES) if e.engine == engine and e.vendor == wanted]
        old = [i for i in mine if release(ENTRIES[i].since) <= release(deployment.engine_version)]
        if mine:
            return old[-1] if old else mine[0]
    return 1


def applied(theta: Floats, base: Efficiency, entry: Entry) -> Efficiency:
    """The constants of an entry at ``theta``, the logarithms of its factors on defaults."""
    by = dict(zip(KINDS, np.exp(theta), strict=True))
    host = base.with_(**{k: getattr(entry, k) * float(by[k]) for k in TIMES}, request_s=SENT if entry.served else 0.0)
    return host.scaled(**{k: float(by[k]) for k in FACTORS})


@dataclass(frozen=True)
class Figures:
    """Log errors (throughput counts as time) of some rows' figures, and what a first token's constants are fitted to.

    ``row`` indexes the rows, ``metric`` names the figure; ``first`` holds (row, simulated TTFT without what is outside
    the steps, measured TTFT) of rows that have it.
    """

    error: Floats
    row: list[int]
    metric: list[str]
    first: Floats


@dataclass
class Problem:
    """One entry's rows; ``more`` are only looked at for their first tokens, which cost one simulation each."""

    entry: Entry
    rows: list[Row]
    models: Models
    more: list[Row] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    mixtures: list[bool] = field(default_factory=list)
    settled: dict[Any, Any] = field(default_factory=dict)

    def figures(self, theta: Floats, only: Sequence[int] | None = None) -> Figures:
        """Errors of the rows (of ``only`` these) at ``theta``."""

        def price(d: Deployment) -> Roofline:
            return Roofline(d, applied(theta, kernel_efficiency(d.accelerator), self.entry))

        predictor = Predictor(price, self.models, accelerator, self.settled)
        error, names, metrics, first = [], [], [], []
        for k in range(len(self.rows)) if only is None else only:
            row = self.row(k)
            try:
                made = predictor(row)
            except Skip:
                continue
            present = [m for m in FIGURES if m in row.measured]
            for metric in present[:1] if "static" in row.notes else present:
                sign = -1.0 if metric == "output_tok_s" else 1.0
                error.append(sign * np.log(made.figures[metric] / row.measured[metric].value))
                names.append(k)
                metrics.append(metric)
            if "ttft" in row.measured and row.mode != "offline":
                first.append((k, made.figures["ttft"] - SENT, row.measured["ttft"].value))
        return Figures(np.array(error), names, metrics, np.array(first).reshape(-1, 3))

    def row(self, k: int) -> Row:
        """The ``k``-th of the rows and those beyond."""
        return self.rows[k] if k < len(self.rows) else self.more[k - len(self.rows)]

    def firsts(self, found: Figures, theta: Floats) -> Floats:
        """``first`` of all rows, of those beyond too, with the share that each counts as a fourth column."""
        beyond = self.figures(theta, range(len(self.rows), len(self.rows) + len(self.more)))
        first = np.concatenate([found.first, beyond.first])
        return np.column_stack([first, self.counted([int(k) for k in first[:, 0]])])

    def named(self, key: str, k: int) -> str:
        """The model, accelerator or source of a row."""
        return str(getattr(self.row(k), key))

    def weights(self, found: Figures) -> Floats:
        """Huber's weights, times the rows' shares."""
        size = np.abs(found.error) / NOISE
        return self.shares(found) * np.where(size <= HUBER, 1.0, HUBER / np.maximum(size, 1e-9))

    def shares(self, found: Figures) -> Floats:
        """What each figure counts."""
        return self.counted(found.row)

    def counted(self, of: Sequence[int]) -> Floats:
        """What each of these rows counts, so that no large source shouts: a group counts as 12 rows at most."""
        keys = [(self.named("source", k), self.named("model", k), self.named("gpu", k)) for k in of]
        count: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        for key in keys:
            count[key] += 1
        return np.array([min(1.0, COUNTED / count[key]) for key in keys])


def chosen(directory: Path) -> tuple[list[Row], list[Row]]:
    """Rows worth fitting, at most so many of each group, picked by a hash of their id; and others with first tokens."""
    groups: defaultdict[tuple[str, ...], list[Row]] = defaultdict(list)
    for table in sorted(directory.glob("*.csv")):
        for row in read_table(table):
            if row.quality == "D" or suspicious(row) or not set(row.measured) & set(FIGURES):
                continue
            task = task_of(row)
            if task is not None and task.beams > 1:  # what beams share of the cache is assumed: compared, not fitted
                continue
            groups[(row.source, row.model, row.gpu, row.weights, row.kv, engine_key(row.engine), row.mode)].append(row)
    kept, more = [], []
    for rows in groups.values():
        rows.sort(key=lambda r: zlib.crc32(r.id.encode()))
        kept += rows[:ROWS_A_GROUP]
        more += [r for r in rows[ROWS_A_GROUP:] if "ttft" in r.measured and r.mode != "offline"]
    return sorted(kept, key=lambda r: r.id), sorted(more, key=lambda r: r.id)


def problems(directory: Path) -> list[Problem]:
    """Every entry with its rows."""
    models = Models()
    found = [Problem(e, [], models) for e in ENTRIES]
    rows, more = chosen(directory)
    beyond = {row.id for row in more}
    for row in (*rows, *more):
        try:
            deployment = deployments(row, models, accelerator)[0]
        except GambrelError:
            continue
        mine = found[entry_of(deployment)]
        if row.id in beyond:
            mine.more.append(row)
            continue
        mine.rows.append(row)
        mine.kinds.append(kind_of(row.gpu, deployment))
        mine.mixtures.append(deployment.model.has_experts)
    return found


@dataclass
class Solution:
    """An entry's constants, their covariance, the centre of their prior, and the linearised problem they came from."""

    problem: Problem
    centre: Floats
    theta: Floats
    covariance: Floats
    jacobian: Floats
    found: Figures
    weight: Floats
    first: Floats = field(default_factory=lambda: np.zeros((0, 4)))
    request_s: float = 0.0

    def loss(self, found: Figures, theta: Floats) -> float:
        """What the fit makes least: Huber's loss of the errors, in squared noises, and the prior's of the constants."""
        size = np.abs(found.error) / NOISE
        rows = np.where(size <= HUBER, size**2, HUBER * (2.0 * size - HUBER)) * self.problem.shares(found)
        return float(rows.sum() + (((theta - self.centre) / self.problem.entry.sigma) ** 2).sum())

    def first_without(self, by: str, group: str) -> Floats:
        """First tokens of rows that are not of this model (accelerator, source)."""
        keep = [self.problem.named(by, int(k)) != group for k in self.first[:, 0]]
        return np.asarray(self.first[np.array(keep, dtype=bool)])

    def step(self, keep: npt.NDArray[np.bool_], damping: float = 0.0) -> tuple[Floats, Floats]:
        """(step, covariance) of Gauss-Newton on the weighted errors of ``keep`` and the prior.

        ``damping`` shortens the step, constant by constant as much as the others would have to make up for it.
        """
        precision = 1.0 / self.problem.entry.sigma**2
        jacobian = self.jacobian[keep]
        weighted = jacobian * self.weight[keep][:, None]
        normal = weighted.T @ jacobian / NOISE**2 + np.diag(precision)
        normal += damping * np.diag(np.diag(normal))
        right = -weighted.T @ self.found.error[keep] / NOISE**2 - precision * (self.theta - self.centre)
        covariance = np.linalg.inv(normal)
        return np.asarray(covariance @ right), np.asarray(covariance)


def slopes(problem: Problem, theta: Floats, found: Figures) -> Floats:
    """Derivatives of the errors with respect to every constant that is free, by differences: (figures, constants).

    Downwards for rates, which end at their peaks: from there the errors do not move upwards, and a fit would stay.
    """
    jacobian = np.zeros((len(found.row), len(KINDS)))
    for kind in (KINDS.index(k) for k in problem.entry.free if k in FACTORS or getattr(problem.entry, k) > 0.0):
        moved = theta.copy()
        step = -STEP if KINDS[kind] in FACTORS else STEP
        moved[kind] += step
        jacobian[:, kind] = (problem.figures(moved).error - found.error) / step
    return jacobian


def fitted(problem: Problem, centre: Floats, iterations: int) -> Solution:
    """Gauss-Newton from the prior's centre, damped (Levenberg and Marquardt) until a step makes the fit better.

    Rates end at their peaks, so the errors have kinks that an undamped step jumps over to and fro.
    """
    n = len(KINDS)
    s = Solution(problem, centre, centre.copy(), np.diag(problem.entry.sigma**2), np.zeros((0, n)),
                 Figures(np.zeros(0), [], [], np.zeros((0, 3))), np.zeros(0))  # fmt: skip
    if not problem.rows:
        return s
    start, damping = time.perf_counter(), FIRST_DAMPING
    s.found = problem.figures(s.theta)
    loss = s.loss(s.found, s.theta)
    for _ in range(iterations):
        s.weight = problem.weights(s.found)
        s.jacobian = slopes(problem, s.theta, s.found)
        everything = np.ones(len(s.found.row), dtype=bool)
        before = loss
        for _ in range(TRIES):
            step, _ = s.step(everything, damping)
            trial = s.theta + np.clip(step, -FARTHEST, FARTHEST)
            made = problem.figures(trial)
            if len(made.row) == len(s.found.row) and s.loss(made, trial) < loss:
                s.theta, s.found, loss = trial, made, s.loss(made, trial)
                damping /= 4.0
                break
            damping = max(4.0 * damping, LEAST_DAMPING)
        if before - loss < CONVERGED * before:
            break
    s.weight, s.jacobian = problem.weights(s.found), slopes(problem, s.theta, s.found)
    _, s.covariance = s.step(np.ones(len(s.found.row), dtype=bool))
    s.first = problem.firsts(s.found, s.theta)
    size = np.abs(np.expm1(s.found.error))
    print(f"{problem.entry.name}: {len(size)} figures, {np.median(size):.1%} / {np.percentile(size, 90):.0%}, "
          f"loss {loss:.1f}, {time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
    return s


def missing(first: Floats) -> Floats:
    """Mean absolute log error of first tokens at each of ``REQUESTS``."""
    _, simulated, measured, share = first.T
    size = np.abs(np.log((simulated + REQUESTS[:, None]) / measured))
    return np.asarray(np.average(size, axis=-1, weights=share))


def outside_s(own: Floats, others: Sequence[Floats]) -> float:
    """The ``request_s`` that makes time to first token fit best: what it takes beside the steps it waits for.

    Those of ``others``, which count alike, together count as ``LENT`` rows.
    """
    lent = [missing(first) for first in others if len(first)]
    total = own[:, 3].sum() * missing(own) if len(own) else np.zeros(len(REQUESTS))
    if lent:
        total = total + LENT * np.mean(lent, axis=0)
    return float(REQUESTS[int(np.argmin(total))])


@dataclass(frozen=True)
class Held:
    """A figure predicted by constants that never saw its group; ``known``: other rows were of its accelerator.

    ``few``: nothing was left to fit to. ``mixture``: of a model with experts.
    """

    by: str
    kind: str
    metric: str
    error: float
    gpu: str
    known: bool
    few: bool
    mixture: bool
    row: int


def held_out(s: Solution, everyone: Sequence[Solution]) -> list[Held]:
    """Every figure, simulated with constants fitted without its model, its accelerator, its source.

    ``everyone``: all solutions, whose rows of the same group are left out of what they lend, too.
    """
    problem, found = s.problem, []
    whole, _ = s.step(np.ones(len(s.found.row), dtype=bool))  # nothing, but at a kink
    for by in FOLDS:
        groups = np.array([problem.named(by, k) for k in range(len(problem.rows))])
        mine = np.array([groups[k] for k in s.found.row])
        for group in np.unique(groups):
            step, _ = s.step(mine != group)
            alone = bool(np.all(mine == group))
            theta = s.centre if alone else s.theta + np.clip(step - whole, -2.0, 2.0)
            out = [k for k in range(len(problem.rows)) if groups[k] == group]
            made = problem.figures(theta, out)
            gpus = {problem.rows[k].gpu for k in range(len(problem.rows)) if groups[k] != group}
            found += [
                Held(by, problem.kinds[k], m, float(e), problem.rows[k].gpu, problem.rows[k].gpu in gpus, alone,
                     problem.mixtures[k], k)
                for e, k, m in zip(made.error, made.row, made.metric, strict=True)
            ]  # fmt: skip
            others = [o.first_without(by, group) for o in everyone if o is not s]
            request = outside_s(s.first_without(by, group), others)
            found += [
                Held(by, problem.kinds[int(k)], "ttft", float(np.log((t + request) / measured)),
                     problem.rows[int(k)].gpu, problem.rows[int(k)].gpu in gpus, alone, problem.mixtures[int(k)],
                     int(k))
                for k, t, measured in made.first
            ]  # fmt: skip
    return found


def sigma80(errors: Floats, few: float = 0.3) -> float:
    """The sigma whose central 80 % holds 80 % of the errors, shrunk towards ``few`` where there are not many."""
    if not len(errors):
        return few
    own = float(np.percentile(np.abs(errors), 80)) / Z80
    return float(np.exp((len(errors) * np.log(max(own, 0.02)) + 8 * np.log(few)) / (len(errors) + 8)))


@dataclass(frozen=True)
class Spreads:
    """Stated one-sigma log errors of an entry: on its accelerators one by one (``of``), elsewhere, the same of TTFT.

    ``board``: elsewhere among boards that meet over PCIe or in pairs, which no kernel table but the L40S's speaks for.
    ``experts``: at least, of models with experts.
    """

    known: float
    other: float
    board: float
    experts: float
    first: float
    of: dict[str, float]
    first_of: dict[str, float]

    def stated(self, h: Held, alone: float) -> float:
        """What is said of a figure like this one; ``alone`` of one that no row of its engine and vendor is left for."""
        if h.few and on_tables(h):
            return 2.0 * alone if h.metric == "ttft" else alone
        name = accelerator(h.gpu).name
        sigma = self.of[name] if h.known else self.board if accelerator(h.gpu).board else self.other
        if h.few:
            sigma = max(sigma, alone)
        if h.mixture:
            sigma = max(sigma, self.experts)
        return (
            max(sigma, self.first_of.get(name, self.first) if h.known else self.first) if h.metric == "ttft" else sigma
        )


def on_tables(h: Held) -> bool:
    """Whether a figure is of an accelerator that kernel tables speak for."""
    return h.kind.startswith("NVIDIA")


def alone_sigma(held: list[list[Held]], but: list[Held] | None = None, *, tables: bool = False) -> float:
    """The sigma that holds 80 % of what leaving out all rows of an engine and vendor costs, ``but`` one's.

    At most ``WIDEST``. Entries count alike; of accelerators whose kernels were measured (``tables``), or of the others.
    As few entries as there are say little about the next one: their quantile is widened as Student's is over Gauss's.
    """

    def counts(h: Held) -> bool:
        return h.few and h.metric != "ttft" and on_tables(h) is tables

    sizes = [
        np.percentile([abs(h.error) for h in found if counts(h)], np.arange(2.5, 100.0, 5.0))
        for found in held
        if found is not but and any(counts(h) for h in found)
    ]
    if len(sizes) < 2:
        return UNSEEN
    few = float(student.ppf(0.9, len(sizes) - 1)) / Z80
    return min(WIDEST, few * float(np.percentile(np.concatenate(sizes), 80)) / Z80)


def by_fold(held: list[Held]) -> dict[str, list[float]]:
    """Absolute relative errors, first tokens apart, by what was left out; figures of nothing left once, as "engine"."""
    found: dict[str, dict[tuple[str, int, str], float]] = {}
    for h in held:
        if h.metric != "ttft":
            fold = "engine" if h.few else h.by
            found.setdefault(fold, {})["" if h.few else h.by, h.row, h.metric] = float(abs(np.expm1(h.error)))
    return {fold: list(found[fold].values()) for fold in (*FOLDS, "engine") if fold in found}


def shrunk(held: list[Held], whole: float) -> dict[str, float]:
    """The sigma of every accelerator, shrunk towards that of the whole entry where it has few figures."""
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for h in held:
        groups[accelerator(h.gpu).name].append(h.error)
    return {name: max(NARROWEST, sigma80(np.array(errors), whole)) for name, errors in sorted(groups.items())}


def spreads(held: list[Held]) -> Spreads:
    """The spreads that held-out errors give.

    On an accelerator of the rows another model, measured by others, is what is new; elsewhere the accelerator is.
    """

    def without(by: tuple[str, ...], *, first: bool) -> list[Held]:
        return [h for h in held if h.by in by and (h.metric == "ttft") is first and not (h.few and h.by != "model")]

    def errors(found: list[Held]) -> Floats:
        return np.array([h.error for h in found])

    models, gpus = without(("model", "source"), first=False), without(("gpu",), first=False)
    firsts, first_gpus = without(("model", "source"), first=True), without(("gpu",), first=True)
    known = sigma80(errors(models))
    other = max(known, sigma80(errors(gpus)) if gpus else 1.5 * max(known, 0.2))
    boards = [h for h in gpus if accelerator(h.gpu).board]
    board = max(other, sigma80(errors(boards), other))
    mixed = [h for h in models if h.mixture]
    experts = max(known, sigma80(errors(mixed), known)) if mixed else known
    first = max(known, sigma80(errors(firsts), 0.6))
    elsewhere = max(first, other, sigma80(errors(first_gpus), first))
    return Spreads(known, other, board, experts, elsewhere, shrunk(models, known), shrunk(firsts, first))


def inline(table: dict[str, float]) -> str:
    """A TOML inline table."""
    return "{ " + ", ".join(f'"{name}" = {value:.3f}' for name, value in table.items()) + " }"


def document(s: Solution, held: list[Held], alone: float = UNSEEN) -> list[str]:
    """An entry of the data file; ``alone``: the sigma of engines without rows on accelerators with kernel tables."""
    e, problem = s.problem.entry, s.problem
    wide = 1.96 * np.sqrt(np.diag(s.covariance))
    lines = [f"[[engines.{quoted(e.engine)}]]", f'since = "{e.since}"']
    if not e.generic:
        lines.append(f'vendor = "{e.vendor}"')
    for k, kind in enumerate(KINDS):
        base = getattr(e, kind) if kind in TIMES else 1.0
        value, low, high = (base * np.exp(s.theta[k] + d) for d in (0.0, -wide[k], wide[k]))
        lines.append(f"{kind} = {{ value = {value:.4g}, low = {low:.4g}, high = {high:.4g} }}")
    lines.append(f"request_s = {s.request_s:.4g}")
    lines += [f'basis = "{e.basis}"', f"rows = {len(s.found.row)}"]
    if s.found.row:
        for without, sizes in by_fold(held).items():
            lines.append(f"held_out_{without} = {np.median(sizes):.3f}")
        found = spreads(held)
        lines += [f"spread = {found.known:.3f}", f"spread_other = {found.other:.3f}"]
        lines += [f"spread_board = {found.board:.3f}", f"expert_spread = {found.experts:.3f}"]
        lines += [f"ttft_spread = {found.first:.3f}", f"spreads = {inline(found.of)}"]
        lines.append(f"ttft_spreads = {inline(found.first_of)}")
    else:
        lines.append(f"spread_other = {alone if e.vendor in TABLES else UNSEEN:.3f}")
    sources = "; ".join(sorted({row.source for row in problem.rows}))
    way = "half the way to" if e.inherits == INHERITED else "the mean of"
    inherited = (
        f"no rows: {way} {' and '.join(p.replace(':', ' ') for p in e.parents)}"
        if e.parents
        else "no rows: the start of the fit"
    )
    return [*lines, f'source = "{sources or inherited}"', f'date = "{dt.datetime.now(dt.UTC).date()}"', ""]


def unseen(held: list[list[Held]]) -> list[str]:
    """What is said where neither the engine on this vendor's accelerators nor their kernels have rows."""
    return [
        "[unseen]",
        f"spread = {alone_sigma(held):.3f}",
        'basis = "engines on a vendor\'s accelerators without their rows: what holds 80 % of the errors"',
        f'date = "{dt.datetime.now(dt.UTC).date()}"',
        "",
    ]


def coverage_table(held: list[list[Held]]) -> list[str]:
    """Held-out errors by kind of deployment, with how often the stated intervals held."""
    rows: defaultdict[tuple[str, str, str], list[tuple[float, bool]]] = defaultdict(list)
    for found in held:
        stated, alone = spreads(found), {tables: alone_sigma(held, found, tables=tables) for tables in (False, True)}
        seen = set()
        for h in found:
            if h.few and (h.row, h.metric) in seen:
                continue
            if h.few:
                seen.add((h.row, h.metric))
            sigma = stated.stated(h, alone[on_tables(h)])
            without = "engine" if h.few else h.by
            rows[(h.kind, h.metric, without)].append((h.error, abs(h.error) <= Z80 * sigma))
    lines = []
    for (kind, metric, by), figures in sorted(rows.items()):
        sign = -1.0 if metric == "output_tok_s" else 1.0
        size = np.abs(np.expm1(sign * np.array([e for e, _ in figures])))
        inside = float(np.mean([c for _, c in figures]))
        lines += ["[[held_out]]", f'kind = "{kind}"', f'metric = "{metric}"', f'without = "{by}"',
                  f"figures = {len(size)}", f"median = {np.median(size):.3f}",
                  f"p90 = {np.percentile(size, 90):.3f}", f"covered = {inside:.3f}", ""]  # fmt: skip
        print(f"{kind:22s} {metric:13s} without {by:7s} {len(size):5d}  {np.median(size):5.1%} /"
              f" {np.percentile(size, 90):5.0%}  covered {inside:4.0%}")  # fmt: skip
    return lines


def quoted(name: str) -> str:
    """A TOML key, quoted where it must be."""
    return f'"{name}"' if "." in name else name


def generation(entry: Entry) -> int:
    """How many entries stand between this one and those that start from the defaults."""
    return 1 + max((generation(ENTRIES[NAMED[parent]]) for parent in entry.parents), default=-1)


def solve_all(directory: Path, only: Sequence[str] = (), iterations: int = ITERATIONS) -> list[Solution]:
    """Every entry's solution, parents first; of ``only`` these (and the parents they need)."""
    wanted = set(only) or set(NAMED)
    for _ in ENTRIES:
        wanted |= {parent for name in wanted for parent in ENTRIES[NAMED[name]].parents}
    found: dict[str, Solution] = {}
    for problem in sorted(problems(directory), key=lambda p: generation(p.entry)):
        e = problem.entry
        if e.name in wanted:
            centre = np.zeros(len(KINDS))
            if e.parents:
                centre = e.inherits * np.mean([found[parent].theta for parent in e.parents], axis=0)
                centre[[KINDS.index(k) for k in e.fresh]] = 0.0
            found[e.name] = fitted(problem, centre, iterations)
    solutions = [found[e.name] for e in ENTRIES if e.name in found]
    for s in (s for s in solutions if s.problem.entry.served):
        s.request_s = outside_s(s.first, [o.first for o in solutions if o is not s])
    return solutions


def main() -> None:
    """Fit, print the errors, and write the data file if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?", default=ROOT.parent / "shared" / "data" / "ground_truth")
    parser.add_argument("--write", action="store_true", help="into the data file; not with --only")
    parser.add_argument("--only", action="append", default=[], choices=sorted(NAMED), metavar="ENTRY")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    arguments = parser.parse_args()
    solutions = solve_all(arguments.directory, arguments.only, arguments.iterations)
    held = [held_out(s, solutions) for s in solutions]
    table = coverage_table(held)
    alone = alone_sigma(held, tables=True)
    written = "\n".join(line for s, h in zip(solutions, held, strict=True) for line in document(s, h, alone))
    written = "\n".join([*unseen(held), written])
    if arguments.write and not arguments.only:
        kept = DATA.read_text(encoding="utf-8").split(MARK)[0]
        DATA.write_text(kept + MARK + "\n" + written + "\n" + "\n".join(table), encoding="utf-8")
    else:
        print(written)


if __name__ == "__main__":
    main()
