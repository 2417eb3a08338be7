"""Merges the scoring requests of all trainer ranks: one per job, plain asyncio, stateless but for its cache.

    rank 0 ──┐              known? in flight?            ┌─ a few batches at once ────┐
    rank 1 ──┼─▶ score() ─▶ else into the queue ─▶ batch ┤  one call for all rewards  ├─▶ cache ─▶ all waiters
    rank n ──┘              (waits `window_ms`)          └─ what may, is tried again ─┘

A rank waits in `score` until each of its images is settled: scored, failed for good, or beyond the deadline.
A reward that is merely slow does not come to that: time counts only while the reward answers nobody.
Losing the coordinator loses nothing: the ranks ask again, and images are known by their content.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from reward_services import DeadlineExceeded, RewardError, Rewards, RewardUnknown, Score, error_from, told_s
from trainer.pace import Allowance, Pace, pause_s

Image = NDArray[np.uint8]
CacheKey = tuple[bytes, str, str]
"""Content of image and prompt, reward, revision of the reward."""
FlightKey = tuple[bytes, tuple[str, ...]]
"""Content of image and prompt, rewards asked for."""

_CACHE = ("cache_hits", "cache_misses")
_COUNTED = ("requests", "images", "reward_calls", *_CACHE, "joined", "retries", "failures")


@dataclass(slots=True, eq=False)
class _Item:
    """An image on its way: what it has, what it still needs, and the future that its waiters await."""

    content: bytes
    image: Image
    prompt: str
    names: tuple[str, ...]
    came: float
    scores: dict[str, Score] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    settled: asyncio.Future[dict[str, Score]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def key(self) -> FlightKey:
        """What two items share that can be settled together."""
        return (self.content, self.names)


class Coordinator:
    """Scores images for all ranks of a job at once.

    Args:
        rewards: Serve handles or the HTTP client.
        names: the rewards by which an image is scored unless a call names others.
        pace: batching, deadlines and retries.
    """

    def __init__(self, rewards: Rewards, *, names: Sequence[str], pace: Pace | None = None) -> None:
        self._rewards = rewards
        self._names = tuple(names)
        self._pace = pace or Pace()
        self._allowance = Allowance(self._pace)
        self._queue: list[_Item] = []
        self._in_flight: dict[FlightKey, _Item] = {}
        self._batches: set[asyncio.Task[list[_Item]]] = set()
        self._window: asyncio.TimerHandle | None = None
        self._cache: OrderedDict[CacheKey, Score] = OrderedDict()
        self._answered: dict[str, float] = {}  # when each reward last gave a score
        self._revisions: dict[str, str] = {}
        self._revisions_at = -float("inf")
        self._asking = asyncio.Lock()
        self._counts: Counter[str] = Counter()
        self._wait_s = 0.0

    async def score(
        self, images: Sequence[Image], prompts: Sequence[str], rewards: Sequence[str] | None = None
    ) -> dict[str, list[Score]]:
        """Score images[i], (H, W, 3) uint8, against prompts[i] by every reward of `rewards`.

        One score per image and reward, in order, each a value or a failure.

        Raises:
            RewardError: the rewards cannot be asked what they are, or one of them is not served.
        """
        began = time.monotonic()
        self._counts.update(requests=1, images=len(prompts))
        names = self._names if rewards is None else tuple(rewards)
        await self._refresh_revisions()
        self._check_served(names)
        contents = await asyncio.to_thread(list, map(_content_of, images, prompts))
        items = [
            self._admit(_Item(content, image, prompt, names, began))
            for content, image, prompt in zip(contents, images, prompts, strict=True)
        ]
        # Shielded, or a caller that gives up takes what others wait for; most are settled with the first.
        scores = [await asyncio.shield(item.settled) for item in items]
        self._wait_s += time.monotonic() - began
        return {name: [of_item[name] for of_item in scores] for name in names}

    async def revisions(self) -> dict[str, str]:
        """The revision of each reward, at most `revisions_s` old."""
        await self._refresh_revisions()
        return dict(self._revisions)

    def stats(self) -> dict[str, float]:
        """Counts since the start; `queue_depth` is now, `wait_s` the seconds that callers waited, summed.

        `oldest_wait_s` is how much of its deadline an image has waited at most. `reward_calls` counts one per
        reward and batch, `joined` the images in flight already, `failures` the scores that were given up.
        """
        counts = {name: float(self._counts[name]) for name in _COUNTED}
        now = {"queue_depth": float(len(self._queue)), "oldest_wait_s": self._oldest_wait_s()}
        return counts | now | {"wait_s": self._wait_s}

    def _oldest_wait_s(self) -> float:
        ends = [self._ends(item) for item in self._in_flight.values()]
        return time.monotonic() - min(ends) + self._pace.deadline_s if ends else 0.0

    def _ends(self, item: _Item) -> float:
        """The deadline of an item, by now: it moves on while every reward that the item waits for scores."""
        answered = (self._answered.get(name, item.came) for name in item.missing)
        return max(item.came, min(answered, default=item.came)) + self._pace.deadline_s

    def _admit(self, item: _Item) -> _Item:
        """The item itself, answered from the cache or queued, or the one of the same content in flight."""
        if item.key in self._in_flight:
            self._counts["joined"] += 1
            return self._in_flight[item.key]
        for name in item.names:
            key = (item.content, name, self._revisions[name])
            if key in self._cache:
                self._cache.move_to_end(key)
                item.scores[name] = self._cache[key]
        self._counts["cache_hits"] += len(item.scores)
        item.missing += [name for name in item.names if name not in item.scores]
        self._counts["cache_misses"] += len(item.missing)
        if not item.missing:
            item.settled.set_result(item.scores)
            return item
        self._in_flight[item.key] = item
        self._queue.append(item)
        self._send_when_due()
        return item

    def _check_served(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._revisions:
                raise RewardUnknown(f"no reward {name!r}; there are: {', '.join(sorted(self._revisions))}")

    async def _refresh_revisions(self) -> None:
        """Ask what the rewards are, so that a score of other weights is never taken for one of these."""
        async with self._asking:
            if time.monotonic() - self._revisions_at < self._pace.revisions_s:
                return
            ends = time.monotonic() + self._pace.deadline_s
            attempt = 0
            while not await self._asked(may_retry=time.monotonic() + pause_s(attempt) < ends):
                await asyncio.sleep(pause_s(attempt))
                attempt += 1

    async def _asked(self, *, may_retry: bool) -> bool:
        """Whether the revisions are known; old ones are good enough while the rewards do not answer."""
        try:
            infos = await self._rewards.describe(self._names)  # of these alone: others may be out of order
            self._revisions = {info.id: info.revision for info in infos}
        except RewardError as error:
            if not self._revisions and not (error.retryable and may_retry):
                raise
        if self._revisions:  # old ones, too: asked for each call, a server that is gone would hold all up
            self._revisions_at = time.monotonic()
        return bool(self._revisions)

    def _send_when_due(self) -> None:
        if len(self._queue) >= self._pace.batch_images:
            self._send()
        elif self._window is None:
            loop = asyncio.get_running_loop()
            self._window = loop.call_later(self._pace.window_ms / 1000, self._send)

    def _send(self) -> None:
        """Send what waits, as far as batches may be under way; the end of a batch sends the next."""
        if self._window is not None:
            self._window.cancel()
            self._window = None
        while self._queue and len(self._batches) < self._pace.batches_at_once and self._allowance.left > 0:
            size = min(self._pace.batch_images, self._allowance.left)
            items, self._queue = self._queue[:size], self._queue[size:]
            self._allowance.under_way += len(items)
            task = asyncio.get_running_loop().create_task(self._settle(items))
            self._batches.add(task)
            task.add_done_callback(partial(self._ended, items))

    def _ended(self, items: Sequence[_Item], task: asyncio.Task[list[_Item]]) -> None:
        """Whatever became of a batch, nobody waits for ever and the next one goes."""
        self._batches.discard(task)
        self._allowance.under_way -= len(items)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        again = [] if error else task.result()
        self._queue += again  # behind others, which need not be late
        for item in items:
            if not item.settled.done() and item not in again:
                del self._in_flight[item.key]
                item.settled.set_exception(error or DeadlineExceeded())
        self._send()

    async def _settle(self, items: Sequence[_Item]) -> list[_Item]:
        """Score a batch; what failed but may succeed is tried again until the deadline of its item.

        Returns:
            What is to be tried again in other batches, since this one was late.
        """
        attempt = 0
        while True:
            share = max(await asyncio.gather(*(self._call(*call) for call in _calls(items))))
            self._allowance.note(len(items), share)
            pause = pause_s(attempt)
            now = time.monotonic()
            for item in items:
                if not item.missing or now + pause >= self._ends(item):
                    self._finish(item)
            items = [item for item in items if not item.settled.done()]
            if not items:
                return []
            self._counts["retries"] += 1
            await asyncio.sleep(pause)
            if share >= 1:
                return items
            attempt += 1

    async def _call(self, names: Sequence[str], items: Sequence[_Item]) -> float:
        """Ask once; returns the share of the limit that it took, 1 where it was late with most of that."""
        self._counts["reward_calls"] += len(names)
        revisions, began, limit_s = self._revisions, time.monotonic(), self._pace.limit_s
        deadline_s = max(min(limit_s, max(map(self._ends, items)) - began), 0.001)
        images, prompts = [item.image for item in items], [item.prompt for item in items]
        told = told_s(deadline_s)
        try:
            async with asyncio.timeout(deadline_s):
                scores = await self._rewards.score(images, prompts, rewards=names, deadline_s=told)
        except RewardError as error:
            scores = dict.fromkeys(names, [Score.failed(error)] * len(items))
        except TimeoutError:
            late = DeadlineExceeded(f"{', '.join(names)} did not answer within {deadline_s:g} s")
            scores = dict.fromkeys(names, [Score.failed(late)] * len(items))
        for name in names:
            for item, score in zip(items, scores[name], strict=True):
                self._take(item, name, revisions.get(name, ""), score)
        if any(_is_late(score) for of_reward in scores.values() for score in of_reward):
            return 1.0 if deadline_s > limit_s / 2 else 0.5
        return (time.monotonic() - began) / limit_s

    def _take(self, item: _Item, name: str, revision: str, score: Score) -> None:
        """A final score is no longer missing; a failure that may pass is the last word only so far."""
        item.scores[name] = score
        if score.error is None:
            self._answered[name] = time.monotonic()
            self._cache[item.content, name, score.revision or revision] = score
            if len(self._cache) > self._pace.cache_scores:
                self._cache.popitem(last=False)
        if score.error is None or not error_from(score.error).retryable:
            item.missing.remove(name)

    def _finish(self, item: _Item) -> None:
        self._counts["failures"] += sum(not score.ok for score in item.scores.values())
        del self._in_flight[item.key]
        item.settled.set_result(item.scores)


def _calls(items: Sequence[_Item]) -> list[tuple[list[str], tuple[_Item, ...]]]:
    """What to ask of whom: rewards that miss the same items share a call."""
    lacking: dict[str, list[_Item]] = {}
    for item in items:
        for name in item.missing:
            lacking.setdefault(name, []).append(item)
    shared: dict[tuple[_Item, ...], list[str]] = {}
    for name, of_reward in lacking.items():
        shared.setdefault(tuple(of_reward), []).append(name)
    return [(names, lacked) for lacked, names in shared.items()]


def _content_of(image: Image, prompt: str) -> bytes:
    """A key of shape, pixels and prompt: 32 bytes."""
    digest = hashlib.sha256(f"{image.shape}{image.dtype}".encode())
    digest.update(np.ascontiguousarray(image).data)
    digest.update(prompt.encode("utf-8", "surrogatepass"))
    return digest.digest()


def _is_late(score: Score) -> bool:
    return score.error is not None and isinstance(error_from(score.error), DeadlineExceeded)
