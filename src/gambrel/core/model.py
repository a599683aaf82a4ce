"""What a model *is*: the true shape of every weight tensor and of every attention layer.

Everything else is a sum. Parameters, weight bytes in any format, KV bytes, state bytes, FLOPs and the share
of a tensor-parallel rank all derive from two lists: tensors (with a role and a way to shard) and mixers (what
a layer remembers about previous tokens and what it costs to look at them). A new architecture is a new way to
write the lists, never a new formula. Integers throughout: they must equal the published counts exactly.

Units: elements, bytes, FLOPs with one multiply-add = 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from gambrel.core.formats import KVFormat, Role, WeightFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Layer", "Mixer", "MoE", "Model", "Shard", "Tensor"]


class Shard(StrEnum):
    """How tensor parallelism divides a tensor over its ranks."""

    COLUMN = "column"  # output features divided
    ROW = "row"  # input features divided
    KV_HEADS = "kv_heads"  # output features divided by KV head; replicated when ranks > KV heads
    REPLICATED = "replicated"  # a full copy on every rank


@dataclass(frozen=True, slots=True)
class Tensor:
    """One weight tensor (or ``copies`` of one shape), rows being output features.

    ``keep_bits`` pins the storage of a tensor that no format quantises below 16 bits (32 for fp32 buffers).
    """

    name: str
    rows: int
    cols: int
    role: Role
    shard: Shard = Shard.REPLICATED
    copies: int = 1
    keep_bits: int | None = None

    @property
    def count(self) -> int:
        """Elements stored, all copies."""
        return self.rows * self.cols * self.copies

    @property
    def flops_per_token(self) -> int:
        """Matmul FLOPs when every copy sees one token; 0 for lookups and vectors."""
        return 0 if self.role in {Role.EMBEDDING, Role.VECTOR} else 2 * self.count

    def stored_bytes(self, fmt: WeightFormat, base_bits: int = 16) -> float:
        """Bytes in ``fmt`` with its scales; a whole number for every format that is not sub-byte."""
        if self.keep_bits is None and fmt.quantises(self.role):
            scales = fmt.scale_count(self.rows, self.cols) * self.copies
            return self.count * fmt.element_bits / 8 + scales * fmt.scale_bytes
        return self.count * (self.keep_bits or base_bits) / 8

    def on_rank(self, tp: int, kv_heads: int = 1) -> Tensor:
        """The largest shard of this tensor that one of ``tp`` ranks holds.

        Expert copies are divided inside each expert here; expert parallelism divides ``copies`` instead.
        """
        if tp == 1 or self.shard is Shard.REPLICATED:
            return self
        parts = min(tp, kv_heads) if self.shard is Shard.KV_HEADS else tp
        rows, cols = self.rows, self.cols
        if self.shard is Shard.ROW:
            cols = -(-cols // parts)
        else:
            rows = -(-rows // parts)
        return Tensor(self.name, rows, cols, self.role, self.shard, self.copies, self.keep_bits)


@dataclass(frozen=True, slots=True)
class Mixer:
    """What one layer keeps of previous tokens, and what attending to one of them costs.

    ``kind`` is ``gqa`` (also MHA and MQA), ``mla``, ``linear`` (gated DeltaNet, Mamba: a fixed state),
    or ``none``. Windowed and chunked layers hold and read at most ``window`` tokens.

    Attributes:
        kv_elements: numbers cached per token (0 for fixed-state mixers).
        kv_heads: how many ranks the cache can be divided over (1: replicated, as for the MLA latent).
        prefill_flops_per_pair: FLOPs per (query, key) pair when the prompt is processed.
        decode_flops_per_pair: the same in a decode step (absorbed form for MLA).
        decode_flops_per_token: FLOPs per decoded token beside the pairs (MLA absorption, state update).
        state_elements: numbers of fixed state per sequence (linear and SSM layers, convolution tails).
    """

    kind: str
    num_heads: int = 0
    kv_heads: int = 1
    head_dim: int = 0
    kv_elements: int = 0
    window: int | None = None
    prefill_flops_per_pair: int = 0
    decode_flops_per_pair: int = 0
    decode_flops_per_token: int = 0
    state_elements: int = 0

    def kv_elements_on_rank(self, tp: int) -> int:
        """Cached numbers per token on one of ``tp`` ranks; KV heads are replicated when ``tp`` exceeds them."""
        return -(-self.kv_elements // min(tp, self.kv_heads))


@dataclass(frozen=True, slots=True)
class MoE:
    """Routing of a mixture-of-experts layer: ``top_k`` of ``num_experts`` per token."""

    num_experts: int
    top_k: int

    def distinct(self, tokens: float) -> float:
        """Expected number of distinct experts that ``tokens`` tokens touch, under independent uniform routing.

        ``E (1 - (1 - k/E)^T)``; correlated routing touches fewer.
        """
        return (
            self.num_experts * -math.expm1(tokens * math.log1p(-self.top_k / self.num_experts))
            if (self.top_k < self.num_experts)
            else (self.num_experts if tokens > 0 else 0.0)
        )


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: its weight tensors, its mixer, its routing if it has experts.

    ``all_reduces`` is how many tensor-parallel all-reduces its output needs (2; 1 for parallel blocks and
    for layers that are only a mixer or only an FFN).
    """

    tensors: tuple[Tensor, ...]
    mixer: Mixer
    moe: MoE | None = None
    all_reduces: int = 2
    label: str = "layer"

    @property
    def params(self) -> int:
        """Parameters stored."""
        return sum(t.count for t in self.tensors)

    @property
    def routed_params(self) -> int:
        """Parameters of routed experts."""
        return sum(t.count for t in self.tensors if t.role is Role.EXPERT)

    @property
    def active_flops_per_token(self) -> int:
        """Matmul FLOPs of one token: every dense tensor and ``top_k`` experts."""
        dense = sum(t.flops_per_token for t in self.tensors if t.role is not Role.EXPERT)
        if self.moe is None:
            return dense
        routed = sum(t.flops_per_token for t in self.tensors if t.role is Role.EXPERT)
        return dense + routed * self.moe.top_k // self.moe.num_experts


