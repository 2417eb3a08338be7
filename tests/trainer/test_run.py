"""What a run keeps: seeds, costs that survive a resume, scalars without the scores that failed."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from tests.small_run import ScoringHere, configured, started
from trainer.costs import Costs
from trainer.data.prompts import PromptFileError
from trainer.loop import sample
from trainer.policy import ModelError
from trainer.run import Run


@pytest.fixture
def run(pipelines: dict[str, Path], tmp_path: Path) -> Run:
    return started(configured(tmp_path, pipelines["epsilon"]))


def test_no_two_prompts_of_a_run_share_a_seed(run: Run) -> None:
    seeds = []
    for run.update in range(3):
        seeds += [run.seed(place) for place in range(4)]
    assert len(set(seeds)) == 12
    run.config = run.config.model_copy(update={"seed": 4})
    assert run.seed(0) not in seeds


def test_what_was_spent_before_a_stop_counts(run: Run) -> None:
    sample(run)
    run.costs = dataclasses.replace(run.costs, sampling_s=2.0, reward_stall_s=1.0, evaluation_s=4.0)
    before = run.spent()
    assert (before.reward_calls, before.images_scored) == (2, 12)
    run.checkpoint()
    again = started(run.config)
    assert again.spent() == before
    sample(again)
    after = again.spent().since(before)
    assert (after.reward_calls, after.images_scored) == (2, 12)
    assert after.unet_evaluations == run.costs.unet_evaluations
    assert after.sampling_s > 0


def test_a_counter_that_begins_anew_is_understood(run: Run) -> None:
    """The coordinator was restarted: of its 5 calls none was counted before."""
    run.costs.reward_calls, run.calls_counted["reward_calls"] = 10, 7
    assert isinstance(run.scoring, ScoringHere)
    run.scoring.asked = [{"jpeg": []}] * 5
    assert run.spent().reward_calls == 15
    run.scoring.asked *= 2
    assert run.spent().reward_calls == 20


def test_an_update_says_what_it_cost(run: Run) -> None:
    before = Costs()
    scalars = run.describe(sample(run), before)
    assert 0 < scalars["decoding_s"] < run.costs.training_s
    assert scalars["sampling_s"] + scalars["decoding_s"] <= run.costs.training_s
    assert scalars["images_per_second"] == pytest.approx(12 / run.costs.training_s)
    assert scalars["sampling_peak_bytes"] > 2**20


def test_a_checkpoint_keeps_place_and_accuracy(run: Run) -> None:
    run.stream.take(3)
    run.update, run.accuracy = 2, 0.25
    run.checkpoint()
    again = started(run.config)
    assert (again.update, again.accuracy) == (2, 0.25)
    assert again.stream.take(2) == run.stream.take(2)


def test_rows_that_were_left_out_are_counted(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Of the prompts to train on; those a stream met before a checkpoint are not forgotten."""
    run = started(configured(tmp_path, pipelines["epsilon"]))
    assert run.describe(sample(run), Costs())["rows_left_out"] == 0
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": " "}\n')
    again = started(run.config)
    assert again.describe(sample(again), Costs())["rows_left_out"] == 1
    again.left_out |= {99}
    again.checkpoint()
    assert started(run.config).left_out == {6, 99}


def test_failed_scores_leave_the_scalars(run: Run) -> None:
    lessons = sample(run)
    kept, dropped = lessons[0][0], lessons[1][0]
    nothing = torch.full_like(dropped.selection.returns_PK, torch.nan)
    selection = dataclasses.replace(
        dropped.selection, returns_PK=nothing, valid_P=torch.zeros(2, dtype=torch.bool)
    )
    lessons[1] = (
        dataclasses.replace(dropped, selection=selection),
        {"jpeg": torch.full((2, 3, 1), torch.nan)},
    )
    scalars = run.describe(lessons, Costs())
    assert scalars["reward"] == pytest.approx(float(kept.selection.returns_PK.mean()))
    assert scalars["reward_best"] == pytest.approx(float(kept.selection.returns_PK.amax(1).mean()))
    assert scalars["reward_worst"] < scalars["reward"] < scalars["reward_best"]
    assert scalars["score/jpeg"] == pytest.approx(scalars["reward"])
    assert scalars["prompts_dropped"] == 0.5
    assert "accuracy" not in scalars
    assert math.isnan(run.describe(lessons[1:], Costs())["reward"])


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("model.path=./nowhere", ModelError, "does not exist"),
        ("prompts.train=nowhere.txt", PromptFileError, "cannot be read"),
        ("prompts.held_out=nowhere.txt", PromptFileError, "cannot be read"),
    ],
)
def test_what_cannot_be_loaded_says_so(
    pipelines: dict[str, Path], tmp_path: Path, override: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        started(configured(tmp_path, pipelines["epsilon"], override))
