from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gambrel.core.deployment import Deployment
from gambrel.core.errors import DeploymentError
from gambrel.core.slo import SLO
from gambrel.faces import api, export_commands, plan_outputs
from gambrel.measure.importers import import_results
from gambrel.plan import Space, plan
from gambrel.plan.alerts import IN_FLIGHT, METRICS, prometheus_rules
from gambrel.plan.file import Asked, PlanFile, Predicted, plan_file
from gambrel.plan.launch import longest_request, sglang_command, trtllm_command, trtllm_options, vllm_args, vllm_command
from gambrel.plan.manifests import kserve_manifests, kubernetes_manifests, object_name
from gambrel.plan.summary import markdown_summary, sentence
from gambrel.plan.yaml_text import yaml_documents, yaml_text
from test_plan_file import MODEL, SLOS, chat, run

if TYPE_CHECKING:
    from gambrel.core.step import MemoryBudget

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")  # RFC 1123
KEY = re.compile(r"gambrel/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")  # Kubernetes: labels and annotations


@pytest.fixture(scope="module")
def file() -> PlanFile:
    workload = chat(500, 20.0)
    space = Space((api.accelerator("l40s"),), tp=(1, 2), spare=1)
    found = plan(api.model(MODEL), workload, SLO.parse(SLOS), space, api.pricer())
    return plan_file(found, Asked(MODEL, "", list(SLOS), spare=1), workload)


@pytest.fixture(scope="module")
def deployment(file: PlanFile) -> Deployment:
    return plan_outputs.settled(file)


def memory_of(deployment: Deployment) -> MemoryBudget:
    return api.cost_model(deployment).memory()


def parsed(text: str) -> Any:
    """Enough of a YAML reader for what the writer writes: blocks, quoted and plain scalars."""
    lines = [(len(line) - len(line.lstrip()), line.strip()) for line in text.splitlines()]
    value, rest = block(lines, 0)
    assert rest == []
    return value


def block(lines: list[tuple[int, str]], depth: int) -> tuple[Any, list[tuple[int, str]]]:
    if lines[0][1].startswith("- "):
        items = []
        while lines and lines[0][0] == depth and lines[0][1].startswith("- "):
            text = lines[0][1][2:]
            if re.match(r'("(\\.|[^"])*"|[\w./-]+):( |$)', text):
                lines = [(depth + 2, text), *lines[1:]]
                item, lines = block(lines, depth + 2)
            else:
                item, lines = scalar(text), lines[1:]
            items.append(item)
        return items, lines
    found = {}
    while lines and lines[0][0] == depth and not lines[0][1].startswith("- "):
        match = re.match(r'("(?:\\.|[^"])*"|[\w./-]+):(?: (.*))?$', lines[0][1])
        assert match, lines[0]
        key, text, lines = scalar(match[1]), match[2], lines[1:]
        if text is None:
            found[key], lines = block(lines, lines[0][0])
        else:
            found[key] = scalar(text)
    return found, lines


def scalar(text: str) -> Any:
    import json

    known: dict[str, Any] = {"null": None, "true": True, "false": False, "{}": {}, "[]": []}
    if text in known:
        return known[text]
    if text.startswith('"') or re.match(r"-?\d", text):
        return json.loads(text)
    return text


WORDS = st.one_of(st.text(max_size=8), st.sampled_from(["no", "NULL", "1", "a: b", "- x", "#", "~", "0x1", "on"]))
SCALARS = st.one_of(WORDS, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False))
TREES = st.recursive(
    SCALARS, lambda x: st.one_of(st.dictionaries(WORDS, x, max_size=3), st.lists(x, max_size=3)), max_leaves=12
)


@given(st.dictionaries(WORDS, TREES, min_size=1, max_size=4))
def test_yaml_says_what_was_meant(document: dict[str, Any]) -> None:
    def no_lists_of_lists(value: Any) -> bool:
        if isinstance(value, dict):
            return all(no_lists_of_lists(v) for v in value.values())
        if isinstance(value, list):
            return not any(isinstance(v, list) and v for v in value) and all(no_lists_of_lists(v) for v in value)
        return True

    if no_lists_of_lists(document):
        assert parsed(yaml_text(document)) == document