@dataclass(frozen=True)
class Model:
    """A decoder-only language model as it is deployed for text.

    ``layers`` groups equal layers as (count, layer), in order of first appearance. ``tensors`` holds what is
    outside the layers: input embedding, position table, final norm, head (absent when tied: ``tied`` says so and
    the embedding then counts once as parameters, once as a matmul). ``extras`` counts parts that are in the
    checkpoint but not in a text forward pass (``mtp``, ``vision``), in parameters.
    """

    name: str
    hidden_size: int
    vocab_size: int
    num_heads: int
    layers: tuple[tuple[int, Layer], ...]
    tensors: tuple[Tensor, ...]
    tied: bool
    max_context: int | None = None
    model_type: str = ""
    checkpoint_format: str = "bf16"
    base_bits: int = 16
    extras: tuple[tuple[str, int], ...] = ()
    assumptions: tuple[str, ...] = ()
    source: str = ""
    mtp_layers: tuple[tuple[int, Layer], ...] = field(default=())

    # -- parameters ------------------------------------------------------------------------------

    @cached_property
    def num_layers(self) -> int:
        """Decoder layers."""
        return sum(n for n, _ in self.layers)

    def all_tensors(self) -> Iterator[tuple[int, Tensor]]:
        """Every stored tensor with how many layers repeat it."""
        for tensor in self.tensors:
            yield 1, tensor
        for n, layer in self.layers:
            for tensor in layer.tensors:
                yield n, tensor

    @cached_property
    def total_params(self) -> int:
        """Every parameter once (a tied head once); without MTP, vision and quantisation scales."""
        return sum(n * t.count for n, t in self.all_tensors())

    @cached_property
    def routed_params(self) -> int:
        """Parameters of routed experts, all layers."""
        return sum(n * layer.routed_params for n, layer in self.layers)

    @cached_property
    def embedding_params(self) -> int:
        """Elements of the input embedding (and learned position table): looked up, not multiplied."""
        return sum(t.count for t in self.tensors if t.role is Role.EMBEDDING)

    @cached_property
    def input_embedding_params(self) -> int:
        """Elements of the token embedding alone."""
        return next((t.count for t in self.tensors if t.role is Role.EMBEDDING), 0)

    @cached_property
    def active_params(self) -> int:
        """Parameters one token uses, with the input embedding: total - routed (1 - k/E)."""
        idle = sum(
            n * (layer.routed_params - layer.routed_params * layer.moe.top_k // layer.moe.num_experts)
            for n, layer in self.layers
            if layer.moe is not None
        )
        return self.total_params - idle

    @cached_property
    def active_params_without_embedding(self) -> int:
        """The other published convention: without the input embedding (kept when it is also the head)."""
        return self.active_params - (0 if self.tied else self.input_embedding_params)

    # -- FLOPs -----------------------------------------------------------------------------------

    @cached_property
    def head(self) -> Tensor:
        """The matmul that makes logits; the embedding table itself when tied."""
        for tensor in self.tensors:
            if tensor.role is Role.HEAD:
                return tensor
        return Tensor("lm_head (tied)", self.vocab_size, self.hidden_size, Role.HEAD, Shard.COLUMN)

    @cached_property
    def linear_flops_per_token(self) -> int:
        """Matmul FLOPs of one token at one sampled position, attention pairs excluded, head included."""
        return self.layer_flops_per_token + self.head.flops_per_token

    @cached_property
    def layer_flops_per_token(self) -> int:
        """Matmul FLOPs of one token through the layers (and any matmul outside them but the head)."""
        outside = sum(t.flops_per_token for t in self.tensors if t.role is not Role.HEAD)
        return outside + sum(n * layer.active_flops_per_token for n, layer in self.layers)

    @cached_property
    def decode_flops_per_token(self) -> int:
        """FLOPs of one decoded token at context 0: matmuls, head, MLA absorption and state updates."""
        return self.linear_flops_per_token + sum(n * x.mixer.decode_flops_per_token for n, x in self.layers)

    def attention_flops_per_pair(self, *, decode: bool = False, context: int = 0) -> int:
        """FLOPs of one (query, key) pair over all layers; windowed layers only while ``context`` is inside."""
        return sum(
            n * (x.mixer.decode_flops_per_pair if decode else x.mixer.prefill_flops_per_pair)
            for n, x in self.layers
            if x.mixer.window is None or context <= x.mixer.window
        )

    # -- KV cache and state ----------------------------------------------------------------------

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """The distinct attention windows, ascending; empty when every layer attends to everything."""
        return tuple(sorted({x.mixer.window for _, x in self.layers if x.mixer.window is not None}))

    def kv_elements_per_token(self, context: int = 0) -> int:
        """Numbers one more token adds to the cache of a sequence that already holds ``context``.

        0 asks for the marginal figure at short context; past every window only full layers grow.
        """
        return sum(
            n * x.mixer.kv_elements for n, x in self.layers if x.mixer.window is None or context < x.mixer.window
        )

    def kv_elements_held(self, context: int) -> int:
        """Numbers cached for one sequence of ``context`` tokens: windowed layers hold at most their window."""
        return sum(
            n * x.mixer.kv_elements * (context if x.mixer.window is None else min(context, x.mixer.window))
            for n, x in self.layers
        )

    def kv_bytes_per_token(self, fmt: KVFormat, context: int = 0) -> int:
        """Bytes one more token adds at ``context``, all ranks together."""
        return self.kv_elements_per_token(context) * fmt.element_bytes

    def kv_bytes_held(self, context: int, fmt: KVFormat) -> int:
        """Bytes cached for one sequence of ``context`` tokens, all ranks together, before block rounding."""
        return self.kv_elements_held(context) * fmt.element_bytes

    @cached_property
    def state_elements_per_sequence(self) -> int:
        """Numbers of fixed recurrent and convolution state per sequence."""
        return sum(n * x.mixer.state_elements for n, x in self.layers)

    # -- weight bytes ----------------------------------------------------------------------------

    def weight_bytes(self, fmt: WeightFormat) -> int:
        """Bytes of all weights in ``fmt``, scales included, one copy (no replication over ranks)."""
        if fmt.flat_bits is not None:
            return round(self.total_params * fmt.flat_bits / 8)
        return round(math.fsum(n * t.stored_bytes(fmt, self.base_bits) for n, t in self.all_tensors()))
