"""A request's way: limits, permission, quota, its turn, its deadline, and the pixels of it all."""

import asyncio
import base64
import io
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from reward_services import (
    DeadlineExceeded,
    Limits,
    NotPermitted,
    Overloaded,
    QuotaExceeded,
    RewardError,
    RewardUnknown,
    ScoreResponse,
    TooLarge,
)
from reward_services.http.app import create_app
from reward_services.http.bodies import Asked
from reward_services.http.keys import ANYONE, Caller
from reward_services.http.lanes import Lanes
from reward_services.http.metrics import Metrics
from reward_services.http.quota import Quotas
from reward_services.http.room import Room
from reward_services.http.scoring import Scoring, decode_all, most_pixels
from reward_services.images import attach
from reward_services.schema import FormItem, FormRequest, PartRef, ScoreOptions
from reward_services.scorers.jpeg import JpegScorer

Draw = Callable[..., list[Any]]


def asking(images: list[Any], *, reward: str = "jpeg", deadline_ms: int = 10_000, prompt: str = "a") -> Asked:
    item = FormItem(prompt=prompt, image=PartRef(part="0"))
    options = ScoreOptions(deadline_ms=deadline_ms)
    request = FormRequest(rewards=(reward,), items=(item,) * len(images), options=options)
    return Asked(request, [image if isinstance(image, RewardError) else attach(image) for image in images])


def scoring_by(rewards: Any, limits: Limits, lanes: Lanes, pixels: int = 2**30) -> Scoring:
    return Scoring(rewards, limits, lanes, Room(pixels), Quotas(), Metrics(lanes))


@pytest.fixture
def score(rewards_here: Callable[..., Any]) -> Callable[..., ScoreResponse]:
    """Answers one request after another by a `Scoring` of its own."""
    scoring = scoring_by(rewards_here({"jpeg": JpegScorer()}), Limits(max_items=5), Lanes())
    return lambda asked, caller=ANYONE: asyncio.run(scoring.answer(asked, caller, came=time.monotonic()))


def test_scores_and_errors_keep_their_order(score: Callable[..., ScoreResponse], draw: Draw) -> None:
    first, second = draw(2)
    items = score(asking([first, TooLarge("dropped"), second])).items
    values = [item.scores["jpeg"].value for item in items]
    exact = [one.value for one in JpegScorer().score([first, second], ["a", "a"])]
    assert values == [exact[0], None, exact[1]]
    error = items[1].scores["jpeg"].error
    assert error is not None
    assert error.detail == "dropped"


def test_what_is_refused(score: Callable[..., ScoreResponse], draw: Draw) -> None:
    with pytest.raises(TooLarge, match="at most 5"):
        score(asking(draw(6)))
    with pytest.raises(RewardUnknown):
        score(asking(draw(1), reward="jpg"))
    with pytest.raises(NotPermitted):
        score(asking(draw(1)), Caller(name="alice", rewards=("clip",)))


def test_a_quota_counts_images(score: Callable[..., ScoreResponse], draw: Draw) -> None:
    alice = Caller(name="alice", images_per_minute=6)
    score(asking(draw(5)), alice)
    with pytest.raises(QuotaExceeded) as caught:
        score(asking(draw(5)), alice)
    assert caught.value.retry_after_s == pytest.approx(40, abs=2)
    score(asking(draw(1)), alice)
    score(asking(draw(5)))


