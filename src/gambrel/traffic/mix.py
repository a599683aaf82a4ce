"""Several kinds of traffic on one fleet: their logs laid over each other, every request knowing whose it is.

A fleet that serves chat and code together must keep the promises made to both; apart, each would need a fleet of its
own. Kinds share no prefix cache and no session.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import WorkloadError
from gambrel.core.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gambrel.core.workload import Ints

__all__ = ["mixed"]

SPANS_APART = 1.1


def mixed(logs: Mapping[str, Workload]) -> Workload:
    """One workload of several, by kind; every log starts at 0.

    Prefix hashes are dropped where not every log has them in blocks of one size, and what only some logs know
    (sessions, deadlines, service times) is dropped too; the warnings say so, and where spans differ by a tenth.

    Raises:
        WorkloadError: nothing given, users of a closed loop, or turns that wait for each other.
    """
    if not logs:
        raise WorkloadError("no kind of traffic given")
    for name, log in logs.items():
        if log.closed_loop or log.after is not None:
            raise WorkloadError(f"{name}: kinds of traffic are mixed by their arrival times, which it does not have")
    parts = list(logs.values())
    arrival = np.concatenate([log.arrival_s - log.arrival_s[0] for log in parts])
    order = np.argsort(arrival, kind="stable")
    warnings = [f"{name}: {w}" for name, log in logs.items() for w in log.warnings]
    spans = [log.span_s for log in parts]
    if max(spans) > SPANS_APART * min(spans):
        said = ", ".join(f"{name} {log.span_s:.0f} s" for name, log in logs.items())
        warnings.append(f"the kinds of traffic span different times ({said}): together only while the shortest lasts")
    blocks, offsets, size = shared_prefixes(parts)
    if blocks is None and any(log.prefix_blocks is not None for log in parts):
        warnings.append("prefix hashes are dropped: not every kind has them in blocks of one size")
    timeless = Workload(
        arrival_s=np.zeros(len(arrival)),  # rows are not in order yet
        prompt_tokens=np.concatenate([log.prompt_tokens for log in parts]),
        output_tokens=np.concatenate([log.output_tokens for log in parts]),
        name=" + ".join(logs),
        source=" + ".join(log.source or log.name for log in parts),
        warnings=tuple(warnings),
        kind=np.repeat(np.arange(len(parts)), [len(log) for log in parts]),
        kinds=tuple(logs),
        prefix_blocks=blocks,
        prefix_offsets=offsets,
        prefix_block_tokens=size,
        has_arrivals=all(log.has_arrivals for log in parts),
    )
    return replace(timeless.take(order), arrival_s=arrival[order])


def shared_prefixes(parts: Sequence[Workload]) -> tuple[Ints | None, Ints | None, int]:
    """The hashes of all logs, one after the other and made distinct; none where a log has none or other block sizes."""
    size = parts[0].prefix_block_tokens
    if any(p.prefix_blocks is None or p.prefix_offsets is None or p.prefix_block_tokens != size for p in parts):
        return None, None, 0
    blocks, offsets, before, used = [], [np.zeros(1, np.int64)], 0, 0
    for part in parts:
        assert part.prefix_blocks is not None  # noqa: S101 - checked above
        assert part.prefix_offsets is not None  # noqa: S101 - the same
        dense = np.unique(part.prefix_blocks, return_inverse=True)[1].astype(np.int64)
        blocks.append(dense + used)
        offsets.append(part.prefix_offsets[1:] + before)
        before, used = before + len(dense), used + int(dense.max(initial=-1)) + 1
    return np.concatenate(blocks), np.concatenate(offsets), size
