"""Plain values as TOML that people read and diff: scalars first, one table per noun, tables of rows at the end.

Only what a plan file holds is written (mappings, lists, strings, numbers, booleans); ``None`` is left out, as TOML has
no word for it. The standard library reads TOML and does not write it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

__all__ = ["toml_text"]

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")


def toml_text(document: Mapping[str, Any]) -> str:
    """The document as TOML, keys in their order; TypeError for what TOML cannot say."""
    return "\n".join(_table(document, ())).strip() + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"{_key(k)} = {_value(v)}" for k, v in table.items() if v is not None and not _is_table(v)]
    for name, value in table.items():
        inner = (*path, _key(name))
        if isinstance(value, Mapping):
            lines += ["", f"[{'.'.join(inner)}]", *_table(value, inner)]
        elif _is_table(value):
            for row in value:
                lines += ["", f"[[{'.'.join(inner)}]]", *_table(row, inner)]
    return lines


def _is_table(value: object) -> bool:
    """Whether the value needs a header of its own: a mapping, or a list that holds only mappings."""
    if isinstance(value, Mapping):
        return True
    rows = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return rows and all(isinstance(row, Mapping) for row in value)  # type: ignore[attr-defined]  # rows says it is one


def _key(name: str) -> str:
    return name if _BARE.match(name) else _string(name)


def _string(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, but for DEL, which JSON leaves as it is."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Sequence):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    raise TypeError(f"TOML has no form for {type(value).__name__}")
