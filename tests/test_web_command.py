"""``gambrel ui`` as a person starts it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("uvicorn", reason="the page needs the extra gambrel[web]")

if TYPE_CHECKING:
    from collections.abc import Iterator

UI = [sys.executable, "-c", "from gambrel.faces.cli import main; main()", "ui", "--port", "0"]


@contextmanager
def served(*options: str) -> Iterator[str]:
    """The address that a started server prints."""
    with subprocess.Popen([*UI, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"http://\S+", process.stderr.readline())
            assert found is not None
            yield found.group()
        finally:
            process.terminate()


def test_it_serves_on_loopback_at_a_free_port() -> None:
    with served() as address, urlopen(f"{address}api/profiles", timeout=20) as answer:  # noqa: S310 - our own address
        assert address.startswith("http://127.0.0.1:")
        assert "token" not in address
        assert {p["name"] for p in json.load(answer)["profiles"]} >= {"chat", "code"}


def test_beyond_loopback_it_asks_for_the_token_it_printed() -> None:
    with served("--host", "0.0.0.0") as address:  # noqa: S104 - that is what is tested
        port, token = re.findall(r":(\d+)/\?token=(\S+)", address)[0]
        here = f"http://127.0.0.1:{port}/api/profiles"
        with pytest.raises(HTTPError, match="401"):
            urlopen(here, timeout=20)
        request = Request(here, headers={"authorization": f"Bearer {token}"})
        with urlopen(request, timeout=20) as answer:  # noqa: S310 - our own address
            assert answer.status == 200


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        found = subprocess.run([*UI, "--port", port], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith(f"gambrel: cannot listen on 127.0.0.1 port {port}")
    assert found.stderr.count("\n") == 1
