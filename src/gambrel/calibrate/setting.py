"""A published row as a deployment: what its source left open is settled by the engine's own defaults, by name.

Defaults are those of the engine and version in the row: they differ by a factor of eight in the prompt tokens a step
may carry, which is most of a TTFT under load. Sources: vLLM ``EngineArgs`` (V1 defaults by device memory and entry
point), SGLang ``server_args`` (chunk by device memory), TensorRT-LLM ``LlmArgs``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from gambrel.calibrate import inferencex
from gambrel.calibrate.accelmark import suite_limits, suite_of
from gambrel.calibrate.names import Models, device, engine_key, engine_version, kv_name, release, weights_name
from gambrel.calibrate.tuned import as_submitted
from gambrel.core.deployment import Deployment
from gambrel.core.units import GIB
from gambrel.cost.shards import fullest_rank_bytes
from gambrel.engine import policy_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.calibrate.table import Row
    from gambrel.core.accelerator import Accelerator
    from gambrel.core.model import Layer, Model

__all__ = ["Layout", "deployments", "engine_limits", "layout"]

_LARGE: Final = 70 * GIB  # where vLLM's defaults change
_CROWDED: Final = 0.5  # of memory, above which weights leave little for a cache
_STAGED: Final = 4  # accelerators of one copy at most that published configurations cut into stages
_WIDEST: Final = 8  # accelerators of one machine, the most a tensor-parallel group is searched over
SUBMITTER: Final = {"NVIDIA": ("tensorrt-llm", "1.0"), "AMD": ("vllm", "0.9")}
"""The engine behind rows that name none (MLPerf submissions), by vendor of the accelerator: whose limits count."""
TUNED: Final = "mlperf"
"""The engine whose constants such rows get: the same software, tuned by hand for one model and one machine."""
_MOST_SEQS: Final = 1 << 16
_MOST_TOKENS: Final = 1 << 18
_PAPER_MONTHS: Final = 6
_MODEL_LEN: Final = 8192  # prompt tokens of a step before vLLM V1: as many as the longest request may have
# TensorRT-LLM's C++ runtime holds and reads all of a context unless it is started with max_attention_window_size, which
# its benchmark does not set (docs/source/advanced/gpt-attention.md, v0.13); the later runtime reads the checkpoint's.
_TOLD_WINDOWS: Final = (1, 0)
_SPARE_TOKENS: Final = 1500
_A_PLACE_SHORT: Final = "1.0.0rc3"  # the release whose dense runs leave one place of the batch empty
_MODEL_LENS: Final = {"dstack-benchmarks": 91_680}  # --max-model-len of the commands a source prints


@dataclass(frozen=True, slots=True)
class Layout:
    """How a row's accelerators are arranged: ``tp`` of None where the source does not say."""

    gpus: int
    tp: int | None
    pp: int
    ep: int
    attention_dp: int


