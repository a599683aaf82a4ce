"""One door for whoever has a workload in mind: a file of requests, or a profile's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gambrel.traffic.readers import read_workload

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.core.workload import Workload

__all__ = ["load_workload"]


def load_workload(spec: str | Path) -> Workload:
    """The workload at a path; WorkloadError names what would work."""
    return read_workload(spec)
