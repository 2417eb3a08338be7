"""The loop: a broken run ends as an unbroken one, the control differs in winners only, ranks end together."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from reward_services import RewardError
from tests.small_run import (
    CPU,
    Losing,
    ScoringHere,
    StoppingAt,
    configured,
    in_two_ranks,
    largest_difference,
    picked,
    relative_difference,
    started,
    weights_of,
)
from trainer.checkpoint import latest_checkpoint
from trainer.config import TrainConfig
from trainer.loop import advance, run, sample
from trainer.metrics import MetricsLog, read_metrics
from trainer.ranks import Halted, Ranks
from trainer.run_folder import RunFolder


@pytest.fixture
def folder(pipelines: dict[str, Path]) -> Path:
    return pipelines["epsilon"]


def go(config: TrainConfig, scoring: Any = None, ranks: Ranks | None = None) -> bool:
    return run(config, scoring=scoring or ScoringHere(), ranks=ranks or Ranks(), device=CPU)


def finish_and_compare(
    config: TrainConfig, unbroken: TrainConfig, pipeline: Path, *counts: str, tolerance: float = 1e-5
) -> None:
    RunFolder(config.run_folder).reopen()
    assert go(config)
    assert picked(config) == [pytest.approx(line, rel=tolerance) for line in picked(unbroken)]
    assert relative_difference(weights_of(unbroken), weights_of(config), pipeline) < tolerance
    summaries = [
        json.loads((one.run_folder / "summary.json").read_text(encoding="utf-8"))
        for one in (config, unbroken)
    ]
    same = ("reward_after", "accuracy_after", "updates", *counts)
    found, expected = ({name: summary[name] for name in same} for summary in summaries)
    assert found == pytest.approx(expected, rel=tolerance)


def test_a_broken_run_ends_as_the_unbroken_one(folder: Path, tmp_path: Path) -> None:
    """Stopped in its first update (after the 3 requests of its evaluation) and in its second."""
    unbroken = configured(tmp_path / "unbroken", folder)
    assert go(unbroken)
    stopped = configured(tmp_path / "stopped", folder)
    for update in (1, 2):
        stop = StoppingAt(stopped.run_folder, 4 if update == 1 else 1)
        assert not go(stopped, stop)
        assert not RunFolder(stopped.run_folder).is_finished
        assert len(picked(stopped)) == update
        RunFolder(stopped.run_folder).reopen()
    finish_and_compare(stopped, unbroken, folder, "images_scored", "unet_evaluations", "reward_calls")
    trees = json.loads((stopped.run_folder / "report" / "branches.json").read_text(encoding="utf-8"))
    assert [tree["update"] for tree in trees] == [1, 1, 3, 3]


def test_a_stopped_run_can_be_ended_and_lengthened(folder: Path, tmp_path: Path) -> None:
    unbroken = configured(tmp_path / "unbroken", folder)
    assert go(unbroken)
    run_folder = RunFolder(configured(tmp_path / "stopped", folder).run_folder)
    assert not go(configured(tmp_path / "stopped", folder), StoppingAt(run_folder.path, 6))
    for updates in ("1", "3"):
        run_folder.reopen()
        config = configured(tmp_path / "stopped", folder, f"updates={updates}")
        assert go(config)
        assert run_folder.is_finished
        assert len(picked(config)) == {"1": 2, "3": 3}[updates]
    assert relative_difference(weights_of(unbroken), weights_of(config), folder) < 1e-5


def test_a_run_that_lost_its_rewards_goes_on(folder: Path, tmp_path: Path) -> None:
    """The prompts of the update that could not be scored come again."""
    unbroken = configured(tmp_path / "unbroken", folder)
    assert go(unbroken)
    lost = configured(tmp_path / "lost", folder)
    assert not go(lost, Losing(6))
    assert len(picked(lost)) == 1
    finish_and_compare(lost, unbroken, folder)


def test_an_evaluation_on_the_way_that_lost_its_judge_keeps_the_updates(folder: Path, tmp_path: Path) -> None:
    """Three requests of the evaluation before, two of each update, then the evaluation's: it comes again."""
    options = ("evaluation.every_updates=2", "updates=4")
    unbroken = configured(tmp_path / "unbroken", folder, *options)
    assert go(unbroken)
    lost = configured(tmp_path / "lost", folder, *options)
    evaluation = lost.run_folder / "evaluations" / "update-000002.json"
    for request in (9, 1):
        assert not go(lost, Losing(request))
        assert kept(lost) == (len(picked(lost)), evaluation.stem) == (2, "update-000002")
        assert not evaluation.exists()
    finish_and_compare(lost, unbroken, folder)
    assert evaluation.exists()


