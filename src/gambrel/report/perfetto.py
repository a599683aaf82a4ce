"""A window of a run as a trace that Perfetto and chrome://tracing show: where the milliseconds went, to scroll through.

The form is Google's *Trace Event Format* (JSON object form): a process per replica with its steps as complete events
(``X``) and its state as counters (``C``); a request is a nestable asynchronous slice (``b``, ``e``), its phases inside.
Times are microseconds, as the format has them, to the nanosecond. Whatever crosses the window's edge is cut there.
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gambrel.core.errors import ReportError
from gambrel.core.step import CAUSES
from gambrel.core.timeline import PHASES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gambrel.core.timeline import Timeline

__all__ = ["chrome_trace", "write_chrome_trace"]

MAX_EVENTS = 1_000_000  # about 150 MB; viewers take minutes for more

_STEPS = 1  # thread of the steps


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """The whole document.

    Raises:
        ReportError: more than a million events; the message says how long a window fits.
    """
    steps, phases = len(timeline.steps), len(timeline.phases)
    most = 4 * steps + 4 * phases + 2 * timeline.replicas
    if most > MAX_EVENTS:
        fits = (timeline.end_s - timeline.begin_s) * MAX_EVENTS / most
        raise ReportError(
            f"the window of {timeline.end_s - timeline.begin_s:g} s has {steps:,} steps and {phases:,} phases of "
            f"requests, up to {most:,} events; viewers bear {MAX_EVENTS:,}: take {fits:.2g} s or less"
        )
    return {
        "displayTimeUnit": "ms",
        "otherData": {"begin_s": timeline.begin_s, "end_s": timeline.end_s, "num_kv_blocks": timeline.num_kv_blocks},
        "traceEvents": [*_names(timeline), *_steps(timeline), *_requests(timeline)],
    }


def write_chrome_trace(path: Path, timeline: Timeline) -> int:
    """Write the document, gzipped where the name ends so (Perfetto opens that too); how many events it has.

    Raises:
        ReportError: too many events, or a file that cannot be written.
    """
    document = chrome_trace(timeline)
    data = msgspec.json.encode(document)
    try:
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written ({error.strerror or error})") from None
    return len(document["traceEvents"])


def _us(seconds: float) -> float:
    """Microseconds, to the nanosecond."""
    return round(seconds * 1e6, 3)


def _names(timeline: Timeline) -> Iterator[dict[str, Any]]:
    for replica in np.unique(np.concatenate([timeline.steps.replica, timeline.phases.replica])).tolist():
        process = {"ph": "M", "pid": replica + 1}  # a process 0 is the idle one
        yield {**process, "tid": 0, "name": "process_name", "args": {"name": f"replica {replica}"}}
        yield {**process, "tid": _STEPS, "name": "thread_name", "args": {"name": "steps"}}


def _steps(timeline: Timeline) -> Iterator[dict[str, Any]]:
    """One slice a step, and the state that holds until the next; all zero where the replica falls idle."""
    s = timeline.steps
    columns = (s.replica, s.start_s, s.seconds, s.decodes, s.prompts, s.tokens, s.prefill_tokens, s.cause, s.running,
               s.waiting, s.kv_blocks)  # fmt: skip
    rows = list(zip(*(c.tolist() for c in columns), strict=True))
    for k, (replica, start, seconds, decodes, prompts, tokens, prefill, cause, running, waiting, blocks) in enumerate(
        rows
    ):
        begin, end = _us(max(start, timeline.begin_s)), _us(min(start + seconds, timeline.end_s))
        name = " + ".join(([f"prefill {prefill}"] if prompts else []) + ([f"decode {decodes}"] if decodes else []))
        yield {
            "ph": "X", "pid": replica + 1, "tid": _STEPS, "cat": "step", "name": name, "ts": begin,
            "dur": max(round(end - begin, 3), 0.0),
            "args": {
                "batch": decodes + prompts, "tokens": tokens, "prefill_tokens": prefill, "decodes": decodes,
                "bound_by": CAUSES[cause], "seconds": seconds,
            },
        }  # fmt: skip
        yield from _counters(replica, begin, running, waiting, blocks)
        last = k + 1 == len(rows) or rows[k + 1][0] != replica
        if (last and end < _us(timeline.end_s)) or (not last and _us(rows[k + 1][1]) > end):
            yield from _counters(replica, end, 0, 0, 0)


def _counters(replica: int, ts: float, running: int, waiting: int, blocks: int) -> Iterator[dict[str, Any]]:
    for name, args in (("requests", {"running": running, "waiting": waiting}), ("KV blocks", {"used": blocks})):
        yield {"ph": "C", "cat": "state", "pid": replica + 1, "tid": 0, "name": name, "ts": ts, "args": args}


def _requests(timeline: Timeline) -> Iterator[dict[str, Any]]:
    """A slice a request with its phases inside, cut at the window."""
    p = timeline.phases
    rows = list(zip(*(c.tolist() for c in (p.request, p.replica, p.phase, p.start_s, p.end_s, p.gave_up)), strict=True))
    k = 0
    while k < len(rows):
        request, replica = rows[k][:2]
        last = k
        while last + 1 < len(rows) and rows[last + 1][0] == request:
            last += 1
        begin, end = _us(max(rows[k][3], timeline.begin_s)), _us(min(rows[last][4], timeline.end_s))
        slot = {"cat": "request", "id": hex(request), "pid": replica + 1, "tid": 0}
        args = {"row": request + 1, "gave_up": bool(rows[last][5])}
        yield {"ph": "b", **slot, "name": f"request {request + 1}", "ts": begin, "args": args}
        for _, _, phase, start, stop, _ in rows[k : last + 1]:
            yield {"ph": "b", **slot, "name": PHASES[phase], "ts": _us(max(start, timeline.begin_s))}
            yield {"ph": "e", **slot, "name": PHASES[phase], "ts": _us(min(stop, timeline.end_s))}
        yield {"ph": "e", **slot, "name": f"request {request + 1}", "ts": end}
        k = last + 1
