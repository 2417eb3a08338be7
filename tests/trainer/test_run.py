"""What a run keeps: seeds, costs that survive a resume, scalars without the scores that failed."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.captioned import rows, write_folder
from tests.small_run import ScoringHere, configured, in_two_ranks, since, started
from trainer.config import TrainConfig
from trainer.costs import Costs, Devices
from trainer.data.prompts import PromptFileError
from trainer.families.family import ModelError
from trainer.loop import advance, sample
from trainer.metrics import MetricsLog
from trainer.ranks import Halted, Ranks
from trainer.run import Run
from trainer.trackers import Trackers


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
    after = since(before, again.spent())
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


def test_an_update_says_what_it_cost_with_the_evaluation_before_it(run: Run) -> None:
    run.evaluate("before")
    first, costs = run.account(sample(run)), run.spent()
    assert 0 < first["decoding_s"] < costs.training_s
    assert first["sampling_s"] + first["decoding_s"] + first["reward_stall_s"] == costs.training_s
    assert first["images_per_second"] == pytest.approx(12 / costs.training_s)
    assert first["evaluation_s"] == costs.evaluation_s > 0
    assert first["sampling_peak_bytes"] > 2**20
    # The evaluation asked jpeg and the judge in 3 batches, the update jpeg in 2.
    assert (first["reward_calls"], first["images_scored"], first["cache_hits"]) == (8, 12, 0)
    second = run.account(sample(run))
    assert second["reward_calls"] == 2
    assert not [name for name in second if name.startswith("evaluation_")]
    assert run.spent().evaluation_s == first["evaluation_s"]
    for name in ("unet_evaluations", "reward_calls", "images_scored"):
        assert first[name] + second[name] == getattr(run.spent(), name)


def test_an_evaluation_before_a_checkpoint_is_in_the_next_line(run: Run) -> None:
    run.account(sample(run))
    before = run.spent()
    run.evaluate("update-000001")
    run.checkpoint()
    again = started(run.config)
    line = again.account(sample(again))
    assert line["evaluation_s"] == run.costs.evaluation_s > 0
    assert (line["reward_calls"], line["images_scored"]) == (8, 12)
    assert since(before, again.spent()).reward_calls == 8
    assert again.account(sample(again))["reward_calls"] == 2


def account_on_two(ranks: Ranks, config: TrainConfig) -> None:
    run = started(config, ranks)
    lessons = sample(run)
    spent = run.costs = Costs(
        sampling_s=1.0 + 2 * ranks.rank,
        images_scored=run.costs.images_scored,
        unet_evaluations=run.costs.unet_evaluations,
        learning_peak_bytes=100 + ranks.rank,
    )
    of_both = ranks.gather(spent.images_scored)
    scalars = run.account(lessons)
    assert of_both == [3, 6]
    assert (scalars["images_scored"], scalars["sampling_s"]) == (9, 2.0)
    assert (scalars["images_per_second"], scalars["images_per_second_per_device"]) == (4.5, 4.5 / 6)
    assert scalars["unet_evaluations"] == sum(ranks.gather(spent.unet_evaluations))
    assert scalars["learning_peak_bytes"] == 101


def test_the_costs_of_an_update_are_those_of_uneven_ranks(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Of 3 prompts the second rank has 2; each reserves 3 cores, and rewards run elsewhere."""
    options = ("branching.prompts_per_update=3", "ranks.workers=2", "ranks.cpus_per_worker=3")
    in_two_ranks(account_on_two, configured(tmp_path, pipelines["epsilon"], *options))


def test_devices_are_those_of_ranks_and_of_the_runs_own_rewards(run: Run) -> None:
    assert run.devices == Devices(cpus=0.5)
    assert isinstance(run.scoring, ScoringHere)
    run.scoring.devices = Devices(gpus=2, cpus=4)
    assert run.devices == Devices(gpus=2, cpus=4.5)


def test_an_evaluation_is_recorded_at_its_update(run: Run) -> None:
    run.trackers, run.update = Trackers(run.config, 0), 7
    result = run.evaluate("update-000007")
    run.trackers.close()
    assert result is not None
    events = EventAccumulator(str(run.folder.path / "tensorboard")).Reload()
    kept = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert set(kept) == {"held_out/reward", *result.scalars()}
    assert {event.step for of_name in kept.values() for event in of_name} == {7}
    assert kept["held_out/accuracy"][0].value == pytest.approx(result.accuracy)
    assert kept["held_out/reward"][0].value == pytest.approx(result.mean_scores["jpeg"], rel=1e-6)


def test_a_checkpoint_keeps_place_and_accuracy(run: Run) -> None:
    run.stream.take(3)
    run.update, run.accuracy = 2, 0.25
    run.checkpoint()
    again = started(run.config)
    assert (again.update, again.accuracy) == (2, 0.25)
    assert again.stream.take(2) == run.stream.take(2)


def test_a_picture_that_is_refused_on_the_way_costs_no_updates(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """It breaks after the first update, behind its header: that update is kept, and the pictures' turn."""
    source = write_folder(tmp_path / "captioned", rows(6))
    given = ("method=standard", f"data={{source: {source}, strict: true}}", "prompts.held_out=null")
    run = started(configured(tmp_path, pipelines["epsilon"], *given))
    with MetricsLog(run.folder.path) as log:
        advance(run, log)
        place = run.stream.state_dict()
        for path in source.glob("*.png"):
            path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(Halted, match=r"is a broken picture .*; repair it"):
            advance(run, log)
    again = started(run.config)
    assert again.update == 1
    assert again.stream.state_dict() == place


def test_rows_that_were_left_out_are_counted(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Of the prompts to train on; those a stream met before a checkpoint are not forgotten."""
    run = started(configured(tmp_path, pipelines["epsilon"]))
    assert run.account(sample(run))["rows_left_out"] == 0
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": " "}\n')
    again = started(run.config)
    assert again.account(sample(again))["rows_left_out"] == 1
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
    scalars = run.account(lessons)
    assert scalars["reward"] == pytest.approx(float(kept.selection.returns_PK.mean()))
    assert scalars["reward_best"] == pytest.approx(float(kept.selection.returns_PK.amax(1).mean()))
    assert scalars["reward_worst"] < scalars["reward"] < scalars["reward_best"]
    assert scalars["score/jpeg"] == pytest.approx(scalars["reward"])
    assert scalars["prompts_dropped"] == 0.5
    assert "accuracy" not in scalars
    assert math.isnan(run.account(lessons[1:])["reward"])


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
