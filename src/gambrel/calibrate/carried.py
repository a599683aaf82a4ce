"""How far a calibration carries: errors on batches, lengths and models that a fit has not seen.

Published tables stand in for a user's own runs: the rows of one engine on one accelerator are fitted as ``gambrel
calibrate`` fits them, and what is held out is predicted by constants that never saw it.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from gambrel.calibrate.evidence import Point, point_of_row
from gambrel.calibrate.fit import calibrate
from gambrel.calibrate.suspicious import suspicious
from gambrel.catalog.accelerators import accelerator
from gambrel.catalog.efficiency import efficiency
from gambrel.core.errors import GambrelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gambrel.calibrate.names import Models
    from gambrel.calibrate.table import Row
    from gambrel.core.deployment import Deployment
    from gambrel.core.efficiency import Efficiency
    from gambrel.core.step import Floats

__all__ = ["Carried", "carried"]

_LEVELS: Final = 10  # of a model at most, picked by a hash of the row's id
_FEWEST: Final = 6  # levels that make a sweep
_MODELS: Final = 3  # of an engine and accelerator at most, those with most rows

Group = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Carried:
    """Absolute errors (fractions) of steps and throughput on one accelerator and engine, as one source has them.

    ``shipped`` with the constants as they come, ``level`` of a batch or length, ``model`` of a model, neither seen by
    the fit; ``model`` is empty where the source has but one.
    """

    source: str
    engine: str
    accelerator: str
    models: int
    shipped: Floats
    level: Floats
    model: Floats


def _base(deployment: Deployment) -> Efficiency:
    return efficiency(deployment.accelerator, deployment.engine, deployment.engine_version)


def _sizes(errors: Mapping[str, Floats]) -> Floats:
    """Absolute errors of everything but the first token."""
    logs = [v for metric, v in errors.items() if metric != "ttft"]
    return np.abs(np.expm1(np.concatenate(logs))) if logs else np.zeros(0)


def _sweeps(rows: Iterable[Row], models: Models) -> dict[Group, dict[str, list[Point]]]:
    """Levels by source, engine and accelerator, then by model and weight format."""
    found: defaultdict[Group, defaultdict[str, list[tuple[int, Point]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if suspicious(row) or row.source.startswith("MLPerf") or not set(row.measured) - {"ttft"}:
            continue
        try:
            point = point_of_row(row, models, accelerator)
        except GambrelError:
            continue
        if point is not None and (row.mode == "concurrency" or row.load < float("inf")):
            group = (row.source, point.deployment.engine, point.deployment.accelerator.name)
            found[group][f"{row.model} {row.weights}"].append((zlib.crc32(row.id.encode()), point))
    kept: dict[Group, dict[str, list[Point]]] = {}
    for group, sweeps in sorted(found.items()):
        long = sorted((s for s in sweeps.items() if len(s[1]) >= _FEWEST), key=lambda s: (-len(s[1]), s[0]))
        if long:
            kept[group] = {
                name: [p for _, p in sorted(levels, key=lambda at: at[0])[:_LEVELS]] for name, levels in long[:_MODELS]
            }
    return kept


def carried(rows: Iterable[Row], models: Models, progress: Callable[[str], None] = lambda _: None) -> list[Carried]:
    """One entry for every source, engine and accelerator with a sweep of at least six levels."""
    found = []
    for group, sweeps in _sweeps(rows, models).items():
        progress(" ".join(group))
        levels, shipped = [], []
        for points in sweeps.values():
            try:
                alone = calibrate(points, _base)
            except GambrelError:
                continue
            levels.append(_sizes(alone.held_out))
            shipped.append(_sizes(alone.default_errors))
        if not levels:
            continue
        across = np.zeros(0)
        if len({name.rsplit(" ", 1)[0] for name in sweeps}) > 1:
            pairs = [(name.rsplit(" ", 1)[0], p) for name, points in sweeps.items() for p in points]
            try:
                both = calibrate([p for _, p in pairs], _base, folds=[name for name, _ in pairs])
                across = _sizes(both.held_out)
            except GambrelError:
                pass
        models_of = len({name.rsplit(" ", 1)[0] for name in sweeps})
        found.append(Carried(*group, models_of, np.concatenate(shipped), np.concatenate(levels), across))
    return found
