"""Where a model can come from: names, files, directories, headers of weights; and how its weights are stored."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gambrel as gb
from gambrel.catalog.checkpoints import read_checkpoint, read_gguf, read_safetensors
from gambrel.catalog.models import model, model_from_config, model_names
from gambrel.core.errors import CatalogError, GambrelError, UnknownName
from gambrel.core.formats import weight_format

if TYPE_CHECKING:
    from pathlib import Path

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000, "tie_word_embeddings": False,
}  # fmt: skip


# -- names ----------------------------------------------------------------------------------------------


def test_names_fold_case_and_drop_the_organisation() -> None:
    assert len(model_names()) >= 103
    full = model("meta-llama/Llama-3.1-8B-Instruct")
    assert full == model("META-LLAMA/llama-3.1-8b-instruct") == model("llama-3.1-8b-instruct")
    assert full.total_params == 8_030_261_248


def test_an_unknown_name_lists_the_nearest_three() -> None:
    with pytest.raises(UnknownName, match=r"meta-llama/Llama-3\.1-8B-Instruct") as caught:
        model("meta-llama/Llama-3.1-8B-Instrct")
    assert len(caught.value.nearest) == 3


def test_a_cold_process_reads_one_file_and_no_numpy() -> None:
    code = (
        "import sys, time; t = time.perf_counter();"
        "from gambrel.catalog.models import model; m = model('deepseek-v3');"
        "print(time.perf_counter() - t, 'numpy' in sys.modules, m.total_params)"
    )
    best = min(
        (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
         for _ in range(3)), key=lambda row: float(row[0]),
    )  # fmt: skip
    assert best[1:] == ["False", "671026419200"]
    assert float(best[0]) < 0.3


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is not None, reason="huggingface_hub is installed")
def test_the_hub_needs_its_package() -> None:
    with pytest.raises(CatalogError, match="needs the package huggingface_hub"):
        model("hf:meta-llama/Llama-3.1-8B")


# -- files ----------------------------------------------------------------------------------------------


def test_config_file_and_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    by_file, by_directory = model(tmp_path / "config.json"), model(str(tmp_path))
    assert by_file.total_params == by_directory.total_params == model_from_config(LLAMA).total_params
    assert by_file.name == tmp_path.name


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '{"model_type": 7}', "\x00\xff", "[" * 100_000])
def test_broken_files_give_one_clear_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(GambrelError) as caught:
        model(path)
    assert "\n" not in str(caught.value)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"neither a config\.json nor"):
        model(tmp_path)


def tensors_of(config: dict[str, Any], dtype: str = "BF16") -> dict[str, Any]:
    """A safetensors header with the tensors of a Llama, and offsets as the format packs them."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = d * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes: dict[str, list[int]] = {
        "model.embed_tokens.weight": [v, d],
        "lm_head.weight": [v, d],
        "model.norm.weight": [d],
    }
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes |= {
            p + "self_attn.q_proj.weight": [d, d], p + "self_attn.k_proj.weight": [kv, d],
            p + "self_attn.v_proj.weight": [kv, d], p + "self_attn.o_proj.weight": [d, d],
            p + "mlp.gate_proj.weight": [f, d], p + "mlp.up_proj.weight": [f, d], p + "mlp.down_proj.weight": [d, f],
            p + "input_layernorm.weight": [d], p + "post_attention_layernorm.weight": [d],
        }  # fmt: skip
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return header


def write_safetensors(path: Path, header: dict[str, Any]) -> None:
    data = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data)


