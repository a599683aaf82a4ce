"""A whole measurement: ask the endpoint what it can do, make exact prompts, walk through the levels, keep everything.

Levels of a closed loop follow one another without letting the server run empty; open levels start from rest. The
record file is written as requests end, so whatever happens, what was measured until then is there.
"""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass, field, replace
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from gambrel.core.errors import EndpointError
from gambrel.core.version import __version__
from gambrel.measure.client import Client, Endpoint, Timeouts, new_event_loop
from gambrel.measure.client_crew import Crew, LocalCrew, RemoteCrew
from gambrel.measure.fidelity import fidelity
from gambrel.measure.load import Driver, Lengths, Schedule, Vitals, arrivals, ramp, replay
from gambrel.measure.machine import no_garbage_pauses, raise_file_limit
from gambrel.measure.prompts import Prompts, certify
from gambrel.measure.protocol_events import Exchange
from gambrel.measure.record import Header, Level, Record, RecordWriter, Sample, read_recording
from gambrel.measure.results import recording_figures
from gambrel.measure.scrape import Scraper

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gambrel.core.workload import Workload

__all__ = ["PER_PROCESS", "Closed", "Open", "Progress", "Ramp", "Replay", "Sweep", "measure"]

PER_PROCESS: Final = 512  # streams of 100 tokens/s that one core carries: see docs/measure.md
DEAD_AFTER: Final = 32  # failures in a row, without one success, that end a run
FILL_S: Final = 30.0  # how long an open load goes on at most so that the last measured request ends under load
RETRY_WAIT_LIMIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Closed:
    """So many requests always in flight, of these lengths."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int

    @property
    def label(self) -> str:
        """``c8 p512 o128``."""
        return f"c{self.concurrency} p{self.prompt_tokens} o{self.output_tokens}"


@dataclass(frozen=True, slots=True)
class Open:
    """So many requests per second, whatever the server does."""

    rate_rps: float
    prompt_tokens: int
    output_tokens: int
    process: str = "poisson"
    cv: float = 1.0

    @property
    def label(self) -> str:
        """``r2.5 poisson p512 o128``."""
        return f"r{self.rate_rps:g} {self.process} p{self.prompt_tokens} o{self.output_tokens}"


@dataclass(frozen=True, slots=True)
class Ramp:
    """An open load that goes from one rate to another."""

    low_rps: float
    high_rps: float
    prompt_tokens: int
    output_tokens: int
    process: str = "poisson"

    @property
    def label(self) -> str:
        """``r1..8 p512 o128``."""
        return f"r{self.low_rps:g}..{self.high_rps:g} p{self.prompt_tokens} o{self.output_tokens}"


@dataclass(frozen=True)
class Replay:
    """A log's own arrivals and lengths, stretched in time."""

    workload: Workload
    time_scale: float = 1.0

    @property
    def label(self) -> str:
        """``replay NAME x1``."""
        return f"replay {self.workload.name} x{self.time_scale:g}"


@dataclass(frozen=True)
class Sweep:
    """What to measure and how long.

    Attributes:
        levels: in order; each is measured ``repeats`` times, the whole list over again each time.
        num_requests: measured per closed level; None takes ``max(50, 4 x concurrency)``, within ``duration_s``.
        duration_s: the longest a level's window may be; open levels take all of it.
        warm_s: warm-up of open levels, and the longest one of closed levels.
        processes: client processes; 0 takes one per ``PER_PROCESS`` streams, as far as there are cores.
        seed: of prompts and arrivals; None takes a new one, so that no prompt is in the server's cache from before.
        shared_tokens: prompt tokens that all requests share.
        prompts: words already certified for this endpoint; None asks the server.
        metrics_urls: pages to scrape; empty takes the endpoint's ``/metrics``; None scrapes nothing.
    """

    endpoint: Endpoint
    levels: tuple[Closed | Open | Ramp | Replay, ...]
    repeats: int = 1
    num_requests: int | None = None
    duration_s: float = 60.0
    warm_s: float = 30.0
    timeouts: Timeouts = field(default_factory=Timeouts)
    processes: int = 0
    seed: int | None = None
    shared_tokens: int = 0
    prompts: Prompts | None = None
    metrics_urls: tuple[str, ...] | None = ()
    keep_alive: bool = True

    def __post_init__(self) -> None:
        if not self.levels:
            raise EndpointError("nothing to measure: give at least one concurrency or rate")
        if self.repeats < 1 or self.duration_s <= 0 or (self.num_requests is not None and self.num_requests < 1):
            raise EndpointError("repeats and requests must be at least 1, and the duration above 0")
        for option, value in (("--processes", self.processes), ("--shared-prefix", self.shared_tokens)):
            if value < 0:
                raise EndpointError(f"{option} must be at least 0, got {value}")
        for level in self.levels:
            sizes = (level.concurrency,) if isinstance(level, Closed) else ()
            if isinstance(level, Replay):
                replay(level.workload, time_scale=level.time_scale)  # refuses what cannot be replayed
            else:
                sizes = (*sizes, level.prompt_tokens, level.output_tokens)
            if any(s < 1 for s in sizes):
                raise EndpointError(f"level {level.label}: concurrency and lengths must be at least 1")


