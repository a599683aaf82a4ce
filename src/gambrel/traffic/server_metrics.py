"""A server's own counters as a workload: ``/metrics`` of vLLM, SGLang, TGI, or a Prometheus range query as JSON.

Everybody has these and they say little: lengths in 1-2-5 buckets (a quantile is known within a factor of 2 to 2.5),
nothing about which prompt had which answer, arrivals at scrape resolution at best. So figures are *intervals*
(:class:`ServerFigures`), and the workload made of them says with every breath that it was made.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.core.workload import Workload
from gambrel.traffic.nested import beginning, documents
from gambrel.traffic.table import Log, guard, open_binary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints

__all__ = [
    "MARK",
    "Buckets",
    "Page",
    "ServerFigures",
    "is_metrics",
    "metrics",
    "metrics_page",
    "read_server_metrics",
    "watched_server",
]

MARK: Final = "server_metrics"
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
REQUESTS_MAX: Final = 200_000  # a busy month's counters need not become a row each
PLACEHOLDER_RATE_RPS: Final = 1.0

_HISTOGRAMS: Final = {
    "prompt_tokens": ("vllm:request_prompt_tokens", "tgi_request_input_length"),
    "output_tokens": ("vllm:request_generation_tokens", "tgi_request_generated_tokens"),
    "ttft_s": ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds"),
    "itl_s": (
        "vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds", "sglang:inter_token_latency_seconds",
        "sglang:time_per_output_token_seconds", "tgi_request_mean_time_per_token_duration",
    ),
    "e2e_s": ("vllm:e2e_request_latency_seconds", "sglang:e2e_request_latency_seconds", "tgi_request_duration"),
    "queue_s": ("vllm:request_queue_time_seconds", "tgi_request_queue_duration"),
}  # fmt: skip
_COUNTERS: Final = {
    "num_requests": (
        "vllm:request_success_total", "sglang:num_requests_total", "tgi_request_success", "tgi_request_count",
    ),
    "prompt_tokens": ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total", "llamacpp:prompt_tokens_total"),
    "output_tokens": (
        "vllm:generation_tokens_total", "sglang:generation_tokens_total", "llamacpp:tokens_predicted_total",
    ),
    "num_preemptions": ("vllm:num_preemptions_total",),
    "prefix_queries": ("vllm:prefix_cache_queries_total",),
    "prefix_hits": ("vllm:prefix_cache_hits_total",),
}  # fmt: skip
_GAUGES: Final = {
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs", "tgi_batch_current_size",
                "llamacpp:requests_processing"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "tgi_queue_size", "llamacpp:requests_deferred"),
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage"),
}  # fmt: skip
_LINE: Final = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+([^\s]+)(?:\s+-?\d+)?\s*$")
_LABEL: Final = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')
_KNOWN: Final = (b"vllm:", b"sglang:", b"tgi_", b"llamacpp:")


@dataclass(frozen=True)
class Page(Log):
    """A file of server metrics, which has no rows of requests."""

    def rows(self, names: Iterable[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """WorkloadError: only :func:`metrics` reads it."""
        del names
        raise WorkloadError(f"{self.path}: a page of server metrics, not a table; leave the format out, or say metrics")


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram: ``counts`` float64[k] of values in (``edges[i]``, ``edges[i + 1]``], ``total`` their exact sum."""

    edges: Floats
    counts: Floats
    total: float

    @property
    def count(self) -> float:
        """Values counted."""
        return float(self.counts.sum())

    @property
    def mean(self) -> float:
        """Exact."""
        return self.total / self.count

    def quantile(self, share: float) -> tuple[float, float]:
        """The bucket that holds a quantile: (low, high], high infinite in the last."""
        reached = np.cumsum(self.counts) >= share * self.count - 1e-9
        i = int(np.argmax(reached))
        return float(self.edges[i]), float(self.edges[i + 1])

    def draw(self, n: int) -> Floats:
        """float64[n] values, ascending, that fall into the buckets as counted and whose mean is the exact one.

        Within a bucket they follow ``low (high / low) ** (u ** a)``, log-uniform at a = 1; the mean decides ``a``.
        """
        edges = self.edges.copy()
        edges[0] = max(edges[0], 0.5)  # a length of 0 is none
        if not np.isfinite(edges[-1]):
            edges[-1] = max(2.5 * edges[-2], edges[-2] + 1.0)
        rank = (np.arange(n) + 0.5) / n * self.count
        ends = np.cumsum(self.counts)
        bucket = np.minimum(np.searchsorted(ends, rank), len(self.counts) - 1)
        within = np.clip((rank - (ends - self.counts)[bucket]) / np.maximum(self.counts[bucket], 1e-12), 0.0, 1.0)
        low, high = edges[bucket], edges[bucket + 1]

        def values(a: float) -> Floats:
            return np.asarray(low * (high / low) ** (within**a), np.float64)

        least, most = math.log(1e-3), math.log(1e3)
        for _ in range(60):
            middle = (least + most) / 2
            if float(values(math.exp(middle)).mean()) > self.mean:
                least = middle  # a larger power pulls values down
            else:
                most = middle
        return values(math.exp((least + most) / 2))


