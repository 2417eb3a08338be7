"""What becomes of a scoring request: checked, charged, admitted, decoded, scored, and put in order."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reward_services.errors import DeadlineExceeded, RewardError, TooLarge, error_from
from reward_services.http.bodies import Asked
from reward_services.http.keys import Caller
from reward_services.http.lanes import Lanes
from reward_services.http.load import Load
from reward_services.http.metrics import Metrics
from reward_services.http.quota import Quotas
from reward_services.http.room import Place, Room
from reward_services.images import Attachment, decode, read
from reward_services.rewards import Rewards
from reward_services.schema import (
    FormRequest,
    ImageRef,
    Limits,
    RewardInfo,
    Score,
    ScoredItem,
    ScoreRequest,
    ScoreResponse,
)

Decoded = NDArray[np.uint8] | RewardError


class Scoring:
    """Answers requests by `rewards`, as many at once as `lanes` admit and `pixels` has room for."""

    def __init__(
        self, rewards: Rewards, limits: Limits, lanes: Lanes, pixels: Room, quotas: Quotas, metrics: Metrics
    ) -> None:
        self._rewards, self._limits, self._lanes, self._pixels = rewards, limits, lanes, pixels
        self._quotas, self._metrics = quotas, metrics
        self.load = Load()
        """How busy each reward is with what is asked for here."""

    async def answer(self, asked: Asked, caller: Caller, *, came: float) -> ScoreResponse:
        """One score or one problem per item and reward, in order.

        The deadline counts from when the request `came`, in seconds of the monotonic clock: its caller's does
        so, too, and a body takes its time.

        Raises:
            RewardError: the request is refused, or nothing of it could be scored for want of rewards.
        """
        served = await self._checked(asked, caller)
        with self.load.under_way(asked.request.rewards, len(asked.images)) as answered:
            ends = came + min(asked.request.options.deadline_ms, self._limits.max_deadline_ms) / 1000
            response = await self._in_turn(asked, caller, served, ends)
            answered(response.items)
        return response

    async def _in_turn(
        self, asked: Asked, caller: Caller, served: dict[str, RewardInfo], ends: float
    ) -> ScoreResponse:
        came_to_turn = False
        try:
            async with asyncio.timeout(ends - time.monotonic()) as waiting:
                async with (
                    self._lanes.admitted(caller.lane, len(asked.images)),
                    self._pixels.held(most_pixels(asked, self._limits)) as place,
                ):
                    waiting.reschedule(None)
                    came_to_turn = True
                    return await self._scored(asked, served, ends, place)
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline passed while other callers were served") from error
        finally:
            if not came_to_turn:
                self._quotas.give_back(caller.name, len(asked.images))

    async def _checked(self, asked: Asked, caller: Caller) -> dict[str, RewardInfo]:
        if len(asked.images) > self._limits.max_items:
            raise TooLarge(f"{len(asked.images)} items; at most {self._limits.max_items} a request")
        served = {info.id: info for info in await self._rewards.describe(asked.request.rewards)}
        caller.check_may_use(asked.request.rewards)
        if caller.images_per_minute is not None:
            self._quotas.charge(caller.name, caller.images_per_minute, len(asked.images))
        return served

    async def _scored(
        self, asked: Asked, served: dict[str, RewardInfo], ends: float, place: Place
    ) -> ScoreResponse:
        started = time.monotonic()
        decoded = await asyncio.to_thread(decode_all, asked, self._limits, ends)
        place.shrink(sum(_pixels(image) for image in decoded if not isinstance(image, RewardError)))
        decoded_at = time.monotonic()
        scored = await self._score(asked.request, decoded, max(ends - decoded_at, 0.001))
        items = _in_order(asked.request, decoded, scored)
        self._metrics.scored(items)
        return ScoreResponse(
            id=f"scr_{uuid.uuid4().hex}",
            model_revisions={name: _revision(scored[name], served[name]) for name in asked.request.rewards},
            items=items,
            timing_ms={
                "decode": round(1000 * (decoded_at - started), 3),
                "score": round(1000 * (time.monotonic() - decoded_at), 3),
            },
        )

    async def _score(
        self, request: ScoreRequest | FormRequest, decoded: Sequence[Decoded], left_s: float
    ) -> dict[str, list[Score]]:
        good = [
            (image, item.prompt)
            for image, item in zip(decoded, request.items, strict=True)
            if not isinstance(image, RewardError)
        ]
        if not good:
            return {name: [] for name in request.rewards}
        images, prompts = zip(*good, strict=True)
        scored = await self._rewards.score(images, prompts, rewards=request.rewards, deadline_s=left_s)
        _raise_if_nothing_was_scored([score for name in request.rewards for score in scored[name]])
        return scored


def decode_all(asked: Asked, limits: Limits, ends: float) -> list[Decoded]:
    """Every item's picture, or what is wrong with it.

    Pixels beyond those of a request are not decoded, nor is anything once the monotonic clock is past `ends`:
    a file may be made to take seconds.
    """
    decoded: list[Decoded] = []
    left = limits.max_request_pixels
    for item, image in zip(asked.request.items, asked.images, strict=True):
        if time.monotonic() > ends:
            decoded.append(DeadlineExceeded("the deadline passed before the image was decoded"))
            continue
        bounds = limits.model_copy(update={"max_image_pixels": min(limits.max_image_pixels, left)})
        decoded.append(_decode_one(item.prompt, image, bounds))
        last = decoded[-1]
        left -= 0 if isinstance(last, RewardError) else _pixels(last)
    return decoded


def most_pixels(asked: Asked, limits: Limits) -> int:
    """Pixels that a request may come to: what arrays say they have, and for files the most there may be."""
    most = sum(
        image.shape[0] * image.shape[1]
        if isinstance(image, Attachment) and image.shape is not None
        else limits.max_image_pixels
        for image in asked.images
    )
    return min(most, limits.max_request_pixels)


def _pixels(image: NDArray[np.uint8]) -> int:
    return int(image.shape[0] * image.shape[1])


def _decode_one(prompt: str, image: ImageRef | Attachment | RewardError, limits: Limits) -> Decoded:
    if isinstance(image, RewardError):
        return image
    if len(prompt.encode("utf-8", "replace")) > limits.max_prompt_bytes:
        return TooLarge(f"the prompt has more than {limits.max_prompt_bytes} bytes")
    try:
        return decode(image, limits) if isinstance(image, ImageRef) else read(image, limits)
    except RewardError as error:
        return error


def _revision(scores: Sequence[Score], described: RewardInfo) -> str:
    """What computed the scores, which is newer than the description just after a change."""
    return next((score.revision for score in scores if score.revision is not None), described.revision)


def _raise_if_nothing_was_scored(scores: Sequence[Score]) -> None:
    """Where nothing could be scored for want of rewards, the request fails as a whole; clients retry it."""
    errors = [error_from(score.error) for score in scores if score.error is not None]
    if len(errors) == len(scores) and all(error.retryable for error in errors):
        raise errors[0]


def _in_order(
    request: ScoreRequest | FormRequest, decoded: Sequence[Decoded], scored: dict[str, list[Score]]
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
