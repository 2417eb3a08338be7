"""Between dialects and scoring: what a picture is taken for, bounds, and which failure of several counts."""

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from reward_services import (
    ImageInvalid,
    ImageRef,
    Limits,
    ReplicaLost,
    RequestInvalid,
    RewardError,
    RewardUnknown,
    Score,
    ScoredItem,
    ScoreResponse,
    ScoringFailed,
    TooLarge,
)
from reward_services.http.compat.interpreter import Interpreter, Text, data_uri, picture, values_of
from reward_services.http.keys import ANYONE
from reward_services.http.lanes import Lanes
from reward_services.http.metrics import Metrics
from reward_services.http.quota import Quotas
from reward_services.http.room import Room
from reward_services.http.scoring import Scoring
from reward_services.images import Attachment

LIMITS = Limits(max_items=3)


class Untouched(Sequence[Any]):
    """A million items, none of which may be looked at."""

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError(index)


@pytest.fixture
def interpreter(rewards: Any) -> Interpreter:
    lanes = Lanes()
    return Interpreter(
        Scoring(rewards, LIMITS, lanes, Room(2**30), Quotas(), Metrics(lanes)), rewards, LIMITS
    )


def a_request() -> Request:
    return Request({"type": "http", "state": {"caller": ANYONE, "came": time.monotonic()}})


@pytest.mark.parametrize(("file_format", "media_type"), [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp")])
def test_a_picture_is_of_the_type_that_its_bytes_say(
    file_of: Callable[..., bytes], file_format: str, media_type: str
) -> None:
    content = file_of("a red circle", file_format)
    data = base64.b64encode(content).decode()
    assert picture(content) == Attachment(f"image/{media_type}", content)
    for sent in (data, f"data:image;base64,{data}", f"data:image/gif;base64,{data}"):
        assert picture(sent) == ImageRef(media_type=f"image/{media_type}", data=data)


@pytest.mark.parametrize(
    "sent", [b"", b"GIF89a", "", "A", "R0lGODlhAAAA", "data:image/png;base64", "\u00e9\u00e9\u00e9\u00e9"]
)
def test_what_is_no_picture_is_its_error(sent: bytes | str) -> None:
    assert isinstance(picture(sent), RewardError)


def test_an_address_that_leads_elsewhere_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="no image is fetched"):
        data_uri("https://example.org/a.png")


def test_items_are_counted_before_anything_is_made_of_them(interpreter: Interpreter) -> None:
    with pytest.raises(TooLarge, match="at most 3 a request"):
        asyncio.run(interpreter.values(a_request(), "jpeg", Untouched(), Untouched(), 10))
    with pytest.raises(RequestInvalid, match="one prompt per image"):
        asyncio.run(interpreter.values(a_request(), "jpeg", [], [ImageInvalid()], 10))


def test_no_item_is_refused(interpreter: Interpreter) -> None:
    with pytest.raises(RequestInvalid):
        asyncio.run(interpreter.values(a_request(), "jpeg", [], [], 10))


def test_half_a_character_is_no_text() -> None:
    text = TypeAdapter(Text)
    assert text.validate_json(b'"\\ud83d\\ude00"') == text.validate_python("\U0001f600") == "\U0001f600"
    with pytest.raises(ValidationError, match="half of a character"):
        text.validate_python("\ud83d")


def test_scores_are_those_of_the_reward(
    interpreter: Interpreter, rewards: Any, file_of: Callable[..., bytes], drawn: Callable[..., Any]
) -> None:
    texts = ["a red circle", "two blue squares"]
    images = [picture(file_of(text)) for text in texts]
    values = asyncio.run(interpreter.values(a_request(), "jpeg", texts, images, 10))
    exact = rewards.scorers["jpeg"].score([drawn(text) for text in texts], texts)
    assert values == [score.value for score in exact]


def test_an_unknown_reward(interpreter: Interpreter) -> None:
    with pytest.raises(RewardUnknown, match="did you mean 'jpeg'"):
        asyncio.run(interpreter.reward("jepg"))


def test_the_failure_that_would_come_again_is_the_one_that_counts() -> None:
    """A client that sends the request again because a replica was lost would only meet the other one."""
    scores = [Score.of(1.0), Score.failed(ReplicaLost("gone")), Score.failed(ScoringFailed("no answer"))]
    items = tuple(ScoredItem(id=str(n), index=n, scores={"a": score}) for n, score in enumerate(scores))
    answer = ScoreResponse(id="scr", model_revisions={"a": "1"}, items=items, timing_ms={})
    with pytest.raises(ScoringFailed, match="item 2: no answer"):
        values_of(answer, "a")
    with pytest.raises(ReplicaLost, match="item 1: gone"):
        values_of(answer.model_copy(update={"items": items[:2]}), "a")
    assert values_of(answer.model_copy(update={"items": items[:1]}), "a") == [1.0]
