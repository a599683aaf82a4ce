"""Reading what a checkpoint really holds: safetensors headers and indexes, GGUF headers; exact bytes by type.

A config says what a model should weigh; a header says what the file weighs. Both formats put shapes and types in
front of the data, so a few kilobytes answer the question. Multi-token-prediction modules, quantisation scales and
rotary buffers are told apart from weights, because published totals mix them.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from gambrel.core.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Checkpoint", "read_checkpoint", "read_gguf", "read_gguf_config", "read_safetensors"]

_BITS: Final[dict[str, float]] = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_SCALES: Final = {
    "weight_scale", "weight_scale_inv", "weight_scale_2", "input_scale", "scales", "qzeros", "g_idx",
    "weight_zero_point", "absmax", "scale", "k_scale", "v_scale",
}  # fmt: skip
_HEADER_LIMIT: Final = 100 << 20  # the safetensors format caps headers at 100 MB
_MAX_STRING: Final = 64 << 20
_MAX_ITEMS: Final = 1 << 24

# GGML tensor types: name, elements per block, bytes per block (ggml.h of llama.cpp).
_GGML: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
_SCALAR: Final[dict[int, str]] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, from its headers.

    Attributes:
        source: the file or index that was read.
        bytes_by_type: payload bytes by stored type.
        elements_by_type: stored elements by type.
        scale_elements: elements that are quantisation scales or zero points.
        mtp_elements: elements of multi-token-prediction modules.
        buffer_elements: rotary tables and other elements that are no parameters.
        num_tensors: tensors listed.
        complete: False when only an index was read, which knows the total and not the types.
        total_bytes: payload bytes.
        names: the tensors' names.
    """

    source: str
    bytes_by_type: Mapping[str, int]
    elements_by_type: Mapping[str, int]
    scale_elements: int
    mtp_elements: int
    buffer_elements: int
    num_tensors: int
    complete: bool
    total_bytes: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    names: frozenset[str] = frozenset()

    @property
    def elements(self) -> int:
        """Stored elements of all types."""
        return sum(self.elements_by_type.values())


def _fail(path: Path, sentence: str) -> CatalogError:
    return CatalogError(f"{path.name}: {sentence}")


def _is_scale(name: str) -> bool:
    tail = name.rsplit(".", 1)[-1]
    return tail in _SCALES or tail.endswith("_scales")


