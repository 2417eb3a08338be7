"""The HTTP API over any `Rewards`: a FastAPI application that knows nothing of Ray.

Around it, from the outside in: `RequestLog` gives the request its id, `Gate` asks for a key, `Intake` refuses
early under overload, `BodyGuard` bounds the body.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Collection
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from reward_services.config import Http
from reward_services.errors import ERRORS, PROBLEM_PREFIX, ReplicaFailed, RewardError
from reward_services.http.bodies import invalid, read_body
from reward_services.http.body_guard import BodyGuard
from reward_services.http.compat import (
    FLOW_GRPO,
    OPEN_INFERENCE,
    VERL_OMNI,
    flow_factory,
    flow_grpo,
    open_inference,
    openrlhf,
    unirl,
    verl_omni,
    vllm,
)
from reward_services.http.compat.interpreter import Interpreter
from reward_services.http.gate import Gate
from reward_services.http.intake import Intake
from reward_services.http.keys import open_keys
from reward_services.http.lanes import Lanes
from reward_services.http.load import WINDOW_S, Load
from reward_services.http.metrics import MEDIA_TYPE, Metrics
from reward_services.http.openapi import SCORES, complete
from reward_services.http.page import FILES, STATIC_PREFIX, page_file
from reward_services.http.problems import refusal, written
from reward_services.http.quota import Quotas
from reward_services.http.request_log import RequestLog
from reward_services.http.room import Room
from reward_services.http.scoring import Scoring
from reward_services.rewards import Rewards, check_ready
from reward_services.schema import Limits, LoadReport, Problem, RewardInfo, RewardList, ScoreResponse


class Api(FastAPI):
    """FastAPI whose description says all that a caller may meet."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            complete(super().openapi())
        return self.openapi_schema or {}


def create_app(
    rewards: Rewards,
    *,
    names: Collection[str] = (),
    limits: Limits | None = None,
    http: Http | None = None,
    echo_ids: bool = True,
) -> FastAPI:
    """The API as an ASGI application: /v1/scores, /v1/rewards, /v1/load, /livez, /readyz, /metrics.

    OpenAPI is at /docs, the page at /; the wire formats of other reward servers, in `compat`, are routes too.

    Args:
        rewards: what scores.
        names: of all that is served, so that one which has never answered is told of beside the others.
        limits: of a request.
        http: who may call, and how much is taken in.
        echo_ids: whether request ids are echoed here; Serve's proxy does it by itself.

    Raises:
        ConfigInvalid: the keys that `http` names cannot be read.
    """
    bounds, settings = limits or Limits(), http or Http()
    lanes = Lanes(at_once=settings.images_at_once, waiting=settings.images_waiting)
    metrics = Metrics(lanes)
    app = Api(title="Reward services", version="1")
    pickles = (VERL_OMNI, FLOW_GRPO) if settings.pickle_routes else ()
    app.add_middleware(BodyGuard, limits=bounds, untyped=(OPEN_INFERENCE, *pickles))
    app.add_middleware(Intake, lanes=lanes, bytes_at_once=settings.body_bytes_at_once)
    app.add_middleware(Gate, keys=open_keys(settings.keys))
    app.add_middleware(RequestLog, metrics=metrics, echoes=echo_ids)
    app.add_exception_handler(RewardError, _on_reward_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_bug)
    quotas = Quotas(share=1 / settings.num_replicas)
    scoring = Scoring(rewards, bounds, lanes, Room(settings.pixels_at_once), quotas, metrics)
    _add_scoring(app, scoring, bounds)
    _add_dialects(app, Interpreter(scoring, rewards, bounds), with_pickles=settings.pickle_routes)
    _add_rewards(app, rewards, names, bounds)
    _add_load(app, rewards, names, scoring.load)
    _add_probes(app, rewards)
    _add_metrics(app, metrics)
    _add_page(app)
    return app


def _add_scoring(app: FastAPI, scoring: Scoring, limits: Limits) -> None:
    @app.post(SCORES)
    async def scores(request: Request) -> ScoreResponse:
        """Score every item by every reward named: one score or one problem each, in order."""
        asked = await read_body(request.headers.get("content-type", ""), request.stream(), limits)
        return await scoring.answer(asked, request.state.caller, came=request.state.came)


def _add_dialects(app: FastAPI, interpreter: Interpreter, *, with_pickles: bool) -> None:
    spoken = [flow_factory.routes, open_inference.routes, openrlhf.routes, unirl.routes, vllm.routes]
    spoken += [flow_grpo.routes, verl_omni.routes] if with_pickles else []
    for route in (route for routes in spoken for route in routes(interpreter)):
        app.add_api_route(route.path, route.endpoint, methods=[route.method], tags=["compatibility"])


def _add_rewards(app: FastAPI, rewards: Rewards, names: Collection[str], limits: Limits) -> None:
    async def described(name: str) -> RewardInfo | Problem:
        try:
            (info,) = await rewards.describe([name])
        except RewardError as error:
            return error.problem()
        return info

    @app.get("/v1/rewards")
    async def list_rewards() -> RewardList:
        """Every reward that is served, and the limits of a request."""
        if not names:
            return RewardList(data=tuple(await rewards.describe()), limits=limits)
        found = dict(zip(names, await asyncio.gather(*map(described, names)), strict=True))
        return RewardList(
            data=tuple(one for one in found.values() if isinstance(one, RewardInfo)),
            missing={name: one for name, one in found.items() if isinstance(one, Problem)},
            limits=limits,
        )

    @app.get("/v1/rewards/{reward_id}")
    async def show_reward(reward_id: str) -> RewardInfo:
        """One reward."""
        (info,) = await rewards.describe([reward_id])
        return info


def _add_load(app: FastAPI, rewards: Rewards, names: Collection[str], load: Load) -> None:
    @app.get("/v1/load")
    async def read_load() -> LoadReport:
        """How busy each reward is: images in flight, throughput and latency of the last minute."""
        served = names or [info.id for info in await rewards.describe()]
        return LoadReport(window_s=WINDOW_S, data=tuple(load.of(name) for name in served))


def _add_probes(app: FastAPI, rewards: Rewards) -> None:
    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """Whether this process answers at all."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Whether every reward answers."""
        check_ready(await rewards.describe())
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


def _add_metrics(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/metrics", response_class=PlainTextResponse)
    async def read_metrics() -> PlainTextResponse:
        """What this process has answered and scored, for Prometheus."""
        return PlainTextResponse(metrics.text(), media_type=MEDIA_TYPE)


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return page_file("index.html")

    @app.get(STATIC_PREFIX + "{name}", include_in_schema=False)
    async def file_of_page(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404)
        return page_file(name)


async def _on_reward_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RewardError)
    return refusal(error, request.scope)


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # FastAPI begins a place with where it was found: body, path, query.
    found = [{**one, "loc": one["loc"][1:]} for one in error.errors()]
    return refusal(invalid(found), request.scope)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    problem = Problem(title=error.detail, status=error.status_code)
    return written(problem, request.scope, error.headers)


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    """The server logs the traceback; the caller learns only that it is not his fault.

    Starlette answers this one outside of all layers, so the id is set here.
    """
    response = refusal(ReplicaFailed(f"unexpected {type(error).__name__}"), request.scope)
    response.raw_headers += request.state.echo
    return response
