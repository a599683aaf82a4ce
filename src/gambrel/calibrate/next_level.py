"""What to measure next: the level that tells the most about the constants still unknown, for the time it takes.

A constant that no measured level depends on keeps its prior. Each candidate level is simulated with the fitted
constants moved a little; how far its figures move, against how well such figures repeat, is what measuring it would
add. Worth is the fall of the summed log variance of the constants, per second of measuring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from gambrel.calibrate.constants import moved
from gambrel.calibrate.evidence import point_of_lengths
from gambrel.calibrate.fit import log_errors
from gambrel.calibrate.predict import simulated
from gambrel.calibrate.table import Figure
from gambrel.core.errors import GambrelError
from gambrel.cost import Roofline

if TYPE_CHECKING:
    from gambrel.calibrate.evidence import Point
    from gambrel.calibrate.fit import Calibration
    from gambrel.core.step import Floats

__all__ = ["NextLevel", "next_levels"]

_USERS: Final = (1, 4, 16, 64, 128)
_LENGTHS: Final = ((128, 128), (1024, 128), (4096, 64), (8192, 128))
_NOISE: Final = {"tpot": 0.02, "ttft": 0.08}
_STEP: Final = 0.05
_ASKED: Final = {"tpot": Figure(1.0), "ttft": Figure(1.0)}


@dataclass(frozen=True, slots=True)
class NextLevel:
    """A level worth measuring: what to ask for, how long it takes, and which constant it narrows most."""

    users: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    gain: float
    narrows: str

    @property
    def advice(self) -> str:
        """The level as a person would order it."""
        return (
            f"concurrency {self.users}, {self.prompt_tokens} prompt and {self.output_tokens} output tokens"
            f" (about {self.seconds:.0f} s): narrows {self.narrows} most"
        )


def next_levels(calibration: Calibration, limit: int = 3) -> list[NextLevel]:
    """The levels that would tell most per second, best first; those whose gain is nothing are left out."""
    names = [p.name for p in calibration.parameters]
    theta = np.log([p.value for p in calibration.parameters])
    deployment = calibration.points[0].deployment
    before = np.diag(calibration.covariance)
    found = []
    for users in _USERS:
        if users > deployment.max_num_seqs:
            continue
        for prompt, output in _LENGTHS:
            point = point_of_lengths(
                deployment, _ASKED, prompt_tokens=prompt, output_tokens=output, users=users, staggered=True
            )

            try:
                here = _figures(calibration, point, names, theta)
                jacobian = np.array(
                    [
                        (_figures(calibration, point, names, theta + _STEP * e) - here) / _STEP
                        for e in np.eye(len(theta))
                    ]
                ).T
            except GambrelError:
                continue  # does not fit in memory at this length
            noise = np.array(list(_NOISE.values())) * calibration.noise_scale
            after = np.linalg.inv(
                np.linalg.inv(calibration.covariance) + (jacobian / noise[:, None]).T @ (jacobian / noise[:, None])
            )
            fall = np.log(before / np.diag(after))
            seconds = _seconds(calibration, users, prompt, output)
            found.append(NextLevel(users, prompt, output, seconds, float(fall.sum()), names[int(np.argmax(fall))]))
    worth = sorted(found, key=lambda n: -n.gain / n.seconds)
    return [n for n in worth if n.gain > 0.05][:limit]


def _figures(calibration: Calibration, point: Point, names: list[str], theta: Floats) -> Floats:
    """Logs of the figures of a level at the constants ``theta``."""
    multiples = dict(zip(names, np.exp(theta).tolist(), strict=True))
    return log_errors([point], lambda d: Roofline(d, moved(calibration.base(d), multiples)))[0]


def _seconds(calibration: Calibration, users: int, prompt: int, output: int) -> float:
    """Seconds of fifty requests, or four rounds, at this level."""
    d = calibration.points[0].deployment
    point = point_of_lengths(
        d, {"e2e": Figure(1.0)}, prompt_tokens=prompt, output_tokens=output, users=users, staggered=True
    )
    priced = Roofline(d, moved(calibration.base(d), calibration.multiples))
    e2e = simulated(d, priced, point.workload, point.measured)["e2e"]
    return max(1.0, e2e * math.ceil(max(50, 4 * users) / users))
