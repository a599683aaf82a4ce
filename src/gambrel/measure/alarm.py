"""A wake-up call within a tenth of a millisecond.

asyncio rounds its timers up to whole milliseconds on Linux and uvloop works in milliseconds, which is a tenth of a
decode step. The kernel's own timers are exact: ``timerfd`` becomes readable at an absolute monotonic time, and the
event loop watches it as it watches a socket. Where there is none, the loop's timer has to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Alarm"]

_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000  # TFD_NONBLOCK | TFD_CLOEXEC on Linux
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME


class _Spec(ctypes.Structure):
    """``struct itimerspec``: the interval (unused) and the time of expiry."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Alarm:
    """Calls ``wake()`` once at each time set with :meth:`at`; one at a time, the last one set holds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop, self._wake = loop, wake
        self._handle: Any = None
        self._descriptor = -1
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):
                self._libc = ctypes.CDLL(None, use_errno=True)
                self._descriptor = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._descriptor >= 0:
            loop.add_reader(self._descriptor, self._ring)

    def at(self, when_s: float) -> None:
        """Wake at ``when_s`` on ``time.monotonic``; at once when that has passed."""
        if self._descriptor < 0:
            self.cancel()
            self._handle = self._loop.call_later(max(0.0, when_s - time.monotonic()), self._wake)
            return
        ns = max(1, int(when_s * 1e9))
        spec = _Spec(0, 0, ns // 1_000_000_000, ns % 1_000_000_000)
        self._libc.timerfd_settime(self._descriptor, _ABSOLUTE, ctypes.byref(spec), None)

    def cancel(self) -> None:
        """Forget the time that was set."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._descriptor >= 0:
            self._libc.timerfd_settime(self._descriptor, 0, ctypes.byref(_Spec(0, 0, 0, 0)), None)

    def close(self) -> None:
        """Give the timer back."""
        self.cancel()
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _ring(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return
        self._wake()
