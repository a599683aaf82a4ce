"""Logs and traces to workloads; workloads described in figures; synthetic and scaled workloads."""

from __future__ import annotations

from gambrel.traffic.doubts import spread_quantised
from gambrel.traffic.figures import ServiceModel, WorkloadFigures, describe
from gambrel.traffic.load import load_workload
from gambrel.traffic.readers import FORMATS, read_workload

__all__ = [
    "FORMATS",
    "ServiceModel",
    "WorkloadFigures",
    "describe",
    "load_workload",
    "read_workload",
    "spread_quantised",
]
