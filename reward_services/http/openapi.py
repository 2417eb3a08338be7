"""What FastAPI cannot know of this API: its problems, keys, request ids, both bodies, and examples."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import BaseModel

from reward_services.errors import (
    ERRORS,
    BadAnswer,
    ConfigInvalid,
    ReplicaLost,
    RewardError,
    ServerUnreachable,
)
from reward_services.http.compat import FLOW_GRPO, VERL_OMNI
from reward_services.http.compat.open_inference import INFER, InferRequest
from reward_services.http.gate import is_open
from reward_services.http.multipart import REQUEST
from reward_services.http.problems import PROBLEM_MEDIA_TYPE
from reward_services.schema import (
    FormItem,
    FormRequest,
    ImageRef,
    Latency,
    LoadReport,
    PartRef,
    Problem,
    RewardInfo,
    RewardLoad,
    Score,
    ScoredItem,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
)

SCORES = "/v1/scores"

_BYTES = {"type": "string", "format": "binary"}
_PICKLE = {"application/octet-stream": {"schema": _BYTES}}
_NEVER_SERVED = {ConfigInvalid, ServerUnreachable, BadAnswer}
_REF = "#/components/schemas/"
_REQUEST_ID = "6f1d2a0c4b8e4d7f9a3b5c7d9e1f2a3b"
_DOT_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"

EXAMPLE = ScoreRequest(
    rewards=("clip", "jpeg"),
    items=(ScoreItem(id="a", prompt="a red circle", image=ImageRef(media_type="image/png", data=_DOT_PNG)),),
)
"""A request of one red pixel; it can be sent as it is."""

_FORM_EXAMPLE = FormRequest(
    rewards=("clip", "jpeg"),
    items=(
        FormItem(prompt="a red circle", image=PartRef(part="file")),
        FormItem(prompt="a blue square", image=PartRef(part="array", shape=(512, 512, 3))),
    ),
)
_ANSWER_EXAMPLE = ScoreResponse(
    id="scr_0123456789abcdef0123456789abcdef",
    model_revisions={"clip": "sha256:5f70bf18a086", "jpeg": "1"},
    items=(
        ScoredItem(
            id="a",
            index=0,
            scores={
                "clip": Score.of(24.81),
                "jpeg": Score.failed(ReplicaLost("a replica was lost")),
            },
        ),
    ),
    timing_ms={"decode": 0.4, "score": 12.5},
)
_REWARD_EXAMPLE = RewardInfo(
    id="clip",
    revision="sha256:5f70bf18a086",
    range=(-100.0, 100.0),
    higher_is_better=True,
    deterministic=True,
    modality=("text", "image"),
    max_items=64,
    ready=True,
)
_LOAD_EXAMPLE = LoadReport(
    window_s=60.0,
    data=(
        RewardLoad(
            id="clip",
            in_flight_images=32,
            images_per_s=118.4,
            failed_images=0,
            latency_ms=Latency(p50=84.2, p95=131.0),
        ),
    ),
)
_ANSWERS = {
    SCORES: _ANSWER_EXAMPLE,
    "/v1/rewards/{reward_id}": _REWARD_EXAMPLE,
    "/v1/load": _LOAD_EXAMPLE,
}


def complete(document: dict[str, Any]) -> None:
    """Add it to the document that FastAPI generates, in place."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for generated in ("HTTPValidationError", "ValidationError"):
        schemas.pop(generated, None)
    for model in (Problem, ScoreRequest, FormRequest, InferRequest):
        schemas |= _schemas(model)
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer"},
        "password": {"type": "http", "scheme": "basic", "description": "The key as password of any name"},
    }
    components["headers"] = {
        "X-Request-Id": {
            "description": "The request's id, as sent or made",
            "schema": {"type": "string"},
        }
    }
    document["security"] = [{"key": []}, {"password": []}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete_operation(path, method, operation)
    document["paths"][SCORES]["post"]["requestBody"] = _scores_body()
    document["paths"][INFER]["post"]["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": f"{_REF}InferRequest"}},
            "application/octet-stream": {"schema": _BYTES},
        },
    }


def _complete_operation(path: str, method: str, operation: dict[str, Any]) -> None:
    if is_open(path):
        operation["security"] = []
    responses = operation["responses"]
    responses.pop("422", None)
    if path.startswith((VERL_OMNI, FLOW_GRPO)):
        operation["requestBody"] = {"required": True, "content": _PICKLE}
        responses["200"]["content"] = _PICKLE
    if path in _ANSWERS:
        responses["200"]["content"]["application/json"]["example"] = _json(_ANSWERS[path])
    responses |= {str(status): _problem_response(status) for status in sorted(_statuses(path, method))}
    for response in responses.values():
        response["headers"] = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}


def _statuses(path: str, method: str) -> set[int]:
    """How a route may fail, besides by a bug."""
    statuses = {500}
    if not is_open(path):
        statuses |= {401, 403}
    if not is_open(path) or path in {"/readyz", "/v2/health/ready"}:
        statuses |= {503}
    if "{" in path:
        statuses |= {404}
    if method == "post":
        statuses |= {400, 404, 408, 413, 415, 422, 429, 504}
    return statuses


def _problem_response(status: int) -> dict[str, Any]:
    errors = [error for error in ERRORS.values() if error.status == status and error not in _NEVER_SERVED]
    content = {
        "schema": {"$ref": f"{_REF}Problem"},
        "examples": {error.slug: {"summary": error.title, "value": _example(error)} for error in errors},
    }
    return {
        "description": "; ".join(error.title for error in errors) or "A problem",
        "content": {PROBLEM_MEDIA_TYPE: content},
    }


def _example(error: type[RewardError]) -> Any:
    meaning = (inspect.getdoc(error) or error.title).splitlines()[0]
    return _json(error(meaning).problem().model_copy(update={"request_id": _REQUEST_ID}))


def _scores_body() -> dict[str, Any]:
    form = {
        "type": "object",
        "required": [REQUEST],
        "properties": {REQUEST: {"$ref": f"{_REF}FormRequest"}},
        "additionalProperties": _BYTES,
    }
    return {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": f"{_REF}ScoreRequest"}, "example": _json(EXAMPLE)},
            "multipart/form-data": {
                "schema": form,
                "encoding": {REQUEST: {"contentType": "application/json"}},
                "example": {REQUEST: _json(_FORM_EXAMPLE), "file": "(a PNG)", "array": "(786432 bytes)"},
            },
        },
    }


def _schemas(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template=_REF + "{model}")
    inner: dict[str, Any] = schema.pop("$defs", {})
    return {**inner, model.__name__: schema}


def _json(example: BaseModel) -> Any:
    return example.model_dump(mode="json")
