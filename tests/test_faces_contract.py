from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
BIG = "meta-llama/Llama-3.1-405B"
STATS = {"mean", "p50", "p90", "p95", "p99"}


def gambrel(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from gambrel.faces.cli import main; main()", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=300,
    )


def document(*words: str) -> dict[str, Any]:
    done = gambrel(*words, "--json")
    assert done.returncode in {0, 1}, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(7)
    path = tmp_path_factory.mktemp("log") / "requests.csv"
    arrival = np.cumsum(rng.exponential(0.2, 500))
    rows = zip(arrival, rng.integers(50, 2000, 500), rng.integers(1, 300, 500), strict=True)
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{a:.6f},{p},{o}\n" for a, p, o in rows))
    return path


def test_model_contract() -> None:
    found = document("model", MODEL)
    assert found["total_params"] == 8_030_261_248
    assert found["kv_bytes_per_token"] == 131_072
    assert found["decode_flops_per_token"] == 15_009_316_864
    assert found["attention_flops_per_token_per_context"] == 524_288
    assert found["state_bytes_per_sequence"] == 0
    assert found["weight_bytes"]["bf16"] == 16_060_522_496
    assert {"active_params", "kv_bytes_per_token_long"} <= set(found)


def test_curve_contract() -> None:
    found = document("curve", "--model", MODEL, "--gpu", "h100-sxm", "--context", "512,4096", "--batch", "1:64")
    named = {"floor_s", "ridge_batch", "balance_batch", "wall_batch", "crossover_context", "amortisation"}
    assert named <= set(found)
    point = {
        "batch", "context", "step_s", "compute_s", "weights_s", "kv_s", "collective_s", "overhead_s", "bound_by",
        "memory_bytes", "fits", "tokens_per_s", "usd_per_mtok",
    }  # fmt: skip
    assert len(found["points"]) == 14
    for p in found["points"]:
        assert point <= set(p)
        assert p["step_s"] >= found["floor_s"]


def test_workload_contract(log: Path) -> None:
    found = document("workload", str(log))
    assert found["num_requests"] == 500
    for name in ("prompt_tokens", "output_tokens"):
        assert {"mean", "p50", "p90", "p99", "max"} <= set(found[name])
    assert {"1s", "10s", "60s"} <= set(found["peak_to_mean"])
    assert {"mean", "p99", "max"} <= set(found["concurrency"])
    assert {"span_s", "rate_rps", "cv", "correlation", "warnings"} <= set(found)


def test_simulate_contract(log: Path) -> None:
    found = document("simulate", "--model", MODEL, "--gpu", "h100-sxm", "--workload", str(log))
    for metric in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s"):
        assert set(found[metric]) >= STATS
    assert {"mean", "max"} == set(found["kv_usage"]) == set(found["batch"])
    assert sum(found["time_bound_by"].values()) == pytest.approx(1)
    assert {"output_tokens_per_s", "num_preemptions", "usd_per_mtok", "wall_s"} <= set(found)


def test_plan_contract(log: Path) -> None:
    found = document(
        "plan", "--model", MODEL, "--workload", str(log), "--slo", "ttft.p95<=1s", "--slo", "tpot.p95<=50ms",
        "--gpu", "l4,l40s,h100-sxm",
    )  # fmt: skip
    assert found["chosen"]["feasible"]
    assert found["alternatives"]
    assert all(a["lost_because"] for a in found["alternatives"])
    assert found["biggest_gpu"]["gpu"] == "h100-sxm"
    assert set(found["breaks_at"]) == {"ttft.p95", "tpot.p95", "backlog"}
    assert len(found["demo_plan"]["cells"]) == 4
    assert {"cheaper_fixes", "intervals", "measure_next", "wall_s"} <= set(found)
    for v in found["chosen"]["slo"].values():
        assert v["met"]
        assert v["reached_s"] <= v["limit_s"]


