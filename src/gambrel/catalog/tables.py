"""The raw tables behind accelerators and prices: what gambrel ships, then what the user adds or overrides.

One schema serves both, so that the shipped file is the example to copy and passes the same checks. Later files win
field by field: shipped, ``$XDG_CONFIG_HOME/gambrel/catalog.toml``, the files of ``$GAMBREL_CATALOG``, the files given.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from gambrel.core.errors import CatalogError, UnknownName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = [
    "FAMILIES", "MATH_FORMATS", "PRICE_KINDS", "Tables", "fold", "shipped_accelerators", "shipped_prices", "tables",
    "user_files",
]  # fmt: skip

FAMILIES: Final = (
    "volta", "turing", "ampere", "ada", "hopper", "blackwell", "cdna2", "cdna3", "cdna4",
    "xe", "tpu", "gaudi", "davinci", "musa", "neuron", "apple", "cpu",
)  # fmt: skip
MATH_FORMATS: Final = ("bf16", "fp16", "fp8", "int8", "fp4")
PRICE_KINDS: Final = ("on_demand", "reserved", "spot", "serverless", "community", "owned")

_DATA: Final = Path(__file__).with_name("data")
_ENV: Final = "GAMBREL_CATALOG"

# Words that people put into a product's name and that do not tell two products apart.
_NOISE: Final = frozenset(
    {
        *("nvidia", "amd", "intel", "google", "aws", "apple", "geforce", "instinct", "tesla", "quadro"),
        *("cpu", "gpu", "graphics", "generation"),
        *("hbm", "hbm2", "hbm2e", "hbm3", "hbm3e", "gddr6", "gddr6x", "gddr7"),
    }
)


@dataclass(frozen=True, slots=True)
class Tables:
    """Rows by canonical name, each checked, with the file it came from.

    Attributes:
        accelerators: fields of each accelerator.
        user_prices: checked rows of the users' files, whole-machine dollars, by accelerator.
        spellings: folded spelling -> canonical name.
        absent: folded spelling -> (spelling, why gambrel leaves it out).
    """

    accelerators: Mapping[str, Mapping[str, Any]]
    user_prices: Mapping[str, tuple[Mapping[str, Any], ...]]
    spellings: Mapping[str, str]
    absent: Mapping[str, tuple[str, str]]

    def resolve(self, name: str) -> str:
        """The canonical name of any spelling, e.g. ``A100-SXM-80GB`` -> ``a100-sxm-80``.

        Raises:
            UnknownName: there is none; the nearest three, and the reason where gambrel leaves it out knowingly.
        """
        folded = fold(name)
        found = self.spellings.get(folded)
        if found is not None:
            return found
        why = self.absent.get(folded)
        raise UnknownName(
            "accelerator",
            name,
            self.accelerators,
            why[1] if why else "a catalog file can add it, see docs/catalog.md",
        )


def fold(name: str) -> str:
    """A spelling without what people vary: case, separators, vendor, memory kind, ``GB``, the digit of ``SXM5``."""
    words = [w for w in re.split(r"[^a-z0-9+]+", name.lower()) if w and w not in _NOISE]
    words = [re.sub(r"^sxm\d$", "sxm", re.sub(r"^(\d+)gi?b$", r"\1", w)) for w in words]
    if "gb" in words[1:]:  # "80 GB": the unit stands apart
        words.remove("gb")
    return "".join(words)


def user_files(files: Sequence[Path] = ()) -> list[Path]:
    """The user's catalog files in the order they apply; the default location counts only where it exists."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    default = Path(config) / "gambrel" / "catalog.toml"
    listed = [Path(p) for p in os.environ.get(_ENV, "").split(os.pathsep) if p]
    return [*([default] if default.is_file() else []), *listed, *(Path(f) for f in files)]


