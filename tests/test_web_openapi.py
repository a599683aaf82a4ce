"""The OpenAPI description: it is of what is served, and no request that fits it, or does not, is a defect."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from web_client import ask

pytest.importorskip("starlette", reason="the page needs the extra gambrel[web]")
pytest.importorskip("schemathesis", reason="the fuzz test needs schemathesis, of the dev group")

import schemathesis

from gambrel.faces.web import measuring
from gambrel.faces.web.app import create_app, description, questions
from gambrel.faces.web.guard import HEADERS

if TYPE_CHECKING:
    from pathlib import Path

    from schemathesis import Case

pytest_plugins = ["schemathesis.pytest.plugin"]  # here alone: every other run starts 3 s sooner without it

APP = create_app()
SCHEMA = schemathesis.openapi.from_asgi("/api/openapi.json", APP, headers={"host": "127.0.0.1"})
MEANT = ("positive_data_acceptance",)  # a description cannot say which logs, names and objectives there are


@pytest.fixture(autouse=True)
def _nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fuzzer invents must not reach out of this process."""
    monkeypatch.setattr(measuring, "measured", lambda *_: "nothing")


def test_the_description_is_of_what_is_served() -> None:
    served = json.loads(ask(APP, "/api/openapi.json").body)
    assert served == json.loads(json.dumps(description()))
    assert {(p, m.upper()) for p, ways in served["paths"].items() for m in ways} == {
        (q.path, q.method) for q in questions()
    }
    operations = [o for ways in served["paths"].values() for o in ways.values()]
    assert len({o["operationId"] for o in operations}) == len(operations)
    assert all(o["summary"].endswith(".") for o in operations), [o["summary"] for o in operations]


@SCHEMA.parametrize()
@settings(max_examples=4, suppress_health_check=list(HealthCheck))
def test_no_request_is_a_defect(case: Case[Any]) -> None:
    checks: list[Any] = [schemathesis.checks.CHECKS.get_one(name) for name in MEANT]
    answer = case.call_and_validate(headers={"host": "127.0.0.1"}, excluded_checks=checks)
    assert answer.status_code < 500
    for name, value in HEADERS.items():
        assert answer.headers[name] == [value]
    if answer.status_code >= 400:
        told = json.loads(answer.content)["error"]
        assert told
        assert "\n" not in told


CONFIG = json.loads(
    """{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "model_type": "llama",
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 1000,
    "torch_dtype": "bfloat16", "max_position_embeddings": 2048}"""
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def give(config: Any) -> Any:
    body = config if isinstance(config, bytes) else json.dumps(config).encode()
    return ask(APP, "/api/models", {"name": "config.json"}, method="POST", body=body)


def test_a_config_becomes_a_model_that_can_be_explored() -> None:
    name = give(CONFIG).json()["name"]
    assert name.startswith("uploaded/config-")
    assert give(CONFIG).json()["name"] == name
    side = ask(APP, "/api/explore", {"model": name, "gpu": "l4"}).json()["sides"][0]
    assert name.rpartition("/")[2] in side["title"]
    assert name in ask(APP, "/api/catalog").json()["models"]
    gone = ask(APP, "/api/explore", {"model": "uploaded/other-123456"})
    assert (gone.status, "config.json again" in gone.json()["error"]) == (400, True)


@settings(max_examples=120)
@given(st.one_of(st.binary(max_size=30), JSON, st.dictionaries(st.sampled_from(list(CONFIG)), JSON).map(CONFIG.__or__)))
def test_any_config_is_a_model_or_refused_in_one_line(config: Any) -> None:
    answer = give(config)
    assert answer.status in {200, 400}, answer.body
    if answer.status == 400:
        assert "\n" not in answer.json()["error"]
        return
    explored = ask(APP, "/api/explore", {"model": answer.json()["name"]})
    assert explored.status in {200, 400}, explored.body


def test_a_config_has_a_limit_and_leaves_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert "larger than" in give(b" " * 3_000_000).json()["error"]
    told = give({"model_type": "nothing"}).json()["error"]
    assert str(tmp_path) not in told
    assert list(tmp_path.iterdir()) == []
