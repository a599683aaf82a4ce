"""Fit what engines add to kernels, from published serving measurements, and write it with its provenance.

Usage: ``python scripts/fit_engines.py [DIRECTORY] [--write]`` where DIRECTORY holds the end-to-end tables (default
``../shared/data/ground_truth``). Kernel constants stay as scripts/fit_kernels.py left them: here each engine generation
gets host times and factors on what kernels reach, on each vendor's accelerators, by least squares on log error through
the simulator itself.

The fit is hierarchical: an entry's constants are pulled towards their default (factor 1, the hand-set host times) with
the strength of a prior, so an entry with few rows stays near its parent. Rows are fitted as physics sees them: rows
whose deployment is not what their columns say (``suspicious``) are left out, and no constant belongs to a model or row.
Held-out errors are those of the linearised fit without the rows of one model, or of one accelerator.
"""

from __future__ import annotations

import argparse
import datetime as dt
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gambrel.calibrate.names import Models, engine_key
from gambrel.calibrate.predict import Predictor, Skip
from gambrel.calibrate.suspicious import suspicious
from gambrel.calibrate.table import read_table
from gambrel.catalog.accelerators import accelerator
from gambrel.catalog.efficiency import constants, kernel_efficiency
from gambrel.cost import Roofline

if TYPE_CHECKING:
    from gambrel.calibrate.table import Row
    from gambrel.core.deployment import Deployment
    from gambrel.core.efficiency import Efficiency

Floats = npt.NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "src" / "gambrel" / "catalog" / "data" / "engines.toml"
MARK = "# --- fitted by scripts/fit_engines.py; what follows is overwritten ---\n"
TABLES = (
    "aiconfigurator_silicon", "accelmark", "trtllm_perf_overview", "dstack", "gpu_conc", "llmservingsim_bench",
    "anl_llm_inference_bench",
)  # fmt: skip
FACTORS = ("bandwidth", "compute", "kv", "experts", "quantised", "wire")
TIMES = ("step_s", "layer_s", "seq_s")
KINDS = FACTORS + TIMES
# One-sigma of the prior on each constant's logarithm: software moves rates little on the accelerators whose kernels
# were measured, and much where none were; host times are known to a factor.
TIGHT = dict(zip(KINDS, (0.10, 0.12, 0.2, 0.25, 0.15, 0.3, 0.35, 0.4, 0.8), strict=True))
LOOSE = dict(zip(KINDS, (0.7, 0.7, 0.7, 0.4, 0.3, 0.7, 0.7, 0.5, 1.0), strict=True))
NOISE = 0.15  # one-sigma of a row's log error that no constant explains
HUBER = 2.0  # noises beyond which a row pulls no harder
STEP = 0.1  # of a logarithm, for differences
ROWS_A_GROUP = 20  # rows of one source, model, accelerator and engine that are used at most: enough to see all shapes
ITERATIONS = 7


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

    @property
    def generic(self) -> bool:
        """Whether it also speaks for vendors without entries."""
        return self.vendor == "NVIDIA"


