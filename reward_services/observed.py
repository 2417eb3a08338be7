"""What a replica measures of itself: items by outcome, seconds by phase, scores and whether they drift.

Plain Python: a `Record` carries each value to wherever metrics go. Labels are few and bounded: rewards,
phases, outcomes, buckets and revisions, never a prompt, a caller or a run.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, ParamSpec, Protocol, TypeVar

import numpy as np
from pydantic import FiniteFloat, TypeAdapter

from reward_services.config import Observe
from reward_services.drift import ScoreWindow, edges_within
from reward_services.errors import PROBLEM_PREFIX, ConfigInvalid
from reward_services.schema import RewardInfo, Score

Phase = Literal["queue", "prepare", "run", "total"]
Given = ParamSpec("Given")
Result = TypeVar("Result")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_NUMBERS = TypeAdapter(list[FiniteFloat])


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: what it is called, how it counts, what it means, and by what it is told apart."""

    name: str
    """Without Ray's prefix `ray_`; the `_total` of a counter is added by whoever exports it."""
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ("reward",)
    buckets: tuple[float, ...] = ()


class Record(Protocol):
    """Takes a value to where metrics go: what a counter gains, what a gauge is now, what was measured."""

    def __call__(self, metric: Metric, value: float, /, **labels: str) -> None:
        """Note the value; `labels` are those of the metric."""
        ...


REQUEST_SECONDS = Metric(
    "reward_request_seconds",
    "histogram",
    "Seconds: `queue` from a call's arrival to its batch, `prepare` and `run` of a batch, `total` of a call",
    ("reward", "phase"),
    _SECONDS,
)
ITEMS = Metric(
    "reward_items", "counter", "Items by outcome: `ok`, or the type of the problem", ("reward", "outcome")
)
ITEMS_UNDER_WAY = Metric(
    "reward_items_under_way", "gauge", "Items that a replica holds, waiting ones included"
)
BATCH_ITEMS = Metric("reward_batch_items", "histogram", "Items scored at once", buckets=_SIZES)
SCORES = Metric(
    "reward_scores",
    "gauge",
    "Scores so far that are at most `up_to`; a gauge, for Ray's histograms begin at 0 and are alike for all",
    ("reward", "up_to"),
)
MODEL_INFO = Metric(
    "reward_model_info", "gauge", "1 for what is served, 0 for what was", ("reward", "revision", "dtype")
)
GOLDEN_DELTA = Metric(
    "reward_golden_delta", "gauge", "The golden sample's score now, less that of the replica's start"
)
STATISTICS = {
    "mean": Metric("reward_score_mean", "gauge", "Mean of the latest scores"),
    "std": Metric("reward_score_std", "gauge", "Standard deviation of the latest scores"),
    "drift": Metric(
        "reward_score_drift",
        "gauge",
        "Kolmogorov-Smirnov distance of the latest scores to the reference, 0 to 1",
    ),
    "saturation": Metric(
        "reward_score_saturation", "gauge", "Share of the latest scores at an end of the reward's range"
    ),
    "duplicates": Metric("reward_score_duplicates", "gauge", "Share of the latest scores that equal another"),
}
METRICS = (
    REQUEST_SECONDS,
    ITEMS,
    ITEMS_UNDER_WAY,
    BATCH_ITEMS,
    SCORES,
    MODEL_INFO,
    GOLDEN_DELTA,
    *STATISTICS.values(),
)


def outcome(score: Score) -> str:
    """`ok`, or the type of the problem: one of the few in `errors`."""
    return score.error.type.removeprefix(PROBLEM_PREFIX) if score.error else "ok"


class Observed:
    """The measurements of one replica of the reward called `reward`."""

    def __init__(self, reward: str, record: Record) -> None:
        self._reward = reward
        self._record = record
        self._under_way = 0
        self._serves: tuple[str, str, Observe] | None = None
        self._edges: tuple[float, ...] = ()
        self._counts = np.zeros(0, np.int64)
        self._window = ScoreWindow(1)

    def serve(self, info: RewardInfo, *, dtype: str, options: Observe) -> None:
        """From now on the scores of this revision are watched.

        Raises:
            ConfigInvalid: the reference that the options name cannot be read.
        """
        before, now = self._serves, (info.revision, dtype, options)
        if now == before:
            return
        self._window = ScoreWindow(
            options.window, score_range=info.range, reference=read_reference(options.reference)
        )
        self._edges = (*(options.score_edges or edges_within(info.range)), math.inf)
        self._counts = np.zeros(len(self._edges), np.int64)
        self._note_counts()
        self._serves = now
        if before is not None:
            self._note(MODEL_INFO, 0, revision=before[0], dtype=before[1])
        self._note(MODEL_INFO, 1, revision=info.revision, dtype=dtype)

    @contextmanager
    def holding(self, items: int) -> Iterator[None]:
        """So many items are under way within this block."""
        self._under_way += items
        self._note(ITEMS_UNDER_WAY, self._under_way)
        try:
            yield
        finally:
            self._under_way -= items
            self._note(ITEMS_UNDER_WAY, self._under_way)

    def timed(self, phase: Phase, work: Callable[Given, Result]) -> Callable[Given, Result]:
        """The same work, timed where it runs: without the wait for a thread."""

        def timed(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            began = time.monotonic()
            try:
                return work(*args, **kwargs)
            finally:
                self.took(phase, time.monotonic() - began)

        return timed

    def took(self, phase: Phase, seconds: float) -> None:
        """Note the duration of a phase."""
        self._note(REQUEST_SECONDS, seconds, phase=phase)

    def batched(self, items: int) -> None:
        """Note the size of a batch."""
        self._note(BATCH_ITEMS, items)

    def rescored(self, delta: float) -> None:
        """Note how far the golden sample's score has moved."""
        self._note(GOLDEN_DELTA, delta)

    def scored(self, scores: Sequence[Score]) -> None:
        """Note what came of the items of a batch."""
        for name, count in Counter(map(outcome, scores)).items():
            self._note(ITEMS, count, outcome=name)
        watched = self._serves[0] if self._serves else None
        # Just after a change the model before may still answer: its scores are not those of this window.
        values = [score.value for score in scores if score.value is not None and score.revision == watched]
        if not values:
            return
        self._counts += np.searchsorted(np.sort(values), self._edges, side="right")
        if self._window.add(values):
            self._note_counts()
            for name, value in self._window.statistics().items():
                self._note(STATISTICS[name], value)

    def _note_counts(self) -> None:
        for edge, count in zip(self._edges, self._counts.tolist(), strict=True):
            self._note(SCORES, count, up_to="+Inf" if math.isinf(edge) else f"{edge:g}")

    def _note(self, metric: Metric, value: float, **labels: str) -> None:
        self._record(metric, value, reward=self._reward, **labels)


def read_reference(path: str | None) -> list[float]:
    """Scores from a JSON file, a list of numbers; none without a file.

    Raises:
        ConfigInvalid: it cannot be read or is something else.
    """
    if path is None:
        return []
    try:
        scores = _NUMBERS.validate_python(json.loads(Path(path).read_text(encoding="utf-8")), strict=True)
    except (OSError, ValueError) as error:
        raise ConfigInvalid(
            f"observe.reference {path} is no JSON list of scores ({type(error).__name__})"
        ) from error
    if not scores:
        raise ConfigInvalid(f"observe.reference {path} has no scores")
    return scores
