"""UniRL's reward service: `base_url: http://HOST:8000/compat/unirl`.

A reward that failed for an item is absent from its `results` and has its reason in `errors`, so a request
stands although items fail. What is 4xx, besides 429, its client raises at once; 429 and 5xx it sends again
after a second, three times in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, Field
from starlette.requests import Request

from reward_services.errors import RequestInvalid, error_from
from reward_services.http.compat.interpreter import Interpreter, Route, Text, picture
from reward_services.schema import ScoreResponse

_WITHIN_S = 120.0  # its client waits 300 s


class Turn(BaseModel):
    """What was asked for, and the picture that came of it in base64. Videos are refused."""

    text: Text
    image_b64: str
    video_b64: None = None
    video_path: None = None


class Identity(BaseModel):
    """What its client may ask to see again beside an item's scores. A version of a scorer is refused."""

    request_id: Text | int | None = None
    sample_id: Text | int | None = None
    group_id: Text | int | None = None
    source_rank: int | None = None
    policy_version: int | None = None
    scorer_version: None = None
    idempotency_key: Text | None = None


class UnirlItem(Identity):
    """A picture and the rewards to score it by; a history of one turn, as pictures are not edited here."""

    history: Annotated[list[Turn], Field(min_length=1, max_length=1)]
    required_rewards: list[Text]


class UnirlRequest(BaseModel):
    """Items, all to be scored by the same rewards."""

    requests: list[UnirlItem]


class UnirlResponse(BaseModel):
    """For each item the values by reward and by metric, of which there is one called like the reward."""

    protocol_version: str = "1"
    results: list[dict[str, dict[str, float]]]
    errors: list[dict[str, str]]
    identities: list[Identity]


class UnirlHealth(BaseModel):
    """The rewards that are served, with the state of each."""

    status: str = "ok"
    rewards: dict[str, list[str]]


def routes(interpreter: Interpreter) -> list[Route]:
    """/health, /rewards and /score."""

    async def health() -> UnirlHealth:
        """Which rewards are served; its client stops when one that it needs is not among them."""
        states = {info.id: ["ready" if info.ready else "starting"] for info in await interpreter.served()}
        return UnirlHealth(rewards=states)

    async def rewards() -> dict[str, list[str]]:
        """The names of the rewards."""
        return {"rewards": [info.id for info in await interpreter.served()]}

    async def score(body: UnirlRequest, request: Request) -> UnirlResponse:
        """Score every item by its rewards: a value or an error each, in order."""
        if not body.requests:
            return UnirlResponse(results=[], errors=[], identities=[])
        turns = [item.history[0] for item in body.requests]
        answer = await interpreter.scores(
            request,
            _rewards_of(body.requests),
            [turn.text for turn in turns],
            [picture(turn.image_b64) for turn in turns],
            _WITHIN_S,
        )
        return _told(answer, body.requests)

    return [
        Route("GET", "/compat/unirl/health", health),
        Route("GET", "/compat/unirl/rewards", rewards),
        Route("POST", "/compat/unirl/score", score),
    ]


def _rewards_of(items: Sequence[UnirlItem]) -> list[str]:
    first = items[0].required_rewards
    if any(item.required_rewards != first for item in items):
        raise RequestInvalid("every item of a request has the same required_rewards; send others apart")
    return first


def _told(answer: ScoreResponse, items: Sequence[UnirlItem]) -> UnirlResponse:
    return UnirlResponse(
        results=[
            {name: {name: score.value} for name, score in item.scores.items() if score.value is not None}
            for item in answer.items
        ],
        errors=[
            {name: _reason(error_from(score.error)) for name, score in item.scores.items() if score.error}
            for item in answer.items
        ],
        identities=[Identity.model_validate(item, from_attributes=True) for item in items],
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
