"""The building blocks of every decoder: attention, feed-forward, experts, recurrent mixers, as tensors and costs.

Each function states the shapes of one published block and nothing else. Architectures are compositions of these;
the counts follow from the shapes. Rows are output features, columns input features, as checkpoints store them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gambrel.core.formats import Role
from gambrel.core.model import Mixer, MoE, Shard, Tensor

__all__ = [
    "Block",
    "Experts",
    "attention",
    "delta_net",
    "experts",
    "fixed_state",
    "kimi_delta",
    "latent_attention",
    "lightning",
    "linear",
    "mamba1",
    "mamba2",
    "mlp",
    "norm",
    "short_conv",
    "vector",
]

Block = tuple[tuple[Tensor, ...], Mixer]
STATE_FLOPS: Final = 6  # per state element and token: decay, outer product, readout; 6 to 8 published, unverified


def linear(name: str, rows: int, cols: int, shard: Shard = Shard.COLUMN, *, role: Role = Role.LINEAR) -> Tensor:
    """A ``rows x cols`` matmul."""
    return Tensor(name, rows, cols, role, shard)


def vector(name: str, size: int, shard: Shard = Shard.REPLICATED, *, keep_bits: int | None = None) -> Tensor:
    """``size`` numbers that multiply elementwise: a norm, a bias, a gate."""
    return Tensor(name, size, 1, Role.VECTOR, shard, keep_bits=keep_bits)


def norm(name: str, size: int, *, bias: bool = False) -> Tensor:
    """A norm's weight, and its bias when it is a LayerNorm that has one."""
    return vector(name, 2 * size if bias else size)


def attention(
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    value_dim: int | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm: str = "",
    qk_norm_bias: bool = False,
    gate: str = "",
    sinks: bool = False,
    window: int | None = None,
    key_is_value: bool = False,
    reads_earlier: bool = False,
) -> Block:
    """Grouped-query attention (MHA when ``kv_heads == heads``, MQA when 1).

    Args:
        hidden: residual width d.
        heads: query heads a.
        kv_heads: key and value heads k.
        head_dim: width h of a query and key head; ``value_dim`` that of a value head where it differs.
        value_dim: see ``head_dim``.
        qkv_bias: biases of the three input projections.
        out_bias: bias of the output projection.
        qk_norm: ``head`` (2h), ``heads`` (one weight per head and position in it: (a+k)h), ``full`` ((a+k)h), or none.
        qk_norm_bias: the norms are LayerNorms with biases.
        gate: an output gate: ``element`` (a*h more rows of q), ``head`` (one row a head), or none.
        sinks: one learned logit per query head.
        window: tokens held, None for all.
        key_is_value: keys serve as values: no value projection, though both are cached.
        reads_earlier: reads the cache of an earlier layer: no key and value projections, nothing cached.
    """
    v_dim = head_dim if value_dim is None else value_dim
    keys = not reads_earlier
    values = keys and not key_is_value
    optional = (
        (True, linear("q_proj", heads * head_dim, hidden)),
        (keys, linear("k_proj", kv_heads * head_dim, hidden, Shard.KV_HEADS)),
        (values, linear("v_proj", kv_heads * v_dim, hidden, Shard.KV_HEADS)),
        (gate == "element", linear("q_proj output gate", heads * v_dim, hidden)),
        (gate == "head", linear("output gate", heads, hidden)),
        (qkv_bias, vector("q_proj.bias", heads * head_dim, Shard.COLUMN)),
        (qkv_bias and keys, vector("k_proj.bias", kv_heads * head_dim, Shard.KV_HEADS)),
        (qkv_bias and values, vector("v_proj.bias", kv_heads * v_dim, Shard.KV_HEADS)),
        (True, linear("o_proj", hidden, heads * v_dim, Shard.ROW)),
        (out_bias, vector("o_proj.bias", hidden)),
        (qk_norm == "head", norm("q_norm", head_dim, bias=qk_norm_bias)),
        (qk_norm == "head" and keys, norm("k_norm", head_dim, bias=qk_norm_bias)),
        (qk_norm in {"full", "heads"}, norm("q_norm", heads * head_dim, bias=qk_norm_bias)),
        (qk_norm in {"full", "heads"}, norm("k_norm", kv_heads * head_dim, bias=qk_norm_bias)),
        (sinks, vector("sinks", heads, Shard.COLUMN)),
    )
    tensors = [tensor for present, tensor in optional if present]
    cached = kv_heads * (head_dim + v_dim)
    pair = 2 * heads * (head_dim + v_dim)
    mixer = Mixer(
        kind="gqa",
        num_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        kv_elements=0 if reads_earlier else cached,
        shared_kv_elements=cached if reads_earlier else 0,
        window=window,
        prefill_flops_per_pair=pair,
        decode_flops_per_pair=pair,
    )
    return tuple(tensors), mixer


