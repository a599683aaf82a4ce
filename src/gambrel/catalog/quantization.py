"""What a checkpoint's ``quantization_config`` means: the weight format its tensors are stored in.

Engines spell one idea many ways. The common formats of core are named where they match; anything else (other
groups, act-order, mixed expert types) becomes a WeightFormat of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gambrel.catalog.config_fields import ConfigFields

__all__ = ["checkpoint_format"]


def checkpoint_format(c: ConfigFields) -> str:
    """The name of the format the checkpoint is stored in: ``bf16`` when nothing says otherwise."""
    q = c.section("quantization_config")
    method = str(q.get("quant_method", "")).lower()
    return {"fp8": "fp8", "mxfp4": "mxfp4", "awq": "int4", "gptq": "int4"}.get(method, "bf16")