def _is_buffer(name: str) -> bool:
    return name.endswith(("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "attn.masked_bias"))


def _is_mtp(name: str, layers: int | None) -> bool:
    if name.startswith(("mtp.", "model.mtp", "nextn.")) or ".mtp_layers." in name or ".mtp." in name:
        return True
    if layers is None or ".layers." not in name:
        return False
    index = name.split(".layers.", 1)[1].split(".", 1)[0]
    return index.isdigit() and int(index) >= layers


def _summary(
    source: Path, tensors: Iterable[tuple[str, str, int, int]], layers: int | None, metadata: Mapping[str, Any]
) -> Checkpoint:
    """Sums over (name, type, elements, bytes)."""
    sizes: dict[str, int] = {}
    counts: dict[str, int] = {}
    scales = mtp = buffers = 0
    names: set[str] = set()
    for name, kind, elements, stored in tensors:
        sizes[kind] = sizes.get(kind, 0) + stored
        counts[kind] = counts.get(kind, 0) + elements
        names.add(name)
        if _is_scale(name):
            scales += elements
        elif _is_buffer(name):
            buffers += elements
        elif _is_mtp(name, layers):
            mtp += elements
    return Checkpoint(str(source), sizes, counts, scales, mtp, buffers, len(names), complete=True,
                      total_bytes=sum(sizes.values()), metadata=metadata, names=frozenset(names))  # fmt: skip


def _safetensors_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise _fail(path, f"not a safetensors file: {len(head)} bytes, and the header length alone takes 8")
        (size,) = struct.unpack("<Q", head)
        if not 2 <= size <= _HEADER_LIMIT:
            raise _fail(path, f"not a safetensors file: it announces a header of {size} bytes")
        data = file.read(size)
    if len(data) < size:
        raise _fail(path, f"truncated safetensors header: {len(data)} of {size} bytes")
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _fail(path, f"the safetensors header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _fail(path, "the safetensors header is not a JSON object")
    return header


def _safetensors_entries(path: Path, header: dict[str, Any]) -> Iterable[tuple[str, str, int, int]]:
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = entry.get("shape") if isinstance(entry, dict) else None
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape) or kind not in _BITS:
            raise _fail(
                path, f"tensor {name!r} has dtype {kind!r} and shape {shape!r}; neither may be missing or unknown"
            )
        elements = math.prod(shape)
        stored = round(elements * _BITS[kind] / 8)
        if isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(n, int) for n in offsets):
            stored = offsets[1] - offsets[0]
        yield name, kind, elements, stored


def read_safetensors(path: Path, num_layers: int | None = None) -> Checkpoint:
    """The header of one .safetensors file, or of every file that an index lists and that lies beside it.

    With ``num_layers`` tensors of layers beyond it count as MTP. An index whose files are absent gives its own
    ``total_size`` alone, which is not to be trusted: DeepSeek-V3's is twice its payload.

    Raises:
        CatalogError: the file is no safetensors file or index, or is truncated.
    """
    if not path.name.endswith(".json"):
        header = _safetensors_header(path)
        return _summary(path, _safetensors_entries(path, header), num_layers, header.get("__metadata__") or {})
    try:
        index = json.loads(path.read_bytes())
        names = sorted(set(index["weight_map"].values()))
        total = int(index.get("metadata", {}).get("total_size", 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _fail(path, "not a safetensors index: a JSON object with weight_map and metadata.total_size is") from None
    files = [path.parent / name for name in names if isinstance(name, str)]
    if files and all(f.is_file() for f in files):
        entries = [e for f in files for e in _safetensors_entries(f, _safetensors_header(f))]
        return _summary(path, entries, num_layers, {})
    return Checkpoint(str(path), {}, {}, 0, 0, 0, len(index["weight_map"]), complete=False, total_bytes=total,
                      names=frozenset(str(n) for n in index["weight_map"]))  # fmt: skip


class _Reader:
    """Little-endian values from a GGUF header, with every length checked before it is believed."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path

    def take(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            raise _fail(self.path, "truncated GGUF header")
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        size = self.number("<Q")
        if size > _MAX_STRING:
            raise _fail(self.path, f"a GGUF string announces {size} bytes")
        return self.take(size).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALAR:
            return self.number(_SCALAR[kind])
        if kind == 8:
            return self.text()
        if kind == 9 and depth < 4:
            inner, count = self.number("<I"), self.number("<Q")
            if count > _MAX_ITEMS:
                raise _fail(self.path, f"a GGUF array announces {count} items")
            if inner in _SCALAR:
                code = _SCALAR[inner]
                return [x[0] for x in struct.iter_unpack(code, self.take(count * struct.calcsize(code)))]
            if inner == 8:  # token lists: length alone is of interest
                for _ in range(count):
                    self.text()
                return count
            return [self.value(inner, depth + 1) for _ in range(count)]
        raise _fail(self.path, f"unknown GGUF value type {kind}")


def read_gguf(path: Path) -> Checkpoint:
    """The header of a GGUF file (versions 2 and 3): exact bytes by GGML type, and its metadata.

    Raises:
        CatalogError: it is no GGUF file, is truncated, or holds a tensor type of a later version.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path)
        if file.read(4) != b"GGUF":
            raise _fail(path, "not a GGUF file: it does not start with the letters GGUF")
        version = reader.number("<I")
        if version not in {2, 3}:
            raise _fail(path, f"GGUF version {version}; versions 2 and 3 can be read")
        tensors, pairs = reader.number("<Q"), reader.number("<Q")
        if tensors > _MAX_ITEMS or pairs > _MAX_ITEMS:
            raise _fail(path, f"a GGUF header that announces {tensors} tensors and {pairs} settings")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = reader.text()
            metadata[key] = reader.value(reader.number("<I"))
        entries = []
        for _ in range(tensors):
            name, dims = reader.text(), reader.number("<I")
            if dims > 8:
                raise _fail(path, f"tensor {name!r} has {dims} dimensions")
            elements = math.prod(reader.number("<Q") for _ in range(dims))
            kind, _ = reader.number("<I"), reader.number("<Q")
            if kind not in _GGML:
                raise _fail(path, f"tensor {name!r} has GGML type {kind}, which is not known here")
            label, block, size = _GGML[kind]
            entries.append((name, label, elements, elements // block * size))
    return _summary(path, entries, None, metadata)


_GGUF_FIELDS: Final[dict[str, str]] = {
    "embedding_length": "hidden_size", "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "context_length": "max_position_embeddings", "vocab_size": "vocab_size",
    "attention.sliding_window": "sliding_window", "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok", "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "num_shared_experts", "leading_dense_block_count": "first_k_dense_replace",
    "attention.kv_lora_rank": "kv_lora_rank", "attention.q_lora_rank": "q_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim", "attention.value_length": "v_head_dim",
}  # fmt: skip
_GGUF_TYPES: Final[dict[str, str]] = {
    "llama": "llama", "qwen2": "qwen2", "qwen2moe": "qwen2_moe", "qwen3": "qwen3", "qwen3moe": "qwen3_moe",
    "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text", "phi2": "phi", "phi3": "phi3", "gpt2": "gpt2",
    "starcoder2": "starcoder2", "stablelm": "stablelm", "olmo2": "olmo2", "granite": "granite", "glm4": "glm4",
    "command-r": "cohere", "cohere2": "cohere2", "smollm3": "smollm3", "gpt-oss": "gpt_oss", "deepseek2": "deepseek_v2",
    "falcon": "falcon", "bloom": "bloom", "mpt": "mpt", "minicpm3": "minicpm3", "glm4moe": "glm4_moe",
}  # fmt: skip


def read_gguf_config(found: Checkpoint) -> dict[str, Any]:
    """The fields of a ``config.json`` that a GGUF header's metadata states.

    Raises:
        CatalogError: the architecture is missing or has no equivalent here.
    """
    meta = found.metadata
    name = Path(found.source).name
    arch = meta.get("general.architecture")
    if not isinstance(arch, str):
        raise CatalogError(f"{name}: the GGUF header lacks general.architecture")
    if arch not in _GGUF_TYPES:
        raise CatalogError(f"{name}: GGUF architecture {arch!r} is not known here; known: {', '.join(_GGUF_TYPES)}")
    config: dict[str, Any] = {"model_type": _GGUF_TYPES[arch]}
    for key, own in _GGUF_FIELDS.items():
        value = meta.get(f"{arch}.{key}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            config[own] = value
        elif isinstance(value, list) and value and len(set(value)) == 1:
            config[own] = value[0]
    whole, values = meta.get(f"{arch}.attention.key_length_mla"), meta.get(f"{arch}.attention.value_length_mla")
    if isinstance(whole, int) and isinstance(values, int):  # llama.cpp's MLA files give the latent as the head width
        config["v_head_dim"] = values
        config["qk_nope_head_dim"] = whole - int(config.get("qk_rope_head_dim", 0))
    config["tie_word_embeddings"] = "output.weight" not in found.names
    tokens = meta.get("tokenizer.ggml.tokens")
    if "vocab_size" not in config and isinstance(tokens, int):
        config["vocab_size"] = tokens
    return config


_SUFFIXES: Final[dict[str, Callable[[Path], Checkpoint]]] = {
    ".gguf": read_gguf,
    ".safetensors": read_safetensors,
    ".json": read_safetensors,
}


def read_checkpoint(path: Path) -> Checkpoint:
    """What a .gguf file, a .safetensors file or a safetensors index holds.

    Raises:
        CatalogError: it is none of these, or cannot be read.
    """
    reader = _SUFFIXES.get(path.suffix)
    if reader is None:
        raise _fail(path, "not a checkpoint: .gguf, .safetensors and model.safetensors.index.json can be read")
    try:
        return reader(path)
    except OSError as error:
        raise _fail(path, f"cannot be read ({error.strerror})") from None
