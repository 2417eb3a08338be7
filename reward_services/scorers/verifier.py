"""The shapes world's rule-based verifier as a reward: 1 when the whole caption holds, else 0."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from reward_services.errors import ImageInvalid, PromptInvalid
from reward_services.images import to_array
from reward_services.schema import Score
from reward_services.scorers.scorer import Pixels, Scorer
from reward_services.shapes import captions, render, verify

_RULES = (captions, render, verify)


class VerifierScorer(Scorer[tuple[NDArray[np.uint8], str], verify.Verdict]):
    """Reads a picture of the shapes world back; `parts` says what of the caption holds, as 1.0 or 0.0."""

    score_range: ClassVar[tuple[float | None, float | None]] = (0.0, 1.0)

    def __init__(self) -> None:
        self.revision = f"sha256:{_digest_of_rules()}"

    def prepare(self, image: Pixels, prompt: str) -> tuple[NDArray[np.uint8], str]:
        """Raises `PromptInvalid` for what is no caption of the world, `ImageInvalid` for another size."""
        array = to_array(image)
        if array.shape[:2] != (render.IMAGE_SIZE, render.IMAGE_SIZE):
            size = f"{render.IMAGE_SIZE} x {render.IMAGE_SIZE}"
            raise ImageInvalid(f"the verifier reads {size} pictures, not {array.shape[1]} x {array.shape[0]}")
        try:
            captions.parse(prompt)
        except ValueError as error:
            raise PromptInvalid(str(error)) from error
        return array, prompt

    def run(self, items: Sequence[tuple[NDArray[np.uint8], str]]) -> list[verify.Verdict]:
        """One verdict per picture."""
        return [verify.verify(image, prompt) for image, prompt in items]

    def finish(self, raw: verify.Verdict) -> Score:
        """The verdict as a score with its breakdown."""
        return Score.of(float(raw.correct), {name: float(holds) for name, holds in raw.parts.items()})

    def golden(self) -> tuple[Pixels, str]:
        """A rendered scene, which is correct by construction."""
        scene = captions.parse("a red circle left of a blue square")
        return render.render(scene, np.random.default_rng(0)), scene.text


def _digest_of_rules() -> str:
    digest = hashlib.sha256()
    for module in _RULES:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()
