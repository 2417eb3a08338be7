"""Bodies are bounded by type, size and time, whatever their headers claim."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from reward_services import Limits
from reward_services.body_guard import BodyGuard

LIMITS = Limits(max_body_bytes=1000, body_timeout_s=0.2)
JSON = {"content-type": "application/json"}


async def length_of_body(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers with the number of bytes it was given."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def send(method: str = "POST", **content: Any) -> httpx.Response:
    async def sent() -> httpx.Response:
        transport = httpx.ASGITransport(BodyGuard(length_of_body, LIMITS))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, "/", **content)

    return asyncio.run(sent())


async def chunks(count: int, size: int, pause_s: float = 0.0) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(pause_s)
        yield b" " * size


@pytest.mark.parametrize("content", [b"{}", b" " * 1000, chunks(10, 100)])
def test_what_is_within_the_limits_arrives_whole(content: Any) -> None:
    response = send(content=content, headers=JSON)
    assert response.status_code == 200
    assert response.text in {"2", "1000"}


@pytest.mark.parametrize("content", [b" " * 1001, chunks(11, 100), chunks(2, 600)])
def test_what_is_too_large_is_refused(content: Any) -> None:
    response = send(content=content, headers=JSON)
    assert response.status_code == 413
    assert response.json()["type"] == "/problems/too-large"


@pytest.mark.parametrize("length", ["1001", "-1", "many"])
def test_a_wrong_length_is_refused_unread(length: str) -> None:
    assert send(content=chunks(1, 1), headers={**JSON, "content-length": length}).status_code == 413


def test_a_lying_length_does_not_help() -> None:
    assert send(content=chunks(3, 500), headers={**JSON, "content-length": "5"}).status_code == 413


def test_a_slow_body_is_refused() -> None:
    response = send(content=chunks(10, 1, pause_s=0.1), headers=JSON)
    assert response.status_code == 408
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data"},
        {**JSON, "content-encoding": "gzip"},
    ],
)
def test_other_media_types_are_refused(headers: dict[str, str]) -> None:
    assert send(content=b"{}", headers=headers).status_code == 415


def test_a_charset_is_fine_and_reading_needs_no_type() -> None:
    assert send(content=b"{}", headers={"content-type": "Application/JSON; charset=utf-8"}).status_code == 200
    assert send("GET").status_code == 200
