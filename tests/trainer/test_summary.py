"""summary.json: the keys that readers and other programs count on, and what they are made of."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.small_run import CPU, ScoringHere, configured
from trainer.config import TrainConfig
from trainer.costs import Costs, Devices
from trainer.evaluation import EvaluationResult
from trainer.loop import run
from trainer.ranks import Ranks
from trainer.summary import about, counted, gained, spent

PROMISED = {
    *("method", "selection", "seed", "updates", "wall_s", "reward_before", "reward_after"),
    *("accuracy_before", "accuracy_after", "accuracy_by_category", "reward_calls", "images_scored"),
    *("unet_evaluations", "reward_stall_s", "stall_fraction", "peak_memory_bytes", "accuracy_gain"),
    *("accuracy_gain_standard_error", "diversity_before", "diversity_after", "guidance", "pictures"),
    *("diversity_of_correct_before", "diversity_of_correct_after", "rows_left_out"),
    *("cache_hits", "images_per_second", "images_per_second_per_device", "devices", "device"),
    *("unscored_before", "unscored_after"),
    *("sampling_peak_bytes", "learning_peak_bytes", "evaluation_peak_bytes", "judge", "correct_from"),
}


def summarised(config: TrainConfig) -> dict[str, Any]:
    assert run(config, scoring=ScoringHere(), ranks=Ranks(), device=CPU)
    summary: dict[str, Any] = json.loads((config.run_folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def test_a_run_leaves_its_figures(pipelines: dict[str, Path], tmp_path: Path) -> None:
    config = configured(tmp_path, pipelines["epsilon"])
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write("no prompt\n")
    summary = summarised(config)
    assert set(summary) >= PROMISED
    assert (summary["updates"], summary["seed"], summary["pictures"]) == (3, 3, 8)
    assert summary["rows_left_out"] == 1
    # 3 updates of 4 prompts: 3 branches of 3 guided steps; replayed as test_learner counts it.
    assert summary["unet_evaluations"] == 3 * (4 * 3 * 3 * 2 + 4 * 2 * 2 * 2 * 2 * 2)
    assert summary["images_scored"] == 3 * 4 * 3
    # Evaluations ask jpeg and the judge in 3 batches, updates ask jpeg in 2.
    assert summary["reward_calls"] == 2 * 3 * 2 + 3 * 2
    assert summary["peak_memory_bytes"] > 2**20
    assert (summary["devices"], summary["device"], summary["reward_devices"]) == (0.5, "CPU core", None)
    assert (summary["judge"], summary["correct_from"]) == ("large", 0.5)
    assert summary["wall_s"] == pytest.approx(summary["training_s"] + summary["evaluation_s"])
    assert set(summary["accuracy_by_category"]["count"]) == {"before", "after"}
    assert (tmp_path / "run" / "pipeline" / "model_index.json").exists()


def test_without_held_out_prompts_there_is_nothing_gained(pipelines: dict[str, Path], tmp_path: Path) -> None:
    summary = summarised(configured(tmp_path, pipelines["epsilon"], "prompts.held_out=null", "updates=1"))
    assert not {name for name in summary if name.endswith(("_before", "_after"))}


def test_the_control_is_carried_along(tmp_path: Path) -> None:
    control = (
        "{accuracy_before: 0.5, accuracy_after: 0.6, reward_before: 1, reward_after: 2, date: d, command: c}"
    )
    config = configured(tmp_path, tmp_path, f"control={control}")
    assert about(config)["control"]["accuracy_after"] == 0.6
    assert "control" not in about(configured(tmp_path, tmp_path))


def result(correct: tuple[bool | None, ...], scores: tuple[float | None, ...]) -> EvaluationResult:
    return EvaluationResult(
        update=0,
        guidance=1.5,
        prompts=("a", "a", "b", "b"),
        categories=("x", "x", "y", "y"),
        correct=correct,
        scores={"jpeg": scores},
        diversity=0.25,
    )


def test_gains_are_paired(tmp_path: Path) -> None:
    before = result((False, False, True, None), (1.0, 2.0, 3.0, 6.0))
    after = result((True, False, True, True), (2.0, 3.0, None, 7.0))
    figures = gained(before, after, configured(tmp_path, tmp_path, "rewards.weights={jpeg: 0.5}"))
    assert (figures["reward_before"], figures["reward_after"]) == (1.5, 2.0)
    assert (figures["accuracy_before"], figures["accuracy_after"]) == (pytest.approx(1 / 3), 0.75)
    assert (figures["accuracy_gain"], figures["pictures"]) == (pytest.approx(1 / 3), 3)
    assert figures["accuracy_by_category"] == {
        "x": {"before": 0, "after": 0.5},
        "y": {"before": 1, "after": 1},
    }
    unjudged = gained(before, after, configured(tmp_path, tmp_path, "rewards.judge=null"))
    assert (figures["unscored_before"], figures["unscored_after"]) == ({}, {"jpeg": 1})
    kinds = ("reward", "diversity", "diversity_of_correct", "unscored")
    assert set(unjudged) == {f"{kind}_{when}" for kind in kinds for when in ("before", "after")}


def test_a_gain_of_one_prompt_is_left_out(tmp_path: Path) -> None:
    """The judge failed at the others: a run ends all the same."""
    before = result((False, False, True, None), (1.0, 2.0, 3.0, 6.0))
    after = result((True, False, None, True), (2.0, 3.0, None, 7.0))
    figures = gained(before, after, configured(tmp_path, tmp_path))
    assert (figures["accuracy_before"], figures["accuracy_after"]) == pytest.approx((1 / 3, 2 / 3))
    assert "accuracy_gain" not in figures


def test_times_add_up() -> None:
    figures = spent(
        Costs(sampling_s=2, reward_stall_s=1, learning_s=1, evaluation_s=6, images_scored=12, reward_calls=5),
        Devices(cpus=2),
    )
    assert (figures["wall_s"], figures["training_s"], figures["stall_fraction"]) == (10, 4, 0.25)
    assert (figures["images_per_second"], figures["reward_calls"]) == (3, 5)
    assert figures["images_per_second_per_device"] == 1.5


def test_devices_of_rewards_are_told_where_they_are_known() -> None:
    both = Devices(gpus=6, cpus=9)
    assert counted(both, Devices(gpus=4, cpus=2)) == {"devices": 6, "device": "GPU", "reward_devices": 4}
    assert counted(both, None)["reward_devices"] is None
    assert counted(both, Devices(cpus=2))["reward_devices"] == 0, "cores beside GPUs are no devices"
    assert counted(Devices(cpus=9), Devices(cpus=2))["reward_devices"] == 2
