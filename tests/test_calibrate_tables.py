"""Published rows become deployments and requests as their sources mean them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gambrel.calibrate.harness import alike, packets, workload_of
from gambrel.calibrate.names import Models, engine_key, engine_version, model_key, weights_name
from gambrel.calibrate.predict import Predictor
from gambrel.calibrate.published import default_price
from gambrel.calibrate.setting import deployments
from gambrel.calibrate.suspicious import suspicious
from gambrel.calibrate.table import read_table
from gambrel.calibrate.validate import validate
from gambrel.catalog.accelerators import accelerator
from gambrel.core.errors import CatalogError, WorkloadError
from gambrel.engine import simulate

if TYPE_CHECKING:
    from pathlib import Path

    from gambrel.calibrate.table import Row

HEAD = (
    "id,source,date,model,gpu,n_gpus,tp,pp,ep,engine,engine_version,weight_dtype,kv_dtype,isl,osl,mode,"
    "concurrency_or_rate,output_tok_s,ttft_ms_mean,ttft_ms_p50,tpot_ms_mean,e2e_ms,quality,notes\n"
)


def rows(tmp_path: Path, *lines: str) -> list[Row]:
    path = tmp_path / "table.csv"
    path.write_text(HEAD + "\n".join(lines) + "\n")
    return read_table(path)


CLOSED = (
    "a1,bench,2025-11,meta-llama/Llama-3.1-8B-Instruct-FP8,H100-SXM-80GB,2,2,1,1,vLLM,0.11,fp8,,1024,128,concurrency,8,,"
    "120,110,8.5,,A,made up"
)


def test_units_become_si_and_means_go_before_medians(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, CLOSED)
    assert row.measured["tpot"].value == pytest.approx(0.0085)
    assert row.measured["ttft"].value == pytest.approx(0.12)
    assert row.measured["ttft"].statistic == "mean"
    assert "e2e" not in row.measured
    assert row.num_gpus == 2


@pytest.mark.parametrize(
    ("published", "shipped"),
    [("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b"),
     ("nvidia/Llama-3.3-70B-Instruct-FP4", "llama-3.3-70b"),
     ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"), ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1"),
     ("TheBloke/Llama-2-7B-AWQ", "llama-2-7b"), ("amd/Llama-3.1-405B-Instruct-FP8-KV", "llama-3.1-405b")],
)  # fmt: skip
def test_variants_of_a_model_have_its_shapes(published: str, shipped: str) -> None:
    assert model_key(published) == shipped
    assert Models()(published).num_layers > 0


def test_an_unknown_model_says_what_is_near() -> None:
    with pytest.raises(CatalogError, match="nearest"):
        Models()("nobody/Unheard-Of-9B")


def test_configs_of_a_directory_go_first(tmp_path: Path) -> None:
    (tmp_path / "acme--Tiny-1B.json").write_text(
        '{"model_type":"llama","hidden_size":64,"intermediate_size":128,"num_attention_heads":4,"num_hidden_layers":2,'
        '"num_key_value_heads":2,"vocab_size":100}'
    )
    models = Models(tmp_path)
    assert models("acme/Tiny-1B").num_layers == 2
    assert models("acme/Tiny-1B-Instruct-FP8").num_layers == 2


@pytest.mark.parametrize(
    ("text", "gpu", "found"),
    [("fp8", "h100-sxm", "fp8-tensor"), ("", "h100-sxm", "bf16"), ("", "v100s-pcie-32", "fp16"),
     ("nvfp4", "b200-sxm", "nvfp4"),
     ("w4a16", "a100-sxm-80", "int4"), ("w8a8-int8", "a100-sxm-80", "int8"), ("w8a16", "a100-sxm-80", "w8a16"),
     ("fp8/fp4", "b200-sxm", "nvfp4"), ("fp8/fp4", "h100-sxm", "fp8-tensor"), ("bf16", "v100s-pcie-32", "fp16")],
)  # fmt: skip
def test_weight_formats_as_tables_spell_them(text: str, gpu: str, found: str) -> None:
    assert weights_name(text, Models()("meta-llama/Llama-3.1-8B"), accelerator(gpu)) == found


def test_gpt_oss_stays_mxfp4_whatever_its_run_is_labelled() -> None:
    assert weights_name("fp8", Models()("openai/gpt-oss-20b"), accelerator("h100-sxm")) == "mxfp4"


def test_a_version_that_is_not_stated_is_the_newest_of_its_month() -> None:
    assert engine_version("vLLM", "", "2024-10") == "0.6"
    assert engine_version("TensorRT-LLM", "", "2024-10") == "0.13"
    assert engine_version("vLLM", "0.7.3", "2026-04") == "0.7.3"
    assert engine_key("vllm-ascend") == "vllm"
    assert engine_key("Deepspeed-MII") == "deepspeed"


def test_accelerators_counted_twice_are_counted_once(tmp_path: Path) -> None:
    line = ("a2,bench,2026-03,deepseek-ai/DeepSeek-V3,B200-SXM-180GB,64,64,1,8,SGLang,0.5.9,fp4,,1024,1024,concurrency,"
            "64,,300,,20,,C,attention_dp=1")  # fmt: skip
    (row,) = rows(tmp_path, line)
    (deployment,) = deployments(row, Models(), accelerator)
    assert (deployment.num_gpus, deployment.tp, deployment.ep, deployment.attention_dp) == (8, 8, 8, 1)
    (row,) = rows(tmp_path, line.replace("64,64,1,8", "8,1,1,8").replace("attention_dp=1", "attention_dp=8"))
    (deployment,) = deployments(row, Models(), accelerator)
    assert (deployment.num_gpus, deployment.tp, deployment.attention_dp) == (8, 8, 8)


def test_mixtures_of_a_table_that_says_so_have_attention_apart(tmp_path: Path) -> None:
    line = (
        "a3,TensorRT-LLM-perf-overview,2025-09,nvidia/Qwen3-235B-A22B,H100-SXM-80GB,8,8,1,,TensorRT-LLM,1.0,fp8,fp8?,"
        "1000,1000,offline,inf,9000,,,,,B,max load; MoE runs use attention DP; KV dtype not stated"
    )
    (row,) = rows(tmp_path, line)
    (deployment,) = deployments(row, Models(), accelerator)
    assert (deployment.tp, deployment.ep, deployment.attention_dp) == (8, 8, 8)
    assert deployment.weights == "fp8-tensor"  # NVIDIA's checkpoint; the model's own is scaled by block
    queued = workload_of(row)
    assert queued is not None
    assert len(queued) == 3000  # what its document says
    (dense,) = rows(tmp_path, line.replace("Qwen3-235B-A22B", "Llama-3.3-70B-Instruct"))
    assert deployments(dense, Models(), accelerator)[0].attention_dp == 1


@pytest.mark.parametrize(("counted", "ranks"), [(1, 2), (2, 4), (4, 8), (8, 8)])
@pytest.mark.parametrize("engine", ["vLLM", "llama.cpp"])
def test_packages_run_as_the_devices_that_an_engine_sees(tmp_path: Path, engine: str, counted: int, ranks: int) -> None:
    """A machine has four MI250: a row that counts eight counts their dies."""
    line = CLOSED.replace("H100-SXM-80GB,2,2", f"MI250-128GB,{counted},{counted}").replace("vLLM", engine)
    (row,) = rows(tmp_path, line.replace(",fp8,", ",bf16,"))
    (deployment,) = deployments(row, Models(), accelerator)
    assert deployment.accelerator.name == "mi250-gcd"
    assert deployment.num_gpus == ranks
    assert (deployment.pp if engine == "llama.cpp" else deployment.tp) == ranks


def test_generated_configurations_have_the_batch_of_their_load(tmp_path: Path) -> None:
    line = (
        "a4,aiconfigurator-silicon,2026-03,Qwen/Qwen3-235B-A22B-FP8,H100-SXM-80GB,8,8,1,8,TensorRT-LLM,1.0.0rc3,fp8,,"
        "1024,128,concurrency,16,,200,,15,,B,aic-internal; attention_dp=1"
    )
    (row,) = rows(tmp_path, line)
    (deployment,) = deployments(row, Models(), accelerator)
    assert (deployment.max_num_seqs, deployment.max_num_batched_tokens) == (16, 16 + 1024 + 1500)
    assert deployment.weights == "fp8"
    (row,) = rows(tmp_path, line.replace("Qwen/Qwen3-235B-A22B-FP8", "meta-llama/Llama-3.1-8B-Instruct"))
    assert deployments(row, Models(), accelerator)[0].max_num_seqs == 15  # the dense sweep leaves a place empty
    assert not suspicious(row)
    (row,) = rows(
        tmp_path,
        line.replace("Qwen/Qwen3-235B-A22B-FP8", "meta-llama/Llama-3.1-8B-Instruct").replace(
            "concurrency,16,,200,,15", "concurrency,128,,650,,23"
        ),
    )  # 36 requests a second, as on any number of devices
    assert "stop alike" in suspicious(row)


def test_one_checkpoint_of_nvidia_keeps_its_cache_in_16_bits(tmp_path: Path) -> None:
    line = (
        "a6,TensorRT-LLM-perf-overview,2025-09,nvidia/Llama-4-Scout-17B-16E-Instruct,H100-SXM-80GB,4,4,1,,TensorRT-LLM,"
        "1.0,{weights},fp8?,1000,1000,offline,inf,12000,,,,,B,KV dtype not stated"
    )
    for weights, gpu, cache in (("fp8", "H100-SXM-80GB", "bf16"), ("nvfp4", "B200-SXM-180GB", "fp8")):
        (row,) = rows(tmp_path, line.format(weights=weights).replace("H100-SXM-80GB", gpu))
        (deployment,) = deployments(row, Models(), accelerator)
        assert deployment.kv == cache


def test_a_batch_of_one_prompt_touches_the_experts_of_one_token(tmp_path: Path) -> None:
    """TensorRT-LLM's runs there repeat one word in every prompt; vLLM's draw random tokens."""
    line = (
        "a7,ANL-LLM-Inference-Bench,2024-10,mistralai/Mixtral-8x7B-v0.1,H100-SXM-80GB,4,4,1,1,{engine},,fp16,fp16,"
        "128,128,offline,64,,,,,4344,B,static batch"
    )
    seconds = {}
    for engine in ("TensorRT-LLM", "vLLM"):
        (row,) = rows(tmp_path, line.format(engine=engine))
        assert alike(row) is (engine == "TensorRT-LLM")
        (deployment,) = deployments(row, Models(), accelerator)
        priced = default_price()(deployment)
        moe = next(layer.moe for _, layer in deployment.model.layers if layer.moe is not None)
        assert moe.distinct(64.0, priced.alike().efficiency.expert_shape) == pytest.approx(moe.top_k, rel=1e-2)
        whole = Predictor(default_price(), Models(), accelerator)(row).figures["e2e"]
        seconds[engine] = (
            whole / Predictor(default_price(), Models(), accelerator)(replace(row, load=1.0)).figures["e2e"]
        )
    assert seconds["TensorRT-LLM"] < seconds["vLLM"]  # a batch that reads no more experts costs little more than one


def test_a_single_stream_of_llama_bench_has_its_prompt_token_by_token(tmp_path: Path) -> None:
    """``-b 1``: twice as many steps as answer tokens, fewer where devices take prompt tokens in turn."""
    line = (
        "a5,ANL-LLM-Inference-Bench,2024-10,meta-llama/Llama-2-7b-hf,A100-SXM-40GB,1,1,1,1,llama.cpp,,fp16,fp16,"
        "128,128,offline,1,29.5,,,,4344,B,llama.cpp: single stream (there it is n_batch)"
    )
    (row,) = rows(tmp_path, line)
    (deployment,) = deployments(row, Models(), accelerator)
    assert deployment.max_num_batched_tokens == 1
    (row,) = rows(tmp_path, line.replace("40GB,1,1", "40GB,4,1"))
    (deployment,) = deployments(row, Models(), accelerator)
    assert (deployment.pp, deployment.max_num_batched_tokens) == (4, 4)


def test_pipeline_stages_work_on_micro_batches_at_once(tmp_path: Path) -> None:
    """As ``gambrel simulate`` has it; llama.cpp's devices take turns, so two give no more than one."""
    line = (
        "a6,bench,2025-11,meta-llama/Llama-3.1-8B,H100-SXM-80GB,2,1,{pp},1,{engine},,bf16,,512,128,offline,64,9,,,,,A,"
    )
    found = {}
    for engine in ("vLLM", "llama.cpp"):
        for pp in (1, 2):
            (row,) = rows(tmp_path, line.format(engine=engine, pp=pp).replace("80GB,2", f"80GB,{pp}"))
            (deployment,) = deployments(row, Models(), accelerator)
            found[engine, pp] = Predictor(default_price(), Models(), accelerator)(row).figures["output_tok_s"]
            if (engine, pp) == ("vLLM", 2):
                workload = workload_of(row)
                assert workload is not None
                priced = default_price()(deployment).sending(packets(row))
                run = simulate(deployment, priced, workload)
                assert found[engine, pp] == pytest.approx(run.output_tokens_per_s, rel=0.03)  # nothing outside
    assert 1.1 * found["vLLM", 1] < found["vLLM", 2] < 2.05 * found["vLLM", 1]
    assert found["llama.cpp", 2] < 1.05 * found["llama.cpp", 1]


