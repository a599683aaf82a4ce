"""Other tools' result files: definitions set right, traps handled, their own aggregates reproduced."""

from __future__ import annotations

import contextlib
import gzip
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gambrel.core.errors import ReportError, WorkloadError
from gambrel.measure.importers import IMPORTERS, import_results, report_document, write_llmd_report
from twin_case import small_deployment

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.measure.importers import Benchmark

# Small files as the tools write them, with figures that can be checked in the head -------------------------------

VLLM: dict[str, Any] = {
    "backend": "vllm", "model_id": "m", "num_prompts": 4, "request_rate": "inf", "max_concurrency": 2,
    "duration": 3.0, "completed": 3, "total_input_tokens": 30, "total_output_tokens": 12, "request_throughput": 1.0,
    "request_goodput:": 0.5, "output_throughput": 4.0, "total_token_throughput": 14.0,
    "input_lens": [10, 10, 10, 10], "output_lens": [4, 4, 4, 0], "ttfts": [0.1, 0.2, 0.3, 0.0],
    "itls": [[0.01, 0.01, 0.01], [0.02, 0.02, 0.02], [0.03, 0.03, 0.03], []], "errors": ["", "", "", "boom"],
    "mean_ttft_ms": 200.0, "median_ttft_ms": 200.0, "p99_ttft_ms": 298.0, "mean_tpot_ms": 20.0,
    "mean_itl_ms": 20.0, "mean_e2el_ms": 260.0,
}  # fmt: skip
SGLANG: dict[str, Any] = {
    "backend": "sglang", "dataset_name": "random", "request_rate": 2.0, "max_concurrency": None, "completed": 2,
    "total_input_tokens": 20, "total_output_tokens": 6, "request_throughput": 1.0, "output_throughput": 3.0,
    "mean_e2e_latency_ms": 150.0, "median_e2e_latency_ms": 150.0, "mean_ttft_ms": 100.0, "mean_tpot_ms": 25.0,
    "mean_itl_ms": 25.0, "concurrency": 1.5, "input_lens": [10, 10], "output_lens": [3, 3], "ttfts": [0.1, 0.1],
    "itls": [[0.025, 0.025], [0.025, 0.025]], "errors": ["", ""],
}  # fmt: skip
PERF_ROW: dict[str, Any] = {
    "start_time": 100.0, "end_time": 101.0, "request": "secret prompt", "response": "secret answer", "error": None,
    "info": {
        "request_metrics": {"text": {"input_tokens": 8}},
        "response_metrics": {
            "output_tokens": 3, "server_usage": {"completion_tokens": 5}, "chunk_times": [100.5, 100.6, 100.9],
            "output_token_times": [100.5, 100.5, 100.9],
        },
    },
}  # fmt: skip
PERF_SUMMARY: dict[str, Any] = {
    "load_summary": {"count": 10, "requested_rate": 2.0, "achieved_rate": 1.9},
    "successes": {
        "count": 9,
        "latency": {
            "time_to_first_token": {"mean": 0.2, "median": 0.19, "p99": 0.5},
            "time_per_output_token": {"mean": 0.02, "median": 0.02},
            "normalized_time_per_output_token": {"mean": 0.05},
            "request_latency": {"mean": 1.2},
        },
        "throughput": {"output_tokens_per_sec": 99.0, "requests_per_sec": 1.9},
        "prompt_len": {"mean": 128.0}, "output_len": {"mean": 50.0},
    },
    "failures": {"count": 1},
}  # fmt: skip
AGG: dict[str, Any] = {
    "hw": "h200", "conc": 64, "isl": 1024, "osl": 1024, "infmax_model_prefix": "gptoss", "model": "openai/gpt-oss-120b",
    "framework": "vllm", "precision": "fp4", "spec_decoding": "none", "tp": 4, "ep": 1, "dp_attention": "false",
    "is_multinode": False, "tput_per_gpu": 1000.0, "output_tput_per_gpu": 500.0, "input_tput_per_gpu": 500.0,
    "mean_ttft": 0.4, "median_ttft": 0.3, "p99_ttft": 1.2, "median_tpot": 0.012, "median_intvty": 83.3,
    "median_itl": 0.012, "median_e2el": 12.5,
}  # fmt: skip
GRILL: dict[str, Any] = {
    "scenario": "s", "target_server": "vllm", "target_model": "m", "conversation": "c", "turn": 0, "iteration": 0,
    "user_id": 1, "timestamp_start": "2026-01-01T00:00:00+00:00", "ttft_s": 0.1, "tpot_s": 0.05, "e2e_latency_s": 0.3,
    "prompt_tokens": 20, "completion_tokens": 5, "tokens_per_second": 16.7, "success": True, "error": None,
    "concurrent_users_level": 4, "kv_cache_usage": 0.25, "requests_running": 4.0, "requests_waiting": 0.0,
}  # fmt: skip
BENCHY: dict[str, Any] = {
    "version": "0.4.0", "latency_mode": "api", "latency_ms": 1.0, "model": "m", "prefix_caching_enabled": False,
    "max_concurrency": 1, "timestamp": "t",
    "benchmarks": [
        {
            "concurrency": 1, "context_size": 1024, "prompt_size": 512, "response_size": 32,
            "is_context_prefill_phase": False, "pp_throughput": {"mean": 2000.0, "std": 1.0, "values": [2000.0]},
            "tg_throughput": {"mean": 50.0, "std": 1.0, "values": [50.0]},
            "tg_req_throughput": {"mean": 50.0, "std": 1.0, "values": [50.0]},
            "ttfr": {"mean": 250.0, "std": 0.0, "values": [250.0]}, "est_ppt": {"mean": 249.0, "std": 0, "values": []},
            "e2e_ttft": {"mean": 260.0, "std": 2.0, "values": [260.0]},
        }
    ],
}  # fmt: skip
REPORT: dict[str, Any] = {
    "version": "0.2.1",
    "run": {"uid": "u"},
    "scenario": {
        "stack": [
            {
                "standardized": {
                    "kind": "inference_engine", "tool": "vllm", "tool_version": "0.11", "role": "decode", "replicas": 2,
                    "model": {"name": "m"}, "accelerator": {"model": "H100", "count": 8, "parallelism": {"tp": 8}},
                }
            },
            {"standardized": {"kind": "generic", "tool": "router"}},
        ],
        "load": {"standardized": {"tool": "inference-perf", "concurrency": "inf", "rate_qps": 10,
                                  "input_seq_len": {"distribution": "fixed", "value": 2148}}},
    },
    "results": {
        "request_performance": {
            "aggregate": {
                "requests": {"total": 500, "failures": 3},
                "latency": {
                    "time_to_first_token": {"units": "ms", "mean": 36.8, "p50": 36.2, "p99p9": 57.0},
                    "time_per_output_token": {"units": "s/token", "mean": 0.0368},
                },
                "throughput": {"output_token_rate": {"units": "tokens/s", "mean": 2262.4}},
            }
        }
    },
}  # fmt: skip


