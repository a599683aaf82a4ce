from __future__ import annotations

import io
import itertools
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from gambrel.core.deployment import Deployment
from gambrel.core.errors import DeploymentError, WorkloadError
from gambrel.core.slo import SLO
from gambrel.core.workload import Workload
from gambrel.faces import advise_commands, api
from gambrel.faces.advise_commands import advice_tables
from gambrel.plan.advice import advise
from gambrel.plan.explain import MOST_CARRIED
from gambrel.plan.trial import Bench, judge
from gambrel.traffic.server_metrics import watched_server
from test_plan_file import run
from test_plan_search import MODEL, chat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gambrel.plan.advice import Advice

SLOS = SLO.parse(["ttft.p95<=1s", "tpot.p95<=50ms"])


def on(replicas: int, rate: float, change: Callable[[Workload], Workload] = lambda w: w, **settings: int) -> Advice:
    deployment = Deployment(MODEL, api.accelerator("l40s"), replicas=replicas, **settings)  # type: ignore[arg-type]  # whole numbers all
    return advise(deployment, change(chat(400, rate)), SLOS, api.pricer())


def test_too_many_replicas_are_said_to_be_too_many() -> None:
    found = on(5, 5.0)
    assert found.candidate.feasible
    assert found.fewer is not None
    smaller = found.fewer.deployment
    assert smaller.replicas < 5
    assert found.change.startswith(f"{smaller.replicas} instead of 5 replicas")
    assert judge(smaller, Bench.of(api.cost_model(smaller)), chat(400, 5.0), SLOS).candidate.feasible


def test_an_overloaded_deployment_is_told_the_cheapest_change_that_holds() -> None:
    found = on(1, 14.0)
    assert not found.candidate.feasible
    assert found.carries < 1.0
    assert found.fewer is None
    assert any(fix.meets_slo for fix in found.fixes)
    assert found.change.startswith(next(fix.change for fix in found.fixes if fix.meets_slo))


def test_a_deployment_beyond_the_search_is_offered_nothing_it_would_not_gain() -> None:
    """Both it and its neighbours carry what nobody looks beyond; none of them is better for that."""
    found = on(1, 0.2)
    assert found.carries == MOST_CARRIED
    assert not found.fixes
    assert found.change.startswith("leave it as it is")
    console = Console(width=200, file=io.StringIO())
    for block in advice_tables(found):
        console.print(block)
    assert "8x this load or more" in console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above


def test_a_hopeless_one_is_told_to_plan_anew() -> None:
    assert "lan anew" in on(1, 200.0).change


def test_what_binds_is_named() -> None:
    assert "max_num_seqs 4 is reached" in on(1, 8.0, max_num_seqs=4).binds
    assert "weights" in on(1, 0.5).binds


def test_the_log_speaks_where_it_can() -> None:
    found = on(2, 5.0, lambda w: replace(w, service_s=np.full(len(w), 60.0)))
    assert found.logged_e2e_p50_s == 60.0
    rows = advice_tables(found)
    assert rows


def test_a_request_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DeploymentError, match="longest request"):
        advise(
            Deployment(MODEL, api.accelerator("l4")),
            Workload(np.zeros(1), np.array([5_000_000]), np.array([5])),
            SLOS,
            api.pricer(),
        )


def test_the_command_exits_by_what_it_finds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["advise", "-m", "meta-llama/Llama-3.1-8B-Instruct", "-g", "l40s", "--slo", "ttft.p95<=1s", "--json"]
    status, out, _ = run(monkeypatch, capsys, *ask, "-w", "chat:rate=2,n=200")
    assert status == 0
    document = json.loads(out)
    assert document["holds"] is True
    assert document["change"]
    status, out, _ = run(monkeypatch, capsys, *ask, "-w", "chat:rate=60,n=400")
    assert status == 1
    assert json.loads(out)["holds"] is False


# What a server says of itself

PAGE = """# HELP vllm:request_success_total Finished requests by reason.
vllm:request_success_total{{finished_reason="stop"}} {n}
vllm:request_prompt_tokens_bucket{{le="500"}} 0
vllm:request_prompt_tokens_bucket{{le="1000"}} {n}
vllm:request_prompt_tokens_bucket{{le="+Inf"}} {n}
vllm:request_prompt_tokens_sum {prompt}
vllm:request_generation_tokens_bucket{{le="100"}} 0
vllm:request_generation_tokens_bucket{{le="200"}} {n}
vllm:request_generation_tokens_bucket{{le="+Inf"}} {n}
vllm:request_generation_tokens_sum {output}
vllm:time_to_first_token_seconds_bucket{{le="0.1"}} 0
vllm:time_to_first_token_seconds_bucket{{le="0.25"}} {n}
vllm:time_to_first_token_seconds_bucket{{le="+Inf"}} {n}
vllm:time_to_first_token_seconds_sum {ttft}
"""


def page(n: int) -> str:
    return PAGE.format(n=n, prompt=800 * n, output=150 * n, ttft=0.15 * n)


def test_a_watched_server_has_the_rate_its_counters_grew_at() -> None:
    figures = watched_server("a server", [(0.0, page(1000)), (30.0, page(1100)), (60.0, page(1160))])
    log = figures.workload()
    assert len(log) == 160
    assert log.has_arrivals
    assert log.rate_rps == pytest.approx(160 / 60, rel=0.1)
    assert float(log.prompt_tokens.mean()) == pytest.approx(800, rel=0.02)
    assert advise_commands.said(figures)["ttft"]["p95"] == (0.1, 0.25)


def test_one_page_is_not_a_watch() -> None:
    with pytest.raises(WorkloadError, match="two or more"):
        watched_server("a server", [(0.0, page(5))])


def test_the_command_watches_a_live_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    counted = itertools.count(1000, 20)

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/metrics"
            body = page(next(counted)).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        ask = [
            "advise",
            "-m",
            MODEL.name,
            "-g",
            "l40s",
            "--slo",
            "ttft.p95<=9s",
            "--url",
            url,
            "--watch",
            "2",
            "--json",
        ]
        status, out, talk = run(monkeypatch, capsys, *ask)
        server.shutdown()
        thread.join()
    assert status in {0, 1}, talk
    document = json.loads(out)
    assert document["server"]["ttft"]["p95"] == [0.1, 0.25]
    assert "made from a server's counters" in talk


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ([], "either --workload"),
        (["--url", "ftp://x"], "http://"),
        (["--url", "http://127.0.0.1:9"], "cannot be read"),
        (["-w", "PAGE"], "--rate"),
    ],
)
def test_traffic_that_cannot_be_had_is_one_line(
    ask: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "metrics.txt"
    saved.write_text(page(300))
    words = [str(saved) if word == "PAGE" else word for word in ask]
    status, _, err = run(monkeypatch, capsys, "advise", "-m", MODEL.name, "-g", "l40s", "--slo", "ttft.p95<=1s", *words)
    assert status == 2
    assert message in err.splitlines()[-1]


def test_a_saved_page_with_its_rate_is_compared_with_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "metrics.txt"
    saved.write_text(page(300))
    ask = ["advise", "-m", MODEL.name, "-g", "l40s", "--slo", "ttft.p95<=1s", "-w", str(saved), "--rate", "2"]
    status, out, _ = run(monkeypatch, capsys, *ask)
    assert status == 0
    assert "ttft.p95 within 100 ms to 250 ms, simulated" in " ".join(out.split())
