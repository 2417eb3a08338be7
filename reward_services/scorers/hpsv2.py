"""HPSv2 (Wu et al., arXiv 2306.09341): a CLIP-H tuned on the Human Preference Dataset v2.

The cosine itself, without a logit scale, as the package hpsv2 1.2.0 (github.com/tgxs002/HPSv2) gives it. On a
GPU the package runs in autocast float16; the nearest here is `dtype: float16`.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Unpack

from reward_services.scorers.clip_features import (
    PROCESSOR_FILES,
    ImageTower,
    TextTower,
    clip_of,
    read_architecture,
)
from reward_services.scorers.cosine import CosineScorer
from reward_services.scorers.open_clip import cleaned, clip_weights
from reward_services.scorers.placement import Placement
from reward_services.scorers.preprocessing import letterboxed
from reward_services.scorers.weights import digest, local_folder, matching, read_weights

_ARCHITECTURE_FILES = ("config.json", *PROCESSOR_FILES)


class Hpsv2Scorer(CosineScorer):
    """An open_clip checkpoint, run as transformers' `CLIPModel`.

    `model` is where the file `checkpoint` lies. It holds weights alone: what they are weights of, and the
    tokenizer, come from `architecture`, a CLIPModel folder or hub id whose own weights are not read.

    Raises:
        ConfigInvalid: a file is missing, or the weights do not fit the architecture.
    """

    score_range: ClassVar[tuple[float | None, float | None]] = (-1.0, 1.0)

    def __init__(
        self,
        model: str,
        *,
        architecture: str,
        checkpoint: str = "HPS_v2_compressed.pt",
        revision: str | None = None,
        architecture_revision: str | None = None,
        antialias: bool = True,
        **placement: Unpack[Placement],
    ) -> None:
        file = local_folder(model, revision, [checkpoint]) / checkpoint
        folder = local_folder(architecture, architecture_revision, _ARCHITECTURE_FILES, option="architecture")
        described = read_architecture(folder)
        clip = clip_of(described, clip_weights(read_weights(file), described.shapes, file))
        images = ImageTower(clip, folder, **placement)
        transform = partial(letterboxed, side=images.side, antialias=antialias)
        texts = TextTower(clip, folder, clean=cleaned, **placement)
        super().__init__(images, texts, transform, scale=1.0)
        files = [file, *matching(folder, _ARCHITECTURE_FILES)]
        self.revision = digest(files, f"antialias-{antialias}/{images.dtype}")
