"""The statistics of an evaluation, against cases worked by hand and against simulation."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.evaluation import (
    EvaluationResult,
    PairedDifference,
    accuracy,
    accuracy_by_category,
    diversity,
    paired_difference,
)


def test_accuracy_counts_what_was_judged() -> None:
    assert accuracy([True, None, False, True, True]) == 0.75
    with pytest.raises(ValueError, match="no picture was judged"):
        accuracy([None])


def test_scalars_are_what_was_measured() -> None:
    """A mean leaves out what failed; without a judge or features there is no accuracy or diversity."""
    result = EvaluationResult(
        update=4,
        guidance=1.0,
        prompts=("a", "b"),
        categories=("", ""),
        correct=(True, None),
        scores={"jpeg": (1.0, 2.0), "shadow": (3.0, None)},
        diversity=0.5,
        statistics={"dark_share": (0.25, 0.75)},
    )
    scores = {"held_out/score/jpeg": 1.5, "held_out/score/shadow": 3.0, "held_out/dark_share": 0.5}
    assert result.scalars() == {"held_out/accuracy": 1.0, "held_out/diversity": 0.5, **scores}
    assert replace(result, correct=(None, None), diversity=None).scalars() == scores
    assert result.reward({"jpeg": 2.0, "shadow": -1.0}) == 0.0


def test_accuracy_by_category() -> None:
    verdicts = [True, False, True, None, None]
    assert accuracy_by_category(verdicts, ["count", "count", "spatial", "count", "size"]) == {
        "count": 0.5,
        "spatial": 1.0,
    }


def test_paired_difference_worked_by_hand() -> None:
    # d = 1, 1 | 0, 0: mean 1/2; sums of residuals +1 and -1; SE = sqrt(2/1 * (1 + 1)) / 4 = 1/2.
    # That is the standard error of the two cluster means 1 and 0: sd 0.7071 / sqrt 2.
    result = paired_difference([0, 0, 1, 0], [1, 1, 1, 0], ["a", "a", "b", "b"])
    assert result == PairedDifference(difference=0.5, standard_error=0.5, pictures=4, clusters=2)


def test_clusters_of_one_give_the_usual_standard_error() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=50), rng.normal(size=50)
    expected = np.std(after - before, ddof=1) / math.sqrt(50)
    result = paired_difference(before.tolist(), after.tolist(), range(50))
    assert result.standard_error == pytest.approx(expected)
    assert result.difference == pytest.approx(np.mean(after - before))


def test_a_pair_with_a_failure_is_left_out() -> None:
    complete = paired_difference([0, 1, 0], [1, 1, 0], ["a", "b", "c"])
    assert paired_difference([0, None, 1, 0, 1], [1, 1, 1, 0, None], ["a", "a", "b", "c", "d"]) == complete
    with pytest.raises(ValueError, match="needs two clusters, not 1"):
        paired_difference([0, None], [1, 1], ["a", "b"])


def test_the_standard_error_is_the_spread_of_the_mean_when_clusters_share_an_effect() -> None:
    rng = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(400):
        effects = np.repeat(rng.normal(size=40), 4) + 0.3 * rng.normal(size=160)
        result = paired_difference([0.0] * 160, effects.tolist(), np.repeat(np.arange(40), 4).tolist())
        means.append(result.difference)
        errors.append(result.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_diversity_worked_by_hand() -> None:
    # One prompt with orthogonal pictures (distance 1), one whose pictures are the same but for length (0).
    features = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0], [2.0, 2.0], [-1.0, 0.0]])
    assert diversity(features, ["a", "b", "a", "b", "alone"]) == pytest.approx(0.5)
    assert diversity(features, ["a", "b", "c", "d", "e"]) is None
    assert diversity(features[:0], []) is None


def test_diversity_is_a_mean_over_pictures() -> None:
    features = np.random.default_rng(2).normal(size=(12, 7)).astype(np.float32)
    prompts = [0, 1, 2, 1, 1, 0, 2, 1, 0, 1, 3, 2]
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    to_others = [
        np.mean([1 - unit[i] @ unit[j] for j in range(12) if j != i and prompts[j] == prompts[i]])
        for i in range(12)
        if prompts[i] != 3
    ]
    assert diversity(features, prompts) == pytest.approx(np.mean(to_others), rel=1e-5)


@pytest.mark.parametrize("features", [np.ones((2, 4, 8)), np.ones((3, 8)), np.zeros((2, 3))])
def test_diversity_refuses_what_has_none(features: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"features must be|length zero"):
        diversity(features, ["a", "a"])


def test_a_result_gives_its_headline_and_keeps_failures_apart() -> None:
    result = EvaluationResult(
        update=3,
        guidance=2.5,
        prompts=("a", "a", "b"),
        categories=("count", "count", "size"),
        correct=(True, None, False),
        scores={"clip": (1.0, 3.0, None), "jpeg": (None, None, None)},
        diversity=0.25,
        diversity_of_correct=0.125,
    )
    assert json.loads(json.dumps(result.headline())) == {
        "update": 3,
        "guidance": 2.5,
        "pictures": 3,
        "judge_failures": 1,
        "unscored": {"clip": 1, "jpeg": 3},
        "accuracy": 0.5,
        "accuracy_by_category": {"count": 1.0, "size": 0.0},
        "scores": {"clip": 2.0},
        "diversity": 0.25,
        "diversity_of_correct": 0.125,
    }
