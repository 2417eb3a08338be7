"""How the coordinator batches, waits and retries, and how many images are with the rewards at a time."""

import random
from dataclasses import dataclass

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How the coordinator batches, waits and retries."""

    batch_images: int = 128
    """Most images of one call to the rewards."""
    window_ms: float = 5.0
    """How long the first image of a batch waits for those of other ranks."""
    batches_at_once: int = 4
    attempt_s: float = 30.0
    """Deadline of one attempt; no more than half of `deadline_s`, so that there is another."""
    deadline_s: float = 180.0
    """How long an image waits for a reward that scores nothing meanwhile, neither it nor another, before it
    has failed; longer than a replica takes to restart."""
    revisions_s: float = 30.0
    """How long a reward's revision is believed without asking again."""
    cache_scores: int = 200_000

    @property
    def limit_s(self) -> float:
        """Of one attempt."""
        return min(self.attempt_s, self.deadline_s / 2)


class Allowance:
    """How many images may be under way: all that pace allows, until a call is late.

    A call that outlasts its deadline waited for others at the replica, or is too large. Then a quarter of
    what was under way may be; every later call that takes less than half its time adds as many as it had.
    """

    def __init__(self, pace: Pace) -> None:
        self._most = pace.batch_images * pace.batches_at_once
        self._allowed, self.under_way = self._most, 0

    @property
    def left(self) -> int:
        """Images that may be sent."""
        return self._allowed - self.under_way

    def note(self, images: int, share: float) -> None:
        """A call of so many images took this share of its time: 1 if it was late."""
        if share >= 1:
            self._allowed = max(1, min(self._allowed, self.under_way) // 4)
        elif share < 0.5:
            self._allowed = min(self._most, self._allowed + images)


def pause_s(attempt: int) -> float:
    """Seconds before the next attempt: exponential, with jitter."""
    pause: float = min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)
    return pause * random.uniform(1.0, 1.5)
