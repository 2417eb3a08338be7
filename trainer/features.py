"""Image features for an evaluation's diversity figure."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, CLIPVisionModelWithProjection

from trainer.config import ConfigError

_AT_A_TIME = 32
_CPU = torch.device("cpu")
_KINDS = ("clip", "clip_vision_model")


class ImageFeatures:
    """The vision tower of a CLIP folder or hub id.

    Raises:
        ConfigError: there is no such model, or it is no CLIP.
    """

    def __init__(self, path: str) -> None:
        check_features(path)
        self._model = CLIPVisionModelWithProjection.from_pretrained(path, use_safetensors=True).eval()
        self._processor = AutoImageProcessor.from_pretrained(path, use_fast=False)

    @torch.no_grad()
    def __call__(
        self, images: Sequence[NDArray[np.uint8]], device: torch.device = _CPU
    ) -> NDArray[np.float32]:
        """N pictures, each (H, W, 3) uint8, to (N, d) features, on a device that the model visits for it."""
        features = [np.empty((0, self._model.visual_projection.out_features), np.float32)]
        self._model.to(device)
        for first in range(0, len(images), _AT_A_TIME):
            some = [Image.fromarray(image) for image in images[first : first + _AT_A_TIME]]
            pixels = self._processor(some, return_tensors="pt").to(device)
            features.append(self._model(**pixels).image_embeds.cpu().numpy())
        self._model.to(_CPU)
        return np.concatenate(features)


def check_features(path: str) -> None:
    """Look at a model's configuration: of another kind no weights would be loaded, and figures be random.

    Raises:
        ConfigError: there is no such model, or it is no CLIP.
    """
    needed = "give as evaluation.features a CLIP folder or its id on the hub, or null to measure no diversity"
    try:
        kind = AutoConfig.from_pretrained(path).model_type
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load {path!r}; {needed} ({' '.join(str(error).split())})") from error
    if kind not in _KINDS:
        raise ConfigError(f"{path!r} holds a model of kind {kind}; {needed}")
