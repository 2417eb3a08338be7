"""CLIPScore: 100 times the cosine between the CLIP features of an image and of its prompt.

The model is that of Radford et al. (arXiv 2103.00020), the score that of Hessel et al. (arXiv 2104.08718)
without its cut at zero: a negative cosine still says which of two pictures is worse.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Unpack

from reward_services.options import Preprocessing
from reward_services.scorers.clip_features import CLIP_FILES, ImageTower, TextTower, load_clip
from reward_services.scorers.cosine import CosineScorer
from reward_services.scorers.placement import Placement
from reward_services.scorers.preprocessing import cropped
from reward_services.scorers.weights import digest, local_folder, matching


class ClipScorer(CosineScorer):
    """Any `CLIPModel` of transformers, from a folder or the hub; safetensors only, no code of the model's.

    Prompts are tokenised as transformers' fast tokenizer does it, without openai/CLIP's cleaning by ftfy.

    Raises:
        ConfigInvalid: the folder is missing, incomplete, or holds no CLIP.
    """

    score_range: ClassVar[tuple[float | None, float | None]] = (-100.0, 100.0)

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        preprocessing: Preprocessing = "openai",
        **placement: Unpack[Placement],
    ) -> None:
        folder = local_folder(model, revision, CLIP_FILES)
        clip = load_clip(folder)
        images = ImageTower(clip, folder, **placement)
        transform = partial(cropped, side=images.side, preprocessing=preprocessing)
        super().__init__(images, TextTower(clip, folder, **placement), transform, scale=100.0)
        self.revision = digest(matching(folder, CLIP_FILES), f"{preprocessing}/{images.dtype}")
