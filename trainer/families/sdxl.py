"""Stable Diffusion XL (arXiv 2307.01952): a UNet that reads two CLIPs and the size of the picture."""

from collections.abc import Mapping, Sequence
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

    def encode(self, texts: Sequence[str], device: torch.device) -> Conditioning:
        """The layers before the last of two CLIPs, side by side; the second's projection."""
        encoded = self.pipeline.encode_prompt(list(texts), device=device, do_classifier_free_guidance=False)
        return Conditioning(encoded[0], encoded[2], self._own_size(device).expand(len(texts), -1))

    def encode_empty(self, device: torch.device) -> Conditioning:
        """The empty prompt, or zeros where the pipeline says so."""
        _, hidden, _, pooled = self.pipeline.encode_prompt("", device=device)
        return Conditioning(hidden, pooled, self._own_size(device))

    def evaluate(
        self, network: nn.Module, sample: Tensor, timesteps: Tensor, text: Conditioning, guidance: float
    ) -> Tensor:
        """The UNet's, told how pictures were scaled and cropped (section 2.2)."""
        added = {"text_embeds": text.pooled, "time_ids": text.sizes}
        output: Tensor = network(sample, timesteps, text.hidden, added_cond_kwargs=added).sample
        return output

    def _own_size(self, device: torch.device) -> Tensor:
        """(1, 6): a picture that was neither scaled nor cropped."""
        side = self.latent_shape[1] * self.pipeline.vae_scale_factor
        return torch.tensor([[side, side, 0, 0, side, side]], device=device)
