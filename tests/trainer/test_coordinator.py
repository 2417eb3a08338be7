"""The coordinator with rewards in this process: merges, caches, joins, retries, loses nothing."""

import asyncio
import time
from typing import Any

import pytest

from reward_services import (
    DeadlineExceeded,
    ImageInvalid,
    ReplicaLost,
    RewardInfo,
    RewardNotReady,
    RewardUnknown,
    Score,
)
from tests.bright_and_dark import Brightness, coordinator, pictures, values


def test_ranks_share_a_batch_and_get_their_own_scores() -> None:
    async def run() -> None:
        rewards = Brightness()
        merged = coordinator(rewards, batch_images=12, window_ms=60_000)
        scores = await asyncio.gather(
            *(merged.score(pictures(rank, rank + 10, rank + 20), ["a", "b", "c"]) for rank in range(4))
        )
        assert rewards.calls == [(("bright", "dark"), 12)]
        for rank, of_rank in enumerate(scores):
            assert values(of_rank, "bright") == [rank, rank + 10, rank + 20]
            assert values(of_rank, "dark") == [-rank, -rank - 10, -rank - 20]
        stats = merged.stats()
        assert (stats["requests"], stats["images"], stats["reward_calls"], stats["retries"]) == (4, 12, 2, 0)
        assert stats["queue_depth"] == stats["failures"] == 0
        assert stats["wait_s"] > 0

    asyncio.run(run())


def test_a_batch_has_a_size_and_few_are_under_way() -> None:
    async def run() -> None:
        rewards = Brightness()
        rewards.delay_s = 0.05
        merged = coordinator(rewards, batch_images=4, batches_at_once=2)
        waiting = asyncio.create_task(merged.score(pictures(*range(14)), ["a"] * 14))
        while len(rewards.calls) < 2:
            await asyncio.sleep(0.001)
        # A third would be under way then: its timer is due before those of the calls.
        await asyncio.sleep(0.01)
        assert len(rewards.calls) == 2
        assert merged.stats()["queue_depth"] == 6
        assert values(await waiting, "bright") == list(range(14))
        assert [size for _, size in rewards.calls] == [4, 4, 4, 2]

    asyncio.run(run())


def test_known_images_are_not_scored_again() -> None:
    async def run() -> None:
        rewards = Brightness()
        merged = coordinator(rewards, cache_scores=6)
        first = await merged.score(pictures(1, 2), ["a", "b"])
        assert await merged.score(pictures(2, 1), ["b", "a"]) == {
            name: scores[::-1] for name, scores in first.items()
        }
        assert len(rewards.calls) == 1
        await merged.score(pictures(1), ["another prompt"])
        await merged.score(pictures(7), ["a"])
        assert len(rewards.calls) == 3
        assert merged.stats()["cache_hits"] == 4
        await merged.score(pictures(1, 2), ["a", "b"])
        assert rewards.calls[3] == (("bright", "dark"), 1), "the oldest scores have gone"

    asyncio.run(run())


def test_another_revision_is_another_score() -> None:
    async def run() -> None:
        rewards = Brightness()
        merged = coordinator(rewards, revisions_s=0.0)
        await merged.score(pictures(1), ["a"])
        assert await merged.revisions() == {"bright": "1", "dark": "1"}
        rewards.revision = "2"
        scores = await merged.score(pictures(1), ["a"])
        assert [scores["dark"][0].revision, len(rewards.calls)] == ["2", 2]
        assert await merged.revisions() == {"bright": "2", "dark": "2"}

    asyncio.run(run())


def test_the_same_image_in_flight_is_scored_once() -> None:
    async def run() -> None:
        rewards = Brightness()
        rewards.delay_s = 1.0
        merged = coordinator(rewards)
        both = await asyncio.gather(*(merged.score(pictures(3, 3), ["a", "a"]) for _ in range(2)))
        assert [values(scores, "bright") for scores in both] == [[3, 3], [3, 3]]
        assert rewards.calls == [(("bright", "dark"), 1)]
        assert merged.stats()["joined"] == 3

    asyncio.run(run())


