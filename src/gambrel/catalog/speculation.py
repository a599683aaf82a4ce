"""Guesses that a model makes itself: multi-token prediction (MTP), with an acceptance rate only where one is published.

How often a guess holds decides what it is worth, and nobody can compute it. So this table is short; for every other
model and for draft models the person says what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gambrel.core.errors import CatalogError

if TYPE_CHECKING:
    from gambrel.core.model import Model

__all__ = ["PUBLISHED", "Speculation", "multi_token_prediction"]


@dataclass(frozen=True, slots=True)
class Speculation:
    """Guesses a step, the chance that one holds if those before it do, and a guess's share of a decode step."""

    draft_tokens: int
    acceptance: float
    draft_cost: float
    basis: str


PUBLISHED: dict[str, tuple[int, float, str]] = {
    "deepseek-ai/DeepSeek-V3": (
        1,
        0.85,
        (
            "DeepSeek-V3 technical report (arXiv 2412.19437), section 5.4.3: the second token holds in 85 % to 90 % of "
            "steps over various topics, 1.8 times the tokens per second; the lower end is taken"
        ),
    ),
}
"""Model: guesses, acceptance, source."""


def multi_token_prediction(model: Model) -> Speculation:
    """What the model's own MTP module guesses; the cost is the module's and the head's share of a token's FLOPs.

    At batch 1, where weights bind, that is also its share of the bytes of a step.

    Raises:
        CatalogError: no MTP module, or no published acceptance rate.
    """
    if not model.mtp_layers:
        raise CatalogError(
            f"{model.name} has no multi-token-prediction module; --draft-tokens says what a draft guesses"
        )
    if model.name not in PUBLISHED:
        raise CatalogError(
            f"no acceptance rate of the multi-token prediction of {model.name} is published "
            f"(known: {', '.join(PUBLISHED)}); give what you measured with --draft-tokens and --acceptance"
        )
    draft_tokens, acceptance, source = PUBLISHED[model.name]
    projection = 2 * 2 * model.hidden_size * model.hidden_size  # both hidden states side by side to one
    module = sum(count * layer.active_flops_per_token for count, layer in model.mtp_layers) + projection
    cost = (module + 2 * model.head.count) / model.linear_flops_per_token
    return Speculation(draft_tokens, acceptance, cost, source)
