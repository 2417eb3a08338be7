"""Between latents and pictures, by diffusers' autoencoders.

Shapes: N pictures, (C, h, w) a latent, (H, W) a picture.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@torch.no_grad()
def decoded(vae: Any, latents: Tensor, at_a_time: int | None = None) -> Tensor:
    """(N, C, h, w) latents to (N, H, W, 3) uint8 pictures, on the same device; all or some at a time."""
    latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    return torch.cat(
        [_pictures(vae, some) for some in latents.to(vae.dtype).split(at_a_time or len(latents))]
    )


@torch.no_grad()
def encoded(vae: Any, pictures: NDArray[np.uint8], device: torch.device) -> Tensor:
    """(N, H, W, 3) pictures to the (N, C, h, w) latents they most likely have."""
    scaled = torch.from_numpy(pictures).to(device, vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1
    latents: Tensor = vae.encode(scaled).latent_dist.mode().float()
    scaled_latents: Tensor = (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    return scaled_latents


def _pictures(vae: Any, latents: Tensor) -> Tensor:
    images = vae.decode(latents).sample.float()
    scaled = (images.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    pictures: Tensor = scaled.permute(0, 2, 3, 1).contiguous()
    return pictures
