"""`Rewards` by plain scorers in this process: the third backend, without Ray or HTTP."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from reward_services import RewardInfo, Score
from reward_services.rewards import check_known
from reward_services.scorers.scorer import Scorer


class RewardsHere:
    """Scores in a thread, so that a server goes on answering meanwhile."""

    def __init__(self, scorers: Mapping[str, Scorer[Any, Any]]) -> None:
        self.scorers = scorers

    async def describe(self, rewards: Collection[str] | None = None) -> list[RewardInfo]:
        names = list(self.scorers if rewards is None else rewards)
        check_known(names, self.scorers)
        return [self.scorers[name].describe(name, max_items=64) for name in names]

    async def score(
        self, images: Sequence[Any], prompts: Sequence[str], *, rewards: Sequence[str], deadline_s: float
    ) -> dict[str, list[Score]]:
        async with asyncio.timeout(deadline_s):
            return {
                name: await asyncio.to_thread(self.scorers[name].score, images, prompts) for name in rewards
            }
