"""The reward services under load: killed processes cost no item, and overload is refused at once.

The model is the benchmark's CLIP, large enough that the model, not the callers, is what is short.
"""

import asyncio
import contextlib
import json
import statistics
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from reward_services import AsyncRewardClient, Score
from reward_services.config import ServicesConfig
from reward_services.deployments import connect, deploy
from reward_services.exchange import attached, score_calls
from reward_services.http.keys import new_key
from reward_services.scorers.clip import ClipScorer
from tests.bench_rewards import draw, make_model
from tests.ports import free_port
from tests.processes import killed_under_load, replica_pids

CALLERS, IMAGES = 6, 16
PROMPT = "a red cube on a blue sphere"

# Ray leaves sockets and files of its processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default::ResourceWarning", "default::FutureWarning")


@dataclass(frozen=True)
class Service:
    """Where it is, who may call, and what it should answer."""

    url: str
    keys: dict[str, str]
    pictures: list[Any]
    exact: list[Score]

    def client(self, lane: str = "others") -> AsyncRewardClient:
        return AsyncRewardClient(self.url, api_key=self.keys[lane])

    def check(self, scores: list[Score], first: int, last: int) -> None:
        exact = [score.value for score in self.exact[first:last]]
        assert [score.value for score in scores] == pytest.approx(exact, abs=1e-3)