class Slow:
    """`Rewards` of one, jpeg, that answers when it is let."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.told_s = 0.0
        self.open = asyncio.Event()

    async def describe(self, rewards: Any = None) -> list[Any]:
        return [JpegScorer().describe("jpeg", max_items=8)]

    async def score(self, images: Any, prompts: Any, *, rewards: Any, deadline_s: float) -> Any:
        self.prompts += prompts
        self.told_s = deadline_s
        await self.open.wait()
        return {"jpeg": JpegScorer().score(images, prompts)}


def test_pixels_beyond_what_may_be_held_wait_for_those_before(draw: Draw) -> None:
    """Files count for the most they may decode to until they are decoded, arrays for what they are."""
    picture = draw(1)[0]
    pixels = picture.shape[0] * picture.shape[1]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    limits = Limits(max_image_pixels=4 * pixels)
    assert most_pixels(asking([picture] * 3), limits) == 3 * pixels
    assert most_pixels(asking([picture, file.getvalue()]), limits) == 5 * pixels
    assert (
        most_pixels(asking([file.getvalue()] * 3), limits.model_copy(update={"max_request_pixels": 9})) == 9
    )

    async def run() -> list[str]:
        slow = Slow()
        scoring = scoring_by(slow, limits, Lanes(), pixels=5 * pixels)
        calls = [asking([file.getvalue()], prompt="decoded"), asking([picture] * 4, prompt="fits beside it")]
        calls.append(asking([picture], prompt="does not"))
        now = time.monotonic()
        tasks = [asyncio.create_task(scoring.answer(call, ANYONE, came=now)) for call in calls]
        while len(slow.prompts) < 5:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # whoever else was let in would be here by now
        before = list(slow.prompts)
        slow.open.set()
        await asyncio.gather(*tasks)
        assert slow.prompts[-1] == "does not"
        return before

    assert asyncio.run(run()) == ["decoded"] + ["fits beside it"] * 4


def test_a_better_lane_is_served_first_and_waiting_counts_against_the_deadline(draw: Draw) -> None:
    async def run() -> None:
        slow = Slow()
        scoring = scoring_by(slow, Limits(), Lanes(at_once=1))
        calls = []
        for name, lane, deadline_ms in [
            ("first", "others", 60_000),
            ("others", "others", 60_000),
            ("late", "others", 50),
            ("train", "train", 60_000),
        ]:
            caller = Caller.model_validate({"name": name, "lane": lane})
            asked = asking(draw(1), prompt=name, deadline_ms=deadline_ms)
            answer = scoring.answer(asked, caller, came=time.monotonic())
            calls.append(asyncio.create_task(answer))
            await asyncio.sleep(0.01)
            while not slow.prompts:
                await asyncio.sleep(0.01)
        with pytest.raises(DeadlineExceeded, match="while other callers were served"):
            await calls.pop(2)
        slow.open.set()
        await asyncio.gather(*calls)
        assert slow.prompts == ["first", "train", "others"]

    asyncio.run(run())


def test_a_quota_is_not_spent_on_what_is_refused_for_want_of_room(draw: Draw) -> None:
    async def run() -> None:
        slow = Slow()
        scoring = scoring_by(slow, Limits(), Lanes(at_once=1, waiting=1))
        alice = Caller(name="alice", images_per_minute=6)

        async def ask(count: int, caller: Caller, deadline_ms: int = 60_000) -> Any:
            asked = asking(draw(count), deadline_ms=deadline_ms)
            return await scoring.answer(asked, caller, came=time.monotonic())

        first = asyncio.create_task(ask(1, ANYONE))
        while not slow.prompts:
            await asyncio.sleep(0.01)
        for _ in range(3):
            with pytest.raises(Overloaded):
                await ask(4, alice)
            with pytest.raises(DeadlineExceeded):
                await ask(1, alice, deadline_ms=20)
        slow.open.set()
        await first
        await ask(6, alice)
        with pytest.raises(QuotaExceeded):
            await ask(1, alice)

    asyncio.run(run())


def test_the_deadline_counts_from_the_requests_arrival(draw: Draw) -> None:
    asked = asking(draw(1), deadline_ms=5000)
    slow = Slow()
    slow.open.set()
    scoring = scoring_by(slow, Limits(), Lanes())
    for since_s, in_time in ((4, True), (6, False)):
        answer = asyncio.run(scoring.answer(asked, ANYONE, came=time.monotonic() - since_s))
        assert answer.items[0].scores["jpeg"].ok == in_time


@pytest.mark.parametrize("form", ["json", "multipart", "vllm"])
def test_the_time_that_a_body_took_is_no_longer_there(draw: Draw, json_item: Any, form: str) -> None:
    item = json_item(*draw(1))
    asked: Any = {"rewards": ["jpeg"], "items": [item], "options": {"deadline_ms": 60_000}}
    url = f"data:image/png;base64,{item['image']['data']}"
    picture = {"content": [{"type": "image_url", "image_url": {"url": url}}]}
    request = httpx.Request("POST", "http://test/v1/scores", json=asked)
    if form == "vllm":  # its answer comes within 60 s
        sent = {"model": "jpeg", "text_1": "a", "text_2": picture}
        request = httpx.Request("POST", "http://test/compat/vllm/score", json=sent)
    if form == "multipart":
        asked["items"][0]["image"] = {"part": "0"}
        parts = {"request": (None, json.dumps(asked), "application/json")}
        files: Any = {**parts, "0": ("0", base64.b64decode(url.partition(",")[2]), "image/png")}
        request = httpx.Request("POST", "http://test/v1/scores", files=files)

    async def slowly() -> AsyncIterator[bytes]:
        body = request.read()
        yield body[:100]
        await asyncio.sleep(0.5)
        yield body[100:]

    async def run() -> None:
        slow = Slow()
        slow.open.set()
        headers = {"content-type": request.headers["content-type"]}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(slow))) as client:
            answer = await client.post(request.url, content=slowly(), headers=headers)
        assert answer.status_code == 200, answer.text
        assert 50 < slow.told_s < 59.5

    asyncio.run(run())


def test_pixels_of_a_request_are_bounded_together() -> None:
    """Small files of many pixels: what is beyond the request's pixels is refused undecoded."""
    limits = Limits(max_request_pixels=1000, max_image_pixels=600)
    images: list[Any] = [
        np.zeros(shape, np.uint8) for shape in [(20, 20, 3), (25, 25, 3), (20, 20, 3), (20, 20, 3)]
    ]
    decoded = decode_all(asking(images), limits, math.inf)
    assert [isinstance(one, TooLarge) for one in decoded] == [False, True, False, True]
    assert (
        type(decode_all(asking(images[:1], prompt="é" * 10), Limits(max_prompt_bytes=19), math.inf)[0])
        is TooLarge
    )


def test_nothing_is_decoded_after_the_deadline(draw: Draw) -> None:
    decoded = decode_all(asking([*draw(1), TooLarge("dropped")]), Limits(), time.monotonic() - 1)
    assert [type(one) for one in decoded] == [DeadlineExceeded, DeadlineExceeded]
