"""Problems as HTTP responses (RFC 9457), written here for the application and the layers around it."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from reward_services.errors import RewardError
from reward_services.http.compat import OPEN_INFERENCE
from reward_services.schema import Problem

PROBLEM_MEDIA_TYPE = "application/problem+json"

_BODY_UNREAD = {401, 403, 408, 413, 415}


def refusal(error: RewardError, scope: MutableMapping[str, Any]) -> JSONResponse:
    """The response to a request, of that ASGI scope, that met with an error."""
    headers = {}
    if error.retryable and error.status in {429, 503}:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="rewards"'
    if error.status in _BODY_UNREAD:
        headers["Connection"] = "close"
    return written(error.problem(), scope, headers)


def written(
    problem: Problem, scope: MutableMapping[str, Any], headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A problem as the response to a request, with the request's id."""
    known = problem.model_copy(update={"request_id": scope.get("state", {}).get("request_id")})
    content = known.model_dump()
    if scope.get("path", "").startswith(OPEN_INFERENCE):
        content["error"] = problem.detail or problem.title  # what clients of that protocol show
    return JSONResponse(content, problem.status, headers=headers, media_type=PROBLEM_MEDIA_TYPE)
