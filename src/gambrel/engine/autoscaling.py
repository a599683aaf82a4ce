"""How many replicas there should be: the rules of known autoscalers, from what a fleet shows at regular times.

A rule sees what its original sees: how much of the metric there is in all, how many replicas are ready or starting, and
whether anybody waits for a first one. What it says is a number of replicas; starting them takes time, which is the
fleet's business.

- ``hpa``, Kubernetes' HorizontalPodAutoscaler, as its concept page describes the algorithm: every 15 s,
  ceil(replicas x metric / target), nothing within a tolerance of 0.1; replicas that start count as idle when it wants
  more and as on target when it wants fewer; at most doubled or 4 more per 15 s; fewer only as far as the most that was
  wanted in the last 300 s. It never goes to zero, so there KEDA decides, by the defaults of its ScaledObject: asleep
  after 300 s without work (``cooldownPeriod``), one replica again at the first look, every 30 s (``pollingInterval``),
  that finds any.
- ``kpa``, Knative's autoscaler (defaults of ``config/core/configmaps/autoscaler.yaml`` in knative/serving at commit
  0d68a7b): every 2 s, ceil(mean over 60 s / target); if the mean over 6 s wants twice what is ready, it panics: follows
  that mean and takes nothing away until it has been calm for 60 s. At most 1,000 times as many and half as few at once
  (the latter as its documentation page says); to zero 30 s after a window without work; from zero at the next look.

Here a mean is that of the looks in the window; Knative's is that of per-second means.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gambrel.core.errors import DeploymentError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["METRICS", "RULES", "Autoscale", "Kpa", "Look", "Rule"]

METRICS = ("concurrency", "kv")


@dataclass(frozen=True, slots=True)
class Look:
    """What a rule sees: ``total`` of the metric over replicas (and those held, for concurrency); ``busy``: any work."""

    time_s: float
    ready: int
    starting: int
    total: float
    busy: bool


class Rule(Protocol):
    """Looks in, replicas wanted out; it remembers what it saw."""

    def wanted(self, look: Look) -> int:
        """Replicas wanted from now on, ready and starting ones together."""


@dataclass(frozen=True, slots=True)
class Autoscale:
    """What to hold a fleet to.

    Attributes:
        target: of the metric, on average over replicas: requests in the system of each, or share of its KV blocks.
        metric: ``concurrency`` or ``kv``.
        rule: ``hpa`` or ``kpa``.
        min_replicas: 0 lets it sleep.
        max_replicas: at least 1.
        initial: replicas that are ready at the start; ``min_replicas`` by default.
        period_s: seconds between looks; the rule's own by default (15, 2).
        window_s: how long more replicas are remembered (hpa, 300), or averaged over (kpa, 60).
        idle_s: seconds without work until it sleeps (300; the window and 30).
        activation_s: seconds between looks while it sleeps (30; 2).
    """

    target: float
    metric: str = "concurrency"
    rule: str = "hpa"
    min_replicas: int = 1
    max_replicas: int = 8
    initial: int | None = None
    period_s: float | None = None
    window_s: float | None = None
    idle_s: float | None = None
    activation_s: float | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise DeploymentError(f"unknown autoscaling metric {self.metric!r}; known: {', '.join(METRICS)}")
        if self.rule not in RULES:
            raise DeploymentError(f"unknown autoscaling rule {self.rule!r}; known: {', '.join(RULES)}")
        if not (math.isfinite(self.target) and self.target > 0):
            raise DeploymentError(f"autoscaling target must be above 0, got {self.target!r}")
        if self.metric == "kv" and self.target > 1:
            raise DeploymentError(f"a target of KV usage is a share, above 0 and at most 1, got {self.target!r}")
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise DeploymentError(
                f"replicas must be from at least 0 to at least 1, got {self.min_replicas} to {self.max_replicas}"
            )
        if self.initial is not None and not self.min_replicas <= self.initial <= self.max_replicas:
            raise DeploymentError(
                f"initial replicas must lie in {self.min_replicas} to {self.max_replicas}, got {self.initial}"
            )
        for name in ("period_s", "window_s", "idle_s", "activation_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise DeploymentError(f"autoscaling {name} must be above 0 seconds, got {value!r}")

    @property
    def first(self) -> int:
        """Replicas ready at the start."""
        return self.min_replicas if self.initial is None else self.initial

    @property
    def every_s(self) -> float:
        """Seconds between looks."""
        return self.period_s or {"hpa": 15.0, "kpa": 2.0}[self.rule]

    def start(self) -> Rule:
        """A rule with nothing seen yet."""
        return RULES[self.rule](self)


class Hpa:
    """HorizontalPodAutoscaler, and KEDA at zero."""

    TOLERANCE = 0.1
    PODS, SHARE = 4, 2  # at most so many more, or so many times as many, a period

    def __init__(self, scale: Autoscale) -> None:
        self.scale = scale
        self.window_s = scale.window_s or 300.0
        self.idle_s = scale.idle_s or 300.0
        self.activation_s = scale.activation_s or 30.0
        self.seen: deque[tuple[float, int]] = deque()
        self.busy_s = 0.0
        self.poll_s = 0.0

    def wanted(self, look: Look) -> int:
        """Replicas wanted from now on."""
        current = look.ready + look.starting
        if look.busy:
            self.busy_s = look.time_s
        if current == 0:
            if look.time_s < self.poll_s:
                return 0
            self.poll_s = (look.time_s // self.activation_s + 1.0) * self.activation_s
            return 1 if look.busy else 0
        if self.scale.min_replicas == 0 and look.time_s - self.busy_s >= self.idle_s:
            self.seen.clear()
            return 0
        low = max(self.scale.min_replicas, 1)
        wanted = min(max(self.proposal(look, current), low), self.scale.max_replicas)
        if not self.seen:
            self.seen.append((look.time_s, current))
        self.seen.append((look.time_s, wanted))
        while self.seen[0][0] < look.time_s - self.window_s:
            self.seen.popleft()
        if wanted > current:
            return min(wanted, max(self.SHARE * current, current + self.PODS))
        return min(current, max(n for _, n in self.seen))

    def proposal(self, look: Look, current: int) -> int:
        """By the ratio of metric to target, before limits."""
        if look.ready == 0:
            return current
        ratio = look.total / (self.scale.target * look.ready)
        total = look.total if ratio > 1.0 else look.total + self.scale.target * look.starting
        again = total / (self.scale.target * current)
        if abs(again - 1.0) <= self.TOLERANCE or (ratio > 1.0) != (again > 1.0):
            return current
        return math.ceil(total / self.scale.target - 1e-9)


class Kpa:
    """Knative's autoscaler: what :func:`gambrel.engine.autoscaling_kernel.kpa` remembers, which decides."""

    PANIC_WINDOW, PANIC_RATIO = 0.1, 2.0
    UP, DOWN = 1000.0, 2.0  # at most so many times as many, or as few, at once
    GRACE_S = 30.0

    def __init__(self, scale: Autoscale) -> None:
        window_s = scale.window_s or 60.0
        self.settings = np.array(
            [scale.target, scale.min_replicas, scale.max_replicas, window_s, self.PANIC_WINDOW * window_s,
             scale.idle_s or window_s + self.GRACE_S, scale.activation_s or 0.0, self.PANIC_RATIO, self.UP, self.DOWN]
        )  # fmt: skip
        self.state = np.array([0.0, 0.0, 0.0, 0.0, -math.inf, 0.0])
        self.times, self.values = np.zeros((2, 2, math.ceil(window_s / scale.every_s) + 2))
        self.marks = np.zeros((2, 2), np.int64)  # of both windows: the first look, and how many there are

    @property
    def arguments(self) -> tuple[Any, ...]:
        """In the order of the kernel."""
        return self.settings, self.state, self.times, self.values, self.marks

    def wanted(self, look: Look) -> int:
        """Replicas wanted from now on; looks come as regularly as the scale says, or less often."""
        from gambrel.engine.autoscaling_kernel import kpa

        return int(kpa(look.time_s, look.ready, look.starting, look.total, look.busy, *self.arguments))


RULES: dict[str, Callable[[Autoscale], Rule]] = {"hpa": Hpa, "kpa": Kpa}
