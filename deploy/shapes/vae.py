"""Trains the embedded world's autoencoder: 32 x 32 x 3 pictures to 8 x 8 x 8 latents, in three CPU minutes.

The loss weighs the things above the background, which is most of a picture and teaches nothing.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from deploy.shapes.data import pixels, random_scene
from reward_services.shapes.render import BACKGROUND, render
from reward_services.shapes.verify import verify

BATCH = 32
FOREGROUND_WEIGHT = 4.0
KL_WEIGHT = 1e-5


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder: factor 4, 8 latent channels, 0.66 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


def foreground(images: Tensor) -> Tensor:
    """Where something stands, a pixel wider than it is: (N, 1, 32, 32) of 0 and 1."""
    background = pixels(np.asarray(BACKGROUND, dtype=np.uint8)[None, None, None])
    away = (images - background).abs().amax(dim=1, keepdim=True) > 0.1
    return functional.max_pool2d(away.float(), 3, stride=1, padding=1)


def batch_of_pictures(rng: np.random.Generator, count: int) -> tuple[Tensor, list[str]]:
    """Fresh renders with their captions: (N, 3, 32, 32) in [-1, 1]."""
    scenes = [random_scene(rng) for _ in range(count)]
    return pixels(np.stack([render(scene, rng) for scene in scenes])), [scene.text for scene in scenes]


def train(vae: AutoencoderKL, seconds: float, seed: int) -> None:
    """Train for a given time; the cosine schedule follows the clock."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3, fused=True)
    start, iteration = time.time(), 0
    while (elapsed := time.time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * elapsed / seconds)))
        images, _ = batch_of_pictures(rng, BATCH)
        posterior = vae.encode(images).latent_dist
        error = vae.decode(posterior.sample()).sample - images
        weight = 1 + FOREGROUND_WEIGHT * foreground(images)
        loss = (weight * error**2).mean() + 0.1 * error.abs().mean() + KL_WEIGHT * posterior.kl().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        iteration += 1
        if iteration % 50 == 0:
            print(f"vae {elapsed:5.0f} s, iteration {iteration}, loss {loss.item():.5f}", flush=True)


@torch.no_grad()
def finish(vae: AutoencoderKL, seed: int) -> float:
    """Set the scaling factor from the latents; returns the share of reconstructions the verifier accepts."""
    images, captions = batch_of_pictures(np.random.default_rng(seed + 1), 512)
    latents = vae.encode(images).latent_dist.mean
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))
    decoded = (
        (vae.decode(latents).sample.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    )
    return float(
        np.mean([verify(image, caption).correct for image, caption in zip(decoded, captions, strict=True)])
    )


def main() -> None:
    """Train, measure and save in the diffusers layout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", type=Path, help="a trained autoencoder to go on from, with a new schedule"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    vae = AutoencoderKL.from_pretrained(arguments.resume) if arguments.resume else new_vae()
    train(vae, arguments.seconds, arguments.seed)
    accepted = finish(vae, arguments.seed)
    vae.save_pretrained(arguments.folder)
    print(f"vae: {accepted:.1%} of reconstructions verified; scaling factor {vae.config.scaling_factor}")


if __name__ == "__main__":
    main()
