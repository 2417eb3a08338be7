"""Image features for an evaluation's diversity figure."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, CLIPVisionModelWithProjection


class ImageFeatures:
    """The vision tower of a CLIP folder or hub id."""

    def __init__(self, path: str) -> None:
        self._model = CLIPVisionModelWithProjection.from_pretrained(path, use_safetensors=True).eval()
        self._processor = AutoImageProcessor.from_pretrained(path, use_fast=False)

    @torch.no_grad()
    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """N pictures, each (H, W, 3) uint8, to (N, d) features."""
        pixels = self._processor([Image.fromarray(image) for image in images], return_tensors="pt")
        features: torch.Tensor = self._model(**pixels).image_embeds
        return features.numpy()
