"""When to send what: closed loops that hold a concurrency, and open schedules that do not care how the server fares.

A closed loop started all at once keeps its start burst in step for the whole run, so users start spread over one
request's time; the warm-up hands over to the measured window with every request still in flight, and load is kept up
until the last measured request has ended, so that none is measured on an emptying server. An open schedule is fixed
beforehand; a request's latency begins when the schedule wanted it sent.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gambrel.core.errors import EndpointError
from gambrel.measure.protocol_events import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints, Workload
    from gambrel.measure.client import Client
    from gambrel.measure.prompts import Prompts
    from gambrel.measure.record import Record

__all__ = ["ARRIVALS", "Driver", "Lengths", "Schedule", "Vitals", "arrivals", "ramp", "replay"]

HEARTBEAT_S: Final = 0.005
SPIN_NS: Final = 1_500_000  # timers are whole milliseconds: the last stretch before a send is waited for awake


@dataclass(frozen=True)
class Lengths:
    """Prompt and output tokens of successive requests, int64[n]; they come round again after the last."""

    prompt_tokens: Ints
    output_tokens: Ints

    @classmethod
    def fixed(cls, prompt_tokens: int, output_tokens: int) -> Lengths:
        """All alike."""
        return cls(np.array([prompt_tokens], np.int64), np.array([output_tokens], np.int64))

    def at(self, index: int) -> tuple[int, int]:
        """Of request ``index``."""
        i = index % len(self.prompt_tokens)
        return int(self.prompt_tokens[i]), int(self.output_tokens[i])


@dataclass(frozen=True)
class Schedule:
    """Sends fixed beforehand: offsets in seconds from the start, float64[n], and their lengths."""

    offset_s: Floats
    lengths: Lengths
    session: Ints | None = None

    def __len__(self) -> int:
        return len(self.offset_s)


def _constant(rate: float, duration_s: float, _cv: float, _rng: np.random.Generator) -> Floats:
    return np.arange(max(1, math.ceil(rate * duration_s - 1e-9))) / rate


def _gamma(rate: float, duration_s: float, cv: float, rng: np.random.Generator) -> Floats:
    shape = 1.0 / cv**2
    found, last = [], 0.0
    size = max(16, math.ceil(rate * duration_s * 1.2))
    while last < duration_s:
        gaps = rng.gamma(shape, 1.0 / (rate * shape), size)
        part = last + np.cumsum(gaps)
        last = float(part[-1])
        found.append(part)
    times = np.concatenate(found)
    return times[times < duration_s]


def _poisson(rate: float, duration_s: float, _cv: float, rng: np.random.Generator) -> Floats:
    return _gamma(rate, duration_s, 1.0, rng)


def arrivals(process: str, rate: float, duration_s: float, lengths: Lengths, *, seed: int, cv: float = 1.0) -> Schedule:
    """An open schedule of ``rate`` requests per second for ``duration_s``.

    ``process`` is ``constant``, ``poisson``, or ``gamma`` with the coefficient of variation ``cv`` of its gaps.

    Raises:
        EndpointError: unknown process, or a rate, duration or cv that is not above 0.
    """
    return Schedule(_arrive(process, rate, duration_s, cv, seed), lengths)


def _arrive(process: str, rate: float, duration_s: float, cv: float, seed: int) -> Floats:
    if process not in ARRIVALS:
        raise EndpointError(f"unknown arrival process {process!r}; known: {', '.join(ARRIVALS)}")
    for name, value in (("rate", rate), ("duration", duration_s), ("cv", cv)):
        if not 0 < value < float("inf"):
            raise EndpointError(f"the {name} of an open load must be above 0, got {value:g}")
    return ARRIVALS[process](rate, duration_s, cv, np.random.default_rng(seed))


def ramp(
    low: float, high: float, duration_s: float, lengths: Lengths, *, seed: int, process: str = "poisson"
) -> Schedule:
    """A rate that goes in a straight line from ``low`` to ``high`` requests per second over ``duration_s``.

    Arrivals of a unit-rate process, carried through the inverse of the integrated rate: for ``constant`` the k-th
    request comes when exactly k are due.
    """
    if low < 0 or high < 0 or low + high <= 0:
        raise EndpointError(f"a ramp goes between rates of at least 0, one above 0; got {low:g} to {high:g}")
    due = (low + high) / 2 * duration_s
    unit = _arrive(process, 1.0, due, 1.0, seed)
    slope = (high - low) / duration_s
    if slope == 0:
        return Schedule(unit / low, lengths)
    # low t + slope t^2 / 2 = unit, in the form that does not cancel
    root = low + np.sqrt(np.maximum(low * low + 2 * slope * unit, 0.0))
    return Schedule(np.divide(2 * unit, root, out=np.zeros_like(unit), where=root > 0), lengths)


def replay(workload: Workload, *, time_scale: float = 1.0) -> Schedule:
    """The workload's own arrivals and lengths; ``time_scale`` 2 takes twice as long, 0.5 half as long.

    Raises:
        EndpointError: a scale that is not above 0, or a workload without arrival times.
    """
    if not 0 < time_scale < float("inf"):
        raise EndpointError(f"--time-scale must be above 0, got {time_scale:g}")
    if workload.closed_loop or not workload.has_arrivals:
        raise EndpointError(f"{workload.source or workload.name} has no arrival times to replay; give --rate")
    offsets = (workload.arrival_s - workload.arrival_s[0]) * time_scale
    return Schedule(offsets, Lengths(workload.prompt_tokens, workload.output_tokens), workload.session)


@dataclass(frozen=True)
class Vitals:
    """How the client itself fared over a window: loop lags in seconds float64[n], CPU and wall seconds."""

    lag_s: Floats
    cpu_s: float
    wall_s: float


class Driver:
    """Sends requests of one client by a level's plan and hands each record to ``sink``.

    One per process: requests are numbered ``worker``, ``worker + workers``, ... so that prompts differ everywhere.
    """

    def __init__(
        self,
        client: Client,
        prompts: Prompts,
        sink: Callable[[Record], None],
        *,
        worker: int = 0,
        workers: int = 1,
        first_index: int = 0,
    ) -> None:
        self.client = client
        self.prompts = prompts
        self.sink = sink
        self.worker = worker
        self.workers = workers
        self._next = first_index + worker
        self._users: set[asyncio.Task[None]] = set()
        self._target = 0
        self._plan: tuple[str, Lengths] = ("", Lengths.fixed(1, 1))
        self._finished: set[int] = set()  # users who have ended a request of this level
        self._open_ns: int | None = None
        self._close_ns = 0
        self._quota = 0
        self._measured = 0
        self._pending = 0
        self._air: set[Exchange] = set()
        self._changed = asyncio.Event()
        self._lags: list[float] = []
        self._heart: asyncio.TimerHandle | None = None
        self._cpu = 0.0
        self._wall = 0
        self._failure: BaseException | None = None

    # -- one request

    def _exchange(self, intended: int, lengths: tuple[int, int], **meta: Any) -> Exchange:
        index = self._next
        self._next += self.workers
        prompt, output = lengths
        e = self.client.endpoint
        payload = e.payload(self.prompts.text(prompt, index), output, f"gambrel-{self.prompts.seed:x}-{index}")
        forced = output if e.ignore_eos else None
        return Exchange(
            payload, intended, forced, index=index, worker=self.worker, prompt_asked=prompt, output_asked=output, **meta
        )

    async def _send(self, x: Exchange, *, warmup: bool) -> None:
        x.meta["warmup"] = warmup
        self._air.add(x)
        try:
            await self.client.send(x)
        finally:  # the next request goes out first: keeping this one takes longer than sending that one
            asyncio.get_running_loop().call_soon(self._keep, x)

    def _keep(self, x: Exchange) -> None:
        self._air.discard(x)
        self._changed.set()
        try:
            self.sink(x.record())
        except EndpointError as error:
            self._failure = self._failure or error
            self._changed.set()

    async def probe(self, label: str, prompt_tokens: int, output_tokens: int) -> Record:
        """One request by itself, marked as warm-up."""
        x = self._exchange(monotonic_ns(), (prompt_tokens, output_tokens), level=label)
        x.meta["warmup"] = True
        await self.client.send(x)
        record = x.record()
        self.sink(record)
        return record

    # -- closed loop

    async def hold(self, label: str, users: int, lengths: Lengths, *, stagger_s: float, warm_limit_s: float) -> bool:
        """Bring the loop to ``users`` requests in flight and warm it up: until each user has ended one of this level.

        Users already there go on with the new lengths after their request in flight; new ones start spread over
        ``stagger_s``, between those of other processes; those too many stop after theirs. False where ``warm_limit_s``
        was over before the loop was warm.
        """
        self._plan = (label, lengths)
        self._finished = set()
        self._open_ns, self._measured, self._pending, self._quota = None, 0, 0, 0
        have, self._target = self._target, users
        fresh = max(users - have, 0)
        now = monotonic_ns()
        between = 0.5 if have else 0.0  # those already there begin now
        for k in range(have, users):
            share = (k - have + (self.worker + between) / self.workers) / fresh
            task = asyncio.create_task(self._user(k, now + round(stagger_s * 1e9 * share)))
            self._users.add(task)
            task.add_done_callback(self._user_ended)
        await self._until(lambda: len(self._finished) >= self._target, warm_limit_s)
        return len(self._finished) >= self._target

    def _user_ended(self, task: asyncio.Task[None]) -> None:
        self._users.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._changed.set()

    async def _user(self, number: int, start_ns: int) -> None:
        await self._sleep_until(start_ns)
        intended = monotonic_ns()
        errors = 0
        while number < self._target and self._failure is None:
            label, lengths = self._plan
            x = self._exchange(intended, lengths.at(self._next // self.workers), level=label)
            now = monotonic_ns()
            counted = self._open_ns is not None and self._measured < self._quota and now < self._close_ns
            self._measured += counted
            self._pending += counted
            await self._send(x, warmup=not counted)
            self._pending -= counted
            if self._plan[0] == label:
                self._finished.add(number)
            self._changed.set()
            intended = x.end or monotonic_ns()
            # An endpoint that fails at once must not be hammered: wait a little longer after each failure.
            errors = errors + 1 if x.error else 0
            if errors:
                await asyncio.sleep(min(0.01 * 2 ** min(errors, 7), 1.0))
                intended = monotonic_ns()

    async def measure(self, quota: int, duration_s: float) -> tuple[int, int]:
        """Measure the next ``quota`` requests, or those begun within ``duration_s``; (begin, end) of the window in ns.

        The window ends when the last of them has been sent; load goes on until all that were in flight then have ended.
        """
        begin = self._open_ns = monotonic_ns()
        self._quota, self._close_ns = quota, begin + round(duration_s * 1e9)
        await self._until(lambda: self._measured >= quota or monotonic_ns() >= self._close_ns, duration_s)
        end = monotonic_ns()
        self._quota = self._measured
        before = set(self._air)
        await self._until(lambda: not before & self._air, self.client.timeouts.total_s + 5.0)
        return begin, end

    async def stop(self) -> None:
        """End every user; requests in flight end as cancelled."""
        self._target = 0
        tasks = list(self._users)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # let the last records be kept
        self._users.clear()

    # -- open loop

    async def play(
        self, label: str, schedule: Schedule, *, start_ns: int, warm_s: float, measure_s: float
    ) -> tuple[int, int]:
        """Send by schedule; (begin, end) of the measured window in ns.

        Requests of the first ``warm_s`` are warm-up, those of the next ``measure_s`` are measured, and the rest only
        keeps the load up until these have ended.
        """
        self._measured, self._pending = 0, 0
        begin, end = start_ns + round(warm_s * 1e9), start_ns + round((warm_s + measure_s) * 1e9)
        under_way: set[asyncio.Task[None]] = set()
        for i in range(self.worker, len(schedule), self.workers):
            intended = start_ns + round(float(schedule.offset_s[i]) * 1e9)
            if intended >= end and self._pending == 0:
                break
            session = None if schedule.session is None else int(schedule.session[i])
            x = self._exchange(intended, schedule.lengths.at(i), level=label, session=session)
            await self._sleep_until(intended)
            counted = begin <= intended < end
            self._measured += counted
            self._pending += counted
            task = asyncio.create_task(self._arrival(x, counted=counted))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await self._until(lambda: self._pending == 0, self.client.timeouts.total_s + 5.0)
        rest = list(under_way)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.sleep(0)  # let the last records be kept
        return begin, end

    async def _arrival(self, x: Exchange, *, counted: bool) -> None:
        try:
            await self._send(x, warmup=not counted)
        finally:
            self._pending -= counted
            self._changed.set()

    # -- waiting and vitals

    async def _until(self, reached: Callable[[], bool], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not reached():
            if self._failure is not None:
                raise self._failure
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._changed.clear()
            try:
                async with asyncio.timeout(min(left, 0.25)):
                    await self._changed.wait()
            except TimeoutError:
                continue
        if self._failure is not None:
            raise self._failure

    @staticmethod
    async def _sleep_until(t_ns: int) -> None:
        """Sleep to within a millisecond, then give way to the loop until the moment has come."""
        left = t_ns - monotonic_ns()
        if left > SPIN_NS:
            await asyncio.sleep((left - SPIN_NS) / 1e9)
        while monotonic_ns() < t_ns:  # noqa: ASYNC110 - a moment of the clock, which no event announces
            await asyncio.sleep(0)

    def begin_vitals(self) -> None:
        """Start the heartbeat and the CPU clock."""
        self._lags = []
        self._cpu, self._wall = time.process_time(), monotonic_ns()
        self._beat(None)

    def _beat(self, due: float | None) -> None:
        now = time.monotonic()
        if due is not None:
            self._lags.append(max(0.0, now - due))
        self._heart = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat, now + HEARTBEAT_S)

    def end_vitals(self) -> Vitals:
        """Stop them, and what they say."""
        if self._heart is not None:
            self._heart.cancel()
            self._heart = None
        return Vitals(np.array(self._lags), time.process_time() - self._cpu, max(monotonic_ns() - self._wall, 1) / 1e9)


ARRIVALS: Final = {"constant": _constant, "poisson": _poisson, "gamma": _gamma}
