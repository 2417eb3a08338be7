"""What KubeRay's operator refuses although the schema allows it (1.7, controllers/ray/utils/validation.go).

Fields behind feature gates that are off by default are refused too: a manifest that needs one is no default.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.k8s.pods import ray_cluster

Spec = Mapping[str, Any]

LONGEST_NAME = {"RayCluster": 53, "RayService": 47, "RayJob": 47}
"""Of Service names, less what the operator appends."""

_GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")
_LOGICAL = {"num-cpus", "num-gpus", "memory", "resources"}
_AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"
_STRATEGIES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")


def findings(document: Mapping[str, Any]) -> Iterator[str]:
    """What the operator would refuse, one line each; documents of other kinds have none."""
    kind, spec = str(document.get("kind")), document.get("spec", {})
    if kind not in LONGEST_NAME:
        return
    name = str(document.get("metadata", {}).get("name"))
    if len(name) > LONGEST_NAME[kind] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"the name is no DNS label of at most {LONGEST_NAME[kind]} characters"
    cluster = ray_cluster(document)
    if cluster is not None:
        for check in (_groups, _autoscaling, _authentication, _head_state):
            yield from check(cluster)
        yield from (f"{field} needs a feature gate that is off" for field in _GATED if field in cluster)
        if kind != "RayCluster" and cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
            yield "enableK8sTokenAuth is for RayClusters only"
    if kind == "RayService":
        yield from _service(spec)
    if kind == "RayJob":
        yield from _job(spec)
        yield from _deletion(spec)


def _containers(group: Spec) -> list[Spec]:
    found: list[Spec] = group.get("template", {}).get("spec", {}).get("containers", [])
    return found


def _environment(group: Spec) -> set[str]:
    # The Ray container is the first.
    return {variable["name"] for one in _containers(group)[:1] for variable in one.get("env", [])}


def _groups(cluster: Spec) -> Iterator[str]:
    head = {"groupName": "head", **cluster.get("headGroupSpec", {})}
    for group in (head, *cluster.get("workerGroupSpecs", [])):
        name, parameters = group.get("groupName"), group.get("rayStartParams", {})
        if not _containers(group):
            yield f"group {name} has no container"
        if group.get("resources") and _LOGICAL & parameters.keys():
            yield f"group {name} sets resources beside rayStartParams"
        if "labels" in parameters:
            yield f"group {name} sets rayStartParams.labels; labels is a field of the group"


def _autoscaling(cluster: Spec) -> Iterator[str]:
    head, workers = cluster.get("headGroupSpec", {}), cluster.get("workerGroupSpecs", [])
    options, by_variable = cluster.get("autoscalerOptions", {}), _AUTOSCALER_V2 in _environment(head)
    if not cluster.get("enableInTreeAutoscaling"):
        if by_variable:
            yield f"{_AUTOSCALER_V2} without enableInTreeAutoscaling"
        unbounded = [group for group in workers if not {"minReplicas", "maxReplicas"} <= group.keys()]
        yield from (f"group {group['groupName']} needs minReplicas and maxReplicas" for group in unbounded)
        return
    yield from (f"group {group['groupName']} is suspended" for group in workers if group.get("suspend"))
    if "version" in options and by_variable:
        yield f"autoscalerOptions.version and {_AUTOSCALER_V2} are both set"
    policies = {
        group.get("template", {}).get("spec", {}).get("restartPolicy", "Never") for group in (head, *workers)
    }
    if options.get("version") == "v2" and policies != {"Never"}:
        yield "restartPolicy must be Never with autoscaler v2"


def _authentication(cluster: Spec) -> Iterator[str]:
    options = cluster.get("authOptions", {})
    if options.get("mode") != "token":
        return
    version = tuple(int(part) for part in re.findall(r"\d+", str(cluster.get("rayVersion", "")))[:2])
    least = (2, 55) if options.get("enableK8sTokenAuth") else (2, 52)
    if version < least:
        yield f"token authentication needs rayVersion, {least[0]}.{least[1]} or newer"


def _head_state(cluster: Spec) -> Iterator[str]:
    head, options = cluster.get("headGroupSpec", {}), cluster.get("gcsFaultToleranceOptions")
    environment, parameters = _environment(head), head.get("rayStartParams", {})
    if "REDIS_USERNAME" in environment or "redis-username" in parameters:
        yield "the name for Redis belongs into gcsFaultToleranceOptions"
    if options is None:
        if "RAY_REDIS_ADDRESS" in environment:
            yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
        return
    if environment & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"} or "redis-password" in parameters:
        yield "Redis is set twice: in gcsFaultToleranceOptions and on the head"
    embedded = options.get("backend") == "rocksdb"
    if embedded:
        yield "backend rocksdb needs a feature gate that is off"
    if embedded and any(field.startswith("redis") for field in options):
        yield "backend rocksdb takes no redis fields"
    if not embedded and "storage" in options:
        yield "storage belongs to backend rocksdb"


def _service(spec: Spec) -> Iterator[str]:
    cluster = spec.get("rayClusterConfig", {})
    head = cluster.get("headGroupSpec", {})
    ports = [str(port.get("name", "")) for one in _containers(head)[:1] for port in one.get("ports", [])]
    if not any(name == "serve" or name.startswith("serve-") for name in ports):
        yield "the head has no port named serve"
    if head.get("headService", {}).get("metadata", {}).get("name"):
        yield "headService.metadata.name must not be set"
    upgrade = spec.get("upgradeStrategy", {})
    if upgrade.get("type", "NewCluster") not in _STRATEGIES:
        yield f"upgradeStrategy.type must be one of {', '.join(_STRATEGIES)}"
    if upgrade.get("type") == "NewClusterWithIncrementalUpgrade":
        yield from _incremental(cluster, upgrade.get("clusterUpgradeOptions", {}))


def _incremental(cluster: Spec, options: Spec) -> Iterator[str]:
    if not cluster.get("enableInTreeAutoscaling"):
        yield "an incremental upgrade needs enableInTreeAutoscaling"
    if not options.get("gatewayClassName"):
        yield "an incremental upgrade needs gatewayClassName"
    step, surge = options.get("stepSizePercent", -1), options.get("maxSurgePercent", 100)
    if not 0 <= step <= surge <= 100 or options.get("intervalSeconds", 0) <= 0:
        yield "an incremental upgrade needs 0 <= stepSizePercent <= maxSurgePercent <= 100 and an interval"


def _job(spec: Spec) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    if spec.get("clusterSelector"):
        yield from _selecting(spec, mode)
    elif "rayClusterSpec" not in spec:
        yield "one of rayClusterSpec and clusterSelector is needed"
    if mode == "SidecarMode" and spec.keys() & {"submitterPodTemplate", "submitterConfig"}:
        yield "SidecarMode takes no submitter"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "InteractiveMode takes no backoffLimit"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("activeDeadlineSeconds", 1) <= 0 or spec.get("backoffLimit", 0) < 0:
        yield "activeDeadlineSeconds must be positive and backoffLimit not negative"


def _selecting(spec: Spec, mode: str) -> Iterator[str]:
    if not spec["clusterSelector"].get("ray.io/cluster"):
        yield "clusterSelector names no ray.io/cluster"
    barred = ("backoffLimit", "suspend", "shutdownAfterJobFinishes")
    yield from (f"{key} is not for a job with clusterSelector" for key in barred if spec.get(key))
    if mode == "SidecarMode":
        yield "SidecarMode is not for a job with clusterSelector"


def _deletion(spec: Spec) -> Iterator[str]:
    shutdown, rules = (
        spec.get("shutdownAfterJobFinishes"),
        spec.get("deletionStrategy", {}).get("deletionRules"),
    )
    if spec.get("ttlSecondsAfterFinished") and not shutdown:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if rules and shutdown:
        yield "deletionRules exclude shutdownAfterJobFinishes"
    order = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
    for status in ("SUCCEEDED", "FAILED"):
        mine = [rule for rule in rules or [] if rule.get("condition", {}).get("jobStatus") == status]
        policies = [rule.get("policy") for rule in mine]
        if len(set(policies)) < len(policies):
            yield f"two deletionRules of one policy for {status}"
        seconds = {rule.get("policy"): rule["condition"].get("ttlSeconds", 0) for rule in mine}
        ordered = [seconds[policy] for policy in order if policy in seconds]
        if ordered != sorted(ordered):
            yield f"deletionRules for {status} are not in the order workers, cluster, self"
