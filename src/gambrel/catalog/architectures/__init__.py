"""From a config to a Model: one builder per architecture family, found by ``model_type`` in a plain dict."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from gambrel.catalog.architectures.decoder import TRAITS, decoder
from gambrel.catalog.architectures.latent import deepseek

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.catalog.config_fields import ConfigFields
    from gambrel.core.model import Model

__all__ = ["BUILDERS", "build"]


def build(c: ConfigFields) -> Model:
    """The Model of a config.

    Raises:
        CatalogError: a needed field is missing or impossible.
    """
    builder = BUILDERS.get(c.model_type)
    if builder is None:
        raise c.refuse(f"unknown model_type {c.model_type!r}")
    return builder(c)


BUILDERS: Final[dict[str, Callable[[ConfigFields], Model]]] = {
    **{name: partial(decoder, t=traits) for name, traits in TRAITS.items()},
    "deepseek_v2": deepseek,
    "deepseek_v3": deepseek,
    "kimi_k2": deepseek,
}