def save(path: Path, *documents: Any) -> Path:
    path.write_text("\n".join(json.dumps(d) for d in documents))
    return path


def one(path: Path) -> Benchmark:
    (found,) = import_results(path)
    return found


def test_vllm_with_infinite_rate_a_failure_and_the_key_with_a_colon(tmp_path: Path) -> None:
    found = one(save(tmp_path / "r.json", VLLM))
    assert found.tool == "vllm bench"
    assert (found.num_requests, found.num_failed) == (4, 1)
    assert found.rates["goodput_rps"] == 0.5
    assert "rate_rps" not in found.setting  # infinite
    assert found.reported["ttft"] == {"mean": 0.2, "p50": 0.2, "p99": 0.298}
    run = found.run
    assert run is not None
    assert run.origin == "imported"
    assert run.distribution("ttft").mean == pytest.approx(0.2)
    assert run.distribution("tpot").mean == pytest.approx(0.02)
    assert run.distribution("itl").mean == pytest.approx(0.02)
    assert run.distribution("e2e").count == 3  # the failure is no latency
    # two slots: the third request starts when the first ends, the fourth when the second does
    assert run.arrival_s == pytest.approx([0.0, 0.0, 0.13, 0.26])


def test_newer_vllm_files_carry_start_times(tmp_path: Path) -> None:
    run = one(save(tmp_path / "r.json", VLLM | {"start_times": [5.0, 5.5, 6.0, 7.0]})).run
    assert run is not None
    assert run.arrival_s == pytest.approx([0.0, 0.5, 1.0, 2.0])


