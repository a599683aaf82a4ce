"""A person's fitted constants: every command that prices a step takes them, for their own accelerator and engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from gambrel.calibrate.profile import Profile, write_profile
from gambrel.faces.cli import app

if TYPE_CHECKING:
    from pathlib import Path

SERVED = ("--model", "meta-llama/Llama-3.1-8B-Instruct", "--gpu", "h100-sxm")
USERS = ("--users", "4", "--prompt", "200", "--output", "20")
COMMANDS = {
    "curve": ("curve", *SERVED, "--batch", "1", "--context", "512"),
    "simulate": ("simulate", *SERVED, *USERS),
    "plan": ("plan", *SERVED, *USERS, "--slo", "tpot.p95<=50ms", "--tp", "1", "--weights", "bf16", "--kv", "bf16"),
}


@pytest.fixture
def slower(tmp_path: Path) -> Path:
    """Half the bandwidth that matmuls reach by default."""
    path = tmp_path / "profile.toml"
    write_profile(Profile("h100-sxm", "vllm", {"bandwidth": 0.5}, {"bandwidth": (0.4, 0.6)}, 0.05, 0.1, "a test"), path)
    return path


def answer(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def decode_s(command: str, found: dict[str, Any]) -> float:
    if command == "curve":
        return float(found["points"][0]["step_s"])
    if command == "simulate":
        return float(found["tpot_s"]["p50"])
    return float(found["chosen"]["slo"]["tpot.p95"]["reached_s"])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prices_steps_by_the_profile(command: str, slower: Path) -> None:
    shipped = decode_s(command, answer(*COMMANDS[command]))
    fitted = decode_s(command, answer(*COMMANDS[command], "--profile", str(slower)))
    assert 1.6 < fitted / shipped < 2.0  # weights are most of a small batch's step, and host times stay


def test_a_profile_of_another_accelerator_changes_nothing_and_says_so(slower: Path) -> None:
    words = ("curve", *SERVED[:3], "l4", "--batch", "1", "--context", "512", "--json")
    with_it = CliRunner().invoke(app, [*words, "--profile", str(slower)])
    assert with_it.stdout == CliRunner().invoke(app, [*words]).stdout
    assert "fitted on h100-sxm under vllm and changes nothing here" in with_it.stderr
