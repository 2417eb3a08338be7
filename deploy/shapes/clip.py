"""Trains the embedded world's CLIP on clean renders, beside minimally wrong captions and pictures.

Each picture meets its caption and a caption that differs in one respect, and the caption meets the picture of
that other one: blocks of two by two, without which a small CLIP never learns relations.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from deploy.shapes.data import random_scene
from deploy.shapes.tokenizer import MAX_TOKENS, write_tokenizer
from reward_services.shapes.captions import COLOURS, COUNTS, OPPOSITE, RELATIONS, SHAPES, SIZES, Scene, Thing
from reward_services.shapes.render import IMAGE_SIZE, render

PAIRS = 48
MEAN = STD = (0.5, 0.5, 0.5)


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP of 0.6 M parameters for 32 x 32 pictures."""
    tower = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4, "projection_dim": 96}
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={
            **tower,
            **special,
            "num_hidden_layers": 3,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": MAX_TOKENS,
        },
        vision_config={**tower, "num_hidden_layers": 4, "image_size": IMAGE_SIZE, "patch_size": 8},
        projection_dim=96,
    )
    return CLIPModel(config)


def wrong(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene of the same category, wrong in one respect: relation, count, colours swapped, one attribute."""
    kinds = ["attribute"]
    kinds += ["flip"] * 3 + ["axis"] if scene.relation else []
    kinds += ["count"] * 3 if scene.count > 1 else []
    kinds += ["swap"] * 2 if len(scene.things) == 2 and scene.things[0].shape != scene.things[1].shape else []
    kinds += ["size"] if scene.things[0].size else []
    kind = kinds[rng.integers(len(kinds))]
    things = scene.things
    if kind == "flip":
        return Scene(things, relation=OPPOSITE[str(scene.relation)])
    if kind == "axis":
        turned = [r for r in RELATIONS if r not in (scene.relation, OPPOSITE[str(scene.relation)])]
        return Scene(things, relation=turned[rng.integers(2)])
    if kind == "count":
        return Scene(things, count=sum(COUNTS) - scene.count)
    if kind == "swap":
        a, b = things
        return Scene(
            (Thing(b.colour, a.shape, a.size), Thing(a.colour, b.shape, b.size)), relation=scene.relation
        )
    changed = list(things)
    place = int(rng.integers(len(things)))
    changed[place] = _other(things, place, kind, rng)
    return Scene(tuple(changed), scene.count, scene.relation)


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise and blur, as previews of unfinished pictures have: (N, 3, H, W) to the same."""
    noise = torch.rand(len(images), 1, 1, 1, generator=generator) ** 2 * 0.3
    images = images + noise * torch.randn(images.shape, generator=generator)
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(len(images), 1, 1, 1, generator=generator)
    share = torch.where(torch.rand(share.shape, generator=generator) < 0.5, 0.0, share)
    return images + share * (blurred - images)


def features(
    model: CLIPModel, tokenizer: CLIPTokenizer, images: Tensor, texts: list[str]
) -> tuple[Tensor, Tensor]:
    """Normalised image and text features."""
    tokens = tokenizer(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    output = model(pixel_values=images, **tokens)
    return output.image_embeds, output.text_embeds


def minimal_pairs(rng: np.random.Generator, count: int) -> tuple[Tensor, list[str]]:
    """Scene and wrong scene alternate: (2 * count, 3, 32, 32) in [-1, 1] and their captions."""
    scenes = [s for scene in (random_scene(rng) for _ in range(count)) for s in (scene, wrong(scene, rng))]
    images = np.stack([render(scene, rng) for scene in scenes])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, [scene.text for scene in scenes]


def block_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """In each pair the caption prefers its picture, the picture its caption. (2N, D) each to a scalar."""
    similarity = scale * torch.einsum("nad,nbd->nab", image.unflatten(0, (-1, 2)), text.unflatten(0, (-1, 2)))
    target = torch.arange(2).expand(len(similarity), 2)
    return functional.cross_entropy(similarity.flatten(0, 1), target.flatten()) + functional.cross_entropy(
        similarity.transpose(1, 2).flatten(0, 1), target.flatten()
    )


def contrastive_loss(image: Tensor, text: Tensor, texts: list[str], scale: Tensor) -> Tensor:
    """CLIP's loss over the batch, in which equal captions are not each other's negatives."""
    logits = scale * image @ text.T
    same = torch.tensor([[a == b for b in texts] for a in texts]) & ~torch.eye(len(texts), dtype=torch.bool)
    logits = logits.masked_fill(same, -1e4)
    target = torch.arange(len(texts))
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def train(model: CLIPModel, tokenizer: CLIPTokenizer, seconds: float, seed: int) -> None:
    """Train for a given time; the cosine schedule follows the clock."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02, fused=True)
    start, iteration = time.time(), 0
    while (elapsed := time.time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = (
                1e-3
                * min(1.0, (iteration + 1) / 50)
                * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * elapsed / seconds)))
            )
        images, texts = minimal_pairs(rng, PAIRS)
        image, text = features(model, tokenizer, distort(images, generator), texts)
        scale = model.logit_scale.exp().clamp(max=100)
        block = block_loss(image, text, scale)
        loss = block + 0.5 * contrastive_loss(image, text, texts, scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        iteration += 1
        if iteration % 100 == 0:
            print(
                f"clip {elapsed:5.0f} s, iteration {iteration}, "
                f"loss {loss.item():.3f}, pairs {block.item():.3f}",
                flush=True,
            )


def save(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save the model, its tokenizer and its image processor in the transformers layout."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size=size, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)


@torch.no_grad()
def pair_accuracy(
    model: CLIPModel, tokenizer: CLIPTokenizer, seed: int, count: int = 400
) -> dict[str, float]:
    """Share of held-out pictures that prefer their caption to a minimally wrong one, by category."""
    rng = np.random.default_rng(seed)
    won: dict[str, list[bool]] = {}
    for _ in range(count):
        scene = random_scene(rng, held_out=True, even=True)
        pixels = torch.from_numpy(render(scene, rng)[None]).permute(0, 3, 1, 2).float() / 127.5 - 1
        image, text = features(model, tokenizer, pixels, [scene.text, wrong(scene, rng).text])
        right, other = (image @ text.T)[0].tolist()
        won.setdefault(scene.category, []).append(right > other)
    return {category: round(float(np.mean(wins)), 3) for category, wins in sorted(won.items())}


def main() -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    tokenizer = write_tokenizer(arguments.folder)
    model = new_clip(tokenizer)
    train(model, tokenizer, arguments.seconds, arguments.seed)
    model.eval()
    accuracy = pair_accuracy(model, tokenizer, arguments.seed + 1)
    print(f"clip: right caption preferred to a minimally wrong one {accuracy}")
    save(model, tokenizer, arguments.folder)


def _other(things: tuple[Thing, ...], place: int, kind: str, rng: np.random.Generator) -> Thing:
    thing = things[place]
    if kind == "size":
        return Thing(thing.colour, thing.shape, SIZES[1 - SIZES.index(str(thing.size))])
    if rng.random() < 0.5:
        shapes = [shape for shape in SHAPES if shape != thing.shape]
        return Thing(thing.colour, shapes[rng.integers(len(shapes))], thing.size)
    taken = {other.colour for other in things}
    colours = [colour for colour in COLOURS if colour not in taken]
    return Thing(colours[rng.integers(len(colours))], thing.shape, thing.size)


if __name__ == "__main__":
    main()
