"""Stable Diffusion XL (arXiv 2307.01952): a UNet that reads two CLIPs and the size of the picture."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from trainer.diffusion import Schedule
from trainer.families.family import Conditioning, Family
from trainer.families.schedules import ddpm_schedule


class StableDiffusionXL(Family):
    """Stable Diffusion XL."""

    pipeline_class = StableDiffusionXLPipeline
    load_options: ClassVar[Mapping[str, Any]] = {"add_watermarker": False}
    denoiser = "unet"

    def schedule(self, steps: int) -> Schedule:
        """DDIM's."""
        return ddpm_schedule(self.pipeline, steps)

    def encode(self, text: str, device: torch.device) -> Conditioning:
        """The layers before the last of two CLIPs, side by side; the second's projection."""
        encoded = self.pipeline.encode_prompt(text, device=device, do_classifier_free_guidance=False)
        return Conditioning(encoded[0], encoded[2])

    def encode_empty(self, device: torch.device) -> Conditioning:
        """The empty prompt, or zeros where the pipeline says so."""
        _, hidden, _, pooled = self.pipeline.encode_prompt("", device=device)
        return Conditioning(hidden, pooled)

    def evaluate(
        self, network: nn.Module, sample: Tensor, timesteps: Tensor, text: Conditioning, guidance: float
    ) -> Tensor:
        """The UNet's, told of pictures that were neither scaled nor cropped (section 2.2)."""
        height, width = (side * self.pipeline.vae_scale_factor for side in sample.shape[2:])
        time_ids = text.pooled.new_tensor([height, width, 0, 0, height, width]).expand(len(sample), -1)
        added = {"text_embeds": text.pooled, "time_ids": time_ids}
        output: Tensor = network(sample, timesteps, text.hidden, added_cond_kwargs=added).sample
        return output