class Slow(BaseHTTPRequestHandler):
    """A judge's endpoint that thinks for 0.4 s."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(0.4)
        message = {"role": "assistant", "content": '{"level": "4"}'}
        body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def judge() -> Iterator[dict[str, Any]]:
    """A judge of two pictures at a time before that endpoint."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    options = {"model": "slow", "base_url": url, "answers": "json"}
    yield {"scorer": "openai_judge", "options": options, "num_cpus": 0.1, "batch": {"max_images": 2}}
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def service(judge: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One CLIP behind HTTP; few images at once, so that it fills within seconds."""
    folder = tmp_path_factory.mktemp("load")
    model = make_model(folder / "clip")
    made = {lane: new_key(lane, lane) for lane in ("train", "others")}
    (folder / "keys.yaml").write_text("\n".join(line for _, line in made.values()), encoding="utf-8")
    clip = {"scorer": "clip", "options": {"model": str(model)}, "num_cpus": 0.5, "health_check_period_s": 1}
    http = {"keys": str(folder / "keys.yaml"), "images_at_once": 64, "images_waiting": 128}
    port = free_port()
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    rewards = {"clip": clip | {"batch": {"max_images": IMAGES}}, "judge": judge}
    deploy(ServicesConfig.model_validate({"rewards": rewards, "http": http | {"port": port}}))
    pictures = draw(2 * IMAGES)
    exact = ClipScorer(str(model)).score(pictures, [PROMPT] * len(pictures))
    keys = {lane: key for lane, (key, _) in made.items()}
    yield Service(f"http://127.0.0.1:{port}", keys, pictures, exact)
    serve.shutdown()
    ray.shutdown()


@pytest.mark.parametrize("victim", ["clip", "_ingress"])
def test_a_killed_process_costs_no_item(service: Service, victim: str) -> None:
    """kill -9 while six callers have four images each under way; all go on until the service is back."""

    async def call(number: int, ends: list[float], done: asyncio.Event) -> None:
        first, last = 4 * number, 4 * number + 4
        async with service.client() as client:
            while not done.is_set():
                pictures, prompts = service.pictures[first:last], [PROMPT] * 4
                scores = await client.score(pictures, prompts, rewards=["clip"], deadline_s=120)
                service.check(scores["clip"], first, last)
                ends.append(time.monotonic())

    askers = [partial(call, number) for number in range(CALLERS)]
    calls, longest_s = asyncio.run(killed_under_load(f"ServeReplica:rewards:{victim}", askers))
    print(f"{victim}: {calls} calls of 4 images, the longest without an answer {longest_s:.1f} s")
    assert replica_pids(victim)


@pytest.mark.parametrize("way", ["handle", "http"])
def test_pictures_that_come_late_cost_the_others_nothing(service: Service, way: str) -> None:
    """24 pictures, of which the judge has time for 20 at most, beside a reward that has time for all."""

    async def run() -> dict[str, list[Score]]:
        asked = (service.pictures[:24], [PROMPT] * 24)
        if way == "handle":
            return await connect().score(*asked, rewards=["clip", "judge"], deadline_s=4.0)
        async with service.client() as client:
            return await client.score(*asked, rewards=["clip", "judge"], deadline_s=4.0)

    began = time.monotonic()
    scores = asyncio.run(run())
    took_s, judged = time.monotonic() - began, scores["judge"]
    print(f"{way}: {sum(score.ok for score in judged)} of 24 judged within {took_s:.1f} s")
    assert took_s < 4.2
    service.check(scores["clip"], 0, 24)
    assert 8 <= sum(score.ok for score in judged) <= 20
    assert {score.error.status for score in judged if score.error} == {504}


@dataclass(frozen=True)
class Answered:
    """How a request of 16 images ended."""

    status: int
    retry_after: str
    seconds: float


Request = Callable[[], Coroutine[Any, Any, Answered]]


def requests(service: Service, http: httpx.AsyncClient, lane: str) -> Request:
    """Scoring requests without any retry."""
    (call,) = score_calls(attached(service.pictures[:IMAGES]), [PROMPT] * IMAGES, ["clip"])
    headers = {**call.headers, "authorization": f"Bearer {service.keys[lane]}"}

    async def request() -> Answered:
        began = time.monotonic()
        reply = await http.post("/v1/scores", content=call.body(60.0), headers=headers)
        after = reply.headers.get("retry-after", "")
        return Answered(reply.status_code, after, time.monotonic() - began)

    return request


async def goodput(request: Request, *, callers: int, seconds: float) -> tuple[float, list[Answered]]:
    """Images a second that callers get who ask again as soon as they are answered."""
    ends = time.monotonic() + seconds
    answers: list[Answered] = []

    async def ask() -> None:
        while time.monotonic() < ends:
            answers.append(await request())

    began = time.monotonic()
    await asyncio.gather(*(ask() for _ in range(callers)))
    good = [answer for answer in answers if answer.status == 200]
    return IMAGES * len(good) / (time.monotonic() - began), answers


async def offered(request: Request, images_per_s: float, seconds: float) -> tuple[list[Answered], int]:
    """Answers to requests that come at a steady pace, whatever becomes of them; how many served in time."""
    began = time.monotonic()
    sent: list[asyncio.Task[Answered]] = []
    while (passed := time.monotonic() - began) < seconds:
        due = int(images_per_s / IMAGES * passed)
        sent += [asyncio.create_task(request()) for _ in range(due - len(sent))]
        await asyncio.sleep(0.005)
    in_time = sum(task.result().status == 200 for task in sent if task.done())
    return await asyncio.gather(*sent), in_time


@dataclass(frozen=True)
class Overload:
    """What came of it: images a second that can be served, the answers, and those to the `train` key."""

    capacity: float
    answers: list[Answered]
    trained: list[Answered]
    served_per_s: float


async def overload(service: Service, times: float, seconds: float) -> Overload:
    """Measure what can be served, ask so many times more while one caller trains, and measure again."""
    async with httpx.AsyncClient(
        base_url=service.url, timeout=60, limits=httpx.Limits(max_connections=None)
    ) as http:
        others, train = (requests(service, http, lane) for lane in ("others", "train"))
        await goodput(others, callers=4, seconds=2)
        before, _ = await goodput(others, callers=4, seconds=6)
        training = asyncio.create_task(goodput(train, callers=1, seconds=seconds))
        answers, in_time = await offered(others, times * before, seconds)
        trained_per_s, trained = await training
        after, _ = await goodput(others, callers=4, seconds=6)
    served_per_s = IMAGES * in_time / seconds + trained_per_s
    return Overload((before + after) / 2, answers, trained, served_per_s)


@pytest.mark.slow
def test_overload_is_refused_at_once_and_what_is_admitted_is_served(service: Service) -> None:
    """Four times what can be served is asked, at a steady pace; one caller has a key of the `train` lane."""
    found = asyncio.run(overload(service, times=4, seconds=15))
    served = [one for one in found.answers if one.status == 200]
    refused = [one for one in found.answers if one.status == 429]
    slowest = statistics.quantiles([one.seconds for one in refused], n=20)[-1]
    first, second = (statistics.median(one.seconds for one in group) for group in (found.trained, served))
    print(
        f"capacity {found.capacity:.0f} images/s, served {found.served_per_s:.0f} under 4 times that; "
        f"{len(refused)} of {len(found.answers)} refused, 95 % of them within {slowest:.2f} s; "
        f"median seconds of the train key {first:.2f}, of others {second:.2f}"
    )
    assert len(served) + len(refused) == len(found.answers)
    assert all(int(one.retry_after) > 0 for one in refused)
    assert all(one.status == 200 for one in found.trained)
    assert first < second
    # The aim is 0.9 of a capacity that is itself measured within 6 s, on cores that others may use.
    assert found.served_per_s > 0.75 * found.capacity
    assert slowest < 1.0


def test_the_service_is_well_afterwards(service: Service) -> None:
    async def run() -> None:
        scores = await connect().score(
            service.pictures, [PROMPT] * len(service.pictures), rewards=["clip"], deadline_s=60
        )
        service.check(scores["clip"], 0, len(service.pictures))

    asyncio.run(run())
