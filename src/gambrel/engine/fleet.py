"""A fleet over a day: replicas that start, fail and leave, and what that does to the requests and to the bill.

Between two events (a look of the autoscaler, a replica ready, a failure) the loop of
:mod:`gambrel.engine.fleet_kernel` serves; at the events this module decides. A replica is paid for from the moment it
is asked for until it is gone. Rules that hold throughout:

- A replica that starts takes ``start_up_s`` and then has an empty cache.
- One that is told to leave gets no new requests and is gone when its last one has ended. Those that still start leave
  first, then the youngest (as Kubernetes' ReplicaSet does).
- A failure strikes at the end of the step that is running. All the replica held is sent again at that instant, to
  others, and computed from the prompt: what clients had seen of it is repeated. It starts again at once.
- Who arrives while no replica is up is held, in order, until one is.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.core.errors import DeploymentError
from gambrel.core.units import SECONDS_PER_HOUR
from gambrel.engine.autoscaling import Autoscale, Kpa, Look
from gambrel.engine.dispatch import Dispatch
from gambrel.engine.prefixes import Prefixes
from gambrel.engine.simulation import Replay, check_fits, driven, prepared, replay, run_of, special
from gambrel.engine.state import CLOCK, FINISHED, NEVER, Replicas, Requests
from gambrel.engine.workers import needed

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run
    from gambrel.core.slo import SLO
    from gambrel.core.step import CostModel, Floats, StepTable
    from gambrel.core.workload import Ints, Workload
    from gambrel.engine.state import Limits

__all__ = [
    "Failures",
    "FleetRun",
    "Life",
    "Timeline",
    "cold_start_s",
    "least_fixed",
    "serve_fleet",
    "simulate_fleet",
]

ALONE, ASKED, KPA = range(3)  # as in the kernel, which is not to be imported before a replay starts
_LOOKS = 64  # at most in one go, for an interrupt is heard in between
_LOSSES_MAX = 1000  # losses of work without a request ended in between, from which a fleet is taken to get nowhere


def cold_start_s(weight_bytes: float, bytes_per_s: float, engine_s: float, provision_s: float = 0.0) -> float:
    """Seconds from asking for a replica to its first request.

    ``weight_bytes`` at ``bytes_per_s`` from wherever they lie (storage, network, host memory), after ``provision_s``
    for a machine and its image, before ``engine_s`` for what the engine does with its weights in place: profiling,
    compiling, capturing graphs.

    Raises:
        DeploymentError: a figure that is no duration or rate.
    """
    if not (math.isfinite(bytes_per_s) and bytes_per_s > 0):
        raise DeploymentError(f"weights must load at above 0 bytes a second, got {bytes_per_s!r}")
    for name, value in (("engine start", engine_s), ("provisioning", provision_s)):
        if not (math.isfinite(value) and value >= 0):
            raise DeploymentError(f"{name} must take at least 0 seconds, got {value!r}")
    return provision_s + weight_bytes / bytes_per_s + engine_s


@dataclass(frozen=True, slots=True)
class Failures:
    """When replicas fail: each at exponential times of mean ``mtbf_s`` after it became ready, and as ``at`` says.

    ``at``: (seconds, replica number); one that is not there then is not struck.
    """

    mtbf_s: float | None = None
    at: tuple[tuple[float, int], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mtbf_s is not None and not (math.isfinite(self.mtbf_s) and self.mtbf_s > 0):
            raise DeploymentError(f"mtbf must be above 0 seconds, got {self.mtbf_s!r}")
        for time, number in self.at:
            if not (math.isfinite(time) and time >= 0 and number >= 0):
                raise DeploymentError(f"a failure is at least 0 seconds in, of replica 0 or above; got {time}:{number}")


@dataclass(slots=True)
class Life:
    """One replica from being asked for to being gone, in seconds; ``ready_s`` is NaN for one that never was.

    ``end`` is ``left``, ``failed``, ``cancelled`` (told to leave before it was ready) or ``open`` (there to the end).
    """

    replica: int
    asked_s: float
    ready_s: float = math.nan
    leave_s: float = math.nan
    end_s: float = math.nan
    end: str = "open"

    @property
    def is_ready(self) -> bool:
        """Whether it has ever been ready."""
        return not math.isnan(self.ready_s)


@dataclass(frozen=True, slots=True)
class Timeline:
    """The fleet at regular times: float64[k] seconds and KV usage of ready replicas (mean), int64[k] counts.

    ``in_flight``: requests that arrived and have not ended, held ones included.
    """

    time_s: Floats
    ready: Ints
    starting: Ints
    leaving: Ints
    in_flight: Ints
    held: Ints
    kv_usage: Floats


@dataclass(frozen=True)
class FleetRun:
    """What happened to requests (``run``), to replicas (``lives``), and to the fleet over time.

    ``held`` bool[n]: found no replica up. ``retries`` int64[n]: times lost with a replica. ``during_start`` bool[n]:
    sent while a replica that was asked for was still starting. ``horizon_s``: until when replicas are paid for.
    ``scales``: their number was an autoscaler's to choose.
    """

    run: Run
    lives: tuple[Life, ...]
    timeline: Timeline
    held: npt.NDArray[np.bool_]
    retries: Ints
    during_start: npt.NDArray[np.bool_]
    start_s: float
    horizon_s: float
    gpus_per_replica: int = 1
    scales: bool = False

    @property
    def replica_hours(self) -> float:
        """Hours paid for, of replicas."""
        return sum(life.end_s - life.asked_s for life in self.lives) / SECONDS_PER_HOUR

    @property
    def gpu_hours(self) -> float:
        """Hours paid for, of accelerators."""
        return self.replica_hours * self.gpus_per_replica

    @property
    def replicas_mean(self) -> float:
        """Replicas paid for on average."""
        span = self.horizon_s - self.start_s
        return self.replica_hours * SECONDS_PER_HOUR / span if span > 0 else 0.0

    @property
    def num_failures(self) -> int:
        """Replicas lost."""
        return sum(life.end == "failed" for life in self.lives)

    @property
    def num_starts(self) -> int:
        """Replicas asked for after the first moment."""
        return sum(life.asked_s > self.start_s for life in self.lives)


class _Day:
    """The events of one fleet, in order."""

    def __init__(
        self, served: Dispatch, scale: Autoscale | None, fixed: int, start_up_s: float, failures: Failures,
        start_s: float, horizon_s: float, sample_s: float,
    ) -> None:  # fmt: skip
        self.served, self.scale, self.start_up_s, self.failures = served, scale, start_up_s, failures
        self.start_s, self.horizon_s = start_s, horizon_s
        self.rule = None if scale is None else scale.start()
        self.every_s = sample_s if scale is None else scale.every_s
        self.random = np.random.default_rng(failures.seed)
        self.lives: list[Life] = []
        self.alive: dict[int, Life] = {}
        self.leaving: list[Life] = []
        self.order: list[Life] | None = None
        self.free = list(range(len(served.counts)))
        self.used_until = np.full(len(served.counts), start_s)  # by number: when its last life ended or will have
        self.events: list[tuple[float, int, str, int, Life | None]] = []
        self.serial = 0
        self.losses = self.ended = 0
        self.retries = np.zeros(len(served.asked), np.int64)
        self.kpa = self.rule if isinstance(self.rule, Kpa) else Kpa(Autoscale(1.0))  # the kernel wants one in any case
        self.decides = ALONE if self.rule is None else KPA if self.rule is self.kpa else ASKED
        self.rows, self.seen = np.empty((_LOOKS, 7)), np.zeros(2)
        self.samples: list[Floats] = []
        for time, number in failures.at:
            self.expect(start_s + time, "struck", number, None)
        for _ in range(fixed if scale is None else scale.first):
            self.ready(self.begin(start_s))

    def expect(self, time: float, what: str, replica: int, life: Life | None) -> None:
        """Put an event into the calendar."""
        heapq.heappush(self.events, (time, self.serial, what, replica, life))
        self.serial += 1

    def begin(self, now: float) -> Life:
        """Ask for a replica."""
        number = heapq.heappop(self.free)
        life = Life(number, max(now, float(self.used_until[number])))
        self.lives.append(life)
        self.alive[life.replica] = life
        self.order = None
        return life

    def ready(self, life: Life, now: float | None = None) -> None:
        """A replica can serve."""
        life.ready_s = life.asked_s if now is None else now
        self.order = None
        self.served.up[life.replica] = True
        if self.failures.mtbf_s is not None:
            self.expect(life.ready_s + self.random.exponential(self.failures.mtbf_s), "fails", life.replica, life)
        if self.served.num_held:
            self.served.release_held(life.ready_s)

    def gone(self, life: Life, now: float, end: str) -> None:
        """A replica is paid for no longer."""
        life.end_s, life.end = now, end
        self.used_until[life.replica] = now
        self.served.up[life.replica] = False
        self.served.forget(life.replica)
        self.leaving = [x for x in self.leaving if x is not life]
        self.order = None
        del self.alive[life.replica]
        heapq.heappush(self.free, life.replica)

    def start(self, now: float) -> None:
        """Ask for a replica that takes its time."""
        life = self.begin(now)
        self.expect(life.asked_s + self.start_up_s, "ready", life.replica, life)

    def fail(self, life: Life, now: float) -> None:
        """Lose a replica at the end of its step; one that was wanted starts again."""
        now = max(now, self.clock(life))
        self.served.up[life.replica] = False
        lost = self.served.lose(life.replica, now)
        self.retries[lost] += 1
        self.losses += len(lost) > 0
        if self.served.num_finished > self.ended:
            self.ended, self.losses = self.served.num_finished, 0
        wanted = math.isnan(life.leave_s)
        self.gone(life, now, "failed")
        if wanted:
            self.start(now)

    def busy(self, life: Life) -> bool:
        """Whether a replica has work."""
        return bool(self.served.counts[life.replica] > self.served.replicas.ints[life.replica, FINISHED])

    def staying(self) -> list[Life]:
        """Replicas that were not told to leave, in the order they would be told: starting ones, then the youngest."""
        if self.order is None:
            staying = [life for life in self.alive.values() if math.isnan(life.leave_s)]
            self.order = sorted(
                staying, key=lambda x: (x.is_ready, -x.ready_s if x.is_ready else -x.asked_s, -x.replica)
            )
        return self.order

    def clock(self, life: Life) -> float:
        """When its last step ends or ended."""
        return float(self.served.replicas.floats[life.replica, CLOCK])

    def sweep(self, now: float) -> None:
        """Those told to leave whose last request has ended are gone, since it ended."""
        for life in tuple(self.leaving):
            if not self.busy(life) and self.clock(life) <= now:
                self.gone(life, max(life.leave_s, self.clock(life)), "left")

    def serve(self, k: int) -> tuple[int, bool, int]:
        """Serve from look ``k`` on until there is something to do; how many looks, whether to act on the last, how."""
        staying = self.staying()
        ready = [x.replica for x in staying if x.is_ready]
        found = self.served.watch(
            k, self.start_s, self.every_s, self.events[0][0] if self.events else NEVER, self.horizon_s,
            self.decides, self.scale is not None and self.scale.metric == "kv",
            np.array(ready, np.int64), len(staying) - len(ready), np.array([x.replica for x in self.leaving], np.int64),
            self.served.limits.num_kv_blocks, self.rows, self.seen, self.kpa.arguments,
        )  # fmt: skip
        self.samples.append(self.rows[: found[0]].copy())
        return found

    def act(self, now: float, wanted: int) -> None:
        """Do what a look at ``now`` asks for."""
        self.sweep(now)
        if self.rule is None:
            return
        staying = self.staying()
        if self.decides == ASKED:
            ready = sum(x.is_ready for x in staying)
            total, busy = self.seen.tolist()
            wanted = self.rule.wanted(Look(now, ready, len(staying) - ready, total, bool(busy)))
        for _ in range(min(wanted - len(staying), len(self.free))):
            self.start(now)
        for life in staying[: max(len(staying) - wanted, 0)]:
            self.served.up[life.replica] = False
            life.leave_s = max(now, life.asked_s)  # a failure asks for another at the end of its step
            self.order = None
            self.leaving.append(life)
            if not life.is_ready:
                self.gone(life, life.leave_s, "cancelled")
        self.sweep(now)

    def handle(self, now: float) -> None:
        """Everything that happens at this time."""
        while self.events and self.events[0][0] <= now:
            _, _, what, replica, life = heapq.heappop(self.events)
            if what == "struck":
                life = self.alive.get(replica)
            if life is None or self.alive.get(replica) is not life:
                continue  # it is gone already
            if what == "ready":
                self.ready(life, now)
            elif life.is_ready:
                self.fail(life, now)

    def run(self) -> None:
        """The whole day.

        Raises:
            DeploymentError: replicas fail before anything can end.
        """
        n = len(self.served.asked)
        k = 0
        while True:
            looks, acts, wanted = self.serve(k)
            k += looks
            if acts:
                self.act(self.start_s + (k - 1) * self.every_s, wanted)
            else:
                tick = self.start_s + k * self.every_s
                now = min(tick, self.events[0][0]) if self.events else tick
                if now >= self.horizon_s and self.served.num_finished == n:
                    break
                self.handle(now)
            if self.losses >= _LOSSES_MAX:
                raise DeploymentError(
                    f"{_LOSSES_MAX:,} failures in a row struck before any request could end, "
                    f"{n - self.served.num_finished:,} are left; a longer mtbf than a request takes works"
                )
        end = max(self.horizon_s, float(np.nanmax(self.served.requests.last)))
        self.horizon_s = end
        self.sweep(end)
        for life in list(self.alive.values()):
            life.end_s = max(end, life.asked_s)


def serve_fleet(
    table: StepTable, limits: Limits, workload: Workload, *, replicas: int = 1, routing: str = "round_robin",
    autoscale: Autoscale | None = None, start_up_s: float = 0.0, failures: Failures | None = None,
    horizon_s: float | None = None, sample_s: float | None = None, gpus_per_replica: int = 1, basis: str = "",
) -> FleetRun:  # fmt: skip
    """Serve a workload on ``replicas`` equal replicas, or on as many as ``autoscale`` wants, from second 0 on.

    ``start_up_s``: seconds from asking for a replica to its first request. ``horizon_s``: replicas are paid for until
    then, or until the last request has ended if that is later; the last known arrival by default. ``sample_s``: seconds
    between samples of a fixed fleet.

    Raises:
        DeploymentError: a closed loop, guesses, a routing that a changing fleet cannot follow, or a fleet that gets
            nowhere.
    """
    kind = "a closed loop runs" if workload.closed_loop else special(limits, workload)
    if kind:
        raise DeploymentError(
            f"{kind} in `gambrel simulate` only; a fleet serves open arrivals and sessions as they come"
        )
    if not (math.isfinite(start_up_s) and start_up_s >= 0):
        raise DeploymentError(f"start-up must take at least 0 seconds, got {start_up_s!r}")
    workload = driven(workload, table, lambda alone: replay(table, limits, alone).requests)
    prefixes = Prefixes.none(len(workload))
    if limits.prefix_caching and workload.prefix_blocks is not None:
        prefixes = Prefixes.of(workload, limits.block_size)
    number = replicas if autoscale is None else 2 * autoscale.max_replicas
    known = workload.arrival_s if workload.after is None else workload.arrival_s[workload.after < 0]
    end_s = float(known[-1]) if horizon_s is None else horizon_s
    every_s = max(end_s / 2048, 1.0) if sample_s is None else sample_s
    # Where nothing is shared only preempted requests find anything: without any, memory changes nothing.
    for remembering in sorted({limits.prefix_caching and len(prefixes.sizes) > 0, limits.prefix_caching}):
        requests = Requests.of(workload, prefixes)
        requests = replace(requests, arrival=requests.arrival.copy())
        kept = replace(limits, prefix_caching=remembering)
        served = Dispatch.of(table, kept, workload, requests, number, routing, plain=False)
        day = _Day(served, autoscale, replicas, start_up_s, failures or Failures(), 0.0, end_s, every_s)
        day.run()
        if not requests.preemptions.any():
            break
    ints, floats, histogram = Replicas.total([served.replicas])
    run = run_of(Replay(requests, served.assigned, ints, floats, histogram, None, table), limits, number, basis)
    columns = np.concatenate(day.samples).T
    whole = [column.astype(np.int64) for column in columns[1:6]]
    lives = tuple(day.lives)
    return FleetRun(
        replace(run, arrival_s=served.asked),
        lives,
        Timeline(columns[0], whole[0], whole[1], whole[2], whole[3], whole[4], columns[6]),
        served.was_held,
        day.retries,
        _during_start(served.asked, lives),
        day.start_s,
        day.horizon_s,
        gpus_per_replica,
        autoscale is not None,
    )


def _during_start(asked: Floats, lives: tuple[Life, ...]) -> npt.NDArray[np.bool_]:
    """Which requests were sent while a replica was starting: bool[n]."""
    starts = [(x.asked_s, x.ready_s if x.is_ready else x.end_s) for x in lives if x.asked_s > 0.0]
    begun = np.sort(np.array([a for a, _ in starts]))
    done = np.sort(np.array([b for _, b in starts]))
    return np.asarray(np.searchsorted(begun, asked, "right") > np.searchsorted(done, asked, "right"))


def simulate_fleet(deployment: Deployment, cost_model: CostModel, workload: Workload, **settings: Any) -> FleetRun:
    """:func:`serve_fleet` of a deployment, with its replicas and routing, steps priced by ``cost_model``.

    Raises:
        WorkloadError: a request cannot fit a replica; the message names its row.
        DeploymentError: as in :func:`serve_fleet`, and for limits that the engine refuses.
    """
    if needed(deployment):
        raise DeploymentError(
            f"{deployment.label}: prefill workers, pipelines and data-parallel attention run in `gambrel simulate`; "
            "a fleet's replicas have one stage and one scheduler"
        )
    table, limits = prepared(deployment, cost_model)
    check_fits(workload, limits, deployment.max_model_len)
    return serve_fleet(
        table, limits, workload,
        replicas=deployment.replicas, routing=deployment.routing, gpus_per_replica=deployment.gpus_per_replica,
        basis=cost_model.basis, **settings,
    )  # fmt: skip


def least_fixed(slo: SLO, most: int, serve: Callable[[int], FleetRun]) -> tuple[int, FleetRun] | None:
    """The smallest fixed fleet, of at most ``most`` replicas, that meets every objective, and its day; None: none does.

    ``serve`` is given a number of replicas. More replicas are taken never to make it worse, so the number is bisected.
    """
    found: tuple[int, FleetRun] | None = None
    low, high = 0, 1
    while found is None:
        day = serve(high)
        if all(v.met for v in slo.check(day.run)):
            found = high, day
        elif high >= most:
            return None
        else:
            low, high = high, min(2 * high, most)
    while found[0] - low > 1:
        middle = (found[0] + low) // 2
        day = serve(middle)
        if all(v.met for v in slo.check(day.run)):
            found = middle, day
        else:
            low = middle
    return found
