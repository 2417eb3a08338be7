"""What held-out pictures say about a model: accuracy, its change with a clustered standard error, diversity.

Axes: N pictures, K of them of one prompt, d features.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

CORRECT_FROM = 0.5
"""The judge's score from which on a picture counts as correct."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much a figure changed over the same prompts and seeds."""

    difference: float
    """Mean of after - before."""
    standard_error: float
    """Its standard error, clustered: pictures of one prompt do not count as independent."""
    pictures: int
    """Pictures judged both times."""
    clusters: int
    """Prompts among them."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Judged pictures of held-out prompts, drawn plainly (no search), fixed seeds; one entry a picture."""

    update: int
    """Updates in the weights that drew them."""
    guidance: float
    """Scale of classifier-free guidance they were drawn with."""
    prompts: tuple[str, ...]
    categories: tuple[str, ...]
    correct: tuple[bool | None, ...]
    """The judge's verdict, a score of `CORRECT_FROM` or more; None where the judge failed."""
    scores: Mapping[str, tuple[float | None, ...]]
    """Scores by reward; None where the reward failed."""
    diversity: float | None
    """Mean cosine distance of a picture to the others of its prompt; None when it was not measured."""
    diversity_of_correct: float | None = None
    """The same between correct pictures: without it a model that makes fewer mistakes looks less diverse."""
    statistics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What is told of pictures without a model, by statistic: see `trainer.statistics`."""
    spent: Mapping[str, float] = field(default_factory=dict)
    """What training had spent by then: training_s, unet_evaluations, images_scored."""

    @property
    def is_judged(self) -> bool:
        """Whether a judge gave any verdict."""
        return any(verdict is not None for verdict in self.correct)

    @property
    def accuracy(self) -> float:
        """Share of the judged pictures that are correct."""
        return accuracy(self.correct)

    @property
    def accuracy_by_category(self) -> dict[str, float]:
        """The same within each category that has a judged picture."""
        return accuracy_by_category(self.correct, self.categories)

    @property
    def mean_scores(self) -> dict[str, float]:
        """Mean of the scores that did not fail, for each reward that has one."""
        present = {name: [s for s in scores if s is not None] for name, scores in self.scores.items()}
        return {name: math.fsum(scores) / len(scores) for name, scores in present.items() if scores}

    @property
    def unscored(self) -> dict[str, int]:
        """Pictures that each reward gave no score of; without the rewards that scored all."""
        counts = {name: scores.count(None) for name, scores in self.scores.items()}
        return {name: count for name, count in counts.items() if count}

    def reward(self, weights: Mapping[str, float]) -> float:
        """The training reward: the weighted sum of mean scores, each of which there must be."""
        means = self.mean_scores
        return math.fsum(weight * means[name] for name, weight in weights.items())

    def scalars(self) -> dict[str, float]:
        """The figures as trackers and curves have them, under held_out/; the unmeasured is left out."""
        figures = {
            "accuracy": self.accuracy if self.is_judged else None,
            "diversity": self.diversity,
            "diversity_of_correct": self.diversity_of_correct,
            **{f"score/{name}": mean for name, mean in self.mean_scores.items()},
            **{name: math.fsum(values) / len(values) for name, values in self.statistics.items()},
        }
        return {f"held_out/{name}": value for name, value in figures.items() if value is not None}

    def headline(self) -> dict[str, Any]:
        """The figures without the pictures, as JSON can hold them."""
        return {
            "update": self.update,
            "guidance": self.guidance,
            "pictures": len(self.correct),
            "judge_failures": self.correct.count(None),
            "unscored": self.unscored,
            "accuracy": self.accuracy if self.is_judged else None,
            "accuracy_by_category": self.accuracy_by_category,
            "scores": self.mean_scores,
            "diversity": self.diversity,
            "diversity_of_correct": self.diversity_of_correct,
        }


def accuracy(correct: Sequence[bool | None]) -> float:
    """Share of True among the verdicts that are not None. Raises ValueError when there is none."""
    judged = [verdict for verdict in correct if verdict is not None]
    if not judged:
        raise ValueError("no picture was judged, so there is no accuracy")
    return sum(judged) / len(judged)


def accuracy_by_category(correct: Sequence[bool | None], categories: Sequence[str]) -> dict[str, float]:
    """Accuracy of each category, in order of first appearance; one without a judged picture is left out."""
    verdicts = defaultdict(list)
    for verdict, category in zip(correct, categories, strict=True):
        if verdict is not None:
            verdicts[category].append(verdict)
    return {category: accuracy(of_category) for category, of_category in verdicts.items()}


def paired_difference(
    before: Sequence[float | None], after: Sequence[float | None], clusters: Sequence[Hashable]
) -> PairedDifference:
    """Mean of after - before over N pairs, with the standard error of clustered observations.

    With d the differences, m their mean and G clusters (Liang and Zeger 1986, for a mean):
    SE = sqrt(G / (G - 1) · Σ_g (Σ_{i in g} (d_i - m))²) / N, the usual one when a cluster holds one pair.
    Pairs with a None are left out. Raises ValueError with fewer than two clusters.
    """
    differences = [
        (float(b) - float(a), cluster)
        for a, b, cluster in zip(before, after, clusters, strict=True)
        if a is not None and b is not None
    ]
    groups = len({cluster for _, cluster in differences})
    if groups < 2:
        raise ValueError(f"a clustered standard error needs two clusters, not {groups}")
    mean = math.fsum(difference for difference, _ in differences) / len(differences)
    residuals: dict[Hashable, float] = defaultdict(float)
    for difference, cluster in differences:
        residuals[cluster] += difference - mean
    variance = groups / (groups - 1) * math.fsum(residual**2 for residual in residuals.values())
    return PairedDifference(mean, math.sqrt(variance) / len(differences), len(differences), groups)


def diversity(features_Nd: NDArray[np.floating[Any]], prompts: Sequence[Hashable]) -> float | None:
    """Mean cosine distance of a picture to the others of its prompt; 0 is collapse.

    Features need no unit length; a prompt with a single picture does not count. None where all are single.
    Raises ValueError unless there is one feature, not zero, for each prompt.
    """
    if features_Nd.ndim != 2 or len(features_Nd) != len(prompts):
        raise ValueError(f"features must be ({len(prompts)} pictures, d), not {features_Nd.shape}")
    norms_N1 = np.linalg.norm(features_Nd, axis=-1, keepdims=True)
    if not np.all(norms_N1 > 0):
        raise ValueError("a feature of length zero has no direction")
    rows_of = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows_of[prompt].append(row)
    unit_Nd = features_Nd.astype(np.float64) / norms_N1
    groups = [unit_Nd[rows] for rows in rows_of.values() if len(rows) > 1]
    if not groups:
        return None
    # |Σ_k f_k|² = K + the cosines of all K(K - 1) ordered pairs.
    cosines = [(np.square(group.sum(0)).sum() - len(group)) / (len(group) - 1) for group in groups]
    return 1 - float(sum(cosines)) / sum(len(group) for group in groups)