ENTRIES = (
    Entry("vllm", "0.0", "NVIDIA", 1.0e-3, 25e-6, 20e-6, "vLLM before V1"),
    Entry("vllm", "0.8", "NVIDIA", 0.5e-3, 10e-6, 8e-6, "vLLM V1"),
    Entry("vllm", "0.0", "AMD", 1.0e-3, 25e-6, 20e-6, "vLLM before V1 on ROCm"),
    Entry("vllm", "0.8", "AMD", 0.7e-3, 15e-6, 10e-6, "vLLM V1 on ROCm"),
    Entry("vllm", "0.0", "xe", 2.0e-3, 40e-6, 40e-6, "vLLM on oneAPI, 2024"),
    Entry("vllm", "0.8", "xe", 0.7e-3, 15e-6, 10e-6, "vLLM V1 on oneAPI"),
    Entry("sglang", "0.0", "NVIDIA", 0.5e-3, 10e-6, 8e-6, "SGLang"),
    Entry("tensorrt-llm", "0.0", "NVIDIA", 0.5e-3, 10e-6, 2e-6, "TensorRT-LLM before 1.0 (C++ runtime)"),
    Entry("tensorrt-llm", "1.0", "NVIDIA", 0.5e-3, 10e-6, 4e-6, "TensorRT-LLM 1.x (PyTorch runtime)"),
    Entry("llama.cpp", "0.0", "NVIDIA", 1.0e-3, 30e-6, 50e-6, "llama.cpp on CUDA, 2024"),
    Entry("llama.cpp", "0.0", "AMD", 1.0e-3, 30e-6, 50e-6, "llama.cpp on ROCm, 2024"),
    Entry("llama.cpp", "0.0", "xe", 2.0e-3, 100e-6, 50e-6, "llama.cpp on SYCL, 2024"),
    Entry("deepspeed", "0.0", "NVIDIA", 1.0e-3, 30e-6, 20e-6, "DeepSpeed-MII, 2024"),
    Entry("deepspeed", "0.0", "gaudi", 1.0e-3, 30e-6, 20e-6, "DeepSpeed on Gaudi 2, 2024"),
)


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
    for wanted in ({device.vendor, device.family}, {"NVIDIA"}):
        mine = [i for i, e in enumerate(ENTRIES) if e.engine == engine and e.vendor in wanted]
        old = [i for i in mine if release(ENTRIES[i].since) <= release(deployment.engine_version)]
        if mine:
            return old[-1] if old else mine[0]
    return 1


def applied(theta: Floats, base: Efficiency, entry: Entry) -> Efficiency:
    """The constants of an entry at ``theta``, the logarithms of its factors on defaults."""
    by = dict(zip(KINDS, np.exp(theta), strict=True))
    host = base.with_(step_s=entry.step_s * by["step_s"], layer_s=entry.layer_s * by["layer_s"],
                      seq_s=entry.seq_s * by["seq_s"])  # fmt: skip
    return host.scaled(**{k: float(by[k]) for k in FACTORS})


def bare(deployment: Deployment) -> Efficiency:
    """Kernel constants without an engine."""
    return kernel_efficiency(deployment.accelerator)


class Table:
    """Rows, and their log errors at given constants."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows, self.models = rows, Models()
        self.theta = np.zeros((len(ENTRIES), len(KINDS)))
        self.entries: list[int] = []

    def errors(self, theta: Floats) -> tuple[Floats, list[tuple[int, str, int]]]:
        """(log errors, (row, metric, entry) of each) of every row at ``theta``; throughput counts as time."""

        def price(d: Deployment) -> Roofline:
            i = entry_of(d)
            return Roofline(d, applied(theta[i], bare(d), ENTRIES[i]))

        predictor = Predictor(price, self.models, accelerator)
        found, names = [], []
        for k, row in enumerate(self.rows):
            try:
                made = predictor(row)
            except Skip:
                continue
            i = entry_of(made.deployment)
            metrics = [m for m in ("tpot", "e2e", "output_tok_s") if m in row.measured]
            for metric in metrics[:1] if "static" in row.notes else metrics:
                sign = -1.0 if metric == "output_tok_s" else 1.0
                found.append(sign * np.log(made.figures[metric] / row.measured[metric].value))
                names.append((k, metric, i))
        return np.array(found), names


def chosen(directory: Path) -> list[Row]:
    """Rows worth fitting, at most so many of each group, picked by a hash of their id."""
    groups: defaultdict[tuple[str, ...], list[Row]] = defaultdict(list)
    for table in TABLES:
        for row in read_table(directory / f"{table}.csv"):
            if row.quality == "D" or suspicious(row) or not set(row.measured) & {"tpot", "e2e", "output_tok_s"}:
                continue
            groups[(row.source, row.model, row.gpu, engine_key(row.engine), row.mode)].append(row)
    kept = []
    for rows in groups.values():
        kept += sorted(rows, key=lambda r: zlib.crc32(r.id.encode()))[:ROWS_A_GROUP]
    return sorted(kept, key=lambda r: r.id)


@dataclass
class Solution:
    """Constants per entry, their covariance, and the linearised problem they came from."""

    theta: Floats
    covariance: Floats
    jacobian: Floats
    error: Floats
    names: list[tuple[int, str, int]]
    weight: Floats


def prior_sigma(entry: Entry) -> Floats:
    """One-sigma of each constant's prior."""
    measured = entry.vendor == "NVIDIA" and entry.engine in {"vllm", "sglang", "tensorrt-llm"}
    table = TIGHT if measured else LOOSE
    return np.array([table[k] for k in KINDS])


