"""KubeRay's custom resources against their CRDs, as an API server reads them but stricter.

A server fills in defaults, drops nulls and then silently drops fields that the schema does not know; here
those are errors. Rules in CEL are evaluated too. `trim` made crds/kuberay.json.xz from the published CRDs.
"""

import copy
import functools
import json
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import yaml
from celpy.adapter import json_to_cel

_DATA = Path(__file__).parent / "crds" / "kuberay.json.xz"
_OPEN = "x-kubernetes-preserve-unknown-fields"
_RULES = "x-kubernetes-validations"

Schema = dict[str, Any]


def trim(folder: Path) -> None:
    """Write the schemas of the CRDs in a folder: version v1, without status and descriptions."""
    schemas = {}
    for path in sorted(folder.glob("ray.io_*.yaml")):
        definition = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["spec"]
        version = next(one for one in definition["versions"] if one["name"] == "v1")
        schema = version["schema"]["openAPIV3Schema"]
        del schema["properties"]["status"]
        schemas[definition["names"]["kind"]] = _undescribed(schema)
    text = json.dumps(schemas, separators=(",", ":"), sort_keys=True)
    _DATA.write_bytes(lzma.compress(text.encode(), preset=9))


def _undescribed(node: Any) -> Any:
    if isinstance(node, list):
        return [_undescribed(one) for one in node]
    if not isinstance(node, dict):
        return node
    # A property may itself be called description; that one is a schema.
    kept = {key: one for key, one in node.items() if key != "description" or not isinstance(one, str)}
    return {key: _undescribed(one) for key, one in kept.items()}


@functools.cache
def schemas() -> Mapping[str, Schema]:
    """The CRDs' schemas by kind, as published."""
    loaded: Mapping[str, Schema] = json.loads(lzma.decompress(_DATA.read_bytes()))
    return loaded


@functools.cache
def _validator(kind: str) -> Any:
    return jsonschema.Draft202012Validator(strict(schemas()[kind]))


def strict(schema: Schema) -> Schema:
    """A structural schema as JSON Schema in which a field that is not declared is an error."""
    made = {key: value for key, value in schema.items() if not key.startswith("x-")}
    if "properties" in schema:
        made["properties"] = {name: strict(one) for name, one in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get(_OPEN):
            made["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            made[key] = strict(schema[key])
    if schema.get("nullable") and "type" in schema:
        made["type"] = [schema["type"], "null"]
    return made


def completed(value: Any, schema: Schema) -> Any:
    """A value as the server would store it: nulls dropped where none may be, defaults filled in."""
    if isinstance(value, list):
        return [completed(one, schema.get("items", {})) for one in value]
    if not isinstance(value, dict):
        return value
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties")
    rest = rest if isinstance(rest, dict) else {}
    inner = {name: properties.get(name, rest) for name in value}
    done = {
        name: completed(one, inner[name])
        for name, one in value.items()
        if one is not None or inner[name].get("nullable")
    }
    missing = {name: one for name, one in properties.items() if name not in done and "default" in one}
    return done | {name: copy.deepcopy(one["default"]) for name, one in missing.items()}


def findings(document: Mapping[str, Any]) -> Iterator[str]:
    """What the API server would refuse or silently drop; one line each. Other groups are skipped."""
    kind = str(document.get("kind"))
    if document.get("apiVersion") != "ray.io/v1":
        if str(document.get("apiVersion")).startswith("ray.io/"):
            yield f"apiVersion is {document['apiVersion']}; v1 is the one that is stored"
        return
    if kind not in schemas():
        yield f"ray.io/v1 has no kind {kind}"
        return
    value = completed(document, schemas()[kind])
    for error in _validator(kind).iter_errors(value):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
    yield from _broken_rules(value, schemas()[kind], "")


def _broken_rules(value: Any, schema: Schema, where: str) -> Iterator[str]:
    for rule in schema.get(_RULES, []):
        # A rule with oldSelf speaks of updates.
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield f"{where.strip('.')}: {rule['message']}"
    if isinstance(value, dict):
        for name in value.keys() & schema.get("properties", {}).keys():
            yield from _broken_rules(value[name], schema["properties"][name], f"{where}.{name}")
    elif isinstance(value, list):
        for place, one in enumerate(value):
            yield from _broken_rules(one, schema.get("items", {}), f"{where}.{place}")


@functools.cache
def _program(rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _holds(rule: str, value: Any) -> bool:
    return bool(_program(rule).evaluate({"self": json_to_cel(value)}))
