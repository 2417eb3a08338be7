"""Clients of the HTTP API, async and sync: deadline, bounded retry, typed errors; neither torch nor Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote

import httpx

from reward_services.errors import ConfigInvalid, DeadlineExceeded, RewardError, ServerUnreachable
from reward_services.exchange import (
    Ask,
    Call,
    Pause,
    Reply,
    Send,
    attached,
    exchange,
    parsed,
    scoring,
)
from reward_services.images import Picture
from reward_services.rewards import check_batch, told_s
from reward_services.schema import RewardInfo, RewardList, Score

DEFAULT_URL = "http://127.0.0.1:8000"

Step = TypeVar("Step", Send, Ask)
Result = TypeVar("Result")

_LIST = Call("GET", "/v1/rewards")
_DESCRIBE_DEADLINE_S = 15.0


class _Opened(NamedTuple):
    """What belongs to an event loop: another one, as of a second `asyncio.run`, can use nothing of it."""

    loop: asyncio.AbstractEventLoop
    http: httpx.AsyncClient
    sending: asyncio.Semaphore


class AsyncRewardClient:
    """Scores over HTTP; a `Rewards`. Use it as an async context manager, or call `aclose`.

    `retries` is how often a request is sent again after 408, 429, 500, 502 to 504 or a lost connection, with
    Retry-After honoured, and how often items are that failed alone for a reason which may pass. At most
    `requests_at_once` are under way, of up to 64 images or 32 MiB each; others wait. Arrays, files and
    encoded bytes go over the wire as they are. `api_key` is sent as a bearer token.
    Until its first use a client can be sent to another process.

    Raises:
        ConfigInvalid: `url` is no address, or `api_key` no key.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        retries: int = 4,
        requests_at_once: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url, self._headers, self._transport = _checked(url), bearer(api_key), transport
        self._retries, self._at_once = retries, requests_at_once
        self._opened: _Opened | None = None

    @property
    def _here(self) -> _Opened:
        loop = asyncio.get_running_loop()
        if self._opened is None or self._opened.loop is not loop:
            http = httpx.AsyncClient(
                base_url=self._url, headers=self._headers, transport=self._transport, timeout=None
            )
            self._opened = _Opened(loop, http, asyncio.Semaphore(self._at_once))
        return self._opened

    async def describe(self, rewards: Collection[str] | None = None) -> list[RewardInfo]:
        """What the server offers, all of it that has ever answered, or these rewards."""
        if rewards is None:
            return list((await self.listed()).data)
        replies = await asyncio.gather(
            *(self._reply(_describing(name), _DESCRIBE_DEADLINE_S) for name in rewards)
        )
        return [parsed(RewardInfo, reply) for reply in replies]

    async def listed(self) -> RewardList:
        """What the server offers, what has never answered, and the limits of a request."""
        return parsed(RewardList, await self._reply(_LIST, _DESCRIBE_DEADLINE_S))

    async def score(
        self,
        images: Sequence[Picture],
        prompts: Sequence[str],
        *,
        rewards: Sequence[str],
        deadline_s: float = 30.0,
    ) -> dict[str, list[Score]]:
        """As `Rewards.score`; images may be arrays, tensors, PIL images, encoded bytes or paths."""
        check_batch(images, prompts, rewards)
        pictures = await asyncio.to_thread(attached, images)
        steps = scoring(pictures, prompts, rewards, deadline_s=deadline_s, retries=self._retries)
        return await exchanged(steps, self._replies)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._here.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _replies(self, ask: Ask) -> Sequence[Reply | RewardError]:
        outcomes = await asyncio.gather(
            *(self._reply(call, ask.left_s) for call in ask.calls), return_exceptions=True
        )
        return [_raised(outcome) for outcome in outcomes]

    async def _reply(self, call: Call, deadline_s: float) -> Reply:
        return await exchanged(exchange(deadline_s, self._retries), partial(self._sent, call))

    async def _sent(self, call: Call, step: Send) -> Reply | RewardError:
        ends, here = time.monotonic() + step.left_s, self._here
        try:
            async with asyncio.timeout(step.left_s), here.sending:
                body = call.body(told_s(ends - time.monotonic()))
                response = await here.http.request(call.method, call.path, content=body, headers=call.headers)
        except TimeoutError:
            return _late(step.left_s)
        except httpx.RequestError as error:
            return _lost(error)
        return _reply(response)