def weights(table: Table, names: list[tuple[int, str, int]], error: Floats) -> Floats:
    """Huber's weights, times a share that keeps a large source from shouting: a group counts as 12 rows at most."""
    keys = [(table.rows[k].source, table.rows[k].model, table.rows[k].gpu, i) for k, _, i in names]
    count: defaultdict[tuple[str, str, str, int], int] = defaultdict(int)
    for key in keys:
        count[key] += 1
    share = np.array([min(1.0, 12.0 / count[key]) for key in keys])
    size = np.abs(error) / NOISE
    return share * np.where(size <= HUBER, 1.0, HUBER / np.maximum(size, 1e-9))


def solve(i: int, jacobian: Floats, error: Floats, weight: Floats, theta: Floats) -> tuple[Floats, Floats]:
    """(step, covariance) of one entry: Gauss-Newton on weighted errors and the prior."""
    precision = 1.0 / prior_sigma(ENTRIES[i]) ** 2
    normal = (jacobian * weight[:, None]).T @ jacobian / NOISE**2 + np.diag(precision)
    right = -(jacobian * weight[:, None]).T @ error / NOISE**2 - precision * theta
    covariance = np.linalg.inv(normal)
    return np.asarray(covariance @ right), np.asarray(covariance)


def fitted(table: Table, iterations: int) -> Solution:
    """Gauss-Newton over all entries at once: a constant of one kind is moved in every entry at the same time."""
    theta = table.theta.copy()
    for iteration in range(iterations):
        start = time.perf_counter()
        error, names = table.errors(theta)
        columns = []
        for kind in range(len(KINDS)):
            moved = theta.copy()
            moved[:, kind] += STEP
            columns.append((table.errors(moved)[0] - error) / STEP)
        jacobian, weight = np.array(columns).T, weights(table, names, error)
        owner = np.array([i for _, _, i in names])
        covariance = np.zeros((len(ENTRIES), len(KINDS), len(KINDS)))
        for i in range(len(ENTRIES)):
            mine = owner == i
            step, covariance[i] = solve(i, jacobian[mine], error[mine], weight[mine], theta[i])
            if iteration < iterations - 1:
                theta[i] += np.clip(step, -0.7, 0.7) * (1.0 if iteration < 3 else 0.6)
        print(f"iteration {iteration}: {len(error)} errors, median {np.median(np.abs(np.expm1(error))):.1%}, "
              f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
    return Solution(theta, covariance, jacobian, error, names, weight)


def held_out(table: Table, s: Solution, key: str) -> Floats:
    """Log errors of every row with the constants fitted without its model (or accelerator), linearised."""
    owner = np.array([i for _, _, i in s.names])
    groups = np.array([getattr(table.rows[k], key) for k, _, _ in s.names])
    found = s.error.copy()
    for i in range(len(ENTRIES)):
        for group in np.unique(groups[owner == i]):
            mine, out = (owner == i) & (groups != group), (owner == i) & (groups == group)
            step, _ = solve(i, s.jacobian[mine], s.error[mine], s.weight[mine], s.theta[i])
            found[out] = s.error[out] + s.jacobian[out] @ np.clip(step, -1.0, 1.0)
    return found


def first_tokens(table: Table, theta: Floats) -> tuple[Floats, dict[int, Floats]]:
    """(request_s and wait_steps per entry, log errors of TTFT per entry) that make time to first token fit best.

    Least absolute log error over a grid, with a weak pull towards nothing: what a first token takes beside the steps it
    waits for and is made in.
    """

    def price(d: Deployment) -> Roofline:
        i = entry_of(d)
        return Roofline(d, applied(theta[i], bare(d), ENTRIES[i]))

    predictor = Predictor(price, table.models, accelerator)
    rows: defaultdict[int, list[tuple[float, float, float]]] = defaultdict(list)
    for row in table.rows:
        if "ttft" not in row.measured or "tpot" not in row.measured or row.mode == "offline":
            continue
        try:
            made = predictor(row)
        except Skip:
            continue
        rows[entry_of(made.deployment)].append((made.figures["ttft"], made.figures["tpot"], row.measured["ttft"].value))
    best, errors = np.zeros((len(ENTRIES), 2)), {}
    for i, found in rows.items():
        simulated, step, measured = np.array(found).T
        grid = [
            (float(np.abs(np.log((simulated + a + w * step) / measured)).mean() + 0.002 * w + 0.2 * a), a, w)
            for a in np.concatenate([[0.0], np.geomspace(0.003, 0.3, 14)]) for w in np.arange(0.0, 30.5, 0.5)
        ]  # fmt: skip
        _, *best[i] = min(grid)
        errors[i] = np.log((simulated + best[i, 0] + best[i, 1] * step) / measured)
    return best, errors


def report(s: Solution, held: dict[str, Floats]) -> None:
    """Errors in and out of sample, per entry."""
    owner = np.array([i for _, _, i in s.names])
    for i, e in enumerate(ENTRIES):
        mine = owner == i
        if not mine.any():
            continue
        parts = [f"{e.engine} {e.since} {e.vendor}: {mine.sum()} errors"]
        for label, errors in (("fitted", s.error), *((f"without its {k}", v) for k, v in held.items())):
            size = np.abs(np.expm1(errors[mine]))
            parts.append(f"{label} {np.median(size):.1%} / {np.percentile(size, 90):.0%}")
        print("; ".join(parts))
        wide = np.sqrt(np.diag(s.covariance[i]))
        print(
            "   "
            + ", ".join(f"{k} {np.exp(t):.2f}x (+-{w:.0%})" for k, t, w in zip(KINDS, s.theta[i], wide, strict=True))
        )


def sigma80(errors: Floats, few: float = 0.3) -> float:
    """The sigma whose central 80 % holds 80 % of the errors, shrunk towards ``few`` where there are not many."""
    own = float(np.percentile(np.abs(errors), 80)) / 1.2816
    return float(np.exp((len(errors) * np.log(max(own, 0.02)) + 8 * np.log(few)) / (len(errors) + 8)))


def spreads(table: Table, s: Solution, held: dict[str, Floats], i: int, first: Floats | None) -> list[str]:
    """Stated one-sigma log errors of an entry: accelerators with measured kernels, others, and time to first token."""
    families = constants()["families"]
    measured = {name for f in families.values() for name in f.get("accelerators", ())}
    mine = [n for n, (_, _, j) in enumerate(s.names) if j == i]
    known = [n for n in mine if accelerator(table.rows[s.names[n][0]].gpu).name in measured]
    rest = sorted(set(mine) - set(known))
    both = np.abs(held["model"])
    if len({table.rows[s.names[n][0]].gpu for n in mine}) > 1:  # of one accelerator, leaving it out leaves the prior
        both = np.maximum(both, np.abs(held["gpu"]))
    lines = []
    if known:
        lines.append(f"spread = {sigma80(both[known]):.3f}")
    lines.append(f"spread_other = {sigma80(both[rest]) if rest else max(0.3, sigma80(both[mine])):.3f}")
    if first is not None:
        lines.append(f"ttft_spread = {sigma80(first, 0.6):.3f}")
    return lines


def document(table: Table, s: Solution, held: dict[str, Floats], first: Floats, first_errors: dict[int, Floats]) -> str:
    """The data file's fitted part."""
    owner = np.array([i for _, _, i in s.names])
    lines = []
    for i, e in enumerate(ENTRIES):
        mine = owner == i
        rows = sorted({table.rows[k].source for (k, _, j) in s.names if j == i})
        wide = 1.96 * np.sqrt(np.diag(s.covariance[i]))
        lines += [f"[[engines.{quoted(e.engine)}]]", f'since = "{e.since}"']
        if not e.generic:
            lines.append(f'vendor = "{e.vendor}"')
        for k, kind in enumerate(KINDS):
            base = getattr(e, kind) if kind in TIMES else 1.0
            value, low, high = (base * np.exp(s.theta[i, k] + d) for d in (0.0, -wide[k], wide[k]))
            lines.append(f"{kind} = {{ value = {value:.4g}, low = {low:.4g}, high = {high:.4g} }}")
        lines += [f"request_s = {first[i, 0]:.4g}", f"wait_steps = {first[i, 1]:.3g}"]
        size = np.abs(np.expm1(held["model"][mine])) if mine.any() else np.array([0.0])
        lines += [f'basis = "{e.basis}"', f"rows = {int(mine.sum())}"]
        if mine.any():
            other = np.abs(np.expm1(held["gpu"][mine]))
            lines += [f"held_out_model = {np.median(size):.3f}", f"held_out_gpu = {np.median(other):.3f}"]
            lines += spreads(table, s, held, i, first_errors.get(i))
        lines += [f'source = "{"; ".join(rows) or "no rows: the defaults it started from"}"',
                  f'date = "{dt.datetime.now(dt.UTC).date()}"', ""]  # fmt: skip
    return "\n".join(lines)


def quoted(name: str) -> str:
    """A TOML key, quoted where it must be."""
    return f'"{name}"' if "." in name else name


def shipped() -> Floats:
    """The logarithms of the constants in the data file, entry by entry."""
    theta = np.zeros((len(ENTRIES), len(KINDS)))
    for i, e in enumerate(ENTRIES):
        for found in constants()["engines"].get(e.engine, ()):
            if found["since"] == e.since and found.get("vendor", "NVIDIA") == e.vendor:
                base = [getattr(e, k) if k in TIMES else 1.0 for k in KINDS]
                theta[i] = [np.log(found.get(k, {"value": b})["value"] / b) for k, b in zip(KINDS, base, strict=True)]
    return theta


def main() -> None:
    """Fit, print the errors, and write the data file if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?", default=ROOT.parent / "shared" / "data" / "ground_truth")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--resume", action="store_true", help="start from the constants in the data file")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    arguments = parser.parse_args()
    table = Table(chosen(arguments.directory))
    print(f"{len(table.rows)} rows")
    if arguments.resume:
        table.theta = shipped()
    s = fitted(table, arguments.iterations)
    held = {"model": held_out(table, s, "model"), "gpu": held_out(table, s, "gpu")}
    report(s, held)
    first, errors = first_tokens(table, s.theta)
    for i, found in errors.items():
        size = np.abs(np.expm1(found))
        print(f"{ENTRIES[i].engine} {ENTRIES[i].since} {ENTRIES[i].vendor}: TTFT {len(found)} rows, "
              f"request_s {first[i, 0]:.3f}, wait_steps {first[i, 1]:.1f}: "
              f"{np.median(size):.0%} / {np.percentile(size, 90):.0%}")  # fmt: skip
    if arguments.write:
        kept = DATA.read_text(encoding="utf-8").split(MARK)[0]
        DATA.write_text(kept + MARK + "\n" + document(table, s, held, first, errors), encoding="utf-8")


if __name__ == "__main__":
    main()
