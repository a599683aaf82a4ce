"""Plain values as YAML in block style, so that manifests and rule files look as people expect them.

A string is quoted unless it is plainly a word; what is written is valid for YAML 1.1 and 1.2 alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

__all__ = ["yaml_documents", "yaml_text"]

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*\Z")
_STRANGE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")
"""What JSON leaves in a string and YAML takes for a line break, or forbids."""
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}


def yaml_documents(documents: Sequence[Mapping[str, Any]]) -> str:
    """Several documents with ``---`` between them."""
    return "---\n".join(yaml_text(d) for d in documents)


def yaml_text(document: Mapping[str, Any]) -> str:
    """One document; TypeError for what is no plain value."""
    return "\n".join(_block(document, 0)) + "\n"


def _block(value: object, depth: int) -> list[str]:
    pad = "  " * depth
    lines: list[str] = []
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if _nested(inner):
                lines += [f"{pad}{_scalar(str(key))}:", *_block(inner, depth + 1)]
            else:
                lines.append(f"{pad}{_scalar(str(key))}: {_scalar(inner)}")
        return lines
    for inner in value if isinstance(value, Sequence) else ():
        if _nested(inner):
            first, *rest = _block(inner, depth + 1)
            lines += [f"{pad}- {first.lstrip()}", *rest]
        else:
            lines.append(f"{pad}- {_scalar(inner)}")
    return lines


def _nested(value: object) -> bool:
    return isinstance(value, (Mapping, list, tuple)) and len(value) > 0


def _scalar(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        plain = _PLAIN.match(value) and value.lower() not in _WORDS
        return value if plain else _STRANGE.sub(lambda m: f"\\u{ord(m[0]):04x}", msgspec.json.encode(value).decode())
    if isinstance(value, Mapping) and not value:
        return "{}"
    if isinstance(value, (list, tuple)) and not value:
        return "[]"
    raise TypeError(f"YAML has no form for {type(value).__name__}")
