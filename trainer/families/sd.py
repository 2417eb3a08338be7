"""Stable Diffusion 1.x and 2.x: a UNet that reads the token features of one CLIP."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from trainer.diffusion import Schedule
from trainer.families.family import Conditioning, Family
from trainer.families.schedules import ddpm_schedule


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x, without the safety checker: what rewards see is what the model draws."""

    pipeline_class = StableDiffusionPipeline
    load_options: ClassVar[Mapping[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}
    denoiser = "unet"

    def schedule(self, steps: int) -> Schedule:
        """DDIM's."""
        return ddpm_schedule(self.pipeline, steps)

    def encode(self, texts: Sequence[str], device: torch.device) -> Conditioning:
        """The last layer of CLIP; nothing pooled."""
        hidden, _ = self.pipeline.encode_prompt(list(texts), device, 1, do_classifier_free_guidance=False)
        return Conditioning(hidden, hidden.new_empty(len(hidden), 0), hidden.new_empty(len(hidden), 0))

    def evaluate(
        self, network: nn.Module, sample: Tensor, timesteps: Tensor, text: Conditioning, guidance: float
    ) -> Tensor:
        """The UNet's."""
        output: Tensor = network(sample, timesteps, text.hidden).sample
        return output