def test_users_and_profiles_need_no_log() -> None:
    five = document(
        "plan", "--model", MODEL, "--users", "5", "--prompt", "16k", "--output", "200", "--slo", "tpot.p95<=60ms",
        "--gpu", "l40s,h100-sxm",
    )  # fmt: skip
    assert five["chosen"]["feasible"]
    chat = document(
        "plan", "--model", MODEL, "--workload", "chat:rate=2,n=300", "--slo", "ttft.p95<=2s", "--gpu", "l40s"
    )
    assert chat["chosen"]["feasible"]


BAD = [
    (("model", "meta-llama/Lama-3.1-8B"), "nearest"),
    (("curve", "--model", MODEL, "--gpu", "h1000"), "nearest"),
    (("curve", "--model", MODEL, "--gpu", "h100-sxm", "--weights", "fp3"), "unknown weight format"),
    (("curve", "--model", MODEL, "--gpu", "h100-sxm", "--batch", "0"), "--batch"),
    (("workload", "missing.csv"), "missing.csv"),
    (("simulate", "--model", MODEL, "--gpu", "l4"), "no traffic given"),
    (("plan", "--model", MODEL, "--workload", "chat:rate=1,n=100", "--slo", "ttft<"), "cannot read the objective"),
    (("plan", "--model", MODEL, "--workload", "chat:rate=1,n=100"), "no objective given"),
    (("plan", "--model", MODEL, "--users", "3", "--slo", "ttft<=1s"), "--prompt"),
    (("simulate", "--nonsense"), "--nonsense"),
    (("curve", "--model", MODEL, "--gpu", "h100-sxm", "--price", "h100-sxm=cheap"), "--price"),
    (
        ("simulate", "--model", MODEL, "--gpu", "l4", "--users", "3", "--column", "session=s"),
        "--column names the fields",
    ),
    (("advise", "--model", MODEL, "--gpu", "l4", "--slo", "ttft<=1s", "-u", "x", "--column", "session=s"), "--column"),
    (("fleet", "--model", MODEL, "--gpu", "l4", "--rate-series", "day:mean=1", "--column", "session=s"), "--column"),
    (("measure", "--url", "http://localhost:1", "--model", "m", "--column", "session=s"), "--column names the fields"),
    (("plan", "--model", MODEL, "-w", "chat:rate=1", "--slo", "ttft<=1s", "--column", "session=s"), "no such file"),
    (("curve", "--model", MODEL, "--gpu", "h100-sxm", "--context", "999999999999999"), "at most"),
    *(
        ((*command, "--model", name, "--gpu", "l4", "--tp", tp), said)
        for command in (
            ("curve",),
            ("simulate", "--workload", "chat:rate=1,n=50"),
            ("fleet", "--workload", "chat:rate=1,n=50"),
            ("fleet", "--rate-series", "day:mean=5,peak=1.8", "--shards", "random", "--hours", "1"),
            ("advise", "--workload", "chat:rate=1,n=50", "--slo", "ttft<=1s"),
            ("twin", "--port", "0"),
        )
        for name, tp, said in ((MODEL, "3", "degree 3 does not suit"), (BIG, "1", "GiB usable"))
    ),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(w)[:60] for w, _ in BAD])
