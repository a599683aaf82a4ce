"""What the page's server answers, and what it refuses."""

from __future__ import annotations

import gzip
import re
import tempfile
import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from web_client import Answer, ask

pytest.importorskip("starlette", reason="the page needs the extra gambrel[web]")

from gambrel.faces import api
from gambrel.faces.web import planning, traffic, uploads, wire
from gambrel.faces.web.app import create_app
from gambrel.faces.web.explore import ExploreRequest, explore_document
from gambrel.faces.web.learn import SHOW, Dials, lessons_by_slug
from gambrel.report import humanise as say

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.faces.web.jobs import Job

APP = create_app()
LOG = b"arrival_s,prompt_tokens,output_tokens\n" + b"".join(b"%d,%d,%d\n" % (i, 200 + i, 20) for i in range(300))


def explored(query: dict[str, str]) -> list[dict[str, Any]]:
    sides: list[dict[str, Any]] = explore_document(wire.asked(ExploreRequest, query))["sides"]
    return sides


def fine(answer: Answer) -> Any:
    assert answer.status in {200, 202}, answer.body
    return answer.json()


# Who may ask --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8620", "127.0.0.1.evil.example", "", "[", "localhost@x"]
)
def test_other_host_names_are_refused(host: str) -> None:
    assert ask(APP, "/api/explore", headers={"host": host}).status == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:8620", "[::1]:8620"])
def test_loopback_names_pass(host: str) -> None:
    assert ask(APP, "/api/profiles", headers={"host": host}).status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://localhost"])
def test_requests_of_other_pages_are_refused(origin: str) -> None:
    refused = ask(APP, "/api/traffic/generate", method="POST", body={}, headers={"origin": origin})
    assert refused.status == 403
    own = {"origin": "http://127.0.0.1:8620"}
    assert ask(APP, "/api/traffic/generate", method="POST", body={}, headers=own).status == 200


def test_beyond_loopback_a_token_is_needed_once() -> None:
    app = create_app({"box"}, "s3cret")
    box = {"host": "box:80"}
    assert ask(app, "/api/profiles", headers=box).status == 401
    assert ask(app, "/api/profiles", {"token": "wrong"}, headers=box).status == 401
    entered = ask(app, "/explore", {"token": "s3cret", "batch": "8"}, headers=box)
    assert (entered.status, entered.headers["location"]) == (303, "/explore?batch=8")
    cookie = entered.headers["set-cookie"]
    assert "httponly" in cookie.lower()
    assert "samesite=strict" in cookie.lower()
    assert ask(app, "/api/profiles", headers=box | {"cookie": cookie.split(";")[0]}).status == 200
    assert ask(app, "/api/profiles", headers=box | {"authorization": "Bearer s3cret"}).status == 200
    assert ask(app, "//evil.example", {"token": "s3cret"}, headers=box).headers["location"] == "/evil.example"


@pytest.mark.parametrize("path", ["/", "/explore", "/api/explore", "/no/such/page", "/assets/ui.js"])
def test_every_answer_carries_the_policy(path: str) -> None:
    headers = ask(APP, path).headers
    assert "script-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_the_page_has_no_inline_script_and_asks_nobody_else() -> None:
    html = ask(APP, "/").body.decode()
    assert re.search(r"<script(?![^>]*\bsrc=)", html) is None
    assert re.search(r"\son[a-z]+=|\sstyle=|<style", html) is None
    for name in ("ui.html", "ui.js", "ui.css"):
        assert "//" not in re.sub(
            r"^\s*//.*$| // .*$|, *//.*$", "", text(name).replace("http://127.0.0.1", ""), flags=re.MULTILINE
        ), name


def text(name: str) -> str:
    return files("gambrel.faces.web").joinpath("static", name).read_text(encoding="utf-8")


def test_every_id_the_script_asks_for_is_in_the_page() -> None:
    html, script = text("ui.html"), text("ui.js")
    made = set(re.findall(r'\bid="([\w-]+)"', html)) | set(re.findall(r'id: "([\w-]+)"', script))
    wanted = set(re.findall(r'\$\("([\w-]+)"\)', script))
    assert wanted - made <= {"window-start", "window-stop", "compare", "single"}


def test_all_that_is_transferred_is_small() -> None:
    zipped = {"accept-encoding": "gzip"}
    names = ("/", "/assets/ui.js", "/assets/ui.css", "/assets/vega.js", "/api/catalog")
    sizes = [len(ask(APP, name, headers=zipped).body) for name in names]
    assert sum(sizes) + len(ask(APP, "/api/explore").body) < 1.6e6
    plain = ask(APP, "/assets/ui.js").body
    assert gzip.decompress(ask(APP, "/assets/ui.js", headers=zipped).body) == plain


