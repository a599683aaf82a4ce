"""How long requests wait: the closed formulas of queueing theory that capacity questions meet.

Symbols: ``servers`` c, ``load`` a = arrival rate x mean service time (offered load, in erlangs), ``utilisation``
rho = a / c, ``scv`` the squared coefficient of variation of a time. Waits come in units of the mean service time unless
a name ends in ``_s``; infinite where the queue is not stable. Sources: Erlang 1917, Pollaczek 1930, Kingman 1961;
DistServe (arXiv 2401.09670) for M/D/1 as the model of prefill.
"""

from __future__ import annotations

import math

from gambrel.core.errors import DeploymentError

__all__ = [
    "closed_loop_rate",
    "erlang_b",
    "erlang_c",
    "erlang_c_wait",
    "erlang_c_wait_quantile",
    "kingman_wait",
    "md1_wait",
    "mg1_ps_sojourn",
    "mg1_wait",
    "mm1_wait",
]


def _check(load: float, servers: int = 1) -> None:
    if servers < 1 or not load >= 0.0:
        raise DeploymentError(f"a queue needs at least 1 server and a load of at least 0, got {servers} and {load!r}")


def erlang_b(servers: int, load: float) -> float:
    """Probability that an arrival finds all ``servers`` busy and is lost: the Erlang recursion, exact."""
    _check(load, servers)
    blocking = 1.0
    for n in range(1, servers + 1):
        blocking = load * blocking / (n + load * blocking)
    return blocking


def erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival waits in M/M/c; 1 when ``load`` is at least ``servers``."""
    if load >= servers:
        _check(load, servers)
        return 1.0
    blocking = erlang_b(servers, load)
    return servers * blocking / (servers - load * (1.0 - blocking))


def erlang_c_wait(servers: int, load: float) -> float:
    """Mean wait over service time in M/M/c: ``C / (c - a)``."""
    return erlang_c(servers, load) / (servers - load) if load < servers else math.inf


def erlang_c_wait_quantile(servers: int, load: float, quantile: float) -> float:
    """The wait over service time that a share ``quantile`` of arrivals does not exceed: ``ln(C/(1-q)) / (c - a)``."""
    if load >= servers:
        return math.inf
    waiting = erlang_c(servers, load)
    return max(0.0, math.log(waiting / (1.0 - quantile)) / (servers - load)) if waiting > 0.0 else 0.0


def mg1_wait(utilisation: float, scv: float) -> float:
    """Mean wait over service time in M/G/1 (Pollaczek-Khinchine): ``rho (1 + scv) / (2 (1 - rho))``."""
    _check(utilisation)
    return utilisation * (1.0 + scv) / (2.0 * (1.0 - utilisation)) if utilisation < 1.0 else math.inf


def md1_wait(utilisation: float) -> float:
    """Mean wait over service time with constant service: M/G/1 with scv 0."""
    return mg1_wait(utilisation, 0.0)


def mm1_wait(utilisation: float) -> float:
    """Mean wait over service time with exponential service: M/G/1 with scv 1."""
    return mg1_wait(utilisation, 1.0)


def mg1_ps_sojourn(utilisation: float) -> float:
    """Mean time in system over service time when all present share the server: ``1 / (1 - rho)``, any service law."""
    _check(utilisation)
    return 1.0 / (1.0 - utilisation) if utilisation < 1.0 else math.inf


def kingman_wait(utilisation: float, arrival_scv: float, service_scv: float) -> float:
    """Mean wait over service time in G/G/1, Kingman's approximation: ``rho/(1-rho) (ca2 + cs2)/2``; exact for M/G/1."""
    _check(utilisation)
    return utilisation / (1.0 - utilisation) * (arrival_scv + service_scv) / 2.0 if utilisation < 1.0 else math.inf


def closed_loop_rate(users: float, response_s: float, think_s: float = 0.0) -> float:
    """Requests per second of ``users`` that wait for each answer and then think: Little's law, ``N / (R + Z)``."""
    _check(users)
    return users / (response_s + think_s)
