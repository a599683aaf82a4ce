"""Named definitions of the latency metrics, computed from raw records, and how sure their means are.

"TPOT" and "ITL" are one word each for three different figures; on a server that streams four tokens an event, tools
report an ITL of 40, 10 or 0 ms for the same answer. So a figure here has a full name, and every tool's own is among
them. A definition maps one good record to its samples in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gambrel.core.errors import EndpointError
from gambrel.core.run import Distribution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gambrel.core.step import Floats
    from gambrel.measure.record import Record

__all__ = ["DEFAULTS", "DEFINITIONS", "Definition", "Interval", "batch_means", "metric", "samples", "summary"]

NAN: Final = float("nan")


@dataclass(frozen=True)
class Definition:
    """A metric by its full name: one sentence, and the samples of one record in seconds."""

    name: str
    says: str
    of: Callable[[Record], Floats]


def _between(start: str, end: str) -> Callable[[Record], Floats]:
    def samples_of(record: Record) -> Floats:
        a, b = getattr(record, start), getattr(record, end)
        return np.array([NAN if a is None or b is None else (b - a) / 1e9])

    return samples_of


def _tpot(record: Record) -> Floats:
    """Decode time over the tokens that came in it: those of the first event came before."""
    later = record.output_tokens - (int(record.tokens[0]) if len(record.tokens) else 0)
    return np.array([float(record.gap_ns[1:].sum()) / 1e9 / later if later > 0 else NAN])


def _tpot_vllm(record: Record) -> Floats:
    n = record.output_tokens
    if n < 2 or record.t_last_token_ns is None or record.t_first_byte_ns is None:
        return np.array([NAN])
    return np.array([(record.t_last_token_ns - record.t_first_byte_ns) / 1e9 / (n - 1)])


def _per_request(start: str, end: str, *, less: int) -> Callable[[Record], Floats]:
    between = _between(start, end)

    def samples_of(record: Record) -> Floats:
        n = record.output_tokens - less
        return between(record) / n if n > 0 else np.array([NAN])

    return samples_of


def _gap(record: Record) -> Floats:
    return record.gap_ns[1:] / 1e9


def _per_token(record: Record) -> Floats:
    """An event of k tokens after a gap g: k samples of g / k."""
    counts = np.maximum(record.tokens[1:], 1)
    return np.repeat(record.gap_ns[1:] / 1e9 / counts, counts)


def _zero_filled(record: Record) -> Floats:
    counts = np.maximum(record.tokens[1:], 1)
    found = np.zeros(int(counts.sum()))
    found[np.cumsum(counts) - counts] = record.gap_ns[1:] / 1e9
    return found


DEFINITIONS: Final = {
    d.name: d
    for d in (
        Definition(
            "ttft.token", "sent to the first event with content, reasoning or a tool call",
            _between("t_sent_ns", "t_first_token_ns"),
        ),
        Definition(
            "ttft.intended", "wanted by the schedule to the first token: the client's queue counts",
            _between("t_intended_ns", "t_first_token_ns"),
        ),
        Definition(
            "ttft.content", "sent to the first event with visible content: reasoning is waited through",
            _between("t_sent_ns", "t_first_content_ns"),
        ),
        Definition(
            "ttft.vllm", "sent to the first event of any kind, a role without content included, as vLLM's chat "
            "benchmark has it", _between("t_sent_ns", "t_first_byte_ns"),
        ),
        Definition("tpot.token", "(last - first token event) / (tokens - tokens of the first event)", _tpot),
        Definition("tpot.vllm", "(E2E - TTFT) / (tokens - 1), with ttft.vllm", _tpot_vllm),
        Definition(
            "tpot.guidellm", "E2E / tokens, as guidellm's time_per_output_token_ms has it: prefill counts",
            _per_request("t_sent_ns", "t_last_token_ns", less=0),
        ),
        Definition("itl.gap", "gap between two token events, however many tokens they carry", _gap),
        Definition("itl.per_token", "a gap before k tokens gives k samples of its k-th part", _per_token),
        Definition(
            "itl.guidellm", "(last - first token event) / (tokens - 1), one figure a request",
            _per_request("t_first_token_ns", "t_last_token_ns", less=1),
        ),
        Definition(
            "itl.zero_filled", "a gap before k tokens gives the gap and k - 1 zeros: here to show why not to",
            _zero_filled,
        ),
        Definition("e2e.token", "sent to the last token event", _between("t_sent_ns", "t_last_token_ns")),
        Definition(
            "e2e.intended", "wanted by the schedule to the last token event: the client's queue counts",
            _between("t_intended_ns", "t_last_token_ns"),
        ),
        Definition("e2e.end", "sent to the end of the response body", _between("t_sent_ns", "t_end_ns")),
        Definition(
            "queue.client", "wanted by the schedule to handed to the kernel: the client's own delay, its connection "
            "included", _between("t_intended_ns", "t_sent_ns"),
        ),
    )
}  # fmt: skip

DEFAULTS: Final = {
    "ttft": "ttft.token",
    "tpot": "tpot.token",
    "itl": "itl.gap",
    "e2e": "e2e.token",
    "queue": "queue.client",
}
"""What the plain words mean: in an open loop ``ttft`` and ``e2e`` are the ``.intended`` ones."""


def metric(name: str) -> Definition:
    """A definition by its full name or plain word.

    Raises:
        EndpointError: there is none; all are named.
    """
    found = DEFINITIONS.get(DEFAULTS.get(name, name))
    if found is None:
        raise EndpointError(f"unknown metric {name!r}; known: {', '.join(DEFINITIONS)}")
    return found


def samples(records: Iterable[Record], name: str) -> Floats:
    """All finite samples of the good records under a definition, in order of the records."""
    of = metric(name).of
    found = [of(r) for r in records if r.ok]
    values: Floats = np.concatenate([*found, np.empty(0)])
    return values[np.isfinite(values)]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval, and why it should not be trusted where that is so (else empty)."""

    mean: float
    low: float
    high: float
    count: int
    too_short: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For a document."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "count": self.count} | (
            {"too_short": self.too_short} if self.too_short else {}
        )


