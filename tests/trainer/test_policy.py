"""A policy predicts what its pipeline predicts, is trained, and is saved in a form that plain diffusers loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from torch import Tensor

from tests.tiny import IMAGE_SIZE, LATENT_SHAPE
from trainer.config import LoraConfig, ModelConfig
from trainer.policy import ModelError, Policy

# Alpha differs from rank: whoever forgets it when loading gets other predictions.
LORA = LoraConfig(rank=4, alpha=10.0)
TRAINED = pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
TEXTS = ["a red circle", "two blue squares"]


def load(folder: Path, lora: LoraConfig | None = LORA, **options: Any) -> Policy:
    return Policy.load(ModelConfig(path=str(folder), lora=lora, **options))


def sample() -> tuple[Tensor, Tensor]:
    """Two noisy latents and their timesteps."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *LATENT_SHAPE, generator=generator), torch.tensor([999, 300])


def prediction(policy: Policy, guidance: float = 1.0) -> Tensor:
    with torch.no_grad():
        return policy.predict(*sample(), policy.encode(TEXTS), guidance)


def train_a_step(policy: Policy) -> None:
    optimizer = torch.optim.SGD(policy.parameters, lr=0.3)
    for _ in range(2):
        policy.predict(*sample(), policy.encode(TEXTS), 1.0).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def folder(pipelines: dict[str, Path]) -> Path:
    return pipelines["epsilon"]


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def another_pipeline(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}), "utf-8")


def no_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def other_prediction(folder: Path) -> None:
    DDIMScheduler(prediction_type="sample").save_pretrained(folder / "scheduler")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_folder, "does not exist; give a folder that diffusers' save_pretrained wrote or the id of a model"),
        (no_index, "has no model_index.json; model.path must be a folder that diffusers' save_pretrained wrote"),
        (another_pipeline, "holds a FluxPipeline; give as model.path one of StableDiffusionXLPipeline"),
        (no_unet, "cannot load model.path .*unet"),
        (other_prediction, "predicts 'sample'; supported are epsilon, v_prediction"),
    ],
)
def test_what_cannot_be_trained_says_so_in_a_line(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(ModelError, match=message) as error:
        load(copy)
    assert "\n" not in str(error.value)
    assert str(copy) in str(error.value)


@pytest.mark.parametrize("path", ["./nope", "../nope", "runs/a/nope"])
def test_a_path_is_not_taken_for_an_id_of_the_hub(path: str) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load(Path(path) if not path.startswith(".") else PathText(path))


class PathText(type(Path())):  # type: ignore[misc]
    """A path that keeps its leading dot."""
