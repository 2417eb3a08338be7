"""The HTTP API over any `Rewards`: a FastAPI application that knows nothing of Ray."""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from reward_services.body_guard import BodyGuard
from reward_services.errors import (
    ERRORS,
    PROBLEM_PREFIX,
    ReplicaFailed,
    RequestInvalid,
    RequestMalformed,
    RewardError,
    RewardNotReady,
    TooLarge,
    error_from,
)
from reward_services.images import decode
from reward_services.rewards import Rewards, check_known
from reward_services.schema import (
    InvalidField,
    Limits,
    Problem,
    RewardInfo,
    RewardList,
    Score,
    ScoredItem,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
)

Decoded = NDArray[np.uint8] | RewardError

_PROBLEM_MEDIA_TYPE = "application/problem+json"
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": "A problem (RFC 9457)"}
    for status in (400, 404, 408, 413, 415, 422, 429, 500, 503, 504)
}


def create_app(rewards: Rewards, *, limits: Limits | None = None) -> FastAPI:
    """The API as an ASGI application: /v1/scores, /v1/rewards, /livez, /readyz, and OpenAPI at /docs."""
    bounds = limits or Limits()
    app = FastAPI(title="Reward services", version="1", responses=_PROBLEMS)
    app.add_middleware(BodyGuard, limits=bounds)
    app.add_exception_handler(RewardError, _on_reward_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_bug)
    _add_scoring(app, rewards, bounds)
    _add_probes(app, rewards)
    return app


def _add_scoring(app: FastAPI, rewards: Rewards, limits: Limits) -> None:
    @app.post("/v1/scores", response_model=ScoreResponse)
    async def scores(request: ScoreRequest) -> ScoreResponse:
        """Score every item by every reward named: one score or one problem each, in order."""
        return await _answer(request, rewards, limits)

    @app.get("/v1/rewards", response_model=RewardList)
    async def list_rewards() -> RewardList:
        """Every reward that is served, and the limits of a request."""
        return RewardList(data=tuple(await rewards.describe()), limits=limits)

    @app.get("/v1/rewards/{reward_id}", response_model=RewardInfo)
    async def show_reward(reward_id: str) -> RewardInfo:
        """One reward."""
        served = {info.id: info for info in await rewards.describe()}
        check_known([reward_id], served)
        return served[reward_id]


def _add_probes(app: FastAPI, rewards: Rewards) -> None:
    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """Whether this process answers at all."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Whether every reward answers."""
        waiting = [info.id for info in await rewards.describe() if not info.ready]
        if waiting:
            raise RewardNotReady(f"not ready: {', '.join(waiting)}")
        return {"status": "ok"}

    @app.get(PROBLEM_PREFIX + "{slug}")
    async def explain_problem(slug: str) -> dict[str, Any]:
        """What a problem's type means."""
        if slug not in ERRORS:
            raise HTTPException(404)
        error = ERRORS[slug]
        meaning = inspect.getdoc(error)
        return {
            "title": error.title,
            "status": error.status,
            "retryable": error.retryable,
            "meaning": meaning,
        }


async def _answer(request: ScoreRequest, rewards: Rewards, limits: Limits) -> ScoreResponse:
    started = time.monotonic()
    if len(request.items) > limits.max_items:
        raise TooLarge(f"{len(request.items)} items; at most {limits.max_items} a request")
    served = {info.id: info for info in await rewards.describe()}
    check_known(request.rewards, served)
    decoded = await asyncio.to_thread(_decode_all, request.items, limits)
    decoded_at = time.monotonic()
    deadline_s = min(request.options.deadline_ms, limits.max_deadline_ms) / 1000
    scored = await _score_decoded(request, decoded, rewards, deadline_s)
    return ScoreResponse(
        id=f"scr_{uuid.uuid4().hex}",
        model_revisions={name: served[name].revision for name in request.rewards},
        items=_in_order(request, decoded, scored),
        timing_ms={
            "decode": round(1000 * (decoded_at - started), 3),
            "score": round(1000 * (time.monotonic() - decoded_at), 3),
        },
    )


def _decode_all(items: Sequence[ScoreItem], limits: Limits) -> list[Decoded]:
    return [_decode_one(item, limits) for item in items]


def _decode_one(item: ScoreItem, limits: Limits) -> Decoded:
    try:
        if len(item.prompt.encode("utf-8", "replace")) > limits.max_prompt_bytes:
            raise TooLarge(f"the prompt has more than {limits.max_prompt_bytes} bytes")
        return decode(item.image, limits)
    except RewardError as error:
        return error


async def _score_decoded(
    request: ScoreRequest, decoded: Sequence[Decoded], rewards: Rewards, deadline_s: float
) -> dict[str, list[Score]]:
    good = [
        (image, item.prompt)
        for image, item in zip(decoded, request.items, strict=True)
        if not isinstance(image, RewardError)
    ]
    if not good:
        return {name: [] for name in request.rewards}
    images, prompts = zip(*good, strict=True)
    scored = await rewards.score(images, prompts, rewards=request.rewards, deadline_s=deadline_s)
    _raise_if_nothing_was_scored([score for name in request.rewards for score in scored[name]])
    return scored


def _raise_if_nothing_was_scored(scores: Sequence[Score]) -> None:
    """Where nothing could be scored for want of rewards, the request fails as a whole; clients retry it."""
    errors = [error_from(score.error) for score in scores if score.error is not None]
    if len(errors) == len(scores) and all(error.retryable for error in errors):
        raise errors[0]


def _in_order(
    request: ScoreRequest, decoded: Sequence[Decoded], scored: dict[str, list[Score]]
) -> tuple[ScoredItem, ...]:
    """Every item's scores; what could not be decoded has its problem under each reward."""
    remaining = {name: iter(scored[name]) for name in request.rewards}
    return tuple(
        ScoredItem(
            id=str(index) if item.id is None else item.id,
            index=index,
            scores={
                name: Score.failed(image) if isinstance(image, RewardError) else next(remaining[name])
                for name in request.rewards
            },
        )
        for index, (item, image) in enumerate(zip(request.items, decoded, strict=True))
    )


def _as_response(error: RewardError) -> JSONResponse:
    headers = {}
    if error.retryable and error.status in {429, 503}:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s or 1)))
    content = error.problem().model_dump()
    return JSONResponse(content, error.status, headers=headers, media_type=_PROBLEM_MEDIA_TYPE)


async def _on_reward_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RewardError)
    return _as_response(error)


async def _on_invalid_request(_: Request, error: Exception) -> JSONResponse:
    """Says where and what, never repeats the input: it may be megabytes or private."""
    assert isinstance(error, RequestValidationError)
    if any(found["type"] == "json_invalid" for found in error.errors()):
        return _as_response(RequestMalformed("the body is not JSON"))
    fields = tuple(
        InvalidField(pointer="/" + "/".join(str(part) for part in found["loc"][1:]), detail=found["msg"])
        for found in error.errors()[:20]
    )
    detail = f"{fields[0].pointer}: {fields[0].detail}"
    return _as_response(RequestInvalid(detail, fields=fields))


async def _on_http_exception(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    problem = Problem(title=error.detail, status=error.status_code)
    return JSONResponse(
        problem.model_dump(), error.status_code, headers=error.headers, media_type=_PROBLEM_MEDIA_TYPE
    )


async def _on_bug(_: Request, error: Exception) -> JSONResponse:
    """The server logs the traceback; the caller learns only that it is not his fault."""
    return _as_response(ReplicaFailed(f"unexpected {type(error).__name__}"))
