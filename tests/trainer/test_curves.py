"""The curves of a report: which scalars share a chart, evaluations at their updates, nothing drawn twice."""

import re
from typing import Any

import pytest

from trainer.curves import of_evaluations, panels, remaining_panels, window_of
from trainer.evaluation import EvaluationResult

UPDATES: list[dict[str, Any]] = [
    {"update": 1, "reward": 1.0, "reward_best": 2.0, "loss": None, "lr": 1e-4, "accuracy": 0.5},
    {"update": 2, "reward": 1.5, "reward_best": 2.5, "loss": None, "lr": 1e-4, "accuracy": 0.5},
]


def result(update: int, correct: bool | None = None) -> EvaluationResult:
    return EvaluationResult(
        update=update,
        guidance=1.0,
        prompts=("a",),
        categories=("",),
        correct=(correct,),
        scores={"clip": (update / 10,), "aesthetic": (5.0,)},
        diversity=0.25,
    )


def test_every_scalar_is_drawn_once() -> None:
    records = [*UPDATES, *of_evaluations([result(0, False), result(2, True)])]
    first, more = dict(panels(records)), dict(remaining_panels(records))
    assert list(first) == ["Reward", "Verified accuracy", "Held-out clip", "Held-out aesthetic"]
    assert first["Reward"].count("<polyline") == 2
    assert list(more) == ["lr", "held_out/diversity"]


def test_without_a_judge_there_is_no_accuracy() -> None:
    assert [title for title, _ in panels(of_evaluations([result(0), result(2)]))] == [
        "Held-out clip",
        "Held-out aesthetic",
    ]
    assert panels([]) == remaining_panels([]) == []


def test_evaluations_stand_at_their_updates() -> None:
    chart = dict(panels(of_evaluations([result(0), result(5), result(20)])))["Held-out clip"]
    points = re.search(r'points="([^"]*)"', chart)
    assert points
    left, middle, right = (float(point.split(",")[0]) for point in points[1].split())
    assert (middle - left) / (right - left) == pytest.approx(1 / 4, abs=0.01)


def test_many_updates_are_smoothed() -> None:
    assert (window_of(30), window_of(31), window_of(60)) == (1, 2, 4)
    many = [{"update": update, "loss": float(update % 2)} for update in range(60)]
    assert dict(panels(many))["Loss"].count("faint") == 1
