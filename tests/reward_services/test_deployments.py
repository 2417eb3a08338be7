"""RAY. Real deployments on a real cluster: exact scores, batching, poison, kill -9, what never comes up."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from ray import serve

from reward_services import AsyncRewardClient, RewardNotReady, Rewards, RewardUnknown, Score
from reward_services.config import ServicesConfig
from reward_services.deployments import connect, deploy
from reward_services.handles import ServeRewards
from reward_services.http.keys import new_key
from reward_services.scorers.clip import ClipScorer
from reward_services.scorers.jpeg import JpegScorer
from tests.ports import free_port
from tests.processes import replica_pids
from trainer.coordinator import Coordinator
from trainer.pace import Pace

Draw = Callable[..., list[Any]]

ROOT = Path(__file__).parents[2]
WAIT_S = 1.5

# Ray leaves sockets and files of its processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default::ResourceWarning", "default::FutureWarning")


def configuration(model: str, port: int, keys: Path, **options: Any) -> ServicesConfig:
    light = {"num_cpus": 0.1, "health_check_period_s": 1.0}
    patient = {"batch": {"max_images": 8, "wait_ms": 1000 * WAIT_S}}
    rewards = {
        "jpeg": {"scorer": "jpeg", **light, "resources": {"kind": 0.5}},
        "clip": {
            "scorer": "clip",
            "options": {"model": model, **options},
            **light,
            "batch": {"max_images": 32},
        },
        "patient": {"scorer": "jpeg", **light, **patient},
    }
    return ServicesConfig.model_validate({"rewards": rewards, "http": {"port": port, "keys": str(keys)}})


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the file of keys lies."""
    return tmp_path_factory.mktemp("keys") / "keys.yaml"


@pytest.fixture(scope="module")
def api_key(keys: Path) -> str:
    key, line = new_key("tests", "train")
    keys.write_text(line, encoding="utf-8")
    return key


@pytest.fixture(scope="module")
def rewards(tiny_clip: Path, port: int, keys: Path, api_key: str) -> Iterator[ServeRewards]:
    """Three rewards behind HTTP on two CPUs."""
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    ray.init("local", num_cpus=2, resources={"kind": 1}, object_store_memory=300_000_000, **options)
    with pytest.raises(RewardNotReady, match="start them with"):
        connect()
    deploy(configuration(str(tiny_clip), port, keys))
    assert ray.available_resources()["kind"] == 0.5, "the replica of jpeg has the rest"
    yield connect()
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> ClipScorer:
    return ClipScorer(str(tiny_clip))


def close(scores: list[Score], exact: list[Score]) -> None:
    assert [score.value for score in scores] == pytest.approx([score.value for score in exact], abs=1e-4)


def test_handles_give_the_scores_of_the_scorers(rewards: ServeRewards, clip: ClipScorer, draw: Draw) -> None:
    async def run() -> None:
        scores = await rewards.score(images, prompts, rewards=["clip", "jpeg"], deadline_s=30)
        close(scores["clip"], clip.score(images, prompts))
        assert scores["jpeg"] == JpegScorer().score(images, prompts)
        infos = {info.id: info for info in await rewards.describe()}
        assert set(infos) == {"clip", "jpeg", "patient"}
        assert (infos["clip"].revision, infos["clip"].max_items) == (clip.revision, 32)
        assert await rewards.score([], [], rewards=["jpeg"], deadline_s=1) == {"jpeg": []}
        with pytest.raises(RewardUnknown, match="did you mean 'clip'"):
            await rewards.score(images, prompts, rewards=["clop"], deadline_s=1)

    # More than a batch, and of two sizes.
    images, prompts = [*draw(70), *draw(3, size=48)], ["a red cube", "cat"] * 36 + ["dog"]
    asyncio.run(run())


def test_http_gives_the_scores_of_the_handles(
    rewards: ServeRewards, port: int, api_key: str, draw: Draw
) -> None:
    async def run() -> None:
        images, prompts = draw(70, size=40), ["a red cube"] * 70
        by_handle = await rewards.score(images, prompts, rewards=["clip", "jpeg"], deadline_s=30)
        async with AsyncRewardClient(f"http://127.0.0.1:{port}", api_key=api_key) as client:
            by_http = await client.score(images, prompts, rewards=["clip", "jpeg"], deadline_s=30)
            assert all(info.ready for info in await client.describe())
        close(by_http["clip"], by_handle["clip"])
        assert by_http["jpeg"] == by_handle["jpeg"]

    asyncio.run(run())