def tables(files: Sequence[Path] = ()) -> Tables:
    """Shipped tables with the user's files laid over them.

    Raises:
        CatalogError: a file cannot be read, or a table or field in it is not what it should be.
        UnknownName: a price is for an accelerator that neither gambrel nor the file knows.
    """
    paths = user_files(files)
    shipped = _shipped()
    if not paths:
        return shipped
    accelerators = {name: dict(row) for name, row in shipped.accelerators.items()}
    raw_prices: list[tuple[str, Mapping[str, Any]]] = []
    for path in paths:
        document = _read(path)
        stray = set(document) - {"accelerators", "prices"}
        if stray:
            raise CatalogError(
                f"{path}: unknown table {_near(min(stray), ('accelerators', 'prices'))}; "
                "known: [accelerators.NAME] and [[prices]]"
            )
        _lay_over(accelerators, document, path, _index(accelerators, shipped.absent))
        raw_prices += _price_rows(document, path)
    merged = _index(accelerators, shipped.absent)
    prices: dict[str, list[Mapping[str, Any]]] = {}
    for where, row in raw_prices:
        try:
            name = merged.resolve(row["accelerator"])
        except UnknownName as unknown:
            raise CatalogError(f"{where}: accelerator: {unknown}") from None
        prices.setdefault(name, []).append(row)
    return Tables(
        merged.accelerators, {name: tuple(rows) for name, rows in prices.items()}, merged.spellings, merged.absent
    )


@cache
def _shipped() -> Tables:
    """What gambrel ships, checked like a user's file."""
    path = _DATA / "accelerators.toml"
    document = _read(path)
    accelerators: dict[str, dict[str, Any]] = {}
    absent = {fold(spelling): (spelling, str(why)) for spelling, why in document.pop("absent").items()}
    _lay_over(accelerators, document, path, Tables({}, {}, {}, {}))
    return _index(accelerators, absent)


def shipped_accelerators() -> Mapping[str, Mapping[str, Any]]:
    """Fields of every accelerator that gambrel ships, by canonical name, whatever a user's file says of it."""
    return _shipped().accelerators


