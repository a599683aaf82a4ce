"""What a cap on the context does to traffic: prompts that do not fit are refused, answers are cut where it ends.

Engines refuse a prompt that leaves no room for one token below ``max_model_len``, and stop an answer that reaches it.
Smaller caps need less memory in reserve; whom they turn away is said, never dropped in silence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import WorkloadError

if TYPE_CHECKING:
    from gambrel.core.workload import Workload

__all__ = ["cap_context"]


def cap_context(workload: Workload, max_model_len: int) -> Workload:
    """The traffic that an engine with this cap serves; its warnings say how many requests were refused and cut.

    Raises:
        WorkloadError: a cap that no request fits, or a closed loop, whose users would only try again.
    """
    total = workload.prompt_tokens + workload.output_tokens
    if int(total.max()) <= max_model_len:
        return workload
    kept = workload.prompt_tokens < max_model_len
    if workload.closed_loop:
        raise WorkloadError(f"{workload.name}: requests of {int(total.max())} tokens do not fit {max_model_len}")
    if not kept.any():
        raise WorkloadError(
            f"{workload.name}: every prompt has {max_model_len} tokens or more; the shortest has "
            f"{int(workload.prompt_tokens.min())}"
        )
    served = workload.take(np.flatnonzero(kept))
    room = max_model_len - served.prompt_tokens
    cut = served.output_tokens > room
    words = [
        f"max_model_len {max_model_len} {what} {count:,} of {len(workload):,} requests ({count / len(workload):.2%})"
        for what, count in (("refuses", int((~kept).sum())), ("cuts the answers of", int(cut.sum())))
        if count
    ]
    return replace(
        served,
        output_tokens=np.minimum(served.output_tokens, room),
        service_s=None if served.service_s is None else np.where(cut, np.nan, served.service_s),
        warnings=(*served.warnings, *words),
    )
