"""A picture made ready for a model of S by S pixels: the image transforms of the published rewards."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from reward_services.errors import ImageInvalid
from reward_services.images import check_array, to_array
from reward_services.options import Preprocessing
from reward_services.scorers.scorer import Pixels

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_MAX_RESIZED_PIXELS = 2**25


def cropped(image: Pixels, side: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Bicubic resize of the shorter side to `side`, then the central square: (S, S, 3) uint8.

    An array of the model's size is taken as it is. Raises `ImageInvalid` for what has no picture's shape.
    """
    if isinstance(image, np.ndarray):
        check_array(image)
        if image.shape[:2] == (side, side):
            return image
        image = Image.fromarray(image)
    own_mode = preprocessing == "openai"
    if not own_mode:
        image = image.convert("RGB")
    image = _resized(image, side)
    half = round if own_mode else int
    left, top = half((image.width - side) / 2), half((image.height - side) / 2)
    return np.asarray(image.crop((left, top, left + side, top + side)).convert("RGB"), dtype=np.uint8)


def stretched(image: Pixels, side: int, resample: Image.Resampling) -> NDArray[np.uint8]:
    """SigLIP's transform: RGB, then both sides to `side`, whatever the shape: (S, S, 3) uint8."""
    if isinstance(image, np.ndarray):
        check_array(image)
        image = Image.fromarray(image)
    image = image.convert("RGB")
    same = image.size == (side, side)
    return np.asarray(image if same else image.resize((side, side), resample), dtype=np.uint8)


def letterboxed(image: Pixels, side: int, *, antialias: bool) -> NDArray[np.float32]:
    """hpsv2's transform: bicubic resize of the longer side to `side`, black around: (S, S, 3), 0 to 1.

    The resize works on floats and is not clipped, so values may lie slightly outside 0 to 1. `antialias` is
    the default of torchvision 0.17 and later; older ones skipped it.
    """
    array = to_array(image)
    height, width = array.shape[:2]
    scale = side / max(height, width)
    rows, columns = round(height * scale), round(width * scale)
    if 0 in (rows, columns):
        raise ImageInvalid(f"{width} x {height} pixels leave nothing when resized to {side}; crop the image")
    # torchvision's order: bytes to floats, then the resize; a copy, because decoded arrays are read-only.
    unit_HW3 = torch.from_numpy(array.copy()).float() / 255
    resized_HW3 = unit_HW3
    if scale != 1.0:
        resized_HW3 = torch.nn.functional.interpolate(
            unit_HW3.permute(2, 0, 1)[None], size=(rows, columns), mode="bicubic", antialias=antialias
        )[0].permute(1, 2, 0)
    boxed_SS3 = np.zeros((side, side, 3), np.float32)
    top, left = (side - rows) // 2, (side - columns) // 2
    boxed_SS3[top : top + rows, left : left + columns] = resized_HW3.numpy()
    return boxed_SS3


def normalised(pixels_NSS3: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(N, S, S, 3) pixels, uint8 or floats of 0 to 1, as a model takes them: (N, 3, S, S) float32."""
    unit = pixels_NSS3.float() / 255 if pixels_NSS3.dtype == torch.uint8 else pixels_NSS3
    return ((unit - mean) / std).permute(0, 3, 1, 2)


def _resized(image: Image.Image, side: int) -> Image.Image:
    """The shorter side becomes `side`; refuses what would grow beyond all bounds."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if side * side * long / short > _MAX_RESIZED_PIXELS:
        raise ImageInvalid(
            f"{width} x {height} pixels are too narrow to be resized to {side}; crop the image first"
        )
    size = (side, side * long // short) if width <= height else (side * long // short, side)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
