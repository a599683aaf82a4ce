from __future__ import annotations

import re
from pathlib import Path

import pytest

import gambrel.plan

ROOM = Path(str(gambrel.plan.__file__)).parent
OWN_UNITS = re.compile(r"\$\{|:[+,]*\.\d+f\} ?(?:GiB|GB|ms|s|%|/h)\b|:\+?\.\d%\}")
"""A dollar sign before a figure, a formatted figure with its unit, a share as per cent."""


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.py")), ids=lambda p: p.name)
def test_the_plans_sentences_take_their_units_from_the_report(path: Path) -> None:
    found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if OWN_UNITS.search(line)]
    assert found == [], "human units belong to gambrel.report.humanise"
