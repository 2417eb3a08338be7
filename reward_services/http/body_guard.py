"""A pure ASGI layer that bounds request bodies: their type, size and how long they may take to arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from reward_services.errors import BodyTimeout, MediaTypeUnsupported, RewardError, TooLarge
from reward_services.http.json_values import check_values
from reward_services.http.problems import refusal
from reward_services.schema import Limits

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_JSON, _FORM = b"application/json", b"multipart/form-data"
_UNTYPED = (b"", b"application/octet-stream")
_MOST_DIGITS = 18


class BodyGuard:
    """Lets the application see a body only as far as it keeps to the limits.

    Content-Length is not trusted: what arrives is counted. A body is read completely before the application
    begins, and what breaks a limit is answered 408, 413 or 415. A multipart form is passed on as it arrives,
    for the application to bound its parts too; then it is the application's `receive` that raises, as where
    no body belongs or none is announced: there the route knows what to answer.

    `untyped` are the beginnings of paths whose clients send bytes, or do not say what they send.
    """

    def __init__(self, app: App, limits: Limits, untyped: tuple[str, ...] = ()) -> None:
        self._app = app
        self._limits = limits
        self._untyped = untyped

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            await self._app(scope, receive, send)
            return
        bounded = _bounded(receive, self._limits)
        # Of several headers the first counts, as it does for the application.
        headers = {name.lower(): value for name, value in reversed(list(scope["headers"]))}
        if scope["method"] != "POST" or not _is_announced(headers):
            await self._app(scope, bounded, send)
            return
        try:
            media_type = self._checked_type(headers, scope["path"])
            if media_type != _FORM:
                body = await _whole(bounded)
                if media_type == _JSON:
                    check_values(body, self._limits)
                bounded = _replay(body, receive)
        except RewardError as error:
            await refusal(error, scope)(scope, receive, send)
        else:
            await self._app(scope, bounded, send)

    def _checked_type(self, headers: dict[bytes, bytes], path: str) -> bytes:
        media_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        is_read = media_type in {_JSON, *(_UNTYPED if path.startswith(self._untyped) else (_FORM,))}
        if not is_read or headers.get(b"content-encoding", b"identity") != b"identity":
            raise MediaTypeUnsupported(
                "send the body as application/json or multipart/form-data, without content-encoding"
            )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > _MOST_DIGITS or int(length) > self._limits.max_body_bytes:
            raise _too_large(self._limits)
        return media_type


def _is_announced(headers: dict[bytes, bytes]) -> bool:
    length = headers.get(b"content-length", b"0")
    return length != b"0" or b"transfer-encoding" in headers or b"content-type" in headers


def _bounded(receive: Receive, limits: Limits) -> Receive:
    """`receive` that raises `TooLarge` or `BodyTimeout` once the body is beyond the limits."""
    ends = asyncio.get_running_loop().time() + limits.body_timeout_s
    size, more = 0, True

    async def bounded() -> Message:
        nonlocal size, more
        try:
            # After the body comes only the news of a lost connection, for which there is all the time.
            async with asyncio.timeout_at(ends if more else None):
                message = await receive()
        except TimeoutError as error:
            raise BodyTimeout(f"the body took more than {limits.body_timeout_s:g} s") from error
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        if size > limits.max_body_bytes:
            raise _too_large(limits)
        return message

    return bounded


async def _whole(receive: Receive) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


def _too_large(limits: Limits) -> TooLarge:
    return TooLarge(f"the body has more than {limits.max_body_bytes} bytes; send fewer items")


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
