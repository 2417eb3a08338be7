"""What a replica does with batches, without Ray: two overlapping stages, deadlines, and the golden sample."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward_services.errors import DeadlineExceeded, ReplicaFailed
from reward_services.observed import Observed
from reward_services.schema import Score
from reward_services.scorers.scorer import Scorer

_GOLDEN_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Call:
    """One caller's images on their way into a batch; times are in seconds of the monotonic clock here."""

    images: Sequence[NDArray[np.uint8]]
    prompts: Sequence[str]
    expires: float
    came: float = field(default_factory=time.monotonic)

    def split(self, size: int) -> list[Call]:
        """Calls of at most `size` images, in order."""
        return [
            Call(
                self.images[first : first + size], self.prompts[first : first + size], self.expires, self.came
            )
            for first in range(0, len(self.prompts), size)
        ]


class Pipeline:
    """Scores batches of calls: the next is prepared on the CPU while the device runs one.

    Raises:
        ReplicaFailed: the scorer cannot score its own golden sample.
    """

    def __init__(self, scorer: Scorer[Any, Any], observed: Observed) -> None:
        self._scorer, self._observed = scorer, observed
        self._cpu = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._golden = self._score_golden()
        self._checking: asyncio.Future[float] | None = None
        self._answered = asyncio.Event()
        self._doubted = False

    async def score(self, calls: Sequence[Call]) -> list[list[Score]]:
        """One list of scores per call, in order; a call that is already late is not scored."""
        for call in calls:
            self._observed.took("queue", time.monotonic() - call.came)
        try:
            answers = await self._scored(calls)
        except Exception as error:
            items = sum(len(call.prompts) for call in calls)
            self._observed.scored([Score.failed(ReplicaFailed(str(error)))] * items)
            raise
        self._observed.scored([score for answer in answers for score in answer])
        if any(score.ok for answer in answers for score in answer):
            self._answered.set()
        for call in calls:
            self._observed.took("total", time.monotonic() - call.came)
        return answers

    async def _scored(self, calls: Sequence[Call]) -> list[list[Score]]:
        in_time = [call.expires > time.monotonic() for call in calls]
        alive = [call for call, timely in zip(calls, in_time, strict=True) if timely]
        images = [image for call in alive for image in call.images]
        prompts = [prompt for call in alive for prompt in call.prompts]
        self._observed.batched(len(prompts))
        loop = asyncio.get_running_loop()
        admit = self._observed.timed("prepare", self._scorer.admit)
        complete = self._observed.timed("run", self._scorer.complete)
        admitted = await loop.run_in_executor(self._cpu, admit, images, prompts)
        scores = iter(await loop.run_in_executor(self._device, complete, admitted))
        late = Score.failed(DeadlineExceeded("the deadline passed before the reward came to it"))
        return [
            [next(scores) if timely else late for _ in call.prompts]
            for call, timely in zip(calls, in_time, strict=True)
        ]

    async def check(self) -> None:
        """Score the golden sample again, behind whatever the device is doing: half-alive is not alive.

        The two batches ahead of it may take minutes. Until its turn comes, a batch that was scored since the
        last check is enough; the check after that tells what came of it. Once it has failed, only it will do.

        Raises:
            ReplicaFailed: it cannot be scored any more, or its score has changed.
        """
        if self._checking is None:
            self._checking = asyncio.get_running_loop().run_in_executor(self._device, self._score_golden)
        checking = self._checking
        answered = asyncio.create_task(self._answered.wait())
        try:
            enough: list[asyncio.Future[Any]] = [checking] if self._doubted else [checking, answered]
            await asyncio.wait(enough, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answered.cancel()
        self._answered.clear()
        if checking.done():
            self._checking, self._doubted = None, True
            self._compare(checking.result())
            self._doubted = False

    def _compare(self, now: float) -> None:
        if self._scorer.deterministic:
            self._observed.rescored(now - self._golden)
        tolerance = _GOLDEN_TOLERANCE * max(1.0, abs(self._golden))
        if self._scorer.deterministic and abs(now - self._golden) > tolerance:
            raise ReplicaFailed(f"the golden sample scores {now}; at the start it scored {self._golden}")

    def _score_golden(self) -> float:
        image, prompt = self._scorer.golden()
        score: Score = self._scorer.score([image], [prompt])[0]
        if score.value is None:
            why = score.error and (score.error.detail or score.error.title)
            raise ReplicaFailed(f"the golden sample cannot be scored: {why}")
        return score.value