def test_http_asks_for_keys_and_follows_their_file(
    rewards: ServeRewards, port: int, keys: Path, api_key: str
) -> None:
    def status(path: str, key: str) -> int:
        headers = {"authorization": f"Bearer {key}", "x-request-id": "run-7"}
        response = httpx.get(f"http://127.0.0.1:{port}{path}", headers=headers)
        assert response.headers["x-request-id"] == "run-7"
        return response.status_code

    assert [status("/v1/rewards", key) for key in ("wrong", api_key)] == [401, 200]
    assert status("/readyz", "wrong") == 200
    second, line = new_key("second")
    keys.write_text(keys.read_text(encoding="utf-8") + "\n" + line, encoding="utf-8")
    time.sleep(1.2)
    assert [status("/v1/rewards", key) for key in ("wrong", api_key, second)] == [401, 200, 200]


@pytest.mark.parametrize(("callers", "full"), [(4, True), (3, False)])
def test_a_batch_fills_across_callers_in_images(
    rewards: ServeRewards, draw: Draw, callers: int, full: bool
) -> None:
    """`patient` takes 8 images or waits: four callers of two images fill it, three do not."""

    async def run() -> float:
        images = draw(2)
        began = time.monotonic()
        calls = (rewards.score(images, ["", ""], rewards=["patient"], deadline_s=20) for _ in range(callers))
        for scores in await asyncio.gather(*calls):
            assert scores["patient"] == JpegScorer().score(images, ["", ""])
        return time.monotonic() - began

    assert (asyncio.run(run()) < WAIT_S) is full


def test_poison_of_one_caller_hurts_no_batch_mate(
    rewards: ServeRewards, clip: ClipScorer, draw: Draw
) -> None:
    async def run() -> None:
        images: list[Any] = draw(9)
        poison = np.zeros((1, 2**20, 3), np.uint8)
        calls = [[*images[:4], poison], images[4:]]
        answers = await asyncio.gather(
            *(rewards.score(call, ["cat"] * 5, rewards=["clip"], deadline_s=30) for call in calls)
        )
        error = answers[0]["clip"][4].error
        assert error is not None
        assert error.type == "/problems/image-invalid"
        close(answers[0]["clip"][:4] + answers[1]["clip"], clip.score(images, ["cat"] * 9))

    asyncio.run(run())


def test_a_deadline_is_kept(rewards: ServeRewards, draw: Draw) -> None:
    async def run() -> None:
        began = time.monotonic()
        scores = await rewards.score(draw(1), [""], rewards=["patient", "jpeg"], deadline_s=0.5)
        assert time.monotonic() - began < WAIT_S
        assert scores["jpeg"][0].ok
        error = scores["patient"][0].error
        assert error is not None
        assert error.type == "/problems/deadline-exceeded"

    asyncio.run(run())


def test_the_coordinator_is_an_actor(rewards: ServeRewards, clip: ClipScorer, draw: Draw) -> None:
    actor: Any = ray.remote(Coordinator)
    images, prompts = np.stack(draw(6, seed=1)), ["cat"] * 6
    coordinator = actor.options(num_cpus=0).remote(rewards, names=["clip", "jpeg"])
    scores = ray.get([coordinator.score.remote(images, prompts) for _ in range(2)])
    assert scores[0] == scores[1]
    close(scores[0]["clip"], clip.score(list(images), prompts))
    stats = ray.get(coordinator.stats.remote())
    assert (stats["images"], stats["joined"] + stats["cache_hits"] / 2) == (12, 6)


def test_an_actor_may_score_over_http(rewards: ServeRewards, port: int, api_key: str, draw: Draw) -> None:
    actor: Any = ray.remote(Coordinator)
    client = AsyncRewardClient(f"http://127.0.0.1:{port}", api_key=api_key)
    coordinator = actor.options(num_cpus=0).remote(client, names=["jpeg"])
    scores = ray.get(coordinator.score.remote(draw(3, seed=3), [""] * 3))
    assert scores["jpeg"] == JpegScorer().score(draw(3, seed=3), [""] * 3)


