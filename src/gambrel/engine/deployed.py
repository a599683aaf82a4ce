"""A deployment simulated: by the plain kernels, or as pools, stages or ranks that :mod:`gambrel.engine.workers` plays.

Read for the rules, and cited where they are kept: vLLM's V1 scheduler and NIXL connector (commit 00024d3),
SGLang's ``disaggregation`` (commits 0035ca4 and 000c2b9), TensorRT-LLM's disaggregated serving.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gambrel.core.errors import DeploymentError
from gambrel.core.step import RankTable, WorkerCost
from gambrel.engine.simulation import check_fits, driven, limits_of, prepared, replay, run_of, special
from gambrel.engine.workers import Pool, Transfer, needed, rank_limits, serve, worker_run

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run
    from gambrel.core.step import CostModel, StepTable
    from gambrel.core.workload import Workload
    from gambrel.engine.state import Limits
    from gambrel.engine.watch import Watch

__all__ = ["pool_of", "simulate", "staged", "transfer_of"]

FETCHED = {
    "vllm": (True, False),
    "vllm_priority": (True, False),
    "sglang": (False, True),
    "tensorrt_llm": (True, True),
    "tensorrt_llm_max_utilization": (True, True),
}
"""By policy: whether decode workers fetch finished prompts, and whether the first token comes along."""


_EVEN = {"sglang", "tensorrt-llm", "mlperf"}
"""Engines that admit an equal share of the sequences to each micro-batch, whatever scheduler stands for theirs."""


def pool_of(deployment: Deployment, cost_model: CostModel) -> Pool:
    """The workers of a deployment of one pool, with their table and the limits of one rank.

    vLLM puts as many of its running sequences into a micro-batch as the budget allows; SGLang
    (``pp_max_micro_batch_size``) and TensorRT-LLM an equal share of them.

    Raises:
        DeploymentError: limits that vLLM refuses, no memory, or a cost model that cannot price ranks in lockstep.
    """
    if deployment.draft_tokens:
        raise DeploymentError(
            "speculative decoding is not modelled with pipeline stages, data-parallel attention or prefill workers; "
            "use pp=1, attention_dp=1, prefill_replicas=0 or draft_tokens=0"
        )
    limits = rank_limits(limits_of(deployment, cost_model.memory()), deployment)
    if limits.num_kv_blocks < 1:
        raise DeploymentError(f"{deployment.label}: no rank has memory for a KV block; use more accelerators")
    if deployment.attention_dp == 1:
        return _stages(deployment, cost_model.compile(limits.max_num_batched_tokens, limits.max_num_seqs), limits)
    if not isinstance(cost_model, WorkerCost):
        raise DeploymentError(
            f"{deployment.label}: this cost model ({cost_model.basis}) cannot price ranks that step together"
        )
    ranks = cost_model.compile_ranks(limits.max_num_batched_tokens, limits.max_num_seqs)
    return Pool(
        ranks, limits, deployment.replicas, deployment.attention_dp, _shares(deployment),
        _batch(deployment, limits.max_num_seqs), by_score=deployment.policy.startswith("vllm"),
        gpus=deployment.gpus_per_replica,
    )  # fmt: skip


def _stages(deployment: Deployment, table: StepTable, limits: Limits) -> Pool:
    """The workers of replicas whose ranks do the same, over as many stages as the deployment has."""
    batch = _batch(deployment, limits.max_num_seqs)
    return Pool(table, limits, deployment.replicas, 1, _shares(deployment), batch, gpus=deployment.gpus_per_replica)


def _shares(deployment: Deployment) -> tuple[float, ...]:
    layers = deployment.stage_layers
    return tuple(n / sum(layers) for n in layers) if len(layers) > 1 else (1.0,)


def _batch(deployment: Deployment, max_num_seqs: int) -> int:
    """Sequences in one micro-batch at most; vLLM divides those that run by nothing but who came when."""
    uneven = deployment.policy.startswith("vllm") and deployment.engine not in _EVEN
    return max_num_seqs if uneven else -(-max_num_seqs // deployment.pp)


def transfer_of(deployment: Deployment, cost_model: CostModel, workload: Workload) -> Transfer:
    """How the prompts of a workload come over under the deployment's policy.

    Raises:
        DeploymentError: a policy whose engine has no prefill workers, or a cost model that knows no link.
    """
    if deployment.policy not in FETCHED:
        raise DeploymentError(
            f"policy {deployment.policy!r} has no prefill workers; known with them: {', '.join(FETCHED)}"
        )
    if not isinstance(cost_model, WorkerCost):
        raise DeploymentError(f"{deployment.label}: this cost model ({cost_model.basis}) knows no link between pools")
    pull, along = FETCHED[deployment.policy]
    return Transfer(cost_model.transfer_s(workload.prompt_tokens.astype(np.float64)), pull, along)


def simulate(
    deployment: Deployment,
    cost_model: CostModel,
    workload: Workload,
    *,
    oracle: bool = False,
    series: bool = True,
    watch: Watch | None = None,
) -> Run:
    """Replay ``workload`` on ``deployment`` with steps priced by ``cost_model``; ``watch`` shows how far it is.

    Raises:
        WorkloadError: a request cannot fit a replica; the message names its row.
        DeploymentError: limits that vLLM itself refuses, or an unknown routing.
    """
    if needed(deployment):
        return _simulate_workers(deployment, cost_model, workload, series=series, watch=watch)
    table, limits = prepared(deployment, cost_model)
    check_fits(workload, limits, deployment.max_model_len)
    played = replay(
        table,
        limits,
        workload,
        replicas=deployment.replicas,
        routing=deployment.routing,
        oracle=oracle,
        series=series,
        watch=watch,
    )
    return run_of(played, limits, deployment.replicas, basis=cost_model.basis)


def _simulate_workers(
    deployment: Deployment, cost_model: CostModel, workload: Workload, *, series: bool, watch: Watch | None
) -> Run:
    """Pools, stages and ranks in lockstep, as :func:`gambrel.engine.workers.needed` says."""
    decode = pool_of(deployment.decode_pool, cost_model)
    plain = special(decode.limits, workload)
    if plain:
        raise DeploymentError(
            f"{plain} in the plain scheduler of equal replicas only; use pp=1, attention_dp=1 and prefill_replicas=0"
        )
    check_fits(workload, decode.limits, deployment.max_model_len)
    pools: tuple[Pool, ...] = (decode,)
    transfer = None
    if deployment.disaggregated:
        transfer = transfer_of(deployment, cost_model, workload)
        assert isinstance(cost_model, WorkerCost)  # noqa: S101 - transfer_of said so
        prefill = pool_of(deployment.prefill_pool, cost_model.prefill())
        check_fits(replace(workload, output_tokens=np.ones_like(workload.output_tokens)), prefill.limits)
        pools = (prefill, decode)
    return _served(pools, workload, transfer, deployment.routing, cost_model.basis, series=series, watch=watch)


def staged(deployment: Deployment, table: StepTable, limits: Limits, workload: Workload) -> Run:
    """Replay ``workload`` on pipeline stages whose table and limits are there already, in turn over the replicas.

    Raises:
        DeploymentError: what pipeline stages are not modelled with.
    """
    if deployment.draft_tokens or deployment.attention_dp > 1 or deployment.disaggregated:
        raise DeploymentError(f"{deployment.label}: pipeline stages alone, without speculation, ranks or pools")
    return _served((_stages(deployment, table, limits),), workload, None, "round_robin", "", series=False, watch=None)


def _served(
    pools: tuple[Pool, ...], workload: Workload, transfer: Transfer | None, routing: str, basis: str, *,
    series: bool, watch: Watch | None,
) -> Run:  # fmt: skip
    """The run of a workload on one pool, or on a prefill and a decode pool."""
    decode = pools[-1]
    own = decode.table.own if isinstance(decode.table, RankTable) else decode.table
    first = None if transfer is None else replace(transfer, seconds=transfer.seconds[:1])
    workload = driven(workload, own, lambda alone: serve(pools, alone, transfer=first).requests)
    played = serve(pools, workload, transfer=transfer, routing=routing, series=series, watch=watch)
    run = worker_run(played, pools, basis)
    late = own.request_s
    return replace(run, first_token_s=run.first_token_s + late, last_token_s=run.last_token_s + late) if late else run
