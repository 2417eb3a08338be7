"""Both clients against the real application: the same scores, typed errors, deadlines and retries."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from reward_services import (
    AsyncRewardClient,
    ConfigInvalid,
    DeadlineExceeded,
    KeyInvalid,
    RewardClient,
    RewardInfo,
    RewardUnknown,
    Score,
    ServerUnreachable,
)
from reward_services.config import Http
from reward_services.http.app import create_app
from reward_services.http.keys import new_key
from reward_services.scorers.jpeg import JpegScorer
from reward_services.scorers.verifier import VerifierScorer
from tests.ports import free_port

Draw = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def rewards(rewards_here: Callable[..., Any]) -> Any:
    return rewards_here({"jpeg": JpegScorer(), "verifier": VerifierScorer()})


def test_the_async_client_scores_as_the_rewards_do(rewards: Any, draw: Draw) -> None:
    async def run() -> tuple[list[RewardInfo], dict[str, list[Score]]]:
        transport = httpx.ASGITransport(create_app(rewards))
        async with AsyncRewardClient("http://test", transport=transport) as client:
            scores = await client.score(images, prompts, rewards=["verifier", "jpeg"], deadline_s=20)
            return await client.describe(), scores

    images, prompts = draw(70), ["a red circle"] * 69 + ["an astronaut"]
    infos, scores = asyncio.run(run())
    assert [info.id for info in infos] == ["jpeg", "verifier"]
    for name in ("verifier", "jpeg"):
        assert scores[name] == rewards.scorers[name].score(images, prompts)
    assert [score.ok for score in scores["verifier"]] == [True] * 69 + [False]


def test_a_client_asks_about_all_rewards_or_some(rewards: Any, served: Any) -> None:
    async def run(url: str) -> None:
        async with AsyncRewardClient(url) as client:
            assert [info.id for info in await client.describe(["verifier"])] == ["verifier"]
            with pytest.raises(RewardUnknown, match="did you mean 'jpeg'"):
                await client.describe(["jpeg", "jpg"])

    with served(create_app(rewards)) as url:
        asyncio.run(run(url))
        with RewardClient(url) as client:
            assert client.describe(["verifier", "jpeg"]) == client.describe()[::-1]
            with pytest.raises(RewardUnknown):
                client.describe(["a/b ü"])


def test_errors_arrive_as_what_they_were(rewards: Any, draw: Draw) -> None:
    async def run() -> None:
        transport = httpx.ASGITransport(create_app(rewards))
        async with AsyncRewardClient("http://test", transport=transport) as client:
            await client.score(draw(1), ["a"], rewards=["jpg"], deadline_s=5)

    with pytest.raises(RewardUnknown, match="did you mean 'jpeg'"):
        asyncio.run(run())


class Moody(BaseHTTPRequestHandler):
    """A server that answers with the next of the statuses it was told, and good news afterwards."""

    statuses: list[int]
    delay_s: float
    paths: list[str]

    def do_GET(self) -> None:
        type(self).paths.append(f"{self.path} {self.headers.get('authorization', '')}".strip())
        time.sleep(self.delay_s)
        status = self.statuses.pop(0) if self.statuses else 200
        body = b'{"data":[],"limits":{}}' if status == 200 else b"Internal Server Error"
        self.send_response(status)
        self.send_header("retry-after", "0")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def moody() -> Iterator[Callable[..., tuple[str, list[str]]]]:
    servers: list[ThreadingHTTPServer] = []

    def start(*statuses: int, delay_s: float = 0.0) -> tuple[str, list[str]]:
        paths: list[str] = []
        kind = type("Mood", (Moody,), {"statuses": list(statuses), "delay_s": delay_s, "paths": paths})
        server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", paths

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_blocking_client_retries_a_dead_replica(moody: Callable[..., tuple[str, list[str]]]) -> None:
    url, paths = moody(500, 503)
    with RewardClient(url) as client:
        assert client.describe() == []
    assert len(paths) == 3


def test_the_async_client_retries_a_dead_replica(moody: Callable[..., tuple[str, list[str]]]) -> None:
    async def run(url: str) -> list[RewardInfo]:
        async with AsyncRewardClient(url) as client:
            return await client.describe()

    url, paths = moody(429, 408)
    assert asyncio.run(run(url)) == []
    assert len(paths) == 3


def test_a_slow_server_meets_the_deadline(moody: Callable[..., tuple[str, list[str]]], draw: Draw) -> None:
    async def run(url: str) -> None:
        async with AsyncRewardClient(url) as client:
            await client._reply(CALL, 0.2)

    from reward_services.client import _LIST as CALL

    url, _ = moody(delay_s=10.0)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        asyncio.run(run(url))
    with RewardClient(url) as client, pytest.raises(DeadlineExceeded):
        client._reply(CALL, 0.2)
    assert time.monotonic() - began < 9


class Late:
    """Rewards of one, jpeg, that answer at the very end of their time: of each call one image is scored.

    Or as soon as this many calls are there.
    """

    def __init__(self, together: int = 0) -> None:
        self.calls, self._together = 0, asyncio.Barrier(together) if together else None

    async def describe(self, rewards: Any = None) -> list[RewardInfo]:
        return [JpegScorer().describe("jpeg", max_items=8)]

    async def score(self, images: Any, prompts: Any, *, rewards: Any, deadline_s: float) -> Any:
        self.calls += 1
        await (self._together.wait() if self._together else asyncio.sleep(deadline_s))
        late = [Score.failed(DeadlineExceeded())] * (len(prompts) - 1)
        return {"jpeg": [*JpegScorer().score(images[:1], prompts[:1]), *late]}


def test_what_is_scored_in_time_arrives_in_time(served: Any, draw: Draw) -> None:
    """The server is told a little less than the client waits, and is not asked again in what is left."""

    async def run(url: str) -> list[Score]:
        async with AsyncRewardClient(url) as client:
            return (await client.score(draw(3), [""] * 3, rewards=["jpeg"], deadline_s=3.0))["jpeg"]

    def blocking(url: str) -> list[Score]:
        with RewardClient(url) as client:
            return client.score(draw(3), [""] * 3, rewards=["jpeg"], deadline_s=3.0)["jpeg"]

    late = Late()
    with served(create_app(late)) as url:
        for ask in (blocking, lambda url: asyncio.run(run(url))):
            began = time.monotonic()
            assert [score.ok for score in ask(url)] == [True, False, False]
            assert 2.0 < time.monotonic() - began < 3.0
    assert late.calls == 2


async def answered(url: str, draw: Draw, *deadlines_s: float, **options: Any) -> bool:
    """Whether one client's requests, made all at once, were scored in their times."""
    async with AsyncRewardClient(url, **options) as client:
        asked = [client.score(draw(1), [""], rewards=["jpeg"], deadline_s=one) for one in deadlines_s]
        return all(scores["jpeg"][0].ok for scores in await asyncio.gather(*asked))


