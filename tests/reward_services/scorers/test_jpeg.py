"""JPEG size as DDPO measures it."""

import io

import numpy as np
import pytest
from PIL import Image

from reward_services.scorers.jpeg import Direction, JpegScorer

FLAT = np.full((64, 64, 3), 128, np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(("direction", "sign"), [("compressible", -1), ("incompressible", 1)])
def test_the_score_is_the_file_size_in_kilobytes(direction: Direction, sign: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "JPEG", quality=95)
    (score,) = JpegScorer(direction).score([NOISE], ["whatever"])
    assert score.value == sign * len(buffer.getvalue()) / 1000


def test_higher_is_better_in_both_directions() -> None:
    flat, noise = JpegScorer("compressible").score([FLAT, NOISE], ["", ""])
    assert flat.value is not None
    assert noise.value is not None
    assert flat.value > noise.value
    assert JpegScorer("compressible").revision != JpegScorer("incompressible").revision


def test_pil_images_of_any_mode_are_taken() -> None:
    grey = Image.fromarray(NOISE).convert("LA")
    assert JpegScorer().score([grey], [""]) == JpegScorer().score([np.asarray(grey.convert("RGB"))], [""])


def test_a_wrong_array_fails_alone() -> None:
    scores = JpegScorer().score([FLAT, FLAT.astype(np.float32), NOISE], ["", "", ""])
    assert [score.ok for score in scores] == [True, False, True]
