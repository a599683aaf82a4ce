"""The registry of charts: a name, and the function that draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gambrel.report.choice import (
    cell_latency,
    cost_of_candidates,
)
from gambrel.report.curves import cost_vs_batch, latency_vs_batch, step_vs_context
from gambrel.report.demand import (
    arrivals_over_time,
    bursts,
    in_flight,
    in_flight_over_time,
    joint_lengths,
    output_lengths,
    prompt_lengths,
)
from gambrel.report.memory import memory_vs_concurrency
from gambrel.report.pareto import cost_vs_latency
from gambrel.report.service import batch_over_time, kv_over_time, latency_cdf, latency_vs_load, time_bound_by

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["CHARTS"]

CHARTS: Final[Mapping[str, Callable[..., dict[str, Any] | None]]] = {
    "latency-vs-batch": latency_vs_batch,
    "cost-vs-batch": cost_vs_batch,
    "step-vs-context": step_vs_context,
    "memory-vs-concurrency": memory_vs_concurrency,
    "prompt-lengths": prompt_lengths,
    "output-lengths": output_lengths,
    "joint-lengths": joint_lengths,
    "in-flight-over-time": in_flight_over_time,
    "in-flight": in_flight,
    "arrivals-over-time": arrivals_over_time,
    "bursts": bursts,
    "candidates": cost_of_candidates,
    "cells": cell_latency,
    "cost-vs-latency": cost_vs_latency,
    "latency-vs-load": latency_vs_load,
    "latency-cdf": latency_cdf,
    "batch-over-time": batch_over_time,
    "kv-over-time": kv_over_time,
    "time-bound-by": time_bound_by,
}
"""Every chart by name; ``latency-vs-load`` and ``cost-vs-latency`` draw one metric a call and are named after it
(``ttft-vs-load``, ``cost-vs-ttft``)."""