# Explore ------------------------------------------------------------------------------------------------------------


def test_explore_says_what_the_curve_says() -> None:
    side = explored({"batch": "64", "context": "3000", "gpu": "l40s", "form": "serial"})[0]
    d = api.deployment("meta-llama/Llama-3.1-8B-Instruct", "l40s")
    curve = api.curve(d, [64], [3000])
    told = {f["label"]: f["value"].replace("\u00a0", " ") for f in side["facts"]}
    assert told["a step"] == say.seconds(float(curve.step_s[0]))
    assert curve.usd_per_mtok is not None
    assert told["$ per Mtok"] == say.dollars(float(curve.usd_per_mtok[0]))
    assert [i["name"] for i in side["items"]] == ["latency-vs-batch", "cost-vs-batch", "step-vs-context", "memory"]


def test_a_second_side_keeps_what_is_not_its_own() -> None:
    query = {"gpu": "l40s", "price": "9", "weights": "fp8", "tp": "2", "b.gpu": "h100-sxm"}
    other = explored(query)[1]["setup"]
    assert (other.price, other.weights, other.tp) == (None, "fp8", 2)
    other = explored(query | {"b.model": "openai/gpt-oss-20b", "b.price": "3"})[1]["setup"]
    assert (other.price, other.weights) == (3.0, "")


def test_two_sides_share_their_scales() -> None:
    found = explored({"b.gpu": "l4", "b.weights": "fp8"})
    assert found[1]["setup"].model == found[0]["setup"].model
    for a, b in zip(found[0]["items"], found[1]["items"], strict=True):
        for channel in ("x", "y"):
            domains = [
                e["scale"]["domain"]
                for item in (a, b)
                for layer in item["spec"]["layer"]
                if (e := layer["encoding"].get(channel, {})).get("type") == "quantitative" and "scale" in e
            ]
            assert all(d == domains[0] for d in domains)


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ({"model": "/etc/passwd"}, "unknown model"),
        ({"model": "../../config.json"}, "unknown model"),
        ({"gpu": "h100-sxn"}, "h100-sxm"),
        ({"tp": "3"}, "tp 3 is not possible"),
        ({"tp": "0"}, ">= 1"),
        ({"batch": "1e9"}, "batch"),
        ({"price": "-1"}, "price"),
        ({"weights": "fp7"}, "fp7"),
        ({"form": "exact"}, "form"),
    ],
)
def test_what_cannot_be_explored_is_one_line(query: dict[str, str], word: str) -> None:
    answer = ask(APP, "/api/explore", query)
    assert answer.status == 400
    assert word in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("gpu", ["t4", "inferentia2", "cpu-epyc-9654", "b300-sxm"])
@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-405B", "tiiuae/falcon-mamba-7b", "deepseek-ai/DeepSeek-V3"])
def test_what_fits_nowhere_or_has_no_price_is_still_drawn(model: str, gpu: str) -> None:
    assert ask(APP, "/api/explore", {"model": model, "gpu": gpu}).status == 200


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(
            ["model", "gpu", "tp", "weights", "kv", "price", "batch", "context", "form", "b.gpu", "b.tp", "x"]
        ),
        st.one_of(
            st.text(max_size=12),
            st.integers(-5, 10**7).map(str),
            st.floats().map(str),
            st.sampled_from(["fp8", "int4", "nvfp4", "max", "serial", "textbook", "l4", "mi300x", "tpu-v5e", "h20"]),
        ),
    )
)
def test_any_query_is_answered_or_refused(query: dict[str, str]) -> None:
    answer = ask(APP, "/api/explore", query)
    assert answer.status in {200, 400}, answer.body
    if answer.status == 400:
        assert answer.json()["error"]


# Any request at all -------------------------------------------------------------------------------------------------