def test_requests_that_wait_to_be_sent_tell_what_is_left(served: Any, draw: Draw) -> None:
    """Six requests, four at once: the last two are sent when the first have been answered."""
    with served(create_app(Late())) as url:
        assert asyncio.run(answered(url, draw, 5.0, 5.0, 5.0, 5.0, 10.0, 10.0))


def test_as_many_requests_go_at_once_as_one_says(served: Any, draw: Draw) -> None:
    with served(create_app(Late(together=6))) as url:
        assert asyncio.run(answered(url, draw, *[30.0] * 6, requests_at_once=6))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # connections of a loop that is closed
def test_a_client_may_be_used_by_one_event_loop_after_another(rewards: Any, served: Any, draw: Draw) -> None:
    async def ask(client: AsyncRewardClient) -> list[Score]:
        asked = [client.score(draw(1), [""], rewards=["jpeg"]) for _ in range(6)]
        return [score for scores in await asyncio.gather(*asked) for score in scores["jpeg"]]

    with served(create_app(rewards)) as url:
        client = AsyncRewardClient(url)
        for _ in range(3):
            assert all(score.ok for score in asyncio.run(ask(client)))
        del client
        gc.collect()


def test_a_key_goes_with_every_request(moody: Callable[..., tuple[str, list[str]]]) -> None:
    async def run() -> None:
        async with AsyncRewardClient(url, api_key="one") as client:
            await client.describe()

    url, paths = moody()
    asyncio.run(run())
    with RewardClient(url, api_key="two") as client:
        client.describe()
    assert paths == ["/v1/rewards Bearer one", "/v1/rewards Bearer two"]


