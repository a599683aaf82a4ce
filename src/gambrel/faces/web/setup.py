"""A choice of model, accelerator and formats as the page makes it: names in, a deployment out.

Only names of the catalogs are taken, never a path: what a browser sends must not make the server read files. A
``config.json`` that is in no catalog is sent as itself, and has a name of its own until the server stops.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from starlette.concurrency import run_in_threadpool

from gambrel.core.errors import CatalogError, DeploymentError, GambrelError, UnknownName
from gambrel.core.formats import KV_FORMATS, WEIGHT_FORMATS
from gambrel.faces import api
from gambrel.faces.web.uploads import Upload, received, safe_name, scrub

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request

    from gambrel.core.accelerator import Accelerator
    from gambrel.core.deployment import Deployment
    from gambrel.core.model import Model

__all__ = ["Dollars", "Name", "Setup", "Tp", "catalog_document", "chosen_accelerator", "chosen_model", "take_model"]

DEFAULT_MODEL: Final = "meta-llama/Llama-3.1-8B-Instruct"
DEFAULT_GPU: Final = "h100-sxm"
UPLOADED: Final = "uploaded/"
EMBEDDED: Final = "embedded/SmolLM2-135M-Instruct"
OFFERED_WEIGHTS: Final = ("bf16", "fp16", "fp8", "int8", "int4", "mxfp4", "nvfp4", "q8_0", "q4_k_m")
OFFERED_KV: Final = ("bf16", "fp16", "fp8", "int8")

Name = Annotated[str, msgspec.Meta(max_length=200)]
Dollars = Annotated[float, msgspec.Meta(ge=1e-4, lt=1e6)]
Tp = Annotated[int, msgspec.Meta(ge=1, le=64)]

MOST_CONFIG_BYTES: Final = 2 * 10**6
KEPT_MODELS: Final = 16
_uploaded: OrderedDict[str, Model] = OrderedDict()


def chosen_model(name: str) -> Model:
    """A model of the catalog by its full name.

    Raises:
        UnknownName: no such model; the nearest three are named.
    """
    if name in _uploaded:
        return _uploaded[name]
    if name == EMBEDDED:
        return _embedded()
    if name.startswith(UPLOADED):
        raise UnknownName("model", name[:200], (), "the server forgets: give its config.json again")
    names = model_names()
    if name not in names:
        raise UnknownName("model", name[:200], names)
    return _model(name)


@lru_cache(maxsize=1)
def _embedded() -> Model:
    """The embedded engine's model in the format of its file; raises EndpointError where that is not installed."""
    from gambrel.measure.embedded import gguf_path

    return replace(api.model(gguf_path()), name=EMBEDDED)


async def take_model(request: Request, asked: Upload) -> dict[str, Any]:
    """Read a config.json: the name under which the model can be chosen from now on."""
    async with received(request, safe_name(asked.name), MOST_CONFIG_BYTES) as path:
        return await run_in_threadpool(_take, path)


def _take(path: Path) -> dict[str, Any]:
    tag = hashlib.sha256(path.read_bytes()).hexdigest()[:6]
    config = path.rename(path.with_name("config.json"))
    try:
        read = api.model(config)
    except GambrelError as error:
        raise CatalogError(scrub(str(error), config)) from error
    name = f"{UPLOADED}{path.stem}-{tag}"
    _uploaded[name] = replace(read, name=name)
    while len(_uploaded) > KEPT_MODELS:
        _uploaded.popitem(last=False)
    return {"name": name, "total_params": read.total_params}


@lru_cache(maxsize=32)
def _model(name: str) -> Model:
    return api.model(name)


@lru_cache(maxsize=1)
def model_names() -> tuple[str, ...]:
    """Every model of the catalog."""
    from gambrel.catalog.models import model_names as names

    return tuple(names())


@lru_cache(maxsize=512)
def chosen_accelerator(name: str, price: float | None = None) -> Accelerator:
    """An accelerator of the catalog by id or usual spelling, with the person's own price if there is one."""
    return api.accelerator(name, price=price)


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration of the Explore view; ``weights`` and ``kv`` of "" mean the checkpoint's own."""

    model: Name = DEFAULT_MODEL
    gpu: Name = DEFAULT_GPU
    tp: Tp = 1
    weights: Name = ""
    kv: Name = ""
    price: Dollars | None = None

    def deployment(self) -> Deployment:
        """One replica of it.

        Raises:
            CatalogError, DeploymentError: an unknown name, or a degree the model or the machine does not allow.
        """
        return _deployment(self)

    def choices(self) -> dict[str, Any]:
        """What the other settings can be, for this model on this accelerator."""
        model, device = chosen_model(self.model), chosen_accelerator(self.gpu)
        own = model.checkpoint_format
        return {
            "tp": [tp for tp in (1, 2, 4, 8, 16, 32, 64) if _possible(model, device, tp)],
            "weights": [own, *(w for w in OFFERED_WEIGHTS if w != own and w in WEIGHT_FORMATS)],
            "kv": [k for k in OFFERED_KV if k in KV_FORMATS],
            "max_context": model.max_context,
        }


def _possible(model: Model, device: Accelerator, tp: int) -> bool:
    from gambrel.cost.shards import tp_is_possible

    return tp_is_possible(model, device, tp)


@lru_cache(maxsize=128)
def _deployment(setup: Setup) -> Deployment:
    model, device = chosen_model(setup.model), chosen_accelerator(setup.gpu, setup.price)
    if not _possible(model, device, setup.tp):
        raise DeploymentError(
            f"tp {setup.tp} is not possible: {device.title} joins at most {device.max_tp}, and {model.num_heads} heads "
            "and their key-value heads must divide evenly"
        )
    settings: dict[str, Any] = {"tp": setup.tp}
    settings |= {k: v for k, v in (("weights", setup.weights), ("kv", setup.kv)) if v}
    return api.deployment(model, device, **settings)


def catalog_document() -> dict[str, Any]:
    """Every model and accelerator there is to choose from, and the themes that charts are drawn in."""
    shipped = _shipped()
    own = [] if shipped["embedded"]["missing"] else [EMBEDDED]
    return shipped | {"models": [*_uploaded, *own, *shipped["models"]]}


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Any]:
    from gambrel.measure.embedded import INSTALL, missing_packages
    from gambrel.report import theme

    rentable = {a.name for a in api.default_accelerators()}
    return {
        "models": list(model_names()),
        "gpus": [
            {
                "name": a.name,
                "title": a.title,
                "vendor": a.vendor,
                "memory_bytes": a.memory_bytes,
                "usd_per_hour": None if a.price is None else a.price.usd_per_hour,
                "price_basis": None if a.price is None else a.price.basis,
                "rentable": a.name in rentable,
            }
            for a in api.accelerators().values()
        ],
        "default": {"model": DEFAULT_MODEL, "gpu": DEFAULT_GPU},
        "embedded": {"missing": list(missing_packages()), "install": INSTALL},
        "themes": {"light": theme(), "dark": theme(dark=True)},
    }
