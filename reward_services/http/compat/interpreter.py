"""Between the dialects and `Scoring`: prompts and pictures in; scores out, or the failure of it all."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, ValidationError
from starlette.requests import Request

from reward_services.errors import ImageInvalid, RequestInvalid, RewardError, TooLarge, error_from
from reward_services.http.bodies import Asked, explained
from reward_services.http.scoring import Scoring
from reward_services.images import Attachment, media_type_of
from reward_services.rewards import Rewards, check_batch
from reward_services.schema import (
    FormItem,
    FormRequest,
    ImageRef,
    Limits,
    PartRef,
    RewardInfo,
    ScoreOptions,
    ScoreResponse,
)

Image = ImageRef | Attachment | RewardError


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the text has half of a character") from error
    return text


Text = Annotated[str, AfterValidator(_whole)]
"""Text that can be answered and tokenized: Python's JSON and pickles let surrogates pass that stand alone."""


class Route(NamedTuple):
    """A route of a dialect: its method, path, and the function that answers."""

    method: str
    path: str
    endpoint: Callable[..., Awaitable[Any]]


class Interpreter:
    """What every dialect asks for scores."""

    def __init__(self, scoring: Scoring, rewards: Rewards, limits: Limits) -> None:
        self.limits = limits
        self._scoring, self._rewards = scoring, rewards

    async def served(self) -> list[RewardInfo]:
        """Every reward; raises `RewardUnavailable` while that is not known."""
        return await self._rewards.describe()

    async def reward(self, name: str) -> RewardInfo:
        """The reward of that name; raises `RewardUnknown` when there is none."""
        (info,) = await self._rewards.describe([name])
        return info

    async def scores(
        self,
        request: Request,
        rewards: Sequence[str],
        prompts: Sequence[str],
        images: Sequence[Image],
        within_s: float,
    ) -> ScoreResponse:
        """A score or a problem for images[i] against prompts[i] by every reward, in order.

        The answer comes within so many seconds of the request's arrival.

        Raises:
            RequestInvalid: there is no item, or not a prompt for each image.
            RewardError: whatever else `Scoring.answer` raises.
        """
        check_batch(images, prompts)
        if len(images) > self.limits.max_items:
            # Before anything is made of them: a body of commas is millions of items.
            raise TooLarge(f"{len(images)} items; at most {self.limits.max_items} a request")
        try:
            asked = FormRequest(
                rewards=tuple(rewards),
                options=ScoreOptions(deadline_ms=round(1000 * within_s)),
                items=tuple(
                    FormItem(prompt=prompt, image=PartRef(part=str(index)))
                    for index, prompt in enumerate(prompts)
                ),
            )
        except ValidationError as error:
            raise explained(error) from error
        state = request.state
        return await self._scoring.answer(Asked(asked, images), state.caller, came=state.came)

    async def values(
        self, request: Request, reward: str, prompts: Sequence[str], images: Sequence[Image], within_s: float
    ) -> list[float]:
        """As `scores` by one reward, and then `values_of` it."""
        return values_of(await self.scores(request, [reward], prompts, images, within_s), reward)


def values_of(answer: ScoreResponse, reward: str) -> list[float]:
    """Every item's score by a reward, in order.

    Raises:
        RewardError: an item has none. Of several failures it is one that would come again, if there is any,
            so that no client repeats a request that cannot succeed.
    """
    scores = [item.scores[reward] for item in answer.items]
    failed = [(n, error_from(score.error)) for n, score in enumerate(scores) if score.error is not None]
    if failed:
        n, error = next((one for one in failed if not one[1].retryable), failed[0])
        raise type(error)(f"item {n}: {error}", retry_after_s=error.retry_after_s, fields=error.fields)
    return [score.value for score in scores if score.value is not None]


def picture(sent: bytes | str) -> Image:
    """An image as a file's bytes or in base64, alone or as a data URI; what is none is its error.

    Its type is what its first bytes say, as the dialects' own words for it are missing or wrong.
    """
    try:
        if isinstance(sent, bytes):
            return Attachment(media_type_of(sent), sent)
        data = sent.partition(",")[2] if sent.startswith("data:") else sent
        return ImageRef(media_type=media_type_of(base64.b64decode(data[:16])), data=data)
    except RewardError as error:
        return error
    except ValueError:
        return ImageInvalid("an image is sent in base64, or as a data URI that holds it")


def data_uri(url: str) -> Image:
    """As `picture`, of the address of an image, which may not lead elsewhere.

    Raises:
        RequestInvalid: it does.
    """
    if not url.startswith("data:"):
        raise RequestInvalid("no image is fetched from elsewhere; send it as data:image/png;base64,...")
    return picture(url)
