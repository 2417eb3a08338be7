"""The outermost ASGI layer: every request has an id, echoed, in its problems, and in its line of the log.

When it came is noted, from which its deadline counts; its time and status are counted too.

The line says who asked for what and how it ended; prompts, images, queries and keys are never in it.
"""

from __future__ import annotations

import logging
import re
import time
import uuid

from reward_services.http.body_guard import App, Message, Receive, Scope, Send
from reward_services.http.metrics import Metrics

HEADER = b"x-request-id"

_GIVEN = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_log = logging.getLogger(__name__)


class RequestLog:
    """Takes the id of the header X-Request-Id where it is a plain word, else makes one.

    `echoes` is for a server of its own; where a proxy in front echoes ids already it would do so twice.
    """

    def __init__(self, app: App, metrics: Metrics, *, echoes: bool = True) -> None:
        self._app = app
        self._metrics = metrics
        self._echoes = echoes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given(dict(scope["headers"])) or uuid.uuid4().hex
        echo = [(HEADER, request_id.encode())] if self._echoes else []
        started, status = time.monotonic(), 500
        scope.setdefault("state", {}).update(request_id=request_id, echo=echo, came=started)

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *echo]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            seconds = time.monotonic() - started
            self._metrics.answered(getattr(scope.get("route"), "path", None), status, seconds)
            caller = scope["state"].get("caller")
            _log.info(
                "%s %r %d in %.1f ms, id %s, caller %s",
                scope["method"],
                scope["path"],
                status,
                1000 * seconds,
                request_id,
                caller.name if caller else "-",
            )


def _given(headers: dict[bytes, bytes]) -> str | None:
    presented = headers.get(HEADER, b"")
    return presented.decode() if _GIVEN.fullmatch(presented) else None
