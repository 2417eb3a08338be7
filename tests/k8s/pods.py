"""Every Pod that would run: the templates within Ray's resources, exploded, and the Pod Security standard.

KubeRay makes more containers than a template shows. The autoscaler's sidecar is added here as the operator
adds it; its init container takes the Ray container's security context, so that container stands for it.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

Template = Mapping[str, Any]

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SECCOMP = {"RuntimeDefault", "Localhost"}


def ray_cluster(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The specification of the Ray cluster within a RayCluster, RayService or RayJob, if any."""
    spec: Mapping[str, Any] = document.get("spec", {})
    places = {"RayCluster": spec, "RayService": spec.get("rayClusterConfig")}
    return places.get(str(document.get("kind")), spec.get("rayClusterSpec"))


def templates(document: Mapping[str, Any]) -> Iterator[tuple[str, Template]]:
    """Each Pod template of a document, with a name for it."""
    spec = document.get("spec", {})
    cluster = ray_cluster(document)
    if cluster:
        yield "head", _with_autoscaler(cluster)
        for group in cluster.get("workerGroupSpecs", []):
            yield str(group.get("groupName")), group.get("template", {})
    if document.get("kind") == "RayJob" and spec.get("submissionMode", "K8sJobMode") == "K8sJobMode":
        # Without a template the operator makes one that sets no security context.
        bare = {"spec": {"restartPolicy": "Never", "containers": [{"name": "submitter", "image": "head:1"}]}}
        yield "submitter", spec.get("submitterPodTemplate", bare)
    if document.get("kind") in {"Deployment", "StatefulSet", "DaemonSet", "Job"}:
        yield "pod", spec.get("template", {})


def _with_autoscaler(cluster: Mapping[str, Any]) -> Template:
    template: dict[str, Any] = copy.deepcopy(cluster.get("headGroupSpec", {}).get("template", {}))
    if cluster.get("enableInTreeAutoscaling"):
        options = cluster.get("autoscalerOptions", {})
        kept = {key: options[key] for key in ("securityContext", "resources", "env") if key in options}
        template.setdefault("spec", {}).setdefault("containers", []).append(
            {"name": "autoscaler", "image": "head:1", **kept}
        )
    return template


def exploded(template: Template) -> dict[str, Any]:
    """A template as a Pod, which Kubernetes' own schema can judge."""
    metadata = {"name": "exploded", **template.get("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.get("spec", {})}


def restricted(template: Template) -> Iterator[str]:
    """Where a template leaves the `restricted` Pod Security standard; one line each."""
    spec = template.get("spec", {})
    pod = spec.get("securityContext", {})
    yield from (f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key))
    for volume in spec.get("volumes", []):
        kinds = volume.keys() - {"name"} - _VOLUMES
        yield from (f"volume {volume.get('name')} is a {kind}" for kind in sorted(kinds))
    if pod.get("sysctls"):
        yield "sysctls are set"
    for container in [*spec.get("initContainers", []), *spec.get("containers", [])]:
        for finding in _loose(container, pod):
            yield f"container {container.get('name')}: {finding}"


def _loose(container: Mapping[str, Any], pod: Mapping[str, Any]) -> Iterator[str]:
    own = container.get("securityContext", {})
    both = {**pod, **own}
    capabilities = own.get("capabilities", {})
    demands = {
        "privileged": not own.get("privileged"),
        "allowPrivilegeEscalation is not false": own.get("allowPrivilegeEscalation") is False,
        "capabilities are not dropped": "ALL" in capabilities.get("drop", []),
        "capabilities are added": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
        "runAsNonRoot is not true": both.get("runAsNonRoot") is True,
        "runs as root": both.get("runAsUser") != 0 and pod.get("runAsUser") != 0,
        "no seccomp profile": both.get("seccompProfile", {}).get("type") in _SECCOMP,
        "procMount is set": own.get("procMount", "Default") == "Default",
        "hostPort is set": not any(port.get("hostPort") for port in container.get("ports", [])),
    }
    yield from (said for said, holds in demands.items() if not holds)
