"""FLUX: patches as the pipeline packs them, guidance as an input or not at all."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from trainer.families.flux import Flux

CPU = torch.device("cpu")


def family_of(folder: Path, image_size: int | None = 16) -> Flux:
    return Flux(FluxPipeline.from_pretrained(folder), image_size)


def output_of(family: Flux, guidance: float, latents: Tensor) -> Tensor:
    text = family.encode(["a red circle"], CPU).take(torch.zeros(len(latents), dtype=torch.long))
    with torch.no_grad():
        return family.evaluate(family.network, latents, torch.tensor([800.0, 300.0]), text, guidance)


def test_patches_are_those_of_the_pipeline(families: dict[str, Path]) -> None:
    family = family_of(families["flux-dev"])
    seen: list[dict[str, Tensor]] = []
    family.network.register_forward_pre_hook(lambda _, inputs, named: seen.append(named), with_kwargs=True)
    latents = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    output = output_of(family, 3.5, latents)
    assert torch.equal(seen[0]["hidden_states"], FluxPipeline._pack_latents(latents, 2, 4, 8, 12))
    places = FluxPipeline._prepare_latent_image_ids(2, 4, 6, CPU, torch.float32)
    assert torch.equal(seen[0]["img_ids"], places)
    assert seen[0]["guidance"].tolist() == [3.5, 3.5]
    with torch.no_grad():
        packed = family.network(**{**seen[0], "return_dict": False})[0]
    torch.testing.assert_close(output, FluxPipeline._unpack_latents(packed, 16, 24, 2))


@pytest.mark.parametrize(("name", "tokens"), [("flux-dev", 512), ("flux-schnell", 256)])
def test_a_prompt_is_encoded_as_the_pipeline_does(families: dict[str, Path], name: str, tokens: int) -> None:
    family = family_of(families[name])
    hidden, pooled, _ = family.pipeline.encode_prompt("a red circle", max_sequence_length=tokens)
    text = family.encode(["a red circle"], CPU)
    torch.testing.assert_close([text.hidden, text.pooled], [hidden, pooled])


def test_guidance_is_an_input_of_dev_and_nothing_to_schnell(families: dict[str, Path]) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for name, heeded in (("flux-dev", True), ("flux-schnell", False)):
        family = family_of(families[name])
        weak, strong = (output_of(family, guidance, latents) for guidance in (1.0, 4.0))
        assert torch.allclose(weak, strong) is not heeded
        assert (family.evaluations(1.0), family.evaluations(4.0)) == (1, 1)


def test_its_usual_pictures_have_128_latent_pixels_a_side(families: dict[str, Path]) -> None:
    assert family_of(families["flux-dev"], None).latent_shape == (4, 128, 128)
