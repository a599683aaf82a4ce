"""The vision tower of a multimodal checkpoint, counted apart: it is stored, but no text token passes through it.

Towers differ in their projectors and position tables; the encoder blocks hold nearly all of their weights and are
alike. The count here is of the blocks and the patch embedding, so it is a lower bound within a few per cent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gambrel.catalog.config_fields import ConfigFields

__all__ = ["vision_params"]


def _number(section: Mapping[str, Any], *names: str) -> int:
    """The first of the fields that holds a positive whole number, else 0."""
    for name in names:
        value = section.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20:
            return value
    return 0


def vision_params(c: ConfigFields) -> int:
    """Parameters of the encoder blocks and patch embedding; 0 when the config holds no usable vision part.

    Per block ``4 d^2 + 4 d`` (attention with biases), ``2 d f + f + d`` (plain MLP) and ``4 d`` (two LayerNorms);
    a gated MLP (where ``hidden_act`` is silu) has a third matrix.
    """
    section = c.raw.get("vision_config")
    if not isinstance(section, Mapping):
        return 0
    width = _number(section, "hidden_size", "embed_dim", "width")
    layers = _number(section, "num_hidden_layers", "depth", "layers")
    if not width or not layers:
        return 0
    inner = _number(section, "intermediate_size", "mlp_hidden_size")
    ratio = section.get("mlp_ratio")
    if not inner:
        inner = int(width * ratio) if isinstance(ratio, int | float) and 0 < ratio < 64 else 4 * width
    gated = section.get("hidden_act") == "silu"
    patch = _number(section, "patch_size") or 14
    channels = _number(section, "in_channels", "num_channels", "in_chans") or 3
    block = (
        4 * width * width + 4 * width + (3 if gated else 2) * width * inner + (2 if gated else 1) * inner + 5 * width
    )
    return layers * block + channels * patch * patch * width + width
