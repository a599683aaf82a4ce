"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("gambrel", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("gambrel")

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real traces and published measurements kept beside the checkout."""
    if not _SHARED.is_dir():
        pytest.skip("needs ../shared/data (real traces and published measurements), which is not beside this checkout")
    return _SHARED


@pytest.fixture(autouse=True)
def _no_catalog_of_the_developer(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog file of whoever runs the tests must not change what they test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-config"))
    monkeypatch.delenv("GAMBREL_CATALOG", raising=False)
