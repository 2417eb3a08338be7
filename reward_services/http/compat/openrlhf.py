"""OpenRLHF's remote reward models: `--remote_rm_url http://HOST:8000/compat/openrlhf/REWARD/get_reward`.

Its client posts texts and takes `rewards`, one a query. A picture travels as the data URI at the end of its
query, where the response stands behind its prompt. Whatever is no 2xx it sends again after a second, five
times in all, and then raises; nothing in the answer can say that one item failed, so the request does.
"""

from __future__ import annotations

from pydantic import BaseModel
from starlette.requests import Request

from reward_services.http.compat.interpreter import Interpreter, Route, Text, picture

_WITHIN_S = 120.0  # its client waits 180 s


class RewardRequest(BaseModel):
    """query[i] ends in a picture, a data URI or nothing but base64; prompts[i] is what was asked for."""

    query: list[str]
    prompts: list[Text]


class RewardResponse(BaseModel):
    """One score a query."""

    rewards: list[float]


def routes(interpreter: Interpreter) -> list[Route]:
    """/get_reward of each reward."""

    async def get_reward(reward_id: str, body: RewardRequest, request: Request) -> RewardResponse:
        """Score the picture in query[i] against prompts[i]; all of them or none."""
        images = [picture(query[max(query.rfind("data:image"), 0) :]) for query in body.query]
        return RewardResponse(
            rewards=await interpreter.values(request, reward_id, body.prompts, images, _WITHIN_S)
        )

    return [Route("POST", "/compat/openrlhf/{reward_id}/get_reward", get_reward)]
