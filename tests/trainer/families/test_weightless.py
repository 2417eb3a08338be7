"""A model without weights has the tensors of the real one, and takes none of its memory."""

from pathlib import Path

import pytest
import torch

from trainer.config import ModelConfig
from trainer.families.index import check_model
from trainer.families.weightless import load_weightless
from trainer.policy import Policy

META = torch.device("meta")


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3", "sd3-without-t5", "flux-dev"])
def test_its_networks_are_those_of_the_loaded_model(families: dict[str, Path], kind: str) -> None:
    config = ModelConfig(path=str(families[kind]), dtype="bfloat16", image_size=16)
    weightless = load_weightless(check_model(config), config)
    real = Policy.load(config, trainable=False)
    own, loaded = weightless.network.state_dict(), real.denoiser.state_dict()
    assert own.keys() == loaded.keys()
    assert all(tensor.is_meta for tensor in own.values())
    assert all((own[name].shape, own[name].dtype) == (loaded[name].shape, loaded[name].dtype) for name in own)
    assert weightless.latent_shape == real.latent_shape
    with torch.no_grad():
        text, expected = weightless.encode(["a red circle"], META), real.encode(["a red circle"])
    assert text.hidden.is_meta
    assert (text.hidden.shape, text.pooled.shape) == (expected.hidden.shape, expected.pooled.shape)


def test_no_weights_are_read(pipelines: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "without"
    for file in pipelines["epsilon"].rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            copy = folder / file.relative_to(pipelines["epsilon"])
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    config = ModelConfig(path=str(folder))
    assert next(load_weightless(check_model(config), config).network.parameters()).is_meta
