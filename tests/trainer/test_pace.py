"""How many images may be under way: all, until calls are late; then as many as are answered in good time."""

import asyncio
import time
from collections.abc import Sequence

import pytest

from reward_services import ReplicaLost, Score
from tests.bright_and_dark import Brightness, Image, coordinator, pictures, values
from trainer.pace import Allowance, Pace, pause_s


def test_all_may_be_under_way_until_a_call_is_late() -> None:
    allowance = Allowance(Pace(batch_images=8, batches_at_once=4))
    assert allowance.left == 32
    allowance.under_way = 24
    allowance.note(8, 0.9)
    allowance.note(8, 0.1)
    assert allowance.left == 32 - 24, "there is no more than all"
    allowance.note(8, 1.0)
    assert allowance.left == 6 - 24
    allowance.under_way = 4
    allowance.note(4, 0.5)
    assert allowance.left == 6 - 4
    allowance.note(4, 0.4)
    assert allowance.left == 10 - 4


def test_one_may_always_be_under_way() -> None:
    allowance = Allowance(Pace())
    for allowance.under_way in (512, 128, 2, 1):
        allowance.note(1, 1.0)
    allowance.under_way = 0
    assert allowance.left == 1


def test_an_attempt_leaves_time_for_another() -> None:
    assert Pace(attempt_s=30, deadline_s=120).limit_s == 30
    assert Pace(attempt_s=90, deadline_s=120).limit_s == 60


def test_pauses_grow_up_to_a_bound() -> None:
    assert 0.2 <= pause_s(0) <= 0.3
    assert 0.8 <= pause_s(2) <= 1.2
    assert 5 <= pause_s(50) <= 7.5


class Slow(Brightness):
    """One picture after another, each in a hundredth of a second, whatever calls are under way."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = asyncio.Lock()

    async def score(
        self, images: Sequence[Image], prompts: Sequence[str], *, rewards: Sequence[str], deadline_s: float
    ) -> dict[str, list[Score]]:
        async with asyncio.timeout(deadline_s), self._turn:
            await asyncio.sleep(0.01 * len(prompts))
            return await super().score(images, prompts, rewards=rewards, deadline_s=deadline_s)


@pytest.mark.parametrize("batch_images", [16, 64])
def test_a_reward_that_is_only_slow_scores_all(batch_images: int) -> None:
    """200 pictures take it 2 s, of which nobody may wait more than 1.2 s without a score.

    Four calls of 16 outlast the 0.6 s of an attempt in each other's company, one of 64 by itself.
    """
    merged = coordinator(Slow(), batch_images=batch_images, deadline_s=1.2)
    scores = asyncio.run(merged.score(pictures(*range(200)), ["a"] * 200))
    assert values(scores, "bright") == [float(value) for value in range(200)]
    assert merged.stats()["failures"] == 0


def test_all_that_wait_for_a_dead_reward_meet_one_deadline() -> None:
    """40 batches, one at a time: each would have the deadline to itself, and others go on being scored."""

    async def run() -> None:
        dead = Brightness(lambda call, name: ReplicaLost("gone") if name == "dark" else None)
        merged = coordinator(dead, batch_images=1, batches_at_once=1, deadline_s=0.5)
        began = time.monotonic()
        scores = await merged.score(pictures(*range(40)), ["a"] * 40)
        assert time.monotonic() - began < 1.5
        assert values(scores, "bright") == [float(value) for value in range(40)]
        assert values(scores, "dark") == [None] * 40

    asyncio.run(run())
