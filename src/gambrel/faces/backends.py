"""Who computes a search: threads, processes, or a Ray or Dask cluster.

A search is rounds of tasks that do not look at each other (:mod:`gambrel.plan.search`), so the answer is the same bytes
whoever computes them. Threads are the default on few cores: the kernels release the interpreter's lock, and processes
would each load the compiled kernels first. From :data:`PROCESSES_FROM` cores on processes win, as a quarter of a search
is Python that threads take turns at. A cluster's machines need gambrel installed, at the same version.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from gambrel.core.errors import GambrelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gambrel.plan.question import Search
    from gambrel.plan.search import Pool

__all__ = ["BACKENDS", "workers"]

PROCESSES_FROM = 5


class Joblib:
    """Tasks over whatever backend joblib is set to."""

    def each(self, work: Callable[[Any], Search], tasks: Sequence[Any]) -> Iterator[Search]:
        """The result of every task, in order."""
        joblib = _needed("joblib", "loky")
        todo = (joblib.delayed(work)(task) for task in tasks)
        yield from joblib.Parallel(return_as="generator", batch_size=1)(todo)


class Ray:
    """Tasks over a Ray cluster; the question travels once, not with every task."""

    def each(self, work: Callable[[Any], Search], tasks: Sequence[Any]) -> Iterator[Search]:
        """The result of every task, in order."""
        ray = _needed("ray", "ray")
        shared = ray.put(work)
        remote = ray.remote(_apply)
        for reference in [remote.remote(shared, task) for task in tasks]:
            yield ray.get(reference)


class Dask:
    """Tasks over a Dask cluster; the question travels once, not with every task."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def each(self, work: Callable[[Any], Search], tasks: Sequence[Any]) -> Iterator[Search]:
        """The result of every task, in order."""
        shared = self._client.scatter(work, broadcast=True, hash=False)
        for future in [self._client.submit(_apply, shared, task, pure=False) for task in tasks]:
            yield future.result()


def _apply(work: Callable[[Any], Search], task: Any) -> Search:
    return work(task)


@contextlib.contextmanager
def _threads(address: str | None) -> Iterator[Pool]:
    from gambrel.plan.search import Threads

    _no_address("threads", address)
    yield Threads(_cores())


@contextlib.contextmanager
def _loky(address: str | None) -> Iterator[Pool]:
    joblib = _needed("joblib", "loky")
    _no_address("loky", address)
    with joblib.parallel_config("loky", n_jobs=_cores()):
        yield Joblib()


@contextlib.contextmanager
def _ray(address: str | None) -> Iterator[Pool]:
    ray = _needed("ray", "ray")
    began = not ray.is_initialized()
    if began:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="warning")
        except ConnectionError as error:
            raise GambrelError(f"no Ray cluster at {address}: {' '.join(str(error).split())}") from None
    try:
        yield Ray()
    finally:
        if began:
            ray.shutdown()


@contextlib.contextmanager
def _dask(address: str | None) -> Iterator[Pool]:
    distributed = _needed("distributed", "dask")
    try:
        client = distributed.Client(address, set_as_default=False)
    except OSError as error:
        raise GambrelError(f"no Dask scheduler at {address}: {' '.join(str(error).split())}") from None
    try:
        yield Dask(client)
    finally:
        client.close()


@contextlib.contextmanager
def _auto(address: str | None) -> Iterator[Pool]:
    from importlib.util import find_spec

    _no_address("auto", address)
    chosen = _loky if _cores() >= PROCESSES_FROM and find_spec("joblib") is not None else _threads
    with chosen(None) as pool:
        yield pool


BACKENDS = {"auto": _auto, "threads": _threads, "loky": _loky, "ray": _ray, "dask": _dask}


def workers(backend: str = "auto", address: str | None = None) -> contextlib.AbstractContextManager[Pool]:
    """A pool of workers for the time of a ``with`` block.

    ``auto`` takes processes (joblib's loky) where they pay, else threads; ``ray`` and ``dask`` without an address
    start a local cluster of their own.

    Raises:
        GambrelError: an unknown backend, one that is not installed, or no cluster at the address.
    """
    if backend not in BACKENDS:
        raise GambrelError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    return BACKENDS[backend](address)


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _needed(module: str, backend: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise GambrelError(f"backend {backend} needs {module}: install gambrel[{backend}]") from None


def _no_address(backend: str, address: str | None) -> None:
    if address is not None:
        raise GambrelError(f"backend {backend} runs on this machine and takes no address; ray and dask do")
