"""Stable Diffusion XL: two CLIPs, the size of the picture, and what it takes for an empty prompt."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tests.tiny import LATENT_SHAPE
from trainer.families.sdxl import StableDiffusionXL

CPU = torch.device("cpu")


@pytest.mark.parametrize("zeros", [False, True])
def test_a_prompt_is_encoded_as_the_pipeline_does(pipelines: dict[str, Path], zeros: bool) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        pipelines["epsilon"], add_watermarker=False, force_zeros_for_empty_prompt=zeros
    )
    hidden, empty_hidden, pooled, empty_pooled = pipeline.encode_prompt("a red circle", device="cpu")
    family = StableDiffusionXL(pipeline)
    text, empty = family.encode(["a red circle"], CPU), family.encode_empty(CPU)
    torch.testing.assert_close([text.hidden, text.pooled], [hidden, pooled])
    torch.testing.assert_close([empty.hidden, empty.pooled], [empty_hidden, empty_pooled])
    assert (empty.hidden.abs().max() == 0) == zeros


def test_the_network_is_told_the_size(pipelines: dict[str, Path]) -> None:
    family = StableDiffusionXL(StableDiffusionXLPipeline.from_pretrained(pipelines["epsilon"]), image_size=32)
    told: list[torch.Tensor] = []
    family.network.register_forward_pre_hook(
        lambda _, inputs, named: told.append(named["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    assert family.latent_shape == (LATENT_SHAPE[0], 16, 16)
    text = family.encode(["a red circle"], CPU).take(torch.tensor([0, 0]))
    family.evaluate(family.network, torch.zeros(2, *family.latent_shape), torch.tensor([999, 3]), text, 1.0)
    assert told[0].tolist() == [[32, 32, 0, 0, 32, 32]] * 2