def kept(config: TrainConfig) -> tuple[int, str]:
    """Updates in the newest checkpoint, and the evaluation that is due there."""
    newest = latest_checkpoint(config.run_folder)
    assert newest is not None
    return newest.update, newest.state["due"]


def test_a_crash_costs_the_updates_since_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    options = ("checkpoint.every_updates=2", "model.lora={rank: 2}", "updates=4")
    unbroken = configured(tmp_path / "unbroken", folder, *options)
    assert go(unbroken)
    crashed = configured(tmp_path / "crashed", folder, *options)
    shutil.copytree(unbroken.run_folder, crashed.run_folder, dirs_exist_ok=True)
    shutil.rmtree(crashed.run_folder / "checkpoints" / "update-000004")
    (crashed.run_folder / "summary.json").unlink()
    assert go(crashed)
    assert picked(crashed) == [pytest.approx(line, rel=1e-5) for line in picked(unbroken)]
    assert largest_difference(weights_of(unbroken), weights_of(crashed)) < 1e-6
    assert (crashed.run_folder / "lora" / "pytorch_lora_weights.safetensors").exists()


def test_the_control_draws_other_winners_of_the_same_branches(folder: Path, tmp_path: Path) -> None:
    chosen = [
        sample(started(configured(tmp_path / by, folder, f"selection.by={by}")))
        for by in ("reward", "random")
    ]
    for (by_reward, scores), (at_random, same_scores) in zip(*chosen, strict=True):
        assert torch.equal(scores["jpeg"], same_scores["jpeg"])
        returns = by_reward.selection.returns_PK
        assert torch.equal(returns.sort(1).values, at_random.selection.returns_PK.sort(1).values)
        winners = returns.gather(1, at_random.selection.best_P[:, None])[:, 0]
        assert torch.equal(returns.argmax(1), by_reward.selection.best_P)
        assert (winners <= returns.amax(1)).all()
    picks = [torch.cat([lesson.selection.best_P for lesson, _ in lessons]) for lessons in chosen]
    assert not torch.equal(*picks)


def test_weights_amount_to_the_branches_that_were_set(folder: Path, tmp_path: Path) -> None:
    options = ("method=sft_sharpening", "selection.effective_branches=1.5")
    for lesson, _ in sample(started(configured(tmp_path, folder, *options))):
        sizes_P = lesson.selection.effective_sample_size_P
        assert sizes_P.tolist() == pytest.approx([1.5] * len(sizes_P), rel=1e-3)


def test_too_many_failures_end_the_run_and_keep_it(folder: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, folder, "rewards.weights={jpeg: 1, verifier: 1}", "prompts.held_out=null")
    assert not go(config)
    assert "the verifier reads 32 x 32 pictures, not 16 x 16" in str(RunFolder(config.run_folder).failure)
    again = started(config)
    assert again.stream.state_dict()["position"] == 4 * again.update


def test_a_judge_that_judges_nothing_ends_the_run(folder: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, folder, "rewards.judge=verifier")
    assert not go(config)
    failure = str(RunFolder(config.run_folder).failure)
    assert failure.startswith("verifier scored none of the held-out pictures: the verifier reads 32 x 32")


def test_on_failure_drops_branches_or_prompts(folder: Path, tmp_path: Path) -> None:
    class Spotty(ScoringHere):
        """Does not score the first picture of a request."""

        def submit(self, *arguments: Any) -> Any:
            pending = super().submit(*arguments)
            return lambda: {
                name: [scores[0].failed(RewardError("torn")), *scores[1:]]
                for name, scores in pending().items()
            }

    for choice, valid in (("drop_branch", [True, True]), ("drop_prompt", [False, True])):
        begun = started(configured(tmp_path / choice, folder, f"rewards.on_failure={choice}"))
        begun.scoring = Spotty()
        for lesson, _ in sample(begun):
            assert lesson.selection.valid_P.tolist() == valid
            assert lesson.selection.weights_PK[0, 0] == 0
        with MetricsLog(begun.folder.path) as log:
            advance(begun, log)
    stopping = started(configured(tmp_path / "stop", folder, "rewards.on_failure=stop"))
    stopping.scoring = Spotty()
    with pytest.raises(Halted, match="torn"):
        sample(stopping)