@cache
def shipped_prices() -> Mapping[str, tuple[Mapping[str, str], ...]]:
    """Rows of the shipped price list by accelerator, as text."""
    rows: dict[str, list[Mapping[str, str]]] = {}
    with (_DATA / "prices.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["accelerator"], []).append(row)
    return MappingProxyType({name: tuple(found) for name, found in rows.items()})


def _index(accelerators: Mapping[str, Mapping[str, Any]], absent: Mapping[str, tuple[str, str]]) -> Tables:
    """Spellings of every accelerator: its name, its title, its aliases; a name beats another one's alias."""
    spellings: dict[str, str] = {}
    for name, row in accelerators.items():
        for spelling in (row["title"], *row.get("aliases", ())):
            spellings[fold(spelling)] = name
    spellings.update((fold(name), name) for name in accelerators)
    return Tables(accelerators, {}, spellings, absent)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise CatalogError(f"{path}: not UTF-8 text (byte {error.start}); a catalog file is TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{path}: not TOML: {error}") from None


def _lay_over(accelerators: dict[str, dict[str, Any]], document: Mapping[str, Any], path: Path, known: Tables) -> None:
    """Add or override accelerators by the tables of one document."""
    for name, table in _tables_of(document, "accelerators", path).items():
        where = f"{path}: [accelerators.{name}]"
        fields = dict(table)
        like = fields.pop("like", None)
        _check(fields, _ACCELERATOR_FIELDS, where)
        target = known.spellings.get(fold(name), name)
        base = accelerators.get(target, {})
        if like is not None:
            if not isinstance(like, str):
                raise CatalogError(f"{where} like: must be the name of an accelerator, got {like!r}")
            try:
                base = accelerators[known.resolve(like)]
            except UnknownName as unknown:
                raise CatalogError(f"{where} like: {unknown}") from None
            base = {k: v for k, v in base.items() if k not in {"aliases", "title"}}
        if not base or like is not None:
            fields.setdefault("title", name)
        if path.parent != _DATA:
            fields.setdefault("source", f"user file {path.name}")
            fields.setdefault("confidence", "user")
        row = {**base, **fields}
        missing = [f for f in ("family", "peak_flops", "memory_bytes", "memory_bandwidth") if f not in row]
        if missing:
            raise CatalogError(
                f'{where}: lacks {", ".join(missing)}; give them, or start from a known one with like = "h100-sxm"'
            )
        accelerators[target] = row


def _price_rows(document: Mapping[str, Any], path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Checked price rows of one document, with where each stands."""
    rows = document.get("prices", [])
    if not isinstance(rows, list):
        raise CatalogError(f"{path}: prices: write each price as its own [[prices]] table")
    checked: list[tuple[str, Mapping[str, Any]]] = []
    for number, row in enumerate(rows, 1):
        where = f"{path}: [[prices]] {number}"
        if not isinstance(row, dict):
            raise CatalogError(f"{where}: must be a table, got {row!r}")
        _check(row, _PRICE_FIELDS, where)
        missing = [f for f in ("accelerator", "usd_per_hour") if f not in row]
        if missing:
            raise CatalogError(f"{where}: lacks {', '.join(missing)}")
        checked.append((where, {"source": f"user file {path.name}", **row}))
    return checked


def _tables_of(document: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Mapping[str, Any]]:
    found = document.get(key, {})
    if not isinstance(found, dict) or not all(isinstance(t, dict) for t in found.values()):
        raise CatalogError(f"{path}: {key}: write each as its own [{key}.NAME] table")
    return found


def _check(fields: Mapping[str, Any], rules: Mapping[str, Callable[[Any], str | None]], where: str) -> None:
    """Every field is known and its value passes its rule; a rule answers what would have been right."""
    for field, value in fields.items():
        rule = rules.get(field)
        if rule is None:
            raise CatalogError(f"{where}: unknown field {_near(field, rules)}")
        wanted = rule(value)
        if wanted is not None:
            raise CatalogError(f"{where} {field}: must be {wanted}, got {value!r}")


def _near(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)
    return f"{word!r}, nearest {close[0]!r}" if close else repr(word)


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "text in quotes"


def _texts(value: Any) -> str | None:
    ok = isinstance(value, list) and all(isinstance(v, str) for v in value)
    return None if ok else "a list of texts"


def _number(least: float, wanted: str, *, most: float = math.inf) -> Callable[[Any], str | None]:
    def rule(value: Any) -> str | None:
        ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return None if ok and least <= value <= most else wanted

    return rule


def _count(value: Any) -> str | None:
    return None if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else "a whole number from 1"


def _one_of(known: Sequence[str]) -> Callable[[Any], str | None]:
    return lambda value: None if isinstance(value, str) and value in known else f"one of {', '.join(known)}"


def _peaks(value: Any) -> str | None:
    wanted = f"a table of dense FLOP/s such as {{ bf16 = 989e12 }}, formats {', '.join(MATH_FORMATS)}, each from 1e9"
    if not isinstance(value, dict) or not value:
        return wanted
    flops = _number(1e9, wanted)
    return next((wanted for k, v in value.items() if k not in MATH_FORMATS or flops(v)), None)


_bytes = _number(1e6, "bytes (80 GB is 80e9), at least 1e6")
_rate = _number(1e8, "bytes/s (3350 GB/s is 3350e9), at least 1e8")
_link = _number(0, "bytes/s in one direction (450 GB/s is 450e9), 0 without a link")

_ACCELERATOR_FIELDS: Final[Mapping[str, Callable[[Any], str | None]]] = MappingProxyType(
    {
        "title": _text,
        "aliases": _texts,
        "vendor": _text,
        "family": _one_of(FAMILIES),
        "peak_flops": _peaks,
        "memory_bytes": _bytes,
        "memory_bandwidth": _rate,
        "link": _text,
        "link_bandwidth": _link,
        "link_domain": _count,
        "max_tp": _count,
        "pcie_bandwidth": _link,
        "network_bandwidth": _link,
        "tdp_w": _number(1, "watts, at least 1"),
        "l2_bytes": _number(1e3, "bytes, at least 1e3"),
        "devices": _count,
        "device": _text,
        "year": _number(2000, "a year", most=2100),
        "confidence": _text,
        "source": _text,
        "date": _text,
        "notes": _text,
    }
)

_PRICE_FIELDS: Final[Mapping[str, Callable[[Any], str | None]]] = MappingProxyType(
    {
        "accelerator": _text,
        "provider": _text,
        "instance_type": _text,
        "region": _text,
        "kind": _one_of(PRICE_KINDS),
        "gpu_count": _count,
        "usd_per_hour": _number(0, "dollars per hour of the whole machine, at least 0"),
        "as_of": _text,
        "source": _text,
        "confidence": _text,
        "note": _text,
    }
)
