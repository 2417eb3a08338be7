"""What the dialects' tests share: an API of two rewards here, pictures as files, and rewards that fail."""

import asyncio
import io
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from reward_services import Limits, RewardError, RewardInfo, Rewards, Score
from reward_services.config import Http
from reward_services.http.app import create_app
from reward_services.scorers.jpeg import JpegScorer
from reward_services.scorers.verifier import VerifierScorer
from reward_services.shapes import captions, render


class Api:
    """The application with all dialects, called in process; failures are answers too."""

    def __init__(self, rewards: Rewards, *, pickle_routes: bool = True) -> None:
        http = Http(pickle_routes=pickle_routes)
        self.app = create_app(rewards, limits=Limits(max_items=8), http=http)

    def get(self, path: str) -> httpx.Response:
        return asyncio.run(self._sent("GET", path))

    def post(self, path: str, **content: Any) -> httpx.Response:
        return asyncio.run(self._sent("POST", path, **content))

    async def _sent(self, method: str, path: str, **content: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **content)


class FailingRewards:
    """A reward `jpeg` that fails as told for the items whose prompt is FAIL, or for all as one."""

    def __init__(self, error: RewardError, *, whole: bool = False) -> None:
        self._error, self._whole = error, whole

    async def describe(self, rewards: Any = None) -> list[RewardInfo]:
        return [JpegScorer().describe("jpeg", max_items=8)]

    async def score(
        self, images: Any, prompts: Sequence[str], *, rewards: Any, deadline_s: float
    ) -> dict[str, list[Score]]:
        if self._whole:
            raise self._error
        scores = [Score.failed(self._error) if prompt == "FAIL" else Score.of(1.5) for prompt in prompts]
        return {"jpeg": scores}


@pytest.fixture(scope="session")
def rewards(rewards_here: Callable[..., Any]) -> Any:
    """jpeg, which reads no prompt, and the verifier, which does."""
    return rewards_here({"jpeg": JpegScorer(), "verifier": VerifierScorer()})


@pytest.fixture(scope="session")
def api(rewards: Any) -> Api:
    """The API of these rewards."""
    return Api(rewards)


@pytest.fixture(scope="session")
def api_of() -> Callable[..., Api]:
    """Makes the API of other rewards."""
    return Api


@pytest.fixture(scope="session")
def failing_api() -> Callable[..., Api]:
    """Makes the API of a reward that fails in a way of one's choice."""

    def failing(error: RewardError, *, whole: bool = False) -> Api:
        return Api(FailingRewards(error, whole=whole))

    return failing


@pytest.fixture(scope="session")
def drawn() -> Callable[[str], NDArray[np.uint8]]:
    """Draws what a caption says: the verifier scores it 1 for that caption, and 0 for another."""
    return lambda text: render.render(captions.parse(text), np.random.default_rng(0))


@pytest.fixture(scope="session")
def file_of(drawn: Callable[[str], NDArray[np.uint8]]) -> Callable[..., bytes]:
    """What a caption says, drawn, as the bytes of a file."""

    def encoded(text: str, file_format: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(drawn(text)).save(buffer, file_format)
        return buffer.getvalue()

    return encoded
