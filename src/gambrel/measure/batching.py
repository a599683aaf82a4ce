"""The engine's scheduling rule, one step at a time, for a server that must act between the steps.

:mod:`gambrel.engine` replays a workload that is known beforehand, in one call. A live server learns of requests as
they come and loses some halfway, so the same rule stands here as an object with :meth:`Batch.begin` and
:meth:`Batch.end`. It is vLLM's V1 scheduler: running sequences in order of admission, each taking the blocks it
lacks and preempting from the tail when there are none, then the waiting line; and the limits of other policies that
only bound admission. A test holds it to the engine's oracle request by request; the cost of a step is the cost model's
own table. What it does not know is refused (:func:`unserved`): prompts that go first, priorities, guesses, several
stages or pools. Prompts share nothing, for their text means nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from gambrel.core.step import pairs_within, step_parts
from gambrel.engine.workers import needed

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.step import StepTable
    from gambrel.engine.state import Limits

__all__ = ["Batch", "Sequence", "unserved"]

NEVER = float("nan")


def unserved(deployment: Deployment, limits: Limits) -> str:
    """What of a deployment this scheduler does not know, in words that end a sentence; empty if it knows all."""
    if limits.prefill_first:
        return f"policy {deployment.policy}, whose prompts have steps to themselves"
    if limits.by_priority:
        return f"policy {deployment.policy}: requests over HTTP bring no priorities here"
    if limits.draft_tokens:
        return "speculative decoding (draft_tokens)"
    if needed(deployment):
        return "pipeline stages, attention ranks or prefill workers of their own"
    return ""


class Sequence:
    """One request in the scheduler: what it wants, how far it is, and when things happened (seconds, virtual)."""

    __slots__ = (
        "arrival_s", "cancelled", "chunk", "computed", "decoding", "first_s", "generated", "held",
        "output", "owner", "preemptions", "prompt", "scheduled_s", "token_s",
    )  # fmt: skip

    def __init__(self, arrival_s: float, prompt: int, output: int, owner: object = None) -> None:
        self.arrival_s, self.prompt, self.output, self.owner = arrival_s, prompt, output, owner
        self.computed = 0  # tokens in the cache
        self.generated = 0
        self.held = 0  # KV blocks, and those of its state
        self.chunk = 0  # tokens of this step
        self.decoding = False
        self.cancelled = False
        self.preemptions = 0
        self.scheduled_s = NEVER
        self.first_s = NEVER
        self.token_s = NEVER

    @property
    def done(self) -> bool:
        """Whether its last token has come."""
        return self.generated >= self.output


class Batch:
    """One replica's running batch and waiting line."""

    def __init__(self, table: StepTable, limits: Limits) -> None:
        self.limits = limits
        self._arrays = table.arrays()
        self._window = table.window
        self.free = limits.num_kv_blocks
        self.running: list[Sequence] = []
        self.preempted: list[Sequence] = []  # a stack, the last one waits at the front
        self.waiting: deque[Sequence] = deque()
        self.promised = 0  # blocks that running sequences will need to their end, where the policy promises them
        self.num_scheduled = 0
        self.tokens = 0  # of the step under way
        self.steps = 0
        self.busy_s = 0.0

    @property
    def outstanding(self) -> int:
        """Sequences that are not finished."""
        return len(self.running) + len(self.preempted) + len(self.waiting)

    @property
    def kv_usage(self) -> float:
        """Share of KV blocks in use."""
        return 1.0 - self.free / self.limits.num_kv_blocks

    def drop_cancelled(self) -> None:
        """Forget those whose client has gone; only between steps."""
        for line in (self.running, self.preempted):
            for sequence in [s for s in line if s.cancelled]:
                self._let_go(sequence)
                line.remove(sequence)
        if any(s.cancelled for s in self.waiting):
            self.waiting = deque(s for s in self.waiting if not s.cancelled)

    def _to_the_end(self, sequence: Sequence) -> int:
        """Blocks that a sequence needs for its last token; 0 where the policy does not ask."""
        if not self.limits.promise_output:
            return 0
        size = self.limits.block_size
        return (sequence.prompt + sequence.output - 1 + size - 1) // size + self.limits.state_blocks

    def _let_go(self, sequence: Sequence) -> None:
        """Take back what a sequence holds, for good."""
        self.free += sequence.held
        if sequence.held:
            self.promised -= self._to_the_end(sequence)
        sequence.held = 0

    def begin(self, clock: float) -> float:
        """Schedule the step that starts at ``clock``; its seconds, 0 when there is nothing to do.

        Requests that arrive later than ``clock`` wait for the next.
        """
        while True:
            if self._schedule(clock):
                return self._price()
            if not self.running and not self.preempted and not (self.waiting and self.waiting[0].arrival_s <= clock):
                return 0.0

    def _schedule(self, clock: float) -> bool:
        limits, running = self.limits, self.running
        size = limits.block_size
        budget = limits.max_num_batched_tokens
        evicted = False
        scheduled = 0
        while scheduled < len(running) and budget > 0:
            sequence = running[scheduled]
            chunk = min(sequence.prompt + sequence.generated - sequence.computed, budget)
            need = (sequence.computed + chunk + size - 1) // size + limits.state_blocks - sequence.held
            fits = True
            while need > self.free:
                victim = running.pop()
                self.free += victim.held
                victim.held = victim.computed = 0
                victim.decoding = False
                victim.preemptions += 1
                self.preempted.append(victim)
                evicted = True
                if victim is sequence:
                    fits = False
                    break
            if not fits:
                break
            self.free -= need
            sequence.held += need
            sequence.chunk = chunk
            budget -= chunk
            scheduled += 1
        if not evicted and not (limits.static_batch and running):
            scheduled += self._admit(clock, budget)
        self.num_scheduled = scheduled
        return scheduled > 0

    def _admit(self, clock: float, budget: int) -> int:
        """Take from the waiting line what the budget, the slots and the blocks allow; how many."""
        limits, size = self.limits, self.limits.block_size
        admitted = 0
        while budget > 0 and len(self.running) < limits.max_num_seqs:
            if self.preempted:
                sequence = self.preempted[-1]
            elif self.waiting and self.waiting[0].arrival_s <= clock:
                sequence = self.waiting[0]
            else:
                break
            tokens = sequence.prompt + sequence.generated
            if tokens > budget and not limits.chunked_prefill:
                break
            chunk = min(tokens, budget)
            need = (chunk + size - 1) // size + limits.state_blocks
            room = (tokens + size - 1) // size + limits.state_blocks if limits.reserve_full_prompt else need
            if self.running:
                room += limits.watermark_blocks
            promise = self._to_the_end(sequence)
            if room > self.free or self.promised + promise > limits.num_kv_blocks:
                break
            self.promised += promise
            if self.preempted:
                self.preempted.pop()
            else:
                self.waiting.popleft()
                sequence.scheduled_s = clock
            self.free -= need
            sequence.held = need
            sequence.chunk = chunk
            self.running.append(sequence)
            admitted += 1
            budget -= chunk
        return admitted

    def _price(self) -> float:
        window = self._window
        decodes = sampled = kv = kv_windowed = pre_tokens = pre_chunks = pairs = pairs_windowed = 0
        for sequence in self.running[: self.num_scheduled]:
            computed, chunk = sequence.computed, sequence.chunk
            if sequence.decoding:
                keys = computed + 1
                decodes += 1
                kv += keys
                kv_windowed += min(keys, window) if window > 0 else keys
            else:
                pre_tokens += chunk
                pre_chunks += 1
                pairs += pairs_within(computed, chunk, 0)
                pairs_windowed += pairs_within(computed, chunk, window)
            if computed + chunk == sequence.prompt + sequence.generated:
                sampled += 1
        self.tokens = decodes + pre_tokens
        seconds = float(
            step_parts(
                *self._arrays, self.tokens, sampled, decodes, kv, kv_windowed,
                pre_tokens, pre_chunks, pairs, pairs_windowed,
            )[5]
        )  # fmt: skip
        self.steps += 1
        self.busy_s += seconds
        return seconds

    def end(self, clock: float) -> list[Sequence]:
        """The step is over at ``clock``: those that got a token, in order of admission; the finished are let go."""
        got: list[Sequence] = []
        kept: list[Sequence] = []
        for k, sequence in enumerate(self.running):
            if k < self.num_scheduled:
                sequence.computed += sequence.chunk
                if sequence.computed == sequence.prompt + sequence.generated:
                    if sequence.generated == 0:
                        sequence.first_s = clock
                    sequence.token_s = clock
                    sequence.decoding = True
                    sequence.generated += 1
                    got.append(sequence)
                    if sequence.done:
                        self._let_go(sequence)
                        continue
            kept.append(sequence)
        self.running = kept
        self.num_scheduled = 0
        return got