ROUTES = [
    "/api/catalog", "/api/explore", "/api/profiles", "/api/traffic", "/api/traffic/generate", "/api/traffic/x",
    "/api/plan", "/api/plan/x", "/api/plan/x/events", "/api/plan/x/whatif", "/api/plan/x/export/plan.json",
    "/api/measure", "/api/measure/x", "/api/measure/x/events", "/api/measure/x/export/x",
    "/api/learn", "/api/learn/roof", "/api/learn/queue", "/api/learn/x", "/assets/x", "/learn/x", "/nowhere",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["traffic", "model", "slo", "gpus", "prices", "tp", "weights", "max_gpus", "profile", "rate", "id", "start_s"]


@settings(max_examples=150)
@given(
    st.sampled_from(ROUTES),
    st.sampled_from(["GET", "POST", "DELETE", "PUT", "HEAD", "PATCH"]),
    st.dictionaries(
        st.sampled_from([*KEYS, "load", "prompt", "replicas", "batch", "cv", "stop_s", "name"]), st.text(max_size=8)
    ),
    st.one_of(st.binary(max_size=40), st.dictionaries(st.sampled_from(KEYS), JSON)),
)
def test_no_request_is_a_defect(path: str, method: str, query: dict[str, str], body: bytes | dict[str, Any]) -> None:
    answer = ask(APP, path, query, method=method, body=body)
    assert answer.status < 500, answer.body


def test_a_long_body_is_refused_before_it_is_read() -> None:
    answer = ask(APP, "/api/plan", method="POST", body=b"[" * 200_000)
    assert answer.status == 400
    assert "longer than" in answer.json()["error"]
    assert ask(APP, "/api/plan", method="POST", body=b"[" * 60_000).status == 400


# Traffic ------------------------------------------------------------------------------------------------------------


def test_a_dropped_log_is_described_and_nothing_of_it_is_left_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = fine(ask(APP, "/api/traffic", {"name": "../../my log.csv"}, method="POST", body=LOG))
    assert list(tmp_path.iterdir()) == []
    assert found["num_requests"] == 300
    assert str(tmp_path) not in str(found)
    assert found["name"] == "my-log"
    assert {i["name"] for i in found["items"]} >= {"prompt-lengths", "joint-lengths", "in-flight-over-time", "bursts"}
    part = fine(ask(APP, f"/api/traffic/{found['id']}", {"start_s": "100", "stop_s": "150"}))
    assert part["num_requests"] == 50
    assert part["span_s"] == found["span_s"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "empty"),
        (b"hello", "log.csv"),
        (b"a,b\n1,2\n", "log.csv"),
        (b"\x1f\x8b broken", "log.csv"),
        (b"PAR1", "log.csv"),
    ],
)
def test_what_is_no_log_is_one_line_without_the_servers_paths(
    body: bytes, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    answer = ask(APP, "/api/traffic", {"name": "log.csv"}, method="POST", body=body)
    assert answer.status == 400
    assert word in answer.json()["error"]
    assert str(tmp_path) not in answer.json()["error"]


def test_an_upload_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "MOST_BYTES", 1000)
    answer = ask(APP, "/api/traffic", {"name": "log.csv"}, method="POST", body=LOG)
    assert "larger than" in answer.json()["error"]


def test_old_logs_are_forgotten() -> None:
    ids = [
        fine(ask(APP, "/api/traffic", {"name": "log.csv"}, method="POST", body=LOG))["id"]
        for _ in range(traffic.KEPT + 1)
    ]
    assert "no longer here" in ask(APP, f"/api/traffic/{ids[0]}").json()["error"]
    assert ask(APP, f"/api/traffic/{ids[-1]}").status == 200


@given(st.text(max_size=200))
def test_the_name_of_an_upload_is_a_plain_file_name(name: str) -> None:
    clean = uploads.safe_name(name)
    assert clean
    assert not clean.startswith(".")
    assert "/" not in clean
    assert "\\" not in clean
    assert len(clean) <= 80


# Plan ---------------------------------------------------------------------------------------------------------------

QUICK = {"slo": ["ttft.p95<=1s", "tpot.p95<=60ms"], "gpus": ["l40s", "a100-pcie-80"], "tp": [1], "max_gpus": 8}


def log_id() -> str:
    return str(fine(ask(APP, "/api/traffic", {"name": "log.csv"}, method="POST", body=LOG))["id"])


@pytest.fixture(scope="module")
def planned() -> str:
    key = str(fine(ask(APP, "/api/plan", method="POST", body=QUICK | {"traffic": {"id": log_id()}}))["id"])
    wait(key)
    return key


def wait(key: str) -> Job[planning.Planned]:
    job = planning.JOBS.job(key)
    limit = time.monotonic() + 60
    while not job.ended and time.monotonic() < limit:
        time.sleep(0.02)
    assert job.ended
    return job


def test_a_search_tells_its_parts_and_ends(planned: str) -> None:
    events = [e["kind"] for e in planning.JOBS.job(planned).events]
    assert events[:1] == ["part"]
    assert events[-1] == "done"
    told = ask(APP, f"/api/plan/{planned}/events").body
    assert told.count(b"data: ") == len(events)


def test_a_plan_is_answered_with_report_and_files(planned: str) -> None:
    found = fine(ask(APP, f"/api/plan/{planned}"))
    names = [i.get("name") for s in found["report"]["sections"] for i in s["items"]]
    assert {"candidates", "cells", "cost-vs-ttft", "cost-vs-tpot"} <= set(names)
    assert [e["name"] for e in found["exports"]] == list(planning.EXPORTS)


