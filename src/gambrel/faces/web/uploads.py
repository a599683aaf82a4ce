"""What a person sends as a file: bounded while it arrives, read in a temporary folder, gone before the answer leaves.

The server's folders are nobody's business: a message about an upload names the file as the person does.
"""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from gambrel.core.errors import GambrelError
from gambrel.report import humanise as say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

__all__ = ["Upload", "received", "safe_name", "scrub"]

NAME: Final = "file"


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """What the file is called; its ending says how to read it."""

    name: Annotated[str, msgspec.Meta(max_length=400)] = NAME


@asynccontextmanager
async def received(request: Request, name: str, most: int) -> AsyncIterator[Path]:
    """The body of a request as a file of a safe name, for as long as the context lasts.

    Raises:
        GambrelError: it is empty, or longer than ``most`` bytes; no more than that is read.
    """
    with tempfile.TemporaryDirectory(prefix="gambrel-") as folder:
        path = Path(folder) / name
        size = 0
        with path.open("wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise GambrelError(f"{name}: larger than {say.num_bytes(most)}, which is all that is read")
                file.write(chunk)
        if size == 0:
            raise GambrelError(f"{name}: the file is empty")
        yield path


def safe_name(given: str) -> str:
    """The name of an upload as a file name: its last part, printable, its endings kept for the readers."""
    name = PurePosixPath(given.replace("\\", "/")).name
    clean = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[-80:].lstrip(".-")
    return clean or NAME


def scrub(text: str, path: Path) -> str:
    """A message about an upload without the server's folder, even where a library cut the path short."""
    return " ".join(text.replace(str(path), path.name).replace(f"{path.parent}/", "").split())
