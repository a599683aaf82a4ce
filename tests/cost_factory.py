"""Models and accelerators written out by hand, so that the cost tests do not lean on the catalog."""

from __future__ import annotations

from dataclasses import replace

from gambrel.core.accelerator import Accelerator
from gambrel.core.deployment import Deployment
from gambrel.core.formats import Role
from gambrel.core.model import Layer, Mixer, Model, MoE, Shard, Tensor


def gqa(heads: int, kv_heads: int, head_dim: int, window: int | None = None) -> Mixer:
    pair = 4 * heads * head_dim
    return Mixer(
        "gqa",
        num_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        kv_elements=2 * kv_heads * head_dim,
        window=window,
        prefill_flops_per_pair=pair,
        decode_flops_per_pair=pair,
    )


def attention_tensors(hidden: int, heads: int, kv_heads: int, head_dim: int) -> tuple[Tensor, ...]:
    return (
        Tensor("q_proj", heads * head_dim, hidden, Role.LINEAR, Shard.COLUMN),
        Tensor("k_proj", kv_heads * head_dim, hidden, Role.LINEAR, Shard.KV_HEADS),
        Tensor("v_proj", kv_heads * head_dim, hidden, Role.LINEAR, Shard.KV_HEADS),
        Tensor("o_proj", hidden, heads * head_dim, Role.LINEAR, Shard.ROW),
    )


def ffn_tensors(hidden: int, inner: int, role: Role = Role.LINEAR, copies: int = 1) -> tuple[Tensor, ...]:
    return (
        Tensor("gate_proj", inner, hidden, role, Shard.COLUMN, copies),
        Tensor("up_proj", inner, hidden, role, Shard.COLUMN, copies),
        Tensor("down_proj", hidden, inner, role, Shard.ROW, copies),
    )


def norms(hidden: int) -> tuple[Tensor, ...]:
    return (Tensor("norms", 2 * hidden, 1, Role.VECTOR),)


def dense(
    hidden: int = 4096,
    layers: int = 32,
    heads: int = 32,
    kv_heads: int = 8,
    head_dim: int = 128,
    inner: int = 14336,
    vocab: int = 128256,
    *,
    tied: bool = False,
    window: int | None = None,
    windowed_layers: int = 0,
    moe: MoE | None = None,
    shared: int = 0,
    name: str = "dense",
) -> Model:
    """A GQA model; ``windowed_layers`` of its layers attend within ``window``; ``moe`` makes the FFN experts."""
    ffn: tuple[Tensor, ...]
    if moe is None:
        ffn = ffn_tensors(hidden, inner)
    else:
        ffn = (
            Tensor("router", moe.num_experts, hidden, Role.ROUTER),
            *ffn_tensors(hidden, inner, Role.EXPERT, moe.num_experts),
            *(ffn_tensors(hidden, shared) if shared else ()),
        )
    body = (*attention_tensors(hidden, heads, kv_heads, head_dim), *ffn, *norms(hidden))
    groups = []
    if layers > windowed_layers:
        groups.append((layers - windowed_layers, Layer(body, gqa(heads, kv_heads, head_dim), moe)))
    if windowed_layers:
        groups.append((windowed_layers, Layer(body, gqa(heads, kv_heads, head_dim, window), moe)))
    outside = [
        Tensor("embed_tokens", vocab, hidden, Role.EMBEDDING, Shard.COLUMN),
        Tensor("norm", hidden, 1, Role.VECTOR),
    ]
    if not tied:
        outside.append(Tensor("lm_head", vocab, hidden, Role.HEAD, Shard.COLUMN))
    return Model(name, hidden, vocab, heads, tuple(groups), tuple(outside), tied, max_context=131072)


def recurrent() -> Model:
    """Three layers of state to one of attention."""
    full = dense(layers=1).layers[0][1]
    state = replace(full, mixer=Mixer("linear", state_elements=1_000_000, conv_elements=10_000, state_bits=32))
    return replace(dense(layers=4), layers=((3, state), (1, full)))


def llama_8b() -> Model:
    """Llama-3.1-8B: 8,030,261,248 parameters."""
    return dense(name="Llama-3.1-8B")


def llama_70b() -> Model:
    """Llama-3.1-70B: 70,553,706,496 parameters."""
    return dense(8192, 80, 64, 8, 128, 28672, name="Llama-3.1-70B")


def deepseek_like() -> Model:
    """DeepSeek-V3's shapes (MLA, 256 experts of 8 and one shared, three dense layers), without its norms' details."""
    hidden, heads, latent, rope, nope, value, q_rank = 7168, 128, 512, 64, 128, 128, 1536
    mla = Mixer(
        "mla",
        num_heads=heads,
        kv_heads=1,
        kv_elements=latent + rope,
        prefill_flops_per_pair=2 * heads * (nope + rope) + 2 * heads * value,
        decode_flops_per_pair=2 * heads * (latent + rope) + 2 * heads * latent,
    )
    attention = (
        Tensor("q_a_proj", q_rank, hidden, Role.LINEAR),
        Tensor("kv_a_proj", latent + rope, hidden, Role.LINEAR),
        Tensor("q_b_proj", heads * (nope + rope), q_rank, Role.LINEAR, Shard.COLUMN),
        Tensor("kv_b_proj", heads * (nope + value), latent, Role.LINEAR, Shard.COLUMN),
        Tensor("o_proj", hidden, heads * value, Role.LINEAR, Shard.ROW),
    )
    moe = MoE(256, 8)
    sparse = Layer(
        (
            *attention,
            Tensor("router", 256, hidden, Role.ROUTER),
            *ffn_tensors(hidden, 2048, Role.EXPERT, 256),
            *ffn_tensors(hidden, 2048),
            *norms(hidden),
        ),
        mla,
        moe,
    )
    first = Layer((*attention, *ffn_tensors(hidden, 18432), *norms(hidden)), mla)
    outside = (
        Tensor("embed_tokens", 129280, hidden, Role.EMBEDDING, Shard.COLUMN),
        Tensor("norm", hidden, 1, Role.VECTOR),
        Tensor("lm_head", 129280, hidden, Role.HEAD, Shard.COLUMN),
    )
    return Model("DeepSeek-like", hidden, 129280, heads, ((3, first), (58, sparse)), outside, tied=False)


H100 = Accelerator(
    "h100-sxm", "H100", "NVIDIA", "hopper",
    {"bf16": 989e12, "fp16": 989e12, "fp8": 1979e12, "int8": 1979e12},
    memory_bytes=79.6 * 2**30, memory_bandwidth=3350e9,
    link="NVLink4 switch", link_bandwidth=450e9, pcie_bandwidth=64e9,
)  # fmt: skip
A100 = Accelerator(
    "a100-sxm-80", "A100", "NVIDIA", "ampere",
    {"bf16": 312e12, "fp16": 312e12, "int8": 624e12},
    memory_bytes=80 * 2**30, memory_bandwidth=2039e9,
    link="NVLink3 switch", link_bandwidth=300e9, pcie_bandwidth=32e9,
)  # fmt: skip
L40S = Accelerator(
    "l40s", "L40S", "NVIDIA", "ada",
    {"bf16": 362.05e12, "fp16": 362.05e12, "fp8": 733e12, "int8": 733e12},
    memory_bytes=45 * 2**30, memory_bandwidth=864e9, pcie_bandwidth=32e9,
)  # fmt: skip
ACCELERATORS = (H100, A100, L40S)


def llama_on_h100(**settings: object) -> Deployment:
    return Deployment(llama_8b(), H100).with_(**settings)
