"""How an engine's paged cache really holds a model: groups of layers, block sizes, pages of state.

vLLM gives every layer of a hybrid model pages of one size. A layer with a fixed state makes that page as large as
the state, so attention blocks grow to hundreds or thousands of tokens and every sequence holds whole pages of state.
Capacity in tokens is then lower, and prefix caching coarser, than bytes per token say.

Rule as read in vLLM (``HybridAttentionMambaModelConfig``, V1): block = align x ceil(state page / (align x attention
bytes per token of one layer)), align 16; the state page is padded to the attention page. Checked against published
start-up logs: Qwen3.5-27B 784 tokens in bf16, Qwen3.5-9B 528 in bf16 and 1056 in fp8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gambrel.core.formats import KVFormat
    from gambrel.core.model import Mixer, Model

__all__ = ["PagedLayout", "paged_layout"]

_ALIGN = 16


@dataclass(frozen=True, slots=True)
class PagedLayout:
    """The paged cache of one rank.

    Attributes:
        block_size: tokens in a block after inflation.
        page_bytes: bytes of one layer's page (the largest, which all layers get when there is state).
        full_layers: layers that hold every token.
        windowed: (layers, window) of layers that hold a window.
        state_layers: layers with a fixed state, one page per sequence each.
        state_padding: bytes of a state page that hold nothing, as a share of the state.
        token_bytes: bytes per token of all full layers together, without block rounding.
        windowed_token_bytes: the same of each windowed group.
    """

    block_size: int
    page_bytes: int
    full_layers: int
    windowed: tuple[tuple[int, int], ...]
    state_layers: int
    state_padding: float
    token_bytes: int
    windowed_token_bytes: tuple[int, ...]
    state_bytes: int

    def sequence_bytes(self, context: int) -> int:
        """Bytes that one sequence of ``context`` tokens holds, in whole blocks and whole pages of state."""
        blocks = -(-context // self.block_size)
        total = blocks * self.block_size * self.token_bytes + self.state_layers * self.page_bytes
        for (_, window), token_bytes in zip(self.windowed, self.windowed_token_bytes, strict=True):
            # a window that starts inside a block keeps that block: one more than the window fills
            held = min(blocks, -(-window // self.block_size) + 1)
            total += held * self.block_size * token_bytes
        return total


def _state_page(mixer: Mixer, tp: int) -> int:
    """State bytes of one layer on one of ``tp`` ranks: divided by heads, never below one head's."""
    return -(-mixer.state_bytes // min(tp, mixer.kv_heads))


def paged_layout(model: Model, fmt: KVFormat, *, tp: int = 1, block_size: int = 16, align: int = _ALIGN) -> PagedLayout:
    """The paged cache of ``model`` in ``fmt`` on one of ``tp`` ranks, block size grown as vLLM grows it.

    Args:
        model: the model.
        fmt: how keys and values are stored.
        tp: tensor-parallel ranks; KV heads beyond their number and the MLA latent are replicated.
        block_size: tokens per block that were asked for.
        align: the granularity of block sizes (16; some MLA kernels need 64 or 128).
    """
    mixers = list(model.all_mixers())
    attending = [(n, m, m.bytes_per_token_on_rank(fmt, tp)) for n, m in mixers if m.kv_elements or m.own_bytes]
    states = [(n, _state_page(m, tp)) for n, m in mixers if m.state_elements]
    per_token = max((size for _, m, size in attending if m.kind != "index"), default=0)
    state = max((size for _, size in states), default=0)
    block, padding = block_size, 0.0
    page = per_token * block
    if state and per_token:
        block = max(block_size, align * -(-state // (align * per_token)))
        page = per_token * block
        padding = (page - state) / state
    elif state:
        page = state
    spans: dict[int, tuple[int, int]] = {}
    for n, mixer, size in attending:
        if mixer.window is not None:
            count, total = spans.get(mixer.window, (0, 0))
            spans[mixer.window] = (count + n, total + n * size)
    return PagedLayout(
        block_size=block,
        page_bytes=page,
        full_layers=sum(n for n, m, _ in attending if m.window is None),
        windowed=tuple((count, window) for window, (count, _) in sorted(spans.items())),
        state_layers=sum(n for n, _ in states),
        state_padding=padding,
        token_bytes=sum(n * size for n, m, size in attending if m.window is None),
        windowed_token_bytes=tuple(total for _, (_, total) in sorted(spans.items())),
        state_bytes=sum(n * size for n, size in states),
    )