def test_manifests_hang_together(file: PlanFile, deployment: Deployment) -> None:
    objects = {o["kind"]: o for o in kubernetes_manifests(file, deployment, memory_of(deployment))}
    assert set(objects) == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    work, service = objects["Deployment"], objects["Service"]
    for o in objects.values():
        assert LABEL.match(o["metadata"]["name"])
        assert {"apiVersion", "kind", "metadata", "spec"} == set(o)
    labels = work["spec"]["template"]["metadata"]["labels"]
    assert work["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    (container,) = work["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": str(deployment.gpus_per_replica)}
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert work["spec"]["replicas"] == deployment.replicas
    volumes = {v["name"] for v in work["spec"]["template"]["spec"]["volumes"]}
    assert {m["name"] for m in container["volumeMounts"]} <= volumes
    assert all(isinstance(a, str) for a in container["args"])
    for key, value in work["metadata"]["annotations"].items():
        assert isinstance(value, str)
        assert KEY.match(key)


def test_the_autoscaler_acts_before_the_first_objective_breaks(file: PlanFile, deployment: Deployment) -> None:
    objects = kubernetes_manifests(file, deployment, memory_of(deployment))
    scaler = next(o for o in objects if o["kind"] == "HorizontalPodAutoscaler")
    spec = scaler["spec"]
    assert spec["scaleTargetRef"]["name"] == scaler["metadata"]["name"]
    assert spec["minReplicas"] == deployment.replicas < spec["maxReplicas"]
    assert file.in_flight_at_break is not None
    assert int(spec["metrics"][0]["pods"]["target"]["averageValue"]) < file.in_flight_at_break
    recorded = prometheus_rules(file)["groups"][0]["rules"][0]["record"]
    assert spec["metrics"][0]["pods"]["metric"]["name"] == recorded == IN_FLIGHT


def test_spare_replicas_are_a_disruption_budget(file: PlanFile, deployment: Deployment) -> None:
    objects = kubernetes_manifests(file, deployment, memory_of(deployment))
    budget = next(o for o in objects if o["kind"] == "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1


def test_manifests_survive_yaml(file: PlanFile, deployment: Deployment) -> None:
    objects = kubernetes_manifests(file, deployment, memory_of(deployment))
    assert [parsed(part) for part in yaml_documents(objects).split("---\n")] == objects


def test_kserve_has_the_same_fleet(file: PlanFile, deployment: Deployment) -> None:
    pair = deployment.with_(tp=2)
    (service,) = kserve_manifests(file, pair, memory_of(pair))
    assert service["spec"]["replicas"] == deployment.replicas
    assert service["spec"]["parallelism"] == {"tensor": 2}
    (container,) = service["spec"]["template"]["containers"]
    assert "tensor-parallel" not in container["env"][0]["value"]
    assert f"--max-num-seqs {deployment.max_num_seqs}" in container["env"][0]["value"]


def test_an_accelerator_without_a_device_plugin_is_refused(file: PlanFile, deployment: Deployment) -> None:
    other = next(a for a in api.accelerators().values() if a.vendor not in {"NVIDIA", "AMD", "Intel"})
    with pytest.raises(DeploymentError, match="device plugin"):
        kubernetes_manifests(file, Deployment(api.model(MODEL), other), memory_of(deployment))


@given(st.text())
def test_any_model_has_an_object_name(model: str) -> None:
    assert LABEL.match(object_name(model))


def test_rules_have_the_plans_thresholds(file: PlanFile) -> None:
    rules = {r["alert"]: r for r in prometheus_rules(file)["groups"][0]["rules"] if "alert" in r}
    for p in file.predicted:
        metric, _, statistic = p.objective.partition(".")
        missed = rules[f"GambrelMissed{metric.upper()}{statistic.capitalize()}"]
        assert missed["expr"].endswith(f"> {p.limit_s:g}")
        assert METRICS[metric] in missed["expr"]
        assert "histogram_quantile(0.95" in missed["expr"]
    for rule in rules.values():
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert re.match(r"\d+[mh]\Z", rule["for"])
        assert rule["annotations"]["summary"]
    assert file.breaks_at is not None
    assert file.workload.rate_rps is not None
    load = float(rules["GambrelLoadNearBreak"]["expr"].rsplit("> ", 1)[1])
    assert file.workload.rate_rps < load < file.workload.rate_rps * file.breaks_at


def test_the_three_engines_get_the_same_cache_and_limits() -> None:
    d = Deployment(
        api.model(MODEL), api.accelerator("h100-sxm"), tp=2, weights="fp8", kv="fp8", max_num_seqs=96,
        max_num_batched_tokens=4096, max_model_len=32768,
    )  # fmt: skip
    memory = memory_of(d)
    sglang, trtllm = sglang_command(d, memory), trtllm_command(d, memory, "options.yaml")
    for flag in ("--tp-size 2", "--max-running-requests 96", "--chunked-prefill-size 4096", "--context-length 32768",
                 "--quantization fp8", "--kv-cache-dtype fp8_e4m3"):  # fmt: skip
        assert flag in sglang
    for flag in ("--tp_size 2", "--max_batch_size 96", "--max_num_tokens 4096", "--max_seq_len 32768"):
        assert flag in trtllm
    static = float(shlex.split(sglang)[shlex.split(sglang).index("--mem-fraction-static") + 1])
    cache = static * memory.memory_bytes - memory.weight_bytes
    assert cache == pytest.approx(memory.kv_cache_bytes, rel=2e-3)
    options = trtllm_options(d, memory)["kv_cache_config"]
    left = memory.memory_bytes - memory.weight_bytes - memory.activation_bytes - memory.reserve_bytes
    assert options["free_gpu_memory_fraction"] * left == pytest.approx(memory.kv_cache_bytes, rel=2e-3)
    assert options["dtype"] == "fp8"
    assert shlex.split(vllm_command(d, memory))[2:] == vllm_args(d, memory)


def test_settings_off_their_defaults_are_said_to_every_engine() -> None:
    d = Deployment(
        api.model(MODEL), api.accelerator("h100-sxm"), prefix_caching=False, cuda_graphs=False, chunked_prefill=False
    )
    memory = memory_of(d)
    assert {"--no-enable-prefix-caching", "--enforce-eager", "--no-enable-chunked-prefill"} <= set(vllm_args(d, memory))
    words = sglang_command(d, memory)
    assert "--disable-radix-cache" in words
    assert "--disable-cuda-graph" in words
    assert "--chunked-prefill-size -1" in words
    assert trtllm_options(d, memory)["kv_cache_config"]["enable_block_reuse"] is False


def flag_of(words: list[str], flag: str) -> int | None:
    return int(words[words.index(flag) + 1]) if flag in words else None


@pytest.mark.parametrize(
    ("gpu", "asked", "capped"),
    [("l4", None, True), ("h100-sxm", None, False), ("l4", 8192, False), ("l4", 100_000, True)],
)
def test_a_cache_smaller_than_the_longest_request_is_said_to_the_engine(
    gpu: str, asked: int | None, capped: bool
) -> None:
    """vLLM takes the model's context where nobody says, and does not start when its cache holds less."""
    d = Deployment(api.model(MODEL), api.accelerator(gpu), max_model_len=asked)
    memory = memory_of(d)
    assert (memory.kv_tokens < 131_072) == (gpu == "l4")
    lines = {
        "--max-model-len": vllm_command(d, memory),
        "--context-length": sglang_command(d, memory),
        "--max_seq_len": trtllm_command(d, memory, "options.yaml"),
    }
    for flag, line in lines.items():
        found = flag_of(shlex.split(line, comments=True), flag)
        assert ("requests are capped at" in line) == capped
        assert not capped or memory.kv_tokens - 32 < (found or 0) <= memory.kv_tokens
        assert capped or found == asked


def test_one_request_has_the_cache_of_one_attention_group() -> None:
    d = Deployment(api.model(MODEL), api.accelerator("l4"), tp=8, attention_dp=8)
    memory = memory_of(d)
    per_token = 131_072  # bytes of all layers, which a rank that attends for itself holds
    assert longest_request(d, memory) == pytest.approx(memory.kv_cache_bytes / per_token, abs=16)


def test_manifests_tell_the_engine_what_the_cache_holds_and_why(file: PlanFile) -> None:
    d = Deployment(api.model(MODEL), api.accelerator("l4"))
    memory = memory_of(d)
    work = kubernetes_manifests(file, d, memory)[0]
    (container,) = work["spec"]["template"]["spec"]["containers"]
    assert flag_of(container["args"], "--max-model-len") == memory.kv_tokens
    (service,) = kserve_manifests(file, d, memory)
    assert f"--max-model-len {memory.kv_tokens} " in service["spec"]["template"]["containers"][0]["env"][0]["value"]
    for o in (work, service):
        assert "131,072" in o["metadata"]["annotations"]["gambrel/max-model-len"]


def test_limits_of_one_kind_of_traffic_have_notes_and_no_rule(
    file: PlanFile, deployment: Deployment, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    kinds = ("chat:tpot.p95", "_x-:ttft.p95", f"{'k' * 80}:e2e.max")
    mixed = replace(file, predicted=[*file.predicted, *(Predicted(name, 1.0, 0.5) for name in kinds)])
    before, keys = (
        kubernetes_manifests(x, deployment, memory_of(deployment))[0]["metadata"]["annotations"] for x in (file, mixed)
    )
    assert all(KEY.match(key) for key in keys)
    assert "gambrel/chat.tpot.p95" in keys
    assert len(keys) == len(before) + len(kinds)
    assert prometheus_rules(mixed) == prometheus_rules(file)
    source = tmp_path / "plan.toml"
    source.write_text(mixed.text(), encoding="utf-8")
    status, out, _ = run(monkeypatch, capsys, "export", str(source), "--as", "prometheus")
    assert status == 0
    assert out.startswith(f"# no rule for {', '.join(kinds)}: vLLM's metrics")


@pytest.mark.parametrize(
    ("change", "form", "said"),
    [
        ({"tp": 3}, "vllm", "tensor-parallel degree 3 does not suit"),
        ({"gpu": "mi300x"}, "trtllm", "TensorRT-LLM runs on NVIDIA accelerators only"),
        ({"gpu": "t4", "weights": "bf16"}, "kubernetes", "does not fit"),
    ],
)
def test_what_no_engine_would_start_is_not_exported(
    change: dict[str, Any], form: str, said: str, file: PlanFile, tmp_path: Any, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = tmp_path / "plan.toml"
    source.write_text(replace(file, deployment=file.deployment | change).text(), encoding="utf-8")
    status, out, err = run(monkeypatch, capsys, "export", str(source), "--as", form)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_the_summary_opens_with_the_decision_and_its_price(file: PlanFile, deployment: Deployment) -> None:
    text = markdown_summary(file, deployment)
    assert sentence(file, deployment) in text
    assert f"{deployment.num_gpus} x {deployment.accelerator.title}" in text
    assert "a month" in text
    assert "gambrel measure --url" in text
    for p in file.predicted:
        assert f"| {p.objective} |" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


@pytest.mark.parametrize("form", [f for f in export_commands.FORMATS if f != "llm-d"])
def test_the_command_writes_every_form(
    form: str, file: PlanFile, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "plan.toml"
    source.write_text(file.text(), encoding="utf-8")
    target = tmp_path / "out" / form
    assert run(monkeypatch, capsys, "export", str(source), "--as", form, "--out", str(target))[0] == 0
    status, out, _ = run(monkeypatch, capsys, "export", str(source), "--as", form)
    assert status == 0
    assert out == target.read_text(encoding="utf-8")


def test_a_benchmark_report_holds_the_plan_and_can_be_read_again(
    file: PlanFile, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "plan.toml", tmp_path / "report.json"
    asked = replace(file.asked, source="chat:rate=4,n=200")
    source.write_text(replace(file, asked=asked).text(), encoding="utf-8")
    assert run(monkeypatch, capsys, "export", str(source), "--as", "llm-d", "--out", str(target))[0] == 0
    (found,) = import_results(target)
    assert found.setting["gpu"] == file.gpu
    assert found.setting["num_gpus"] == file.deployment["replicas"] * file.deployment["tp"]
    assert found.num_requests == 200
    log = api.load_workload("chat:rate=4,n=200")
    again = api.simulate(plan_outputs.settled(file), log)
    assert found.reported["ttft"]["p95"] == pytest.approx(again.distribution("ttft").p95, rel=1e-6)
    assert "not measured" in json.loads(target.read_text())["run"]["description"]


def test_a_report_of_a_plan_without_a_log_is_refused(
    file: PlanFile, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "plan.toml"
    source.write_text(file.text(), encoding="utf-8")
    status, _, err = run(monkeypatch, capsys, "export", str(source), "--as", "llm-d")
    assert status == 2
    assert "names no log" in err


def test_an_unknown_form_is_one_line(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(monkeypatch, capsys, "export", str(tmp_path / "p.toml"), "--as", "helm")
    assert status == 2
    assert "kubernetes" in err
    assert err.count("\n") == 1
