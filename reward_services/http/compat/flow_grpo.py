"""flow_grpo's remote rewards, a pickle each way: `url = "http://HOST:8000/compat/flow-grpo/REWARD"`.

Only with `http.pickle_routes`. Its clients take `outputs`, one a picture. 500, and 413, 429 and 503 with
Retry-After, they send again for hours; any other answer they unpickle whatever its status, which ends the
run. So what may succeed later is answered 429, 500 or 503, and what cannot is answered otherwise. DeQA's
client sends no prompts, which does for rewards that read none; UnifiedReward's sends them as an array and has
to send `prompts.tolist()`. GenEval's is refused: it sends what each picture must hold and wants several
scores of it. The reward `geneval` looks that up by the prompt.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, StrictBytes, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from reward_services.errors import RequestInvalid, RequestRejected, RewardError, RewardUnavailable
from reward_services.http.bodies import explained
from reward_services.http.compat import FLOW_GRPO
from reward_services.http.compat.interpreter import Interpreter, Route, Text, picture
from reward_services.http.compat.unpickling import pickled, unpickled
from reward_services.images import RAW_MEDIA_TYPE
from reward_services.schema import RewardInfo

_WITHIN_S = 110.0  # its clients wait 120 s
_SENT_AGAIN = {429, 500, 503}


class FlowGrpoRequest(BaseModel):
    """Files of JPEG pictures, with a prompt for each or none at all."""

    images: list[StrictBytes]
    prompts: list[Text] | None = None


def routes(interpreter: Interpreter) -> list[Route]:
    """One route for each reward."""

    async def score(reward_id: str, request: Request) -> Response:
        """Score images[i], against prompts[i] where there are prompts; all of them or none."""
        try:
            asked = _parsed(unpickled(await request.body()))
            prompts = _prompts(asked, await interpreter.reward(reward_id))
            images = [picture(image) for image in asked.images]
            values = await interpreter.values(request, reward_id, prompts, images, _WITHIN_S)
        except RewardError as error:
            raise _told(error) from error
        return Response(pickled({"outputs": values}), media_type=RAW_MEDIA_TYPE)

    return [Route("POST", FLOW_GRPO + "{reward_id}", score)]


def _parsed(sent: Any) -> FlowGrpoRequest:
    if isinstance(sent, dict) and "meta_datas" in sent:
        raise RequestInvalid("this is a request to GenEval's own server; send images and prompts")
    try:
        return FlowGrpoRequest.model_validate(sent)
    except ValidationError as error:
        raise explained(error) from error


def _prompts(asked: FlowGrpoRequest, info: RewardInfo) -> list[str]:
    if asked.prompts is None and "text" in info.modality:
        raise RequestInvalid(f"{info.id} scores pictures against prompts; send prompts, one a picture")
    return [""] * len(asked.images) if asked.prompts is None else asked.prompts


def _told(error: RewardError) -> RewardError:
    """The error whose status has this client do what is right."""
    if error.retryable == (error.status in _SENT_AGAIN):
        return error
    if error.retryable:
        return RewardUnavailable(str(error), retry_after_s=error.retry_after_s)
    return RequestRejected(str(error))
