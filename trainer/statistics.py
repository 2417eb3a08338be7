"""What can be told of pictures without a model; a reward that is gamed mostly moves one of these far."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DARK = 32
"""Brightness, of 255, below which a pixel counts as dark."""
EDGE = 24
"""Difference of brightness to the pixel on the right or below from which a pixel counts as an edge."""
_CELLS = 8
_LARGEST_SIDE = 256


def image_statistics(pictures: Sequence[NDArray[np.uint8]]) -> dict[str, tuple[float, ...]]:
    """A value a picture, {statistic: (N,)}, of RGB pictures (H, W, 3).

    dark_share: share of dark pixels. edge_density: share of pixels on an edge. colour_entropy: bits of the
    histogram over 8 x 8 x 8 cells of RGB, from 0 (one colour) to 9. Sides above 256 pixels are shrunk first.
    """
    small = [_shrunk(picture) for picture in pictures]
    return {
        "dark_share": tuple(dark_share(picture) for picture in small),
        "edge_density": tuple(edge_density(picture) for picture in small),
        "colour_entropy": tuple(colour_entropy(picture) for picture in small),
    }


def dark_share(picture: NDArray[np.uint8]) -> float:
    """Share of pixels darker than DARK."""
    return float((_brightness(picture) < DARK).mean())


def edge_density(picture: NDArray[np.uint8]) -> float:
    """Share of pixels that differ from the one on the right or below by EDGE or more."""
    brightness = _brightness(picture)
    right = np.abs(np.diff(brightness, axis=1))[:-1]
    below = np.abs(np.diff(brightness, axis=0))[:, :-1]
    return float((np.maximum(right, below) >= EDGE).mean())


def colour_entropy(picture: NDArray[np.uint8]) -> float:
    """Entropy in bits of the colours, counted in cells of 32 levels a channel."""
    cells = picture.reshape(-1, 3).astype(np.int64) * _CELLS // 256
    counts = np.bincount(cells @ (_CELLS * _CELLS, _CELLS, 1))
    shares = counts[counts > 0] / len(cells)
    return abs(float(-(shares * np.log2(shares)).sum()))


def _brightness(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Luma of ITU-R BT.601, 0 to 255."""
    return picture.astype(np.float64) @ (0.299, 0.587, 0.114)


def _shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if max(picture.shape[:2]) <= _LARGEST_SIDE:
        return picture
    image = Image.fromarray(picture)
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return np.asarray(image)
