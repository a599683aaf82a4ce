"""The door to models: a name, a path or a config becomes a :class:`~gambrel.core.model.Model`.

Names are those of the Hugging Face Hub; the shapes of the models shipped here lie as one small JSON file each in
``data/models``, with source and date. Only the one file that is asked for is read.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambrel.catalog.architectures import build
from gambrel.catalog.config_fields import ConfigFields
from gambrel.core.errors import CatalogError, UnknownName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.core.model import Model

__all__ = ["model", "model_from_config", "model_names"]

_DATA = Path(__file__).parent / "data" / "models"


def model_names() -> list[str]:
    """The shipped names, sorted without regard to case."""
    return sorted((p.stem.replace("--", "/", 1) for p in _DATA.glob("*.json")), key=str.lower)


def model_from_config(config: Mapping[str, Any], name: str = "model") -> Model:
    """The Model that a Hugging Face ``config.json`` describes."""
    return build(ConfigFields(config, name, class_defaults()))


@cache
def class_defaults() -> Mapping[str, Mapping[str, Any]]:
    """What a config may leave out, by model_type: the defaults of the published configuration classes."""
    return json.loads((_DATA.parent / "model_class_defaults.json").read_bytes())["defaults"]


def model(name_or_path: str | Path) -> Model:
    """The Model of a shipped name or of a config file."""
    text = str(name_or_path)
    path = Path(text)
    if path.is_file():
        return model_from_config(json.loads(path.read_text()), text)
    names = model_names()
    folded = {n.lower(): n for n in names}
    found = folded.get(text.lower())
    if found is None:
        tails = [n for n in names if n.lower().rsplit("/", 1)[-1] == text.lower()]
        if len(tails) == 1:
            found = tails[0]
    if found is None:
        raise UnknownName("model", text, names)
    facts = json.loads((_DATA / (found.replace("/", "--", 1) + ".json")).read_text())
    if "config" not in facts:
        raise CatalogError(f"{found}: no config")
    return model_from_config(facts["config"], found)
