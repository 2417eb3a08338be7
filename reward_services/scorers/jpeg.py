"""JPEG size, DDPO's compressibility (arXiv 2305.13301, section 4.2): a true reward that needs no weights."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import ClassVar, Literal

import PIL
from PIL import Image

from reward_services.images import from_array
from reward_services.schema import Modality, Score
from reward_services.scorers.scorer import Pixels, Scorer

Direction = Literal["compressible", "incompressible"]

QUALITY = 95
"""The JPEG quality of DDPO's experiments."""


class JpegScorer(Scorer[Image.Image, int]):
    """The size in kB (1000 bytes) at quality 95; negative for `compressible`, so that higher is better."""

    modality: ClassVar[tuple[Modality, ...]] = ("image",)

    def __init__(self, direction: Direction = "compressible") -> None:
        self.revision = f"jpeg-{QUALITY}-{direction}-pillow-{PIL.__version__}"
        self._sign = -1 if direction == "compressible" else 1

    def prepare(self, image: Pixels, prompt: str) -> Image.Image:
        """The image in RGB; the prompt plays no part."""
        return image.convert("RGB") if isinstance(image, Image.Image) else from_array(image)

    def run(self, items: Sequence[Image.Image]) -> list[int]:
        """Encoded sizes in bytes."""
        return [_encoded_bytes(item) for item in items]

    def finish(self, raw: int) -> Score:
        """Bytes as signed kB."""
        return Score.of(self._sign * raw / 1000)


def _encoded_bytes(image: Image.Image) -> int:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell()
