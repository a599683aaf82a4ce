"""A decode step as a tree: every matmul with its two roofs, attention, collectives and host time.

Under the roofline's ``serial`` form, as :class:`gambrel.cost.Roofline` adds it up; written out in plain operations so
that the tree checks that code instead of repeating it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gambrel.catalog.provenance import constant_source
from gambrel.core.efficiency import run_as
from gambrel.cost.collectives import wire
from gambrel.cost.shards import rank_attention, rank_head, rank_kernels
from gambrel.plan.trace_leaves import leaf, made, setting, shapes, sheet

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.step import Step
    from gambrel.core.trace import Traced
    from gambrel.cost import Roofline
    from gambrel.cost.shards import Attention, Kernel

__all__ = ["Parts"]

ACTIVATION_BYTES = 2.0
LOGIT_BYTES = 4.0


@dataclass(frozen=True)
class Parts:
    """The parts of a decode step under the roofline's ``serial`` form."""

    model: Roofline
    step: Step

    @property
    def d(self) -> Deployment:
        """What is priced."""
        return self.model.deployment

    @property
    def bandwidth(self) -> Traced:
        """The accelerator's memory bandwidth."""
        return leaf("peak bandwidth", self.d.accelerator.memory_bandwidth, "bytes/s", sheet(self.d))

    def constant(
        self, name: str, value: float, unit: str = "1", math_format: str = "bf16", *, grouped: bool = False
    ) -> Traced:
        """A constant of the efficiency, with what it rests on."""
        return leaf(name, value, unit, constant_source(self.d, name, math_format, grouped=grouped))

    def all(self) -> list[Traced]:
        """Matmuls, head, attention, collectives, host."""
        kernels = rank_kernels(self.d)
        found = [self.embedding(), *self.routed(kernels)]
        found += [self.kernel(k, self.step.tokens, f"matmul {i + 1} of {len(kernels)}") for i, k in enumerate(kernels)]
        found += [self.kernel(rank_head(self.d), self.step.sampled, "output head"), self.attention()]
        return [*found, *self.collectives(), *self.host()]

    def embedding(self) -> Traced:
        """Reading the embedding rows of the new tokens."""
        row = self.d.model.hidden_size * self.d.model.base_bits / 8
        return made(
            "embedding rows",
            "s",
            "quotient",
            made(
                "bytes",
                "bytes",
                "product",
                leaf("tokens", self.step.tokens, "tokens", "the step"),
                leaf("bytes of a row", row, "bytes", shapes(self.d)),
            ),
            self.bandwidth,
        )

    def routed(self, kernels: tuple[Kernel, ...]) -> list[Traced]:
        """Vectors moved around grouped experts; none without experts."""
        k = next((k for k in kernels if k.moe is not None and k.flops_per_token), None)
        if k is None:
            return []
        used = self.d.accelerator.math_format(k.math) or k.math
        copies = sum(n * layer.moe.top_k for n, layer in self.d.model.layers if layer.moe is not None)
        size = made(
            "bytes",
            "bytes",
            "product",
            leaf("tokens", self.step.tokens, "tokens", "the step"),
            leaf("experts of a token, all layers", copies, "1", shapes(self.d)),
            leaf("bytes of a hidden vector", self.d.model.hidden_size * ACTIVATION_BYTES, "bytes", shapes(self.d)),
            self.constant("expert_passes", self.model.matmul(k).expert_passes, "1", used, grouped=True),
        )
        groups = setting(self.d, "attention_dp")
        return [made("vectors around the experts", "s", "quotient", size, self.bandwidth, groups)]

    def kernel(self, k: Kernel, tokens: int, name: str) -> Traced:
        """All runs of one matmul, each at the rounded maximum of its two roofs."""
        used = self.d.accelerator.math_format(k.math) or k.math
        grouped = k.moe is not None
        eff = self.model.matmul(k)

        of = used if grouped else run_as(used, k.weights)

        def constant(field: str, unit: str = "1") -> Traced:
            return self.constant(field, getattr(eff, field), unit, of, grouped=grouped)

        rate = made(
            "FLOP/s reached",
            "FLOP/s",
            "product",
            constant("mfu_max"),
            leaf(f"dense {used} peak", self.d.accelerator.peak_flops[used], "FLOP/s", sheet(self.d)),
        )
        reached = made("bandwidth reached", "bytes/s", "product", constant("bw_max"), self.bandwidth)
        flops = leaf("FLOPs of a token", k.flops_per_token, "FLOP", shapes(self.d))
        size = leaf("weight bytes", k.num_bytes, "bytes", shapes(self.d), f"in {k.weights or 'the checkpoint format'}")
        half = constant("bw_half_bytes", "bytes") if k.flops_per_token else leaf("none", 0.0, "bytes", "a plain read")
        count = leaf("tokens", tokens * k.share, "tokens", "the step")
        ramp = constant("mfu_half_tokens", "tokens")
        if k.moe is None:
            work = made("tokens and ramp", "tokens", "sum", count, ramp)
            read = made("bytes", "bytes", "sum", size, half)
        else:
            touched = self.touched(k, tokens)
            routed = made(
                "routed tokens on a rank",
                "tokens",
                "quotient",
                made(
                    "routed tokens",
                    "tokens",
                    "product",
                    count,
                    leaf("experts of a token", k.moe.top_k, "1", shapes(self.d)),
                    leaf(
                        "busiest rank over the mean",
                        self.model.expert_load(k.moe),
                        "1",
                        self.source_of_load() if k.ep > 1 else "one rank has all experts",
                    ),
                ),
                setting(self.d, "ep"),
            )
            work = made("tokens and ramps", "tokens", "sum", routed, made("ramps", "tokens", "product", ramp, touched))
            read = made("bytes", "bytes", "sum", made("experts' bytes", "bytes", "product", size, touched), half)
        compute = made(
            "compute",
            "s",
            "quotient",
            made("FLOPs", "FLOP", "product", flops, work),
            rate,
        )
        memory = made("weights", "s", "quotient", read, reached)
        once = made("one run", "s", "rounded maximum", compute, memory, constant("rounding"))
        return made(name, "s", "product", leaf("runs in a step", k.repeats, "1", shapes(self.d)), once)

    def source_of_load(self) -> str:
        """What the busiest rank's load rests on."""
        if self.d.expert_load is not None:
            return "expert_load of the deployment"
        return f"largest of ep ranks; {constant_source(self.d, 'expert_shape')}"

    def touched(self, k: Kernel, tokens: int) -> Traced:
        """Distinct experts that a step reaches on the rank with most, :meth:`gambrel.core.model.MoE.touched`."""
        if k.moe is None or k.moe.top_k >= k.moe.num_experts:
            most = leaf("experts", 1.0 if k.moe is None else k.moe.num_experts, "1", shapes(self.d))
            return made("experts touched", "1", "quotient", most, setting(self.d, "ep"))
        experts = leaf("experts", k.moe.num_experts, "1", shapes(self.d))
        share = made(
            "share of experts a token takes",
            "1",
            "quotient",
            leaf("experts of a token", k.moe.top_k, "1", shapes(self.d)),
            experts,
        )
        shape = self.model.efficiency.expert_shape
        if math.isinf(shape):
            missed = made(
                "chance that all tokens miss an expert",
                "1",
                "power",
                made("miss", "1", "complement", share),
                leaf("tokens", tokens, "tokens", "the step"),
            )
        else:
            chance = 1.0 - float(k.moe.distinct(tokens, shape)) / k.moe.num_experts
            missed = leaf(
                "chance that all tokens miss an expert", chance, "1", "beta distribution of an expert's share",
                f"mean of {share.value:.4g} a token, shape {shape:.3g}",
            )  # fmt: skip
        distinct = made("experts touched in all", "1", "product", experts, made("hit", "1", "complement", missed))
        mean = made("experts touched", "1", "quotient", distinct, setting(self.d, "ep"))
        more = float(k.moe.touched(tokens, k.ep, shape)) - mean.value
        if k.ep <= 1 or math.isinf(shape):
            return mean
        beyond = leaf("beyond the mean", more, "1", "normal spread of experts touched", f"largest of {k.ep} ranks")
        return made("experts touched on the fullest rank", "1", "sum", mean, beyond)

    def attention(self) -> Traced:
        """Decode attention: the larger of reading the cache and multiplying with it."""
        parts = rank_attention(self.d)
        eff = self.model.efficiency
        kv_bw = self.constant("kv_bw_max", eff.kv_bw_max)
        reads: list[Traced] = []
        sums: list[Traced] = []
        for p in parts:
            tokens = float(self.step.decode_kv if p.span is None else self.step.decode_kv_windowed)
            cached = leaf(
                "cached tokens read", tokens, "tokens", "the step" if p.span is None else "the step, within the window"
            )
            layers = leaf("layers", p.layers, "1", shapes(self.d))
            if p.read_bytes_per_token > 0:
                reads.append(self.kv_read(p, layers, cached, kv_bw))
            if p.state_bytes > 0:
                reads.append(self.state(p, layers, kv_bw))
            pair = leaf("FLOPs of a pair", p.decode_flops_per_pair, "FLOP", shapes(self.d))
            together = leaf("tokens verified together", 1 + self.d.draft_tokens, "1", "1 + draft_tokens")
            flops = made(
                "FLOPs",
                "FLOP",
                "sum",
                made("of pairs", "FLOP", "product", pair, cached, *([together] if self.d.draft_tokens else [])),
                made(
                    "of tokens",
                    "FLOP",
                    "product",
                    leaf("FLOPs of a token", p.flops_per_token, "FLOP", shapes(self.d)),
                    leaf("decoding sequences", self.step.decodes, "1", "the step"),
                ),
            )
            used = self.d.accelerator.math_format(p.math) or p.math
            peak = leaf(f"dense {used} peak", self.d.accelerator.peak_flops[used], "FLOP/s", sheet(self.d))
            mfu = leaf("decode_attention_mfu", eff.decode_attention_mfu, "1", "catalog constant: assumed, no rows")
            one = made("one", "s", "quotient", flops, mfu, peak)
            soft = self.model.unpacking if p.math == "bf16" else 0.0
            if soft > 0.0:
                pairs = made("FLOPs of pairs", "FLOP", "product", pair, cached)
                worth = leaf(
                    "FLOPs' worth of unpacking 8 bits, a FLOP", soft, "1", constant_source(self.d, "soft_fp8"),
                    "half of soft_fp8: two FLOPs an element and query head",
                )  # fmt: skip
                one = made("one, unpacked", "s", "sum", one, made("unpacking", "s", "quotient", made(
                    "worth", "FLOP", "product", pairs, worth), peak))  # fmt: skip
            sums.append(made("a kind of layer", "s", "product", layers, one))
        if not reads:
            return leaf("attention", 0.0, "s", "no layer keeps a cache")
        return made(
            "attention",
            "s",
            "largest",
            made("reading the KV cache", "s", "sum", *reads),
            made("its arithmetic", "s", "sum", *sums),
        )

    def kv_read(self, p: Attention, layers: Traced, cached: Traced, kv_bw: Traced) -> Traced:
        """Floor, bytes over bandwidth, and the bend of the middle, for one kind of layer."""
        eff = self.model.efficiency
        token = leaf("bytes of a token", p.read_bytes_per_token, "bytes", shapes(self.d), f"KV cache in {self.d.kv}")
        factors = [cached, token]
        if (readings := self.model.readings(p)) > 1.0:
            factors.append(leaf(
                "readings", readings, "1", constant_source(self.d, "unshared"),
                f"1 + unshared x ({p.readers:g} query heads a KV head - 1)",
            ))  # fmt: skip
        size = made("bytes", "bytes", "product", *factors)
        reached = made("at the bandwidth reached", "s", "quotient", size, kv_bw, self.bandwidth)
        if eff.undivided and self.step.decodes > self.model.undivided_beyond:
            reached = made("in undivided contexts", "s", "product", reached, leaf(
                "how much longer", 1.0 + eff.undivided, "1", constant_source(self.d, "undivided"),
                f"1 + undivided: beyond {self.model.undivided_beyond:g} sequences",
            ))  # fmt: skip
        return made(
            f"{p.layers} layers of KV",
            "s",
            "product",
            layers,
            made(
                "one layer",
                "s",
                "sum",
                self.constant("kv_floor_s", eff.kv_floor_s, "s"),
                reached,
                made(
                    "bend",
                    "s",
                    "product",
                    self.constant("kv_sqrt", eff.kv_sqrt, "s"),
                    made("root", "1", "square root", size),
                ),
            ),
        )

    def state(self, p: Attention, layers: Traced, kv_bw: Traced) -> Traced:
        """Recurrent state read and written, for one kind of layer."""
        size = made(
            "bytes",
            "bytes",
            "product",
            leaf("decoding sequences", self.step.decodes, "1", "the step"),
            leaf("bytes of state", p.state_bytes, "bytes", shapes(self.d)),
            leaf("read and written", 2, "1", "definition"),
        )
        one = made("one layer", "s", "quotient", size, kv_bw, self.bandwidth)
        return made(f"{p.layers} layers of state", "s", "product", layers, one)

    def collectives(self) -> list[Traced]:
        """All-reduces of a tensor-parallel group and the gathering of logits; none on one accelerator."""
        d = self.d
        if d.tp == 1 and d.pp == 1:
            return []
        if d.attention_dp > 1 or d.pp > 1:
            row = self.model.compile(self.step.tokens, self.step.sampled)
            total = float(row.collective[self.step.tokens] + row.lines[16] * self.step.decodes)
            return [leaf("collectives", total, "s", f"{self.model.basis}; formulas in docs/cost.md")]
        link = wire(d.accelerator, d.tp, self.model.efficiency)
        alpha = leaf("latency of a message", link.alpha_s, "s", f"{self.source_of_wire(link.name, 'alpha_s')}")
        beta = leaf("bytes/s of a device", link.bytes_per_s, "bytes/s", self.source_of_wire(link.name, "bw"))
        message = made(
            "message",
            "bytes",
            "product",
            leaf("tokens", self.step.tokens, "tokens", "the step"),
            leaf("bytes of a hidden vector", d.model.hidden_size * ACTIVATION_BYTES, "bytes", shapes(d)),
        )
        others = leaf("other ranks", d.tp - 1, "1", "tp - 1")
        one_shot = made(
            "in one hop",
            "s",
            "sum",
            alpha,
            made("transfer", "s", "quotient", made("bytes", "bytes", "product", others, message), beta),
        )
        spread = leaf("2 (p - 1) / p", 2 * (d.tp - 1) / d.tp, "1", "tp")
        two_shot = made(
            "scattered, then gathered",
            "s",
            "sum",
            alpha,
            alpha,
            made("transfer", "s", "quotient", made("bytes", "bytes", "product", spread, message), beta),
        )
        reduces = 1 + sum(n * layer.all_reduces for n, layer in d.model.layers)
        reduced = made(
            "all-reduces",
            "s",
            "product",
            leaf("all-reduces in a step", reduces, "1", shapes(d)),
            made("one", "s", "least", one_shot, two_shot),
        )
        gathered = made(
            "logits gathered",
            "s",
            "quotient",
            made(
                "bytes",
                "bytes",
                "product",
                leaf("decoding sequences", self.step.decodes, "1", "the step"),
                leaf("bytes of a row of logits", d.model.vocab_size * ACTIVATION_BYTES, "bytes", shapes(d)),
                leaf("(p - 1) / p", (d.tp - 1) / d.tp, "1", "tp"),
            ),
            beta,
        )
        return [reduced, gathered]

    def source_of_wire(self, link: str, field: str) -> str:
        """What the link's constants rest on."""
        name = f"{'pcie' if link == 'PCIe' else 'allreduce'}_{field}"
        return f"{link}; {sheet(self.d)}; {constant_source(self.d, name)}"

    def host(self) -> list[Traced]:
        """Host seconds of a step and of its sequences, and the small operations of every layer."""
        d, eff = self.d, self.model.efficiency
        vector = made(
            "seconds to move a hidden vector",
            "s",
            "quotient",
            leaf("bytes of a hidden vector", d.model.hidden_size * ACTIVATION_BYTES, "bytes", shapes(d)),
            self.bandwidth,
        )
        passes = made(
            "passes through memory",
            "1",
            "sum",
            made(
                "on every rank",
                "1",
                "quotient",
                self.constant("layer_passes", eff.layer_passes),
                setting(d, "attention_dp"),
            ),
            made(
                "divided over ranks",
                "1",
                "quotient",
                self.constant("layer_passes_tp", eff.layer_passes_tp),
                setting(d, "tp"),
            ),
        )
        small = made(
            "a layer",
            "s",
            "largest",
            self.constant("layer_s", eff.layer_s, "s"),
            made("vectors", "s", "product", leaf("tokens", self.step.tokens, "tokens", "the step"), passes, vector),
        )
        return [
            self.constant("step_s", eff.step_s, "s"),
            made("small operations", "s", "product", leaf("layers", d.model.num_layers, "1", shapes(d)), small),
            made(
                "host time of sequences",
                "s",
                "product",
                leaf("sequences", self.step.decodes, "1", "the step"),
                made(
                    "of one",
                    "s",
                    "sum",
                    self.constant("seq_s", eff.seq_s, "s"),
                    self.constant("stream_s", eff.stream_s, "s"),
                ),
            ),
            made(
                "sampling",
                "s",
                "product",
                leaf("sequences", self.step.decodes, "1", "the step"),
                made(
                    "seconds to move a row of logits",
                    "s",
                    "quotient",
                    leaf("bytes of a row of logits in fp32", LOGIT_BYTES * d.model.vocab_size, "bytes", shapes(d)),
                    self.bandwidth,
                    self.constant("kv_bw_max", eff.kv_bw_max),
                ),
                self.constant("logit_passes", eff.logit_passes),
            ),
        ]