def test_a_run_that_diverges_ends_and_is_not_called_a_gain(folder: Path, tmp_path: Path) -> None:
    """Black pictures are the most compressible of all."""
    options = ("optimizer.lr=1e30", "checkpoint.every_updates=1", "optimizer.steps_per_update=1")
    config = configured(tmp_path, folder, *options)
    assert not go(config)
    assert "latents that are no numbers" in str(RunFolder(config.run_folder).failure)
    assert not RunFolder(config.run_folder).is_finished
    assert all(weight.isfinite().all() for weight in weights_of(config))
    evaluated = configured(tmp_path / "evaluated", folder, *options[::2], "evaluation.every_updates=1")
    assert not go(evaluated)
    assert len(picked(evaluated)) == 1
    assert latest_checkpoint(evaluated.run_folder) is None
    last = configured(tmp_path / "last", folder, *options, "updates=1")
    assert not go(last)
    assert "latents that are no numbers" in str(RunFolder(last.run_folder).failure)


def test_a_mistake_found_in_a_rank_is_left_in_the_folder(folder: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, folder, "evaluation.features=./nowhere")
    assert not go(config)
    assert "nowhere" in str(RunFolder(config.run_folder).failure)


def pair(ranks: Ranks, folder: Path, configs: dict[str, TrainConfig]) -> None:
    """On two ranks: an update whose prompts rank 1 loses, ends that rank 1 alone causes, half a run."""
    dropped = started(configs["dropped"], ranks)
    dropped.scoring = ScoringHere() if ranks.is_main else Unscored()
    with MetricsLog(dropped.folder.path, rank=ranks.rank) as log:
        advance(dropped, log)
    assert not go(configs["lost"], ScoringHere() if ranks.is_main else Losing(3), ranks)
    assert not go(configs["unjudged"], ScoringHere() if ranks.is_main else Losing(4), ranks)
    assert not go(configs["two"], StoppingAt(configs["two"].run_folder, 4) if ranks.is_main else None, ranks)


class Unscored(ScoringHere):
    """A rank none of whose pictures can be scored."""

    def submit(self, images: Any, prompts: Any, rewards: Any) -> Any:
        pending = super().submit(images, prompts, ["verifier"])
        return lambda: dict.fromkeys(rewards, pending()["verifier"])


def test_two_ranks_stay_together_and_one_goes_on(folder: Path, tmp_path: Path) -> None:
    configs = {
        "dropped": configured(
            tmp_path / "dropped", folder, "rewards.failure_budget=1", "optimizer.steps_per_update=1"
        ),
        "lost": configured(tmp_path / "lost", folder),
        "unjudged": configured(tmp_path / "unjudged", folder, "evaluation.every_updates=1"),
        "two": configured(tmp_path / "two", folder),
        "one": configured(tmp_path / "one", folder),
    }
    in_two_ranks(pair, folder, configs)
    (line,) = read_metrics(configs["dropped"].run_folder / "metrics.jsonl")
    assert line["prompts_dropped"] == 0.5
    assert line["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert RunFolder(configs["lost"].run_folder).failure == "nobody listens there; start the rewards"
    assert kept(configs["unjudged"]) == (1, "update-000001")
    assert go(configs["one"])
    assert 0 < len(picked(configs["two"])) < 3
    # Two ranks sum in another order than one.
    finish_and_compare(configs["two"], configs["one"], folder, tolerance=1e-3)


@pytest.mark.parametrize("limit", ["unet_evaluations", "images_scored", "training_s"])
def test_a_run_ends_when_its_budget_is_spent(folder: Path, tmp_path: Path, limit: str) -> None:
    """An update grows 12 branches in 3 guided steps and learns with 2 times 64: 200 evaluations."""
    sizes = {"unet_evaluations": 300, "images_scored": 24, "training_s": 0.001}
    options = ("updates=50", f"budget.{limit}={sizes[limit]}", "evaluation.along=1", "optimizer.decay=linear")
    config = configured(tmp_path, folder, *options)
    assert go(config)
    updates = len(picked(config))
    assert updates == (1 if limit == "training_s" else 2)
    after = RunFolder(config.run_folder).load_evaluation("after")
    assert after.spent[limit] >= sizes[limit]
    if updates == 2:
        along = RunFolder(config.run_folder).load_evaluation("along-01")
        assert along.spent["unet_evaluations"] == 200
        assert after.spent["images_scored"] == 24
        # Half of the budget was spent before the second update, and its learning rate fell with it.
        assert picked(config)[1]["lr"] < 0.6 * picked(config)[0]["lr"]


def test_the_same_weights_are_evaluated_once(folder: Path, tmp_path: Path) -> None:
    options = ("updates=4", "evaluation.every_updates=2", "evaluation.along=1")
    config = configured(tmp_path, folder, *options)
    assert go(config)
    made = {path.stem for path in (config.run_folder / "evaluations").iterdir()}
    assert made == {"before", "update-000002", "after"}
