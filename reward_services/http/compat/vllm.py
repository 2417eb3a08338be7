"""vLLM's /score with image parts: its clients are told the base URL http://HOST:8000/compat/vllm.

`model` names the reward. One side holds prompts, the other images, in either order; one prompt goes with all
images, or each with its own, as vLLM pairs them. An image is a data URI: none is fetched. Nothing in the
answer can say that one item failed, so the request does, with a status that `raise_for_status` raises.
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, Field
from starlette.requests import Request

from reward_services.errors import RequestInvalid
from reward_services.http.compat.interpreter import Interpreter, Route, Text, data_uri

_WITHIN_S = 60.0


class TextPart(BaseModel):
    """A prompt as a part of a content."""

    type: Literal["text"]
    text: Text


class ImageUrl(BaseModel):
    """An image as a data URI."""

    url: str


class ImagePart(BaseModel):
    """An image as a part of a content."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = TextPart | ImagePart


class Content(BaseModel):
    """Parts: each an input of its own where it stands alone, and one input within a list of them."""

    content: list[Annotated[Part, Field(discriminator="type")]]


Side = Text | Content | list[Text | Content]


class VllmRequest(BaseModel):
    """Two sides, under any of the names that vLLM has for them; `instruction` and templates are not read."""

    model: Text
    data_1: Side = Field(validation_alias=AliasChoices("data_1", "queries", "text_1"))
    data_2: Side = Field(validation_alias=AliasChoices("data_2", "documents", "items", "text_2"))


class VllmScore(BaseModel):
    """The score of the pair at `index`."""

    index: int
    object: Literal["score"] = "score"
    score: float


class VllmUsage(BaseModel):
    """Nothing is counted in tokens here."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class VllmResponse(BaseModel):
    """A score for each pair, in order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[VllmScore]
    usage: VllmUsage = VllmUsage()


class VllmModel(BaseModel):
    """A reward, as a model."""

    id: str
    object: Literal["model"] = "model"


class VllmModels(BaseModel):
    """Every reward that is served."""

    object: Literal["list"] = "list"
    data: list[VllmModel]


def routes(interpreter: Interpreter) -> list[Route]:
    """/v1/models and /score."""

    async def models() -> VllmModels:
        """Every reward that is served."""
        return VllmModels(data=[VllmModel(id=info.id) for info in await interpreter.served()])

    async def score(body: VllmRequest, request: Request) -> VllmResponse:
        """Score every pair of a prompt and an image; all of them or none."""
        prompts, urls = _pairs(_parts(body.data_1), _parts(body.data_2))
        images = [data_uri(url) for url in urls]
        values = await interpreter.values(request, body.model, prompts, images, _WITHIN_S)
        return VllmResponse(
            id=f"score-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=body.model,
            data=[VllmScore(index=index, score=value) for index, value in enumerate(values)],
        )

    return [
        Route("GET", "/compat/vllm/v1/models", models),
        Route("POST", "/compat/vllm/score", score),
    ]


def _parts(side: Side) -> list[Part]:
    """The inputs of a side, each of which is one part."""
    if isinstance(side, str):
        return [TextPart(type="text", text=side)]
    if isinstance(side, Content):
        return list(side.content)
    found = [_parts(one) for one in side]
    if any(len(parts) != 1 for parts in found):
        raise RequestInvalid("an input within a list has one part: a text or an image")
    return [parts[0] for parts in found]


def _pairs(first: list[Part], second: list[Part]) -> tuple[list[str], list[str]]:
    if len(first) == 1:
        first = first * len(second)
    texts, images = (second, first) if first and isinstance(first[0], ImagePart) else (first, second)
    prompts = [part.text for part in texts if isinstance(part, TextPart)]
    urls = [part.image_url.url for part in images if isinstance(part, ImagePart)]
    if not len(texts) == len(images) == len(prompts) == len(urls):
        raise RequestInvalid("give prompts on one side and images on the other, 1 to 1, 1 to N or N to N")
    return prompts, urls
