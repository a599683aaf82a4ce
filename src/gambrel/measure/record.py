"""What one request did on the wire, kept raw, so that any tool's metric can be derived from it later.

A metric computed while measuring hides its definition and throws away what another definition needs. So the client
keeps ten times and every token event of a request, and :mod:`gambrel.measure.metrics` derives figures afterwards.

The file is gzipped JSON lines: a ``header``, then ``level``, ``request`` and ``sample`` lines as they happen. Each
line is flushed through the compressor (``Z_SYNC_FLUSH``) and written at once, so a killed client loses only what was
in flight, and a file cut anywhere reads up to the cut (``zcat`` reads it too). Content of prompts and answers, and
keys, are never in a record.
"""

from __future__ import annotations

import os
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
import numpy as np
import numpy.typing as npt

from gambrel.core.errors import EndpointError, WorkloadError
from gambrel.core.run import Histogram, Run, Series

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from gambrel.core.step import Floats
    from gambrel.core.workload import Ints

__all__ = [
    "ERROR_CLASSES",
    "SCHEMA",
    "SCHEMA_VERSION",
    "TIMES",
    "Header",
    "Level",
    "Line",
    "Record",
    "RecordWriter",
    "Recording",
    "Sample",
    "Usage",
    "decode",
    "encode",
    "read_recording",
    "to_run",
]

SCHEMA: Final = "gambrel-record"
SCHEMA_VERSION: Final = 1

TIMES: Final = (
    "t_intended_ns", "t_dequeued_ns", "t_conn_start_ns", "t_sent_ns", "t_headers_ns",
    "t_first_byte_ns", "t_first_token_ns", "t_first_content_ns", "t_last_token_ns", "t_end_ns",
)  # fmt: skip
"""The ten times of a record, in the order they happen (a reused connection starts before it was dequeued)."""

ERROR_CLASSES: Final = {
    "connect": "no TCP connection: refused, unreachable or no such host",
    "tls": "the TLS handshake or the certificate failed",
    "timeout": "no answer, or no further event, within the time-out",
    "cut": "the connection ended in mid-answer",
    "http": "an HTTP status other than 2xx",
    "stream": "HTTP 200, then an error event in the stream",
    "protocol": "what came back is not HTTP, not SSE or not JSON",
    "incomplete": "the stream ended in order but without finish reason or [DONE]",
    "empty": "the answer ended in order without a single token",
    "short": "fewer tokens than forced with ignore_eos",
    "cancelled": "the client stopped while the request was in flight",
}

Int64s = npt.NDArray[np.int64]


def no_events() -> Int64s:
    """An empty array of event figures."""
    return np.empty(0, np.int64)


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the server says it counted, in tokens; None where it did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="header"):
    """The first line: what was measured by what, and the one anchor from monotonic to wall-clock time.

    A monotonic time ``t`` of this file is ``anchor_unix_s + (t - anchor_ns) / 1e9`` in seconds since 1970.
    """

    schema: str = SCHEMA
    version: int = SCHEMA_VERSION
    anchor_ns: int
    anchor_unix_s: float
    source: str = ""
    model: str = ""
    made_by: str = ""
    settings: dict[str, Any] = msgspec.field(default_factory=dict)

    @classmethod
    def now(cls, **fields: Any) -> Header:
        """A header anchored at this moment."""
        return cls(anchor_ns=time.monotonic_ns(), anchor_unix_s=time.time(), **fields)

    def unix_s(self, t_ns: int) -> float:
        """A monotonic time of this file as seconds since 1970."""
        return self.anchor_unix_s + (t_ns - self.anchor_ns) / 1e9


class Level(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="level"):
    """One operating point of a sweep. Written when it begins and again, complete, when it ends: the last one counts.

    ``mode`` is ``closed`` (``requested`` is requests in flight), ``open`` or ``replay`` (requests per second; 0 where
    all of a replay's come at once, which is no rate).
    ``begin_ns`` to ``end_ns`` is the measured window, after the warm-up; ``fidelity`` is how far to trust it.
    """

    label: str
    mode: str
    requested: float
    begin_ns: int | None = None
    end_ns: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    repeat: int = 0
    fidelity: dict[str, Any] = msgspec.field(default_factory=dict)
    note: str = ""


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="sample"):
    """A reading of the server or of a device: ``running``, ``waiting``, ``kv_usage``, ... at a monotonic time."""

    t_ns: int
    source: str
    values: dict[str, float]