def layout(row: Row, accelerator: Accelerator, *, counted_once: bool = False) -> Layout:
    """The arrangement that a row's parallel degrees mean.

    Two habits of the public tables are undone: accelerators counted as ``tp x ep`` although the experts are divided
    over the very ranks of the tensor-parallel group (``n_gpus = ep^2``), and attention data parallelism written as
    ``tp = 1``, where the experts still span all ranks. ``counted_once`` says that the first is not so here: the
    weights fit no fewer accelerators than the row counts.
    """
    said = re.search(r"attention_dp=(\d+)|DEP(\d+)", row.notes)
    attention_dp = int(said.group(1) or said.group(2)) if said else 1
    gpus, tp, pp, ep = row.num_gpus, row.tp, row.pp or 1, row.ep or 1
    chosen = inferencex.arrangement(row)
    if chosen is not None:
        ep, attention_dp = chosen
    if ep > 1 and gpus == ep * ep and tp in {1, gpus} and gpus > ep and not counted_once:
        gpus, tp = ep, ep
        attention_dp = ep if attention_dp > 1 else 1
    if tp is not None and ep > tp:
        attention_dp, tp = max(attention_dp, ep // tp), ep
    if tp is not None and tp > accelerator.max_tp and pp == 1:
        tp = accelerator.max_tp
    if tp is not None and tp > _WIDEST and tp == gpus and ep == 1:  # nobody cuts matrices so thin: experts are spread
        ep = attention_dp = tp
    if engine_key(row.engine) == "llama.cpp":  # layers are split over devices, which take turns
        return Layout(gpus, 1, gpus, 1, 1)
    if tp is not None and tp % ep:
        ep = 1
    if tp is None or tp % attention_dp:
        attention_dp = 1
    return Layout(gpus, tp, pp, ep, attention_dp)


def engine_limits(engine: str, version: str, accelerator: Accelerator, *, offline: bool) -> tuple[int, int, float]:
    """(``max_num_seqs``, ``max_num_batched_tokens``, share of memory) that an engine takes when nobody says."""
    large = accelerator.memory_bytes >= _LARGE and not accelerator.name.startswith("a100")
    number = release(version)
    if engine == "sglang":
        memory = accelerator.memory_bytes / GIB
        chunk = 2048 if memory < 35 else 4096 if memory < 60 else 8192 if memory < 160 else 16384
        return 1024, chunk, 0.88
    if engine == "tensorrt-llm":
        return 2048, 8192, 0.9
    if number < (0, 8):
        return 256, _MODEL_LEN, 0.9
    sequences = 1024 if large and number >= (0, 10) else 256
    return sequences, (16384 if offline else 8192) if large else (8192 if offline else 2048), 0.9


def measured_in(row: Row) -> str:
    """The month that decides a row's engine version: tables published with a paper were measured half a year before."""
    found = re.match(r"(\d{4})-(\d{2})", row.date)
    if found is None or not row.source.startswith("ANL"):
        return row.date
    months = 12 * int(found[1]) + int(found[2]) - 1 - _PAPER_MONTHS
    return f"{months // 12}-{months % 12 + 1:02d}"


def deployments(row: Row, models: Models, find: Callable[[str], Accelerator]) -> list[Deployment]:
    """The deployment of a row; several where the source does not say how its accelerators were arranged.

    Raises:
        CatalogError: a model or accelerator that is not known, or without the figures a roofline needs.
        DeploymentError: settings that contradict each other.
    """
    row = _by_device(as_submitted(row, find), find)
    accelerator = device(row.gpu, find)
    model = models(row.model)
    engine = engine_key(row.engine)
    version = engine_version(row.engine, row.engine_version, measured_in(row))
    tuned = engine == "submitter"
    if tuned:
        engine, version = SUBMITTER.get(accelerator.vendor, ("vllm", ""))
    if engine == "tensorrt-llm" and release(version) < _TOLD_WINDOWS:
        model = _without_windows(model)
    weights, kv = _formats(row, model, TUNED if tuned else engine, accelerator)
    placed = _arranged(row, model, accelerator, weights)
    sequences, tokens, share = _limits(row, engine, version, accelerator, model)
    if placed.attention_dp > 1:  # the limits are those of one group
        sequences, tokens = sequences * placed.attention_dp, tokens * placed.attention_dp
    base = Deployment(
        model, accelerator, pp=placed.pp, weights=weights, kv=kv, engine=TUNED if tuned else engine,
        engine_version=version or "0", policy=policy_of(engine, version), max_num_seqs=sequences,
        max_num_batched_tokens=max(tokens, sequences), gpu_memory_utilization=share,
    )  # fmt: skip
    widths = (placed.tp,) if placed.tp is not None else (1, 2, 4, 8)
    most = placed.tp or min(placed.gpus, _WIDEST, accelerator.max_tp)
    options = [
        base.with_(
            tp=tp, ep=placed.ep, attention_dp=placed.attention_dp, replicas=max(1, placed.gpus // (tp * placed.pp))
        )
        for tp in widths
        if tp <= most
    ]
    if tuned and placed.tp is None and not accelerator.board:
        options += _over_stages(base, placed.gpus, fullest_rank_bytes(options[0]) / accelerator.memory_bytes)
    if placed.tp is None and model.has_experts:
        options += [_data_parallel(d) for d in options if d.tp > 1 and d.pp == 1]
    return [_given_memory(d) for d in options] if engine == "tensorrt-llm" else options


def _by_device(row: Row, find: Callable[[str], Accelerator]) -> Row:
    """The row with packages counted as the devices that an engine sees in them, unless it counts those already."""
    package = device(row.gpu, find)
    if package.devices == 1:
        return row
    one, n = find(package.device), package.devices
    if row.num_gpus > package.max_tp:  # more than a machine has packages: its devices are counted
        n = 1
    return replace(row, gpu=one.name, num_gpus=row.num_gpus * n, tp=row.tp * n if row.tp else row.tp)


def _over_stages(base: Deployment, gpus: int, filled: float) -> list[Deployment]:
    """Pipeline stages that a submission tries where weights crowd an accelerator: over the fewest they do not crowd.

    So NVIDIA's configurations have it, which its partners run: Llama-2-70B on two stages of H100, Llama-3.1-405B in
    4 bits on four of GB200, or on two of two ranks (closed/NVIDIA/configs of mlcommons/inference_results_v5.0, and of
    v5.1 as submitted, read 2026-11-29). What takes more has tensor parallelism there, and boards have that or nothing.
    """
    if filled <= _CROWDED:
        return []
    n = 2 ** math.ceil(math.log2(filled / _CROWDED))
    return [
        base.with_(tp=n // stages, pp=stages, replicas=max(1, gpus // n))
        for stages in (2, 4)
        if stages <= n <= min(gpus, _STAGED)
    ]


def _formats(row: Row, model: Model, engine: str, accelerator: Accelerator) -> tuple[str, str]:
    """(weights, KV cache) as a row names them, or as its source's commands have them."""
    weights = weights_name(row.weights, model, accelerator)
    if weights == "fp8" and row.model.startswith("nvidia/"):  # ModelOpt scales whole tensors, whatever others do
        weights = "fp8-tensor"
    said = row.kv
    if "MXFP4 on Hopper" in row.notes and "gpt-oss" in row.model and accelerator.family == "hopper":
        said = "bf16"  # its options: kv_cache_config dtype auto there
    if weights == "fp8-tensor" and "Llama-4-Scout" in row.model:
        # NVIDIA's tests of its checkpoints (TensorRT-LLM, tests/integration/defs/accuracy/references) name an 8-bit
        # cache for the NVFP4 one and for other models' FP8, none for this
        said = "bf16"
    return weights, kv_name(said or inferencex.cache(row), weights, engine, accelerator)


def _arranged(row: Row, model: Model, accelerator: Accelerator, weights: str) -> Layout:
    """A row's layout, given that its weights fit."""
    placed = layout(row, accelerator)
    if placed.gpus < row.num_gpus and not _held(Deployment(
        model, accelerator, tp=placed.tp or 1, pp=placed.pp, ep=placed.ep, attention_dp=placed.attention_dp,
        weights=weights,
    )):  # fmt: skip
        placed = layout(row, accelerator, counted_once=True)
    if "MoE runs use attention DP" in row.notes and model.has_experts and placed.tp is not None:
        placed = replace(placed, ep=placed.tp, attention_dp=placed.tp)
    return placed


def _limits(row: Row, engine: str, version: str, accelerator: Accelerator, model: Model) -> tuple[int, int, float]:
    """(sequences, prompt tokens of a step, share of memory): the engine's own, unless the source sets others.

    The runs of llama-bench that are published as single streams pass ``-b 1``: prompts go in token by token, one on
    each device of those that hold the layers, as none waits for the one before to leave the last.
    """
    sequences, tokens, share = engine_limits(engine, version, accelerator, offline=row.mode == "offline")
    if engine == "llama.cpp" and "n_batch" in row.notes and "single stream" in row.notes:
        return 1, max(1, row.num_gpus), share
    suite = suite_of(row)
    if suite is not None and engine == "vllm":
        sequences, tokens = suite_limits(suite, version, (sequences, tokens), offline=row.mode == "offline")
    else:
        tokens = _prompt_tokens(row, engine, tokens)
    scripted = inferencex.limits(row, engine)
    if scripted is not None:
        sequences, tokens, share = scripted
    elif engine == "tensorrt-llm" and "aic-internal" in row.notes and _bounded(row):
        sequences, tokens = _generated_limits(row, mixture=model.has_experts)
    if row.max_num_seqs:
        sequences = min(max(row.max_num_seqs, 1), _MOST_SEQS)
    if row.mode == "offline" and row.load < float("inf") and "static batch" in row.notes:
        sequences = max(sequences, min(round(row.load), _MOST_SEQS))
    return sequences, tokens, share


def _bounded(row: Row) -> bool:
    return row.load < float("inf") and row.prompt_tokens >= 1.0


def _generated_limits(row: Row, *, mixture: bool) -> tuple[int, int]:
    """(sequences, prompt tokens) of a step as aiconfigurator's generator wrote them for TensorRT-LLM in its own runs.

    Its rules for benchmarks (generator/rule_plugin/benchmark): the batch is the concurrency, a step takes it and one
    prompt with 1,500 tokens to spare. In the dense model's runs of 1.0.0rc3 one place of the batch stays empty:
    whatever the lengths and the width, at 8 to 32 users a first token comes one interval between two ends later than
    its prompt takes. The mixture's runs of that release have no such wait.
    """
    prompt = min(max(round(row.prompt_tokens), 1), _MOST_TOKENS) + _SPARE_TOKENS
    users = min(max(round(row.load), 1), _MOST_SEQS)
    places = users - 1 if row.engine_version == _A_PLACE_SHORT and not mixture else users
    return max(1, places), prompt + users


def _prompt_tokens(row: Row, engine: str, tokens: int) -> int:
    """Prompt tokens of a step: as the row states, as its source's commands have them, else the engine's default."""
    stated = re.search(r"max_num_batched_tokens (\d+)", row.notes)
    if stated:
        tokens = min(max(int(stated.group(1)), 1), _MOST_TOKENS)
    elif engine == "vllm" and tokens == _MODEL_LEN:
        tokens = _MODEL_LENS.get(row.source, tokens)
    return tokens


def _without_windows(model: Model) -> Model:
    """The model as an engine runs it that nobody told of its windows: every layer holds and reads all of a context."""

    def whole(layer: Layer) -> Layer:
        sides = tuple(replace(mixer, window=None) for mixer in layer.side_mixers)
        return replace(layer, mixer=replace(layer.mixer, window=None), side_mixers=sides)

    return replace(model, layers=tuple((n, whole(layer)) for n, layer in model.layers))


def _data_parallel(deployment: Deployment) -> Deployment:
    """The same ranks with data-parallel attention and experts over all of them; limits are those of one group."""
    n = deployment.tp
    sequences, tokens = deployment.max_num_seqs * n, deployment.max_num_batched_tokens * n
    return deployment.with_(ep=n, attention_dp=n, max_num_seqs=sequences, max_num_batched_tokens=tokens)


def _held(deployment: Deployment) -> bool:
    """Whether the weights alone fit."""
    return fullest_rank_bytes(deployment) < deployment.accelerator.memory_bytes


def _given_memory(deployment: Deployment) -> Deployment:
    """TensorRT-LLM's rule of memory: the share is of what is free once weights and activations are there."""
    weights = fullest_rank_bytes(deployment) / deployment.accelerator.memory_bytes
    free = deployment.gpu_memory_utilization
    return deployment.with_(gpu_memory_utilization=min(0.99, free + (1.0 - free) * weights))