def latent_attention(
    hidden: int,
    heads: int,
    *,
    kv_rank: int,
    nope: int,
    rope: int,
    value: int,
    q_rank: int | None,
    qkv_bias: bool = False,
    gate: bool = False,
    top_k: int | None = None,
) -> Block:
    """Multi-head latent attention (DeepSeek-V2): one latent of ``kv_rank + rope`` numbers cached per token.

    The latent is replicated on every tensor-parallel rank. Prefill attends in the expanded form, decode in the
    absorbed form whose absorptions multiply the weights of ``kv_b_proj`` and so are counted with the matmuls.
    """
    head = nope + rope
    tensors: list[Tensor] = []
    if q_rank is None:
        tensors.append(linear("q_proj", heads * head, hidden))
    else:
        tensors += [
            linear("q_a_proj", q_rank, hidden, Shard.REPLICATED),
            vector("q_a_layernorm", q_rank),
            linear("q_b_proj", heads * head, q_rank),
        ]
        if qkv_bias:
            tensors.append(vector("q_a_proj.bias", q_rank))
    tensors += [
        linear("kv_a_proj_with_mqa", kv_rank + rope, hidden, Shard.REPLICATED),
        vector("kv_a_layernorm", kv_rank),
        linear("kv_b_proj", heads * (nope + value), kv_rank),
        linear("o_proj", hidden, heads * value, Shard.ROW),
    ]
    if qkv_bias:
        tensors += [vector("kv_a_proj.bias", kv_rank + rope), vector("o_proj.bias", hidden)]
    if gate:
        tensors.append(linear("output gate", heads * value, hidden))
    mixer = Mixer(
        kind="mla",
        num_heads=heads,
        kv_heads=1,
        head_dim=head,
        kv_elements=kv_rank + rope,
        top_k=top_k,
        prefill_flops_per_pair=2 * heads * (head + value),
        decode_flops_per_pair=2 * heads * (kv_rank + rope) + 2 * heads * kv_rank,
    )
    return tuple(tensors), mixer


def mlp(
    hidden: int, width: int, *, gated: bool = True, bias: bool = False, prefix: str = "mlp", out: int | None = None
) -> tuple[Tensor, ...]:
    """A feed-forward block: 3 matmuls when gated, 2 when not; biases on each where ``bias``."""
    out = hidden if out is None else out
    names = ("gate_proj", "up_proj") if gated else ("up_proj",)
    tensors = [linear(f"{prefix}.{n}", width, hidden) for n in names]
    tensors.append(linear(f"{prefix}.down_proj", out, width, Shard.ROW))
    if bias:
        tensors += [vector(f"{prefix}.{n}.bias", width, Shard.COLUMN) for n in names]
        tensors.append(vector(f"{prefix}.down_proj.bias", out))
    return tuple(tensors)


@dataclass(frozen=True, slots=True)
class Experts:
    """The shape of a mixture-of-experts feed-forward block.

    ``shared`` is the total width of the always-on experts (0 for none), ``correction_bias`` the router's
    load-balancing buffer (fp32), ``latent`` the width experts work in when it is not the hidden size.
    """

    num: int
    top_k: int
    width: int
    gated: bool = True
    bias: bool = False
    router_bias: bool = False
    correction_bias: bool = False
    shared: int = 0
    shared_gate: bool = False
    shared_bias: bool = False
    latent: int | None = None
    latent_norm: bool = False