NUM_BATCHES: Final = 10
STUDENT_T: Final = 2.262  # 97.5 % quantile at NUM_BATCHES - 1 = 9 degrees of freedom
WIDE: Final = 0.1  # an interval wider than a tenth of the mean on either side says: measure longer


def batch_means(values: Floats) -> Interval:
    """The mean of a series in order of time with its interval from ten batches.

    Latencies of neighbours depend on each other (they share batches on the server), so the spread of single values
    over sqrt(n) is far too small; means over long batches are nearly independent. [A. M. Law, Simulation Modeling
    and Analysis, on the method of batch means; Student's t at 9 degrees of freedom.] Says "too short" with fewer
    than fifty values, or where neighbouring batches still go together, or the interval is wider than 10 %.
    """
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return Interval(NAN, NAN, NAN, 0, "nothing was measured")
    mean = float(values.mean())
    if n < 2 * NUM_BATCHES:
        return Interval(mean, NAN, NAN, n, f"{n} samples give no interval; at least {5 * NUM_BATCHES} do")
    means = np.array([float(b.mean()) for b in np.array_split(values, NUM_BATCHES)])
    spread = float(means.std(ddof=1))
    half = STUDENT_T * spread / math.sqrt(NUM_BATCHES)
    why = ""
    if n < 5 * NUM_BATCHES:
        why = f"{n} samples, under {5 * NUM_BATCHES}"
    elif mean > 0 and half / mean > WIDE:
        why = f"the mean is known only to +-{100 * half / mean:.0f} %"
    elif spread > 0 and mean > 0 and half / mean > 0.01:
        # von Neumann's ratio: 2 for independent batches; below 0.8 a trend (p < 0.02 at ten).
        ratio = float(np.square(np.diff(means)).sum() / np.square(means - means.mean()).sum())
        if ratio < 0.8:
            why = "the level was still drifting"
    return Interval(mean, mean - half, mean + half, n, why)


def summary(records: Sequence[Record], names: Mapping[str, str]) -> dict[str, tuple[Distribution, Interval]]:
    """Per plain word: the distribution under the definition it is given, and the interval of its mean."""
    ordered = sorted((r for r in records if r.ok), key=lambda r: r.t_end_ns or 0)
    found = {}
    for word, name in names.items():
        values = samples(ordered, name)
        found[word] = (Distribution.of(values), batch_means(values))
    return found
