"""Intervals and budgets by hand."""

import pytest

from trainer.compare.figures import Estimate, Point, common_limit, row, within


def point(seconds: float, accuracy: float | None, scored: float = 0.0) -> Point:
    return Point({"training_s": seconds, "images_scored": scored}, accuracy, 10 * seconds)


def test_the_interval_by_hand() -> None:
    """1, 2 and 3: standard deviation 1, and Student's t of two degrees of freedom is 4.302653."""
    found = Estimate.of([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert (found.low, found.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    assert Estimate.of([0.5]) == Estimate(0.5, None, None)
    with pytest.raises(ValueError, match="no seed"):
        Estimate.of([])


def test_a_budget_takes_the_newest_evaluation_within_it() -> None:
    points = [point(0, 0.1), point(50, 0.2), point(104, 0.3), point(150, 0.4)]
    assert within(points, "training_s", 100).accuracy == 0.3  # its last update went a little above
    assert within(points, "training_s", 90).accuracy == 0.2
    assert within(points, "training_s", 0).accuracy == 0.1
    assert within(points, "unet_evaluations", 0).accuracy == 0.4  # of which it spends nothing


def test_the_common_budget_leaves_out_who_spends_none() -> None:
    runs = {
        "one": [[point(0, 0.1), point(100, 0.2, 64)], [point(0, 0.1), point(90, 0.2, 48)]],
        "data": [[point(0, 0.1), point(120, 0.3)]],
    }
    assert common_limit(runs, "training_s", ended_runs=False) == 90
    assert common_limit(runs, "training_s", ended_runs=True) == 120, "every run's last figures count"
    assert common_limit(runs, "images_scored", ended_runs=False) == 48


def test_an_untrained_model_is_no_figure_of_a_method() -> None:
    """One of two runs was evaluated at its end alone, by when it had spent more."""
    runs = [[point(0, 0.1), point(100, 0.2)], [point(0, 0.1), point(300, 0.6)]]
    found = row("one", runs, "training_s", 100, 10)
    assert (found.accuracy, found.reward, found.diversity) == (None, None, None)
    assert row("base", [runs[0][:1]], "training_s", 100, 10).accuracy == Estimate(0.1, None, None)


def test_a_row_is_means_over_seeds() -> None:
    runs = [[point(0, 0.1), point(100, 0.2)], [point(0, 0.1), point(80, 0.4)]]
    found = row("one", runs, "training_s", 100, 10)
    assert found.accuracy is not None
    assert found.accuracy.mean == pytest.approx(0.3)
    assert found.reward is not None
    assert found.reward.mean == 900
    assert found.spent["training_s"] == 90
    assert found.diversity is None
    assert row("one", [[point(1, None)]], "training_s", 1, 10).accuracy is None
