"""Compile a kernel once and keep it on disk, until anything it is made of changes.

numba stamps cached machine code with the time of the kernel's own file, so an edit of the cost formula in
:mod:`gambrel.core.step`, or of the places in :mod:`gambrel.engine.state`, would go unseen and the old code would run.
Here the stamp also holds a digest of all those parts. Where no directory can be written nothing is cached, instead
of failing.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["compiled", "digest", "inlined"]

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_PARTS: dict[Callable[..., Any], tuple[Callable[..., Any], ...]] = {}


def compiled(*parts: Callable[..., Any], allocates: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: numba's ``njit``, cached under a digest of the function and the ``parts`` it calls.

    No fastmath: the oracle must see the same bits. No parallel: a replica is sequential. Kernels that make no arrays
    do without reference counts, which would take more time than a step when one kernel calls another.
    """
    options = _OPTIONS | {"_nrt": allocates}

    def wrap(function: Callable[..., Any]) -> Any:
        _PARTS[function] = parts
        try:
            kernel = njit(cache=True, **options)(function)
        except RuntimeError:  # no directory for a cache
            return njit(**options)(function)
        file = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
        if file is not None:  # absent under NUMBA_DISABLE_JIT
            file._source_stamp = (file._source_stamp, repr(options), digest(function, *parts))  # noqa: SLF001 - numba has no public way
        return kernel

    return wrap


def inlined(kernel: Any) -> Any:
    """The kernel as part of whoever calls it: handing over fifty arrays takes longer than a step."""
    options = _OPTIONS | {"_nrt": False, "forceinline": True}
    return njit(**options)(getattr(kernel, "py_func", kernel))


def digest(*parts: Callable[..., Any]) -> str:
    """Bytecode and constants of the functions and their parts, and the numbers that they name, such as places."""
    said = hashlib.sha256()
    said_of = [getattr(part, "py_func", part) for part in parts]
    for part in said_of:  # grows while it is read: parts have parts
        said_of += [p for p in (getattr(q, "py_func", q) for q in _PARTS.get(part, ())) if p not in said_of]
        code = part.__code__
        named = [(name, part.__globals__[name]) for name in code.co_names if name in part.__globals__]
        numbers = [(name, value) for name, value in named if isinstance(value, int | float)]
        said.update(repr((code.co_code, code.co_consts, code.co_names, numbers)).encode())
    return said.hexdigest()
