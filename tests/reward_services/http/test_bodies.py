"""Bodies: JSON and forms become the same request; a mistake points at its place and repeats no input."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from reward_services import (
    FormRequest,
    ImageRef,
    Limits,
    RequestInvalid,
    RequestMalformed,
    RewardError,
    TooLarge,
)
from reward_services.http.bodies import Asked, read_body
from reward_services.images import Attachment

LIMITS = Limits(max_image_bytes=100)
RAW = "application/octet-stream"
IMAGES: dict[str, Any] = {"file": ("a.png", b"png", "image/png"), "array": ("b", b"\0" * 12, RAW)}
ITEMS = [
    {"id": "a", "prompt": "a", "image": {"part": "file"}},
    {"prompt": "b", "image": {"part": "array", "shape": [2, 2, 3], "dtype": "uint8"}},
    {"prompt": "c", "image": {"part": "file"}},
]


def read(content: bytes, content_type: str) -> Asked:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    return asyncio.run(read_body(content_type, chunks(), LIMITS))


def read_form(request: Any, files: dict[str, Any] = IMAGES, media_type: str = "application/json") -> Asked:
    parts: Any = {"request": (None, json.dumps(request), media_type), **files}
    form = httpx.Request("POST", "http://test", files=parts)
    return read(form.read(), form.headers["content-type"])


def test_json_has_its_images_within() -> None:
    item = {"prompt": "a", "image": {"media_type": "image/png", "data": "AAAA"}}
    asked = read(
        json.dumps({"rewards": ["clip"], "items": [item]}).encode(), "Application/JSON; charset=utf-8"
    )
    assert asked.images == [ImageRef(media_type="image/png", data="AAAA")]
    assert asked.request.rewards == ("clip",)


def test_items_of_a_form_name_their_images() -> None:
    asked = read_form({"rewards": ["clip"], "items": ITEMS})
    file, array = Attachment("image/png", b"png"), Attachment(RAW, b"\0" * 12, (2, 2, 3))
    assert asked.images == [file, array, file]
    assert isinstance(asked.request, FormRequest)
    assert [item.prompt for item in asked.request.items] == ["a", "b", "c"]


def test_a_part_that_is_too_large_fails_its_items_only() -> None:
    asked = read_form(
        {"rewards": ["clip"], "items": ITEMS}, {**IMAGES, "file": ("a.png", b"1" * 101, "image/png")}
    )
    assert [isinstance(image, RewardError) for image in asked.images] == [True, False, True]


@pytest.mark.parametrize(
    ("request_part", "files", "pointer"),
    [
        ({"rewards": ["clip"]}, IMAGES, "/items"),
        ({"rewards": ["clip"], "items": ITEMS}, {"file": IMAGES["file"]}, "/items/1/image/part"),
        (
            {"rewards": ["clip"], "items": [{"prompt": "a", "image": {"part": "request"}}]},
            {},
            "/items/0/image/part",
        ),
        ({"rewards": ["clip"], "items": [{"prompt": "a", "image": "secret"}]}, {}, "/items/0/image"),
        (
            {"rewards": ["clip"], "items": [{"prompt": "a", "image": {"part": "file", "shape": [2, 2, 4]}}]},
            IMAGES,
            "/items/0/image/shape/2",
        ),
    ],
)
def test_mistakes_point_at_their_place(request_part: Any, files: Any, pointer: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        read_form(request_part, files)
    assert caught.value.fields is not None
    assert [field.pointer for field in caught.value.fields] == [pointer]
    assert "secret" not in str(caught.value.problem())


def test_a_part_that_nobody_names_is_a_mistake() -> None:
    with pytest.raises(RequestInvalid, match="no item names the part 'array'"):
        read_form({"rewards": ["clip"], "items": ITEMS[:1]})


def test_what_cannot_be_read() -> None:
    with pytest.raises(RequestMalformed, match="is not JSON"):
        read(b"{", "application/json")
    with pytest.raises(RequestMalformed, match="part 'request' of type application/json"):
        read_form({"rewards": ["clip"], "items": ITEMS}, media_type="text/plain")
    form = httpx.Request("POST", "http://test", files=IMAGES)
    with pytest.raises(RequestMalformed, match="part 'request' of type application/json"):
        read(form.read(), form.headers["content-type"])


def test_an_unknown_key_is_not_repeated_whole() -> None:
    with pytest.raises(RequestInvalid) as caught:
        read(json.dumps({"~/" + "secret" * 100: 1}).encode(), "application/json")
    pointers = [field.pointer for field in caught.value.fields or ()]
    assert "/~0~1" + ("secret" * 100)[:62] in pointers


@pytest.mark.parametrize("values", ["{},", "0,", "[", '"",'])
def test_a_request_part_of_too_many_values_is_refused_unread(values: str) -> None:
    files = {"request": (None, '{"rewards":[' + values * 100_000, "application/json")}
    form = httpx.Request("POST", "http://test", files=files)
    with pytest.raises(TooLarge, match="values; send fewer items"):
        read(form.read(), form.headers["content-type"])


def test_more_than_twenty_mistakes_are_not_told() -> None:
    items = [{"prompt": 1, "image": {"part": "file"}}] * 50
    with pytest.raises(RequestInvalid) as caught:
        read_form({"rewards": ["clip"], "items": items})
    assert len(caught.value.fields or ()) == 20


def test_a_request_part_may_be_large_but_not_beyond_the_body() -> None:
    small = Limits(max_image_bytes=10, max_body_bytes=300)

    async def run(padding: int) -> Asked:
        async def chunks() -> AsyncIterator[bytes]:
            yield form.read()

        request = json.dumps({"rewards": ["clip"], "items": ITEMS[:1]}) + " " * padding
        form = httpx.Request(
            "POST", "http://t", files={"request": (None, request, "application/json"), "file": IMAGES["file"]}
        )
        return await read_body(form.headers["content-type"], chunks(), small)

    assert len(asyncio.run(run(100)).images) == 1
    with pytest.raises(TooLarge):
        asyncio.run(run(300))