def test_a_call_may_name_its_rewards() -> None:
    async def run() -> None:
        rewards = Brightness()
        merged = coordinator(rewards)
        assert set(await merged.score(pictures(1), ["a"], ["dark"])) == {"dark"}
        assert values(await merged.score(pictures(1), ["a"]), "bright") == [1.0]
        assert rewards.calls == [(("dark",), 1), (("bright",), 1)], "what is known is not asked again"
        with pytest.raises(RewardUnknown, match="no reward 'loud'; there are: bright, dark"):
            await merged.score(pictures(1), ["a"], ["loud"])

    asyncio.run(run())


def test_only_the_failed_reward_is_tried_again() -> None:
    async def run() -> None:
        rewards = Brightness(lambda call, name: ReplicaLost("gone") if call < 2 and name == "dark" else None)
        merged = coordinator(rewards)
        scores = await merged.score(pictures(1, 2), ["a", "b"])
        assert values(scores, "dark") == [-1.0, -2.0]
        assert rewards.calls == [(("bright", "dark"), 2), (("dark",), 2), (("dark",), 2)]
        assert (merged.stats()["retries"], merged.stats()["failures"]) == (2, 0)

    asyncio.run(run())


def test_what_will_fail_again_fails_at_once_and_is_not_remembered() -> None:
    async def run() -> None:
        rewards = Brightness(
            lambda call, name: ImageInvalid("torn") if call == 0 and name == "dark" else None
        )
        merged = coordinator(rewards)
        scores = await merged.score(pictures(1), ["a"])
        assert values(scores, "bright") == [1.0]
        assert scores["dark"] == [Score.failed(ImageInvalid("torn"))]
        assert (merged.stats()["retries"], merged.stats()["failures"]) == (0, 1)
        assert values(await merged.score(pictures(1), ["a"]), "dark") == [-1.0]

    asyncio.run(run())


def test_after_the_deadline_a_failure_is_the_last_word() -> None:
    async def run() -> None:
        merged = coordinator(Brightness(lambda call, name: ReplicaLost("gone")), deadline_s=0.8)
        began = time.monotonic()
        scores = await merged.score(pictures(1), ["a"])
        assert 0.1 < time.monotonic() - began < 10
        assert scores["bright"] == [Score.failed(ReplicaLost("gone"))]
        assert merged.stats()["failures"] == 2

    asyncio.run(run())


def test_a_call_that_raises_is_tried_again() -> None:
    class Raising(Brightness):
        async def score(self, *arguments: Any, **options: Any) -> dict[str, list[Score]]:
            if not self.calls:
                self.calls.append((("raised",), 0))
                raise RewardNotReady("starting")
            return await super().score(*arguments, **options)

    scores = asyncio.run(coordinator(Raising()).score(pictures(1), ["a"]))
    assert values(scores, "bright") == [1.0]


def test_one_picture_may_be_asked_about_twice_at_once_for_other_rewards() -> None:
    async def run() -> None:
        merged = coordinator(Brightness())
        bright, dark = await asyncio.gather(
            merged.score(pictures(3), ["a"], ["bright"]), merged.score(pictures(3), ["a"], ["dark"])
        )
        assert (values(bright, "bright"), values(dark, "dark")) == ([3.0], [-3.0])

    asyncio.run(run())


def test_only_what_was_late_is_asked_again() -> None:
    """Rewards that score two images in their time, and say so at its end."""

    class Slow(Brightness):
        async def score(self, *arguments: Any, **options: Any) -> dict[str, list[Score]]:
            scores = await super().score(*arguments, **options)
            await asyncio.sleep(options["deadline_s"])
            late = Score.failed(DeadlineExceeded())
            return {name: [*given[:2], *[late] * len(given[2:])] for name, given in scores.items()}

    async def run() -> None:
        slow = Slow()
        merged = coordinator(slow, attempt_s=0.4, deadline_s=5.0)
        assert values(await merged.score(pictures(*range(6)), ["a"] * 6), "bright") == list(range(6))
        first, *others = [size for _, size in slow.calls]
        assert (first, sum(others)) == (6, 4)

    asyncio.run(run())


