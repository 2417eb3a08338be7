"""`Rewards` by plain scorers in this process: the third backend, without Ray or HTTP."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from reward_services import RewardInfo, Score
from reward_services.scorers.scorer import Scorer


class RewardsHere:
    """Scores in a thread, so that a server goes on answering meanwhile."""

    def __init__(self, scorers: Mapping[str, Scorer[Any, Any]]) -> None:
        self.scorers = scorers

    async def describe(self) -> list[RewardInfo]:
        return [scorer.describe(name, max_items=64) for name, scorer in self.scorers.items()]

    async def score(
        self, images: Sequence[Any], prompts: Sequence[str], *, rewards: Sequence[str], deadline_s: float
    ) -> dict[str, list[Score]]:
        async with asyncio.timeout(deadline_s):
            return {
                name: await asyncio.to_thread(self.scorers[name].score, images, prompts) for name in rewards
            }
