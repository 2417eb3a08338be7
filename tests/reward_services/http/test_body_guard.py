"""Bodies are bounded by type, size and time, whatever their headers claim."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from reward_services import BodyTimeout, Limits, TooLarge
from reward_services.http.app import create_app
from reward_services.http.body_guard import BodyGuard
from reward_services.scorers.jpeg import JpegScorer

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


def send(method: str = "POST", path: str = "/", *, limits: Limits = LIMITS, **content: Any) -> httpx.Response:
    async def sent() -> httpx.Response:
        transport = httpx.ASGITransport(BodyGuard(length_of_body, limits, untyped=("/old/",)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **content)

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


@pytest.mark.parametrize("length", ["1001", "-1", "many", "9" * 5000])
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
        {"content-length": "2"},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {**JSON, "content-encoding": "gzip"},
    ],
)
def test_other_media_types_are_refused(headers: dict[str, str]) -> None:
    assert send(content=b"{}", headers=headers).status_code == 415


def test_of_several_types_the_first_counts() -> None:
    types = [("content-type", "application/json"), ("content-type", "text/plain")]
    assert send(content=b"{}", headers=types).status_code == 200
    assert send(content=b"{}", headers=types[::-1]).status_code == 415


@pytest.mark.parametrize("method", ["PUT", "DELETE", "TRACE"])
def test_a_method_that_has_no_body_here_is_the_applications_business(method: str) -> None:
    assert send(method).status_code == 200
    with pytest.raises(TooLarge):
        send(method, content=chunks(11, 100))


def test_where_no_body_is_announced_there_is_none_to_guard() -> None:
    assert (send().status_code, send().text) == (200, "0")


def test_json_of_too_many_values_is_refused() -> None:
    few = Limits(max_items=1, max_prompt_bytes=1)
    assert send(content=b"[" + b"0," * 575, headers=JSON, limits=few).status_code == 200
    response = send(content=b"[" + b"0," * 576, headers=JSON, limits=few)
    assert (response.status_code, response.json()["type"]) == (413, "/problems/too-large")


def test_a_charset_is_fine_and_reading_needs_no_type() -> None:
    assert send(content=b"{}", headers={"content-type": "Application/JSON; charset=utf-8"}).status_code == 200
    assert send("GET").status_code == 200


FORM = {"content-type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/octet-stream"}, JSON])
def test_old_clients_send_bytes_or_do_not_say_what(headers: dict[str, str]) -> None:
    """On their paths alone, as bounded as any other, and no form."""
    assert send(path="/old/a", content=b"\0" * 1000, headers=headers).text == "1000"
    assert send(path="/old/a", content=b"\0" * 1001, headers=headers).status_code == 413
    assert send(path="/old/a", content=chunks(10, 1, pause_s=0.1), headers=headers).status_code == 408
    assert send(path="/old/a", content=b"", headers=FORM).status_code == 415
    if headers != JSON:
        assert send(path="/new/old/a", content=b"x", headers=headers).status_code == 415


def test_a_form_is_passed_on_as_it_arrives() -> None:
    """The application sees the first chunk before the second is sent."""

    async def run() -> None:
        seen = asyncio.Event()

        async def application(scope: Any, receive: Any, send: Any) -> None:
            assert (await receive())["body"] == b"first"
            seen.set()
            await length_of_body(scope, receive, send)

        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.wait_for(seen.wait(), 5)
            yield b"second"

        headers = [(b"content-type", b"multipart/form-data")]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        chunks, sent = body(), []

        async def receive() -> dict[str, Any]:
            chunk = await anext(chunks, b"")
            return {"type": "http.request", "body": chunk, "more_body": chunk != b""}

        async def collect(message: Any) -> None:
            sent.append(message)

        await BodyGuard(application, LIMITS)(scope, receive, collect)
        assert sent[1]["body"] == b"6"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("content", "error"), [(chunks(11, 100), TooLarge), (chunks(10, 1, pause_s=0.1), BodyTimeout)]
)
def test_what_breaks_a_limit_in_a_form_raises_in_the_application(content: Any, error: Any) -> None:
    with pytest.raises(error):
        send(content=content, headers=FORM)


def test_the_time_for_a_body_does_not_bound_the_answer() -> None:
    """An application may wait for a disconnect long after the body has come."""

    async def run() -> list[Any]:
        arriving: list[Any] = [{"type": "http.request", "body": b"x"}, {"type": "http.disconnect"}]
        heard: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(2 * LIMITS.body_timeout_s if heard else 0)
            return arriving[len(heard)]

        async def application(scope: Any, receive: Any, send: Any) -> None:
            heard.append(await receive())
            heard.append(await receive())

        async def refused(message: Any) -> None:
            raise AssertionError(message)

        headers = [(b"content-type", b"multipart/form-data")]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        await BodyGuard(application, LIMITS)(scope, receive, refused)
        return heard

    assert asyncio.run(run())[1]["type"] == "http.disconnect"


def test_real_connections_are_cut_while_others_go_on(
    rewards_here: Callable[..., Any], served: Callable[..., Any], json_item: Callable[..., Any]
) -> None:
    """A form that dribbles is cut at the deadline; one without end at the limit; another caller is served."""
    limits = Limits(max_body_bytes=200_000, max_image_bytes=1000, body_timeout_s=2.0)
    app = create_app(rewards_here({"jpeg": JpegScorer()}), limits=limits)
    opening = b'--b\r\ncontent-disposition: form-data; name="0"\r\ncontent-type: image/png\r\n\r\n'
    head = b"POST /v1/scores HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n"
    head += b"content-type: multipart/form-data; boundary=b\r\n\r\n"
    first = head + b"%x\r\n%s\r\n" % (len(opening), opening)
    with served(app) as url:
        address = ("127.0.0.1", httpx.URL(url).port or 0)
        with socket.create_connection(address, 30) as slow, socket.create_connection(address, 30) as endless:
            slow.sendall(first)
            endless.sendall(first + b"".join(b"4000\r\n%s\r\n" % bytes(0x4000) for _ in range(13)))
            request = {"rewards": ["jpeg"], "items": [json_item(np.zeros((8, 8, 3), np.uint8))]}
            assert httpx.post(f"{url}/v1/scores", json=request, timeout=30).status_code == 200
            assert endless.recv(4096).startswith(b"HTTP/1.1 413 ")
            assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
