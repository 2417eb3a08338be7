"""The recipes of deploy/recipes: a model of each kind learns by them, in the memory that they say."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reward_services.config_file import load_config as load_services
from tests.published import PUBLISHED, sd15_unet, sd35_medium
from tests.small_run import CAPTIONS, ScoringHere, memory_of
from tests.tiny import write_pipeline
from tests.tiny_families import write_flux, write_sd, write_sd3
from trainer.config import TrainConfig, load_config
from trainer.loop import run
from trainer.metrics import read_metrics
from trainer.ranks import Ranks

FOLDER = Path(__file__).parents[1] / "deploy" / "recipes"
SMALL: dict[str, Callable[[Path], Path]] = {
    "sd15": write_sd,
    "sdxl": lambda folder: write_pipeline(folder, "epsilon"),
    "sd3": lambda folder: write_sd3(folder, newer=True),
    "flux": lambda folder: write_flux(folder, guided=True),
}


def recipe(name: str, *overrides: str) -> TrainConfig:
    """One of them, with some settings changed."""
    return load_config(FOLDER / f"{name}.yaml", overrides)


def test_there_is_one_for_each_kind_of_model() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*SMALL, "rewards"} == {*PUBLISHED, "rewards"}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_of_its_kind_learns_by_it(tmp_path: Path, name: str) -> None:
    """All settings stay but the model, its size, prompts and their number, and rewards that run here."""
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS), encoding="utf-8")
    config = recipe(
        name,
        f"model.path={SMALL[name](tmp_path / 'model')}",
        "model.image_size=16",
        f"run_folder={tmp_path / 'run'}",
        f"prompts.train={tmp_path / 'prompts.txt'}",
        f"prompts.held_out={tmp_path / 'prompts.txt'}",
        "rewards.weights={jpeg: 1.0}",
        "rewards.shadows=[large]",
        "updates=2",
        "branching.prompts_per_update=2",
        "evaluation.draws=8",
    )
    config.run_folder.mkdir()
    assert run(config, scoring=ScoringHere(), ranks=Ranks(), device=torch.device("cpu"))
    updates = read_metrics(config.run_folder / "metrics.jsonl")
    assert [update["update"] for update in updates] == [1, 2]
    assert all(update["grad_norm"] > 0 for update in updates)
    assert (config.run_folder / "lora" / "pytorch_lora_weights.safetensors").exists()


@pytest.mark.parametrize("name", SMALL)
def test_its_rewards_are_served_beside_it_on_one_gpu(name: str) -> None:
    config = recipe(name)
    assert config.rewards.services == Path("deploy/recipes/rewards.yaml")
    served = load_services(FOLDER / "rewards.yaml").rewards
    assert set(config.rewards.names) == set(served)
    gpus = sum(of_reward.num_gpus for of_reward in served.values())
    assert gpus + config.ranks.workers * config.ranks.gpus_per_worker <= 1


def test_the_published_denoisers_have_their_published_sizes() -> None:
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in network.parameters()) for network in (sd15_unet(), sd35_medium())]
    assert sizes == [859_520_964, 2_243_171_520]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_trainer_needs_the_memory_that_it_says(tmp_path: Path, name: str) -> None:
    said = re.search(r"(\d+) GiB", (FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    planned = memory_of(recipe(name, f"model.path={PUBLISHED[name](tmp_path)}")).peak
    assert said
    assert planned / 2**30 == pytest.approx(float(said[1]), abs=0.5)
