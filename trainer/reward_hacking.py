"""The reward-hacking watch: does the training reward rise alone?

Held-out pictures of a later model are put beside those from before training, same prompts and seeds. Rewards,
judge and statistics are brought to one scale: the change of the mean in standard deviations of the pictures
before. The training reward rising while the judge or a shadow reward falls, or rising far beyond them, is a
gap. Pictures that look otherwise than before, or alike, are a symptom.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trainer.config import RewardsConfig, WatchConfig
from trainer.evaluation import EvaluationResult, paired_difference

TRAINED = "training reward"
_SURE = 3.0
"""Standard errors beyond which a mean has changed."""

Kind = Literal["trained", "judge", "shadow", "statistic"]


@dataclass(frozen=True, slots=True)
class Change:
    """How the mean of one figure moved since before training."""

    name: str
    kind: Kind
    before: float
    after: float
    standard_error: float
    """Of the difference, clustered by prompt."""
    deviations: float
    """The difference in standard deviations of the pictures before; 0 where these were all the same."""

    @property
    def rose(self) -> bool:
        """Surely higher."""
        return self.after - self.before > _SURE * self.standard_error

    @property
    def fell(self) -> bool:
        """Surely lower."""
        return self.before - self.after > _SURE * self.standard_error


@dataclass(frozen=True, slots=True)
class Watched:
    """What the watch saw at one evaluation."""

    update: int
    changes: tuple[Change, ...]
    gaps: tuple[str, ...]
    """Clauses that say which judge or shadow the training reward has left behind, and how far."""
    symptoms: tuple[str, ...]
    """Clauses that say what has become of the pictures; it may be what was asked for."""

    def summary(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def watch(
    before: EvaluationResult, now: EvaluationResult, rewards: RewardsConfig, options: WatchConfig
) -> Watched:
    """Compare two evaluations of the same prompts and seeds."""
    changes = tuple(_changes(before, now, rewards))
    trained = next((change for change in changes if change.kind == "trained"), None)
    return Watched(
        update=now.update,
        changes=changes,
        gaps=tuple(_gaps(trained, changes, options)) if trained and trained.rose else (),
        symptoms=(*_moved(changes, options), *_alike(before, now, options)),
    )


def _changes(before: EvaluationResult, now: EvaluationResult, rewards: RewardsConfig) -> Iterator[Change]:
    """Of what has pictures of two prompts to compare: rewards fail."""
    for name, kind in _kinds(now, rewards).items():
        earlier, later = (_values(result, name, kind, rewards) for result in (before, now))
        known = [
            (b, a, prompt)
            for b, a, prompt in zip(earlier, later, now.prompts, strict=True)
            if b is not None and a is not None
        ]
        if len({prompt for *_, prompt in known}) > 1:
            yield _change(name, kind, *zip(*known, strict=True))


def _kinds(now: EvaluationResult, rewards: RewardsConfig) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {TRAINED: "trained"}
    if rewards.judge:
        kinds[rewards.judge] = "judge"
    kinds |= dict.fromkeys(rewards.shadows, "shadow")
    kinds |= dict.fromkeys(now.statistics, "statistic")
    return kinds


def _values(
    result: EvaluationResult, name: str, kind: Kind, rewards: RewardsConfig
) -> Sequence[float | None]:
    if kind == "trained":
        return _trained(result, rewards)
    return result.statistics[name] if kind == "statistic" else result.scores[name]


def _trained(result: EvaluationResult, rewards: RewardsConfig) -> list[float | None]:
    """Each picture's weighted sum of the training rewards; None where one of them failed."""
    columns = zip(*(result.scores[name] for name in rewards.weights), strict=True)
    weights = list(rewards.weights.values())
    return [
        sum(weight * score for weight, score in zip(weights, scores, strict=True))
        if None not in scores
        else None
        for scores in columns
    ]


def _change(
    name: str, kind: Kind, before: Sequence[float], after: Sequence[float], prompts: Sequence[str]
) -> Change:
    difference, spread = paired_difference(before, after, prompts), statistics.pstdev(before)
    return Change(
        name=name,
        kind=kind,
        before=statistics.fmean(before),
        after=statistics.fmean(after),
        standard_error=difference.standard_error,
        deviations=difference.difference / spread if spread else 0.0,
    )


def _gaps(trained: Change, changes: Sequence[Change], options: WatchConfig) -> Iterator[str]:
    """Each judge or shadow that fell, or stayed far behind."""
    for other in changes:
        left_behind = other.fell or trained.deviations - other.deviations > options.gap
        if other.kind in ("judge", "shadow") and left_behind:
            yield (
                f"the {TRAINED} rose by {trained.deviations:.2f} standard deviations, while the {other.kind} "
                f"{other.name} changed by {other.deviations:+.2f}"
            )


def _moved(changes: Sequence[Change], options: WatchConfig) -> Iterator[str]:
    for look in changes:
        if look.kind == "statistic" and abs(look.deviations) > options.shift and (look.rose or look.fell):
            yield (
                f"{look.name} went from {look.before:.3g} to {look.after:.3g}, "
                f"{look.deviations:+.2f} standard deviations"
            )


def _alike(before: EvaluationResult, now: EvaluationResult, options: WatchConfig) -> Iterator[str]:
    """Diversity that is lost; between correct pictures where it is known, as every mistake is another."""
    for name, was, left in (
        ("diversity of correct pictures", before.diversity_of_correct, now.diversity_of_correct),
        ("diversity", before.diversity, now.diversity),
    ):
        if was is not None and left is not None:
            if left < options.diversity_kept * was:
                yield f"{name} went from {was:.3f} to {left:.3f}"
            return
