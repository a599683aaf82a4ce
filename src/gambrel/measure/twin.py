"""A twin: any simulated deployment behind an HTTP port, in real time or stretched, its true times written down.

Whoever has no GPU can point a client, a dashboard or a load balancer at the twin of one; and the whole loop
(simulate, serve, measure, calibrate) can be closed and checked, since what the twin *did* is known exactly.

Steps are scheduled by the engine's rule (:mod:`gambrel.measure.batching`) and priced by the same cost model as the
simulation. Time is absolute: a step ends at its start plus its cost, whenever the process gets round to saying so,
and the next step starts there; lateness shows in one token's delivery and never adds up. ``scale`` stretches time:
at 10, a step of 8 ms takes 80 ms, and whatever the machine and the client add weighs a tenth.

A prompt's tokens are its words (split at white space), or its token ids; an answer is ``max_tokens`` times one
word. One thing a simulation does not have is the way to the client and back: it lets a closed loop's next request
arrive the moment the last one ends. So a step that finished requests is followed by a grace: the twin waits up to
``grace_s`` (real) for as many new ones before it settles the next step, which still *starts* where the last ended.
Where the cost model knows of time that a request takes outside the steps, every request waits that long at the door
(a constant delay of arrivals moves nobody relative to anybody), and there is no grace: the next request is late anyway.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from gambrel.core.errors import DeploymentError, EndpointError, WorkloadError
from gambrel.core.run import Histogram, Run
from gambrel.engine import limits_of
from gambrel.measure.alarm import Alarm
from gambrel.measure.batching import Batch, Sequence, unserved
from gambrel.measure.exposition import Exposition
from gambrel.measure.server import Refusal, serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gambrel.core.deployment import Deployment
    from gambrel.core.step import CostModel
    from gambrel.engine.state import Limits
    from gambrel.measure.http1 import Listener, Reply, Request
    from gambrel.measure.server import Answer, Ask, Prompt

__all__ = ["GRACE_S", "TRUTH", "Truth", "TruthHeader", "Twin", "read_truth", "serve_twin", "truth_run"]

TRUTH: Final = "gambrel-truth"
GRACE_S: Final = 0.005
WORD: Final = " the"
DEFAULT_OUTPUT: Final = 128  # of a chat that states no limit
KEPT: Final = 2_000  # latest requests whose truth /truth shows; a truth file holds all


class TruthHeader(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="header"):
    """First line of a truth file: what was served; times below are seconds since ``origin_s`` (monotonic clock)."""

    schema: str = TRUTH
    version: int = 1
    origin_s: float
    origin_unix_s: float
    scale: float
    model: str
    deployment: str
    basis: str


class Truth(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="request"):
    """What the twin did for one request.

    ``arrival_s``, ``scheduled_s``, ``first_s``, ``last_s`` and ``token_s`` (one per token) are on the simulation's
    clock; ``chunk_s`` (one per event written, holding ``stream_interval`` tokens) on the real one, since the same
    origin. ``status`` is ``length`` or ``abort``.
    """

    id: str
    client_id: str
    replica: int
    prompt_tokens: int
    output_tokens: int
    arrival_s: float
    scheduled_s: float | None
    first_s: float | None
    last_s: float | None
    preemptions: int
    status: str
    token_s: list[float]
    chunk_s: list[float]


class _Served:
    """One request on its way: the sequence, where its tokens go, and its times."""

    __slots__ = ("answer", "arrival_s", "ask", "chunk_s", "pending", "sequence", "token_s")

    def __init__(self, ask: Ask, answer: Answer) -> None:
        self.ask, self.answer = ask, answer
        self.sequence: Sequence
        self.arrival_s = 0.0  # at the door; the sequence's own is when it is in line
        self.pending = 0  # tokens that wait for their chunk
        self.token_s = array("d")
        self.chunk_s = array("d")

    @property
    def asked_s(self) -> float:
        """When its client asked: at the door, or, within a grace, when the answer before it ended."""
        return min(self.arrival_s, self.sequence.arrival_s)


class _Replica:
    """One replica's batch and its clock."""

    def __init__(self, twin: Twin, index: int, batch: Batch) -> None:
        self.twin, self.index, self.batch = twin, index, batch
        self.alarm = Alarm(twin.loop, self._wake)
        self.clock = 0.0  # virtual end of the last step
        self.step_s = 0.0  # how long the last one without a prompt took
        self.ends: float | None = None  # virtual end of the step under way
        self.expected = 0  # requests that ended with the last step and may be followed by new ones
        self.settles_s: float | None = None  # real time at which the next step is settled

    def add(self, sequence: Sequence) -> None:
        """Take a request into the waiting line."""
        if self.settles_s is not None:  # it follows one that has just ended: it counts from there
            self.expected -= 1
            self.batch.waiting.append(sequence)
            if self.expected <= 0:
                self._settle()
            else:
                self._hold()
            return
        self.batch.waiting.append(sequence)
        if self.ends is None:
            self.clock = sequence.arrival_s
            self._begin(self.clock)

    def _hold(self) -> None:
        self.settles_s = time.monotonic() + self.twin.grace_s
        self.alarm.at(self.settles_s)

    def _settle(self) -> None:
        self.settles_s = None
        self._begin(max(self.clock, self.twin.now()))

    def _grace_over(self) -> None:
        if self.settles_s is not None and time.monotonic() + 1e-5 >= self.settles_s:
            self._settle()

    def _begin(self, until: float) -> None:
        """Start the next step at ``clock`` with what has arrived by ``until``; idle when there is nothing."""
        batch = self.batch
        batch.drop_cancelled()
        for sequence in batch.waiting:
            if sequence.arrival_s > until:
                break
            sequence.arrival_s = min(sequence.arrival_s, self.clock) if until > self.clock else sequence.arrival_s
        if not batch.running and not batch.preempted and batch.waiting:
            self.clock = max(self.clock, batch.waiting[0].arrival_s)
        seconds = batch.begin(self.clock)
        if seconds == 0.0:
            self.ends = None
            self.alarm.cancel()
            return
        self.ends = self.clock + seconds
        if batch.tokens == batch.num_scheduled:
            self.step_s = seconds
        self.alarm.at(self.twin.real(self.ends))

    def _wake(self) -> None:
        now = time.monotonic()
        if self.settles_s is not None:
            if now + 1e-5 < self.settles_s:
                self.alarm.at(self.settles_s)
            else:
                self.twin.loop.call_soon(self._grace_over)  # after the requests that came meanwhile
            return
        if self.ends is None:
            return
        due = self.twin.real(self.ends)
        if now + 1e-5 < due:
            self.alarm.at(due)
            return
        self.twin.late_s = max(self.twin.late_s, now - due)
        self.clock, self.ends = self.ends, None
        got = self.batch.end(self.clock)
        self.twin.exposition.iteration.add(float(self.batch.tokens))
        finished = self.twin.deliver(self, got)
        if finished and self.twin.grace_s > 0.0:
            self.expected = finished
            self._hold()
        else:
            self._begin(self.clock)


