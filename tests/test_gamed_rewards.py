"""A reward that is learned at the judge's cost is noticed: reported, or the run stopped, or held closer."""

import json
from pathlib import Path

import pytest
import torch

from tests.small_run import CPU, ScoringHere, configured, picked
from trainer.config import TrainConfig
from trainer.loop import run
from trainer.ranks import Ranks
from trainer.run_folder import RunFolder


@pytest.fixture
def folder(pipelines: dict[str, Path]) -> Path:
    return pipelines["epsilon"]


def go(config: TrainConfig) -> bool:
    return run(config, scoring=ScoringHere(), ranks=Ranks(), device=CPU)


GAMED = (
    "updates=6",
    "optimizer.lr=1e-2",
    "branching.branches=6",
    "evaluation.draws=48",
    "evaluation.batch_size=16",
    "evaluation.every_updates=2",
)


def test_a_gamed_reward_is_seen(folder: Path, tmp_path: Path) -> None:
    """Learned from the size of its JPEG alone, a model loses what its judge looks for."""
    config = configured(tmp_path, folder, *GAMED)
    assert go(config)
    summary = json.loads((config.run_folder / "summary.json").read_text(encoding="utf-8"))
    (gap,) = summary["watch"]["gaps"]
    assert "while the judge large changed by -" in gap
    assert any("edge_density went from" in symptom for symptom in summary["watch"]["symptoms"])


def test_a_gamed_reward_stops_the_run_if_that_is_set(folder: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, folder, *GAMED, "watch.on_gap=stop")
    assert not go(config)
    failure = str(RunFolder(config.run_folder).failure)
    assert "the training reward rose" in failure
    assert "watch.on_gap=report" in failure
    made = len(picked(config))
    assert made < 6
    assert (config.run_folder / "checkpoints" / f"update-{made:06d}").exists()
    assert go(configured(tmp_path, folder, *GAMED)), "watched otherwise, it goes on"


def test_a_gamed_reward_raises_the_kl_weight_if_that_is_set(folder: Path, tmp_path: Path) -> None:
    options = (*GAMED, "updates=8", "loss.kl_weight=0.5", "watch.on_gap=raise_kl", "watch.kl_factor=3")
    config = configured(tmp_path, folder, *options)
    assert go(config)
    saved = torch.load(config.run_folder / "checkpoints" / "update-000008" / "learner.pt", weights_only=True)
    assert saved["kl_weight"] in (0.5 * 3, 0.5 * 9)
