"""The plan as Prometheus rules: alarms at the plan's own thresholds, over vLLM's metrics.

Three kinds. *Missed*: an objective is above its limit (a floor of goodput has no rule: vLLM counts each latency by
itself, not the requests that met all limits at once; nor has a limit for one kind of traffic: its metrics tell no kinds
apart). *Drifting*: the service is outside the interval the plan
predicted though no limit is missed yet, or the traffic has left the log the plan was made for; then it is the plan
that is wrong, and ``gambrel plan --check`` says by how much. *Full*: the cache or the queue is about to decide
latencies. Metric names are vLLM's V1 engine's (docs.vllm.ai, production metrics).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gambrel.report.humanise import percent

if TYPE_CHECKING:
    from gambrel.plan.file import PlanFile, Predicted

__all__ = ["IN_FLIGHT", "METRICS", "prometheus_rules", "without_rule"]

METRICS = {
    "ttft": "vllm:time_to_first_token_seconds",
    "tpot": "vllm:request_time_per_output_token_seconds",
    "itl": "vllm:inter_token_latency_seconds",
    "e2e": "vllm:e2e_request_latency_seconds",
    "queue": "vllm:request_queue_time_seconds",
}
"""vLLM's histogram of each metric, in seconds."""
HOT = 0.9
"""Share of the breaking load, and of the KV cache, at which to warn."""
DRIFT = 1.2
"""Ratio to the log's mean length at which the plan is no longer about this traffic."""
IN_FLIGHT = "gambrel_requests_in_flight"
"""What the autoscaler of :mod:`gambrel.plan.manifests` reads, per pod."""
Rule = dict[str, Any]


def prometheus_rules(file: PlanFile) -> Rule:
    """The rule file as plain values: ``{groups: [...]}``."""
    model = str(file.deployment.get("model", ""))
    where = f'{{model_name="{model}"}}'
    left_out = without_rule(file)
    rules = [
        rule
        for p in file.predicted
        if p.objective not in left_out
        for rule in objective_rules(p, where, file.asked.model)
    ]
    rules += traffic_rules(file, where)
    rules += [
        alert(
            "GambrelKVCacheNearlyFull",
            f"max(vllm:kv_cache_usage_perc{where}) > {HOT}",
            "10m",
            "warning",
            f"the KV cache is {percent(HOT)} full; the plan's log used {share(file.kv_usage_max)} at most",
        ),
        alert(
            "GambrelPreemptions",
            f"sum(rate(vllm:num_preemptions_total{where}[10m])) > 0",
            "10m",
            "warning",
            "requests are evicted from the KV cache and computed again",
        ),
    ]
    running = f"sum by (pod) (vllm:num_requests_running{where} + vllm:num_requests_waiting{where})"
    recorded: Rule = {"record": IN_FLIGHT, "expr": running}
    return {"groups": [{"name": "gambrel-plan", "rules": [recorded, *rules]}]}


def without_rule(file: PlanFile) -> tuple[str, ...]:
    """Limits on times that no rule watches: those for one kind of traffic."""
    return tuple(p.objective for p in file.predicted if ":" in p.objective)


def objective_rules(predicted: Predicted, where: str, model: str) -> list[Rule]:
    """The limit of one objective, and the edge of its predicted interval where that comes first."""
    metric, _, statistic = predicted.objective.partition(".")
    name = f"{metric.upper()}{statistic.capitalize()}"
    measured = expression(metric, statistic, where)
    reached = "" if predicted.reached_s is None else f"; the plan predicted {predicted.reached_s:.3g} s"
    text = f"{predicted.objective} of {model} is above its limit of {predicted.limit_s:g} s{reached}"
    rules = [alert(f"GambrelMissed{name}", f"{measured} > {predicted.limit_s:g}", "5m", "critical", text)]
    if predicted.high_s is not None and predicted.high_s < predicted.limit_s:
        text = (
            f"{predicted.objective} of {model} is above {predicted.high_s:.3g} s, the upper end of what the plan "
            "predicted: run gambrel plan --check on today's log"
        )
        rules.append(
            alert(f"GambrelDrifting{name}", f"{measured} > {predicted.high_s:.4g}", "15m", "warning", text)
        )  # fmt: skip
    return rules


def expression(metric: str, statistic: str, where: str, window: str = "10m") -> str:
    """PromQL of a statistic over all replicas; a maximum is read as the highest bucket in use."""
    histogram = METRICS[metric]
    if statistic == "mean":
        return f"sum(rate({histogram}_sum{where}[{window}])) / sum(rate({histogram}_count{where}[{window}]))"
    quantile = 1.0 if statistic == "max" else float(statistic[1:]) / 100.0
    return f"histogram_quantile({quantile:g}, sum by (le) (rate({histogram}_bucket{where}[{window}])))"


def traffic_rules(file: PlanFile, where: str) -> list[Rule]:
    """Alarms when the traffic leaves the log: load near the first break, and longer prompts or answers."""
    rules = []
    figures = file.workload
    if figures.rate_rps is not None and file.breaks_at is not None:
        limit = HOT * file.breaks_at * figures.rate_rps
        rules.append(
            alert(
                "GambrelLoadNearBreak",
                f"sum(rate(vllm:request_success_total{where}[15m])) > {limit:.4g}",
                "15m",
                "warning",
                f"the load is near {file.breaks_at:.3g}x the log's {figures.rate_rps:.3g} requests/s, where the first "
                "objective breaks",
            )
        )
    for column, histogram in (
        ("prompt_tokens", "vllm:request_prompt_tokens"),
        ("output_tokens", "vllm:request_generation_tokens"),
    ):
        mean = getattr(figures, column).get("mean")
        if mean:
            name = "".join(part.capitalize() for part in column.split("_"))
            measured = f"sum(rate({histogram}_sum{where}[1h])) / sum(rate({histogram}_count{where}[1h]))"
            text = f"{column} average above {DRIFT:g}x the {mean:.4g} that the plan was made for"
            rules.append(alert(f"GambrelDrifting{name}", f"{measured} > {DRIFT * mean:.4g}", "1h", "warning", text))
    return rules


def alert(name: str, expr: str, held: str, severity: str, summary: str) -> Rule:
    """One alerting rule."""
    return {
        "alert": name,
        "expr": expr,
        "for": held,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }


def share(value: float | None) -> str:
    """A share for a sentence."""
    return "an unknown share" if value is None else percent(value)
