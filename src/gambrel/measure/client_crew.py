"""One client process or several, behind one face: a core drives about 512 streams, more take more processes.

Every process reads the same monotonic clock, so their records merge as they are. Users of a closed loop and arrivals
of an open one are dealt round; requests are numbered across processes, so that prompts differ everywhere.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from gambrel.core.errors import EndpointError
from gambrel.measure.client import Client, Endpoint, Timeouts, new_event_loop
from gambrel.measure.load import Driver, Lengths, Schedule, Vitals
from gambrel.measure.machine import no_garbage_pauses, raise_file_limit
from gambrel.measure.prompts import Prompts
from gambrel.measure.record import Record, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Crew", "LocalCrew", "RemoteCrew", "work"]

LINE_LIMIT = 1 << 27


class Crew(Protocol):
    """What a sweep asks of its client processes."""

    async def hold(self, label: str, users: int, lengths: Lengths, stagger_s: float, warm_limit_s: float) -> bool:
        """See :meth:`Driver.hold`."""

    async def measure(self, quota: int, duration_s: float) -> tuple[int, int, list[Vitals]]:
        """See :meth:`Driver.measure`; with the vitals of the window."""

    async def play(
        self, label: str, schedule: Schedule, start_ns: int, warm_s: float, measure_s: float
    ) -> tuple[int, int, list[Vitals]]:
        """See :meth:`Driver.play`; with the vitals."""

    async def use(self, prompts: Prompts) -> None:
        """Take other prompts from now on."""

    async def stop(self) -> None:
        """End all users."""

    async def close(self) -> None:
        """End."""


class LocalCrew:
    """One driver, in this process."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    async def hold(self, label: str, users: int, lengths: Lengths, stagger_s: float, warm_limit_s: float) -> bool:
        """See :meth:`Driver.hold`."""
        return await self.driver.hold(label, users, lengths, stagger_s=stagger_s, warm_limit_s=warm_limit_s)

    async def measure(self, quota: int, duration_s: float) -> tuple[int, int, list[Vitals]]:
        """See :meth:`Driver.measure`; with the vitals of the window."""
        self.driver.begin_vitals()
        begin, end = await self.driver.measure(quota, duration_s)
        return begin, end, [self.driver.end_vitals()]

    async def play(
        self, label: str, schedule: Schedule, start_ns: int, warm_s: float, measure_s: float
    ) -> tuple[int, int, list[Vitals]]:
        """See :meth:`Driver.play`; with the vitals."""
        self.driver.begin_vitals()
        begin, end = await self.driver.play(label, schedule, start_ns=start_ns, warm_s=warm_s, measure_s=measure_s)
        return begin, end, [self.driver.end_vitals()]

    async def use(self, prompts: Prompts) -> None:
        """Take other prompts from now on."""
        self.driver.prompts = prompts

    async def stop(self) -> None:
        """End all users."""
        await self.driver.stop()

    async def close(self) -> None:
        """End all users; the client belongs to whoever opened it."""
        await self.driver.stop()


class _Order(msgspec.Struct, omit_defaults=True):
    """One command to a worker process, as a line of JSON; ``what`` is the method, ``args`` its plain arguments."""

    what: str
    args: dict[str, Any] = {}


