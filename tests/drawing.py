"""Pictures that a policy draws, and those that plain diffusers draws with the same model and noise."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FluxPipeline
from numpy.typing import NDArray
from torch import Tensor

from tests.tiny import IMAGE_SIZE, LATENT_SHAPE
from trainer.branches import Branches, grow, step_noise
from trainer.config import LoraConfig, ModelConfig, SamplingConfig
from trainer.policy import Policy
from trainer.records import Prompt

LORA = LoraConfig(rank=4, alpha=10.0)
PROMPTS = [Prompt(0, "a red circle"), Prompt(1, "two blue squares"), Prompt(2, "a green cross")]
SEEDS = [11, 12, 13]


def load(
    folder: Path, lora: LoraConfig | None = LORA, device: torch.device | None = None, **options: Any
) -> Policy:
    config = ModelConfig(path=str(folder), lora=lora, image_size=IMAGE_SIZE, **options)
    return Policy.load(config, device)


def plain(folder: Path) -> Any:
    """The pipeline as anybody loads it; DDPM models with the sampler that ours is without noise.

    diffusers itself loads Stable Diffusion 3 without T5 only when it is told so.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    absent = {name: None for name, entry in index.items() if entry == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    if "beta_schedule" in pipeline.scheduler.config:
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False
        )
    return pipeline


def drawn_by(pipeline: Any, noise: Tensor, steps: int, guidance: float, output_type: str = "np") -> Any:
    """What the pipeline itself makes of each prompt's first noise."""
    sizes = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    if isinstance(pipeline, FluxPipeline):
        noise = FluxPipeline._pack_latents(noise, len(noise), *noise.shape[1:])
        sizes["max_sequence_length"] = 512 if pipeline.transformer.config.guidance_embeds else 256
    return pipeline(
        [prompt.text for prompt in PROMPTS],
        latents=noise,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type=output_type,
        **sizes,
    ).images


def grown_by(
    policy: Policy,
    prompts: Sequence[Prompt] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    *,
    steps: int = 4,
    guidance: float = 3.0,
    eta: float = 0.0,
    solver: Literal["ddim", "dpmpp_2m"] = "ddim",
) -> Branches:
    noise = step_noise(policy.latent_shape, branches=1, steps=steps if eta else 0, seeds=seeds)
    sampling = SamplingConfig(steps=steps, guidance=guidance, eta=eta, solver=solver)
    return grow(policy, sampling, prompts, noise)


def first_noise() -> Tensor:
    return step_noise(LATENT_SHAPE, branches=1, steps=0, seeds=SEEDS)[0, :, 0]


def pictures(branches: Branches) -> NDArray[np.uint8]:
    return branches.previews[max(branches.previews)][:, 0]


def assert_same_pictures(found: NDArray[np.uint8], expected: NDArray[np.float32]) -> None:
    """Pictures differ by rounding to whole numbers only, and show something."""
    assert np.abs(found - 255 * expected).max() < 0.6
    assert found.std() > 5


def train(policy: Policy) -> None:
    timesteps, text = policy.schedule(4).timesteps_T[1:4], policy.encode([prompt.text for prompt in PROMPTS])
    optimizer = torch.optim.Adam(policy.parameters, lr=0.03)
    for _ in range(5):
        policy.predict(first_noise(), timesteps, text, 1.0).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
