"""The stand-in for an API server: it completes and prunes as the server does, and is stricter on purpose."""

from typing import Any

from tests.k8s import crd


def cluster(**group: Any) -> dict[str, Any]:
    """A RayCluster with a worker group that has these fields."""
    template = {"spec": {"containers": [{"name": "ray", "image": "ray:1"}]}}
    worker = {"groupName": "workers", "template": template, **group}
    spec = {"headGroupSpec": {"template": template}, "workerGroupSpecs": [worker]}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "one"}, "spec": spec}


def test_defaults_are_filled_in_before_required_fields_are_looked_for() -> None:
    document = cluster()
    done = crd.completed(document, crd.schemas()["RayCluster"])
    (group,) = done["spec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"], group["numOfHosts"]) == (0, 2147483647, 1)
    assert "minReplicas" not in document["spec"]["workerGroupSpecs"][0]
    assert list(crd.findings(document)) == []


def test_nulls_are_dropped_where_none_may_be() -> None:
    assert list(crd.findings(cluster(suspend=None, rayStartParams=None))) == []


def test_unknown_fields_are_refused_which_the_server_drops() -> None:
    (finding,) = crd.findings(cluster(replica=1))
    assert finding.startswith("spec.workerGroupSpecs.0: Additional properties are not allowed ('replica'")


def test_numbers_and_strings_are_quantities_but_not_every_string() -> None:
    def resources(value: Any) -> dict[str, Any]:
        limits = {"limits": {"memory": value}}
        return {"spec": {"containers": [{"name": "ray", "image": "ray:1", "resources": limits}]}}

    assert list(crd.findings(cluster(template=resources(1024)))) == []
    assert list(crd.findings(cluster(template=resources("8Gi")))) == []
    assert list(crd.findings(cluster(template=resources("8 GB")))) != []


def test_other_groups_are_left_to_others_and_old_versions_named() -> None:
    assert list(crd.findings({"apiVersion": "v1", "kind": "Pod"})) == []
    (finding,) = crd.findings({**cluster(), "apiVersion": "ray.io/v1alpha1"})
    assert "v1alpha1" in finding