async def exchanged(
    steps: Generator[Step | Pause, Any, Result], act: Callable[[Step], Awaitable[Any]]
) -> Result:
    """Carry out the steps of an `exchange` or a `scoring`; what `act` returns of a step is sent back to it.

    Raises:
        RewardError: as they do.
    """
    outcome: Any = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as finished:
            result: Result = finished.value
            return result
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            outcome = None
        else:
            outcome = await act(step)


def _exchanged(steps: Generator[Step | Pause, Any, Result], act: Callable[[Step], Any]) -> Result:
    """The blocking twin of `exchanged`."""
    outcome: Any = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as finished:
            result: Result = finished.value
            return result
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            outcome = None
        else:
            outcome = act(step)


class RewardClient:
    """The blocking twin of `AsyncRewardClient`. Use it as a context manager, or call `close`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._retries = retries
        self._http = httpx.Client(base_url=_checked(url), headers=bearer(api_key), transport=transport)

    def describe(self, rewards: Collection[str] | None = None) -> list[RewardInfo]:
        """As `AsyncRewardClient.describe`."""
        if rewards is None:
            return list(self.listed().data)
        replies = [self._reply(_describing(name), _DESCRIBE_DEADLINE_S) for name in rewards]
        return [parsed(RewardInfo, reply) for reply in replies]

    def listed(self) -> RewardList:
        """As `AsyncRewardClient.listed`."""
        return parsed(RewardList, self._reply(_LIST, _DESCRIBE_DEADLINE_S))

    def score(
        self,
        images: Sequence[Picture],
        prompts: Sequence[str],
        *,
        rewards: Sequence[str],
        deadline_s: float = 30.0,
    ) -> dict[str, list[Score]]:
        """As `AsyncRewardClient.score`."""
        check_batch(images, prompts, rewards)
        pictures = attached(images)
        steps = scoring(pictures, prompts, rewards, deadline_s=deadline_s, retries=self._retries)
        return _exchanged(steps, self._replies)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _replies(self, ask: Ask) -> Sequence[Reply | RewardError]:
        ends = time.monotonic() + ask.left_s
        return [self._outcome(call, max(ends - time.monotonic(), 0.001)) for call in ask.calls]

    def _outcome(self, call: Call, deadline_s: float) -> Reply | RewardError:
        try:
            return self._reply(call, deadline_s)
        except RewardError as error:
            return error

    def _reply(self, call: Call, deadline_s: float) -> Reply:
        return _exchanged(exchange(deadline_s, self._retries), partial(self._sent, call))

    def _sent(self, call: Call, step: Send) -> Reply | RewardError:
        left_s = step.left_s
        body = call.body(told_s(left_s))
        try:
            response = self._http.request(
                call.method, call.path, content=body, headers=call.headers, timeout=left_s
            )
        except (httpx.ReadTimeout, httpx.WriteTimeout):
            return _late(left_s)
        except httpx.RequestError as error:
            return _lost(error)
        return _reply(response)


def _describing(reward: str) -> Call:
    return Call("GET", f"/v1/rewards/{quote(reward, safe='')}")


def _checked(url: str) -> str:
    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigInvalid(f"{url!r} is no address of a reward server: {error}") from None
    return url


def bearer(api_key: str | None) -> dict[str, str]:
    """The header that a key is sent in, none without; raises `ConfigInvalid` for what no header can hold."""
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise ConfigInvalid("a key is of printable ASCII characters; copy it anew")
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def _reply(response: httpx.Response) -> Reply:
    after = response.headers.get("retry-after", "")
    return Reply(str(response.url), response.status_code, after, response.content)


def _raised(outcome: Reply | BaseException) -> Reply | RewardError:
    """The outcome, unless it is a bug."""
    if not isinstance(outcome, Reply | RewardError):
        raise outcome
    return outcome


def _late(left_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"no answer within {left_s:.1f} s; allow more time or send fewer images")


def _lost(error: httpx.RequestError) -> ServerUnreachable:
    return ServerUnreachable(
        f"cannot reach the reward server ({error or type(error).__name__}); is it running, is the URL right?"
    )
