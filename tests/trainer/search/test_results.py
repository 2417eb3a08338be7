"""What a search writes, and how rewards become its judge."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.small_run import ScoringHere
from trainer.config import ModelConfig, SamplingConfig
from trainer.policy import Policy
from trainer.search.results import Settings, judge_of, search_prompts, write_results


def test_the_judge_is_the_weighted_sum_and_a_failure_is_nan() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    scoring = ScoringHere()
    weighted = judge_of(scoring, {"jpeg": 2.0, "large": 1.0})(pictures, "a red circle")
    single = judge_of(scoring, {"jpeg": 1.0})(pictures, "a red circle")
    assert weighted.tolist() == pytest.approx(single.tolist())  # large is minus jpeg
    assert judge_of(scoring, {"verifier": 1.0})(pictures, "a red circle").isnan().all()


def test_pictures_and_costs_are_written(pipelines: dict[str, Path], tmp_path: Path) -> None:
    policy = Policy.load(ModelConfig(path=str(pipelines["epsilon"])), trainable=False)
    settings = Settings("best_of_n", budget=10, sampling=SamplingConfig(steps=3, guidance=1.0))
    prompts = ["a red circle", "two blue squares"]
    found = search_prompts(policy, prompts, judge_of(ScoringHere(), {"jpeg": 1.0}), settings)
    paths = write_results(tmp_path / "found", prompts, found, settings, rewards=1)
    assert [path.name for path in paths] == ["00.png", "01.png", "search.json"]
    assert np.array_equal(np.asarray(Image.open(paths[1])), found[1].picture)
    said = json.loads(paths[2].read_text(encoding="utf-8"))
    assert (said["method"], said["budget"]) == ("best_of_n", 10)
    assert [(one["prompt"], one["evaluations"], one["reward_calls"]) for one in said["found"]] == [
        ("a red circle", 9, 3),
        ("two blue squares", 9, 3),
    ]


@pytest.mark.parametrize(("method", "budget"), [("best_of_m", 10), ("demon", 0)])
def test_settings_that_cannot_be_are_an_error(method: str, budget: int) -> None:
    with pytest.raises(
        ValueError, match=r"the search method is 'best_of_m'; use one of best_of_n|the budget must be"
    ):
        Settings(method, budget, SamplingConfig())
