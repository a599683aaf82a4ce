"""The embedded engine in a process of its own for as long as a measurement takes: something real to measure at once.

The engine holds its interpreter's lock for whole steps, so a client in the same process would measure the lock. The
child prints its address when it is warm and ends with its standard input, that is, with whoever began it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import msgspec

from gambrel.core.errors import EndpointError
from gambrel.measure.child import STDIN, STDOUT, begun, told

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["EmbeddedProcess"]


@dataclass
class EmbeddedProcess:
    """A context with the ``url`` and ``model`` of a warm embedded engine on the loopback.

    ``settings`` are arguments of :class:`gambrel.measure.embedded.Embedded`; ``progress`` gets a word on what is done.

    Raises:
        EndpointError: the engine is not installed or does not load; in its own words.
    """

    settings: dict[str, int] = field(default_factory=dict)
    progress: Callable[[str], None] = lambda _: None
    url: str = ""
    model: str = ""
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process, lines = begun("gambrel.measure.client_embedded", self.settings)
        for line in lines:
            said: dict[str, str] = msgspec.json.decode(line)
            if "error" in said:
                self._end()
                raise EndpointError(said["error"])
            if "url" in said:
                self.url, self.model = said["url"], said["model"]
                return self
            self.progress(said.get("word", ""))
        self._end()
        raise EndpointError("the embedded engine ended before it was ready")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _say(**words: str) -> None:
    os.write(STDOUT, msgspec.json.encode(words) + b"\n")


async def _serve(settings: dict[str, int]) -> None:
    from gambrel.measure.embedded import Embedded, serve_embedded

    engine = Embedded(progress=lambda word: _say(word=word), **settings)  # type: ignore[arg-type] # numbers, all of them
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(
        serve_embedded(engine, port=0, ready=lambda listener: _say(url=listener.url, model=engine.model))
    )

    def parent_spoke() -> None:
        if not os.read(STDIN, 1 << 12):
            task.cancel()

    loop.add_reader(STDIN, parent_spoke)
    try:
        await task
    except asyncio.CancelledError:
        loop.remove_reader(STDIN)


def main() -> None:
    """The child: settings on the first line of standard input, words and then the address on standard output."""
    try:
        asyncio.run(_serve(msgspec.json.decode(told(), type=dict[str, int])))
    except EndpointError as error:
        _say(error=str(error))


if __name__ == "__main__":
    main()
