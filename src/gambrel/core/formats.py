"""Number formats of weights and KV cache: how many bytes a tensor takes, and which math unit reads it.

A weight format says which tensors it quantises (embeddings, head, router and norms usually stay 16-bit),
the bits of an element, the scales stored beside it, and the number format the tensor cores then run in.
Eight-bit weights with eight-bit math double the compute roof; four-bit weights with 16-bit math do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gambrel.core.errors import DeploymentError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KV_FORMATS", "WEIGHT_FORMATS", "KVFormat", "Role", "WeightFormat", "kv_format", "weight_format"]


class Role(StrEnum):
    """What a tensor does: decides FLOPs, how often it is read, and whether a format quantises it."""

    LINEAR = "linear"  # a matmul over every token
    EXPERT = "expert"  # a matmul over the tokens routed to it
    ROUTER = "router"  # a small matmul over every token, kept in high precision
    HEAD = "head"  # the matmul over sampled positions only
    EMBEDDING = "embedding"  # a lookup: stored, hardly read, no FLOPs
    VECTOR = "vector"  # norms, biases, convolutions, state constants: read, no matmul FLOPs
    EXPERT_VECTOR = "expert_vector"  # the same inside routed experts (their biases): idle unless routed to


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How weights are stored.

    Attributes:
        name: the field's name for it, as engines spell it.
        element_bits: payload bits of a quantised element.
        math: number format of the tensor cores that consume it: ``bf16``, ``fp8``, ``int8`` or ``fp4``.
        roles: the roles that are quantised; all others stay at 16 bits (32 where the tensor says so).
        block: rows and columns that share one scale; a zero side spans the whole side.
        scale_bytes: bytes per scale (scale and zero point together).
        flat_bits: if set, the published average bits over *all* parameters (GGUF mixes types by tensor).
        source: where the storage rule was read.
        column_bytes: bytes stored per input channel beside the scales (the permutation of act-order GPTQ).
        expert_format: the format of routed experts where it is another one (mixed checkpoints).
        feed_forward_only: whether the matmuls of attention stay at 16 bits.
    """

    name: str
    element_bits: float
    math: str
    roles: frozenset[Role]
    block: tuple[int, int] = (0, 0)
    scale_bytes: float = 0.0
    flat_bits: float | None = None
    source: str = ""
    column_bytes: float = 0.0
    expert_format: WeightFormat | None = None
    feed_forward_only: bool = False

    def of_role(self, role: Role) -> WeightFormat:
        """The format that tensors of this role are stored in: another one for experts of a mixed checkpoint."""
        return self.expert_format if role is Role.EXPERT and self.expert_format is not None else self

    def stored_bytes(self, rows: int, cols: int) -> float:
        """Bytes of one quantised ``rows x cols`` tensor, scales included."""
        return (
            rows * cols * self.element_bits / 8
            + self.scale_count(rows, cols) * self.scale_bytes
            + (cols * self.column_bytes)
        )

    def quantises(self, role: Role) -> bool:
        """Whether tensors of this role are stored in the format rather than at 16 bits."""
        return role in self.roles

    def scale_count(self, rows: int, cols: int) -> int:
        """Scales stored beside one ``rows x cols`` tensor (rows are outputs)."""
        if not self.scale_bytes or not rows * cols:
            return 0
        block_rows, block_cols = self.block[0] or rows, self.block[1] or cols
        return -(-rows // block_rows) * -(-cols // block_cols)


@dataclass(frozen=True, slots=True)
class KVFormat:
    """How the KV cache is stored: ``element_bytes`` per number, ``scale_bytes`` per token, layer and head pair."""

    name: str
    element_bytes: int
    scale_bytes: int = 0


_MATMULS: Final = frozenset({Role.LINEAR, Role.EXPERT})
_EXPERTS: Final = frozenset({Role.EXPERT})
_MXFP4_EXPERTS: Final = WeightFormat("mxfp4", 4, "fp4", _EXPERTS, (1, 32), 1, source="OCP MX v1.0")
_GGUF: Final = "ggml-org/llama.cpp tools/quantize/README.md, Llama-3.1-8B averages"

WEIGHT_FORMATS: Final[Mapping[str, WeightFormat]] = MappingProxyType(
    {
        f.name: f
        for f in (
            WeightFormat("bf16", 16, "bf16", frozenset()),
            WeightFormat("fp16", 16, "fp16", frozenset()),
            # DeepSeek-style: one fp32 scale per 128 x 128 block, ceil on each side.
            WeightFormat(
                "fp8",
                8,
                "fp8",
                _MATMULS,
                (128, 128),
                4,
                source="DeepSeek-V3 checkpoint, 128x128 fp32 block scales",
            ),
            # compressed-tensors style: one fp32 scale per output channel.
            WeightFormat("fp8-channel", 8, "fp8", _MATMULS, (1, 0), 4, source="compressed-tensors per-channel fp8"),
            WeightFormat("int8", 8, "int8", _MATMULS, (1, 0), 4, source="per-channel W8A8, one fp32 scale per output"),
            # Weight-only int8: one 16-bit scale per output channel, math stays 16-bit.
            WeightFormat("w8a16", 8, "bf16", _MATMULS, (1, 0), 2, source="compressed-tensors W8A16 per channel"),
            # AWQ and GPTQ: fp16 scale and 4-bit zero point per group of 128 inputs; math stays 16-bit.
            WeightFormat("int4", 4, "bf16", _MATMULS, (1, 128), 2.5, source="AWQ/GPTQ group 128: 0.51953 B per weight"),
            # OCP MX: one 8-bit exponent per 32 elements: 4.25 bits. As published for gpt-oss, experts only.
            WeightFormat(
                "mxfp4",
                4,
                "fp4",
                _EXPERTS,
                (1, 32),
                1,
                source="OCP MX v1.0; openai/gpt-oss quantises experts only",
            ),
            # OCP MXFP8: one 8-bit exponent per 32 elements: 8.25 bits.
            WeightFormat("mxfp8", 8, "fp8", _MATMULS, (1, 32), 1, source="OCP MX v1.0: 8-bit scale per 32 elements"),
            # One fp32 scale per tensor, as modelopt's FP8 checkpoints store it.
            WeightFormat("fp8-tensor", 8, "fp8", _MATMULS, (0, 0), 4, source="modelopt FP8: one fp32 scale per tensor"),
            # Meta's FP8: one fp32 scale per output channel of feed-forward matmuls, attention in bf16.
            WeightFormat(
                "fp8-ffn",
                8,
                "fp8",
                _MATMULS,
                (1, 0),
                4,
                source="The Llama 3 Herd of Models (arXiv 2407.21783), 6.2: attention is not quantised; nor are the"
                " first and last layer there, which count as quantised here (1.1 % of Llama-3.1-405B's bytes)",
                feed_forward_only=True,
            ),
            # DeepSeek V4: fp8 blocks, routed experts in fp4 with a scale per 32.
            WeightFormat(
                "fp8-mxfp4",
                8,
                "fp8",
                _MATMULS,
                (128, 128),
                4,
                source="DeepSeek-V4 checkpoint: fp8 128x128 blocks, routed experts fp4 with 8-bit scales per 32",
                expert_format=_MXFP4_EXPERTS,
            ),
            # Kimi K2 Thinking and K2.5: routed experts int4 with a bf16 scale per 32, all else bf16.
            WeightFormat(
                "int4-experts",
                4,
                "bf16",
                _EXPERTS,
                (1, 32),
                2,
                source="moonshotai/Kimi-K2-Thinking model card: int4 experts, group 32, symmetric",
            ),
            # bitsandbytes NF4: fp32 absmax per 64 elements.
            WeightFormat("nf4", 4, "bf16", _MATMULS, (1, 64), 4, source="bitsandbytes 4-bit: absmax per 64 elements"),
            # NVFP4: one fp8 scale per 16 elements: 4.5 bits.
            WeightFormat("nvfp4", 4, "fp4", _MATMULS, (1, 16), 1, source="NVIDIA NVFP4: fp8 scale per 16 elements"),
            WeightFormat("q8_0", 8, "int8", _MATMULS, flat_bits=8.5008, source=_GGUF),
            WeightFormat("q6_k", 6, "bf16", _MATMULS, flat_bits=6.5633, source=_GGUF),
            WeightFormat("q5_k_m", 5, "bf16", _MATMULS, flat_bits=5.7036, source=_GGUF),
            WeightFormat("q4_k_m", 4, "bf16", _MATMULS, flat_bits=4.8944, source=_GGUF),
            WeightFormat("f16", 16, "fp16", frozenset(), flat_bits=16.0005, source=_GGUF),
        )
    }
)

KV_FORMATS: Final[Mapping[str, KVFormat]] = MappingProxyType(
    {
        f.name: f
        for f in (
            KVFormat("bf16", 2),
            KVFormat("fp16", 2),
            KVFormat("fp8", 1),
            KVFormat("int8", 1),
            # one fp32 scale per token and head, for the key and for the value
            KVFormat("fp8-token-head", 1, 8),
            KVFormat("int8-token-head", 1, 8),
        )
    }
)


def weight_format(name: str) -> WeightFormat:
    """The weight format called ``name``.

    Raises:
        DeploymentError: there is none; the message lists those there are.
    """
    found = WEIGHT_FORMATS.get(name.lower())
    if found is None:
        raise DeploymentError(f"unknown weight format {name!r}; known: {', '.join(WEIGHT_FORMATS)}")
    return found


def kv_format(name: str) -> KVFormat:
    """The KV cache format called ``name``.

    Raises:
        DeploymentError: there is none; the message lists those there are.
    """
    found = KV_FORMATS.get(name.lower())
    if found is None:
        raise DeploymentError(f"unknown KV format {name!r}; known: {', '.join(KV_FORMATS)}")
    return found
