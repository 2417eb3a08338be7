"""A tiny autoencoder decodes previews on the way; one that was made for another model is refused."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from tests.tiny import IMAGE_SIZE
from tests.tiny_families import write_preview_decoder
from trainer.branches import grow, step_noise
from trainer.config import ModelConfig, SamplingConfig
from trainer.families.family import ModelError
from trainer.families.previews import load_preview_decoder
from trainer.policy import Policy
from trainer.records import Prompt


def test_previews_are_decoded_by_it_and_finished_pictures_are_not(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    model = {"path": str(pipelines["epsilon"]), "lora": None}
    own = Policy.load(ModelConfig.model_validate(model))
    tiny = Policy.load(
        ModelConfig.model_validate({**model, "preview_decoder": write_preview_decoder(tmp_path)})
    )
    noise = step_noise(own.latent_shape, branches=2, steps=3, seeds=[1])
    prompts, sampling = [Prompt(0, "a red circle")], SamplingConfig(steps=3)
    usual, quick = (grow(policy, sampling, prompts, noise, previews=[1, 2]) for policy in (own, tiny))
    assert torch.equal(usual.clean, quick.clean)
    assert (usual.previews[2] == quick.previews[2]).all()
    estimates = grow(own, sampling, prompts, noise[:3], end=2).clean.flatten(0, 1)
    decoder = AutoencoderTiny.from_pretrained(tmp_path)
    with torch.no_grad():
        images = decoder.decode(estimates).sample.clamp(-1, 1) * 127.5 + 127.5
    expected = images.round().permute(0, 2, 3, 1).numpy()
    ended = grow(tiny, sampling, prompts, noise[:3], end=2).previews[1][0]
    assert ended.shape == (2, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert abs(ended.astype(int) - expected).max() <= 1
    assert (quick.previews[1][0] == ended).all()
    assert abs(usual.previews[1].astype(int) - quick.previews[1]).max() > 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"channels": 16}, "reads latents of 16 channels, which it enlarges 2 times"),
        ({"stages": 3}, "4 times"),
    ],
)
def test_one_of_another_model_is_refused(
    pipelines: dict[str, Path], tmp_path: Path, other: dict[str, int], message: str
) -> None:
    path = write_preview_decoder(tmp_path, **other)
    with pytest.raises(ModelError, match=message):
        Policy.load(ModelConfig(path=str(pipelines["epsilon"]), preview_decoder=path))
    with pytest.raises(ModelError, match=r"cannot load model\.preview_decoder"):
        Policy.load(ModelConfig(path=str(pipelines["epsilon"]), preview_decoder=str(pipelines["epsilon"])))


def test_its_shapes_are_known_without_its_weights(pipelines: dict[str, Path], tmp_path: Path) -> None:
    path, family = (
        write_preview_decoder(tmp_path),
        Policy.load(ModelConfig(path=str(pipelines["epsilon"])))._family,
    )
    there, planned = (
        load_preview_decoder(path, family, torch.float16, weightless=weightless)
        for weightless in (False, True)
    )
    assert planned.dtype == there.dtype == torch.float16
    assert {name: weight.shape for name, weight in planned.named_parameters()} == {
        name: weight.shape for name, weight in there.named_parameters()
    }
    assert {weight.device.type for weight in planned.parameters()} == {"meta"}
