"""What a deployment *is*: a model on accelerators with an engine's settings, named as vLLM names them.

Defaults stand for vLLM's V1 engine (0.19 and later): ``gpu_memory_utilization`` 0.9, ``block_size`` 16, chunked
prefill and prefix caching on, ``max_num_seqs`` 256. ``max_num_batched_tokens`` there depends on device and entry
point; the planner searches it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from gambrel.core.errors import DeploymentError
from gambrel.core.formats import KVFormat, WeightFormat, kv_format

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gambrel.core.accelerator import Accelerator
    from gambrel.core.model import Model

__all__ = ["Deployment"]

_NO_PREFILL: dict[str, Any] = {
    "prefill_replicas": 0, "prefill_tp": None, "prefill_pp": None, "prefill_ep": None, "prefill_attention_dp": None,
}  # fmt: skip


_WHOLE: Final[Mapping[str, int]] = {
    **dict.fromkeys(
        ("tp", "pp", "ep", "attention_dp", "replicas", "max_num_seqs", "max_num_batched_tokens", "max_model_len"), 1
    ),
    **dict.fromkeys(("block_size", "prefill_tp", "prefill_pp", "prefill_ep", "prefill_attention_dp"), 1),
    **dict.fromkeys(("prefill_replicas", "draft_tokens"), 0),
}
_LEAST: Final = 5e-324  # above 0
_BETWEEN: Final[Mapping[str, tuple[float, float, str]]] = {
    "gpu_memory_utilization": (_LEAST, 1.0, "above 0 and at most 1"),
    "kv_link_bytes_per_s": (_LEAST, math.inf, "above 0, or None"),
    "expert_load": (1.0, math.inf, "the busiest rank's tokens over the mean rank's, at least 1, or None"),
    "acceptance": (0.0, math.nextafter(1.0, 0.0), "at least 0 and below 1"),
    "draft_cost": (0.0, math.inf, "a share of a step, at least 0"),
}
_OPTIONAL: Final = frozenset(
    {
        *("prefill_tp", "prefill_pp", "prefill_ep", "prefill_attention_dp"),
        *("max_model_len", "kv_link_bytes_per_s", "expert_load"),
    }
)


@dataclass(frozen=True)
class Deployment:
    """A model on a fleet of equal replicas; every field is a choice that a plan can make.

    With ``prefill_replicas`` above 0 prompts are computed by that many workers of their own (prefill/decode
    disaggregation), and ``replicas`` counts the decode workers. Prefill workers are cut as the decode workers are
    but for ``prefill_tp``, ``prefill_pp``, ``prefill_ep`` and ``prefill_attention_dp`` where those are given.
    ``kv_link_bytes_per_s`` is what one accelerator moves in one direction from pool to pool; None: its network port.
    ``expert_load`` is the tokens of the busiest rank over the mean rank's under expert parallelism; None: the cost
    model's own figure.

    ``tp`` x ``pp`` accelerators make one replica. ``attention_dp`` divides the ``tp`` ranks into as many groups that
    each attend for their own sequences with their own copy of the attention (and shared) weights, while experts stay
    spread over all ranks: vLLM's and SGLang's data-parallel attention, TensorRT-LLM's ``enable_attention_dp``.
    ``policy`` names the engine's scheduling rule.
    ``draft_tokens`` guesses a step (speculative decoding, multi-token prediction), each accepted with probability
    ``acceptance`` after the one before it; a guess takes ``draft_cost`` of a decode step of one sequence.
    ``weights`` and ``kv`` name formats in any case and become the names that :mod:`gambrel.core.formats` has.
    """

    model: Model
    accelerator: Accelerator
    tp: int = 1
    pp: int = 1
    ep: int = 1
    attention_dp: int = 1
    replicas: int = 1
    weights: str = "bf16"
    kv: str = "bf16"
    engine: str = "vllm"
    engine_version: str = "0.19"
    policy: str = "vllm"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    block_size: int = 16
    chunked_prefill: bool = True
    cuda_graphs: bool = True
    prefix_caching: bool = True
    draft_tokens: int = 0
    acceptance: float = 0.0
    draft_cost: float = 0.0
    routing: str = "round_robin"
    prefill_replicas: int = 0
    prefill_tp: int | None = None
    prefill_pp: int | None = None
    prefill_ep: int | None = None
    prefill_attention_dp: int | None = None
    kv_link_bytes_per_s: float | None = None
    expert_load: float | None = None

    def __post_init__(self) -> None:
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not isinstance(value, int) or value < least:
                none = ", or None" if name in _OPTIONAL else ""
                raise DeploymentError(f"{name} must be a whole number of at least {least}{none}, got {value!r}")
        for name, (low, high, wanted) in _BETWEEN.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not isinstance(value, int | float) or not low <= value <= high or not math.isfinite(value):
                raise DeploymentError(f"{name} must be {wanted}, got {value!r}")
        object.__setattr__(self, "weights", self.model.weight_format(self.weights).name)
        object.__setattr__(self, "kv", kv_format(self.kv).name)

    @property
    def weight_format(self) -> WeightFormat:
        """The weight format object."""
        return self.model.weight_format(self.weights)

    @property
    def kv_format(self) -> KVFormat:
        """The KV cache format object."""
        return kv_format(self.kv)

    @property
    def gpus_per_replica(self) -> int:
        """Accelerators in one replica."""
        return self.tp * self.pp

    @property
    def disaggregated(self) -> bool:
        """Whether prompts have workers of their own."""
        return self.prefill_replicas > 0

    @property
    def decode_pool(self) -> Deployment:
        """The decode workers alone, as a deployment; itself where prompts have no workers of their own."""
        return replace(self, **_NO_PREFILL) if self.disaggregated else self

    @property
    def prefill_pool(self) -> Deployment:
        """The prefill workers alone, as a deployment of ``prefill_replicas`` replicas.

        Raises:
            DeploymentError: there are none.
        """
        return replace(
            self,
            **_NO_PREFILL,
            replicas=self.prefill_replicas,
            tp=self.tp if self.prefill_tp is None else self.prefill_tp,
            pp=self.pp if self.prefill_pp is None else self.prefill_pp,
            ep=self.ep if self.prefill_ep is None else self.prefill_ep,
            attention_dp=self.attention_dp if self.prefill_attention_dp is None else self.prefill_attention_dp,
        )

    @property
    def num_gpus(self) -> int:
        """Accelerators in all, of both pools."""
        own = self.gpus_per_replica * self.replicas
        return own + self.prefill_pool.num_gpus if self.disaggregated else own

    @property
    def usd_per_hour(self) -> float | None:
        """Dollars per hour of the fleet, on machines that hold a tensor-parallel group; None without a price."""
        if self.disaggregated:
            prefill, decode = self.prefill_pool.usd_per_hour, self.decode_pool.usd_per_hour
            return None if prefill is None or decode is None else prefill + decode
        price = self.accelerator.price_for(self.tp)
        return None if price is None else price.usd_per_hour * self.num_gpus

    @property
    def stage_layers(self) -> tuple[int, ...]:
        """Layers of each pipeline stage, first to last, as vLLM divides them.

        Equal parts; what remains goes to the stages before the last, from the back, for the last one also has the
        head (``get_pp_indices`` in ``vllm/distributed/utils.py``).
        """
        each, rest = divmod(self.model.num_layers, self.pp)
        layers = [each] * self.pp
        for k in range(2, rest + 2):
            layers[-k] += 1
        return tuple(layers)

    def with_(self, **changes: Any) -> Deployment:
        """The same deployment with some fields changed."""
        return replace(self, **changes)

    @property
    def label(self) -> str:
        """A short unambiguous name, e.g. ``2 x h100-sxm tp2 fp8``, or ``1 x ... prefill + 2 x ... decode``."""
        if self.disaggregated:
            return f"{self.prefill_pool.label} prefill + {self.decode_pool.label} decode"
        kv = "" if self.kv == "bf16" else f" kv-{self.kv}"
        parallel = f" tp{self.tp}" + (f" pp{self.pp}" if self.pp > 1 else "") + (f" ep{self.ep}" if self.ep > 1 else "")
        parallel += f" dp{self.attention_dp}" if self.attention_dp > 1 else ""
        rest = "".join(f" {words}" for words in self._settings_said())
        return f"{self.replicas} x {self.accelerator.id}{parallel} {self.weights}{kv}{rest}"

    def _settings_said(self) -> Iterator[str]:
        """Settings other than the usual that tell deployments of one search apart, in words for the label."""
        if self.draft_tokens:
            yield f"draft{self.draft_tokens}"
        if not self.prefix_caching:
            yield "no-prefix-cache"
        if not self.chunked_prefill:
            yield "no-chunked-prefill"
        for name, usual in (("policy", "vllm"), ("routing", "round_robin")):
            if getattr(self, name) != usual:
                yield str(getattr(self, name))
