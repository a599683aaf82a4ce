"""What a server says about itself under ``/metrics``, in vLLM's names and bucket edges.

Dashboards, scrapers and our own client know vLLM's names; a twin or an embedded engine that speaks them can stand
in for the real thing. Names and edges: vLLM ``v1/metrics/loggers.py``, as a 0.32 server prints them. Text format
0.0.4 of Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from math import isnan
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Exposition", "Tally"]

TTFT_EDGES: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
GAP_EDGES: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
LATENCY_EDGES: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
ITERATION_EDGES: Final = (1.0, *(float(2**k) for k in range(3, 15)))


def token_edges(max_model_len: int) -> tuple[float, ...]:
    """1, 2, 5, 10, ... up to the largest request, as vLLM's ``build_1_2_5_buckets``."""
    edges: list[float] = []
    exponent = 0
    while True:
        for mantissa in (1, 2, 5):
            value = mantissa * 10**exponent
            if value > max_model_len:
                return tuple(edges)
            edges.append(float(value))
        exponent += 1


class Tally:
    """A Prometheus histogram."""

    __slots__ = ("counts", "edges", "total")

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = tuple(edges)
        self.counts = [0] * (len(self.edges) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Observe ``value``, ``times`` times over."""
        self.counts[bisect_left(self.edges, value)] += times
        self.total += value * times

    def lines(self, name: str, labels: str) -> list[str]:
        """In text form: cumulative buckets, sum and count."""
        seen, out = 0, []
        for edge, count in zip((*self.edges, float("inf")), self.counts, strict=True):
            seen += count
            le = "+Inf" if edge == float("inf") else str(edge)
            out.append(f'{name}_bucket{{{labels},le="{le}"}} {float(seen)}')
        return [*out, f"{name}_sum{{{labels}}} {self.total}", f"{name}_count{{{labels}}} {float(seen)}"]


class Exposition:
    """Counters, gauges and histograms of one engine; seconds are the server's own clock.

    Gauges ``running``, ``waiting``, ``kv_usage`` are set by the engine before :meth:`text`.
    """

    def __init__(self, model: str, max_model_len: int, block_size: int = 0, num_blocks: int = 0) -> None:
        self.model = model
        self.block_size, self.num_blocks = block_size, num_blocks
        self.running = 0
        self.waiting = 0
        self.kv_usage = 0.0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.finished = dict.fromkeys(("stop", "length", "abort", "error"), 0)
        tokens = token_edges(max_model_len)
        self.histograms = {
            "request_prompt_tokens": Tally(tokens),
            "request_generation_tokens": Tally(tokens),
            "request_params_max_tokens": Tally(tokens),
            "iteration_tokens_total": Tally(ITERATION_EDGES),
            "time_to_first_token_seconds": Tally(TTFT_EDGES),
            "inter_token_latency_seconds": Tally(GAP_EDGES),
            "request_time_per_output_token_seconds": Tally(GAP_EDGES),
            "e2e_request_latency_seconds": Tally(LATENCY_EDGES),
            "request_queue_time_seconds": Tally(LATENCY_EDGES),
            "request_prefill_time_seconds": Tally(LATENCY_EDGES),
            "request_decode_time_seconds": Tally(LATENCY_EDGES),
            "request_inference_time_seconds": Tally(LATENCY_EDGES),
        }
        self.ttft = self.histograms["time_to_first_token_seconds"]
        self.gap = self.histograms["inter_token_latency_seconds"]
        self.iteration = self.histograms["iteration_tokens_total"]

    def finish(
        self,
        reason: str,
        *,
        prompt_tokens: int,
        output_tokens: int,
        max_tokens: int,
        arrival_s: float,
        scheduled_s: float,
        first_s: float,
        last_s: float,
    ) -> None:
        """Count a request that ended in order; times on one clock, in seconds, NaN where the engine does not say."""
        self.finished[reason] = self.finished.get(reason, 0) + 1
        for name, value in (
            ("request_prompt_tokens", float(prompt_tokens)),
            ("request_generation_tokens", float(output_tokens)),
            ("request_params_max_tokens", float(max_tokens)),
            ("e2e_request_latency_seconds", last_s - arrival_s),
            ("request_queue_time_seconds", scheduled_s - arrival_s),
            ("request_prefill_time_seconds", first_s - scheduled_s),
            ("request_decode_time_seconds", last_s - first_s),
            ("request_inference_time_seconds", last_s - scheduled_s),
        ):
            if not isnan(value):
                self.histograms[name].add(max(value, 0.0))
        if output_tokens > 1:
            per_token = (last_s - first_s) / (output_tokens - 1)
            self.histograms["request_time_per_output_token_seconds"].add(per_token)

    def text(self) -> bytes:
        """The page."""
        label = self.model.replace("\\", "\\\\").replace('"', '\\"')
        labels = f'engine="0",model_name="{label}"'
        out: list[str] = []

        def block(name: str, kind: str, what: str, *lines: str) -> None:
            out.extend((f"# HELP {name} {what}", f"# TYPE {name} {kind}", *lines))

        for name, value, what in (
            ("num_requests_running", float(self.running), "Requests in model execution batches."),
            ("num_requests_waiting", float(self.waiting), "Requests waiting to be processed."),
            ("kv_cache_usage_perc", self.kv_usage, "KV-cache usage. 1 means 100 percent usage."),
        ):
            block(f"vllm:{name}", "gauge", what, f"vllm:{name}{{{labels}}} {value}")
        block(
            "vllm:cache_config_info", "gauge", "Cache configuration.",
            f'vllm:cache_config_info{{block_size="{self.block_size}",engine="0",'
            f'num_gpu_blocks="{self.num_blocks}"}} 1.0',
        )  # fmt: skip
        for name, count, what in (
            ("prompt_tokens_total", self.prompt_tokens, "Prefill tokens processed."),
            ("generation_tokens_total", self.generation_tokens, "Generation tokens processed."),
            ("num_preemptions_total", self.preemptions, "Preemptions."),
        ):
            block(f"vllm:{name}", "counter", what, f"vllm:{name}{{{labels}}} {float(count)}")
        block(
            "vllm:request_success_total", "counter", "Finished requests by reason.",
            *(
                f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="{label}"}} '
                f"{float(count)}"
                for reason, count in self.finished.items()
            ),
        )  # fmt: skip
        for name, tally in self.histograms.items():
            what = name.replace("_", " ") + "."
            block(f"vllm:{name}", "histogram", what, *tally.lines(f"vllm:{name}", labels))
        return ("\n".join(out) + "\n").encode()
