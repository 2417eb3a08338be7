"""Trains the embedded world's preview decoder: a tiny autoencoder whose decoder imitates the base's own.

It learns from latents of renders and from mixtures of two, as blurred as x0 estimates on the way are.
The encoder that the format asks for is left as it began: nothing uses it.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from deploy.shapes.vae import batch_of_pictures
from reward_services.shapes.verify import verify

BATCH = 64


def new_decoder() -> AutoencoderTiny:
    """An untrained one for latents of 8 channels, enlarged 4 times."""
    return AutoencoderTiny(
        latent_channels=8,
        encoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        decoder_block_out_channels=(16, 16, 16),
        num_decoder_blocks=(3, 3, 1),
    )


@torch.no_grad()
def lesson(vae: AutoencoderKL, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Latents, (N, 8, 8, 8) as the denoiser has them, and what the base's own decoder makes of them."""
    pictures, _ = batch_of_pictures(rng, BATCH)
    latents = vae.encode(pictures).latent_dist.sample()
    shares = torch.from_numpy(rng.uniform(0, 1, (BATCH, 1, 1, 1)).astype(np.float32))
    shares[: BATCH // 2] = 1
    mixed = shares * latents + (1 - shares) * latents.flip(0)
    return mixed * vae.config.scaling_factor, vae.decode(mixed).sample


def train(decoder: AutoencoderTiny, vae: AutoencoderKL, seconds: float, seed: int) -> None:
    """Train for a given time; the cosine schedule follows the clock."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(decoder.decoder.parameters(), lr=2e-3, fused=True)
    start, iteration = time.time(), 0
    while (elapsed := time.time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * elapsed / seconds)))
        latents, wanted = lesson(vae, rng)
        error = decoder.decode(latents).sample - wanted
        loss = (error**2).mean() + 0.1 * error.abs().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        iteration += 1
        if iteration % 50 == 0:
            print(
                f"preview decoder {elapsed:5.0f} s, iteration {iteration}, loss {loss.item():.5f}", flush=True
            )


@torch.no_grad()
def accepted(decoder: AutoencoderTiny, vae: AutoencoderKL, seed: int) -> float:
    """Share of renders that the verifier accepts, encoded by the base's own and decoded by the tiny one."""
    images, captions = batch_of_pictures(np.random.default_rng(seed + 1), 512)
    latents = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
    decoded = decoder.decode(latents).sample.clamp(-1, 1) * 127.5 + 127.5
    pictures = decoded.round().byte().permute(0, 2, 3, 1).numpy()
    verdicts = [verify(image, caption).correct for image, caption in zip(pictures, captions, strict=True)]
    return float(np.mean(verdicts))


def main() -> None:
    """Train, measure and save in the diffusers layout, in half precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vae", type=Path, help="the autoencoder to imitate")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    vae = AutoencoderKL.from_pretrained(arguments.vae, torch_dtype=torch.float32).eval()
    decoder = new_decoder()
    train(decoder, vae, arguments.seconds, arguments.seed)
    share = accepted(decoder, vae, arguments.seed)
    decoder.half().save_pretrained(arguments.folder)
    print(f"preview decoder: {share:.1%} of reconstructions verified")


if __name__ == "__main__":
    main()
