"""GenEval's rules on worked cases: numbers, colours, places, what must not be there; its metadata."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_services.errors import ConfigInvalid
from reward_services.geneval.rules import MOST_OBJECTS, Found, Task, is_right, places, read_tasks

Box = tuple[float, float, float, float]
LEFT, RIGHT, UPPER = (0.0, 40.0, 20.0, 60.0), (80.0, 40.0, 100.0, 60.0), (40.0, 0.0, 60.0, 20.0)


def task(*include: dict[str, Any], tag: str = "two_object", exclude: Sequence[Any] = ()) -> Task:
    return Task.model_validate({"prompt": "p", "tag": tag, "include": include, "exclude": exclude})


def found(name: str, box: Box = LEFT, confidence: float = 0.95) -> Found:
    return Found(name, confidence, box, np.ones((1, 1), dtype=np.bool_))


def in_colour(*colours: str) -> Any:
    """Names the colours of objects in the order in which they are asked for."""
    return lambda _, objects: list(colours)[: len(objects)]


def right(wanted: Task, *objects: Found, colours: Sequence[str] = ()) -> bool:
    return is_right(wanted, objects, in_colour(*colours))


def test_every_class_must_be_there() -> None:
    both = task({"class": "bench", "count": 1}, {"class": "clock", "count": 1})
    assert right(both, found("clock"), found("bench"))
    assert right(both, found("clock"), found("bench"), found("dog"))
    assert not right(both, found("bench"))
    assert not right(both, found("bench"), found("clock", confidence=0.3))


def test_numbers_are_at_least_and_below_what_is_excluded() -> None:
    three = task({"class": "cat", "count": 3}, tag="counting", exclude=[{"class": "cat", "count": 4}])
    assert right(three, *[found("cat")] * 3)
    assert not right(three, *[found("cat")] * 2)
    assert not right(three, *[found("cat")] * 4)
    # Counting wants to be surer: an object at 0.9 does not count, one above does.
    assert right(three, *[found("cat")] * 3, found("cat", confidence=0.9))
    assert not right(three, *[found("cat")] * 3, found("cat", confidence=0.901))


def test_a_crowd_counts_as_the_most_there_can_be() -> None:
    crowd = [found("cat")] * (MOST_OBJECTS + 1)
    assert right(task({"class": "cat", "count": MOST_OBJECTS}), *crowd)
    assert not right(task({"class": "cat", "count": MOST_OBJECTS + 1}), *crowd)


def test_all_that_are_wanted_have_the_colour() -> None:
    two_red = task({"class": "car", "count": 2, "color": "red"})
    assert right(two_red, *[found("car")] * 2, colours=["red", "red"])
    assert not right(two_red, *[found("car")] * 2, colours=["red", "blue"])


def test_the_surest_object_is_asked_for_its_colour() -> None:
    asked: list[float] = []

    def colours_of(_: str, objects: Sequence[Found]) -> list[str]:
        asked.extend(one.confidence for one in objects)
        return ["red"] * len(objects)

    one_red = task({"class": "car", "count": 1, "color": "red"})
    assert is_right(one_red, [found("car", confidence=0.5), found("car", confidence=0.8)], colours_of)
    assert asked == [0.8]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (LEFT, {"left of"}),
        (RIGHT, {"right of"}),
        (UPPER, {"above"}),
        ((40.0, 90.0, 60.0, 110.0), {"below"}),
        # 40 to the left and 40 up, of which 4 are within a tenth of the sizes: 36 / 56.6 = 0.64 both ways.
        ((0.0, 0.0, 20.0, 20.0), {"left of", "above"}),
        # 30 and 15, of which 26 and 11 count: of a distance of 33.5 they are 0.78 and 0.33.
        ((10.0, 25.0, 30.0, 45.0), {"left of"}),
        # 4 to the right of it, which is a tenth of 20 + 20.
        ((44.0, 40.0, 64.0, 60.0), set()),
        ((40.0, 40.0, 60.0, 60.0), set()),
    ],
)
def test_places_around_a_box(box: Box, expected: set[str]) -> None:
    assert places(box, (40.0, 40.0, 60.0, 60.0)) == expected


def test_a_place_is_seen_from_an_earlier_clause() -> None:
    wanted = task({"class": "bench", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]})
    assert right(wanted, found("bench", LEFT), found("dog", RIGHT))
    assert not right(wanted, found("bench", RIGHT), found("dog", LEFT))
    assert not right(wanted, found("dog", RIGHT))


def test_every_pair_must_be_in_place() -> None:
    wanted = task({"class": "bench", "count": 2}, {"class": "dog", "count": 1, "position": ["right of", 0]})
    middle = (40.0, 40.0, 60.0, 60.0)
    assert right(wanted, found("bench", LEFT), found("bench", middle), found("dog", RIGHT))
    assert not right(wanted, found("bench", LEFT), found("bench", RIGHT), found("dog", middle))


LINE = {
    "tag": "position",
    "include": [{"class": "clock", "count": 1}, {"class": "bench", "count": 1, "position": ["below", 0]}],
    "prompt": "a photo of a bench below a clock",
}


def test_the_metadata_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n\n", encoding="utf-8")
    tasks = read_tasks(path)
    assert list(tasks) == [LINE["prompt"]]
    assert tasks["a photo of a bench below a clock"].classes == {"clock", "bench"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 1 is no task"),
        ('{"prompt": "a cat"}', "line 1 is no task"),
        (json.dumps({**LINE, "include": [{"class": "cat", "count": 1, "color": "teal"}]}), "color"),
        (json.dumps({**LINE, "include": [{"class": "cat", "count": 1, "colour": "red"}]}), "colour"),
        (
            json.dumps({**LINE, "include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}),
            "seen from an earlier clause",
        ),
        ("", "holds no task"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigInvalid, match=reason):
        read_tasks(path)
    with pytest.raises(ConfigInvalid, match="cannot read"):
        read_tasks(tmp_path / "nowhere.jsonl")
