"""A result file as JSON documents, whatever it is wrapped in: JSON, JSON Lines, gzip, or YAML where installed."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gambrel.core.errors import WorkloadError
from gambrel.measure.importers.benchmark import Document

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["read_document"]


def read_document(path: Path | str) -> Document:
    """Read a result file.

    Raises:
        WorkloadError: it cannot be read as any of these; the message says why.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise WorkloadError(f"{path}: truncated or damaged gzip ({error})") from None
    except (OSError, ValueError) as error:
        raise WorkloadError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    data = data.removeprefix(b"\xef\xbb\xbf").strip()
    if not data:
        raise WorkloadError(f"{path}: empty file")
    if path.suffix in {".yaml", ".yml"} and data[:1] not in b"{[":
        return Document(path, (_yaml(path, data),))
    try:
        return Document(path, (_decode(data),))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Document(path, tuple(_lines(path, data, error)))


def _lines(path: Path, data: bytes, whole: Exception) -> Iterator[Any]:
    """JSON Lines; ``whole`` is why it is not one document."""
    first = True
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if first:
                raise WorkloadError(f"{path}: not JSON ({whole})") from None
            raise WorkloadError(
                f"{path}: line {number} is not JSON ({error}); a cut last line can be deleted"
            ) from None
        first = False


def _decode(data: bytes) -> Any:
    """JSON as Python's tools write it: bare NaN and Infinity become null and 'inf' where strict parsing fails."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        if b"NaN" not in data and b"Infinity" not in data:
            raise
    import json

    constants = {"NaN": None, "Infinity": "inf", "-Infinity": "-inf"}
    try:
        return json.loads(data, parse_constant=constants.__getitem__)
    except ValueError as error:
        raise msgspec.DecodeError(str(error)) from None


def _yaml(path: Path, data: bytes) -> Any:
    try:
        return msgspec.yaml.decode(data)
    except ImportError:
        raise WorkloadError(
            f"{path}: YAML needs the package pyyaml (pip install pyyaml); the same report as JSON needs nothing"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise WorkloadError(f"{path}: not YAML ({error})") from None
