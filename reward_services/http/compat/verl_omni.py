"""verl-omni's HTTP scorer, a pickle each way: `server_url: http://HOST:8000/compat/verl-omni/REWARD`.

Only with `http.pickle_routes`. Its client sends one picture a request and takes the first of `scores`. 408,
429 and 5xx it sends again after 0.5 s and after 1 s, any other 4xx it raises at once, with the text of the
answer. Nothing in the answer can say that one item failed, so the request does.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, StrictBytes, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from reward_services.http.bodies import explained
from reward_services.http.compat import VERL_OMNI
from reward_services.http.compat.interpreter import Interpreter, Route, Text, picture
from reward_services.http.compat.unpickling import pickled, unpickled
from reward_services.images import RAW_MEDIA_TYPE

_WITHIN_S = 110.0  # its client waits 120 s


class VerlOmniRequest(BaseModel):
    """Files of JPEG pictures and a prompt for each; `metadata` is always empty and not read."""

    images: list[StrictBytes]
    prompts: list[Text]


def routes(interpreter: Interpreter) -> list[Route]:
    """One route for each reward."""

    async def score(reward_id: str, request: Request) -> Response:
        """Score images[i] against prompts[i]; all of them or none."""
        asked = _parsed(unpickled(await request.body()))
        images = [picture(image) for image in asked.images]
        values = await interpreter.values(request, reward_id, asked.prompts, images, _WITHIN_S)
        return Response(pickled({"scores": values}), media_type=RAW_MEDIA_TYPE)

    return [Route("POST", VERL_OMNI + "{reward_id}", score)]


def _parsed(sent: Any) -> VerlOmniRequest:
    try:
        return VerlOmniRequest.model_validate(sent)
    except ValidationError as error:
        raise explained(error) from error
