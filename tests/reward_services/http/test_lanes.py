"""Lanes: by lane, then by turn; bounded under way and waiting; whoever gives up leaves no trace."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from reward_services import Overloaded
from reward_services.http.lanes import Lanes
from reward_services.schema import Lane


class Scene:
    """Callers of one set of lanes, and the order in which they were served."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.served: list[str] = []
        self.finish = asyncio.Event()

    async def call(self, name: str, lane: Lane, images: int = 1) -> None:
        async with self.lanes.admitted(lane, images):
            self.served.append(name)
            await self.finish.wait()

    async def arrive(self, name: str, lane: Lane, images: int = 1) -> asyncio.Task[None]:
        task = asyncio.create_task(self.call(name, lane, images))
        await settle()
        return task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 10))


def test_train_goes_before_eval_before_others_and_then_by_turn() -> None:
    async def play() -> None:
        scene = Scene(Lanes(at_once=1, waiting=10))
        tasks = [await scene.arrive("first", "others")]
        for name, lane in [
            ("o1", "others"),
            ("e1", "eval"),
            ("t1", "train"),
            ("o2", "others"),
            ("t2", "train"),
        ]:
            tasks.append(await scene.arrive(name, lane))  # type: ignore[arg-type]
        assert scene.served == ["first"]
        scene.finish.set()
        await asyncio.gather(*tasks)
        assert scene.served == ["first", "t1", "t2", "e1", "o1", "o2"]

    run(play())


def test_images_count_not_calls() -> None:
    async def play() -> None:
        scene = Scene(Lanes(at_once=8, waiting=100))
        tasks = [await scene.arrive(name, "others", 3) for name in "abc"]
        assert scene.served == ["a", "b"]
        scene.finish.set()
        await asyncio.gather(*tasks)
        assert scene.served == ["a", "b", "c"]

    run(play())


def test_a_large_request_is_served_when_it_is_alone() -> None:
    async def play() -> None:
        scene = Scene(Lanes(at_once=8, waiting=100))
        small = await scene.arrive("small", "others")
        large = await scene.arrive("large", "train", 50)
        assert scene.served == ["small"]
        scene.finish.set()
        await asyncio.gather(small, large)
        assert scene.served == ["small", "large"]

    run(play())


def test_beyond_the_room_to_wait_the_last_in_line_is_refused() -> None:
    async def play() -> None:
        scene = Scene(Lanes(at_once=1, waiting=2))
        await scene.arrive("first", "others")
        waiting = [await scene.arrive(name, "others") for name in ("o1", "o2")]
        with pytest.raises(Overloaded):
            await scene.call("o3", "others")
        train = await scene.arrive("t1", "train")
        with pytest.raises(Overloaded):
            await waiting[1]
        scene.finish.set()
        await asyncio.gather(waiting[0], train)
        assert scene.served == ["first", "t1", "o1"]

    run(play())


def test_whoever_gives_up_leaves_no_trace() -> None:
    async def play() -> None:
        scene = Scene(Lanes(at_once=1, waiting=2))
        first = await scene.arrive("first", "others")
        gone = await scene.arrive("gone", "train", 2)
        gone.cancel()
        # Room is given back in the same turn of the loop: the one who has left must not take it with him.
        scene.finish.set()
        await asyncio.gather(first, gone, return_exceptions=True)
        late = [await scene.arrive(name, "others") for name in ("a", "b")]
        await asyncio.gather(*late)
        assert scene.served == ["first", "a", "b"]

    run(play())


def test_a_failure_gives_the_place_back() -> None:
    async def play() -> None:
        lanes = Lanes(at_once=1)
        for _ in range(3):
            with pytest.raises(KeyError):
                async with lanes.admitted("others", 1):
                    raise KeyError

    run(play())
