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
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from gambrel.core.formats import KVFormat, Role, WeightFormat, weight_format

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Layer", "Mixer", "MoE", "Model", "Shard", "Tensor"]

_MATMUL_ROLES = frozenset({Role.LINEAR, Role.EXPERT, Role.ROUTER, Role.HEAD})
_ROUTED_ROLES = frozenset({Role.EXPERT, Role.EXPERT_VECTOR})


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
        return 2 * self.count if self.role in _MATMUL_ROLES else 0

    @property
    def routed(self) -> bool:
        """Whether only the tokens routed to an expert touch it."""
        return self.role in _ROUTED_ROLES

    @property
    def feed_forward(self) -> bool:
        """Whether it belongs to an FFN or an expert, not to a mixer."""
        return self.name.startswith(("mlp.", "experts.", "shared_expert"))

    def quantised_by(self, fmt: WeightFormat) -> bool:
        """Whether a checkpoint in ``fmt`` stores it in less than 16 bits."""
        own = fmt.of_role(self.role)
        return self.keep_bits is None and own.quantises(self.role) and (self.feed_forward or not own.feed_forward_only)

    def stored_bytes(self, fmt: WeightFormat, base_bits: int = 16) -> float:
        """Bytes in ``fmt`` with its scales; a whole number for every format that is not sub-byte."""
        if self.quantised_by(fmt):
            return self.copies * fmt.of_role(self.role).stored_bytes(self.rows, self.cols)
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
    ``index`` (the key selector of sparse attention) or ``none``. Windowed and chunked layers hold and read at
    most ``window`` tokens; sparse attention holds every token and reads the ``top_k`` that the selector picks.

    Attributes:
        kv_elements: numbers cached per token (0 for fixed-state mixers, and for layers that read the cache of
            an earlier layer).
        kv_heads: how many ranks the cache can be divided over (1: replicated, as for the MLA latent).
        window: the most tokens held, None for all.
        top_k: the most tokens read of those held, None for all.
        shared_kv_elements: numbers per token read from the cache of an earlier layer.
        own_bytes: bytes per token where the cache has a storage of its own, whatever the KV format (selector keys).
        prefill_flops_per_pair: FLOPs per (query, key) pair when the prompt is processed.
        decode_flops_per_pair: the same in a decode step (absorbed form for MLA).
        decode_flops_per_token: elementwise FLOPs per decoded token beside matmuls and pairs (state update).
            MLA absorption is not here: it multiplies the very weights of ``kv_b_proj``, which count as matmuls.
        state_elements: numbers of fixed state per sequence (linear and SSM layers, convolution tails).
        conv_elements: how many of those are convolution tails (kernel - 1 positions).
        state_bits: storage of the recurrent part; convolution tails are always 16-bit.
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
    conv_elements: int = 0
    state_bits: int = 16
    top_k: int | None = None
    shared_kv_elements: int = 0
    own_bytes: int | None = None

    def bytes_per_token(self, fmt: KVFormat) -> int:
        """Bytes cached per token, all ranks together, scales included."""
        if self.own_bytes is not None or not self.kv_elements:
            return self.own_bytes or 0
        return self.kv_elements * fmt.element_bytes + fmt.scale_bytes * self.kv_heads

    def bytes_per_token_on_rank(self, fmt: KVFormat, tp: int) -> int:
        """The same on one of ``tp`` ranks: KV heads are replicated when ``tp`` exceeds them."""
        if self.own_bytes is not None or not self.kv_elements:
            return self.own_bytes or 0
        return self.kv_elements_on_rank(tp) * fmt.element_bytes + fmt.scale_bytes * -(-self.kv_heads // tp)

    @property
    def span(self) -> int | None:
        """The most tokens one query reads: the smaller of ``window`` and ``top_k``; None for all."""
        caps = [cap for cap in (self.window, self.top_k) if cap is not None]
        return min(caps) if caps else None

    @property
    def read_elements(self) -> int:
        """Numbers read per attended token, from this layer's cache or a shared one."""
        return self.kv_elements + self.shared_kv_elements

    @property
    def state_bytes(self) -> int:
        """Bytes of fixed state per sequence."""
        return ((self.state_elements - self.conv_elements) * self.state_bits + self.conv_elements * 16) // 8

    def held(self, context: int) -> int:
        """Tokens of ``context`` that stay cached."""
        return context if self.window is None else min(context, self.window)

    def read(self, context: int) -> int:
        """Tokens of ``context`` that one query reads."""
        return context if self.span is None else min(context, self.span)

    def kv_elements_on_rank(self, tp: int) -> int:
        """Cached numbers per token on one of ``tp`` ranks; KV heads are replicated when ``tp`` exceeds them."""
        return -(-self.kv_elements // min(tp, self.kv_heads))


def _log_gamma(x: Any) -> Any:
    """The logarithm of the gamma function of a positive number or array: Stirling's series eight further on.

    scipy has one, but takes a second to load, several times what a prediction takes.
    """
    import numpy as np  # here, because a model is read in milliseconds and numpy is not

    below = np.log(x * (x + 1.0) * (x + 2.0) * (x + 3.0)) + np.log((x + 4.0) * (x + 5.0) * (x + 6.0) * (x + 7.0))
    y = x + 8.0
    series = 1.0 / (12.0 * y) - 1.0 / (360.0 * y**3) + 1.0 / (1260.0 * y**5)
    return (y - 0.5) * np.log(y) - y + 0.5 * math.log(2.0 * math.pi) + series - below


@dataclass(frozen=True, slots=True)
class MoE:
    """Routing of a mixture-of-experts layer: ``top_k`` of ``num_experts`` per token."""

    num_experts: int
    top_k: int

    def distinct(self, tokens: Any, shape: float = math.inf) -> Any:
        """Expected number of distinct experts that ``tokens`` tokens (a number or a numpy array) touch.

        ``E (1 - (1 - k/E)^T)`` where every expert is as popular as any other. Where popularity is spread, with a
        squared coefficient of variation of about ``1 / shape``, the chance of an expert to be picked by a token is
        taken as beta distributed with mean ``k/E``: one token still touches ``k``, many touch fewer.
        """
        import numpy as np  # here, because a model is read in milliseconds and numpy is not

        if self.top_k >= self.num_experts:
            return self.num_experts * np.minimum(np.asarray(tokens) > 0, 1.0)
        share = self.top_k / self.num_experts
        if math.isinf(shape):
            return -self.num_experts * np.expm1(tokens * math.log1p(-share))
        whole = shape / share
        rest = whole * (1.0 - share)
        missed = _log_gamma(rest + tokens) - _log_gamma(whole + tokens) + _log_gamma(whole) - _log_gamma(rest)
        return -self.num_experts * np.expm1(np.minimum(missed, 0.0))

    def touched(self, tokens: Any, ranks: int, shape: float = math.inf) -> Any:
        """Expected number of distinct experts on the one of ``ranks`` expert-parallel ranks that has most of them.

        The slowest rank sets the time of a layer. Each of a rank's ``E / ranks`` experts is touched or not, so their
        number is near enough normal; it is never more than there are, nor than tokens are routed. Even routing
        (infinite ``shape``) is taken as even over the ranks too.
        """
        import numpy as np

        mean = self.distinct(tokens, shape) / ranks
        if ranks <= 1 or math.isinf(shape):
            return mean
        own = self.num_experts / ranks
        spread = np.sqrt(np.maximum(mean * (1.0 - mean / own), 0.0))
        most = np.maximum(mean + _largest_of(ranks) * spread, np.asarray(tokens) > 0)
        return np.minimum(np.minimum(most, own), np.maximum(mean, tokens * self.top_k))

    def busiest(self, ranks: int, shape: float = math.inf) -> float:
        """Tokens of the busiest of ``ranks`` expert-parallel ranks over the mean rank's, popularity spread as above.

        A rank's share is a sum over its experts, near enough normal.
        """
        if ranks <= 1 or math.isinf(shape):
            return 1.0
        spread = math.sqrt(ranks / (self.num_experts * shape))
        return min(float(ranks), 1.0 + spread * _largest_of(ranks))


def _largest_of(number: int) -> float:
    """Where the largest of so many normal draws lies, in their standard deviations (Blom 1958)."""
    return NormalDist().inv_cdf((number - 0.375) / (number + 0.25))


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: its weight tensors, its mixer, its routing if it has experts.

    ``all_reduces`` is how many tensor-parallel all-reduces its output needs (2; 1 for parallel blocks and
    for layers that are only a mixer or only an FFN). A layer that looks at more than one cache (the key
    selector of sparse attention, a local window beside a compressed history, an SSM beside attention)
    lists the others in ``side_mixers``.
    """

    tensors: tuple[Tensor, ...]
    mixer: Mixer
    moe: MoE | None = None
    all_reduces: int = 2
    label: str = "layer"
    side_mixers: tuple[Mixer, ...] = ()

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """Every cache the layer looks at: its mixer, then any others (selector, local window, parallel SSM)."""
        return (self.mixer, *self.side_mixers) if self.side_mixers else (self.mixer,)

    @property
    def params(self) -> int:
        """Parameters stored."""
        return sum(t.count for t in self.tensors)

    @property
    def routed_params(self) -> int:
        """Parameters of routed experts."""
        return sum(t.count for t in self.tensors if t.routed)

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
    checkpoint but not in a text forward pass (``mtp``, ``vision``), in parameters. ``checkpoint`` is how the
    published weights are stored where the config says so, ``checkpoint_format`` its name, ``checkpoint_bytes`` the
    exact payload where the files themselves were read (MTP and vision included); ``also_by_block`` says that
    its maker publishes it in 8 bits with a scale per block beside these; ``assumptions`` is whatever had to be
    assumed to compute the model, one sentence each.
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
    checkpoint: WeightFormat | None = None
    checkpoint_bytes: int | None = None
    also_by_block: bool = False

    def weight_format(self, name: str = "") -> WeightFormat:
        """The format of that name, the checkpoint's own without one; its own variant goes before the common one.

        Raises:
            DeploymentError: unknown name.
        """
        wanted, own = name or self.checkpoint_format, self.checkpoint
        return own if own is not None and own.name == wanted else weight_format(wanted)

    # -- parameters ------------------------------------------------------------------------------

    @property
    def scaled_by_block(self) -> bool:
        """Whether its maker's 8-bit checkpoint has a scale per block of a matrix, so that engines run such kernels.

        Other models are put into 8 bits with a scale per tensor or channel.
        """
        return self.checkpoint_format == "fp8" or self.also_by_block

    @cached_property
    def has_experts(self) -> bool:
        """Whether any layer routes tokens to experts."""
        return any(layer.moe is not None for _, layer in self.layers)

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
        """The other published convention: without lookups; a token embedding that is also the head stays."""
        return self.active_params - self.embedding_params + (self.input_embedding_params if self.tied else 0)

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

    def all_mixers(self) -> Iterator[tuple[int, Mixer]]:
        """Every mixer with how many layers repeat it."""
        for n, layer in self.layers:
            for mixer in layer.mixers:
                yield n, mixer

    @cached_property
    def decode_flops_per_token(self) -> int:
        """Matmul FLOPs of one decoded token at context 0, head included.

        Attention pairs come on top per token of context, and the elementwise state update of linear and SSM
        layers (:attr:`state_flops_per_token`) on top of both.
        """
        return self.linear_flops_per_token

    @cached_property
    def state_flops_per_token(self) -> int:
        """Elementwise FLOPs that update and read the recurrent states for one token; an estimate, not a count.

        About 6 per state element (decay, outer product, readout); published counts differ between 6 and 8.
        """
        return sum(n * m.decode_flops_per_token for n, m in self.all_mixers())

    def attention_flops_per_pair(self, *, decode: bool = False, context: int = 0) -> int:
        """FLOPs of one (query, key) pair over all layers; capped layers only while ``context`` is inside the cap."""
        return sum(
            n * (m.decode_flops_per_pair if decode else m.prefill_flops_per_pair)
            for n, m in self.all_mixers()
            if m.span is None or context <= m.span
        )

    def attention_flops(self, context: int, *, decode: bool = True) -> int:
        """FLOPs of one query that attends to ``context`` tokens (itself included), every layer at its own cap."""
        return sum(
            n * (m.decode_flops_per_pair if decode else m.prefill_flops_per_pair) * m.read(context)
            for n, m in self.all_mixers()
        )

    # -- KV cache and state ----------------------------------------------------------------------

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """The distinct attention windows, ascending; empty when every layer holds everything."""
        return tuple(sorted({m.window for _, m in self.all_mixers() if m.window is not None}))

    @cached_property
    def spans(self) -> tuple[int, ...]:
        """The distinct caps on tokens read per query: windows, and selections of sparse attention; ascending."""
        return tuple(sorted({m.span for _, m in self.all_mixers() if m.span is not None}))

    def kv_elements_per_token(self, context: int = 0) -> int:
        """Numbers one more token adds to the cache of a sequence that already holds ``context``.

        0 asks for the marginal figure at short context; past every window only full layers grow.
        """
        return sum(n * m.kv_elements for n, m in self.all_mixers() if m.window is None or context < m.window)

    def kv_elements_read(self, context: int) -> int:
        """Numbers one decode step reads for a sequence of ``context`` tokens, shared caches at every reader."""
        return sum(n * m.read_elements * m.read(context) for n, m in self.all_mixers())

    def kv_bytes_per_token(self, fmt: KVFormat, context: int = 0) -> int:
        """Bytes one more token adds at ``context``, all ranks together, selector keys and scales included."""
        return sum(n * m.bytes_per_token(fmt) for n, m in self.all_mixers() if m.window is None or context < m.window)

    def index_bytes_per_token(self, fmt: KVFormat) -> int:
        """How many of those bytes are keys of sparse attention's selectors."""
        return sum(n * m.bytes_per_token(fmt) for n, m in self.all_mixers() if m.kind == "index")

    def kv_bytes_held(self, context: int, fmt: KVFormat) -> int:
        """Bytes cached for one sequence of ``context`` tokens, all ranks together, before block rounding."""
        return sum(n * m.bytes_per_token(fmt) * m.held(context) for n, m in self.all_mixers())

    def kv_bytes_per_token_on_rank(self, fmt: KVFormat, tp: int = 1, context: int = 0) -> int:
        """Bytes one more token adds on one of ``tp`` ranks: KV heads are replicated beyond their number."""
        return sum(
            n * m.bytes_per_token_on_rank(fmt, tp)
            for n, m in self.all_mixers()
            if m.window is None or context < m.window
        )

    @cached_property
    def state_elements_per_sequence(self) -> int:
        """Numbers of fixed recurrent and convolution state per sequence."""
        return sum(n * m.state_elements for n, m in self.all_mixers())

    @cached_property
    def state_bytes_per_sequence(self) -> int:
        """Bytes of fixed recurrent and convolution state per sequence, each part in its own storage."""
        return sum(n * m.state_bytes for n, m in self.all_mixers())

    # -- weight bytes ----------------------------------------------------------------------------

    def weight_bytes(self, fmt: WeightFormat) -> int:
        """Bytes of all weights in ``fmt``, scales included, one copy (no replication over ranks)."""
        if fmt.flat_bits is not None:
            return round(self.total_params * fmt.flat_bits / 8)
        return round(math.fsum(n * t.stored_bytes(fmt, self.base_bits) for n, t in self.all_tensors()))

    def mtp_weight_bytes(self, fmt: WeightFormat) -> int:
        """Bytes of the multi-token-prediction modules: their layers in ``fmt``, projections and copies at 16 bits."""
        layers = [(n, t) for n, layer in self.mtp_layers for t in layer.tensors]
        rest = dict(self.extras).get("mtp", 0) - sum(n * t.count for n, t in layers)
        stored = math.fsum(n * t.stored_bytes(fmt, self.base_bits) for n, t in layers)
        return round(stored + rest * self.base_bits / 8)
