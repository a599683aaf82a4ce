"""The plan as Kubernetes objects, with the plan's own numbers where people otherwise guess.

Replicas, accelerators per pod and engine arguments are those that were simulated. The autoscaler's target is the
requests in flight per replica at the load where the first objective breaks, less a tenth: above it a replica more is
due *before* the objective is missed. Spare replicas become a disruption budget. Pods select nodes by the label
``accelerator``, for cards differ and a plan for one is no plan for another.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from gambrel.core.errors import DeploymentError
from gambrel.plan.alerts import IN_FLIGHT
from gambrel.plan.launch import capped, quantises, vllm_args
from gambrel.report.humanise import share

if TYPE_CHECKING:
    from gambrel.core.deployment import Deployment
    from gambrel.core.step import MemoryBudget
    from gambrel.plan.file import PlanFile

__all__ = ["kserve_manifests", "kubernetes_manifests", "object_name"]

PORT = 8000
LOAD_S = 1800
"""Seconds a pod may take to fetch and load weights before it counts as failed."""
EARLY = 0.9
"""Share of the breaking concurrency at which the autoscaler adds a replica."""
RESOURCES = {"AMD": "amd.com/gpu", "NVIDIA": "nvidia.com/gpu", "Intel": "gpu.intel.com/xe"}
"""Extended resource of each vendor's device plugin."""
IMAGES = {"AMD": "rocm/vllm", "NVIDIA": "vllm/vllm-openai"}
Object = dict[str, Any]


def object_name(model: str) -> str:
    """A DNS label (RFC 1123) for a model: ``meta-llama/Llama-3.1-8B`` is ``llama-3-1-8b``."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", model.rsplit("/", 1)[-1].lower()).strip("-")
    return cleaned[:50].strip("-") or "model"


def accelerator_resource(deployment: Deployment) -> str:
    """The extended resource a pod asks for.

    Raises:
        DeploymentError: no device plugin is known for the vendor.
    """
    vendor = deployment.accelerator.vendor
    if vendor not in RESOURCES:
        raise DeploymentError(
            f"no Kubernetes device plugin is known for {vendor} ({deployment.accelerator.name}); "
            f"known: {', '.join(RESOURCES)}"
        )
    return RESOURCES[vendor]


def annotation(objective: str) -> str:
    """The annotation's key for an objective: a name of at most 63 letters, digits, ``-``, ``_`` and ``.``.

    Kubernetes allows no colon there, so ``chat:ttft.p95`` is ``chat.ttft.p95``.
    """
    return f"gambrel/{objective.replace(':', '.')[-63:].strip('-_.')}"


def notes(file: PlanFile, deployment: Deployment, memory: MemoryBudget) -> dict[str, str]:
    """Annotations that lead back to the decision."""
    found = {"gambrel/plan": file.label, "gambrel/log": file.workload.name, "gambrel/basis": file.basis}
    if file.price is not None:
        found["gambrel/usd-per-hour"] = f"{file.price.usd_per_hour:.4g}"
    for p in file.predicted:
        if p.reached_s is not None:
            found[annotation(p.objective)] = f"{p.reached_s:.4g} s predicted, limit {p.limit_s:.4g} s"
    for f in file.floors:
        if f.reached is not None:
            found[annotation(f.objective)] = f"{share(f.reached)} predicted, floor {share(f.floor)}"
    if quantises(deployment) and deployment.weights != "fp8":
        found["gambrel/checkpoint"] = f"needs a {deployment.weights} checkpoint of the model"
    cap = capped(deployment, memory)
    if cap:
        found["gambrel/max-model-len"] = cap
    return found


def kubernetes_manifests(file: PlanFile, deployment: Deployment, memory: MemoryBudget) -> list[Object]:
    """Deployment, Service, autoscaler where the breaking load is known, disruption budget where spares were asked."""
    name = object_name(deployment.model.name)
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/component": "vllm"}
    resource = accelerator_resource(deployment)
    image = IMAGES.get(deployment.accelerator.vendor, IMAGES["NVIDIA"])
    version = deployment.engine_version
    tag = f"v{version}.0" if version.count(".") == 1 else f"v{version}"
    probe = {"httpGet": {"path": "/health", "port": "http"}}
    container: Object = {
        "name": "vllm",
        "image": f"{image}:{tag}" if image == IMAGES["NVIDIA"] else image,
        "args": ["--model", *vllm_args(deployment, memory), "--port", str(PORT)],
        "env": [
            {
                "name": "HF_TOKEN",
                "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}},
            }
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"limits": {resource: str(deployment.gpus_per_replica)}},
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": LOAD_S // 10},
        "readinessProbe": {**probe, "periodSeconds": 5},
        "livenessProbe": {**probe, "periodSeconds": 30, "failureThreshold": 3},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108 - ranks share memory there
    }
    pod = {
        "nodeSelector": {"accelerator": deployment.accelerator.name},
        "tolerations": [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    # The plan counts accelerators: a rollout must not wait for one more than there are.
    rolling = {"maxSurge": 0, "maxUnavailable": max(1, file.asked.spare)}
    workload: Object = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels, "annotations": notes(file, deployment, memory)},
        "spec": {
            "replicas": deployment.replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }
    objects = [workload, service]
    target = target_in_flight(file)
    if target is not None:
        objects.append(autoscaler(name, labels, deployment.replicas, target))
    if file.asked.spare:
        budget = {"maxUnavailable": file.asked.spare, "selector": {"matchLabels": labels}}
        meta = {"name": name, "labels": labels}
        objects.append(
            {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta, "spec": budget}
        )  # fmt: skip
    return objects


def target_in_flight(file: PlanFile) -> int | None:
    """Requests in flight per replica at which a replica more is due; None where nothing broke."""
    if file.in_flight_at_break is None:
        return None
    return max(1, math.floor(EARLY * file.in_flight_at_break))


def autoscaler(name: str, labels: dict[str, str], replicas: int, target: int) -> Object:
    """A HorizontalPodAutoscaler on requests running and waiting per pod, as a Prometheus adapter serves them.

    It never goes below the plan's replicas: those are what the log needs as it was.
    """
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": replicas,
            "maxReplicas": 2 * replicas,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": IN_FLIGHT},
                        "target": {"type": "AverageValue", "averageValue": str(target)},
                    },
                }
            ],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
        },
    }


def kserve_manifests(file: PlanFile, deployment: Deployment, memory: MemoryBudget) -> list[Object]:
    """KServe's ``LLMInferenceService`` (v1alpha1), which runs llm-d's scheduler and vLLM behind one object."""
    d = deployment
    parallelism: Object = {"tensor": d.tp}
    if d.pp > 1:
        parallelism["pipeline"] = d.pp
    limits = {accelerator_resource(d): str(d.gpus_per_replica)}
    extra = " ".join(word for word in vllm_args(d, memory)[1:])
    extra = re.sub(r"--tensor-parallel-size \d+ ", "", extra)
    container = {
        "name": "main",
        "env": [{"name": "VLLM_ADDITIONAL_ARGS", "value": extra}],
        "resources": {"limits": limits},
    }
    return [
        {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": "LLMInferenceService",
            "metadata": {"name": object_name(d.model.name), "annotations": notes(file, d, memory)},
            "spec": {
                "model": {"uri": f"hf://{d.model.name}", "name": d.model.name},
                "replicas": d.replicas,
                "parallelism": parallelism,
                "router": {"gateway": {}, "route": {}, "scheduler": {}},
                "template": {"nodeSelector": {"accelerator": d.accelerator.name}, "containers": [container]},
            },
        }
    ]
