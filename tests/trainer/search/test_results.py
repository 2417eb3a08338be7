"""What a search writes, and how rewards become its judge."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reward_services import ServerUnreachable
from tests.small_run import Losing, ScoringHere
from trainer.config import ConfigError, ModelConfig, SamplingConfig
from trainer.policy import Policy
from trainer.search.results import SearchFolder, Settings, judge_of


def test_the_judge_is_the_weighted_sum_and_a_failure_is_nan() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    scoring = ScoringHere()
    weighted = judge_of(scoring, {"jpeg": 2.0, "large": 1.0})(pictures, "a red circle")
    single = judge_of(scoring, {"jpeg": 1.0})(pictures, "a red circle")
    assert weighted.tolist() == pytest.approx(single.tolist())  # large is minus jpeg
    assert judge_of(scoring, {"verifier": 1.0})(pictures, "a red circle").isnan().all()


def settings(**changes: Any) -> Settings:
    """Two prompts, three pictures for each."""
    asked = {
        "model": "tiny",
        "method": "best_of_n",
        "budget": 10,
        "sampling": SamplingConfig(steps=3, guidance=1.0),
        "weights": {"jpeg": 1.0},
        "prompts": ["a red circle", "two blue squares"],
    }
    return Settings(**{**asked, **changes})


def test_pictures_and_costs_are_written(pipelines: dict[str, Path], tmp_path: Path) -> None:
    policy = Policy.load(ModelConfig(path=str(pipelines["epsilon"])), trainable=False)
    folder = SearchFolder(tmp_path / "found", settings())
    found = list(folder.search(policy, ScoringHere()))
    paths = folder.finish({"accuracy": 0.5})
    assert [path.name for path in paths] == ["00.png", "01.png", "search.json"]
    assert np.array_equal(np.asarray(Image.open(paths[1])), found[1].picture)
    said = json.loads(paths[2].read_text(encoding="utf-8"))
    assert (said["method"], said["budget"], said["accuracy"]) == ("best_of_n", 10, 0.5)
    assert [(one["prompt"], one["evaluations"], one["reward_calls"]) for one in said["found"]] == [
        ("a red circle", 9, 3),
        ("two blue squares", 9, 3),
    ]
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == ["00.png", "01.png", "search.json"]


def test_a_search_that_was_broken_off_goes_on(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """With the prompts that are left, and to the same end."""
    policy = Policy.load(ModelConfig(path=str(pipelines["epsilon"])), trainable=False)
    whole = list(SearchFolder(tmp_path / "whole", settings()).search(policy, ScoringHere()))
    broken = SearchFolder(tmp_path / "broken", settings())
    with pytest.raises(ServerUnreachable):
        list(broken.search(policy, Losing(2)))
    scoring = ScoringHere()
    found = list(broken.search(policy, scoring))
    assert len(scoring.asked) == 1, "the first prompt is not searched again"
    for one, other in zip(found, whole, strict=True):
        assert np.array_equal(one.picture, other.picture)
        assert (one.score, one.pictures_judged) == (other.score, other.pictures_judged)
    assert len(broken.finish()) == 3


@pytest.mark.parametrize("finished", [False, True])
def test_another_search_is_not_mixed_with_an_earlier_one(
    pipelines: dict[str, Path], tmp_path: Path, finished: bool
) -> None:
    policy = Policy.load(ModelConfig(path=str(pipelines["epsilon"])), trainable=False)
    folder = SearchFolder(tmp_path, settings())
    next(folder.search(policy, ScoringHere()))
    if finished:
        list(folder.search(policy, ScoringHere()))
        folder.finish()
    folder.check()
    with pytest.raises(ConfigError, match=r"holds a search with other settings \(budget\); remove it, or"):
        SearchFolder(tmp_path, settings(budget=20)).check()


@pytest.mark.parametrize(("method", "budget"), [("best_of_m", 10), ("demon", 0)])
def test_settings_that_cannot_be_are_an_error(method: str, budget: int) -> None:
    with pytest.raises(
        ValueError, match=r"the search method is 'best_of_m'; use one of best_of_n|the budget must be"
    ):
        settings(method=method, budget=budget)