def test_a_killed_replica_costs_no_item(rewards: ServeRewards, draw: Draw) -> None:
    """`patient` still waits for more images when it is killed, so all of its own are under way."""

    async def run() -> dict[str, float]:
        coordinator = Coordinator(rewards, names=["patient", "jpeg"], pace=Pace(deadline_s=90))
        images = draw(7, seed=2)
        halves = [images[:3], images[3:]]
        waiting = [asyncio.create_task(coordinator.score(half, [""] * len(half))) for half in halves]
        await asyncio.sleep(WAIT_S / 3)
        (pid,) = replica_pids("patient")
        os.kill(pid, signal.SIGKILL)
        answers = await asyncio.gather(*waiting)
        for name in ("patient", "jpeg"):
            scores = [score for answer in answers for score in answer[name]]
            assert scores == JpegScorer().score(images, [""] * 7)
        assert replica_pids("patient") - {pid}
        return coordinator.stats()

    stats = asyncio.run(run())
    assert stats["retries"] > 0
    assert (stats["images"], stats["failures"]) == (7, 0)
    assert stats["reward_calls"] == 2 + stats["retries"], "the reward that lived was not asked again"


def test_the_same_rewards_are_left_alone(
    rewards: ServeRewards, tiny_clip: Path, port: int, keys: Path
) -> None:
    """A second job on the cluster must not restart the rewards of the first."""
    before = {name: replica_pids(name) for name in ("jpeg", "clip", "patient")}
    deploy(configuration(str(tiny_clip), port, keys))
    assert {name: replica_pids(name) for name in before} == before


def test_a_new_revision_under_load(
    rewards: ServeRewards, tiny_clip: Path, port: int, keys: Path, api_key: str, draw: Draw
) -> None:
    """Callers by HTTP and by handle go on while the reward changes: none fails, no answer mixes revisions."""
    images, prompts = draw(5, size=40), ["a red cube"] * 5
    scorers = [ClipScorer(str(tiny_clip)), ClipScorer(str(tiny_clip), preprocessing="transformers")]
    exact = {scorer.revision: scorer.score(images, prompts) for scorer in scorers}
    seen: dict[str, list[str]] = {}

    async def call(by: str, rewards: Rewards, done: asyncio.Event) -> None:
        while not done.is_set():
            scores = (await rewards.score(images, prompts, rewards=["clip"], deadline_s=60))["clip"]
            (revision,) = {str(score.revision) for score in scores}
            close(scores, exact[revision])
            seen.setdefault(by, []).append(revision)

    async def run() -> None:
        done = asyncio.Event()
        async with AsyncRewardClient(f"http://127.0.0.1:{port}", api_key=api_key, retries=0) as client:
            callers = [
                asyncio.create_task(call(by, one, done)) for by, one in (("h", rewards), ("w", client))
            ]
            await asyncio.sleep(1)
            changed = configuration(str(tiny_clip), port, keys, preprocessing="transformers")
            await asyncio.to_thread(deploy, changed)
            await asyncio.sleep(1)
            done.set()
            await asyncio.gather(*callers)

    before = replica_pids("clip")
    asyncio.run(run())
    assert replica_pids("clip") == before
    for revisions in seen.values():
        turns = [first for first, second in itertools.pairwise(revisions) if first != second]
        assert turns == [scorers[0].revision], "from the old to the new one, once"


def test_a_missing_model_is_one_line(rewards: ServeRewards, tmp_path: Path, port: int) -> None:
    """Last in this file: it leaves the application broken."""
    config = tmp_path / "rewards.yaml"
    config.write_text(
        "rewards: {clip: {scorer: clip, num_cpus: 0.1, options: {model: ./nowhere}}}\n"
        f"http: {{port: {port}}}\n",
        encoding="utf-8",
    )
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "reward_services", "serve", str(config), "--address", address]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    says = f"rewards: reward clip never became ready: model folder {tmp_path}/nowhere does not exist; "
    assert line.startswith(says)
    assert result.stdout == ""