class Twin:
    """The engine behind the door: see :func:`serve_twin`. Must be made on the event loop it will run on."""

    def __init__(
        self,
        deployment: Deployment,
        cost_model: CostModel,
        *,
        model: str | None = None,
        scale: float = 1.0,
        grace_s: float = GRACE_S,
        stream_interval: int = 1,
        truth: Path | None = None,
    ) -> None:
        if not 0.0 < scale < float("inf"):
            raise DeploymentError(
                f"the time scale must be above 0, got {scale!r}; 10 makes everything ten times slower"
            )
        if stream_interval < 1:
            raise DeploymentError(f"stream_interval must be at least 1 token, got {stream_interval}")
        self.loop = asyncio.get_running_loop()
        self.deployment, self.scale, self.grace_s = deployment, scale, grace_s
        self._behind_s = 0.0  # the latest time at which a request was put in line
        self.stream_interval = stream_interval
        self.limits: Limits = limits_of(deployment, cost_model.memory())
        if why := unserved(deployment, self.limits):
            raise DeploymentError(f"the twin does not serve {why}; gambrel simulate does")
        table = self._table = cost_model.compile(self.limits.max_num_batched_tokens, self.limits.max_num_seqs)
        if table.request_s:  # the next request of a user comes later than the end of the last one anyway
            self.grace_s = 0.0
        self._model = model or deployment.model.name
        room = (self.limits.num_kv_blocks - self.limits.state_blocks) * self.limits.block_size
        if not self.limits.chunked_prefill:
            room = min(room, self.limits.max_num_batched_tokens)
        if self.limits.request_blocks:
            room = min(room, self.limits.request_blocks * self.limits.block_size)
        self._max_model_len = min(deployment.max_model_len or room, room)
        self._exposition = Exposition(
            self._model, self._max_model_len, self.limits.block_size, self.limits.num_kv_blocks
        )
        self.replicas = [_Replica(self, i, Batch(table, self.limits)) for i in range(deployment.replicas)]
        self._turn = 0
        self._serving: dict[str, tuple[_Replica, _Served]] = {}
        self.late_s = 0.0  # the latest that a step's end was noticed
        self.origin_s = time.monotonic()
        self.header = TruthHeader(
            origin_s=self.origin_s, origin_unix_s=time.time(), scale=scale, model=self._model,
            deployment=deployment.label, basis=cost_model.basis,
        )  # fmt: skip
        self.truths: deque[Truth] = deque(maxlen=KEPT)
        self._file: Any = None
        if truth is not None:
            try:
                truth.parent.mkdir(parents=True, exist_ok=True)
                self._file = truth.open("wb")
                self._file.write(msgspec.json.encode(self.header) + b"\n")
            except OSError as error:
                raise EndpointError(f"cannot write {truth}: {error.strerror}; choose another --truth") from None

    @property
    def model(self) -> str:
        """The name it serves under."""
        return self._model

    @property
    def max_model_len(self) -> int:
        """Prompt and output tokens of one request at most."""
        return self._max_model_len

    @property
    def exposition(self) -> Exposition:
        """Its metrics, on the real clock, as a client sees it."""
        return self._exposition

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Every answer says by how much time is stretched."""
        return (("X-Gambrel-Time-Scale", f"{self.scale:g}"),)

    def now(self) -> float:
        """The simulation's clock."""
        return (time.monotonic() - self.origin_s) / self.scale

    def real(self, virtual_s: float) -> float:
        """When the simulation's clock will show ``virtual_s``, on ``time.monotonic``."""
        return self.origin_s + virtual_s * self.scale

    def count(self, prompt: Prompt) -> tuple[Prompt, int]:
        """Words are tokens; of messages, the words of their texts."""
        if isinstance(prompt, str):
            return "", len(prompt.split())
        total = 0
        for part in prompt:
            if not isinstance(part, dict):
                return "", len(prompt)  # token ids
            content = part.get("content")
            texts = [content] if isinstance(content, str) else content if isinstance(content, list) else []
            for text in texts:
                piece = text.get("text") if isinstance(text, dict) else text
                total += len(piece.split()) if isinstance(piece, str) else 0
        return "", total

    def submit(self, ask: Ask, answer: Answer) -> None:
        """Send it to a replica, as the deployment routes."""
        room = self._max_model_len - ask.prompt_tokens
        output = min(ask.max_tokens or DEFAULT_OUTPUT, room)
        if output < 1:
            raise Refusal(400, f"the prompt alone has {ask.prompt_tokens} tokens; {self._max_model_len} fit")
        served = _Served(ask, answer)
        arrival = served.arrival_s = (ask.received_s - self.origin_s) / self.scale
        replica = self._route()
        self._behind_s = max(self._behind_s, arrival + self._table.request_s)
        served.sequence = Sequence(self._behind_s, ask.prompt_tokens, output, served)
        self._serving[ask.id] = (replica, served)
        replica.add(served.sequence)

    def _route(self) -> _Replica:
        order = self.replicas[self._turn :] + self.replicas[: self._turn]
        if self.deployment.routing == "least_outstanding":
            chosen = min(order, key=lambda r: r.batch.outstanding)
        else:
            chosen = order[0]
        self._turn = (chosen.index + 1) % len(self.replicas)
        return chosen

    def cancel(self, ask: Ask) -> None:
        """The client has gone: its sequence leaves after the step under way."""
        found = self._serving.pop(ask.id, None)
        if found is None:
            return
        replica, served = found
        served.sequence.cancelled = True
        self._exposition.finished["abort"] += 1
        self._note(replica, served, "abort")

    def deliver(self, replica: _Replica, got: list[Sequence]) -> int:
        """Write the tokens of a step that ended at the replica's clock; how many requests ended with it."""
        clock, finished, page = replica.clock, 0, self._exposition
        interval = self.stream_interval
        for sequence in got:
            served = sequence.owner
            if sequence.cancelled or not isinstance(served, _Served):
                continue
            times = served.token_s
            if times:
                page.gap.add((clock - times[-1]) * self.scale)
            else:
                page.ttft.add((clock - served.asked_s) * self.scale)
                page.prompt_tokens += sequence.prompt
            times.append(clock)
            page.generation_tokens += 1
            served.pending += 1
            done = sequence.done
            if done or served.pending >= interval or len(times) == 1:
                served.answer.push(WORD * served.pending, served.pending, "length" if done else None)
                served.chunk_s.append(time.monotonic() - self.origin_s)
                served.pending = 0
            if done:
                finished += 1
                self._finish(replica, served)
        return finished

    def _finish(self, replica: _Replica, served: _Served) -> None:
        self._serving.pop(served.ask.id, None)
        sequence, scale = served.sequence, self.scale
        self._exposition.preemptions += sequence.preemptions
        self._exposition.finish(
            "length", prompt_tokens=sequence.prompt, output_tokens=sequence.output,
            max_tokens=served.ask.max_tokens or sequence.output, arrival_s=served.asked_s * scale,
            scheduled_s=sequence.scheduled_s * scale, first_s=sequence.first_s * scale,
            last_s=sequence.token_s * scale,
        )  # fmt: skip
        self._note(replica, served, "length")

    def _note(self, replica: _Replica, served: _Served, status: str) -> None:
        s = served.sequence
        truth = Truth(
            id=served.ask.id, client_id=served.ask.client_id, replica=replica.index, prompt_tokens=s.prompt,
            output_tokens=s.generated, arrival_s=served.asked_s, scheduled_s=_known(s.scheduled_s),
            first_s=_known(s.first_s), last_s=_known(s.token_s), preemptions=s.preemptions, status=status,
            token_s=served.token_s.tolist(), chunk_s=served.chunk_s.tolist(),
        )  # fmt: skip
        self.truths.append(truth)
        if self._file is not None:
            self._file.write(msgspec.json.encode(truth) + b"\n")
            self._file.flush()

    def refresh(self) -> None:
        """Gauges, summed over replicas."""
        page = self._exposition
        page.running = sum(len(r.batch.running) for r in self.replicas)
        page.waiting = sum(len(r.batch.waiting) + len(r.batch.preempted) for r in self.replicas)
        page.kv_usage = sum(r.batch.kv_usage for r in self.replicas) / len(self.replicas)

    def truth(self, _: Request, reply: Reply) -> None:
        """The route ``/truth``: JSON lines of the header and of the requests that have ended."""
        lines = [msgspec.json.encode(self.header), *(msgspec.json.encode(t) for t in self.truths), b""]
        reply.send(200, b"\n".join(lines), "application/x-ndjson")

    def close(self) -> None:
        """Stop the clocks and end the truth file."""
        for replica in self.replicas:
            replica.alarm.close()
        if self._file is not None:
            self._file.close()
            self._file = None


