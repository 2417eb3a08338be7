"""Flow-Factory's remote rewards: `server_url: http://HOST:8000/compat/flow-factory/REWARD`.

Its client asks for /health once, where anything but 2xx ends the run before it begins, then posts a batch to
/compute and takes `rewards`, one a prompt. Whatever is no 2xx it sends again at once, three times in all, and
then raises; nothing in its answer can say that one item failed, so the request does.
"""

from __future__ import annotations

from pydantic import BaseModel
from starlette.requests import Request

from reward_services.http.compat.interpreter import Interpreter, Route, Text, picture
from reward_services.rewards import check_ready

_WITHIN_S = 55.0  # its client waits 60 s


class ComputeRequest(BaseModel):
    """`image` are PNG files in base64, one a prompt. Videos, and pictures to start from, are refused."""

    prompt: list[Text]
    image: list[str]
    video: None = None
    condition_images: None = None
    condition_videos: None = None


class ComputeResponse(BaseModel):
    """One score a prompt."""

    rewards: list[float]


def routes(interpreter: Interpreter) -> list[Route]:
    """/health and /compute of each reward."""

    async def health(reward_id: str) -> dict[str, str]:
        """Whether the reward is served and ready."""
        check_ready([await interpreter.reward(reward_id)])
        return {"status": "ok"}

    async def compute(reward_id: str, body: ComputeRequest, request: Request) -> ComputeResponse:
        """Score image[i] against prompt[i]; all of them or none."""
        images = [picture(data) for data in body.image]
        return ComputeResponse(
            rewards=await interpreter.values(request, reward_id, body.prompt, images, _WITHIN_S)
        )

    place = "/compat/flow-factory/{reward_id}"
    return [Route("GET", f"{place}/health", health), Route("POST", f"{place}/compute", compute)]