class Record(msgspec.Struct, frozen=True, kw_only=True, eq=False, omit_defaults=True, tag_field="kind", tag="request"):
    """One request: ten monotonic times in ns (None: never happened), every token event, and how it ended.

    Attributes:
        index: order of intent within the whole run.
        level: label of its :class:`Level`.
        warmup: sent before the measured window began.
        t_intended_ns: when the load schedule wanted it sent; latency from here includes the client's own queue.
        t_dequeued_ns: when the client took it up.
        t_conn_start_ns: when its connection was begun, whether for this request or an earlier one.
        t_sent_ns: when the request's last byte was handed to the kernel.
        t_headers_ns, t_first_byte_ns: first byte of the HTTP head; first byte of the body.
        t_first_token_ns: first event with content, reasoning or a tool call (a role alone is no token).
        t_first_content_ns: first event with visible content.
        t_last_token_ns, t_end_ns: last token event; end of the body, or the moment it failed.
        gap_ns: int64[k] before each of the k token events: the first since ``t_sent_ns``, then between events.
        tokens: int64[k] tokens in each event; they add up to ``output_tokens``.
        token_basis: how ``tokens`` is known: ``usage`` (the server's total equals the events, one token each),
            ``usage.event`` (the server counted each event), ``usage.split`` (the server's total, spread over the
            events by the length of their text), ``events`` (no usage: one token an event is assumed).
        status: HTTP status; 0 without an answer.
        error: a class of ``ERROR_CLASSES``, empty for success; ``detail`` says it in words, without content.
        finish_reason: ``stop``, ``length``, ... of the last choice.
        prompt_asked, output_asked: tokens the request was built to have; ``usage`` is what the server counted.
        session, turn: conversation it belongs to, and its place there.
        bytes_sent, bytes_received: on the wire without TLS; ``reads`` socket reads that carried any of it, and
            ``merged_reads`` those that carried more than one token event (the sign of a client that lags).
        retry_after_s: what a 429 or 503 asked for.
        worker: which client process sent it.
    """

    index: int
    level: str = ""
    warmup: bool = False
    t_intended_ns: int
    t_dequeued_ns: int | None = None
    t_conn_start_ns: int | None = None
    t_sent_ns: int | None = None
    t_headers_ns: int | None = None
    t_first_byte_ns: int | None = None
    t_first_token_ns: int | None = None
    t_first_content_ns: int | None = None
    t_last_token_ns: int | None = None
    t_end_ns: int | None = None
    gap_ns: Int64s = msgspec.field(default_factory=no_events)
    tokens: Int64s = msgspec.field(default_factory=no_events)
    token_basis: str = "events"  # noqa: S105 - tokens of text
    status: int = 0
    error: str = ""
    detail: str = ""
    finish_reason: str = ""
    usage: Usage | None = None
    prompt_asked: int | None = None
    output_asked: int | None = None
    session: int | None = None
    turn: int | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    reads: int = 0
    merged_reads: int = 0
    retry_after_s: float | None = None
    worker: int = 0

    @property
    def ok(self) -> bool:
        """Whether it ended as it should."""
        return not self.error

    @property
    def output_tokens(self) -> int:
        """Tokens received: the server's count where it gave one, else as the events say."""
        if self.usage is not None and self.usage.completion_tokens is not None:
            return self.usage.completion_tokens
        return int(self.tokens.sum())

    @property
    def prompt_tokens(self) -> int | None:
        """Prompt tokens: the server's count where it gave one, else what was asked for."""
        if self.usage is not None and self.usage.prompt_tokens is not None:
            return self.usage.prompt_tokens
        return self.prompt_asked

    def event_ns(self) -> Int64s:
        """Monotonic time of each token event, int64[k]."""
        return np.cumsum(self.gap_ns) + (self.t_sent_ns or 0)


Line = Header | Level | Record | Sample


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise NotImplementedError(f"a record cannot hold a {type(value).__name__}")


def _from_json(_kind: type, value: Any) -> Any:
    return np.asarray(value, np.int64)


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_to_json)