def test_rewards_that_are_not_up_yet_are_waited_for() -> None:
    class Starting(Brightness):
        asked = 0

        async def describe(self, rewards: Any = None) -> list[RewardInfo]:
            self.asked += 1
            assert rewards == ("bright", "dark")  # others of the same server need not answer
            if self.asked < 3:
                raise RewardNotReady("starting")
            return await super().describe()

    rewards = Starting()
    assert values(asyncio.run(coordinator(rewards).score(pictures(5), ["a"])), "bright") == [5.0]
    assert rewards.asked == 3
    with pytest.raises(RewardNotReady):
        asyncio.run(coordinator(Starting(), deadline_s=0.1).score(pictures(5), ["a"]))


def test_rewards_that_cannot_be_asked_any_more_are_asked_once_in_a_while() -> None:
    """Not by each call: of many at a time, one would wait for the other until none is in time."""

    class Gone(Brightness):
        asked = 0

        async def describe(self, rewards: Any = None) -> list[RewardInfo]:
            self.asked += 1
            if self.asked > 1:
                raise RewardNotReady("gone")
            return await super().describe()

    async def run() -> None:
        gone = Gone()
        merged = coordinator(gone, revisions_s=0.5)
        await merged.score(pictures(0), ["a"])
        await asyncio.sleep(0.5)
        await asyncio.gather(*(merged.score(pictures(n), ["a"]) for n in range(1, 9)))
        assert gone.asked == 2

    asyncio.run(run())


def test_a_caller_that_gives_up_takes_nothing_from_the_others() -> None:
    async def run() -> None:
        rewards = Brightness()
        rewards.delay_s = 0.1
        merged = coordinator(rewards)
        first = asyncio.create_task(merged.score(pictures(1), ["a"]))
        second = asyncio.create_task(merged.score(pictures(1), ["a"]))
        await asyncio.sleep(0.05)
        first.cancel()
        assert values(await second, "bright") == [1.0]
        assert len(rewards.calls) == 1

    asyncio.run(run())


def test_a_reward_that_is_served_no_more_fails_as_that() -> None:
    class Shrinking(Brightness):
        async def describe(self, rewards: Any = None) -> list[RewardInfo]:
            return [info for info in await super().describe() if info.id == "bright" or not self.calls]

    async def run() -> None:
        said = [ReplicaLost(), RewardUnknown()]
        gone = Shrinking(lambda call, name: said[call > 0] if name == "dark" else None)
        merged = coordinator(gone, revisions_s=0.0)
        waiting = asyncio.create_task(merged.score(pictures(1), ["a"]))
        while not gone.calls:
            await asyncio.sleep(0.001)
        await merged.score(pictures(2), ["a"], ["bright"])
        assert (await waiting)["dark"] == [Score.failed(RewardUnknown())]

    asyncio.run(run())


def test_a_bug_behind_the_protocol_reaches_the_caller_and_blocks_nobody() -> None:
    class Broken(Brightness):
        async def score(self, *arguments: Any, **options: Any) -> dict[str, list[Score]]:
            if not self.calls:
                self.calls.append((("broken",), 0))
                raise KeyError("a bug")
            return await super().score(*arguments, **options)

    async def run() -> None:
        merged = coordinator(Broken())
        with pytest.raises(KeyError):
            await merged.score(pictures(1), ["a"])
        assert values(await merged.score(pictures(1), ["a"]), "bright") == [1.0]

    asyncio.run(run())


def test_nothing_to_score() -> None:
    assert asyncio.run(coordinator(Brightness()).score([], [])) == {"bright": [], "dark": []}
