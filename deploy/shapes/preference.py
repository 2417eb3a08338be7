"""Tunes the embedded world's CLIP on the base model's own samples, as PickScore on people's choices.

A CLIP that has seen only clean renders cannot see what a generator gets wrong. Here the verifier stands in
for the people who chose: of two samples of one training caption, the one with more of the caption right is
preferred (Bradley and Terry 1952). Held-out captions are never drawn, and the verifier is not needed then.
What is saved lies halfway between the CLIP before and after (Wortsman et al., arXiv 2109.01903): it knows the
generator's mistakes and forgets none of what it knew.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

from deploy.shapes.clip import (
    PAIRS,
    block_loss,
    contrastive_loss,
    distort,
    features,
    minimal_pairs,
    pair_accuracy,
    save,
)
from deploy.shapes.data import pixels, random_scene
from reward_services.shapes.captions import Scene
from reward_services.shapes.verify import verify
from trainer.branches import grow, step_noise
from trainer.config import ModelConfig, SamplingConfig
from trainer.policy import Policy
from trainer.records import Prompt

SAMPLES = 8
"""Pictures of each caption, a quarter of them from each way of sampling."""
WAYS = ((1.0, 1.0), (1.0, 0.0), (2.0, 1.0), (3.0, 0.0))
"""(guidance, eta): the reward must judge all of them."""
STEPS = 10
WORKERS = 2
TUNED_SHARE = 0.5
"""How far the saved weights lie on the way from the CLIP before tuning to the one after."""
MIN_GAP = 0.25
"""Two wrong pictures make a pair when the shares of parts that hold differ by at least this."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Pictures of captions and how much of each caption they fulfil."""

    captions: list[str]
    images: Tensor
    """(N, SAMPLES, 3, 32, 32) in [-1, 1]"""
    quality: Tensor
    """(N, SAMPLES): 2 where everything holds, else the share of parts that hold."""


def draw(base: Path, seed: int, captions: int, *, held_out: bool) -> Samples:
    """Sample the base model; one process."""
    torch.set_num_threads(1)
    policy = Policy.load(ModelConfig(path=str(base), lora=None))
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, held_out=held_out, even=True) for _ in range(captions)]
    images, quality = [], []
    for first in range(0, captions, 16):
        part = scenes[first : first + 16]
        pictures = np.concatenate(
            [_pictures(policy, part, way, seed * 100_003 + first) for way in WAYS], axis=1
        )
        images.append(pictures)
        quality.append(
            [
                [_quality(image, scene.text) for image in row]
                for row, scene in zip(pictures, part, strict=True)
            ]
        )
    stacked = np.concatenate(images)
    return Samples(
        [scene.text for scene in scenes],
        pixels(stacked.reshape(-1, *stacked.shape[2:])).unflatten(0, stacked.shape[:2]),
        torch.tensor([row for part in quality for row in part]),
    )


def pairs_of(samples: Samples) -> Tensor:
    """(M, 3) long: caption, better picture, worse picture."""
    better = samples.quality[:, :, None] - samples.quality[:, None, :] >= MIN_GAP
    return better.nonzero()


