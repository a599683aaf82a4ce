"""What the server and its GPUs say about themselves while they are measured: batch size, queue, KV usage, power.

Request timings alone cannot tell a long queue from a slow step. The engines' ``/metrics`` can; each has its own names
for the same things, and they become the same few words here. A thread reads them, so that a page of hundreds of
kilobytes never holds up the client's loop for longer than the interpreter lets it.
"""

from __future__ import annotations

import re
import threading
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib import import_module
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import numpy as np

from gambrel.measure.record import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gambrel.core.step import Floats
    from gambrel.measure.record import Record

__all__ = ["ENGINE_METRICS", "Gpus", "Scraper", "parse_metrics", "running_during"]

ENGINE_METRICS: Final = {
    # vLLM, as its V1 engine's loggers name them
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_usage",
    "vllm:gpu_cache_usage_perc": "kv_usage",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prefix_cache_queries_total": "prefix_queries",
    "vllm:prefix_cache_hits_total": "prefix_hits",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "output_tokens",
    # SGLang
    "sglang:num_running_reqs": "running",
    "sglang:num_queue_reqs": "waiting",
    "sglang:token_usage": "kv_usage",
    "sglang:prompt_tokens_total": "prompt_tokens",
    "sglang:generation_tokens_total": "output_tokens",
    "sglang:cached_tokens_total": "prefix_hits",
    # Text Generation Inference
    "tgi_batch_current_size": "running",
    "tgi_queue_size": "waiting",
    # llama.cpp
    "llamacpp:requests_processing": "running",
    "llamacpp:requests_deferred": "waiting",
    "llamacpp:prompt_tokens_total": "prompt_tokens",
    "llamacpp:tokens_predicted_total": "output_tokens",
    "llamacpp:kv_cache_usage_ratio": "kv_usage",
    # NVIDIA DCGM exporter: power in W, memory in MiB, utilisation in per cent
    "DCGM_FI_DEV_POWER_USAGE": "gpu_power_w",
    "DCGM_FI_DEV_FB_USED": "gpu_memory_mib",
    "DCGM_FI_DEV_GPU_UTIL": "gpu_util_percent",
    "DCGM_FI_DEV_SM_CLOCK": "gpu_sm_clock_mhz",
}
MEANS: Final = {"kv_usage", "gpu_util_percent", "gpu_sm_clock_mhz"}  # over engines or GPUs; the rest add up
_LINE: Final = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*)(?:\{.*\})?\s+([-+0-9.eEinfNaI]+)", re.MULTILINE)
PAGE_LIMIT: Final = 1 << 24


def parse_metrics(page: str) -> dict[str, float]:
    """The known figures of a Prometheus text page: counts summed over label sets (engines, GPUs), shares averaged.

    vLLM and SGLang give KV usage as a share of 1, whatever its name says.
    """
    found: dict[str, list[float]] = {}
    for match in _LINE.finditer(page):
        word = ENGINE_METRICS.get(match[1])
        if word is None:
            continue
        try:
            value = float(match[2])
        except ValueError:
            continue
        found.setdefault(word, []).append(value)
    return {w: float(np.mean(v)) if w in MEANS else float(sum(v)) for w, v in found.items()}


class Gpus:
    """NVIDIA devices of this machine through NVML, where ``nvidia-ml-py`` and a driver are present; else none."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._devices: list[Any] = []
        try:
            nvml: Any = import_module("pynvml")
        except ImportError:
            return
        try:
            nvml.nvmlInit()
            self._devices = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError:
            return
        self._nvml = nvml

    def __len__(self) -> int:
        return len(self._devices)

    def values(self) -> dict[str, float]:
        """Power in W and memory in MiB summed, utilisation in per cent averaged; empty without a device."""
        n = self._nvml
        if n is None or not self._devices:
            return {}
        try:
            power = sum(n.nvmlDeviceGetPowerUsage(d) for d in self._devices) / 1e3
            memory = sum(n.nvmlDeviceGetMemoryInfo(d).used for d in self._devices) / 2**20
            busy = float(np.mean([n.nvmlDeviceGetUtilizationRates(d).gpu for d in self._devices]))
        except n.NVMLError:
            return {}
        return {"gpu_power_w": float(power), "gpu_memory_mib": float(memory), "gpu_util_percent": busy}


class Scraper:
    """A thread that reads pages of metrics, and the GPUs, every ``interval_s`` and hands samples to ``sink``.

    A page that cannot be read is skipped and tried again; :attr:`trouble` says why the last one was.
    """

    def __init__(
        self, urls: Sequence[str], sink: Callable[[Sample], None], *, interval_s: float = 0.5, gpus: bool = True
    ) -> None:
        self.trouble: dict[str, str] = {}
        self.num_samples = 0
        self._urls = tuple(urls)
        self._sink = sink
        self._interval_s = interval_s
        self._gpus = Gpus() if gpus else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scraper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, within the time of one read."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            for url in self._urls:
                page = self._read(url)
                values = parse_metrics(page) if page else {}
                if values:
                    self._give(url, values)
            if self._gpus is not None and len(self._gpus):
                self._give("nvml", self._gpus.values())
            self._stop.wait(self._interval_s)

    def _give(self, source: str, values: dict[str, float]) -> None:
        if values and not self._stop.is_set():
            self.num_samples += 1
            self._sink(Sample(t_ns=monotonic_ns(), source=source, values=values))

    def _read(self, url: str) -> str:
        parts = urlsplit(url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.netloc, timeout=2.0)
        try:
            connection.request("GET", parts.path or "/metrics")
            answer = connection.getresponse()
            if answer.status != 200:
                self.trouble[url] = f"HTTP {answer.status}"
                return ""
            self.trouble.pop(url, None)
            return answer.read(PAGE_LIMIT).decode("utf-8", "replace")
        except (OSError, HTTPException) as error:
            self.trouble[url] = str(error) or type(error).__name__
            return ""
        finally:
            connection.close()


def running_during(records: Sequence[Record], samples: Iterable[Sample]) -> Floats:
    """The server's mean batch while each request decoded, float64[n]: its samples between first and last token.

    Requests shorter than the sampling take the sample nearest to their middle; NaN without any sample.
    """
    readings = sorted((s.t_ns, s.values["running"]) for s in samples if "running" in s.values)
    if not readings:
        return np.full(len(records), np.nan)
    times = np.array([t for t, _ in readings], np.int64)
    values = np.array([v for _, v in readings])
    found = np.full(len(records), np.nan)
    for i, r in enumerate(records):
        if r.t_first_token_ns is None or r.t_last_token_ns is None:
            continue
        low, high = np.searchsorted(times, [r.t_first_token_ns, r.t_last_token_ns + 1])
        if high > low:
            found[i] = values[low:high].mean()
        else:
            found[i] = values[np.argmin(np.abs(times - (r.t_first_token_ns + r.t_last_token_ns) // 2))]
    return found