class RecordWriter:
    """Appends lines to a file so that each is safe the moment :meth:`write` returns.

    A new file begins with ``header``; an existing one is continued (a new gzip member and a new header). ``path``
    ending in ``.gz`` is compressed.

    Raises:
        EndpointError: the file cannot be opened or written (disk full, no permission); what was written stays
            readable.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.num_requests = 0
        self._squeeze = zlib.compressobj(1, zlib.DEFLATED, 31) if path.suffix == ".gz" else None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise EndpointError(f"cannot write {path}: {error.strerror}; choose another --out") from None
        self.write(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, line: Line) -> None:
        """Append one line."""
        self.write_encoded(_ENCODER.encode(line))
        self.num_requests += isinstance(line, Record)

    def write_encoded(self, line: bytes) -> None:
        """Append one line that :func:`encode` made, e.g. in another process."""
        data = line + b"\n"
        if self._squeeze is not None:
            data = self._squeeze.compress(data) + self._squeeze.flush(zlib.Z_SYNC_FLUSH)
        self._append(data)

    def close(self) -> None:
        """End the file; closing twice is fine."""
        if self._fd < 0:
            return
        try:
            if self._squeeze is not None:
                self._append(self._squeeze.flush(zlib.Z_FINISH))
        finally:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _append(self, data: bytes) -> None:
        if self._fd < 0:
            raise EndpointError(f"{self.path} is closed")
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            os.close(self._fd)
            self._fd = -1
            raise EndpointError(
                f"cannot write {self.path}: {error.strerror}; the {self.num_requests} requests before it are kept "
                "and readable"
            ) from None


def encode(line: Line) -> bytes:
    """One line as JSON, without the line end."""
    return _ENCODER.encode(line)


def decode(text: bytes) -> Line:
    """A line that :func:`encode` made.

    Raises:
        msgspec.DecodeError: it is not one.
    """
    return _decoder().decode(text)


_DECODERS: list[Any] = []


def _decoder() -> msgspec.json.Decoder[Line]:
    if not _DECODERS:
        _DECODERS.append(msgspec.json.Decoder(Line, dec_hook=_from_json))
    decoder: msgspec.json.Decoder[Line] = _DECODERS[0]
    return decoder


@dataclass(frozen=True)
class Recording:
    """A record file as objects. ``torn`` is True where it ends in mid-line: the client was killed, or still writes."""

    path: str
    header: Header
    levels: Mapping[str, Level]
    records: tuple[Record, ...]
    samples: tuple[Sample, ...]
    torn: bool = False

    def of_level(self, label: str, *, warmup: bool = False) -> tuple[Record, ...]:
        """The records of one level, those of the warm-up left out unless asked for."""
        return tuple(r for r in self.records if r.level == label and (warmup or not r.warmup))

    def samples_between(self, begin_ns: int, end_ns: int) -> tuple[Sample, ...]:
        """The samples of a window."""
        return tuple(s for s in self.samples if begin_ns <= s.t_ns <= end_ns)


def _chunks(path: Path) -> Iterator[bytes]:
    """The plain bytes of a file, member after member, up to where it is cut or damaged."""
    with path.open("rb") as file:
        raw = file.read(1 << 20)
        if not raw.startswith(b"\x1f\x8b"):
            while raw:
                yield raw
                raw = file.read(1 << 20)
            return
        stretch = zlib.decompressobj(31)
        while raw:
            try:
                yield stretch.decompress(raw)
            except zlib.error:
                return
            if stretch.eof:
                raw = stretch.unused_data or file.read(1 << 20)
                stretch = zlib.decompressobj(31)
            else:
                raw = file.read(1 << 20)


def read_recording(path: Path) -> Recording:
    """Read a record file, whole or torn.

    Raises:
        WorkloadError: no such file, not a record file, or of a newer schema version; or a line in the middle that
            is no record, with its number.
    """
    header: Header | None = None
    levels: dict[str, Level] = {}
    records: list[Record] = []
    samples: list[Sample] = []
    number, rest = 0, b""
    try:
        for chunk in _chunks(path):
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for text in lines:
                number += 1
                line = _line(path, number, text)
                if isinstance(line, Header):
                    header = header or line
                elif header is None:
                    raise WorkloadError(f"{path}: line 1 is no {SCHEMA} header; is it a file of gambrel measure?")
                elif isinstance(line, Record):
                    records.append(line)
                elif isinstance(line, Level):
                    levels[line.label] = line
                else:
                    samples.append(line)
    except OSError as error:
        raise WorkloadError(f"cannot read {path}: {error.strerror}") from None
    if header is None:
        raise WorkloadError(f"{path}: no {SCHEMA} header in it; is it a file of gambrel measure?")
    return Recording(str(path), header, levels, tuple(records), tuple(samples), torn=bool(rest))


def _line(path: Path, number: int, text: bytes) -> Line:
    try:
        line = decode(text)
    except msgspec.DecodeError as error:
        raise WorkloadError(f"{path}: line {number} is no {SCHEMA} line: {error}") from None
    if isinstance(line, Header) and (line.schema != SCHEMA or line.version > SCHEMA_VERSION):
        raise WorkloadError(
            f"{path}: schema {line.schema} version {line.version}; this gambrel reads {SCHEMA} up to version "
            f"{SCHEMA_VERSION}"
        )
    return line


def to_run(
    records: Sequence[Record],
    *,
    start: str = "intended",
    first: str = "token",
    itl: str = "gap",
    samples: Iterable[Sample] = (),
    basis: str = "",
    origin: str = "measured",
    meta: Mapping[str, str] | None = None,
) -> Run:
    """The common table of what happened, in order of arrival, seconds since the first.

    ``start``: a request arrives when it was ``intended`` (latency holds the client's queue, as an open loop must) or
    ``sent`` (what most tools report). ``first``: the first ``token`` of any channel, ``content`` or ``byte``.
    ``itl``: one sample per ``gap`` between events, or ``token`` for one per token (an event of k tokens gives k
    samples of a k-th of its gap). Failed requests have NaN times; only tokens of the good ones count in ``itl``.
    What a client cannot see (time scheduled, steps, causes) is NaN or 0.

    Raises:
        WorkloadError: no records, or an unknown definition.
    """
    if not records:
        raise WorkloadError("no requests were recorded")
    for word, known in ((start, ("intended", "sent")), (first, ("token", "content", "byte")), (itl, ("gap", "token"))):
        if word not in known:
            raise WorkloadError(f"unknown definition {word!r}; known: {', '.join(known)}")
    begins = np.array([_ns(r.t_sent_ns if start == "sent" else r.t_intended_ns) for r in records])
    begins = np.where(np.isnan(begins), [float(r.t_intended_ns) for r in records], begins)
    order = np.argsort(begins, kind="stable")
    ordered = [records[i] for i in order]
    zero = int(begins[order[0]])
    names = {"token": "t_first_token_ns", "content": "t_first_content_ns", "byte": "t_first_byte_ns"}
    n = len(ordered)
    nothing = np.full(n, np.nan)
    readings = [s for s in samples if "running" in s.values]
    return Run(
        arrival_s=(begins[order] - zero) / 1e9,
        scheduled_s=nothing,
        first_token_s=np.array([_ns(getattr(r, names[first]), zero) if r.ok else np.nan for r in ordered]),
        last_token_s=np.array([_ns(r.t_last_token_ns, zero) if r.ok else np.nan for r in ordered]),
        prompt_tokens=np.array([r.prompt_tokens or 0 for r in ordered], np.int64),
        output_tokens=np.array([r.output_tokens for r in ordered], np.int64),
        preemptions=np.zeros(n, np.int64),
        replica=np.zeros(n, np.int64),
        itl=_gaps([r for r in ordered if r.ok], per_token=itl == "token"),
        batch_mean=float(np.mean([s.values["running"] for s in readings])) if readings else float("nan"),
        batch_max=int(max((s.values["running"] for s in readings), default=0)),
        kv_usage_mean=_mean(readings, "kv_usage"),
        kv_usage_max=max((s.values["kv_usage"] for s in readings if "kv_usage" in s.values), default=float("nan")),
        series=_series(readings, zero) if readings else None,
        origin=origin,
        basis=basis or f"start {start}, first {first}, itl per {itl}",
        meta=meta or {},
    )


def _ns(value: int | None, zero: int = 0) -> float:
    """Nanoseconds: as they are (``zero`` 0), or as seconds since ``zero``."""
    if value is None:
        return float("nan")
    return (value - zero) / 1e9 if zero else float(value)


def _mean(readings: Sequence[Sample], name: str) -> float:
    found = [s.values[name] for s in readings if name in s.values]
    return float(np.mean(found)) if found else float("nan")


def _series(readings: Sequence[Sample], zero: int) -> Series:
    def column(name: str) -> Floats:
        return np.array([s.values.get(name, np.nan) for s in readings])

    times = np.array([(s.t_ns - zero) / 1e9 for s in readings])
    return Series(times, column("running"), column("waiting"), column("kv_usage"))


def _gaps(records: Sequence[Record], *, per_token: bool) -> Histogram:
    """Gaps between token events of good answers, in seconds."""
    gaps = [r.gap_ns[1:] / 1e9 for r in records]
    if not per_token:
        return Histogram.of(np.concatenate([*gaps, np.empty(0)]))
    counts: list[Ints] = [np.maximum(r.tokens[1:], 1) for r in records]
    flat = np.concatenate([*gaps, np.empty(0)])
    weights = np.concatenate([*counts, np.empty(0, np.int64)])
    return Histogram.of(flat / weights, weights)