def _known(value: float) -> float | None:
    return value if value == value else None  # noqa: PLR0124 - NaN is what has not happened


async def serve_twin(
    deployment: Deployment,
    cost_model: CostModel,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    ready: Callable[[Twin, Listener], None] = lambda *_: None,
    **settings: Any,
) -> None:
    """Serve the twin of a deployment until cancelled; ``settings`` are those of :class:`Twin`.

    ``ready`` is called once with the twin and the listener, whose ``.url`` is the address.

    Raises:
        DeploymentError: limits that no engine would start with, or a bad time scale.
        EndpointError: the address or the truth file cannot be had.
    """
    twin = Twin(deployment, cost_model, **settings)
    listener = await serve(twin, host, port, {"/truth": twin.truth})
    try:
        ready(twin, listener)
        await asyncio.Event().wait()
    finally:
        await listener.close()
        twin.close()


def read_truth(path: Path) -> tuple[TruthHeader, tuple[Truth, ...]]:
    """A truth file, up to where it may be cut.

    Raises:
        WorkloadError: not such a file.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise WorkloadError(f"cannot read {path}: {error.strerror}") from None
    decoder = msgspec.json.Decoder(TruthHeader | Truth)
    header: TruthHeader | None = None
    truths: list[Truth] = []
    for number, line in enumerate(lines, 1):
        try:
            found = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise WorkloadError(f"{path}: line {number} is no {TRUTH} line: {error}") from None
        if isinstance(found, TruthHeader):
            header = found
        else:
            truths.append(found)
    if header is None or header.schema != TRUTH:
        raise WorkloadError(f"{path}: no {TRUTH} header; files that gambrel twin --truth wrote have one")
    return header, tuple(truths)


def truth_run(header: TruthHeader, truths: tuple[Truth, ...]) -> Run:
    """What the twin did as a run, on the simulation's clock; requests that were given up have NaN times.

    Raises:
        WorkloadError: no requests.
    """
    if not truths:
        raise WorkloadError("the twin has served no requests yet")
    ordered = sorted(truths, key=lambda t: t.arrival_s)
    zero = ordered[0].arrival_s
    good = [t.status == "length" for t in ordered]

    def column(name: str) -> Any:
        values = (getattr(t, name) if ok else None for t, ok in zip(ordered, good, strict=True))
        return np.array([float("nan") if v is None else v - zero for v in values])

    gaps = [np.diff(np.asarray(t.token_s)) for t, ok in zip(ordered, good, strict=True) if ok]
    return Run(
        arrival_s=np.array([t.arrival_s - zero for t in ordered]),
        scheduled_s=column("scheduled_s"),
        first_token_s=column("first_s"),
        last_token_s=column("last_s"),
        prompt_tokens=np.array([t.prompt_tokens for t in ordered], np.int64),
        output_tokens=np.array([t.output_tokens for t in ordered], np.int64),
        preemptions=np.array([t.preemptions for t in ordered], np.int64),
        replica=np.array([t.replica for t in ordered], np.int64),
        itl=Histogram.of(np.concatenate([*gaps, np.empty(0)])),
        replicas=1 + max(t.replica for t in ordered),
        origin="simulated",
        basis=f"truth of a twin: {header.deployment}, {header.basis}",
    )
