"""Which deployments are worth considering: the axes of the search and the formats a device can run.

An axis is a field of :class:`~gambrel.core.deployment.Deployment`. Those with a rule for what to try by itself have a
field of their own here; every other one is searched when it is named in ``axes``, with nothing to add.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import product
from typing import TYPE_CHECKING, Any

from gambrel.core.deployment import Deployment
from gambrel.core.errors import DeploymentError
from gambrel.core.formats import kv_format
from gambrel.cost.shards import check_parallel, tp_is_possible
from gambrel.plan.safety import Safety

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gambrel.core.accelerator import Accelerator
    from gambrel.core.model import Model

__all__ = ["AXES", "Space", "kv_formats_for", "shape_of", "weight_formats_for"]

FIRST_MAX_NUM_SEQS, FIRST_MAX_NUM_BATCHED_TOKENS = 256, 2048


@dataclass(frozen=True, slots=True)
class Space:
    """The axes. ``weights`` and ``kv`` of None mean: what the checkpoint is in, and fp8 where the device has it.

    ``ep`` of None means 1, and for a mixture of experts the tensor-parallel degree too; ``pp`` of None means 1, and
    where the most ranks do not hold the weights the fewest stages that do. ``axes`` are values of any other field of a
    deployment, such as ``{"attention_dp": (1, 8), "draft_tokens": (0, 3), "acceptance": (0.7,)}``;
    combinations that engines cannot lay out are left out.

    Batch limits are searched in two rounds: the first values for every shape, all values for what could be cheaper.
    ``available`` is how many of an accelerator (by name, or by id where an offer sets it apart) can be had at most,
    ``max_gpus`` of any. The fleet must hold with ``spare`` replicas down, and with the chance ``confidence`` (see
    :class:`~gambrel.plan.safety.Safety`).
    """

    accelerators: tuple[Accelerator, ...]
    tp: tuple[int, ...] = (1, 2, 4, 8)
    pp: tuple[int, ...] | None = (1,)
    ep: tuple[int, ...] | None = None
    weights: tuple[str, ...] | None = None
    kv: tuple[str, ...] | None = None
    max_num_seqs: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    max_num_batched_tokens: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384)
    gpu_memory_utilization: float = 0.9
    max_gpus: int = 4096
    max_model_len: int | None = None
    available: Mapping[str, int] = field(default_factory=dict)
    confidence: float = 0.5
    spare: int = 0
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.axes.items():
            if name not in AXES:
                raise DeploymentError(f"{name!r} is no axis of the search; known: {', '.join(AXES)}")
            if not values:
                raise DeploymentError(f"axis {name} has no values")

    @property
    def safety(self) -> Safety:
        """What is asked beyond the prediction itself."""
        return Safety(self.confidence, self.spare)

    def most_gpus(self, accelerator: Accelerator) -> int:
        """How many of an accelerator the fleet may have."""
        named = self.available.get(accelerator.name, self.max_gpus)
        return min(self.max_gpus, self.available.get(accelerator.id, named))

    def most_replicas(self, deployment: Deployment) -> int:
        """How many replicas the fleet may have beside its prefill pool; 0 where not one can be had."""
        one = deployment.with_(replicas=1)
        return max(0, 1 + (self.most_gpus(one.accelerator) - one.num_gpus) // one.gpus_per_replica)

    def shapes(self, model: Model) -> Iterator[Deployment]:
        """Every accelerator x parallelism x formats x other axes, one replica each, with the first batch limits."""
        for accelerator, tp in product(self.accelerators, self.tp):
            if not tp_is_possible(model, accelerator, tp):
                continue
            formats = product(
                self.weights or weight_formats_for(accelerator, model), self.kv or kv_formats_for(accelerator)
            )
            for weights, kv in formats:
                stages = self.pp or self.stages(model, accelerator, tp, weights)
                experts = self.ep or ((1, tp) if tp > 1 and model.routed_params else (1,))
                for pp, ep, *values in product(stages, experts, *self.axes.values()):
                    others = dict(zip(self.axes, values, strict=True))
                    found = self.shape(model, accelerator, tp=tp, pp=pp, ep=ep, weights=weights, kv=kv, **others)
                    if found is not None:
                        yield found

    def shape(self, model: Model, accelerator: Accelerator, **settings: Any) -> Deployment | None:
        """One replica with the first batch limits; None where the degrees cannot be laid out.

        Raises:
            DeploymentError: a value that no deployment can have.
        """
        seqs, tokens = self.first_limits()
        found = Deployment(
            model,
            accelerator,
            **{
                "max_num_seqs": seqs,
                "max_num_batched_tokens": tokens,
                "max_model_len": self.max_model_len,
                "gpu_memory_utilization": self.gpu_memory_utilization,
                **settings,
            },
        )
        try:
            check_parallel(found)
            if found.disaggregated:
                check_parallel(found.prefill_pool)
        except DeploymentError:
            return None
        if found.disaggregated and not tp_is_possible(model, accelerator, found.prefill_pool.tp):
            return None
        return found

    def stages(self, model: Model, accelerator: Accelerator, tp: int, weights: str) -> tuple[int, ...]:
        """One pipeline stage, or with the most ranks a stage can have the fewest that hold the weights."""
        most = max((t for t in self.tp if tp_is_possible(model, accelerator, t)), default=tp)
        room = self.gpu_memory_utilization * accelerator.memory_bytes * tp
        held = model.weight_bytes(model.weight_format(weights))
        if tp < most or held < room:
            return (1,)
        return (1, *[pp for pp in (2, 4, 8, 16) if held < pp * room][:1])

    def limits(self) -> list[tuple[int, int]]:
        """Every pair of batch limits that engines accept: the token budget holds one token of every sequence."""
        return [(s, t) for s in self.max_num_seqs for t in self.max_num_batched_tokens if s <= t]

    def first_limits(self) -> tuple[int, int]:
        """The batch limits every shape is tried with: the nearest allowed values to what engines default to.

        The token budget must hold one token of every sequence.
        """
        tokens = min(self.max_num_batched_tokens, key=lambda v: (abs(v - FIRST_MAX_NUM_BATCHED_TOKENS), v))
        allowed = [v for v in self.max_num_seqs if v <= tokens] or [min(self.max_num_seqs)]
        return min(allowed, key=lambda v: (abs(v - FIRST_MAX_NUM_SEQS), v)), tokens


def shape_of(deployment: Deployment) -> tuple[Any, ...]:
    """What makes a deployment a shape: every field but the model, the number of replicas and the batch limits."""
    return (deployment.accelerator.id, *(getattr(deployment, name) for name in SHAPE))


AXES = tuple(
    f.name
    for f in fields(Deployment)
    if f.name not in {"model", "accelerator", "replicas", "max_model_len", *(s.name for s in fields(Space))}
)
"""What ``axes`` may name: fields of a deployment without a rule of their own."""

SHAPE = tuple(
    f.name
    for f in fields(Deployment)
    if f.name not in {"model", "accelerator", "replicas", "max_num_seqs", "max_num_batched_tokens"}
)


def weight_formats_for(accelerator: Accelerator, model: Model) -> tuple[str, ...]:
    """Formats offered without being asked: the checkpoint's own, and fp8 where tensor cores run it.

    Four-bit formats change answers more and are searched only when named.
    """
    own = model.checkpoint_format
    first = (
        own if model.weight_format(own).element_bits < 16 else ("bf16" if "bf16" in accelerator.peak_flops else "fp16")
    )
    wanted = [first]
    if "fp8" in accelerator.peak_flops and model.weight_format(first).element_bits >= 16:
        wanted.append("fp8")
    return tuple(wanted)


def kv_formats_for(accelerator: Accelerator) -> tuple[str, ...]:
    """bf16 (fp16 where there is no bf16), and fp8 where the device has fp8."""
    base = "bf16" if "bf16" in accelerator.peak_flops else "fp16"
    kv_format(base)
    return (base, "fp8") if "fp8" in accelerator.peak_flops else (base,)
