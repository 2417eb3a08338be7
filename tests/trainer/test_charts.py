"""Line charts: round ticks that enclose the data, points where they belong, labels as data."""

import math
import re
from xml.etree import ElementTree

import pytest

from trainer.charts import Series, line_chart, running_mean, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (1, 60, [0, 20, 40, 60]),
        (-0.3, 0.7, [-0.5, -0.25, 0, 0.25, 0.5, 0.75]),
        (19.98, 20.02, [19.98, 19.99, 20.0, 20.01, 20.02]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, count=4) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0])
def test_a_constant_gets_room(value: float) -> None:
    found = ticks(value, value, count=4)
    assert found[0] < value < found[-1]


def test_values_that_rounding_alone_tells_apart_have_a_height() -> None:
    found = ticks(1e-4, math.nextafter(1e-4, 1.0), count=4)
    assert found[-1] > found[0]


def test_running_mean() -> None:
    assert running_mean([(1, 2.0), (2, 4.0), (3, 9.0)], window=2) == [(1, 2.0), (2, 3.0), (3, 6.5)]


def test_higher_values_are_drawn_higher_and_later_ones_further_right() -> None:
    svg = line_chart([Series("a", [(0, 0.0), (5, 1.0), (10, 0.5)])], name="chart")
    points = re.search(r'points="([^"]*)"', svg)
    assert points
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points[1].split())
    assert x0 < x1 < x2
    assert y1 < y2 < y0
    assert y2 == pytest.approx((y0 + y1) / 2)


def test_an_svg_is_well_formed_whatever_the_labels() -> None:
    label = "<b>&\"'"
    root = ElementTree.fromstring(line_chart([Series(label, [(1, 0.5)])], name=label, percent=True))
    assert root.get("aria-label") == label
    texts = [element.text for element in root.iter("text")]
    assert label in texts
    assert "50 %" in texts


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="'loss' has no points"):
        line_chart([Series("a", [])], name="loss")