def test_safetensors_header_gives_exact_bytes(tmp_path: Path) -> None:
    header = tensors_of(LLAMA)
    header["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"dtype": "F32", "shape": [32], "data_offsets": [0, 128]}
    header["model.layers.0.mlp.up_proj.weight_scale_inv"] = {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]}
    header["model.layers.2.eh_proj.weight"] = {"dtype": "BF16", "shape": [256, 512], "data_offsets": [0, 262144]}
    path = tmp_path / "model.safetensors"
    write_safetensors(path, header)
    m = model_from_config(LLAMA)
    found = read_safetensors(path, num_layers=2)
    assert found.buffer_elements == 32
    assert found.scale_elements == 8
    assert found.mtp_elements == 256 * 512
    assert found.elements_by_type["BF16"] - found.mtp_elements == m.total_params
    assert found.bytes_by_type["BF16"] == 2 * (m.total_params + found.mtp_elements)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert model(tmp_path).checkpoint_bytes == model(path).checkpoint_bytes == found.total_bytes


def test_safetensors_index_without_its_files_knows_only_the_total(tmp_path: Path) -> None:
    index = {"metadata": {"total_size": 123}, "weight_map": {"a": "model-1.safetensors"}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    found = read_checkpoint(path)
    assert (found.complete, found.total_bytes) == (False, 123)
    with pytest.raises(CatalogError, match=r"config\.json"):
        model(path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert model(path).checkpoint_bytes is None


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def write_gguf(path: Path, config: dict[str, Any], *, kind: int = 12) -> int:
    """A GGUF header of a Llama in one GGML type; returns its payload bytes."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = d * config["num_key_value_heads"] // config["num_attention_heads"]
    numbers = {
        "llama.embedding_length": d, "llama.block_count": config["num_hidden_layers"], "llama.feed_forward_length": f,
        "llama.attention.head_count": config["num_attention_heads"], "llama.vocab_size": v,
        "llama.attention.head_count_kv": config["num_key_value_heads"], "llama.context_length": 4096,
    }  # fmt: skip
    out = b"".join(gguf_text(k) + struct.pack("<II", 4, n) for k, n in numbers.items())
    out += gguf_text("general.architecture") + struct.pack("<I", 8) + gguf_text("llama")
    out += gguf_text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + gguf_text("a") + gguf_text("b")
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (d, v),
        "output.weight": (d, v),
        "output_norm.weight": (d,),
    }
    for i in range(config["num_hidden_layers"]):
        names = {"attn_q": (d, d), "attn_k": (d, kv), "attn_v": (d, kv), "attn_output": (d, d), "ffn_gate": (d, f),
                 "ffn_up": (d, f), "ffn_down": (f, d), "attn_norm": (d,), "ffn_norm": (d,)}  # fmt: skip
        shapes |= {f"blk.{i}.{k}.weight": s for k, s in names.items()}
    body, total = b"", 0
    for name, shape in shapes.items():
        elements = 1
        for n in shape:
            elements *= n
        own = kind if len(shape) == 2 else 0
        total += elements // 256 * 144 if own == 12 else elements * 4
        body += gguf_text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        body += struct.pack("<IQ", own, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(numbers) + 2)
    path.write_bytes(head + out + body)
    return total


def test_gguf_header_is_a_model_with_exact_bytes(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    total = write_gguf(path, LLAMA)
    m = model(path)
    assert m.total_params == model_from_config(LLAMA).total_params
    assert m.checkpoint_bytes == total
    assert m.checkpoint is not None
    assert m.weight_bytes(m.checkpoint) == total
    assert model(tmp_path) == m


def test_a_gguf_file_can_be_served_at_its_own_size(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    total = write_gguf(path, LLAMA)
    deployment = gb.deployment(str(path), "l4")
    assert deployment.weight_format is deployment.model.checkpoint
    assert deployment.model.weight_bytes(deployment.weight_format) == pytest.approx(total, rel=1e-6)
    assert gb.cost_model(deployment).memory().fits


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 400), st.sampled_from([".gguf", ".safetensors"]))
def test_random_bytes_in_headers_give_one_clear_line(tmp_path: Path, junk: bytes, cut: int, suffix: str) -> None:
    path = tmp_path / f"junk{suffix}"
    if suffix == ".gguf":
        write_gguf(path, LLAMA)
    else:
        write_safetensors(path, tensors_of(LLAMA))
    good = path.read_bytes()
    for data in (junk, good[:cut], good[:cut] + junk, b"GGUF" + junk):
        path.write_bytes(data)
        try:
            read_checkpoint(path)
        except GambrelError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right, and the line must be one


def test_gguf_versions_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "old.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(CatalogError, match="version 1"):
        read_gguf(path)


# -- how weights are stored -----------------------------------------------------------------------------

GROUPED = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int",
           "strategy": "group", "group_size": 32, "symmetric": True}}}}  # fmt: skip


def stored(section: dict[str, Any], **more: Any) -> Any:
    return model_from_config({**LLAMA, "quantization_config": section, **more}).checkpoint


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [64, 128]}, "fp8-64x128"),
        ({"quant_method": "fp8"}, "fp8-tensor"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}, "int4-g128-actorder"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8-channel"),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 64}, "int4-g64"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, "nf4-double"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8-bnb"),
        ({"quant_method": "compressed-tensors", **GROUPED}, "int4-g32"),
        ({"quant_method": "compressed-tensors", "ignore": ["re:.*self_attn.*"], **GROUPED}, "int4-experts"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}, "fp8-tensor"),
        ({"quant_method": "fbgemm_fp8"}, "fp8-channel"),
    ],
)
def test_quantisation_configs_are_read(section: dict[str, Any], name: str) -> None:
    fmt = stored(section)
    assert fmt is not None
    assert fmt.name == name
    m = model_from_config({**LLAMA, "quantization_config": section})
    assert m.checkpoint_format == name
    assert m.weight_bytes(fmt) <= m.weight_bytes(weight_format("bf16"))


@pytest.mark.parametrize("section", [{"quant_method": "mystery"}, {"bits": 4}, {"quant_method": "compressed-tensors"}])
def test_what_cannot_be_read_is_said(section: dict[str, Any]) -> None:
    m = model_from_config({**LLAMA, "quantization_config": section})
    assert m.checkpoint is None
    assert any("quantization_config" in a for a in m.assumptions)


def test_compressed_tensors_floats() -> None:
    weights = {"num_bits": 8, "type": "float", "strategy": "channel"}
    groups = {"config_groups": {"a": {"weights": weights, "input_activations": {"num_bits": 8}}}}
    assert stored({"quant_method": "compressed-tensors", **groups}).name == "fp8-channel"
    weights |= {"strategy": "block", "block_structure": [128, 128]}
    assert stored({"quant_method": "compressed-tensors", **groups}).name == "fp8"
    weights |= {"num_bits": 4, "group_size": 16, "strategy": "tensor_group"}
    assert stored({"quant_method": "compressed-tensors", **groups}).name == "nvfp4"


def test_published_bytes_of_storage_schemes() -> None:
    # theory: int4 group 128 is 0.51953 B per weight, MXFP4 4.25 bits, NVFP4 4.5 bits; act-order adds 4 B per input
    rows, cols = 4096, 4096
    assert weight_format("int4").stored_bytes(rows, cols) / (rows * cols) == pytest.approx(0.51953, abs=5e-6)
    assert weight_format("mxfp4").stored_bytes(rows, cols) * 8 == 4.25 * rows * cols
    assert weight_format("nvfp4").stored_bytes(rows, cols) * 8 == 4.5 * rows * cols
    ordered = stored({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True})
    assert ordered.stored_bytes(rows, cols) - weight_format("int4").stored_bytes(rows, cols) == 4 * cols


def test_mixed_expert_types() -> None:
    m = model("deepseek-ai/DeepSeek-V4-Flash")
    assert m.checkpoint_format == "fp8-mxfp4"
    assert m.checkpoint is not None
    assert m.weight_bytes(m.checkpoint) < m.weight_bytes(weight_format("fp8"))
