"""What can be reached from where: nothing faces outward, namespaces are closed, each opening is meant."""

from collections.abc import Iterator, Sequence

from tests.k8s.kustomize import Document
from tests.k8s.pods import ray_cluster

Opening = tuple[str, str, int | str]
"""A namespace, who may come in, and to which port."""

_NAME = "kubernetes.io/metadata.name"
_CALLERS = {("rewards", "diffusion-sharpening/calls-rewards=true", port) for port in (8000, 80)}
_OPERATOR = {
    (namespace, f"{_NAME}=ray-system", port)
    for namespace in ("rewards", "training")
    for port in (8265, 52365, 8000)
}
_PROMETHEUS = {
    (namespace, f"{_NAME}=monitoring", port)
    for namespace, port in (("rewards", 8080), ("rewards", 8000), ("training", 8080))
}
MEANT: set[Opening] = _CALLERS | _OPERATOR | _PROMETHEUS
"""Callers of the rewards (80 is a Gateway's), the operator, and Prometheus; deploy/README.md says why."""


def outward(document: Document) -> Iterator[str]:
    """What of one object faces the world, or does not protect as it looks; one line each."""
    kind, spec = document["kind"], document.get("spec", {})
    head = (ray_cluster(document) or {}).get("headGroupSpec", {})
    services = [
        spec if kind == "Service" else {},
        spec.get("serveService", {}).get("spec", {}),
        head.get("headService", {}).get("spec", {}),
        {"type": head.get("serviceType")},
    ]
    if any(one.get("type") in {"LoadBalancer", "NodePort"} for one in services):
        yield "a Service that faces outward: that is for a gateway with TLS"
    if kind == "Ingress":
        yield "an Ingress: that is for a gateway with TLS"
    # All that works for Pods whose controller has no scale subresource.
    if kind == "PodDisruptionBudget" and not isinstance(spec.get("minAvailable"), int):
        yield "needs minAvailable as a number"


def openings(documents: Sequence[Document]) -> set[Opening]:
    """Every ingress rule but the one for Pods of the same namespace."""
    found: set[Opening] = set()
    for policy in (one for one in documents if one["kind"] == "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            ports = [port["port"] for port in rule.get("ports", [])] or ["any"]
            # No `from` is everybody.
            peers = [peer for peer in rule.get("from", [{}]) if peer != {"podSelector": {}}]
            found |= {(policy["metadata"]["namespace"], _who(peer), port) for peer in peers for port in ports}
    return found


def _who(peer: Document) -> str:
    labels = peer.get("namespaceSelector", {}).get("matchLabels", {})
    return ",".join(f"{key}={value}" for key, value in labels.items()) or "anybody"


def network(documents: Sequence[Document]) -> Iterator[str]:
    """Namespaces that are not closed, or let Pods do more than the standard; openings that are not meant."""
    closed = {one["metadata"]["namespace"] for one in documents if _denies_all(one)}
    for namespace in (one for one in documents if one["kind"] == "Namespace"):
        name, labels = namespace["metadata"]["name"], namespace["metadata"].get("labels", {})
        if name not in closed:
            yield f"namespace {name} is not closed by default"
        if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"namespace {name} does not enforce the restricted Pod Security standard"
    yield from (
        f"an opening that is not meant: {one}" for one in sorted(openings(documents) - MEANT, key=str)
    )


def _denies_all(document: Document) -> bool:
    nothing = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    return bool(document["kind"] == "NetworkPolicy" and document["spec"] == nothing)
