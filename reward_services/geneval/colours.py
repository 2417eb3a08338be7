"""Names of objects' colours, by CLIP without training: GenEval's three templates for each of ten colours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from reward_services.geneval.rules import COLOURS, Colour, Found
from reward_services.scorers.clip_features import ImageTower, TextTower, load_clip
from reward_services.scorers.placement import Placement
from reward_services.scorers.preprocessing import cropped

_TEMPLATES = (
    "a photo of a {colour} {name}",
    "a photo of a {colour}-colored {name}",
    "a photo of a {colour} object",
)
_BACKGROUND = np.uint8(0x99)


class ColourNamer:
    """The colour whose captions lie nearest to an object, cut out and put on grey.

    Raises:
        ConfigInvalid: the folder holds no CLIP.
    """

    def __init__(self, folder: Path, **placement: Unpack[Placement]) -> None:
        clip = load_clip(folder)
        self._images = ImageTower(clip, folder, **placement)
        self._text = TextTower(clip, folder, **placement)
        self._captions = lru_cache(maxsize=256)(self._encoded)

    @torch.inference_mode()
    def name(self, picture: NDArray[np.uint8], class_name: str, objects: Sequence[Found]) -> list[Colour]:
        """The colour of each object of a class in an (H, W, 3) picture."""
        cuts = [cropped(cut_out(picture, one), self._images.side, "openai") for one in objects]
        nearest = (self._images.features(cuts) @ self._captions(class_name).T).argmax(1)
        return [COLOURS[index] for index in nearest.tolist()]

    def _encoded(self, class_name: str) -> Tensor:
        """(10, D) a unit feature of each colour: the mean of its captions'."""
        captions = [
            template.format(colour=colour, name=class_name) for colour in COLOURS for template in _TEMPLATES
        ]
        features = self._text.features([self._text.token_ids(caption) for caption in captions])
        means = features.unflatten(0, (len(COLOURS), len(_TEMPLATES))).mean(1)
        return torch.nn.functional.normalize(means, dim=-1)


def cut_out(picture: NDArray[np.uint8], one: Found) -> Image.Image:
    """The box of an object, grey where the picture is not its own."""
    left, top, right, bottom = (round(edge) for edge in one.box)
    box = np.s_[top:bottom, left:right]
    return Image.fromarray(np.where(one.mask[box][..., None], picture[box], _BACKGROUND))