def test_a_summary_without_requests_has_no_run(tmp_path: Path) -> None:
    bare = {k: v for k, v in VLLM.items() if k not in {"ttfts", "itls", "input_lens", "output_lens", "errors"}}
    found = one(save(tmp_path / "r.json", bare))
    assert found.run is None
    assert any("--save-detailed" in w for w in found.warnings)


def test_sglang_has_a_run_a_line(tmp_path: Path) -> None:
    a, b = import_results(save(tmp_path / "r.jsonl", SGLANG, SGLANG | {"request_rate": 4.0}))
    assert a.tool == "sglang bench_serving"
    assert a.reported["e2e"]["mean"] == pytest.approx(0.15)
    assert b.setting["rate_rps"] == 4.0
    assert a.run is not None
    assert a.run.arrival_s == pytest.approx([0.0, 0.5])
    assert a.run.distribution("e2e").mean == pytest.approx(0.15)


def test_inference_perf_gaps_come_from_chunks_and_tokens_from_usage(tmp_path: Path) -> None:
    rows = [PERF_ROW, PERF_ROW | {"start_time": 101.0, "error": {"error_type": "x", "error_msg": "y"}}]
    found = one(save(tmp_path / "per_request_lifecycle_metrics.json", rows))
    assert (found.num_requests, found.num_failed) == (2, 1)
    run = found.run
    assert run is not None
    assert run.output_tokens[0] == 5
    assert run.tpot_s[0] == pytest.approx(0.4 / 4)
    assert run.itl.distribution().count == 2
    assert "secret" not in repr(found)


def test_inference_perf_summary(tmp_path: Path) -> None:
    found = one(save(tmp_path / "s.json", PERF_SUMMARY))
    assert found.reported["tpot"]["p50"] == 0.02
    assert found.reported["e2e_per_token"]["mean"] == 0.05
    assert found.setting["rate_rps"] == 2.0
    assert (found.num_requests, found.num_failed) == (10, 1)


def test_inferencex_is_in_seconds_and_per_gpu(tmp_path: Path) -> None:
    split = AGG | {
        "is_multinode": True, "num_prefill_gpu": 8, "num_decode_gpu": 16, "prefill_tp": 8, "decode_tp": 16,
    }  # fmt: skip
    del split["tp"]
    a, b = import_results(save(tmp_path / "agg.json", [AGG, split]))
    assert a.reported["ttft"] == {"mean": 0.4, "p50": 0.3, "p99": 1.2}
    assert a.rates == {"total_tokens_per_s": 4000.0, "output_tokens_per_s": 2000.0, "prompt_tokens_per_s": 2000.0}
    assert a.setting["gpu"] == "h200"
    assert b.rates["output_tokens_per_s"] == 500.0 * 16
    assert b.setting["num_gpus"] == 24


def test_llm_grill_levels(tmp_path: Path) -> None:
    later = GRILL | {"timestamp_start": "2026-01-01T00:00:01+00:00", "concurrent_users_level": 8, "success": False}
    a, b = import_results(save(tmp_path / "r.jsonl", GRILL, later))
    assert (a.setting["concurrency"], a.setting["kv_cache_usage"], a.num_failed) == (4.0, 0.25, 0)
    assert b.num_failed == 1
    assert a.run is not None
    assert a.run.ttft_s == pytest.approx([0.1], abs=1e-6)
    assert a.run.tpot_s == pytest.approx([0.05], abs=1e-6)


