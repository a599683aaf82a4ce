"""A server in a process of its own, so that it and the client do not share an interpreter's lock.

The child is told what to be on the first line of its standard input and ends with that input, that is, with whoever
began it, however that ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO, Final

import msgspec

from gambrel.core.errors import EndpointError

__all__ = ["STDIN", "STDOUT", "begun", "told"]

STDIN: Final = 0
STDOUT: Final = 1


def begun(module: str, settings: object) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """A module of ours as a process that was told its settings, and what it prints."""
    process = subprocess.Popen([sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - our own module
    if process.stdin is None or process.stdout is None:
        raise EndpointError(f"{module} has no pipes")
    process.stdin.write(msgspec.json.encode(settings) + b"\n")
    process.stdin.flush()
    return process, process.stdout


def told() -> bytes:
    """In the child: the line with its settings."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(STDIN, 1 << 16)
    return line
