"""How busy each reward is, as this endpoint sees it: what is in flight, and how the last minute went.

Every replica of the endpoint knows its own share only; /metrics is what adds up across them.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from reward_services.schema import Latency, RewardLoad, ScoredItem

WINDOW_S = 60.0

Answered = Callable[[Sequence[ScoredItem]], None]


@dataclass(frozen=True, slots=True)
class _Request:
    """One that has ended; without an answer its images have failed and its time says nothing."""

    ended_s: float
    scored: int
    failed: int
    latency_s: float | None


@dataclass(slots=True)
class _Reward:
    in_flight_images: int = 0
    ended: deque[_Request] = field(default_factory=deque)


class Load:
    """Counts requests as they come and go; what ended longer than `window_s` ago is forgotten."""

    def __init__(self, *, window_s: float = WINDOW_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s, self._clock = window_s, clock
        self._rewards: dict[str, _Reward] = defaultdict(_Reward)

    @contextmanager
    def under_way(self, rewards: Sequence[str], images: int) -> Iterator[Answered]:
        """Within the context the images are in flight; call what it yields with the answer, if any."""
        started_s = self._clock()
        answer: Sequence[ScoredItem] = ()

        def answered(items: Sequence[ScoredItem]) -> None:
            nonlocal answer
            answer = items

        self._add(rewards, images)
        try:
            yield answered
        finally:
            self._add(rewards, -images)
            now_s = self._clock()
            for name in rewards:
                scored = sum(item.scores[name].ok for item in answer)
                latency_s = now_s - started_s if answer else None
                self._rewards[name].ended.append(_Request(now_s, scored, images - scored, latency_s))
                self._forget(self._rewards[name], now_s)

    def of(self, name: str) -> RewardLoad:
        """One reward's load now; of a reward that nobody asked for it is zero."""
        reward = self._rewards[name]
        self._forget(reward, self._clock())
        latencies_s = [request.latency_s for request in reward.ended if request.latency_s is not None]
        return RewardLoad(
            id=name,
            in_flight_images=reward.in_flight_images,
            images_per_s=round(sum(request.scored for request in reward.ended) / self._window_s, 3),
            failed_images=sum(request.failed for request in reward.ended),
            latency_ms=_latency(latencies_s) if latencies_s else None,
        )

    def _add(self, rewards: Sequence[str], images: int) -> None:
        for name in rewards:
            self._rewards[name].in_flight_images += images

    def _forget(self, reward: _Reward, now_s: float) -> None:
        while reward.ended and reward.ended[0].ended_s <= now_s - self._window_s:
            reward.ended.popleft()


def _latency(latencies_s: list[float]) -> Latency:
    p50, p95 = np.percentile(latencies_s, (50, 95)) * 1000
    return Latency(p50=round(float(p50), 3), p95=round(float(p95), 3))
