"""Kubernetes' own kinds against its published schemas, and a few kinds of others; unknown fields are refused.

The others' CRDs (Prometheus operator, Kueue) are not shipped: `_OTHERS` declares the fields in use, from
those projects' API references, so that a typo in one is found all the same.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.35"
"""The oldest release that is still supported."""

_NAME = {"type": "object", "required": ["name"]}
_STRINGS = {"type": "array", "items": {"type": "string"}}
_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}


def _closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


def _resource(spec: dict[str, Any]) -> dict[str, Any]:
    return _closed(
        ["apiVersion", "kind", "metadata", "spec"], apiVersion={}, kind={}, metadata=_NAME, spec=spec
    )


_RULE = {
    **_closed(
        ["expr"],
        record={"type": "string"},
        alert={"type": "string"},
        expr={"type": ["string", "integer"]},
        **{"for": {"type": "string", "pattern": r"^\d+[smhd]$"}},
        labels=_LABELS,
        annotations=_LABELS,
    ),
    "oneOf": [{"required": ["record"]}, {"required": ["alert"]}],
}

_OTHERS = {
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): _resource(
        _closed(["clusterQueue"], clusterQueue={"type": "string"})
    ),
    ("monitoring.coreos.com/v1", "PodMonitor"): _resource(
        _closed(
            ["selector", "podMetricsEndpoints"],
            namespaceSelector=_closed(["matchNames"], matchNames=_STRINGS),
            selector=_closed(["matchLabels"], matchLabels=_LABELS),
            podTargetLabels=_STRINGS,
            podMetricsEndpoints={
                "type": "array",
                "items": _closed(
                    ["port"],
                    port={"type": "string"},
                    path={"type": "string", "pattern": "^/"},
                    interval={"type": "string", "pattern": r"^\d+s$"},
                    authorization=_closed(
                        ["credentials"], credentials=_closed(["name", "key"], name={}, key={})
                    ),
                ),
            },
        )
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _resource(
        _closed(
            ["groups"],
            groups={
                "type": "array",
                "items": _closed(["name", "rules"], name={}, rules={"type": "array", "items": _RULE}),
            },
        )
    ),
}


def findings(document: Mapping[str, Any]) -> Iterator[str]:
    """What does not fit, one line each; KubeRay's own kinds are not looked at."""
    version, kind = str(document.get("apiVersion")), str(document.get("kind"))
    if version.startswith("ray.io/"):
        return
    if (version, kind) in _OTHERS:
        validator = jsonschema.Draft202012Validator(_OTHERS[version, kind])
        for error in validator.iter_errors(document):
            yield _said(error)
        return
    try:
        kubernetes_validate.validate(dict(document), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield _said(error)
    except kubernetes_validate.SchemaNotFoundError:
        yield f"Kubernetes {KUBERNETES} has no {kind} in {version}"


def _said(error: jsonschema.ValidationError) -> str:
    return f"{'.'.join(map(str, error.path))}: {error.message[:300]}"
