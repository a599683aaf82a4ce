"""Logs and traces to workloads; workloads described in figures; synthetic and scaled workloads."""

from __future__ import annotations

from gambrel.traffic.clients import Client, ClientPool
from gambrel.traffic.context import cap_context
from gambrel.traffic.doubts import quantum_s, spread_quantised
from gambrel.traffic.figures import Concurrency, PrefixReuse, ServiceModel, WorkloadFigures, describe
from gambrel.traffic.load import load_workload, sample
from gambrel.traffic.mix import mixed
from gambrel.traffic.profiles import Profile, profile, profiles
from gambrel.traffic.rates import RateSeries, day, from_rates, ramp, read_rates
from gambrel.traffic.readers import FORMATS, read_workload
from gambrel.traffic.replay import closed_loop, ready_to_replay, scale_load
from gambrel.traffic.scale import compress_time, scale_lengths, scale_rate, slice_time
from gambrel.traffic.sessions import chain_turns, conversations
from gambrel.traffic.split import SPLITS, Split
from gambrel.traffic.synthetic import Lengths, Quantiles, from_users, synthesise
from gambrel.traffic.write import write_workload

__all__ = [
    "FORMATS",
    "SPLITS",
    "Client",
    "ClientPool",
    "Concurrency",
    "Lengths",
    "PrefixReuse",
    "Profile",
    "Quantiles",
    "RateSeries",
    "ServiceModel",
    "Split",
    "WorkloadFigures",
    "cap_context",
    "chain_turns",
    "closed_loop",
    "compress_time",
    "conversations",
    "day",
    "describe",
    "from_rates",
    "from_users",
    "load_workload",
    "mixed",
    "profile",
    "profiles",
    "quantum_s",
    "ramp",
    "read_rates",
    "read_workload",
    "ready_to_replay",
    "sample",
    "scale_lengths",
    "scale_load",
    "scale_rate",
    "slice_time",
    "spread_quantised",
    "synthesise",
    "write_workload",
]