def test_bad_input_is_one_clear_line_and_status_two(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = gambrel(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert said in lines[0]


@pytest.mark.parametrize(
    "words",
    [
        ("simulate", "--users", "2", "--prompt", "200k", "--output", "5"),
        ("curve", "--context", "4k,200k"),
        ("fleet", "--workload", "long.csv"),
        ("advise", "--workload", "long.csv", "--slo", "ttft<=60min"),
    ],
    ids=lambda words: words[0],
)
def test_what_is_longer_than_the_models_context_is_said_on_stderr(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n300,200000,5\n600,100,5\n")
    done = gambrel(*words, "--model", MODEL, "--gpu", "h100-sxm", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert "the 131,072 tokens of" in done.stderr
    assert "unless it is told otherwise" in done.stderr
    assert "long.csv" not in words or "1 of 3 requests" in done.stderr


def test_an_impossible_objective_is_status_one() -> None:
    done = gambrel(
        "plan", "--model", MODEL, "--workload", "chat:rate=1,n=100", "--slo", "tpot.p95<=0.01ms", "--gpu", "l4"
    )
    assert done.returncode == 1
    assert "tpot.p95 reaches" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missed_objective_of_a_simulation_is_status_one(log: Path) -> None:
    done = gambrel(
        "simulate", "--model", MODEL, "--gpu", "l4", "--workload", str(log), "--slo", "ttft.p50<=0.1ms", "--json"
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["slo"]["ttft.p50"]["met"] is False


def test_one_option_names_the_fields_of_a_log_wherever_one_is_read(tmp_path: Path) -> None:
    import typing

    from gambrel.faces.cli import app
    from gambrel.faces.logs import LogColumns

    reads = [c for c in app.registered_commands if "workload" in typing.get_type_hints(c.callback)]
    assert {"plan", "simulate", "advise", "fleet", "measure"} <= {c.name for c in reads}
    for command in reads:
        assert typing.get_type_hints(command.callback, include_extras=True).get("columns") == LogColumns, command.name
    odd = tmp_path / "odd.csv"
    odd.write_text("a,b,c\n" + "".join(f"{i},{100 + i},{20 + i}\n" for i in range(30)))
    named = ("--column", "arrival_s=a", "--column", "prompt_tokens=b", "--column", "output_tokens=c")
    asked = ("--model", MODEL, "--gpu", "l40s", "--slo", "ttft.p95<=1s")
    simulate = ("simulate", *asked, "-w", str(odd))
    for words in (
        ("workload", str(odd)), simulate, ("advise", *asked, "-w", str(odd)), ("fleet", *asked, "-w", str(odd)),
        ("plan", *asked[:4], "--slo", "k:ttft.p95<=1s", "--tp", "1", "--mix", f"k={odd}"),
    ):  # fmt: skip
        assert document(*words, *named)
    refused = gambrel(*simulate)
    assert refused.returncode == 2
    assert "--column prompt_tokens=FIELD, in Python columns={'prompt_tokens': 'FIELD'}" in refused.stderr


def test_a_time_of_zero_among_epochs_is_refused_by_whoever_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "z.csv"
    rows = "".join(f"{t},100,20\n" for t in (1_700_000_000, 0, 1_700_000_001))
    path.write_text("timestamp,prompt_tokens,output_tokens\n" + rows)
    done = gambrel("plan", "--model", MODEL, "--gpu", "l40s", "-w", str(path), "--slo", "ttft.p95<=1s")
    assert done.returncode == 2
    assert "row 3, field 'timestamp': found '0'" in done.stderr


@pytest.mark.parametrize("option", ["--out", "--markdown", "--trace", "--html", "--images"])
def test_an_output_that_cannot_be_written_is_refused_before_the_search(option: str, tmp_path: Path) -> None:
    """The search itself would end with status 1: it is not come to, and nothing is made or emptied."""
    kept = tmp_path / "kept.txt"
    kept.write_text("words")
    taken = kept if option == "--images" else tmp_path
    for path in (taken, kept / "beneath"):
        done = gambrel(
            "plan", "-m", MODEL, "-w", "chat:rate=1,n=100", "--slo", "tpot.p95<=0.01ms", "-g", "l4", option, str(path)
        )
        assert done.returncode == 2, done.stderr
        assert f"{path}: cannot be written" in done.stderr
    assert kept.read_text() == "words"
    assert list(tmp_path.iterdir()) == [kept]


COMMANDS = (
    ("model", MODEL), ("workload", "chat:rate=1,n=200"), ("workload", "chat:rate=1,n=200", "--json"),
    ("simulate", "-m", MODEL, "-g", "l4", "-w", "chat:rate=1,n=50"), ("--help",),
)  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_reader_who_leaves_is_neither_success_nor_a_plan_that_fails(words: tuple[str, ...]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    call = [sys.executable, "-c", "from gambrel.faces.cli import main; main()", *words]
    done = subprocess.run(call, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    assert done.returncode == 141
    assert not [line for line in done.stderr.splitlines() if not line.startswith("note:")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_full_disk_is_one_line_and_status_two(words: tuple[str, ...]) -> None:
    call = [sys.executable, "-c", "from gambrel.faces.cli import main; main()", *words]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note:")]
    assert lines == ["gambrel: the output: No space left on device"]
