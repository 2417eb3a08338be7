"""The latest scores of a reward beside a reference: how they lie, and how far they have moved.

The distance is the Kolmogorov-Smirnov statistic: the largest difference between two distribution functions,
0 where they are equal and 1 where they do not overlap. It needs no bins, so scores of a few values are no
special case, and two samples of n from one distribution are further apart than 1.95 √(2/n) once in a thousand
times (0.087 for n = 1000; N. Smirnov, Ann. Math. Statist. 19, 1948).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Range = tuple[float | None, float | None]
Scores = NDArray[np.float64]

_UPDATES_PER_WINDOW = 10


class ScoreWindow:
    """The last `size` scores. The reference is given, or the first `size` scores that come.

    Args:
        size: scores in the window.
        score_range: (lowest, highest) score; None is unbounded.
        reference: scores in any order.
    """

    def __init__(
        self, size: int, *, score_range: Range = (None, None), reference: Sequence[float] = ()
    ) -> None:
        self._latest: deque[float] = deque(maxlen=size)
        self._ends = [end for end in score_range if end is not None]
        self._reference = np.sort(np.asarray(reference, np.float64)) if len(reference) else None
        self._due_every = max(size // _UPDATES_PER_WINDOW, 1)
        self._since = 0

    def add(self, scores: Sequence[float]) -> bool:
        """Take in new scores; returns whether so many came that it is time to look at `statistics`."""
        for score in scores:
            self._latest.append(score)
            if self._reference is None and len(self._latest) == self._latest.maxlen:
                self._reference = np.sort(self._latest)
        self._since += len(scores)
        return self._since >= self._due_every

    def statistics(self) -> dict[str, float]:
        """`mean`, `std`, `duplicates` and, of a bounded reward, `saturation`; `drift` of a full window.

        duplicates: share of the scores that another one before them equals.
        saturation: share of the scores that lie at an end of the range.
        """
        self._since = 0
        latest = np.sort(self._latest)
        found = {
            "mean": float(latest.mean()),
            "std": float(latest.std()),
            "duplicates": 1.0 - len(np.unique(latest)) / len(latest),
        }
        if self._ends:
            found["saturation"] = float(np.isin(latest, self._ends).mean())
        if self._reference is not None and len(latest) == self._latest.maxlen:
            found["drift"] = distance(self._reference, latest)
        return found


def distance(one: Scores, other: Scores) -> float:
    """The Kolmogorov-Smirnov statistic of two sorted samples, 0 to 1."""
    both = np.concatenate([one, other])
    shares = [np.searchsorted(sample, both, side="right") / len(sample) for sample in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def edges_within(score_range: Range) -> tuple[float, ...]:
    """Upper ends of buckets of scores: 40 equal steps of a bounded range, else 1, 2, 5, 10, ... both ways."""
    lowest, highest = score_range
    if lowest is not None and highest is not None:
        return tuple(float(edge) for edge in np.round(np.linspace(lowest, highest, 41), 6))
    steps = [digit * 10.0**power for power in range(-2, 5) for digit in (1, 2, 5)]
    return tuple(round(edge, 6) for edge in (*(-step for step in reversed(steps)), 0.0, *steps))
