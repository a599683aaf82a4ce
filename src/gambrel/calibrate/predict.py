"""What gambrel would have said about a published row, before it was measured.

Every mode goes through the simulator: closed loops and Poisson arrivals as they were driven, batches submitted at
once as such. Compiled step tables are kept per deployment, so a table of thousands of rows takes seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from gambrel.calibrate.accelmark import WARMING, late_steps, suite_of
from gambrel.calibrate.harness import alike, packets, row_lengths, workload_of
from gambrel.calibrate.inferencex import stream_interval, waiting_steps
from gambrel.calibrate.setting import TUNED, deployments
from gambrel.calibrate.table import MODES
from gambrel.calibrate.tuned import Lengths, drawn, highest_rate, limit_of, midway, task_of, while_full
from gambrel.core.errors import CatalogError, GambrelError
from gambrel.cost.memory import held_bytes
from gambrel.engine import limits_of, max_request_tokens, replay, run_of, staged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gambrel.calibrate.names import Models
    from gambrel.calibrate.table import Figure, Row
    from gambrel.calibrate.tuned import Limit, Task
    from gambrel.core.accelerator import Accelerator
    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run
    from gambrel.core.step import CostModel, MemoryBudget, StepTable
    from gambrel.core.workload import Workload
    from gambrel.cost import Roofline

_LONGEST: Final = 1 << 23  # tokens
_MOST_GPUS: Final = 100_000
_LEAST_CACHE: Final = 0.05  # of the memory: what a row that ran had at least for its cache
_WAVES: Final = 3  # times that a saturated system is filled: to 2 % of many times
_TRIED: Final = (16, 32, 64, 128, 256, 512, 1024, 2048)  # batch limits that a tuned submission is searched over

_FEWER: Final = 0.9  # of the most tokens so far: lower batch limits give fewer still (a full cache may do with fewer)
_CHUNK: Final = 1024  # prompt tokens of a step that submissions choose beside the engine's own limit
_IN_TURN: Final = {"llama.cpp"}  # whose devices hold a layer range each and take turns at one batch

_Any = TypeVar("_Any")

__all__ = ["Prediction", "Predictor", "Skip", "read_figure", "simulated"]


class Skip(Exception):  # noqa: N818 - the answer "not compared", with its reason
    """A row that cannot be compared; the message is the reason, alike for alike rows."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A row's predicted figures by metric (SI), the deployment they stand for and the constants' own spreads."""

    row: Row
    deployment: Deployment
    figures: Mapping[str, float]
    spread: float
    ttft_spread: float
    assumed: str = ""


def read_figure(run: Run, metric: str, statistic: str) -> float:
    """One statistic of one metric of a run: seconds, or tokens per second over the makespan."""
    if metric == "output_tok_s":
        return run.output_tokens_per_s
    return float(run.distribution(metric).percentile(statistic))


def simulated(
    deployment: Deployment, priced: CostModel, workload: Workload, wanted: Mapping[str, Figure]
) -> dict[str, float]:
    """The wanted figures of a simulated operating point, by metric, with the statistic each asks for."""
    table = priced.compile(deployment.max_num_batched_tokens, deployment.max_num_seqs)
    run, _ = Predictor.run(deployment, table, priced.memory(), workload)
    found = {}
    for metric, figure in wanted.items():
        if metric == "output_tok_s" and workload.closed_loop:
            found[metric] = _steady(run, min(workload.closed_loop, len(workload)))
        else:
            found[metric] = read_figure(run, metric, figure.statistic)
    return found


def _steady(run: Run, users: int) -> float:
    """Tokens per second of a closed loop that goes on: Little's law, so no window and no ends."""
    return users * float(run.output_tokens.mean()) / run.distribution("e2e").mean


def _sequences_held(deployment: Deployment, memory: MemoryBudget, context: float) -> int:
    """Sequences of so many tokens that the cache of a replica holds; one at the least, as the row ran."""
    held = held_bytes(deployment, context) or 1.0
    return math.ceil(max(1.0, memory.num_kv_blocks * memory.kv_bytes_per_block / held))


def _counted(run: Run, workload: Workload) -> Run:
    """A run without the requests that only warmed a cache."""
    if workload.kind is None or WARMING not in workload.kinds:
        return run
    kept = workload.kind != workload.kinds.index(WARMING)
    columns = ("arrival_s", "scheduled_s", "first_token_s", "last_token_s", "prompt_tokens", "output_tokens",
               "preemptions", "replica", "cached_tokens", "paused_s", "kind")  # fmt: skip
    rows = {name: getattr(run, name) for name in columns}
    return replace(run, **{name: values[kept] for name, values in rows.items() if values is not None})