def experts(hidden: int, spec: Experts) -> tuple[tuple[Tensor, ...], MoE]:
    """Router, routed experts and shared experts of one layer."""
    inner = hidden if spec.latent is None else spec.latent
    names = ("gate_proj", "up_proj") if spec.gated else ("up_proj",)
    tensors = [Tensor("router", spec.num, hidden, Role.ROUTER)]
    if spec.router_bias:
        tensors.append(vector("router.bias", spec.num))
    if spec.correction_bias:
        tensors.append(vector("router.e_score_correction_bias", spec.num, keep_bits=32))
    if spec.latent is not None:
        tensors += [
            linear("experts.latent_in", inner, hidden, Shard.REPLICATED),
            linear("experts.latent_out", hidden, inner, Shard.REPLICATED),
        ]
        if spec.latent_norm:
            tensors.append(vector("experts.latent_norm", inner))
    tensors += [Tensor(f"experts.{n}", spec.width, inner, Role.EXPERT, Shard.COLUMN, spec.num) for n in names]
    tensors.append(Tensor("experts.down_proj", inner, spec.width, Role.EXPERT, Shard.ROW, spec.num))
    if spec.bias:
        tensors += [
            Tensor(f"experts.{n}.bias", spec.width, 1, Role.EXPERT_VECTOR, Shard.COLUMN, spec.num) for n in names
        ]
        tensors.append(Tensor("experts.down_proj.bias", inner, 1, Role.EXPERT_VECTOR, Shard.REPLICATED, spec.num))
    if spec.shared:
        tensors += mlp(hidden, spec.shared, gated=spec.gated, bias=spec.shared_bias, prefix="shared_expert")
        if spec.shared_gate:
            tensors.append(linear("shared_expert_gate", 1, hidden, Shard.REPLICATED, role=Role.ROUTER))
    return tuple(tensors), MoE(spec.num, spec.top_k)


def fixed_state(kind_state: int, conv: int, bits: int, heads: int) -> Mixer:
    """A mixer with a fixed state of ``kind_state`` recurrent numbers and ``conv`` convolution tail numbers."""
    return Mixer(
        kind="linear",
        num_heads=heads,
        kv_heads=max(1, heads),
        decode_flops_per_token=STATE_FLOPS * kind_state,
        state_elements=kind_state + conv,
        conv_elements=conv,
        state_bits=bits,
    )


def delta_net(
    hidden: int, *, key_heads: int, value_heads: int, key_dim: int, value_dim: int, conv: int, state_bits: int = 16
) -> Block:
    """Gated DeltaNet (Qwen3-Next, Qwen3.5): state of value_heads x key_dim x value_dim numbers per sequence."""
    keys, values = key_heads * key_dim, value_heads * value_dim
    channels = 2 * keys + values
    tensors = (
        linear("in_proj_qkvz", 2 * keys + 2 * values, hidden),
        linear("in_proj_ba", 2 * value_heads, hidden),
        vector("conv1d", channels * conv, Shard.COLUMN),
        vector("A_log", value_heads, Shard.COLUMN),
        vector("dt_bias", value_heads, Shard.COLUMN),
        vector("gated norm", value_dim),
        linear("out_proj", hidden, values, Shard.ROW),
    )
    return tensors, fixed_state(value_heads * key_dim * value_dim, (conv - 1) * channels, state_bits, value_heads)


def kimi_delta(
    hidden: int, *, heads: int, head_dim: int, conv: int, full_rank_gate: bool = False, state_bits: int = 16
) -> Block:
    """Kimi delta attention: a delta rule with a per-channel forget gate of low rank (rank = head_dim)."""
    width = heads * head_dim
    tensors = [
        *(linear(f"{n}_proj", width, hidden) for n in "qkv"),
        vector("conv1d", 3 * width * conv, Shard.COLUMN),
        vector("A_log", heads, Shard.COLUMN),
        linear("f_a_proj", head_dim, hidden, Shard.REPLICATED),
        linear("f_b_proj", width, head_dim),
        vector("dt_bias", width, Shard.COLUMN),
        linear("b_proj", heads, hidden),
    ]
    if full_rank_gate:
        tensors.append(linear("g_proj", width, hidden))
    else:
        tensors += [linear("g_a_proj", head_dim, hidden, Shard.REPLICATED), linear("g_b_proj", width, head_dim)]
    tensors += [vector("o_norm", head_dim), linear("o_proj", hidden, width, Shard.ROW)]
    return tuple(tensors), fixed_state(heads * head_dim * head_dim, (conv - 1) * 3 * width, state_bits, heads)


