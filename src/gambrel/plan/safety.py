"""How sure a plan has to be: steps that turn out slower than predicted, and replicas that are down.

A predicted step time is the middle of a distribution (log-normal, ``CostModel.spread`` is its sigma). A plan that just
meets its limits at the middle holds with a chance of one half. Asked to hold with confidence ``c``, it must also meet
them with every step at the ``c`` quantile. As all steps err together there, that is exactly the chance that it holds,
as far as the cost model knows itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from gambrel.core.errors import DeploymentError

__all__ = ["PREDICTION", "Safety"]

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Safety:
    """``confidence`` 0.5 is the prediction itself; ``spare`` replicas may be down while the objectives hold.

    Raises:
        DeploymentError: a confidence outside 0.5 to 0.999, or a negative number of spares.
    """

    confidence: float = 0.5
    spare: int = 0

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence <= 0.999:
            raise DeploymentError(f"confidence must be between 0.5 and 0.999, got {self.confidence!r}")
        if self.spare < 0:
            raise DeploymentError(f"spare replicas must be at least 0, got {self.spare!r}")

    @property
    def asked(self) -> bool:
        """Whether anything beyond the prediction itself is asked."""
        return self.spare > 0 or self.confidence > 0.5

    def factor(self, spread: float) -> float:
        """By how much steps are slower at the asked confidence, given their one-sigma log error."""
        return math.exp(_NORMAL.inv_cdf(self.confidence) * spread)

    @property
    def words(self) -> str:
        """The condition in words: ``with 1 replica down, steps at the 80 % quantile``."""
        parts = []
        if self.spare:
            parts.append(f"with {self.spare} replica{'s'[: self.spare > 1]} down")
        if self.confidence > 0.5:
            parts.append(f"with steps at their {100 * self.confidence:g} % quantile")
        return " and ".join(parts)


PREDICTION = Safety()
"""Nothing beyond the prediction itself."""
