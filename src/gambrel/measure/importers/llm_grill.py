"""llm-grill JSON Lines: one row a request, with the server's batch and KV usage at the time beside it."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING

from gambrel.measure.importers.benchmark import Benchmark, Fields, Row, imported_run

if TYPE_CHECKING:
    from gambrel.measure.importers.benchmark import Document

__all__ = ["read_llm_grill"]


def read_llm_grill(document: Document) -> tuple[Benchmark, ...]:
    """One benchmark per server, model and level of concurrent users, in the order of the file."""
    levels: dict[tuple[str, str, int], list[Fields]] = {}
    for i, row in enumerate(document.rows, 1):
        fields = Fields(row, f"{document.path}: line {i}")
        key = (fields.text("target_server"), fields.text("target_model"), fields.count("concurrent_users_level"))
        levels.setdefault(key, []).append(fields)
    return tuple(_level(document, key, rows) for key, rows in levels.items())


def _level(document: Document, key: tuple[str, str, int], found: list[Fields]) -> Benchmark:
    server, model, users = key
    rows = [_row(fields) for fields in found]
    run = imported_run(rows, source=str(document.path), basis="llm-grill: TTFT, TPOT and E2E per request; no gaps kept")
    setting: dict[str, str | float] = {"model": model, "engine": server}
    if users:
        setting["concurrency"] = float(users)
    for name in ("requests_running", "requests_waiting", "kv_cache_usage"):
        values = [v for f in found if (v := f.maybe(name)) is not None]
        if values:
            setting[name] = math.fsum(values) / len(values)
    label = f"{users} users" if users else ""
    failed = sum(not r.ok for r in rows)
    return Benchmark(
        "llm-grill", str(document.path), label, run, setting=setting, num_requests=len(rows), num_failed=failed
    )


def _row(fields: Fields) -> Row:
    stamp = fields.text("timestamp_start")
    try:
        start = datetime.fromisoformat(stamp).timestamp()
    except (ValueError, OverflowError):
        raise fields.refuse("timestamp_start", stamp or None, "a date and time works") from None
    tokens = fields.count("completion_tokens")
    ttft, latency = fields.maybe("ttft_s"), fields.maybe("e2e_latency_s")
    return Row(
        arrival_s=start,
        first_s=None if ttft is None else start + ttft,
        last_s=None if latency is None else start + latency,
        prompt_tokens=fields.count("prompt_tokens"),
        output_tokens=tokens,
        ok=fields.data.get("success", True) is True and tokens > 0 and ttft is not None and latency is not None,
    )
