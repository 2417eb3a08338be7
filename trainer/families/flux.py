"""FLUX.1: a transformer trained by flow matching on patches of 2 x 2 latent pixels; CLIP and T5.

FLUX.1-dev takes the scale of guidance as an input, FLUX.1-schnell takes none: either way a prediction is one
evaluation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.diffusion import Schedule
from trainer.families.family import JOINT_ATTENTION, Conditioning, Family
from trainer.families.schedules import flow_schedule


class Flux(Family):
    """FLUX.1-dev, FLUX.1-schnell and what was made from them."""

    pipeline_class = FluxPipeline
    denoiser = "transformer"
    lora_targets = JOINT_ATTENTION

    @property
    def patch(self) -> int:
        """The pipeline packs so many, whatever the transformer's own patch size says."""
        return 2

    @property
    def usual_side(self) -> int:
        """1024 pixels; the transformer itself has no size."""
        return int(self.pipeline.default_sample_size)

    @classmethod
    def evaluations(cls, guidance: float) -> int:
        """One, at any scale."""
        return 1

    def schedule(self, steps: int) -> Schedule:
        """Euler's from evenly spaced times, shifted by the number of patches where the model asks for it."""
        sigmas = np.linspace(1, 1 / steps, steps).tolist()
        return flow_schedule(self.pipeline, steps, tokens=self.patches, sigmas=sigmas)

    @property
    def reader(self) -> tuple[Any, int]:
        """T5's, as many as the model cards say."""
        return self.pipeline.tokenizer_2, 512 if self._guided else 256

    def encode(self, texts: Sequence[str], device: torch.device) -> Conditioning:
        """T5's tokens; CLIP's pooled output."""
        hidden, pooled, _ = self.pipeline.encode_prompt(
            list(texts), device=device, max_sequence_length=self.reader[1]
        )
        return Conditioning(hidden, pooled, hidden.new_empty(len(hidden), 0))

    def evaluate(
        self, network: nn.Module, sample: Tensor, timesteps: Tensor, text: Conditioning, guidance: float
    ) -> Tensor:
        """The transformer's, patches in and out."""
        rows, columns = (side // self.patch for side in sample.shape[2:])
        patches = F.pixel_unshuffle(sample, self.patch).flatten(2).transpose(1, 2)
        output: Tensor = network(
            hidden_states=patches,
            timestep=timesteps.to(sample.dtype) / 1000,
            guidance=torch.full_like(timesteps, guidance) if self._guided else None,
            pooled_projections=text.pooled,
            encoder_hidden_states=text.hidden,
            txt_ids=patches.new_zeros(text.hidden.shape[1], 3),
            img_ids=_places(rows, columns).to(patches),
        ).sample
        return F.pixel_shuffle(output.transpose(1, 2).unflatten(2, (rows, columns)), self.patch)

    @property
    def _guided(self) -> bool:
        return bool(self.network.config.guidance_embeds)


def _places(rows: int, columns: int) -> Tensor:
    """(rows * columns, 3): 0, the row and the column of each patch."""
    return torch.cartesian_prod(torch.zeros(1), *(torch.arange(float(side)) for side in (rows, columns)))
