"""One measured operating point: what was asked of which deployment, and what came back.

Whoever measured (our client, another tool, a published table), a fit sees the same thing: the deployment, requests to
replay in a simulation, and a few figures with their statistic. A point that measured its own client says nothing about
the server, so it is refused; so is a person's run that is faster than what it is said to have run on can be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from gambrel.calibrate.harness import packets, row_lengths, workload_of
from gambrel.calibrate.setting import deployments
from gambrel.calibrate.table import Figure
from gambrel.core.efficiency import ideal
from gambrel.core.errors import WorkloadError
from gambrel.core.workload import Workload
from gambrel.cost import Roofline, floor_seconds
from gambrel.report.humanise import seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gambrel.calibrate.names import Models
    from gambrel.calibrate.table import Row
    from gambrel.core.accelerator import Accelerator
    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run

_ROUNDS = 20  # requests a user sends at least, so that starting and running dry are a tenth of what is averaged
_ERROR: Final = 0.9
"""Of the floor, what a time per token may still be: a client that takes three tokens of a first event for one divides
the 18 steps after it, of an answer of 21, by 20."""

__all__ = ["Point", "point_of_lengths", "point_of_row", "point_of_run", "require_possible", "require_server_bound"]


@dataclass(frozen=True)
class Point:
    """An operating point.

    Attributes:
        label: what a person calls it, e.g. ``c8 p512 o128``.
        deployment: what was measured; its ``replicas`` share the load.
        workload: requests to replay: a closed loop, or arrivals as they were offered.
        measured: by metric (``ttft``, ``tpot``, ``e2e``, ``output_tok_s``): seconds or tokens per second.
        client_bound: whether the load generator, not the server, set the pace.
        source: file or table it came from.
        packets: that left the server per token: 1 as a stream, 0 where a batch is read at its end.
    """

    label: str
    deployment: Deployment
    workload: Workload
    measured: Mapping[str, Figure] = field(default_factory=dict)
    client_bound: bool = False
    source: str = ""
    packets: float = 1.0


def require_server_bound(points: Sequence[Point]) -> None:
    """Raise WorkloadError where a point measured its own client: constants fitted to it would be the client's."""
    bound = [p.label for p in points if p.client_bound]
    if bound:
        raise WorkloadError(
            f"bound by the client, not the server: {', '.join(bound)}; measure these levels with more client processes"
            " or leave them out (gambrel selfcheck says what this machine can drive)"
        )


def require_possible(points: Sequence[Point]) -> None:
    """Raise WorkloadError where a token took less than reading its weights once at peak bandwidth does.

    No constant explains that: something else ran, and a fit would only move all of them to a bound. Guesses that are
    accepted share a step.
    """
    for p in points:
        d, figure = p.deployment, p.measured.get("tpot")
        if figure is None:
            continue
        floor_s = floor_seconds(Roofline(d, ideal())) / (1 + d.draft_tokens)
        if figure.value < _ERROR * floor_s:
            raise WorkloadError(
                f"{p.label}: {seconds(figure.value)} a token, but {d.accelerator.name} takes at least "
                f"{seconds(floor_s)} to read the weights of {d.model.name} ({d.weights}, tp {d.tp}): the model, its "
                "format, the accelerator or its number is not what ran, or the server guesses tokens ahead; say what "
                "ran, or leave the level out"
            )


def point_of_run(
    run: Run,
    deployment: Deployment,
    *,
    label: str = "",
    users: int | None = None,
    staggered: bool = False,
    client_bound: bool = False,
) -> Point:
    """A run as evidence.

    Args:
        run: what was measured, one row a request; failed requests are left out.
        deployment: what served it.
        label: its name in messages.
        users: requests kept in flight by a closed loop; None replays the arrivals as they came.
        staggered: whether the users started one after the other, as our client's do, or together.
        client_bound: whether the load generator set the pace.

    Raises:
        WorkloadError: no request of the run was answered.
    """
    done = np.isfinite(run.last_token_s) & np.isfinite(run.first_token_s) & (run.output_tokens >= 1)
    if not done.any():
        raise WorkloadError(f"{label or run.basis or 'run'}: no request was answered, so there is nothing to fit")
    prompt, output = np.maximum(run.prompt_tokens[done], 1), run.output_tokens[done]
    if users is None:
        arrival = run.arrival_s[done]
        order = np.argsort(arrival, kind="stable")
        workload = Workload(arrival[order] - arrival[order][0], prompt[order], output[order], name=label or "run")
    else:
        workload = _closed(prompt, output, users, label or "run", staggered=staggered)
    measured = {
        metric: Figure(run.distribution(metric).mean)
        for metric in ("ttft", "tpot", "e2e")
        if math.isfinite(run.distribution(metric).mean)
    }
    if users is not None:  # a window's throughput would need its length; Little's law does not
        measured["output_tok_s"] = Figure(users * float(output.mean()) / measured["e2e"].value)
    return Point(label or "run", deployment, workload, measured, client_bound, run.origin)


def _closed(prompt: np.ndarray[tuple[int], np.dtype[np.int64]], output: np.ndarray[tuple[int], np.dtype[np.int64]],
            users: int, name: str, *, staggered: bool = False) -> Workload:  # fmt: skip
    rows = np.arange(max(len(prompt), _ROUNDS * users)) % len(prompt)
    return Workload(
        np.zeros(len(rows)),
        prompt[rows],
        output[rows],
        name=name,
        has_arrivals=False,
        closed_loop=min(users, len(rows)),
        staggered=staggered,
    )


def point_of_lengths(
    deployment: Deployment,
    measured: Mapping[str, Figure],
    *,
    prompt_tokens: float,
    output_tokens: float,
    users: int | None = None,
    rate: float | None = None,
    staggered: bool = False,
    label: str = "",
) -> Point:
    """Aggregates of a level as evidence: mean lengths, and either users in flight or requests per second.

    ``staggered``: the users started one after the other, not together.

    Raises:
        WorkloadError: neither or both of ``users`` and ``rate``, or lengths below 1.
    """
    if (users is None) == (rate is None) or not (prompt_tokens >= 1 and output_tokens >= 1):
        raise WorkloadError(
            f"{label or 'level'}: needs prompt and output tokens of at least 1, and either concurrency or a rate"
        )
    prompt, output = max(1, round(prompt_tokens)), max(1, round(output_tokens))
    name = label or (f"c{users}" if users is not None else f"r{rate:g}") + f" p{prompt} o{output}"
    if users is not None:
        lengths = np.full(1, prompt, np.int64), np.full(1, output, np.int64)
        workload = _closed(*lengths, users, name, staggered=staggered)
    else:
        n, rng = 400, np.random.default_rng(0)
        gaps = rng.exponential(1.0 / (rate or 1.0), n)
        workload = Workload(np.cumsum(gaps) - gaps[0], np.full(n, prompt, np.int64), np.full(n, output, np.int64))
    return Point(name, deployment, workload, dict(measured), source="aggregates")


def point_of_row(row: Row, models: Models, find: Callable[[str], Accelerator]) -> Point | None:
    """A row of a published table as evidence; None where it does not say enough to be replayed."""
    prompt, output = row_lengths(row)
    if not (prompt >= 1.0 and output >= 1.0) or row.quality == "D" or not row.measured:
        return None
    deployment = deployments(row, models, find)[0]
    workload = workload_of(row)
    if workload is None:
        return None
    label = f"{row.id} {row.mode} {row.load:g} p{prompt:.0f} o{output:.0f}"
    return Point(label, deployment, workload, row.measured, source=row.source, packets=packets(row))
