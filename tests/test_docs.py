"""The documents tell the truth: commands and code run, links lead somewhere, no command is left out.

A ``console`` or ``bash`` block's ``gambrel ...`` lines run in a folder that holds the shipped sample log as
``requests.csv`` and eight published measurements as ``published.csv``. ``<!-- not run: reason -->`` before a block
skips it; ``<!-- exits 1: reason -->`` says that it ends with that status.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!--(?P<mark>[^>]*)-->\s*\n)?^```(?P<kind>\w+)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    kind: str
    body: str
    mark: str

    @property
    def label(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(*kinds: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match["kind"] in kinds:
                line = text.count("\n", 0, match.start("body"))
                found.append(Block(page, line, match["kind"], match["body"], (match["mark"] or "").strip()))
    return found


def commands(block: Block) -> list[str]:
    """The gambrel commands of a block; a ``console`` block has prompts and output, a ``bash`` block neither."""
    body = block.body.replace("\\\n", " ")
    lines = [line.strip() for line in body.splitlines()]
    if block.kind == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.split(" ")[0] == "gambrel"]


COMMANDS = [(block, command) for block in blocks("console", "bash") for command in commands(block)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the documents' commands run: the sample log as a person's own."""
    where = tmp_path_factory.mktemp("docs")
    sample = files("gambrel.traffic").joinpath("data", "sample.csv.gz")
    (where / "requests.csv").write_bytes(gzip.decompress(sample.read_bytes()))
    published = Path(__file__).parent / "facts" / "published_rows.csv"
    (where / "published.csv").write_bytes(published.read_bytes())
    return where


@pytest.mark.parametrize(("block", "command"), COMMANDS, ids=[f"{b.label} {c[:60]}" for b, c in COMMANDS])
def test_command_runs(block: Block, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.mark.startswith("not run:"):
        pytest.skip(block.mark)
    exits = re.match(r"exits (\d+):", block.mark)
    want = int(exits[1]) if exits else 0
    monkeypatch.chdir(folder)
    words = shlex.split(command, comments=True)
    if any(w in {"|", ">", "&&", ";"} for w in words):
        monkeypatch.setenv("PATH", str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"])
        shell = ["bash", "-o", "pipefail", "-c", command]
        done = subprocess.run(shell, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == want, done.stderr
        return
    from gambrel.faces.cli import main

    monkeypatch.setattr(sys, "argv", words)
    status, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
    assert status == want, err.getvalue() or out.getvalue()


PYTHON = [b for b in blocks("python") if not b.mark.startswith("not run:")]


@pytest.mark.parametrize("page", sorted({b.page for b in PYTHON}), ids=lambda p: p.name)
def test_python_blocks_run_in_order(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in (b for b in PYTHON if b.page == page):
            code = compile("\n" * block.line + block.body, str(page), "exec")
            exec(code, names)  # noqa: S102 - the project's own documents


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        if not found.exists():
            lost.append(target)
        elif anchor and found.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), flags=re.MULTILINE)
            if anchor not in {re.sub(r"[^\w -]", "", t).strip().lower().replace(" ", "-") for t in titles}:
                lost.append(target)
    assert lost == []


def test_every_page_is_in_the_contents() -> None:
    listed = re.findall(r":\s*([\w-]+\.md)\s*$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == [p.name for p in PAGES[1:]]


def test_command_reference_is_current() -> None:
    script = ["scripts/command_reference.py", "docs/commands.md", "--check"]
    done = subprocess.run([sys.executable, *script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_command_is_shown_at_work() -> None:
    import typer

    from gambrel.faces.cli import app

    known = set(getattr(typer.main.get_command(app), "commands"))  # noqa: B009 - typer's types hide it
    shown = {c.split()[1] for _, c in COMMANDS if len(c.split()) > 1}
    assert known <= shown, f"no document runs: {', '.join(sorted(known - shown))}"
    assert {s for s in shown if not s.startswith("-")} <= known
