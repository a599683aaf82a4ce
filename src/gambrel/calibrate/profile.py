"""A profile: fitted constants as a small TOML file that every other command takes with ``--profile``.

It holds multiples of the shipped constants, with intervals and what they stand on, for one accelerator and engine. On
another accelerator or engine a profile changes nothing: constants of one machine say little about another.
"""

from __future__ import annotations

import datetime as dt
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gambrel.calibrate.constants import CONSTANTS, moved
from gambrel.core.errors import WorkloadError
from gambrel.core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gambrel.calibrate.fit import Calibration
    from gambrel.core.deployment import Deployment
    from gambrel.core.efficiency import Efficiency

__all__ = ["Profile", "load_profile", "profile_of", "write_profile"]


@dataclass(frozen=True)
class Profile:
    """Fitted constants of one accelerator under one engine.

    Attributes:
        multiples: by constant, times the shipped default.
        intervals: by constant, the 95 % interval of the multiple.
        spread, ttft_spread: one-sigma log error of a step and of a time to first token on points not fitted.
        basis: one phrase: how many points of what, when.
    """

    accelerator: str
    engine: str
    multiples: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    spread: float
    ttft_spread: float
    basis: str

    def fits(self, deployment: Deployment) -> bool:
        """Whether the profile is of this accelerator and engine."""
        return (self.accelerator, self.engine) == (deployment.accelerator.name, deployment.engine)

    def apply(self, efficiency: Efficiency, deployment: Deployment) -> Efficiency:
        """The deployment's constants under the profile; unchanged where it is of another accelerator or engine."""
        if not self.fits(deployment):
            return efficiency
        return moved(efficiency, self.multiples).with_(
            spread=self.spread, expert_spread=0.0, ttft_spread=max(self.spread, self.ttft_spread), basis=self.basis
        )


def profile_of(calibration: Calibration) -> Profile:
    """The profile that a calibration amounts to."""
    deployment = calibration.points[0].deployment
    models = ", ".join(dict.fromkeys(p.deployment.model.name for p in calibration.points))
    today = dt.datetime.now(dt.UTC).date()
    return Profile(
        accelerator=deployment.accelerator.name,
        engine=deployment.engine,
        multiples=calibration.multiples,
        intervals={p.name: (p.low, p.high) for p in calibration.parameters},
        spread=calibration.spread,
        ttft_spread=calibration.ttft_spread,
        basis=f"calibrated: {len(calibration.points)} levels of {models} on {deployment.accelerator.name}, {today}",
    )


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile as TOML."""
    lines = [
        "# Constants of gambrel fitted to measurements: multiples of the shipped defaults, with 95 % intervals.",
        "# Use: any gambrel command with --profile THIS_FILE.",
        f'gambrel = "{__version__}"', f'accelerator = "{profile.accelerator}"', f'engine = "{profile.engine}"',
        f'basis = "{profile.basis}"', f"spread = {profile.spread:.4g}", f"ttft_spread = {profile.ttft_spread:.4g}", "",
    ]  # fmt: skip
    for name, value in profile.multiples.items():
        low, high = profile.intervals[name]
        lines.append(f"[constants.{name}]\nvalue = {value:.6g}\nlow = {low:.6g}\nhigh = {high:.6g}\n")
    path.write_text("\n".join(lines), encoding="utf-8")


def load_profile(path: Path) -> Profile:
    """Read a profile.

    Raises:
        WorkloadError: unreadable, or a constant that is unknown or not a positive number.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WorkloadError(f"{path.name}: cannot be read as a profile ({error})") from None
    missing = [k for k in ("accelerator", "engine", "constants") if k not in data]
    if missing:
        raise WorkloadError(f"{path.name}: no {', '.join(missing)}; a profile is what gambrel calibrate --out writes")
    multiples, intervals = {}, {}
    for name, entry in dict(data["constants"]).items():
        if name not in CONSTANTS:
            raise WorkloadError(f"{path.name}: unknown constant {name!r}; known: {', '.join(CONSTANTS)}")
        figures = [entry.get(k) if isinstance(entry, dict) else None for k in ("value", "low", "high")]
        numbers = [float(f) for f in figures if isinstance(f, int | float) and f > 0.0]
        if len(numbers) != len(figures):
            raise WorkloadError(f"{path.name}: constants.{name} needs value, low and high, each above 0")
        multiples[name], intervals[name] = numbers[0], (numbers[1], numbers[2])
    spread = float(data.get("spread", 0.1))
    return Profile(
        str(data["accelerator"]), str(data["engine"]), multiples, intervals, spread,
        float(data.get("ttft_spread", 2.0 * spread)),
        str(data.get("basis", f"profile {path.name}")),
    )  # fmt: skip
