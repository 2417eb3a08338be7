"""RAY. A full disk; a reward that scales to zero and back; what Ray raises becomes a typed error."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from ray import serve
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from reward_services import (
    Overloaded,
    ReplicaFailed,
    ReplicaLost,
    RewardError,
    RewardNotReady,
    RewardUnavailable,
    ScoringFailed,
)
from reward_services.config import ServicesConfig
from reward_services.deployments import connect, deploy, deployed_for_run
from reward_services.handles import ServeRewards, _reward_error
from reward_services.http.app import create_app
from reward_services.merging import MergedRewards
from reward_services.ownership import own_application
from reward_services.scorers.jpeg import JpegScorer
from tests.processes import pids_titled

Draw = Callable[..., list[Any]]

# Ray leaves sockets and files of its processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default::ResourceWarning", "default::FutureWarning")

SLEEPY = {"min_replicas": 0, "look_back_period_s": 11, "upscale_delay_s": 0, "downscale_delay_s": 1}


@pytest.fixture
def crowded() -> Iterator[ServeRewards]:
    """Rewards by an object store of 80 MB that may not spill: for Ray the disk is full at a thousandth."""
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80_000_000,
        log_to_driver=False,
        _system_config={"local_fs_capacity_threshold": 0.001, "local_fs_monitor_interval_ms": 10},
    )
    served = {"jpeg": {"scorer": "jpeg", "num_cpus": 0.1}}
    deploy(ServicesConfig.model_validate({"rewards": served, "http": None}))
    yield connect()
    serve.shutdown()
    ray.shutdown()


def test_a_full_disk_is_told_at_once_and_passes(crowded: ServeRewards, draw: Draw) -> None:
    """What Ray raises for want of room is a failure that may pass, also to who merges calls before it."""

    async def run() -> None:
        began = time.monotonic()
        filling: Any = ray.put(np.zeros(60_000_000, np.uint8))
        for rewards in (crowded, MergedRewards(crowded, calls_at_once=2)):
            with pytest.raises(RewardUnavailable, match="object store"):
                await rewards.score(pictures, prompts, rewards=["jpeg"], deadline_s=60)
        assert time.monotonic() - began < 30
        del filling
        scores = await crowded.score(pictures, prompts, rewards=["jpeg"], deadline_s=60)
        assert scores["jpeg"] == JpegScorer().score(pictures, prompts)

    pictures = draw(10, size=1024)
    prompts = [""] * len(pictures)
    asyncio.run(run())


@pytest.fixture(scope="module")
def rewards() -> Iterator[ServeRewards]:
    ray.init(
        "local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False
    )
    one = {"scorer": "jpeg", "num_cpus": 0.1}
    served = {"awake": one, "sleepy": one | {"autoscaling": SLEEPY}}
    with deployed_for_run(ServicesConfig.model_validate({"rewards": served})) as own:
        assert own
        yield connect()
    assert serve.status().applications == {}
    serve.shutdown()
    ray.shutdown()


def replicas(name: str) -> int:
    return sum(serve.status().applications[own_application()].deployments[name].replica_states.values())


def until_asleep() -> None:
    ends = time.monotonic() + 90
    while replicas("sleepy"):
        assert time.monotonic() < ends, serve.status()
        time.sleep(0.2)


async def until_known(rewards: ServeRewards) -> None:
    """Asked for the first time, one that sleeps already is woken, and answers when it is up."""
    async with asyncio.timeout(60):
        while len(rewards._known) < 2:
            with contextlib.suppress(RewardNotReady):
                await rewards.describe()


def test_replicas_answer_while_serves_controller_does_not(rewards: ServeRewards, draw: Draw) -> None:
    """It is gone with the head of a cluster; replicas are not, and what is served is known."""

    async def run() -> None:
        await until_known(rewards)
        os.kill(controller, signal.SIGSTOP)
        try:
            for _ in range(2):
                rewards._asked_at = -float("inf")
                async with asyncio.timeout(10):
                    assert {info.id for info in await rewards.describe()} == {"awake", "sleepy"}
            scores = await rewards.score(draw(2), [""] * 2, rewards=["awake"], deadline_s=10)
        finally:
            os.kill(controller, signal.SIGCONT)
        assert scores["awake"] == JpegScorer().score(draw(2), [""] * 2)

    (controller,) = pids_titled("ServeController")
    asyncio.run(run())


def test_a_reward_that_never_answers_keeps_nobody_from_the_others(
    rewards: ServeRewards, draw: Draw, json_item: Callable[..., Any]
) -> None:
    """As after it was served again with a mistake: an endpoint that has started since knows the others."""

    async def run() -> None:
        gone: Any = DeploymentHandle("gone", own_application())
        served = MergedRewards(ServeRewards({**rewards._handles, "gone": gone}), calls_at_once=1)
        transport = httpx.ASGITransport(create_app(served, names=["awake", "gone"]))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def status(*names: str) -> int:
                asked = {"rewards": names, "items": [json_item(*draw(1))], "options": {"deadline_ms": 9000}}
                return (await client.post("/v1/scores", json=asked)).status_code

            assert [await status("awake"), await status("gone"), await status("gnoe")] == [200, 503, 404]
            assert await status("awake", "gone") == 503
            began = time.monotonic()
            assert await status("awake") == 200
            assert time.monotonic() - began < 1
            places = ("/v1/rewards/awake", "/v1/rewards/gone", "/readyz", "/v2/models/awake/ready")
            assert [(await client.get(place)).status_code for place in places] == [200, 503, 503, 200]
            listed = (await client.get("/v1/rewards")).json()
            assert [info["id"] for info in listed["data"]] == ["awake"]
            assert "reward gone does not answer yet" in listed["missing"]["gone"]["detail"]
            load = (await client.get("/v1/load")).json()
            assert [of_reward["id"] for of_reward in load["data"]] == ["awake", "gone"]

    asyncio.run(until_known(rewards))
    asyncio.run(run())


def test_to_zero_and_back(rewards: ServeRewards, draw: Draw) -> None:
    """Asking what is served neither wakes a reward nor calls it unready; scoring wakes it in time."""

    async def ready() -> dict[str, bool]:
        rewards._asked_at = -float("inf")
        return {info.id: info.ready for info in await rewards.describe()}

    async def score() -> None:
        scores = await rewards.score(draw(2), [""] * 2, rewards=["sleepy", "awake"], deadline_s=60)
        exact = JpegScorer().score(draw(2), [""] * 2)
        assert scores == {"sleepy": exact, "awake": exact}

    asyncio.run(until_known(rewards))
    until_asleep()
    assert asyncio.run(ready()) == {"awake": True, "sleepy": True}
    time.sleep(2)
    assert (replicas("sleepy"), replicas("awake")) == (0, 1)
    asyncio.run(score())
    assert replicas("sleepy") == 1


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (RayTaskError("f", "trace", ScoringFailed("of the model")), ScoringFailed),
        (RayTaskError("f", "trace", ValueError("a bug")), ReplicaFailed),
        (BackPressureError(num_queued_requests=9, max_queued_requests=8), Overloaded),
        (ActorDiedError(), ReplicaLost),
        (ObjectLostError("0", b"", ""), ReplicaLost),
    ],
)
def test_what_ray_raises_is_typed(raised: Exception, error: type[RewardError]) -> None:
    assert type(_reward_error("mine", raised)) is error


def test_a_deployment_that_is_gone_is_not_ready() -> None:
    gone = DeploymentUnavailableError(DeploymentID(name="mine", app_name="rewards"))
    assert isinstance(_reward_error("mine", gone), RewardNotReady)
