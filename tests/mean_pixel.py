"""A reward as one writes one's own: the mean of a picture's pixels."""

from typing import Any


def score(images: list[Any], prompts: list[str], scale: float = 1.0) -> list[float]:
    return [scale * float(image.mean()) for image in images]
