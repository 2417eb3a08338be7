"""RAY. A replica changed while it runs, of whose answers each is of one revision; which GPUs it sees."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve

from reward_services.replicas import RewardReplica
from reward_services.schema import RewardInfo, Score
from reward_services.scorers.clip import ClipScorer
from reward_services.scorers.jpeg import Direction, JpegScorer

Draw = Callable[..., list[Any]]

# Ray leaves sockets and files of its processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default::ResourceWarning", "default::FutureWarning")


def settings(scorer: str, *, files: str = "", max_images: int = 64, **options: Any) -> dict[str, Any]:
    batch = {"max_images": max_images, "wait_ms": 1}
    return {"reward": {"scorer": scorer, "options": options, "batch": batch}, "files": files}


class Inspected(RewardReplica):
    """Says which of its models it runs."""

    async def loaded(self) -> int:
        return id(self._pipeline)

    async def visible(self) -> str | None:
        """GPUs, as CUDA reads them."""
        return os.environ.get("CUDA_VISIBLE_DEVICES")


class Replica:
    """A replica by its handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        await self._handle.reconfigure.remote(user_config)

    async def describe(self) -> RewardInfo:
        info: RewardInfo = await self._handle.describe.remote()
        return info

    async def score(self, images: list[Any], *prompts: str, deadline_s: float = 30.0) -> list[Score]:
        asked = list(prompts) or [""] * len(images)
        scores: list[Score] = await self._handle.score.remote(images, asked, deadline_s)
        return scores

    async def loaded(self) -> int:
        return int(await self._handle.loaded.remote())

    async def visible(self) -> str | None:
        return await self._handle.visible.remote()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def replica() -> Iterator[Replica]:
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    # The GPUs are pretended; placing replicas takes no more.
    ray.init("local", num_cpus=2, num_gpus=4, object_store_memory=200_000_000, **options)
    served: Any = serve.deployment(user_config=settings("jpeg"), max_ongoing_requests=64)(Inspected)
    yield Replica(serve.run(served.bind("mine"), route_prefix=None))
    serve.shutdown()
    ray.shutdown()


def test_batching_changes_and_the_model_stays(replica: Replica, draw: Draw) -> None:
    async def run() -> None:
        loaded = await replica.loaded()
        for size in (2, 5):
            await replica.reconfigure(settings("jpeg", max_images=size))
            assert (await replica.describe()).max_items == size
            assert await replica.score(draw(12)) == JpegScorer().score(draw(12), [""] * 12)
        assert await replica.loaded() == loaded

    asyncio.run(run())


def test_another_model_or_other_files_are_loaded_in_place(
    replica: Replica, tiny_clip: Path, draw: Draw
) -> None:
    async def run() -> None:
        await replica.reconfigure(settings("clip", model=str(tiny_clip)))
        revision = ClipScorer(str(tiny_clip)).revision
        assert (await replica.describe()).revision == revision
        (score,) = await replica.score(draw(1), "a cat")
        assert score.revision == revision
        loaded = await replica.loaded()
        await replica.reconfigure(settings("clip", model=str(tiny_clip), files="changed"))
        assert await replica.loaded() != loaded

    asyncio.run(run())


def test_an_answer_is_of_one_revision(replica: Replica, draw: Draw) -> None:
    """Forty images in batches of two; the settings change while they are scored."""
    directions: tuple[Direction, ...] = ("compressible", "incompressible")
    images = draw(40)
    exact = {scorer.revision: scorer.score(images, [""] * 40) for scorer in map(JpegScorer, directions)}
    seen = set()

    async def run() -> None:
        for turn in range(6):
            calls = [asyncio.create_task(replica.score(images)) for _ in range(8)]
            await asyncio.sleep(0.01 * turn)
            await replica.reconfigure(settings("jpeg", max_images=2, direction=directions[turn % 2]))
            for scores in await asyncio.gather(*calls):
                (revision,) = {score.revision for score in scores}
                assert scores == exact[str(revision)]
                seen.add(revision)

    asyncio.run(replica.reconfigure(settings("jpeg", max_images=2)))
    asyncio.run(run())
    assert len(seen) == 2


SLOW = """
import time
def slow(images, prompts):
    time.sleep({"quick": 0.1, "slow": 4.0}.get(prompts[0], 0.0))  # the golden sample has another prompt
    return [1.0]
"""


def test_a_batch_that_takes_too_long_costs_those_before_it_nothing(
    replica: Replica, draw: Draw, tmp_path: Path
) -> None:
    """Two images in batches of one, 0.1 and 4 seconds: the answer comes when the time is up."""
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")

    async def run() -> None:
        slow = settings("custom", max_images=1, path=str(tmp_path / "slow.py"), name="slow")
        await replica.reconfigure(slow)
        began = time.monotonic()
        scores = await replica.score(draw(2), "quick", "slow", deadline_s=1.5)
        assert 1.4 < time.monotonic() - began < 3.0
        assert [score.error and score.error.status for score in scores] == [None, 504]
        await replica.reconfigure(settings("jpeg"))

    asyncio.run(run())


def test_a_change_that_cannot_be_made_leaves_the_old_model(replica: Replica, draw: Draw) -> None:
    async def run() -> None:
        await replica.reconfigure(settings("jpeg"))
        with pytest.raises(Exception, match=r"model folder .* does not exist"):
            await replica.reconfigure(settings("clip", model="/nowhere/at/all"))
        assert (await replica.score(draw(1)))[0].ok

    asyncio.run(run())


def placed(name: str, num_gpus: float) -> Replica:
    """A replica on a node that shows its GPUs to all, as Ray's will."""
    shown = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    actor = {"num_cpus": 0.1, "num_gpus": num_gpus, "runtime_env": {"env_vars": shown}}
    served: Any = serve.deployment(user_config=settings("jpeg"), ray_actor_options=actor)(Inspected)
    return Replica(serve.run(served.bind(name), name=name, route_prefix=None))


def test_a_replica_sees_the_gpus_that_it_reserves_and_no_other(replica: Replica, tiny_clip: Path) -> None:
    async def run() -> None:
        assert await without.visible() == ""
        with pytest.raises(Exception, match=r"ConfigInvalid: options\.device is cuda:0 and .* num_gpus"):
            await without.reconfigure(settings("clip", model=str(tiny_clip), device="cuda:0"))
        assert len(str(await with_a_part.visible())) == 1

    without, with_a_part = placed("without", 0), placed("part", 0.5)
    asyncio.run(run())
