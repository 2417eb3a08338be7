"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): a transformer trained by flow matching; two CLIPs and T5."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from trainer.diffusion import Schedule
from trainer.families.family import JOINT_ATTENTION, Conditioning, Family
from trainer.families.schedules import flow_schedule


class StableDiffusion3(Family):
    """Stable Diffusion 3.x, with or without its T5."""

    pipeline_class = StableDiffusion3Pipeline
    denoiser = "transformer"
    lora_targets = JOINT_ATTENTION
    t5 = ("text_encoder_3", "tokenizer_3")

    @property
    def patch(self) -> int:
        """Two in all that were published."""
        return int(self.network.config.patch_size)

    def schedule(self, steps: int) -> Schedule:
        """Euler's, shifted."""
        return flow_schedule(self.pipeline, steps, tokens=self.patches)

    @property
    def reader(self) -> tuple[Any, int]:
        """T5's, as many as diffusers gives it; without it the CLIPs'."""
        tokenizer = self.pipeline.tokenizer_3
        return (tokenizer, 256) if tokenizer is not None else super().reader

    def encode(self, texts: Sequence[str], device: torch.device) -> Conditioning:
        """The tokens of both CLIPs, then T5's; the projections of both CLIPs."""
        hidden, _, pooled, _ = self.pipeline.encode_prompt(
            list(texts), None, None, device=device, do_classifier_free_guidance=False
        )
        return Conditioning(hidden, pooled, hidden.new_empty(len(hidden), 0))

    def evaluate(
        self, network: nn.Module, sample: Tensor, timesteps: Tensor, text: Conditioning, guidance: float
    ) -> Tensor:
        """The transformer's."""
        output: Tensor = network(
            hidden_states=sample,
            timestep=timesteps,
            encoder_hidden_states=text.hidden,
            pooled_projections=text.pooled,
        ).sample
        return output