@pytest.mark.parametrize("client", [RewardClient, AsyncRewardClient])
def test_no_address_and_no_key_are_typed_errors(client: Any) -> None:
    for url in ("http://rewards:port", "http://[::1"):
        with pytest.raises(ConfigInvalid, match="is no address of a reward server"):
            client(url)
    for key in ("rk_abc\n", "schlüssel"):
        with pytest.raises(ConfigInvalid, match=r"^a key is of printable ASCII characters; copy it anew$"):
            client(api_key=key)


def test_a_body_that_cannot_be_decoded_is_a_typed_error() -> None:
    gzip = {"content-encoding": "gzip"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=gzip, content=b"{}"))
    with RewardClient(transport=transport, retries=0) as client, pytest.raises(ServerUnreachable):
        client.describe()
    with pytest.raises(ServerUnreachable):
        asyncio.run(AsyncRewardClient(transport=transport, retries=0).describe())


def test_nobody_there() -> None:
    with (
        RewardClient(f"http://127.0.0.1:{free_port()}", retries=1) as client,
        pytest.raises(ServerUnreachable, match="is it running"),
    ):
        client.describe()


def test_a_picture_of_each_kind_scores_the_same(rewards: Any, draw: Draw, tmp_path: Any) -> None:
    from PIL import Image

    async def run() -> list[Score]:
        transport = httpx.ASGITransport(create_app(rewards))
        async with AsyncRewardClient("http://test", transport=transport) as client:
            return (await client.score(pictures, ["a"] * 5, rewards=["jpeg"]))["jpeg"]

    array = draw(1)[0]
    path = tmp_path / "picture.png"
    Image.fromarray(array).save(path, compress_level=1)
    pictures: list[Any] = [array, Image.fromarray(array), path, str(path), path.read_bytes()]
    assert asyncio.run(run()) == rewards.scorers["jpeg"].score([array], ["a"]) * 5


def test_a_key_opens_and_its_quota_is_waited_for(rewards: Any, draw: Draw, tmp_path: Any) -> None:
    """Two images a second, and a minute's worth at first: the last eight are told to come seconds later."""

    async def run(api_key: str | None) -> float:
        async with AsyncRewardClient("http://test", api_key=api_key, transport=transport) as client:
            await client.score(draw(119, size=8), ["a"] * 119, rewards=["jpeg"])
            began = time.monotonic()
            scores = await client.score(draw(8, size=8), ["a"] * 8, rewards=["jpeg"])
            assert all(score.ok for score in scores["jpeg"])
            return time.monotonic() - began

    key, line = new_key("mine", images_per_minute=120)
    (tmp_path / "keys.yaml").write_text(line, encoding="utf-8")
    transport = httpx.ASGITransport(create_app(rewards, http=Http(keys=str(tmp_path / "keys.yaml"))))
    with pytest.raises(KeyInvalid, match="Authorization: Bearer"):
        asyncio.run(run(None))
    with pytest.raises(KeyInvalid):
        asyncio.run(run(key + "x"))
    assert 1.0 <= asyncio.run(run(key)) < 30.0