def test_llama_benchy_ttft_is_the_end_to_end_one(tmp_path: Path) -> None:
    found = one(save(tmp_path / "r.json", BENCHY))
    assert found.reported["ttft"]["mean"] == pytest.approx(0.26)
    assert found.reported["tpot"]["mean"] == pytest.approx(0.02)
    assert found.setting["prompt_tokens"] == 1536


def test_llmd_report_scales_units_and_counts_replicas(tmp_path: Path) -> None:
    found = one(save(tmp_path / "r.json", REPORT))
    assert found.reported["ttft"] == pytest.approx({"mean": 0.0368, "p50": 0.0362, "p999": 0.057})
    assert found.setting["num_gpus"] == 16
    assert found.setting["tp"] == 8
    assert "concurrency" not in found.setting  # unbounded
    with pytest.raises(WorkloadError, match="0\\.1"):
        import_results(save(tmp_path / "old.json", REPORT | {"version": "0.1"}))


def test_a_run_survives_the_llmd_report(tmp_path: Path) -> None:
    run = one(save(tmp_path / "r.json", VLLM)).run
    assert run is not None
    document = report_document(
        run, deployment=small_deployment(replicas=2), setting={"concurrency": 2}, description="a test"
    )
    write_llmd_report(tmp_path / "out.json", document)
    back = one(tmp_path / "out.json")
    for metric in ("ttft", "tpot", "e2e", "itl"):
        expected = run.distribution(metric)
        assert back.reported[metric]["mean"] == pytest.approx(expected.mean)
        assert back.reported[metric]["p99"] == pytest.approx(expected.p99)
    assert back.setting["num_gpus"] == 2
    assert back.setting["concurrency"] == 2
    assert (back.num_requests, back.num_failed) == (4, 1)
    assert back.rates["output_tokens_per_s"] == pytest.approx(run.output_tokens_per_s)
    with pytest.raises(ReportError, match="cannot write"):
        write_llmd_report(tmp_path, document)


# The samples that real tools wrote --------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("name", ["aiperf-0.13.0-profile_export.jsonl", "aiperf-0.13.0-profile_export_aiperf.json"])
def test_aiperf_sample_reproduces_its_aggregates(shared_data: Path, name: str) -> None:
    found = one(shared_data / "samples" / name)
    assert found.num_requests == 24
    assert found.run is not None
    for metric in ("ttft", "tpot", "e2e"):
        mine, theirs = found.run.distribution(metric), found.reported[metric]
        for statistic in ("mean", "p50", "p90", "p95", "p99", "max"):
            assert mine.percentile(statistic) == pytest.approx(theirs[statistic], rel=1e-6), (metric, statistic)
    itl = found.run.distribution("itl")
    assert itl.mean == pytest.approx(found.reported["itl"]["mean"], rel=1e-9)
    assert itl.p99 == pytest.approx(found.reported["itl"]["p99"], rel=0.025)  # a bucket is 2.2 % wide
    assert found.run.output_tokens.sum() == 3600
    assert found.rates["output_tokens_per_s"] == pytest.approx(698.3756)
    assert any("gaps are 0" in w for w in found.warnings)


@pytest.mark.shared
def test_guidellm_sample(shared_data: Path) -> None:
    """Eight of its 24 requests are in the file: each agrees with itself, and the aggregates are taken as they are."""
    path = shared_data / "samples" / "guidellm-0.8.1-concurrent8.json"
    found = one(path)
    assert found.tool == "guidellm 0.8.1"
    assert found.run is not None
    assert len(found.run) == 8
    assert found.num_requests == 24
    rows = json.loads(path.read_text())["benchmarks"][0]["requests"]["successful"]
    rows.sort(key=lambda r: r["request_start_time"])
    assert found.run.ttft_s == pytest.approx([r["time_to_first_token_ms"] / 1e3 for r in rows], abs=1e-6)
    assert found.run.tpot_s == pytest.approx([r["inter_token_latency_ms"] / 1e3 for r in rows], rel=1e-5)
    assert found.reported["ttft"]["p50"] == pytest.approx(0.1051487922668457)
    assert found.reported["tpot"]["mean"] == pytest.approx(9.998881376829724e-3)
    assert found.reported["e2e_per_token"]["mean"] == pytest.approx(10.660733448134529e-3)
    assert any("8 of 24" in w for w in found.warnings)


