"""What the client needs of the machine it runs on: enough open files, and no pauses of its own making."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["no_garbage_pauses", "raise_file_limit"]


def raise_file_limit() -> int:
    """Allow this process as many open files as the machine lets it without asking; how many that is.

    A stream is a file; the usual soft limit of 1,024 is less than a load client needs.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1 << 20
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


@contextlib.contextmanager
def no_garbage_pauses() -> Iterator[None]:
    """Hold Python's cyclic collector off while measuring: a full pass stops every stream for tens of milliseconds."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
