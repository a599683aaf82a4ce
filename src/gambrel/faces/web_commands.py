"""The command that serves the page: on this machine unless told otherwise, then with a token."""

from __future__ import annotations

import secrets
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from gambrel.core.errors import GambrelError
from gambrel.faces.serve_commands import Port  # noqa: TC001 - typer reads it from the signature

if TYPE_CHECKING:
    import socket

__all__ = ["register"]

ANY: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, never bound to by default

Host = Annotated[str, typer.Option("--host", help="Address to listen on; anything but loopback asks for a token.")]
Runs = Annotated[
    Path | None, typer.Option("--runs", help="Folder of measured runs to list and add to; else they stay in memory.")
]
Open = Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("ui")(ui_command)


def ui_command(host: Host = "127.0.0.1", port: Port = 8620, runs: Runs = None, open_browser: Open = False) -> None:
    """Serve the web page: see the knee, move it, decide."""
    try:
        import uvicorn

        from gambrel.faces.web.app import create_app, warm
        from gambrel.faces.web.guard import LOOPBACK
        from gambrel.faces.web.runs import LIBRARY
    except ImportError as error:
        raise GambrelError(f"the page needs the package {error.name}; install the extra: gambrel[web]") from error
    from gambrel.faces.console import talk

    if find_spec("vl_convert") is None:
        raise GambrelError("the page's charts need the package vl-convert-python; install the extra: gambrel[charts]")
    LIBRARY.open(runs)
    loopback = host in LOOPBACK
    token = None if loopback else secrets.token_urlsafe(24)
    hosts = LOOPBACK if loopback else frozenset() if host in ANY else frozenset({host.lower()})
    listening = _listen(host, port)
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
    config = uvicorn.Config(create_app(hosts, token), log_level="warning", server_header=False, access_log=False)
    talk(f"gambrel ui: {address} (Ctrl-C stops it)")
    threading.Thread(target=warm, daemon=True).start()
    if open_browser:
        import webbrowser

        webbrowser.open(address)
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    import socket

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise GambrelError(f"cannot listen on {host} port {port}: {reason}; --port 0 takes a free one") from error
