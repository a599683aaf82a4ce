"""The serving commands as people run them: a door that opens and closes in order, and one line for what cannot be."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from pathlib import Path

TWIN = ("twin", "--model", "meta-llama/Llama-3.2-1B-Instruct", "--gpu", "h100-sxm", "--port", "0", "--json")


def gambrel(*words: str) -> subprocess.Popen[str]:
    code = "from gambrel.faces.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def opened(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON document that says where the door is."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.rstrip() == "}":
            return dict(json.loads(text))
    raise AssertionError(process.communicate()[1])


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - the loopback
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - the loopback
        return dict(json.load(answer))


def test_a_twin_behind_a_recorder_from_the_command_line(tmp_path: Path) -> None:
    with gambrel(*TWIN, "--truth", str(tmp_path / "truth.jsonl")) as twin:
        try:
            url = opened(twin)["url"]
            log = tmp_path / "log.jsonl"
            with gambrel("record", "--upstream", url, "--port", "0", "--out", str(log), "--json") as recorder:
                try:
                    found = ask(opened(recorder)["url"], {"prompt": "one two three", "max_tokens": 4})
                    assert found["usage"]["total_tokens"] == 7
                finally:
                    recorder.send_signal(signal.SIGINT)
                    _, talk = recorder.communicate(timeout=20)
            assert recorder.returncode == 0
            assert "1 requests recorded" in talk
            assert json.loads(log.read_text())["prompt_tokens"] == 3
        finally:
            twin.send_signal(signal.SIGTERM)
            _, talk = twin.communicate(timeout=20)
    assert twin.returncode == 0
    assert "served 1 requests" in talk
    assert len((tmp_path / "truth.jsonl").read_text().splitlines()) == 2


def run(*words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    from gambrel.faces.cli import main

    monkeypatch.setattr(sys, "argv", ["gambrel", *words])
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_compare_prints_a_table_or_one_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {f"{m}_s": {"mean": 0.1, "p50": 0.1, "p99": 0.2} for m in ("ttft", "tpot", "itl", "e2e")}
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps(document | {"output_tokens_per_s": 100.0}))
    b.write_text(json.dumps(document | {"output_tokens_per_s": 50.0}))
    status, out, _ = run("compare", str(a), str(b), capsys=capsys, monkeypatch=monkeypatch)
    assert status == 0
    assert "ttft.p50" in out
    status, out, _ = run("compare", str(a), str(b), "--json", capsys=capsys, monkeypatch=monkeypatch)
    assert json.loads(out)["metrics"]["output_tokens_per_s"]["ratio"]["value"] == 0.5


@pytest.mark.parametrize("columns", ["80", "100"])
def test_compare_cuts_no_figure_and_no_verdict(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gambrel.faces.console import show
    from gambrel.faces.serve_commands import comparison_tables
    from gambrel.measure.compare import compare
    from gambrel.measure.importers.benchmark import Row, imported_run
    from gambrel.measure.sides import Side

    def side(slower: float) -> Side:
        rows = []
        for i in range(60):
            first, last = i + (0.09 + 0.02 * (i % 7)) * slower, i + (1.1 + 0.3 * (i % 5)) * slower
            gaps = np.full(999, (last - first) / 999)
            rows.append(Row(arrival_s=i, first_s=first, last_s=last, prompt_tokens=9, output_tokens=1000, gaps=gaps))
        return Side("a run of a long name", imported_run(rows, source="made", basis="made"))

    monkeypatch.setenv("COLUMNS", columns)
    found = compare(side(1.0), side(1.5))
    show(comparison_tables(found))
    out = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in out
    assert max(map(len, out.splitlines())) <= int(columns)
    assert out.count("B slower") == sum(v.verdict == "higher" for v in found.metrics) > 10
    assert sum(line.count(" to ") == 3 for line in out.splitlines()) == len(found.metrics)
    assert "output_tokens_per" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compare", "none-a", "none-b"), "cannot read none-a"),
        (("record", "--upstream", "ftp://x"), "--upstream must be a URL"),
        (("record", "--upstream", "foo"), "--upstream must be a URL like http://127.0.0.1:8000, got 'foo'"),
        (("record", "--upstream", "http://"), "--upstream must be a URL"),
        (("record", "--upstream", "http://[::1"), "--upstream must be a URL"),
        (("record", "--upstream", "http://x", "--port", "99999"), "'--port'"),
        (("twin", "-m", "Llama-3.1-8B-Instruct", "-g", "l4", "-p", "99999"), "0<=x<=65535"),
        (("serve-embedded", "-p", "-1"), "'--port'"),
        (("ui", "--port", "65536"), "'--port'"),
        (("measure", "-u", "http://127.0.0.1:1", "-m", "m", "--processes", "-1"), "--processes must be at least 0"),
        (("measure", "-u", "http://127.0.0.1:1", "-m", "m", "--shared-prefix", "-1"), "--shared-prefix must be"),
        (("selfcheck", "1", "--processes", "-1"), "--processes must be at least 0"),
        (("validate", "none.csv", "--markdown", "/proc/x"), "/proc/x: cannot be written"),
        (("calibrate", "none.csv", "--out", "/proc/x"), "/proc/x: cannot be written"),
        (("calibrate", "none.csv", "--out", "/"), "/: cannot be written (a folder is there)"),
        (("record", "--upstream", "http://x", "--rotate-mb", "0"), "--rotate-mb"),
        ((*TWIN, "--scale", "0"), "time scale"),
        ((*TWIN, "--grace", "-1"), "--grace"),
        ((*TWIN, "--max-num-seqs", "9000"), "max_num_batched_tokens"),
        ((*TWIN, "--host", "host.invalid"), "cannot listen"),
        (("serve-embedded", "--path", "none.gguf"), "none.gguf"),
    ],
)
def test_one_clear_line_and_status_2(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = run(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert status == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_asking_whether_a_file_can_be_written_leaves_it_as_it_is(tmp_path: Path) -> None:
    from gambrel.faces.console import writable

    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("precious")
    writable(old, new, None, folders=(tmp_path / "folder",))
    assert old.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [old]