def mamba2(
    hidden: int,
    *,
    heads: int,
    head_dim: int,
    groups: int,
    state: int,
    conv: int,
    bias: bool = False,
    conv_bias: bool = True,
    gated_norm: bool = True,
    state_bits: int = 16,
) -> Block:
    """Mamba-2 (Nemotron-H, Granite-4-H): inner width heads x head_dim, state heads x head_dim x state."""
    inner = heads * head_dim
    channels = inner + 2 * groups * state
    tensors = [
        linear("in_proj", inner + channels + heads, hidden),
        vector("conv1d", channels * conv, Shard.COLUMN),
        vector("A_log", heads, Shard.COLUMN),
        vector("D", heads, Shard.COLUMN),
        vector("dt_bias", heads, Shard.COLUMN),
        linear("out_proj", hidden, inner, Shard.ROW),
    ]
    if conv_bias:
        tensors.append(vector("conv1d.bias", channels, Shard.COLUMN))
    if gated_norm:
        tensors.append(vector("gated norm", inner, Shard.COLUMN))
    if bias:
        tensors += [vector("in_proj.bias", inner + channels + heads, Shard.COLUMN), vector("out_proj.bias", hidden)]
    return tuple(tensors), fixed_state(inner * state, (conv - 1) * channels, state_bits, heads)


def mamba1(
    hidden: int,
    *,
    inner: int,
    state: int,
    rank: int,
    conv: int,
    bias: bool = False,
    conv_bias: bool = True,
    inner_norms: bool = False,
    state_bits: int = 16,
) -> Block:
    """Mamba-1 (Mamba, Falcon-Mamba, Jamba): state inner x state; Jamba norms dt, B and C (rank + 2 state)."""
    tensors = [
        linear("in_proj", 2 * inner, hidden),
        vector("conv1d", inner * conv, Shard.COLUMN),
        linear("x_proj", rank + 2 * state, inner, Shard.ROW),
        linear("dt_proj", inner, rank),
        vector("dt_proj.bias", inner, Shard.COLUMN),
        vector("A_log", inner * state, Shard.COLUMN),
        vector("D", inner, Shard.COLUMN),
        linear("out_proj", hidden, inner, Shard.ROW),
    ]
    if conv_bias:
        tensors.append(vector("conv1d.bias", inner, Shard.COLUMN))
    if bias:
        tensors += [vector("in_proj.bias", 2 * inner, Shard.COLUMN), vector("out_proj.bias", hidden)]
    if inner_norms:
        tensors.append(vector("dt, B and C norms", rank + 2 * state))
    return tuple(tensors), fixed_state(inner * state, (conv - 1) * inner, state_bits, inner)


def short_conv(hidden: int, *, conv: int, bias: bool = False) -> Block:
    """LFM2's gated short convolution: no recurrence, a tail of conv - 1 positions."""
    tensors = [
        linear("in_proj", 3 * hidden, hidden),
        vector("conv", hidden * conv, Shard.COLUMN),
        linear("out_proj", hidden, hidden, Shard.ROW),
    ]
    if bias:
        tensors += [vector("in_proj.bias", 3 * hidden), vector("out_proj.bias", hidden), vector("conv.bias", hidden)]
    return tuple(tensors), fixed_state(0, (conv - 1) * hidden, 16, hidden)


def lightning(hidden: int, *, heads: int, head_dim: int) -> Block:
    """MiniMax's lightning attention: linear attention with a decayed heads x head_dim x head_dim state."""
    width = heads * head_dim
    tensors = (
        linear("qkv_proj", 3 * width, hidden),
        linear("output_gate", width, hidden),
        linear("out_proj", hidden, width, Shard.ROW),
        vector("norm", width, Shard.COLUMN),
    )
    return tensors, fixed_state(width * head_dim, 0, 16, heads)
