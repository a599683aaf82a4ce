"""What a model weighs, as text: the one table that must be there at once, so it is made without a table library."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from gambrel.core.bill import bill
from gambrel.core.formats import kv_format, weight_format
from gambrel.report import humanise as human

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gambrel.core.model import Model

__all__ = ["model_text"]

WIDTH = 100
FAR = 1 << 40
"""A context beyond every window."""


def model_rows(m: Model) -> list[tuple[str, str]]:
    """Name and value of each figure."""
    bf16 = kv_format("bf16")
    own = m.checkpoint_format
    pair = m.attention_flops_per_pair(decode=True)
    near, far = m.kv_bytes_per_token(bf16), m.kv_bytes_per_token(bf16, context=FAR)
    active = f"{m.active_params:,}" if m.active_params != m.total_params else "all"
    if m.active_params_without_embedding != m.active_params:
        active += f" ({m.active_params_without_embedding:,} without the input embedding)"
    sizes = [f"{name} {human.num_bytes(m.weight_bytes(weight_format(name)))}" for name in ("bf16", "fp8", "int4")]
    if own not in {"bf16", "fp8", "int4"}:
        sizes.insert(0, f"checkpoint ({own}) {human.num_bytes(m.weight_bytes(m.checkpoint or weight_format(own)))}")
    extras = ", ".join(f"{name} {count:,}" for name, count in m.extras if count)
    return [
        ("parameters", f"{m.total_params:,}" + (f" (+ {extras})" if extras else "")),
        ("active", active),
        ("weights", ", ".join(sizes)),
        ("KV cache", f"{near:,} B a token" + (f", {far:,} B beyond every window" if far != near else "") + " (bf16)"),
        ("", f"{human.num_bytes(m.kv_bytes_held(8192, bf16))} for a sequence of 8,192 tokens"),
        (
            "state",
            f"{human.num_bytes(m.state_bytes_per_sequence)} a sequence" if m.state_bytes_per_sequence else "none",
        ),
        (
            "decode",
            f"{m.decode_flops_per_token / 1e9:,.2f} GFLOP a token, + {pair / 1e6:,.3g} MFLOP per token of context",
        ),
        ("shape", f"{m.num_layers} layers, hidden {m.hidden_size:,}, {m.num_heads} heads, vocabulary {m.vocab_size:,}"),
        ("assumed", "; ".join(m.assumptions) or "nothing"),
    ]


def facts(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Names and values in two columns, values wrapped under themselves."""
    indent = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        yield from textwrap.wrap(
            value, WIDTH, initial_indent=name.ljust(indent), subsequent_indent=" " * indent, break_long_words=False
        )


def bill_lines(m: Model) -> Iterator[str]:
    """The bill part by part: figures on one line, the formula under it."""
    yield f"{'part':38s}{'layers':>7s}{'parameters':>20s}{'bf16':>10s}{'KV B/token':>12s}{'MFLOP/token':>13s}"
    layer = ""
    for r in bill(m):
        label, _, part = r.kind.rpartition(": ")
        if label != layer:
            layer = label
            yield from [f"{layer}:"] * bool(layer)
        name = f"  {part}" if label else part
        yield (
            f"{name:38s}{r.count:7,d}{r.params:20,d}{human.num_bytes(r.bytes_bf16):>10s}"
            f"{r.kv_bytes_per_token:12,d}{r.flops_per_token / 1e6:13,.1f}"
        )
        yield from textwrap.wrap(r.formula, WIDTH, initial_indent="    ", subsequent_indent="    ")


def model_text(models: Sequence[Model], *, explain: bool) -> str:
    """What each model weighs; with ``explain`` the bill behind it."""
    parts = []
    for m in models:
        lines = [m.name, *facts(model_rows(m))]
        if explain:
            lines += ["", *bill_lines(m)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
