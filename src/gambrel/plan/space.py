"""Which deployments are worth considering: the axes of the search and the formats a device can run.

One axis is one field of :class:`~gambrel.core.deployment.Deployment`; adding an axis is adding a line here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from gambrel.core.deployment import Deployment
from gambrel.core.formats import kv_format, weight_format
from gambrel.plan.safety import Safety

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gambrel.core.accelerator import Accelerator
    from gambrel.core.model import Model

__all__ = ["Space", "kv_formats_for", "shape_of", "tp_is_possible", "weight_formats_for"]

FIRST_MAX_NUM_SEQS, FIRST_MAX_NUM_BATCHED_TOKENS = 256, 2048


@dataclass(frozen=True, slots=True)
class Space:
    """The axes. ``weights`` and ``kv`` of None mean: what the checkpoint is in, and fp8 where the device has it.

    Batch limits are searched in two passes: ``first`` values for every candidate, all values for the finalists.
    ``available`` is how many of an accelerator (by id) can be had at most, ``max_gpus`` of any. The fleet must hold
    with ``spare`` replicas down, and with the chance ``confidence`` (see :class:`~gambrel.plan.safety.Safety`).
    """

    accelerators: tuple[Accelerator, ...]
    tp: tuple[int, ...] = (1, 2, 4, 8)
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

    @property
    def safety(self) -> Safety:
        """What is asked beyond the prediction itself."""
        return Safety(self.confidence, self.spare)

    def most_gpus(self, accelerator: Accelerator) -> int:
        """How many of an accelerator the fleet may have."""
        return min(self.max_gpus, self.available.get(accelerator.name, self.max_gpus))

    def shapes(self, model: Model) -> Iterator[Deployment]:
        """Every accelerator x tensor parallel x formats, one replica each, with the first batch limits."""
        seqs, tokens = self.first_limits()
        for accelerator in self.accelerators:
            for tp in self.tp:
                if not tp_is_possible(model, accelerator, tp):
                    continue
                for weights in self.weights or weight_formats_for(accelerator, model):
                    for kv in self.kv or kv_formats_for(accelerator):
                        yield Deployment(
                            model,
                            accelerator,
                            tp=tp,
                            weights=weights,
                            kv=kv,
                            max_num_seqs=seqs,
                            max_num_batched_tokens=tokens,
                            max_model_len=self.max_model_len,
                            gpu_memory_utilization=self.gpu_memory_utilization,
                        )

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
    return (deployment.accelerator.name, *(getattr(deployment, name) for name in SHAPE))


SHAPE = tuple(
    f.name
    for f in fields(Deployment)
    if f.name not in {"model", "accelerator", "replicas", "max_num_seqs", "max_num_batched_tokens"}
)


def tp_is_possible(model: Model, accelerator: Accelerator, tp: int) -> bool:
    """Whether engines accept the degree: heads divide evenly, and the devices share a machine or scale-up domain."""
    return tp == 1 or (model.num_heads % tp == 0 and tp <= accelerator.max_tp)


def weight_formats_for(accelerator: Accelerator, model: Model) -> tuple[str, ...]:
    """Formats offered without being asked: the checkpoint's own, and fp8 where tensor cores run it.

    Four-bit formats change answers more and are searched only when named.
    """
    own = model.checkpoint_format
    first = own if weight_format(own).element_bits < 16 else ("bf16" if "bf16" in accelerator.peak_flops else "fp16")
    wanted = [first]
    if "fp8" in accelerator.peak_flops and weight_format(first).element_bits >= 16:
        wanted.append("fp8")
    return tuple(wanted)


def kv_formats_for(accelerator: Accelerator) -> tuple[str, ...]:
    """bf16 (fp16 where there is no bf16), and fp8 where the device has fp8."""
    base = "bf16" if "bf16" in accelerator.peak_flops else "fp16"
    kv_format(base)
    return (base, "fp8") if "fp8" in accelerator.peak_flops else (base,)
