"""Between branches and rewards: previews go out as they are decoded, scores come back as tensors of the path.

Shapes: P prompts, K branches, T scored steps.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reward_services import DeadlineExceeded, Score, error_from
from trainer.branches import Branches
from trainer.costs import Devices

Scores = Mapping[str, Sequence[Score]]

_OF_LATE = 1000
"""Scores among which the share of failures is looked at."""
_ALWAYS_ALLOWED = 16
"""Failures among them that stop no run, so that one in the first batch is no large share."""


class Scoring(Protocol):
    """Where scores come from, as a rank sees it; the cluster's coordinator stands behind it."""

    def submit(
        self, images: NDArray[np.uint8], prompts: Sequence[str], rewards: Sequence[str]
    ) -> Callable[[], Scores]:
        """Send (N, H, W, 3) pictures off and return at once; calling the result waits for the scores."""
        ...

    @property
    def devices(self) -> Devices | None:
        """What the run's own reward services reserve; None where they run elsewhere: nobody knows on what."""
        ...

    def stats(self) -> Mapping[str, Any]:
        """Counters since the run began: reward_calls, images, cache_hits, retries, failures."""
        ...

    def revisions(self) -> Mapping[str, str]:
        """The revision of each reward that this rank's newest score is of."""
        ...


class Unscored:
    """`Scoring` of a run without rewards: nobody is asked for scores, and nothing stands behind it."""

    devices = Devices()

    def submit(
        self, images: NDArray[np.uint8], prompts: Sequence[str], rewards: Sequence[str]
    ) -> Callable[[], Scores]:
        """Raises ValueError: there is nobody to score them."""
        raise ValueError("the run has no rewards: set rewards.weights, and rewards.services or rewards.url")

    def stats(self) -> Mapping[str, Any]:
        """Nothing is counted."""
        return {}

    def revisions(self) -> Mapping[str, str]:
        """There are no rewards to have one."""
        return {}


class TooManyFailures(RuntimeError):  # noqa: N818  named, as all errors here, for what is wrong
    """More scores failed than rewards.failure_budget allows; the message carries the last cause."""


@dataclass(slots=True)
class FailureBudget:
    """Counts scores and failures of a run and says when there were too many of late.

    Only the latest count: a reward that dies after a day of good scores must not have to outweigh them.
    """

    share: float
    """Share of the scores that may fail."""
    stop_at_once: bool = False
    """Whether the first failure is one too many."""
    scores: int = 0
    failures: int = 0
    cause: str = ""
    """What the last failure said."""
    _failed: deque[bool] = field(default_factory=lambda: deque(maxlen=_OF_LATE))

    def count(self, score: Score) -> float:
        """The score's value, NaN where it failed."""
        failed = score.error is not None or score.value is None
        self.scores += 1
        self.failures += failed
        self._failed.append(failed)
        if score.error is None and score.value is not None:
            return score.value
        self.cause = cause_of(score)
        return float("nan")

    @property
    def exhausted(self) -> str | None:
        """Why the run must stop, or None."""
        if self.share == 0 or self.stop_at_once:
            found, failures, allowed = f"{self.failures} of {self.scores}", self.failures, 0.0
        else:
            recent, failures = len(self._failed), sum(self._failed)
            found = f"{failures} of the last {recent}"
            allowed = max(self.share * recent, _ALWAYS_ALLOWED)
        if failures <= allowed:
            return None
        return (
            f"{found} scores failed, more than rewards.on_failure and "
            f"rewards.failure_budget allow; the last: {self.cause}. "
            "Repair the reward service and run the same command to go on"
        )


def cause_of(score: Score) -> str:
    """What a score that failed says of it."""
    if score.error is None:
        return "no value"
    late = isinstance(error_from(score.error), DeadlineExceeded)
    hint = " (a call of rewards.batch_images pictures has rewards.attempt_s seconds)" if late else ""
    return f"{score.error.detail or score.error.title}{hint}"


def submit_previews(
    scoring: Scoring, branches: Branches, rewards: Sequence[str], budget: FailureBudget
) -> Callable[[], dict[str, Tensor]]:
    """Send the previews of branches to be scored; `budget` counts what comes back.

    Returns:
        A function that waits and returns {reward: (P, K, T) scores}, NaN where a score failed.
    """
    steps = sorted(branches.previews)
    pictures = np.stack([branches.previews[step] for step in steps], axis=2)
    count, width = pictures.shape[:2]
    texts = [prompt.text for prompt in branches.prompts for _ in range(width * len(steps))]
    pending = scoring.submit(pictures.reshape(-1, *pictures.shape[3:]), texts, rewards)

    def wait() -> dict[str, Tensor]:
        return {
            name: torch.tensor([budget.count(score) for score in scores]).reshape(count, width, len(steps))
            for name, scores in pending().items()
        }

    return wait


def drop_prompts(scores_PKT: Tensor) -> Tensor:
    """Make every score of a prompt NaN where one of them is."""
    failed_P = scores_PKT.isnan().flatten(1).any(1)
    return scores_PKT.masked_fill(failed_P[:, None, None], torch.nan)
