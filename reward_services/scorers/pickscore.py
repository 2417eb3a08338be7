"""PickScore (Kirstain et al., arXiv 2305.01569): a CLIP-H tuned on people's choices between two pictures.

The score of its model card (yuvalkirstain/PickScore_v1): the learned logit scale times the cosine. People
who train on it often divide by 26; that is a weight of the reward, and not done here.
"""

from __future__ import annotations

from functools import partial
from typing import Unpack

from reward_services.options import Preprocessing
from reward_services.scorers.clip_features import (
    CLIP_FILES,
    PROCESSOR_FILES,
    ImageTower,
    TextTower,
    load_clip,
)
from reward_services.scorers.cosine import CosineScorer
from reward_services.scorers.placement import Placement
from reward_services.scorers.preprocessing import cropped
from reward_services.scorers.weights import digest, local_folder, matching


class PickScoreScorer(CosineScorer):
    """The cosine times exp(logit_scale) of the checkpoint, which bounds it: no range can be promised here.

    The weights and the processor (tokenizer, normalisation) lie in two places, as they do on the hub.

    Raises:
        ConfigInvalid: one of them is missing, incomplete, or does not fit.
    """

    def __init__(
        self,
        model: str,
        *,
        processor: str,
        revision: str | None = None,
        processor_revision: str | None = None,
        preprocessing: Preprocessing = "transformers",
        **placement: Unpack[Placement],
    ) -> None:
        folder = local_folder(model, revision, CLIP_FILES)
        # config.json says whose tokenizer it is where tokenizer_config.json does not.
        fetched = ("config.json", *PROCESSOR_FILES)
        words = local_folder(processor, processor_revision, fetched, option="processor")
        clip = load_clip(folder)
        images = ImageTower(clip, words, **placement)
        transform = partial(cropped, side=images.side, preprocessing=preprocessing)
        texts = TextTower(clip, words, **placement)
        super().__init__(images, texts, transform, scale=clip.logit_scale.exp().item())
        files = [*matching(folder, CLIP_FILES), *matching(words, PROCESSOR_FILES)]
        self.revision = digest(files, f"{preprocessing}/{images.dtype}")
