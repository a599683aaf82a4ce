"""The roofline of a deployment: what one engine step costs, from shapes, peaks and efficiency constants.

Each matmul kernel has two roofs, FLOPs over achieved FLOP/s and bytes over achieved bandwidth; attention has its
own two; collectives and host time come on top. Two named forms put them together (THEORY in docs/theory.md):
``serial`` adds kernels up, each at its higher roof, as a stream of kernels runs (the predictor); ``max`` lets all
compute hide all memory traffic (the textbook's lower bound). One array formula makes both a single step's cost and
the table that the event loop reads, so they cannot drift apart.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gambrel.core.efficiency import UNDIVIDED_FROM, run_as
from gambrel.core.errors import DeploymentError
from gambrel.core.step import NUM_LINES, RankTable, StepTable, step_parts
from gambrel.cost.collectives import all_gather_s, all_reduce_s, all_to_all_s, pool_wire, send_s, wire
from gambrel.cost.memory import ACTIVATION_BYTES, LOGIT_BYTES, held_bytes, memory_budget
from gambrel.cost.shards import Kernel, check_parallel, rank_attention, rank_head, rank_kernels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gambrel.core.deployment import Deployment
    from gambrel.core.efficiency import Efficiency, Matmul
    from gambrel.core.model import MoE
    from gambrel.core.step import Floats, MemoryBudget, Step, StepCost
    from gambrel.cost.shards import Attention

__all__ = ["FORMS", "Roofline", "round_max"]

FORMS = ("serial", "max")
_PASSES_BACK = 2  # a vector is read and written
_ROWS_KEPT = 512  # one-step tables remembered: the named points of a curve ask for the same ones at every context
_ALIKE = 1e-4  # evenness of routing at which any number of tokens touches as many experts as one


def round_max(compute: Floats, memory: Floats, rounding: float) -> Floats:
    """``(compute^p + memory^p)^(1/p)`` with ``p = 1/rounding``; 0 is the sharp maximum. Never below either.

    Overlap of a kernel's arithmetic with its loads is imperfect where the two take about the same time.
    """
    high = np.maximum(compute, memory)
    if rounding == 0.0:
        return high
    low = np.minimum(compute, memory)
    ratio = low / np.where(high > 0.0, high, 1.0)
    power = 1.0 / rounding
    if power == 4.0:  # the usual case, without the cost of a general power
        square = ratio * ratio
        return np.asarray(high * np.sqrt(np.sqrt(1.0 + square * square)))
    return np.asarray(high * (1.0 + ratio**power) ** rounding)


class Roofline:
    """The analytic :class:`~gambrel.core.step.CostModel`.

    Args:
        deployment: what is priced.
        efficiency: how much of the peaks is reached; :func:`gambrel.core.efficiency.ideal` for the textbook.
        form: ``serial`` or ``max``.

    Raises:
        DeploymentError: unknown form, parallel degrees that cannot be laid out, or an accelerator without 16-bit math.
    """

    def __init__(self, deployment: Deployment, efficiency: Efficiency, form: str = "serial") -> None:
        if form not in FORMS:
            raise DeploymentError(f"unknown cost form {form!r}; known: {', '.join(FORMS)}")
        check_parallel(deployment)
        if deployment.disaggregated:
            check_parallel(deployment.prefill_pool)
        self._deployment = deployment
        self.efficiency = efficiency
        self.form = form
        self.link = wire(deployment.accelerator, deployment.gpus_per_replica, efficiency)
        self._tables: dict[tuple[int, int], StepTable] = {}
        self._rows: dict[tuple[int, int], StepTable] = {}

    @property
    def deployment(self) -> Deployment:
        """What is priced."""
        return self._deployment

    @property
    def spread(self) -> float:
        """One-sigma relative error of a predicted step, of the efficiency constants."""
        known = self.efficiency
        return max(known.spread, known.expert_spread) if self._deployment.model.has_experts else known.spread

    @property
    def basis(self) -> str:
        """What the constants stand on, and what was assumed for this accelerator."""
        return "; ".join((self.efficiency.basis, *self.assumptions))

    @cached_property
    def assumptions(self) -> tuple[str, ...]:
        """What a reader should know about how formats map onto this accelerator."""
        accelerator, wanted = self._deployment.accelerator, self._deployment.weight_format.math
        used = accelerator.math_format(wanted)
        if used in {None, wanted} or {used, wanted} == {"bf16", "fp16"}:
            return ()
        return (f"{accelerator.name} has no {wanted} math: {self._deployment.weights} weights run in {used}",)

    # -- peaks -----------------------------------------------------------------------------------

    def _math(self, wanted: str) -> str:
        found = self._deployment.accelerator.math_format(wanted)
        if found is None:
            raise DeploymentError(
                f"{self._deployment.accelerator.name}: no dense 16-bit or {wanted} peak is known, so steps cannot be"
                " priced; add peak_flops to its entry"
            )
        return found

    def _peak(self, wanted: str) -> float:
        return self._deployment.accelerator.peak_flops[self._math(wanted)]

    def matmul(self, kernel: Kernel) -> Matmul:
        """The constants of a kernel: of weights scaled by block only where the model is published so."""
        used = self._math(kernel.math)
        weights = kernel.weights if self._deployment.model.scaled_by_block else ""
        if kernel.moe is not None:
            return self.efficiency.grouped_for(used, weights)
        return self.efficiency.matmul_for(run_as(used, kernel.weights), weights)

    # -- the two roofs of a kernel ---------------------------------------------------------------

    def _roofs(self, kernel: Kernel, tokens: Floats) -> tuple[Floats, Floats]:
        """(compute, weights) seconds of one run of a kernel over ``tokens`` tokens on one rank."""
        eff = self.matmul(kernel)
        peak = eff.mfu_max * self._peak(kernel.math)
        bandwidth = eff.bw_max * self._deployment.accelerator.memory_bandwidth
        some = (tokens > 0).astype(np.float64)
        if kernel.moe is None:
            tokens = tokens * kernel.share
            half = eff.bw_half_bytes if kernel.flops_per_token else 0.0
            compute = kernel.flops_per_token / peak * (tokens + eff.mfu_half_tokens * some)
            return compute, some * ((kernel.num_bytes + half) / bandwidth)
        touched = kernel.moe.touched(tokens, kernel.ep, self.efficiency.expert_shape)
        routed = tokens * (kernel.moe.top_k / kernel.ep)
        busiest = self.expert_load(kernel.moe)
        half = eff.bw_half_bytes if kernel.flops_per_token else 0.0
        compute = kernel.flops_per_token / peak * (busiest * routed + eff.mfu_half_tokens * touched)
        return compute, np.asarray((kernel.num_bytes * touched + half * some) / bandwidth, dtype=np.float64)

    def expert_load(self, moe: MoE) -> float:
        """Tokens of the busiest expert-parallel rank over the mean rank's: as stated, else what routing gives."""
        d = self._deployment
        if d.ep > 1 and d.expert_load is not None:
            return d.expert_load
        return moe.busiest(d.ep, self.efficiency.expert_shape)

    def _layers(self, tokens: Floats) -> tuple[Floats, Floats, Floats]:
        """(total, compute, weights) seconds of every layer's matmuls over ``tokens`` tokens, and of embedding rows."""
        rows = self._deployment.model.hidden_size * self._deployment.model.base_bits / 8
        read = tokens * (rows / self._deployment.accelerator.memory_bandwidth)
        return self._matmuls(tokens, self._kernels, read + self._routed(tokens))

    def _routed(self, tokens: Floats) -> Floats:
        """Seconds to move the vectors of every expert of every token around the grouped matmuls, all layers.

        Ranks that see the same tokens all do so; those of data-parallel attention have their share each.
        """
        d = self._deployment
        kernels = (k for k in self._kernels if k.moe is not None and k.flops_per_token)
        passes = next((self.matmul(k).expert_passes for k in kernels), 0.0)
        copies = sum(n * layer.moe.top_k for n, layer in d.model.layers if layer.moe is not None) / d.attention_dp
        vector = d.model.hidden_size * ACTIVATION_BYTES / d.accelerator.memory_bandwidth
        return np.asarray(tokens * (passes * copies * vector))

    def _matmuls(self, tokens: Floats, kernels: Iterable[Kernel], weights: Floats) -> tuple[Floats, Floats, Floats]:
        """(total, compute, weights) seconds of some kernels, on top of ``weights`` seconds of reading."""
        total, compute = weights.copy(), np.zeros_like(weights)
        for kernel in kernels:
            c, w = self._roofs(kernel, tokens)
            compute += kernel.repeats * c
            weights += kernel.repeats * w
            total += kernel.repeats * round_max(c, w, self.matmul(kernel).rounding)
        return total, compute, weights

    @cached_property
    def _kernels(self) -> tuple[Kernel, ...]:
        return rank_kernels(self._deployment)

    # -- what is not a matmul --------------------------------------------------------------------

    def _collective(self, tokens: Floats) -> Floats:
        """Seconds of all-reduces, of exchanges with experts, and of sends between pipeline stages."""
        return np.asarray(self._reduces(tokens) + self._exchange(tokens), dtype=np.float64)

    def _exchange(self, tokens: Floats) -> Floats:
        """Seconds to bring the tokens of every group to their experts and back, all layers.

        All of them gathered, or, where the groups outnumber the experts of a token, each sent to its experts alone: in
        8 bits there where experts multiply 8 bits, and back in 16, as DeepEP does.
        """
        d = self._deployment
        seconds = np.zeros_like(tokens)
        if d.attention_dp > 1:
            every = wire(d.accelerator, d.tp, self.efficiency)
            for n, layer in d.model.layers:
                if layer.moe is not None:
                    share = min(1.0, layer.moe.top_k / d.attention_dp)
                    there = 1 if share < 1.0 and d.weight_format.math == "fp8" else ACTIVATION_BYTES
                    vectors = tokens * (share * d.model.hidden_size)
                    seconds = seconds + n * all_to_all_s(vectors * there, d.tp, every)
                    seconds = seconds + n * all_to_all_s(vectors * ACTIVATION_BYTES, d.tp, every)
        return seconds

    def _reduces(self, tokens: Floats) -> Floats:
        """Seconds of all-reduces after layers and embedding, and of sends between pipeline stages."""
        d = self._deployment
        message = tokens * (d.model.hidden_size * ACTIVATION_BYTES)
        reduces = 1 + sum(n * layer.all_reduces for n, layer in d.model.layers)
        width = d.tp // d.attention_dp
        seconds = reduces * all_reduce_s(message / d.attention_dp, width, wire(d.accelerator, width, self.efficiency))
        if d.pp > 1:
            seconds = seconds + (d.pp - 1) * send_s(message / d.attention_dp, self.link)
        return np.asarray(seconds, dtype=np.float64)

    def _overhead(self, tokens: Floats) -> Floats:
        """Host seconds of a step, and small operations of every layer: a floor, or vectors through memory."""
        d, eff = self._deployment, self.efficiency
        vector = d.model.hidden_size * ACTIVATION_BYTES / d.accelerator.memory_bandwidth
        passes = eff.layer_passes / d.attention_dp + eff.layer_passes_tp / d.tp
        small = np.maximum(eff.layer_s, tokens * (passes * vector))
        return np.asarray((eff.step_s + d.model.num_layers * small) * (tokens > 0))

    @property
    def unpacking(self) -> float:
        """FLOPs' worth of unpacking a cache in software, per FLOP of decode attention: two of them meet an element."""
        d = self._deployment
        soft = d.kv.startswith("fp8") and "fp8" not in d.accelerator.peak_flops
        return self.efficiency.soft_fp8 / 2.0 if soft else 0.0

    def readings(self, part: Attention) -> float:
        """How often decode attention reads a cached token, as the query heads of a group share its KV head or not."""
        return 1.0 + self.efficiency.unshared * (part.readers - 1.0)

    @property
    def undivided_beyond(self) -> float:
        """Decoders of a replica beyond which no rank's kernel divides their contexts (``Efficiency.undivided``)."""
        d = self._deployment
        heads = max(1.0, d.model.num_heads * d.attention_dp / d.tp)  # of a rank; a model without attention has none
        return UNDIVIDED_FROM / heads * d.attention_dp

    def _lines(self) -> Floats:
        """The attention coefficients of :class:`~gambrel.core.step.StepTable`.

        Layers whose queries read at most some number of tokens (a window, or a sparse selection) share one windowed
        sum, taken at the widest cap of the model: exact for the one cap that nearly every model has.
        """
        d, eff = self._deployment, self.efficiency
        lines = np.zeros(NUM_LINES)
        bandwidth = d.accelerator.memory_bandwidth * eff.kv_bw_max
        for part in rank_attention(d):
            peak = self._peak(part.math)
            soft = self.unpacking / peak if part.math == "bf16" else 0.0
            n, at = part.layers, 0 if part.span is None else 6
            if part.read_bytes_per_token > 0.0:
                lines[at] += n * eff.kv_floor_s
                lines[12] += n * eff.prefill_floor_s
            read = part.read_bytes_per_token * self.readings(part)
            lines[at + 1] += n * read / bandwidth
            lines[at + 2] += n * eff.kv_sqrt * read**0.5
            # an element of the cache is unpacked once for all tokens of a sequence that are verified together
            pair = part.decode_flops_per_pair
            lines[at + 3] += n * pair * ((1 + d.draft_tokens) / (eff.decode_attention_mfu * peak) + soft)
            pair = part.prefill_flops_per_pair / (eff.prefill_mfu_max * peak)
            lines[at + 4] += n * pair
            lines[at + 5] += n * pair * eff.prefill_half_keys
            # recurrent states: the scan over a prompt, and one read and write per sequence
            state = _PASSES_BACK * n * part.state_bytes / bandwidth
            lines[11] += n * part.flops_per_token / (eff.prefill_mfu_max * peak)
            lines[13] += state
            lines[17] += n * part.flops_per_token / (eff.decode_attention_mfu * peak)
        lines[14] = eff.seq_s + eff.stream_s + eff.logit_passes * d.model.vocab_size * LOGIT_BYTES / bandwidth
        lines[15] = 1.0 if self.form == "max" else 0.0
        lines[18], lines[19] = self.undivided_beyond, eff.undivided
        width = d.tp // d.attention_dp
        if width > 1:
            inner = wire(d.accelerator, width, eff)
            row = d.model.vocab_size * ACTIVATION_BYTES / d.attention_dp
            lines[16] = all_gather_s(row, width, inner) - inner.alpha_s
        return lines

    # -- the cost model --------------------------------------------------------------------------

    @cached_property
    def _coefficients(self) -> Floats:
        return self._lines()

    def _table(self, tokens: Floats, sampled: Floats) -> StepTable:
        """A table whose row ``i`` prices ``tokens[i]`` tokens and ``sampled[i]`` rows."""
        linear, linear_compute, linear_weights = self._layers(tokens)
        head = rank_head(self._deployment)
        head_compute, head_weights = self._roofs(head, sampled)
        caps = self._deployment.model.spans
        return StepTable(
            linear=linear,
            linear_compute=linear_compute,
            linear_weights=linear_weights,
            collective=self._collective(tokens),
            overhead=self._overhead(tokens),
            head=round_max(head_compute, head_weights, self.matmul(head).rounding),
            head_compute=head_compute,
            head_weights=head_weights,
            lines=self._coefficients,
            window=caps[-1] if caps else 0,
            request_s=self.efficiency.request_s,
        )

    def compile(self, max_tokens: int, max_seqs: int) -> StepTable:
        """The cost of every step of up to ``max_tokens`` tokens and ``max_seqs`` sampled rows, as tables."""
        key = (max_tokens, max_seqs)
        found = self._tables.get(key)
        if found is None:
            found = self._table(np.arange(max_tokens + 1.0), np.arange(max_seqs + 1.0))
            self._tables[key] = found
        return found

    def compile_ranks(self, max_tokens: int, max_seqs: int) -> RankTable:
        """The same cost by rank of data-parallel attention; counts are of one rank.

        A rank alone costs what the plain table's mean over equal ranks says of as many times its tokens.
        """
        groups = self._deployment.attention_dp
        tokens, rows = np.arange(max_tokens + 1.0) * groups, np.arange(max_seqs + 1.0) * groups
        every = np.arange(max_tokens * groups + 1.0)
        dense = [k for k in self._kernels if k.moe is None]
        vector = self._deployment.model.hidden_size * self._deployment.model.base_bits / 8
        read = tokens * (vector / self._deployment.accelerator.memory_bandwidth)
        linear, compute, weights = self._matmuls(tokens, dense, read)
        experts = self._matmuls(every, [k for k in self._kernels if k.moe is not None], self._routed(every))
        plain = self._table(np.zeros(1), rows)
        lines = self._coefficients.copy()
        lines[[1, 3, 4, 5, 7, 9, 10, 11, 13, 16, 17]] *= groups
        lines[[2, 8]] *= groups**0.5  # seconds per square root
        lines[18] /= groups
        own = StepTable(
            linear, compute, weights, self._reduces(tokens), self._overhead(tokens),
            plain.head, plain.head_compute, plain.head_weights, lines, plain.window, plain.request_s,
        )  # fmt: skip
        return RankTable(own, *experts, self._exchange(every))

    def sending(self, packets: float) -> Roofline:
        """The same deployment where so many packets leave per token: 1 as a stream, fewer if joined, 0 at the end."""
        sent = self.efficiency.stream_s * packets
        return Roofline(self._deployment, self.efficiency.with_(stream_s=sent), self.form)

    def alike(self) -> Roofline:
        """The same deployment where all tokens of a step pick the same experts: one prompt of one word, many times."""
        return Roofline(self._deployment, self.efficiency.with_(expert_shape=_ALIKE), self.form)

    def prefill(self) -> Roofline:
        """The prefill workers of a disaggregated deployment, with the same constants.

        Raises:
            DeploymentError: it has none.
        """
        return Roofline(self._deployment.prefill_pool, self.efficiency, self.form)

    def transfer_s(self, tokens: Floats) -> Floats:
        """Seconds to bring the cache of prompts of ``tokens`` tokens from a prefill to a decode worker, link idle.

        Every accelerator sends and receives its part at once; the one with the most to move decides. Where a pool
        replicates what it caches (an MLA latent over ranks, surplus KV heads), each rank of the decode pool fetches
        its own copy, and the ranks of a prefill worker share the sending of all copies.

        Raises:
            DeploymentError: the deployment states no link and none of the accelerator is known.
        """
        d = self._deployment
        link = pool_wire(d)
        to, by = d.decode_pool, d.prefill_pool
        received = held_bytes(to, tokens) * to.attention_dp  # on each rank of the group that takes the request
        copies = (to.tp // to.attention_dp * to.pp) / (by.tp // by.attention_dp * by.pp)
        return np.asarray(send_s(received * max(1.0, copies), link), dtype=np.float64)

    def step_cost(self, step: Step) -> StepCost:
        """Seconds of one step by cause: the table of one row, so the very formula of :meth:`compile`."""
        key = (step.tokens, step.sampled)
        table = self._rows.get(key)
        if table is None:
            if len(self._rows) >= _ROWS_KEPT:
                self._rows.clear()
            table = self._rows[key] = self._table(np.array([float(step.tokens)]), np.array([float(step.sampled)]))
        return table.at(step, tokens=0, sampled=0)

    def memory(self) -> MemoryBudget:
        """The memory of the fullest accelerator of a replica."""
        return self._budget

    @cached_property
    def _budget(self) -> MemoryBudget:
        return memory_budget(self._deployment, self.efficiency)

    def parts(self, **sums: Any) -> Any:
        """(compute, weights, kv, collective, overhead, total) seconds for arrays of step sums of one shape.

        Keywords as in :func:`~gambrel.core.step.step_parts` after the table; ``tokens`` and ``sampled`` are counts.
        """
        table = self._table(np.asarray(sums["tokens"], dtype=np.float64), np.asarray(sums["sampled"], dtype=np.float64))
        rows = np.arange(len(table.linear))
        return step_parts(*table.arrays(), **{**sums, "tokens": rows, "sampled": rows})
