"""A pure ASGI layer that asks for a key before anything of a request is read.

What it does not know is closed: a route added later needs a key unless it is listed here.
"""

from __future__ import annotations

import base64

from reward_services.errors import PROBLEM_PREFIX, KeyInvalid, NotPermitted, RewardError
from reward_services.http.body_guard import App, Receive, Scope, Send
from reward_services.http.keys import ANYONE, Caller, Keys, is_loopback
from reward_services.http.page import STATIC_PREFIX
from reward_services.http.problems import refusal

OPEN = frozenset(
    {"/", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs", "/redoc"}
)
"""Routes that answer anyone, as problem types and the page's files do: probes carry no keys, the page and the
documentation hold no data."""


class Gate:
    """Leaves the caller in the request's state, or answers 401.

    Without keys only this machine's own callers are let in, whatever address the server listens on.
    """

    def __init__(self, app: App, keys: Keys | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] == "http" and not is_open(scope["path"]):
            try:
                caller = self._caller(scope)
            except RewardError as error:
                await refusal(error, scope)(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller:
        if self._keys is None:
            host, *_ = scope.get("client") or ("",)
            if not is_loopback(host):
                raise NotPermitted("this server has no keys and answers its own machine only; set http.keys")
            return ANYONE
        presented = _presented(dict(scope["headers"]).get(b"authorization", b""))
        caller = self._keys.find(presented) if presented is not None else None
        if caller is None:
            raise KeyInvalid("send `Authorization: Bearer KEY` with a key that this server knows")
        return caller


def _presented(authorization: bytes) -> bytes | None:
    """A bearer's key, or else the password of http://any:KEY@host: some clients can be told no more."""
    scheme, _, rest = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    try:
        _, colon, password = base64.b64decode(rest.strip(), validate=True).partition(b":")
    except ValueError:
        return None
    return password if scheme.lower() == b"basic" and colon else None


def is_open(path: str) -> bool:
    """Whether a path answers without a key."""
    return path in OPEN or path.startswith((PROBLEM_PREFIX, STATIC_PREFIX))
