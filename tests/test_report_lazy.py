from __future__ import annotations

import pytest

from gambrel import report


@pytest.mark.parametrize("name", report.__all__)
def test_every_offered_name_is_there_when_asked_for(name: str) -> None:
    assert getattr(report, name) is not None


def test_an_unknown_name_is_said_so() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = report.nothing