class RemoteCrew:
    """Drivers in processes of their own; records come back as they end and go to ``sink``."""

    def __init__(self, sink: Callable[[Record], None]) -> None:
        self._sink = sink
        self._processes: list[asyncio.subprocess.Process] = []
        self._readers: list[asyncio.Task[None]] = []
        self._answers: list[asyncio.Queue[Any]] = []
        self._failure: EndpointError | None = None

    async def open(
        self,
        workers: int,
        endpoint: Endpoint,
        timeouts: Timeouts,
        prompts: Prompts,
        *,
        first_index: int,
        keep_alive: bool,
    ) -> None:
        """Start the processes.

        Raises:
            EndpointError: one did not start.
        """
        for k in range(workers):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gambrel.measure.client_crew",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_LIMIT,
            )  # fmt: skip
            self._processes.append(process)
            self._answers.append(asyncio.Queue())
            self._readers.append(asyncio.create_task(self._read(k)))
        plain = {
            "endpoint": msgspec.to_builtins(endpoint),
            "timeouts": msgspec.to_builtins(timeouts),
            "prompts": msgspec.to_builtins(prompts),
            "first_index": first_index,
            "keep_alive": keep_alive,
        }
        await self._all("open", [{**plain, "worker": k, "workers": workers} for k in range(workers)])

    async def _read(self, k: int) -> None:
        stream = self._processes[k].stdout
        if stream is None:
            return
        while line := await stream.readline():
            if line.startswith(b'{"kind"'):
                try:
                    self._sink(decode(line))  # type: ignore[arg-type] # workers send nothing but records
                except EndpointError as error:
                    self._fail(error)
                    return
            else:
                answer = msgspec.json.decode(line)
                if "error" in answer:
                    self._fail(EndpointError(answer["error"]))
                else:
                    self._answers[k].put_nowait(answer)
        self._fail(EndpointError("a client process ended early"))

    def _fail(self, error: EndpointError) -> None:
        self._failure = self._failure or error
        for answers in self._answers:
            answers.put_nowait(None)

    async def _all(self, what: str, args: list[dict[str, Any]]) -> list[Any]:
        """Give every process its order and gather the answers."""
        for process, one in zip(self._processes, args, strict=True):
            if process.stdin is None or process.returncode is not None:
                raise self._failure or EndpointError("a client process ended early")
            process.stdin.write(msgspec.json.encode(_Order(what, one)) + b"\n")
            await process.stdin.drain()
        found = [await answers.get() for answers in self._answers]
        if self._failure is not None:
            raise self._failure
        return [f["result"] for f in found]

    @staticmethod
    def _deal(total: int, workers: int) -> list[int]:
        return [total // workers + (k < total % workers) for k in range(workers)]

    async def hold(self, label: str, users: int, lengths: Lengths, stagger_s: float, warm_limit_s: float) -> bool:
        """See :meth:`Driver.hold`."""
        shares = self._deal(users, len(self._processes))
        common = {"label": label, "stagger_s": stagger_s, "warm_limit_s": warm_limit_s, **_plain(lengths)}
        return all(await self._all("hold", [{**common, "users": n} for n in shares]))

    async def measure(self, quota: int, duration_s: float) -> tuple[int, int, list[Vitals]]:
        """See :meth:`Driver.measure`; with the vitals of the window."""
        shares = self._deal(quota, len(self._processes))
        return _merged(await self._all("measure", [{"quota": n, "duration_s": duration_s} for n in shares]))

    async def play(
        self, label: str, schedule: Schedule, start_ns: int, warm_s: float, measure_s: float
    ) -> tuple[int, int, list[Vitals]]:
        """See :meth:`Driver.play`; with the vitals."""
        one = {
            "label": label,
            "offset_s": schedule.offset_s.tolist(),
            "session": None if schedule.session is None else schedule.session.tolist(),
            "start_ns": start_ns,
            "warm_s": warm_s,
            "measure_s": measure_s,
            **_plain(schedule.lengths),
        }
        return _merged(await self._all("play", [one] * len(self._processes)))

    async def use(self, prompts: Prompts) -> None:
        """Take other prompts from now on."""
        await self._all("use", [{"prompts": msgspec.to_builtins(prompts)}] * len(self._processes))

    async def stop(self) -> None:
        """End all users."""
        await self._all("stop", [{}] * len(self._processes))

    async def close(self) -> None:
        """End the processes: they end with their standard input."""
        for reader in self._readers:
            reader.cancel()
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
            try:
                async with asyncio.timeout(5.0):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        await asyncio.gather(*self._readers, return_exceptions=True)


def _plain(lengths: Lengths) -> dict[str, Any]:
    return {"prompt_tokens": lengths.prompt_tokens.tolist(), "output_tokens": lengths.output_tokens.tolist()}


def _lengths(args: dict[str, Any]) -> Lengths:
    return Lengths(np.array(args["prompt_tokens"], np.int64), np.array(args["output_tokens"], np.int64))


def _merged(results: list[Any]) -> tuple[int, int, list[Vitals]]:
    """The common window (latest begin, earliest end) and everybody's vitals."""
    vitals = [Vitals(np.array(r["lag_s"]), r["cpu_s"], r["wall_s"]) for r in results]
    begin, end = max(r["begin"] for r in results), min(r["end"] for r in results)
    return begin, max(end, begin + 1), vitals


class _Worker:
    """The other end of :class:`RemoteCrew`."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._crew: LocalCrew | None = None
        self._client: Client | None = None

    def _sink(self, record: Record) -> None:
        self._write(encode(record) + b"\n")

    async def obey(self, order: _Order) -> Any:
        """Carry out one order."""
        a = order.args
        if order.what == "open":
            raise_file_limit()
            self._client = Client(
                msgspec.convert(a["endpoint"], Endpoint), msgspec.convert(a["timeouts"], Timeouts),
                keep_alive=a["keep_alive"],
            )  # fmt: skip
            await self._client.open()
            self._crew = LocalCrew(Driver(
                self._client, msgspec.convert(a["prompts"], Prompts), self._sink,
                worker=a["worker"], workers=a["workers"], first_index=a["first_index"],
            ))  # fmt: skip
            return None
        if self._crew is None:
            raise EndpointError("the worker is not open")
        if order.what == "hold":
            return await self._crew.hold(a["label"], a["users"], _lengths(a), a["stagger_s"], a["warm_limit_s"])
        if order.what == "measure":
            return _answer(*await self._crew.measure(a["quota"], a["duration_s"]))
        if order.what == "play":
            session = None if a["session"] is None else np.array(a["session"], np.int64)
            schedule = Schedule(np.array(a["offset_s"]), _lengths(a), session)
            return _answer(*await self._crew.play(a["label"], schedule, a["start_ns"], a["warm_s"], a["measure_s"]))
        if order.what == "use":
            await self._crew.use(msgspec.convert(a["prompts"], Prompts))
        elif order.what == "stop":
            await self._crew.stop()
        return None

    async def close(self) -> None:
        """End."""
        if self._crew is not None:
            await self._crew.close()
        if self._client is not None:
            await self._client.close()


def _answer(begin: int, end: int, vitals: list[Vitals]) -> dict[str, Any]:
    v = vitals[0]
    return {"begin": begin, "end": end, "lag_s": v.lag_s.tolist(), "cpu_s": v.cpu_s, "wall_s": v.wall_s}


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    out, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout.buffer)
    worker = _Worker(out.write)
    while line := await reader.readline():
        try:
            result = await worker.obey(msgspec.json.decode(line, type=_Order))
        except EndpointError as error:
            out.write(msgspec.json.encode({"error": str(error)}) + b"\n")
            continue
        out.write(msgspec.json.encode({"result": result}) + b"\n")
    await worker.close()


def work() -> None:
    """The worker process: orders on standard input, records and answers on standard output."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner, no_garbage_pauses():
        runner.run(_serve())


if __name__ == "__main__":
    work()
