"""What people type, as values: ``128k``, ``1,2,4``, ``1:1024``, ``H100=2.49``; a clear line when it cannot be read."""

from __future__ import annotations

from gambrel.core.errors import GambrelError

__all__ = ["counts", "number", "prices"]

SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9}


def number(text: str, what: str) -> int:
    """A whole number of at least 1; ``128k`` is 128,000 and ``1.5M`` is 1,500,000 (decimal, as tokens are counted).

    Raises:
        GambrelError: naming ``what`` and the text.
    """
    cleaned = text.strip().lower().replace("_", "")
    factor = SUFFIXES.get(cleaned[-1:], 1.0)
    digits = cleaned[:-1] if factor > 1 else cleaned
    try:
        value = float(digits) * factor
    except ValueError:
        value = 0.0
    if not (1 <= value < 1e15) or value != int(value):
        raise GambrelError(f"{what} must be a whole number of at least 1 like 512 or 128k, got {text!r}")
    return int(value)


def counts(text: str, what: str) -> list[int]:
    """``1,2,4`` as numbers, and ``1:1024`` as the doublings between (ends included).

    Raises:
        GambrelError: naming ``what`` and the part that cannot be read.
    """
    values: list[int] = []
    for part in text.split(","):
        if ":" in part:
            low_text, _, high_text = part.partition(":")
            low, high = number(low_text, what), number(high_text, what)
            if high < low:
                raise GambrelError(f"{what}: the range {part!r} ends before it starts")
            step = low
            while step < high:
                values.append(step)
                step *= 2
            values.append(high)
        elif part.strip():
            values.append(number(part, what))
    if not values:
        raise GambrelError(f"{what} needs at least one number, got {text!r}")
    return sorted(set(values))


def prices(texts: list[str]) -> dict[str, float]:
    """``h100-sxm=2.49`` as dollars per accelerator-hour by name.

    Raises:
        GambrelError: when one is not of that form.
    """
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            dollars = float(value)
        except ValueError:
            dollars = -1.0
        if not name or not (0 < dollars < 1e6):
            raise GambrelError(f"--price must be NAME=DOLLARS_PER_HOUR like h100-sxm=2.49, got {text!r}")
        found[name.strip().lower()] = dollars
    return found