def _reason(message: str) -> str:
    """What is unknown, and why where the catalog says; without what is near, which differs from row to row."""
    what, *rest = message.split("; ")
    why = [part for part in rest if not part.startswith(("nearest", "a catalog file", "a path", "known:"))]
    return "; ".join([what, *why[-1:]])


def _require_comparable(row: Row) -> None:
    """Raise Skip for a row that says too little, or what cannot be."""
    if row.quality == "D":
        raise Skip("quality D: implausible by its own table")
    if not row.measured:
        raise Skip("nothing measured that is compared here")
    if row.mode not in MODES:
        raise Skip(f"unknown mode {row.mode!r}; known: {', '.join(MODES)}" if row.mode else "no mode")
    prompt, output = row_lengths(row)
    if not (prompt >= 1.0 and output >= 1.0):
        raise Skip("lengths of prompts and answers not published")
    if max(prompt, output) > _LONGEST:
        raise Skip("lengths beyond any model's context")
    if max(row.num_gpus, row.tp or 1, row.pp or 1, row.ep or 1) > _MOST_GPUS:
        raise Skip("more accelerators than any fleet has")
    loaded = row.mode == "offline" or (row.load > 0.0 and math.isfinite(row.load))
    if not loaded and set(row.measured) - {"output_tok_s"}:  # throughput alone is taken as that of a full system
        raise Skip("concurrency or rate not published")


