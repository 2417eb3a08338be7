"""A pure ASGI layer that bounds request bodies: their type, size and how long they may take to arrive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from reward_services.errors import BodyTimeout, MediaTypeUnsupported, RewardError, TooLarge
from reward_services.schema import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class BodyGuard:
    """Reads a body completely, within limits, before the application sees the request.

    Content-Length is not trusted: what arrives is counted. What breaks a limit is answered 408, 413 or 415.
    """

    def __init__(self, app: App, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers({name.lower(): value for name, value in scope["headers"]})
            async with asyncio.timeout(self._limits.body_timeout_s):
                body = await self._read(receive)
        except TimeoutError:
            await _refuse(send, BodyTimeout(f"the body took more than {self._limits.body_timeout_s:g} s"))
        except RewardError as error:
            await _refuse(send, error)
        else:
            await self._app(scope, _replay(body, receive), send)

    def _check_headers(self, headers: dict[bytes, bytes]) -> None:
        media_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if media_type != b"application/json" or headers.get(b"content-encoding", b"identity") != b"identity":
            raise MediaTypeUnsupported("send the body as application/json, without content-encoding")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limits.max_body_bytes:
            raise self._too_large()

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limits.max_body_bytes:
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body has more than {self._limits.max_body_bytes} bytes; send fewer items")


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


async def _refuse(send: Send, error: RewardError) -> None:
    body = json.dumps(error.problem().model_dump()).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
