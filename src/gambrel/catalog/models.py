"""The door to models: a name, a path or a config becomes a :class:`~gambrel.core.model.Model`.

Names are those of the Hugging Face Hub; the shapes of the models shipped here lie as one small JSON file each in
``data/models``, with source and date. Only the one file that is asked for is read, so the door opens in
milliseconds. Paths may be a ``config.json``, a directory that holds one, a GGUF file, a safetensors file or index.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gambrel.catalog.architectures import build
from gambrel.catalog.config_fields import ConfigFields
from gambrel.core.errors import CatalogError, UnknownName
from gambrel.core.formats import WeightFormat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.core.model import Model

__all__ = ["model", "model_from_config", "model_names"]

_DATA: Final = Path(__file__).parent / "data"
_HUB: Final = "hf:"
_HINT: Final = "a path to a config.json, a directory, a .gguf file or hf:ORG/NAME works too"


def model_names() -> list[str]:
    """The shipped names, sorted without regard to case."""
    return sorted((p.stem.replace("--", "/", 1) for p in (_DATA / "models").glob("*.json")), key=str.lower)


@cache
def _class_defaults() -> Mapping[str, Mapping[str, Any]]:
    """What a config may leave out, by model_type: the defaults of the published configuration classes."""
    found: Mapping[str, Mapping[str, Any]] = json.loads((_DATA / "model_class_defaults.json").read_bytes())["defaults"]
    return found


def model_from_config(config: Mapping[str, Any], name: str = "model") -> Model:
    """The Model that a Hugging Face ``config.json`` describes.

    Raises:
        CatalogError: a needed field is missing or impossible; the message names it.
    """
    try:
        return build(ConfigFields(config, name, _class_defaults()))
    except RecursionError:
        raise CatalogError(f"{name}: the config is nested too deeply") from None


def model(name_or_path: str | Path) -> Model:
    """The Model of a shipped name, a file, a directory or a Hub id.

    Names are matched without regard to case, and without the organisation where that is unambiguous.
    ``hf:ORG/NAME`` downloads the config through ``huggingface_hub`` when that package is installed.

    Raises:
        UnknownName: no such name or file; carries the nearest three names.
        CatalogError: a file cannot be read as a model.
    """
    text = str(name_or_path)
    if text.startswith(_HUB):
        return _from_hub(text.removeprefix(_HUB))
    path = Path(text)
    try:
        if path.is_dir():
            return _from_directory(path)
        if path.is_file():
            return _from_file(path)
    except OSError as error:
        raise CatalogError(f"{text}: cannot be read ({error.strerror})") from None
    return _from_facts(_resolve(text))


def _resolve(text: str) -> str:
    """The shipped name that ``text`` means."""
    names = model_names()
    exact = {n.lower(): n for n in names}.get(text.lower())
    if exact is not None:
        return exact
    tails = [n for n in names if n.lower().rsplit("/", 1)[-1] == text.lower()]
    if len(tails) == 1:
        return tails[0]
    if len(tails) > 1:
        raise CatalogError(f"model {text!r} is ambiguous: {', '.join(tails)}")
    raise UnknownName("model", text, names, hint=_HINT)


def _from_facts(name: str) -> Model:
    """A shipped model."""
    facts = _json(_DATA / "models" / (name.replace("/", "--", 1) + ".json"))
    found = model_from_config(facts["config"], name)
    return replace(found, source=f"{facts['source']} ({facts['as_of']})")


def _json(path: Path) -> Any:
    """A JSON file, or one clear error."""
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise CatalogError(f"{path.name}: nested too deeply to be a config") from None
    except ValueError as error:
        raise CatalogError(f"{path.name}: not JSON ({error})") from None


def _from_file(path: Path) -> Model:
    """A config.json, a GGUF file, or a safetensors file or index with a config.json beside it."""
    if path.suffix in {".gguf", ".safetensors"} or path.name.endswith(".index.json"):
        return _from_checkpoint(path)
    config = _json(path)
    if not isinstance(config, dict):
        raise CatalogError(f"{path.name}: a config is a JSON object, this is a {type(config).__name__}")
    if "weight_map" in config:
        return _from_checkpoint(path)
    if "config" in config and "source" in config and hasattr(config["config"], "items"):
        config = config["config"]  # a facts file of this catalog
    name = path.parent.name if path.name == "config.json" and path.parent.name else path.stem.replace("--", "/", 1)
    return replace(model_from_config(config, name), source=str(path))


def _from_checkpoint(path: Path) -> Model:
    """A model by the header of its weights: exact bytes, and for GGUF the shapes as well."""
    from gambrel.catalog.checkpoints import read_checkpoint, read_gguf_config

    found = read_checkpoint(path)
    if path.suffix == ".gguf":
        result = model_from_config(read_gguf_config(found), path.stem)
        bits = found.total_bytes * 8 / result.total_params
        fmt = WeightFormat("gguf-file", bits, "bf16", frozenset(), flat_bits=bits, source=f"header of {path.name}")
        return replace(
            result, source=str(path), checkpoint=fmt, checkpoint_format=fmt.name, checkpoint_bytes=found.total_bytes
        )
    config = path.parent / "config.json"
    if not config.is_file():
        raise CatalogError(
            f"{path.name}: needs its config.json beside it; a safetensors header does not name the heads"
        )
    result = _from_file(config)
    return replace(result, source=str(path), checkpoint_bytes=found.total_bytes if found.complete else None)


def _from_directory(path: Path) -> Model:
    """A directory as the Hub lays it out, or one that holds a single GGUF file."""
    config = path / "config.json"
    weights = [*path.glob("*.safetensors.index.json"), *path.glob("model.safetensors")]
    if config.is_file():
        return _from_checkpoint(weights[0]) if weights else _from_file(config)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return _from_checkpoint(files[0])
    raise CatalogError(f"{path.name or path}: holds neither a config.json nor a single .gguf file")


def _from_hub(name: str) -> Model:
    """A model of the Hugging Face Hub, by its config alone."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise CatalogError(f"hf:{name}: reading from the Hub needs the package huggingface_hub; install it") from None
    try:
        path = hub.hf_hub_download(name, "config.json")
    except Exception as error:  # noqa: BLE001 - whatever the client raises, the answer is the same one line
        first = str(error).strip().splitlines()
        reason = first[0] if first else type(error).__name__
        raise CatalogError(f"hf:{name}: config.json cannot be had from the Hub ({reason})") from None
    return replace(model_from_config(_json(Path(path)), name), source=f"huggingface.co/{name}")
