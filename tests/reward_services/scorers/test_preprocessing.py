"""Image transforms: geometry, and what cannot be transformed. Golden scores check their numbers."""

import numpy as np
import pytest
from PIL import Image

from reward_services import ImageInvalid
from reward_services.scorers.preprocessing import cropped, letterboxed


def ramp(height: int, width: int) -> Image.Image:
    columns = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.repeat(np.tile(columns, (height, 1))[..., None], 3, axis=-1))


def test_an_array_of_the_models_size_is_taken_as_it_is() -> None:
    array = np.zeros((8, 8, 3), np.uint8)
    assert cropped(array, 8, "openai") is array


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 8), (8, 13), (3, 5), (21, 64)])
def test_a_crop_has_the_models_size(height: int, width: int) -> None:
    for picture in (ramp(height, width), np.asarray(ramp(height, width))):
        for preprocessing in ("openai", "transformers"):
            assert cropped(picture, 8, preprocessing).shape == (8, 8, 3)


def test_the_conventions_part_at_odd_margins() -> None:
    picture = ramp(8, 11)  # a margin of 1.5 on either side: rounded to 2, floored to 1
    columns = np.asarray(picture)[0, :, 0]
    np.testing.assert_array_equal(cropped(picture, 8, "openai")[0, :, 0], columns[2:10])
    np.testing.assert_array_equal(cropped(picture, 8, "transformers")[0, :, 0], columns[1:9])


@pytest.mark.parametrize("width", [2**20, 2**17])
def test_what_is_too_narrow_is_refused_before_it_grows(width: int) -> None:
    with pytest.raises(ImageInvalid, match="too narrow"):
        cropped(np.zeros((1, width, 3), np.uint8), 224, "openai")


def test_a_letterbox_keeps_all_of_the_picture_and_is_black_around() -> None:
    boxed = letterboxed(np.full((5, 16, 3), 255, np.uint8), 8, antialias=True)
    assert boxed.shape == (8, 8, 3)
    filled = np.flatnonzero(boxed[:, 0, 0])
    # round(5 * 0.5) is 2, to even; six rows of black, three of them above.
    assert filled.tolist() == [3, 4]
    np.testing.assert_allclose(boxed[3:5], 1.0, atol=1e-6)


def test_a_picture_of_the_models_length_is_not_resampled() -> None:
    boxed = letterboxed(ramp(3, 8), 8, antialias=True)
    np.testing.assert_array_equal(boxed[2:5], np.asarray(ramp(3, 8), np.float32) / 255)
    assert not boxed[:2].any()
    assert not boxed[5:].any()


def test_antialiasing_averages_what_falls_between() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    smooth, rough = (letterboxed(noise, 8, antialias=antialias) for antialias in (True, False))
    assert smooth.std() < rough.std() / 2


def test_grey_palettes_and_alpha_become_rgb() -> None:
    for mode in ("L", "P", "RGBA"):
        assert letterboxed(ramp(9, 16).convert(mode), 8, antialias=True).shape == (8, 8, 3)
        assert cropped(ramp(9, 16).convert(mode), 8, "openai").shape == (8, 8, 3)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3), (1, 2**12, 3)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageInvalid):
        letterboxed(np.zeros(shape, np.uint8), 224, antialias=True)
