"""What the CLIP rewards have in common: the cosine between an image's features and its prompt's, scaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from reward_services.schema import Score
from reward_services.scorers.clip_features import ImageTower, TextTower, TokenIds
from reward_services.scorers.scorer import Pixels, Scorer, finite_score


class CosineItem(NamedTuple):
    """A prepared input: pixels (S, S, 3) as the model's image tower takes them, and the prompt's tokens."""

    pixels: NDArray[Any]
    token_ids: TokenIds


class CosineScorer(Scorer[CosineItem, float]):
    """`scale` times the cosine; `transform` makes the pixels. A reward's own class loads what these need."""

    def __init__(
        self, images: ImageTower, texts: TextTower, transform: Callable[[Pixels], NDArray[Any]], scale: float
    ) -> None:
        self.images = images
        self.texts = texts
        self._transform = transform
        self._scale = scale

    def prepare(self, image: Pixels, prompt: str) -> CosineItem:
        """Transformed pixels and token ids."""
        return CosineItem(self._transform(image), self.texts.token_ids(prompt))

    @torch.inference_mode()
    def run(self, items: Sequence[CosineItem]) -> list[float]:
        """The scaled cosines of a batch."""
        images_ND = self.images.features([item.pixels for item in items])
        texts_ND = self.texts.features([item.token_ids for item in items])
        cosines: list[float] = (images_ND * texts_ND).sum(dim=-1).tolist()
        return [self._scale * cosine for cosine in cosines]

    def finish(self, raw: float) -> Score:
        """The value as a score; NaN is a failure."""
        return finite_score(raw)
