"""This machine's processor as an accelerator, so that an engine that runs here can be predicted and calibrated.

Nobody's data sheet lists the container one sits in, so its rates are measured: memory by copying and summing arrays too
large for the caches on every core, arithmetic by a 32-bit matrix product. 16- and 8-bit products are not timed: their
peak is that of 32 bits times what the processor's instructions do more of in a cycle.
"""

from __future__ import annotations

import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from gambrel.core.accelerator import Accelerator
from gambrel.core.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NAME", "this_machine"]

NAME: Final = "this-machine"
_ROUNDS: Final = 6
_ARRAY_BYTES: Final = 1 << 26  # beyond any cache that a core has to itself
_SIDE: Final = 1024
# 16-bit products a cycle over 32-bit ones: AVX-512 does 64 FLOPs of 32 bits in a cycle, its bf16 instructions twice
# that, AMX 2,048 (Intel's and AMD's instruction references). 8-bit products are twice the 16-bit ones.
_FASTER: Final = (("amx_bf16", 32.0), ("avx512_bf16", 2.0))


@cache
def this_machine() -> Accelerator:
    """The processor with its measured rates, without a price; about a second, once a process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags, title = _described()
    flops = _flops()
    sixteen = flops * next((factor for flag, factor in _FASTER if flag in flags), 1.0)
    return Accelerator(
        name=NAME,
        title=f"{title}, {cores} core{'s' if cores > 1 else ''}",
        vendor="",  # a vendor's name would stand for its GPUs' software
        family="cpu",
        peak_flops={"bf16": sixteen, "int8": 2.0 * sixteen},
        memory_bytes=_memory_bytes(),
        memory_bandwidth=_bandwidth(cores),
        max_tp=1,
        confidence="C",
        source="measured here",
        notes="rates of whatever else this machine did at that moment; 16- and 8-bit peaks from the 32-bit one",
    )


def _best_s(task: Callable[[], object]) -> float:
    """The shortest of a few runs: noise only ever adds."""
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        task()
        best = min(best, time.perf_counter() - began)
    return best


def _bandwidth(cores: int) -> float:
    """Bytes/s that all cores together read and write, or read alone, whichever is more."""
    sources = [np.ones(_ARRAY_BYTES // 8) for _ in range(cores)]
    targets = [np.empty_like(a) for a in sources]
    with ThreadPoolExecutor(cores) as threads:
        copied = _best_s(lambda: list(threads.map(np.copyto, targets, sources)))
        read = _best_s(lambda: list(threads.map(np.sum, sources)))
    moved = float(cores * _ARRAY_BYTES)
    return max(2.0 * moved / copied, moved / read)


def _flops() -> float:
    """32-bit FLOP/s of a matrix product on all cores."""
    a = np.ones((_SIDE, _SIDE), np.float32)
    return 2.0 * float(_SIDE) ** 3 / _best_s(lambda: a @ a)


def _described() -> tuple[set[str], str]:
    """(the processor's instruction flags, its name)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set(), platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in pairs}
    return set(named.get("flags", "").split()), named.get("model name", platform.machine())


def _memory_bytes() -> float:
    """Bytes of main memory."""
    if not hasattr(os, "sysconf"):
        raise CatalogError("this machine does not say how much memory it has; --catalog FILE describes it by hand")
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
