"""Pictures are seen as they are meant, cut where they should be, and refused where they cannot be read."""

import io
import random
import zlib

import numpy as np
import pytest
from PIL import Image

from trainer.data.pictures import PictureError, decode, fit, nearest, resolutions, size_of


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves(width: int = 8, height: int = 4) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def bomb() -> bytes:
    """A PNG of a hundred bytes that says it has 10 billion pixels."""
    header = (100_000).to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_a_picture_is_turned_as_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: what was left is on top
    content = encoded(halves(), "JPEG", exif=exif, quality=100, subsampling=0)
    assert size_of(content) == (8, 4)
    seen = np.asarray(decode(content))
    assert seen.shape == (8, 4, 3)
    assert seen[0, 0, 0] > 200 > seen[-1, 0, 0]


def test_what_is_transparent_is_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert np.asarray(decode(encoded(image))).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_the_centre_is_cut_from_a_picture_that_covers_the_size() -> None:
    pixels, corner = fit(halves(16, 8), (4, 4))
    assert corner == (0, 2)  # 16 x 8 becomes 8 x 4, of which columns 2 to 5 are kept
    assert pixels.shape == (4, 4, 3)
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[0, -1].tolist() == [0, 0, 255]


def test_a_picture_of_the_size_is_not_touched() -> None:
    image = halves()
    pixels, corner = fit(image, (4, 8))
    assert corner == (0, 0)
    assert (pixels == np.asarray(image)).all()


@pytest.mark.parametrize("size", [(40, 61), (64, 64), (97, 30), (301, 300)])
def test_what_is_cut_is_what_the_whole_scaled_picture_has_there(size: tuple[int, int]) -> None:
    height, width = size
    image = Image.effect_noise((width, height), 20).convert("RGB")
    pixels, (top, left) = fit(image, (48, 32), random.Random(1))
    scale = max(48 / height, 32 / width)
    whole = np.asarray(image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS))
    apart = np.abs(pixels.astype(int) - whole[top : top + 48, left : left + 32])
    assert apart[4:-4, 4:-4].max() <= 4, "near a cut the kernel ends"
    assert apart.mean() < 2


@pytest.mark.parametrize("length", [3_000, 1_000_003])
def test_a_thin_picture_is_not_scaled_as_a_whole(length: int) -> None:
    """Covering 1024 x 1024, its million pixels would be 3 terabytes."""
    pixels, (top, left) = fit(Image.new("RGB", (1, length), (9, 8, 7)), (1024, 1024), random.Random(0))
    assert (pixels == (9, 8, 7)).all()
    assert (left, pixels.shape) == (0, (1024, 1024, 3))
    assert 0 < top < 1024 * length


def test_random_cuts_are_drawn_from_the_generator() -> None:
    corners = [fit(halves(64, 8), (4, 4), random.Random(seed))[1] for seed in range(40)]
    assert {top for top, _ in corners} == {0}
    assert min(left for _, left in corners) >= 0
    assert max(left for _, left in corners) <= 28
    assert len(set(corners)) > 10
    assert corners[3] == fit(halves(64, 8), (4, 4), random.Random(3))[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "is no picture that can be read"),
        (b"", "is no picture that can be read"),
        (bomb(), "is a picture of more than 89478485 pixels"),
        (encoded(Image.new("I;16", (2, 2))), "with mode I;16; save it with 8 bits a channel"),
    ],
    ids=["text", "nothing", "bomb", "sixteen bits"],
)
def test_what_cannot_be_used_says_so_before_it_is_decoded(content: bytes, message: str) -> None:
    for use in (size_of, decode):
        with pytest.raises(PictureError, match=message):
            use(content)


def test_a_picture_that_ends_early_is_found_when_it_is_decoded() -> None:
    content = encoded(Image.effect_noise((64, 64), 50))[:-500]
    assert size_of(content) == (64, 64)
    with pytest.raises(PictureError, match="is a broken picture"):
        decode(content)


def test_resolutions_are_those_of_sdxl() -> None:
    """The paper's table, arXiv 2307.01952, Appendix I: the ends, the square, and one in between."""
    sizes = resolutions(1024, 64)
    assert len(sizes) == 41
    assert {(512, 2048), (2048, 512), (1024, 1024), (832, 1216), (1216, 832), (704, 1344)} < set(sizes)
    assert all(0.8 * 1024**2 < height * width <= 1.05 * 1024**2 for height, width in sizes)


def test_resolutions_are_scaled_to_what_the_model_draws() -> None:
    assert {(256, 1024), (512, 512), (416, 608)} < set(resolutions(512, 8))
    assert all(height % 16 == 0 and width % 16 == 0 for height, width in resolutions(512, 16))
    small = resolutions(32, 8)
    assert len(small) == len(set(small)) < 41
    assert (32, 32) in small


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 100), (1024, 1024)), ((1000, 1500), (832, 1216)), ((3, 1), (1792, 576)), ((1, 50), (512, 2048))],
)
def test_the_nearest_has_the_closest_proportions(size: tuple[int, int], expected: tuple[int, int]) -> None:
    sizes = resolutions(1024, 64)
    assert sizes[nearest(size, sizes)] == (expected if size != (3, 1) else (1728, 576))
