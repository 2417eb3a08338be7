"""Pictures that somebody else made, as lessons: what standard fine-tuning and offline preference pairs learn.

A captioned picture is a prompt with one branch of weight 1; a preference pair is one with two, of which the
chosen is the best. Their latents are their ends, and are noised anew: nothing else was visited. SDXL is told
how each was scaled and cropped, so that it does not learn to draw what that did to them.
"""

from collections.abc import Sequence

import numpy as np
import torch

from trainer.branches import Branches
from trainer.config import TrainConfig
from trainer.config.data import DataConfig
from trainer.data.pairs import ImageTextStream, PreferencePair, PreferenceStream, picture_sizes
from trainer.data.rows import ImageText, Rows
from trainer.path_integral import Selection
from trainer.policy import Policy
from trainer.ranks import Ranks
from trainer.records import Prompt
from trainer.replay import Lesson

GivenStream = ImageTextStream | PreferenceStream
Given = ImageText | PreferencePair


def open_stream(config: TrainConfig, data: DataConfig, policy: Policy, ranks: Ranks) -> GivenStream:
    """The stream of what a method learns from. Raises DataError."""
    kind = ImageTextStream if config.method == "standard" else PreferenceStream
    return kind(
        Rows(data),
        picture_sizes(data, policy.image_size[0], policy.image_step),
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        micro_batch=config.branching.prompts_per_micro_batch,
    )


def lesson_of(policy: Policy, items: Sequence[Given], seeds: tuple[int, ...]) -> Lesson:
    """A micro-batch of pictures of one size as a lesson; no score says what it returns."""
    rows = [_pictures(item) for item in items]
    count, width = len(rows), len(rows[0])
    latents = policy.compress(np.stack([picture.image for row in rows for picture in row]))
    clean = latents.unflatten(0, (count, width))
    prompts = tuple(Prompt(index, item.prompt) for index, item in enumerate(items))
    return Lesson(
        Branches(
            prompts=prompts,
            text=policy.encode([prompt.text for prompt in prompts]),
            states=clean[None],
            previews={},
            unet_evaluations=0,
            sizes=torch.tensor([[picture.sizes for picture in row] for row in rows], device=policy.device),
        ),
        Selection(
            returns_PK=torch.full((count, width), torch.nan),
            weights_PK=torch.nn.functional.one_hot(torch.zeros(count, dtype=torch.long), width).float(),
            losing_weights_PK=torch.nn.functional.one_hot(torch.full((count,), width - 1), width).float(),
            best_P=torch.zeros(count, dtype=torch.long),
            worst_P=torch.full((count,), width - 1),
            valid_P=torch.ones(count, dtype=torch.bool),
        ),
        seeds,
    )


def _pictures(item: Given) -> list[ImageText]:
    return [item] if isinstance(item, ImageText) else [item.chosen, item.rejected]