@dataclass(slots=True)
class Progress:
    """How far a run is, for whoever watches: updated in place, read at leisure."""

    label: str = ""
    phase: str = "asking the endpoint"
    level: int = 0
    levels: int = 0
    requested: float = 0.0
    done: int = 0
    quota: int = 0
    failed: int = 0
    tokens: int = 0
    tokens_before: int = 0
    began_ns: int = 0
    in_flight: Callable[[], int] | None = None
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)

    def take(self, r: Record) -> None:
        """Count a record in."""
        self.tokens += r.output_tokens
        self.failed += bool(r.error) and not r.warmup
        if r.warmup or r.error or r.t_first_token_ns is None or r.t_sent_ns is None:
            return
        self.done += 1
        self.ttft_s.append((r.t_first_token_ns - r.t_sent_ns) / 1e9)
        if len(r.gap_ns) > 1 and r.output_tokens > 1:
            self.tpot_s.append(float(r.gap_ns[1:].sum()) / 1e9 / (r.output_tokens - 1))

    @property
    def elapsed_s(self) -> float:
        """Since the level's window began."""
        return max((monotonic_ns() - self.began_ns) / 1e9, 1e-9) if self.began_ns else 0.0


def measure(sweep: Sweep, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run a sweep, write its record file, answer its figures.

    Raises:
        EndpointError: the endpoint cannot be measured, or went away, or the file could not be written; what was
            measured until then is in ``out``.
    """
    if out.exists() and out.stat().st_size:
        raise EndpointError(f"{out} exists already; choose another --out or move it away")
    raise_file_limit()
    seed = int.from_bytes(os.urandom(4), "big") if sweep.seed is None else sweep.seed
    header = Header.now(
        source=sweep.endpoint.root,
        model=sweep.endpoint.model,
        made_by=f"gambrel {__version__}",
        settings=_settings(sweep, seed),
    )
    with (
        RecordWriter(out, header) as writer,
        asyncio.Runner(loop_factory=new_event_loop) as runner,
        no_garbage_pauses(),
    ):
        session = _Session(sweep, seed, writer, progress or Progress())
        try:
            runner.run(session.run())
        except EndpointError:
            if writer.num_requests == 0:
                out.unlink(missing_ok=True)  # nothing to keep, and the name is free for the next try
            raise
    return recording_figures(read_recording(out)) | {"records": str(out), "notes": session.notes}


def _settings(sweep: Sweep, seed: int) -> dict[str, Any]:
    """What to write down to be able to do it again; never a key."""
    e = sweep.endpoint
    return {
        "api": e.api,
        "ignore_eos": e.ignore_eos,
        "ask_usage": e.ask_usage,
        "continuous_usage": e.continuous_usage,
        "extra": dict(e.extra),
        "levels": [level.label for level in sweep.levels],
        "repeats": sweep.repeats,
        "num_requests": sweep.num_requests,
        "duration_s": sweep.duration_s,
        "warm_s": sweep.warm_s,
        "seed": seed,
        "shared_tokens": sweep.shared_tokens,
        "keep_alive": sweep.keep_alive,
        "timeouts": msgspec.to_builtins(sweep.timeouts),
    }


class _Session:
    """One run of a sweep inside an event loop."""

    def __init__(self, sweep: Sweep, seed: int, writer: RecordWriter, progress: Progress) -> None:
        self.sweep = sweep
        self.endpoint = sweep.endpoint
        self.seed = seed
        self.writer = writer
        self.progress = progress
        self.notes: list[str] = []
        self.records: list[Record] = []
        self.samples: list[Sample] = []
        self.failures = 0
        self.lock = threading.Lock()  # samples come from the scraper's thread
        self.alone_s = 1.0  # seconds of one request by itself: over which users start
        self.next_index = 0
        self.tried: set[tuple[int, int]] = set()

    def sink(self, record: Record) -> None:
        """Keep one record."""
        with self.lock:
            self.writer.write(record)
        self.records.append(record)
        self.progress.take(record)
        self.next_index = max(self.next_index, record.index + 1)
        self.failures = self.failures + 1 if record.error and record.error != "cancelled" else 0
        if self.failures >= max(DEAD_AFTER, 2 * int(self.progress.requested or 0)):
            raise EndpointError(
                f"{self.endpoint.root} stopped answering at {record.level}: {record.detail}; the "
                f"{self.writer.num_requests} requests until then are in {self.writer.path}"
            )

    def sample(self, sample: Sample) -> None:
        """Keep one reading of the server."""
        with self.lock:
            self.writer.write(sample)
        self.samples.append(sample)

    async def run(self) -> None:
        """All of it."""
        sweep = self.sweep
        self.progress.levels = len(sweep.levels) * sweep.repeats
        urls = (f"{self.endpoint.root}/metrics",) if sweep.metrics_urls == () else sweep.metrics_urls or ()
        client = await self._negotiate()
        scraper = Scraper(urls, self.sample)
        crew: Crew | None = None
        try:
            prompts = await self._prompts(client)
            crew = await self._crew(client, prompts)
            scraper.start()
            for repeat in range(sweep.repeats):
                for number, level in enumerate(sweep.levels):
                    self.progress.level = repeat * len(sweep.levels) + number + 1
                    prompts = await self._verified(client, crew, prompts, level)
                    await self._level(crew, level, repeat)
            self.progress.phase = "done"
        finally:
            scraper.stop()
            if crew is not None:
                await crew.close()
            await client.close()
        if client.num_stale:
            self.notes.append("the server closes connections that it said it keeps; measured with a new one each time")
        if urls and not scraper.num_samples:
            self.notes.append(
                f"nothing to scrape at {', '.join(urls)}: {'; '.join(scraper.trouble.values()) or 'empty'}"
            )

    # -- before the first level

    async def _ask(self, client: Client, text: str, output_tokens: int) -> Record:
        """One request outside all levels."""
        e = client.endpoint
        x = Exchange(
            e.payload(text, output_tokens, f"gambrel-{self.seed:x}-probe"), monotonic_ns(), None, index=0,
            level="probe", warmup=True, output_asked=output_tokens,
        )  # fmt: skip
        await client.send(x)
        return x.record()

    async def _negotiate(self) -> Client:
        """An open client whose requests the server accepts: fields it does not know are left out, and said so.

        Raises:
            EndpointError: it does not answer a plain request; the line says how.
        """
        waits = 3
        while True:
            client = Client(self.endpoint, self.sweep.timeouts, keep_alive=self.sweep.keep_alive)
            await client.open()
            record = await self._ask(client, "Say hello to the world.", 2)
            if record.ok:
                return client
            await client.close()
            if record.status in {400, 422} and (simpler := self._simpler(record.detail)) is not None:
                self.endpoint = simpler
                continue
            wait_s = record.retry_after_s
            if record.status in {429, 503} and wait_s is not None and wait_s <= RETRY_WAIT_LIMIT_S and waits:
                self.progress.phase = f"waiting {wait_s:g} s: {record.detail}"
                waits -= 1
                await asyncio.sleep(wait_s)
                continue
            raise EndpointError(self._refusal(record))

    def _simpler(self, detail: str) -> Endpoint | None:
        """The endpoint without the field that a 400 names, or without the next optional one."""
        e = self.endpoint
        named = [
            ("continuous_usage", "continuous_usage_stats", e.continuous_usage),
            ("ignore_eos", "ignore_eos", e.ignore_eos),
            ("ask_usage", "stream_options", e.ask_usage),
        ]
        present = [(attribute, name) for attribute, name, on in named if on]
        for attribute, name in [p for p in present if p[1] in detail] or present[:1]:
            self.notes.append(f"the server refuses {name}; measured without it")
            return replace(e, **{attribute: False})  # type: ignore[arg-type] # the three are booleans
        return None

    def _refusal(self, r: Record) -> str:
        """One line on why the endpoint cannot be measured, and what would work."""
        where = f"{self.endpoint.root}{'' if r.status == 0 else self.endpoint.path}"
        hints = {
            401: f"; is the key in the environment variable {self.endpoint.key_env}?",
            403: f"; may the key in {self.endpoint.key_env} use this model?",
            404: f"; is {self.endpoint.model!r} the server's name of the model (see {self.endpoint.root}/v1/models)?",
            429: f"; try again in {r.retry_after_s:g} s" if r.retry_after_s is not None else "; try again later",
        }
        kinds = {
            "connect": "; is the server up, and the port right?",
            "tls": "; is it https, or is a --ca-file needed?",
        }
        return f"{where}: {r.detail}{hints.get(r.status, '') or kinds.get(r.error, '')}"

    async def _prompts(self, client: Client) -> Prompts:
        """Words of one token each on this server."""
        made = replace(self.sweep.prompts or Prompts(), seed=self.seed, shared_tokens=self.sweep.shared_tokens)
        if made.verified or not self.endpoint.ask_usage:
            return made
        self.progress.phase = "counting tokens"

        async def count(text: str) -> int | None:
            record = await self._ask(client, text, 1)
            if record.error and record.error != "short":
                raise EndpointError(self._refusal(record))
            return None if record.usage is None else record.usage.prompt_tokens

        found = await certify(count, made)
        if not found.verified:
            self.notes.append("the server gives no usage: prompt lengths could not be verified")
        return found

    async def _crew(self, client: Client, prompts: Prompts) -> Crew:
        streams = max((lv.concurrency for lv in self.sweep.levels if isinstance(lv, Closed)), default=1)
        cores = max(1, (os.cpu_count() or 1) - 1)
        workers = self.sweep.processes or min(-(-streams // PER_PROCESS), cores)
        if workers == 1:
            self.progress.in_flight = lambda: client.in_flight
            return LocalCrew(Driver(client, prompts, self.sink))
        crew = RemoteCrew(self.sink)
        await crew.open(
            workers, self.endpoint, self.sweep.timeouts, prompts, first_index=1, keep_alive=self.sweep.keep_alive
        )
        return crew

    async def _verified(
        self, client: Client, crew: Crew, prompts: Prompts, level: Closed | Open | Ramp | Replay
    ) -> Prompts:
        """Send one request of the level's lengths first: the time it takes, and the server's count of its prompt."""
        prompt, output = (
            (int(np.median(level.workload.prompt_tokens)), int(np.median(level.workload.output_tokens)))
            if isinstance(level, Replay)
            else (level.prompt_tokens, level.output_tokens)
        )
        if (prompt, output) in self.tried:
            return prompts
        self.tried.add((prompt, output))
        self.progress.phase = "checking the prompt length"
        if prompt < prompts.shortest:
            self.notes.append(
                f"prompts of {prompt} tokens cannot be made: template and shared part take {prompts.shortest - 1}"
            )
        driver = Driver(client, prompts, self.sink, first_index=1_000_000_000 + self.next_index)
        record = await driver.probe(f"{level.label} alone", prompt, output)
        if record.error and record.error != "short":
            raise EndpointError(self._refusal(record))
        if record.t_end_ns is not None and record.t_sent_ns is not None:
            self.alone_s = (record.t_end_ns - record.t_sent_ns) / 1e9
        counted = None if record.usage is None else record.usage.prompt_tokens
        asked = max(prompt, prompts.shortest)
        if counted is not None and counted != asked:
            prompts = prompts.corrected([asked], [counted])
            await crew.use(prompts)
        return prompts

    # -- levels

    async def _level(self, crew: Crew, level: Closed | Open | Ramp | Replay, repeat: int) -> None:
        label = level.label + (f" #{repeat + 1}" if self.sweep.repeats > 1 else "")
        self.records, self.samples = [], []
        p = self.progress
        p.label, p.done, p.failed, p.tokens, p.began_ns = label, 0, 0, 0, 0
        p.ttft_s, p.tpot_s = [], []
        line = Level(
            label=label,
            mode="closed" if isinstance(level, Closed) else "replay" if isinstance(level, Replay) else "open",
            requested=float(level.concurrency) if isinstance(level, Closed) else self._rate(level),
            repeat=repeat,
            prompt_tokens=None if isinstance(level, Replay) else level.prompt_tokens,
            output_tokens=None if isinstance(level, Replay) else level.output_tokens,
        )
        p.requested = line.requested
        self._write(line)
        if isinstance(level, Closed):
            warm, begin, end, vitals = await self._closed(crew, level, label)
            if not warm:
                note = f"warm-up ended after {self.sweep.warm_s:g} s, before every user had an answer; give more --warm"
                line = msgspec.structs.replace(line, note=note)
        else:
            begin, end, vitals = await self._open(crew, level, label)
            if isinstance(level, Replay) and level.workload.span_s == 0:  # no span of its own: until the last answer
                end = max([end, *(r.t_end_ns + 1 for r in self.records if r.level == label and r.t_end_ns is not None)])
        self._finish(line, begin, end, vitals)

    def _rate(self, level: Open | Ramp | Replay) -> float:
        if isinstance(level, Open):
            return level.rate_rps
        if isinstance(level, Ramp):
            return (level.low_rps + level.high_rps) / 2
        return level.workload.rate_rps / level.time_scale if level.workload.span_s > 0 else 0.0

    def _write(self, line: Level) -> None:
        with self.lock:
            self.writer.write(line)

    def _finish(self, line: Level, begin: int, end: int, vitals: list[Vitals]) -> None:
        done = msgspec.structs.replace(line, begin_ns=begin, end_ns=end)
        mine = [r for r in self.records if r.level == line.label]
        self._write(msgspec.structs.replace(done, fidelity=fidelity(done, mine, vitals, self.samples)))

    async def _closed(self, crew: Crew, level: Closed, label: str) -> tuple[bool, int, int, list[Vitals]]:
        p = self.progress
        p.phase = "warming up"
        stagger = min(self.alone_s, self.sweep.warm_s) if level.concurrency > 1 else 0.0
        lengths = Lengths.fixed(level.prompt_tokens, level.output_tokens)
        warm = await crew.hold(label, level.concurrency, lengths, stagger, self.sweep.warm_s)
        quota = self.sweep.num_requests or max(50, 4 * level.concurrency)
        p.phase, p.quota, p.began_ns, p.tokens_before = "measuring", quota, monotonic_ns(), p.tokens
        return warm, *await crew.measure(quota, self.sweep.duration_s)

    async def _open(self, crew: Crew, level: Open | Ramp | Replay, label: str) -> tuple[int, int, list[Vitals]]:
        await crew.stop()
        p = self.progress
        duration = self.sweep.duration_s
        warm = min(self.sweep.warm_s, duration / 2)
        schedule = self._schedule(level, warm, duration)
        if isinstance(level, Replay):
            warm, duration = 0.0, float(schedule.offset_s[-1]) + 1e-6
        elif isinstance(level, Ramp):
            warm = 0.0
        start = monotonic_ns() + 50_000_000
        p.phase, p.quota = (
            "measuring",
            int(np.count_nonzero((schedule.offset_s >= warm) & (schedule.offset_s < warm + duration))),
        )
        p.began_ns = start + round(warm * 1e9)
        return await crew.play(label, schedule, start, warm, duration)

    def _schedule(self, level: Open | Ramp | Replay, warm: float, duration: float) -> Schedule:
        if isinstance(level, Replay):
            return replay(level.workload, time_scale=level.time_scale)
        lengths = Lengths.fixed(level.prompt_tokens, level.output_tokens)
        if isinstance(level, Ramp):
            return ramp(level.low_rps, level.high_rps, duration, lengths, seed=self.seed, process=level.process)
        whole = warm + duration + min(FILL_S, duration)
        return arrivals(level.process, level.rate_rps, whole, lengths, seed=self.seed, cv=level.cv)