class Predictor:
    """Rows to predictions.

    Args:
        pricer: deployments to cost models, with shipped constants or those of a fitted profile.
        models: names to models.
        find: names to accelerators.
        settled: what rows mean (deployments and requests), kept here for the next predictor of the same rows; a fit
            asks for the same rows with other constants a hundred times.
    """

    def __init__(
        self,
        pricer: Callable[[Deployment], Roofline],
        models: Models,
        find: Callable[[str], Accelerator],
        settled: dict[Any, Any] | None = None,
    ) -> None:
        self._settled = settled
        self._price = pricer
        self._models = models
        self._find = find
        self._saturated: dict[tuple[object, ...], tuple[float, float, float]] = {}
        self._rates: dict[tuple[object, ...], float] = {}
        self._widest: dict[tuple[object, ...], StepTable] = {}
        self._tables: dict[tuple[Any, ...], tuple[StepTable, MemoryBudget, Roofline]] = {}

    def __call__(self, row: Row) -> Prediction:
        """What the row should have measured.

        Raises:
            Skip: the row cannot be compared; says why.
        """
        _require_comparable(row)
        try:
            options = self._options(row)
            task = task_of(row)
            if task is not None:
                return self._tuned(row, options, task)
            made = [self._figures(row, d) for d in options]
        except CatalogError as error:
            raise Skip(_reason(str(error))) from None
        except GambrelError as error:
            raise Skip(str(error)) from None
        except (ArithmeticError, LookupError, MemoryError, ValueError) as error:  # figures no formula was made for
            raise Skip(f"cannot be predicted from these figures ({type(error).__name__})") from None
        best = max(range(len(made)), key=lambda i: (not made[i][2], made[i][0].get("output_tok_s", 0.0)))
        figures, priced, assumed = made[best]
        first = max(priced.spread, priced.efficiency.ttft_spread)
        return Prediction(row, options[best], figures, priced.spread, first, assumed)

    def _options(self, row: Row) -> list[Deployment]:
        return self._kept((id(row),), lambda: deployments(row, self._models, self._find))

    def _workload(self, row: Row, saturating: int) -> Workload | None:
        return self._kept((id(row), saturating), lambda: workload_of(row, saturating=saturating))

    def _kept(self, key: tuple[int, ...], make: Callable[[], _Any]) -> _Any:
        """What ``make`` gives, from the first time on, where the caller keeps rows (and so their identity)."""
        if self._settled is None:
            return make()
        if key not in self._settled:
            self._settled[key] = make()
        found: _Any = self._settled[key]
        return found

    def _tuned(self, row: Row, options: list[Deployment], task: Task) -> Prediction:
        """The most tokens per second that any arrangement and batch limit gives within the scenario's limit.

        Beams that read their prompt's cache together advance as guesses that never hold, the others as longer answers.
        """
        limit = limit_of(row, task)
        prompt, output = row_lengths(row)
        apart = task.beams // task.together
        lengths = Lengths(prompt, output * apart, (task.longest[0], task.longest[1] * apart))
        tried = []
        for d in options:
            if task.beams > 1 and d.pp > 1:
                continue
            chunk = min(_CHUNK, d.max_num_batched_tokens)
            for most in (chunk,) if d.pp > 1 else sorted({chunk, d.max_num_batched_tokens}):
                tried += self._limits_tried(
                    d.with_(draft_tokens=task.together - 1, acceptance=0.0, max_num_batched_tokens=most),
                    math.inf if limit is None else limit.tpot_s, lengths,
                )  # fmt: skip
        best, found = 0.0, options[0]
        for tokens, held, each in sorted(tried, key=lambda t: -t[0]):
            if tokens <= best:
                break  # not even saturated
            kept = tokens if limit is None else self._sustained(each, limit, tokens, held, lengths)
            if kept > best:
                best, found = kept, each
        if best <= 0.0:
            raise Skip("no arrangement keeps the scenario's limits")
        priced = self._compiled(found)[2]
        return Prediction(
            row, found, {"output_tok_s": best / apart}, priced.spread, priced.efficiency.ttft_spread, "tuned"
        )

    def _limits_tried(self, d: Deployment, tpot_s: float, lengths: Lengths) -> list[tuple[float, float, Deployment]]:
        """(tokens per second, sequences in flight, deployment) by batch limit, largest first, until fewer are worse."""
        found: list[tuple[float, float, Deployment]] = []
        room = self._room(d, lengths)
        for sequences in reversed(_TRIED):
            if sequences >= 2 * room and sequences > _TRIED[0]:
                continue  # no more than half as many allow
            each = d.with_(max_num_seqs=sequences, max_num_batched_tokens=max(sequences, d.max_num_batched_tokens))
            tokens, step, held = self._saturation(each, lengths)
            if step > tpot_s:
                continue
            found.append((tokens * d.replicas, held, each))
            if found[-1][0] < _FEWER * max(f[0] for f in found):
                break
        return found

    def _room(self, deployment: Deployment, lengths: Lengths) -> int:
        """Sequences of mean length that the cache of a replica holds, half answered."""
        _, memory, _ = self._compiled(deployment)
        return _sequences_held(deployment, memory, lengths.prompt + lengths.output / 2)

    def _saturation(self, deployment: Deployment, lengths: Lengths) -> tuple[float, float, float]:
        """(tokens per second, mean time per token, sequences in flight) of one saturated replica, remembered."""
        table, memory, _ = self._compiled(deployment)
        key = (id(table), deployment.max_num_seqs, deployment.max_num_batched_tokens, lengths)
        if key not in self._saturated:
            sequences = min(deployment.max_num_seqs, self._room(deployment, lengths))
            everyone = midway(drawn(0, lengths, max(64, _WAVES * sequences)), sequences)
            run, _ = self.run(deployment.with_(replicas=1), table, memory, everyone)
            self._saturated[key] = (*while_full(run, sequences), float(sequences))
        return self._saturated[key]

    def _sustained(self, deployment: Deployment, limit: Limit, tokens: float, held: float, lengths: Lengths) -> float:
        """Tokens per second of the fastest Poisson stream to every replica that keeps a limit, remembered."""
        table, memory, _ = self._compiled(deployment)
        key = (id(table), deployment.max_num_seqs, deployment.max_num_batched_tokens, limit, lengths)
        if key not in self._rates:
            alone = deployment.with_(replicas=1)
            capacity = tokens / deployment.replicas / lengths.output
            self._rates[key] = highest_rate(
                lambda w: self.run(alone, table, memory, w)[0], limit, capacity, held, lengths
            )
        return self._rates[key] * lengths.output * deployment.replicas

    def _figures(self, row: Row, deployment: Deployment) -> tuple[dict[str, float], Roofline, str]:
        """(figures by metric, cost model, what had to be assumed to run at all) of one arrangement."""
        table, memory, priced = self._compiled(deployment, packets(row), alike=alike(row))
        if row.mode == "offline":  # in the engine's process: nothing comes in from outside, nothing goes out
            table = replace(table, request_s=0.0)
        prompt, output = row_lengths(row)
        room = _sequences_held(deployment, memory, prompt + output / 2)
        saturating = min(deployment.max_num_seqs, room) * deployment.replicas
        workload = self._workload(row, saturating)
        if workload is None:
            raise Skip("lengths of prompts and answers not published")
        if deployment.engine == "tensorrt-llm":  # its default scheduler never evicts: it reserves every answer in full
            whole = -(-max_request_tokens(workload) // deployment.block_size)
            most = max(1, min(deployment.max_num_seqs, memory.num_kv_blocks // (whole + memory.state_blocks)))
            deployment = deployment.with_(max_num_seqs=most)
        run, assumed = self.run(deployment, table, memory, workload)
        static = row.mode == "offline" and ("static batch" in row.notes or "single stream" in row.notes)
        figures = {metric: self._read(run, row, metric, figure, static=static)
                   for metric, figure in row.measured.items()}  # fmt: skip
        if "ttft" in figures and not static:  # the first token leaves with the last of its packet
            step = run.distribution("tpot").p50
            late = stream_interval(row) - 1 + waiting_steps(row, deployment.attention_dp) + late_steps(row)
            figures["ttft"] += late * step if math.isfinite(step) else 0.0
        figures.setdefault("output_tok_s", run.output_tokens_per_s)
        return figures, priced, assumed

    @staticmethod
    def run(deployment: Deployment, table: StepTable, memory: MemoryBudget, workload: Workload) -> tuple[Run, str]:
        """(the simulated run, what was assumed): a row that ran did fit, whatever the memory budget says."""
        needed = -(-max_request_tokens(workload) // deployment.block_size) + memory.state_blocks
        assumed = "" if memory.num_kv_blocks >= needed else "memory: taken to hold one request, as it ran"
        limits = limits_of(deployment, replace(memory, num_kv_blocks=max(memory.num_kv_blocks, needed)))
        if deployment.pp > 1 and deployment.engine not in _IN_TURN and deployment.attention_dp == 1:
            return _counted(staged(deployment, table, limits, workload), workload), assumed
        played = replay(table, limits, workload, replicas=deployment.replicas, routing="round_robin")
        return _counted(run_of(played, limits, deployment.replicas), workload), assumed

    @staticmethod
    def _read(run: Run, row: Row, metric: str, figure: Figure, *, static: bool) -> float:
        if static and metric == "e2e":
            return run.makespan_s
        if static and metric == "ttft":
            return float(np.nanmax(run.ttft_s))
        if static and metric == "tpot":
            return float((run.makespan_s - np.nanmax(run.ttft_s)) / max(1, int(run.output_tokens[0]) - 1))
        if metric == "output_tok_s" and row.mode == "concurrency" and suite_of(row) is not None:
            return _steady(run, max(1, round(row.load)))  # of half an hour, minute by minute
        if metric == "tpot" and "may include TTFT" in row.notes:
            return float(np.median(run.e2e_s / run.output_tokens))
        return read_figure(run, metric, figure.statistic)

    def _table(self, priced: Roofline) -> StepTable:
        """The step table of a deployment; submissions that differ in their batch limit share the widest."""
        d = priced.deployment
        if d.engine != TUNED:
            return priced.compile(d.max_num_batched_tokens, d.max_num_seqs)
        rows = _TRIED[-1] * (1 + d.draft_tokens)
        tokens = max(d.max_num_batched_tokens, rows)
        key = (d.model.name, d.accelerator.name, d.tp, d.pp, d.ep, d.attention_dp, d.weights, d.kv, rows, tokens)
        if key not in self._widest:
            self._widest[key] = priced.compile(tokens, rows)
        return self._widest[key]

    def _compiled(
        self, deployment: Deployment, sent: float = 0.0, *, alike: bool = False
    ) -> tuple[StepTable, MemoryBudget, Roofline]:
        """(step table, memory, cost model) of a deployment, kept for the next row of the same settings.

        ``sent``: packets that leave per token and sequence; ``alike``: whether all tokens pick the same experts.
        """
        d = deployment
        key = (d.model.name, d.accelerator.name, d.tp, d.pp, d.ep, d.attention_dp, d.weights, d.kv, d.engine,
               d.engine_version, d.max_num_seqs, d.max_num_batched_tokens, d.gpu_memory_utilization,
               d.draft_tokens, sent, alike)  # fmt: skip
        if key not in self._tables:
            priced = self._price(d.with_(replicas=1)).sending(sent)
            priced = priced.alike() if alike and d.model.has_experts else priced
            blocks = priced.memory().num_kv_blocks
            if blocks < 1:  # it ran: engines are then given more of the memory and smaller steps
                tighter = d.with_(
                    replicas=1, gpu_memory_utilization=0.97, max_num_seqs=min(d.max_num_seqs, 64),
                    max_num_batched_tokens=2048,
                )  # fmt: skip
                budget = self._price(tighter).memory()
                least = _LEAST_CACHE * budget.memory_bytes / max(budget.kv_bytes_per_block, 1.0)
                blocks = max(budget.num_kv_blocks, math.floor(least))
            memory = replace(priced.memory(), num_kv_blocks=blocks)
            self._tables[key] = (self._table(priced), memory, priced)
        return self._tables[key]
