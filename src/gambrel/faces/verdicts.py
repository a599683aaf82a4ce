"""How objectives came out, in one form for every document that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gambrel.core.slo import Verdict

__all__ = ["slo_document"]


def slo_document(verdicts: Iterable[Verdict]) -> dict[str, dict[str, Any]]:
    """How each objective came out, by name: seconds against a limit, or a share of requests against a floor."""
    return {
        v.objective.name: (
            {"floor": v.objective.limit, "reached": v.reached}
            if v.objective.is_floor
            else {"limit_s": v.objective.limit, "reached_s": v.reached}
        )
        | {"met": v.met, "margin": v.margin}
        for v in verdicts
    }
