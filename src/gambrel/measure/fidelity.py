"""How far a measured level can be trusted: did the client do what was asked, and was it the client that was slow?

A saturated client still reports fine means; what gives it away is several events in one read, a late loop, a full
core, sends behind schedule and a concurrency below the one asked for. Each has its limit here, and a run beyond any is
``client_bound``: it measured the client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gambrel.core.step import Floats
    from gambrel.measure.load import Vitals
    from gambrel.measure.record import Level, Record, Sample

__all__ = ["LIMITS", "delivered_concurrency", "fidelity"]

LIMITS: Final = {
    # share of a core; a loop queues long before 1
    "cpu_share": 0.85,
    # reads with several token events over all reads, where the server's own events would not explain it
    "merged_reads_share": 0.1,
    # loop lag p99 as a share of the median gap: beyond it events merge; never below 3 ms, as timers are whole ms
    "loop_lag_of_gap": 1.0,
    "loop_lag_floor_s": 0.003,
    # dispatch lateness p99 as a share of the median TTFT, but never below 5 ms
    "lateness_of_ttft": 0.1,
    "lateness_floor_s": 0.005,
    # delivered over requested, concurrency or rate
    "delivered_share": 0.95,
}
"""Where each figure starts to distort: fractions, and seconds for the floors."""


def delivered_concurrency(records: Sequence[Record], begin_ns: int, end_ns: int) -> float:
    """Mean requests in flight over a window, from sent to end, warm-up and fill included."""
    if end_ns <= begin_ns:
        return float("nan")
    sent = [r for r in records if r.t_sent_ns is not None]
    starts = np.array([r.t_sent_ns for r in sent], np.int64)
    ends = np.array([end_ns if r.t_end_ns is None else r.t_end_ns for r in sent], np.int64)
    inside = np.minimum(ends, end_ns) - np.maximum(starts, begin_ns)
    return float(np.maximum(inside, 0).sum()) / (end_ns - begin_ns)


def tokens_in_window(records: Sequence[Record], begin_ns: int, end_ns: int) -> int:
    """Tokens that arrived within a window, whichever request they belong to."""
    total = 0
    for r in records:
        if r.t_last_token_ns is None or r.t_last_token_ns < begin_ns or (r.t_sent_ns or 0) > end_ns:
            continue
        times = r.event_ns()
        total += int(r.tokens[(times >= begin_ns) & (times < end_ns)].sum())
    return total


def fidelity(
    level: Level, records: Sequence[Record], vitals: Sequence[Vitals], server: Sequence[Sample] = ()
) -> dict[str, Any]:
    """The fidelity block of one level, with the verdict and its reasons.

    ``records`` are all of the level, warm-up too; ``vitals`` one a client process; ``server`` what was scraped. The
    level needs ``begin_ns`` and ``end_ns``.
    """
    begin, end = level.begin_ns or 0, level.end_ns or 0
    measured = [r for r in records if not r.warmup]
    good = [r for r in measured if r.ok]
    wall_s = max(end - begin, 1) / 1e9
    late = _seconds([(r.t_dequeued_ns, r.t_intended_ns) for r in measured])
    ttft = _seconds([(r.t_first_token_ns, r.t_sent_ns) for r in good])
    gaps = np.concatenate([*(r.gap_ns[1:] / 1e9 for r in good), np.empty(0)])
    reads = sum(r.reads for r in measured)
    lags = np.concatenate([*(v.lag_s for v in vitals), np.empty(0)])
    tokens = tokens_in_window(records, begin, end)
    cpu_s = sum(v.cpu_s for v in vitals)
    vital_s = max((v.wall_s for v in vitals), default=wall_s)
    concurrency = delivered_concurrency(records, begin, end)
    rate = len(measured) / wall_s
    running = [s.values["running"] for s in server if "running" in s.values and begin <= s.t_ns <= end]
    found: dict[str, Any] = {
        "requested": level.requested or None,
        "delivered_concurrency": concurrency,
        "delivered_rate_rps": rate,
        "server_running_mean": float(np.mean(running)) if running else None,
        "dispatch_late_s": {"p50": _percentile(late, 50), "p99": _percentile(late, 99)},
        "loop_lag_s": {"p50": _percentile(lags, 50), "p99": _percentile(lags, 99)},
        "merged_reads_share": sum(r.merged_reads for r in measured) / reads if reads else 0.0,
        "cpu_share": max((v.cpu_s / v.wall_s for v in vitals), default=0.0),
        "cpu_s_per_1k_tokens": cpu_s * (wall_s / vital_s) / tokens * 1000 if tokens else None,
        "window_s": wall_s,
        "processes": len(vitals),
    }
    reasons = _reasons(level, found, _percentile(gaps, 50), _percentile(ttft, 50), failed=len(measured) - len(good))
    return found | {"client_bound": bool(reasons), "reasons": reasons, "limits": dict(LIMITS)}


def _reasons(level: Level, f: dict[str, Any], gap_s: float, ttft_s: float, *, failed: int) -> list[str]:
    """Every limit that is passed, in words."""
    reasons = []
    if f["cpu_share"] > LIMITS["cpu_share"]:
        reasons.append(f"a client process used {f['cpu_share']:.0%} of a core")
    lag, lag_limit = f["loop_lag_s"]["p99"], max(LIMITS["loop_lag_of_gap"] * _or0(gap_s), LIMITS["loop_lag_floor_s"])
    if lag > lag_limit:
        reasons.append(f"the client's loop lagged {1e3 * lag:.1f} ms (p99), limit {1e3 * lag_limit:.1f} ms")
    if f["merged_reads_share"] > LIMITS["merged_reads_share"] and lag > LIMITS["loop_lag_floor_s"]:
        reasons.append(f"{f['merged_reads_share']:.0%} of reads carried several token events")
    late = f["dispatch_late_s"]["p99"]
    late_limit = max(LIMITS["lateness_of_ttft"] * _or0(ttft_s), LIMITS["lateness_floor_s"])
    if late > late_limit:
        reasons.append(f"requests were taken up {1e3 * late:.1f} ms late (p99), limit {1e3 * late_limit:.1f} ms")
    if (
        level.mode == "closed"
        and not failed
        and f["delivered_concurrency"] < LIMITS["delivered_share"] * level.requested
    ):
        reasons.append(f"{f['delivered_concurrency']:.1f} requests in flight of {level.requested:g} asked for")
    return reasons


def _seconds(pairs: Sequence[tuple[int | None, int | None]]) -> Floats:
    return np.array([(a - b) / 1e9 for a, b in pairs if a is not None and b is not None])


def _percentile(values: Floats, q: float) -> float:
    return float(np.percentile(values, q)) if len(values) else float("nan")


def _or0(value: float) -> float:
    return 0.0 if np.isnan(value) else value