@dataclass(frozen=True)
class ServerFigures:
    """What the counters say.

    Attributes:
        histograms: of ``prompt_tokens``, ``output_tokens``, ``ttft_s``, ``itl_s``, ``e2e_s``, ``queue_s`` those known.
        counters: ``num_requests``, ``prompt_tokens``, ``output_tokens``, ``num_preemptions``, ... in the time covered.
        gauges: ``running``, ``waiting``, ``kv_usage``: the mean of the samples.
        finished: (float64[t] seconds, float64[t] requests finished by then) of a range query, or None.
    """

    source: str
    histograms: dict[str, Buckets] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    finished: tuple[Floats, Floats] | None = None

    @property
    def num_requests(self) -> float:
        """Requests finished in the time covered; 0 where the server does not count them."""
        if "num_requests" in self.counters:
            return self.counters["num_requests"]
        return next(
            (h.count for n in ("output_tokens", "e2e_s", "prompt_tokens") if (h := self.histograms.get(n))), 0.0
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON: means exact, quantiles as [low, high] (high null where unbounded)."""
        out: dict[str, Any] = {"source": self.source, "num_requests": self.num_requests}
        for name, buckets in self.histograms.items():
            if buckets.count:
                bounds = {q: buckets.quantile(share) for q, share in QUANTILES.items()}
                out[name] = {"mean": buckets.mean, **{
                    q: [low, high if math.isfinite(high) else None] for q, (low, high) in bounds.items()}}  # fmt: skip
        span = self.span_s
        if span:
            out["span_s"], out["rate_rps"] = span, self.num_requests / span
        return out | {"counters": self.counters, "gauges": self.gauges}

    @property
    def span_s(self) -> float:
        """Seconds covered by a range query, else 0."""
        return float(self.finished[0][-1] - self.finished[0][0]) if self.finished is not None else 0.0

    def workload(self, name: str = "metrics", seed: int = 0) -> Workload:
        """Requests that agree with every counter; its warnings say what was made up.

        Raises:
            WorkloadError: the server counts tokens but no requests, or has served none.
        """
        counted = self.num_requests
        if counted < 1:
            raise WorkloadError(
                f"{self.source}: counts no finished request (llama.cpp's page never does); vLLM, SGLang and TGI pages "
                "after some traffic work, and `gambrel record` in front of any server"
            )
        n = int(min(counted, REQUESTS_MAX))
        rng = np.random.default_rng(seed)
        warnings = [
            "made from a server's counters: which prompt had which answer is unknown, so they were paired at random"
        ]
        prompt = rng.permutation(self._lengths("prompt_tokens", n, warnings))
        output = rng.permutation(self._lengths("output_tokens", n, warnings))
        arrival = self._arrivals(n, rng, warnings)
        if counted > n:
            warnings.append(f"{n} requests stand for the {counted:.0f} counted")
        return Workload(
            arrival, prompt, output, name=name, source=f"{self.source} (metrics)", warnings=tuple(warnings),
            has_arrivals=self.finished is not None,
        )  # fmt: skip

    def _lengths(self, name: str, n: int, warnings: list[str]) -> Ints:
        buckets = self.histograms.get(name)
        if buckets is not None and buckets.count:
            words = [
                f"{q} within {low:g} to {high:g}" if math.isfinite(high) else f"{q} above {low:g}"
                for q, (low, high) in ((q, buckets.quantile(share)) for q, share in QUANTILES.items())
            ]
            warnings.append(f"{name}: mean {buckets.mean:.1f} exact, but only {', '.join(words)} (histogram buckets)")
            return np.maximum(np.rint(buckets.draw(n)), 1).astype(np.int64)
        total = self.counters.get(name)
        if total is None:
            raise WorkloadError(f"{self.source}: says nothing about {name}; vLLM, SGLang and TGI pages do")
        mean = total / self.num_requests
        warnings.append(f"{name}: only the mean is known, {mean:.1f}; all were given it, so the tail is missing")
        return np.full(n, max(1, round(mean)), np.int64)

    def _arrivals(self, n: int, rng: np.random.Generator, warnings: list[str]) -> Floats:
        if self.finished is None:
            warnings.append(
                f"no arrival times in one page: Poisson arrivals at {PLACEHOLDER_RATE_RPS:g} a second were made up; "
                "rate, burst and concurrency figures say nothing about real use (a range query has the rate)"
            )
            arrival = np.cumsum(rng.exponential(1.0 / PLACEHOLDER_RATE_RPS, n))
            return np.asarray(arrival - arrival[0], np.float64)
        times, done = self.finished
        step = float(np.median(np.diff(times)))
        warnings.append(f"arrivals are finishes, known to {step:g} s (the query's step): bursts within it are not seen")
        ranks = np.sort(rng.uniform(done[0], done[-1], n))
        steady = done + np.arange(len(done)) * 1e-9  # strictly increasing, so that it can be inverted
        arrival = np.interp(ranks, steady, times)
        return np.asarray(arrival - arrival[0], np.float64)


def is_metrics(head: bytes) -> bool:
    """Whether a file that starts so is a metrics page or a range query."""
    if head.startswith((b"# HELP", b"# TYPE")):
        return True
    if head.startswith(_KNOWN):
        return True
    return head.startswith((b"{", b"[")) and b'"resultType"' in head[:4096]


def metrics_page(path: str | Path) -> Page | None:
    """The file as a page of server metrics, or None where it is none.

    Raises:
        WorkloadError: it cannot be read.
    """
    path = Path(path)
    head, gz = beginning(path)
    return Page(path, "metrics", (MARK,), gz=gz) if is_metrics(head) else None


def metrics(log: Log) -> Workload:
    """Server metrics: a page of vLLM, SGLang or TGI, or a Prometheus range query; lengths known by bucket only."""
    if not isinstance(log, Page):
        raise WorkloadError(f"{log.path}: no metrics page and no Prometheus range query (JSON)")
    name = log.path.name
    for suffix in (".gz", ".txt", ".prom", ".json"):
        name = name.removesuffix(suffix)
    return read_server_metrics(log.path).workload(name or "metrics")


def read_server_metrics(path: Path) -> ServerFigures:
    """The figures of a ``/metrics`` page or of a Prometheus range-query result.

    Raises:
        WorkloadError: unreadable, or without a metric of an engine that is known.
    """
    with guard(path):
        with path.open("rb") as raw:
            gz = raw.read(2) == b"\x1f\x8b"
        with open_binary(path, gz=gz) as stream:
            data = stream.read()
    text = data.decode("utf-8", errors="replace").lstrip("\ufeff").lstrip()
    series = dict(_range_series(path, text) if text.startswith(("{", "[")) else _page_series(path, text))
    figures = _figures(str(path), series)
    if not figures.histograms and not figures.counters:
        raise WorkloadError(f"{path}: no metric of vLLM, SGLang, TGI or llama.cpp with a value in it")
    return figures


def watched_server(source: str, pages: Sequence[tuple[float, str]]) -> ServerFigures:
    """The figures of a server whose ``/metrics`` page was read several times: (seconds, text) each, in order.

    Counters and histograms are what they grew by from the first page to the last; ``source`` is what errors call it.

    Raises:
        WorkloadError: fewer than two pages, or no metric of an engine that is known.
    """
    if len(pages) < 2:
        raise WorkloadError(f"{source}: {len(pages)} page{'s'[: len(pages) != 1]} of metrics; two or more have a rate")
    points: dict[Key, list[tuple[float, float]]] = {}
    for time, text in pages:
        for key, (_, values) in _page_series(Path(source), text):
            points.setdefault(key, []).append((time, float(values[0])))
    columns = {key: np.array(pairs, np.float64).T for key, pairs in points.items()}
    figures = _figures(source, {key: (c[0], c[1]) for key, c in columns.items()})
    if not figures.histograms and not figures.counters:
        raise WorkloadError(f"{source}: no metric of vLLM, SGLang, TGI or llama.cpp with a value in it")
    return figures


Key = tuple[str, tuple[tuple[str, str], ...]]
Series = tuple["Floats", "Floats"]
"""Times (seconds; one of 0 for a page) and values."""


def _page_series(path: Path, text: str) -> Iterator[tuple[Key, Series]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise WorkloadError(f"{path}: row {number}: not a metric line: {line[:60]!r}")
        try:
            value = float(match[3])
        except ValueError:
            raise WorkloadError(f"{path}: row {number}: {match[1]}: found {match[3][:20]!r}; a number works") from None
        labels = tuple(sorted(_LABEL.findall(match[2] or "")))
        yield (match[1], labels), (np.zeros(1), np.array([value]))


def _range_series(path: Path, text: str) -> Iterator[tuple[Key, Series]]:
    for document in documents(path, text.encode()):
        for part in document if isinstance(document, list) else [document]:
            data = part.get("data") if isinstance(part, dict) else None
            result = data.get("result") if isinstance(data, dict) else None
            if not isinstance(result, list):
                raise WorkloadError(f"{path}: no data.result in it; the JSON answer of /api/v1/query_range works")
            for i, item in enumerate(result, 1):
                yield _one_series(path, i, item)


def _one_series(path: Path, number: int, item: Any) -> tuple[Key, Series]:
    labels = item.get("metric") if isinstance(item, dict) else None
    points = (item.get("values") or [item.get("value")]) if isinstance(item, dict) else None
    if not isinstance(labels, dict) or not isinstance(labels.get("__name__"), str):
        raise WorkloadError(
            f"{path}: series {number} has no __name__: query the counters themselves, without rate() or sum()"
        )
    try:
        pairs = np.array([[float(t), float(v)] for t, v in points or ()], np.float64)
    except (TypeError, ValueError):
        raise WorkloadError(
            f"{path}: series {number} ({labels['__name__']}): values must be [time, number] pairs"
        ) from None
    if pairs.ndim != 2 or not np.all(np.isfinite(pairs[:, 0])):
        raise WorkloadError(f"{path}: series {number} ({labels['__name__']}) has no points")
    rest = tuple(sorted((str(k), str(v)) for k, v in labels.items() if k != "__name__"))
    return (labels["__name__"], rest), (pairs[:, 0], pairs[:, 1])


def _figures(source: str, series: dict[Key, Series]) -> ServerFigures:
    names: dict[str, list[tuple[dict[str, str], Series]]] = {}
    for (name, labels), points in series.items():
        names.setdefault(name, []).append((dict(labels), points))
    histograms = {}
    for ours, theirs in _HISTOGRAMS.items():
        found = next((n for n in theirs if f"{n}_bucket" in names), None)
        buckets = _histogram(names, found) if found is not None else None
        if buckets is not None:
            histograms[ours] = buckets
    counters = {}
    for ours, theirs in _COUNTERS.items():
        found = next((n for n in theirs if n in names), None)
        if found is not None:
            counters[ours] = math.fsum(_increase(values) for _, (_, values) in names[found])
    gauges = {}
    for ours, theirs in _GAUGES.items():
        found = next((n for n in theirs if n in names), None)
        if found is not None:
            means = [float(np.nanmean(v)) for _, (_, v) in names[found] if np.isfinite(v).any()]
            if means:
                gauges[ours] = math.fsum(means) / (len(means) if ours == "kv_usage" else 1)
    return ServerFigures(source, histograms, counters, gauges, _finishes(names))


def _increase(values: Floats) -> float:
    """How much a counter grew, through restarts; of a single sample, the sample."""
    good = values[np.isfinite(values)]
    if len(good) < 2:
        return float(good[0]) if len(good) else 0.0
    steps = np.diff(good)
    return float(np.where(steps >= 0, steps, good[1:]).sum())


def _histogram(names: dict[str, list[tuple[dict[str, str], Series]]], name: str) -> Buckets | None:
    reached: dict[float, float] = {}
    for labels, (_, values) in names[f"{name}_bucket"]:
        try:
            edge = float(labels.get("le", "nan"))
        except ValueError:
            continue
        if not math.isnan(edge):
            reached[edge] = reached.get(edge, 0.0) + _increase(values)
    if not reached:
        return None
    edges = sorted(reached)
    counts = np.diff(np.array([0.0, *(reached[e] for e in edges)]))
    total = math.fsum(_increase(values) for _, (_, values) in names.get(f"{name}_sum", ()))
    if not np.all(np.isfinite(counts)) or counts.min() < 0 or counts.sum() <= 0 or not math.isfinite(total):
        return None
    return Buckets(np.array([0.0, *edges]), counts, total)


def _finishes(names: dict[str, list[tuple[dict[str, str], Series]]]) -> tuple[Floats, Floats] | None:
    """Requests finished by each time of a range query, all series together."""
    candidates: Iterable[str] = (*_COUNTERS["num_requests"], *(f"{n}_count" for n in _HISTOGRAMS["e2e_s"]),
                                 *(f"{n}_count" for n in _HISTOGRAMS["output_tokens"]))  # fmt: skip
    for name in candidates:
        found = [points for _, points in names.get(name, ()) if len(points[0]) > 1]
        if not found:
            continue
        times = np.unique(np.concatenate([t for t, _ in found]))
        total = np.zeros(len(times))
        for t, values in found:
            steps = np.diff(values, prepend=values[0])
            grown = np.cumsum(np.where(steps >= 0, steps, values))
            total += np.interp(times, t, grown)
        if np.all(np.isfinite(total)) and total[-1] > 0:
            return times, total
    return None
