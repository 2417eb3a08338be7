"""Calls that wait together go together: many small calls of many callers become a few large ones.

A call to the cluster costs milliseconds whatever its size, so a server of one-image requests would spend its
time on calls. Nothing waits while there is room: a lone caller is not delayed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from reward_services.errors import DeadlineExceeded, RewardError
from reward_services.rewards import Rewards, check_batch, told_s
from reward_services.schema import RewardInfo, Score

Names = tuple[str, ...]
Scores = dict[str, list[Score]]

IMAGES_A_CALL = 64
_ALIKE = 0.9


@dataclass(slots=True)
class _Caller:
    images: Sequence[NDArray[np.uint8]]
    prompts: Sequence[str]
    ends: float
    answer: asyncio.Future[Scores] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class MergedRewards:
    """`Rewards` before other `Rewards`: at most `calls_at_once` of the same names are under way.

    Callers who come meanwhile wait. The next call takes those who have about as much time left, up to 64
    images or a single caller's, and has the time of the caller with least. A call that fails as a whole fails
    for every caller in it; a single item's failure is its caller's alone.
    """

    def __init__(self, rewards: Rewards, *, calls_at_once: int) -> None:
        self._rewards = rewards
        self._calls_at_once = calls_at_once
        self._waiting: dict[Names, deque[_Caller]] = {}
        self._under_way: Counter[Names] = Counter()
        self._calls: set[asyncio.Task[None]] = set()

    async def describe(self, rewards: Collection[str] | None = None) -> list[RewardInfo]:
        """As the rewards behind."""
        return await self._rewards.describe(rewards)

    async def score(
        self,
        images: Sequence[NDArray[np.uint8]],
        prompts: Sequence[str],
        *,
        rewards: Sequence[str],
        deadline_s: float,
    ) -> Scores:
        """As `Rewards.score`."""
        check_batch(images, prompts)
        names = tuple(rewards)
        caller = _Caller(images, prompts, time.monotonic() + deadline_s)
        self._waiting.setdefault(names, deque()).append(caller)
        self._send(names)
        try:
            async with asyncio.timeout(deadline_s):
                return await caller.answer
        except TimeoutError as error:
            raise DeadlineExceeded(f"{', '.join(names)} did not answer within {deadline_s:g} s") from error

    def _send(self, names: Names) -> None:
        """Send who waits, as far as there is room; the end of a call sends the next."""
        while self._under_way[names] < self._calls_at_once:
            callers = _together(self._waiting.get(names, deque()))
            if not callers:
                self._waiting.pop(names, None)
                return
            self._under_way[names] += 1
            call = asyncio.get_running_loop().create_task(self._call(names, callers))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(self, names: Names, callers: Sequence[_Caller]) -> None:
        try:
            answers = await self._answers(names, callers)
        except RewardError as error:
            for caller in callers:
                if not caller.answer.done():
                    caller.answer.set_exception(error)
        else:
            for caller, answer in zip(callers, answers, strict=True):
                if not caller.answer.done():
                    caller.answer.set_result(answer)
        finally:
            self._under_way[names] -= 1
            self._send(names)

    async def _answers(self, names: Names, callers: Sequence[_Caller]) -> list[Scores]:
        images = [image for caller in callers for image in caller.images]
        prompts = [prompt for caller in callers for prompt in caller.prompts]
        left_s = told_s(min(caller.ends for caller in callers) - time.monotonic())
        scored = await self._rewards.score(images, prompts, rewards=names, deadline_s=left_s)
        answers, first = [], 0
        for caller in callers:
            last = first + len(caller.prompts)
            answers.append({name: scored[name][first:last] for name in names})
            first = last
        return answers


def _together(waiting: deque[_Caller]) -> list[_Caller]:
    """The first caller in line and later ones with about as much time left, as many as one call holds.

    Callers who have given up are dropped; the others keep their places.
    """
    callers: list[_Caller] = []
    passed_over: list[_Caller] = []
    images, now = 0, time.monotonic()
    while waiting and (not callers or images + len(waiting[0].prompts) <= IMAGES_A_CALL):
        caller = waiting.popleft()
        if caller.answer.done():
            continue
        if callers and not _alike(callers[0].ends - now, caller.ends - now):
            passed_over.append(caller)
            continue
        callers.append(caller)
        images += len(caller.prompts)
    waiting.extendleft(reversed(passed_over))
    return callers


def _alike(one_s: float, other_s: float) -> bool:
    return min(one_s, other_s) >= _ALIKE * max(one_s, other_s)
