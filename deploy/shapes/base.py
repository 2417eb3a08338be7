"""Trains the embedded world's base model, a tiny SDXL, on web-like captions: two processes, EMA.

The model predicts `v`, which weighs high noise, where layout and shape are decided. The text encoders learn
with the UNet. Only training captions are seen; held-out combinations of colour and shape are never drawn.
"""

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from deploy.shapes.data import mislabelled, pixels, random_scene
from deploy.shapes.tokenizer import MAX_TOKENS, write_tokenizer
from reward_services.shapes.render import IMAGE_SIZE, render

WORKERS = 2
BATCH = 48
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.998
TEXT_WIDTH = 64


def new_pipeline(vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionXLPipeline:
    """An untrained SDXL of 2.6 M parameters around a trained autoencoder."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=256, projection_dim=TEXT_WIDTH,
        num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=MAX_TOKENS, **special,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=8, block_out_channels=(48, 96), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=16, attention_head_dim=4,
        cross_attention_dim=2 * TEXT_WIDTH, transformer_layers_per_block=1, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 8,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="trailing",
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet, scheduler=scheduler, add_watermarker=False,
        force_zeros_for_empty_prompt=False,
    )  # fmt: skip


@torch.no_grad()
def draw_latents(
    vae: AutoencoderKL, rng: np.random.Generator, count: int, *, clean: bool
) -> tuple[Tensor, list[str]]:
    """Pictures under web captions, encoded: (N, 8, 8, 8) scaled latents and the captions."""
    latents: list[Tensor] = []
    captions: list[str] = []
    while len(captions) < count:
        scenes = [random_scene(rng) for _ in range(256)]
        shown = scenes if clean else [mislabelled(scene, rng) for scene in scenes]
        images = np.stack([render(scene, rng) for scene in shown])
        latents.append(vae.encode(pixels(images)).latent_dist.mean * vae.config.scaling_factor)
        captions += [scene.text for scene in scenes]
    return torch.cat(latents), captions


class TextConditioned(nn.Module):
    """UNet and text encoders as one module: noisy latents, timesteps and token ids to the prediction."""

    def __init__(self, pipeline: StableDiffusionXLPipeline) -> None:
        super().__init__()
        self.unet = pipeline.unet
        self.text_encoder = pipeline.text_encoder
        self.text_encoder_2 = pipeline.text_encoder_2

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """(N, 8, 8, 8), (N,), (N, 16) to (N, 8, 8, 8), conditioned as StableDiffusionXLPipeline does."""
        first = self.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        second = self.text_encoder_2(ids, output_hidden_states=True)
        time_ids = torch.tensor([[IMAGE_SIZE, IMAGE_SIZE, 0, 0, IMAGE_SIZE, IMAGE_SIZE]]).expand(len(ids), -1)
        added = {"text_embeds": second.text_embeds, "time_ids": time_ids}
        hidden = torch.cat([first, second.hidden_states[-2]], dim=-1)
        prediction: Tensor = self.unet(noisy, timesteps, hidden, added_cond_kwargs=added).sample
        return prediction


@dataclass(frozen=True, slots=True)
class Stage:
    """One stretch of training: the model first learns from right captions, then from those of the web."""

    seconds: float
    learning_rate: float
    clean: bool
    resume: bool
    pictures: int
    seed: int

    def learning_rate_at(self, iteration: int, progress: float) -> float:
        """Linear warm-up, then a cosine over the progress from 0 to 1 of the stage."""
        cosine = 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * progress))
        return float(self.learning_rate * min(1.0, (iteration + 1) / 200) * cosine)


@dataclass(frozen=True, slots=True)
class Lessons:
    """N encoded pictures and the tokens of their captions."""

    latents: Tensor
    """(N, 8, 8, 8), scaled."""
    ids: Tensor
    """(N, 16) long."""
    empty: Tensor
    """(16,) long: the tokens of the empty caption."""


def prepare(folder: Path, stage: Stage, rank: int) -> tuple[StableDiffusionXLPipeline, Lessons]:
    """The pipeline to train, new or resumed, and what this process teaches it."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    if stage.resume:
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
        pipeline.unet.train()
    else:
        pipeline = new_pipeline(AutoencoderKL.from_pretrained(folder / "vae"), tokenizer)
    rng = np.random.default_rng(stage.seed + rank)
    latents, captions = draw_latents(pipeline.vae, rng, stage.pictures // WORKERS, clean=stage.clean)
    ids = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
    empty = tokenizer([""], padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids[0]
    return pipeline, Lessons(latents, ids, empty)


def velocity_loss(
    model: TextConditioned, scheduler: DDIMScheduler, lessons: Lessons, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the predicted velocity over a random batch, some of it without its captions."""
    chosen = torch.randint(len(lessons.latents), (BATCH,), generator=generator)
    dropped = torch.rand(BATCH, 1, generator=generator) < CAPTION_DROPOUT
    timesteps = torch.randint(1000, (BATCH,), generator=generator)
    latents = lessons.latents[chosen]
    noise = torch.randn(latents.shape, generator=generator)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.get_velocity(latents, noise, timesteps)
    prediction: Tensor = model(noisy, timesteps, torch.where(dropped, lessons.empty, lessons.ids[chosen]))
    return functional.mse_loss(prediction, target)


def train(rank: int, folder: Path, stage: Stage) -> None:
    """One of the two processes; gradients are averaged, rank 0 keeps the EMA and saves every few minutes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29555", rank=rank, world_size=WORKERS)
    torch.manual_seed(stage.seed)
    pipeline, lessons = prepare(folder, stage, rank)
    model = TextConditioned(pipeline)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    generator = torch.Generator().manual_seed(stage.seed + 100 * rank)
    dist.barrier()
    start, iteration, saved, running = time.time(), 0, time.time(), 0.0
    while (progress := _agree((time.time() - start) / stage.seconds)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate_at(iteration, progress)
        loss = velocity_loss(model, pipeline.scheduler, lessons, generator)
        _step(model, optimizer, loss)
        iteration += 1
        running += (loss.item() - running) / min(iteration, 100)
        torch._foreach_lerp_(
            list(average.parameters()),
            list(model.parameters()),
            1 - min(EMA_DECAY, iteration / (iteration + 10)),
        )
        if rank == 0 and iteration % 200 == 0:
            print(f"base {time.time() - start:5.0f} s, iteration {iteration}, loss {running:.4f}", flush=True)
        if rank == 0 and time.time() - saved > 240:
            _save(pipeline, average, folder)
            saved = time.time()
    if rank == 0:
        _save(pipeline, average, folder)
    dist.destroy_process_group()


def main() -> None:
    """Write the tokenizer, train beside an existing `vae` folder, and save in the diffusers layout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="pipeline folder that holds a trained vae/")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--clean", action="store_true", help="right captions instead of those of the web")
    parser.add_argument("--resume", action="store_true", help="go on from the weights in the folder")
    parser.add_argument("--pictures", type=int, default=80_000)
    arguments = parser.parse_args()
    if not arguments.resume:
        write_tokenizer(arguments.folder / "tokenizer")
    stage = Stage(
        seconds=arguments.seconds,
        learning_rate=arguments.learning_rate,
        clean=arguments.clean,
        resume=arguments.resume,
        pictures=arguments.pictures,
        seed=arguments.seed,
    )
    spawn(train, (arguments.folder, stage), nprocs=WORKERS)


def _agree(value: float) -> float:
    agreed = torch.tensor(value)
    dist.broadcast(agreed, 0)
    return float(agreed)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    loss.backward()
    _average_gradients(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _average_gradients(model: nn.Module) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= WORKERS
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])


def _save(pipeline: StableDiffusionXLPipeline, average: TextConditioned, folder: Path) -> None:
    averaged = {name: getattr(average, name) for name in ("unet", "text_encoder", "text_encoder_2")}
    saved = StableDiffusionXLPipeline(
        **{**pipeline.components, **averaged}, add_watermarker=False, force_zeros_for_empty_prompt=False
    )
    copy.deepcopy(saved.to(torch.float32)).save_pretrained(folder)


if __name__ == "__main__":
    main()