@pytest.mark.shared
def test_vllm_style_sample_reproduces_its_aggregates(shared_data: Path) -> None:
    found = one(shared_data / "samples" / "vllm-style-bench-serving-c1.json")
    assert found.run is not None
    for metric, statistic, exact in (
        ("ttft", "mean", 1e-12), ("ttft", "p50", 1e-12), ("ttft", "p99", 1e-12), ("e2e", "mean", 1e-4),
        ("tpot", "mean", 1e-4), ("tpot", "p50", 1e-4), ("itl", "mean", 1e-9),
    ):  # fmt: skip
        mine = found.run.distribution(metric).percentile(statistic)
        assert mine == pytest.approx(found.reported[metric][statistic], rel=exact), (metric, statistic)
    assert found.rates["goodput_rps"] == pytest.approx(found.rates["request_rate"])
    assert any("chunk more than tokens" in w for w in found.warnings)
    assert found.run.arrival_s == pytest.approx(np.cumsum([0.0, 1.5968216, 1.5952461]), abs=1e-6)


# Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty file"),
        (b"{", "not JSON"),
        (b'{"a": 1}', "no known result format"),
        (b"[]", "no known result format"),
        (gzip.compress(b"{}", mtime=0)[:-4], "truncated or damaged gzip"),
        (json.dumps(VLLM | {"mean_ttft_ms": "soon"}).encode(), "'mean_ttft_ms': found 'soon'"),
        (json.dumps(VLLM | {"itls": [[0.1]]}).encode(), "itls has 1 requests, ttfts 4"),
        (json.dumps(VLLM | {"output_lens": None}).encode(), "'output_lens'"),
        (json.dumps(VLLM | {"itls": [[0.01, -5.0, 0.01], *VLLM["itls"][1:]]}).encode(), "must be in this order"),
        (json.dumps([PERF_ROW | {"start_time": None}]).encode(), "'start_time'"),
        (json.dumps(GRILL | {"timestamp_start": "noon"}).encode(), "'timestamp_start': found 'noon'"),
        (json.dumps(GRILL).encode() + b"\n{cut", "line 2 is not JSON"),
    ],
)  # fmt: skip
def test_one_clear_line_for_what_cannot_be_read(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(data)
    with pytest.raises(WorkloadError) as caught:
        import_results(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_format(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="guidellm"):
        import_results(tmp_path / "x", format="guidelm")
    with pytest.raises(WorkloadError, match="cannot read"):
        import_results(tmp_path / "x")


DOCUMENTS = {
    "vllm": VLLM, "sglang": SGLANG, "inference-perf": PERF_SUMMARY, "inference-perf-requests": PERF_ROW,
    "inferencex": AGG, "llm-grill": GRILL, "llama-benchy": BENCHY, "llmd-report": REPORT,
}  # fmt: skip
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))


@given(st.sampled_from(sorted(DOCUMENTS)), st.data())
def test_a_field_of_any_kind_gives_figures_or_one_clear_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    document = json.loads(json.dumps(DOCUMENTS[name]))
    place = document
    while isinstance(place, dict) and place:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or data.draw(st.booleans()):
            place[key] = data.draw(st.one_of(LEAVES, st.lists(LEAVES, max_size=4)))
            break
        place = place[key]
    path = save(tmp_path_factory.getbasetemp() / "any.json", document)
    with contextlib.suppress(WorkloadError):  # anything else is a defect
        import_results(path, format=name)


def test_every_importer_says_what_it_reads() -> None:
    for name, importer in IMPORTERS.items():
        assert importer.read.__doc__, name
