"""A measured level as figures: latency blocks under named definitions, throughput, errors, fidelity, doubts.

Computed from records alone, so that the file of a run gives the same figures later as the run did. Repeats of one
level become their median, each statistic by itself.
"""

from __future__ import annotations

import math
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gambrel.measure.fidelity import delivered_concurrency, tokens_in_window
from gambrel.measure.metrics import DEFAULTS, DEFINITIONS, metric, summary
from gambrel.measure.scrape import running_during

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gambrel.core.run import Distribution
    from gambrel.measure.metrics import Interval
    from gambrel.measure.record import Level, Record, Recording, Sample

__all__ = ["definitions_for", "level_figures", "median_of_repeats", "recording_figures"]

FEW: Final = 100  # a p99 of fewer samples rests on one of them


def definitions_for(mode: str, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the plain words mean for a mode: an open load counts from the moment the schedule wanted the request."""
    chosen = dict(DEFAULTS)
    if mode != "closed":
        chosen |= {"ttft": "ttft.intended", "e2e": "e2e.intended"}
    for word, name in (changes or {}).items():
        metric(name)
        chosen[word] = name
    return chosen


def _block(name: str, d: Distribution, interval: Interval) -> dict[str, Any]:
    return {
        "mean": d.mean, "p50": d.p50, "p90": d.p90, "p95": d.p95, "p99": d.p99, "max": d.max, "count": d.count,
        "definition": name, "interval": interval.to_dict(),
    }  # fmt: skip


def level_figures(
    level: Level,
    records: Sequence[Record],
    samples: Sequence[Sample] = (),
    *,
    definitions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One level as a document; seconds, tokens.

    ``records`` are all of the level, warm-up too: throughput counts every token that arrived within the window,
    latency only the measured requests that ended well, errors all measured ones.
    """
    begin, end = level.begin_ns or 0, level.end_ns or 0
    window_s = max(end - begin, 1) / 1e9
    measured = [r for r in records if not r.warmup]
    good = [r for r in measured if r.ok]
    names = definitions_for(level.mode, definitions)
    blocks = summary(measured, names)
    errors = Counter(r.error for r in measured if r.error)
    tokens = tokens_in_window(records, begin, end)
    ended = sum(1 for r in records if r.ok and r.t_end_ns is not None and begin <= r.t_end_ns < end)
    counted = [float(r.usage.prompt_tokens) for r in good if r.usage is not None and r.usage.prompt_tokens is not None]
    server = running_during(good, samples)
    seen = server[~np.isnan(server)]
    closed = level.mode == "closed"
    found: dict[str, Any] = {
        "label": level.label,
        "mode": level.mode,
        "repeat": level.repeat,
        "requested_concurrency": level.requested if closed else None,
        "requested_rate_rps": None if closed else level.requested or None,
        "delivered_concurrency": delivered_concurrency(records, begin, end),
        "delivered_rate_rps": (ended if closed else len(measured)) / window_s,
        "window_s": window_s,
        "num_requests": len(measured),
        "num_ok": len(good),
        "num_errors": len(measured) - len(good),
        "errors": dict(errors),
        "error_example": next((r.detail for r in measured if r.error), ""),
        "prompt_tokens": {
            "asked": float(np.mean([float(r.prompt_asked) for r in good if r.prompt_asked is not None] or [math.nan])),
            "counted": float(np.mean(counted)) if counted else None,
        },
        "output_tokens": float(np.mean([r.output_tokens for r in good])) if good else None,
        "output_tokens_per_s": tokens / window_s,
        "requests_per_s": ended / window_s,
        "server_batch_mean": float(seen.mean()) if len(seen) else None,
        "token_basis": dict(Counter(r.token_basis for r in good)),
        **{f"{word}_s": _block(names[word], d, i) for word, (d, i) in blocks.items()},
        "fidelity": level.fidelity,
    }
    found["warnings"] = _warnings(level, found, good)
    return found


def _warnings(level: Level, f: Mapping[str, Any], good: Sequence[Record]) -> list[str]:
    """What a reader must know before believing the level."""
    warnings = [level.note] if level.note else []
    if f["num_errors"]:
        classes = ", ".join(f"{n} {name}" for name, n in f["errors"].items())
        warnings.append(f"{f['num_errors']} of {f['num_requests']} requests failed ({classes}): {f['error_example']}")
    for word in ("ttft", "tpot", "e2e"):
        why = f[f"{word}_s"]["interval"].get("too_short")
        if why and good:
            warnings.append(f"too short for a sure {word}: {why}")
            break
    if 0 < len(good) < FEW:
        warnings.append(f"p99 of {len(good)} requests is close to their largest")
    if f["token_basis"].get("events"):
        warnings.append("the server gave no usage: tokens are counted as events, one each")
    asked, counted = f["prompt_tokens"]["asked"], f["prompt_tokens"]["counted"]
    if counted is not None and not math.isnan(asked) and abs(counted - asked) > 0.005 * asked:
        warnings.append(f"prompts were {counted:.1f} tokens on average by the server's count, {asked:.1f} asked for")
    fidelity = f["fidelity"]
    if fidelity.get("client_bound"):
        warnings.append("client-bound, this measured the client: " + "; ".join(fidelity["reasons"]))
    return warnings


def median_of_repeats(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Repeats of one level as one document: the median of every number; counts and errors added; doubts of all."""
    if len(figures) == 1:
        return {**figures[0], "repeats": 1}
    first = dict(figures[0])
    found: dict[str, Any] = {k: _median([f.get(k) for f in figures]) for k in first}
    for k in ("num_requests", "num_ok", "num_errors"):
        found[k] = sum(f[k] for f in figures)
    found["errors"] = dict(sum((Counter(f["errors"]) for f in figures), Counter()))
    found["warnings"] = list(dict.fromkeys(w for f in figures for w in f["warnings"]))
    bound = [f["fidelity"] for f in figures if f["fidelity"].get("client_bound")]
    if bound:
        found["fidelity"] = {**found["fidelity"], "client_bound": True, "reasons": bound[0]["reasons"]}
    for word in DEFAULTS:
        block = found.get(f"{word}_s")
        if isinstance(block, dict):
            means = [f[f"{word}_s"]["mean"] for f in figures]
            block["interval"]["repeat_means"] = means
    found["repeats"] = len(figures)
    found["label"] = base_label(first["label"])
    return found


def base_label(label: str) -> str:
    """A level's label without the number of its repeat."""
    return label.rsplit(" #", 1)[0]


def _median(values: Sequence[Any]) -> Any:
    """The median of numbers, key by key of mappings; else the first."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        finite = [v for v in values if not math.isnan(v)]
        return median(finite) if finite else math.nan
    if all(isinstance(v, dict) for v in values):
        return {k: _median([v.get(k) for v in values]) for k in values[0]}
    return values[0]


def recording_figures(recording: Recording, *, definitions: Mapping[str, str] | None = None) -> dict[str, Any]:
    """All levels of a record file as the document of ``gambrel measure``: the same figures as when it was made.

    A level that never ended (its client was killed) gets the window its own measured requests span.
    """
    by_key: dict[str, list[dict[str, Any]]] = {}
    for level in recording.levels.values():
        records = recording.of_level(level.label, warmup=True)
        whole = level if level.end_ns is not None else _recovered(level, records)
        if whole is None:
            continue
        window = recording.samples_between(whole.begin_ns or 0, whole.end_ns or 0)
        key = base_label(whole.label)
        by_key.setdefault(key, []).append(level_figures(whole, records, window, definitions=definitions))
    used = definitions or {}
    return {
        "source": recording.header.source,
        "model": recording.header.model,
        "settings": recording.header.settings,
        "torn": recording.torn,
        "levels": [median_of_repeats(f) for f in by_key.values()],
        "definitions": {n: d.says for n, d in DEFINITIONS.items() if n in {*DEFAULTS.values(), *used.values(),
                                                                        "ttft.intended", "e2e.intended"}},
    }  # fmt: skip


def _recovered(level: Level, records: Sequence[Record]) -> Level | None:
    from msgspec.structs import replace

    measured = [r for r in records if not r.warmup and r.t_end_ns is not None]
    if not measured:
        return None
    begin = level.begin_ns or min(r.t_intended_ns for r in measured)
    end = max(r.t_end_ns or 0 for r in measured)
    return replace(level, begin_ns=begin, end_ns=end, note="the run broke off in this level; its figures are partial")
