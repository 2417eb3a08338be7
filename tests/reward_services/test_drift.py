"""Drift: the distance against scipy's, when it is known, and what else is said of the latest scores."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

from reward_services.drift import ScoreWindow, distance, edges_within


@pytest.mark.parametrize("shift", [0.0, 0.3, 10.0])
@pytest.mark.parametrize("digits", [None, 0])
def test_the_distance_is_that_of_scipy(shift: float, digits: int | None) -> None:
    """With `digits` 0 the scores have a few values only, so that many are equal."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=300), rng.normal(shift, size=200)
    if digits is not None:
        one, other = one.round(digits), other.round(digits)
    assert distance(np.sort(one), np.sort(other)) == pytest.approx(ks_2samp(one, other).statistic)


def test_scores_of_one_distribution_do_not_drift_and_others_do() -> None:
    rng = np.random.default_rng(1)
    window = ScoreWindow(1000)
    window.add(rng.normal(size=1000).tolist())
    window.add(rng.normal(size=1000).tolist())
    assert window.statistics()["drift"] < 0.087
    window.add(rng.normal(1.0, size=1000).tolist())
    # The distribution functions of N(0, 1) and N(1, 1) differ most half way: 2 Φ(1/2) - 1 = 0.383.
    assert window.statistics()["drift"] == pytest.approx(0.383, abs=0.05)


def test_the_first_scores_are_the_reference_until_one_is_given() -> None:
    window = ScoreWindow(10)
    window.add([0.0] * 9)
    assert "drift" not in window.statistics(), "neither window nor reference is full"
    window.add([0.0])
    assert window.statistics()["drift"] == 0.0
    given = ScoreWindow(10, reference=[3.0, 2.0, 1.0])
    given.add([0.0] * 9)
    assert "drift" not in given.statistics(), "too few scores to be told from chance"
    given.add([0.0])
    assert given.statistics()["drift"] == 1.0


def test_only_the_latest_scores_count() -> None:
    window = ScoreWindow(10, score_range=(0.0, 1.0))
    window.add([100.0] * 50)
    window.add([0.0, 1.0, 1.0, 0.5, 0.25, 0.1, 0.2, 0.3, 0.4, 0.6])
    found = window.statistics()
    assert found["mean"] == pytest.approx(0.435)
    assert found["std"] == pytest.approx(np.std([0.0, 1.0, 1.0, 0.5, 0.25, 0.1, 0.2, 0.3, 0.4, 0.6]))
    assert found["saturation"] == pytest.approx(0.3)
    assert found["duplicates"] == pytest.approx(0.1)


def test_an_unbounded_reward_has_no_saturation() -> None:
    window = ScoreWindow(10)
    window.add([0.0, 1.0])
    assert "saturation" not in window.statistics()


def test_statistics_are_due_ten_times_a_window() -> None:
    window = ScoreWindow(100)
    assert [window.add([0.0] * 4) for _ in range(3)] == [False, False, True]
    window.statistics()
    assert not window.add([0.0])


def test_edges_follow_the_range() -> None:
    assert edges_within((0.0, 1.0))[:3] == (0.0, 0.025, 0.05)
    assert (edges_within((-100.0, 100.0))[0], edges_within((-100.0, 100.0))[-1]) == (-100.0, 100.0)
    unbounded = edges_within((None, None))
    assert {-2.0, -0.5, 0.0, 0.5, 2.0, 100.0} <= set(unbounded)
    assert list(unbounded) == sorted(unbounded)
    assert edges_within((None, 0.0)) == unbounded