def test_harness_lengths(tmp_path: Path) -> None:
    (fixed,) = rows(tmp_path, CLOSED)
    workload = workload_of(fixed)
    assert workload is not None
    assert workload.closed_loop == 8
    assert set(workload.prompt_tokens.tolist()) == {1024}
    (ranged,) = rows(tmp_path, CLOSED.replace("made up", "InferenceX-db-dump; nominal"))
    drawn = workload_of(ranged)
    assert drawn is not None
    assert drawn.prompt_tokens.min() >= 0.79 * 1024
    assert drawn.prompt_tokens.max() <= 1024
    assert drawn.prompt_tokens.mean() == pytest.approx(0.9 * 1024, rel=0.03)


def test_validation_covers_every_mode_and_counts_what_it_skips(tmp_path: Path) -> None:
    table = rows(
        tmp_path, CLOSED,
        CLOSED.replace("a1,", "b1,").replace("concurrency,8,,", "rate,2,,"),
        CLOSED.replace("a1,", "c1,").replace("concurrency,8,,120,110,8.5,", "offline,16,900,,,,"),
        CLOSED.replace("a1,", "d1,").replace(",A,", ",D,"),
        CLOSED.replace("a1,", "e1,").replace("H100-SXM-80GB", "NoSuchChip"),
    )  # fmt: skip
    found = validate(table, Predictor(default_price(), Models(), accelerator), lambda _, m: 0.2 if m == "ttft" else 0.1)
    assert {(c.row.id, c.metric) for c in found.comparisons} == {
        ("a1", "ttft"), ("a1", "tpot"), ("b1", "ttft"), ("b1", "tpot"), ("c1", "output_tok_s"),
    }  # fmt: skip
    assert sum(found.skipped.values()) == 2
    document = found.document()
    assert set(document) >= {"rows", "summary", "skipped"}
    assert set(document["rows"][0]) == {"id", "metric", "measured", "predicted", "low", "high"}
    assert all(r["low"] < r["predicted"] < r["high"] for r in document["rows"])
    assert {"engine", "gpu", "metric", "n", "median_ape", "p90_ape", "bias"} <= set(document["summary"][0])


def test_a_table_without_its_columns_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,gpu\n1,h100\n")
    with pytest.raises(WorkloadError, match="no column model, mode"):
        read_table(path)


def test_makers_who_publish_blocks_of_eight_bits_have_them() -> None:
    h100 = accelerator("h100-sxm")
    assert weights_name("fp8", Models()("Qwen/Qwen3.5-397B-A17B"), h100) == "fp8"
    assert weights_name("fp8", Models()("meta-llama/Llama-3.1-70B"), h100) == "fp8-tensor"


def test_a_runtime_that_is_not_told_of_windows_holds_all_of_a_context(tmp_path: Path) -> None:
    line = CLOSED.replace("meta-llama/Llama-3.1-8B-Instruct-FP8", "mistralai/Mistral-7B-v0.1")
    for engine, version, windows in (
        ("TensorRT-LLM", "0.13", ()),
        ("TensorRT-LLM", "1.0", (4096,)),
        ("vLLM", "0.7", (4096,)),
    ):
        (row,) = rows(tmp_path, line.replace("vLLM,0.11", f"{engine},{version}"))
        (deployment,) = deployments(row, Models(), accelerator)
        assert deployment.model.windows == windows
