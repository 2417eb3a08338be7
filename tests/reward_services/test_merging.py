"""Calls that wait go together; each caller gets its own scores, failures and deadline."""

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from reward_services import DeadlineExceeded, ReplicaLost, RequestInvalid, RewardInfo, Score
from reward_services.merging import MergedRewards
from reward_services.scorers.jpeg import JpegScorer

Draw = Callable[..., list[Any]]


class Behind:
    """Rewards that note the size of each call and answer when they are let."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.open = asyncio.Event()
        self.lost = False

    async def describe(self, rewards: Any = None) -> list[RewardInfo]:
        return [JpegScorer().describe("jpeg", max_items=8)]

    async def score(
        self, images: Sequence[Any], prompts: Sequence[str], *, rewards: Sequence[str], deadline_s: float
    ) -> dict[str, list[Score]]:
        self.sizes.append(len(prompts))
        await self.open.wait()
        if self.lost:
            raise ReplicaLost("gone")
        return {name: JpegScorer().score(images, prompts) for name in rewards}


async def ask(rewards: MergedRewards, images: Sequence[Any], deadline_s: float = 9.0) -> list[Score]:
    return (await rewards.score(images, [""] * len(images), rewards=["jpeg"], deadline_s=deadline_s))["jpeg"]


def test_who_waits_goes_together_and_gets_his_own(draw: Draw) -> None:
    async def run() -> None:
        behind = Behind()
        rewards = MergedRewards(behind, calls_at_once=2)
        assert await rewards.describe() == await behind.describe()
        shares = [draw(1 + n % 3, seed=n) for n in range(20)]
        callers = [asyncio.create_task(ask(rewards, share)) for share in shares]
        await asyncio.sleep(0.01)
        assert behind.sizes == [1, 2], "the first two find room, the others wait"
        behind.open.set()
        for share, scores in zip(shares, await asyncio.gather(*callers), strict=True):
            assert scores == JpegScorer().score(share, [""] * len(share))
        assert behind.sizes == [1, 2, sum(map(len, shares)) - 3]
        assert rewards._waiting == {}

    asyncio.run(run())


def test_a_call_holds_64_images_or_one_callers(draw: Draw) -> None:
    async def run() -> None:
        behind = Behind()
        rewards = MergedRewards(behind, calls_at_once=1)
        callers = [asyncio.create_task(ask(rewards, draw(size))) for size in (1, 40, 30, 90, 2)]
        await asyncio.sleep(0.01)
        behind.open.set()
        await asyncio.gather(*callers)
        assert behind.sizes == [1, 40, 30, 90, 2]

    asyncio.run(run())


def test_other_rewards_do_not_wait(draw: Draw) -> None:
    async def run() -> None:
        behind = Behind()
        rewards = MergedRewards(behind, calls_at_once=1)
        names = (["jpeg"], ["jpeg", "clip"], ["clip"])
        callers = [
            asyncio.create_task(rewards.score(draw(1), [""], rewards=name, deadline_s=9)) for name in names
        ]
        await asyncio.sleep(0.01)
        assert behind.sizes == [1, 1, 1]
        behind.open.set()
        assert [set(scores) for scores in await asyncio.gather(*callers)] == [set(name) for name in names]

    asyncio.run(run())


def test_a_lost_replica_is_every_callers_failure(draw: Draw) -> None:
    async def run() -> None:
        behind = Behind()
        behind.lost = True
        behind.open.set()
        rewards = MergedRewards(behind, calls_at_once=1)
        callers = [ask(rewards, draw(1)) for _ in range(3)]
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert [type(answer) for answer in answers] == [ReplicaLost] * 3
        behind.lost = False
        assert (await ask(rewards, draw(1)))[0].ok

    asyncio.run(run())


def test_a_deadline_and_a_caller_who_leaves_are_theirs_alone(draw: Draw) -> None:
    async def run() -> None:
        behind = Behind()
        rewards = MergedRewards(behind, calls_at_once=1)
        first = asyncio.create_task(ask(rewards, draw(1)))
        late, gone = (
            asyncio.create_task(ask(rewards, draw(1), 0.05)),
            asyncio.create_task(ask(rewards, draw(1))),
        )
        patient = asyncio.create_task(ask(rewards, draw(2)))
        await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(DeadlineExceeded):
            await late
        behind.open.set()
        assert (await first)[0].ok
        assert len(await patient) == 2
        assert behind.sizes == [1, 2], "who has left is not scored"

    asyncio.run(run())
    gc.collect()  # a future whose error nobody fetched would say so now


class Late(Behind):
    """Answers at the very end of its time: one image is scored, the others were not begun."""

    async def score(
        self, images: Sequence[Any], prompts: Sequence[str], *, rewards: Sequence[str], deadline_s: float
    ) -> dict[str, list[Score]]:
        self.sizes.append(len(prompts))
        await asyncio.sleep(deadline_s)
        late = [Score.failed(DeadlineExceeded())] * (len(prompts) - 1)
        return {name: [*JpegScorer().score(images[:1], prompts[:1]), *late] for name in rewards}


def test_what_is_scored_in_time_reaches_its_caller(draw: Draw) -> None:
    """Of three who wait, the first and the last have about as much time: they share a call, and its time."""

    async def run() -> None:
        behind = Late()
        rewards = MergedRewards(behind, calls_at_once=1)
        before = asyncio.create_task(ask(rewards, draw(1), 0.5))
        await asyncio.sleep(0.01)
        began = time.monotonic()
        shares = ((2, 2.0), (3, 4.0), (1, 2.1))
        callers = [asyncio.create_task(ask(rewards, draw(size), left_s)) for size, left_s in shares]
        assert [score.ok for score in await before] == [True]
        alike, patient, last = await asyncio.gather(*callers)
        assert [score.ok for score in alike] == [True, False]
        assert [score.ok for score in last] == [False]
        assert [score.ok for score in patient] == [True, False, False]
        assert time.monotonic() - began < 4.0
        assert behind.sizes == [1, 3, 3]

    asyncio.run(run())


def test_prompts_must_match(draw: Draw) -> None:
    async def run() -> None:
        with pytest.raises(RequestInvalid):
            await MergedRewards(Behind(), calls_at_once=1).score(draw(2), [""], rewards=["a"], deadline_s=1)

    asyncio.run(run())