@pytest.mark.parametrize("name", list(planning.EXPORTS))
def test_every_file_can_be_taken_away(planned: str, name: str) -> None:
    answer = ask(APP, f"/api/plan/{planned}/export/{name}")
    assert answer.status == 200, answer.body
    assert len(answer.body) > 40
    assert "attachment" in answer.headers["content-disposition"]


def test_a_what_if_of_nothing_is_the_plan_itself(planned: str) -> None:
    found = planning.JOBS.found(planned)
    plan, same = found.plan, planning.whatif_answer(found, planning.WhatIf())
    told = {f["label"]: f["value"].replace("\u00a0", " ") for f in same["facts"]}
    for verdict in plan.chosen.verdicts:
        assert told[verdict.objective.name] == say.seconds(verdict.reached)
    assert same["holds"]


def test_more_load_is_slower_and_more_price_dearer(planned: str) -> None:
    found = planning.JOBS.found(planned)
    plan = found.plan
    price = plan.chosen.deployment.accelerator.price
    assert price is not None
    twice = planning.whatif_answer(found, planning.WhatIf(price=2 * price.usd_per_hour))
    usd = plan.chosen.deployment.usd_per_hour
    assert usd is not None
    assert next(f["value"] for f in twice["facts"] if f["label"] == "cost") == say.per_hour(2 * usd)
    assert fine(ask(APP, f"/api/plan/{planned}/whatif", {"load": "8", "prompt": "2"}))["facts"]
    assert ask(APP, f"/api/plan/{planned}/whatif", {"load": "1e9"}).status == 400


def test_a_search_can_be_cancelled_and_only_one_runs() -> None:
    asked = {"slo": ["ttft.p95<=1s"], "traffic": {"id": log_id()}}
    key = fine(ask(APP, "/api/plan", method="POST", body=asked))["id"]
    second = ask(APP, "/api/plan", method="POST", body=asked)
    assert fine(ask(APP, f"/api/plan/{key}", method="DELETE")) == {"cancelled": True}
    assert planning.JOBS.job(key).ended  # at once, whatever its thread is at
    job = wait(key)
    assert "still running" in second.json()["error"]
    assert job.events[-1]["kind"] == "cancelled"
    assert ask(APP, f"/api/plan/{key}").status == 404


def test_a_search_without_an_answer_says_why() -> None:
    asked = QUICK | {"slo": ["ttft.p95<=1us"], "traffic": {"id": log_id()}}
    job = wait(fine(ask(APP, "/api/plan", method="POST", body=asked))["id"])
    assert job.events[-1]["kind"] == "failed"
    assert "no deployment meets" in job.events[-1]["text"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"slo": []}, "slo"), ({"slo": ["fast"]}, "fast"), ({"gpus": []}, "no accelerator"), ({"gpus": ["x1"]}, "x1"),
        ({"model": "/etc/passwd"}, "unknown model"), ({"weights": ["fp9"]}, "fp9"), ({"tp": []}, "tp"),
        ({"kv": ["fp9"]}, "fp9"), ({"confidence": 0.2}, "confidence"), ({"spare": -1}, "spare"),
        ({"available": {"x1": 2}}, "x1"), ({"available": {"l4": 0}}, "available"), ({"growth": 0}, "growth"),
        ({"prices": {"l4": 0}}, "prices"), ({"traffic": {"id": "x"}}, "drop it again"), ({"traffic": 1}, "traffic"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_one_line(change: dict[str, Any], word: str) -> None:
    body = QUICK | {"traffic": {"id": log_id()}} | change
    answer = ask(APP, "/api/plan", method="POST", body=body)
    assert answer.status in {400, 404}, answer.body
    assert word in answer.json()["error"]


# Learn --------------------------------------------------------------------------------------------------------------


def test_every_lesson_has_its_plot_and_known_dials() -> None:
    lessons = lessons_by_slug()
    assert list(SHOW) == list(lessons)
    script = text("ui.js")
    for slug, lesson in lessons.items():
        assert lesson.paragraphs
        for dial in lesson.dials:
            assert dial in Dials.__struct_fields__
            assert f"  {dial}: {{ text:" in script
        found = fine(ask(APP, f"/api/learn/{slug}"))
        assert len(found["items"]) == 1
        assert found["facts"]


def test_the_train_is_the_theory() -> None:
    told = {f["label"]: f["value"] for f in fine(ask(APP, "/api/learn/train", {"step_ms": "20"}))["facts"]}
    assert told["mean wait"].startswith("10.0")
    assert told["worst wait"].startswith("20.0")
    assert told["first token"].startswith("40.0")