def tune(model: CLIPModel, tokenizer: CLIPTokenizer, samples: Samples, seconds: float, seed: int) -> None:
    """Preference pairs, and beside them blocks of rendered minimal pairs, so that nothing learned is lost."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    pairs = pairs_of(samples)
    per_caption = torch.bincount(pairs[:, 0], minlength=len(samples.captions)).float()
    chances = per_caption[pairs[:, 0]].rsqrt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.02, fused=True)
    start, iteration = time.time(), 0
    while (elapsed := time.time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = (
                3e-4
                * min(1.0, (iteration + 1) / 50)
                * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * elapsed / seconds)))
            )
        chosen = pairs[torch.multinomial(chances, PAIRS, generator=generator)]
        images = torch.cat([samples.images[chosen[:, 0], chosen[:, side]] for side in (1, 2)])
        rendered, texts = minimal_pairs(rng, PAIRS // 2)
        captions = [samples.captions[row] for row in chosen[:, 0]]
        image, text = features(
            model,
            tokenizer,
            torch.cat([_jitter(images, generator), distort(rendered, generator)]),
            captions * 2 + texts,
        )
        scale = model.logit_scale.exp().clamp(max=100)
        better, worse = (scale * (image * text).sum(1))[: 2 * PAIRS].chunk(2)
        preference = -functional.logsigmoid(better - worse).mean()
        block = block_loss(image[2 * PAIRS :], text[2 * PAIRS :], scale)
        loss = (
            preference
            + 0.5 * block
            + 0.3 * contrastive_loss(image[2 * PAIRS :], text[2 * PAIRS :], texts, scale)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        iteration += 1
        if iteration % 100 == 0:
            print(
                f"preference {elapsed:5.0f} s, iteration {iteration}, "
                f"pairs {preference.item():.3f}, blocks {block.item():.3f}",
                flush=True,
            )


@torch.no_grad()
def judge(model: CLIPModel, tokenizer: CLIPTokenizer, samples: Samples) -> dict[str, float]:
    """How well scores tell right from wrong: AUC over all pictures, within captions, best-of-n."""
    scores = []
    for caption, images in zip(samples.captions, samples.images, strict=True):
        image, text = features(model, tokenizer, images, [caption])
        scores.append((image @ text.T)[:, 0])
    score, right = torch.stack(scores), samples.quality == 2
    within = [
        (s[r][:, None] > s[~r][None, :]).float().mean()
        for s, r in zip(score, right, strict=True)
        if r.any() and not r.all()
    ]
    best = right.gather(1, score.argmax(1, keepdim=True)).float().mean()
    return {
        "auc": float((score[right][:, None] > score[~right][None, :]).float().mean()),
        "within_caption": float(torch.stack(within).mean()),
        "single": float(right.float().mean()),
        f"best_of_{SAMPLES}": float(best),
        "oracle": float(right.any(1).float().mean()),
    }


def main() -> None:
    """Sample, tune, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("clip", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captions", type=int, default=960)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    each = arguments.captions // WORKERS
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        drawn = [
            pool.submit(draw, arguments.base, arguments.seed + 1 + w, each, held_out=False)
            for w in range(WORKERS)
        ]
        tests = [
            pool.submit(draw, arguments.base, arguments.seed + 101 + w, 75, held_out=True)
            for w in range(WORKERS)
        ]
        samples, test = (_joined([future.result() for future in futures]) for futures in (drawn, tests))
    torch.set_num_threads(1)
    right = (samples.quality == 2).float().mean()
    print(f"preference: {right:.1%} of the samples right, {len(pairs_of(samples))} pairs", flush=True)
    model, tokenizer = (
        CLIPModel.from_pretrained(arguments.clip),
        CLIPTokenizer.from_pretrained(arguments.clip),
    )
    print("before", judge(model.eval(), tokenizer, test), flush=True)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    tune(model.train(), tokenizer, samples, arguments.seconds, arguments.seed)
    with torch.no_grad():
        torch._foreach_lerp_(list(model.parameters()), before, 1 - TUNED_SHARE)
    print(
        "after",
        judge(model.eval(), tokenizer, test),
        pair_accuracy(model, tokenizer, arguments.seed + 1),
        flush=True,
    )
    save(model, tokenizer, arguments.folder)


def _pictures(policy: Policy, scenes: list[Scene], way: tuple[float, float], seed: int) -> np.ndarray:
    guidance, eta = way
    prompts = [Prompt(index=index, text=scene.text) for index, scene in enumerate(scenes)]
    seeds = [seed + index + int(1e6 * (10 * guidance + eta)) for index in range(len(scenes))]
    noise = step_noise(policy.latent_shape, branches=SAMPLES // len(WAYS), steps=STEPS, seeds=seeds)
    sampling = SamplingConfig(steps=STEPS, guidance=guidance, eta=eta)
    return grow(policy, sampling, prompts, noise).previews[STEPS - 1]


def _quality(image: np.ndarray, caption: str) -> float:
    verdict = verify(image, caption)
    return 2.0 if verdict.correct else float(np.mean(list(verdict.parts.values())))


def _jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    return images + 0.05 * torch.randn(images.shape, generator=generator)


def _joined(parts: list[Samples]) -> Samples:
    return Samples(
        [caption for part in parts for caption in part.captions],
        torch.cat([part.images for part in parts]),
        torch.cat([part.quality for part in parts]),
    )


if __name__ == "__main__":
    main()
