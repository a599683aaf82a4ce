"""A continuous-batching replica as a discrete-event loop, and replicas behind a router."""

from __future__ import annotations

from gambrel.engine.deployed import simulate, staged
from gambrel.engine.policies import POLICIES, policy_of
from gambrel.engine.recording import record, timeline
from gambrel.engine.routing import ROUTINGS, run_replica
from gambrel.engine.simulation import Replay, check_fits, limits_of, max_request_tokens, replay, run_of
from gambrel.engine.state import Limits, Replicas, Requests
from gambrel.engine.watch import Watch

__all__ = [
    "POLICIES",
    "ROUTINGS",
    "Limits",
    "Replay",
    "Replicas",
    "Requests",
    "Watch",
    "check_fits",
    "limits_of",
    "max_request_tokens",
    "policy_of",
    "record",
    "replay",
    "run_of",
    "run_replica",
    "simulate",
    "staged",
    "timeline",
]
