"""What a plan's reader has to know that no simulation shows: terms that can end, formats that change answers.

One sentence each, with its source where there is one, and the word *unknown* where nothing was published that holds for
every model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gambrel.report.humanise import per_hour

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gambrel.core.deployment import Deployment
    from gambrel.core.model import Model
    from gambrel.core.workload import Workload

__all__ = ["caveats", "context_caveats"]

STUDY = "Kurtic et al., ACL 2025 (arXiv 2411.02355), on the Llama-3.1 family"
WEIGHTS = {
    "fp8": f"fp8 weights and activations: no loss found in 8-bit floating point by {STUDY}",
    "int8": f"int8 weights and activations: 1 to 3 % less accuracy when well tuned by {STUDY}",
    "int4": f"int4 weights: about the loss of 8-bit integers by {STUDY}; smaller models lose more",
}
UNKNOWN = "how much its answers lose on your task is unknown: evaluate before you deploy"
KV_FP8 = (
    "fp8 KV cache: engines warn of a small loss without a figure (SGLang's documentation), and vLLM recommends scales "
    "calibrated with a dataset; the loss on your task is unknown"
)
SPOT = (
    "spot machines can be taken away at any time (two minutes' notice on AWS, 30 seconds on Azure and Google Cloud), "
    "and how often is not modelled; ask for replicas that may be down with --spare"
)
COMMUNITY = "a marketplace's machines come without a service level: how often they fail is not modelled"
RESERVED = "a reserved price binds for its term, whatever the traffic does"
OWNED = "owned: the purchase is spread evenly over its years at all hours; interest and resale are left out"
TERMS = {"spot": SPOT, "community": COMMUNITY, "reserved": RESERVED, "owned": OWNED}


def caveats(deployment: Deployment) -> tuple[str, ...]:
    """What to know before renting a deployment, in sentences; empty where there is nothing to say."""
    return tuple(said(deployment))


def context_caveats(model: Model, workload: Workload, max_model_len: int | None = None) -> tuple[str, ...]:
    """Requests longer than the model's context, which can be stretched but seldom is; none under a cap of one's own."""
    most = model.max_context
    if most is None or max_model_len is not None:
        return ()
    total = workload.prompt_tokens + workload.output_tokens
    longer = np.flatnonzero(total > most)
    if not len(longer):
        return ()
    row = int(longer[0])
    caveat = (
        f"{len(longer):,} of {len(total):,} requests are longer than the {most:,} tokens of {model.name}'s context, "
        f"the first, request {row + 1} in order of arrival, with {int(total[row]):,}: "
        "an engine refuses them unless it is told otherwise"
    )
    return (caveat,)


def said(deployment: Deployment) -> Iterator[str]:
    """The sentences one by one."""
    price = deployment.accelerator.price_for(deployment.tp)
    if price is not None and price.kind in TERMS:
        note = f" ({price.note})" if price.note and price.kind == "owned" else ""
        yield TERMS[price.kind] + note
    if price is not None:
        machines = math.ceil(deployment.num_gpus / price.gpu_count)
        idle = machines * price.gpu_count - deployment.num_gpus
        if idle:
            whole = machines * price.gpu_count * price.usd_per_hour
            yield (
                f"the price counts accelerators, and {price.provider} rents {price.gpu_count} as one machine: "
                f"{idle} would stand idle here unless something else uses them, at {per_hour(whole)} in all"
            )
    own = deployment.model.weight_format()
    if deployment.weight_format.element_bits < own.element_bits:
        known = WEIGHTS.get(deployment.weights)
        model = deployment.model.name
        yield f"{known}; for {model} {UNKNOWN}" if known else f"{deployment.weights} weights: {UNKNOWN}"
    if deployment.kv_format.element_bytes < 2:
        yield KV_FP8 if deployment.kv == "fp8" else f"{deployment.kv} KV cache: {UNKNOWN}"
    if deployment.draft_tokens:
        yield (
            f"speculative decoding: {deployment.draft_tokens} guesses a step, each accepted with a chance of "
            f"{deployment.acceptance:g} as you stated; measure it on your traffic, for TPOT follows it"
        )
