"""Request ids: taken where they are plain words, else made; echoed, and in the line that a request leaves."""

import asyncio
import logging
import re
from typing import Any

import httpx
import pytest

from reward_services.http.keys import Caller
from reward_services.http.lanes import Lanes
from reward_services.http.metrics import Metrics
from reward_services.http.request_log import RequestLog


async def teapot(scope: Any, receive: Any, send: Any) -> None:
    scope["state"]["caller"] = Caller(name="alice")
    await send({"type": "http.response.start", "status": 418, "headers": [(b"x-tea", b"green")]})
    await send({"type": "http.response.body", "body": scope["state"]["request_id"].encode()})


async def broken(scope: Any, receive: Any, send: Any) -> None:
    raise KeyError


def get(
    headers: dict[str, str] | None = None, path: str = "/tea", *, app: Any = teapot, echoes: bool = True
) -> httpx.Response:
    async def sent() -> httpx.Response:
        transport = httpx.ASGITransport(
            RequestLog(app, Metrics(Lanes()), echoes=echoes), raise_app_exceptions=False
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(sent())


def test_a_given_id_is_taken_and_echoed() -> None:
    response = get({"X-Request-Id": "run-7.4"})
    assert response.headers["x-request-id"] == response.text == "run-7.4"
    assert response.headers["x-tea"] == "green"


@pytest.mark.parametrize(
    "given", [{}, {"x-request-id": ""}, {"x-request-id": "a b"}, {"x-request-id": "a" * 129}]
)
def test_any_other_is_made(given: dict[str, str]) -> None:
    ids = {get(given).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_a_request_leaves_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "reward_services")
    get({"x-request-id": "r1", "authorization": "Bearer secret"}, "/tea%0Aforged line?key=secret")
    get(app=broken)
    first, second = (record.getMessage() for record in caplog.records if "reward_services" in record.name)
    assert re.fullmatch(r"GET '/tea\\nforged line' 418 in [\d.]+ ms, id r1, caller alice", first)
    assert re.fullmatch(r"GET '/tea' 500 in [\d.]+ ms, id [0-9a-f]{32}, caller -", second)


def test_behind_a_proxy_that_echoes_it_is_not_echoed_twice() -> None:
    response = get({"x-request-id": "r1"}, echoes=False)
    assert response.text == "r1"
    assert "x-request-id" not in response.headers
