from __future__ import annotations

import subprocess
import sys

import pytest

import gambrel as gb
from gambrel.faces import api


def test_every_public_name_is_there() -> None:
    for name in api.__all__:
        assert callable(getattr(gb, name)), name


def test_a_room_of_the_same_name_never_hides_a_function() -> None:
    from gambrel.plan import (
        Space,  # binds the room to its name in the package
        planner,
    )

    assert Space(()).tp
    assert callable(planner.plan)
    assert callable(gb.plan)
    first = gb.plan("meta-llama/Llama-3.1-8B-Instruct", "chat:rate=1,n=100", ["ttft.p95<=5s"], gpus=["l40s"])
    again = gb.plan("meta-llama/Llama-3.1-8B-Instruct", "chat:rate=1,n=100", ["ttft.p95<=5s"], gpus=["l40s"])
    assert first.chosen.deployment.label == again.chosen.deployment.label


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(AttributeError, match="it has accelerator"):
        _ = gb.plant


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import gambrel, sys; print(sorted(m for m in ('numpy', 'numba', 'rich', 'typer') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
