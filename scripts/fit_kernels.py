"""Fit the default efficiency constants to published kernel measurements, and write them with their provenance.

Usage: ``python scripts/fit_kernels.py [DIRECTORY] [--write FILE]`` where DIRECTORY holds ``gemm.csv``,
``decode_attention.csv``, ``prefill_attention.csv``, ``moe.csv``, ``allreduce.csv`` and ``vidur_layer_ops.csv``
(default ``../shared/data/ground_truth/kernels``) and FILE is the data file (default: the shipped one).

Every fit is a robust least squares on log time: relative errors count alike for 10 us and 10 ms kernels, and a few
outliers do not steer. The formulas are those of gambrel.core.efficiency and gambrel.cost; the intervals are 95 % of the
linearised fit. What the kernels cannot tell (host time per step) is in the same data file under ``engines``
and is kept as it is.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from gambrel.cost.collectives import Wire, all_reduce_s
from gambrel.cost.roofline import round_max

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "src" / "gambrel" / "catalog" / "data" / "efficiency.toml"
ROUNDING = 0.25  # the corner of the roofline; 0 and 0.5 fit as well or worse on every device (docs/cost.md)
SOURCE = 'source = "ai-dynamo/aiconfigurator data base (Apache-2.0); small operations: microsoft/vidur (MIT)"'
OUTLIER = 0.2  # log error beyond which a row pulls less and less
ALIKE = 0.05  # one-sigma of what a memory reaches for one number format over what it reaches for another
HEAD_DIM = 128  # of every attention kernel in the tables


@dataclass(frozen=True)
class Device:
    """A measured accelerator: its dense peaks, and the name it has in each table."""

    family: str
    kernels: str
    peak16: float
    peak8: float
    bandwidth: float
    l2: float
    link: float
    vidur: str = ""
    accelerators: tuple[str, ...] = ()


DEVICES = (
    Device("ampere", "A100-SXM-80GB", 312e12, 624e12, 2039e9, 40e6, 300e9, "a100", ("a100-sxm-80",)),
    Device("hopper", "H100-SXM-80GB", 989e12, 1979e12, 3352e9, 50e6, 450e9, "h100", ("h100-sxm",)),
    Device("ada", "L40S-48GB", 362e12, 733e12, 864e9, 96e6, 32e9, "", ("l40s",)),
    Device("blackwell", "B200-SXM-180GB", 2250e12, 4500e12, 7700e9, 126e6, 900e9, "", ("b200-sxm",)),
)
HIDDEN = {
    "microsoft/phi-2": 2560,
    "meta-llama/Llama-2-7b-hf": 4096,
    "internlm/internlm-20b": 5120,
    "meta-llama/Meta-Llama-3-8B": 4096,
}  # the others are 8192 wide


@dataclass
class Fit:
    """Fitted constants with 95 % intervals, the rows they rest on, and how well they describe them."""

    names: tuple[str, ...]
    values: Floats
    low: Floats
    high: Floats
    rows: int
    median_error: float
    p90_error: float
    sigma: float
    more: dict[str, float] = field(default_factory=dict)


def fit(
    names: tuple[str, ...],
    predict: Callable[[Floats], Any],
    measured: Floats,
    start: list[float],
    low: list[float],
    high: list[float],
    known: dict[int, float] | None = None,
) -> Fit:
    """Robust least squares of ``log(predict(parameters) / measured)`` within bounds.

    ``known``: parameters that another fit has found already, by their place: to within ``ALIKE``.
    """
    lower, upper = np.array(low), np.array(high)
    prior = sorted((known or {}).items())

    def errors(parameters: Floats) -> Floats:
        return np.asarray(np.log(predict(parameters) / measured), dtype=np.float64)

    def residuals(parameters: Floats) -> Floats:
        pulled = [OUTLIER / ALIKE * np.log(parameters[i] / value) for i, value in prior]
        return np.concatenate([errors(parameters), pulled])

    found = least_squares(
        residuals,
        np.array(start),
        bounds=(lower, upper),
        loss="soft_l1",
        f_scale=OUTLIER,
        x_scale=np.maximum(np.array(start), 1e-12),
        diff_step=np.full(len(start), 1e-4),
    )
    error = errors(found.x)
    variance = float(np.mean(error**2))
    scale = np.array(start)
    jacobian = found.jac * scale  # parameters differ by fifteen orders of magnitude
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * variance
    wide = 1.96 * scale * np.sqrt(np.maximum(np.diag(covariance), 0.0))
    best = np.where(found.x < 1e-6 * scale, 0.0, found.x)  # at the lower bound but for the solver's interior step
    size = np.expm1(np.abs(error))
    return Fit(
        names,
        best,
        np.maximum(best - wide, lower),
        np.minimum(best + wide, upper),
        len(measured),
        float(np.median(size)),
        float(np.quantile(size, 0.9)),
        float(1.4826 * np.median(np.abs(error - np.median(error)))),
    )


def read(path: Path) -> list[dict[str, str]]:
    """All rows of a table."""
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def columns(rows: list[dict[str, str]], *names: str) -> list[Floats]:
    """Numeric columns."""
    return [np.array([float(r[n]) for r in rows]) for n in names]


def settled(rows: list[dict[str, str]], size: str, *shape: str) -> list[dict[str, str]]:
    """The rows with each latency lowered to the least that the same shape reached with as much work or more.

    More tokens never take less time, so a call that is slower than a larger one was disturbed (a B200 fp8 matmul takes
    33 us at 1 token and 19 us at 4).
    """
    least: dict[tuple[str, ...], float] = {}
    out = []
    for row in sorted(rows, key=lambda r: -float(r[size])):
        key = tuple(row[c] for c in shape)
        least[key] = min(least.get(key, float("inf")), float(row["latency_us"]))
        out.append({**row, "latency_us": str(least[key])})
    return out


MATMUL = ("mfu_max", "mfu_half_tokens", "bw_max", "bw_half_bytes")


def gemm(rows: list[dict[str, str]], device: Device, dtype: str, plain: Fit | None = None) -> Fit | None:
    """Dense matmuls. Where all weights fit the L2 cache of an L40S the benchmark never reads memory: left out.

    ``plain``: the 16-bit fit. Memory does not know what it holds, and half the bytes are half as far from the ramp, so
    the plateau of narrower formats is that of the 16-bit ones unless their rows say otherwise.
    """
    chosen = settled([r for r in rows if r["gpu"] == device.kernels and r["dtype"] == dtype], "m", "n", "k")
    if not chosen:
        return None
    m, n, k, us = columns(chosen, "m", "n", "k", "latency_us")
    size = n * k * (2 if dtype == "bfloat16" else 1)
    peak = device.peak16 if dtype == "bfloat16" else device.peak8
    if device.family == "ada":
        keep = (size > 0.6 * device.l2) | (m >= 1024)
        m, n, k, us, size = m[keep], n[keep], k[keep], us[keep], size[keep]

    def predict(p: Floats) -> Floats:
        compute = 2 * n * k * (m + p[1]) / (p[0] * peak)
        memory = (size + p[3]) / (p[2] * device.bandwidth)
        return round_max(compute, memory, ROUNDING)

    known = {2: float(plain.values[2])} if plain is not None else None
    return fit(MATMUL, predict, us * 1e-6, [0.6, 30, 0.8, 5e6], [0.05, 0, 0.2, 0], [1, 400, 0.95, 6e7], known)


def grouped(rows: list[dict[str, str]], device: Device, dtype: str) -> Fit | None:
    """Expert matmuls (two grouped kernels), with skewed routing as measured and uniform routing as predicted."""
    same = ("hidden", "inter", "topk", "experts", "moe_tp")
    chosen = settled([r for r in rows if r["gpu"] == device.kernels and r["dtype"] == dtype], "num_tokens", *same)
    if not chosen:
        return None
    tokens, hidden, inner, k, experts, tp, us = columns(
        chosen, "num_tokens", "hidden", "inter", "topk", "experts", "moe_tp", "latency_us"
    )
    element = 2 if dtype == "bfloat16" else 1
    peak = device.peak16 if dtype == "bfloat16" else device.peak8
    touched = experts * (1 - (1 - k / experts) ** tokens)
    shard = hidden * inner / tp

    def predict(p: Floats) -> Floats:
        total = np.zeros_like(us)
        for projections in (2, 1):  # gate with up, then down
            compute = 2 * projections * shard * (tokens * k + p[1] * touched) / (p[0] * peak)
            memory = (projections * shard * element * touched + p[3]) / (p[2] * device.bandwidth)
            total = total + round_max(compute, memory, ROUNDING)
        return np.asarray(total + p[4] * tokens * k * hidden * 2 / device.bandwidth, dtype=np.float64)

    # Weight reading and the compute ramp both grow with the experts touched, so the rows alone cannot tell them apart;
    # half of a 64-token tile bounds the ramp, lest four-bit weights inherit a ramp that is bandwidth in disguise.
    start, low, high = [0.5, 16, 0.8, 3e7, 5], [0.05, 0, 0.2, 0, 0], [1, 32, 0.95, 1e8, 100]
    return fit((*MATMUL, "expert_passes"), predict, us * 1e-6, start, low, high)


def decode_attention(rows: list[dict[str, str]], device: Device) -> Fit:
    """Paged decode attention on 16-bit KV. Calls within the L2 cache, but for the smallest (floor), are left out."""
    chosen = [r for r in rows if r["gpu"] == device.kernels and r["kv_dtype"] == "bfloat16"]
    batch, length, heads, us = columns(chosen, "batch", "kv_len", "kv_heads", "latency_us")
    size = batch * length * heads * 2 * HEAD_DIM * 2
    keep = (size < 2e6) | (size > 3 * device.l2) if device.family == "ada" else size > 0
    size, us = size[keep], us[keep]

    def predict(p: Floats) -> Floats:
        return np.asarray(p[0] + size / (p[1] * device.bandwidth) + p[2] * np.sqrt(size), dtype=np.float64)

    names = ("kv_floor_s", "kv_bw_max", "kv_sqrt")
    return fit(names, predict, us * 1e-6, [1e-5, 0.8, 5e-10], [1e-6, 0.2, 0], [5e-5, 0.95, 1e-7])


def prefill_attention(rows: list[dict[str, str]], device: Device) -> Fit:
    """Causal prefill attention."""
    chosen = [r for r in rows if r["gpu"] == device.kernels]
    batch, length, heads, us = columns(chosen, "batch", "isl", "q_heads", "latency_us")
    pairs = batch * length * (length + 1) / 2

    def predict(p: Floats) -> Floats:
        flops = 4 * heads * HEAD_DIM * (pairs + p[1] * batch * length)
        return np.asarray(p[2] + flops / (p[0] * device.peak16), dtype=np.float64)

    names = ("prefill_mfu_max", "prefill_half_keys", "prefill_floor_s")
    return fit(names, predict, us * 1e-6, [0.6, 300, 1e-5], [0.05, 0, 1e-6], [1, 5000, 1e-4])


def all_reduce(rows: list[dict[str, str]], device: Device) -> Fit:
    """All-reduce as the engine runs it under CUDA graphs; over PCIe, NCCL with bandwidth shared between ranks."""
    pcie = device.family == "ada"
    impl = "nccl" if pcie else "vllm_graph"
    chosen = [r for r in rows if r["gpu"] == device.kernels and r["impl"] == impl]
    ranks, size, us = columns(chosen, "num_gpus", "bytes", "latency_us")
    keep = size <= 1.4e8  # beyond any engine's message
    ranks, size, us = ranks[keep], size[keep], us[keep]

    def predict(p: Floats) -> Floats:
        total = np.zeros_like(us)
        for count in (2, 4, 8):
            sharing = (2 / count) ** p[2] if pcie else 1.0
            at = ranks == count
            total[at] = all_reduce_s(size[at], count, Wire(p[0], p[1] * device.link * sharing, ""))
        return total

    if pcie:
        shared = ("pcie_alpha_s", "pcie_bw", "pcie_sharing")
        return fit(shared, predict, us * 1e-6, [1e-5, 0.6, 1.0], [1e-6, 0.05, 0], [1e-4, 0.9, 3])
    names = ("allreduce_alpha_s", "allreduce_bw")
    return fit(names, predict, us * 1e-6, [5e-6, 0.7], [5e-7, 0.05], [1e-4, 0.95])


def small_operations(rows: list[dict[str, str]], device: Device) -> Fit | None:
    """Norms, rotary, activation: passes of one hidden vector through memory, part of them divided over ranks."""
    chosen = [r for r in rows if r["gpu"] == device.vidur]
    if not chosen:
        return None
    hidden = np.array([HIDDEN.get(r["model"], 8192) for r in chosen], dtype=np.float64)
    tokens, tp, us = columns(chosen, "num_tokens", "tp", "small_ops_us")
    vector = tokens * hidden * 2 / device.bandwidth

    def predict(p: Floats) -> Floats:
        return np.asarray(np.maximum(p[0], (p[1] + p[2] / tp) * vector), dtype=np.float64)

    names = ("eager_layer_s", "layer_passes", "layer_passes_tp")
    return fit(names, predict, us * 1e-6, [2e-5, 15, 20], [1e-6, 1, 0], [1e-4, 60, 60])


def constants(where: Path) -> dict[str, dict[str, Fit]]:
    """Every fit, by family and name; ``matmul.bf16`` style names are tables in the data file."""
    tables = {p.stem: read(p) for p in sorted(where.glob("*.csv"))}
    found: dict[str, dict[str, Fit]] = {}
    for device in DEVICES:
        plain = gemm(tables["gemm"], device, "bfloat16")
        fits: dict[str, Fit | None] = {
            "matmul.bf16": plain,
            "matmul.fp8": gemm(tables["gemm"], device, "fp8", plain),
            # scaled by block; on the L40S and the B200 these were timed on a fallback (``main`` prints how much slower)
            "matmul.fp8_block": gemm(tables["gemm"], device, "fp8_block", plain) if device.family == "hopper" else None,
            "grouped.bf16": grouped(tables["moe"], device, "bfloat16"),
            "grouped.fp8": grouped(tables["moe"], device, "fp8"),
            "grouped.fp8_block": grouped(tables["moe"], device, "fp8_block"),
            "decode_attention": decode_attention(tables["decode_attention"], device),
            "prefill_attention": prefill_attention(tables["prefill_attention"], device),
            "all_reduce": all_reduce(tables["allreduce"], device),
            "small_operations": small_operations(tables["vidur_layer_ops"], device),
        }
        found[device.family] = {name: f for name, f in fits.items() if f is not None}
    return found


def document(found: dict[str, dict[str, Fit]], versions: dict[str, str]) -> str:
    """The fitted half of the data file."""
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    lines = []
    for device in DEVICES:
        fits = found[device.family]
        lines += [
            f"[families.{device.family}]",
            f'fitted_on = "{device.kernels}"',
            f"ridge = {device.peak16 / device.bandwidth:.1f}  # dense 16-bit FLOP per byte of what was measured",
            "accelerators = [" + ", ".join(f'"{name}"' for name in device.accelerators) + "]",
            f'basis = "kernels of {device.kernels} in vLLM {versions[device.kernels]}, fitted {today}"',
            SOURCE,
            f'date = "{today}"',
            "",
        ]
        for name, f in fits.items():
            lines.append(f"[families.{device.family}.{name}]")
            lines.append(f"# {f.rows} rows, median error {f.median_error:.1%}, 90th percentile {f.p90_error:.1%}")
            lines += [f"rows = {f.rows}", f"median_error = {f.median_error:.4f}", f"sigma = {f.sigma:.4f}"]
            lines += [
                f"{key} = {{ value = {v:.5g}, low = {lo:.5g}, high = {hi:.5g} }}"
                for key, v, lo, hi in zip(f.names, f.values, f.low, f.high, strict=True)
            ]
            if name.startswith(("matmul", "grouped")):
                lines.append(f"rounding = {{ value = {ROUNDING}, low = 0.0, high = 0.5 }}")
            lines.append("")
    return "\n".join(lines)


def medians(found: dict[str, dict[str, Fit]]) -> str:
    """The stand-in for families without kernel tables: the median of every constant over the fitted families."""
    values: dict[str, dict[str, list[float]]] = {}
    for fits in found.values():
        for name, f in fits.items():
            for key, value in zip(f.names, f.values, strict=True):
                values.setdefault(name, {}).setdefault(key, []).append(float(value))
    lines = [
        "[families.default]",
        'fitted_on = "no kernel of this family"',
        f"ridge = {np.median([d.peak16 / d.bandwidth for d in DEVICES]):.1f}",
        'basis = "median of the fitted families, not fitted for this accelerator: the interval is wide"',
        'source = "families below"',
        f'date = "{dt.datetime.now(tz=dt.UTC).date().isoformat()}"',
        "",
    ]
    for name, keys in values.items():
        lines.append(f"[families.default.{name}]")
        lines += [
            f"{key} = {{ value = {np.median(v):.5g}, low = {min(v):.5g}, high = {max(v):.5g} }}"
            for key, v in keys.items()
        ]
        if name.startswith(("matmul", "grouped")):
            lines.append(f"rounding = {{ value = {ROUNDING}, low = 0.0, high = 0.5 }}")
        lines.append("")
    return "\n".join(lines)


def slower_by_block(rows: list[dict[str, str]]) -> dict[str, list[float]]:
    """How many times as long 8-bit matmuls take with a scale per block as with one per tensor, shape by shape."""
    seconds = {(r["gpu"], r["dtype"], r["m"], r["n"], r["k"]): float(r["latency_us"]) for r in rows}
    found: dict[str, list[float]] = {}
    for (gpu, dtype, m, n, k), us in seconds.items():
        whole = seconds.get((gpu, "fp8", m, n, k))
        if dtype == "fp8_block" and whole is not None:
            found.setdefault(gpu, []).append(us / whole)
    return found


MARK = "# --- fitted by scripts/fit_kernels.py; what follows is overwritten ---\n"


def main() -> None:
    """Fit, print, and write on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT.parent / "shared/data/ground_truth/kernels")
    parser.add_argument("--write", type=Path, nargs="?", const=DATA, default=None, help="write into this data file")
    arguments = parser.parse_args()
    found = constants(arguments.directory)
    for family, fits in found.items():
        for name, f in fits.items():
            values = ", ".join(f"{k} {v:.4g}" for k, v in zip(f.names, f.values, strict=True))
            error = f"median {f.median_error:6.1%}  p90 {f.p90_error:6.1%}"
            print(f"{family:10s} {name:18s} {f.rows:4d} rows  {error}  {values}")
    for device, times in slower_by_block(read(arguments.directory / "gemm.csv")).items():
        print(f"{device}: a matmul scaled by block takes {np.median(times):.1f} times one scaled per tensor (median)")
    if arguments.write:
        versions = {r["gpu"]: r["engine_version"] for r in read(arguments.directory / "gemm.csv")}
        kept = arguments.write.read_text().split(MARK)[0] if arguments.write.exists() else ""
        arguments.write.write_text(kept + MARK + "\n" + medians(found) + "\n" + document(found, versions))


if __name__ == "__main__":
    main()
