"""`Scoring` by the embedded rewards in a process of its own, without Ray; a batch may be made to wait."""

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward_services import Score
from reward_services.scorers import SCORERS
from reward_services.scorers.scorer import Scorer

SHAPES = Path(__file__).parent.parent / "deploy" / "shapes"
REWARDS = {"preference": SHAPES / "preference-clip", "clip": SHAPES / "clip"}
BATCHES_AT_ONCE = 4
"""As the coordinator has it."""

_scorers: dict[str, Scorer[Any, Any]] = {}


class RewardsBeside:
    """`Scoring` by the embedded world's rewards in another process; a batch takes `latency_ms` longer."""

    devices = None

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, context, initializer=_load_rewards)
        self._threads = ThreadPoolExecutor(BATCHES_AT_ONCE)
        self.latency_ms = 0
        self._calls = 0

    def submit(
        self, images: NDArray[np.uint8], prompts: Sequence[str], rewards: Sequence[str]
    ) -> Callable[[], Mapping[str, Sequence[Score]]]:
        self._calls += len(rewards)
        return self._threads.submit(self._answer, images, list(prompts), list(rewards)).result

    def stats(self) -> Mapping[str, float]:
        return {"reward_calls": float(self._calls)}

    def revisions(self) -> Mapping[str, str]:
        return {}

    def _answer(
        self, images: NDArray[np.uint8], prompts: list[str], rewards: list[str]
    ) -> Mapping[str, Sequence[Score]]:
        time.sleep(self.latency_ms / 1000)
        return self._process.submit(_score, images, prompts, rewards).result()

    def close(self) -> None:
        self._threads.shutdown()
        self._process.shutdown()


def _load_rewards() -> None:
    for name, folder in REWARDS.items():
        _scorers[name] = SCORERS["clip"](model=str(folder), torch_threads=1)


def _score(
    images: NDArray[np.uint8], prompts: list[str], rewards: list[str]
) -> Mapping[str, Sequence[Score]]:
    return {name: _scorers[name].score(list(images), prompts) for name in rewards}
